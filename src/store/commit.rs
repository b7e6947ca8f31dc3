//! From a staged layer to a committed one.
//!
//! The order is: record written, blob index written, directory renamed to its name. What is promised: however this
//! process dies, a layer is there whole or not at all, because only the rename shows it and everything else is before
//! it. Not promised yet: the same after a power cut. Nothing is fsynced, and a filesystem may write the rename before
//! the content of the files; the work on durable commits adds that.

use keelblock_actors::error::{StoreError, UnpackError};
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::StoredLayer;

use super::form::LayerRecord;
use super::layout::{LAYER_RECORD, Layout};
use super::stage::{self, Stage};

/// Makes a staged layer visible. That it is there already is success.
pub(super) fn commit(
    layout: &Layout,
    key: &LayerKey,
    stage: Stage,
    record: &LayerRecord,
) -> Result<StoredLayer, UnpackError> {
    let path = stage.path().join(LAYER_RECORD);
    record.write(stage.path()).map_err(|source| UnpackError::Write { layer: key.clone(), path, source })?;
    // Before the layer is visible: an index to a layer that is not there counts for nothing, but a layer without its
    // index would be fetched again, and not be kept by a pin on its blob.
    if let LayerKey::Blob(blob) = key {
        let path = layout.blob(blob);
        stage::write(layout, &path, record.diff_id.to_string().as_bytes())
            .map_err(|source| StoreError::Io { act: "write", path, source })?;
    }
    let path = layout.layer(&record.diff_id);
    stage.commit(&path).map_err(|source| StoreError::Io { act: "make", path, source })?;
    Ok(StoredLayer { diff_id: record.diff_id.clone() })
}

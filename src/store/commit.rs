//! From a staged layer to a committed one.
//!
//! The order is: record written, blob index written, mark made, directory renamed to its name. What is promised: however
//! this process dies, a layer is there whole or not at all, because only the rename shows it and everything else is before
//! it. The same after a power cut is held by others: the layer is marked as unsettled, which makes somebody write it to
//! disk and tell the journal (`settle`), and what the journal does not know is dropped at the next boot (`boot`).

use keelblock_actors::error::{StoreError, UnpackError};
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::StoredLayer;

use super::form::LayerRecord;
use super::layout::LAYER_RECORD;
use super::settler::SyncMode;
use super::stage::{self, Stage};
use super::unsettled::Mark;
use super::{Inner, settle};

/// Makes a staged layer visible. That it is there already is success.
pub(super) fn commit(
    store: &Inner,
    key: &LayerKey,
    stage: Stage,
    record: &mut LayerRecord,
) -> Result<StoredLayer, UnpackError> {
    let layout = &store.layout;
    record.commit = stage.name().to_owned();
    let path = stage.path().join(LAYER_RECORD);
    record.write(stage.path()).map_err(|source| UnpackError::Write { layer: key.clone(), path, source })?;
    if store.settler.mode == SyncMode::Full {
        // Here a refusal leaves nothing behind, and layers wait side by side.
        if settle::sync_staged(&*store.disk, stage.path())? {
            store.synced.add(&record.commit);
        }
    }
    // Before the layer is visible: an index to a layer that is not there counts for nothing, but a layer without its
    // index would be fetched again, and not be kept by a pin on its blob.
    if let LayerKey::Blob(blob) = key {
        let path = layout.blob(blob);
        stage::write(layout, &path, record.diff_id.to_string().as_bytes())
            .map_err(|source| StoreError::Io { act: "write", path, source })?;
    }
    let mark = Mark::of(&record.diff_id, &record.commit);
    mark.make(layout)?;
    // Known by its blob it may have been brought although a damaged one is there.
    store.make_way(&record.diff_id)?;
    let path = layout.layer(&record.diff_id);
    let committed = stage.commit(&path);
    if !matches!(committed, Ok(true)) {
        mark.remove(layout);
    }
    committed.map_err(|source| StoreError::Io { act: "make", path, source })?;
    Ok(StoredLayer { diff_id: record.diff_id.clone() })
}

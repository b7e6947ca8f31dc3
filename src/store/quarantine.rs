//! Bad layers, moved out of the way: their place is free for the same layer pulled again, and what is on the disk is still
//! there to be looked at, until the next prune.
//!
//! Containers on a bad layer go on with it: their root filesystems hold the image that is moved, and read the rest of it.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::DiffId;

use super::disk::Disk;
use super::form::LayerRecord;
use super::images::names;
use super::layout::{Layout, fresh_name};
use super::shown::Mounts;
use super::unsettled::Mark;
use super::{pin, prune};
use crate::gc::Gc;
use crate::sys::lock::LockKind;

/// Moves a layer to `quarantine/`; where it is then. `None`: it is not there.
pub(super) fn quarantine(
    layout: &Layout,
    disk: &dyn Disk,
    mounts: &Mounts,
    layer: &DiffId,
) -> Result<Option<PathBuf>, StoreError> {
    let _store = pin::lock_store(layout, LockKind::Exclusive)?;
    let from = layout.layer(layer);
    let to = layout.quarantine().join(format!("{}-{}-{}", layer.0.algorithm(), layer.0.hex(), fresh_name()));
    mounts.retire(layer)?;
    // Else a power cut could bring its name back, and the journal would call it durable. Of one whose record cannot be read
    // the journal is not believed either.
    if let Ok(record) = LayerRecord::read(layout, layer) {
        prune::forget(layout, disk, [&record])?;
        for failed in [false, true] {
            Mark { failed, ..Mark::of(&record.diff_id, &record.commit) }.remove(layout);
        }
    }
    let moved = make_directory(layout).and_then(|()| std::fs::rename(&from, &to));
    match moved {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { act: "move into quarantine", path: from, source }),
    }
}

/// Moves all away that is in quarantine; where it is then. To be called under the store lock, exclusive.
pub(super) fn empty(layout: &Layout, gc: &Gc) -> Result<Vec<PathBuf>, StoreError> {
    let mut moved = Vec::new();
    for name in names(&layout.quarantine())? {
        let path = layout.quarantine().join(name);
        let away = gc.move_away(&path);
        moved.extend(away.map_err(|source| StoreError::Io { act: "move away", path, source })?);
    }
    Ok(moved)
}

/// Stores of before there was a quarantine have no place for it.
fn make_directory(layout: &Layout) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(layout.quarantine()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

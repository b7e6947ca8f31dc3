//! Bad layers, moved out of the way: their place is free for the same layer pulled again, and what is on the disk is still
//! there to be looked at.
//!
//! Containers on a bad layer go on with it: their root filesystems hold what is moved, and read the rest of it. Which they are
//! is written beside it ([`Standing`]), for whoever asks about them; a prune leaves it there as long as one of them is.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use keelblock_actors::container::ContainerId;
use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::DiffId;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::form::LayerRecord;
use super::images::names;
use super::layout::{Layout, fresh_name};
use super::shown::Mounts;
use super::unsettled::Mark;
use super::{pin, prune};
use crate::gc::Gc;
use crate::sys::lock::LockKind;

/// In the directory of a bad layer: which containers stand on it.
const STANDING: &str = "containers.json";

/// A container on a layer that went bad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its name.
    pub container: ContainerId,
    /// When it was made, milliseconds since 1970, if that is known: another of this name stands on nothing of its.
    pub created_ms: Option<u64>,
}

/// A bad layer in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Which.
    pub diff_id: DiffId,
    /// The containers on it.
    pub standing: Vec<Standing>,
}

/// Moves a layer to `quarantine/`, with a note of the containers on it; where it is then. `None`: it is not there.
pub(super) fn quarantine(
    layout: &Layout,
    disk: &dyn Disk,
    mounts: &Mounts,
    layer: &DiffId,
    standing: &[Standing],
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
    if !standing.is_empty() {
        let path = from.join(STANDING);
        let written = serde_json::to_vec(standing).map_err(io::Error::from);
        match written.and_then(|text| std::fs::write(&path, text)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            written => written.map_err(|source| StoreError::Io { act: "write", path, source })?,
        }
    }
    let moved = make_directory(layout).and_then(|()| std::fs::rename(&from, &to));
    match moved {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { act: "move into quarantine", path: from, source }),
    }
}

/// What is in quarantine, and which containers stood on it when it was moved there and may still do.
pub(super) fn list(layout: &Layout) -> Result<Vec<Quarantined>, StoreError> {
    let mut list = Vec::new();
    for name in names(&layout.quarantine())? {
        let Some(diff_id) = layer_of(&name) else { continue };
        let path = layout.quarantine().join(name).join(STANDING);
        let standing = match std::fs::read(&path) {
            // What a power cut has torn: nobody stands on anything then.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(StoreError::Io { act: "read", path, source }),
        };
        list.push(Quarantined { diff_id, standing });
    }
    Ok(list)
}

/// The layer of a name in quarantine.
fn layer_of(name: &OsStr) -> Option<DiffId> {
    let (algorithm, rest) = name.to_str()?.split_once('-')?;
    let (hex, _) = rest.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Moves all away that is in quarantine, but for layers that containers name; where it is then. To be called under the store
/// lock, exclusive.
pub(super) fn empty(layout: &Layout, gc: &Gc, in_use: &BTreeSet<DiffId>) -> Result<Vec<PathBuf>, StoreError> {
    let mut moved = Vec::new();
    for name in names(&layout.quarantine())? {
        // Of a tree the files would be gone under a container on it.
        if layer_of(&name).is_some_and(|layer| in_use.contains(&layer)) {
            continue;
        }
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

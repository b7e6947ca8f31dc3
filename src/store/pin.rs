//! Pins: layers that a live process needs and no record names yet.
//!
//! A pin is a locked file with the layer keys in it. It is made under the store lock, shared, and prune reads pins
//! under the same lock, exclusive: so a layer is either pinned before prune looks, or gone before the pin's owner does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use keelblock_actors::error::StoreError;
use keelblock_actors::image::plan::LayerKey;
use slog::{Logger, warn};

use super::layout::{Layout, fresh_name};
use crate::sys::lock::{self, LockKind};

/// A pin of this process. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Pin {
    path: PathBuf,
    _file: File,
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Unlocked by the close that follows: a pin that could not be removed counts for nothing, and prune does it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The store lock, held until the file is dropped.
pub(super) fn lock_store(layout: &Layout, kind: LockKind) -> Result<File, StoreError> {
    let path = layout.store_lock();
    let locked = lock::open_lock_file(&path).and_then(|file| lock::lock(&file, kind).map(|()| file));
    locked.map_err(|source| StoreError::Io { act: "lock", path, source })
}

/// Pins these layers.
pub(super) fn pin(layout: &Layout, layers: &[LayerKey]) -> Result<Pin, StoreError> {
    let _store = lock_store(layout, LockKind::Shared)?;
    let path = layout.pins().join(fresh_name());
    write(&path, layers)
        .map_err(|source| StoreError::Io { act: "write", path: path.clone(), source })
        .map(|file| Pin { path, _file: file })
}

fn write(path: &PathBuf, layers: &[LayerKey]) -> io::Result<File> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let written = lock::lock(&file, LockKind::Exclusive)
        .and_then(|()| serde_json::to_vec(layers).map_err(io::Error::from))
        .and_then(|bytes| file.write_all(&bytes));
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// What all live pins keep; removes the others. To be called under the store lock, exclusive.
pub(super) fn pinned(layout: &Layout, log: &Logger) -> Result<BTreeSet<LayerKey>, StoreError> {
    let dir = layout.pins();
    let mut keys = BTreeSet::new();
    for name in super::images::names(&dir)? {
        let path = dir.join(name);
        let failed = |source| StoreError::Io { act: "read", path: path.clone(), source };
        match lock::try_lock_existing(&path, LockKind::Shared).map_err(failed)? {
            // Its process is dead.
            Some(_locked) => {
                if let Err(error) = std::fs::remove_file(&path) {
                    warn!(log, "dead pin not removed"; "path" => %path.display(), "error" => %error);
                }
            }
            None => match std::fs::read(&path) {
                Ok(bytes) => {
                    let more: Vec<LayerKey> = serde_json::from_slice(&bytes)
                        .map_err(|error| StoreError::Damaged { path, source: error.into() })?;
                    keys.extend(more);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            },
        }
    }
    Ok(keys)
}

//! What dead processes left: staging that is nobody's, claims, and layers on their way out. Their pins are left to
//! prune, which reads them under the store lock.
//!
//! Whatever is locked has a live owner and is left alone. Everything else is moved to `gc/` first, so that it goes on
//! being garbage if we die as well. With nothing to do this is three listings.

use std::io;
use std::path::{Path, PathBuf};

use keelblock_actors::error::StoreError;
use slog::{Logger, info};

use super::images::names;
use super::layout::{Layout, fresh_name};
use crate::sys::lock::{self, LockKind, NamedLock};

/// Removes it all.
pub(super) fn recover(layout: &Layout, log: &Logger) -> Result<(), StoreError> {
    let mut removed = 0u64;
    for name in names(&layout.staging())? {
        let path = layout.staging().join(name);
        // The lock is held until after the move: the next one to lock it finds it gone.
        let failed = |source| StoreError::Io { act: "lock", path: path.clone(), source };
        if let Some(_locked) = lock::try_lock_existing(&path, LockKind::Exclusive).map_err(failed)? {
            discard(layout, &path)?;
        }
    }
    for name in names(&layout.locks())? {
        // Taking the lock and giving it back removes the file. Another that wants it in this moment is told that
        // somebody has it, and asks again.
        let path = layout.locks().join(name);
        drop(NamedLock::try_acquire(&path).map_err(|source| StoreError::Io { act: "lock", path, source })?);
    }
    for name in names(&layout.gc())? {
        removed += u64::from(collect(&layout.gc().join(name))?);
    }
    if removed > 0 {
        info!(log, "leftovers of dead processes removed"; "count" => removed);
    }
    Ok(())
}

/// Moves something to `gc/`, where nobody looks for it; where it is then.
pub(super) fn discard(layout: &Layout, path: &Path) -> Result<PathBuf, StoreError> {
    let to = layout.gc().join(fresh_name());
    match std::fs::rename(path, &to) {
        Ok(()) => Ok(to),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(to),
        Err(source) => Err(StoreError::Io { act: "move away", path: path.to_owned(), source }),
    }
}

/// Deletes something in `gc/`; `false` = another process is at it, or it is gone.
pub(super) fn collect(path: &Path) -> Result<bool, StoreError> {
    let failed = |source| StoreError::Io { act: "remove", path: path.to_owned(), source };
    let Some(locked) = lock::try_lock_existing(path, LockKind::Exclusive).map_err(failed)? else {
        return Ok(false);
    };
    let is_dir = locked.metadata().map_err(failed)?.is_dir();
    let removed = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(true),
    }
}

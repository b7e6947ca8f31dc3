//! What dead processes left: staging that is nobody's, claims, and layers on their way out. Their pins are left to
//! prune, which reads them under the store lock.
//!
//! Whatever is locked has a live owner and is left alone. Everything else is moved to `gc/`, so that it goes on being
//! garbage if we die as well, and removed by whoever the store has for it ([`crate::gc`]): a start does not wait for
//! that. With nothing to do this is three listings.

use std::path::PathBuf;

use keelblock_actors::error::StoreError;
use slog::{Logger, info};

use super::images::names;
use super::layout::Layout;
use super::removal;
use crate::gc::Gc;
use crate::sys::lock::{self, LockKind, NamedLock};

/// Removes it all.
pub(super) fn recover(layout: &Layout, gc: &Gc, log: &Logger) -> Result<(), StoreError> {
    let mut moved = Vec::new();
    move_stages_away(layout, gc, &mut moved)?;
    remove_claims(layout)?;
    if !moved.is_empty() {
        info!(log, "leftovers of dead processes removed"; "count" => moved.len());
    }
    gc.collect_all().map_err(removal)
}

/// Staging that is nobody's; where it is now is added to `moved`.
pub(super) fn move_stages_away(layout: &Layout, gc: &Gc, moved: &mut Vec<PathBuf>) -> Result<(), StoreError> {
    for name in names(&layout.staging())? {
        let path = layout.staging().join(name);
        let failed = |act, source| StoreError::Io { act, path: path.clone(), source };
        let locked = lock::try_lock_existing(&path, LockKind::Exclusive);
        // The lock is held until after the move: the next one to lock it finds it gone.
        if let Some(_locked) = locked.map_err(|error| failed("lock", error))? {
            moved.extend(gc.move_away(&path).map_err(|error| failed("move away", error))?);
        }
    }
    Ok(())
}

/// Claims that are nobody's.
pub(super) fn remove_claims(layout: &Layout) -> Result<(), StoreError> {
    for name in names(&layout.locks())? {
        // Taking the lock and giving it back removes the file. Another that wants it in this moment is told that
        // somebody has it, and asks again.
        let path = layout.locks().join(name);
        drop(NamedLock::try_acquire(&path).map_err(|source| StoreError::Io { act: "lock", path, source })?);
    }
    Ok(())
}

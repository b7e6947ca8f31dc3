//! Locks on whole files that die with their process and can be looked at without being taken.
//!
//! Locks of [`range_lock`], exclusive. Why not flock(2): the only way to see whether another has
//! one is to take it, and whoever looks makes a taker fail who came at that moment. Why not plain POSIX locks: they
//! vanish when any descriptor of the file is closed anywhere in the process.
//!
//! Like flock, such a lock lives as long as any copy of its descriptor, so that it is given back by [`unlock`]: a
//! child between fork and exec has a copy. One that goes on without exec must close it, or the lock outlives us.

use std::io;
use std::os::fd::AsFd;

use super::lock::LockKind;
use super::range_lock::{self, Range};

/// Takes the lock on this file, open for writing; `false` when somebody has it, in this process or another.
pub fn try_lock(file: impl AsFd) -> io::Result<bool> {
    range_lock::try_lock(file, Range::ALL, LockKind::Exclusive)
}

/// Takes the lock on this file, open for writing; waits while somebody has it.
pub fn lock(file: impl AsFd) -> io::Result<()> {
    range_lock::lock(file, Range::ALL, LockKind::Exclusive)
}

/// Gives the lock back, whoever else has a copy of the descriptor.
pub fn unlock(file: impl AsFd) -> io::Result<()> {
    range_lock::unlock(file, Range::ALL)
}

/// Whether somebody has the lock, other than by this very descriptor. Takes nothing.
pub fn is_locked(file: impl AsFd) -> io::Result<bool> {
    range_lock::is_locked(file, Range::ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_by_others_of_this_process_and_goes_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let open = || std::fs::File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let (first, second) = (open(), open());
        assert!(!is_locked(&second).unwrap());
        assert!(try_lock(&first).unwrap());
        assert!(is_locked(&second).unwrap());
        assert!(!try_lock(&second).unwrap());
        drop(open());
        assert!(is_locked(&second).unwrap(), "closing another descriptor must not release it");
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(is_locked(&second).unwrap(), "a copy of the descriptor keeps it");
        unlock(&copy).unwrap();
        assert!(!is_locked(&second).unwrap());
        assert!(try_lock(&second).unwrap());
    }
}

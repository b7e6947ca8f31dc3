//! File locks that die with their process.
//!
//! flock(2) belongs to the open file description: the lock goes when the last descriptor of it is closed, by
//! whatever death, and two descriptions exclude each other within one process too. Descriptors are close-on-exec;
//! a child that never execs must close what it inherited, or it keeps the lock.
//!
//! Files and directories that are locked may also be removed by others, so a lock is worth something only while
//! the path still leads to what was locked: every function that takes a path checks that after locking.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

/// Who else may hold the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Others that share.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Locks an open file or directory; `false` = another holds it. Does not wait.
pub fn try_lock(file: impl AsFd, kind: LockKind) -> io::Result<bool> {
    let operation = match kind {
        LockKind::Shared => FlockOperation::NonBlockingLockShared,
        LockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives a lock back, whoever else has a copy of the descriptor.
pub fn unlock(file: impl AsFd) {
    // It fails for what is no open file, which an `AsFd` is not.
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

/// Locks an open file or directory; waits until it can.
pub fn lock(file: impl AsFd, kind: LockKind) -> io::Result<()> {
    let operation = match kind {
        LockKind::Shared => FlockOperation::LockShared,
        LockKind::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        match rustix::fs::flock(&file, operation) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether this path (not followed, if it is a symlink) still leads to this open file.
pub fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let here = file.metadata()?;
    Ok(there.ino() == here.ino() && there.dev() == here.dev())
}

/// Opens and locks what is at this path, a file or a directory. `None` = another holds it, or it is gone, or was
/// exchanged meanwhile. Does not wait.
pub fn try_lock_existing(path: &Path, kind: LockKind) -> io::Result<Option<File>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok((try_lock(&file, kind)? && leads_to(path, &file)?).then_some(file))
}

/// A lock by name: a file that exists while somebody holds or wants it. Dropping it removes the file and gives the
/// lock back.
#[derive(Debug)]
pub struct NamedLock {
    path: PathBuf,
    file: File,
}

impl NamedLock {
    /// Takes the lock, exclusively; `None` = another holds it. Does not wait.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = open_lock_file(path)?;
            if !try_lock(&file, LockKind::Exclusive)? {
                return Ok(None);
            }
            // An earlier holder may have removed the file between our open and our lock: then what we hold is a
            // lock on nothing, and others already lock a new file.
            if leads_to(path, &file)? {
                return Ok(Some(Self { path: path.to_owned(), file }));
            }
        }
    }
}

impl Drop for NamedLock {
    fn drop(&mut self) {
        // Removed while still locked, so that nobody can have locked it in between. Failing leaves an empty file
        // that the next holder takes over.
        let _ = std::fs::remove_file(&self.path);
        unlock(&self.file);
    }
}

/// Opens a file to be locked, making it if need be.
pub fn open_lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_lock_is_held_by_one_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = NamedLock::try_acquire(&path).unwrap().unwrap();
        assert!(NamedLock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        assert!(NamedLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_on_a_removed_file_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let stale = open_lock_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(try_lock(&stale, LockKind::Exclusive).unwrap());
        assert!(!leads_to(&path, &stale).unwrap());
        assert!(NamedLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn many_threads_never_hold_one_named_lock_at_once() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (inside, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let Some(held) = NamedLock::try_acquire(&path).unwrap() else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        entered.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(held);
                    }
                });
            }
        });
        assert!(entered.load(Ordering::SeqCst) > 0);
    }
}

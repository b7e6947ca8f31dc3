//! What a filesystem was asked to do, in order: the notes from which a power cut is replayed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of an inode; 1 = the root.
pub(crate) type Ino = u64;

/// What an inode is, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    /// A device, a fifo or a socket: its type bits and number.
    Node(u32, u32),
}

/// A point in time, as utimensat(2) has it.
pub(crate) type Time = (i64, u32);

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Op<T> {
    Make {
        ino: Ino,
        kind: Kind,
        mode: u32,
        owner: (u32, u32),
    },
    /// Names in directories come to lead to an inode, or nowhere. A rename is several at once.
    Names(Vec<(Ino, Vec<u8>, Option<Ino>)>),
    Write {
        ino: Ino,
        offset: u64,
        data: Vec<u8>,
    },
    Size {
        ino: Ino,
        size: u64,
    },
    Mode {
        ino: Ino,
        mode: u32,
    },
    Owner {
        ino: Ino,
        owner: (u32, u32),
    },
    Times {
        ino: Ino,
        mtime: Time,
    },
    Xattr {
        ino: Ino,
        name: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    /// All of this inode is on disk.
    Sync(Ino),
    /// Everything is.
    SyncAll,
    /// What the program under test had said by then.
    Told(T),
}

/// The notes. Clones are one.
#[derive(Debug)]
pub(crate) struct Recorder<T>(Arc<Mutex<Vec<Op<T>>>>);

impl<T> Clone for Recorder<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Recorder<T> {
    fn ops(&self) -> MutexGuard<'_, Vec<Op<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, op: Op<T>) {
        self.ops().push(op);
    }

    pub(crate) fn take(&self) -> Vec<Op<T>> {
        std::mem::take(&mut self.ops())
    }
}

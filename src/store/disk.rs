//! The disk as a port: the few moments in which the store waits for it. Tests put in its place one that fails, forgets
//! or takes notes.

use std::fmt::Debug;
use std::fs::File;
use std::io;

use crate::sys::sync;

/// What is to be on disk before the next step. The argument for their order is in `docs/durability.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Barrier {
    /// The content of a file of a layer.
    Content,
    /// Everything on the filesystem: a layer that is a tree.
    Filesystem,
    /// The names of a layer's files.
    Layer,
    /// The names of layers.
    Layers,
    /// The names in staging, which layers left.
    Staging,
    /// The names in the store itself, or in a directory above it.
    Store,
    /// What the journal says.
    Journal,
    /// The content of a file that is no layer's: the format, a record, an index.
    Record,
    /// The names of records or indexes.
    Records,
}

/// Who writes to disk what the kernel was given.
pub trait Disk: Send + Sync + Debug {
    /// Returns when that is on disk: the content of `file`, the names in it when it is a directory, or everything on its
    /// filesystem.
    ///
    /// # Errors
    /// Those of fsync(2). What they were about must be taken for lost, also when a second try succeeds: the kernel
    /// reports a failure once, and forgets what it could not write.
    fn sync(&self, what: Barrier, file: &File) -> io::Result<()>;
}

/// The kernel's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn sync(&self, what: Barrier, file: &File) -> io::Result<()> {
        match what {
            Barrier::Content | Barrier::Journal | Barrier::Record => sync::content(file),
            Barrier::Filesystem => sync::filesystem(file),
            Barrier::Layer | Barrier::Layers | Barrier::Staging | Barrier::Store | Barrier::Records => {
                sync::all(file)
            }
        }
    }
}

//! Why one entry was not applied: whether the entry, the stream or the disk is to blame.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use keelblock_actors::error::StoreError;

use super::attributes::Unset;
use super::flaw::{EntryError, Flaw};
use super::meaning::components;
use super::tree::Lost;

/// See the module.
pub(super) enum Failed {
    Entry(EntryError),
    Io(io::Error),
    Flaw(Flaw),
}

impl Failed {
    /// As a flaw of the entry with this path, in the tree at `tree`.
    pub(super) fn of(self, path: Vec<u8>, tree: &Path) -> Flaw {
        match self {
            Self::Entry(source) => Flaw::Entry { path, source },
            Self::Io(source) => {
                let relative = components(&path).map(OsStr::from_bytes).collect::<PathBuf>();
                Flaw::Write { path: tree.join(relative), source }
            }
            Self::Flaw(flaw) => flaw,
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            // What the entry asks for cannot be, on this filesystem or any; the rest is the disk's fault.
            Some(Errno::NAMETOOLONG | Errno::LOOP | Errno::MLINK | Errno::FBIG) => {
                Self::Entry(EntryError::Refused(error))
            }
            _ => Self::Io(error),
        }
    }
}

impl From<EntryError> for Failed {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<Flaw> for Failed {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Flaw(Flaw::of_ledger(error))
    }
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Entry(error) => Self::Entry(error),
            Lost::Io(error) => error.into(),
            Lost::Missing => Self::Io(io::ErrorKind::NotFound.into()),
        }
    }
}

impl From<Unset> for Failed {
    fn from(unset: Unset) -> Self {
        match unset {
            Unset::Entry(error) => Self::Entry(error),
            Unset::Io(error) => error.into(),
        }
    }
}

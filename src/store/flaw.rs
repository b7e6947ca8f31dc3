//! `Flaw`: what can be wrong with a layer on its way, before it is known whose layer it is.
//!
//! The parts of the pipeline know bytes and entries; only the top knows the layer key that every [`UnpackError`]
//! carries. So they fail with a `Flaw`, and [`Flaw::of`] makes the port's error of it.

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use keelblock_actors::error::{Cause, NoRoom, StoreError, UnpackError, quote};
use keelblock_actors::image::plan::{Compression, LayerKey};

use super::aci::InvalidAci;

/// See the module.
#[derive(Debug)]
pub(super) enum Flaw {
    /// The source broke off or cannot be read.
    Read(io::Error),
    /// Fewer or more bytes than declared.
    Size { expected: u64, actual: u64 },
    /// It is compressed otherwise than declared.
    Compression { declared: Compression, found: Compression, media_type: String },
    /// What came is not what it should be.
    Stream { what: &'static str, source: Cause },
    /// An entry must not or cannot be unpacked.
    Entry { path: Vec<u8>, source: EntryError },
    /// A limit, by the name of its flag.
    Limit { limit: u64, unit: &'static str, flag: &'static str },
    /// The disk.
    Write { path: PathBuf, source: io::Error },
    /// It does not fit on the disk.
    NoRoom(NoRoom),
    /// Nobody wants it any more.
    Stopped,
    /// The other half of the pipeline ended; its flaw tells why.
    Cut,
}

impl Flaw {
    /// The port's error.
    pub(super) fn of(self, layer: &LayerKey) -> UnpackError {
        let layer = layer.clone();
        match self {
            Self::Read(source) => UnpackError::Read { layer, source },
            Self::Size { expected, actual } => UnpackError::WrongSize { layer, expected, actual },
            Self::Compression { declared, found, media_type } => {
                UnpackError::WrongCompression { layer, media_type, declared, found }
            }
            Self::Stream { what, source } => UnpackError::BadStream { layer, what: what.to_owned(), source },
            Self::Entry { path, source } => {
                UnpackError::BadEntry { layer, entry: text(&path), source: source.into() }
            }
            Self::Limit { limit, unit, flag } => UnpackError::Limit { layer, limit, unit, flag },
            Self::Write { path, source } => UnpackError::Write { layer, path, source },
            Self::NoRoom(source) => UnpackError::NoRoom { layer, source },
            Self::Stopped => UnpackError::Stopped { layer },
            Self::Cut => UnpackError::Read {
                layer,
                source: io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the other half of the unpacking is gone",
                ),
            },
        }
    }

    /// The same of an entry, by the name it has in its archive, which is made by another.
    pub(super) fn in_archive(self, made: &[u8], named: Vec<u8>) -> Self {
        match self {
            Self::Entry { path, source } if path == made => Self::Entry { path: named, source },
            other => other,
        }
    }

    /// What the ledger of the store's space says.
    pub(super) fn of_ledger(error: StoreError) -> Self {
        match error {
            StoreError::NoRoom(numbers) => Self::NoRoom(numbers),
            StoreError::Io { path, source, .. } => Self::Write { path, source },
            other => Self::Write { path: "the ledger of its space".into(), source: io::Error::other(other) },
        }
    }

    /// As an [`io::Error`], to pass through a decoder unharmed.
    pub(super) fn carried(self) -> io::Error {
        io::Error::other(Carried(Mutex::new(Some(self))))
    }

    /// What a decoder failed with: the flaw that its source carried, or one of the stream it decodes.
    pub(super) fn of_decoder(what: &'static str, error: io::Error) -> Self {
        Self::carried_by(&error).unwrap_or_else(|| Self::Stream { what, source: error.into() })
    }

    /// The flaw that an error carries.
    pub(super) fn carried_by(error: &io::Error) -> Option<Self> {
        let carried = error.get_ref().and_then(|error| error.downcast_ref::<Carried>());
        carried.and_then(|Carried(flaw)| flaw.lock().ok()?.take())
    }

    /// Of a format that cannot be unpacked, whatever the media type and what that says.
    pub(super) fn foreign(name: &str, declared: Option<(&str, Compression)>) -> Self {
        let said = declared.map(|(media_type, compression)| {
            format!(", though its media type {} says {compression}", quote(media_type))
        });
        let said = said.unwrap_or_default();
        let source = format!(
            "it is compressed with {name}{said}; layers can be gzip, zstd or plain tar: build the image with one of these"
        );
        Self::Stream { what: "tar", source: source.into() }
    }

    /// No tar, in these words.
    pub(super) fn tar(reason: &'static str) -> Self {
        Self::Stream { what: "tar", source: reason.into() }
    }
}

/// A flaw on its way through code that knows [`io::Error`] only.
#[derive(Debug, thiserror::Error)]
#[error("the blob cannot be read")]
struct Carried(Mutex<Option<Flaw>>);

/// Bytes from a tar, for a message.
pub(super) fn text(bytes: &[u8]) -> String {
    quote(&String::from_utf8_lossy(bytes))
}

/// Why an entry cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// A `..` in its name or in the name of its hard link's target.
    #[error("the path {0:?} leads upwards")]
    Upwards(String),
    /// No name, a NUL in it, or a link without target.
    #[error("{0}")]
    Malformed(&'static str),
    /// A file where a directory is needed.
    #[error("{0:?} is in its way and no directory")]
    NotADirectory(String),
    /// Symlinks in circles.
    #[error("its parents lead through more than 40 symlinks")]
    SymlinkLoop,
    /// The target of a hard link.
    #[error("its target {0:?} is not in this layer: a hard link across layers cannot be made")]
    NoLinkTarget(String),
    /// A hard link to a directory.
    #[error("its target {0:?} is a directory or a removed name, to which no hard link can lead")]
    BadLinkTarget(String),
    /// A name with the whiteout prefix that means nothing.
    #[error("this is no valid whiteout: after .wh. comes the name of one file")]
    BadWhiteout,
    /// What it says of the archive that it is in.
    #[error(transparent)]
    Aci(InvalidAci),
    /// A type of entry that is no file.
    #[error("entries of tar type {0:?} cannot be unpacked")]
    Type(char),
    /// An owner that no file can have.
    #[error("owner {uid}:{gid} is out of range")]
    Owner {
        /// As read.
        uid: i64,
        /// As read.
        gid: i64,
    },
    /// A device number that no device can have.
    #[error("device {major}:{minor} is out of range")]
    Device {
        /// As read.
        major: i64,
        /// As read.
        minor: i64,
    },
    /// An xattr that the kernel takes for nonsense, or that the filesystem of the store cannot hold.
    #[error("its xattr {name:?} of {bytes} bytes cannot be set")]
    Xattr {
        /// Its name.
        name: String,
        /// Bytes of its value.
        bytes: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The map of a sparse file.
    #[error("its sparse map is wrong: {0}")]
    Sparse(&'static str),
    /// The kernel refuses the name or the combination.
    #[error("the filesystem refuses it")]
    Refused(#[source] io::Error),
}

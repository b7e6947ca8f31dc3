//! Why an image was not written, or why something cannot be in one.

use std::io;

/// See the module. After an [`Error::Image`] or [`Error::Sums`] the image is of no use any more; after the others
/// the writer can be used on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the image.
    #[error("the image cannot be written")]
    Image(#[source] io::Error),
    /// The file of its checksums.
    #[error("the checksums of the image cannot be written")]
    Sums(#[source] io::Error),
    /// Blocks have 32-bit numbers.
    #[error("the image would be larger than 16 TiB")]
    Full,
    /// A name in a directory.
    #[error("a name of {bytes} bytes: a name has 1 to 255 of them, no / and no NUL, and is neither . nor ..")]
    Name {
        /// How long it is.
        bytes: usize,
    },
    /// A symlink's target.
    #[error("a symlink's target of {bytes} bytes: it has 1 to 4095 of them")]
    Target {
        /// How long it is.
        bytes: usize,
    },
    /// An xattr in a namespace that the format has no number for, or one too long.
    #[error("the xattr {name:?} of {bytes} bytes cannot be kept in an EROFS image")]
    Xattr {
        /// Its name.
        name: String,
        /// Bytes of its value.
        bytes: usize,
    },
    /// All xattrs of a file.
    #[error("{bytes} bytes of xattrs are more than an inode of an EROFS image can have")]
    Xattrs {
        /// As they would be encoded.
        bytes: usize,
    },
    /// What was said about a file's content is not what came.
    #[error("the content of a file is not as it was announced")]
    Content,
    /// [`Options::names_bytes_max`](super::Options::names_bytes_max).
    #[error("names and directories take more than {max} bytes of memory")]
    Names {
        /// The limit.
        max: usize,
    },
}

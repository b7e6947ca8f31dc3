//! Writes EROFS images in one pass: content goes to the file as it comes, in the order it comes, and what stands in
//! memory meanwhile are names.
//!
//! The image is a file that the kernel mounts read-only (`mount -t erofs`). Nothing here knows tars, layers or
//! overlayfs: a [`Writer`] is a small filesystem of names in memory, whose inodes are on disk already. The format, as
//! it is written here, is described in `docs/erofs.md`; nothing is compressed.
//!
//! ```text
//! | superblock, root inode | content | inodes, small content | content | ... | directories | xattrs |
//! ```
//!
//! The same calls make the same image, byte for byte: it has no time of its own, no UUID, and hashes that differ from
//! run to run are never visible in it.
//!
//! ```
//! use keelblock::erofs::{Attributes, NoWatch, Options, Writer, Xattrs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let image = tempfile::tempfile()?;
//! let mut writer = Writer::new(image, None, Options::default(), Box::new(NoWatch));
//! let root = writer.root();
//! let etc = writer.make_dir(root, b"etc", Attributes::new(0o755))?;
//! writer.begin_file()?;
//! writer.content(b"keelblock\n")?;
//! let file = writer.end_file(&Attributes::new(0o644), &Xattrs::default())?;
//! writer.put(etc, b"hostname", file)?;
//! let written = writer.finish()?;
//! assert_eq!(written.bytes % 4096, 0);
//! # Ok(())
//! # }
//! ```

mod chunked;
mod directories;
mod error;
mod file;
mod format;
mod metadata;
mod names;
mod output;
mod shared;
mod sums;
mod writer;
mod xattrs;

pub use self::error::Error;
pub use self::file::{Run, sparse_bytes};
pub use self::format::{BLOCK, Kind, MAGIC, NAME_BYTES_MAX};
pub use self::names::{Attributes, DirId, Found};
pub use self::output::{NoWatch, Watch};
pub use self::writer::{Inode, Options, Special, Writer, Written};
pub use self::xattrs::Xattrs;

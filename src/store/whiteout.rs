//! Whiteouts: from the form they have in a layer's tar to the form overlayfs reads.
//!
//! In the tar `.wh.x` removes x of the layers below, and `.wh..wh..opq` hides everything below its directory (OCI
//! image-spec, layer.md, "Representing Changes"). On disk a whiteout is a character device 0:0 of that name, and an
//! opaque directory has the xattr `overlay.opaque` = `y` in the namespace `trusted`, which only real root can write,
//! or `user`, for stores made in a user namespace (kernel: Documentation/filesystems/overlayfs.rst). Which of the two
//! is decided once per store.
//!
//! In neither form does a whiteout touch its own layer: a file that comes beside its whiteout stays, in either order.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

/// Begins the name of every whiteout in a tar.
pub const PREFIX: &[u8] = b".wh.";
/// Begins the names that aufs kept for itself; one of them is [`OPAQUE`].
pub const META_PREFIX: &[u8] = b".wh..wh.";
/// Makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// The value of an opaque mark.
pub const OPAQUE_VALUE: &[u8] = b"y";

/// Where the marks of overlayfs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// `trusted.overlay.`: needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.`: overlayfs option `userxattr`.
    User,
}

impl Namespace {
    /// Name of the xattr that marks an opaque directory.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Name of the xattr that makes overlayfs look for whiteouts when it lists a directory of one layer alone.
    /// Without it a whiteout of nothing would be listed as a file that is not there (kernel: fs/overlayfs/inode.c,
    /// `ovl_get_inode`, "non-merge dir that may have whiteouts").
    pub fn origin(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.origin",
            Self::User => "user.overlay.origin",
        }
    }
}

/// Whether an xattr means something to overlayfs: no layer may bring one, and no copy keeps one.
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether this is a whiteout on disk: a character device 0:0.
pub fn is_whiteout(metadata: &std::fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

/// Whether an open directory hides what the layers below have in it.
pub fn is_opaque(dir: impl AsFd, namespace: Namespace) -> io::Result<bool> {
    let mark = crate::sys::beneath::get_xattr(dir.as_fd(), b".", namespace.opaque().as_bytes())?;
    Ok(mark.as_deref() == Some(OPAQUE_VALUE))
}

/// What a name in a tar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign<'a> {
    /// A name like any other.
    None,
    /// This name goes.
    Whiteout(&'a [u8]),
    /// Its directory is opaque.
    Opaque,
    /// Of aufs, means nothing.
    Meta,
    /// Nonsense.
    Bad,
}

/// Reads the last component of a path.
pub(super) fn sign(name: &[u8]) -> Sign<'_> {
    let Some(removed) = name.strip_prefix(PREFIX) else { return Sign::None };
    match removed {
        _ if name == OPAQUE => Sign::Opaque,
        _ if name.starts_with(META_PREFIX) => Sign::Meta,
        b"" | b"." | b".." => Sign::Bad,
        _ => Sign::Whiteout(removed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_image_spec_says() {
        assert_eq!(sign(b"a"), Sign::None);
        assert_eq!(sign(b"a.wh.b"), Sign::None);
        assert_eq!(sign(b".whatever"), Sign::None);
        assert_eq!(sign(b".wh.a"), Sign::Whiteout(b"a"));
        assert_eq!(sign(b".wh..hidden"), Sign::Whiteout(b".hidden"));
        assert_eq!(sign(b".wh..wh..opq"), Sign::Opaque);
        assert_eq!(sign(b".wh..wh.plnk"), Sign::Meta);
        assert_eq!(sign(b".wh..wh.aufs"), Sign::Meta);
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(sign(bad), Sign::Bad);
        }
    }
}

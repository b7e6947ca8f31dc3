//! What a path in a layer's tar means, whatever form the layer is given: which name in which directory, which whiteout,
//! and what is remembered of it.

use super::flaw::{EntryError, text};
use super::whiteout::{self, Sign};

/// Symlinks followed on the way to one directory: as the kernel does (path_resolution(7)).
pub(super) const SYMLINKS_MAX: usize = 40;

/// What an implied directory is to that of the same path in the layers below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Implied {
    /// The same, of which this layer says nothing new.
    Merged,
    /// Another: the layer removed that one before.
    New,
}

/// What a member is about, by its cleaned path.
pub(super) enum Aim<'a> {
    /// Nothing: it is of aufs.
    Nothing,
    /// Hides what the layers below have in this directory.
    Opaque(&'a [u8]),
    /// Removes a name of the layers below: directory and name.
    Removed(&'a [u8], &'a [u8]),
    /// Any other entry: directory and name.
    Entry(&'a [u8], &'a [u8]),
}

/// Whether some names say that something is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Those with the prefix of whiteouts: layers of Docker and OCI.
    Signs,
    /// None: ACIs. What they depend on is added to, never taken from.
    Plain,
}

/// What a member of this path, which is not the root's, is about.
pub(super) fn aim(path: &[u8], names: Names) -> Result<Aim<'_>, EntryError> {
    let (parent, name) = split(path);
    if names == Names::Plain {
        return Ok(Aim::Entry(parent, name));
    }
    for component in components(parent) {
        match whiteout::sign(component) {
            Sign::None => {}
            Sign::Meta => return Ok(Aim::Nothing),
            _ => return Err(EntryError::BadWhiteout),
        }
    }
    match whiteout::sign(name) {
        Sign::None => Ok(Aim::Entry(parent, name)),
        Sign::Meta => Ok(Aim::Nothing),
        Sign::Bad => Err(EntryError::BadWhiteout),
        Sign::Opaque => Ok(Aim::Opaque(parent)),
        Sign::Whiteout(removed) => Ok(Aim::Removed(parent, removed)),
    }
}

/// Why a device was not made.
#[derive(Clone, Copy)]
pub(super) enum Skipped {
    /// In a user namespace there are none.
    Device,
    /// On disk it would be a whiteout.
    Whiteout,
}

/// Devices that are remembered as not made. 16,384: the largest known images have some hundreds. A hard link to one
/// more is refused.
pub(super) const SKIPPED_MAX: usize = 16_384;

/// Bytes of paths of implied directories that are remembered: some 100,000 of them. Of more a backend that shows the topmost
/// directory as it is shows root's, 0755.
const IMPLIED_BYTES_MAX: usize = 4 << 20;

/// Directories that no entry told of when they were made, by path, up to [`IMPLIED_BYTES_MAX`].
#[derive(Default)]
pub(super) struct ImpliedPaths {
    pub(super) paths: Vec<Vec<u8>>,
    bytes: usize,
}

impl ImpliedPaths {
    pub(super) fn push(&mut self, path: Vec<u8>) {
        self.bytes += path.len();
        if self.bytes <= IMPLIED_BYTES_MAX {
            self.paths.push(path);
        }
    }
}

/// The numbers of a device, within what Linux has: 12 and 20 bits.
pub(super) fn device(major: i64, minor: i64) -> Result<(u32, u32), EntryError> {
    let within = |number: i64, bits: u32| u32::try_from(number).ok().filter(|number| number >> bits == 0);
    within(major, 12).zip(within(minor, 20)).ok_or(EntryError::Device { major, minor })
}

/// Components of a path, without empty ones and `.`.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !matches!(*component, b"" | b"."))
}

/// A path from a tar, cleaned: relative to the tree whatever it begins with, single slashes, no `.`. Empty = the root.
pub(super) fn clean(path: &[u8]) -> Result<Vec<u8>, EntryError> {
    if path.contains(&0) {
        return Err(EntryError::Malformed("a NUL byte is in its name"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in components(path) {
        if component == b".." {
            return Err(EntryError::Upwards(text(path)));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}

/// Directory and last component of a clean path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_never_lead_upwards() {
        for (path, cleaned) in [
            (&b"a/b"[..], &b"a/b"[..]),
            (b"./a//b/./c/", b"a/b/c"),
            (b"/etc/passwd", b"etc/passwd"),
            (b"///", b""),
            (b".", b""),
            (b"...", b"..."),
            (b"a\xff/b", b"a\xff/b"),
        ] {
            assert_eq!(clean(path).unwrap(), cleaned);
        }
        for path in [&b".."[..], b"a/../b", b"/..", b"a/..", b"a\0b"] {
            assert!(clean(path).is_err());
        }
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}

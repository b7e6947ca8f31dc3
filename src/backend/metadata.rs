//! What an entry is besides its content: owner, mode, times, extended attributes; read from a layer, given to a copy.
//!
//! The order matters. chown clears setuid bits and file capabilities, so it comes first; an access list changes the
//! mode, so the mode comes after it; everything but utimensat changes times, so they come last.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, lgetxattr, llistxattr, lsetxattr, openat,
    utimensat,
};
use rustix::io::Errno;

/// Bytes of a list of attribute names, or of one value, at most: the kernel's own limit (xattr(7)).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Gives an open directory or regular file the metadata of another, whose stat is given.
pub(super) fn copy_open(
    from: BorrowedFd<'_>,
    stat: &Stat,
    to: BorrowedFd<'_>,
    room: &mut Room,
) -> Result<(), Errno> {
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    copy_xattrs(&Attributes::Open(from), &Attributes::Open(to), room)?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    futimens(to, &times(stat))
}

/// Gives an entry that cannot be opened (symlink, device, fifo, socket) the metadata of another of the same name.
pub(super) fn copy_named(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    room: &mut Room,
) -> Result<(), Errno> {
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    copy_xattrs(&Attributes::named(from, name), &Attributes::named(to, name), room)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // chmod has no way not to follow links on old kernels: pin the entry first.
        let pinned = openat(to, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        chmod(descriptor_path(pinned.as_fd()), Mode::from_raw_mode(stat.st_mode))?;
    }
    utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "the types differ between machines"
    )]
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    #[allow(clippy::unnecessary_cast, reason = "the types differ between machines")]
    Timestamps {
        last_access: time(stat.st_atime as i64, stat.st_atime_nsec as u64),
        last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
    }
}

fn descriptor_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Buffers for names and values, used again for every entry.
#[derive(Default)]
pub(super) struct Room {
    names: Vec<u8>,
    value: Vec<u8>,
}

/// Where attributes are: at an open file, or at an entry that must not be opened.
enum Attributes<'fd> {
    Open(BorrowedFd<'fd>),
    Named(Vec<u8>),
}

impl Attributes<'_> {
    /// By way of the directory's magic link: the name is the last component, and links at the end are not followed.
    fn named(directory: BorrowedFd<'_>, name: &CStr) -> Self {
        let mut path = descriptor_path(directory).into_bytes();
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        Self::Named(path)
    }

    fn list(&self, names: &mut Vec<u8>) -> Result<usize, Errno> {
        read_growing(names, |buffer| match self {
            Self::Open(file) => flistxattr(file, buffer),
            Self::Named(path) => llistxattr(&path[..], buffer),
        })
    }

    fn get(&self, name: &CStr, value: &mut Vec<u8>) -> Result<usize, Errno> {
        read_growing(value, |buffer| match self {
            Self::Open(file) => fgetxattr(file, name, buffer),
            Self::Named(path) => lgetxattr(&path[..], name, buffer),
        })
    }

    fn set(&self, name: &CStr, value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(file) => fsetxattr(file, name, value, XattrFlags::empty()),
            Self::Named(path) => lsetxattr(&path[..], name, value, XattrFlags::empty()),
        }
    }
}

fn read_growing(
    buffer: &mut Vec<u8>,
    read: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    if buffer.is_empty() {
        buffer.resize(512, 0);
    }
    match read(buffer) {
        Err(Errno::RANGE) if buffer.len() < XATTR_BYTES_MAX => {
            buffer.resize(XATTR_BYTES_MAX, 0);
            read(buffer)
        }
        result => result,
    }
}

/// Copies all attributes but those that overlayfs keeps for itself: in a layer they are marks, in a rootfs they
/// would be somebody's data.
fn copy_xattrs(from: &Attributes<'_>, to: &Attributes<'_>, room: &mut Room) -> Result<(), Errno> {
    let length = match from.list(&mut room.names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    for name in room.names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if is_overlay_mark(name) {
            continue;
        }
        let length = match from.get(name, &mut room.value) {
            Err(Errno::NODATA) => continue,
            length => length?,
        };
        match to.set(name, &room.value[..length]) {
            // The label is the host's policy, not the image's: where it cannot be given, the host gives another.
            Err(Errno::NOTSUP | Errno::PERM | Errno::INVAL) if name == c"security.selinux" => {}
            result => result?,
        }
    }
    Ok(())
}

fn is_overlay_mark(name: &CStr) -> bool {
    let name = name.to_bytes();
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

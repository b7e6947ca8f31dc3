//! Paths resolved beneath a directory descriptor, and files made there.
//!
//! Nothing here can leave the directory it is given: the kernel resolves with openat2(2), and everything else works
//! on one name within an open directory and never follows it. Names are bytes: image paths need not be UTF-8.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Opens a directory by a trusted path, for use as a root below.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// A directory below `root`, as a place to make files in (`O_PATH`). Symlinks on the way are followed as a process
/// chrooted to `root` would: absolute ones and `..` stay inside.
pub fn open_dir_in_root(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// The same; `None` = there is a symlink on the way.
pub fn open_dir_in_root_unless_linked(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    unless_linked(openat2(root, path, flags, BENEATH))
}

/// The same, open for reading: to set its times.
pub fn open_dir_in_root_for_reading_unless_linked(
    root: BorrowedFd<'_>,
    path: &[u8],
) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    unless_linked(openat2(root, path, flags, BENEATH))
}

fn unless_linked(opened: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

/// As [`open_dir_in_root`], open for reading: to set its times. The last component itself must be no symlink.
pub fn open_dir_in_root_for_reading(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// A directory below `root`, as a place to make files in (`O_PATH`). A symlink on the way is an error (`ELOOP`).
pub fn open_dir_beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    by_parts(root, path, flags)
}

/// The same, open for reading: to list it.
pub fn read_dir_beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    by_parts(root, path, flags)
}

/// Bytes of a path that the kernel takes at once, without its NUL.
const PATH_BYTES_MAX: usize = 4095;

/// Opens a directory of any depth.
fn by_parts(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let (mut on_the_way, mut rest): (Option<OwnedFd>, _) = (None, path);
    while rest.len() > PATH_BYTES_MAX
        && let Some(slash) = rest[..PATH_BYTES_MAX].iter().rposition(|byte| *byte == b'/')
    {
        let from = on_the_way.as_ref().map_or(root, AsFd::as_fd);
        on_the_way = Some(openat2(from, &rest[..slash], OFlags::PATH | flags, BENEATH)?);
        rest = &rest[slash + 1..];
    }
    openat2(on_the_way.as_ref().map_or(root, AsFd::as_fd), rest, flags, BENEATH)
}

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn openat2(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // A rename anywhere on the machine may have raced with a `..`: openat2(2) asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// A new file, open for writing. The mode loses what the umask takes.
pub fn create_file(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))?))
}

/// A new directory. The mode loses what the umask takes.
pub fn make_dir(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

/// A new symlink; `target` is stored as it is.
pub fn make_symlink(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// One more name for a file; a symlink is linked itself, not what it points to.
pub fn make_link(from: BorrowedFd<'_>, existing: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::linkat(from, existing, dir, name, AtFlags::empty())?)
}

/// The special files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// The number of a device, as [`stat`] says it.
pub fn device(major: u32, minor: u32) -> u64 {
    rustix::fs::makedev(major, minor)
}

/// A new special file. The mode loses what the umask takes.
pub fn make_special(dir: BorrowedFd<'_>, name: &[u8], special: Special, mode: u32) -> io::Result<()> {
    let (kind, device) = match special {
        Special::Char(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Special::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        Special::Fifo => (FileType::Fifo, 0),
    };
    Ok(rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device)?)
}

/// What is at this name, not followed; `None` = nothing.
pub fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What an open file is, also one opened as a mere place.
pub fn stat_fd(fd: impl AsFd) -> io::Result<Stat> {
    Ok(rustix::fs::fstat(fd)?)
}

/// The target of a symlink.
pub fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Removes anything but a directory.
pub fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Names in an open directory, without `.` and `..`.
pub fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Sets the owner of what is at this name, not followed. The IDs must not be `u32::MAX`, which means "as it is".
pub fn chown(dir: BorrowedFd<'_>, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The same for an open file.
pub fn chown_fd(file: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    Ok(rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Sets the mode of what is at this name, which must be no symlink.
pub fn chmod(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// The same for an open file.
pub fn chmod_fd(file: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Sets access and modification time of what is at this name, not followed: seconds since 1970 and nanoseconds.
pub fn set_times(dir: BorrowedFd<'_>, name: &[u8], seconds: i64, nanos: u32) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, name, &times(seconds, nanos), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The same for an open file or directory.
pub fn set_times_fd(file: impl AsFd, seconds: i64, nanos: u32) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &times(seconds, nanos))?)
}

fn times(seconds: i64, nanos: u32) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets an xattr of what is at this name, not followed.
pub fn set_xattr(dir: BorrowedFd<'_>, name: &[u8], xattr: &[u8], value: &[u8]) -> io::Result<()> {
    // setxattrat(2) came with kernel 6.13; until then only /proc leads from a descriptor to a path.
    Ok(rustix::fs::lsetxattr(proc_path(dir, name), xattr, value, XattrFlags::empty())?)
}

/// The same for an open file.
pub fn set_xattr_fd(file: impl AsFd, xattr: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(file, xattr, value, XattrFlags::empty())?)
}

/// An xattr of what is at this name, not followed; `None` = it has none of that name, or a longer one than 256
/// bytes.
pub fn get_xattr(dir: BorrowedFd<'_>, name: &[u8], xattr: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0; 256];
    match rustix::fs::lgetxattr(proc_path(dir, name), xattr, &mut value) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Names of the xattrs of what is at this name, not followed.
pub fn xattr_names(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let path = proc_path(dir, name);
    let list = whole(|buffer| rustix::fs::llistxattr(&path, buffer))?.unwrap_or_default();
    Ok(list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// An xattr of what is at this name, not followed, whatever its length; `None` = it has none of that name.
pub fn xattr(dir: BorrowedFd<'_>, name: &[u8], xattr: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = proc_path(dir, name);
    whole(|buffer| rustix::fs::lgetxattr(&path, xattr, buffer))
}

/// Bytes of an xattr, and of all names of xattrs, at most (linux/limits.h: `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// What a call puts into a buffer.
fn whole(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    for bytes in [256, XATTR_BYTES_MAX] {
        let mut buffer = vec![0; bytes];
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::RANGE.into())
}

/// A regular file, to be read; not followed. Opening anything else has no effect, but may succeed.
pub fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?))
}

/// How many names are in an open directory, without `.` and `..`.
pub fn count(dir: BorrowedFd<'_>) -> io::Result<u64> {
    let mut names = 0;
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        names += u64::from(name != b"." && name != b"..");
    }
    Ok(names)
}

fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// A path for messages.
pub fn shown(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_leads_nowhere_but_inside() {
        let outer = tempfile::tempdir().unwrap();
        let root_path = outer.path().join("root");
        std::fs::create_dir_all(root_path.join("etc")).unwrap();
        std::fs::create_dir(outer.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("../../../etc", root_path.join("up")).unwrap();
        std::os::unix::fs::symlink("/etc", root_path.join("absolute")).unwrap();
        std::os::unix::fs::symlink("/proc/self/root", root_path.join("magic")).unwrap();
        let root = open_root(&root_path).unwrap();
        let inside = stat(root.as_fd(), b"etc").unwrap().unwrap().st_ino;
        for name in [&b"up"[..], b"absolute"] {
            let dir = open_dir_in_root(root.as_fd(), name).unwrap();
            assert_eq!(stat_fd(&dir).unwrap().st_ino, inside);
            assert!(open_dir_beneath(root.as_fd(), name).is_err());
        }
        assert!(open_dir_in_root(root.as_fd(), b"magic").is_err());
        assert!(open_dir_beneath(root.as_fd(), b"../etc").is_err());
    }
}

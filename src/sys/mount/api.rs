//! New mounts by descriptor: a filesystem is configured key by key, so no option meets the one-page limit and
//! no path needs quoting; the result is a mount that is nowhere until it is attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::attributes::{self, MountFlags, Propagation};

/// A filesystem instance being configured: fsopen(2), fsconfig(2).
#[derive(Debug)]
pub struct NewFilesystem(OwnedFd);

impl NewFilesystem {
    /// Begins an instance of this filesystem type. `ENODEV`: the kernel has no such type; `ENOSYS`: it is older
    /// than 5.2; `EPERM`: no CAP_SYS_ADMIN here, or the type is not allowed in a user namespace.
    pub fn open(kind: &str) -> io::Result<Self> {
        Ok(Self(fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    /// Sets an option that has no value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        Ok(fsconfig_set_flag(&self.0, key)?)
    }

    /// Sets an option to a text of at most 255 bytes (the kernel's limit for one value).
    pub fn text(&self, key: &str, value: &str) -> io::Result<()> {
        Ok(fsconfig_set_string(&self.0, key, value)?)
    }

    /// Sets an option to an open file or directory.
    pub fn descriptor(&self, key: &str, value: BorrowedFd<'_>) -> io::Result<()> {
        Ok(fsconfig_set_fd(&self.0, key, value)?)
    }

    /// Makes the instance and a mount of it, attached nowhere.
    pub fn mount(&self) -> io::Result<DetachedMount> {
        fsconfig_create(&self.0)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Ok(DetachedMount(fsmount(&self.0, flags, MountAttrFlags::empty())?))
    }

    /// What the kernel said of the last failure, without its `e ` prefix; `None` when it said nothing.
    pub fn complaint(&self) -> Option<String> {
        // One message per read; they are short, and only the first matters.
        let mut buffer = [0u8; 512];
        let length = rustix::io::read(&self.0, &mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let text = text.trim_end();
        Some(text.strip_prefix("e ").unwrap_or(text).to_owned())
    }
}

/// A mount attached nowhere; it goes when this is dropped without [`DetachedMount::attach`].
#[derive(Debug)]
pub struct DetachedMount(OwnedFd);

impl DetachedMount {
    /// A copy of the mount that holds this directory or file, with this as its root: a bind mount to be. Mounts
    /// below are not copied. Flags of the source mount are kept. A symlink at the end is not followed.
    pub fn clone_of(path: &Path) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        Ok(Self(open_tree(CWD, path, flags)?))
    }

    /// Adds flags to the mount; those it has stay (mount_setattr(2), Linux 5.12).
    pub fn add_flags(&self, flags: MountFlags) -> io::Result<()> {
        attributes::change(self.0.as_fd(), flags, MountFlags::default(), None)
    }

    /// Sets how mounts made below it reach its copies.
    pub fn set_propagation(&self, propagation: Propagation) -> io::Result<()> {
        attributes::change(self.0.as_fd(), MountFlags::default(), MountFlags::default(), Some(propagation))
    }

    /// Attaches it at this existing directory (or file, for a file). A symlink at the end is not followed.
    pub fn attach(self, target: &Path) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(self.0.as_fd(), "", CWD, target, flags)?)
    }
}

impl AsFd for DetachedMount {
    /// The root of the mount, as an `O_PATH` descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

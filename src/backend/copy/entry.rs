//! One entry that is no directory: made anew under its name, then given content and metadata.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, linkat, mknodat, openat, readlinkat, symlinkat};
use rustix::io::Errno;

use super::content::{self, ContentError};
use super::links::Turn;
use super::tree::Tree;
use crate::backend::error::BackendError;
use crate::backend::metadata::{self, Room};

/// Where an entry comes from and goes to.
pub(super) struct Entry<'a> {
    /// Which layer it is of, as the tree counts them.
    pub(super) layer: usize,
    /// The layer's directory.
    pub(super) from: BorrowedFd<'a>,
    /// The copy's directory.
    pub(super) to: BorrowedFd<'a>,
    /// The directory's path from the root, for messages and links.
    pub(super) directory: &'a Path,
    /// The entry's name.
    pub(super) name: &'a CStr,
    /// What it is.
    pub(super) stat: &'a Stat,
}

/// Copies it, or links it to where it was copied under another name.
pub(super) fn copy(tree: &Tree<'_>, entry: &Entry<'_>, room: &mut Room) -> Result<(), BackendError> {
    if entry.stat.st_nlink < 2 {
        return copy_new(tree, entry, room);
    }
    let path = entry.directory.join(OsStr::from_bytes(entry.name.to_bytes()));
    match tree.links.turn(entry.layer, entry.stat) {
        Turn::First(first) => {
            copy_new(tree, entry, room)?;
            first.is(&path);
            Ok(())
        }
        Turn::Another(first) => link(tree, entry, &first).map_err(tree.failed("link", &path, entry.layer)),
        Turn::Failed => Err(BackendError::Stopped),
    }
}

fn link(tree: &Tree<'_>, entry: &Entry<'_>, first: &Path) -> Result<(), Errno> {
    let name = first.file_name().ok_or(Errno::INVAL)?;
    let parent = tree.open_copy(first.parent().unwrap_or(Path::new("")), OFlags::PATH)?;
    linkat(&parent, name, entry.to, entry.name, AtFlags::empty())
}

fn copy_new(tree: &Tree<'_>, entry: &Entry<'_>, room: &mut Room) -> Result<(), BackendError> {
    let Entry { from, to, name, stat, .. } = *entry;
    let failed = |act: &'static str| {
        move |error: Errno| {
            let path = entry.directory.join(OsStr::from_bytes(name.to_bytes()));
            tree.failed(act, &path, entry.layer)(error)
        }
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = openat(from, name, flags, Mode::empty()).map_err(failed("read"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let copy = openat(to, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("create"))?;
            content::copy(source.as_fd(), stat, copy.as_fd(), &tree.abilities, tree.stop).map_err(
                |error| match error {
                    ContentError::Stopped => BackendError::Stopped,
                    ContentError::System(error) => failed("copy the content of")(error),
                },
            )?;
            metadata::copy_open(source.as_fd(), stat, copy.as_fd(), room)
                .map_err(failed("copy the attributes of"))
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).map_err(failed("read"))?;
            symlinkat(&target, to, name).map_err(failed("create"))?;
            metadata::copy_named(from, to, name, stat, room).map_err(failed("copy the attributes of"))
        }
        kind => {
            mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev).map_err(failed("create"))?;
            metadata::copy_named(from, to, name, stat, room).map_err(failed("copy the attributes of"))
        }
    }
}

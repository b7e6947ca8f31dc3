//! Owner, mode, xattrs and times of what was unpacked, in the one order that keeps them: a change of owner takes
//! setuid bits and file capabilities away, so the mode comes after it and xattrs after that; times come last.
//!
//! What making a file gave it already is not set again: a plain file of our own costs one call, for its times.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::flaw::{EntryError, text};
use super::tar::{Kind, Member};
use super::whiteout::is_overlay_xattr;
use crate::sys::beneath;

/// What a layer asked for and did not get, in numbers of entries (xattrs: of xattrs).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotSet {
    /// In a user namespace: owners that are not mapped; the files belong to whoever unpacked them.
    pub owners: u64,
    /// In a user namespace: devices that could not be made.
    pub devices: u64,
    /// Xattrs that could not be set: in a user namespace any, else those in namespaces that Linux has not and those that
    /// no file of that kind can have.
    pub xattrs: u64,
    /// Anywhere: character devices 0:0, which would act as whiteouts, and open nothing.
    pub whiteout_devices: u64,
    /// Anywhere: xattrs that mean something to overlayfs, and labels of the machine the image was built on.
    pub foreign_xattrs: u64,
}

impl NotSet {
    /// Whether everything was set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts these as well.
    pub(super) fn add(&mut self, other: &Self) {
        let Self { owners, devices, xattrs, whiteout_devices, foreign_xattrs } = other;
        self.owners += owners;
        self.devices += devices;
        self.xattrs += xattrs;
        self.whiteout_devices += whiteout_devices;
        self.foreign_xattrs += foreign_xattrs;
    }
}

/// Something that can be given attributes, in the words of the system calls: a file of a tree, or an inode of an image.
pub(super) trait Settable {
    fn chown(&mut self, uid: u32, gid: u32) -> io::Result<()>;
    /// Nothing happens to a symlink: it has no mode.
    fn chmod(&mut self, mode: u32) -> io::Result<()>;
    fn set_xattr(&mut self, xattr: &[u8], value: &[u8]) -> io::Result<()>;
}

/// What was made, to be given its attributes.
#[derive(Clone, Copy)]
pub(super) enum Made<'a> {
    /// A file that is open for writing.
    Open(&'a File),
    /// A name in a directory.
    Named(BorrowedFd<'a>, &'a [u8]),
    /// The same, a symlink, which has no mode.
    Symlink(BorrowedFd<'a>, &'a [u8]),
}

/// What it has from its making.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inherited {
    /// It is new, and its directory gave it nothing: it has our owner, and its mode less the umask.
    pub(super) ours: bool,
}

/// Sets attributes, and counts what cannot be.
pub(super) struct Attributes {
    uid: u32,
    gid: u32,
    umask: u32,
    in_user_namespace: bool,
    pub(super) not_set: NotSet,
}

/// What became of attributes that were to be set.
pub(super) struct Set {
    /// The owner, if it is certain.
    pub(super) owner: Option<(u32, u32)>,
    /// Only the filesystem knows all that was set.
    pub(super) ask: bool,
}

/// Why attributes were not set.
pub(super) enum Unset {
    Entry(EntryError),
    Io(io::Error),
}

impl From<io::Error> for Unset {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Labels that say something about the machine that built the image and nothing on this one: containers/storage
/// (pkg/archive, `xattrsToIgnore`) and umoci leave them too.
const FOREIGN: [&[u8]; 2] = [b"security.selinux", b"system.nfs4_acl"];

/// The namespaces that Linux has: xattr(7).
const XATTRS: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];

/// What everything made in a directory inherits.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// The default ACL a directory is to have; empty = none.
pub(super) fn default_acl(member: &Member) -> &[u8] {
    // Of several the last one counts, as everywhere.
    let acl = member.xattrs.iter().rfind(|(name, _)| name == DEFAULT_ACL);
    acl.map_or(&[], |(_, acl)| acl)
}

impl Attributes {
    pub(super) fn new(in_user_namespace: bool) -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: super::privileges::umask(),
            in_user_namespace,
            not_set: NotSet::default(),
        }
    }

    /// Owner, mode, xattrs.
    pub(super) fn set(
        &mut self,
        mut made: impl Settable,
        member: &Member,
        inherited: Inherited,
    ) -> Result<Set, Unset> {
        let (uid, gid) = owner(member).map_err(Unset::Entry)?;
        let mut set = Set { owner: Some((uid, gid)), ask: false };
        let chown = !inherited.ours || (uid, gid) != (self.uid, self.gid);
        if chown {
            match made.chown(uid, gid) {
                Err(error) if self.in_user_namespace && is(&error, &[Errno::INVAL, Errno::PERM]) => {
                    self.not_set.owners += 1;
                    set.owner = inherited.ours.then_some((self.uid, self.gid));
                    set.ask = !inherited.ours;
                }
                other => other?,
            }
        }
        let mode = member.mode;
        if !inherited.ours || mode & self.umask != 0 || mode & 0o7000 != 0 {
            made.chmod(mode)?;
        }
        for (name, value) in &member.xattrs {
            if is_overlay_xattr(name) || FOREIGN.contains(&&name[..]) {
                self.not_set.foreign_xattrs += 1;
                continue;
            }
            // A directory's waits until all is made in it; others cannot have one.
            if &name[..] == DEFAULT_ACL {
                self.not_set.xattrs += u64::from(member.kind != Kind::Directory);
                continue;
            }
            if name.is_empty() || name.contains(&0) {
                return Err(Unset::Entry(EntryError::Malformed(
                    "the name of an xattr is empty or has a NUL in it",
                )));
            }
            match made.set_xattr(name, value) {
                // It may have changed the mode, and be read in other words than it was written.
                Ok(()) => set.ask = true,
                Err(error) => self.forgive_xattr(name, value, error)?,
            }
        }
        Ok(set)
    }

    /// Sets the default ACL of a directory; what is made in it later inherits that.
    pub(super) fn set_default_acl(&mut self, mut dir: impl Settable, acl: &[u8]) -> Result<(), Unset> {
        match dir.set_xattr(DEFAULT_ACL, acl) {
            Err(error) => self.forgive_xattr(DEFAULT_ACL, acl, error),
            Ok(()) => Ok(()),
        }
    }

    /// Counts an xattr that need not be set; of another, whether the entry is at fault or the disk.
    fn forgive_xattr(&mut self, name: &[u8], value: &[u8], error: io::Error) -> Result<(), Unset> {
        let foreign = !XATTRS.iter().any(|prefix| name.starts_with(prefix));
        let forgiven = if self.in_user_namespace {
            is(&error, &[Errno::PERM, Errno::OPNOTSUPP, Errno::INVAL])
        } else {
            // Archives from macOS have `com.apple.` ones; docker, containerd and podman pass over them, too. `user.` is for
            // files and directories only (xattr(7)).
            foreign && is(&error, &[Errno::OPNOTSUPP])
                || name.starts_with(b"user.") && is(&error, &[Errno::PERM])
        };
        if forgiven {
            self.not_set.xattrs += 1;
            return Ok(());
        }
        let of_entry = [Errno::PERM, Errno::OPNOTSUPP, Errno::INVAL, Errno::RANGE, Errno::TOOBIG];
        if !is(&error, &of_entry) {
            return Err(error.into());
        }
        Err(Unset::Entry(EntryError::Xattr { name: text(name), bytes: value.len(), source: error }))
    }

    /// Whether this failure to make a device is one to be counted.
    pub(super) fn forgives_device(&self, error: &io::Error) -> bool {
        self.in_user_namespace && is(error, &[Errno::PERM])
    }
}

impl Settable for Made<'_> {
    fn chown(&mut self, uid: u32, gid: u32) -> io::Result<()> {
        match self {
            Self::Open(file) => beneath::chown_fd(file.as_fd(), uid, gid),
            Self::Named(dir, name) | Self::Symlink(dir, name) => beneath::chown(*dir, name, uid, gid),
        }
    }

    fn chmod(&mut self, mode: u32) -> io::Result<()> {
        match self {
            Self::Open(file) => beneath::chmod_fd(file.as_fd(), mode),
            Self::Named(dir, name) => beneath::chmod(*dir, name, mode),
            Self::Symlink(..) => Ok(()),
        }
    }

    fn set_xattr(&mut self, xattr: &[u8], value: &[u8]) -> io::Result<()> {
        match self {
            Self::Open(file) => beneath::set_xattr_fd(file.as_fd(), xattr, value),
            Self::Named(dir, name) | Self::Symlink(dir, name) => beneath::set_xattr(*dir, name, xattr, value),
        }
    }
}

impl Made<'_> {
    /// Sets both times.
    pub(super) fn set_times(self, (seconds, nanos): (i64, u32)) -> io::Result<()> {
        match self {
            Self::Open(file) => beneath::set_times_fd(file.as_fd(), seconds, nanos),
            Self::Named(dir, name) | Self::Symlink(dir, name) => {
                beneath::set_times(dir, name, seconds, nanos)
            }
        }
    }
}

/// The owner, in range: chown(2) takes the highest number for "leave it".
fn owner(member: &Member) -> Result<(u32, u32), EntryError> {
    let id = |id: i64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    id(member.uid).zip(id(member.gid)).ok_or(EntryError::Owner { uid: member.uid, gid: member.gid })
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errnos.contains(&errno))
}

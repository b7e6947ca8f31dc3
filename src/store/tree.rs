//! Directories of the tree being unpacked, found and made.
//!
//! A parent is looked up once and kept open while its files come. Symlinks that the layer itself brought are followed
//! as a process chrooted to the tree would follow them (so do docker, which is chrooted, and containerd's
//! `fs.RootPath`): `lib -> usr/lib` and then `lib/x` is `usr/lib/x`. They never lead outside: the kernel resolves, by
//! openat2(2). Nobody else changes the tree meanwhile; it is in a private directory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::flaw::{EntryError, text};
use super::meaning::{Implied, SYMLINKS_MAX, components};
use super::whiteout::Namespace;
use crate::sys::beneath;

/// Directories kept open.
const OPEN_MAX: usize = 32;

/// An open directory of the tree.
pub(super) struct Dir {
    fd: OwnedFd,
    /// Where it is, whatever symlinks led there.
    pub(super) path: Vec<u8>,
    /// What is made in it gets its group, and directories its setgid bit.
    pub(super) setgid: bool,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why a directory was not found or made.
pub(super) enum Lost {
    /// It is not there.
    Missing,
    /// The entry is at fault.
    Entry(EntryError),
    /// The disk is.
    Io(io::Error),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => Self::Entry(EntryError::SymlinkLoop),
            Some(Errno::NAMETOOLONG) => Self::Entry(EntryError::Refused(error)),
            _ => Self::Io(error),
        }
    }
}

/// See the module.
pub(super) struct Tree {
    root: OwnedFd,
    namespace: Namespace,
    /// Most recently used last. Paths as in the tar, cleaned.
    open: Vec<(Vec<u8>, Rc<Dir>)>,
    /// Directories made because something in them came first.
    pub(super) implied: u64,
    /// Those of them that nobody took note of yet.
    pub(super) just_implied: Vec<(Vec<u8>, Implied)>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, namespace: Namespace) -> Self {
        Self { root, namespace, open: Vec::new(), implied: 0, just_implied: Vec::new() }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Forgets what is open: to be called when a directory or a symlink went away, since paths that led through it
    /// now lead elsewhere.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }

    /// The directory of this path.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Rc<Dir>, Lost> {
        if let Some(at) = self.open.iter().rposition(|(open, _)| open == path) {
            let found = self.open.remove(at);
            let dir = Rc::clone(&found.1);
            self.open.push(found);
            return Ok(dir);
        }
        // Almost all paths have no symlinks, and then say where they lead.
        match beneath::open_dir_in_root_unless_linked(self.root(), path) {
            Ok(Some(fd)) => return self.keep(path, path.to_vec(), fd),
            Ok(None) => {}
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::NOTDIR) => Err(Lost::Missing),
                    _ => Err(error.into()),
                };
            }
        }
        match beneath::open_dir_in_root(self.root(), path) {
            // It is there, so nothing is made.
            Ok(_) => {
                let (fd, real) = self.make(path)?;
                self.keep(path, real, fd)
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR) => Err(Lost::Missing),
                _ => Err(error.into()),
            },
        }
    }

    /// The same; makes it, and what is missing above it, mode 0755, owned by root.
    pub(super) fn find_or_make(&mut self, path: &[u8]) -> Result<Rc<Dir>, Lost> {
        match self.find(path) {
            Err(Lost::Missing) => {
                let (fd, real) = self.make(path)?;
                self.keep(path, real, fd)
            }
            other => other,
        }
    }

    fn keep(&mut self, path: &[u8], real: Vec<u8>, fd: OwnedFd) -> Result<Rc<Dir>, Lost> {
        let setgid = beneath::stat_fd(&fd)?.st_mode & 0o2000 != 0;
        if self.open.len() == OPEN_MAX {
            self.open.remove(0);
        }
        let dir = Rc::new(Dir { fd, path: real, setgid });
        self.open.push((path.to_vec(), Rc::clone(&dir)));
        Ok(dir)
    }

    /// Walks the path as the kernel would in a chroot, and makes what is missing, also where a symlink points. Says where that
    /// is, too.
    fn make(&mut self, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), Lost> {
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut symlinks = 0;
        let mut parent = beneath::open_dir_beneath(self.root(), b"")?;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                done.pop();
                parent = beneath::open_dir_beneath(self.root(), &done.join(&b'/'))?;
                continue;
            }
            let mut made = None;
            match beneath::stat(parent.as_fd(), &name)? {
                None => {
                    self.make_one(parent.as_fd(), &name)?;
                    made = Some(Implied::Merged);
                }
                Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    FileType::Symlink => {
                        symlinks += 1;
                        if symlinks > SYMLINKS_MAX {
                            return Err(Lost::Entry(EntryError::SymlinkLoop));
                        }
                        let target = beneath::read_link(parent.as_fd(), &name)?;
                        if target.starts_with(b"/") {
                            done.clear();
                            parent = beneath::open_dir_beneath(self.root(), b"")?;
                        }
                        for component in components(&target).rev() {
                            todo.push_front(component.to_vec());
                        }
                        continue;
                    }
                    FileType::CharacterDevice if stat.st_rdev == 0 => {
                        // What was removed from the layers below is a new directory in this one: nothing of the
                        // old may shine through.
                        beneath::unlink(parent.as_fd(), &name)?;
                        self.make_one(parent.as_fd(), &name)?;
                        self.hide_below(parent.as_fd(), &name)?;
                        made = Some(Implied::New);
                    }
                    _ => return Err(Lost::Entry(EntryError::NotADirectory(text(&name)))),
                },
            }
            parent = beneath::open_dir_beneath(parent.as_fd(), &name)?;
            done.push(name);
            if let Some(implied) = made {
                self.just_implied.push((done.join(&b'/'), implied));
            }
        }
        Ok((parent, done.join(&b'/')))
    }

    fn make_one(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Lost> {
        beneath::make_dir(parent, name, 0o755)?;
        let stat = beneath::stat(parent, name)?.ok_or(Lost::Missing)?;
        if (stat.st_uid, stat.st_gid) != (0, 0) {
            match beneath::chown(parent, name, 0, 0) {
                // Without root in this user namespace the directory stays whose it is, as everything else.
                Err(error) if !matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::PERM)) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        if stat.st_mode & 0o7777 != 0o755 {
            beneath::chmod(parent, name, 0o755)?;
        }
        self.implied += 1;
        Ok(())
    }

    /// Makes a directory opaque, and removes the whiteouts in it: they have nothing left to remove.
    pub(super) fn hide_below(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        beneath::set_xattr(parent, name, self.namespace.opaque().as_bytes(), super::whiteout::OPAQUE_VALUE)?;
        let dir = beneath::read_dir_beneath(parent, name)?;
        for child in beneath::list(dir.as_fd())? {
            let stat = beneath::stat(dir.as_fd(), &child)?;
            if stat.is_some_and(|stat| is_whiteout(&stat)) {
                beneath::unlink(dir.as_fd(), &child)?;
            }
        }
        Ok(())
    }
}

/// Whether this is a whiteout on disk.
pub(super) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

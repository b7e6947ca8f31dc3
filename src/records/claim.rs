//! Who has a container: a lock on a file in its directory, which the kernel takes back when its process dies.
//!
//! A container's directory appears by rename with its lock already taken, and vanishes by rename before anything of
//! it is removed: there is no moment at which a name is there and nobody's by accident. Whoever opens a lock must
//! see, once it is locked, that it is still the one in its place: the directory may have gone in between.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat, renameat_with, statat,
};
use rustix::io::Errno;

use super::layout;
use crate::sys::record_lock;
use crate::sys::remove::remove_tree;

/// The directory of all containers.
#[derive(Debug)]
pub(super) struct Names {
    directory: OwnedFd,
    path: PathBuf,
    number: AtomicU64,
}

/// A container's lock, ours until this goes: given back, not only closed, since a child that was just forked may
/// have a copy.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = record_lock::unlock(&self.0);
    }
}

/// The answer to a claim on a name.
#[derive(Debug)]
pub(super) enum Claimed {
    /// Ours now.
    Ours(Lock),
    /// A live process has it.
    Elsewhere,
    /// There is no directory of this name.
    Nothing,
}

impl Names {
    /// Opens the directory, made if need be.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || openat(rustix::fs::CWD, &path, flags, Mode::empty());
        let directory = match open() {
            Err(Errno::NOENT) => {
                layout::make_dirs(&path, layout::PASSABLE)?;
                open()?
            }
            opened => opened?,
        };
        Ok(Self { directory, path, number: AtomicU64::new(0) })
    }

    /// The directory of one container.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory, to open what is in it.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Makes a container's directory with its sandbox, and has it; `None` when the name is there already.
    pub(super) fn make(&self, name: &str) -> io::Result<Option<Lock>> {
        loop {
            let staged = self.unused("new");
            let made = self.stage(&staged).and_then(|lock| {
                renameat_with(&self.directory, &staged, &self.directory, name, RenameFlags::NOREPLACE)?;
                Ok(lock)
            });
            match made {
                Ok(lock) => return Ok(Some(lock)),
                // Whoever tidied up found it before we had its lock.
                Err(Errno::NOENT) => {}
                Err(error) => {
                    let _ = remove_tree(&self.path.join(&staged));
                    return if error == Errno::EXIST { Ok(None) } else { Err(error.into()) };
                }
            }
        }
    }

    fn stage(&self, staged: &str) -> Result<Lock, Errno> {
        mkdirat(&self.directory, staged, Mode::from_raw_mode(layout::PASSABLE)).map_err(
            |error| match error {
                // Left by a dead process that had our number: the next name will do.
                Errno::EXIST => Errno::NOENT,
                error => error,
            },
        )?;
        let lock = self.open_lock(staged, true)?;
        let locked = record_lock::try_lock(&lock)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if !locked {
            return Err(Errno::NOENT);
        }
        let lock = Lock(lock);
        mkdirat(
            &self.directory,
            format!("{staged}/{}", layout::SANDBOX_DIR),
            Mode::from_raw_mode(layout::SANDBOX),
        )?;
        Ok(lock)
    }

    /// Takes a container that is there and nobody's.
    pub(super) fn claim(&self, name: &str) -> io::Result<Claimed> {
        loop {
            let lock = match self.open_lock(name, true) {
                Ok(lock) => lock,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Claimed::Nothing),
                Err(error) => return Err(error.into()),
            };
            if !record_lock::try_lock(&lock)? {
                return Ok(Claimed::Elsewhere);
            }
            let lock = Lock(lock);
            if self.is_in_place(name, &lock.0)? {
                return Ok(Claimed::Ours(lock));
            }
        }
    }

    /// Whether a live process has this container; `None` when it is not there. Takes nothing.
    pub(super) fn is_claimed(&self, name: &str) -> io::Result<Option<bool>> {
        let lock = match self.open_lock(name, false) {
            Ok(lock) => lock,
            // A directory without a lock is nobody's.
            Err(Errno::NOENT) => {
                return Ok(statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|_| false));
            }
            Err(Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        record_lock::is_locked(&lock).map(Some)
    }

    /// Lets the directory of a container that we have vanish, with whatever is left in it, and then its lock.
    pub(super) fn unmake(&self, name: &str, lock: Lock) {
        let old = self.unused("old");
        // What fails here is found by the next one who tidies up.
        if renameat(&self.directory, name, &self.directory, &old).is_ok() {
            let _ = remove_tree(&self.path.join(&old));
        }
        drop(lock);
    }

    /// Removes a directory that its maker or remover left when it died. With its lock taken: a maker that is alive
    /// and has not come so far then makes another.
    pub(super) fn tidy(&self, name: &str) {
        if let Ok(Claimed::Ours(lock)) = self.claim(name) {
            let _ = remove_tree(&self.path.join(name));
            drop(lock);
        }
    }

    fn unused(&self, kind: &str) -> String {
        // Another instance in this process counts for itself.
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let instance = std::ptr::from_ref(self).addr();
        format!(".{kind}-{}-{instance:x}-{number}", std::process::id())
    }

    fn open_lock(&self, name: &str, create: bool) -> Result<File, Errno> {
        let path = CString::new(format!("{name}/{}", layout::LOCK)).map_err(|_| Errno::INVAL)?;
        // Taking and asking for a write lock both want a file open for writing, or for reading: fcntl(2).
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags.set(OFlags::CREATE, create);
        openat(&self.directory, &path, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    }

    fn is_in_place(&self, name: &str, lock: &File) -> io::Result<bool> {
        let path = Path::new(name).join(layout::LOCK);
        match statat(&self.directory, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => {
                let ours = fstat(lock)?;
                Ok((ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

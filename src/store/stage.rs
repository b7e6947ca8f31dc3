//! Private places in `staging/`: a directory for a layer, a file for a record. Each is locked by whoever works on it,
//! and gone unless it was renamed into its place; what a killed process leaves is unlocked, so anybody may remove it.
//!
//! Between making and locking there is a moment in which another process may take it for such a leftover. Therefore:
//! lock, then look whether it is still there, else make another.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::disk::{Barrier, Disk};
use super::layout::{Layout, fresh_name};
use crate::gc::Gc;
use crate::sys::lock::{self, LockKind};

/// A staging directory. Dropping it lets it vanish with all that is in it.
#[derive(Debug)]
pub(super) struct Stage {
    path: PathBuf,
    gc: Gc,
    committed: bool,
    /// Locked.
    _dir: File,
}

impl Stage {
    pub(super) fn new(layout: &Layout, gc: &Gc) -> io::Result<Self> {
        loop {
            let path = layout.staging().join(fresh_name());
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            }
            if let Some(dir) = lock::try_lock_existing(&path, LockKind::Exclusive)? {
                return Ok(Self { path, gc: gc.clone(), committed: false, _dir: dir });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its name in staging.
    pub(super) fn name(&self) -> &str {
        // Made by `fresh_name`.
        self.path.file_name().and_then(OsStr::to_str).unwrap_or_default()
    }

    /// Renames it to where all can see it. `false` = there is one already, and this one is removed.
    pub(super) fn commit(mut self, to: &Path) -> io::Result<bool> {
        let renamed = match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            // A filesystem without that flag: then rename(2) replaces a directory that is empty, as no layer is.
            Err(Errno::INVAL) => renameat_with(CWD, &self.path, CWD, to, RenameFlags::empty()),
            renamed => renamed,
        };
        match renamed {
            Ok(()) => {
                self.committed = true;
                Ok(true)
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.committed {
            // What stays is unlocked by the close that follows, and moved away by the next recovery.
            let _ = self.gc.discard(&self.path);
        }
    }
}

/// Writes a file whole or not at all, in place of an earlier one.
pub(super) fn write(layout: &Layout, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (staged, _lock) = staged_file(layout, bytes)?;
    std::fs::rename(&staged, path).inspect_err(|_| drop(std::fs::remove_file(&staged)))
}

/// As [`write()`], with its content on disk before it has its name: a power cut leaves the one before or this one.
pub(super) fn write_synced(
    layout: &Layout,
    disk: &dyn Disk,
    what: Barrier,
    path: &Path,
    bytes: &[u8],
) -> io::Result<()> {
    let (staged, file) = staged_file(layout, bytes)?;
    let written = disk.sync(what, &file).and_then(|()| std::fs::rename(&staged, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&staged)))
}

/// Writes a file whole or not at all, also after a power cut, unless there is one already (`AlreadyExists`).
pub(super) fn write_new(layout: &Layout, disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (staged, file) = staged_file(layout, bytes)?;
    disk.sync(Barrier::Record, &file).inspect_err(|_| drop(std::fs::remove_file(&staged)))?;
    let linked = std::fs::hard_link(&staged, path);
    std::fs::remove_file(&staged)?;
    linked
}

fn staged_file(layout: &Layout, bytes: &[u8]) -> io::Result<(PathBuf, File)> {
    loop {
        let path = layout.staging().join(fresh_name());
        let mut file = match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        if lock::try_lock(&file, LockKind::Exclusive)? && lock::leads_to(&path, &file)? {
            if let Err(error) = file.write_all(bytes) {
                let _ = std::fs::remove_file(&path);
                return Err(error);
            }
            return Ok((path, file));
        }
    }
}

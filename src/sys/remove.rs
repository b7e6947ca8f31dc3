//! Removing directory trees that strangers filled: never through a symlink, never across a mount, whatever their
//! depth and modes.
//!
//! A tree may be deeper than a path can name or a stack can hold (a process in a container nests directories as
//! it likes): below `DEPTH_MAX` levels a directory is moved up beside the root of the removal and taken later.

use std::ffi::{CStr, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, fchmod, openat,
    openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;

/// Directories open at once, one within the other. 48: deeper than real images go, and far from the usual limit of
/// 1024 open files.
const DEPTH_MAX: usize = 48;

/// Bytes of directory entries read at once. 8 KiB: some 200 names; one buffer per level lies on the stack.
const ENTRIES_BYTES: usize = 8 << 10;

/// Rounds over one directory that leave it not empty although everything seen was removed. 2: a filesystem may skip
/// entries of a directory that changes while it is read; somebody who keeps writing there must not keep us busy.
const FRUITLESS_MAX: usize = 2;

/// Something of a tree could not be removed; what came before it is gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {path}")]
pub struct RemoveError {
    /// What.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Removes a file, or a directory with everything in it; `false` when there was nothing.
///
/// # Errors
/// [`RemoveError`] names the first entry that could not be removed; for a mount point, before anything in or below
/// that mount was touched.
pub fn remove_tree(path: &Path) -> Result<bool, RemoveError> {
    let failed = |source: Errno| RemoveError { path: path.to_owned(), source: explain(source) };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match openat(
        CWD,
        if parent == Path::new("") { Path::new(".") } else { parent },
        flags,
        Mode::empty(),
    ) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let name = std::ffi::CString::new(name.as_bytes()).map_err(|_| failed(Errno::INVAL))?;
    match unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(failed(error)),
    }
    let within = |below: Below| RemoveError { path: path.join(below.path), source: explain(below.source) };
    let top = open_directory(parent.as_fd(), &name).map_err(failed)?;
    let mut removal = Removal { top: top.as_fd(), moved: 0 };
    let mut fruitless = 0;
    loop {
        let moved_before = removal.moved;
        removal.empty(top.as_fd(), 0).map_err(within)?;
        match unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            // Directories were moved up here: another round.
            Err(Errno::NOTEMPTY) if removal.moved > moved_before => fruitless = 0,
            Err(Errno::NOTEMPTY) if fruitless < FRUITLESS_MAX => fruitless += 1,
            Err(error) => return Err(failed(error)),
        }
    }
}

/// An entry below the directory at hand that could not be removed.
struct Below {
    path: PathBuf,
    source: Errno,
}

impl Below {
    fn at(name: &CStr, source: Errno) -> Self {
        Self { path: PathBuf::from(OsStr::from_bytes(name.to_bytes())), source }
    }
}

struct Removal<'fd> {
    top: BorrowedFd<'fd>,
    moved: u64,
}

impl Removal<'_> {
    /// Removes every entry of this directory, save those moved up beside the root.
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> Result<(), Below> {
        rustix::fs::seek(directory, SeekFrom::Start(0)).map_err(|error| Below::at(c"", error))?;
        let mut buffer = [MaybeUninit::uninit(); ENTRIES_BYTES];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| Below::at(c"", error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() != FileType::Directory {
                match unlink(directory, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    // The filesystem does not tell types in listings.
                    Err(Errno::ISDIR) => {}
                    Err(error) => return Err(Below::at(name, error)),
                }
            }
            self.directory(directory, name, depth)?;
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Below> {
        // Most directories near the leaves of an emptied tree are empty already: try the cheap way.
        match unlink(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(Below::at(name, error)),
        }
        let opened = match open_directory(parent, name) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Below::at(name, error)),
        };
        if depth >= DEPTH_MAX {
            return self.move_up(parent, name);
        }
        let down = |below: Below| Below {
            path: Path::new(OsStr::from_bytes(name.to_bytes())).join(below.path),
            ..below
        };
        for _ in 0..=FRUITLESS_MAX {
            self.empty(opened.as_fd(), depth + 1).map_err(down)?;
            match unlink(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY) => {}
                Err(error) => return Err(Below::at(name, error)),
            }
        }
        Err(Below::at(name, Errno::NOTEMPTY))
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Below> {
        loop {
            self.moved += 1;
            let place = format!(".keelblock-deep-{}", self.moved);
            match renameat_with(parent, name, self.top, &place, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Below::at(name, error)),
            }
        }
    }
}

/// Opens a directory of this very mount; `EXDEV` when it is the root of another. Without the right to read it, it
/// is given that first (a directory may have mode 0, and root may be root of a user namespace only).
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |flags: OFlags| openat2(parent, name, flags, Mode::empty(), resolve);
    match open(flags) {
        Err(Errno::ACCESS) => {
            let path = open(OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
            chmod_path(path.as_fd())?;
            open(flags)
        }
        result => result,
    }
}

/// An `O_PATH` descriptor cannot be changed by fchmod, its magic link can.
fn chmod_path(path: BorrowedFd<'_>) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    rustix::fs::chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), Mode::RWXU)
}

/// unlinkat, and once more with the right to write in the directory.
fn unlink(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(directory, name, flags) {
        Err(Errno::ACCESS) => {
            fchmod(directory, Mode::RWXU)?;
            unlinkat(directory, name, flags)
        }
        result => result,
    }
}

fn explain(error: Errno) -> io::Error {
    match error {
        Errno::XDEV | Errno::BUSY => {
            io::Error::new(io::ErrorKind::ResourceBusy, "something is mounted there; unmount it first")
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn symlinks_are_removed_and_what_they_point_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let canary = directory.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("file"), "alive").unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&canary, tree.join("a/link")).unwrap();
        symlink("../../canary", tree.join("relative")).unwrap();
        symlink(canary.join("file"), tree.join("a/b/file")).unwrap();
        assert!(remove_tree(&tree).unwrap());
        assert!(!tree.exists());
        assert_eq!(std::fs::read_to_string(canary.join("file")).unwrap(), "alive");
        symlink(&canary, &tree).unwrap();
        assert!(remove_tree(&tree).unwrap(), "a link at the top is removed itself");
        assert!(canary.join("file").exists());
        assert!(!remove_tree(&tree).unwrap(), "and then there is nothing");
        assert!(!remove_tree(&directory.path().join("no/such")).unwrap());
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        // In memory: ten thousand entries take a disk long.
        let memory = Path::new("/dev/shm");
        let directory =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut at = rustix::fs::open(&tree, OFlags::PATH, Mode::empty()).unwrap();
        for level in 0..3000 {
            for side in ["side", ".keelblock-deep-1"] {
                let flags = OFlags::CREATE | OFlags::WRONLY;
                openat(&at, side, flags, Mode::RWXU).unwrap();
            }
            let name = if level % 2 == 0 { "down" } else { "and-down" };
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            at = openat(&at, name, OFlags::PATH, Mode::empty()).unwrap();
        }
        assert!(remove_tree(&tree).unwrap());
        assert!(!tree.exists());
    }

    #[test]
    fn directories_without_any_permission_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("closed/inner")).unwrap();
        std::fs::write(tree.join("closed/inner/file"), "").unwrap();
        std::fs::set_permissions(tree.join("closed/inner"), PermissionsExt::from_mode(0o000)).unwrap();
        std::fs::set_permissions(tree.join("closed"), PermissionsExt::from_mode(0o500)).unwrap();
        assert!(remove_tree(&tree).unwrap());
    }
}

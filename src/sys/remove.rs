//! Removing directory trees that strangers filled: never through a symlink, never across a mount, whatever their
//! depth, modes and attributes.
//!
//! A tree may be deeper than a path can name or descriptors can be had for (a process in a container nests directories
//! as it likes): below `DEPTH_MAX` levels a directory is moved up beside the root of the removal and taken later. There
//! is no recursion, one buffer of entries for all levels, and of each level's directories only so many are remembered
//! as one buffer lists: memory does not grow with the tree.
//!
//! System calls: one per entry, and for a directory `openat2`, `getdents`, `close` besides.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use keelblock_actors::stop::Stop;
use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, fchmod, fstat,
    ioctl_getflags, ioctl_setflags, openat, openat2, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

/// Directories open at once, one within the other. 48: deeper than real images go, and far from the usual limit of
/// 1024 open files.
const DEPTH_MAX: usize = 48;

/// Bytes of directory entries read at once. 32 KiB: some 800 names, so that most directories are read at once.
const ENTRIES_BYTES: usize = 32 << 10;

/// How often one directory is read again that is not empty although everything seen was removed. 2: a filesystem may
/// skip entries of a directory that changes while it is read; somebody who keeps writing there must not keep us busy.
const REWINDS_MAX: usize = 2;

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

impl From<RemoveError> for io::Error {
    fn from(error: RemoveError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// How far a removal goes.
#[derive(Clone, Copy, Debug)]
pub enum Until<'a> {
    /// To its end.
    Gone,
    /// Or until so much was removed: for callers that must not be kept waiting.
    Spent {
        /// Entries.
        entries: u64,
        /// Bytes on disk of regular files: freeing a large one takes a filesystem as long as many small ones.
        bytes: u64,
    },
    /// Or until it is told to stop, looked at before each entry.
    Raised(&'a Stop),
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone now.
    All,
    /// There was nothing.
    Nothing,
    /// Some of it may be left.
    Part,
}

/// Removes a file, or a directory with everything in it; `false` when there was nothing.
///
/// # Errors
/// [`RemoveError`] names the first entry that could not be removed; what came before it is gone. Nothing in or below a
/// mount is touched.
pub fn remove_tree(path: &Path) -> Result<bool, RemoveError> {
    remove_tree_until(path, Until::Gone).map(|removed| removed != Removed::Nothing)
}

/// As [`remove_tree`], no further than told.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_until(path: &Path, until: Until<'_>) -> Result<Removed, RemoveError> {
    let failed = |source: Errno| RemoveError { path: path.to_owned(), source: explain(source) };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = if parent == Path::new("") { Path::new(".") } else { parent };
    let parent = match openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Removed::Nothing),
        Err(error) => return Err(failed(error)),
    };
    let below = |below: Below| RemoveError {
        path: path.parent().unwrap_or(path).join(below.path),
        source: explain(below.source),
    };
    let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::INVAL))?;
    remove_name(parent.as_fd(), &name, until).map_err(below)
}

/// Removes what is at a name in an open directory; `false` when there was nothing.
///
/// # Errors
/// As [`remove_tree`]; the path is relative to the directory.
pub fn remove_tree_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, RemoveError> {
    let failed = |below: Below| RemoveError { path: below.path, source: explain(below.source) };
    let invalid = || Below { path: PathBuf::from(OsStr::from_bytes(name)), source: Errno::INVAL };
    let name = CString::new(name).map_err(|_| failed(invalid()))?;
    remove_name(directory, &name, Until::Gone).map(|removed| removed != Removed::Nothing).map_err(failed)
}

/// Gives a directory of ours, whatever its mode and attributes, those that renaming and removing it want.
///
/// # Errors
/// When it is not there or not ours.
pub fn make_removable(path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Directory {
        chmod_path(file.as_fd())?;
    }
    clear_attributes(file.as_fd())?;
    Ok(())
}

/// An entry that could not be removed, by its path from where the removal began.
struct Below {
    path: PathBuf,
    source: Errno,
}

fn remove_name(parent: BorrowedFd<'_>, name: &CStr, until: Until<'_>) -> Result<Removed, Below> {
    let failed = |source| Below { path: PathBuf::from(OsStr::from_bytes(name.to_bytes())), source };
    let mut budget = Budget::new(until);
    if !budget.allows(parent, name, FileType::Unknown) {
        return Ok(Removed::Part);
    }
    match unlink_root(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(Removed::All),
        Err(Errno::NOENT) => return Ok(Removed::Nothing),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(failed(error)),
    }
    let top = match open_directory(parent, name) {
        Err(Errno::NOENT) => return Ok(Removed::Nothing),
        top => top.map_err(failed)?,
    };
    let mut removal = Removal {
        parent,
        levels: vec![Level::new(name.to_owned(), top)],
        moved: 0,
        buffer: vec![MaybeUninit::uninit(); ENTRIES_BYTES],
        budget,
    };
    removal.run().map_err(|(name, source)| Below { path: removal.path_to(name.as_deref()), source })
}

/// What may still be removed.
struct Budget<'a> {
    until: Until<'a>,
    entries: u64,
    bytes: u64,
}

impl<'a> Budget<'a> {
    fn new(until: Until<'a>) -> Self {
        let (entries, bytes) = match until {
            Until::Spent { entries, bytes } => (entries, bytes),
            _ => (u64::MAX, u64::MAX),
        };
        Self { until, entries, bytes }
    }

    /// Whether this entry may go; counts it.
    fn allows(&mut self, directory: BorrowedFd<'_>, name: &CStr, kind: FileType) -> bool {
        match self.until {
            Until::Gone => true,
            Until::Raised(stop) => !stop.is_raised(),
            Until::Spent { .. } => {
                if matches!(kind, FileType::RegularFile | FileType::Unknown)
                    && let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                {
                    let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
                    let Some(rest) = self.bytes.checked_sub(bytes) else { return false };
                    self.bytes = rest;
                }
                let Some(rest) = self.entries.checked_sub(1) else { return false };
                self.entries = rest;
                true
            }
        }
    }
}

/// A directory that is being emptied.
struct Level {
    /// In the level above.
    name: CString,
    directory: OwnedFd,
    /// Directories in it that were listed and are not yet removed.
    below: Vec<CString>,
    rewinds: usize,
    /// Directories moved up when it was last read from its start.
    moved: u64,
}

impl Level {
    fn new(name: CString, directory: OwnedFd) -> Self {
        Self { name, directory, below: Vec::new(), rewinds: 0, moved: 0 }
    }
}

struct Removal<'a> {
    parent: BorrowedFd<'a>,
    /// From the root of the removal down; empty once that is gone.
    levels: Vec<Level>,
    moved: u64,
    buffer: Vec<MaybeUninit<u8>>,
    budget: Budget<'a>,
}

/// What could not be removed in the deepest level (`None` = that itself), and why.
type Failure = (Option<CString>, Errno);

impl Removal<'_> {
    fn run(&mut self) -> Result<Removed, Failure> {
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.below.pop() {
                self.descend(name)?;
            } else {
                match self.read()? {
                    Read::Spent => return Ok(Removed::Part),
                    Read::Some if self.levels.last().is_some_and(|level| !level.below.is_empty()) => {}
                    read => {
                        if !self.ascend(matches!(read, Read::End))? {
                            return Ok(Removed::Part);
                        }
                    }
                }
            }
        }
        Ok(Removed::All)
    }

    /// Removes what one buffer lists, and remembers its directories.
    fn read(&mut self) -> Result<Read, Failure> {
        let Some(level) = self.levels.last_mut() else { return Ok(Read::End) };
        let directory = level.directory.as_fd();
        let mut entries = RawDir::new(directory, &mut self.buffer);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| (None, error))?;
            let name = entry.file_name();
            any = true;
            if name != c"." && name != c".." {
                if !self.budget.allows(directory, name, entry.file_type()) {
                    return Ok(Read::Spent);
                }
                if entry.file_type() == FileType::Directory {
                    level.below.push(name.to_owned());
                } else {
                    match unlink(directory, name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        // The filesystem does not tell types in listings.
                        Err(Errno::ISDIR) => level.below.push(name.to_owned()),
                        Err(error) => return Err((Some(name.to_owned()), error)),
                    }
                }
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(if any { Read::Some } else { Read::End })
    }

    fn descend(&mut self, name: CString) -> Result<(), Failure> {
        let depth = self.levels.len();
        let Some(level) = self.levels.last() else { return Ok(()) };
        match open_directory(level.directory.as_fd(), &name) {
            Ok(_) if depth > DEPTH_MAX => self.move_up(name),
            Ok(directory) => {
                self.levels.push(Level::new(name, directory));
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err((Some(name), error)),
        }
    }

    /// Removes the deepest directory, if it is empty; else it is read on. `false` = told to stop.
    fn ascend(&mut self, at_end: bool) -> Result<bool, Failure> {
        let Some(mut level) = self.levels.pop() else { return Ok(true) };
        if let Until::Raised(stop) = self.budget.until
            && stop.is_raised()
        {
            return Ok(false);
        }
        let removed = match self.levels.last() {
            Some(above) => unlink(above.directory.as_fd(), &level.name, AtFlags::REMOVEDIR),
            None => unlink_root(self.parent, &level.name, AtFlags::REMOVEDIR),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) if !at_end => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                // Directories were moved up here: that is no fruitless round.
                if self.levels.is_empty() && self.moved > level.moved {
                    level.rewinds = 0;
                }
                level.moved = self.moved;
                let rewound = rustix::fs::seek(&level.directory, SeekFrom::Start(0));
                let failed =
                    if level.rewinds == REWINDS_MAX { Err(Errno::NOTEMPTY) } else { rewound.map(drop) };
                level.rewinds += 1;
                if let Err(error) = failed {
                    self.levels.push(level);
                    return Err((None, error));
                }
            }
            Err(error) => {
                self.levels.push(level);
                return Err((None, error));
            }
        }
        self.levels.push(level);
        Ok(true)
    }

    fn move_up(&mut self, name: CString) -> Result<(), Failure> {
        let (Some(top), Some(level)) = (self.levels.first(), self.levels.last()) else { return Ok(()) };
        let mut permitted = false;
        loop {
            self.moved += 1;
            let place = format!(".keelblock-deep-{}", self.moved);
            match renameat_with(&level.directory, &name, &top.directory, &place, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::EXIST) => {}
                // It wants the right to write here, there, and in the directory itself, whose `..` changes.
                Err(Errno::ACCESS) if !permitted => {
                    permitted = true;
                    let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let permit = || {
                        fchmod(&level.directory, Mode::RWXU)?;
                        fchmod(&top.directory, Mode::RWXU)?;
                        chmod_path(open_here(level.directory.as_fd(), &name, path)?.as_fd())
                    };
                    if let Err(error) = permit() {
                        return Err((Some(name), error));
                    }
                }
                Err(error) => return Err((Some(name), error)),
            }
        }
    }

    fn path_to(&self, name: Option<&CStr>) -> PathBuf {
        let levels = self.levels.iter().map(|level| level.name.as_c_str()).chain(name);
        levels.map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }
}

/// What one reading of a directory brought.
enum Read {
    /// Entries.
    Some,
    /// None: all were read.
    End,
    /// Entries that must stay.
    Spent,
}

/// Opens a directory of this very mount; `EXDEV` when it is the root of another. Without the right to read it, it
/// is given that first (a directory may have mode 0, and root may be root of a user namespace only).
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open_here(parent, name, flags) {
        Err(Errno::ACCESS) => {
            let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            chmod_path(open_here(parent, name, path)?.as_fd())?;
            open_here(parent, name, flags)
        }
        result => result,
    }
}

fn open_here(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(parent, name, flags, Mode::empty(), resolve) {
            // A rename anywhere on the machine may have come in between: openat2(2) asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// An `O_PATH` descriptor cannot be changed by fchmod, its magic link can.
fn chmod_path(path: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::chmod(magic_link(path), Mode::RWXU)
}

fn magic_link(path: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", path.as_raw_fd())
}

/// unlinkat, and once more with the right to write in the directory, or without the attributes that forbid it.
fn unlink(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(directory, name, flags) {
        Err(Errno::ACCESS) => {
            fchmod(directory, Mode::RWXU)?;
            unlinkat(directory, name, flags)
        }
        Err(Errno::PERM) => {
            // Whether that could be done shows right after.
            let _ = clear_attributes(directory);
            unlink_root(directory, name, flags)
        }
        result => result,
    }
}

/// As [`unlink`], for the root of the removal: the directory that it lies in is not ours to change.
fn unlink_root(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(directory, name, flags) {
        Err(Errno::PERM) => {
            let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let entry = open_here(directory, name, path).map_err(|_| Errno::PERM)?;
            match clear_attributes(entry.as_fd()) {
                Ok(true) => unlinkat(directory, name, flags),
                _ => Err(Errno::PERM),
            }
        }
        result => result,
    }
}

/// Takes the attributes away that forbid removing (chattr(1), `i` and `a`); `false` = it has neither. Only files and
/// directories have them, and only those may be opened without a side effect.
fn clear_attributes(entry: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = FileType::from_raw_mode(fstat(entry)?.st_mode);
    if kind != FileType::RegularFile && kind != FileType::Directory {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(CWD, magic_link(entry), flags, Mode::empty())?;
    let forbid = IFlags::IMMUTABLE | IFlags::APPEND;
    let attributes = match ioctl_getflags(&opened) {
        Ok(attributes) if attributes.intersects(forbid) => attributes,
        // This filesystem has none.
        Ok(_) | Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(false),
        Err(error) => return Err(error),
    };
    ioctl_setflags(&opened, attributes - forbid)?;
    Ok(true)
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

    /// Thousands of entries take a disk long.
    fn in_memory() -> tempfile::TempDir {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
    }

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
        let directory = in_memory();
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut at = rustix::fs::open(&tree, OFlags::PATH, Mode::empty()).unwrap();
        for level in 0..5500 {
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
        let removed = std::thread::scope(|scope| scope.spawn(|| without_override(&tree)).join().unwrap());
        assert!(removed.unwrap());
        // Deep ones are moved, which changes their `..`.
        let mut path = tree.clone();
        for level in 0..2 * DEPTH_MAX {
            path.push(level.to_string());
        }
        std::fs::create_dir_all(&path).unwrap();
        for directory in path.ancestors().take_while(|directory| directory.starts_with(&tree)) {
            std::fs::set_permissions(directory, PermissionsExt::from_mode(0o500)).unwrap();
        }
        let removed = std::thread::scope(|scope| scope.spawn(|| without_override(&tree)).join().unwrap());
        assert!(removed.unwrap());
        assert!(!tree.exists());
    }

    /// As an ordinary user would have to; capabilities are a thread's own.
    fn without_override(tree: &Path) -> Result<bool, RemoveError> {
        for capability in [caps::Capability::CAP_DAC_OVERRIDE, caps::Capability::CAP_DAC_READ_SEARCH] {
            let _ = caps::drop(None, caps::CapSet::Effective, capability);
        }
        remove_tree(tree)
    }

    #[test]
    fn a_directory_of_many_buffers_is_removed() {
        let directory = in_memory();
        let tree = directory.path().join("tree");
        for number in 0..3000 {
            std::fs::create_dir_all(tree.join(format!("a-directory-with-a-name-of-some-length-{number}/in")))
                .unwrap();
            std::fs::write(tree.join(format!("a-file-with-a-name-of-some-length-{number}")), "").unwrap();
        }
        assert!(remove_tree(&tree).unwrap());
        assert!(!tree.exists());
    }

    #[test]
    fn what_is_at_a_name_in_an_open_directory_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("tree/sub")).unwrap();
        std::fs::create_dir(directory.path().join("kept")).unwrap();
        std::fs::write(directory.path().join("kept/canary"), "alive").unwrap();
        symlink("../kept", directory.path().join("tree/link")).unwrap();
        let root = rustix::fs::open(directory.path(), OFlags::PATH, Mode::empty()).unwrap();
        assert!(remove_tree_at(root.as_fd(), b"tree").unwrap());
        assert!(!remove_tree_at(root.as_fd(), b"tree").unwrap());
        assert!(!directory.path().join("tree").exists());
        assert!(directory.path().join("kept/canary").exists());
    }

    #[test]
    fn a_removal_ends_when_its_budget_is_spent_or_it_is_told_to_stop() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let make = || {
            std::fs::create_dir_all(tree.join("a/b")).unwrap();
            std::fs::write(tree.join("a/file"), "x").unwrap();
            std::fs::write(tree.join("large"), vec![7; 1 << 20]).unwrap();
        };
        make();
        let stop = Stop::default();
        stop.raise();
        assert_eq!(remove_tree_until(&tree, Until::Raised(&stop)).unwrap(), Removed::Part);
        for (entries, bytes) in [(0, u64::MAX), (4, u64::MAX), (u64::MAX, 100 << 10)] {
            make();
            assert_eq!(
                remove_tree_until(&tree, Until::Spent { entries, bytes }).unwrap(),
                Removed::Part,
                "{entries} {bytes}"
            );
            assert!(tree.exists());
        }
        make();
        let enough = Until::Spent { entries: 5, bytes: 2 << 20 };
        assert_eq!(remove_tree_until(&tree, enough).unwrap(), Removed::All);
        assert_eq!(remove_tree_until(&tree, enough).unwrap(), Removed::Nothing);
    }

    #[test]
    fn attributes_that_forbid_removing_are_taken_away() {
        // Not in memory: tmpfs may have no such attributes.
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("fixed/inner")).unwrap();
        std::fs::write(tree.join("fixed/file"), "").unwrap();
        for path in ["fixed/file", "fixed/inner", "fixed", ""] {
            let file = std::fs::File::open(tree.join(path)).unwrap();
            let set =
                ioctl_getflags(&file).and_then(|flags| ioctl_setflags(&file, flags | IFlags::IMMUTABLE));
            if let Err(error) = set {
                eprintln!("skipped: no file can be made immutable here: {error}");
                return;
            }
        }
        assert!(std::fs::remove_dir_all(&tree).is_err());
        assert!(remove_tree(&tree).unwrap());
        assert!(!tree.exists());
    }

    #[test]
    fn what_cannot_be_removed_is_named_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("a/busy")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("none", tree.join("a/busy"), "tmpfs", flags, None) {
            eprintln!("skipped: nothing can be mounted here: {error}");
            return;
        }
        std::fs::write(tree.join("a/busy/file"), "alive").unwrap();
        let error = remove_tree(&tree).unwrap_err();
        let alive = tree.join("a/busy/file").exists();
        rustix::mount::unmount(tree.join("a/busy"), rustix::mount::UnmountFlags::empty()).unwrap();
        assert!(alive);
        assert_eq!((error.path, error.source.kind()), (tree.join("a/busy"), io::ErrorKind::ResourceBusy));
        assert!(remove_tree(&tree).unwrap());
    }
}

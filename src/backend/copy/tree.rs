//! The walk: directory by directory, each on whatever thread is free, each finished when all below it is.
//!
//! A directory gets its own attributes last: its times would change with every entry made in it, its mode might
//! forbid making them, and a default access list would be inherited.

use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keelblock_actors::ports::LayerDir;
use keelblock_actors::stop::Stop;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;

use super::content::Abilities;
use super::entry::{self, Entry};
use super::links::Links;
use super::merge::{Kind, Merge, Verdict};
use super::queue::Queue;
use crate::backend::error::BackendError;
use crate::backend::implied::{is_nobodys, stat_of};
use crate::backend::metadata::{self, Room};
use crate::backend::stack::{is_opaque, open_root, root_of};

/// Roots of layers kept open. 128: with four threads and two copies at once that stays well below the usual 1024
/// open files; of more layers, the roots are opened when they are needed.
const ROOTS_OPEN_MAX: usize = 128;

/// Bytes of directory entries read at once.
const ENTRIES_BYTES: usize = 32 << 10;

/// Makes an empty directory hold what these layers, topmost first, show together.
pub(super) fn copy(
    layers: &[&LayerDir],
    rootfs: &Path,
    threads: usize,
    stop: &Stop,
) -> Result<(), BackendError> {
    let root = open_root(rootfs, OFlags::PATH).map_err(BackendError::io("open", rootfs))?;
    let roots: Result<Vec<_>, _> = layers
        .iter()
        .take(ROOTS_OPEN_MAX)
        .map(|layer| {
            open_root(&layer.path, OFlags::PATH).map_err(BackendError::io("open layer", &layer.path))
        })
        .collect();
    let (roots, root_of) = (roots?, root_of(layers)?);
    let tree =
        Tree { layers, roots, root, root_of, links: Links::default(), abilities: Abilities::default(), stop };
    let directory = Directory {
        parent: None,
        name: CString::default(),
        layers: (0..layers.len()).collect(),
        left: 1.into(),
    };
    let done = Queue::new(Arc::new(directory)).run(threads, |queue, directory| tree.fill(queue, &directory));
    done.map_err(|mut failures| {
        // Threads that gave up because another failed have nothing to tell.
        let cause = failures.iter().position(|error| !matches!(error, BackendError::Stopped));
        failures.swap_remove(cause.unwrap_or(0))
    })
}

/// A directory under way.
struct Directory {
    parent: Option<Arc<Directory>>,
    name: CString,
    /// The layers that make it up, topmost first.
    layers: Vec<usize>,
    /// Its own entries (1) and the directories in it that are not finished.
    left: AtomicUsize,
}

impl Directory {
    /// From the root; empty for the root itself.
    fn path(&self) -> PathBuf {
        let mut names = vec![self.name.as_c_str()];
        let mut at = self.parent.as_ref();
        while let Some(parent) = at {
            names.push(&parent.name);
            at = parent.parent.as_ref();
        }
        names.iter().rev().map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }
}

/// A directory goes with its last child, however deep: without this, dropping the last of ten thousand nested ones
/// would recurse ten thousand times.
impl Drop for Directory {
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut parent| parent.parent.take());
        }
    }
}

/// What all threads of one copy share.
pub(super) struct Tree<'a> {
    layers: &'a [&'a LayerDir],
    roots: Vec<OwnedFd>,
    root: OwnedFd,
    /// The layer whose root's attributes count.
    root_of: usize,
    pub(super) links: Links,
    pub(super) abilities: Abilities,
    pub(super) stop: &'a Stop,
}

type Directories = Queue<Arc<Directory>, BackendError>;

impl Tree<'_> {
    /// Copies the entries of a directory and queues the directories among them.
    fn fill(&self, queue: &Directories, directory: &Arc<Directory>) -> Result<(), BackendError> {
        let path = directory.path();
        let top = directory.layers[0];
        let to = self.open_copy(&path, OFlags::RDONLY).map_err(self.failed("open", &path, top))?;
        let mut merge = Merge::default();
        let mut room = Room::default();
        for (index, layer) in directory.layers.iter().enumerate() {
            let from = self.open_layer(*layer, &path).map_err(self.failed("read", &path, *layer))?;
            let is_last = index + 1 == directory.layers.len();
            let part =
                Part { tree: self, path: &path, layer: *layer, from: from.as_fd(), to: to.as_fd(), is_last };
            part.copy(queue, &mut merge, &mut room)?;
        }
        let children: Vec<_> = merge
            .into_directories()
            .map(|(name, layers)| {
                let parent = Some(Arc::clone(directory));
                Arc::new(Directory { parent, name, layers, left: 1.into() })
            })
            .collect();
        directory.left.fetch_add(children.len(), Ordering::Relaxed);
        queue.extend(children);
        self.settle(directory, &mut room)
    }

    /// One thing less to wait for; what has nothing left gets its attributes, and so on upwards.
    fn settle(&self, directory: &Arc<Directory>, room: &mut Room) -> Result<(), BackendError> {
        let mut at = Some(directory);
        while let Some(directory) = at {
            // The threads that finished the others must have done so before we go on.
            if directory.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                break;
            }
            let path = directory.path();
            let layer = if directory.parent.is_some() { directory.layers[0] } else { self.root_of };
            let mut finish = || {
                let mut from = self.open_layer(layer, &path)?;
                if directory.parent.is_some() && is_nobodys(&fstat(&from)?) {
                    // Only implied here: the topmost that has an entry for it tells.
                    for lower in &directory.layers[1..] {
                        let below = self.open_layer(*lower, &path)?;
                        if !is_nobodys(&fstat(&below)?) {
                            from = below;
                            break;
                        }
                    }
                    if is_nobodys(&fstat(&from)?)
                        && let Some(below) = self.told_below(directory, &path)?
                    {
                        from = below;
                    }
                }
                let to = self.open_copy(&path, OFlags::RDONLY)?;
                metadata::copy_open(from.as_fd(), &stat_of(from.as_fd())?, to.as_fd(), room)
            };
            finish().map_err(self.failed("copy the attributes of", &path, layer))?;
            at = directory.parent.as_ref();
        }
        Ok(())
    }

    /// The topmost directory of this path that a layer tells of, below those that are merged: an opaque one hides what
    /// is in the others, and not what they are themselves.
    fn told_below(&self, directory: &Directory, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        let Some(parent) = &directory.parent else { return Ok(None) };
        let merged = directory.layers[directory.layers.len() - 1];
        for layer in parent.layers.iter().skip_while(|layer| **layer != merged).skip(1) {
            match self.open_layer(*layer, path) {
                Ok(below) if is_nobodys(&fstat(&below)?) => {}
                Ok(below) => return Ok(Some(below)),
                Err(Errno::NOENT) => {}
                // A file, a link, a whiteout.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A directory of the copy.
    pub(super) fn open_copy(&self, path: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
        open_beneath(self.root.as_fd(), path, access)
    }

    /// A directory of a layer.
    fn open_layer(&self, layer: usize, path: &Path) -> Result<OwnedFd, Errno> {
        match self.roots.get(layer) {
            Some(root) => open_beneath(root.as_fd(), path, OFlags::RDONLY),
            None => {
                let root = open_root(&self.layers[layer].path, OFlags::PATH)?;
                open_beneath(root.as_fd(), path, OFlags::RDONLY)
            }
        }
    }

    /// For `map_err`.
    pub(super) fn failed(
        &self,
        act: &'static str,
        entry: &Path,
        layer: usize,
    ) -> impl FnOnce(Errno) -> BackendError {
        BackendError::entry(act, entry, &self.layers[layer].path)
    }
}

/// Opens a directory by its path beneath another; no component may be a symlink.
fn open_beneath(root: BorrowedFd<'_>, path: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path == Path::new("") { Path::new(".") } else { path };
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// What one layer adds to one directory.
struct Part<'a> {
    tree: &'a Tree<'a>,
    path: &'a Path,
    layer: usize,
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    is_last: bool,
}

impl Part<'_> {
    fn copy(&self, queue: &Directories, merge: &mut Merge, room: &mut Room) -> Result<(), BackendError> {
        let mut buffer = [MaybeUninit::uninit(); ENTRIES_BYTES];
        let mut entries = RawDir::new(self.from, &mut buffer);
        while let Some(next) = entries.next() {
            let next = next.map_err(self.tree.failed("read", self.path, self.layer))?;
            let name = next.file_name();
            if name == c"." || name == c".." || merge.is_settled(name) {
                continue;
            }
            if self.tree.stop.is_raised() || queue.has_failed() {
                return Err(BackendError::Stopped);
            }
            let failed = |act: &'static str| {
                move |error: Errno| {
                    let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
                    self.tree.failed(act, &path, self.layer)(error)
                }
            };
            let stat = statat(self.from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("read"))?;
            let kind = self.kind(name, &stat).map_err(failed("read"))?;
            match merge.add(self.layer, name, kind, self.is_last) {
                Verdict::Skip => {}
                Verdict::NewDirectory => {
                    mkdirat(self.to, name, Mode::RWXU).map_err(failed("create"))?;
                }
                Verdict::Copy => {
                    let Self { tree, layer, from, to, .. } = *self;
                    let entry = Entry { layer, from, to, directory: self.path, name, stat: &stat };
                    entry::copy(tree, &entry, room)?;
                }
            }
        }
        Ok(())
    }

    fn kind(&self, name: &std::ffi::CStr, stat: &Stat) -> Result<Kind, Errno> {
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if self.is_last => Kind::Directory { opaque: false },
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = openat(self.from, name, flags, Mode::empty())?;
                let user_xattrs = self.tree.layers[self.layer].user_xattrs;
                Kind::Directory { opaque: is_opaque(directory.as_fd(), user_xattrs)? }
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => Kind::Whiteout,
            _ => Kind::Other,
        })
    }
}

//! Directories that a layer only implies: a tar may hold `etc/motd` and no `etc`, and the one below stays what it was.
//!
//! Unpacking made such a directory with attributes that nobody asked for, and marked it by a time that no tool writes
//! ([`NOBODYS_ROOT`]). The copy backend passes over those; overlayfs shows the topmost directory whatever it is, so the
//! right attributes are put on a directory of the same path in the upper layer.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use keelblock_actors::ports::LayerDir;
use rustix::fs::{Mode, OFlags, Stat, fstat, mkdirat, openat};
use rustix::io::Errno;

use super::error::BackendError;
use super::metadata;
use super::stack::{is_opaque, open_root};
use crate::store::NOBODYS_ROOT;

/// Whether a directory's attributes are nobody's word.
pub(super) fn is_nobodys(stat: &Stat) -> bool {
    (stat.st_mtime, stat.st_mtime_nsec as u32) == NOBODYS_ROOT
}

/// The attributes of a directory; where they are nobody's word its time is the epoch, as umoci has it.
pub(super) fn stat_of(directory: BorrowedFd<'_>) -> Result<Stat, Errno> {
    let mut stat = fstat(directory)?;
    if is_nobodys(&stat) {
        stat.st_mtime_nsec = 0;
    }
    Ok(stat)
}

/// Makes directories in an empty upper directory for those that the topmost of these layers, topmost first, only imply
/// and a lower one tells of.
///
/// All layers are walked at once, down and up again by `..`, one descriptor for each: what a directory costs does not
/// depend on how deep it lies, and paths may be longer than the kernel takes at once.
pub(super) fn carry_up(layers: &[&LayerDir], upper: &Path) -> Result<(), BackendError> {
    let implied: BTreeSet<&PathBuf> = layers.iter().flat_map(|layer| layer.implied.iter()).collect();
    // Of one layer there is nothing below.
    if layers.len() < 2 || implied.is_empty() {
        return Ok(());
    }
    let mut walk = Walk::open(layers, upper)?;
    for path in implied {
        let names: Vec<&OsStr> = path.iter().collect();
        let common = walk.path.iter().zip(&names).take_while(|(at, name)| at == name).count();
        while walk.path.len() > common {
            walk.leave()?;
        }
        for name in &names[common..] {
            walk.enter(name)?;
        }
        walk.carry()?;
    }
    while !walk.path.is_empty() {
        walk.leave()?;
    }
    Ok(())
}

/// Where in the tree the walk is, and how far each layer goes along.
struct Walk<'a> {
    upper: At<'a>,
    /// Topmost first.
    layers: Vec<At<'a>>,
    path: Vec<&'a OsStr>,
    /// For the root and each name of the path: how many layers count there, from the topmost on.
    counts: Vec<Count>,
    room: metadata::Room,
}

/// How many layers count for a directory itself, and for what is in it: an opaque one hides content, not attributes.
#[derive(Clone, Copy)]
struct Count {
    here: usize,
    below: usize,
}

/// A tree, and the deepest directory on the path that it has.
struct At<'a> {
    tree: &'a Path,
    user_xattrs: bool,
    directory: OwnedFd,
    depth: usize,
}

impl<'a> At<'a> {
    fn open(tree: &'a Path, user_xattrs: bool) -> Result<Self, BackendError> {
        let directory = open_root(tree, OFlags::RDONLY).map_err(BackendError::io("open", tree))?;
        Ok(Self { tree, user_xattrs, directory, depth: 0 })
    }

    /// Goes one down. `name` is that of one component.
    fn down(&mut self, name: &OsStr) -> Result<(), Errno> {
        let access = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.directory = openat(&self.directory, name, access, Mode::empty())?;
        self.depth += 1;
        Ok(())
    }

    /// Goes one up. Nobody moves directories in a layer or in a new upper directory.
    fn up(&mut self) -> Result<(), BackendError> {
        self.down(OsStr::new("..")).map_err(BackendError::io("read", self.tree))?;
        self.depth -= 2;
        Ok(())
    }
}

impl<'a> Walk<'a> {
    fn open(layers: &[&'a LayerDir], upper: &'a Path) -> Result<Self, BackendError> {
        Ok(Self {
            upper: At::open(upper, false)?,
            layers: layers
                .iter()
                .map(|layer| At::open(&layer.path, layer.user_xattrs))
                .collect::<Result<_, _>>()?,
            path: vec![],
            counts: vec![Count { here: layers.len(), below: layers.len() }],
            room: metadata::Room::default(),
        })
    }

    fn enter(&mut self, name: &'a OsStr) -> Result<(), BackendError> {
        let depth = self.path.len();
        let before = self.counts[depth].below;
        let mut count = Count { here: before, below: before };
        for (index, layer) in self.layers.iter_mut().enumerate().take(before) {
            if layer.depth < depth {
                continue;
            }
            let hides = match layer.down(name) {
                Ok(()) => is_opaque(layer.directory.as_fd(), layer.user_xattrs),
                Err(Errno::NOENT) => Ok(false),
                // A file, a link, a whiteout: below it nothing is seen, and here neither.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    count = Count { here: index, below: index.min(count.below) };
                    break;
                }
                Err(error) => Err(error),
            };
            if hides.map_err(BackendError::io("read", layer.tree))? {
                count.below = count.below.min(index + 1);
            }
        }
        self.path.push(name);
        self.counts.push(count);
        Ok(())
    }

    /// Which layer's attributes count here, and whether one above it only implies the directory.
    fn told_by(&self) -> Result<Option<(usize, bool)>, BackendError> {
        let depth = self.path.len();
        let mut topmost = None;
        for (index, layer) in self.layers.iter().enumerate().take(self.counts[depth].here) {
            if layer.depth < depth {
                continue;
            }
            let stat = fstat(&layer.directory).map_err(BackendError::io("read", layer.tree))?;
            if !is_nobodys(&stat) {
                return Ok(Some((index, topmost.is_some())));
            }
            topmost.get_or_insert(index);
        }
        Ok(topmost.map(|index| (index, false)))
    }

    /// Makes the directory here in the upper one, if its attributes come from below; those above it come along, with
    /// the attributes they show anyway.
    fn carry(&mut self) -> Result<(), BackendError> {
        if !matches!(self.told_by()?, Some((_, true))) {
            return Ok(());
        }
        let upper = &mut self.upper;
        for name in &self.path[upper.depth..] {
            let made = match mkdirat(&upper.directory, *name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => upper.down(name),
                Err(error) => Err(error),
            };
            made.map_err(BackendError::io("make directories in", upper.tree))?;
        }
        Ok(())
    }

    /// Gives the directory its attributes, which making others in it changed, and goes one up.
    fn leave(&mut self) -> Result<(), BackendError> {
        let depth = self.path.len();
        if self.upper.depth == depth {
            if let Some((index, _)) = self.told_by()? {
                let from = self.layers[index].directory.as_fd();
                let copied = stat_of(from).and_then(|stat| {
                    metadata::copy_open(from, &stat, self.upper.directory.as_fd(), &mut self.room)
                });
                copied.map_err(BackendError::io("give attributes to", self.upper.tree))?;
            }
            self.upper.up()?;
        }
        for layer in self.layers.iter_mut().filter(|layer| layer.depth == depth) {
            layer.up()?;
        }
        self.path.pop();
        self.counts.pop();
        Ok(())
    }
}

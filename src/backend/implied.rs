//! Directories that a layer only implies: a tar may hold `etc/motd` and no `etc`, and the one below stays what it was.
//!
//! Unpacking made such a directory with attributes that nobody asked for, and marked it by a time that no tool writes
//! ([`NOBODYS_ROOT`]). The copy backend passes over those; overlayfs shows the topmost directory whatever it is, so the
//! right attributes are put on a directory of the same path in the upper layer.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use keelblock_actors::ports::LayerDir;
use rustix::fs::{Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use super::error::BackendError;
use super::metadata;
use super::place;
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
pub(super) fn carry_up(layers: &[&LayerDir], upper: &Path) -> Result<(), BackendError> {
    let implied: BTreeSet<&PathBuf> = layers.iter().flat_map(|layer| layer.implied.iter()).collect();
    let mut wanted = BTreeSet::new();
    for path in implied {
        if let Some(shown) = look(layers, path)?
            && shown.from_below
        {
            // Those above it come along, with the attributes they show anyway.
            wanted.extend(path.ancestors().filter(|one| !one.as_os_str().is_empty()).map(Path::to_owned));
        }
    }
    for path in &wanted {
        place::make_directory(&upper.join(path))?;
    }
    // Children first: making them changed the times of their parents.
    let mut room = metadata::Room::default();
    for path in wanted.iter().rev() {
        let Some(shown) = look(layers, path)? else { continue };
        let at = upper.join(path);
        let mut copy = || -> io::Result<()> {
            let to = open_root(&at, OFlags::RDONLY)?;
            let stat = stat_of(shown.directory.as_fd())?;
            metadata::copy_open(shown.directory.as_fd(), &stat, to.as_fd(), &mut room).map_err(Into::into)
        };
        copy().map_err(BackendError::io("give attributes to", &at))?;
    }
    Ok(())
}

/// A directory as the stack shows it.
struct Shown {
    /// The one whose attributes count.
    directory: OwnedFd,
    /// Whether that lies below one that is only implied.
    from_below: bool,
}

/// The directory at this path; `None` when the stack shows none there.
fn look(layers: &[&LayerDir], path: &Path) -> Result<Option<Shown>, BackendError> {
    let mut topmost: Option<OwnedFd> = None;
    for layer in layers {
        let failed = BackendError::io("read layer", &layer.path);
        let there = match within(layer, path) {
            Ok(there) => there,
            Err(error) => return Err(failed(error)),
        };
        let hides = match there {
            Within::Blocked => break,
            Within::Absent { hides } => hides,
            Within::Directory { directory, hides } => {
                let stat = fstat(&directory).map_err(failed)?;
                if !is_nobodys(&stat) {
                    return Ok(Some(Shown { directory, from_below: topmost.is_some() }));
                }
                topmost.get_or_insert(directory);
                hides
            }
        };
        if hides {
            break;
        }
    }
    Ok(topmost.map(|directory| Shown { directory, from_below: false }))
}

/// What a layer has at a path.
enum Within {
    /// Nothing; whether it hides what lower layers have there.
    Absent { hides: bool },
    /// Something on the way that is no directory: a file, a link, a whiteout.
    Blocked,
    /// A directory; whether it, or one above it, hides those of lower layers.
    Directory { directory: OwnedFd, hides: bool },
}

fn within(layer: &LayerDir, path: &Path) -> Result<Within, Errno> {
    let mut directory = open_root(&layer.path, OFlags::RDONLY)?;
    let mut hides = false;
    let access = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for component in path.components() {
        let Component::Normal(name) = component else { return Ok(Within::Blocked) };
        match openat(&directory, name, access, Mode::empty()) {
            Ok(next) => directory = next,
            Err(Errno::NOENT) => return Ok(Within::Absent { hides }),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Within::Blocked),
            Err(error) => return Err(error),
        }
        hides |= is_opaque(directory.as_fd(), layer.user_xattrs)?;
    }
    Ok(Within::Directory { directory, hides })
}

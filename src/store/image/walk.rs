//! Paths of a layer, resolved among the names of its image: as in a chroot, symlinks that the layer brought are
//! followed, absolute ones and `..` stay inside.

use std::collections::VecDeque;

use super::super::dirtimes::NOBODYS_ROOT;
use super::super::meaning::SYMLINKS_MAX;
use super::{DirId, EntryError, Failed, Found, ImageApplier, Implied, Lost, WHITEOUT, erofs, rules, text};
use crate::store::meaning::components;

/// What stands where a directory is looked for.
enum Step {
    Dir(DirId),
    Link(Vec<u8>),
    /// Nothing, or what removed a directory of the layers below.
    Free(Implied),
    InTheWay,
}

impl ImageApplier<'_> {
    /// The directory of this path.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<DirId, Lost> {
        match self.walk(path, false) {
            Ok(dir) => Ok(dir),
            Err(Unwalked::Lost(lost)) => Err(lost),
            // Nothing is made.
            Err(Unwalked::Failed(_)) => Err(Lost::Missing),
        }
    }

    /// The same; makes it, and what is missing above it, mode 0755, owned by root.
    pub(super) fn find_or_make(&mut self, path: &[u8]) -> Result<DirId, Failed> {
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(*dir);
        }
        match self.walk(path, true) {
            Ok(dir) => {
                self.last = Some((path.to_vec(), dir));
                Ok(dir)
            }
            Err(Unwalked::Lost(lost)) => Err(lost.into()),
            Err(Unwalked::Failed(failed)) => Err(failed),
        }
    }

    /// A directory by a path without symlinks, if that is what it still is.
    pub(super) fn dir_still(&self, path: &[u8]) -> Option<DirId> {
        components(path).try_fold(self.writer.root(), |dir, name| match self.writer.lookup(dir, name) {
            Some(Found::Directory(dir)) => Some(dir),
            _ => None,
        })
    }

    fn walk(&mut self, path: &[u8], make: bool) -> Result<DirId, Unwalked> {
        // Almost all paths have no symlinks and are there.
        if let Some(dir) = self.dir_still(path) {
            return Ok(dir);
        }
        let root = self.writer.root();
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let (mut dir, mut symlinks) = (root, 0);
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                done.pop();
                dir = self.writer.parent(dir);
                continue;
            }
            rules::name(&name).map_err(|error| Unwalked::Lost(Lost::Entry(error)))?;
            match self.step(dir, &name) {
                Step::Dir(found) => dir = found,
                Step::Link(target) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(Unwalked::Lost(Lost::Entry(EntryError::SymlinkLoop)));
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                        dir = root;
                    }
                    for component in components(&target).rev() {
                        todo.push_front(component.to_vec());
                    }
                    continue;
                }
                Step::Free(implied) if make => {
                    dir = self.make_implied(dir, &name, implied).map_err(Unwalked::Failed)?;
                    done.push(name);
                    if implied == Implied::Merged {
                        self.implied.push(done.join(&b'/'));
                    }
                    continue;
                }
                Step::InTheWay if make => {
                    let error = EntryError::NotADirectory(text(&name));
                    return Err(Unwalked::Lost(Lost::Entry(error)));
                }
                Step::Free(_) | Step::InTheWay => return Err(Unwalked::Lost(Lost::Missing)),
            }
            done.push(name);
        }
        Ok(dir)
    }

    fn step(&self, dir: DirId, name: &[u8]) -> Step {
        match self.writer.lookup(dir, name) {
            None => Step::Free(Implied::Merged),
            Some(Found::Directory(dir)) => Step::Dir(dir),
            Some(Found::Symlink(_, target)) => Step::Link(target.to_vec()),
            // What was removed from the layers below is a new directory in this one: nothing of the old may shine
            // through.
            Some(Found::Other(inode)) if inode.tag() == WHITEOUT => Step::Free(Implied::New),
            Some(Found::Other(_)) => Step::InTheWay,
        }
    }

    fn make_implied(&mut self, dir: DirId, name: &[u8], implied: Implied) -> Result<DirId, Failed> {
        let mtime = if implied == Implied::Merged { NOBODYS_ROOT } else { (0, 0) };
        let attributes = erofs::Attributes { mtime, ..erofs::Attributes::new(0o755) };
        let made = self.make_dir(dir, name, attributes)?;
        self.implied_dirs += 1;
        if implied == Implied::New {
            self.hide_below(made)?;
        }
        Ok(made)
    }
}

/// Why a path led nowhere.
enum Unwalked {
    Lost(Lost),
    Failed(Failed),
}

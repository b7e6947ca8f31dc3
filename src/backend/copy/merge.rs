//! Which entries of which layers make up one directory: the rules of overlayfs, as data.
//!
//! Layers are shown topmost first, entry by entry. The first to have a name decides what it is; only a directory
//! over a directory goes on to be merged, until one of them is opaque or something else lies between
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").

use std::collections::HashMap;
use std::ffi::{CStr, CString};

/// What an entry of a layer is, as far as merging goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory; whether it hides those below it.
    Directory {
        /// Has the opaque mark.
        opaque: bool,
    },
    /// A character device 0:0: hides the name in lower layers and is itself not shown.
    Whiteout,
    /// Anything else.
    Other,
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Copy it: nothing above has that name.
    Copy,
    /// Make the directory: nothing above has that name; lower layers may add to it.
    NewDirectory,
    /// Nothing to do.
    Skip,
}

enum Name {
    /// Lower layers cannot show it any more.
    Settled,
    /// A directory that these layers, topmost first, make up; `open` while lower ones may join.
    Directory { layers: Vec<usize>, open: bool },
}

/// A directory being merged.
#[derive(Default)]
pub(super) struct Merge {
    names: HashMap<CString, Name>,
}

impl Merge {
    /// Whether a lower layer's entry of this name can change anything; if not, it need not even be looked at.
    pub(super) fn is_settled(&self, name: &CStr) -> bool {
        match self.names.get(name) {
            None => false,
            Some(Name::Settled) => true,
            Some(Name::Directory { open, .. }) => !open,
        }
    }

    /// Takes in an entry of a layer, topmost layers first; `is_last` when no layer below has this directory.
    pub(super) fn add(&mut self, layer: usize, name: &CStr, kind: Kind, is_last: bool) -> Verdict {
        match self.names.get_mut(name) {
            None => {
                let (verdict, known) = match kind {
                    Kind::Directory { opaque } => {
                        let known = Name::Directory { layers: vec![layer], open: !opaque };
                        self.names.insert(name.to_owned(), known);
                        return Verdict::NewDirectory;
                    }
                    Kind::Whiteout => (Verdict::Skip, Name::Settled),
                    Kind::Other => (Verdict::Copy, Name::Settled),
                };
                // Below the last layer there is nothing to hide: a directory of a million files is not remembered.
                if !is_last {
                    self.names.insert(name.to_owned(), known);
                }
                verdict
            }
            Some(Name::Settled) => Verdict::Skip,
            Some(Name::Directory { layers, open }) => {
                if *open {
                    match kind {
                        Kind::Directory { opaque } => {
                            layers.push(layer);
                            *open = !opaque;
                        }
                        Kind::Whiteout | Kind::Other => *open = false,
                    }
                }
                Verdict::Skip
            }
        }
    }

    /// The subdirectories, each with the layers it is made of, topmost first.
    pub(super) fn into_directories(self) -> impl Iterator<Item = (CString, Vec<usize>)> {
        self.names.into_iter().filter_map(|(name, known)| match known {
            Name::Directory { layers, .. } => Some((name, layers)),
            Name::Settled => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Kind = Kind::Directory { opaque: false };
    const OPAQUE: Kind = Kind::Directory { opaque: true };

    /// What becomes of one name that these layers have, topmost first.
    fn outcome(kinds: &[Kind]) -> (Vec<Verdict>, Vec<usize>) {
        let mut merge = Merge::default();
        let verdicts = kinds
            .iter()
            .enumerate()
            .map(|(layer, kind)| merge.add(layer, c"x", *kind, layer + 1 == kinds.len()))
            .collect();
        (verdicts, merge.into_directories().flat_map(|(_, layers)| layers).collect())
    }

    #[test]
    fn the_highest_entry_of_a_name_wins() {
        use Verdict::*;
        assert_eq!(outcome(&[Kind::Other, Kind::Other]), (vec![Copy, Skip], vec![]));
        assert_eq!(outcome(&[Kind::Other, DIR]), (vec![Copy, Skip], vec![]));
        assert_eq!(outcome(&[Kind::Whiteout, Kind::Other]), (vec![Skip, Skip], vec![]));
        assert_eq!(outcome(&[Kind::Whiteout, DIR, DIR]), (vec![Skip, Skip, Skip], vec![]));
    }

    #[test]
    fn directories_merge_until_something_stands_between() {
        use Verdict::*;
        assert_eq!(outcome(&[DIR, DIR, DIR]), (vec![NewDirectory, Skip, Skip], vec![0, 1, 2]));
        assert_eq!(outcome(&[DIR, OPAQUE, DIR]), (vec![NewDirectory, Skip, Skip], vec![0, 1]));
        assert_eq!(outcome(&[OPAQUE, DIR]), (vec![NewDirectory, Skip], vec![0]));
        assert_eq!(outcome(&[DIR, Kind::Whiteout, DIR]), (vec![NewDirectory, Skip, Skip], vec![0]));
        assert_eq!(outcome(&[DIR, Kind::Other, DIR]), (vec![NewDirectory, Skip, Skip], vec![0]));
    }

    #[test]
    fn a_settled_name_needs_no_second_look() {
        let mut merge = Merge::default();
        merge.add(0, c"file", Kind::Other, false);
        merge.add(0, c"open", DIR, false);
        merge.add(0, c"shut", OPAQUE, false);
        assert!(merge.is_settled(c"file") && merge.is_settled(c"shut"));
        assert!(!merge.is_settled(c"open") && !merge.is_settled(c"new"));
    }
}

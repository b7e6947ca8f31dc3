//! Hard links within a layer: which file of the copy stands for which file of the layer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::Stat;

/// A file with several names: layer, inode.
type Key = (usize, u64);

/// What is known of it.
struct Known {
    /// Its first name in the copy, relative to the root; `None` while it is being copied.
    first: Option<PathBuf>,
    /// Names that may still come: the entry goes with the last one.
    names_left: u64,
}

/// Files with several names, shared by all threads of one copy.
#[derive(Default)]
pub(super) struct Links {
    known: Mutex<HashMap<Key, Known>>,
    changed: Condvar,
}

/// What to do for a name.
pub(super) enum Turn<'links> {
    /// Copy the file and say so.
    First(FirstName<'links>),
    /// It is copied: link to this, relative to the root.
    Another(PathBuf),
    /// Its first name failed, and with it the whole copy.
    Failed,
}

impl Links {
    /// Whose turn it is to copy this file of this layer. Waits while another thread copies it; that thread never
    /// waits for anybody meanwhile.
    pub(super) fn turn(&self, layer: usize, stat: &Stat) -> Turn<'_> {
        let key = (layer, stat.st_ino);
        let mut known = self.lock();
        if let Entry::Vacant(unknown) = known.entry(key) {
            #[allow(
                clippy::unnecessary_cast,
                clippy::useless_conversion,
                reason = "the type differs between machines"
            )]
            let names_left = u64::from(stat.st_nlink).saturating_sub(1);
            unknown.insert(Known { first: None, names_left });
            return Turn::First(FirstName { links: self, key, done: false });
        }
        loop {
            let Some(entry) = known.get_mut(&key) else { return Turn::Failed };
            if let Some(first) = &entry.first {
                let first = first.clone();
                entry.names_left = entry.names_left.saturating_sub(1);
                if entry.names_left == 0 {
                    known.remove(&key);
                }
                return Turn::Another(first);
            }
            known = self.changed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right and duty to copy a file under its first name.
pub(super) struct FirstName<'links> {
    links: &'links Links,
    key: Key,
    done: bool,
}

impl FirstName<'_> {
    /// It is copied, under this name.
    pub(super) fn is(mut self, path: &Path) {
        if let Some(entry) = self.links.lock().get_mut(&self.key) {
            entry.first = Some(path.to_owned());
        }
        self.done = true;
        self.links.changed.notify_all();
    }
}

impl Drop for FirstName<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.links.lock().remove(&self.key);
            self.links.changed.notify_all();
        }
    }
}

//! The copy backend: a tree of its own, all layers applied.
//!
//! The layers are not applied one after the other: the tree is walked once, all layers side by side, and of every
//! name only what no higher layer hides is copied (`merge`). So nothing is ever written and removed again, and
//! nothing that a lower layer put down is there to be written through: every entry is made anew, by name, in a
//! directory that was made here and is held open. `entry` copies one entry, `content` the bytes of a file (by
//! reflink where the filesystem can), `links` remembers hard links, `tree` is the walk and `queue` its threads.

mod content;
mod entry;
mod links;
mod merge;
mod queue;
mod tree;

use std::num::NonZero;

use keelblock_actors::container::BackendName;
use keelblock_actors::error::MountError;
use keelblock_actors::ports::{Backend, LayerDir, Rootfs, RootfsPlace};
use keelblock_actors::stop::Stop;

use super::error::BackendError;
use super::{place, stack};
use crate::gc::Gc;

/// Threads of one copy at most. 4: directory entries are made under one lock per directory, and disks gain nothing
/// from more; how many trees are copied at once is the pool's business.
const THREADS_MAX: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct CopyBackend {
    gc: Gc,
}

impl CopyBackend {
    /// One that has what it takes away collected there.
    pub fn new(gc: Gc) -> Self {
        Self { gc }
    }
}

impl Backend for CopyBackend {
    fn name(&self) -> BackendName {
        BackendName::Copy
    }

    fn mount(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError> {
        if stack.is_empty() {
            return Err(MountError::NoLayers);
        }
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
        let copy = || {
            let layers = stack::visible(stack)?;
            if stop.is_raised() {
                return Err(BackendError::Stopped);
            }
            place::make(place)?;
            let copied = tree::copy(&layers, &place.rootfs, threads, stop);
            copied.map_err(|error| place::undo(place, &self.gc, error))
        };
        copy().map_err(|error| error.at(BackendName::Copy, place))?;
        Ok(Rootfs { id: place.id, backend: BackendName::Copy, path: place.rootfs.clone(), read_only: false })
    }

    fn unmount(&self, place: &RootfsPlace) -> Result<bool, MountError> {
        place::unmake(place, &self.gc).map_err(|error| error.at(BackendName::Copy, place))
    }
}

//! The overlay backend: the layers, stacked by overlayfs below a writable directory of the rootfs's own.

use std::path::Path;

use keelblock_actors::container::BackendName;
use keelblock_actors::error::MountError;
use keelblock_actors::ports::{Backend, LayerDir, Rootfs, RootfsPlace};
use keelblock_actors::stop::Stop;
use rustix::fs::OFlags;

use super::error::BackendError;
use super::overlayfs::{self, Overlayfs, Top};
use super::place;
use crate::gc::Gc;

/// See the module.
#[derive(Debug, Default)]
pub struct OverlayBackend {
    pub(super) overlayfs: Overlayfs,
    gc: Gc,
}

impl OverlayBackend {
    /// One that has what it takes away collected there.
    pub fn new(gc: Gc) -> Self {
        Self { gc, ..Self::default() }
    }

    /// Speaks to the kernel as an older one wants it; for tests on a newer one.
    #[cfg(test)]
    pub(super) fn speaking(dialect: overlayfs::Dialect) -> Self {
        Self { overlayfs: Overlayfs::speaking(dialect), ..Self::default() }
    }
}

impl Backend for OverlayBackend {
    fn name(&self) -> BackendName {
        BackendName::Overlay
    }

    fn mount(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError> {
        if stack.is_empty() {
            return Err(MountError::NoLayers);
        }
        let mount = || {
            let layers = overlayfs::stackable(stack, false)?;
            if stop.is_raised() {
                return Err(BackendError::Stopped);
            }
            place::make(place)?;
            make_writable(&layers, &place.scratch)
                .and_then(|top| self.overlayfs.mount(&layers, &top, &place.rootfs))
                .map_err(|error| place::undo(place, &self.gc, error))
        };
        mount().map_err(|error| error.at(BackendName::Overlay, place))?;
        Ok(Rootfs {
            id: place.id,
            backend: BackendName::Overlay,
            path: place.rootfs.clone(),
            read_only: false,
        })
    }

    fn unmount(&self, place: &RootfsPlace) -> Result<bool, MountError> {
        place::unmake(place, &self.gc).map_err(|error| error.at(BackendName::Overlay, place))
    }
}

/// Makes the directories that take what is written.
pub(super) fn make_writable(layers: &[&LayerDir], scratch: &Path) -> Result<Top, BackendError> {
    let work = scratch.join("work");
    place::make_directory(&work)?;
    Ok(Top::Upper {
        upper: overlayfs::make_top(layers, &scratch.join("upper"))?,
        work: overlayfs::open(&work, OFlags::PATH)?,
    })
}

//! The bind backend: the layers themselves, read-only, at no cost.
//!
//! One layer is bind-mounted, as Mesos does it, which takes no more than one. Here more are an overlay without an upper
//! directory, and so is one layer with whiteouts, which would show as devices; `--bind_strict` keeps Mesos' limit.
//!
//! Nothing can be created in such a root: mount points that the launcher needs (`/proc`, `/tmp`, the sandbox) must be
//! in the image.

use keelblock_actors::container::BackendName;
use keelblock_actors::error::MountError;
use keelblock_actors::ports::{Backend, LayerDir, Rootfs, RootfsPlace};
use keelblock_actors::stop::Stop;

use super::error::BackendError;
use super::overlayfs::{self, Overlayfs, Top};
use super::{place, stack};
use crate::gc::Gc;
use crate::sys::mount::{DetachedMount, MountFlags, Propagation};

/// See the module.
#[derive(Debug, Default)]
pub struct BindBackend {
    pub(super) overlayfs: Overlayfs,
    strict: bool,
    gc: Gc,
}

impl BindBackend {
    /// One that has what it takes away collected there.
    pub fn new(gc: Gc) -> Self {
        Self { gc, ..Self::default() }
    }

    /// Whether more than one layer is an error, as in Mesos.
    pub fn strict(self, strict: bool) -> Self {
        Self { strict, ..self }
    }

    /// Speaks to the kernel as an older one wants it; for tests on a newer one.
    #[cfg(test)]
    pub(super) fn speaking(dialect: overlayfs::Dialect) -> Self {
        Self { overlayfs: Overlayfs::speaking(dialect), ..Self::default() }
    }

    fn make(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<(), BackendError> {
        let layers = overlayfs::stackable(stack, true)?;
        if stop.is_raised() {
            return Err(BackendError::Stopped);
        }
        let alone = match layers[..] {
            [layer] if !layer.whiteouts => Some(layer),
            [_] if self.strict => return Err(BackendError::Whiteouts),
            _ => None,
        };
        if let Some(layer) = alone {
            // Before anything is made: a layer that is not there leaves nothing to undo.
            drop(
                stack::open_root(&layer.path, rustix::fs::OFlags::PATH)
                    .map_err(BackendError::io("open layer", &layer.path))?,
            );
        }
        place::make(place)?;
        let made = match alone {
            Some(layer) => attach(layer, place),
            None => overlayfs::make_top(&layers, &place.scratch.join("top"))
                .and_then(|top| self.overlayfs.mount(&layers, &Top::Lower(top), &place.rootfs)),
        };
        made.map_err(|error| place::undo(place, &self.gc, error))
    }
}

impl Backend for BindBackend {
    fn name(&self) -> BackendName {
        BackendName::Bind
    }

    fn mount(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError> {
        match stack.len() {
            0 => return Err(MountError::NoLayers),
            layers if layers > 1 && self.strict => return Err(MountError::ManyLayers { layers }),
            _ => {}
        }
        self.make(stack, place, stop).map_err(|error| error.at(BackendName::Bind, place))?;
        Ok(Rootfs { id: place.id, backend: BackendName::Bind, path: place.rootfs.clone(), read_only: true })
    }

    fn unmount(&self, place: &RootfsPlace) -> Result<bool, MountError> {
        place::unmake(place, &self.gc).map_err(|error| error.at(BackendName::Bind, place))
    }
}

/// Mounts the layer itself.
fn attach(layer: &LayerDir, place: &RootfsPlace) -> Result<(), BackendError> {
    let mount =
        DetachedMount::clone_of(&layer.path).map_err(BackendError::io("clone the mount of", &layer.path))?;
    // mount_setattr sets this one flag and leaves nosuid, nodev, noexec as the store's filesystem has them; a
    // remount would clear them.
    let read_only = MountFlags { read_only: true, ..MountFlags::default() };
    mount.add_flags(read_only).map_err(BackendError::io("make read-only the mount of", &layer.path))?;
    // Out of the peer group of the store's own mount: what is mounted in the container must not appear in the store.
    mount
        .set_propagation(Propagation::Private)
        .map_err(BackendError::io("make private the mount of", &layer.path))?;
    mount.attach(&place.rootfs).map_err(BackendError::io("mount at", &place.rootfs))
}

//! The bind backend: the one layer itself, read-only, at no cost.
//!
//! Nothing can be created in such a root: mount points that the launcher needs (`/proc`, `/tmp`, the sandbox) must be
//! in the image.

use keelblock_actors::container::BackendName;
use keelblock_actors::error::MountError;
use keelblock_actors::ports::{Backend, LayerDir, Rootfs, RootfsPlace};
use keelblock_actors::stop::Stop;

use super::error::BackendError;
use super::{place, stack};
use crate::gc::Gc;
use crate::sys::mount::{DetachedMount, MountFlags, Propagation};

/// See the module.
#[derive(Debug, Default)]
pub struct BindBackend {
    gc: Gc,
}

impl BindBackend {
    /// One that has what it takes away collected there.
    pub fn new(gc: Gc) -> Self {
        Self { gc }
    }
}

impl Backend for BindBackend {
    fn name(&self) -> BackendName {
        BackendName::Bind
    }

    fn mount(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError> {
        let layer = match stack {
            [] => return Err(MountError::NoLayers),
            [layer] => layer,
            layers => return Err(MountError::ManyLayers { layers: layers.len() }),
        };
        mount(layer, place, &self.gc, stop).map_err(|error| error.at(BackendName::Bind, place))?;
        Ok(Rootfs { id: place.id, backend: BackendName::Bind, path: place.rootfs.clone(), read_only: true })
    }

    fn unmount(&self, place: &RootfsPlace) -> Result<bool, MountError> {
        place::unmake(place, &self.gc).map_err(|error| error.at(BackendName::Bind, place))
    }
}

fn mount(layer: &LayerDir, place: &RootfsPlace, gc: &Gc, stop: &Stop) -> Result<(), BackendError> {
    if stop.is_raised() {
        return Err(BackendError::Stopped);
    }
    if layer.whiteouts {
        return Err(BackendError::Whiteouts);
    }
    // Before anything is made: a layer that is not there leaves nothing to undo.
    drop(
        stack::open_root(&layer.path, rustix::fs::OFlags::PATH)
            .map_err(BackendError::io("open layer", &layer.path))?,
    );
    place::make(place)?;
    attach(layer, place).map_err(|error| place::undo(place, gc, error))
}

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

//! What of a stack counts: the order, the repetitions, the opaque roots.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use keelblock_actors::ports::LayerDir;
use rustix::fs::{CWD, Mode, OFlags, fgetxattr, openat};
use rustix::io::Errno;

use super::error::BackendError;
use super::implied::is_nobodys;

/// The layers of a stack that can be seen, topmost first.
///
/// A layer that comes twice counts where it lies highest: all it holds is there, whatever lies between (overlayfs
/// refuses the same directory twice). Below a layer whose root is opaque nothing is seen, which overlayfs would not
/// notice, since it looks for that mark on directories it looks up, and nobody looks up the root.
pub(super) fn visible(stack: &[LayerDir]) -> Result<Vec<&LayerDir>, BackendError> {
    let mut seen = HashSet::new();
    let mut layers = Vec::with_capacity(stack.len());
    for (index, layer) in stack.iter().enumerate().rev() {
        if !seen.insert(&layer.diff_id) {
            continue;
        }
        layers.push(layer);
        if index > 0 && has_opaque_root(layer).map_err(BackendError::io("read layer", &layer.path))? {
            break;
        }
    }
    Ok(layers)
}

/// Which layer's root has the attributes that the rootfs shows: the topmost that has an entry for its root, else the
/// base. `visible` is topmost first and not empty.
pub(super) fn root_of(visible: &[&LayerDir]) -> Result<usize, BackendError> {
    for (index, layer) in visible.iter().enumerate() {
        let stat = rustix::fs::stat(&layer.path).map_err(BackendError::io("read layer", &layer.path))?;
        if !is_nobodys(&stat) {
            return Ok(index);
        }
    }
    Ok(visible.len() - 1)
}

fn has_opaque_root(layer: &LayerDir) -> io::Result<bool> {
    Ok(is_opaque(open_root(&layer.path, OFlags::RDONLY)?.as_fd(), layer.user_xattrs)?)
}

/// The root of a layer, as a descriptor.
pub(super) fn open_root(path: &Path, access: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    openat(CWD, path, access | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Whether a directory of a layer hides what lower layers have in it.
pub(super) fn is_opaque(directory: BorrowedFd<'_>, user_xattrs: bool) -> Result<bool, Errno> {
    let name = if user_xattrs { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    let mut value = [0u8; 8];
    match fgetxattr(directory, name, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        // Another value, longer than any that means something.
        Err(Errno::RANGE | Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
    }
}

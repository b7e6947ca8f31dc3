//! The directories of one rootfs: made before a mount, taken away after it, the same for every backend.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use keelblock_actors::ports::RootfsPlace;

use super::error::BackendError;
use crate::gc::Gc;
use crate::sys::mount::unmount::unmount_all;

/// Directories on the way to a rootfs are root's alone: an image's setuid programs must not be within reach of
/// the host's users.
const PRIVATE: u32 = 0o700;

/// Makes the rootfs directory, which must not exist, and those above it.
pub(super) fn make(place: &RootfsPlace) -> Result<(), BackendError> {
    make_directory(&place.rootfs)
}

/// Makes one directory, which must not exist, and those above it.
pub(super) fn make_directory(path: &Path) -> Result<(), BackendError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(PRIVATE);
    let made = match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut parents = std::fs::DirBuilder::new();
            parents.mode(PRIVATE).recursive(true);
            if let Some(parent) = path.parent() {
                parents.create(parent).map_err(BackendError::io("make directory", parent))?;
            }
            builder.create(path)
        }
        made => made,
    };
    made.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => BackendError::Exists { path: path.to_owned() },
        _ => BackendError::io("make directory", path)(source),
    })
}

/// Takes away whatever there is of this rootfs; `false` when there was nothing. Asks the kernel, not a record, what
/// is mounted: so it serves after a crash and after a reboot too. Directories above stay, they go with the container.
///
/// Nothing is removed while anything is mounted at or below the place: what would be removed were the layers, or
/// somebody's volume. A large tree is gone from its place when this returns, not from the disk: see [`crate::gc`].
pub(super) fn unmake(place: &RootfsPlace, gc: &Gc) -> Result<bool, BackendError> {
    let mounts = unmount_all(&place.rootfs).map_err(BackendError::io("unmount", &place.rootfs))?;
    let rootfs = gc.discard(&place.rootfs)?;
    let scratch = gc.discard(&place.scratch)?;
    Ok(mounts > 0 || rootfs || scratch)
}

/// Takes away what a failed mount left, and answers with its error. If even that fails, the first error tells more;
/// the record of the rootfs stays, so that its removal is tried again.
pub(super) fn undo(place: &RootfsPlace, gc: &Gc, error: BackendError) -> BackendError {
    let _ = unmake(place, gc);
    error
}

//! Where everything of a container lies. The one place that knows these names:
//!
//! ```text
//! <work_dir>/
//!   containers/                          0711
//!     <id>/                              0711
//!       lock                             locked by the process that has the container
//!       record.json                      ContainerRecord
//!       destroy                          somebody asks that process to destroy it
//!       sandbox/                         0750, the container's work directory
//!     .new-<pid>-<n>/  .old-<pid>-<n>/   one that is being made, or removed, at this moment
//!   provisioner/                         0700: nobody but root reaches an image's setuid programs
//!     overlay.probe                      whether overlayfs works here (see `backend::choose`)
//!     gc/                                root filesystems and sandboxes on their way out (see `crate::gc`)
//!     containers/<id>/
//!       layers.json                      RootfsRecord
//!       backends/<backend>/
//!         rootfses/<rootfs id>/          the root filesystem
//!         scratch/<rootfs id>/           the backend's own: upper and work of overlay
//! ```
//!
//! Names with a dot are never container IDs.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use keelblock_actors::container::{BackendName, ContainerId, RootfsId};
use keelblock_actors::ports::RootfsPlace;

/// Mode of directories that a container's user passes on the way to its sandbox.
pub(super) const PASSABLE: u32 = 0o711;
/// Mode of the sandbox.
pub(super) const SANDBOX: u32 = 0o750;
/// Mode of what is root's alone.
pub(super) const PRIVATE: u32 = 0o700;

/// Name of the lock in a container's directory.
pub(super) const LOCK: &str = "lock";
/// Name of the container's record.
pub(super) const RECORD: &str = "record.json";
/// Name of the mark that asks for its end.
pub(super) const DESTROY: &str = "destroy";
/// Name of its work directory.
pub(super) const SANDBOX_DIR: &str = "sandbox";
/// Name of the record of its rootfses.
pub(super) const LAYERS: &str = "layers.json";
/// Name of the directory of its rootfses by backend.
pub(super) const BACKENDS: &str = "backends";
/// Name of the directory of one backend's rootfses.
pub(super) const ROOTFSES: &str = "rootfses";
/// Name of the directory beside it.
pub(super) const SCRATCH: &str = "scratch";

/// `<work_dir>/containers`.
pub fn containers_dir(work_dir: &Path) -> PathBuf {
    work_dir.join("containers")
}

/// `<work_dir>/provisioner`.
pub fn provisioner_dir(work_dir: &Path) -> PathBuf {
    work_dir.join("provisioner")
}

/// `<work_dir>/provisioner/gc`.
pub fn gc_dir(work_dir: &Path) -> PathBuf {
    provisioner_dir(work_dir).join("gc")
}

/// `<work_dir>/provisioner/containers`.
pub fn provisioned_dir(work_dir: &Path) -> PathBuf {
    provisioner_dir(work_dir).join("containers")
}

/// Makes `<work_dir>/provisioner` and those above it, if they are not there.
pub fn make_provisioner_dir(work_dir: &Path) -> io::Result<()> {
    make_dirs(work_dir, 0o755)?;
    make_dirs(&provisioner_dir(work_dir), PRIVATE)
}

/// Where a rootfs lies, given its container's directory below [`provisioned_dir`].
pub(super) fn place(
    container_dir: &Path,
    id: &ContainerId,
    backend: BackendName,
    rootfs: RootfsId,
) -> RootfsPlace {
    let backend_dir = container_dir.join(BACKENDS).join(backend.to_string());
    RootfsPlace {
        container: id.clone(),
        id: rootfs,
        rootfs: backend_dir.join(ROOTFSES).join(rootfs.to_string()),
        scratch: backend_dir.join(SCRATCH).join(rootfs.to_string()),
    }
}

/// Makes a directory and those above it, with this mode.
pub(super) fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(mode).recursive(true).create(path)
}

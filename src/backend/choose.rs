//! Which backends work here, and which is used.

use std::path::Path;
use std::sync::Arc;

use keelblock_actors::container::BackendName;
use keelblock_actors::ports::Backend;

use super::error::BackendError;
use super::probe::{self, Unsuitable};
use super::{BindBackend, CopyBackend, OverlayBackend};
use crate::gc::Gc;
use crate::records::layout;

/// The backend to use.
#[derive(Debug)]
pub struct Chosen {
    /// For new root filesystems.
    pub default: BackendName,
    /// Why it is not overlay, when nobody asked for another: worth a warning.
    pub fallback: Option<BackendError>,
}

/// All kinds, whether they work here or not: a rootfs of an earlier day must be taken away by its own kind. What they
/// take away is collected by `gc`, on the filesystem of the rootfses; `bind_strict` as in [`BindBackend::strict`].
pub fn all(gc: &Gc, bind_strict: bool) -> Vec<Arc<dyn Backend>> {
    vec![
        Arc::new(OverlayBackend::new(gc.clone())),
        Arc::new(CopyBackend::new(gc.clone())),
        Arc::new(BindBackend::new(gc.clone()).strict(bind_strict)),
    ]
}

/// Chooses the backend: the one asked for, or overlay where it works, else copy (Mesos does the same; bind is never
/// chosen unasked).
///
/// `work_dir` and `store_dir` are where rootfses and layers will be; `rootless` says that this process is root of a
/// user namespace only; `outlive` that the rootfs must stay when this process ends, which a mount in a mount
/// namespace of its own cannot. To be called in the namespaces in which the mounts will be made.
///
/// # Errors
/// [`BackendError::Unsuitable`] when the one asked for does not work here.
///
/// # Blocking
/// A few system calls, save for the first time after a boot (see `probe`).
pub fn choose(
    requested: Option<BackendName>,
    work_dir: &Path,
    store_dir: &Path,
    rootless: bool,
    outlive: bool,
) -> Result<Chosen, BackendError> {
    let works = |backend| works(backend, work_dir, store_dir, rootless, outlive);
    let (default, fallback) = match requested {
        Some(backend) => {
            works(backend)?;
            (backend, None)
        }
        None => match works(BackendName::Overlay) {
            Ok(()) => (BackendName::Overlay, None),
            Err(reason) => (BackendName::Copy, Some(reason)),
        },
    };
    Ok(Chosen { default, fallback })
}

fn works(
    backend: BackendName,
    work_dir: &Path,
    store_dir: &Path,
    rootless: bool,
    outlive: bool,
) -> Result<(), BackendError> {
    let tried = match backend {
        // Needs directories and time, nothing else.
        BackendName::Copy => return Ok(()),
        _ if rootless && outlive => Err(Unsuitable {
            reason: "without root its mount would end with this command".to_owned(),
            source: None,
        }),
        BackendName::Bind => probe::bind(store_dir),
        BackendName::Overlay => layout::make_provisioner_dir(work_dir)
            .map_err(|source| Unsuitable {
                reason: format!("cannot make {}", layout::provisioner_dir(work_dir).display()),
                source: Some(source),
            })
            .and_then(|()| probe::overlay(&layout::provisioner_dir(work_dir), store_dir, rootless)),
    };
    tried.map_err(|Unsuitable { reason, source }| BackendError::Unsuitable {
        backend,
        reason,
        remedy: match backend {
            BackendName::Bind => "--image_provisioner_backend=overlay or copy",
            _ => "--image_provisioner_backend=copy",
        },
        source,
    })
}

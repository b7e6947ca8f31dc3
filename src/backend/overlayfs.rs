//! Overlayfs as the overlay and the bind backend mount it: layers as lower directories, with or without an upper one.
//!
//! Options chosen, and why:
//! - `lowerdir+` per layer, by descriptor: no option string, so neither its one-page limit nor its quoting;
//! - `userxattr` when the store keeps opaque marks in `user.` attributes, as it does without real root;
//! - `redirect_dir=nofollow`, `metacopy=off`: attributes of a layer must never point into another file or layer;
//! - `volatile`: unmounting would write the whole upper directory to disk first, to be deleted the next moment. No
//!   rootfs outlives a boot, so that nothing is lost; volumes are mounts of their own and are synced as ever.
//!
//! Overlayfs shows the attributes of the topmost directory, whoever made it. So a directory of the rootfs's own always
//! lies on top ([`make_top`]), with the attributes that the layers together mean.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use keelblock_actors::ports::LayerDir;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::error::BackendError;
use super::{implied, metadata, place, stack};
use crate::sys::mount::{DetachedMount, MountFlags as Attributes, NewFilesystem};

/// Lower directories that overlayfs stacks (fs/overlayfs/params.h, `OVL_MAX_STACK`).
pub(super) const LOWER_MAX: usize = 500;

/// Bytes of options that mount(2) takes: a page of the smallest kind, with its NUL.
const OPTIONS_BYTES_MAX: usize = 4095;

/// How layers are named to the kernel, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Dialect {
    /// `lowerdir+` and the others by descriptor (Linux 6.13).
    Descriptors,
    /// `lowerdir+` by path of a descriptor (Linux 6.7).
    Paths,
    /// All in one string (any Linux).
    Options,
}

/// The directory that lies above all layers, made by [`make_top`].
pub(super) enum Top {
    /// Takes what is written, with the help of a work directory.
    Upper {
        /// The directory.
        upper: OwnedFd,
        /// Overlayfs's own.
        work: OwnedFd,
    },
    /// One more lower directory: the mount cannot be written.
    Lower(OwnedFd),
}

impl Top {
    /// How many of the lower directories are layers at most.
    pub(super) fn layers_max(read_only: bool) -> usize {
        LOWER_MAX - usize::from(read_only)
    }

    fn lower(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Upper { .. } => None,
            Self::Lower(directory) => Some(directory.as_fd()),
        }
    }
}

/// The layers that a mount is to show.
///
/// # Errors
/// When overlayfs cannot stack so many, or not these.
pub(super) fn stackable(stack: &[LayerDir], read_only: bool) -> Result<Vec<&LayerDir>, BackendError> {
    let layers = stack::visible(stack)?;
    let limit = Top::layers_max(read_only);
    if layers.len() > limit {
        return Err(BackendError::TooManyLayers { layers: layers.len(), limit });
    }
    if layers.iter().any(|layer| layer.user_xattrs != layers[0].user_xattrs) {
        return Err(BackendError::MixedMarks);
    }
    Ok(layers)
}

/// Makes a directory to lie on top of these layers, topmost first, with the attributes of the root (see
/// [`stack::root_of`]) and of directories that the layers only imply.
pub(super) fn make_top(layers: &[&LayerDir], path: &Path) -> Result<OwnedFd, BackendError> {
    place::make_directory(path)?;
    let made = open(path, OFlags::RDONLY)?;
    implied::carry_up(layers, path)?;
    let root = open(&layers[stack::root_of(layers)?].path, OFlags::RDONLY)?;
    let copy = || {
        let stat = implied::stat_of(root.as_fd())?;
        metadata::copy_open(root.as_fd(), &stat, made.as_fd(), &mut metadata::Room::default())
    };
    copy().map_err(BackendError::io("give the attributes of the root to", path))?;
    Ok(made)
}

/// A directory of our own, as a descriptor.
pub(super) fn open(path: &Path, access: OFlags) -> Result<OwnedFd, BackendError> {
    stack::open_root(path, access).map_err(BackendError::io("open", path))
}

/// Mounts, in the dialect that the kernel understood last.
#[derive(Debug, Default)]
pub(super) struct Overlayfs {
    dialect: AtomicU8,
}

impl Overlayfs {
    pub(super) fn dialect(&self) -> Dialect {
        match self.dialect.load(Ordering::Relaxed) {
            0 => Dialect::Descriptors,
            1 => Dialect::Paths,
            _ => Dialect::Options,
        }
    }

    /// Speaks to the kernel as an older one wants it; for tests on a newer one.
    #[cfg(test)]
    pub(super) fn speaking(dialect: Dialect) -> Self {
        Self { dialect: AtomicU8::new(dialect as u8) }
    }

    /// Mounts these layers, topmost first, below this top at an existing directory.
    pub(super) fn mount(&self, layers: &[&LayerDir], top: &Top, target: &Path) -> Result<(), BackendError> {
        let mut dialect = self.dialect();
        loop {
            let tried = match dialect {
                Dialect::Options => mount_by_options(layers, top, target),
                by_keys => mount_by_keys(by_keys, layers, top).and_then(|mount| {
                    let attached = mount.attach(target);
                    attached.map_err(|error| Attempt::Failed(BackendError::io("mount at", target)(error)))
                }),
            };
            dialect = match tried {
                Ok(()) => {
                    self.dialect.store(dialect as u8, Ordering::Relaxed);
                    return Ok(());
                }
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::NotUnderstood) if dialect == Dialect::Descriptors => Dialect::Paths,
                Err(Attempt::NotUnderstood) => Dialect::Options,
            };
        }
    }
}

/// Mounts these layers and attaches the mount nowhere: to see whether it can be done. `None` on a kernel that only has
/// mount(2).
pub(super) fn mount_on_trial(layers: &[&LayerDir], top: &Top) -> Result<Option<DetachedMount>, BackendError> {
    for dialect in [Dialect::Descriptors, Dialect::Paths] {
        match mount_by_keys(dialect, layers, top) {
            Ok(mount) => return Ok(Some(mount)),
            Err(Attempt::NotUnderstood) => {}
            Err(Attempt::Failed(error)) => return Err(error),
        }
    }
    Ok(None)
}

/// Why a mount did not come about.
enum Attempt {
    /// The kernel does not know this dialect.
    NotUnderstood,
    /// It does, and refuses.
    Failed(BackendError),
}

fn path_of(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

fn open_layer(layer: &LayerDir) -> Result<OwnedFd, BackendError> {
    stack::open_root(&layer.path, OFlags::PATH).map_err(BackendError::io("open layer", &layer.path))
}

fn mount_by_keys(dialect: Dialect, layers: &[&LayerDir], top: &Top) -> Result<DetachedMount, Attempt> {
    let filesystem = match NewFilesystem::open("overlay") {
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
            return Err(Attempt::NotUnderstood);
        }
        filesystem => filesystem,
    };
    let refused = |filesystem: Option<&NewFilesystem>, source| {
        let complaint = filesystem.and_then(NewFilesystem::complaint);
        Attempt::Failed(BackendError::Overlay { layers: layers.len(), complaint, source })
    };
    let filesystem = filesystem.map_err(|error| refused(None, error))?;
    let directory = |key: &str, value: BorrowedFd<'_>| match dialect {
        Dialect::Descriptors => filesystem.descriptor(key, value),
        _ => filesystem.text(key, &path_of(value)),
    };
    let mut first = true;
    let mut add = |lower: BorrowedFd<'_>| match directory("lowerdir+", lower) {
        // The key, or its kind of value, is unknown: that shows at the first directory.
        Err(error) if first && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Err(Attempt::NotUnderstood)
        }
        Err(error) => Err(refused(Some(&filesystem), error)),
        Ok(()) => {
            first = false;
            Ok(())
        }
    };
    if let Some(lower) = top.lower() {
        add(lower)?;
    }
    // One descriptor at a time: the kernel keeps its own reference, and 500 open files are half of what a process
    // may usually have.
    for layer in layers {
        add(open_layer(layer).map_err(Attempt::Failed)?.as_fd())?;
    }
    let configure = || {
        filesystem.text("source", "overlay")?;
        if let Top::Upper { upper, work } = top {
            directory("upperdir", upper.as_fd())?;
            directory("workdir", work.as_fd())?;
            filesystem.flag("volatile")?;
        }
        filesystem.text("redirect_dir", "nofollow")?;
        filesystem.text("metacopy", "off")?;
        if layers[0].user_xattrs {
            filesystem.flag("userxattr")?;
        }
        let mount = filesystem.mount()?;
        if top.lower().is_some() {
            // Overlayfs sees to it by itself; so does mountinfo say it of the mount, too.
            mount.add_flags(Attributes { read_only: true, ..Attributes::default() })?;
        }
        Ok(mount)
    };
    configure().map_err(|error| refused(Some(&filesystem), error))
}

/// mount(2), with a path of some 17 bytes for each layer: room for about 220.
fn mount_by_options(layers: &[&LayerDir], top: &Top, target: &Path) -> Result<(), Attempt> {
    let opened: Result<Vec<OwnedFd>, _> = layers.iter().map(|layer| open_layer(layer)).collect();
    let opened = opened.map_err(Attempt::Failed)?;
    let lower: Vec<String> =
        top.lower().into_iter().chain(opened.iter().map(AsFd::as_fd)).map(path_of).collect();
    let mut options = format!("lowerdir={},redirect_dir=nofollow,metacopy=off", lower.join(":"));
    // `volatile` came with 5.10.
    let (flags, endings) = match top {
        Top::Lower(_) => (MountFlags::RDONLY, &[""][..]),
        Top::Upper { upper, work } => {
            options.push_str(&format!(
                ",upperdir={},workdir={}",
                path_of(upper.as_fd()),
                path_of(work.as_fd())
            ));
            (MountFlags::empty(), &[",volatile", ""][..])
        }
    };
    if layers[0].user_xattrs {
        options.push_str(",userxattr");
    }
    if options.len() > OPTIONS_BYTES_MAX {
        return Err(Attempt::Failed(BackendError::OptionsTooLong { layers: layers.len() }));
    }
    let with = |ending: &str| {
        let data = std::ffi::CString::new(format!("{options}{ending}")).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", target, "overlay", flags, Some(data.as_c_str()))
    };
    let mut mounted = Err(Errno::INVAL);
    for ending in endings {
        mounted = with(ending);
        if mounted != Err(Errno::INVAL) {
            break;
        }
    }
    mounted.map_err(|error| {
        Attempt::Failed(BackendError::Overlay { layers: layers.len(), complaint: None, source: error.into() })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keelblock_actors::container::RootfsId;
    use keelblock_actors::error::chain;
    use keelblock_actors::image::digest::{DiffId, Digest};
    use keelblock_actors::ports::{Backend, RootfsPlace};
    use keelblock_actors::stop::Stop;

    use super::*;
    use crate::backend::{BindBackend, OverlayBackend};

    fn stack(directory: &Path, layers: usize) -> Vec<LayerDir> {
        let layer = |number: usize| {
            let path = directory.join(format!("store/a-long-name-as-digests-are-{number:064}"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("which"), number.to_string()).unwrap();
            let diff_id = DiffId(Digest::of(&number.to_le_bytes()));
            LayerDir {
                diff_id,
                path,
                user_xattrs: false,
                whiteouts: false,
                implied: Arc::default(),
                hold: Arc::new(()),
            }
        };
        (0..layers).map(layer).collect()
    }

    #[test]
    fn older_kernels_are_spoken_to_as_they_understand() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts need root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let place = RootfsPlace {
            container: "c1".parse().unwrap(),
            id: RootfsId(0),
            rootfs: directory.path().join("rootfs"),
            scratch: directory.path().join("scratch"),
        };
        for (dialect, layers) in [(Dialect::Descriptors, 300), (Dialect::Paths, 300), (Dialect::Options, 150)]
        {
            let stack = stack(directory.path(), layers);
            let overlay = OverlayBackend::speaking(dialect);
            let bind = BindBackend::speaking(dialect);
            for (backend, overlayfs) in
                [(&overlay as &dyn Backend, &overlay.overlayfs), (&bind, &bind.overlayfs)]
            {
                let name = backend.name();
                let rootfs = backend.mount(&stack, &place, &Stop::default()).unwrap();
                assert_eq!(overlayfs.dialect(), dialect, "{name}: no other was needed");
                let top = std::fs::read_to_string(place.rootfs.join("which")).unwrap();
                assert_eq!(top, (layers - 1).to_string(), "{name} by {dialect:?}");
                let written = std::fs::write(place.rootfs.join("new"), "");
                assert_eq!(written.is_err(), rootfs.read_only, "{name} by {dialect:?}");
                assert!(backend.unmount(&place).unwrap());
            }
        }
        let long = stack(directory.path(), 300);
        let (overlay, bind) =
            (OverlayBackend::speaking(Dialect::Options), BindBackend::speaking(Dialect::Options));
        for backend in [&overlay as &dyn Backend, &bind] {
            let error = backend.mount(&long, &place, &Stop::default()).unwrap_err();
            let text = chain(&error);
            assert!(text.contains("300 layers exceed one page") && text.contains("6.7"), "{text}");
            assert!(!place.rootfs.exists() && !place.scratch.exists());
        }
    }
}

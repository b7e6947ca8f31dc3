//! The overlay backend: the layers, stacked by overlayfs below a writable directory of the rootfs's own.
//!
//! Options chosen, and why:
//! - `lowerdir+` per layer, by descriptor: no option string, so neither its one-page limit nor its quoting;
//! - `userxattr` when the store keeps opaque marks in `user.` attributes, as it does without real root;
//! - `redirect_dir=nofollow`, `metacopy=off`: attributes of a layer must never point into another file or layer;
//! - `volatile`: unmounting would write the whole upper directory to disk first, to be deleted the next moment. No
//!   rootfs outlives a boot, so that nothing is lost; volumes are mounts of their own and are synced as ever.
//!
//! The root of the mount shows the attributes of the upper directory, which therefore gets those of the root of the
//! topmost layer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use keelblock_actors::container::BackendName;
use keelblock_actors::error::MountError;
use keelblock_actors::ports::{Backend, LayerDir, Rootfs, RootfsPlace};
use keelblock_actors::stop::Stop;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::error::BackendError;
use super::{implied, metadata, place, stack};
use crate::gc::Gc;
use crate::sys::mount::{DetachedMount, NewFilesystem};

/// Layers that overlayfs stacks (fs/overlayfs/params.h, `OVL_MAX_STACK`).
pub const LAYERS_MAX: usize = 500;

/// Bytes of options that mount(2) takes: a page of the smallest kind, with its NUL.
const OPTIONS_BYTES_MAX: usize = 4095;

/// See the module.
#[derive(Debug, Default)]
pub struct OverlayBackend {
    /// The [`Dialect`] the kernel understood last.
    dialect: AtomicU8,
    gc: Gc,
}

/// How layers are named to the kernel, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Dialect {
    /// `lowerdir+` and the others by descriptor (Linux 6.13).
    Descriptors,
    /// `lowerdir+` by path of a descriptor (Linux 6.7).
    Paths,
    /// All in one string (any Linux).
    Options,
}

impl OverlayBackend {
    /// One that has what it takes away collected there.
    pub fn new(gc: Gc) -> Self {
        Self { gc, ..Self::default() }
    }

    fn dialect(&self) -> Dialect {
        match self.dialect.load(Ordering::Relaxed) {
            0 => Dialect::Descriptors,
            1 => Dialect::Paths,
            _ => Dialect::Options,
        }
    }

    /// Speaks to the kernel as an older one wants it; for tests on a newer one.
    #[cfg(test)]
    fn speaking(dialect: Dialect) -> Self {
        Self { dialect: AtomicU8::new(dialect as u8), ..Self::default() }
    }

    fn assemble(&self, layers: &[&LayerDir], place: &RootfsPlace) -> Result<(), BackendError> {
        let writable = Writable::make(layers, &place.scratch)?;
        let target = &place.rootfs;
        let mut dialect = self.dialect();
        loop {
            let tried = match dialect {
                Dialect::Options => mount_by_options(layers, &writable, target),
                by_keys => mount_by_keys(by_keys, layers, &writable).and_then(|mount| {
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

impl Backend for OverlayBackend {
    fn name(&self) -> BackendName {
        BackendName::Overlay
    }

    fn mount(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError> {
        if stack.is_empty() {
            return Err(MountError::NoLayers);
        }
        let mount = || {
            let layers = stack::visible(stack)?;
            if layers.len() > LAYERS_MAX {
                return Err(BackendError::TooManyLayers { layers: layers.len(), limit: LAYERS_MAX });
            }
            if layers.iter().any(|layer| layer.user_xattrs != layers[0].user_xattrs) {
                return Err(BackendError::MixedMarks);
            }
            if stop.is_raised() {
                return Err(BackendError::Stopped);
            }
            place::make(place)?;
            self.assemble(&layers, place).map_err(|error| place::undo(place, &self.gc, error))
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

/// The directories that take what is written.
struct Writable {
    upper: OwnedFd,
    work: OwnedFd,
}

impl Writable {
    /// Makes them, the upper one with the attributes of the root (see [`stack::root_of`]).
    fn make(layers: &[&LayerDir], scratch: &Path) -> Result<Self, BackendError> {
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        place::make_directory(&upper)?;
        place::make_directory(&work)?;
        let open =
            |path: &Path, access| stack::open_root(path, access).map_err(BackendError::io("open", path));
        let made = Self { upper: open(&upper, OFlags::RDONLY)?, work: open(&work, OFlags::PATH)? };
        implied::carry_up(layers, &upper)?;
        let top = open(&layers[stack::root_of(layers)?].path, OFlags::RDONLY)?;
        let copy = || {
            let stat = implied::stat_of(top.as_fd())?;
            metadata::copy_open(top.as_fd(), &stat, made.upper.as_fd(), &mut metadata::Room::default())
        };
        copy().map_err(BackendError::io("give the attributes of the root to", &upper))?;
        Ok(made)
    }
}

/// Mounts one layer with its writable directories made in `scratch`, and attaches the mount nowhere: to see whether
/// it can be done. `None` on a kernel that only has mount(2).
pub(super) fn mount_on_trial(
    layer: &LayerDir,
    scratch: &Path,
) -> Result<Option<DetachedMount>, BackendError> {
    let layers = [layer];
    let writable = Writable::make(&layers, scratch)?;
    for dialect in [Dialect::Descriptors, Dialect::Paths] {
        match mount_by_keys(dialect, &layers, &writable) {
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

fn mount_by_keys(
    dialect: Dialect,
    layers: &[&LayerDir],
    writable: &Writable,
) -> Result<DetachedMount, Attempt> {
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
    // One descriptor at a time: the kernel keeps its own reference, and 500 open files are half of what a process
    // may usually have.
    for (index, layer) in layers.iter().enumerate() {
        let lower = open_layer(layer).map_err(Attempt::Failed)?;
        match directory("lowerdir+", lower.as_fd()) {
            Ok(()) => {}
            // The key, or its kind of value, is unknown: that shows at the first layer.
            Err(error) if index == 0 && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                return Err(Attempt::NotUnderstood);
            }
            Err(error) => return Err(refused(Some(&filesystem), error)),
        }
    }
    let configure = || {
        filesystem.text("source", "overlay")?;
        directory("upperdir", writable.upper.as_fd())?;
        directory("workdir", writable.work.as_fd())?;
        filesystem.text("redirect_dir", "nofollow")?;
        filesystem.text("metacopy", "off")?;
        filesystem.flag("volatile")?;
        if layers[0].user_xattrs {
            filesystem.flag("userxattr")?;
        }
        filesystem.mount()
    };
    configure().map_err(|error| refused(Some(&filesystem), error))
}

/// mount(2), with a path of some 17 bytes for each layer: room for about 220.
fn mount_by_options(layers: &[&LayerDir], writable: &Writable, target: &Path) -> Result<(), Attempt> {
    let opened: Result<Vec<OwnedFd>, _> = layers.iter().map(|layer| open_layer(layer)).collect();
    let opened = opened.map_err(Attempt::Failed)?;
    let lower: Vec<String> = opened.iter().map(|layer| path_of(layer.as_fd())).collect();
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off",
        lower.join(":"),
        path_of(writable.upper.as_fd()),
        path_of(writable.work.as_fd())
    );
    if layers[0].user_xattrs {
        options.push_str(",userxattr");
    }
    if options.len() > OPTIONS_BYTES_MAX {
        return Err(Attempt::Failed(BackendError::OptionsTooLong { layers: layers.len() }));
    }
    let with = |more: &str| {
        let data = std::ffi::CString::new(format!("{options}{more}")).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), Some(data.as_c_str()))
    };
    // `volatile` came with 5.10.
    let mounted =
        with(",volatile").or_else(|error| if error == Errno::INVAL { with("") } else { Err(error) });
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

    use super::*;

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
            let backend = OverlayBackend::speaking(dialect);
            let stack = stack(directory.path(), layers);
            backend.mount(&stack, &place, &Stop::default()).unwrap();
            assert_eq!(backend.dialect(), dialect, "no other was needed");
            let top = std::fs::read_to_string(place.rootfs.join("which")).unwrap();
            assert_eq!(top, (layers - 1).to_string(), "{dialect:?}");
            std::fs::write(place.rootfs.join("new"), "").unwrap();
            assert!(backend.unmount(&place).unwrap());
        }
        let error = OverlayBackend::speaking(Dialect::Options)
            .mount(&stack(directory.path(), 300), &place, &Stop::default())
            .unwrap_err();
        let text = chain(&error);
        assert!(text.contains("300 layers exceed one page") && text.contains("6.7"), "{text}");
        assert!(!place.rootfs.exists() && !place.scratch.exists());
    }
}

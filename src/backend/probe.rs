//! Whether overlayfs and bind mounts work here: tried, not guessed from the names of filesystems.
//!
//! Mesos asks statfs for its magic number and knows a list of filesystems that overlayfs cannot sit on. Such lists
//! age (btrfs has long been fine); so a mount is made, of the store's directory below one in the work directory, and
//! written to. It is attached nowhere: whatever moment the process dies, no mount is left. Trying takes about a
//! millisecond, so that success is remembered, in a file, until the next boot; failure is not: what was missing may
//! be there the next time.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::ports::LayerDir;
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, XattrFlags, fsetxattr, mkdirat, mknodat, openat};

use super::error::BackendError;
use super::{overlay, overlayfs, place, stack};
use crate::sys::mount::{DetachedMount, MountFlags};
use crate::sys::remove::remove_tree;
use crate::sys::{process_identity, record_lock};

/// Why a backend does not work here: in words, and what the kernel said.
#[derive(Debug)]
pub(super) struct Unsuitable {
    pub(super) reason: String,
    pub(super) source: Option<io::Error>,
}

impl Unsuitable {
    fn because<E: Into<io::Error>>(reason: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self { reason: reason.into(), source: Some(source.into()) }
    }
}

/// Whether overlay rootfses can be made in `provisioner_dir` of layers in `store_dir`.
///
/// `user_xattrs`: without real root, where overlayfs keeps its marks in `user.` attributes.
pub(super) fn overlay(provisioner_dir: &Path, store_dir: &Path, user_xattrs: bool) -> Result<(), Unsuitable> {
    let store = existing(store_dir);
    let signature = signature(provisioner_dir, store, user_xattrs)?;
    let path = provisioner_dir.join("overlay.probe");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file =
        options.open(&path).map_err(Unsuitable::because(format!("cannot write {}", path.display())))?;
    if read(&mut file) == signature {
        return Ok(());
    }
    // One at a time: the others find its result.
    record_lock::lock(&file).map_err(Unsuitable::because(format!("cannot lock {}", path.display())))?;
    if read(&mut file) == signature {
        return Ok(());
    }
    let directory = provisioner_dir.join("overlay.trial");
    let _ = remove_tree(&directory);
    let tried = try_overlay(&directory, store, user_xattrs);
    let _ = remove_tree(&directory);
    tried?;
    // Not written, it is tried again the next time: no harm.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(signature.as_bytes()));
    Ok(())
}

/// What the result depends on, as a line; complete only with its newline.
fn signature(provisioner_dir: &Path, store: &Path, user_xattrs: bool) -> Result<String, Unsuitable> {
    let device = |path: &Path| {
        let metadata = std::fs::metadata(path);
        metadata
            .map(|metadata| metadata.dev())
            .map_err(Unsuitable::because(format!("cannot read {}", path.display())))
    };
    let boot_id =
        process_identity::boot_id().map_err(Unsuitable::because("cannot read the boot ID from /proc"))?;
    let user = rustix::process::geteuid().as_raw();
    Ok(format!(
        "overlay works: boot {boot_id} work {} store {} user {user} user_xattrs {user_xattrs}\n",
        device(provisioner_dir)?,
        device(store)?
    ))
}

fn read(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.take(512).read_to_string(&mut text));
    text
}

/// The path, or what exists of it: a store that is yet to be made will be on the same filesystem.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn try_overlay(directory: &Path, store: &Path, user_xattrs: bool) -> Result<(), Unsuitable> {
    let refused = |error: BackendError| match error {
        BackendError::Overlay { complaint, source, .. } => Unsuitable {
            reason: match complaint {
                Some(complaint) => format!("overlayfs cannot be mounted ({complaint})"),
                None => "overlayfs cannot be mounted".to_owned(),
            },
            source: Some(source),
        },
        BackendError::Io { act, path, source } => {
            Unsuitable { reason: format!("cannot {act} {}", path.display()), source: Some(source) }
        }
        other => Unsuitable { reason: other.to_string(), source: None },
    };
    place::make_directory(directory).map_err(refused)?;
    let layer = LayerDir {
        diff_id: DiffId(Digest::of(b"")),
        path: store.to_owned(),
        user_xattrs,
        whiteouts: false,
        implied: Arc::default(),
        hold: Arc::new(()),
    };
    let top = overlay::make_writable(&[&layer], directory).map_err(refused)?;
    let mount = overlayfs::mount_on_trial(&[&layer], &top).map_err(refused)?;
    let on = |path: &Path| format!("on the filesystem of {}", path.display());
    for path in [directory, store] {
        if !lists_types(path).map_err(Unsuitable::because(format!("cannot read {}", path.display())))? {
            let reason = format!("directories {} do not tell the types of entries (d_type)", on(path));
            return Err(Unsuitable { reason, source: None });
        }
    }
    let upper = directory.join("upper");
    let mark = if user_xattrs { c"user.overlay.trial" } else { c"trusted.overlay.trial" };
    stack::open_root(&upper, OFlags::RDONLY)
        .and_then(|upper| fsetxattr(&upper, mark, b"y", XattrFlags::empty()))
        .map_err(Unsuitable::because(format!(
            "attributes {} cannot be set {}",
            mark.to_string_lossy(),
            on(directory)
        )))?;
    mknodat(CWD, upper.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(Unsuitable::because(format!("whiteouts cannot be made {}", on(directory))))?;
    let Some(mount) = mount else {
        // A kernel of before 5.2: the mount itself must wait for the first rootfs.
        return Ok(());
    };
    mkdirat(mount.as_fd(), "written", Mode::RWXU)
        .map_err(Unsuitable::because("an overlay of these directories cannot be written to"))
}

/// Whether a directory tells what its entries are; an empty one is believed to.
fn lists_types(path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        // Some filesystems know these two and no others.
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(entry.file_type() != FileType::Unknown);
        }
    }
    Ok(true)
}

/// Whether a directory of the store can be bound read-only. Two system calls.
pub(super) fn bind(store_dir: &Path) -> Result<(), Unsuitable> {
    let store: PathBuf = existing(store_dir).to_owned();
    let read_only = MountFlags { read_only: true, ..MountFlags::default() };
    DetachedMount::clone_of(&store)
        .and_then(|mount| mount.add_flags(read_only))
        .map_err(Unsuitable::because(format!("{} cannot be bind-mounted read-only", store.display())))
}

//! Layers that are images, shown as directories: each is mounted once, below `mounts/` of the store, for all containers of
//! all processes on it, and taken down with its last user.
//!
//! A user is a [`Hold`]; a process has a byte of one lock file for each layer that it holds, shared. So a killed process holds
//! nothing, and what it left mounted is found and used by the next, or taken down by [`Mounts::hide_idle`]. Whoever takes a
//! mount down has the byte for itself meanwhile; whoever wants it then waits, and mounts it again. Root filesystems are
//! mounts of their own (overlayfs and bind keep the image, not the mount here), so that nothing here can pull a layer out
//! from under a container: at worst it is mounted a second time, and shares no memory with the first.
//!
//! In a mount namespace of its own a process sees none of the others' mounts, and makes its own.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::DiffId;
use keelblock_actors::ports::Hold;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use slog::{Logger, debug, warn};

use super::images::names;
use super::layout::Layout;
use crate::sys::lock::{LockKind, open_lock_file};
use crate::sys::loop_device;
use crate::sys::mount::{DetachedMount, NewFilesystem, is_mount_root, unmount_all};
use crate::sys::range_lock::{self, Range};

/// Longest source that the kernel takes as a mount option (fs/fsopen.c: 256 with its NUL).
const SOURCE_BYTES_MAX: usize = 255;

/// The mounted layers of a store. See the module.
pub(super) struct Mounts {
    layout: Layout,
    /// Of this process: how many holds there are on a layer. Mounting and unmounting happens under it.
    holds: Mutex<HashMap<DiffId, Count>>,
    /// The lock file, once it was needed.
    users: OnceLock<File>,
    log: Logger,
}

#[derive(Default)]
struct Count {
    holds: usize,
    /// One of them wants it to stay.
    kept: bool,
}

impl Mounts {
    pub(super) fn new(layout: Layout, log: Logger) -> Self {
        Self { layout, holds: Mutex::default(), users: OnceLock::new(), log }
    }

    /// Shows a layer whose image is at `image`, and of which this is wanted first, offset and bytes; where.
    pub(super) fn show(
        self: &Arc<Self>,
        diff: &DiffId,
        image: &Path,
        ahead: &[(u64, u64)],
    ) -> Result<(PathBuf, Arc<dyn Hold>), StoreError> {
        let path = self.layout.mount(diff);
        let failed = |source| StoreError::Io { act: "mount a layer at", path: path.clone(), source };
        let users = self.users()?;
        let mut holds = self.holds();
        let first = !holds.contains_key(diff);
        let mounted = || {
            if first {
                // Waits while another takes it down.
                range_lock::lock(users, user(diff), LockKind::Shared)?;
            }
            self.mount_unless_there(diff, (image, ahead), &path, users)
        };
        if let Err(error) = mounted() {
            if first {
                self.leave(diff, users);
            }
            return Err(failed(error));
        }
        holds.entry(diff.clone()).or_default().holds += 1;
        let held = Held { mounts: Arc::clone(self), diff: diff.clone(), keep: AtomicBool::new(false) };
        Ok((path, Arc::new(held)))
    }

    /// Takes a layer down whoever uses it, because its directory is about to go: those that use it keep the image.
    pub(super) fn retire(&self, diff: &DiffId) -> Result<(), StoreError> {
        let path = self.layout.mount(diff);
        let _holds = self.holds();
        take_down(&path).map_err(|source| StoreError::Io { act: "unmount", path, source })
    }

    /// Takes down what nobody holds and `used` does not name; asks it only if something is mounted.
    pub(super) fn hide_idle(
        &self,
        used: impl FnOnce() -> Result<HashSet<DiffId>, StoreError>,
    ) -> Result<(), StoreError> {
        let mut shown = Vec::new();
        for name in names(&self.layout.mounts())? {
            let diff = name.to_str().and_then(|name| name.replacen('-', ":", 1).parse::<DiffId>().ok());
            shown.extend(diff);
        }
        if shown.is_empty() {
            return Ok(());
        }
        let used = used()?;
        let users = self.users()?;
        let holds = self.holds();
        for diff in shown.iter().filter(|diff| !used.contains(diff) && !holds.contains_key(diff)) {
            let path = self.layout.mount(diff);
            self.hide(diff, &path, users).map_err(|source| StoreError::Io {
                act: "unmount",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Takes a layer down that this process does not hold, unless another does.
    fn hide(&self, diff: &DiffId, path: &Path, users: &File) -> io::Result<()> {
        if !range_lock::try_lock(users, user(diff), LockKind::Exclusive)? {
            return Ok(());
        }
        let taken_down = take_down(path);
        range_lock::unlock(users, user(diff))?;
        debug!(self.log, "a layer is shown no more"; "layer" => %diff);
        taken_down
    }

    fn mount_unless_there(
        &self,
        diff: &DiffId,
        (image, ahead): (&Path, &[(u64, u64)]),
        path: &Path,
        users: &File,
    ) -> io::Result<()> {
        if is_mount_root(path)? {
            return Ok(());
        }
        // One at a time: the others find its mount.
        range_lock::lock(users, mounting(diff), LockKind::Exclusive)?;
        let mount = || {
            if is_mount_root(path)? {
                return Ok(());
            }
            std::fs::create_dir_all(path)?;
            let mount = mount_image(image)?;
            read_ahead(image, ahead);
            mount.attach(path)
        };
        let mounted = mount();
        range_lock::unlock(users, mounting(diff))?;
        mounted
    }

    /// Gives back this process's share of a layer.
    fn leave(&self, diff: &DiffId, users: &File) {
        if let Err(error) = range_lock::unlock(users, user(diff)) {
            warn!(self.log, "a lock on a layer cannot be given back"; "layer" => %diff, "error" => %error);
        }
    }

    fn let_go(&self, diff: &DiffId, keep: bool) {
        let mut holds = self.holds();
        let Some(count) = holds.get_mut(diff) else { return };
        count.kept |= keep;
        count.holds -= 1;
        if count.holds > 0 {
            return;
        }
        let kept = count.kept;
        holds.remove(diff);
        let Some(users) = self.users.get() else { return };
        if kept {
            return self.leave(diff, users);
        }
        let path = self.layout.mount(diff);
        if let Err(error) = self.hide(diff, &path, users) {
            warn!(self.log, "a layer that nobody uses cannot be unmounted"; "path" => %path.display(), "error" => %error);
        }
        // Where another uses it, too, what is left is our share.
        self.leave(diff, users);
    }

    fn holds(&self) -> MutexGuard<'_, HashMap<DiffId, Count>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> Result<&File, StoreError> {
        if let Some(users) = self.users.get() {
            return Ok(users);
        }
        let path = self.layout.mounts_lock();
        let file = open_lock_file(&path).map_err(|source| StoreError::Io { act: "open", path, source })?;
        Ok(self.users.get_or_init(|| file))
    }
}

/// One user's share of a mount.
struct Held {
    mounts: Arc<Mounts>,
    diff: DiffId,
    keep: AtomicBool,
}

impl Hold for Held {
    fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.mounts.let_go(&self.diff, self.keep.load(Ordering::Relaxed));
    }
}

/// The byte that users of a layer share. Two layers with one byte, of some 10^18, would be taken down together at most.
fn user(diff: &DiffId) -> Range {
    Range::byte(place(diff) * 2)
}

/// The byte of who is mounting a layer.
fn mounting(diff: &DiffId) -> Range {
    Range::byte(place(diff) * 2 + 1)
}

fn place(diff: &DiffId) -> i64 {
    let hex = diff.0.hex();
    // 60 bits: twice as much is still a place in a file.
    i64::from_str_radix(&hex[..15], 16).unwrap_or(0)
}

/// Unmounts a layer and removes the directory it was mounted on. To be called by whoever excludes users or does not mind them.
fn take_down(path: &Path) -> io::Result<()> {
    unmount_all(path)?;
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Mounts an image, attached nowhere: the file itself (Linux 6.12), or a loop device of it.
///
/// # Errors
/// What the kernel says; of a file that is no EROFS image `EINVAL` or `EUCLEAN`.
pub(super) fn mount_image(image: &Path) -> io::Result<DetachedMount> {
    match mount_file(image) {
        // No file: a kernel that mounts devices only. EINVAL: a file of a kind that cannot be mounted, as on tmpfs.
        Err(error) if is(&error, &[Errno::NOTBLK, Errno::INVAL]) => {
            mount_device(image).map_err(|by_device| match by_device.raw_os_error() {
                // It is no better there.
                Some(errno) if Some(errno) == error.raw_os_error() => error,
                _ => by_device,
            })
        }
        mounted => mounted,
    }
}

/// Bytes that are read ahead at once. 128 KiB: the kernel's own measure. What a container asks for meanwhile waits for one
/// such piece, not for all of them.
const AHEAD_PIECE_BYTES: u64 = 128 << 10;
/// Bytes that are read ahead while a mount is made: more than that is for a thread. 512 KiB: queued in the time a thread
/// takes to start.
const AHEAD_INLINE_BYTES: u64 = 512 << 10;

/// Has the kernel read names and inodes of an image, which it would fetch a block at a time when somebody looks for them. A
/// hint: nothing depends on it.
fn read_ahead(image: &Path, ahead: &[(u64, u64)]) {
    let Ok(file) = File::open(image) else { return };
    if ahead.iter().map(|(_, bytes)| bytes).sum::<u64>() <= AHEAD_INLINE_BYTES {
        for (offset, bytes) in ahead {
            if let Some(bytes) = NonZeroU64::new(*bytes) {
                let _ = fadvise(&file, *offset, Some(bytes), Advice::WillNeed);
            }
        }
        return;
    }
    let ahead = ahead.to_vec();
    // Nobody waits for it, and it ends with the process.
    let _ = std::thread::Builder::new().name("keelblock-ahead".to_owned()).spawn(move || {
        for (offset, bytes) in ahead {
            let end = offset.saturating_add(bytes);
            let mut at = offset;
            while at < end {
                let piece = AHEAD_PIECE_BYTES.min(end - at);
                let _ = fadvise(&file, at, NonZeroU64::new(piece), Advice::WillNeed);
                at += piece;
                // Waits until the piece is here.
                if !matches!(file.read_at(&mut [0], at - 1), Ok(1)) {
                    return;
                }
            }
        }
    });
}

fn mount_file(image: &Path) -> io::Result<DetachedMount> {
    if image.as_os_str().len() <= SOURCE_BYTES_MAX
        && let Some(source) = image.to_str()
    {
        return mount_source(source);
    }
    let file = File::open(image)?;
    mount_source(&format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn mount_device(image: &Path) -> io::Result<DetachedMount> {
    let (_device, path) = loop_device::attach(File::open(image)?)?;
    mount_source(&path.to_string_lossy())
}

fn mount_source(source: &str) -> io::Result<DetachedMount> {
    let filesystem = NewFilesystem::open("erofs")?;
    filesystem.text("source", source)?;
    filesystem.flag("ro")?;
    filesystem.mount()
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errnos.contains(&errno))
}

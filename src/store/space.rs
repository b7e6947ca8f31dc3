//! Disk space set aside for what is on its way, so that nothing is begun that cannot end, and no two pulls count on the
//! same bytes.
//!
//! The ledger is a directory of locked files, shared by all processes on the store: each says what its owner will still
//! write, layer by layer, and counts for nothing once its owner is dead. Whoever wants to add to that does so under the
//! lock of the ledger, and only if what the filesystem has free covers all that is outstanding then, and
//! `disk_free_min` besides. There are two kinds of entries:
//!
//! - a *plan* ([`Plan`]): the layers of an image that is being pulled, from before the first byte until it is recorded;
//! - an *outlay* ([`Outlay`]): one layer that is being unpacked. What it writes moves from outstanding to spent, and what
//!   it needs becomes known on the way: more is reserved, or the layer fails.
//!
//! A layer counts once, however many plans it is in, and not at all once it is in the store; its outlay, of which the
//! claim on the layer lets there be only one, counts in place of its plans.
//!
//! **What a layer needs.** Before its bytes come only its compressed size is known, so an estimate is reserved:
//! `layer_expansion_estimate` percent of that, or the size itself for a plain tar. A zstd frame may say its content's
//! size; each tar entry says its own before its content comes, so a large file that cannot fit is refused at its first
//! byte. (What gzip says at its end is modulo 4 GiB and comes too late.) What is counted as written is what filesystems
//! take: content in blocks of 4 KiB, and something for each inode.
//!
//! Outstanding is told in steps of some MiB, late: until then bytes count twice, which errs on the safe side. So does xfs,
//! which takes blocks ahead of what is written to a growing file and gives them back when it ends: a layer that outgrows
//! its estimate on a nearly full xfs may be refused though it would have fitted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keelblock_actors::error::{NoRoom, StoreError, UnpackError};
use keelblock_actors::image::plan::{Compression, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::stop::Stop;
use serde::{Deserialize, Serialize};
use slog::{Logger, warn};

use super::form::Form;
use super::images::names;
use super::layout::{Layout, fresh_name};
use super::prune::diff_of_blob;
use crate::gc;
use crate::limits::{Limits, stays_free};
use crate::sys::lock::{self, LockKind};
use crate::sys::space::{self, Room};

/// Bytes written until the ledger is told. 4 MiB: some hundred times a second at the speed of a fast disk, and what may
/// count twice is 4 MiB a layer.
const STEP_BYTES: u64 = 4 << 20;
/// An image's checksums take this part of its size.
const SUM_SHARE: u64 = 1024;
/// What is reserved at once beyond what is needed, when an estimate was too low: an eighth of it, or 16 MiB.
const GROWTH_BYTES_MIN: u64 = 16 << 20;
/// Blocks of a filesystem.
const BLOCK_BYTES: u64 = 4096;
/// Bytes an inode takes. 512: ext4 256 from a table made beforehand, xfs 512, btrfs about as much in its trees.
const INODE_BYTES: u64 = 512;
/// What every layer takes: its directory, its record, the blocks of their names.
const LAYER_BYTES: u64 = 16 << 10;
/// What metadata takes besides, as a part of the content: so that a size that was known needs no correction.
const METADATA_SHARE: u64 = 64;
/// Files of every layer: its directory, its record, its image and that one's checksums, the mark that it is unsettled.
const LAYER_FILES: u64 = 5;
/// Files of a layer that only its size is known of: one for so many bytes. Debian has one for 17 KiB, `node_modules` one
/// for 8; that more are needed shows soon enough.
const BYTES_PER_FILE: u64 = 32 << 10;
/// How near a filesystem that counts late must be to refusing before it is synced to learn the truth. 4 GiB: more than
/// it has in memory of what was told as written.
const LATE_BYTES: u64 = 4 << 30;

/// How much of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Need {
    pub(super) bytes: u64,
    /// Inodes.
    pub(super) files: u64,
}

impl Need {
    /// Of a file with so many bytes of content, in a tree.
    pub(super) fn file(content_bytes: u64) -> Self {
        let blocks = content_bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        Self { bytes: blocks.saturating_add(INODE_BYTES), files: 1 }
    }

    /// Of a directory.
    pub(super) fn directory() -> Self {
        Self { bytes: BLOCK_BYTES + INODE_BYTES, files: 1 }
    }

    /// So many bytes of a file that is there.
    pub(super) fn content(bytes: u64) -> Self {
        Self { bytes, files: 0 }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), files: self.files.saturating_add(other.files) }
    }

    fn minus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), files: self.files.saturating_sub(other.files) }
    }

    fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }

    fn covers(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.files >= other.files
    }
}

/// One file of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Page {
    /// Whether this is an outlay.
    bringing: bool,
    entries: Vec<(LayerKey, Need)>,
}

/// The ledger of a store. See the module.
pub(super) struct Ledger {
    layout: Layout,
    free_min: Option<u64>,
    estimate_percent: u64,
    /// How many times its size a blob may become.
    expansion_max: u64,
    log: Logger,
}

/// Room for layers on their way, until it drops.
pub(super) struct Plan(#[expect(dead_code, reason = "held, not read")] Locked);

/// A file of the ledger that is ours.
struct Locked {
    path: PathBuf,
    file: File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Unlocked by the close that follows: what could not be removed counts for nothing.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Ledger {
    pub(super) fn new(layout: &Layout, limits: &Limits, log: &Logger) -> Self {
        Self {
            layout: layout.clone(),
            free_min: limits.disk_free_min,
            estimate_percent: limits.layer_expansion_estimate,
            expansion_max: limits.layer_expansion_max,
            log: log.clone(),
        }
    }

    /// Sets room aside for those of these layers that are not in the store.
    pub(super) fn plan(&self, layers: &[LayerSpec]) -> Result<Option<Plan>, StoreError> {
        let mut entries = Vec::new();
        for layer in layers {
            if !self.is_here(&layer.key)? {
                // In which form it will be kept is known when it is begun: an image takes the fewest files.
                let need = self.need(layer, layer.blob.compression, Form::Erofs);
                entries.push((layer.key.clone(), need));
            }
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let page = Page { bringing: false, entries };
        Ok(Some(Plan(self.until_collected(&Stop::default(), || self.add(&page))?)))
    }

    /// Begins a layer: room for it is set aside, unless a plan has done that.
    pub(super) fn outlay(
        self: &Arc<Self>,
        layer: &LayerSpec,
        form: Form,
        stop: &Stop,
    ) -> Result<Outlay, StoreError> {
        let need = self.need(layer, layer.blob.compression, form);
        let page = Page { bringing: true, entries: vec![(layer.key.clone(), need)] };
        let locked = self.until_collected(stop, || self.add(&page))?;
        let state = Mutex::new(State { reserved: need, ..State::default() });
        let (ledger, layer, stop) = (Arc::clone(self), layer.clone(), stop.clone());
        Ok(Outlay { ledger, layer, form, locked, state, stop })
    }

    /// What a layer may need, when it is compressed like this and kept in this form.
    fn need(&self, layer: &LayerSpec, compression: Option<Compression>, form: Form) -> Need {
        let member = match &layer.source {
            LayerSource::Archive { size, .. } => Some(*size),
            _ => None,
        };
        let size = layer.blob.size.or(member).unwrap_or(0);
        let bytes = match compression {
            // Its first bytes will tell: until then as it is, which is the least.
            None | Some(Compression::None) => size,
            Some(Compression::Gzip | Compression::Zstd | Compression::Bzip2 | Compression::Xz) => {
                u64::try_from(u128::from(size) * u128::from(self.estimate_percent) / 100).unwrap_or(u64::MAX)
            }
        };
        let files = match form {
            Form::Tree => bytes / BYTES_PER_FILE,
            Form::Erofs => 0,
        };
        let besides = bytes / METADATA_SHARE + LAYER_BYTES;
        Need { bytes: bytes.saturating_add(besides), files: files + LAYER_FILES }
    }

    fn is_here(&self, key: &LayerKey) -> Result<bool, StoreError> {
        let diff = match key {
            LayerKey::Diff(diff) | LayerKey::Aci(diff) => diff.clone(),
            LayerKey::Blob(blob) => match diff_of_blob(&self.layout, blob)? {
                Some(diff) => diff,
                None => return Ok(false),
            },
        };
        Ok(self.layout.layer_record(&diff).symlink_metadata().is_ok())
    }

    /// Does it; if there is no room, once more after what was moved away is gone.
    fn until_collected<T>(
        &self,
        stop: &Stop,
        mut act: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match act() {
            Err(StoreError::NoRoom(_)) if !names(&self.layout.gc())?.is_empty() => {
                gc::sweep(&self.layout.gc(), stop);
                act()
            }
            done => done,
        }
    }

    /// The lock of the ledger, held until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.layout.space();
        let open = || match File::open(&path) {
            // A store of before there were ledgers.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
                made.or_else(|error| if path.is_dir() { Ok(()) } else { Err(error) })?;
                File::open(&path)
            }
            opened => opened,
        };
        let locked = open().and_then(|dir| lock::lock(&dir, LockKind::Exclusive).map(|()| dir));
        locked.map_err(|source| StoreError::Io { act: "lock", path: path.clone(), source })
    }

    /// Adds a page, if there is room.
    fn add(&self, page: &Page) -> Result<Locked, StoreError> {
        let dir = self.lock()?;
        let pages = self.pages()?;
        // What others have planned already, or what is less than was planned, needs no more room.
        let now = self.outstanding(pages.iter().map(|(_, page)| page))?;
        if !now.covers(self.outstanding(pages.iter().map(|(_, page)| page).chain([page]))?) {
            self.admit(&dir, page, None)?;
        }
        let path = self.layout.space().join(fresh_name());
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let made = made.map(|file| Locked { path: path.clone(), file });
        let written = made.and_then(|locked| {
            // Nobody looks while the ledger is locked, so nobody has taken it for a dead one.
            lock::lock(&locked.file, LockKind::Exclusive)?;
            locked.file.write_all_at(&serde_json::to_vec(page)?, 0)?;
            Ok(locked)
        });
        written.map_err(|source| match is_full(&source) {
            true => self.numbers(&dir, page, None).map_or_else(|error| error, StoreError::NoRoom),
            false => StoreError::Io { act: "write", path, source },
        })
    }

    /// Writes a page of ours anew. If more was reserved there must be room for it, whatever the page said before: that
    /// may be of a time when less was written.
    fn replace(&self, locked: &Locked, page: &Page, grown: bool) -> Result<(), StoreError> {
        let dir = self.lock()?;
        if grown {
            self.admit(&dir, page, Some(&locked.path))?;
        }
        let failed = |source: io::Error| StoreError::Io { act: "write", path: locked.path.clone(), source };
        let text = serde_json::to_vec(page).map_err(|error| failed(error.into()))?;
        let written =
            locked.file.write_all_at(&text, 0).and_then(|()| locked.file.set_len(text.len() as u64));
        match written {
            // Even this needed a block. What is there says more than is outstanding by now, at worst.
            Err(error) if is_full(&error) => Ok(()),
            written => written.map_err(failed),
        }
    }

    /// Whether there is room for a page in place of the one at this path.
    fn admit(&self, dir: &File, page: &Page, instead_of: Option<&Path>) -> Result<(), StoreError> {
        let pages = self.pages()?;
        let others = || pages.iter().filter(|(path, _)| Some(path.as_path()) != instead_of);
        let then = self.outstanding(others().map(|(_, page)| page).chain([page]))?;
        let (room, keep) = self.room(dir, then.bytes)?;
        let fits = room.bytes >= then.bytes.saturating_add(keep);
        if fits && room.files.is_none_or(|files| files >= then.files) {
            return Ok(());
        }
        Err(self.numbers(dir, page, instead_of)?.into())
    }

    /// Why there is no room for a page.
    fn numbers(&self, dir: &File, page: &Page, instead_of: Option<&Path>) -> Result<NoRoom, StoreError> {
        let pages = self.pages()?;
        let others = || pages.iter().filter(|(path, _)| Some(path.as_path()) != instead_of);
        let then = self.outstanding(others().map(|(_, page)| page).chain([page]))?;
        let ours: BTreeSet<_> = page.entries.iter().map(|(key, _)| key).collect();
        let mut reserved = Need::default();
        for (key, need) in self.by_layer(others().map(|(_, page)| page))? {
            if !ours.contains(key) {
                reserved = reserved.plus(need);
            }
        }
        let need = then.minus(reserved);
        let (room, keep) = self.room(dir, then.bytes)?;
        let dir = self.layout.root().to_owned();
        let lacks_files = room.files.filter(|files| *files < then.files);
        Ok(match lacks_files {
            Some(free) if room.bytes >= then.bytes.saturating_add(keep) => {
                NoRoom { dir, unit: "files", need: need.files, free, reserved: reserved.files, keep: 0 }
            }
            _ => NoRoom {
                dir,
                unit: "bytes",
                need: need.bytes,
                free: room.bytes,
                reserved: reserved.bytes,
                keep,
            },
        })
    }

    /// What the filesystem has, when so much is to be written, and how many bytes of it are to stay free.
    fn room(&self, dir: &File, outstanding: u64) -> Result<(Room, u64), StoreError> {
        let failed =
            |source| StoreError::Io { act: "find the room in", path: self.layout.root().to_owned(), source };
        let mut room = space::room(dir).map_err(failed)?;
        let keep = stays_free(self.free_min, room.bytes_total);
        let near = outstanding.saturating_add(keep).saturating_add(LATE_BYTES);
        if room.counts_late && room.bytes < near {
            // Under the lock: nobody tells of more that was written meanwhile.
            space::sync(dir).map_err(failed)?;
            room = space::room(dir).map_err(failed)?;
        }
        Ok((room, keep))
    }

    /// What all pages say will still be written.
    fn outstanding<'a>(&self, pages: impl Iterator<Item = &'a Page>) -> Result<Need, StoreError> {
        Ok(self.by_layer(pages)?.into_values().fold(Need::default(), Need::plus))
    }

    /// The same for each layer that is not in the store.
    fn by_layer<'a>(
        &self,
        pages: impl Iterator<Item = &'a Page>,
    ) -> Result<BTreeMap<&'a LayerKey, Need>, StoreError> {
        let (mut planned, mut brought) = (BTreeMap::new(), BTreeMap::new());
        for page in pages {
            let which = if page.bringing { &mut brought } else { &mut planned };
            for (key, need) in &page.entries {
                let known: &mut Need = which.entry(key).or_default();
                *known = known.max(*need);
            }
        }
        planned.append(&mut brought);
        let mut open = BTreeMap::new();
        for (key, need) in planned {
            if !self.is_here(key)? {
                open.insert(key, need);
            }
        }
        Ok(open)
    }

    /// All pages of live owners; removes the others. To be called under the lock of the ledger.
    fn pages(&self) -> Result<Vec<(PathBuf, Page)>, StoreError> {
        let dir = self.layout.space();
        let mut pages = Vec::new();
        for name in names(&dir)? {
            pages.extend(self.page(dir.join(name))?);
        }
        Ok(pages)
    }

    fn page(&self, path: PathBuf) -> Result<Option<(PathBuf, Page)>, StoreError> {
        let failed = |source| StoreError::Io { act: "read", path: path.clone(), source };
        if let Some(_locked) = lock::try_lock_existing(&path, LockKind::Shared).map_err(failed)? {
            if let Err(error) = std::fs::remove_file(&path) {
                warn!(self.log, "dead reservation not removed"; "path" => %path.display(), "error" => %error);
            }
            return Ok(None);
        }
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match serde_json::from_slice(&text) {
            Ok(page) => Ok(Some((path, page))),
            // Its owner goes on without it; nobody shall be held up by that.
            Err(error) => {
                warn!(self.log, "reservation is damaged"; "path" => %path.display(), "error" => %error);
                Ok(None)
            }
        }
    }

    /// Removes pages of dead processes. A listing, when there are none.
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        let dir = self.layout.space();
        let names: Vec<OsString> = names(&dir)?;
        if names.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        for name in names {
            self.page(dir.join(name))?;
        }
        Ok(())
    }
}

/// The room of one layer that is being unpacked, until it drops.
pub(super) struct Outlay {
    ledger: Arc<Ledger>,
    layer: LayerSpec,
    form: Form,
    locked: Locked,
    state: Mutex<State>,
    stop: Stop,
}

#[derive(Default)]
struct State {
    reserved: Need,
    spent: Need,
    /// Of what is spent, what the ledger knows.
    told: Need,
    /// Bytes of tar that its blob can hold at most, where that is known.
    most: Option<u64>,
}

impl Outlay {
    /// Takes note of how the layer is compressed, and of the size of its tar if that is known.
    pub(super) fn found(&self, compression: Compression, tar_bytes: Option<u64>) -> Result<(), StoreError> {
        let mut need = self.ledger.need(&self.layer, Some(compression), self.form);
        if let Some(bytes) = tar_bytes {
            need = need.max(Need::content(bytes));
        }
        let mut state = self.state();
        let blob_bytes = self.layer.blob.size;
        state.most = tar_bytes.or(match compression {
            Compression::None => blob_bytes,
            _ => blob_bytes.map(|bytes| {
                bytes.saturating_mul(self.ledger.expansion_max).max(super::pipeline::EXPANSION_FREE_BYTES)
            }),
        });
        match state.reserved.covers(need) {
            true => Ok(()),
            false => self.grow(&mut state, need),
        }
    }

    /// What an entry needs that announces so much content: no more than the blob can hold, whatever it says. A lie must be
    /// called one, and not a full disk.
    pub(super) fn announced(&self, content_bytes: u64) -> Need {
        Need::content(content_bytes.min(self.state().most.unwrap_or(u64::MAX)))
    }

    /// Sees to it that so much more can be written.
    pub(super) fn ensure(&self, more: Need) -> Result<(), StoreError> {
        let mut state = self.state();
        let need = state.spent.plus(more);
        if state.reserved.covers(need) {
            return Ok(());
        }
        let ahead = Need {
            bytes: GROWTH_BYTES_MIN.max(state.reserved.bytes / 8),
            files: GROWTH_BYTES_MIN / BYTES_PER_FILE,
        };
        match self.grow(&mut state, need.plus(ahead)) {
            Err(StoreError::NoRoom(_)) => self.grow(&mut state, need),
            grown => grown,
        }
    }

    /// Takes note that so much was written.
    pub(super) fn spend(&self, spent: Need) -> Result<(), StoreError> {
        let mut state = self.state();
        state.spent = state.spent.plus(spent);
        if state.spent.bytes - state.told.bytes < STEP_BYTES {
            return Ok(());
        }
        let reserved = state.reserved;
        self.tell(&mut state, reserved)
    }

    /// Takes note that so much more was written of a layer that is an image. There was room for content before it came;
    /// this sees to what the image has besides.
    pub(super) fn image_written(&self, more_bytes: u64) -> Result<(), StoreError> {
        // Each block has a checksum.
        let more = more_bytes.saturating_add(more_bytes / SUM_SHARE);
        self.ensure(Need::content(more))?;
        self.spend(Need::content(more))
    }

    /// The error, with the numbers if it says that the disk is full all the same: somebody else has filled it.
    pub(super) fn explained(&self, error: UnpackError) -> UnpackError {
        let layer = match &error {
            UnpackError::Write { layer, source, .. } if is_full(source) => layer.clone(),
            UnpackError::Store(StoreError::Io { source, .. }) if is_full(source) => self.layer.key.clone(),
            _ => return error,
        };
        let (reserved, spent) = {
            let state = self.state();
            (state.reserved, state.spent)
        };
        // It was about to write something, whatever the estimate.
        let page = self.page(reserved.minus(spent).max(Need { bytes: BLOCK_BYTES, files: 1 }));
        let numbers =
            self.ledger.lock().and_then(|dir| self.ledger.numbers(&dir, &page, Some(&self.locked.path)));
        numbers.map_or(error, |source| UnpackError::NoRoom { layer, source })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, outstanding: Need) -> Page {
        Page { bringing: true, entries: vec![(self.layer.key.clone(), outstanding)] }
    }

    fn grow(&self, state: &mut State, need: Need) -> Result<(), StoreError> {
        let reserved = state.reserved.max(need);
        self.ledger.until_collected(&self.stop, || self.tell(state, reserved))
    }

    /// Tells the ledger what is outstanding when so much is reserved.
    fn tell(&self, state: &mut State, reserved: Need) -> Result<(), StoreError> {
        let grown = !state.reserved.covers(reserved);
        self.ledger.replace(&self.locked, &self.page(reserved.minus(state.spent)), grown)?;
        (state.reserved, state.told) = (reserved, state.spent);
        Ok(())
    }
}

/// Whether an error says that the disk, or somebody's share of it, is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

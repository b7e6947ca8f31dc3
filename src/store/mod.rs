//! Layers and image records on disk: the port [`Store`], as files.
//!
//! A layer comes in as a blob, is verified and unpacked on the way (`unpack`), and is from then on known by its diff
//! ID and shown as a directory. Everything is shared by all processes on one store: what they must not do at once is
//! held by flock(2), so that a killed process holds nothing, and what others see appears by rename. `layout` draws
//! the tree. What is on disk and what a power cut may take is another matter: `commit`, `settle` and `boot` see to that,
//! and `docs/durability.md` argues that they do.
//!
//! Nothing here knows registries, containers or mounts, and nothing is trusted that comes from an image: names,
//! numbers and sizes are checked where they are read (`tar`), paths resolve beneath a descriptor (`tree`).

mod aci;
pub(crate) mod aci_scan;
mod attributes;
mod boot;
mod chunks;
mod commit;
pub(crate) mod decompress;
mod dirtimes;
mod disk;
mod entry;
mod failed;
mod flaw;
mod foreign;
mod form;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod image;
mod images;
mod intake;
mod job;
mod journal;
mod layout;
mod meaning;
mod mountable;
mod pin;
mod pipeline;
mod privileges;
mod prune;
mod quarantine;
mod recover;
mod scrub;
mod scrubbed;
mod settle;
mod settler;
mod shown;
mod space;
mod stage;
mod tar;
mod tree;
mod treesums;
mod unpack;
mod unsettled;
pub mod whiteout;
mod writeback;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keelblock_actors::error::{StoreError, chain};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{LayerKey, LayerSpec};
use keelblock_actors::ports::{
    Claim, ImageRecord, InUse, Keep, LayerDir, LayerSize, Pruned, Store, StoredLayer,
};
use keelblock_actors::stop::Stop;
use slog::{Logger, debug, error, warn};

pub use self::aci::{AciRule, InvalidAci};
pub use self::attributes::NotSet;
pub use self::dirtimes::NOBODYS_ROOT;
pub use self::disk::{Barrier, Disk, RealDisk};
pub use self::flaw::EntryError;
pub use self::form::{Form, LayerForm, LayerRecord};
pub use self::image::ImageFile;
pub(crate) use self::layout::fresh_name;
pub use self::privileges::Privileges;
pub use self::quarantine::{Quarantined, Standing};
pub use self::scrub::{Scrubbed, Verdict};
pub use self::settle::Settled;
pub use self::settler::{Settler, SyncMode};
pub use self::treesums::TreeSums;

use self::format::Format;
use self::journal::Journal;
use self::layout::Layout;
use self::settle::Synced;
use self::shown::Mounts;
use self::space::Ledger;
use self::stage::Stage;
use self::unpack::DiskStaging;
use crate::gc::{Collector, Gc};
use crate::limits::Limits;
use crate::sys::lock::{self, LockKind, NamedLock};
use crate::sys::process_identity;
use crate::sys::remove::RemoveError;

/// The store in a directory.
#[derive(Clone)]
pub struct DiskStore {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    /// Where layers and failed stages go.
    gc: Gc,
    /// What is set aside of the disk.
    space: Arc<Ledger>,
    mounts: Arc<Mounts>,
    form: LayerForm,
    /// Whether images can be mounted here, once it was tried.
    mountable: OnceLock<Option<Arc<io::Error>>>,
    limits: Limits,
    privileges: Privileges,
    disk: Arc<dyn Disk>,
    settler: Settler,
    synced: Synced,
    /// In which boot this process runs.
    boot: String,
    log: Logger,
    /// Once there is a store.
    format: OnceLock<Format>,
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// What layers and images may be at most.
    pub limits: Limits,
    /// What this process may do.
    pub privileges: Privileges,
    /// In which form layers are kept that come from now on.
    pub form: LayerForm,
    /// Who removes trees.
    pub collector: Collector,
    /// Who writes layers to disk.
    pub settler: Settler,
    /// What that is.
    pub disk: Arc<dyn Disk>,
    /// In which boot this is; `None` = the kernel is asked.
    pub boot: Option<String>,
}

impl StoreSettings {
    /// Those of a process that may do this, and by default.
    pub fn new(limits: Limits, privileges: Privileges) -> Self {
        Self {
            limits,
            privileges,
            form: LayerForm::default(),
            collector: Collector::at_once(),
            settler: Settler::later(),
            disk: Arc::new(RealDisk),
            boot: None,
        }
    }
}

impl DiskStore {
    /// The store in `dir`. Reads two files, but the first time after a boot, when all layers are looked at; the store is made when something is to be kept in it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a store that cannot be understood, [`StoreError::Io`] for one that cannot be read,
    /// is of another version, or is root's when we are not.
    pub fn open(dir: &Path, limits: Limits, privileges: Privileges, log: Logger) -> Result<Self, StoreError> {
        Self::open_with(dir, StoreSettings::new(limits, privileges), log)
    }

    /// As [`Self::open`], with more to say.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, settings: StoreSettings, log: Logger) -> Result<Self, StoreError> {
        let StoreSettings { limits, privileges, form, collector, settler, disk, boot } = settings;
        let root = std::path::absolute(dir).map_err(|source| StoreError::Io {
            act: "find",
            path: dir.to_owned(),
            source,
        })?;
        let layout = Layout::new(root);
        let gc = Gc::new(layout.gc(), collector);
        let boot = match boot {
            Some(boot) => boot,
            None => process_identity::boot_id()
                .map_err(|source| StoreError::Io {
                    act: "read",
                    path: "/proc/sys/kernel/random/boot_id".into(),
                    source,
                })?
                .to_owned(),
        };
        let format = OnceLock::new();
        if let Some(found) = format::read(&layout, privileges)? {
            let _ = format.set(found);
        }
        let space = Arc::new(Ledger::new(&layout, &limits, &log));
        boot::check(&layout, &gc, &boot, &log)?;
        let mounts = Arc::new(Mounts::new(layout.clone(), log.clone()));
        let mountable = OnceLock::new();
        let inner = Inner {
            layout,
            gc,
            space,
            mounts,
            form,
            mountable,
            limits,
            privileges,
            disk,
            settler,
            synced: Synced::default(),
            boot,
            log,
            format,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes all layers to disk that are not known to be there, and says so in the journal. Waits while another process
    /// does.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be read or written. What the disk refuses is no error but in the answer.
    pub fn settle(&self) -> Result<Settled, StoreError> {
        self.inner.settle()
    }

    /// Whether there are layers in the store in `dir` that are to be settled, and nobody is at it.
    pub fn is_unsettled(dir: &Path) -> bool {
        let layout = Layout::new(dir.to_owned());
        let marks = unsettled::marks(&layout).unwrap_or_default();
        if marks.iter().all(|mark| mark.failed) {
            return false;
        }
        let free =
            lock::open_lock_file(&layout.settling()).and_then(|file| lock::try_lock(&file, LockKind::Shared));
        // Not ours to write: then there is nothing to do about it.
        free.unwrap_or(false)
    }

    /// Where trees on their way out lie in the store in `dir`.
    pub fn gc_dir(dir: &Path) -> std::path::PathBuf {
        Layout::new(dir.to_owned()).gc()
    }

    /// Every layer in the store.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be read.
    pub fn layers(&self) -> Result<Vec<DiffId>, StoreError> {
        prune::layers(&self.inner.layout)
    }

    /// Compares a layer, as the disk has it, with what was written, at so many bytes a second (0 = no limit). Changes nothing.
    /// `None`: it is not there, or `stop` was raised.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be read or the layer not be pinned.
    pub fn scrub(&self, layer: &DiffId, rate: u64, stop: &Stop) -> Result<Option<Scrubbed>, StoreError> {
        scrub::scrub(&self.inner.layout, layer, rate, stop)
    }

    /// Looks at every layer that was not looked at for so long, one after the other, and remembers when; `seen` is told of
    /// each.
    ///
    /// # Errors
    /// As [`Self::scrub`]; what was seen before is remembered.
    pub fn scrub_due(
        &self,
        interval: Duration,
        rate: u64,
        stop: &Stop,
        mut seen: impl FnMut(&Scrubbed),
    ) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        for layer in scrubbed::due(layout, &self.layers()?, interval)? {
            let Some(scrubbed) = self.scrub(&layer, rate, stop)? else { continue };
            scrubbed::remember(layout, &layer)?;
            seen(&scrubbed);
        }
        Ok(())
    }

    /// Moves a bad layer out of the way, so that the next pull brings it again. `standing` are the containers on it, which go on
    /// with it; a prune that finds none of them removes it. Where it is then; `None`: it is not there.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be written.
    pub fn quarantine(&self, layer: &DiffId, standing: &[Standing]) -> Result<Option<PathBuf>, StoreError> {
        let inner = &*self.inner;
        quarantine::quarantine(&inner.layout, &*inner.disk, &inner.mounts, layer, standing)
    }

    /// The bad layers that were moved out of the way in the store in `dir`, and the containers on them.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be read.
    pub fn quarantined(dir: &Path) -> Result<Vec<Quarantined>, StoreError> {
        quarantine::list(&Layout::new(dir.to_owned()))
    }

    /// What is remembered of a layer.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there.
    pub fn layer_record(&self, layer: &StoredLayer) -> Result<LayerRecord, StoreError> {
        LayerRecord::read(&self.inner.layout, &layer.diff_id)
    }

    /// The right to bring a layer, unless it is found.
    fn claim_unless(
        &self,
        key: &LayerKey,
        find: impl Fn() -> Result<Option<StoredLayer>, StoreError>,
    ) -> Result<Claim, StoreError> {
        if let Some(layer) = find()? {
            return Ok(Claim::Here(layer));
        }
        let namespace = self.inner.format()?.whiteouts;
        let path = self.inner.layout.claim_lock(key);
        let claim = match NamedLock::try_acquire(&path) {
            Ok(Some(claim)) => claim,
            Ok(None) => return Ok(Claim::Elsewhere),
            Err(source) => return Err(StoreError::Io { act: "lock", path, source }),
        };
        // Whoever had the lock before may have committed since we looked.
        if let Some(layer) = find()? {
            return Ok(Claim::Here(layer));
        }
        if let LayerKey::Diff(diff) | LayerKey::Aci(diff) = key {
            self.inner.make_way(diff)?;
        }
        let path = self.inner.layout.staging();
        let stage = Stage::new(&self.inner.layout, &self.inner.gc).map_err(|source| StoreError::Io {
            act: "make a directory in",
            path,
            source,
        })?;
        let form = self.inner.form_of_new(&stage)?;
        let store = Arc::clone(&self.inner);
        Ok(Claim::Mine(Box::new(DiskStaging { store, key: key.clone(), namespace, form, stage, claim })))
    }
}

impl Inner {
    /// The format of the store, which is made if there is none.
    fn format(&self) -> Result<Format, StoreError> {
        if let Some(format) = self.format.get() {
            return Ok(*format);
        }
        let check = || boot::check_now(&self.layout, &self.gc, &self.boot, &self.log);
        let format = format::read_or_make(&self.layout, self.privileges, &*self.disk, check)?;
        Ok(*self.format.get_or_init(|| format))
    }

    fn settle(&self) -> Result<Settled, StoreError> {
        settle::settle(&self.layout, &*self.disk, &self.synced, &self.log)
    }

    /// Returns when these layers are on disk, and the indexes by which they are found.
    fn settle_all(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let mut settled = self.settle()?;
        let journal = Journal::read(&self.layout)?;
        for StoredLayer { diff_id } in &record.layers {
            let commit = LayerRecord::read(&self.layout, diff_id)?.commit;
            if !journal.is_durable(&(diff_id.clone(), commit)) {
                let source = settled.causes.remove(diff_id);
                return Err(StoreError::NotDurable { layer: diff_id.clone(), source });
            }
        }
        for layer in &record.plan.layers {
            if let LayerKey::Blob(blob) = &layer.key {
                settle::sync_record(&*self.disk, &self.layout.blob(blob))?;
            }
        }
        Ok(())
    }

    /// The form of a layer that is about to come into a staging directory.
    fn form_of_new(&self, stage: &Stage) -> Result<Form, StoreError> {
        let choice = match self.form {
            LayerForm::Tree => return Ok(Form::Tree),
            // Where file systems of images cannot be mounted there is no need to try.
            LayerForm::Auto if self.privileges.in_user_namespace => return Ok(Form::Tree),
            choice => choice,
        };
        let refused = self.mountable.get_or_init(|| {
            let refused = mountable::try_it(stage).err();
            if let Some(error) = &refused {
                debug!(self.log, "images of layers cannot be mounted here"; "error" => %error);
            }
            refused.map(Arc::new)
        });
        match refused {
            None => Ok(Form::Erofs),
            Some(_) if choice == LayerForm::Auto => Ok(Form::Tree),
            Some(error) => Err(StoreError::Io {
                act: "mount images of layers (--layer_form=tree does without) from",
                path: self.layout.root().to_owned(),
                source: io::Error::new(error.kind(), Arc::clone(error)),
            }),
        }
    }

    /// Whether a layer is there: its directory comes whole, by rename. One whose record is damaged is as good as gone: it
    /// cannot be shown, and is pulled again.
    fn has(&self, diff: &DiffId) -> Result<bool, StoreError> {
        match LayerRecord::read(&self.layout, diff) {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) if is_damage(&error) => {
                warn!(self.log, "a layer is not used, for its record is damaged"; "layer" => %diff,
                    "error" => chain(&error));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Moves a layer away whose record is damaged, so that it does not stand in the place of a sound one.
    fn make_way(&self, diff: &DiffId) -> Result<(), StoreError> {
        match LayerRecord::read(&self.layout, diff) {
            Err(error) if is_damage(&error) => {
                error!(self.log, "a layer is moved to quarantine, for its record is damaged"; "layer" => %diff,
                    "error" => chain(&error));
                quarantine::quarantine(&self.layout, &*self.disk, &self.mounts, diff, &[]).map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// Whether this says that what is on the disk is not what was written there.
fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged { .. } => true,
        StoreError::Io { source, .. } => scrub::is_damage(source),
        _ => false,
    }
}

/// For `map_err`: what could not be removed, as the store's failure.
fn removal(error: RemoveError) -> StoreError {
    StoreError::Io { act: "remove", path: error.path, source: error.source }
}

impl Store for DiskStore {
    fn find(&self, key: &LayerKey) -> Result<Option<StoredLayer>, StoreError> {
        let diff = match key {
            LayerKey::Diff(diff) | LayerKey::Aci(diff) => Some(diff.clone()),
            LayerKey::Blob(blob) => prune::diff_of_blob(&self.inner.layout, blob)?,
        };
        match diff {
            Some(diff_id) if self.inner.has(&diff_id)? => Ok(Some(StoredLayer { diff_id })),
            _ => Ok(None),
        }
    }

    fn claim(&self, key: &LayerKey) -> Result<Claim, StoreError> {
        self.claim_unless(key, || self.find(key))
    }

    fn claim_anew(&self, key: &LayerKey) -> Result<Claim, StoreError> {
        self.claim_unless(key, || Ok(None))
    }

    fn blob_of(&self, layer: &StoredLayer) -> Result<Option<Digest>, StoreError> {
        Ok(self.layer_record(layer)?.blob)
    }

    fn show(&self, layer: &StoredLayer) -> Result<LayerDir, StoreError> {
        let record = self.layer_record(layer)?;
        record.show(&self.inner.layout, &self.inner.mounts, self.inner.format()?.whiteouts)
    }

    fn pin(&self, layers: &[LayerKey]) -> Result<Box<dyn Send + Sync>, StoreError> {
        self.inner.format()?;
        Ok(Box::new(pin::pin(&self.inner.layout, layers)?))
    }

    fn reserve(&self, layers: &[LayerSpec]) -> Result<Box<dyn Send + Sync>, StoreError> {
        self.inner.format()?;
        Ok(Box::new(self.inner.space.plan(layers)?))
    }

    fn image(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
        images::read(&self.inner.layout, name)
    }

    fn record_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        self.inner.format()?;
        let full = self.inner.settler.mode == SyncMode::Full;
        if full {
            self.inner.settle_all(record)?;
        }
        let disk = full.then_some(&*self.inner.disk);
        // Else a prune that has read an earlier record of this name could remove this one in its place.
        let _store = pin::lock_store(&self.inner.layout, LockKind::Shared)?;
        images::write(&self.inner.layout, disk, record)?;
        match disk {
            Some(disk) => settle::sync_dir(disk, Barrier::Records, &self.inner.layout.images()),
            None => Ok(()),
        }
    }

    fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let records = images::list(&self.inner.layout, &self.inner.log)?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    fn layer_size(&self, layer: &StoredLayer) -> Result<LayerSize, StoreError> {
        let record = self.layer_record(layer)?;
        Ok(LayerSize { bytes: record.bytes, entries: record.entries })
    }

    fn prune(&self, keep: &Keep, in_use: InUse<'_>) -> Result<Pruned, StoreError> {
        if format::read(&self.inner.layout, self.inner.privileges)?.is_none() {
            return Ok(Pruned { freed: true, ..Pruned::default() });
        }
        let Inner { layout, gc, mounts, disk, log, .. } = &*self.inner;
        prune::prune(layout, &**disk, gc, mounts, keep, in_use, log)
    }

    fn recover(&self) -> Result<(), StoreError> {
        self.inner.space.recover()?;
        let marks = unsettled::marks(&self.inner.layout)?;
        for mark in marks.iter().filter(|mark| mark.failed) {
            warn!(self.inner.log, "the disk refused a layer, which will be gone after the next boot; check the disk";
                "layer" => %mark.commit.0);
        }
        if marks.iter().any(|mark| !mark.failed) {
            self.inner.settler.nudge(&self.inner);
        }
        recover::recover(&self.inner.layout, &self.inner.gc, &self.inner.log)
    }

    fn hide_idle(&self, in_use: InUse<'_>) -> Result<(), StoreError> {
        self.inner.mounts.hide_idle(|| {
            let in_use = in_use().map_err(StoreError::InUse)?;
            Ok(in_use.into_iter().flat_map(|used| used.layers).collect())
        })
    }
}

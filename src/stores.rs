//! The stores of an agent as one: that of Docker and OCI images, and one of its own for Appc images where
//! `--appc_store_dir` says so.
//!
//! Layers and records of an Appc image lie in the second and nowhere else, all others in the first. What is asked by a
//! layer's key is asked of one store; what is asked of a layer that is there, by its ID alone, first of the one in whose
//! form that ID is: views of ACIs have SHA-512 ones, the layers of Docker's images nearly all SHA-256. Without the flag there is
//! one store, and it is asked for everything.
//!
//! Each is a whole store with a format, locks, a journal and a ledger of its own, so that it can be shared, moved or removed by
//! itself. What both set aside of one filesystem's space, neither knows of the other.

use std::path::PathBuf;
use std::time::Duration;

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::{ImageKind, ImageName};
use keelblock_actors::image::plan::{LayerKey, LayerSpec};
use keelblock_actors::ports::{
    Claim, ImageRecord, InUse, Keep, LayerDir, LayerSize, Pruned, Store, StoredLayer,
};
use keelblock_actors::stop::Stop;
use slog::Logger;

use crate::store::{DiskStore, LayerRecord, Quarantined, Scrubbed, Standing, StoreSettings};

/// See the module.
#[derive(Clone)]
pub struct Stores {
    main: DiskStore,
    /// Of Appc images, if they have one of their own.
    appc: Option<DiskStore>,
}

impl Stores {
    /// The stores in these directories ([`Config::store_dirs`](crate::config::Config::store_dirs)): one, or that of Appc images second. Each is opened with
    /// settings of its own.
    ///
    /// # Errors
    /// As [`DiskStore::open_with`].
    pub fn open(
        dirs: &[PathBuf],
        mut settings: impl FnMut() -> StoreSettings,
        log: &Logger,
    ) -> Result<Self, StoreError> {
        let mut open = |dir: &PathBuf| DiskStore::open_with(dir, settings(), log.clone());
        let main = dirs.first().ok_or(StoreError::Io {
            act: "find",
            path: PathBuf::new(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        Ok(Self { main: open(main)?, appc: dirs.get(1).map(open).transpose()? })
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &DiskStore> {
        [&self.main].into_iter().chain(&self.appc)
    }

    /// Every layer in them.
    ///
    /// # Errors
    /// As [`DiskStore::layers`].
    pub fn layers(&self) -> Result<Vec<DiffId>, StoreError> {
        let mut all = Vec::new();
        for store in self.all() {
            all.extend(store.layers()?);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// As [`DiskStore::scrub`].
    ///
    /// # Errors
    /// As [`DiskStore::scrub`].
    pub fn scrub(&self, layer: &DiffId, rate: u64, stop: &Stop) -> Result<Option<Scrubbed>, StoreError> {
        self.first_of(layer, |store| store.scrub(layer, rate, stop))
    }

    /// As [`DiskStore::scrub_due`], one store after the other.
    ///
    /// # Errors
    /// As [`DiskStore::scrub_due`].
    pub fn scrub_due(
        &self,
        interval: Duration,
        rate: u64,
        stop: &Stop,
        mut seen: impl FnMut(&Scrubbed),
    ) -> Result<(), StoreError> {
        self.all().try_for_each(|store| store.scrub_due(interval, rate, stop, &mut seen))
    }

    /// As [`DiskStore::quarantine`].
    ///
    /// # Errors
    /// As [`DiskStore::quarantine`].
    pub fn quarantine(&self, layer: &DiffId, standing: &[Standing]) -> Result<Option<PathBuf>, StoreError> {
        self.first_of(layer, |store| store.quarantine(layer, standing))
    }

    /// The layers in quarantine in the stores in these directories.
    ///
    /// # Errors
    /// As [`DiskStore::quarantined`].
    pub fn quarantined(dirs: &[PathBuf]) -> Result<Vec<Quarantined>, StoreError> {
        let mut all = Vec::new();
        for dir in dirs {
            all.extend(DiskStore::quarantined(dir)?);
        }
        Ok(all)
    }

    /// As [`DiskStore::layer_record`].
    ///
    /// # Errors
    /// As [`DiskStore::layer_record`].
    pub fn layer_record(&self, layer: &StoredLayer) -> Result<LayerRecord, StoreError> {
        self.where_it_is(layer, |store| store.layer_record(layer))
    }

    /// The store of layers and images of the kind.
    fn of(&self, kind: ImageKind) -> &DiskStore {
        self.appc.as_ref().filter(|_| kind == ImageKind::Appc).unwrap_or(&self.main)
    }

    fn of_key(&self, key: &LayerKey) -> &DiskStore {
        self.of(if matches!(key, LayerKey::Aci(_)) { ImageKind::Appc } else { ImageKind::Docker })
    }

    /// The stores in which a layer of this ID may be, the likely one first.
    fn of_layer(&self, layer: &DiffId) -> (&DiskStore, Option<&DiskStore>) {
        match &self.appc {
            Some(appc) if may_be_a_view(layer) => (appc, Some(&self.main)),
            appc => (&self.main, appc.as_ref()),
        }
    }

    /// What the first of the stores says that has anything to say of a layer.
    fn first_of<T>(
        &self,
        layer: &DiffId,
        ask: impl Fn(&DiskStore) -> Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let (first, second) = self.of_layer(layer);
        match (ask(first)?, second) {
            (None, Some(second)) => ask(second),
            (found, _) => Ok(found),
        }
    }

    /// What the store says that has a layer.
    fn where_it_is<T>(
        &self,
        layer: &StoredLayer,
        ask: impl Fn(&DiskStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (first, second) = self.of_layer(&layer.diff_id);
        match (ask(first), second) {
            (Err(StoreError::Missing { .. }), Some(second)) => ask(second),
            (said, _) => said,
        }
    }

    /// A guard of what each store has to do with some of these.
    fn guards<T: Clone>(
        &self,
        all: &[T],
        of_appc: impl Fn(&T) -> bool,
        of_main: impl Fn(&T) -> bool,
        guard: impl Fn(&DiskStore, &[T]) -> Result<Box<dyn Send + Sync>, StoreError>,
    ) -> Result<Box<dyn Send + Sync>, StoreError> {
        let Some(appc) = &self.appc else { return guard(&self.main, all) };
        let some = |of: &dyn Fn(&T) -> bool| all.iter().filter(|one| of(one)).cloned().collect::<Vec<_>>();
        match (some(&of_main), some(&of_appc)) {
            (of_main, of_appc) if of_appc.is_empty() => guard(&self.main, &of_main),
            (of_main, of_appc) if of_main.is_empty() => guard(appc, &of_appc),
            (of_main, of_appc) => Ok(Box::new((guard(&self.main, &of_main)?, guard(appc, &of_appc)?))),
        }
    }
}

/// One store, of all images.
impl From<DiskStore> for Stores {
    fn from(main: DiskStore) -> Self {
        Self { main, appc: None }
    }
}

/// Whether this may be the ID of a view of an ACI.
fn may_be_a_view(layer: &DiffId) -> bool {
    matches!(layer.0, Digest::Sha512(_))
}

impl Store for Stores {
    fn find(&self, key: &LayerKey) -> Result<Option<StoredLayer>, StoreError> {
        match key {
            // A layer that was there is looked for by its ID, whatever it is of.
            LayerKey::Diff(diff) => self.first_of(diff, |store| store.find(key)),
            LayerKey::Aci(_) | LayerKey::Blob(_) => self.of_key(key).find(key),
        }
    }

    fn claim(&self, key: &LayerKey) -> Result<Claim, StoreError> {
        self.of_key(key).claim(key)
    }

    fn claim_anew(&self, key: &LayerKey) -> Result<Claim, StoreError> {
        self.of_key(key).claim_anew(key)
    }

    fn blob_of(&self, layer: &StoredLayer) -> Result<Option<Digest>, StoreError> {
        self.where_it_is(layer, |store| store.blob_of(layer))
    }

    fn show(&self, layer: &StoredLayer) -> Result<LayerDir, StoreError> {
        self.where_it_is(layer, |store| store.show(layer))
    }

    fn pin(&self, layers: &[LayerKey]) -> Result<Box<dyn Send + Sync>, StoreError> {
        let of_appc = |key: &LayerKey| match key {
            LayerKey::Aci(_) => true,
            // In both, for nobody has said which of them it is in.
            LayerKey::Diff(diff) => may_be_a_view(diff),
            LayerKey::Blob(_) => false,
        };
        let of_main = |key: &LayerKey| !matches!(key, LayerKey::Aci(_));
        self.guards(layers, of_appc, of_main, |store, layers| store.pin(layers))
    }

    fn reserve(&self, layers: &[LayerSpec]) -> Result<Box<dyn Send + Sync>, StoreError> {
        let of_appc = |layer: &LayerSpec| matches!(layer.key, LayerKey::Aci(_));
        self.guards(layers, of_appc, |layer| !of_appc(layer), |store, layers| store.reserve(layers))
    }

    fn image(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
        self.of(name.kind()).image(name)
    }

    fn record_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        self.of(record.plan.identity.kind()).record_image(record)
    }

    fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let mut images = self.main.images()?;
        if let Some(appc) = &self.appc {
            images.extend(appc.images()?);
            images.sort_by(|a, b| a.plan.identity.name.cmp(&b.plan.identity.name));
        }
        Ok(images)
    }

    fn layer_size(&self, layer: &StoredLayer) -> Result<LayerSize, StoreError> {
        self.where_it_is(layer, |store| store.layer_size(layer))
    }

    fn prune(&self, keep: &Keep, in_use: InUse<'_>) -> Result<Pruned, StoreError> {
        let mut pruned = self.main.prune(keep, in_use)?;
        if let Some(appc) = &self.appc {
            let Pruned { images, layers, bytes, freed } = appc.prune(keep, in_use)?;
            pruned.images.extend(images);
            pruned.layers.extend(layers);
            pruned.bytes += bytes;
            pruned.freed &= freed;
        }
        Ok(pruned)
    }

    fn recover(&self) -> Result<(), StoreError> {
        self.all().try_for_each(Store::recover)
    }

    fn hide_idle(&self, in_use: InUse<'_>) -> Result<(), StoreError> {
        self.all().try_for_each(|store| store.hide_idle(in_use))
    }
}

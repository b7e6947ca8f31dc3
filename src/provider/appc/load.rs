//! One image: its archive fetched, its signature verified, its manifest read. Or its record in the store, where that will do.

use std::sync::Arc;

use keelblock_actors::error::JobLost;
use keelblock_actors::image::appc::{AppcManifest, AppcName, AppcReference, ImageId};
use keelblock_actors::image::name::{ImageKind, ImageName};
use keelblock_actors::image::plan::LayerSource;
use keelblock_actors::ports::{ImageRecord, Store};
use keelblock_actors::stop::Stop;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::error::AppcError;
use super::ports::{AciSource, FetchedAci, SignatureCheck, WantedAci};
use super::{manifest, names};
use crate::limits::Limits;
use crate::puller::registry::Task;
use crate::store::aci_scan::{self, Digested, ScannedAci};

/// An image whose manifest is known.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) id: ImageId,
    pub(super) manifest: Arc<AppcManifest>,
    /// Bytes of its archive, where that is here.
    pub(super) size: Option<u64>,
    pub(super) source: LayerSource,
    /// Whether its archive is here; else it is known from a record of the store, and so may be its layers.
    pub(super) fetched: bool,
    /// Whether its signature was verified; of a record: those of all that it is made of.
    pub(super) signed: bool,
}

/// What loading needs.
#[derive(Clone)]
pub(super) struct Loader {
    pub(super) source: Arc<dyn AciSource>,
    pub(super) check: Arc<dyn SignatureCheck>,
    pub(super) store: Arc<dyn Store>,
    pub(super) handle: Handle,
    pub(super) limits: Arc<Limits>,
    /// Archives read at once: as many as layers are unpacked.
    pub(super) reads: Arc<Semaphore>,
    pub(super) stop: Stop,
}

impl Loader {
    /// The image by this name, complete, from its source.
    pub(super) async fn fetch(&self, name: &AppcName, size: Option<u64>) -> Result<Loaded, AppcError> {
        let signature = self.check.wants_signature();
        let fetched = self.source.fetch(WantedAci::Named { name: name.clone(), size, signature }).await?;
        let loaded = self.read(fetched, Some(name.clone())).await?;
        names::check(name, &loaded.manifest.name, &loaded.source.to_string())?;
        Ok(loaded)
    }

    /// The image in this file.
    pub(super) async fn file(&self, path: std::path::PathBuf) -> Result<Loaded, AppcError> {
        let signature = self.check.wants_signature();
        let fetched = self.source.fetch(WantedAci::File { path, signature }).await?;
        self.read(fetched, None).await
    }

    /// The image by this name or ID, if the store has a record of it.
    pub(super) async fn recorded(
        &self,
        name: &AppcName,
        id: Option<&ImageId>,
    ) -> Result<Option<Loaded>, AppcError> {
        let (store, name, id) = (self.store.clone(), name.clone(), id.cloned());
        let record = self.blocking(move || {
            let by_name = store.image(&ImageName::Appc(AppcReference::Named(name)))?;
            let is = |record: &ImageRecord| id.as_ref().is_none_or(|id| is_image(record, id));
            match (by_name.filter(|record| is(record)), &id) {
                (Some(record), _) => Ok(Some(record)),
                (None, Some(id)) => by_id(&*store, id),
                (None, None) => Ok(None),
            }
        });
        let usable = |record: &ImageRecord| record.plan.signed || !self.check.requires_signature();
        Ok(record.await??.filter(usable).and_then(of_record))
    }

    /// The record of an image, whole in the store.
    pub(super) async fn whole_by_id(&self, id: &ImageId) -> Result<Option<ImageRecord>, AppcError> {
        let (store, id) = (self.store.clone(), id.clone());
        let record = self.blocking(move || {
            let mut records = store.images()?.into_iter().filter(|record| is_image(record, &id));
            loop {
                let Some(record) = records.next() else { return Ok(None) };
                let mut whole = true;
                for layer in &record.layers {
                    let key = keelblock_actors::image::plan::LayerKey::Aci(layer.diff_id.clone());
                    whole = whole && store.find(&key)?.is_some();
                }
                if whole {
                    return Ok(Some(record));
                }
            }
        });
        record.await?
    }

    async fn read(&self, fetched: FetchedAci, name: Option<AppcName>) -> Result<Loaded, AppcError> {
        let (limits, check, stop) = (self.limits.clone(), self.check.clone(), self.stop.clone());
        let _permit = self.reads.acquire().await;
        self.blocking(move || {
            let FetchedAci { path, from, signature, .. } = fetched;
            // What was signed, if it was.
            let verify = |name| {
                let read = |source| AppcError::Scan { from: from.clone(), source };
                let mut file = Digested::new(aci_scan::open(&path).map_err(read)?);
                let checked = check.check(name, &mut file, signature.as_ref(), &stop);
                let signed = checked.map_err(|source| AppcError::Untrusted {
                    name: name.clone(),
                    from: from.clone(),
                    source,
                })?;
                Ok::<_, AppcError>(signed.then(|| file.digest()))
            };
            // Whose signature it must be is known before its content is looked at, unless that alone says whose it is.
            let mut signed = match &name {
                Some(name) => verify(&name.name)?,
                None => None,
            };
            let scanned = aci_scan::scan(&path, &limits, &stop);
            let ScannedAci { image_id, manifest, size, blob, .. } =
                scanned.map_err(|source| AppcError::Scan { from: from.clone(), source })?;
            let manifest = manifest::parse(&manifest, limits.manifest_bytes_max)
                .map_err(|source| AppcError::Manifest { from: from.clone(), source })?;
            if name.is_none() {
                signed = verify(&manifest.name.name)?;
            }
            // Somebody else's file may change between two looks at it.
            if signed.as_ref().is_some_and(|signed| *signed != blob) {
                return Err(AppcError::Changed { from });
            }
            Ok(Loaded {
                id: image_id,
                manifest: Arc::new(manifest),
                size: Some(size),
                source: LayerSource::Aci { from: from.clone(), path: path.clone() },
                fetched: true,
                signed: signed.is_some(),
            })
        })
        .await?
    }

    /// Runs work that reads files or the store.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JobLost> {
        const POOL: &str = "appc";
        Task::spawn_blocking(&self.handle, work).await.map_err(|lost| match lost.try_into_panic() {
            Ok(panic) => JobLost::Panicked { pool: POOL, panic: crate::provider::docker::text_of(&*panic) },
            Err(_) => JobLost::Shutdown { pool: POOL },
        })
    }
}

/// Whether a record is of this image.
pub(super) fn is_image(record: &ImageRecord, id: &ImageId) -> bool {
    let identity = &record.plan.identity;
    identity.kind() == ImageKind::Appc && ImageId::of(&identity.manifest).as_ref() == Some(id)
}

fn by_id(store: &dyn Store, id: &ImageId) -> Result<Option<ImageRecord>, AppcError> {
    Ok(store.images()?.into_iter().find(|record| is_image(record, id)))
}

/// What a record says of its image. The layer on top is the image's own.
fn of_record(record: ImageRecord) -> Option<Loaded> {
    let id = ImageId::of(&record.plan.identity.manifest)?;
    let signed = record.plan.signed;
    let top = record.plan.layers.into_iter().next_back()?;
    let manifest = Arc::new(*record.plan.runtime.appc?);
    Some(Loaded { id, manifest, size: top.blob.size, source: top.source, fetched: false, signed })
}

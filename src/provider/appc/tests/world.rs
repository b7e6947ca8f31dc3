//! A source, a check and a store that are made up, and count what they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keelblock_actors::error::{Cause, ResolveError, StoreError, chain};
use keelblock_actors::image::appc::AcIdentifier;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::{ImageName, ImageRequest, PullPolicy};
use keelblock_actors::image::plan::{ImagePlan, LayerKey, LayerSpec};
use keelblock_actors::ports::{
    Claim, ImageRecord, InUse, Keep, LayerDir, LayerSize, Provider, Pruned, Store, StoredLayer,
};
use keelblock_actors::stop::Stop;

use super::aci::Aci;
use crate::limits::Limits;
use crate::provider::appc::AppcProvider;
use crate::provider::appc::ports::{
    AciFetchError, AciSource, FetchedAci, Signature, SignatureCheck, WantedAci,
};
use crate::provider::manifest::Platform;

/// Archives by the name they are asked for by, and what was asked.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) archives: BTreeMap<String, PathBuf>,
    pub(super) fetches: Mutex<Vec<String>>,
    /// How many fetches must be under way before one ends.
    pub(super) together: Option<Arc<tokio::sync::Barrier>>,
    pub(super) checks: Mutex<Vec<String>>,
    pub(super) untrusted: Option<&'static str>,
    /// An archive that is replaced once it was verified.
    pub(super) rewritten: Mutex<Option<PathBuf>>,
    /// Whether archives are signed.
    pub(super) signed: AtomicBool,
    /// Whether they must be.
    pub(super) required: AtomicBool,
    pub(super) records: Mutex<Vec<ImageRecord>>,
    pub(super) layers: Mutex<BTreeSet<LayerKey>>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            archives: BTreeMap::new(),
            fetches: Mutex::default(),
            together: None,
            checks: Mutex::default(),
            untrusted: None,
            rewritten: Mutex::default(),
            signed: AtomicBool::new(false),
            required: AtomicBool::new(false),
            records: Mutex::default(),
            layers: Mutex::default(),
        }
    }

    /// With an archive that is found by this name and all labels that are asked for but the version.
    pub(super) fn with(mut self, name: &str, aci: &Aci) -> Self {
        let path = self.dir.path().join(format!("{}.aci", self.archives.len()));
        std::fs::write(&path, aci.bytes()).unwrap();
        self.archives.insert(name.to_owned(), path);
        self
    }

    pub(super) fn provider(self: &Arc<Self>, change: fn(&mut Limits)) -> AppcProvider {
        let mut limits = Limits::default();
        change(&mut limits);
        let platform: Platform = "linux/amd64".parse().unwrap();
        let handle = tokio::runtime::Handle::current();
        AppcProvider::new(self.clone(), self.clone(), self.clone(), handle, limits, platform)
    }

    pub(super) async fn resolve(
        self: &Arc<Self>,
        name: &str,
        policy: PullPolicy,
    ) -> Result<ImagePlan, ResolveError> {
        let name: ImageName = name.parse().unwrap();
        self.provider(|_| ())
            .resolve(ImageRequest { policy: Some(policy), ..ImageRequest::cached(name) })
            .await
    }

    pub(super) async fn plan(self: &Arc<Self>, name: &str) -> ImagePlan {
        self.resolve(name, PullPolicy::Missing).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(super) async fn error(self: &Arc<Self>, name: &str) -> String {
        match self.resolve(name, PullPolicy::Missing).await {
            Ok(plan) => panic!("{plan:?}"),
            Err(error) => chain(&error),
        }
    }

    pub(super) fn fetches(&self) -> Vec<String> {
        let mut fetches = self.fetches.lock().unwrap().clone();
        fetches.sort();
        fetches
    }

    /// As after a pull.
    pub(super) fn keep(&self, plan: ImagePlan) {
        let layers: Vec<_> = plan.layers.iter().filter_map(|layer| layer.key.diff_id().cloned()).collect();
        self.layers.lock().unwrap().extend(plan.layers.iter().map(|layer| layer.key.clone()));
        let layers = layers.into_iter().map(|diff_id| StoredLayer { diff_id }).collect();
        // Whitelists are not written down.
        let plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        self.records.lock().unwrap().push(ImageRecord { plan, layers, pulled_ms: 0 });
    }
}

impl AciSource for World {
    fn fetch(&self, wanted: WantedAci) -> BoxFuture<'static, Result<FetchedAci, AciFetchError>> {
        let (path, from) = match wanted {
            WantedAci::File { path, .. } => (Some(path.clone()), path.display().to_string()),
            WantedAci::Named { name, .. } => {
                self.fetches.lock().unwrap().push(name.to_string());
                let version = name.label("version").unwrap_or_default();
                let found = self.archives.get(&format!("{}:{version}", name.name));
                let found = found.or_else(|| self.archives.get(name.name.as_str()));
                (found.cloned(), format!("https://{}", name.name))
            }
        };
        let together = self.together.clone().filter(|_| from.starts_with("https:"));
        async move {
            if let Some(barrier) = together {
                barrier.wait().await;
            }
            let not_found = AciFetchError::NotFound { place: "the shelf".to_owned(), source: None };
            let path = path.ok_or(not_found)?;
            Ok(FetchedAci { path, from, bytes_fetched: 1, signature: None })
        }
        .boxed()
    }
}

impl SignatureCheck for World {
    fn wants_signature(&self) -> bool {
        true
    }

    fn requires_signature(&self) -> bool {
        self.required.load(Ordering::Relaxed)
    }

    fn check(
        &self,
        name: &AcIdentifier,
        aci: &mut dyn Read,
        _: Option<&Signature>,
        _: &Stop,
    ) -> Result<bool, Cause> {
        std::io::copy(aci, &mut std::io::sink())?;
        if let Some(path) = self.rewritten.lock().unwrap().take() {
            std::fs::write(path, Aci::new(name.as_str()).needs("another").bytes())?;
        }
        self.checks.lock().unwrap().push(name.to_string());
        match self.untrusted.is_some_and(|untrusted| untrusted == name.as_str()) {
            true => Err("it is not signed".into()),
            false => Ok(self.signed.load(Ordering::Relaxed)),
        }
    }
}

impl Store for World {
    fn find(&self, key: &LayerKey) -> Result<Option<StoredLayer>, StoreError> {
        let layers = self.layers.lock().unwrap();
        let same = |one: &&LayerKey| one.diff_id() == key.diff_id();
        let found = layers.iter().find(same).and_then(|key| key.diff_id().cloned());
        Ok(found.map(|diff_id| StoredLayer { diff_id }))
    }

    fn image(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
        let records = self.records.lock().unwrap();
        Ok(records.iter().find(|record| record.plan.identity.name == *name).cloned())
    }

    fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        Ok(self.records.lock().unwrap().clone())
    }

    fn claim(&self, _: &LayerKey) -> Result<Claim, StoreError> {
        Ok(Claim::Elsewhere)
    }

    fn claim_anew(&self, _: &LayerKey) -> Result<Claim, StoreError> {
        Ok(Claim::Elsewhere)
    }

    fn blob_of(&self, _: &StoredLayer) -> Result<Option<Digest>, StoreError> {
        Ok(None)
    }

    fn show(&self, layer: &StoredLayer) -> Result<LayerDir, StoreError> {
        panic!("a provider shows no layer, not even {layer:?}")
    }

    fn pin(&self, _: &[LayerKey]) -> Result<Box<dyn Send + Sync>, StoreError> {
        Ok(Box::new(()))
    }

    fn reserve(&self, _: &[LayerSpec]) -> Result<Box<dyn Send + Sync>, StoreError> {
        Ok(Box::new(()))
    }

    fn record_image(&self, _: &ImageRecord) -> Result<(), StoreError> {
        Ok(())
    }

    fn layer_size(&self, _: &StoredLayer) -> Result<LayerSize, StoreError> {
        Ok(LayerSize::default())
    }

    fn prune(&self, _: &Keep, _: InUse<'_>) -> Result<Pruned, StoreError> {
        Ok(Pruned::default())
    }

    fn recover(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn hide_idle(&self, _: InUse<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}

pub(super) fn world(archives: &[&Aci]) -> World {
    archives.iter().fold(World::new(), |world, aci| {
        let name = aci.manifest["name"].as_str().unwrap().to_owned();
        world.with(&name, aci)
    })
}

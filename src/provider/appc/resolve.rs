//! The Appc provider: from a name, an image ID or a file to a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keelblock_actors::error::ResolveError;
use keelblock_actors::image::appc::{AppcName, AppcReference, ImageId, LABEL_ARCH, LABEL_OS};
use keelblock_actors::image::name::{ImageKind, ImageName, ImageRequest, PullPolicy};
use keelblock_actors::image::plan::{ImageIdentity, ImagePlan, RuntimeConfig};
use keelblock_actors::ports::{Provider, Store};
use keelblock_actors::stop::Stop;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::error::AppcError;
use super::graph::{Loads, Rules};
use super::load::{Loaded, Loader};
use super::ports::{AciFetchError, AciSource, SignatureCheck};
use super::{names, stack};
use crate::limits::Limits;
use crate::provider::docker::no_provider;
use crate::provider::manifest::Platform;

/// Resolves `appc:` and `aci:` names.
#[derive(Clone)]
pub struct AppcProvider {
    loader: Loader,
    platform: Platform,
}

impl AppcProvider {
    /// Takes archives from `source`, trusts those that `check` lets through, and looks in `store` for what need not be fetched.
    /// Archives are read on the blocking threads of the runtime.
    pub fn new(
        source: Arc<dyn AciSource>,
        check: Arc<dyn SignatureCheck>,
        store: Arc<dyn Store>,
        handle: Handle,
        limits: Limits,
        platform: Platform,
    ) -> Self {
        let reads = Arc::new(Semaphore::new(limits.unpack_threads()));
        let limits = Arc::new(limits);
        let loader = Loader { source, check, store, handle, limits, reads, stop: Stop::default() };
        Self { loader, platform }
    }

    async fn named(&self, name: AppcName, policy: PullPolicy) -> Result<ImagePlan, AppcError> {
        let root = self.loader.fetch(&name, None).await?;
        self.plan(ImageName::Appc(AppcReference::Named(name.clone())), root, &name, policy).await
    }

    async fn file(&self, path: PathBuf, policy: PullPolicy) -> Result<ImagePlan, AppcError> {
        let root = self.loader.file(path.clone()).await?;
        let name = &root.manifest.name;
        let (os, arch) = names::labels_of(&self.platform);
        if !names::runs_on(name, &self.platform) {
            let label = |label, none: &str| name.label(label).unwrap_or(none).to_owned();
            return Err(AppcError::OtherPlatform {
                found: format!("{}/{}", label(LABEL_OS, "any"), label(LABEL_ARCH, "any")),
                wanted: format!("{os}/{arch}"),
                from: root.source.to_string(),
            });
        }
        let labels = name.clone().or_label(LABEL_OS, &os).or_label(LABEL_ARCH, &arch);
        self.plan(ImageName::Aci(path), root, &labels, policy).await
    }

    /// An image that is whole in the store: by its ID nothing can be asked for anywhere else.
    async fn stored(&self, id: &ImageId) -> Result<ImagePlan, AppcError> {
        let record = self.loader.whole_by_id(id).await?.ok_or(AppcError::UnknownId)?;
        match self.may_use(&record.plan) {
            true => Ok(record.plan),
            false => Err(AppcError::StoredUnsigned),
        }
    }

    /// Whether an image of the store was verified as is asked for now.
    fn may_use(&self, plan: &ImagePlan) -> bool {
        plan.signed || !self.loader.check.requires_signature()
    }

    async fn plan(
        &self,
        name: ImageName,
        root: Loaded,
        labels: &AppcName,
        policy: PullPolicy,
    ) -> Result<ImagePlan, AppcError> {
        let limits = &self.loader.limits;
        let rules = Rules {
            depth_max: limits.appc_dependency_depth_max,
            count_max: limits.appc_dependencies_max,
            policy,
        };
        let (mut anew, mut known) = (BTreeSet::new(), BTreeMap::new());
        let (layers, signed) = loop {
            let loads = Loads { loader: &self.loader, rules, anew: &anew, known: &mut known };
            let graph = loads.load(root.clone(), labels).await?;
            let (store, layers_max) = (self.loader.store.clone(), limits.layers_max);
            let stacked = self.loader.blocking(move || {
                let layers = stack::layers(&graph, layers_max)?;
                let signed = graph.nodes.values().chain([&graph.root]).all(|node| node.image.signed);
                // The store may know an image, and have other views of it than are needed here.
                let mut lacking = BTreeSet::new();
                for layer in &layers {
                    if let Some(of) = layer.of.clone().filter(|_| !layer.fetched)
                        && store.find(&layer.spec.key)?.is_none()
                    {
                        lacking.insert(of);
                    }
                }
                Ok::<_, AppcError>((layers, signed, lacking))
            });
            let (layers, signed, lacking) = stacked.await??;
            if lacking.is_empty() {
                break (layers, signed);
            }
            anew.extend(lacking);
        };
        let digest = root.id.digest();
        Ok(ImagePlan {
            identity: ImageIdentity { name, manifest: digest.clone(), config: digest },
            layers: layers.into_iter().map(|layer| layer.spec).collect(),
            platform: names::platform_of(&root.manifest.name),
            // Of the image that was asked for: how those it depends on would be run says nothing.
            runtime: RuntimeConfig {
                appc: Some(Box::new((*root.manifest).clone())),
                ..RuntimeConfig::default()
            },
            chosen_for: None,
            signed,
        })
    }
}

impl Provider for AppcProvider {
    fn kind(&self) -> ImageKind {
        ImageKind::Appc
    }

    fn resolve(&self, request: ImageRequest) -> BoxFuture<'static, Result<ImagePlan, ResolveError>> {
        let policy = request.policy.unwrap_or_default();
        let name = names::canonical(&request.name, &self.platform);
        let (mut this, stop) = (self.clone(), Stop::default());
        this.loader.stop = stop.clone();
        let leaving = stop.on_drop();
        match name.clone() {
            ImageName::Appc(AppcReference::Named(named)) => async move {
                let _leaving = leaving;
                this.named(named, policy).await.map_err(|error| of_name(error, name))
            }
            .boxed(),
            ImageName::Appc(AppcReference::Id(id)) => async move {
                let _leaving = leaving;
                this.stored(&id).await.map_err(|error| of_name(error, name))
            }
            .boxed(),
            ImageName::Aci(path) => async move {
                let _leaving = leaving;
                this.file(path, policy).await.map_err(|error| of_name(error, name))
            }
            .boxed(),
            _ => no_provider(request.name),
        }
    }

    /// The name that an image is remembered by has the platform in it: what it leads to was chosen for that one. An image that says
    /// otherwise is none of ours; one that was brought unsigned is none either once all must be signed.
    fn fits(&self, plan: &ImagePlan) -> bool {
        if !self.may_use(plan) {
            return false;
        }
        let ImageName::Appc(AppcReference::Named(asked)) = &plan.identity.name else { return true };
        let found = plan.runtime.appc.as_ref().map(|manifest| &manifest.name);
        let same = |label: &str| {
            let found = found.and_then(|found| found.label(label));
            found.is_none_or(|found| asked.label(label) == Some(found))
        };
        same(LABEL_OS) && same(LABEL_ARCH)
    }

    /// Discovery knows no users: whoever may ask here may have what is discovered.
    fn authorize(&self, _: ImageRequest, _: &ImagePlan) -> BoxFuture<'static, Result<(), ResolveError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The port's error.
fn of_name(error: AppcError, image: ImageName) -> ResolveError {
    match error {
        AppcError::Fetch(AciFetchError::NotFound { place, source }) => {
            ResolveError::NotFound { image, place, source }
        }
        error @ AppcError::UnknownId => {
            ResolveError::NotFound { image, place: "the store".to_owned(), source: Some(error.into()) }
        }
        AppcError::NotStored => ResolveError::NotStored { image },
        AppcError::Store(error) => error.into(),
        AppcError::Lost(error) => error.into(),
        error => ResolveError::Failed { image, source: error.into() },
    }
}

//! Providers: one actor per image kind, from a name to layers in the store.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use slog::Logger;

use crate::error::{Gone, PullError, ResolveError, StoreError};
use crate::flight::Flights;
use crate::image::access::Access;
use crate::image::name::{ImageName, ImageRequest, PullPolicy};
use crate::image::plan::{ImagePlan, LayerKey, SourceKind};
use crate::messages::{ImagePulled, PullImage, PullLayer, PulledImage, Resolve, Resolved, ResolvedImage};
use crate::pool::{Pool, guarded};
use crate::ports::{ImageRecord, LayerSize, Provider, Records, Store, StoredLayer};
use crate::puller::PullerActor;
use crate::reply::WhileWanted;
use crate::transfer::TransferCounts;

/// What every request to a provider needs.
pub(crate) struct ProviderDeps {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) disk: Pool,
    pub(crate) pullers: BTreeMap<SourceKind, Addr<PullerActor>>,
    /// Whether the source is asked if whoever wants an image that is in the store may have it.
    pub(crate) authorize_stored: bool,
    pub(crate) image_bytes_max: u64,
    pub(crate) image_entries_max: u64,
    pub(crate) log: Logger,
}

/// A name, whether the store may answer, and who asks.
type ResolveKey = (ImageName, PullPolicy, Option<Access>);

pub(crate) struct ProviderActor {
    pub(crate) port: Arc<dyn Provider>,
    pub(crate) deps: Rc<ProviderDeps>,
    /// Resolutions under way, so that a thousand launches of one name ask its source once.
    pub(crate) resolving: Rc<RefCell<Flights<ResolveKey, Resolved>>>,
}

impl Actor for ProviderActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(crate::system::MAILBOX);
    }
}

impl Handler<Resolve> for ProviderActor {
    type Result = WhileWanted<Resolved>;

    fn handle(&mut self, Resolve { request }: Resolve, _: &mut Self::Context) -> Self::Result {
        let (port, deps) = (self.port.clone(), self.deps.clone());
        let start = || {
            let request = request.clone();
            guarded("provider", resolve(port, deps, request)).map(|resolved| resolved.map_err(Arc::new))
        };
        // `alpine` and `docker.io/library/alpine:latest` are one; who wants news must not get what the store remembers;
        // and nobody gets what a registry told somebody else.
        let key = (request.name.canonical(), request.policy.unwrap_or_default(), request.access.clone());
        let flight = self.resolving.borrow_mut().join(key, start).0;
        WhileWanted(flight.boxed_local())
    }
}

async fn resolve(
    port: Arc<dyn Provider>,
    d: Rc<ProviderDeps>,
    request: ImageRequest,
) -> Result<ResolvedImage, ResolveError> {
    // What a path names is asked every time: the file may be another now, and looking costs no network.
    let policy = request.policy.unwrap_or_default();
    if policy != PullPolicy::Always && matches!(request.name, ImageName::Docker(_) | ImageName::Appc(_)) {
        let (store, name) = (d.store.clone(), request.name.canonical());
        let found = d.disk.run(move |_| whole_image(&*store, &name)).await;
        match found.map(|found| found.filter(|(plan, _)| port.fits(plan))) {
            Ok(Some((plan, stored))) => {
                if d.authorize_stored {
                    port.authorize(request, &plan).await?;
                }
                return Ok(ResolvedImage { plan: Arc::new(plan), stored: Some(stored) });
            }
            Ok(None) if policy == PullPolicy::Never => {
                return Err(ResolveError::NotStored { image: request.name });
            }
            Ok(None) => {}
            // A damaged record is worth no more than none: the source is asked, and the record written anew.
            Err(error @ StoreError::Damaged { .. }) if policy != PullPolicy::Never => {
                slog::warn!(d.log, "a record of the store is not usable"; "error" => crate::error::chain(&error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let access = request.access.clone();
    let plan = port.resolve(request).await?.with_access(access.as_ref());
    Ok(ResolvedImage { plan: Arc::new(plan), stored: None })
}

/// The image by this name, if the store has it with every layer.
fn whole_image(
    store: &dyn Store,
    name: &crate::image::name::ImageName,
) -> Result<Option<(ImagePlan, Vec<StoredLayer>)>, StoreError> {
    let Some(record) = store.image(name)? else { return Ok(None) };
    for layer in &record.layers {
        if store.find(&LayerKey::Diff(layer.diff_id.clone()))?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some((record.plan, record.layers)))
}

impl Handler<PullImage> for ProviderActor {
    type Result = WhileWanted<ImagePulled>;

    fn handle(&mut self, PullImage { plan }: PullImage, _: &mut Self::Context) -> Self::Result {
        WhileWanted(pull_image(self.deps.clone(), plan).boxed_local())
    }
}

async fn pull_image(d: Rc<ProviderDeps>, plan: Arc<ImagePlan>) -> ImagePulled {
    let keys: Vec<_> = plan.layers.iter().map(|layer| layer.key.clone()).collect();
    let (store, pinned) = (d.store.clone(), keys.clone());
    // From before the first claim until the image is recorded nobody prunes what comes.
    let _pin =
        d.disk.run(move |_| store.pin(&pinned)).await.map_err(|error: StoreError| Arc::new(error.into()))?;
    // An image may hold a layer twice; it is asked for once.
    let mut distinct = BTreeMap::new();
    for layer in &plan.layers {
        distinct.entry(layer.key.clone()).or_insert_with(|| layer.clone());
    }
    // Before the first byte: an image that cannot fit is refused as a whole, and two pulls do not count on the same
    // space.
    let (store, wanted) = (d.store.clone(), distinct.values().cloned().collect::<Vec<_>>());
    let reserved = d.disk.run(move |_| store.reserve(&wanted));
    let _room = reserved.await.map_err(|error: StoreError| Arc::new(error.into()))?;
    let size = Rc::new(ImageSize { total: Cell::default(), deps: d.clone() });
    let pulls = distinct.into_iter().map(|(key, layer)| {
        let size = size.clone();
        let kind = layer.source.kind();
        let puller = d.pullers.get(&kind).cloned();
        async move {
            let puller = puller.ok_or_else(|| Arc::new(PullError::NoPuller(kind)))?;
            let pulled = puller.send(PullLayer { layer }).await;
            let pulled = pulled.map_err(|_| Arc::new(PullError::Gone(Gone { actor: "puller" })))??;
            size.add(pulled.layer.clone()).await?;
            Ok::<_, Arc<PullError>>((key, pulled))
        }
    });
    // The first failure gives the other layers up, unless somebody else wants them.
    let pulled: BTreeMap<_, _> = try_join_all(pulls).await?.into_iter().collect();
    let layers: Vec<_> = keys.iter().filter_map(|key| pulled.get(key)).map(|one| one.layer.clone()).collect();
    let (store, records) = (d.store.clone(), d.records.clone());
    // Of whose credentials the layers came by nothing is kept.
    let (record_plan, record_layers) = ((*plan).clone().with_access(None), layers.clone());
    let recorded = d.disk.run(move |_| {
        store.record_image(&ImageRecord {
            plan: record_plan,
            layers: record_layers,
            pulled_ms: records.now_ms(),
        })
    });
    recorded.await.map_err(|error: StoreError| Arc::new(error.into()))?;
    let mut transfer = TransferCounts::default();
    pulled.values().for_each(|one| transfer += one.transfer);
    let fetched = pulled.values().filter_map(|one| one.fetched_bytes);
    let (bytes_fetched, layers_fetched) =
        fetched.fold((0, 0), |(sum, count), bytes| (sum + bytes, count + 1));
    slog::info!(d.log, "image pulled"; "image" => %plan.identity.name, "bytes" => bytes_fetched,
        "layers_fetched" => layers_fetched, "layers_reused" => pulled.len() - layers_fetched,
        "retries" => transfer.retries, "bytes_resumed" => transfer.bytes_resumed,
        "bytes_again" => transfer.bytes_again);
    Ok(PulledImage {
        identity: plan.identity.clone(),
        layers,
        runtime: plan.runtime.clone(),
        bytes_fetched,
        layers_fetched,
        layers_reused: pulled.len() - layers_fetched,
        transfer,
    })
}

/// How large the layers of an image are that are here already.
struct ImageSize {
    total: Cell<LayerSize>,
    deps: Rc<ProviderDeps>,
}

impl ImageSize {
    /// Adds a layer. Beyond a limit the pull fails, which gives up the layers that are not here yet; those that are
    /// stay until a prune, as after any failed pull.
    async fn add(&self, layer: StoredLayer) -> Result<(), PullError> {
        let store = self.deps.store.clone();
        let size = self.deps.disk.run(move |_| store.layer_size(&layer)).await?;
        let LayerSize { bytes, entries } = self.total.get();
        let bytes = bytes.saturating_add(size.bytes);
        let entries = entries.saturating_add(size.entries);
        self.total.set(LayerSize { bytes, entries });
        let limits = [
            (bytes, self.deps.image_bytes_max, "bytes", "image_bytes_max"),
            (entries, self.deps.image_entries_max, "entries", "image_entries_max"),
        ];
        match limits.into_iter().find(|(found, limit, ..)| found > limit) {
            None => Ok(()),
            Some((_, limit, unit, flag)) => Err(PullError::ImageLimit { limit, unit, flag }),
        }
    }
}

//! The provisioner: image -> rootfs, and back. Owns the table of root filesystems of this process.
//!
//! The rules of Mesos' provisioner, with its defects mended: what a container uses is recorded before the first byte
//! comes (a union over all its images), a destroy at any moment wins and leaves nothing, every backend call is awaited,
//! all failures are told, and a destroy that failed can be asked for again.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, join_all};
use slog::Logger;
use tokio::sync::watch;

use crate::backend::BackendActor;
use crate::container::{BackendName, ContainerId, RootfsId, RootfsRecord};
use crate::error::{DestroyError, Gone, MountError, ProvisionError, ResolveError, StoreError};
use crate::image::name::{ImageKind, ImageRequest};
use crate::image::plan::{ImagePlan, LayerKey};
use crate::messages::{
    Deprovision, Mount, Provision, Provisioned, Prune, PruneError, Pull, PullImage, PulledImage, Resolve,
    ResolvedImage, Unmount,
};
use crate::pool::Pool;
use crate::ports::{Pruned, Records, Rootfs, Store, StoredLayer};
use crate::provider::ProviderActor;
use crate::reply::WhileWanted;

/// Keeps layers from being pruned until it drops.
type Pin = Box<dyn Send + Sync>;

type DestroyFlight = Shared<LocalBoxFuture<'static, Result<bool, Arc<DestroyError>>>>;

/// What all requests share; the actor's thread is the only one that touches the table.
pub(crate) struct ProvisionerDeps {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) disk: Pool,
    pub(crate) providers: BTreeMap<ImageKind, Addr<ProviderActor>>,
    pub(crate) backends: BTreeMap<BackendName, Addr<BackendActor>>,
    pub(crate) default_backend: BackendName,
    pub(crate) log: Logger,
}

#[derive(Clone)]
pub(crate) struct ProvisionerActor {
    pub(crate) deps: Rc<ProvisionerDeps>,
    pub(crate) table: Rc<RefCell<HashMap<ContainerId, Entry>>>,
}

/// The root filesystems of one container.
pub(crate) struct Entry {
    record: RootfsRecord,
    next: u32,
    /// How many provisions of it are under way; raised to `true` beside it when it is to go.
    under_way: watch::Sender<usize>,
    doomed: watch::Sender<bool>,
    /// Record writes of one container must not overtake each other, nor its removal. The turn travels with the write:
    /// a provision that is given up lets go of it only when its write has ended.
    writing: Arc<tokio::sync::Mutex<()>>,
    destroying: Option<DestroyFlight>,
}

impl Entry {
    fn new(boot_id: String) -> Self {
        Self {
            record: RootfsRecord { boot_id, ..RootfsRecord::default() },
            next: 0,
            under_way: watch::Sender::new(0),
            doomed: watch::Sender::new(false),
            writing: Arc::default(),
            destroying: None,
        }
    }
}

impl Actor for ProvisionerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(crate::system::MAILBOX);
    }
}

impl Handler<Pull> for ProvisionerActor {
    type Result = WhileWanted<Result<PulledImage, Arc<ProvisionError>>>;

    fn handle(&mut self, Pull { request }: Pull, _: &mut Self::Context) -> Self::Result {
        let this = self.clone();
        WhileWanted(
            async move {
                let resolved = this.resolve(&request).await?;
                match resolved.stored {
                    Some(layers) => Ok(found(&resolved.plan, layers)),
                    None => this.pull(&request, resolved.plan).await,
                }
            }
            .map(|pulled: Result<_, ProvisionError>| pulled.map_err(Arc::new))
            .boxed_local(),
        )
    }
}

/// An image that was whole in the store.
fn found(plan: &ImagePlan, layers: Vec<StoredLayer>) -> PulledImage {
    let distinct: std::collections::BTreeSet<_> = layers.iter().collect();
    PulledImage {
        identity: plan.identity.clone(),
        runtime: plan.runtime.clone(),
        bytes_fetched: 0,
        layers_fetched: 0,
        layers_reused: distinct.len(),
        layers,
    }
}

impl Handler<Provision> for ProvisionerActor {
    type Result = WhileWanted<Result<Provisioned, Arc<ProvisionError>>>;

    fn handle(&mut self, Provision { container, request }: Provision, _: &mut Self::Context) -> Self::Result {
        // The entry is there before anything else happens: a destroy from now on finds it.
        let begun = self.begin(&container);
        let this = self.clone();
        WhileWanted(
            async move {
                let (id, mut doomed, _under_way) = begun?;
                let destroyed = || ProvisionError::Destroyed { container: container.clone() };
                // The pin is held until the mount stands: a prune that read the records before ours was written, and
                // removes layers after they came, finds it.
                let (brought, _pin) = tokio::select! {
                    brought = this.bring(&container, id, &request) => brought?,
                    _ = doomed.wait_for(|doomed| *doomed) => return Err(destroyed()),
                };
                // From here on the mount runs to its end whatever happens; a destroy waits behind it.
                let rootfs = this.mount(&container, id, &brought).await;
                if *doomed.borrow() {
                    return Err(destroyed());
                }
                Ok(Provisioned { rootfs: rootfs?, image: brought })
            }
            .map(|provisioned: Result<_, ProvisionError>| provisioned.map_err(Arc::new))
            .boxed_local(),
        )
    }
}

/// Counts a provision under way; it is over when this drops, also when its future is dropped.
struct UnderWay(watch::Sender<usize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl ProvisionerActor {
    fn begin(
        &self,
        container: &ContainerId,
    ) -> Result<(RootfsId, watch::Receiver<bool>, UnderWay), ProvisionError> {
        let mut table = self.table.borrow_mut();
        let boot_id = || self.deps.records.us().boot_id;
        let entry = table.entry(container.clone()).or_insert_with(|| Entry::new(boot_id()));
        if *entry.doomed.borrow() {
            return Err(ProvisionError::Destroyed { container: container.clone() });
        }
        let id = RootfsId(entry.next);
        entry.next += 1;
        entry.record.rootfses.push((id, self.deps.default_backend));
        entry.under_way.send_modify(|count| *count += 1);
        Ok((id, entry.doomed.subscribe(), UnderWay(entry.under_way.clone())))
    }

    /// The image in the store, pinned and recorded as the container's before the first layer comes.
    async fn bring(
        &self,
        container: &ContainerId,
        id: RootfsId,
        request: &ImageRequest,
    ) -> Result<(PulledImage, Pin), ProvisionError> {
        let mut resolved = self.resolve(request).await?;
        let plan = resolved.plan.clone();
        let (pin, still_there) = self.pin(&resolved).await?;
        if !still_there {
            // Pruned between the look and the pin.
            resolved.stored = None;
        }
        self.record(container, |record| {
            let known = plan.layers.iter().filter_map(|layer| match &layer.key {
                LayerKey::Diff(diff) => Some(diff.clone()),
                LayerKey::Blob(_) => None,
            });
            record.layers.extend(known);
            if let Some(stored) = &resolved.stored {
                record.layers.extend(stored.iter().map(|layer| layer.diff_id.clone()));
            }
            if !record.images.contains(&plan.identity) {
                record.images.push(plan.identity.clone());
            }
        })
        .await?;
        let image = match resolved.stored {
            Some(layers) => found(&plan, layers),
            None => self.pull(request, plan.clone()).await?,
        };
        // Layers known by blob alone have their diff IDs now.
        if plan.layers.iter().any(|layer| matches!(layer.key, LayerKey::Blob(_))) {
            let layers: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
            self.record(container, |record| record.layers.extend(layers.iter().cloned())).await?;
        }
        slog::debug!(self.deps.log, "image is in the store";
            "container" => %container, "rootfs" => %id, "image" => %plan.identity.name);
        Ok((image, pin))
    }

    /// Keeps an image's layers from being pruned; whether those found in the store are there now that they are kept.
    async fn pin(&self, resolved: &ResolvedImage) -> Result<(Pin, bool), ProvisionError> {
        let mut keys: Vec<_> = resolved.plan.layers.iter().map(|layer| layer.key.clone()).collect();
        let stored = resolved.stored.iter().flatten().map(|layer| LayerKey::Diff(layer.diff_id.clone()));
        let stored: Vec<_> = stored.collect();
        keys.extend(stored.iter().filter(|key| !keys.contains(key)).cloned().collect::<Vec<_>>());
        let store = self.deps.store.clone();
        let pinned = self.deps.disk.run(move |_| {
            let pin = store.pin(&keys)?;
            for key in &stored {
                if store.find(key)?.is_none() {
                    return Ok((pin, false));
                }
            }
            Ok((pin, true))
        });
        pinned.await.map_err(|error: StoreError| ProvisionError::Mount(error.into()))
    }

    async fn resolve(&self, request: &ImageRequest) -> Result<ResolvedImage, ProvisionError> {
        let kind = request.name.kind();
        let Some(provider) = self.deps.providers.get(&kind) else {
            let image = request.name.clone();
            return Err(ProvisionError::Resolve(Arc::new(ResolveError::NoProvider { kind, image })));
        };
        let resolved = provider.send(Resolve { request: request.clone() }).await;
        resolved.map_err(|_| Gone { actor: "provider" })?.map_err(ProvisionError::Resolve)
    }

    async fn pull(
        &self,
        request: &ImageRequest,
        plan: Arc<ImagePlan>,
    ) -> Result<PulledImage, ProvisionError> {
        let Some(provider) = self.deps.providers.get(&request.name.kind()) else {
            return Err(Gone { actor: "provider" }.into());
        };
        let pulled = provider.send(PullImage { plan }).await.map_err(|_| Gone { actor: "provider" })?;
        pulled.map_err(|source| ProvisionError::Pull { image: request.name.clone(), source })
    }

    /// Changes the container's record, in memory and then on disk.
    async fn record(
        &self,
        container: &ContainerId,
        change: impl FnOnce(&mut RootfsRecord),
    ) -> Result<(), ProvisionError> {
        let writing = match self.table.borrow_mut().get_mut(container) {
            Some(entry) => {
                change(&mut entry.record);
                entry.writing.clone()
            }
            None => return Err(ProvisionError::Destroyed { container: container.clone() }),
        };
        let turn = writing.lock_owned().await;
        // The newest state, not the one at the time of asking: writes in turn never lose a change.
        let Some(record) = self.table.borrow().get(container).map(|entry| entry.record.clone()) else {
            return Err(ProvisionError::Destroyed { container: container.clone() });
        };
        let (records, id) = (self.deps.records.clone(), container.clone());
        let write = self.deps.disk.run(move |_| {
            let _turn = turn;
            records.write_rootfses(&id, &record)
        });
        Ok(write.await?)
    }

    async fn mount(
        &self,
        container: &ContainerId,
        id: RootfsId,
        image: &PulledImage,
    ) -> Result<Rootfs, ProvisionError> {
        let name = self.deps.default_backend;
        let backend = self.deps.backends.get(&name).ok_or(MountError::NoBackend(name))?;
        let place = self.deps.records.place(container, name, id);
        let mounted = backend.send(Mount { stack: image.layers.clone(), place }).await;
        let mounted = mounted.map_err(|_| Gone { actor: "backend" })?;
        mounted.map_err(ProvisionError::Mounting)
    }
}

impl Handler<Deprovision> for ProvisionerActor {
    type Result = actix::ResponseFuture<Result<bool, Arc<DestroyError>>>;

    fn handle(&mut self, Deprovision { container }: Deprovision, _: &mut Self::Context) -> Self::Result {
        let mut table = self.table.borrow_mut();
        let entry = table.entry(container.clone()).or_insert_with(|| Entry::new(String::new()));
        entry.doomed.send_replace(true);
        let flight = entry.destroying.clone().filter(|flight| flight.peek().is_none()).unwrap_or_else(|| {
            self.clone()
                .deprovision(container, entry.under_way.subscribe())
                .map(|done| done.map_err(Arc::new))
                .boxed_local()
                .shared()
        });
        entry.destroying = Some(flight.clone());
        // Runs to its end with or without an asker.
        actix::spawn(flight.clone().map(drop));
        flight.boxed_local()
    }
}

impl ProvisionerActor {
    async fn deprovision(
        self,
        container: ContainerId,
        mut under_way: watch::Receiver<usize>,
    ) -> Result<bool, DestroyError> {
        // Every provision has seen that it is doomed and ends: at once while it pulls, after its mount otherwise.
        let _ = under_way.wait_for(|count| *count == 0).await;
        let writing = self.table.borrow().get(&container).map(|entry| entry.writing.clone());
        if let Some(writing) = writing {
            drop(writing.lock().await);
        }
        let (records, id) = (self.deps.records.clone(), container.clone());
        let on_disk = self.deps.disk.run(move |_| records.read(&id)).await?;
        let in_memory = self.table.borrow().get(&container).map(|entry| entry.record.rootfses.clone());
        let mut rootfses: Vec<_> = in_memory.unwrap_or_default();
        rootfses
            .extend(on_disk.and_then(|found| found.rootfses).into_iter().flat_map(|record| record.rootfses));
        rootfses.sort_unstable();
        rootfses.dedup();
        let unmounts = rootfses.iter().map(|&(rootfs, name)| {
            let place = self.deps.records.place(&container, name, rootfs);
            let backend = self.deps.backends.get(&name).cloned();
            async move {
                let backend = backend.ok_or_else(|| Arc::new(MountError::NoBackend(name)))?;
                let gone = |_| Arc::new(MountError::Gone(Gone { actor: "backend" }));
                backend.send(Unmount { place }).await.map_err(gone)?
            }
            .map(move |done: Result<bool, Arc<MountError>>| (rootfs, done))
        });
        let (mut had, mut failures) = (false, Vec::new());
        for (rootfs, done) in join_all(unmounts).await {
            match done {
                Ok(was_there) => had |= was_there,
                Err(error) => failures.push((rootfs, error)),
            }
        }
        if failures.is_empty() {
            self.table.borrow_mut().remove(&container);
            return Ok(had);
        }
        Err(DestroyError::Rootfses { container, failures })
    }
}

impl Handler<Prune> for ProvisionerActor {
    type Result = actix::ResponseFuture<Result<Pruned, Arc<PruneError>>>;

    fn handle(&mut self, Prune { keep }: Prune, _: &mut Self::Context) -> Self::Result {
        let (records, store) = (self.deps.records.clone(), self.deps.store.clone());
        let disk = self.deps.disk.clone();
        let prune = async move {
            disk.run(move |_| {
                let found = records.list()?;
                let in_use: Vec<_> = found.into_iter().filter_map(|found| found.rootfses).collect();
                Ok::<_, PruneError>(store.prune(&keep, &in_use)?)
            })
            .await
        };
        prune.map(|pruned| pruned.map_err(Arc::new)).boxed_local()
    }
}

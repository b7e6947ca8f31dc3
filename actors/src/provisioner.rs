//! The provisioner: image -> rootfs, and back. Owns the table of root filesystems of this process.
//!
//! The rules of Mesos' provisioner, with its defects mended: what a container uses is recorded before the first byte
//! comes (a union over all its images), a destroy at any moment wins and leaves nothing, every backend call is awaited,
//! all failures are told, and a destroy that failed can be asked for again.
//!
//! **Prune beside provisions.** A prune lists what containers use and then removes the rest, and a provision may record
//! its layers between the two. So layers are pinned before it is looked whether they are there, and stay pinned until
//! the rootfs stands and every prune that was under way then, and may have listed before, has ended.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Message, ResponseFuture};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, join_all};
use slog::Logger;
use tokio::sync::watch;

use crate::backend::{self, BackendActor};
use crate::container::{BackendName, ContainerId, RootfsId, RootfsRecord};
use crate::error::{
    Cause, DestroyError, Gone, MountError, ProvisionError, PullError, ResolveError, StoreError, chain,
};
use crate::image::name::{ImageKind, ImageRequest};
use crate::image::plan::{ImagePlan, LayerKey};
use crate::messages::{
    Deprovision, Mount, Provision, Provisioned, Prune, PruneError, Pull, PullImage, PulledImage, Resolve,
    ResolvedImage, Unmount,
};
use crate::pool::{Pool, guarded};
use crate::ports::{ImageRecord, Pruned, Records, Rootfs, Store, StoredLayer};
use crate::provider::ProviderActor;
use crate::reply::WhileWanted;

type DestroyFlight = Shared<LocalBoxFuture<'static, Result<bool, Arc<DestroyError>>>>;

/// What all requests share; the actor's thread is the only one that touches the table.
pub(crate) struct ProvisionerDeps {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) disk: Pool,
    /// Removing trees takes long: it must not keep records from being written.
    pub(crate) prune: Pool,
    /// Of the machine, as it runs now.
    pub(crate) boot_id: String,
    pub(crate) providers: BTreeMap<ImageKind, Addr<ProviderActor>>,
    pub(crate) backends: BTreeMap<BackendName, Addr<BackendActor>>,
    pub(crate) default_backend: BackendName,
    pub(crate) log: Logger,
}

#[derive(Clone)]
pub(crate) struct ProvisionerActor {
    pub(crate) deps: Rc<ProvisionerDeps>,
    pub(crate) table: Rc<RefCell<HashMap<ContainerId, Entry>>>,
    pub(crate) prunes: Rc<Prunes>,
}

/// Prunes under way, and the pins that wait for their end.
#[derive(Default)]
pub(crate) struct Prunes {
    under_way: Cell<usize>,
    pins: RefCell<Vec<Pins>>,
}

/// Keeps layers from being pruned.
type Pins = Box<dyn Send + Sync>;

impl Prunes {
    /// A prune is under way until the guard drops.
    fn enter(self: &Rc<Self>) -> Pruning {
        self.under_way.set(self.under_way.get() + 1);
        Pruning(self.clone())
    }

    /// Lets go of pins whose layers are recorded as in use: at once, or after the prunes that may not know it.
    fn let_go(&self, pins: Pins) {
        if self.under_way.get() > 0 {
            self.pins.borrow_mut().push(pins);
        }
    }
}

struct Pruning(Rc<Prunes>);

impl Drop for Pruning {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        if self.0.under_way.get() == 0 {
            self.0.pins.take();
        }
    }
}

/// Forget a container that stays when this process ends: whoever destroys it reads the records.
pub(crate) struct LetGo {
    pub(crate) container: ContainerId,
}
impl Message for LetGo {
    type Result = ();
}

/// All images in the store, each with the bytes of file content of its layers.
pub(crate) struct Images;
impl Message for Images {
    type Result = Result<Vec<(ImageRecord, u64)>, StoreError>;
}

/// The root filesystems of one container.
pub(crate) struct Entry {
    record: RootfsRecord,
    next: u32,
    /// Of the rootfses of the record, those that a backend was asked to mount.
    mounting: BTreeSet<RootfsId>,
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
            mounting: BTreeSet::new(),
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
        transfer: Default::default(),
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
                let provisioned = tokio::select! {
                    biased;
                    // Leaving a mount under way does not end it: the unmount that follows stops it, and waits for it.
                    _ = doomed.wait_for(|doomed| *doomed) => return Err(destroyed()),
                    provisioned = guarded("provision", this.build(&container, id, &request)) => provisioned,
                };
                if provisioned.is_err() {
                    this.withdraw(&container, id).await;
                }
                if *doomed.borrow() { Err(destroyed()) } else { provisioned }
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
        let boot_id = || self.deps.boot_id.clone();
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

    async fn build(
        &self,
        container: &ContainerId,
        id: RootfsId,
        request: &ImageRequest,
    ) -> Result<Provisioned, ProvisionError> {
        let (image, pins) = self.bring(container, id, request).await?;
        let rootfs = self.mount(container, id, &image).await?;
        self.prunes.let_go(pins);
        Ok(Provisioned { rootfs, image })
    }

    /// Clears away one rootfs that could not be provisioned; the container's others stay. What cannot be cleared
    /// away stays in the record, for the container's destruction.
    async fn withdraw(&self, container: &ContainerId, id: RootfsId) {
        let name = self.deps.default_backend;
        let mounting = self.table.borrow().get(container).is_some_and(|entry| entry.mounting.contains(&id));
        let withdraw = guarded("provision", async {
            if mounting {
                self.unmount(container, name, id).await.map_err(ProvisionError::Mounting)?;
            }
            self.record(container, |record| record.rootfses.retain(|(rootfs, _)| *rootfs != id)).await
        });
        match withdraw.await {
            // A destroy came in between: it does the rest.
            Ok(()) | Err(ProvisionError::Destroyed { .. }) => {}
            Err(error) => slog::warn!(self.deps.log, "a rootfs that failed is cleared away later";
                "container" => %container, "rootfs" => %id, "error" => chain(&error)),
        }
    }

    /// Pins layers; whether all of them are there, now that nobody can prune them.
    async fn pin(&self, keys: Vec<LayerKey>) -> Result<(Pins, bool), StoreError> {
        let store = self.deps.store.clone();
        let pin = self.deps.disk.run(move |_| {
            let pins = store.pin(&keys)?;
            for key in &keys {
                if store.find(key)?.is_none() {
                    return Ok((pins, false));
                }
            }
            Ok((pins, true))
        });
        pin.await
    }

    /// The image in the store, pinned, and recorded as the container's before the first layer comes.
    async fn bring(
        &self,
        container: &ContainerId,
        id: RootfsId,
        request: &ImageRequest,
    ) -> Result<(PulledImage, Pins), ProvisionError> {
        let resolved = self.resolve(request).await?;
        let plan = resolved.plan.clone();
        let keys = match &resolved.stored {
            Some(stored) => stored.iter().map(|layer| LayerKey::Diff(layer.diff_id.clone())).collect(),
            None => plan.layers.iter().map(|layer| layer.key.clone()).collect(),
        };
        let (pins, all_there) = self.pin(keys).await.map_err(|error| ProvisionError::Pull {
            image: request.name.clone(),
            source: Arc::new(PullError::Store(error)),
        })?;
        self.record(container, |record| {
            let known = plan.layers.iter().filter_map(|layer| layer.key.diff_id().cloned());
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
            Some(layers) if all_there => found(&plan, layers),
            // What was there when the name was resolved may have been pruned before it was pinned.
            _ => self.pull(request, plan.clone()).await?,
        };
        // Layers known by blob alone have their diff IDs now.
        if plan.layers.iter().any(|layer| layer.key.diff_id().is_none()) {
            let layers: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
            self.record(container, |record| record.layers.extend(layers.iter().cloned())).await?;
        }
        slog::debug!(self.deps.log, "image is in the store";
            "container" => %container, "rootfs" => %id, "image" => %plan.identity.name);
        Ok((image, pins))
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
        if let Some(entry) = self.table.borrow_mut().get_mut(container) {
            entry.mounting.insert(id);
        }
        let mounted = backend.send(Mount { stack: image.layers.clone(), place }).await;
        let mounted = mounted.map_err(|_| Gone { actor: "backend" })?;
        mounted.map_err(ProvisionError::Mounting)
    }

    async fn unmount(
        &self,
        container: &ContainerId,
        name: BackendName,
        id: RootfsId,
    ) -> Result<bool, Arc<MountError>> {
        let backend = self.deps.backends.get(&name).ok_or_else(|| Arc::new(MountError::NoBackend(name)))?;
        let place = self.deps.records.place(container, name, id);
        let gone = |_| Arc::new(MountError::Gone(Gone { actor: "backend" }));
        backend.send(Unmount { place }).await.map_err(gone)?
    }
}

impl Handler<Deprovision> for ProvisionerActor {
    type Result = ResponseFuture<Result<bool, Arc<DestroyError>>>;

    fn handle(&mut self, Deprovision { container }: Deprovision, _: &mut Self::Context) -> Self::Result {
        let mut table = self.table.borrow_mut();
        let entry = table.entry(container.clone()).or_insert_with(|| Entry::new(String::new()));
        entry.doomed.send_replace(true);
        let flight = entry.destroying.clone().filter(|flight| flight.peek().is_none()).unwrap_or_else(|| {
            guarded("provision", self.clone().deprovision(container, entry.under_way.subscribe()))
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
        let unmounts = rootfses
            .iter()
            .map(|&(rootfs, name)| self.unmount(&container, name, rootfs).map(move |done| (rootfs, done)));
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

impl Handler<LetGo> for ProvisionerActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, LetGo { container }: LetGo, _: &mut Self::Context) -> Self::Result {
        let mut table = self.table.borrow_mut();
        let idle = table
            .get(&container)
            .is_some_and(|entry| *entry.under_way.borrow() == 0 && !*entry.doomed.borrow());
        let rootfses = if idle { table.remove(&container) } else { None }.map(|entry| entry.record.rootfses);
        let let_go = rootfses.unwrap_or_default().into_iter().filter_map(|(rootfs, name)| {
            let message = backend::LetGo { rootfs: (container.clone(), rootfs) };
            Some(self.deps.backends.get(&name)?.send(message))
        });
        // A backend that is gone holds nothing.
        join_all(let_go).map(drop).boxed_local()
    }
}

impl Handler<Images> for ProvisionerActor {
    type Result = WhileWanted<Result<Vec<(ImageRecord, u64)>, StoreError>>;

    fn handle(&mut self, _: Images, _: &mut Self::Context) -> Self::Result {
        let (store, disk) = (self.deps.store.clone(), self.deps.disk.clone());
        let weigh = move |record: ImageRecord| {
            let distinct: BTreeSet<_> = record.layers.iter().collect();
            // A layer that is gone weighs nothing.
            let bytes = distinct
                .into_iter()
                .filter_map(|layer| store.layer_size(layer).ok())
                .map(|size| size.bytes)
                .sum();
            (record, bytes)
        };
        let store = self.deps.store.clone();
        let images =
            async move { disk.run(move |_| Ok(store.images()?.into_iter().map(weigh).collect())).await };
        WhileWanted(images.boxed_local())
    }
}

/// What containers of all processes use.
pub(crate) fn in_use(records: &dyn Records) -> Result<Vec<RootfsRecord>, Cause> {
    Ok(records.list()?.into_iter().filter_map(|found| found.rootfses).collect())
}

impl Handler<Prune> for ProvisionerActor {
    type Result = ResponseFuture<Result<Pruned, Arc<PruneError>>>;

    fn handle(&mut self, Prune { keep }: Prune, _: &mut Self::Context) -> Self::Result {
        let (records, store) = (self.deps.records.clone(), self.deps.store.clone());
        let (pool, pruning) = (self.deps.prune.clone(), self.prunes.enter());
        let prune = async move {
            let _pruning = pruning;
            pool.run(move |_| Ok::<_, PruneError>(store.prune(&keep, &|| in_use(&*records))?)).await
        };
        prune.map(|pruned| pruned.map_err(Arc::new)).boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::fakes::{Act, Step, World};
    use crate::image::name::ImageName;
    use crate::system::{EngineLimits, start_actors};

    fn provision(image: &str) -> Provision {
        let name: ImageName = image.parse().unwrap();
        Provision { container: "web".parse().unwrap(), request: ImageRequest::cached(name) }
    }

    fn deprovision() -> Deprovision {
        Deprovision { container: "web".parse().unwrap() }
    }

    fn with_provisioner(world: &World, test: impl AsyncFnOnce(Addr<ProvisionerActor>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (provisioner, _containerizer) = start_actors(world.parts(EngineLimits::default()));
            let ended = tokio::time::timeout(std::time::Duration::from_secs(60), test(provisioner)).await;
            world.open_all();
            ended.expect("a request was never answered");
        });
    }

    fn recorded(world: &World) -> RootfsRecord {
        world.rootfses(&"web".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_provision_that_fails_clears_its_own_rootfs_away_and_the_others_stay() {
        for act in [Act::Fail, Act::Panic] {
            let world = World::default();
            with_provisioner(&world, async |provisioner| {
                provisioner.send(provision("app:3")).await.unwrap().unwrap();
                world.once(Step::Mount, act.clone());
                provisioner.send(provision("data:2")).await.unwrap().unwrap_err();
                assert_eq!(recorded(&world).rootfses, [(RootfsId(0), BackendName::Overlay)]);
                assert_eq!(world.history(), ["mount web 0", "mount web 1", "unmount web 1"]);
                // Numbers are never used twice.
                let third = provisioner.send(provision("data:2")).await.unwrap().unwrap();
                assert_eq!(third.rootfs.id, RootfsId(2));
                assert!(provisioner.send(deprovision()).await.unwrap().unwrap());
                assert!(
                    !world.leftovers().iter().any(|left| left.contains("mounts")),
                    "{:?}",
                    world.leftovers()
                );
            });
        }
    }

    #[test]
    fn a_rootfs_that_cannot_be_cleared_away_is_left_to_the_destruction() {
        let world = World::default();
        with_provisioner(&world, async |provisioner| {
            world.once(Step::Mount, Act::Fail);
            world.once(Step::Unmount, Act::Fail);
            provisioner.send(provision("app:1")).await.unwrap().unwrap_err();
            assert_eq!(recorded(&world).rootfses.len(), 1);
            provisioner.send(deprovision()).await.unwrap().unwrap();
            assert_eq!(world.count(Step::Unmount), 2);
        });
    }

    #[test]
    fn a_destroy_stops_a_mount_under_way_and_refuses_what_comes_after_it() {
        let world = World::default();
        with_provisioner(&world, async |provisioner| {
            world.close(Step::Mount);
            world.close(Step::Unmount);
            let (under_way, (destroyed, second, late)) =
                tokio::join!(provisioner.send(provision("app:1")), async {
                    world.reached(Step::Mount, 1).await;
                    let destroys = async {
                        tokio::join!(provisioner.send(deprovision()), provisioner.send(deprovision()))
                    };
                    let late = async {
                        world.reached(Step::Unmount, 1).await;
                        let late = provisioner.send(provision("app:1")).await;
                        // Never opened for the mount: the destroy stopped it.
                        world.open_gate(Step::Unmount);
                        late
                    };
                    let ((first, second), late) = tokio::join!(destroys, late);
                    (first, second, late)
                });
            assert!(matches!(&*under_way.unwrap().unwrap_err(), ProvisionError::Destroyed { .. }));
            assert!(matches!(&*late.unwrap().unwrap_err(), ProvisionError::Destroyed { .. }));
            destroyed.unwrap().unwrap();
            second.unwrap().unwrap();
            assert_eq!(world.history(), ["mount web 0", "stop web 0", "unmount web 0"]);
        });
    }

    #[test]
    fn a_failed_destroy_names_every_rootfs_and_is_finished_by_the_next() {
        let world = World::default();
        with_provisioner(&world, async |provisioner| {
            for image in ["app:1", "data:1", "more:1"] {
                provisioner.send(provision(image)).await.unwrap().unwrap();
            }
            world.always(Step::Unmount, true);
            let error = provisioner.send(deprovision()).await.unwrap().unwrap_err();
            match &*error {
                DestroyError::Rootfses { failures, .. } => assert_eq!(failures.len(), 3),
                error => panic!("{error:?}"),
            }
            world.always(Step::Unmount, false);
            assert!(provisioner.send(deprovision()).await.unwrap().unwrap());
            // Gone from memory; what is still recorded is asked for and not there.
            assert!(!provisioner.send(deprovision()).await.unwrap().unwrap());
        });
    }

    #[test]
    fn layers_of_all_images_are_recorded_before_the_first_is_claimed() {
        let world = World::default();
        with_provisioner(&world, async |provisioner| {
            provisioner.send(provision("app:3")).await.unwrap().unwrap();
            world.close(Step::Claim);
            let under_way = provisioner.send(provision("data:2"));
            let look = async {
                world.reached(Step::Claim, 1).await;
                let record = recorded(&world);
                assert_eq!((record.layers.len(), record.images.len(), record.rootfses.len()), (5, 2, 2));
                assert_eq!(record.boot_id, "this boot");
                assert!(world.pins() > 0);
                world.open_all();
            };
            tokio::join!(under_way, look).0.unwrap().unwrap();
            assert_eq!(world.pins(), 0);
        });
    }
}

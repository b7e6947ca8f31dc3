//! Ports with gates and counters, for tests here and in embedders' own suites (feature `fakes`).
//!
//! One [`World`] stands behind all fake ports. It counts what is done, keeps what exists (layers, mounts, records,
//! processes), can hold any step at a named [`Gate`], and can make any step fail or panic. Nothing touches a disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

use crate::container::{
    BackendName, ContainerId, ContainerRecord, ExitStatus, ProcessIdentity, RootfsId, RootfsRecord,
};
use crate::error::{
    FetchError, IsolatorError, LaunchError, MountError, NoRoom, RecordError, ResolveError, StoreError,
    UnpackError,
};
use crate::image::access::Access;
use crate::image::digest::{DiffId, Digest};
use crate::image::name::{ImageKind, ImageName, ImageRequest};
use crate::image::plan::{
    BlobSpec, ImageIdentity, ImagePlan, LayerKey, LayerSource, LayerSpec, RuntimeConfig, SourceKind,
};
use crate::launch::{LaunchContext, LaunchPlan};
use crate::ports::{
    Backend, Blob, Claim, ExecSpec, Found, Hold, ImageRecord, InUse, Isolator, Keep, Launched, Launcher,
    LayerDir, LayerSize, Owner, Provider, Pruned, Puller, Records, Rootfs, RootfsPlace, Staging, Store,
    StoredLayer,
};
use crate::progress::{LayerEvent, Observer};
use crate::stop::Stop;
use crate::system::{Engine, EngineLimits, EngineParts};

/// Every step a fake port can be held, failed or panicked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the port's method")]
pub enum Step {
    Resolve,
    Authorize,
    Claim,
    Open,
    Unpack,
    RecordImage,
    Show,
    Mount,
    Unmount,
    Create,
    WriteRootfses,
    WriteContainer,
    Prepare,
    Start,
    Isolate,
    Release,
    KillAll,
    Cleanup,
    Remove,
    Find,
    Pin,
    Reserve,
    Image,
    Images,
    LayerSize,
    Prune,
    RecoverStore,
    HideIdle,
    Adopt,
    Read,
    List,
    RequestDestroy,
    DestroyRequested,
    Init,
    Signal,
    Wait,
    Exec,
    SignalOther,
    WaitOther,
    KillOrphan,
    Observe,
}

impl Step {
    /// All steps, in the order a launch comes by them.
    pub const ALL: [Self; 19] = [
        Self::Create,
        Self::WriteContainer,
        Self::Resolve,
        Self::WriteRootfses,
        Self::Reserve,
        Self::Claim,
        Self::Open,
        Self::Unpack,
        Self::RecordImage,
        Self::Show,
        Self::Mount,
        Self::Prepare,
        Self::Start,
        Self::Isolate,
        Self::Release,
        Self::KillAll,
        Self::Cleanup,
        Self::Unmount,
        Self::Remove,
    ];
}

/// What a step does when it is come by.
#[derive(Clone, Debug)]
pub enum Act {
    /// Fails, as the port's own failure. For sources: of the source.
    Fail,
    /// Panics, once.
    Panic,
}

/// A place where a step waits until it is opened.
#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    waiting: usize,
}

#[derive(Default)]
struct Inner {
    counts: BTreeMap<Step, usize>,
    acts: HashMap<Step, Act>,
    failing: BTreeSet<Step>,
    bad_sources: std::collections::HashSet<LayerSource>,
    refused: std::collections::HashSet<Option<Access>>,
    gates: HashMap<Step, Gate>,
    layers: BTreeSet<DiffId>,
    staged: BTreeSet<DiffId>,
    pins: BTreeMap<u64, BTreeSet<DiffId>>,
    next_pin: u64,
    /// Free places for layers; `None` = as many as wanted.
    places: Option<usize>,
    reserved: BTreeMap<u64, BTreeSet<DiffId>>,
    shown: usize,
    /// Holds that were told to keep their layer shown.
    kept: usize,
    /// What was in use each time the store was to hide what is not.
    hidden_but: Vec<BTreeSet<DiffId>>,
    hidden_by: BTreeSet<String>,
    directories: BTreeSet<ContainerId>,
    execs: HashMap<ContainerId, Vec<Arc<Process>>>,
    events: Vec<(String, LayerEvent)>,
    images: BTreeMap<String, ImageRecord>,
    mounted: BTreeSet<(ContainerId, RootfsId)>,
    mounting: BTreeSet<(ContainerId, RootfsId)>,
    overlaps: usize,
    history: Vec<String>,
    names: BTreeMap<ContainerId, bool>,
    containers: BTreeMap<ContainerId, ContainerRecord>,
    rootfses: BTreeMap<ContainerId, RootfsRecord>,
    requests: BTreeSet<ContainerId>,
    processes: usize,
    isolated: BTreeMap<ContainerId, i64>,
}

impl Inner {
    fn refuses(&self, layer: &LayerSpec) -> bool {
        self.bad_sources.contains(&layer.source) || self.refused.contains(&layer.access)
    }

    fn found(&self, id: &ContainerId) -> Found {
        Found {
            id: id.clone(),
            container: self.containers.get(id).cloned(),
            rootfses: self.rootfses.get(id).cloned(),
            owner: match self.names.get(id) {
                Some(true) => Owner::Us,
                Some(false) => Owner::Other,
                None => Owner::Nobody,
            },
        }
    }
}

/// What all fake ports share.
#[derive(Clone, Default)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Condvar>,
    notify: Arc<Notify>,
    exits: Arc<Mutex<Vec<watch::Sender<Option<ExitStatus>>>>>,
    fetching: Arc<watch::Sender<usize>>,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine on this world.
    ///
    /// # Panics
    /// When no thread can be made.
    pub fn engine(&self, limits: EngineLimits) -> Engine {
        Engine::start(self.parts(limits)).expect("a thread for the actors")
    }

    /// The parts of an engine on this world.
    pub fn parts(&self, limits: EngineLimits) -> EngineParts {
        let port = Arc::new(self.clone());
        EngineParts {
            store: port.clone(),
            records: port.clone(),
            providers: vec![port.clone()],
            pullers: vec![
                Arc::new(From(SourceKind::Local, self.clone())),
                Arc::new(From(SourceKind::Registry, self.clone())),
            ],
            backends: vec![port.clone()],
            default_backend: BackendName::Overlay,
            isolators: vec![Arc::new(Named("first", self.clone())), Arc::new(Named("second", self.clone()))],
            launcher: port.clone(),
            observer: port.clone(),
            log: slog::Logger::root(slog::Discard, slog::o!()),
            limits,
        }
    }

    /// How often a step was come by.
    pub fn count(&self, step: Step) -> usize {
        self.lock().counts.get(&step).copied().unwrap_or(0)
    }

    /// From now on the step waits.
    pub fn close(&self, step: Step) {
        self.lock().gates.entry(step).or_default().closed = true;
    }

    /// Lets all go that wait at the step, and all that come.
    pub fn open_gate(&self, step: Step) {
        self.lock().gates.entry(step).or_default().closed = false;
        self.changed.notify_all();
        self.notify.notify_waiters();
    }

    /// Opens every gate.
    pub fn open_all(&self) {
        self.lock().gates.values_mut().for_each(|gate| gate.closed = false);
        self.changed.notify_all();
        self.notify.notify_waiters();
    }

    /// Returns when so many wait at the step.
    pub async fn reached(&self, step: Step, waiting: usize) {
        loop {
            let changed = self.notify.notified();
            if self.lock().gates.get(&step).is_some_and(|gate| gate.waiting >= waiting) {
                return;
            }
            changed.await;
        }
    }

    /// The next time the step is come by it does this instead.
    pub fn once(&self, step: Step, act: Act) {
        self.lock().acts.insert(step, act);
    }

    /// From now on the step fails every time, or does so no more.
    pub fn always(&self, step: Step, fails: bool) {
        let mut inner = self.lock();
        if fails {
            inner.failing.insert(step);
        } else {
            inner.failing.remove(&step);
        }
    }

    /// Refuses layers to whoever has these credentials.
    pub fn refuse_to(&self, access: Option<Access>) {
        self.lock().refused.insert(access);
    }

    /// Every blob from this source is refused.
    pub fn refuse(&self, source: LayerSource) {
        self.lock().bad_sources.insert(source);
    }

    /// What mounts, unmounts and cleanups were done, in order.
    pub fn history(&self) -> Vec<String> {
        self.lock().history.clone()
    }

    /// Fetches whose bytes are being waited for.
    pub fn fetching(&self) -> watch::Receiver<usize> {
        self.fetching.subscribe()
    }

    /// Everything that is left, by name: empty when all was taken down.
    pub fn leftovers(&self) -> Vec<String> {
        let inner = self.lock();
        let mut left = Vec::new();
        let mut count = |what: &str, n: usize| {
            if n > 0 {
                left.push(format!("{n} {what}"));
            }
        };
        count("staging directories", inner.staged.len());
        count("pins", inner.pins.len());
        count("reservations", inner.reserved.len());
        count("shown layers", inner.shown);
        count("directories of containers", inner.directories.len());
        count("mounts", inner.mounted.len());
        count("container records", inner.containers.len());
        count("rootfs records", inner.rootfses.len());
        count("names", inner.names.len());
        count("processes", inner.processes);
        count("isolated containers", inner.isolated.values().filter(|&&n| n != 0).count());
        count("overlapping mounts", inner.overlaps);
        left
    }

    /// Returns when nothing is left. Blocking jobs that nobody waits for wind down on their own threads, so the last
    /// of it may go a moment after the reply.
    ///
    /// # Panics
    /// When something is still left after ten seconds: then it stays.
    pub async fn empties(&self) {
        let started = std::time::Instant::now();
        while !self.leftovers().is_empty() {
            assert!(started.elapsed().as_secs() < 10, "left: {:?}", self.leftovers());
            tokio::task::yield_now().await;
        }
    }

    /// Another process's container, dead or alive.
    pub fn plant(&self, record: ContainerRecord, rootfses: RootfsRecord, alive: bool) {
        let mut inner = self.lock();
        for (rootfs, _) in &rootfses.rootfses {
            inner.mounted.insert((record.id.clone(), *rootfs));
        }
        inner.rootfses.insert(record.id.clone(), rootfses);
        inner.directories.insert(record.id.clone());
        if alive {
            inner.names.insert(record.id.clone(), false);
        }
        inner.containers.insert(record.id.clone(), record);
    }

    /// What the observer heard of a layer, by its key as printed, in order.
    pub fn events(&self) -> Vec<(String, LayerEvent)> {
        self.lock().events.clone()
    }

    /// How many holds were told that their layer is to stay shown.
    pub fn kept_layers(&self) -> usize {
        self.lock().kept
    }

    /// What was in use, each time the store was told to hide what is not.
    pub fn hidden_but(&self) -> Vec<BTreeSet<DiffId>> {
        self.lock().hidden_but.clone()
    }

    /// Names of the threads on which shown layers were let go.
    pub fn hidden_by(&self) -> BTreeSet<String> {
        self.lock().hidden_by.clone()
    }

    /// From now on the store holds so many layers.
    pub fn layers_fit(&self, places: usize) {
        self.lock().places = Some(places);
    }

    /// Loses a layer and not the record of its image, as a power cut may.
    pub fn lose(&self, layer: &DiffId) {
        self.lock().layers.remove(layer);
    }

    /// Pins in force.
    pub fn pins(&self) -> usize {
        self.lock().pins.len()
    }

    /// From now on another process brings this layer, or does so no more.
    pub fn bring_elsewhere(&self, key: &LayerKey, brings: bool) {
        let mut inner = self.lock();
        if brings {
            inner.staged.insert(diff(key));
        } else {
            inner.staged.remove(&diff(key));
        }
    }

    /// The record of a container.
    pub fn record(&self, id: &ContainerId) -> Option<ContainerRecord> {
        self.lock().containers.get(id).cloned()
    }

    /// The record of a container's root filesystems.
    pub fn rootfses(&self, id: &ContainerId) -> Option<RootfsRecord> {
        self.lock().rootfses.get(id).cloned()
    }

    /// Whether another process was asked to destroy its container.
    pub fn was_requested(&self, id: &ContainerId) -> bool {
        self.lock().requests.contains(id)
    }

    /// As another process would: asks for a container's destruction.
    pub fn request(&self, id: &ContainerId) {
        self.lock().requests.insert(id.clone());
    }

    /// As another process would: lets its container go.
    pub fn vanish(&self, id: &ContainerId) {
        let mut inner = self.lock();
        inner.names.remove(id);
        inner.containers.remove(id);
        inner.directories.remove(id);
        if let Some(record) = inner.rootfses.remove(id) {
            for (rootfs, _) in record.rootfses {
                inner.mounted.remove(&(id.clone(), rootfs));
            }
        }
    }

    /// Every running command ends with this.
    pub fn exit_all(&self, status: ExitStatus) {
        for exit in self.exits.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            exit.send_replace(Some(status));
        }
    }

    /// Counts the step, then waits at its gate; what it shall do.
    fn come_by(&self, step: Step) -> bool {
        self.come_by_unless(step, &Stop::default())
    }

    /// As [`Self::come_by`]; waits no longer once it is told to stop.
    fn come_by_unless(&self, step: Step, stop: &Stop) -> bool {
        let mut inner = self.lock();
        *inner.counts.entry(step).or_default() += 1;
        if inner.gates.entry(step).or_default().closed {
            if let Some(gate) = inner.gates.get_mut(&step) {
                gate.waiting += 1;
            }
            self.notify.notify_waiters();
            while inner.gates.get(&step).is_some_and(|gate| gate.closed) && !stop.is_raised() {
                // Nobody wakes this when `stop` is raised: it looks.
                let look = std::time::Duration::from_millis(1);
                inner = self.changed.wait_timeout(inner, look).unwrap_or_else(PoisonError::into_inner).0;
            }
            if let Some(gate) = inner.gates.get_mut(&step) {
                gate.waiting -= 1;
            }
        }
        self.act(inner, step)
    }

    /// As [`Self::come_by`], without holding a thread.
    async fn come_by_async(&self, step: Step) -> bool {
        struct Waiting<'a>(&'a World, Step);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                if let Some(gate) = self.0.lock().gates.get_mut(&self.1) {
                    gate.waiting -= 1;
                }
            }
        }
        *self.lock().counts.entry(step).or_default() += 1;
        let mut waiting = None;
        loop {
            let changed = self.notify.notified();
            let mut came = false;
            {
                let mut inner = self.lock();
                let gate = inner.gates.entry(step).or_default();
                if !gate.closed {
                    break;
                }
                if waiting.is_none() {
                    gate.waiting += 1;
                    waiting = Some(Waiting(self, step));
                    came = true;
                }
            }
            // Said once: this wakes the one who says it, too.
            if came {
                self.notify.notify_waiters();
            }
            changed.await;
        }
        drop(waiting);
        self.act(self.lock(), step)
    }

    fn act(&self, mut inner: MutexGuard<'_, Inner>, step: Step) -> bool {
        match inner.acts.remove(&step) {
            Some(Act::Panic) => {
                drop(inner);
                panic!("a fake panics at {step:?}");
            }
            Some(Act::Fail) => true,
            None => inner.failing.contains(&step),
        }
    }
}

fn broken(step: Step) -> std::io::Error {
    std::io::Error::other(format!("a fake fails at {step:?}"))
}

/// An image of so many layers, from a registry. Layer `n` of every image with the same `family` is the same.
pub fn image(name: &str, family: &str, layers: usize) -> (ImageRequest, ImagePlan) {
    let name: ImageName = name.parse().expect("an image name");
    let reference: crate::image::reference::Reference =
        name.canonical().reference().parse().expect("a registry image");
    let layer = |n: usize| {
        let digest = Digest::of(format!("{family} {n}").as_bytes());
        LayerSpec {
            key: LayerKey::Diff(DiffId(digest.clone())),
            blob: BlobSpec { digest: Some(digest), size: Some(1), compression: None, media_type: None },
            source: LayerSource::Registry(reference.clone()),
            aci: None,
            access: None,
        }
    };
    let digest = Digest::of(reference.to_string().as_bytes());
    let plan = ImagePlan {
        identity: ImageIdentity { name: name.canonical(), manifest: digest.clone(), config: digest },
        layers: (0..layers).map(layer).collect(),
        runtime: RuntimeConfig { cmd: vec!["true".to_owned()], ..RuntimeConfig::default() },
        platform: None,
        chosen_for: None,
        signed: false,
    };
    (ImageRequest::cached(name), plan)
}

// The image behind a request: its repository is the family, its tag the number of layers.
impl Provider for World {
    fn kind(&self) -> ImageKind {
        ImageKind::Docker
    }

    fn resolve(&self, request: ImageRequest) -> BoxFuture<'static, Result<ImagePlan, ResolveError>> {
        let this = self.clone();
        async move {
            if this.come_by_async(Step::Resolve).await {
                let source = Box::new(broken(Step::Resolve));
                return Err(ResolveError::Failed { image: request.name, source });
            }
            let ImageName::Docker(reference) = request.name.canonical() else {
                return Err(ResolveError::NotFound {
                    image: request.name,
                    place: "fakes".to_owned(),
                    source: None,
                });
            };
            let layers = reference.tag.as_deref().and_then(|tag| tag.parse().ok()).unwrap_or(1);
            let family = reference.repository.rsplit('/').next().unwrap_or_default().to_owned();
            Ok(image(&reference.to_string(), &family, layers).1)
        }
        .boxed()
    }

    fn fits(&self, _: &ImagePlan) -> bool {
        true
    }

    fn authorize(
        &self,
        request: ImageRequest,
        _: &ImagePlan,
    ) -> BoxFuture<'static, Result<(), ResolveError>> {
        let this = self.clone();
        async move {
            match this.come_by_async(Step::Authorize).await {
                true => {
                    let source = Box::new(broken(Step::Authorize));
                    Err(ResolveError::NotAuthorized { image: request.name, source })
                }
                false => Ok(()),
            }
        }
        .boxed()
    }
}

struct From(SourceKind, World);

impl Puller for From {
    fn kind(&self) -> SourceKind {
        self.0
    }

    fn open(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<Blob, FetchError>> {
        struct Fetching(Arc<watch::Sender<usize>>);
        impl Drop for Fetching {
            fn drop(&mut self) {
                self.0.send_modify(|count| *count -= 1);
            }
        }
        let (this, layer) = (self.1.clone(), layer.clone());
        async move {
            this.fetching.send_modify(|count| *count += 1);
            let fetching = Fetching(this.fetching.clone());
            let refused = this.come_by_async(Step::Open).await;
            if refused || this.lock().refuses(&layer) {
                return Err(FetchError::Refused {
                    blob: layer.key.to_string(),
                    from: layer.source.to_string(),
                    source: Box::new(broken(Step::Open)),
                });
            }
            drop(fetching);
            Ok(Blob { reader: Box::new(std::io::Cursor::new(vec![0])), lease: Box::new(()), size: Some(1) })
        }
        .boxed()
    }

    fn authorize(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<bool, FetchError>> {
        let (this, layer) = (self.1.clone(), layer.clone());
        async move {
            match this.come_by_async(Step::Authorize).await {
                true => Err(FetchError::Refused {
                    blob: layer.key.to_string(),
                    from: layer.source.to_string(),
                    source: Box::new(broken(Step::Authorize)),
                }),
                false => Ok(true),
            }
        }
        .boxed()
    }
}

struct Staged(World, DiffId);

impl Drop for Staged {
    fn drop(&mut self) {
        self.0.lock().staged.remove(&self.1);
    }
}

impl Staging for Staged {
    fn unpack(
        self: Box<Self>,
        layer: &LayerSpec,
        blob: &mut dyn Read,
        stop: &Stop,
    ) -> Result<StoredLayer, UnpackError> {
        let failed = self.0.come_by_unless(Step::Unpack, stop);
        if stop.is_raised() {
            return Err(UnpackError::Stopped { layer: layer.key.clone() });
        }
        let read = std::io::copy(blob, &mut std::io::sink());
        if failed || read.is_err() {
            return Err(UnpackError::Read { layer: layer.key.clone(), source: broken(Step::Unpack) });
        }
        self.0.lock().layers.insert(self.1.clone());
        Ok(StoredLayer { diff_id: self.1.clone() })
    }
}

struct Pin(World, u64);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.lock().pins.remove(&self.1);
    }
}

struct Reserved(World, u64);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.lock().reserved.remove(&self.1);
    }
}

/// Keeps a layer shown.
struct Shown(World);

impl Hold for Shown {
    fn keep(&self) {
        self.0.lock().kept += 1;
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.shown -= 1;
        inner.hidden_by.insert(std::thread::current().name().unwrap_or("no name").to_owned());
    }
}

impl Observer for World {
    fn layer(&self, key: &LayerKey, event: LayerEvent) {
        self.come_by(Step::Observe);
        self.lock().events.push((key.to_string(), event));
    }
}

fn diff(key: &LayerKey) -> DiffId {
    match key {
        LayerKey::Diff(diff) | LayerKey::Aci(diff) => diff.clone(),
        LayerKey::Blob(blob) => DiffId(blob.clone()),
    }
}

fn store_error(step: Step) -> StoreError {
    StoreError::Io { act: "use", path: PathBuf::from("/fake"), source: broken(step) }
}

impl Store for World {
    fn find(&self, key: &LayerKey) -> Result<Option<StoredLayer>, StoreError> {
        if self.come_by(Step::Find) {
            return Err(store_error(Step::Find));
        }
        let diff_id = diff(key);
        Ok(self.lock().layers.contains(&diff_id).then_some(StoredLayer { diff_id }))
    }

    fn claim(&self, key: &LayerKey) -> Result<Claim, StoreError> {
        if self.come_by(Step::Claim) {
            return Err(store_error(Step::Claim));
        }
        let diff_id = diff(key);
        if self.lock().layers.contains(&diff_id) {
            return Ok(Claim::Here(StoredLayer { diff_id }));
        }
        self.claim_anew(key)
    }

    fn blob_of(&self, layer: &StoredLayer) -> Result<Option<Digest>, StoreError> {
        Ok(Some(layer.diff_id.0.clone()))
    }

    fn claim_anew(&self, key: &LayerKey) -> Result<Claim, StoreError> {
        // One at a time brings a layer, as the locks of a real store have it.
        if !self.lock().staged.insert(diff(key)) {
            return Ok(Claim::Elsewhere);
        }
        Ok(Claim::Mine(Box::new(Staged(self.clone(), diff(key)))))
    }

    fn show(&self, layer: &StoredLayer) -> Result<LayerDir, StoreError> {
        if self.come_by(Step::Show) {
            return Err(StoreError::Missing { layer: layer.diff_id.clone() });
        }
        self.lock().shown += 1;
        let hold = Arc::new(Shown(self.clone()));
        let path = PathBuf::from("/fake/layers").join(layer.diff_id.0.hex());
        Ok(LayerDir {
            diff_id: layer.diff_id.clone(),
            path,
            user_xattrs: false,
            whiteouts: false,
            implied: Arc::default(),
            hold,
        })
    }

    fn pin(&self, layers: &[LayerKey]) -> Result<Box<dyn Send + Sync>, StoreError> {
        if self.come_by(Step::Pin) {
            return Err(store_error(Step::Pin));
        }
        let mut inner = self.lock();
        inner.next_pin += 1;
        let pin = inner.next_pin;
        inner.pins.insert(pin, layers.iter().map(diff).collect());
        Ok(Box::new(Pin(self.clone(), pin)))
    }

    fn reserve(&self, layers: &[LayerSpec]) -> Result<Box<dyn Send + Sync>, StoreError> {
        if self.come_by(Step::Reserve) {
            return Err(store_error(Step::Reserve));
        }
        let mut inner = self.lock();
        let wanted: BTreeSet<_> = layers.iter().map(|layer| diff(&layer.key)).collect();
        let here = inner.layers.clone();
        let to_come = |reserved: &BTreeSet<DiffId>| reserved.difference(&here).count() as u64;
        let mut all: BTreeSet<_> = inner.reserved.values().flatten().cloned().collect();
        let reserved = to_come(&all);
        all.extend(wanted.iter().cloned());
        let need = to_come(&all) - reserved;
        let free = inner.places.map(|places| places.saturating_sub(here.len()) as u64);
        if let Some(free) = free.filter(|free| need > 0 && reserved + need > *free) {
            return Err(NoRoom { dir: "/fake".into(), unit: "layers", need, free, reserved, keep: 0 }.into());
        }
        inner.next_pin += 1;
        let number = inner.next_pin;
        inner.reserved.insert(number, wanted);
        drop(inner);
        Ok(Box::new(Reserved(self.clone(), number)))
    }

    fn image(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
        if self.come_by(Step::Image) {
            return Err(store_error(Step::Image));
        }
        Ok(self.lock().images.get(&name.to_string()).cloned())
    }

    fn record_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        if self.come_by(Step::RecordImage) {
            return Err(store_error(Step::RecordImage));
        }
        self.lock().images.insert(record.plan.identity.name.to_string(), record.clone());
        Ok(())
    }

    fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        if self.come_by(Step::Images) {
            return Err(store_error(Step::Images));
        }
        Ok(self.lock().images.values().cloned().collect())
    }

    fn layer_size(&self, _: &StoredLayer) -> Result<LayerSize, StoreError> {
        if self.come_by(Step::LayerSize) {
            return Err(store_error(Step::LayerSize));
        }
        Ok(LayerSize { bytes: 1000, entries: 10 })
    }

    fn prune(&self, keep: &Keep, in_use: InUse<'_>) -> Result<Pruned, StoreError> {
        let in_use = in_use().map_err(StoreError::InUse)?;
        // Held here, a prune has its list of what is in use, and has not yet acted on it.
        if self.come_by(Step::Prune) {
            return Err(store_error(Step::Prune));
        }
        let mut inner = self.lock();
        let mut used: BTreeSet<_> = in_use.iter().flat_map(|record| record.layers.iter().cloned()).collect();
        used.extend(inner.pins.values().flatten().cloned());
        let images = std::mem::take(&mut inner.images);
        let (kept, gone): (Vec<_>, Vec<_>) =
            images.into_iter().partition(|(_, record)| keep.images.contains(&record.plan.identity.name));
        inner.images = kept.into_iter().collect();
        let named: BTreeSet<_> = inner
            .images
            .values()
            .flat_map(|record| record.layers.iter().map(|layer| layer.diff_id.clone()))
            .collect();
        let layers = std::mem::take(&mut inner.layers);
        let (stay, go): (BTreeSet<_>, BTreeSet<_>) =
            layers.into_iter().partition(|layer| used.contains(layer) || named.contains(layer));
        inner.layers = stay;
        Ok(Pruned {
            images: gone.into_iter().map(|(_, record)| record.plan.identity.name).collect(),
            layers: go.into_iter().collect(),
            bytes: 0,
            freed: true,
        })
    }

    fn recover(&self) -> Result<(), StoreError> {
        if self.come_by(Step::RecoverStore) {
            return Err(store_error(Step::RecoverStore));
        }
        Ok(())
    }

    fn hide_idle(&self, in_use: InUse<'_>) -> Result<(), StoreError> {
        if self.come_by(Step::HideIdle) {
            return Err(store_error(Step::HideIdle));
        }
        let in_use = in_use().map_err(StoreError::InUse)?;
        let used = in_use.iter().flat_map(|record| record.layers.iter().cloned()).collect();
        self.lock().hidden_but.push(used);
        Ok(())
    }
}

/// A rootfs is being worked on, until this drops: also by a panic.
struct Busy<'a>(&'a World, (ContainerId, RootfsId));

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().mounting.remove(&self.1);
    }
}

impl Backend for World {
    fn name(&self) -> BackendName {
        BackendName::Overlay
    }

    fn mount(&self, _: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError> {
        let key = (place.container.clone(), place.id);
        {
            let mut inner = self.lock();
            inner.history.push(format!("mount {} {}", place.container, place.id));
            if !inner.mounting.insert(key.clone()) {
                inner.overlaps += 1;
            }
        }
        let busy = Busy(self, key.clone());
        let failed = self.come_by_unless(Step::Mount, stop);
        drop(busy);
        let mut inner = self.lock();
        if stop.is_raised() {
            inner.history.push(format!("stop {} {}", place.container, place.id));
            return Err(MountError::Stopped { path: place.rootfs.clone() });
        }
        if failed {
            let source = Box::new(broken(Step::Mount));
            return Err(MountError::Failed {
                backend: BackendName::Overlay,
                path: place.rootfs.clone(),
                source,
            });
        }
        inner.mounted.insert(key);
        let (id, backend) = (place.id, BackendName::Overlay);
        Ok(Rootfs { id, backend, path: place.rootfs.clone(), read_only: false })
    }

    fn unmount(&self, place: &RootfsPlace) -> Result<bool, MountError> {
        let key = (place.container.clone(), place.id);
        {
            let mut inner = self.lock();
            inner.history.push(format!("unmount {} {}", place.container, place.id));
            if !inner.mounting.insert(key.clone()) {
                inner.overlaps += 1;
            }
        }
        let busy = Busy(self, key.clone());
        let failed = self.come_by(Step::Unmount);
        drop(busy);
        let mut inner = self.lock();
        if failed {
            let source = Box::new(broken(Step::Unmount));
            return Err(MountError::Failed {
                backend: BackendName::Overlay,
                path: place.rootfs.clone(),
                source,
            });
        }
        Ok(inner.mounted.remove(&key))
    }
}

struct Name(World, ContainerId);

impl Drop for Name {
    fn drop(&mut self) {
        self.0.lock().names.remove(&self.1);
    }
}

fn record_error(step: Step) -> RecordError {
    RecordError::Io { act: "use", path: PathBuf::from("/fake"), source: broken(step) }
}

impl Records for World {
    fn create(&self, id: &ContainerId) -> Result<Box<dyn Send + Sync>, RecordError> {
        if self.come_by(Step::Create) {
            return Err(record_error(Step::Create));
        }
        let mut inner = self.lock();
        if inner.names.contains_key(id) || inner.directories.contains(id) {
            return Err(RecordError::Exists { id: id.clone() });
        }
        inner.directories.insert(id.clone());
        inner.names.insert(id.clone(), true);
        Ok(Box::new(Name(self.clone(), id.clone())))
    }

    fn adopt(&self, id: &ContainerId) -> Result<Option<Box<dyn Send + Sync>>, RecordError> {
        if self.come_by(Step::Adopt) {
            return Err(record_error(Step::Adopt));
        }
        let mut inner = self.lock();
        if inner.names.contains_key(id) {
            return Err(RecordError::Elsewhere { id: id.clone() });
        }
        if !inner.directories.contains(id) {
            return Ok(None);
        }
        inner.names.insert(id.clone(), true);
        Ok(Some(Box::new(Name(self.clone(), id.clone()))))
    }

    fn sandbox(&self, id: &ContainerId) -> PathBuf {
        PathBuf::from("/fake/containers").join(id.as_str()).join("sandbox")
    }

    fn place(&self, id: &ContainerId, backend: BackendName, rootfs: RootfsId) -> RootfsPlace {
        let base = PathBuf::from("/fake/provisioner").join(id.as_str()).join(backend.to_string());
        RootfsPlace {
            container: id.clone(),
            id: rootfs,
            rootfs: base.join("rootfses").join(rootfs.to_string()),
            scratch: base.join("scratch").join(rootfs.to_string()),
        }
    }

    fn write_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        if self.come_by(Step::WriteContainer) {
            return Err(record_error(Step::WriteContainer));
        }
        self.lock().containers.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn write_rootfses(&self, id: &ContainerId, record: &RootfsRecord) -> Result<(), RecordError> {
        if self.come_by(Step::WriteRootfses) {
            return Err(record_error(Step::WriteRootfses));
        }
        self.lock().rootfses.insert(id.clone(), record.clone());
        Ok(())
    }

    fn read(&self, id: &ContainerId) -> Result<Option<Found>, RecordError> {
        if self.come_by(Step::Read) {
            return Err(record_error(Step::Read));
        }
        let inner = self.lock();
        let known = inner.directories.contains(id) || inner.names.contains_key(id);
        Ok(known.then(|| inner.found(id)))
    }

    fn list(&self) -> Result<Vec<Found>, RecordError> {
        if self.come_by(Step::List) {
            return Err(record_error(Step::List));
        }
        let inner = self.lock();
        let ids: BTreeSet<_> = inner.directories.iter().chain(inner.names.keys()).collect();
        Ok(ids.into_iter().map(|id| inner.found(id)).collect())
    }

    fn request_destroy(&self, id: &ContainerId) -> Result<(), RecordError> {
        if self.come_by(Step::RequestDestroy) {
            return Err(record_error(Step::RequestDestroy));
        }
        self.lock().requests.insert(id.clone());
        self.notify.notify_waiters();
        Ok(())
    }

    fn destroy_requested(&self, id: &ContainerId) -> bool {
        self.come_by(Step::DestroyRequested);
        self.lock().requests.contains(id)
    }

    fn remove(&self, id: &ContainerId) -> Result<(), RecordError> {
        if self.come_by(Step::Remove) {
            return Err(record_error(Step::Remove));
        }
        let mut inner = self.lock();
        inner.containers.remove(id);
        inner.rootfses.remove(id);
        inner.directories.remove(id);
        inner.requests.remove(id);
        Ok(())
    }

    fn us(&self) -> ProcessIdentity {
        ProcessIdentity { pid: 1, start_ticks: 1, boot_id: "this boot".to_owned() }
    }

    fn now_ms(&self) -> u64 {
        0
    }
}

struct Named(&'static str, World);

impl Named {
    fn error(&self, act: &'static str, container: &ContainerId, step: Step) -> IsolatorError {
        IsolatorError { isolator: self.0, act, container: container.clone(), source: Box::new(broken(step)) }
    }
}

impl Isolator for Named {
    fn name(&self) -> &'static str {
        self.0
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        *self.1.lock().isolated.entry(context.id.clone()).or_default() += 1;
        if self.1.come_by(Step::Prepare) {
            return Err(self.error("prepare", &context.id, Step::Prepare));
        }
        plan.argv = Some(vec!["true".to_owned()]);
        Ok(())
    }

    fn isolate(&self, container: &ContainerId, _: &ProcessIdentity) -> Result<(), IsolatorError> {
        if self.1.come_by(Step::Isolate) {
            return Err(self.error("isolate", container, Step::Isolate));
        }
        Ok(())
    }

    fn cleanup(&self, container: &ContainerId) -> Result<(), IsolatorError> {
        {
            let mut inner = self.1.lock();
            inner.history.push(format!("cleanup {container} {}", self.0));
            // Cleaning up what was never prepared is allowed and does nothing.
            let mine = inner.isolated.entry(container.clone()).or_default();
            *mine = (*mine - 1).max(0);
        }
        if self.1.come_by(Step::Cleanup) {
            return Err(self.error("clean up", container, Step::Cleanup));
        }
        Ok(())
    }
}

struct Process {
    world: World,
    container: ContainerId,
    exit: watch::Sender<Option<ExitStatus>>,
    dead: AtomicBool,
    /// Whether the others in its container die with it.
    leads: bool,
}

impl Launched for Process {
    fn init(&self) -> ProcessIdentity {
        self.world.come_by(Step::Init);
        ProcessIdentity { pid: 2, start_ticks: 2, boot_id: "this boot".to_owned() }
    }

    fn release(&self) -> Result<(), LaunchError> {
        if self.world.come_by(Step::Release) {
            let source = Box::new(broken(Step::Release));
            return Err(LaunchError::Failed { container: self.container.clone(), source });
        }
        Ok(())
    }

    fn wait(&self) -> BoxFuture<'static, ExitStatus> {
        let (mut exit, world) = (self.exit.subscribe(), self.world.clone());
        async move {
            world.come_by_async(Step::Wait).await;
            let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
            status.unwrap_or(ExitStatus::Signaled(9))
        }
        .boxed()
    }

    fn signal(&self, signal: i32) -> Result<(), LaunchError> {
        if self.world.come_by(Step::Signal) {
            let source = Box::new(broken(Step::Signal));
            return Err(LaunchError::Failed { container: self.container.clone(), source });
        }
        self.exit.send_replace(Some(ExitStatus::Signaled(signal)));
        Ok(())
    }

    fn kill_all(&self) -> Result<(), LaunchError> {
        if self.world.come_by(Step::KillAll) {
            let source = Box::new(broken(Step::KillAll));
            return Err(LaunchError::Failed { container: self.container.clone(), source });
        }
        self.die();
        let execs = if self.leads { self.world.lock().execs.remove(&self.container) } else { None };
        execs.unwrap_or_default().iter().for_each(|exec| exec.die());
        Ok(())
    }
}

impl Process {
    fn begin(world: &World, container: &ContainerId, leads: bool) -> Arc<Self> {
        world.lock().processes += 1;
        let exit = watch::Sender::new(None);
        world.exits.lock().unwrap_or_else(PoisonError::into_inner).push(exit.clone());
        let dead = AtomicBool::new(false);
        Arc::new(Self { world: world.clone(), container: container.clone(), exit, dead, leads })
    }

    fn die(&self) {
        if !self.dead.swap(true, Ordering::SeqCst) {
            self.world.lock().processes -= 1;
        }
        self.exit.send_if_modified(|status| {
            let running = status.is_none();
            status.get_or_insert(ExitStatus::Signaled(9));
            running
        });
    }
}

impl Launcher for World {
    fn start(&self, container: &ContainerId, _: LaunchPlan) -> Result<Arc<dyn Launched>, LaunchError> {
        if self.come_by(Step::Start) {
            let source = Box::new(broken(Step::Start));
            return Err(LaunchError::Failed { container: container.clone(), source });
        }
        Ok(Process::begin(self, container, true))
    }

    fn exec(&self, container: &ContainerId, _: ExecSpec) -> Result<Arc<dyn Launched>, LaunchError> {
        if self.come_by(Step::Exec) {
            let source = Box::new(broken(Step::Exec));
            return Err(LaunchError::Failed { container: container.clone(), source });
        }
        let process = Process::begin(self, container, false);
        self.lock().execs.entry(container.clone()).or_default().push(process.clone());
        Ok(process)
    }

    fn signal(&self, id: &ContainerId, _: &ProcessIdentity, _: i32) -> Result<(), LaunchError> {
        if self.come_by(Step::SignalOther) {
            let source = Box::new(broken(Step::SignalOther));
            return Err(LaunchError::Failed { container: id.clone(), source });
        }
        Ok(())
    }

    fn wait(
        &self,
        _: &ContainerId,
        _: &ProcessIdentity,
    ) -> BoxFuture<'static, Result<Option<ExitStatus>, LaunchError>> {
        let this = self.clone();
        async move {
            this.come_by_async(Step::WaitOther).await;
            Ok(None)
        }
        .boxed()
    }

    fn kill_orphan(&self, id: &ContainerId, _: &ProcessIdentity) -> Result<(), LaunchError> {
        if self.come_by(Step::KillOrphan) {
            let source = Box::new(broken(Step::KillOrphan));
            return Err(LaunchError::Failed { container: id.clone(), source });
        }
        Ok(())
    }

    fn is_alive(&self, _: &ProcessIdentity) -> bool {
        true
    }
}

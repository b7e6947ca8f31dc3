//! Start and stop order, and [`Engine`]: the handle that outsiders hold.
//!
//! All actors share one actix `System` on a thread of its own; addresses work from any tokio runtime. The bytes do
//! not pass through it: ports move them on threads of their own, actors only wait.
//!
//! **Why no actor is supervised.** An actor that is restarted loses the message in hand and keeps whatever its state
//! was; what cannot be lost is on disk instead ([`crate::ports::Records`], [`crate::ports::Store`]). A panic in a port
//! is caught at the port and is an error of that request. What a lost process leaves is found by `Recover`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, System};
use slog::{Logger, o};
use tokio::sync::Semaphore;

use crate::backend::BackendActor;
use crate::container::{BackendName, ContainerId, ContainerSpec, ExitStatus};
use crate::containerizer::{ContainerizerActor, ContainerizerDeps, DestroyAll};
use crate::error::{ContainerError, Gone, ProvisionError, StoreError};
use crate::image::name::ImageRequest;
use crate::messages::{
    Destroy, Exec, Executed, Kill, Launch, List, ProvisionContainer, Provisioned, Prune, PruneError, Pull,
    PulledImage, Recover, RunningContainer, Wait,
};
use crate::pool::{Admission, Pool};
use crate::ports::{
    Backend, ExecSpec, Found, ImageRecord, Isolator, Keep, Launcher, Provider, Pruned, Puller, Records, Store,
};
use crate::progress::Observer;
use crate::provider::{ProviderActor, ProviderDeps};
use crate::provisioner::{ProvisionerActor, ProvisionerDeps};
use crate::puller::{PullDeps, PullerActor};

/// Messages a mailbox holds before senders wait: more than the largest admission limit in use, so that a burst of
/// launches is ordered by arrival; a message is some hundred bytes.
pub(crate) const MAILBOX: usize = 4096;

/// How much at once. Each is a flag of the agent.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Launches and provisions under way; one more is refused.
    pub launches_max: usize,
    /// Blobs whose bytes move.
    pub fetches_max: usize,
    /// Layers being unpacked, a thread each.
    pub unpacks_max: usize,
    /// Trees being copied.
    pub copies_max: usize,
    /// Mounts and unmounts.
    pub mounts_max: usize,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { launches_max: 1024, fetches_max: 6, unpacks_max: 2, copies_max: 2, mounts_max: 8 }
    }
}

/// Short file work at once: enough to keep a disk's queue full.
const DISK_JOBS_MAX: usize = 16;
/// Processes being made at once: forks contend for one lock anyway.
const LAUNCH_JOBS_MAX: usize = 16;

/// The adapters that an engine is made of.
pub struct EngineParts {
    /// Layers and image records.
    pub store: Arc<dyn Store>,
    /// What is remembered of containers.
    pub records: Arc<dyn Records>,
    /// One per image kind.
    pub providers: Vec<Arc<dyn Provider>>,
    /// One per source.
    pub pullers: Vec<Arc<dyn Puller>>,
    /// Those that can work here.
    pub backends: Vec<Arc<dyn Backend>>,
    /// The one that new root filesystems are made by.
    pub default_backend: BackendName,
    /// In order.
    pub isolators: Vec<Arc<dyn Isolator>>,
    /// Starts processes.
    pub launcher: Arc<dyn Launcher>,
    /// Hears of progress.
    pub observer: Arc<dyn Observer>,
    /// The parent of every actor's logger.
    pub log: Logger,
    /// How much at once.
    pub limits: EngineLimits,
}

/// The running actors. Clones share them; they stop when [`Engine::shutdown`] is called or the last clone drops.
#[derive(Clone)]
pub struct Engine {
    provisioner: Addr<ProvisionerActor>,
    containerizer: Addr<ContainerizerActor>,
    store: Arc<dyn Store>,
    disk: Pool,
    thread: Arc<SystemThread>,
}

struct SystemThread {
    system: System,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for SystemThread {
    fn drop(&mut self) {
        self.system.stop();
    }
}

impl Engine {
    /// Starts all actors.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(parts: EngineParts) -> std::io::Result<Self> {
        let (store, disk) = (parts.store.clone(), Pool::new("disk", DISK_JOBS_MAX));
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let pool = disk.clone();
        let thread = std::thread::Builder::new().name("keelblock-actors".to_owned()).spawn(move || {
            let system = System::new();
            let started = system.block_on(async move { start_actors(parts, pool) });
            if tx.send((System::current(), started)).is_ok() {
                // The exit code of a System tells nothing that the replies have not told.
                let _ = system.run();
            }
        })?;
        let (system, (provisioner, containerizer)) =
            rx.recv().map_err(|_| std::io::Error::other("the actor thread ended at once"))?;
        let thread = Arc::new(SystemThread { system, thread: Mutex::new(Some(thread)) });
        Ok(Self { provisioner, containerizer, store, disk, thread })
    }

    /// Brings an image into the store.
    pub async fn pull(&self, request: ImageRequest) -> Result<PulledImage, Arc<ProvisionError>> {
        let pulled = self.provisioner.send(Pull { request }).await;
        pulled.unwrap_or_else(|_| Err(Arc::new(Gone { actor: "provisioner" }.into())))
    }

    /// Removes images and layers that nobody uses.
    pub async fn prune(&self, keep: Keep) -> Result<Pruned, Arc<PruneError>> {
        let pruned = self.provisioner.send(Prune { keep }).await;
        pruned.unwrap_or_else(|_| Err(Arc::new(Gone { actor: "provisioner" }.into())))
    }

    /// Gives a container a root filesystem that stays until destroyed.
    pub async fn provision(
        &self,
        id: ContainerId,
        request: ImageRequest,
    ) -> Result<Provisioned, Arc<ContainerError>> {
        self.ask(ProvisionContainer { id, request }).await
    }

    /// Launches a container; answers when its command runs. Dropping the future gives the launch up.
    pub async fn launch(&self, spec: ContainerSpec) -> Result<RunningContainer, Arc<ContainerError>> {
        self.ask(Launch { spec }).await
    }

    /// How a container ended; waits while it runs.
    pub async fn wait(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.ask(Wait { id }).await
    }

    /// Sends a signal to a container's command.
    pub async fn kill(&self, id: ContainerId, signal: i32) -> Result<(), Arc<ContainerError>> {
        self.ask(Kill { id, signal }).await
    }

    /// Runs one more command in a container.
    pub async fn exec(&self, id: ContainerId, exec: ExecSpec) -> Result<Executed, Arc<ContainerError>> {
        self.ask(Exec { id, exec }).await
    }

    /// Takes a container down; runs to its end also when the future is dropped.
    pub async fn destroy(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.ask(Destroy { id }).await
    }

    /// All containers of all processes.
    pub async fn list(&self) -> Result<Vec<Found>, Arc<ContainerError>> {
        self.ask(List).await
    }

    /// Takes down what dead processes left.
    pub async fn recover(&self) -> Result<Vec<ContainerId>, Arc<ContainerError>> {
        self.ask(Recover).await
    }

    /// All images in the store, each with the bytes of file content of its layers.
    pub async fn images(&self) -> Result<Vec<(ImageRecord, u64)>, StoreError> {
        let store = self.store.clone();
        self.disk
            .run(move |_| {
                let weigh = |record: ImageRecord| {
                    let distinct: std::collections::BTreeSet<_> = record.layers.iter().collect();
                    // A layer that is gone weighs nothing.
                    let bytes = distinct.into_iter().filter_map(|layer| store.layer_bytes(layer).ok()).sum();
                    (record, bytes)
                };
                Ok(store.images()?.into_iter().map(weigh).collect())
            })
            .await
    }

    /// Destroys every container that this process launched, and stops the actors.
    ///
    /// # Blocking
    /// Joins the actor thread, which has nothing left to do.
    pub async fn shutdown(&self) {
        let _ = self.containerizer.send(DestroyAll).await;
        self.thread.system.stop();
        let thread = self.thread.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    async fn ask<M, T>(&self, message: M) -> Result<T, Arc<ContainerError>>
    where
        M: Message<Result = Result<T, Arc<ContainerError>>> + Send + 'static,
        T: Send + 'static,
        ContainerizerActor: Handler<M>,
        <ContainerizerActor as Actor>::Context: ToEnvelope<ContainerizerActor, M>,
    {
        let answer = self.containerizer.send(message).await;
        answer.unwrap_or_else(|_| Err(Arc::new(Gone { actor: "containerizer" }.into())))
    }
}

/// From the bottom up: nobody is started before those it calls.
fn start_actors(parts: EngineParts, disk: Pool) -> (Addr<ProvisionerActor>, Addr<ContainerizerActor>) {
    let EngineParts { store, records, launcher, observer, log, limits, .. } = parts;
    let child = |actor: &'static str| log.new(o!("actor" => actor));
    let pull = Rc::new(PullDeps {
        store: store.clone(),
        disk: disk.clone(),
        unpack: Pool::new("unpack", limits.unpacks_max),
        fetches: Arc::new(Semaphore::new(limits.fetches_max.clamp(1, Semaphore::MAX_PERMITS))),
        observer,
        log: child("puller"),
    });
    let flights = Rc::new(RefCell::new(crate::flight::Flights::default()));
    let pullers: BTreeMap<_, _> = parts
        .pullers
        .into_iter()
        .map(|port| (port.kind(), PullerActor { port, deps: pull.clone(), flights: flights.clone() }.start()))
        .collect();
    let provider = Rc::new(ProviderDeps {
        store: store.clone(),
        records: records.clone(),
        disk: disk.clone(),
        pullers,
        log: child("provider"),
    });
    let providers = parts
        .providers
        .into_iter()
        .map(|port| {
            (port.kind(), ProviderActor { port, deps: provider.clone(), resolving: Rc::default() }.start())
        })
        .collect();
    let (mounts, copies) = (Pool::new("mount", limits.mounts_max), Pool::new("copy", limits.copies_max));
    let backends = parts
        .backends
        .into_iter()
        .map(|port| {
            let name = port.name();
            let pool = if name == BackendName::Copy { copies.clone() } else { mounts.clone() };
            (name, BackendActor { port, store: store.clone(), pool, rootfses: HashMap::new() }.start())
        })
        .collect();
    let provisioner = ProvisionerActor {
        deps: Rc::new(ProvisionerDeps {
            store: store.clone(),
            records: records.clone(),
            disk: disk.clone(),
            providers,
            backends,
            default_backend: parts.default_backend,
            log: child("provisioner"),
        }),
        table: Rc::default(),
    }
    .start();
    let containerizer = ContainerizerActor {
        deps: Rc::new(ContainerizerDeps {
            records,
            store,
            isolators: parts.isolators,
            launcher,
            provisioner: provisioner.clone(),
            admission: Admission::new(limits.launches_max),
            disk,
            launch: Pool::new("launch", LAUNCH_JOBS_MAX),
            log: child("containerizer"),
        }),
        table: Rc::default(),
        foreign: Rc::default(),
    }
    .start();
    (provisioner, containerizer)
}

//! Start and stop order, and [`Engine`]: the handle that outsiders hold.
//!
//! All actors share one actix `System` on a thread of its own; addresses work from any tokio runtime. The bytes do
//! not pass through it: ports move them on threads of their own, actors only wait.
//!
//! **Why truth is on disk, and no actor is supervised.** actix's supervisor restarts an actor that stopped, not one that
//! panicked; it loses the message in hand, and hands the same state on, however broken. And a process dies more often
//! than an actor: by kill -9, by power. Both have the same answer here. What must not be lost is written before it
//! becomes true elsewhere, by ports that write whole or not at all: the name of a container before its first
//! directory, the layers and root filesystems it uses before the first is fetched or mounted, its process before that
//! is released, a layer by one rename ([`crate::ports::Records`], [`crate::ports::Store`]). Locks that the kernel frees
//! say who of them still lives. So memory only ever holds what a dead process could lose as well; `Recover` reads the
//! rest and takes down what nobody owns, and there is one such path, exercised by every crash, not two. Panics
//! that can happen are those of ports: they are caught at the port and are an error of that request alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, System};
use slog::{Logger, o};
use tokio::sync::watch;

use crate::backend::BackendActor;
use crate::container::{BackendName, ContainerId, ContainerSpec, ExitStatus};
use crate::containerizer::{ContainerizerActor, ContainerizerDeps, DestroyAll};
use crate::error::{ContainerError, Gone, JobLost, ProvisionError, StoreError};
use crate::image::name::ImageRequest;
use crate::lanes::Lanes;
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
use crate::provisioner::{Images, ProvisionerActor, ProvisionerDeps};
use crate::puller::{PullDeps, PullerActor};
use crate::reply::{Leased, lease};

/// Messages a mailbox holds before senders wait: more than the largest admission limit in use, so that a burst of
/// launches is ordered by arrival; a message is some hundred bytes.
pub(crate) const MAILBOX: usize = 4096;

/// How much at once. Each is a flag of the agent.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Launches and provisions under way; one more is refused.
    pub launches_max: usize,
    /// Whether the source of an image in the store is asked if whoever wants it may have it.
    pub authorize_stored: bool,
    /// Blobs whose bytes move, of one registry.
    pub fetches_max: usize,
    /// Layers being unpacked, a thread each.
    pub unpacks_max: usize,
    /// Trees being copied.
    pub copies_max: usize,
    /// Mounts and unmounts.
    pub mounts_max: usize,
    /// Bytes of file content of all layers of an image that is pulled.
    pub image_bytes_max: u64,
    /// Entries of all layers of an image that is pulled.
    pub image_entries_max: u64,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            launches_max: 1024,
            authorize_stored: false,
            fetches_max: 6,
            unpacks_max: 2,
            copies_max: 2,
            mounts_max: 8,
            image_bytes_max: u64::MAX,
            image_entries_max: u64::MAX,
        }
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
    /// `None` for actors on a thread of the caller's.
    thread: Option<Arc<SystemThread>>,
}

struct SystemThread {
    system: System,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Closed when the thread has nothing left to do.
    ended: watch::Receiver<()>,
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
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let (ending, ended) = watch::channel(());
        let thread = std::thread::Builder::new().name("keelblock-actors".to_owned()).spawn(move || {
            let _ending = ending;
            let system = System::new();
            let started = system.block_on(async move { start_actors(parts) });
            if tx.send((System::current(), started)).is_ok() {
                // The exit code of a System tells nothing that the replies have not told.
                let _ = system.run();
            }
        })?;
        let (system, (provisioner, containerizer)) =
            rx.recv().map_err(|_| std::io::Error::other("the actor thread ended at once"))?;
        let thread = SystemThread { system, thread: Mutex::new(Some(thread)), ended };
        Ok(Self { provisioner, containerizer, thread: Some(Arc::new(thread)) })
    }

    /// Starts all actors on the thread of the caller, who runs an actix `System` or a tokio `LocalSet` there: for
    /// programs that have one already, and for tests with a clock of their own. They end when the last handle drops.
    ///
    /// # Panics
    /// Outside of both.
    pub fn start_here(parts: EngineParts) -> Self {
        let (provisioner, containerizer) = start_actors(parts);
        Self { provisioner, containerizer, thread: None }
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

    /// Gives a container a root filesystem that stays until destroyed. Dropping the future destroys it.
    pub async fn provision(
        &self,
        id: ContainerId,
        request: ImageRequest,
    ) -> Result<Provisioned, Arc<ContainerError>> {
        self.ask_leased(ProvisionContainer { id, request }).await
    }

    /// Launches a container; answers when its command runs. Dropping the future gives the launch up.
    pub async fn launch(&self, spec: ContainerSpec) -> Result<RunningContainer, Arc<ContainerError>> {
        self.ask_leased(Launch { spec }).await
    }

    /// How a container ended; waits while it runs.
    pub async fn wait(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.ask(Wait { id }).await
    }

    /// Sends a signal to a container's command.
    pub async fn kill(&self, id: ContainerId, signal: i32) -> Result<(), Arc<ContainerError>> {
        self.ask(Kill { id, signal }).await
    }

    /// Runs one more command in a container. Dropping the future kills it.
    pub async fn exec(&self, id: ContainerId, exec: ExecSpec) -> Result<Executed, Arc<ContainerError>> {
        self.ask_leased(Exec { id, exec }).await
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
        let images = self.provisioner.send(Images).await;
        images.unwrap_or(Err(StoreError::Lost(JobLost::Shutdown { pool: "disk" })))
    }

    /// Destroys every container that this process launched, and stops the actors. Nothing is launched from the moment
    /// of the call; requests under way for anything else are cut off.
    pub async fn shutdown(&self) {
        // Gone already: shut down before, or from another clone.
        let _ = self.containerizer.send(DestroyAll).await;
        let Some(thread) = &self.thread else { return };
        thread.system.stop();
        // Jobs under way end first. Not by joining: that would hold up a runtime whose tasks those jobs may wait for.
        let _ = thread.ended.clone().changed().await;
        let joined = thread.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(joined) = joined {
            let _ = joined.join();
        }
    }

    /// As [`Self::ask`], for what must be undone when the asker leaves, at whatever moment.
    async fn ask_leased<M, T>(&self, message: M) -> Result<T, Arc<ContainerError>>
    where
        M: Message<Result = Result<T, Arc<ContainerError>>> + Send + 'static,
        T: Send + 'static,
        ContainerizerActor: Handler<Leased<M>>,
        <ContainerizerActor as Actor>::Context: ToEnvelope<ContainerizerActor, Leased<M>>,
    {
        let (asker, lease) = lease();
        let answer = self.ask(Leased { message, lease }).await;
        asker.took();
        answer
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
pub(crate) fn start_actors(parts: EngineParts) -> (Addr<ProvisionerActor>, Addr<ContainerizerActor>) {
    let EngineParts { store, records, launcher, observer, log, limits, .. } = parts;
    let disk = Pool::new("disk", DISK_JOBS_MAX);
    let boot_id = records.us().boot_id;
    let child = |actor: &'static str| log.new(o!("actor" => actor));
    let pull = Rc::new(PullDeps {
        store: store.clone(),
        disk: disk.clone(),
        unpack: Pool::new("unpack", limits.unpacks_max),
        lanes: Lanes::new(limits.fetches_max),
        authorize_stored: limits.authorize_stored,
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
        authorize_stored: limits.authorize_stored,
        image_bytes_max: limits.image_bytes_max,
        image_entries_max: limits.image_entries_max,
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
            prune: Pool::new("prune", 1),
            boot_id: boot_id.clone(),
            providers,
            backends,
            default_backend: parts.default_backend,
            log: child("provisioner"),
        }),
        table: Rc::default(),
        prunes: Rc::default(),
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
            boot_id,
            log: child("containerizer"),
        }),
        table: Rc::default(),
        foreign: Rc::default(),
        closing: Rc::default(),
    }
    .start();
    (provisioner, containerizer)
}

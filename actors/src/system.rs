//! `Engine`: starts the actors, and is the handle that everyone outside holds.

use std::sync::Arc;

use slog::Logger;

use crate::container::{BackendName, ContainerId, ContainerSpec, ExitStatus};
use crate::error::{ContainerError, Gone, ProvisionError};
use crate::image::name::ImageRequest;
use crate::messages::{Executed, Provisioned, PruneError, PulledImage, RunningContainer};
use crate::ports::{
    Backend, ExecSpec, Found, ImageRecord, Isolator, Keep, Launcher, Provider, Pruned, Puller, Records, Store,
};
use crate::progress::Observer;

/// How much the engine does at once. Zero counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Launches and provisions under way; one more is refused as busy.
    pub launches_max: usize,
    /// Blobs fetched at once, by each puller.
    pub fetches_max: usize,
    /// Layers unpacked at once. A fetch streams into its unpack, so no more than this are fetched either.
    pub unpacks_max: usize,
    /// Trees copied at once by the copy backend.
    pub copies_max: usize,
    /// Mounts and unmounts at once by the other backends.
    pub mounts_max: usize,
    /// Short disk jobs (records, look-ups in the store) at once.
    pub disk_jobs_max: usize,
    /// Steps of launches and teardowns (isolators, clone, kill) at once.
    pub launch_jobs_max: usize,
}

impl Default for EngineLimits {
    /// 1024 launches, 6 fetches, 6 unpacks, 2 copies, 8 mounts, 8 disk jobs, 16 launch jobs.
    fn default() -> Self {
        Self {
            launches_max: 1024,
            fetches_max: 6,
            unpacks_max: 6,
            copies_max: 2,
            mounts_max: 8,
            disk_jobs_max: 8,
            launch_jobs_max: 16,
        }
    }
}

/// What an engine is made of.
pub struct EngineParts {
    /// Layers and images.
    pub store: Arc<dyn Store>,
    /// Names and records of containers.
    pub records: Arc<dyn Records>,
    /// One per kind of image that is switched on.
    pub providers: Vec<Arc<dyn Provider>>,
    /// One per kind of source.
    pub pullers: Vec<Arc<dyn Puller>>,
    /// Every backend that works here: also those that only unmount what earlier runs mounted.
    pub backends: Vec<Arc<dyn Backend>>,
    /// The backend of new root filesystems; must be among them.
    pub default_backend: BackendName,
    /// In the order of preparation.
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

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The default backend is not among the backends.
    #[error("the {0} backend is to be the default, but is not among the backends that work here")]
    NoDefaultBackend(BackendName),
    /// Two parts of one kind.
    #[error("two {what} for {kind} were given; one is enough")]
    Twice {
        /// providers, pullers, backends.
        what: &'static str,
        /// Of which kind.
        kind: String,
    },
    /// The system refused a thread or an event loop.
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
}

/// The running engine. Clones are handles to the same one. Usable from any thread and any async runtime;
/// a future that is dropped gives up its request.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<()>,
}

impl Engine {
    /// Starts the engine on a thread of its own.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(parts: EngineParts) -> Result<Self, StartError> {
        drop(parts);
        Ok(Self { inner: Arc::new(()) })
    }

    /// Brings an image into the store.
    pub async fn pull(&self, request: ImageRequest) -> Result<PulledImage, Arc<ProvisionError>> {
        let _ = (request, &self.inner);
        Err(Arc::new(Gone { actor: "provisioner" }.into()))
    }

    /// Gives a new container a root filesystem and no process; it stays when this process ends.
    pub async fn provision(
        &self,
        id: ContainerId,
        request: ImageRequest,
    ) -> Result<Provisioned, Arc<ContainerError>> {
        let _ = (id, request);
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// Provisions, prepares, starts and releases a container; returns when its command runs.
    pub async fn launch(&self, spec: ContainerSpec) -> Result<RunningContainer, Arc<ContainerError>> {
        let _ = spec;
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// How a container ended; waits while it runs. `None` = it ended with no status to be had.
    pub async fn wait(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        let _ = id;
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// Sends a signal to a container's command.
    pub async fn kill(&self, id: ContainerId, signal: i32) -> Result<(), Arc<ContainerError>> {
        let _ = (id, signal);
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// Runs one more command in a container.
    pub async fn exec(&self, id: ContainerId, exec: ExecSpec) -> Result<Executed, Arc<ContainerError>> {
        let _ = (id, exec);
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// Takes a container down, whatever its state, and removes everything of it.
    pub async fn destroy(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        let _ = id;
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// All containers of all processes on this work directory.
    pub async fn list(&self) -> Result<Vec<Found>, Arc<ContainerError>> {
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// All images in the store, by name.
    pub async fn images(&self) -> Result<Vec<ImageRecord>, Arc<PruneError>> {
        Ok(Vec::new())
    }

    /// Removes images and layers that nobody uses.
    pub async fn prune(&self, keep: Keep) -> Result<Pruned, Arc<PruneError>> {
        let _ = keep;
        Err(Arc::new(Gone { actor: "provisioner" }.into()))
    }

    /// Takes down what dead processes left; the containers taken down.
    pub async fn recover(&self) -> Result<Vec<ContainerId>, Arc<ContainerError>> {
        Err(Arc::new(Gone { actor: "containerizer" }.into()))
    }

    /// Destroys the containers of this process that are not there to stay, ends every actor and the thread.
    /// Every failure is collected.
    pub async fn shutdown(&self) -> Vec<Arc<ContainerError>> {
        Vec::new()
    }
}

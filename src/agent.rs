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

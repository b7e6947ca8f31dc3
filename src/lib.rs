//! keelblock: from an image name to a running container's root filesystem.
//!
//! This package is HOW, on Linux: the adapters behind the ports of `keelblock-actors`, and the agent object
//! that puts them together.

#![deny(unsafe_code)]

pub mod agent;
pub mod backend;
mod base64;
pub mod cli;
pub mod config;
pub mod erofs;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod gc;
pub mod inflate;
pub mod isolator;
pub mod launcher;
pub mod limits;
pub mod logging;
pub mod provider;
pub mod puller;
pub mod records;
pub mod rootless;
pub mod scrub;
mod spool;
pub mod store;
pub mod stores;
pub mod sys;

pub use agent::{Agent, AgentError, StoredImage};
pub use config::Config;
pub use keelblock_actors::container::{
    BackendName, CommandSpec, ContainerId, ContainerSpec, ExitStatus, VolumeSource, VolumeSpec,
};
pub use keelblock_actors::error;
pub use keelblock_actors::image::name::{ImageName, ImageRequest, PullPolicy};
pub use keelblock_actors::image::reference::Reference;
pub use keelblock_actors::launch::{CapabilitySet, StdioSpec};
pub use keelblock_actors::messages::{Executed, Provisioned, PulledImage, RunningContainer};
pub use keelblock_actors::ports::{ExecSpec, Keep, Pruned};
pub use keelblock_actors::progress::{LayerEvent, NoObserver, Observer};

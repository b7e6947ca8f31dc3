//! Who does what, and when: the vocabulary, the ports, the messages and the actors of keelblock.
//!
//! No kernel, no network, no JSON text in this crate: those are adapters behind [`ports`], in the root package.

#![forbid(unsafe_code)]

mod backend;
pub mod container;
mod containerizer;
pub mod error;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod flight;
pub mod image;
pub mod launch;
pub mod messages;
pub mod pool;
pub mod ports;
pub mod progress;
mod provider;
mod provisioner;
mod puller;
pub mod reply;
mod rootfs;
pub mod stop;
pub mod system;

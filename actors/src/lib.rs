//! Who does what, and when: the vocabulary, the ports, the messages and the actors of keelblock.
//!
//! No kernel, no network, no JSON text in this crate: those are adapters behind [`ports`], in the root package.

#![forbid(unsafe_code)]

pub mod container;
pub mod error;
pub mod image;
pub mod launch;
pub mod messages;
pub mod ports;
pub mod progress;
pub mod stop;
pub mod system;

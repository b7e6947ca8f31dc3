//! keelblock: from an image name to a running container's root filesystem.
//!
//! This package is HOW, on Linux: the adapters behind the ports of `keelblock-actors`, and the agent object
//! that puts them together.

#![deny(unsafe_code)]

pub mod backend;
pub mod isolator;
pub mod launcher;
pub mod limits;
pub mod provider;
pub mod puller;
pub mod records;
pub mod rootless;
pub mod store;
pub mod sys;

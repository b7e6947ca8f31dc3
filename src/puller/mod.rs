//! Where the bytes of layers come from.

pub mod appc;
pub mod local;
pub mod registry;

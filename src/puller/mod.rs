//! Where the bytes of layers come from.

pub mod local;
pub mod registry;

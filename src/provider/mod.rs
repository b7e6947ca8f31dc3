//! What names resolve to: manifests and configs turned into plans.

pub mod appc;
pub mod archive;
pub mod docker;
pub mod manifest;
pub mod oci;

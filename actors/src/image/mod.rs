//! What an image is: how it is named, what its name resolves to, and the digests that hold it together.

pub mod access;
pub mod appc;
pub mod digest;
pub mod name;
pub mod plan;
pub mod reference;

//! Appc images: where they are found, whether they are what they should be, and what root filesystem they make.
//!
//! A name leads to an archive ([`ports::AciSource`]), whose signature is verified ([`ports::SignatureCheck`]) before its manifest
//! is read ([`manifest`]). The manifest names other images that it depends on; all of them together make the layers of the plan.

mod error;
mod graph;
mod load;
pub mod manifest;
mod names;
pub mod ports;
pub mod quantity;
mod resolve;
mod stack;
#[cfg(test)]
mod tests;
pub mod trust;

pub use error::AppcError;
pub use names::{LATEST, canonical, labels_of};
pub use resolve::AppcProvider;

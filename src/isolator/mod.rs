//! The aspects of a container, in order.
pub mod user;

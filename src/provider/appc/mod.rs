//! Appc images: where they are found, whether they are what they should be, and what root filesystem they make.

pub mod ports;
pub mod trust;

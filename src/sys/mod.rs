//! All system calls that std has not, and all `unsafe`. Functions take descriptors or paths and typed flags, return
//! `io::Result`, and decide nothing.

#![allow(unsafe_code, reason = "the one place for it")]

pub mod beneath;
pub(crate) mod child;
pub(crate) mod clone;
pub(crate) mod detach;
pub mod lock;
pub(crate) mod loop_device;
pub(crate) mod memory;
pub mod mount;
pub(crate) mod mount_bits;
pub(crate) mod pidfd;
pub(crate) mod priority;
pub(crate) mod process;
pub mod process_identity;
pub(crate) mod pty;
pub mod range_lock;
pub mod record_lock;
pub mod remove;
pub mod space;
pub(crate) mod sync;
pub(crate) mod verity;

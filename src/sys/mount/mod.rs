//! Mounts: thin, typed wrappers over the mount system calls, and what is mounted.
//!
//! [`api`] makes mounts by descriptor (fsopen, fsmount, open_tree, move_mount: Linux 5.2 and later), [`attributes`]
//! changes what a mount allows, [`unmount`] takes mounts away, [`mountinfo`] reads what is there. Nothing here
//! knows of images or containers, and nothing parses options out of strings.

pub mod api;
pub mod attributes;
pub mod mountinfo;
pub mod unmount;

pub use api::{DetachedMount, NewFilesystem};
pub use attributes::{MountFlags, Propagation};
pub use unmount::{is_mount_root, unmount_all};

//! Taking mounts away, and whether there is one.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Most mounts taken off one place: more than anybody stacks, so that a kernel that lies cannot keep us busy.
const STACKED_MAX: usize = 1024;

/// Whether a mount is attached exactly here. `false` also when nothing is here at all; a symlink is not followed.
///
/// By statx(2), `STATX_ATTR_MOUNT_ROOT` (Linux 5.8): one call, where mountinfo has a line for every mount of the
/// machine.
pub fn is_mount_root(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, path, flags, StatxFlags::TYPE) {
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        Ok(_) => super::mountinfo::read().map(|mounts| mounts.iter().any(|mount| mount.target == path)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes off everything mounted exactly here; answers how many mounts that were.
///
/// A mount in use (a process has its working directory in it, or something is mounted below) is detached: it
/// vanishes from the tree at once and from memory with its last user.
pub fn unmount_all(path: &Path) -> io::Result<usize> {
    for taken in 0..STACKED_MAX {
        if !is_mount_root(path)? {
            return Ok(taken);
        }
        match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // Somebody was faster.
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("more than {STACKED_MAX} mounts are stacked there")))
}

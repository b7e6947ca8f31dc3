//! What a mount allows, changed one flag at a time: mount_setattr(2), which neither nix nor rustix has. Unlike a
//! remount it touches no flag that is not named.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Flags of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of mount(8)")]
pub struct MountFlags {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
}

impl MountFlags {
    /// As `MOUNT_ATTR_` bits (linux/mount.h).
    fn bits(self) -> u64 {
        u64::from(self.read_only)
            | u64::from(self.nosuid) << 1
            | u64::from(self.nodev) << 2
            | u64::from(self.noexec) << 3
    }
}

/// How mounts made below a mount reach copies of it (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the mount it was copied of to it, not back.
    Slave,
    /// Both ways.
    Shared,
}

/// `struct mount_attr`, version 0 (linux/mount.h); libc has it for musl alone.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets and clears flags of the mount at this descriptor (an `O_PATH` one will do).
pub fn change(
    mount: BorrowedFd<'_>,
    set: MountFlags,
    clear: MountFlags,
    propagation: Option<Propagation>,
) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: set.bits(),
        attr_clr: clear.bits(),
        propagation: match propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant, `attr` lives for the whole call and its size is given as the
    // kernel wants it; the call writes nothing to our memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! The container's file tree: detached mounts made while the host's root is still there, put in place after.

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use libc::{c_int, c_long, c_uint};

use super::{Detail, EMPTY, Fault, Missing, Outcome, call, close, errno, walk};

// linux/mount.h
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const AT_RECURSIVE: c_int = 0x8000;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn set_attributes(fd: RawFd, path: &CStr, flags: c_int, attributes: &Attributes) -> Outcome {
    // SAFETY: path and attributes are valid during the call, the size is the struct's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    call(result).map(drop)
}

pub(super) fn slave() -> Outcome {
    let slave = Attributes { propagation: libc::MS_SLAVE, ..Attributes::default() };
    set_attributes(libc::AT_FDCWD, c"/", AT_RECURSIVE, &slave)
}

/// A detached clone of the mount tree at a path, or (with an empty path) of the one a descriptor is open on.
pub(super) fn clone_tree(fd: RawFd, path: &CStr, attributes: u64) -> Result<RawFd, Fault> {
    let flags = libc::OPEN_TREE_CLONE as c_int | libc::OPEN_TREE_CLOEXEC as c_int | AT_RECURSIVE;
    // SAFETY: the path is a C string, valid during the call.
    let tree =
        call(unsafe { libc::syscall(libc::SYS_open_tree, fd, path.as_ptr(), flags | libc::AT_EMPTY_PATH) })?
            as RawFd;
    if attributes != 0 {
        let set = Attributes { set: attributes, ..Attributes::default() };
        if let Err(fault) = set_attributes(tree, EMPTY, libc::AT_EMPTY_PATH | AT_RECURSIVE, &set) {
            close(tree);
            return Err(fault);
        }
    }
    Ok(tree)
}

fn configure(fs: RawFd, command: c_uint, key: Option<&CStr>, value: Option<&CStr>) -> Outcome {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both texts are C strings or null as the command wants them.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, fs, command, pointer(key), pointer(value), 0) };
    call(result).map(drop)
}

pub(super) fn filesystem(
    kind: &CStr,
    options: &[(CString, Option<CString>)],
    attributes: u64,
) -> Result<RawFd, Fault> {
    // SAFETY: the kind is a C string.
    let fs = call(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })? as RawFd;
    let made = fill(fs, options, attributes);
    close(fs);
    made
}

fn fill(fs: RawFd, options: &[(CString, Option<CString>)], attributes: u64) -> Result<RawFd, Fault> {
    for (key, value) in options {
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        configure(fs, command, Some(key), value.as_deref())?;
    }
    configure(fs, FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: numbers only.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, fs, libc::FSMOUNT_CLOEXEC, attributes) };
    call(mount).map(|fd| fd as RawFd)
}

fn move_to(mount: RawFd, directory: RawFd, path: &CStr) -> Outcome {
    let mut flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= libc::MOVE_MOUNT_T_EMPTY_PATH;
    }
    // SAFETY: both paths are C strings.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, mount, EMPTY.as_ptr(), directory, path.as_ptr(), flags)
    };
    call(result).map(drop)
}

/// pivot_root(2) of "." onto ".": the old root is stacked over the new one and unmounted from there, so that no
/// directory for it is needed in the image.
pub(super) fn pivot(rootfs: &CStr, attributes: u64) -> Outcome {
    let root = clone_tree(libc::AT_FDCWD, rootfs, attributes)?;
    move_to(root, libc::AT_FDCWD, rootfs)?;
    // SAFETY: numbers only.
    call(unsafe { libc::fchdir(root) }.into())?;
    close(root);
    let dot = c".".as_ptr();
    // SAFETY: static C strings.
    call(unsafe { libc::syscall(libc::SYS_pivot_root, dot, dot) })?;
    // SAFETY: static C string.
    call(unsafe { libc::umount2(dot, libc::MNT_DETACH) }.into())?;
    // SAFETY: static C string.
    call(unsafe { libc::chdir(c"/".as_ptr()) }.into()).map(drop)
}

/// Mounts what `mount` holds at a path inside, and closes it.
pub(super) fn place(mount: RawFd, target: &CStr, missing: Missing) -> Outcome {
    let outcome = walk::find(target, missing).and_then(|found| match found {
        Some(at) => {
            let moved = move_to(mount, at, EMPTY);
            close(at);
            moved
        }
        None => Ok(()),
    });
    close(mount);
    outcome
}

/// A file, link or device at `path` goes, so that a directory can be made there. What a link at its end leads to stays.
pub(super) fn room(path: &CStr, parent: &CStr, name: &CStr) -> Outcome {
    let Some(at) = walk::find(path, Missing::Skip)? else { return Ok(()) };
    let kind = walk::kind(at);
    close(at);
    if kind? == libc::S_IFDIR {
        return Ok(());
    }
    // SAFETY: a C string and numbers. A directory is made by whoever mounts there.
    within(parent, |at| unsafe { libc::unlinkat(at, name.as_ptr(), 0) })
}

pub(super) fn again(path: &CStr, target: &CStr, attributes: u64, missing: Missing) -> Outcome {
    // What is not there cannot be mounted; whether that is all right is said of the target.
    let source = match missing {
        Missing::Skip => Missing::Skip,
        // On itself: made as its target would be.
        made if path == target => made,
        _ => Missing::Fail,
    };
    let Some(from) = walk::find(path, source)? else { return Ok(()) };
    let tree = clone_tree(from, EMPTY, attributes);
    close(from);
    place(tree?, target, missing)
}

pub(super) fn mask(path: &CStr) -> Outcome {
    let Some(at) = walk::find(path, Missing::Skip)? else { return Ok(()) };
    let outcome = walk::kind(at).and_then(|kind| {
        let cover = if kind == libc::S_IFDIR {
            filesystem(c"tmpfs", &[], libc::MOUNT_ATTR_RDONLY | NO_SUID_DEV_EXEC)?
        } else {
            let null = walk::find(c"/dev/null", Missing::Fail)?
                .ok_or(Fault { detail: Detail::Find, errno: libc::ENOENT })?;
            let cover = clone_tree(null, EMPTY, libc::MOUNT_ATTR_RDONLY);
            close(null);
            cover?
        };
        let moved = move_to(cover, at, EMPTY);
        close(cover);
        moved
    });
    close(at);
    outcome
}

const NO_SUID_DEV_EXEC: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// Runs `act` with the directory open.
fn within(directory: &CStr, act: impl FnOnce(RawFd) -> c_int) -> Outcome {
    let at = walk::find(directory, Missing::Directory)?
        .ok_or(Fault { detail: Detail::Find, errno: libc::ENOENT })?;
    let result = act(at);
    let errno = errno();
    close(at);
    if result < 0 { Err(Fault { detail: Detail::Make, errno }) } else { Ok(()) }
}

pub(super) fn node(directory: &CStr, name: &CStr, mode: libc::mode_t, device: libc::dev_t) -> Outcome {
    // The file mode mask of this process is 0 by now. SAFETY: a C string and numbers.
    within(directory, |at| unsafe { libc::mknodat(at, name.as_ptr(), mode, device) })
}

pub(super) fn link(directory: &CStr, name: &CStr, target: &CStr) -> Outcome {
    // SAFETY: two C strings and a descriptor.
    within(directory, |at| unsafe { libc::symlinkat(target.as_ptr(), at, name.as_ptr()) })
}

pub(super) fn read_only_root() -> Outcome {
    let set = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    set_attributes(libc::AT_FDCWD, c"/", 0, &set)
}

const _: () = assert!(size_of::<c_long>() == 8, "arguments of 64 bits are passed as one word");

//! Processes by descriptor: one that cannot come to mean another process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Opens a process by its number. Check what it is afterwards: the number may have been given anew before.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends it a signal.
pub(crate) fn signal(process: impl AsFd, signal: i32) -> io::Result<()> {
    send(process, signal, std::ptr::null())
}

/// Sends it a signal with a value, which waits in its queue until it asks.
pub(crate) fn queue(process: impl AsFd, signal: i32, value: usize) -> io::Result<()> {
    /// The part of `siginfo_t` that sigqueue(3) fills, and the rest of its 128 bytes.
    #[repr(C)]
    struct Queued {
        signo: i32,
        errno: i32,
        code: i32,
        _pad: i32,
        pid: i32,
        uid: u32,
        value: usize,
        _rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Queued>() == 128);
    let info = Queued {
        signo: signal,
        errno: 0,
        code: libc::SI_QUEUE,
        _pad: 0,
        pid: std::process::id() as i32,
        uid: 0,
        value,
        _rest: [0; 12],
    };
    send(process, signal, (&raw const info).cast())
}

fn send(process: impl AsFd, signal: i32, info: *const libc::siginfo_t) -> io::Result<()> {
    let fd = process.as_fd().as_raw_fd();
    // SAFETY: `info` is null or 128 bytes in the form of a siginfo.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the remains of a child that has ended. `false` = it has not, or is no child of this process.
pub(crate) fn reap(process: impl AsFd) -> bool {
    // SAFETY: all zero is a valid siginfo, which the kernel overwrites.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    let id = process.as_fd().as_raw_fd() as libc::id_t;
    // SAFETY: writes one siginfo.
    let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, flags) };
    result == 0 && info.si_signo != 0
}

/// Waits until it has ended, whoever's child it is.
pub(crate) fn await_end(process: impl AsFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: process.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one pollfd, valid during the call.
        match unsafe { libc::poll(&raw mut poll, 1, -1) } {
            result if result > 0 => return Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

//! The process of the command, or of a hook, from fork to exec.

use std::ffi::CStr;
use std::os::fd::RawFd;

use libc::{c_int, c_ulong};

use super::{
    Detail, EMPTY, Fault, Missing, NOT_STARTED, Outcome, Process, Report, State, call, close, errno, exit,
    mounts, perform_all, prctl, stage, tell, walk,
};

/// Whose process it is, for its reports.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Command {
        /// At its end when it may go on to exec.
        go: RawFd,
        /// Where it is marked that the command never was executed.
        status: RawFd,
    },
    Hook {
        number: u32,
        /// At its end when it may begin.
        go: RawFd,
    },
}

/// Goes through the ops of a process and becomes what it is to execute, or reports why not.
pub(super) fn run(process: &Process, role: Role, report: RawFd, state: &mut State) -> ! {
    if let Role::Hook { go, .. } = role {
        await_end(go);
    }
    // SAFETY: so many ops lie there, in the program or the arena, which outlive this process's use of them.
    let ops = unsafe { std::slice::from_raw_parts(process.ops, process.ops_count) };
    let failed = match perform_all(ops, &mut [], state, stage::TASK) {
        Ok(()) => {
            if let Role::Command { go, .. } = role {
                // The supervisor is what the command may meet: without our capabilities, memory and descriptors.
                await_end(go);
            }
            Report { stage: stage::EXEC, index: 0, detail: 0, errno: execute(process) }
        }
        Err(failed) => failed,
    };
    let code = match (failed.stage, failed.errno) {
        (stage::EXEC, libc::ENOENT | libc::ENOTDIR) => 127,
        (stage::EXEC, _) => 126,
        _ => NOT_STARTED,
    };
    match role {
        Role::Command { status, .. } => {
            mark_not_executed(status);
            tell(report, failed);
        }
        // Which op it was matters little; which hook, much.
        Role::Hook { number, .. } => tell(report, Report { stage: stage::HOOK, index: number, ..failed }),
    }
    exit(code)
}

/// Behind the wait status, which is four bytes.
const MARK_AT: libc::off_t = 4;

fn mark_not_executed(status: RawFd) {
    // SAFETY: writes one byte that lives through the call.
    unsafe { libc::pwrite(status, [1u8].as_ptr().cast(), 1, MARK_AT) };
}

/// Whether a command was executed that has ended: by the length of the file.
pub(super) fn was_executed(status: RawFd) -> bool {
    // SAFETY: all zero is a valid `stat`, which the kernel overwrites.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable.
    unsafe { libc::fstat(status, &mut stat) != 0 || stat.st_size <= MARK_AT }
}

/// Waits until the supervisor has closed its end.
fn await_end(pipe: RawFd) {
    let mut byte = 0u8;
    loop {
        // SAFETY: writes at most one byte; none is ever sent.
        let read = unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) };
        if !(read < 0 && errno() == libc::EINTR) {
            return;
        }
    }
}

/// execve(2) of one candidate after another; returns why the last that was there, or any, was not executed.
fn execute(process: &Process) -> i32 {
    // Made by us for children only: nothing of it may reach the command.
    // SAFETY: numbers only.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3 as c_ulong, c_ulong::from(u32::MAX), libc::CLOSE_RANGE_CLOEXEC)
    };
    unblock_signals();
    let mut reason = libc::ENOENT;
    let mut at = process.candidates;
    loop {
        // SAFETY: an array of C strings that ends with a null pointer, which is not passed by.
        let candidate = unsafe { *at };
        if candidate.is_null() {
            return reason;
        }
        // SAFETY: as above; then a C string, and two such arrays.
        unsafe {
            at = at.add(1);
            libc::execve(candidate, process.argv, process.environment)
        };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            // As execvp(3): a later directory may have one that can be executed.
            libc::EACCES => reason = libc::EACCES,
            errno => return errno,
        }
    }
}

fn unblock_signals() {
    let none: u64 = 0;
    // SAFETY: the kernel reads 8 bytes of the set and writes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    };
}

pub(super) fn directory(path: &CStr, missing: Missing) -> Outcome {
    let at = walk::find(path, missing)?.ok_or(Fault { detail: Detail::Find, errno: libc::ENOENT })?;
    // SAFETY: a number.
    let outcome = call(unsafe { libc::fchdir(at) }.into()).map(drop);
    close(at);
    outcome
}

/// Leaves the session keyring of the launching process, which may hold its secrets. A kernel without keyrings has
/// none to leave; and a user at his limit of keys (200, unless he is root) is let through with the keyring he
/// could use anyway.
pub(super) fn keyring() -> Outcome {
    const JOIN_SESSION_KEYRING: c_ulong = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    match call(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0 as c_ulong) }) {
        Err(Fault { errno: libc::ENOSYS | libc::EDQUOT, .. }) => Ok(()),
        joined => joined.map(drop),
    }
}

/// Opens a new terminal, sends its master over the socket, answers the other end.
pub(super) fn terminal(socket: RawFd, console: bool, size: Option<(u16, u16)>) -> Result<RawFd, Fault> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // By walk: `/dev` of an image may be a link to anywhere inside. What is in it then is ours.
    let dev =
        walk::find(c"/dev", Missing::Fail)?.ok_or(Fault { detail: Detail::Find, errno: libc::ENOENT })?;
    // SAFETY: a static C string.
    let master = unsafe { libc::openat(dev, c"ptmx".as_ptr(), flags) };
    let errno = errno();
    close(dev);
    if master < 0 {
        return Err(Fault { detail: Detail::Itself, errno });
    }
    let outcome = slave(master, console).and_then(|slave| {
        if let Some((rows, columns)) = size {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: reads one winsize.
            call(unsafe { libc::ioctl(slave, libc::TIOCSWINSZ, &raw const size) }.into())?;
        }
        send(socket, master)?;
        Ok(slave)
    });
    close(master);
    outcome
}

fn slave(master: RawFd, console: bool) -> Result<RawFd, Fault> {
    let unlocked: c_int = 0;
    // SAFETY: reads one int.
    call(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes open flags by value.
    let slave = call(unsafe { libc::ioctl(master, libc::TIOCGPTPEER, flags) }.into())? as RawFd;
    if console {
        let mut number: libc::c_uint = 0;
        // SAFETY: writes one int.
        call(unsafe { libc::ioctl(master, libc::TIOCGPTN, &raw mut number) }.into())?;
        bind_console(number)?;
    }
    Ok(slave)
}

/// `/dev/console` is the terminal, as programs expect that log there.
fn bind_console(number: u32) -> Outcome {
    let mut digits = [0u8; 11];
    let mut at = digits.len() - 1;
    let mut number = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    let Ok(name) = CStr::from_bytes_with_nul(&digits[at..]) else {
        return Err(Fault { detail: Detail::Itself, errno: libc::EINVAL });
    };
    let devpts =
        walk::find(c"/dev/pts", Missing::Fail)?.ok_or(Fault { detail: Detail::Find, errno: libc::ENOENT })?;
    let tree = mounts::clone_tree(devpts, name, 0);
    close(devpts);
    mounts::place(tree?, c"/dev/console", Missing::File)
}

/// Sends a descriptor over a socket.
fn send(socket: RawFd, fd: RawFd) -> Outcome {
    const SPACE: usize = 64;
    #[repr(align(8))]
    struct Control([u8; SPACE]);
    let mut control = Control([0; SPACE]);
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: plain arithmetic on a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<c_int>() as u32) } as _;
    // SAFETY: the control buffer is aligned and longer than CMSG_SPACE of one int, so the first header and its
    // data lie inside it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as _;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd);
        call(libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) as _).map(drop)
    }
}

pub(super) fn control_terminal(slave: RawFd) -> Outcome {
    // SAFETY: takes a number.
    call(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) }.into())?;
    terminal_streams(slave)
}

pub(super) fn terminal_streams(slave: RawFd) -> Outcome {
    for stream in 0..3 {
        // SAFETY: numbers only.
        call(unsafe { libc::dup2(slave, stream) }.into())?;
    }
    Ok(())
}

/// A user who is not root could not open `/dev/stdout` again were it a pipe of root's. What is not ours (a file
/// or terminal of the caller's) keeps its owner.
pub(super) fn own_streams(uid: libc::uid_t, files_too: bool, terminal: RawFd) -> Outcome {
    for stream in 0..3 {
        // SAFETY: all zero is a valid `stat`, which the kernel overwrites.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is writable, the name a static C string.
        if unsafe { libc::fstatat(stream, EMPTY.as_ptr(), &mut stat, libc::AT_EMPTY_PATH) } != 0 {
            continue;
        }
        let kind = stat.st_mode & libc::S_IFMT;
        if terminal >= 0 || kind == libc::S_IFIFO || (files_too && kind == libc::S_IFREG) {
            // A convenience: without it the stream itself still works. SAFETY: numbers only.
            let _ = unsafe { libc::fchown(stream, uid, u32::MAX) };
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and two `__user_cap_data_struct` of capset(2), version 3.
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}
#[repr(C)]
#[derive(Clone, Copy)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Effective and permitted set alike.
pub(super) fn capabilities(permitted: u64, inheritable: u64) -> Outcome {
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Half {
        effective: (permitted >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two halves.
    call(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) }).map(drop)
}

/// By the procfs of the container, in which this process is `self`.
pub(super) fn oom_score_adj(digits: &[u8]) -> Outcome {
    let proc =
        walk::find(c"/proc", Missing::Fail)?.ok_or(Fault { detail: Detail::Find, errno: libc::ENOENT })?;
    // SAFETY: a static C string.
    let file =
        unsafe { libc::openat(proc, c"self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    let outcome = call(file.into()).and_then(|_| {
        // SAFETY: the bytes are valid for their length.
        call(unsafe { libc::write(file, digits.as_ptr().cast(), digits.len()) } as _).map(drop)
    });
    close(proc);
    if file >= 0 {
        close(file);
    }
    outcome
}

pub(super) fn ambient(set: u64) -> Outcome {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0)?;
    for capability in (0..64).filter(|bit| set & 1 << bit != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as c_ulong, capability)?;
    }
    Ok(())
}

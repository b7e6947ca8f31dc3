//! The supervisor: PID 1 of a container's pid namespace. It forks the command, forwards signals, reaps everything,
//! records how the command ended and ends in the same way.
//!
//! It is a copy of the launching process that never executed another program, inside the container. What keeps
//! the container's processes from using that:
//! - it is not dumpable: its memory, descriptors, environment and `/proc/1/exe` need CAP_SYS_PTRACE in the user
//!   namespace of the launching process;
//! - command line and environment are wiped in its copy (`/proc/1/cmdline` is readable by all);
//! - the memory of the launching process (which may hold credentials) is unmapped once the command is forked;
//! - it has closed every descriptor but the status file, and keeps no capability but CAP_KILL;
//! - it executes the host's `keelblock`, so that the kernel refuses to open that file for writing as long as the
//!   container lives, however a process of the container got at it (CVE-2019-5736).

use std::os::fd::RawFd;

use libc::{c_int, c_long, c_ulong, pid_t};

use super::{
    ORDER_KILL_ALL, ORDER_SIGNAL, ORDER_SIGNAL_TASK, Process, Program, Report, State, Story, close, errno,
    exit, fork, give_up, hooks, perform_all, pipe, prctl, shed, stage, task,
};

/// What the first process of a launch does, from clone to its end.
///
/// All signals are blocked: the launching thread had them so. Blocked signals reach even a PID 1 without
/// handlers, when it asks for them.
pub(crate) fn run(program: &mut Program) -> ! {
    // From now on the death of the launching thread is ours. If it died before this line, the release pipe is
    // at its end, and we go that way.
    let _ = prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0);
    let _ = prctl(libc::PR_SET_DUMPABLE, 0, 0);
    wipe(&program.wipe);
    default_signals();
    close_ranges(&program.close);
    // Opened while the host's procfs is in sight; without one (-1) the memory stays.
    // SAFETY: a static C string.
    let maps = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    // SAFETY: a number.
    unsafe { libc::umask(0) };
    await_release(program.release);
    close(program.release);

    let mut state = State { terminal: -1 };
    let report = program.report;
    if let Err(failed) = perform_all(&program.before_fork, &mut program.slots, &mut state, stage::BEFORE_FORK)
    {
        give_up(report, failed);
    }
    // SAFETY: a number.
    unsafe { libc::umask(0o022) };
    if let Some(story) = program.story.as_ref().map(Story::seen) {
        hooks::run(story, program.status, report, Ends::of(program), maps, &mut state)
    }
    let Ok(hardened) = pipe() else {
        give_up(report, Report { stage: stage::FORK, index: 0, detail: 0, errno: errno() })
    };
    match fork() {
        0 => {
            // Or its own end would keep it waiting.
            close(hardened[1]);
            let role = task::Role::Command { go: hardened[0], status: program.status };
            let process = Process {
                ops: program.task.as_ptr(),
                ops_count: program.task.len(),
                candidates: program.candidates.pointers.as_ptr(),
                argv: program.argv.pointers.as_ptr(),
                environment: program.environment.pointers.as_ptr(),
            };
            task::run(&process, role, report, &mut state)
        }
        child if child < 0 => {
            give_up(report, Report { stage: stage::FORK, index: 0, detail: 0, errno: errno() })
        }
        child => supervise(program, maps, child),
    }
}

fn await_release(pipe: RawFd) {
    let mut byte = 0u8;
    loop {
        // SAFETY: writes one byte.
        match unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) } {
            1 => return,
            -1 if errno() == libc::EINTR => {}
            // Nobody is left who could release us.
            _ => exit(0),
        }
    }
}

fn wipe(places: &[(usize, usize)]) {
    for (address, length) in places {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(*address);
        // SAFETY: the kernel said that this process's arguments and environment lie there, in its writable
        // stack; this is our own copy of it, and we have no other thread that could read it.
        unsafe { place.write_bytes(0, *length) };
    }
}

/// Handlers and ignored signals of the launching process (Rust ignores SIGPIPE) are not the container's.
fn default_signals() {
    // `struct sigaction` as the kernel has it: handler, flags, restorer, mask.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: reads the four words, writes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal as c_long,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8 as c_long,
            )
        };
    }
}

fn close_ranges(ranges: &[(RawFd, RawFd)]) {
    for (first, last) in ranges {
        // SAFETY: closes descriptors of the launching process in our copy of the table; nobody here uses them.
        unsafe {
            libc::syscall(libc::SYS_close_range, *first as c_ulong, *last as u32 as c_ulong, 0 as c_ulong)
        };
    }
}

/// How a supervisor ends, once its command has.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    /// Whether its own end is that of all processes of the container.
    first: bool,
    leftovers: bool,
    /// Capabilities it keeps until then.
    pub(super) capabilities: u64,
}

impl Ends {
    fn of(program: &Program) -> Self {
        Self {
            first: program.first_in_namespace,
            leftovers: program.kill_leftovers,
            capabilities: program.supervisor_capabilities,
        }
    }

    /// Ends as the command did.
    pub(super) fn end(self, ended: c_int) -> ! {
        if self.leftovers && !self.first {
            kill_leftovers();
        }
        exit(match ended & 0x7f {
            0 => (ended >> 8) & 0xff,
            signal => 128 + signal,
        })
    }
}

/// Gives up what a supervisor does not need: memory, name, all capabilities but these.
pub(super) fn harden(maps: RawFd, capabilities: u64) {
    shed::shed(maps);
    let _ = prctl(libc::PR_SET_NAME, c"keelblock-init".as_ptr().expose_provenance() as c_ulong, 0);
    limit(capabilities);
}

pub(super) fn limit(capabilities: u64) {
    let _ = task::capabilities(capabilities, 0);
    // A change of credentials may have cleared it.
    let _ = prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0);
}

/// Closes all descriptors but this.
pub(super) fn close_all_but(kept: RawFd) {
    close_ranges(&[(0, kept.saturating_sub(1)), (kept.saturating_add(1), -1)]);
}

/// The life of the supervisor of a command without hooks.
fn supervise(program: &Program, maps: RawFd, child: pid_t) -> ! {
    let (status, ends) = (program.status, Ends::of(program));
    // `program` is gone with the memory: from here on only numbers on this stack.
    harden(maps, ends.capabilities);
    // Last, as it lets the task go on: the pipe it waits on is among these.
    close_all_but(status);
    let Attended { ended, .. } = attend(child);
    record(status, ended);
    ends.end(ended)
}

/// How a child ended.
pub(super) struct Attended {
    /// Its wait status.
    pub(super) ended: c_int,
    /// Whether the end of all of the container was ordered meanwhile.
    pub(super) all: bool,
}

/// The loop of the supervisor: forwards signals to a child and reaps what ends, until the child has.
pub(super) fn attend(child: pid_t) -> Attended {
    let mut all = false;
    loop {
        let (signal, value, from_kernel) = next_signal();
        if signal == ORDER_SIGNAL && value & 0xffff_ff00 == ORDER_SIGNAL_TASK {
            send(child, (value & 0xff) as c_int);
        } else if signal == ORDER_SIGNAL && value == ORDER_KILL_ALL {
            all = true;
            send(child, libc::SIGKILL);
        } else if signal > 0 && !(signal == libc::SIGCHLD && from_kernel) {
            send(child, signal);
        }
        if let Some(ended) = reap(child) {
            return Attended { ended, all };
        }
    }
}

fn send(child: pid_t, signal: c_int) {
    // SAFETY: numbers only. The child is not reaped yet, so the number is still its own.
    unsafe { libc::kill(child, signal) };
}

/// The next signal: its number, the value that came with it, whether the kernel sent it.
fn next_signal() -> (c_int, usize, bool) {
    let all = !0u64;
    // SAFETY: all zero is a valid siginfo, which the kernel overwrites.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: reads 8 bytes of the set, writes one siginfo; no timeout.
    let signal = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const all,
            &raw mut info,
            std::ptr::null::<libc::timespec>(),
            8 as c_long,
        )
    };
    if signal <= 0 {
        return (0, 0, true);
    }
    let value = if info.si_code == libc::SI_QUEUE {
        // SAFETY: with this code the value is what the sender put there.
        unsafe { info.si_value() }.sival_ptr.addr()
    } else {
        0
    };
    (signal as c_int, value, info.si_code > 0)
}

/// Reaps all that has ended; the status word of the command if it is among them.
fn reap(child: pid_t) -> Option<c_int> {
    let mut ended = None;
    loop {
        let mut status: c_int = 0;
        // SAFETY: writes one int.
        let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, std::ptr::null_mut()) };
        match pid {
            pid if pid == child => ended = Some(status),
            pid if pid > 0 => {}
            -1 if errno() == libc::EINTR => {}
            _ => return ended,
        }
    }
}

pub(super) fn record(file: RawFd, status: c_int) {
    let bytes = status.to_le_bytes();
    // SAFETY: four bytes that live through the call.
    unsafe { libc::pwrite(file, bytes.as_ptr().cast(), bytes.len(), 0) };
}

/// Without a pid namespace: kills what the command left. Whoever loses its parent becomes a child of ours, as we
/// are the reaper, until there is none left.
fn kill_leftovers() {
    loop {
        let mut text = [0u8; 4096];
        // SAFETY: a static C string. The host's procfs or the container's: both show this process as itself.
        let file =
            unsafe { libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        if file < 0 {
            return;
        }
        // SAFETY: writes at most the length of `text`.
        let length = unsafe { libc::read(file, text.as_mut_ptr().cast(), text.len()) };
        close(file);
        let Ok(length) = usize::try_from(length) else { return };
        let mut any = false;
        for word in text.get(..length).unwrap_or_default().split(|byte| *byte == b' ') {
            let pid = word.iter().fold(0, |n: pid_t, d| n.wrapping_mul(10).wrapping_add((d & 15).into()));
            // A number cut off at the end of a full buffer comes whole the next time.
            let whole =
                length < text.len() || !std::ptr::eq(word.as_ptr_range().end, text.as_ptr_range().end);
            if pid > 0 && whole {
                any = true;
                send(pid, libc::SIGKILL);
                // SAFETY: writes nothing with a null status.
                unsafe { libc::wait4(pid, std::ptr::null_mut(), 0, std::ptr::null_mut()) };
            }
        }
        if !any {
            return;
        }
    }
}

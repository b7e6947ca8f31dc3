//! What a container's processes do between clone and exec: system calls, in an order prepared before the clone.
//!
//! The child of a process with threads may neither allocate nor take a lock: another thread may have held it at
//! the moment of the clone. So everything here works on memory that the parent made ready ([`Program`]), keeps
//! what it needs on its stack, and calls the kernel through `libc::syscall` or wrappers of libc that do nothing
//! else. The `set*id` wrappers are not among them: glibc's would signal threads that do not exist here.
//!
//! Nothing here decides: the order and every argument come from `launcher::program`. A failure is reported as
//! [`Report`] over a pipe and given its words by the parent.

mod arena;
mod hooks;
mod init;
mod mounts;
mod shed;
mod task;
mod walk;

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use libc::{c_char, c_int, c_long, c_ulong};

pub(crate) use arena::{Scene, Story};
pub(crate) use init::run;

/// Exit code of a child whose reason stands in its report.
pub(crate) const NOT_STARTED: c_int = 125;

/// Signal that carries an order for the supervisor in its value; a plain one of that number is forwarded.
pub(crate) const ORDER_SIGNAL: c_int = 64;
/// Order: send the signal in the low byte to the command, one that cannot be sent through the supervisor.
pub(crate) const ORDER_SIGNAL_TASK: usize = 0x6b62_0100;
/// Order: kill the command and all that it left.
pub(crate) const ORDER_KILL_ALL: usize = 0x6b62_0200;

/// What to make where the target of a mount is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Missing {
    Directory,
    File,
    Skip,
    Fail,
}

/// An array of C strings as exec wants it: pointers, ended by a null one.
pub(crate) struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let ends = std::iter::once(std::ptr::null());
        let pointers = strings.iter().map(|string| string.as_ptr()).chain(ends).collect();
        Self { strings, pointers }
    }
}

// SAFETY: the pointers lead into `strings`, whose bytes do not move when the struct does; nobody writes them.
unsafe impl Send for StringArray {}
// SAFETY: as above; shared reads only.
unsafe impl Sync for StringArray {}

/// Group numbers, of its own or in an [`arena`].
pub(crate) struct Groups {
    _own: Vec<libc::gid_t>,
    at: *const libc::gid_t,
    count: usize,
}

impl Groups {
    pub(crate) fn new(own: Vec<libc::gid_t>) -> Self {
        Self { at: own.as_ptr(), count: own.len(), _own: own }
    }
}

// SAFETY: `at` leads into `_own`, whose elements do not move with it, or into memory that nobody writes.
unsafe impl Send for Groups {}
// SAFETY: as above; shared reads only.
unsafe impl Sync for Groups {}

/// What one process does from fork to exec, by address: in a [`Program`], or in an [`arena`].
#[derive(Clone, Copy)]
struct Process {
    ops: *const Op,
    ops_count: usize,
    candidates: *const *const c_char,
    argv: *const *const c_char,
    environment: *const *const c_char,
}

/// One prepared system call, or a few that belong together. Paths are absolute.
pub(crate) enum Op {
    /// unshare(2) these namespaces.
    Unshare(c_ulong),
    /// setns(2) into these namespaces of the process behind a pidfd.
    Join { process: RawFd, namespaces: c_int },
    /// sethostname(2).
    Hostname(CString),
    /// All mounts: nothing mounted here is seen by the host any more.
    Slave,
    /// Clones the mount tree at a host path, detached, into a slot.
    Tree { path: CString, attributes: u64, into: usize },
    /// Makes a new filesystem, detached, into a slot.
    Filesystem { kind: CString, options: Vec<(CString, Option<CString>)>, attributes: u64, into: usize },
    /// Makes a clone of the tree at this host path the root, and lets go of the old one.
    Pivot { rootfs: CString, attributes: u64 },
    /// Mounts what is in a slot at a path inside.
    Place { from: usize, target: CString, missing: Missing },
    /// Mounts a path inside on another inside, or on itself.
    Again { path: CString, target: CString, attributes: u64, missing: Missing },
    /// Hides a file behind `/dev/null`, a directory behind an empty one.
    Mask(CString),
    /// Makes a device node inside.
    Node { directory: CString, name: CString, mode: libc::mode_t, device: libc::dev_t },
    /// Makes a symbolic link inside.
    Link { directory: CString, name: CString, target: CString },
    /// Makes the mount of `/` read-only, not those below it.
    ReadOnlyRoot,
    /// Makes way for a directory: what is at `path`, and is none, goes.
    Room { path: CString, parent: CString, name: CString },
    /// Goes to a directory, having made it if it is missing and that is asked for.
    Directory { path: CString, missing: Missing },
    /// Opens a terminal of the container's devpts, sends the master to the parent, keeps the other end.
    /// Its size is set first: rows and columns.
    Terminal { socket: RawFd, console: bool, size: Option<(u16, u16)> },
    /// prctl(PR_SET_CHILD_SUBREAPER).
    Reaper,

    /// setsid(2).
    Session,
    /// setpgid(2): a process group of its own.
    OwnGroup,
    /// keyctl(2): a session keyring of its own.
    Keyring,
    /// The terminal as controlling terminal and standard streams.
    ControlTerminal,
    /// The terminal as standard streams alone.
    TerminalStreams,
    /// Writes `/proc/self/oom_score_adj`: so many of these bytes.
    OomScoreAdj { digits: [u8; 5], length: usize },
    /// dup2(2) onto a standard stream.
    Stream { from: RawFd, to: RawFd },
    /// fchown(2) of standard streams that are pipes or files of ours, so that `/dev/stdout` can be opened.
    OwnStreams { uid: libc::uid_t, files_too: bool },
    /// prctl(PR_CAPBSET_DROP) of each.
    DropBounding(u64),
    /// prctl(PR_SET_KEEPCAPS).
    KeepCapabilities,
    /// setgroups(2).
    Groups(Groups),
    /// setresgid(2).
    Group(libc::gid_t),
    /// setresuid(2).
    User(libc::uid_t),
    /// capset(2).
    Capabilities { permitted: u64, inheritable: u64 },
    /// prctl(PR_CAP_AMBIENT): none, then these.
    Ambient(u64),
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
    /// prctl(PR_SET_PDEATHSIG) SIGKILL.
    DieWithParent,
}

/// Everything the two processes of a launch need, made before the clone.
pub(crate) struct Program {
    /// What the supervisor does once released, before it forks the task.
    pub(crate) before_fork: Vec<Op>,
    /// What the task does before exec.
    pub(crate) task: Vec<Op>,
    /// Files to try to execute, in order.
    pub(crate) candidates: StringArray,
    /// `argv`.
    pub(crate) argv: StringArray,
    /// `envp`.
    pub(crate) environment: StringArray,
    /// Descriptors of detached mounts, by slot; made as long as the ops need.
    pub(crate) slots: Vec<RawFd>,
    /// One byte comes here when it may go on.
    pub(crate) release: RawFd,
    /// Reports go here; closed by exec.
    pub(crate) report: RawFd,
    /// The wait status of the command is written here.
    pub(crate) status: RawFd,
    /// All other descriptors that ops name.
    pub(crate) others: Vec<RawFd>,
    /// Ranges of descriptors to close at first: all but those named here and the standard streams.
    pub(crate) close: Vec<(RawFd, RawFd)>,
    /// Whether the supervisor is PID 1 of a pid namespace, so that its exit ends everything.
    pub(crate) first_in_namespace: bool,
    /// Whether it kills what the command left, when it is not PID 1.
    pub(crate) kill_leftovers: bool,
    /// Capabilities the supervisor keeps.
    pub(crate) supervisor_capabilities: u64,
    /// With hooks: all processes in their order; `task` and what is executed are not used then.
    pub(crate) story: Option<Story>,
    /// Address and length of this process's command line and environment: wiped in the children, where the
    /// container could read them in `/proc/1/cmdline`.
    pub(crate) wipe: Vec<(usize, usize)>,
}

/// What went wrong in a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Report {
    /// See [`stage`].
    pub(crate) stage: u32,
    /// Which op of the stage, or which hook.
    pub(crate) index: u32,
    /// See [`Detail`].
    pub(crate) detail: u32,
    /// What the system call said.
    pub(crate) errno: i32,
}

/// Stages of a launch, as reports have them.
pub(crate) mod stage {
    /// An op before the fork.
    pub(crate) const BEFORE_FORK: u32 = 0;
    /// An op of the task.
    pub(crate) const TASK: u32 = 1;
    /// exec of the command.
    pub(crate) const EXEC: u32 = 2;
    /// The fork itself.
    pub(crate) const FORK: u32 = 3;
    /// No failure: all ops before the fork are done, the first pre-start hook is about to be executed.
    pub(crate) const HOOKS_BEGIN: u32 = 4;
    /// No failure: all pre-start hooks ended well, the command is forked.
    pub(crate) const COMMAND_BEGINS: u32 = 5;
    /// A hook ended, and not with 0: `index` is the hook, `errno` its wait status.
    pub(crate) const HOOK_ENDED: u32 = 6;
    /// exec of a hook, or an op before it.
    pub(crate) const HOOK: u32 = 7;
}

/// Which part of an op failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Detail {
    /// The op's own call.
    Itself = 0,
    /// Finding its target.
    Find = 1,
    /// Making its target.
    Make = 2,
}

impl Report {
    /// From the bytes of a report.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        Self { stage: word(0), index: word(4), detail: word(8), errno: word(12) as i32 }
    }
}

/// A failed op.
#[derive(Clone, Copy)]
struct Fault {
    detail: Detail,
    errno: i32,
}

type Outcome = Result<(), Fault>;

fn errno() -> i32 {
    // SAFETY: always valid: a thread-local of the calling thread.
    unsafe { *libc::__errno_location() }
}

fn fault<T>(detail: Detail) -> Result<T, Fault> {
    Err(Fault { detail, errno: errno() })
}

/// The result of a call of libc, -1 being an error.
fn call(result: c_long) -> Result<c_long, Fault> {
    if result < 0 { fault(Detail::Itself) } else { Ok(result) }
}

fn close(fd: RawFd) {
    // SAFETY: closing a descriptor touches no memory; the callers own theirs.
    unsafe { libc::close(fd) };
}

fn prctl(option: c_int, a: c_ulong, b: c_ulong) -> Result<(), Fault> {
    // SAFETY: the options used here take numbers only (or a pointer to a static string for PR_SET_NAME).
    call(unsafe { libc::syscall(libc::SYS_prctl, c_long::from(option), a, b, 0 as c_ulong, 0 as c_ulong) })
        .map(drop)
}

const EMPTY: &CStr = c"";

/// State that ops share within one process.
struct State {
    /// Our end of the terminal.
    terminal: RawFd,
}

fn perform(op: &Op, slots: &mut [RawFd], state: &mut State) -> Outcome {
    match op {
        // SAFETY: numbers only.
        Op::Unshare(flags) => call(unsafe { libc::syscall(libc::SYS_unshare, *flags) }).map(drop),
        Op::Join { process, namespaces } => {
            // SAFETY: numbers only.
            call(unsafe { libc::syscall(libc::SYS_setns, *process, *namespaces) }).map(drop)
        }
        Op::Hostname(name) => {
            let bytes = name.to_bytes();
            // SAFETY: the bytes are valid for their length.
            call(unsafe { libc::syscall(libc::SYS_sethostname, bytes.as_ptr(), bytes.len()) }).map(drop)
        }
        Op::Slave => mounts::slave(),
        Op::Tree { path, attributes, into } => {
            let tree = mounts::clone_tree(libc::AT_FDCWD, path, *attributes)?;
            put(slots, *into, tree)
        }
        Op::Filesystem { kind, options, attributes, into } => {
            let made = mounts::filesystem(kind, options, *attributes)?;
            put(slots, *into, made)
        }
        Op::Pivot { rootfs, attributes } => mounts::pivot(rootfs, *attributes),
        Op::Place { from, target, missing } => match slots.get(*from) {
            Some(mount) => mounts::place(*mount, target, *missing),
            None => Err(Fault { detail: Detail::Itself, errno: libc::EBADF }),
        },
        Op::Again { path, target, attributes, missing } => mounts::again(path, target, *attributes, *missing),
        Op::Mask(path) => mounts::mask(path),
        Op::Node { directory, name, mode, device } => mounts::node(directory, name, *mode, *device),
        Op::Link { directory, name, target } => mounts::link(directory, name, target),
        Op::ReadOnlyRoot => mounts::read_only_root(),
        Op::Room { path, parent, name } => mounts::room(path, parent, name),
        Op::Directory { path, missing } => task::directory(path, *missing),
        Op::Terminal { socket, console, size } => {
            state.terminal = task::terminal(*socket, *console, *size)?;
            Ok(())
        }
        Op::Reaper => prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0),
        Op::Session => {
            // SAFETY: no arguments.
            call(unsafe { libc::syscall(libc::SYS_setsid) }).map(drop)
        }
        // SAFETY: numbers only.
        Op::OwnGroup => call(unsafe { libc::setpgid(0, 0) }.into()).map(drop),
        Op::Keyring => task::keyring(),
        Op::ControlTerminal => task::control_terminal(state.terminal),
        Op::TerminalStreams => task::terminal_streams(state.terminal),
        Op::OomScoreAdj { digits, length } => task::oom_score_adj(digits.get(..*length).unwrap_or_default()),
        // SAFETY: numbers only.
        Op::Stream { from, to } => call(unsafe { libc::dup2(*from, *to) }.into()).map(drop),
        Op::OwnStreams { uid, files_too } => task::own_streams(*uid, *files_too, state.terminal),
        Op::DropBounding(set) => {
            for capability in (0..64).filter(|bit| set & 1 << bit != 0) {
                prctl(libc::PR_CAPBSET_DROP, capability, 0)?;
            }
            Ok(())
        }
        Op::KeepCapabilities => prctl(libc::PR_SET_KEEPCAPS, 1, 0),
        Op::Groups(list) => {
            // SAFETY: the list is valid for its length.
            call(unsafe { libc::syscall(libc::SYS_setgroups, list.count, list.at) }).map(drop)
        }
        // SAFETY: numbers only.
        Op::Group(gid) => call(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) }).map(drop),
        // SAFETY: numbers only.
        Op::User(uid) => call(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) }).map(drop),
        Op::Capabilities { permitted, inheritable } => task::capabilities(*permitted, *inheritable),
        Op::Ambient(set) => task::ambient(*set),
        Op::NoNewPrivileges => prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0),
        Op::DieWithParent => prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0),
    }
}

fn put(slots: &mut [RawFd], into: usize, fd: RawFd) -> Outcome {
    match slots.get_mut(into) {
        Some(slot) => {
            *slot = fd;
            Ok(())
        }
        None => Err(Fault { detail: Detail::Itself, errno: libc::EBADF }),
    }
}

fn perform_all(ops: &[Op], slots: &mut [RawFd], state: &mut State, stage: u32) -> Result<(), Report> {
    for (index, op) in ops.iter().enumerate() {
        if let Err(fault) = perform(op, slots, state) {
            return Err(Report {
                stage,
                index: index as u32,
                detail: fault.detail as u32,
                errno: fault.errno,
            });
        }
    }
    Ok(())
}

/// Reports and ends this process. A pipe takes 16 bytes whole or not at all.
fn give_up(pipe: RawFd, report: Report) -> ! {
    tell(pipe, report);
    exit(NOT_STARTED)
}

fn tell(pipe: RawFd, report: Report) {
    let bytes = (&raw const report).cast();
    // SAFETY: `report` lives until the call returns and is 16 bytes without padding.
    unsafe { libc::write(pipe, bytes, size_of::<Report>()) };
}

/// A plain fork; the child goes on in the copy of this process alone.
fn fork() -> libc::pid_t {
    let zero = 0 as c_long;
    // SAFETY: without CLONE_VM the child has memory of its own.
    unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD as c_long, zero, zero, zero, zero) as libc::pid_t }
}

/// A pipe that exec closes.
fn pipe() -> Result<[RawFd; 2], Fault> {
    let mut ends = [-1; 2];
    // SAFETY: writes two descriptors.
    call(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into()).map(|_| ends)
}

/// Ends this process and nothing else: no exit handlers of the parent's.
fn exit(code: c_int) -> ! {
    // SAFETY: does not return; takes a number.
    unsafe { libc::_exit(code) }
}

//! Makes the first process of a launch.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::child::{self, Program};

/// `struct clone_args` of clone3(2), first version.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Clones this thread into a new process that runs the program, in a pid namespace of its own where the program
/// says so. Answers its number and a descriptor of it.
///
/// The child has no exit signal: waiting for it takes `__WALL`, and no `waitpid(-1)` elsewhere in this process
/// takes it away.
///
/// To be called on a thread that has all signals blocked and outlives every child: children die with it.
pub(crate) fn clone(program: &mut Program) -> io::Result<(u32, OwnedFd)> {
    let kept = [program.release, program.report, program.status];
    program.close = gaps(kept.iter().chain(&program.others).copied());
    let mut pidfd: RawFd = -1;
    let namespaces = if program.first_in_namespace { libc::CLONE_NEWPID } else { 0 };
    let args = CloneArgs {
        flags: (libc::CLONE_PIDFD | namespaces) as u64,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments are valid for their size; without CLONE_VM and a stack of its own the child is a copy
    // of this process with this thread alone, and does nothing but run the program, which neither allocates nor
    // locks.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match result {
        0 => child::run(program),
        pid if pid > 0 => {
            // SAFETY: the kernel made this descriptor for us alone.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            debug_assert!(pidfd.as_raw_fd() > 2);
            Ok((pid as u32, pidfd))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks every signal on this thread, for good.
pub(crate) fn block_all_signals() {
    let all = !0u64;
    // SAFETY: reads 8 bytes. Raw, as libc's would leave out the two signals it keeps for itself; those have no
    // use on a thread that only clones.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    };
}

/// The ranges above the standard streams that hold none of these descriptors.
fn gaps(kept: impl Iterator<Item = RawFd>) -> Vec<(RawFd, RawFd)> {
    let mut kept: Vec<RawFd> = kept.filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut next = 3;
    let mut gaps = Vec::with_capacity(kept.len() + 1);
    for fd in kept {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = fd.saturating_add(1);
    }
    // -1 as unsigned: the highest there is.
    gaps.push((next, -1));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_descriptors_but_the_kept_ones_are_in_a_gap() {
        assert_eq!(gaps([7, 3, 9].into_iter()), [(4, 6), (8, 8), (10, -1)]);
        assert_eq!(gaps([3, 4].into_iter()), [(5, -1)]);
        assert_eq!(gaps(std::iter::empty()), [(3, -1)]);
        assert_eq!(gaps([-1, 0, 5, 5].into_iter()), [(3, 4), (6, -1)]);
    }
}

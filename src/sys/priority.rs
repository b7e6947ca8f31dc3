//! Standing back: for work that nobody waits for.

/// Gives the calling thread a low priority: of processors (nice 10, a tenth of a share), and of disks whose scheduler
/// knows priorities (the last of the best-effort class of ioprio_set(2)). What cannot be set stays as it is. Not the
/// lowest there is: on a machine that is always busy the space would never come free.
pub(crate) fn lower() {
    /// The calling thread: IOPRIO_WHO_PROCESS and no number.
    const WHO_THREAD: (libc::c_int, libc::c_int) = (1, 0);
    /// IOPRIO_CLASS_BE, shifted to where the class stands, and its last level (linux/ioprio.h).
    const LAST: libc::c_int = 2 << 13 | 7;
    // Linux has it per thread, whatever POSIX says (setpriority(2), notes).
    let _ = rustix::process::setpriority_process(None, 10);
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD.0, WHO_THREAD.1, LAST) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_stands_back_alone() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let lowered = std::thread::spawn(|| {
            super::lower();
            rustix::process::getpriority_process(None).unwrap()
        });
        assert_eq!(lowered.join().unwrap(), 10);
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
    }
}

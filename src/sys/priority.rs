//! Standing back: for work that nobody waits for.

/// Gives the calling thread the lowest priority there is: of processors (nice 19), and of disks whose scheduler knows
/// priorities (the idle class of ioprio_set(2)). What cannot be set stays as it is.
pub(crate) fn lower() {
    /// The calling thread: IOPRIO_WHO_PROCESS and no number.
    const WHO_THREAD: (libc::c_int, libc::c_int) = (1, 0);
    /// IOPRIO_CLASS_IDLE, shifted to where the class stands (linux/ioprio.h).
    const IDLE: libc::c_int = 3 << 13;
    // Linux has it per thread, whatever POSIX says (setpriority(2), notes).
    let _ = rustix::process::setpriority_process(None, 19);
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD.0, WHO_THREAD.1, IDLE) };
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
        assert_eq!(lowered.join().unwrap(), 19);
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
    }
}

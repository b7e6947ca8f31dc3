//! Processes as `/proc` shows them, and user namespaces.

use std::io;
use std::sync::OnceLock;

/// `/proc/sys/kernel/random/boot_id`; empty where it cannot be read.
pub(crate) fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    })
}

/// State letter and start time in clock ticks since boot of a process (proc(5), `stat`, fields 3 and 22).
pub(crate) fn state_and_start(pid: u32) -> io::Result<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat of a process is malformed"))
}

fn parse_stat(stat: &str) -> Option<(char, u64)> {
    // The name, in parentheses, may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// Address and length of this process's command line and environment in its memory (`stat`, fields 48 to 51).
/// Empty where the kernel does not say.
pub(crate) fn own_arguments() -> Vec<(usize, usize)> {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return Vec::new() };
    let Some((_, rest)) = stat.rsplit_once(") ") else { return Vec::new() };
    let numbers: Vec<usize> =
        rest.split_whitespace().skip(45).take(4).filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [arg_start, arg_end, env_start, env_end] => [(arg_start, arg_end), (env_start, env_end)]
            .into_iter()
            .filter(|(start, end)| *start != 0 && start < end)
            .map(|(start, end)| (start, end - start))
            .collect(),
        _ => Vec::new(),
    }
}

/// Puts this process, which must have one thread, into new namespaces (`CLONE_NEW...`).
pub(crate) fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    match unsafe { libc::unshare(namespaces) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts this process, which must have one thread, into namespaces of the process behind a pidfd.
pub(crate) fn join_namespaces(process: impl std::os::fd::AsFd, namespaces: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: numbers only.
    match unsafe { libc::setns(process.as_fd().as_raw_fd(), namespaces) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks a process that goes on as this one does; its number, 0 in itself. To be called while there is one thread: then
/// the child may do what any program may.
pub(crate) fn fork() -> io::Result<i32> {
    // SAFETY: the caller's process has one thread, so no lock is held by another at this moment.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Forks a process that runs `act` and exits with its answer, under the same condition.
pub(crate) fn fork_then(act: impl FnOnce() -> i32) -> io::Result<i32> {
    match fork()? {
        0 => {
            let code = act();
            // SAFETY: ends this process without running exit handlers of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// Waits for a child; its wait status.
pub(crate) fn wait_for_child(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: writes one int.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_shift_the_fields_of_stat() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_stat(&format!("12 (a) b (c)) {rest}")), Some(('S', 4711)));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat("12 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_running_and_its_arguments_are_found() {
        let (state, start) = state_and_start(std::process::id()).expect("own stat");
        assert!(start > 0 && state != 'Z', "{state} {start}");
        assert!(!boot_id().is_empty());
        let arguments = own_arguments();
        assert!(arguments.iter().all(|(address, length)| *address > 4096 && *length > 0));
        assert!(!arguments.is_empty());
    }
}

//! Processes by number and start time, so that a process is never taken for a later one with the same number.

use std::io;
use std::sync::OnceLock;

use keelblock_actors::container::ProcessIdentity;
use rustix::io::Errno;

/// The identity of the process with this number; `None` when there is none. A zombie is still a process: see
/// [`is_alive`].
///
/// # Errors
/// When `/proc` is not mounted or not readable.
pub fn process_identity(pid: u32) -> io::Result<Option<ProcessIdentity>> {
    let Some(stat) = read_stat(pid)? else { return Ok(None) };
    let boot_id = boot_id()?.to_owned();
    Ok(Some(ProcessIdentity { pid, start_ticks: stat.start_ticks, boot_id }))
}

/// Whether exactly this process runs: same boot, same start time, and not a zombie. What cannot be read is taken
/// for alive, since hands off is the safer mistake.
pub fn is_alive(process: &ProcessIdentity) -> bool {
    match boot_id() {
        Ok(boot_id) if boot_id != process.boot_id => return false,
        _ => {}
    }
    match read_stat(process.pid) {
        Ok(Some(stat)) => stat.start_ticks == process.start_ticks && !matches!(stat.state, b'Z' | b'X'),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// `/proc/sys/kernel/random/boot_id` without its newline: another one after every boot. Read once.
pub fn boot_id() -> io::Result<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known);
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()))
}

/// What we need of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    start_ticks: u64,
}

fn read_stat(pid: u32) -> io::Result<Option<Stat>> {
    let text = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // It died between open and read.
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let bad =
        || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as proc(5) says"));
    parse_stat(&text).map(Some).ok_or_else(bad)
}

/// Fields 3 (state) and 22 (start time). Field 2 is the program's name in parentheses: it may hold anything, `) `
/// too, so that the last parenthesis counts.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&text[name_end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_cannot_forge_the_fields_behind_it() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["(cat)", "(a b)", "(x) R 1 1 1)", "((()"] {
            let line = format!("77 {name} {tail}\n");
            assert_eq!(parse_stat(line.as_bytes()), Some(Stat { state: b'S', start_ticks: 4242 }), "{name}");
        }
        assert_eq!(parse_stat(b"77 (cat) S 1 2"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn this_process_is_alive_and_an_impostor_with_its_number_is_not() {
        let us = process_identity(std::process::id()).unwrap().unwrap();
        assert!(is_alive(&us));
        assert!(!is_alive(&ProcessIdentity { start_ticks: us.start_ticks + 1, ..us.clone() }));
        assert!(!is_alive(&ProcessIdentity { boot_id: "another".into(), ..us }));
    }

    #[test]
    fn a_zombie_is_a_process_but_not_alive() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let identity = process_identity(child.id()).unwrap().unwrap();
        // waitid with WNOWAIT returns when it is dead and leaves the zombie.
        let flags = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), flags).unwrap();
        assert_eq!(process_identity(child.id()).unwrap().as_ref(), Some(&identity));
        assert!(!is_alive(&identity));
        child.wait().unwrap();
        assert!(!is_alive(&identity));
        assert_eq!(process_identity(identity.pid).unwrap().filter(|now| *now == identity), None);
    }
}

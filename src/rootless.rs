//! Root without being root: a user namespace of one's own.
//!
//! An ordinary user's process enters a new user namespace and a mount namespace owned by it, once, at start; from
//! then on it acts as root there, and nothing else in the engine differs but for what [`IdMaps`] says. Children
//! and containers live in the same namespace.
//!
//! The kernel lets only a process with one thread change its user namespace: embedders call [`enter`] first thing
//! in `main`, before a runtime, a logger with a thread or a launcher is made.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use keelblock_actors::container::ProcessIdentity;
use keelblock_actors::error::quote;

use crate::sys::mount_bits::{NEW_MOUNT, NEW_USER};
use crate::sys::{pidfd, process};

/// A run of user or group numbers and what they are outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First number inside.
    pub inside: u32,
    /// First number outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Which users and groups there are in the user namespace of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// `/proc/self/uid_map`.
    pub uids: Vec<IdRange>,
    /// `/proc/self/gid_map`.
    pub gids: Vec<IdRange>,
    /// Whether setgroups(2) is allowed.
    pub sets_groups: bool,
}

impl IdMaps {
    /// As the kernel shows them. Without `/proc` they are empty: nothing is allowed then.
    pub fn read() -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        Self {
            uids: parse_map(&read("uid_map")),
            gids: parse_map(&read("gid_map")),
            sets_groups: read("setgroups").trim() == "allow",
        }
    }

    /// Whether this is the machine's own user namespace, in which root may do all that root may.
    pub fn is_whole_machine(&self) -> bool {
        self.uids == [IdRange { inside: 0, outside: 0, count: u32::MAX }]
    }

    /// Whether there is such a user.
    pub fn has_uid(&self, uid: u32) -> bool {
        is_in(&self.uids, uid)
    }

    /// Whether there is such a group.
    pub fn has_gid(&self, gid: u32) -> bool {
        is_in(&self.gids, gid)
    }
}

fn is_in(ranges: &[IdRange], id: u32) -> bool {
    ranges.iter().any(|range| id.checked_sub(range.inside).is_some_and(|at| at < range.count))
}

fn parse_map(text: &str) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
            Some(IdRange { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? })
        })
        .collect()
}

/// What [`enter`] brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootless {
    /// Whether there are users besides root: their numbers come from `/etc/subuid` and `/etc/subgid`. Without them
    /// files of a layer all belong to root, and a container's command can run as root only.
    pub full_map: bool,
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
    /// Why there is no full map, when there is none.
    pub reason: Option<String>,
}

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// It must be entered while the process has one thread.
    #[error(
        "a user namespace must be entered before threads are started, and there are {threads}; call rootless::enter first thing in main"
    )]
    Threads {
        /// How many.
        threads: usize,
    },
    /// unshare(2).
    #[error("cannot make a user namespace{hint}")]
    Unshare {
        /// What to do about it.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of `/proc/self`.
    #[error("cannot {act} /proc/self/{name}")]
    Map {
        /// read, write.
        act: &'static str,
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// fork(2) or pipe(2) for the helper that runs newuidmap.
    #[error("cannot start a process for newuidmap")]
    Fork(#[source] io::Error),
    /// newuidmap or newgidmap is there and failed.
    #[error("{0}; remove the entries of this user from /etc/subuid and /etc/subgid to go on with one user")]
    Newuidmap(String),
    /// The process whose namespace shall be joined.
    #[error("cannot join the user namespace of process {pid}")]
    Join {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Whether this process needs [`enter`]: it is not root, or root without CAP_SYS_ADMIN.
pub fn is_needed() -> bool {
    let has_admin = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN);
    !rustix::process::geteuid().is_root() || !has_admin.unwrap_or(false)
}

/// Enters a new user namespace as its root, and a mount namespace owned by it.
///
/// With `newuidmap` and `newgidmap` installed and this user in `/etc/subuid` and `/etc/subgid` it has those
/// numbers too; else its user and group alone.
///
/// # Errors
/// [`RootlessError`]. After [`RootlessError::Map`] and later ones the process is in a namespace without users and
/// should end.
pub fn enter() -> Result<Rootless, RootlessError> {
    refuse_threads()?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let subordinate = Subordinate::find(uid);
    let (full, reason) = match subordinate {
        Ok(found) => (Some(found), None),
        Err(reason) => (None, Some(reason)),
    };
    let one = |outside| IdRange { inside: 0, outside, count: 1 };
    match full {
        Some(Subordinate { uids, gids }) => {
            let uids = after_root(one(uid), &uids);
            let gids = after_root(one(gid), &gids);
            let helper = Helper::start(&uids, &gids)?;
            unshare()?;
            helper.finish()?;
            Ok(Rootless { full_map: true, uids, gids, reason })
        }
        None => {
            unshare()?;
            write_own("setgroups", "deny")?;
            write_own("uid_map", &format!("0 {uid} 1"))?;
            write_own("gid_map", &format!("0 {gid} 1"))?;
            Ok(Rootless { full_map: false, uids: vec![one(uid)], gids: vec![one(gid)], reason })
        }
    }
}

/// Joins the user and mount namespace of another process of this user, the one that keeps a container: to execute
/// commands in the container, or to see its root filesystem.
///
/// # Errors
/// [`RootlessError::Join`] when it is gone or not ours; [`RootlessError::Threads`].
pub fn join(owner: &ProcessIdentity) -> Result<(), RootlessError> {
    refuse_threads()?;
    let failed = |source| RootlessError::Join { pid: owner.pid, source };
    let gone = || io::Error::from_raw_os_error(nix::errno::Errno::ESRCH as i32);
    let handle = pidfd::open(owner.pid).map_err(failed)?;
    let (_, start) = process::state_and_start(owner.pid).map_err(failed)?;
    if start != owner.start_ticks || owner.boot_id != process::boot_id() {
        return Err(failed(gone()));
    }
    let here = std::env::current_dir();
    process::join_namespaces(&handle, NEW_USER | NEW_MOUNT).map_err(failed)?;
    // Joining put us at the root.
    match here {
        Ok(here) => rustix::process::chdir(here).map_err(|source| failed(source.into())),
        Err(_) => Ok(()),
    }
}

fn refuse_threads() -> Result<(), RootlessError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|source| RootlessError::Map { act: "read", name: "task", source })?
        .count();
    if threads == 1 { Ok(()) } else { Err(RootlessError::Threads { threads }) }
}

fn unshare() -> Result<(), RootlessError> {
    process::unshare(NEW_USER | NEW_MOUNT).map_err(|source| {
        use nix::errno::Errno;
        let hint = match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) => {
                ": none are allowed; raise /proc/sys/user/max_user_namespaces, or run as root"
            }
            Some(Errno::EPERM | Errno::EACCES) => {
                ": ordinary users may not; see /proc/sys/kernel/unprivileged_userns_clone and \
                 /proc/sys/kernel/apparmor_restrict_unprivileged_userns (or this process is in a chroot), \
                 or run as root"
            }
            Some(Errno::EINVAL) => ": this kernel has none (CONFIG_USER_NS); run as root",
            _ => "",
        };
        RootlessError::Unshare { hint, source }
    })
}

fn write_own(name: &'static str, text: &str) -> Result<(), RootlessError> {
    fs::write(format!("/proc/self/{name}"), text).map_err(|source| RootlessError::Map {
        act: "write",
        name,
        source,
    })
}

/// The numbers that root gave this user.
struct Subordinate {
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
}

impl Subordinate {
    /// Or, as text, why there are none.
    fn find(uid: u32) -> Result<Self, String> {
        for program in ["newuidmap", "newgidmap"] {
            if find_program(program).is_none() {
                return Err(format!("{program} is not installed (package uidmap)"));
            }
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = name_of(&passwd, uid);
        let read = |file: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let ranges = parse_subordinate(&text, name, uid);
            if ranges.is_empty() { Err(format!("{file} has nothing for user {uid}")) } else { Ok(ranges) }
        };
        Ok(Self { uids: read("/etc/subuid")?, gids: read("/etc/subgid")? })
    }
}

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// First number and count of every range of a user in the text of `/etc/subuid` (subuid(5)).
fn parse_subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let user = fields.next()?;
            let ours = Some(user) == name || user.parse() == Ok(uid);
            let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (ours && count > 0).then_some((start, count))
        })
        .collect()
}

/// Root, then the ranges one after another.
fn after_root(root: IdRange, ranges: &[(u32, u32)]) -> Vec<IdRange> {
    let mut map = vec![root];
    let mut inside = 1u32;
    for (outside, count) in ranges {
        let count = (*count).min(u32::MAX - inside);
        map.push(IdRange { inside, outside: *outside, count });
        inside += count;
    }
    // The kernel takes so many lines.
    map.truncate(340);
    map
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// A process that stays outside, where newuidmap works, and maps us once we are inside.
struct Helper {
    pid: i32,
    go: Option<io::PipeWriter>,
    answer: io::PipeReader,
}

impl Helper {
    fn start(uids: &[IdRange], gids: &[IdRange]) -> Result<Self, RootlessError> {
        let (mut wait, mut go) =
            io::pipe().map(|(wait, go)| (wait, Some(go))).map_err(RootlessError::Fork)?;
        let (answer, mut answers) = io::pipe().map_err(RootlessError::Fork)?;
        let us = std::process::id();
        let arguments = |map: &[IdRange]| -> Vec<String> {
            let numbers = map.iter().flat_map(|range| [range.inside, range.outside, range.count]);
            std::iter::once(us).chain(numbers).map(|number| number.to_string()).collect()
        };
        let commands = [("newuidmap", arguments(uids)), ("newgidmap", arguments(gids))];
        // This process has one thread: the child may do what any program may.
        let pid = process::fork_then(|| {
            // Or it would hold its own pipe open should we die.
            drop(go.take());
            let mut byte = [0];
            if wait.read_exact(&mut byte).is_err() {
                return 1;
            }
            let failed = commands.iter().find_map(|(program, arguments)| map_by(program, arguments).err());
            match failed {
                Some(reason) => {
                    let _ = answers.write_all(reason.as_bytes());
                    1
                }
                None => 0,
            }
        });
        let pid = pid.map_err(RootlessError::Fork)?;
        // Ours: with it open the answer would never end.
        drop(answers);
        Ok(Self { pid, go, answer })
    }

    fn finish(mut self) -> Result<(), RootlessError> {
        if let Some(mut go) = self.go.take() {
            go.write_all(&[1]).map_err(RootlessError::Fork)?;
        }
        let mut reason = String::new();
        self.answer.read_to_string(&mut reason).map_err(RootlessError::Fork)?;
        let status = process::wait_for_child(self.pid).map_err(RootlessError::Fork)?;
        let status = ExitStatus::from_raw(status);
        if status.success() {
            return Ok(());
        }
        if reason.is_empty() {
            reason = format!("the process that runs newuidmap ended with {status}");
        }
        Err(RootlessError::Newuidmap(quote(&reason)))
    }
}

fn map_by(program: &str, arguments: &[String]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program} cannot be executed: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let says = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} failed: {}", says.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_the_kernel_writes_them() {
        let map = parse_map("         0       1000          1\n         1     100000      65536\n");
        assert_eq!(map.len(), 2);
        assert_eq!(map.get(1), Some(&IdRange { inside: 1, outside: 100_000, count: 65536 }));
        let maps = IdMaps { gids: map, ..IdMaps::default() };
        assert!(maps.has_gid(0) && maps.has_gid(5) && maps.has_gid(65536));
        assert!(!maps.has_gid(65537));
        assert!(!maps.is_whole_machine());
        assert!(parse_map("nonsense\n1 2\n").is_empty());
    }

    #[test]
    fn subordinate_numbers_are_found_by_name_and_by_number() {
        let text = "a:100000:65536\n# comment\n1000:300000:10\nb:1:x\na:500000:0\n";
        assert_eq!(parse_subordinate(text, Some("a"), 7), [(100_000, 65536)]);
        assert_eq!(parse_subordinate(text, None, 1000), [(300_000, 10)]);
        assert_eq!(parse_subordinate(text, Some("b"), 8), []);
        assert_eq!(name_of("x:x:1:1::/:\na:x:7:7::/:\n", 7), Some("a"));
    }

    #[test]
    fn ranges_follow_root_without_gaps() {
        let root = IdRange { inside: 0, outside: 1000, count: 1 };
        let map = after_root(root, &[(100_000, 10), (200_000, 5)]);
        let inside: Vec<_> = map.iter().map(|range| (range.inside, range.count)).collect();
        assert_eq!(inside, [(0, 1), (1, 10), (11, 5)]);
    }

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test harness runs this on a thread of its own.
        assert!(matches!(enter(), Err(RootlessError::Threads { .. })));
    }
}

//! Cgroups as directories: made, joined, emptied, removed. Version 1 has a hierarchy for each controller, version 2
//! one for all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keelblock_actors::container::ProcessIdentity;
use nix::errno::Errno;

use crate::sys::{pidfd, process};

/// How long the processes of a cgroup may take to be gone once they are killed. 10 s: the memory of large ones takes its
/// time; who waits for a disk cannot be helped, and the container stays to be destroyed again.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// First pause between two looks at them, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
const SIGKILL: i32 = 9;

/// What goes wrong with cgroups.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error(
        "the cgroup controller {controller} is not at {path}; mount it, say with --cgroups_hierarchy where it is, or leave its isolator out of --isolation"
    )]
    NoController { controller: &'static str, path: PathBuf },
    #[error("the kernel has no {path}")]
    NoFile { path: PathBuf },
    #[error("cannot {act} {path}{}", remedy(source))]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {value} to {path}{}", remedy(source))]
    Set {
        value: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the file {path} is damaged")]
    Journal {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("there is no directory for what is remembered of containers; set CgroupSettings::run_dir")]
    NoRunDirectory,
    #[error("cgroup {path} is gone: its container is being destroyed")]
    Gone { path: PathBuf },
    #[error("process {pid} ended before it could be put into its cgroup")]
    Ended { pid: u32 },
    #[error("cgroup {path} still has processes ({pids}) after they were killed; destroy the container again")]
    Busy { path: PathBuf, pids: String },
}

pub(super) fn file(act: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::File { act, path: path.to_owned(), source }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            " (limits need root and a writable cgroup file system: run as root, or leave cgroups/mem and cgroups/cpu out of --isolation)"
        }
        io::ErrorKind::ResourceBusy => {
            " (a cgroup with processes of its own cannot hand controllers down: move them to one below it, or leave cgroups/mem and cgroups/cpu out of --isolation)"
        }
        _ => "",
    }
}

/// Where cgroups are.
pub(super) struct Hierarchy {
    path: PathBuf,
    root: PathBuf,
    unified: bool,
}

impl Hierarchy {
    /// The one mounted there, of whichever version.
    pub(super) fn find(path: &Path, root: &Path) -> Self {
        let unified = path.join("cgroup.controllers").is_file();
        Self { path: path.to_owned(), root: root.to_owned(), unified }
    }

    pub(super) fn is_unified(&self) -> bool {
        self.unified
    }

    /// Where this controller's cgroups begin.
    fn top(&self, controller: &str) -> PathBuf {
        if self.unified { self.path.clone() } else { self.path.join(controller) }
    }

    fn directory(&self, controller: &str, name: &str) -> PathBuf {
        self.top(controller).join(&self.root).join(name)
    }

    /// All that a container has, each once.
    pub(super) fn directories(&self, controllers: &[&'static str], name: &str) -> Vec<PathBuf> {
        let mut all: Vec<_> = controllers.iter().map(|controller| self.directory(controller, name)).collect();
        all.dedup();
        all
    }

    /// Whether a controller is there.
    pub(super) fn check(&self, controller: &'static str) -> Result<(), CgroupError> {
        let there = if self.unified {
            lists(&self.path.join("cgroup.controllers"), controller)?
        } else {
            self.top(controller).join("cgroup.procs").is_file()
        };
        let missing = || CgroupError::NoController { controller, path: self.top(controller) };
        if there { Ok(()) } else { Err(missing()) }
    }

    /// Makes the cgroups of a container, and those above.
    pub(super) fn make(&self, controllers: &[&'static str], name: &str) -> Result<(), CgroupError> {
        if self.unified {
            // Each must hand its controllers down to the next.
            let mut above = self.path.clone();
            enable(&above, controllers)?;
            for part in &self.root {
                above.push(part);
                make_directory(&above, true)?;
                enable(&above, controllers)?;
            }
        }
        for directory in self.directories(controllers, name) {
            if let Some(above) = directory.parent() {
                fs::create_dir_all(above).map_err(|source| file("make cgroup", above, source))?;
            }
            make_directory(&directory, false)?;
        }
        Ok(())
    }

    /// Sets a value of a container's cgroup.
    pub(super) fn set(
        &self,
        controller: &str,
        name: &str,
        what: &str,
        value: &str,
    ) -> Result<(), CgroupError> {
        write(&self.directory(controller, name).join(what), value)
    }
}

/// Makes a cgroup. One that is left of a container of this name, which is dead, or it would have its name still, goes
/// first, unless it may stay.
fn make_directory(path: &Path, may_exist: bool) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if may_exist {
                return Ok(());
            }
            remove(path, PATIENCE)?;
            fs::create_dir(path).map_err(|source| file("make cgroup", path, source))
        }
        made => made.map_err(|source| file("make cgroup", path, source)),
    }
}

fn lists(path: &Path, word: &str) -> Result<bool, CgroupError> {
    let text = fs::read_to_string(path).map_err(|source| file("read", path, source))?;
    Ok(text.split_whitespace().any(|one| one == word))
}

/// Version 2: lets the children of a cgroup have these controllers.
fn enable(cgroup: &Path, controllers: &[&'static str]) -> Result<(), CgroupError> {
    let path = cgroup.join("cgroup.subtree_control");
    for controller in controllers {
        if !lists(&path, controller)? {
            write(&path, &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written = fs::write(path, value);
    written.map_err(|source| match path.exists() {
        true => CgroupError::Set { value: value.to_owned(), path: path.to_owned(), source },
        false => CgroupError::NoFile { path: path.to_owned() },
    })
}

/// Puts a process into a cgroup. It is a child of ours, not reaped yet: its number is its own.
pub(super) fn join(cgroup: &Path, init: &ProcessIdentity) -> Result<(), CgroupError> {
    let ended = |_| CgroupError::Ended { pid: init.pid };
    let (_, start) = process::state_and_start(init.pid).map_err(ended)?;
    if start != init.start_ticks || init.boot_id != process::boot_id() {
        return Err(CgroupError::Ended { pid: init.pid });
    }
    match write(&cgroup.join("cgroup.procs"), &init.pid.to_string()) {
        Err(CgroupError::NoFile { .. }) => Err(CgroupError::Gone { path: cgroup.to_owned() }),
        joined => joined,
    }
}

/// What came of too little memory.
pub(super) struct KilledForMemory {
    pub(super) processes: u64,
    /// As the kernel has it.
    pub(super) limit: String,
}

/// Whether processes of a cgroup were killed because its memory was at its limit.
pub(super) fn killed_for_memory(cgroup: &Path) -> Option<KilledForMemory> {
    for (events, limit) in [("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes")]
    {
        let Ok(text) = fs::read_to_string(cgroup.join(events)) else { continue };
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        let processes = count.filter(|count| *count > 0)?;
        let limit = fs::read_to_string(cgroup.join(limit)).unwrap_or_default().trim().to_owned();
        return Some(KilledForMemory { processes, limit });
    }
    None
}

/// Kills what is in a cgroup and in those below, and removes them. One that is not there is fine.
pub(super) fn remove(cgroup: &Path, patience: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSE.0;
    loop {
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
            // The container has made cgroups in its own.
            Err(error) if error.raw_os_error() == Some(Errno::ENOTEMPTY as i32) => {}
            Err(source) => return Err(file("remove cgroup", cgroup, source)),
        }
        for below in children(cgroup) {
            remove(&below, deadline.saturating_duration_since(Instant::now()))?;
        }
        let left = kill_all(cgroup)?;
        if Instant::now() >= deadline {
            let pids: Vec<_> = left.iter().map(u32::to_string).collect();
            return Err(CgroupError::Busy { path: cgroup.to_owned(), pids: pids.join(", ") });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// Sends SIGKILL to all that are in a cgroup now; tells who they are.
fn kill_all(cgroup: &Path) -> Result<Vec<u32>, CgroupError> {
    let pids = members(cgroup)?;
    // Version 2, since Linux 5.14: all at once, also those that are being forked.
    let kill = cgroup.join("cgroup.kill");
    if !pids.is_empty() && kill.exists() && write(&kill, "1").is_ok() {
        return Ok(pids);
    }
    let opened: Vec<_> = pids.iter().filter_map(|&pid| Some((pid, pidfd::open(pid).ok()?))).collect();
    // Whoever is in it after it was opened was it all the time; others may have been given its number.
    let still = members(cgroup)?;
    for (pid, process) in opened {
        if still.contains(&pid) {
            let _ = pidfd::signal(&process, SIGKILL);
        }
    }
    Ok(pids)
}

/// The processes of a cgroup. 0 is one of another pid namespace, which nobody here can reach.
fn members(cgroup: &Path) -> Result<Vec<u32>, CgroupError> {
    let path = cgroup.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect()),
        // Gone already: ENODEV is of one that was removed while it was open.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(Vec::new()),
        Err(source) => Err(file("read", &path, source)),
    }
}

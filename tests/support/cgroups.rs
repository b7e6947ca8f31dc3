//! Cgroups of this machine for one test: below a name of its own, which goes with it, also when it fails.

#![allow(dead_code, reason = "each file of tests uses its part of this")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const HIERARCHY: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 2] = ["memory", "cpu"];

/// A cgroup of version 1 of each controller, in which a test has those of its containers.
pub(crate) struct CgroupRoot {
    /// For `--cgroups_root`.
    pub(crate) name: PathBuf,
}

impl CgroupRoot {
    /// `None`, after saying why not, where there is nothing to make it in.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let root = Self { name: format!("keelblock-test-{name}-{}", std::process::id()).into() };
        for controller in CONTROLLERS {
            let top = Path::new(HIERARCHY).join(controller);
            if !top.join("cgroup.procs").is_file() || fs::create_dir_all(root.of(controller)).is_err() {
                eprintln!("skipped: needs cgroups of version 1 that can be written");
                return None;
            }
        }
        Some(root)
    }

    /// The flag that names it.
    pub(crate) fn flag(&self) -> String {
        format!("--cgroups_root={}", self.name.display())
    }

    fn of(&self, controller: &str) -> PathBuf {
        Path::new(HIERARCHY).join(controller).join(&self.name)
    }

    fn all(&self, controller: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.of(controller)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// The cgroup of a container.
    pub(crate) fn cgroup(&self, controller: &str, id: &str) -> Option<PathBuf> {
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.all(controller)
            .into_iter()
            .find(|path| name(path).is_some_and(|name| name.split('.').next() == Some(id)))
    }

    /// What a file of it holds.
    pub(crate) fn value(&self, controller: &str, id: &str, file: &str) -> String {
        let cgroup = self.cgroup(controller, id).expect("a cgroup");
        fs::read_to_string(cgroup.join(file)).expect(file).trim().to_owned()
    }

    /// Who is in it.
    pub(crate) fn processes(&self, controller: &str, id: &str) -> Vec<u32> {
        let text = self.value(controller, id, "cgroup.procs");
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }

    /// Panics if a container has left a cgroup.
    #[track_caller]
    pub(crate) fn expect_empty(&self) {
        for controller in CONTROLLERS {
            let left = self.all(controller);
            assert!(left.is_empty(), "{left:?}");
            assert!(self.of(controller).is_dir(), "the root stays");
        }
    }
}

impl Drop for CgroupRoot {
    fn drop(&mut self) {
        for controller in CONTROLLERS {
            let cgroups = self.all(controller).into_iter().chain([self.of(controller)]);
            for cgroup in cgroups {
                // Five seconds for what was killed to be gone.
                for _ in 0..1000 {
                    if fs::remove_dir(&cgroup).is_ok() || !cgroup.exists() {
                        break;
                    }
                    for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
                        if let Some(pid) = pid.parse().ok().filter(|pid| *pid > 1) {
                            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

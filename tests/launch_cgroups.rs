//! Containers with limits, in cgroups of this machine: as root, where it has those of version 1 with a memory and a
//! cpu controller. Every test has cgroups of its own below one name, which goes with it, also when it fails.

mod launch_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelblock::isolator::{CgroupSettings, Settings, compose};
use keelblock::launcher::LinuxLauncher;
use keelblock_actors::container::{ContainerId, ExitStatus, Resources};
use keelblock_actors::launch::LaunchContext;
use keelblock_actors::ports::{ExecSpec, Isolator, Launched, Launcher};
use launch_support::{House, block_on, house_with, line, output, skipped};

const HIERARCHY: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;

/// A house whose containers have limits.
struct Limited {
    house: House,
    root: PathBuf,
}

impl Limited {
    /// `None` after saying why not.
    fn new(name: &str) -> Option<Self> {
        Self::with(name, &["filesystem/linux", "namespaces/pid", "cgroups/mem", "cgroups/cpu"])
    }

    fn with(name: &str, isolation: &[&str]) -> Option<Self> {
        let root = PathBuf::from(format!("keelblock-test-{name}-{}", std::process::id()));
        let mut house = house_with(isolation, Settings::default())?;
        for controller in ["memory", "cpu"] {
            let top = Path::new(HIERARCHY).join(controller);
            if !top.join("cgroup.procs").is_file() || fs::create_dir_all(top.join(&root)).is_err() {
                skipped("needs cgroups of version 1 that can be written");
                return None;
            }
        }
        house.isolators = isolators(&house, &root, isolation);
        Some(Self { house, root })
    }

    fn context(&self, id: &str, text: &str, resources: Resources) -> LaunchContext {
        LaunchContext { resources, ..self.house.context(id, line(text)) }
    }

    /// All that is done before and with a launch, as the containerizer does it.
    fn launch(&self, context: &LaunchContext) -> Arc<dyn Launched> {
        let launched = self.house.start(context).unwrap_or_else(|failure| panic!("{}", failure.text()));
        for isolator in &self.house.isolators {
            isolator.isolate(&context.id, &launched.init()).expect("isolated");
        }
        launched.release().expect("released");
        launched
    }

    /// As the containerizer does it when a container has ended.
    fn clean(&self, id: &ContainerId) {
        for isolator in self.house.isolators.iter().rev() {
            isolator.cleanup(id).expect("cleaned up");
        }
    }

    fn run(&self, context: &LaunchContext) -> (ExitStatus, String) {
        let launched = self.launch(context);
        (block_on(launched.wait()), output(context))
    }

    fn top(&self, controller: &str) -> PathBuf {
        Path::new(HIERARCHY).join(controller).join(&self.root)
    }

    /// The cgroup of a container.
    fn cgroup(&self, controller: &str, id: &ContainerId) -> Option<PathBuf> {
        let all =
            fs::read_dir(self.top(controller)).expect("a directory").flatten().map(|entry| entry.path());
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            path.is_dir() && name.split('.').next() == Some(id.as_str())
        };
        all.into_iter().find(named)
    }

    fn value(&self, controller: &str, id: &ContainerId, file: &str) -> String {
        let cgroup = self.cgroup(controller, id).expect("a cgroup");
        fs::read_to_string(cgroup.join(file)).expect(file).trim().to_owned()
    }

    fn processes(&self, controller: &str, id: &ContainerId) -> Vec<u32> {
        self.value(controller, id, "cgroup.procs")
            .lines()
            .map(|line| line.parse().expect("a number"))
            .collect()
    }

    fn nothing_is_left(&self) {
        for controller in ["memory", "cpu"] {
            let left: Vec<_> = fs::read_dir(self.top(controller))
                .expect("the root stays")
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        clear(&self.root);
    }
}

/// Kills and removes what is below a root of cgroups, and that itself.
fn clear(root: &Path) {
    let removed = |dir: &Path| fs::remove_dir(dir).is_ok() || !dir.exists();
    for controller in ["memory", "cpu"] {
        let top = Path::new(HIERARCHY).join(controller).join(root);
        let entries: Vec<_> = fs::read_dir(&top).into_iter().flatten().flatten().collect();
        let below = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir());
        for cgroup in below.chain([top.clone()]) {
            for _ in 0..1000 {
                if removed(&cgroup) {
                    break;
                }
                for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
                    let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a number"));
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}

fn isolators(house: &House, root: &Path, isolation: &[&str]) -> Vec<Arc<dyn Isolator>> {
    let cgroups = CgroupSettings {
        root: root.to_owned(),
        run_dir: Some(house.directory.path().join("containers")),
        ..CgroupSettings::default()
    };
    compose(isolation, &Settings { cgroups, ..Settings::default() }).expect("isolators")
}

fn memory(bytes: u64) -> Resources {
    Resources { memory_bytes: Some(bytes), ..Resources::default() }
}

/// Waits until a container has written this.
fn until(context: &LaunchContext, text: &str) {
    while !output(context).contains(text) {
        std::thread::yield_now();
    }
}

/// A line that ends with 0 when it could have 64 MiB.
const GROW: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1 2> /dev/null";

#[test]
fn a_process_over_the_limit_of_memory_is_killed_and_others_are_not() {
    let Some(limited) = Limited::new("memory") else { return };
    let context = limited.context("grows", &format!("{GROW}; echo ended with $?"), memory(24 * MIB));
    let (status, said) = limited.run(&context);
    assert_eq!(said, "ended with 137\n", "{status:?}");
    assert_eq!(status, ExitStatus::Exited(0));
    assert_eq!(limited.value("memory", &context.id, "memory.limit_in_bytes"), (24 * MIB).to_string());
    limited.clean(&context.id);
    let enough = limited.context("fits", &format!("{GROW}; echo ended with $?"), memory(128 * MIB));
    assert_eq!(limited.run(&enough).1, "ended with 0\n");
    limited.clean(&enough.id);
    limited.nothing_is_left();
}

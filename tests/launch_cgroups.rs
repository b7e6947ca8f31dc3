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

#[test]
fn every_number_asked_for_is_in_its_file() {
    let Some(limited) = Limited::new("numbers") else { return };
    let resources = Resources {
        memory_bytes: Some(64 * MIB),
        memory_request_bytes: Some(16 * MIB),
        cpu_millis: Some(1500),
        cpu_request_millis: Some(500),
    };
    let context = limited.context("numbers", "true", resources);
    assert_eq!(limited.run(&context).0, ExitStatus::Exited(0));
    for (controller, file, value) in [
        ("memory", "memory.limit_in_bytes", 64 * MIB),
        ("memory", "memory.soft_limit_in_bytes", 16 * MIB),
        ("cpu", "cpu.cfs_period_us", 100_000),
        ("cpu", "cpu.cfs_quota_us", 150_000),
        ("cpu", "cpu.shares", 512),
    ] {
        assert_eq!(limited.value(controller, &context.id, file), value.to_string(), "{file}");
    }
    // Where the kernel counts swap.
    let swap = limited.cgroup("memory", &context.id).expect("a cgroup").join("memory.memsw.limit_in_bytes");
    if let Ok(both) = fs::read_to_string(swap) {
        assert_eq!(both.trim(), (64 * MIB).to_string());
    }
    limited.clean(&context.id);
    limited.nothing_is_left();
}

/// A container with children and grandchildren that run until they are killed.
const FAMILY: &str = "for n in 1 2 3; do (sleep 1000 & exec sleep 1000) & done; echo ready; exec sleep 1000";

#[test]
fn all_that_a_container_forks_is_inside_and_is_killed_with_its_cgroup() {
    for (name, isolation) in [
        ("forks", &["filesystem/linux", "namespaces/pid", "cgroups/mem", "cgroups/cpu"][..]),
        ("forks-no-pid", &["filesystem/linux", "cgroups/mem", "cgroups/cpu"]),
    ] {
        let Some(limited) = Limited::with(name, isolation) else { return };
        let context = limited.context("family", FAMILY, memory(64 * MIB));
        let launched = limited.launch(&context);
        until(&context, "ready");
        // The supervisor, the command, three children, three grandchildren.
        while limited.processes("memory", &context.id).len() < 8 {
            std::thread::yield_now();
        }
        let mut inside = limited.processes("memory", &context.id);
        let mut same = limited.processes("cpu", &context.id);
        inside.sort_unstable();
        same.sort_unstable();
        assert_eq!((inside.len(), &inside), (8, &same));
        assert!(inside.contains(&launched.init().pid));
        limited.clean(&context.id);
        assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
        limited.nothing_is_left();
    }
}

#[test]
fn a_command_executed_later_is_inside_and_limited() {
    let Some(limited) = Limited::new("exec") else { return };
    let context = limited.context("exec", "echo ready; exec sleep 1000", memory(24 * MIB));
    let launched = limited.launch(&context);
    until(&context, "ready");
    // Another process's launcher, which has no isolators at all.
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let other = LinuxLauncher::new(&limited.house.directory.path().join("containers"), &log);
    let shell = |text: &str| {
        let argv = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
        other.exec(&context.id, ExecSpec { argv, ..ExecSpec::default() }).expect("executed")
    };
    let sleeps = shell("exec sleep 1000");
    let inside = limited.processes("memory", &context.id);
    assert!(inside.contains(&sleeps.init().pid), "{inside:?}");
    assert_eq!(inside.len(), 4, "two supervisors, two commands");
    let grows = shell(&format!("{GROW}; exit $?"));
    assert_eq!(block_on(grows.wait()), ExitStatus::Exited(137));
    launched.kill_all().expect("killed");
    assert_eq!(block_on(sleeps.wait()), ExitStatus::Signaled(9));
    limited.clean(&context.id);
    limited.nothing_is_left();
}

#[test]
fn who_cleans_up_needs_neither_the_isolators_nor_the_same_flags() {
    let Some(limited) = Limited::new("others") else { return };
    let context = limited.context("left", FAMILY, memory(64 * MIB));
    let launched = limited.launch(&context);
    let strangers = isolators(&limited.house, Path::new("another-root"), &["filesystem/linux"]);
    for isolator in strangers.iter().rev() {
        isolator.cleanup(&context.id).expect("cleaned up");
    }
    assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
    limited.nothing_is_left();
    limited.clean(&context.id);
}

#[test]
fn what_is_left_under_a_name_does_not_hinder_the_next_of_that_name() {
    let Some(limited) = Limited::new("again") else { return };
    let context = limited.context("again", "true", memory(64 * MIB));
    assert_eq!(limited.run(&context).0, ExitStatus::Exited(0));
    // Nobody cleaned up.
    let context = limited.context("again", "true", memory(32 * MIB));
    assert_eq!(limited.run(&context).0, ExitStatus::Exited(0));
    assert_eq!(limited.value("memory", &context.id, "memory.limit_in_bytes"), (32 * MIB).to_string());
    limited.clean(&context.id);
    limited.nothing_is_left();
}

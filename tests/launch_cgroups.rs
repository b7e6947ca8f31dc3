//! Containers with limits, in cgroups of this machine: as root, where it has those of version 1 with a memory and a
//! cpu controller. Every test has cgroups of its own below one name, which goes with it, also when it fails.

mod launch_support;
mod support {
    pub(crate) mod cgroups;
}

use std::fs;
use std::path::Path;
use std::sync::Arc;

use keelblock::isolator::{CgroupSettings, Settings, compose};
use keelblock::launcher::LinuxLauncher;
use keelblock_actors::container::{ContainerId, ExitStatus, Resources};
use keelblock_actors::image::appc::{App, Isolator as ImageIsolator};
use keelblock_actors::launch::LaunchContext;
use keelblock_actors::ports::{ExecSpec, Isolator, Launched, Launcher};
use launch_support::{House, app, block_on, house_with, line, output};
use support::cgroups::CgroupRoot;

const MIB: u64 = 1 << 20;

/// A house whose containers have limits.
struct Limited {
    house: House,
    root: CgroupRoot,
}

impl Limited {
    /// `None` after saying why not.
    fn new(name: &str) -> Option<Self> {
        Self::with(
            name,
            &["filesystem/linux", "namespaces/pid", "appc/runtime", "cgroups/mem", "cgroups/cpu"],
        )
    }

    fn with(name: &str, isolation: &[&str]) -> Option<Self> {
        let mut house = house_with(isolation, Settings::default())?;
        let root = CgroupRoot::new(name)?;
        house.isolators = isolators(&house, &root.name, isolation);
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

    fn value(&self, controller: &str, id: &ContainerId, file: &str) -> String {
        self.root.value(controller, id.as_str(), file)
    }

    fn processes(&self, controller: &str, id: &ContainerId) -> Vec<u32> {
        self.root.processes(controller, id.as_str())
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
    limited.root.expect_empty();
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
    let swap = limited
        .root
        .cgroup("memory", context.id.as_str())
        .expect("a cgroup")
        .join("memory.memsw.limit_in_bytes");
    if let Ok(both) = fs::read_to_string(swap) {
        assert_eq!(both.trim(), (64 * MIB).to_string());
    }
    limited.clean(&context.id);
    limited.root.expect_empty();
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
        limited.root.expect_empty();
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
    limited.root.expect_empty();
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
    limited.root.expect_empty();
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
    limited.root.expect_empty();
}

#[test]
fn an_appc_image_limits_itself() {
    let Some(limited) = Limited::new("appc") else { return };
    let of = |name: &str, value: &str| ImageIsolator {
        name: name.parse().expect("a name"),
        value: value.to_owned(),
    };
    let isolators = vec![
        of("resource/memory", r#"{"limit": "24Mi", "request": "16Mi"}"#),
        of("resource/cpu", r#"{"limit": "1500m", "request": "500m"}"#),
    ];
    let app = App { isolators, ..app(&format!("{GROW}; echo ended with $?")) };
    let context = limited.house.appc("appc", app);
    assert_eq!(limited.run(&context).1, "ended with 137\n");
    for (controller, file, value) in [
        ("memory", "memory.limit_in_bytes", 24 * MIB),
        ("memory", "memory.soft_limit_in_bytes", 16 * MIB),
        ("cpu", "cpu.cfs_quota_us", 150_000),
        ("cpu", "cpu.shares", 512),
    ] {
        assert_eq!(limited.value(controller, &context.id, file), value.to_string(), "{file}");
    }
    limited.clean(&context.id);
    let context = LaunchContext { resources: memory(128 * MIB), ..context };
    // What both wrote is in one file.
    assert_eq!(limited.run(&context).1, "ended with 137\nended with 0\n");
    limited.clean(&context.id);
    limited.root.expect_empty();
}

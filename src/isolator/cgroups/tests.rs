//! Limits as numbers; cgroups as files, in trees that look like either version; and real ones, where there are.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use keelblock_actors::container::{CommandSpec, ProcessIdentity, Resources};
use keelblock_actors::error::chain;
use keelblock_actors::image::appc::{App, Isolator as ImageIsolator};
use keelblock_actors::image::plan::RuntimeConfig;
use keelblock_actors::launch::{IsolatorOutcome, LaunchContext, LaunchPlan, StdioSpec};
use keelblock_actors::ports::Isolator;
use tempfile::TempDir;

use super::hierarchy::{self, PATIENCE};
use super::resources::{Ask, Enforced, Limits, limits};
use super::{CgroupSettings, Cgroups, journal};
use crate::isolator::Settings;
use crate::isolator::appc::isolators::{Enforcers, decide};
use crate::isolator::appc::sample;
use crate::sys::process;

const ALL: Enforced = Enforced { memory: true, cpu: true, images: true };
const MIB: u64 = 1 << 20;

fn context(resources: Resources, isolators: &[(&str, &str)]) -> LaunchContext {
    let isolators = isolators.iter().map(|(name, value)| ImageIsolator {
        name: name.parse().expect("a name"),
        value: (*value).to_owned(),
    });
    let app = App { isolators: isolators.collect(), ..App::default() };
    LaunchContext {
        id: "c".parse().expect("an ID"),
        rootfs: None,
        rootfs_read_only: false,
        runtime: Some(RuntimeConfig { appc: Some(Box::new(sample(Some(app)))), ..RuntimeConfig::default() }),
        command: CommandSpec::default(),
        volumes: Vec::new(),
        sandbox: PathBuf::from("/nowhere"),
        effective_capabilities: None,
        bounding_capabilities: None,
        resources,
        tty: false,
        stdio: StdioSpec::Null,
        read_only: false,
    }
}

/// What an image's isolators come to: outcome and why of each, and the limits.
fn of_image(
    resources: Resources,
    isolators: &[(&str, &str)],
) -> Result<(Vec<(IsolatorOutcome, String)>, Limits), String> {
    let context = context(resources, isolators);
    let enforcers = Enforcers { memory: true, cpu: true, ..Enforcers::new(&Settings::default()) };
    let app =
        context.runtime.as_ref().and_then(|runtime| runtime.appc.as_ref()?.app.as_ref()).expect("an app");
    let decided = decide(&context, app, &enforcers).map_err(|error| chain(&error))?;
    let outcomes = decided.outcomes.into_iter().map(|one| (one.outcome, one.why)).collect();
    Ok((outcomes, limits(&context, ALL).map_err(|error| chain(&error))?))
}

#[test]
fn limits_become_the_values_that_the_kernel_takes() {
    let ask = |limit, request| Ask { limit, request, changed: None };
    let all = Limits { memory: ask(Some(64 * MIB), Some(16 * MIB)), cpu: ask(Some(1500), Some(500)) };
    let told = |limits: &Limits, unified| -> Vec<String> {
        let files = limits.files(unified).into_iter();
        files.map(|(_, file, value)| format!("{}={value}", file.name)).collect()
    };
    let old = [
        "memory.limit_in_bytes=67108864",
        "memory.memsw.limit_in_bytes=67108864",
        "memory.soft_limit_in_bytes=16777216",
        "cpu.cfs_period_us=100000",
        "cpu.cfs_quota_us=150000",
        "cpu.shares=512",
    ];
    assert_eq!(told(&all, false), old);
    let new = [
        "memory.max=67108864",
        "memory.swap.max=0",
        "memory.low=16777216",
        "cpu.max=150000 100000",
        "cpu.weight=20",
    ];
    assert_eq!(told(&all, true), new);
    let edge = |limit, request, unified| {
        told(&Limits { cpu: ask(limit, request), ..Limits::default() }, unified).pop().unwrap_or_default()
    };
    assert_eq!(edge(Some(10), None, false), "cpu.cfs_quota_us=1000");
    assert_eq!(edge(None, Some(0), false), "cpu.shares=2");
    assert_eq!(edge(None, Some(1000), false), "cpu.shares=1024");
    assert_eq!(edge(None, Some(1000), true), "cpu.weight=39");
    assert_eq!(edge(None, Some(0), true), "cpu.weight=1");
    assert_eq!(edge(None, Some(u64::MAX), true), "cpu.weight=10000");
    assert_eq!(edge(Some(u64::MAX), None, true), "cpu.max=1000000000 100000");
    assert!(Limits::default().files(true).is_empty());
}

#[test]
fn what_nobody_would_limit_and_what_cannot_be_is_refused() {
    let error =
        |resources, enforced| limits(&context(resources, &[]), enforced).expect_err("refused").to_string();
    let memory = |bytes| Resources { memory_bytes: Some(bytes), ..Resources::default() };
    let cpu = |millis| Resources { cpu_millis: Some(millis), ..Resources::default() };
    let none = Enforced::default();
    assert!(error(memory(64 * MIB), none).contains("add cgroups/mem to --isolation"));
    assert!(error(cpu(1000), Enforced { memory: true, ..none }).contains("add cgroups/cpu to --isolation"));
    let request = Resources { memory_request_bytes: Some(1), ..Resources::default() };
    assert!(error(request, none).contains("cgroups/mem"));
    assert!(error(memory(6 * MIB - 1), ALL).contains("6M"));
    assert!(error(cpu(9), ALL).contains("0.01"));
    let above = Resources { memory_request_bytes: Some(9 * MIB), ..memory(8 * MIB) };
    assert!(error(above, ALL).contains("above the limit"));
    assert_eq!(limits(&context(Resources::default(), &[]), none).expect("nothing asked"), Limits::default());
}

#[test]
fn an_image_limits_itself_and_the_callers_numbers_win() {
    use IsolatorOutcome::{Enforced, Modified};
    let none = Resources::default();
    let both = [
        ("resource/memory", r#"{"limit": "1G", "request": "64Mi"}"#),
        ("resource/cpu", r#"{"limit": "1500m", "request": "0.25"}"#),
    ];
    let (outcomes, limits) = of_image(none, &both).expect("limits");
    assert_eq!(outcomes, [(Enforced, String::new()), (Enforced, String::new())]);
    assert_eq!((limits.memory.limit, limits.memory.request), (Some(1_000_000_000), Some(64 * MIB)));
    assert_eq!((limits.cpu.limit, limits.cpu.request), (Some(1500), Some(250)));
    let caller = Resources { memory_bytes: Some(32 * MIB), ..none };
    let (outcomes, limits) = of_image(caller, &both).expect("limits");
    assert_eq!((outcomes[0].0, outcomes[1].0), (Modified, Enforced));
    assert!(outcomes[0].1.contains("caller"), "{outcomes:?}");
    assert_eq!((limits.memory.limit, limits.memory.request), (Some(32 * MIB), None));
    for (name, value, limit, request) in [
        ("resource/memory", r#"{"limit": "1"}"#, 6 * MIB, None),
        ("resource/memory", r#"{"limit": "8Mi", "request": "9Mi"}"#, 8 * MIB, Some(8 * MIB)),
        ("resource/cpu", r#"{"limit": "1m"}"#, 10, None),
    ] {
        let (outcomes, limits) = of_image(none, &[(name, value)]).expect(value);
        assert_eq!((outcomes[0].0, outcomes[0].1.is_empty()), (Modified, false), "{value}");
        let ask = if name.ends_with("cpu") { limits.cpu } else { limits.memory };
        assert_eq!((ask.limit, ask.request), (Some(limit), request), "{value}");
    }
    for value in [r#"{"limit": "lots"}"#, r#"{"limit": "-1"}"#, r#"{"limit": 5}"#, "7"] {
        let error = of_image(none, &[("resource/memory", value)]).expect_err(value);
        assert!(error.contains("resource/memory"), "{error}");
    }
}

/// A tree of files like that of the kernel, and a directory of containers.
struct Fake(TempDir);

impl Fake {
    fn new(files: &[(&str, &str)]) -> Self {
        let fake = Self(tempfile::tempdir().expect("a directory"));
        for (name, text) in files {
            let path = fake.path(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("cgroup").join(name)
    }

    fn isolator(&self, root: &str) -> Cgroups {
        let cgroups = CgroupSettings {
            hierarchy: self.path(""),
            root: root.into(),
            run_dir: Some(self.0.path().join("containers")),
        };
        Cgroups::new(&Settings { cgroups, ..Settings::default() }, ALL)
    }

    fn prepare(&self, root: &str, resources: Resources) -> Result<(), String> {
        let prepared = self.isolator(root).prepare(&context(resources, &[]), &mut LaunchPlan::default());
        prepared.map_err(|error| chain(&error))
    }

    /// Where the container's cgroups are, as remembered.
    fn cgroups(&self) -> Vec<PathBuf> {
        let id = "c".parse().expect("an ID");
        journal::read(&self.0.path().join("containers"), &id).expect("a journal").expect("one")
    }
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).expect(name)
}

fn us() -> ProcessIdentity {
    let pid = std::process::id();
    identity(pid)
}

fn identity(pid: u32) -> ProcessIdentity {
    let (_, start_ticks) = process::state_and_start(pid).expect("a process");
    ProcessIdentity { pid, start_ticks, boot_id: process::boot_id().to_owned() }
}

const RESOURCES: Resources = Resources {
    memory_bytes: Some(64 * MIB),
    memory_request_bytes: None,
    cpu_millis: Some(500),
    cpu_request_millis: None,
};

#[test]
fn version_1_has_a_cgroup_for_each_controller() {
    let fake = Fake::new(&[("memory/cgroup.procs", ""), ("cpu/cgroup.procs", "")]);
    fake.prepare("a/b", RESOURCES).expect("prepared");
    let cgroups = fake.cgroups();
    let [memory, cpu] = &cgroups[..] else { panic!("{cgroups:?}") };
    assert_eq!(memory.parent(), Some(&*fake.path("memory/a/b")));
    assert_eq!(cpu.parent(), Some(&*fake.path("cpu/a/b")));
    assert!(memory.file_name().is_some_and(|name| name.to_string_lossy().starts_with("c.")));
    assert_eq!(read(memory, "memory.limit_in_bytes"), "67108864");
    assert_eq!(read(memory, "memory.memsw.limit_in_bytes"), "67108864");
    assert_eq!(read(cpu, "cpu.cfs_quota_us"), "50000");
    let id = "c".parse().expect("an ID");
    fake.isolator("a/b").isolate(&id, &us()).expect("isolated");
    for cgroup in &cgroups {
        assert_eq!(read(cgroup, "cgroup.procs"), us().pid.to_string());
    }
    let later = ProcessIdentity { start_ticks: us().start_ticks + 1, ..us() };
    assert!(fake.isolator("a/b").isolate(&id, &later).is_err(), "another process of that number");
}

#[test]
fn version_2_has_one_cgroup_and_controllers_are_handed_down() {
    let fake = Fake::new(&[
        ("cgroup.controllers", "cpuset cpu io memory pids\n"),
        ("cgroup.subtree_control", "cpu memory\n"),
        ("a/cgroup.subtree_control", "memory\n"),
        ("a/b/cgroup.subtree_control", ""),
    ]);
    fake.prepare("a/b", RESOURCES).expect("prepared");
    let cgroups = fake.cgroups();
    let [one] = &cgroups[..] else { panic!("{cgroups:?}") };
    assert_eq!(one.parent(), Some(&*fake.path("a/b")));
    assert_eq!(read(one, "memory.max"), "67108864");
    assert_eq!(read(one, "memory.swap.max"), "0");
    assert_eq!(read(one, "cpu.max"), "50000 100000");
    assert_eq!(read(&fake.path(""), "cgroup.subtree_control"), "cpu memory\n");
    // The kernel adds to the file what is written to it; a file holds what was written last.
    assert_eq!(read(&fake.path("a"), "cgroup.subtree_control"), "+cpu");
    assert_eq!(read(&fake.path("a/b"), "cgroup.subtree_control"), "+cpu");
}

#[test]
fn a_controller_that_is_not_there_is_named_with_what_to_do() {
    let none = Fake::new(&[]);
    let old = Fake::new(&[("memory/cgroup.procs", "")]);
    let new = Fake::new(&[("cgroup.controllers", "cpu\n"), ("cgroup.subtree_control", "")]);
    for (fake, controller) in [(none, "memory"), (old, "cpu"), (new, "memory")] {
        let error = fake.prepare("a", RESOURCES).expect_err(controller);
        let named = format!("controller {controller} is not at");
        assert!(error.contains(&named) && error.contains("--cgroups_hierarchy"), "{error}");
        assert!(error.contains("--isolation"), "{error}");
    }
}

#[test]
fn without_the_isolators_nothing_is_made_and_nothing_to_clean_up_is_fine() {
    let fake = Fake::new(&[]);
    let cgroups = CgroupSettings { run_dir: Some(fake.path("containers")), ..CgroupSettings::default() };
    let settings = Settings { cgroups, ..Settings::default() };
    let idle = Cgroups::new(&settings, Enforced::default());
    let context = context(Resources::default(), &[]);
    idle.prepare(&context, &mut LaunchPlan::default()).expect("nothing to do");
    idle.isolate(&context.id, &us()).expect("nothing to do");
    idle.cleanup(&context.id).expect("nothing to do");
    assert!(!fake.path("").exists());
}

#[test]
fn a_damaged_record_of_cgroups_does_not_keep_a_container_from_going() {
    let fake = Fake::new(&[]);
    let id = "c".parse().expect("an ID");
    let record = fake.0.path().join("containers/c/cgroups.json");
    fs::create_dir_all(record.parent().expect("a parent")).expect("made");
    fs::write(&record, "").expect("written");
    assert!(fake.isolator("a").isolate(&id, &us()).is_err(), "nothing runs without its limits");
    fake.isolator("a").cleanup(&id).expect("cleaned up");
    assert!(!record.exists());
}

#[test]
fn what_was_killed_for_memory_is_told_by_either_version() {
    let fake = Fake::new(&[
        ("old/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ("old/memory.limit_in_bytes", "8388608\n"),
        ("new/memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n"),
        ("new/memory.max", "16777216\n"),
        ("well/memory.events", "max 7\noom 0\noom_kill 0\n"),
    ]);
    let told = |name| {
        let killed = hierarchy::killed_for_memory(&fake.path(name))?;
        Some((killed.processes, killed.limit))
    };
    assert_eq!(told("old"), Some((3, "8388608".to_owned())));
    assert_eq!(told("new"), Some((2, "16777216".to_owned())));
    assert_eq!((told("well"), told("none")), (None, None));
}

#[test]
fn a_real_cgroup_of_version_2_is_joined_emptied_and_removed_with_those_below() {
    let hierarchies = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
    let Some(top) = hierarchies.into_iter().find(|path| path.join("cgroup.controllers").is_file()) else {
        eprintln!("skipped: needs cgroups of version 2");
        return;
    };
    let cgroup = top.join(format!("keelblock-test-v2-{}", std::process::id()));
    if fs::create_dir(&cgroup).is_err() {
        eprintln!("skipped: needs cgroups that can be written");
        return;
    }
    let below = cgroup.join("below");
    fs::create_dir(&below).expect("made");
    let mut child = Command::new("sleep").arg("1000").spawn().expect("a process");
    let joined = hierarchy::join(&below, &identity(child.id()));
    let members = fs::read_to_string(below.join("cgroup.procs")).unwrap_or_default();
    let removed = hierarchy::remove(&cgroup, PATIENCE);
    let _ = child.kill();
    assert_eq!(child.wait().expect("ended").signal(), Some(9));
    joined.expect("joined");
    assert_eq!(members.trim(), child.id().to_string());
    removed.expect("removed");
    assert!(!cgroup.exists());
    hierarchy::remove(&cgroup, PATIENCE).expect("gone already");
}

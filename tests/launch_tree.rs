//! Real containers: the file tree they see, and what of the host they never touch.

mod launch_support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use keelblock::isolator::Settings;
use keelblock_actors::container::{ExitStatus, VolumeSource, VolumeSpec};
use keelblock_actors::launch::MountedVolume;
use launch_support::{Failure, block_on, house, house_with, line};

fn volume(host_path: &Path, container_path: &str, read_only: bool) -> MountedVolume {
    let spec = VolumeSpec {
        container_path: container_path.into(),
        mount_point: None,
        read_only,
        source: VolumeSource::HostPath(host_path.to_owned()),
    };
    MountedVolume { spec, host_path: host_path.to_owned() }
}

/// A directory of the host with a file in it, that no container may touch. Not in `/dev`, which is one of the
/// names that the image's links take.
struct Canary(tempfile::TempDir);

impl std::ops::Deref for Canary {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.0.path()
    }
}

fn canary() -> Canary {
    let canary = tempfile::tempdir_in("/tmp").expect("made");
    std::fs::write(canary.path().join("file"), "untouched").expect("written");
    Canary(canary)
}

fn assert_untouched(canary: &Path) {
    let names: Vec<_> = std::fs::read_dir(canary)
        .expect("the canary")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["file"]);
    assert_eq!(std::fs::read_to_string(canary.join("file")).expect("the file"), "untouched");
}

#[test]
fn mounts_are_those_of_the_table() {
    let Some(house) = house() else { return };
    let output = house.output("mounts", "cat /proc/self/mountinfo");
    let options = |target: &str| {
        let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line =
            output.lines().map(fields).rfind(|fields| fields.get(4).is_some_and(|path| path == target));
        let fields = line.unwrap_or_else(|| panic!("{target} is not mounted:\n{output}"));
        let kind = fields.iter().skip_while(|field| *field != "-").nth(1).cloned().unwrap_or_default();
        (kind, fields.get(5).cloned().unwrap_or_default())
    };
    for (target, kind, wanted) in [
        ("/proc", "proc", "rw,nosuid,nodev,noexec"),
        ("/proc/sys", "proc", "ro,nosuid,nodev,noexec"),
        ("/proc/bus", "proc", "ro,nosuid,nodev,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/sys/fs/cgroup", "tmpfs", "ro,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "rw,nosuid,noexec"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"),
    ] {
        let (found, flags) = options(target);
        assert_eq!(found, kind, "{target}");
        assert!(flags.starts_with(wanted), "{target}: {flags}");
    }
    assert!(options("/").1.contains("nodev"));
    assert!(options("/mnt/mesos/sandbox").1.contains("nodev"));
    // The container's root is the first mount: nothing of the host's tree is left.
    let host = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(output.lines().count() < 40, "{output}");
    assert!(host.lines().all(|line| !line.contains(&*house.rootfs.to_string_lossy())));
}

#[test]
fn devices_and_links_are_there() {
    let Some(house) = house() else { return };
    let text = "cd /dev; for d in full null random tty urandom zero; do stat -c '%n %F %a %t:%T' $d; done; \
                for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done; ls /dev/pts";
    let expected = "full character special file 666 1:7\nnull character special file 666 1:3\n\
                    random character special file 666 1:8\ntty character special file 666 5:0\n\
                    urandom character special file 666 1:9\nzero character special file 666 1:5\n\
                    fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\n\
                    ptmx pts/ptmx\nptmx\n";
    assert_eq!(house.output("dev", text), expected);
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() {
    let Some(house) = house() else { return };
    let text = "for f in kcore keys timer_list; do [ -e /proc/$f ] && head -c 1 /proc/$f | wc -c; done; \
                ls /proc/acpi /proc/scsi /sys/firmware /sys/fs/cgroup 2>/dev/null | grep -v : | grep .; \
                echo 1 > /proc/sys/kernel/panic; echo h > /proc/sysrq-trigger; mkdir /sys/fs/cgroup/x; \
                touch /proc/kcore; true";
    let output = house.output("masks", text);
    let (read, refused): (Vec<_>, Vec<_>) = output.lines().partition(|line| *line == "0");
    assert!(!read.is_empty());
    // Some kernels have no kcore and no sysrq.
    let ok = |line: &&str| line.contains("Read-only file system") || line.to_lowercase().contains("no");
    assert!(refused.iter().all(ok), "{output}");
    assert!(output.contains("/proc/sys/kernel/panic: Read-only file system"), "{output}");
    assert!(output.contains("'/sys/fs/cgroup/x': Read-only file system"), "{output}");
}

#[test]
fn nothing_of_the_hosts_tree_is_reachable() {
    let Some(house) = house() else { return };
    let canary = canary();
    let path = canary.join("file");
    let path = path.display();
    let text = format!(
        "cat {path} /../../..{path} /proc/self/root{path} /proc/1/root{path} /proc/1/cwd/{path}; \
         cd /; cd ..; cat .{path}; true"
    );
    let output = house.output("escape", &text);
    assert!(!output.contains("untouched"), "{output}");
    assert_untouched(&canary);
}

#[test]
fn mesos_8257_links_of_the_image_cannot_lead_mounts_to_the_host() {
    let Some(house) = house() else { return };
    let canary = canary();
    let absolute = |name: &str| canary.join(name).to_string_lossy().into_owned();
    let upwards = |name: &str| format!("../../../../../../../..{}", absolute(name));
    for (name, link) in [
        ("proc", absolute("proc")),
        ("sys", upwards("sys")),
        ("dev", absolute("dev")),
        ("mnt", upwards("mnt")),
        ("volume", absolute("made")),
        ("file", upwards("file-volume")),
        ("magic", "/proc/self/cwd".to_owned()),
        ("workdir", absolute("work")),
    ] {
        symlink(link, house.rootfs.join(name)).expect("linked");
    }
    let source = house.directory.path().join("source");
    std::fs::create_dir(&source).expect("made");
    let mut context = house.context("links", line("cd /volume && pwd && ls /mnt/mesos/sandbox"));
    context.command.working_directory = Some("/workdir".into());
    context.volumes = ["/volume/deep", "/file/in", "/magic/x", "sub/dir"]
        .iter()
        .map(|path| volume(&source, path, false))
        .collect();
    let (status, output) = house.run(&context);
    assert_eq!((status, output.as_str()), (ExitStatus::Exited(0), "/volume\nstderr\nstdout\nsub\n"));
    assert_untouched(&canary);
    assert_eq!(std::fs::read_dir(&source).expect("the source").count(), 0);
    let inside = house.rootfs.join(canary.strip_prefix("/").expect("absolute"));
    for name in ["made/deep", "proc", "sys", "dev", "mnt/mesos/sandbox", "work", "file-volume/in"] {
        assert!(inside.join(name).is_dir(), "{name}: the link was followed inside");
    }
    assert!(house.rootfs.join("x").is_dir(), "a link of procfs is text");
    // What a descriptor of the supervisor holds is no way out either, whatever its text leads to inside.
    symlink("/proc/self/fd/3", house.rootfs.join("descriptor")).expect("linked");
    context.volumes = vec![volume(&source, "/descriptor/x", false)];
    if let Ok(launched) = house.launch(&context) {
        block_on(launched.wait());
    }
    assert_untouched(&canary);
}

#[test]
fn a_link_loop_as_target_fails_with_its_name() {
    let Some(house) = house() else { return };
    symlink("loop", house.rootfs.join("loop")).expect("linked");
    let mut context = house.context("loop", line("true"));
    context.volumes = vec![volume(house.directory.path(), "/loop/x", false)];
    let Err(failure) = house.launch(&context) else { panic!("launched") };
    let text = failure.text();
    assert!(text.contains("/loop/x") && text.to_lowercase().contains("symbolic links"), "{text}");
}

#[test]
fn a_file_where_a_directory_must_be_fails_with_its_name() {
    let Some(house) = house() else { return };
    std::fs::write(house.rootfs.join("proc"), "a file").expect("written");
    let Err(failure) = house.launch(&house.context("file", line("true"))) else { panic!("launched") };
    assert!(failure.text().contains("mount proc at /proc"), "{}", failure.text());
}

#[test]
fn volumes_are_mounted_where_the_rules_say() {
    let Some(house) = house() else { return };
    let source = house.directory.path().join("source");
    std::fs::create_dir(&source).expect("made");
    std::fs::write(source.join("file"), "content").expect("written");
    let text = "cat /data/sub/file /mnt/mesos/sandbox/relative/file /etc/one /bin/../ro/file; \
                echo new > /data/sub/new; echo x > /ro/x; stat -c %F /etc/one";
    let mut context = house.context("volumes", line(text));
    context.volumes = vec![
        volume(&source, "/data/sub", false),
        volume(&source, "relative", false),
        volume(&source.join("file"), "/etc/one", true),
        volume(&source, "/ro", true),
    ];
    let (status, output) = house.run(&context);
    assert_eq!(status, ExitStatus::Exited(0), "{output}");
    assert!(output.starts_with("contentcontentcontentcontentregular file\n"), "{output}");
    assert!(output.contains("can't create /ro/x: Read-only file system"), "{output}");
    assert_eq!(std::fs::read_to_string(source.join("new")).expect("written inside"), "new\n");
    assert!(context.sandbox.join("relative").is_dir(), "the mount point is in the host's sandbox");
}

#[test]
fn volumes_that_cannot_be_are_refused_before_the_launch() {
    let Some(house) = house() else { return };
    let here = house.directory.path().to_owned();
    for (source, target) in [
        (here.clone(), "../out"),
        (here.clone(), "/a/../../b"),
        (here.clone(), "/"),
        (here.clone(), ""),
        (here.join("missing"), "/x"),
        (PathBuf::from("relative"), "/x"),
    ] {
        let mut context = house.context("refused", line("true"));
        context.volumes = vec![volume(&source, target, false)];
        let Err(failure) = house.launch(&context) else { panic!("{target} was mounted") };
        assert!(matches!(failure, Failure::Isolator(_)), "{}", failure.text());
        assert!(failure.text().contains("volume/host_path"), "{}", failure.text());
    }
}

#[test]
fn a_read_only_root_cannot_be_written_but_the_sandbox_can() {
    let Some(house) = house() else { return };
    let text = "echo x > /x; echo y > /mnt/mesos/sandbox/y && cat /mnt/mesos/sandbox/y; echo z > /dev/shm/z && echo shm";
    let mut context = house.context("read-only", line(text));
    context.read_only = true;
    let (_, output) = house.run(&context);
    assert!(output.starts_with("y\nshm\n"), "{output}");
    assert!(output.contains("/x: Read-only file system"), "{output}");
}

#[test]
fn a_missing_mount_point_in_a_read_only_root_is_named_with_its_remedy() {
    let Some(house) = house() else { return };
    // As the bind backend gives it.
    let layer = house.directory.path().join("layer");
    std::fs::rename(&house.rootfs, &layer).expect("moved");
    std::fs::create_dir(&house.rootfs).expect("made");
    let none = None::<&str>;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    mount(Some(&layer), &house.rootfs, none, MsFlags::MS_BIND, none).expect("bound");
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &house.rootfs, none, read_only, none).expect("read-only");
    let mut context = house.context("bind", line("echo runs; touch /x"));
    context.rootfs_read_only = true;
    let failure = house.launch(&context).err().map(|failure| failure.text());
    for name in ["proc", "sys", "dev", "mnt/mesos/sandbox"] {
        std::fs::create_dir_all(layer.join(name)).expect("made");
    }
    let now = house.run(&context).1;
    umount2(&house.rootfs, MntFlags::MNT_DETACH).expect("unmounted");
    let failure = failure.expect("not launched");
    assert!(failure.contains("/proc") && failure.contains("--image_provisioner_backend"), "{failure}");
    assert!(now.starts_with("runs\n") && now.contains("Read-only file system"), "{now}");
}

#[test]
fn the_sandbox_directory_can_be_elsewhere() {
    let settings = Settings { sandbox_directory: "/work/space".into(), ..Settings::default() };
    let Some(house) = house_with(&keelblock::isolator::DEFAULT_ISOLATION, settings) else { return };
    let output = house.output("sandbox", "pwd; echo $MESOS_SANDBOX; ls");
    assert_eq!(output, "/work/space\n/work/space\nstderr\nstdout\n");
}

#[test]
fn without_a_root_of_its_own_a_container_sees_the_host_and_its_sandbox() {
    let Some(house) = house() else { return };
    let canary = canary();
    let text = format!("pwd; cat {}; cat /proc/1/comm; ls relative", canary.join("file").display());
    let mut context = house.context("host", line(&text));
    context.rootfs = None;
    context.runtime = None;
    context.volumes = vec![volume(&canary, "relative", true)];
    let (status, output) = house.run(&context);
    assert_eq!(status, ExitStatus::Exited(0), "{output}");
    let expected = format!("{}\nuntouchedkeelblock-init\nfile\n", context.sandbox.display());
    assert_eq!(output, expected);
    assert_untouched(&canary);
    // Nothing is made on the host.
    context.volumes = vec![volume(&canary, "/keelblock-does-not-exist", false)];
    assert!(house.launch(&context).is_err());
    assert!(!Path::new("/keelblock-does-not-exist").exists());
}

#[test]
fn shared_memory_and_message_queues_are_the_containers_own() {
    let Some(house) = house() else { return };
    let output =
        house.output("ipc", "readlink /proc/self/ns/ipc; echo a > /dev/shm/a; ls /dev/shm; ls /dev/mqueue");
    let host = std::fs::read_link("/proc/self/ns/ipc").expect("a namespace");
    assert!(!output.contains(&*host.to_string_lossy()), "{output}");
    assert!(output.ends_with("\na\n"), "{output}");
}

#[test]
fn a_host_name_of_its_own_is_the_containers_id() {
    let isolation = [&keelblock::isolator::DEFAULT_ISOLATION[..], &["namespaces/uts"]].concat();
    let Some(house) = house_with(&isolation, Settings::default()) else { return };
    assert_eq!(house.output("named-so", "hostname"), "named-so\n");
    let long = "x".repeat(200);
    assert_eq!(house.output(&long, "hostname"), "x".repeat(64) + "\n");
}

//! `--memory` and `--cpus` of `keelblock run`, by the real binary: as root, where this machine has cgroups of version 1.

use nix::sys::signal::Signal;

mod support {
    pub(crate) mod binary;
    pub(crate) mod cgroups;
    pub(crate) mod images;
}

use support::binary::{Room, need_root};
use support::cgroups::CgroupRoot;
use support::images::{Compression, Image, shell};

/// A room with an image of a shell, all commands of which have cgroups below a root of its own.
fn room(name: &str, root: &CgroupRoot) -> (Room, String) {
    let room = bare_room(name).with_flag(root.flag());
    let room =
        room.with_flag("--isolation=filesystem/linux,docker/runtime,namespaces/pid,cgroups/mem,cgroups/cpu");
    let image = image(&room);
    (room, image)
}

fn bare_room(name: &str) -> Room {
    Room::new(&format!("cgroups-{name}"))
}

fn image(room: &Room) -> String {
    let image = Image::new().compressed(shell().finish(), Compression::None);
    image.write_oci(&room.join("shell"), "latest");
    format!("oci:{}:latest", room.join("shell").display())
}

/// A line that needs more memory than any limit here.
const GROW: &str = "x=0123456789abcdef; while :; do x=$x$x; done";

#[test]
fn a_container_over_its_memory_is_killed_and_the_log_says_why() {
    need_root!();
    let Some(root) = CgroupRoot::new("cli-memory") else { return };
    let (room, image) = room("memory", &root);
    let limited = ["run", "--memory=16M", "--id=grows", &image, "--", "sh", "-c", GROW];
    let outcome = room.keelblock(limited).run().code(137);
    for part in ["container: grows", "--memory", "limit_bytes: 16777216", "killed: 1"] {
        assert!(outcome.stderr().contains(part), "{part}{outcome}");
    }
    root.expect_empty();
    // Who stays below it hears nothing.
    let well = room.keelblock(["run", "--memory=16M", &image, "--", "echo", "well"]).run().ok();
    assert_eq!((well.stdout(), well.stderr()), ("well\n".to_owned(), String::new()));
    root.expect_empty();
    room.expect_no_leftovers();
}

#[test]
fn exec_is_inside_and_destroy_leaves_nothing() {
    need_root!();
    let Some(root) = CgroupRoot::new("cli-exec") else { return };
    let (room, image) = room("exec", &root);
    let line = "echo ready; exec sleep 1000";
    let running = room
        .keelblock(["run", "--memory=16M", "--cpus=1.5", "--id=held", &image, "--", "sh", "-c", line])
        .start();
    running.wait_for_output("ready");
    assert_eq!(root.value("cpu", "held", "cpu.cfs_quota_us"), "150000");
    assert_eq!(root.value("memory", "held", "memory.limit_in_bytes"), "16777216");
    let before = root.processes("memory", "held").len();
    let second = room.keelblock(["exec", "held", "--", "sh", "-c", line]).start();
    second.wait_for_output("ready");
    assert_eq!(root.processes("memory", "held").len(), before + 2, "a supervisor and a command");
    assert_eq!(root.processes("cpu", "held").len(), before + 2);
    room.keelblock(["exec", "held", "--", "sh", "-c", GROW]).run().code(137);
    // By one that has no flag of either kind.
    room.bare(["--work_dir"]).arg(room.work_dir()).args(["destroy", "held"]).run().ok();
    running.wait();
    second.wait();
    root.expect_empty();
    room.expect_no_leftovers();
}

#[test]
fn what_a_killed_keelblock_leaves_goes_with_the_next_command() {
    need_root!();
    let Some(root) = CgroupRoot::new("cli-crash") else { return };
    let room = bare_room("crash");
    let image = image(&room);
    let isolation = "--isolation=filesystem/linux,docker/runtime,cgroups/mem";
    let line = "(sleep 1000 & exec sleep 1000) & echo ready; exec sleep 1000";
    let run = ["run", "--memory=16M", "--id=dead", &image, "--", "sh", "-c", line];
    let running = room.keelblock([isolation, &root.flag()]).args(run).start();
    running.wait_for_output("ready");
    assert!(root.cgroup("memory", "dead").is_some());
    running.kill_nine();
    // With no flag of either kind.
    room.keelblock(["images"]).run().ok();
    root.expect_empty();
    room.expect_no_leftovers();
}

#[test]
fn interrupted_it_leaves_no_cgroup() {
    need_root!();
    let Some(root) = CgroupRoot::new("cli-signal") else { return };
    let (room, image) = room("signal", &root);
    let line = "echo ready; exec sleep 1000";
    let running = room.keelblock(["run", "--memory=16M", &image, "--", "sh", "-c", line]).start();
    running.wait_for_output("ready");
    running.signal(Signal::SIGTERM);
    running.wait().code(143);
    root.expect_empty();
    room.expect_no_leftovers();
}

#[test]
fn limits_that_nobody_would_enforce_or_that_cannot_be_are_refused() {
    need_root!();
    let room = bare_room("refused");
    let image = image(&room);
    let run =
        |isolation: &str, flag: &str| room.keelblock([isolation, "run", flag, &image, "--", "true"]).run();
    let plain = "--isolation=filesystem/linux,docker/runtime";
    run(plain, "--memory=16M").failed_naming(&["memory", "add cgroups/mem to --isolation"]);
    run(plain, "--cpus=1").failed_naming(&["processor", "add cgroups/cpu to --isolation"]);
    let limited = "--isolation=filesystem/linux,docker/runtime,cgroups/mem,cgroups/cpu";
    run(limited, "--memory=5M").failed_naming(&["5242880", "6M"]);
    run(limited, "--cpus=0.009").failed_naming(&["0.01"]);
    for flag in ["--memory=much", "--cpus=-1", "--cpus=1.0001", "--cpus=0"] {
        let outcome = run(limited, flag).code(2);
        assert!(outcome.stderr().contains(flag), "{outcome}");
    }
    let nowhere = ["--cgroups_hierarchy=/nowhere", limited, "run", &image, "--", "true"];
    room.keelblock(nowhere).run().failed_naming(&[
        "memory",
        "/nowhere",
        "--cgroups_hierarchy",
        "--isolation",
    ]);
    room.expect_no_leftovers();
}

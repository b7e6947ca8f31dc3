//! `keelblock` killed with signal 9 in the middle of its work, as a power cut or the out-of-memory killer would;
//! then any command: the store must be whole, and nothing of the dead process may be left.
//!
//! Where it is killed is chosen by a proxy that lets so many bytes of the registry's answers through and then
//! holds the rest, so that "in the middle" is a place and not a matter of luck. One test kills at moments of
//! chance on top of that: it samples the places that no gate reaches, between unpack and commit.

use std::time::Duration;

use nix::sys::signal::Signal;

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
}

use support::binary::{Room, need_programs, need_root};
use support::images::{Compression, Image, Layer, shell};
use support::peers::{Holding, Registry};

/// A shell, and three layers of three megabytes each that do not compress, so that a place in the transfer is a
/// place in the unpacking.
fn image() -> Image {
    let mut noise = 1_u64;
    let mut noise = move || {
        // Knuth's MMIX generator: no gzip finds anything in its upper bytes.
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 32).to_le_bytes()[..4].to_vec()
    };
    (0..3_u32).fold(Image::new().compressed(shell().finish(), Compression::None), |image, layer| {
        let mut files = Layer::new();
        for n in 0..300_u32 {
            let bytes: Vec<u8> = (0..2500).flat_map(|_| noise()).collect();
            let bytes = [format!("{layer} {n}\n").into_bytes(), bytes].concat();
            files = files.file(&format!("data/{layer}/{n}"), bytes, 0o644);
        }
        image.compressed(files.finish(), Compression::None)
    })
}

/// Ends with 0 when the root filesystem of [`image`] is whole.
const WHOLE: &str = "for l in 0 1 2; do n=0; while [ $n -lt 300 ]; do read -r a b < /data/$l/$n || exit 8; \
                     [ \"$a $b\" = \"$l $n\" ] || exit 9; n=$((n+1)); done; done; echo whole";

/// The image in a registry, and the name it has there.
fn pushed(room: &Room) -> Registry {
    let registry = Registry::start();
    image().write_oci(&room.join("oci"), "latest");
    registry.push(&format!("oci:{}:latest", room.join("oci").display()), "app:1", &["--format", "oci"]);
    registry
}

#[test]
fn killed_in_the_middle_of_a_pull_it_leaves_a_whole_store_and_no_staging() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    // In the manifest, in the first layer, where several are under way, near the end.
    for limit in [200, 60_000, 4_000_000, 8_000_000, 10_500_000] {
        let room = Room::new("crash-pull");
        let registry = pushed(&room);
        let proxy = Holding::start(registry.address(), limit);
        let name = proxy.image("app:1");
        let run = room.keelblock(["run", "--id", "crashed", &name, "--", "true"]).start();
        proxy.wait_until_held();
        run.kill_nine();

        // Any command will do; one that fetches nothing, so that it cannot be the fetch that cleans up.
        room.keelblock(["images"]).run().ok();
        room.expect_no_leftovers();

        proxy.let_go();
        room.keelblock(["run", "--id", "crashed", &name, "--", "sh", "-c", WHOLE])
            .run()
            .ok()
            .printed("whole\n");
        room.expect_no_leftovers();
    }
}

#[test]
fn layers_that_were_whole_before_the_kill_are_not_fetched_again() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("crash-reuse");
    let registry = pushed(&room);
    let base = Image::new().compressed(shell().finish(), Compression::None);
    base.write_oci(&room.join("base"), "latest");
    registry.push(&format!("oci:{}:latest", room.join("base").display()), "base:1", &["--format", "oci"]);
    room.keelblock(["pull", &registry.image("base:1")]).run().ok();

    let proxy = Holding::start(registry.address(), 2_000_000);
    let name = proxy.image("app:1");
    let pull = room.keelblock(["pull", &name]).start();
    proxy.wait_until_held();
    pull.kill_nine();
    proxy.let_go();

    let said = room.keelblock(["pull", "--json", &name]).run().ok().json();
    let said = if said.is_array() { &said[0] } else { &said };
    assert!(said["layers_reused"].as_u64() >= Some(1), "the base layer was fetched again: {said}");
    room.expect_no_leftovers();
}

#[test]
fn interrupted_in_the_middle_of_a_pull_it_cleans_up_by_itself() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let room = Room::new("interrupt-pull");
        let registry = pushed(&room);
        let proxy = Holding::start(registry.address(), 4_000_000);
        let run = room.keelblock(["run", &proxy.image("app:1"), "--", "true"]).start();
        proxy.wait_until_held();
        run.signal(signal);
        let outcome = run.wait();
        // By the signal, or with the status a shell would give for it, or as a failure of keelblock itself.
        let status = outcome.exit_code();
        assert!([None, Some(125), Some(128 + signal as i32)].contains(&status), "{signal}{outcome}");
        // No other command has run: nothing else can have cleaned up.
        room.expect_no_leftovers();
    }
}

#[test]
fn killed_while_the_container_runs_it_leaves_no_process_mount_or_container() {
    need_root!();
    for backend in ["overlay", "copy", "bind"] {
        let room = Room::new("crash-run");
        Image::new().compressed(shell().finish(), Compression::None).write_oci(&room.join("oci"), "latest");
        let name = format!("oci:{}:latest", room.join("oci").display());
        let flag = format!("--image_provisioner_backend={backend}");
        let line =
            "trap '' TERM HUP INT; sleep 3000 & (sleep 3001 &) ; echo ready; while :; do sleep 1; done";
        let run = room.keelblock([&flag, "run", "--id", "crashed", &name, "--", "sh", "-c", line]).start();
        run.wait_for_output("ready");
        run.kill_nine();

        let listed = room.keelblock(["ps", "--json"]).run().ok();
        assert!(!listed.stdout().contains("crashed"), "a dead container is listed{listed}");
        room.expect_no_leftovers();
        room.keelblock([&flag, "run", "--id", "crashed", &name, "--", "true"]).run().ok();
        room.expect_no_leftovers();
    }
}

#[test]
fn a_container_provisioned_to_stay_survives_the_crash_of_another_command() {
    need_root!();
    let room = Room::new("crash-beside");
    Image::new().compressed(shell().finish(), Compression::None).write_oci(&room.join("oci"), "latest");
    let name = format!("oci:{}:latest", room.join("oci").display());
    let said = room.keelblock(["provision", "--json", "--id", "stays", &name]).run().ok().json();
    let rootfs = std::path::PathBuf::from(said["rootfs"].as_str().unwrap());
    std::fs::write(rootfs.join("mark"), "mine").unwrap();
    let beside =
        room.keelblock(["run", "--id", "lives", &name, "--", "sh", "-c", "echo ready; read -r x; exit 5"]);
    let mut beside = beside.keep_stdin().start();
    beside.wait_for_output("ready");

    let run = room.keelblock(["run", &name, "--", "sh", "-c", "echo ready; sleep 3000"]).start();
    run.wait_for_output("ready");
    run.kill_nine();
    room.keelblock(["images"]).run().ok();

    assert_eq!(std::fs::read_to_string(rootfs.join("mark")).unwrap(), "mine");
    assert!(beside.is_running(), "the crash of one command took the container of another down");
    beside.write(b"\n");
    beside.wait().code(5);
    room.keelblock(["destroy", "stays"]).run().ok();
    room.expect_no_leftovers();
}

#[test]
fn killed_at_any_moment_the_next_command_finds_a_consistent_store() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("crash-any");
    let registry = pushed(&room);
    let name = registry.image("app:1");
    let whole = || room.keelblock(["run", "--id", "any", &name, "--", "sh", "-c", WHOLE]);
    for round in 0..16 {
        let run = whole().start();
        // A sample of moments, not an expectation: whether it is early, late or over, what follows must hold.
        std::thread::sleep(Duration::from_millis(round * 23));
        run.kill_if_running();
        room.keelblock(["ps"]).run().ok();
        room.expect_no_leftovers();
        if round % 4 == 3 {
            whole().run().ok().printed("whole\n");
            room.keelblock(["prune"]).run().ok();
            room.expect_no_leftovers();
        }
    }
}

//! The command as a user meets it: exit statuses, `--json`, flags in all their forms, signals, terminals,
//! and the commands on containers, each through the real binary on a work dir of its own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
}

use support::binary::{Invocation, Room, binary, need_programs, need_root, run_program};
use support::images::{Compression, Image, Layer, shell};

/// A room with an image of a shell and small programs in it, and the name of that image.
fn room(name: &str) -> (Room, String) {
    let room = Room::new(name);
    let image = image_in(&room, "shell", &Image::new().compressed(shell().finish(), Compression::None));
    (room, image)
}

fn image_in(room: &Room, name: &str, image: &Image) -> String {
    image.write_oci(&room.join(name), "latest");
    format!("oci:{}:latest", room.join(name).display())
}

/// `run IMAGE -- sh -c LINE`.
fn run_line<'r>(room: &'r Room, image: &str, line: &str) -> Invocation<'r> {
    room.keelblock(["run", image, "--", "sh", "-c", line])
}

/// Whether any value in the document, however deep, is this text.
fn mentions(document: &Value, text: &str) -> bool {
    match document {
        Value::String(value) => value.contains(text),
        Value::Array(values) => values.iter().any(|value| mentions(value, text)),
        Value::Object(fields) => fields.iter().any(|(name, value)| name == text || mentions(value, text)),
        _ => false,
    }
}

// ---- exit status ------------------------------------------------------------------------------------------------

#[test]
fn the_exit_status_is_that_of_the_command() {
    need_root!();
    let (room, image) = room("status");
    for status in [0, 1, 7, 125, 255] {
        run_line(&room, &image, &format!("exit {status}")).run().code(status);
    }
    room.expect_no_leftovers();
}

#[test]
fn a_command_that_a_signal_kills_ends_with_128_and_its_number() {
    need_root!();
    let (room, image) = room("signal-status");
    for (signal, status) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        run_line(&room, &image, &format!("kill -{signal} $$; sleep 60")).run().code(status);
    }
    room.expect_no_leftovers();
}

#[test]
fn what_keeps_keelblock_from_starting_is_one_line_and_no_panic() {
    let room = Room::new("no-start");
    let unknown = room.keelblock(["--isolation=of-no-such-name", "run", "--host_root", "--", "true"]);
    unknown.run().failed_naming(&["of-no-such-name", "linux/capabilities"]);
    let nowhere = room.bare(["--work_dir=/proc/no-such-place", "ps"]);
    nowhere.run().failed_naming(&["/proc/no-such-place"]);
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_be_executed_126() {
    need_root!();
    let (room, image) = room("no-command");
    for (command, status) in
        [("no-such-command", 127), ("/no/such/file", 127), ("/etc/passwd", 126), ("/etc", 126)]
    {
        let outcome = room.keelblock(["run", &image, "--", command]).run().code(status);
        outcome.complained(command);
    }
    room.expect_no_leftovers();
}

#[test]
fn a_failure_of_keelblock_itself_is_125_and_one_line_that_names_the_image() {
    let (room, _) = room("failure");
    let missing = format!("oci:{}", room.join("nothing-here").display());
    room.keelblock(["run", &missing, "--", "true"]).run().failed_naming(&["nothing-here"]);
    room.keelblock(["pull", &missing]).run().failed_naming(&["nothing-here"]);
    let tag = format!("oci:{}:other-tag", room.join("shell").display());
    room.keelblock(["pull", &tag]).run().failed_naming(&["other-tag"]);
    // Port 1 of loopback: refused at once.
    room.keelblock(["pull", "127.0.0.1:1/some/app:2"]).run().failed_naming(&["127.0.0.1:1/some/app:2"]);
    let archives = format!("--docker_registry={}", room.path().display());
    room.keelblock([&archives, "pull", "no-such-archive:1"]).run().failed_naming(&["no-such-archive"]);
    room.expect_no_leftovers();
}

#[test]
fn an_image_that_lies_about_its_layer_is_refused_and_nothing_of_it_stays() {
    let room = Room::new("liar");
    let image = image_in(&room, "liar", &Image::new().layer(Layer::new().file("a", "honest", 0o644)));
    let blobs = room.join("liar/blobs/sha256");
    for blob in fs::read_dir(&blobs).unwrap().flatten() {
        let mut bytes = fs::read(blob.path()).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            // The time stamp of the gzip header: same length, same tar, other digest.
            bytes[5] ^= 1;
            fs::write(blob.path(), bytes).unwrap();
        }
    }
    room.keelblock(["pull", &image]).run().failed_naming(&["liar", "sha256:"]);
    let images = room.keelblock(["images", "--json"]).run().ok().json();
    assert!(!mentions(&images, "liar"), "{images}");
    room.expect_no_leftovers();
}

#[test]
fn a_fifo_in_place_of_a_blob_is_refused_rather_than_waited_for() {
    let room = Room::new("fifo");
    let image = image_in(&room, "image", &Image::new().layer(Layer::new().file("a", "a", 0o644)));
    for blob in fs::read_dir(room.join("image/blobs/sha256")).unwrap().flatten() {
        if fs::read(blob.path()).unwrap().starts_with(&[0x1f, 0x8b]) {
            fs::remove_file(blob.path()).unwrap();
            nix::unistd::mkfifo(&blob.path(), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        }
    }
    room.keelblock(["pull", &image]).run().failed_naming(&["image"]);
    room.expect_no_leftovers();
}

#[test]
fn wrong_usage_is_2_and_says_what_is_wrong() {
    let (room, image) = room("usage");
    for (args, said) in [
        (&["no-such-command"][..], "no-such-command"),
        (&["run"], "IMAGE"),
        (&["run", "--no-such-flag", &image], "there is no flag \"--no-such-flag\""),
        (&["run", "--retry_puse=1", &image], "there is no flag \"--retry_puse\""),
        (&["provision", &image], "--id"),
        (&["--image_provisioner_backend=aufs", "images"], "aufs"),
        (&["--containerizers=docker", "images"], "docker"),
    ] {
        let outcome = room.keelblock(args).run().code(2).complained(said);
        assert_eq!(outcome.stdout(), "", "usage errors belong on standard error{outcome}");
    }
}

// ---- what the command sees ----------------------------------------------------------------------------------------

#[test]
fn input_output_and_errors_of_the_command_are_the_callers_own() {
    need_root!();
    let (room, image) = room("streams");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let outcome = room.keelblock(["run", &image, "--", "cat"]).stdin(bytes.clone()).run().ok();
    assert!(outcome.stdout_bytes() == bytes, "what went in did not come out");
    let outcome = run_line(&room, &image, "echo out; echo err >&2").run().ok().printed("out\n");
    assert_eq!(outcome.stderr(), "err\n", "nothing but the command's own errors");
}

#[test]
fn the_root_is_that_of_the_image_and_nothing_of_the_host() {
    need_root!();
    let (room, image) = room("root");
    let outcome = run_line(&room, &image, "ls -d /*").run().ok();
    let listed = outcome.stdout();
    let known = ["bin", "dev", "etc", "lib", "lib64", "mnt", "proc", "root", "sys", "tmp", "usr"];
    for entry in listed.lines() {
        assert!(known.contains(&entry.trim_start_matches('/')), "where does {entry} come from?{outcome}");
    }
    assert!(listed.contains("/proc\n") && listed.contains("/etc\n"), "{listed}");
    run_line(&room, &image, "test -c /dev/null && test -d /proc/1 && test -d /sys/kernel && pwd").run().ok();
    // A mount table with the host's mounts in it is a way out, and a leak.
    let mounts = run_line(&room, &image, "cat /proc/self/mountinfo").run().ok().stdout();
    for line in mounts.lines() {
        let point = line.split(' ').nth(4).unwrap();
        let below = ["/", "/proc", "/sys", "/dev", "/mnt/mesos/sandbox", "/etc"];
        assert!(
            below.iter().any(|dir| point == *dir || *dir != "/" && point.starts_with(&format!("{dir}/"))),
            "{line}"
        );
    }
}

#[test]
fn the_environment_is_the_images_and_not_the_callers() {
    need_root!();
    let room = Room::new("environment");
    let config = json!(["PATH=/bin", "FROM_IMAGE=yes", "EMPTY="]);
    let image = Image::new().compressed(shell().finish(), Compression::None).config("Env", config);
    let image = image_in(&room, "image", &image);
    let outcome = room.keelblock(["run", &image, "--", "env"]).env("LEAKED_SECRET", "1").run().ok();
    let stdout = outcome.stdout();
    assert!(stdout.contains("FROM_IMAGE=yes\n") && stdout.contains("EMPTY=\n"), "{outcome}");
    assert!(!stdout.contains("LEAKED_SECRET"), "{outcome}");
}

#[test]
fn entrypoint_command_user_and_directory_of_the_image_are_followed() {
    need_root!();
    let room = Room::new("config");
    let image = Image::new()
        .compressed(shell().dir("srv/app", 0o755).finish(), Compression::None)
        .config("Entrypoint", json!(["/bin/echo", "entry"]))
        .config("Cmd", json!(["from", "cmd"]));
    let image = image_in(&room, "entrypoint", &image);
    room.keelblock(["run", &image]).run().ok().printed("entry from cmd\n");
    room.keelblock(["run", &image, "--", "from", "caller"]).run().ok().printed("entry from caller\n");

    let line = "id -u; id -g; pwd";
    let image = Image::new()
        .compressed(shell().dir("srv/app", 0o755).finish(), Compression::None)
        .config("Cmd", json!(["/bin/sh", "-c", line]))
        .config("User", json!("web"))
        .config("WorkingDir", json!("/srv/app"));
    let image = image_in(&room, "user", &image);
    room.keelblock(["run", &image]).run().ok().printed("1000\n1001\n/srv/app\n");

    let nothing = image_in(&room, "nothing", &Image::new().compressed(shell().finish(), Compression::None));
    room.keelblock(["run", &nothing]).run().failed_naming(&["nothing"]);
    room.expect_no_leftovers();
}

#[test]
fn what_the_command_leaves_in_the_background_dies_with_it_and_zombies_do_not_stay() {
    need_root!();
    let (room, image) = room("background");
    run_line(&room, &image, "sleep 3000 & (sleep 3001 &) ; exit 3").run().code(3);
    room.expect_no_leftovers();
    // An orphan that ended is taken by the container's first process: none is left as a zombie.
    let line = "(sleep 0 & exit); n=0; while cat /proc/[0-9]*/stat 2>/dev/null | while read -r pid name state rest; do \
                [ \"$state\" = Z ] && echo zombie; done | { read -r found; [ \"$found\" = zombie ]; }; do \
                sleep 0.05; n=$((n+1)); [ $n -lt 200 ] || exit 9; done";
    run_line(&room, &image, line).run().ok();
}

#[test]
fn an_image_in_a_volume_is_mounted_into_the_container() {
    need_root!();
    let (room, image) = room("volume");
    let data =
        image_in(&room, "data", &Image::new().layer(Layer::new().file("model/weights", "42\n", 0o644)));
    let writable = format!("--volume_image={data}:/data");
    room.keelblock(["run", &writable, &image, "--", "cat", "/data/model/weights"]).run().ok().printed("42\n");
    let read_only = format!("--volume_image={data}:/data:ro");
    let line = "cat /data/model/weights; touch /data/new 2>/dev/null || echo cannot write";
    room.keelblock(["run", &read_only, &image, "--", "sh", "-c", line])
        .run()
        .ok()
        .printed("42\ncannot write\n");
    room.expect_no_leftovers();
}

// ---- containers that stay ---------------------------------------------------------------------------------------

#[test]
fn a_provisioned_root_outlives_the_command_and_destroy_undoes_it() {
    need_root!();
    let (room, image) = room("provision");
    for backend in ["overlay", "copy", "bind"] {
        let flag = format!("--image_provisioner_backend={backend}");
        let said = room.keelblock([&flag, "provision", "--json", "--id", "web-1", &image]).run().ok().json();
        assert_eq!((&said["container_id"], &said["backend"]), (&json!("web-1"), &json!(backend)), "{said}");
        assert_eq!(said["image"]["kind"], "oci", "{said}");
        let digest = said["image"]["digest"].as_str().expect("the image has a digest");
        assert!(digest.starts_with("sha256:") && digest.len() == 71, "{said}");
        let layers = said["layers"].as_array().expect("layers are a list");
        assert!(layers.len() == 1 && layers[0].as_str().unwrap().starts_with("sha256:"), "{said}");
        let rootfs = Path::new(said["rootfs"].as_str().expect("the root filesystem is a path"));
        assert!(rootfs.is_absolute() && rootfs.join("bin/sh").exists(), "{said}");
        let written = fs::write(rootfs.join("new"), "x");
        assert_eq!(written.is_ok(), backend != "bind", "{backend}: {written:?}");

        let listed = room.keelblock(["ps", "--json"]).run().ok().json();
        assert!(mentions(&listed, "web-1"), "{listed}");
        let shown = room.keelblock(["inspect", "--json", "web-1"]).run().ok().json();
        assert!(mentions(&shown, rootfs.to_str().unwrap()), "{shown}");

        room.keelblock([&flag, "provision", "--id", "web-1", &image]).run().failed_naming(&["web-1"]);
        assert!(rootfs.join("bin/sh").exists(), "a refused second provision took the first one down");

        room.keelblock(["destroy", "web-1"]).run().ok();
        assert!(!rootfs.exists());
        room.expect_no_leftovers();
        room.keelblock(["destroy", "web-1"]).run().failed_naming(&["web-1"]);
    }
}

#[test]
fn a_running_container_is_listed_entered_signalled_and_waited_for() {
    need_root!();
    let (room, image) = room("lifecycle");
    let line = "trap 'exit 44' USR1; echo x > /tmp/mark; echo ready; while :; do sleep 0.05; done";
    let run = room.keelblock(["run", "--id", "job", &image, "--", "sh", "-c", line]).start();
    run.wait_for_output("ready");

    let listed = room.keelblock(["ps", "--json"]).run().ok().json();
    assert!(mentions(&listed, "job") && mentions(&listed, "running"), "{listed}");
    room.keelblock(["exec", "job", "--", "cat", "/tmp/mark"]).run().ok().printed("x\n");
    room.keelblock(["exec", "job", "--", "sh", "-c", "exit 5"]).run().code(5);
    room.keelblock(["exec", "job", "--", "no-such-command"]).run().code(127);
    room.keelblock(["exec", "job", "--", "cat"]).stdin("through\n").run().ok().printed("through\n");
    room.keelblock(["run", "--id", "job", &image, "--", "true"]).run().failed_naming(&["job"]);

    let waiting = room.keelblock(["wait", "job"]).start();
    room.keelblock(["kill", "--signal", "USR1", "job"]).run().ok();
    run.wait().code(44);
    // Whoever waits learns the same; how it is printed is tested where it is written.
    waiting.wait();
    room.keelblock(["exec", "job", "--", "true"]).run().failed_naming(&["job"]);
    room.keelblock(["kill", "job"]).run().failed_naming(&["job"]);
    room.expect_no_leftovers();
}

#[test]
fn destroy_takes_a_running_container_of_another_process_down() {
    need_root!();
    let (room, image) = room("destroy-running");
    let line = "trap '' TERM INT HUP; echo ready; sleep 3000 & while :; do sleep 1; done";
    let run = room.keelblock(["run", "--id", "stubborn", &image, "--", "sh", "-c", line]).start();
    run.wait_for_output("ready");
    room.keelblock(["destroy", "stubborn"]).run().ok();
    run.wait().code(137);
    room.expect_no_leftovers();
}

#[test]
fn prune_removes_what_nobody_uses_and_nothing_else() {
    need_root!();
    let room = Room::new("prune");
    let make = |name: &str| {
        image_in(&room, name, &Image::new().layer(Layer::new().file("name", format!("{name}\n"), 0o644)))
    };
    let [used, kept, unused] = ["used", "kept", "unused"].map(make);
    room.keelblock(["pull", &used, &kept, &unused]).run().ok();
    let said = room.keelblock(["provision", "--json", "--id", "user", &used]).run().ok().json();
    let name = Path::new(said["rootfs"].as_str().unwrap()).join("name");
    let pruned = room.keelblock(["prune", "--json", "--keep", &kept]).run().ok().json();
    assert!(mentions(&pruned, &room.join("unused").display().to_string()), "{pruned}");
    let images = room.keelblock(["images", "--json"]).run().ok().json();
    assert!(mentions(&images, "/kept") && mentions(&images, "/used"), "{images}");
    assert!(!mentions(&images, "/unused"), "{images}");
    assert_eq!(fs::read_to_string(&name).unwrap(), "used\n");
    room.keelblock(["destroy", "user"]).run().ok();
    room.keelblock(["prune"]).run().ok();
    let images = room.keelblock(["images", "--json"]).run().ok().json();
    assert!(!mentions(&images, "oci"), "{images}");
    room.expect_no_leftovers();
}

/// Entries of a directory, none when it is not there.
fn entries(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Waits until a process that nobody waits for has emptied this directory.
fn wait_until_empty(path: &Path) {
    let until = Instant::now() + Duration::from_secs(60);
    while entries(path) > 0 {
        assert!(Instant::now() < until, "{} is not emptied", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn prune_only_moves_large_layers_away_and_with_wait_stays_until_they_are_gone() {
    need_root!();
    let room = Room::new("prune-large");
    let large = (0..1000).fold(Layer::new(), |layer, at| layer.file(&format!("d/{at}"), "x", 0o644));
    let image = image_in(&room, "large", &Image::new().layer(large));
    let gc = room.work_dir().join("store/gc");

    room.keelblock(["--layer_form=tree", "pull", &image]).run().ok();
    let pruned = room.keelblock(["prune", "--json"]).run().ok().json();
    assert_eq!((&pruned["bytes"], &pruned["freed"]), (&json!(1000), &json!(false)));
    wait_until_empty(&gc);

    room.keelblock(["--layer_form=tree", "pull", &image]).run().ok();
    let pruned = room.keelblock(["prune"]).run().ok();
    assert!(
        pruned.stdout().contains("1 layers, 1000 B, being freed in the background"),
        "{}",
        pruned.stdout()
    );
    wait_until_empty(&gc);

    room.keelblock(["--layer_form=tree", "pull", &image]).run().ok();
    room.expect_no_leftovers();
    // As an image the same layer is one file, which is gone at once.
    room.keelblock(["prune", "--wait"]).run().ok();
    room.keelblock(["pull", &image]).run().ok();
    let as_image = walk_finds(&room.work_dir().join("store/layers"), "layer.erofs");
    room.expect_no_leftovers();
    let pruned = room.keelblock(["prune", "--json"]).run().ok().json();
    if as_image {
        assert_eq!((&pruned["bytes"], &pruned["freed"]), (&json!(1000), &json!(true)));
    }
    wait_until_empty(&gc);
    room.keelblock(["--layer_form=tree", "pull", &image]).run().ok();
    room.expect_no_leftovers();
    // What an earlier command left, too.
    fs::create_dir_all(gc.join("left/d")).unwrap();
    (0..1000).for_each(|at| fs::write(gc.join(format!("left/d/{at}")), "x").unwrap());
    let pruned = room.keelblock(["prune", "--json", "--wait"]).run().ok().json();
    assert_eq!(pruned["freed"], json!(true));
    assert_eq!(entries(&gc), 0);
    room.expect_no_leftovers();
}

/// Whether a file of this name is two directories below.
fn walk_finds(dir: &Path, name: &str) -> bool {
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    below(dir)
        .flat_map(|algorithm| below(&algorithm).collect::<Vec<_>>())
        .any(|layer| layer.join(name).is_file())
}

#[test]
fn what_a_killed_command_moved_away_goes_with_the_next_one() {
    need_root!();
    let (room, image) = room("collect");
    room.keelblock(["pull", &image]).run().ok();
    // Whoever writes its layers to disk would remove that, too.
    room.expect_no_leftovers();
    for gc in ["store/gc", "provisioner/gc"].map(|gc| room.work_dir().join(gc)) {
        fs::create_dir_all(gc.join("left/d")).unwrap();
        (0..1000).for_each(|at| fs::write(gc.join(format!("left/d/{at}")), "x").unwrap());
        room.keelblock(["images"]).run().ok();
        wait_until_empty(&gc);
    }
    room.expect_no_leftovers();
}

#[test]
fn layers_reach_the_disk_after_the_command_or_with_sync_full_before_it_ends() {
    need_root!();
    let (room, image) = room("settled");
    let store = room.work_dir().join("store");
    let lines = || fs::read_to_string(store.join("journal")).map_or(0, |journal| journal.lines().count());
    room.keelblock(["pull", &image]).run().ok();
    wait_until_empty(&store.join("unsettled"));
    assert_eq!(lines(), 1);
    room.expect_no_leftovers();
    room.keelblock(["prune", "--wait"]).run().ok();

    room.keelblock(["--sync=full", "pull", &image]).run().ok();
    assert_eq!(entries(&store.join("unsettled")), 0);
    assert!(lines() > 1);
    room.keelblock(["prune", "--wait"]).run().ok();

    // A container may run for long: that is not waited for.
    let mut run = run_line(&room, &image, "echo up; read line").keep_stdin().start();
    run.wait_for_output("up");
    wait_until_empty(&store.join("unsettled"));
    run.write(b"go on\n");
    run.wait().ok();
    room.expect_no_leftovers();
}

#[test]
fn an_image_beyond_a_limit_is_refused_by_the_name_of_its_flag() {
    need_root!();
    let room = Room::new("image-limits");
    let layer = |name: &str| Layer::new().file(name, [7; 600], 0o644);
    let image = image_in(&room, "two", &Image::new().layer(layer("a")).layer(layer("b")));
    for (flag, what) in [("--image_bytes_max=1000", "1000 bytes"), ("--image_entries_max=1", "1 entries")] {
        let refused = room.keelblock([flag, "pull", &image]).run().code(125);
        let said = refused.stderr();
        let flag = flag.split('=').next().unwrap();
        assert!(said.contains("two") && said.contains(what) && said.contains(flag), "{said}");
        let images = room.keelblock(["images", "--json"]).run().ok().json();
        assert!(!mentions(&images, "oci"), "{images}");
    }
    room.keelblock(["--image_bytes_max=1200", "--image_entries_max=2", "pull", &image]).run().ok();
    room.expect_no_leftovers();
}

#[test]
fn json_is_one_document_on_standard_output_whatever_the_command() {
    need_root!();
    let (room, image) = room("json");
    for args in [
        &["pull", "--json", &image][..],
        &["images", "--json"],
        &["inspect", "--json", &image],
        &["provision", "--json", "--id", "one", &image],
        &["provision", "--json", "--id", "two", &image],
        &["ps", "--json"],
        &["inspect", "--json", "one"],
        &["destroy", "--json", "one", "two"],
        &["ps", "--json"],
        &["prune", "--json"],
        &["images", "--json"],
        &["reference", "--json", "alpine"],
    ] {
        room.keelblock(args).run().ok().json();
    }
    room.expect_no_leftovers();
}

// ---- flags ----------------------------------------------------------------------------------------------------------

#[test]
fn reference_prints_the_canonical_form_or_why_there_is_none() {
    let room = Room::new("reference");
    for (name, canonical) in [
        ("alpine", "docker.io/library/alpine:latest"),
        ("docker:me/app:1", "docker.io/me/app:1"),
        ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
    ] {
        room.bare(["reference", name]).run().ok().printed(&format!("{canonical}\n"));
    }
    room.bare(["reference", "UPPER/case"]).run().failed_naming(&["UPPER/case"]);
}

#[test]
fn flags_come_with_underscores_or_dashes_from_the_environment_or_a_file_in_that_order() {
    let room = Room::new("flags");
    let image = image_in(&room, "image", &Image::new().layer(Layer::new().file("a", "a", 0o644)));
    let dir = |name: &str| room.join(name).display().to_string();
    let pulled_into = |name: &str, invocation: Invocation<'_>| {
        let outcome = invocation.args(["pull", &image]).run().ok();
        let found: Vec<_> =
            ["a", "b", "c", "d", "e"].into_iter().filter(|dir| room.join(dir).exists()).collect();
        assert_eq!(found, [name], "the work dir is another{outcome}");
        // Whoever writes the layers to disk works in it.
        assert!(room.leftovers().processes.is_empty());
        fs::remove_dir_all(room.join(name)).unwrap();
    };
    pulled_into("a", room.bare(["--work_dir", &dir("a")]));
    pulled_into("b", room.bare([format!("--work-dir={}", dir("b"))]));
    pulled_into("c", room.bare([] as [&str; 0]).env("KEELBLOCK_WORK_DIR", dir("c")));
    fs::write(room.join("config.toml"), format!("work_dir = {:?}\n", dir("d"))).unwrap();
    pulled_into("d", room.bare(["--config", &dir("config.toml")]));
    let config = dir("config.toml");
    pulled_into("c", room.bare(["--config", &config]).env("KEELBLOCK_WORK_DIR", dir("c")));
    pulled_into(
        "a",
        room.bare(["--config", &config, "--work_dir", &dir("a")]).env("KEELBLOCK_WORK_DIR", dir("c")),
    );

    fs::write(room.join("broken.toml"), "wrok_dir = \"/x\"\n").unwrap();
    let broken = dir("broken.toml");
    let outcome = room.bare(["--config", &broken, "images"]).run();
    assert!(matches!(outcome.exit_code(), Some(2 | 125)), "an unknown key was taken{outcome}");
    outcome.complained("wrok_dir");
}

#[test]
fn mesos_containerizers_are_accepted_by_the_name_mesos_alone() {
    let room = Room::new("containerizers");
    room.keelblock(["--containerizers=mesos", "images"]).run().ok();
}

#[test]
fn help_and_version_answer_on_standard_output() {
    let room = Room::new("help");
    let help = room.bare(["--help"]).run().ok().stdout();
    for word in ["pull", "provision", "destroy", "run", "images", "ps", "inspect", "prune", "--work"] {
        assert!(help.contains(word), "--help does not speak of {word}:\n{help}");
    }
    let run = room.bare(["run", "--help"]).run().ok().stdout();
    assert!(run.contains("IMAGE"), "{run}");
    let version = room.bare(["--version"]).run().ok().stdout();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn two_commands_may_share_a_work_dir_at_any_time() {
    need_root!();
    let (room, image) = room("shared");
    let runs: Vec<_> = (0..8).map(|n| run_line(&room, &image, &format!("exit {n}")).start()).collect();
    for (n, run) in (0..).zip(runs) {
        run.wait().code(n);
    }
    room.expect_no_leftovers();
}

#[test]
fn the_work_dir_can_be_removed_as_a_whole_when_nothing_runs() {
    need_root!();
    let (room, image) = room("removable");
    for _ in 0..2 {
        run_line(&room, &image, "echo x > /tmp/x").run().ok();
        assert!(room.leftovers().processes.is_empty());
        fs::remove_dir_all(room.work_dir()).unwrap();
    }
    room.expect_no_leftovers();
}

// ---- signals and terminals --------------------------------------------------------------------------------------

#[test]
fn signals_to_run_reach_the_command() {
    need_root!();
    let (room, image) = room("signals");
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR2, "USR2"),
    ] {
        let line =
            format!("trap 'echo got {name}; exit 33' {name}; echo ready; while :; do sleep 0.05; done");
        let run = run_line(&room, &image, &line).start();
        run.wait_for_output("ready");
        run.signal(signal);
        run.wait().code(33).printed(&format!("ready\ngot {name}\n"));
    }
    // A command that does not care dies of it, and the status says so.
    let run = run_line(&room, &image, "echo ready; exec sleep 3000").start();
    run.wait_for_output("ready");
    run.signal(Signal::SIGTERM);
    run.wait().code(143);
    room.expect_no_leftovers();
}

#[test]
fn on_a_terminal_the_command_has_a_terminal_of_its_own() {
    need_root!();
    need_programs!("script");
    let (room, image) = room("terminal");
    let line = "test -t 0 && test -t 1 && echo on a terminal; stty size; readlink /proc/self/fd/0; exit 6";
    let inner = run_line(&room, &image, line).shell_line();
    let inner = format!("stty rows 31 cols 97; {inner}");
    let run = room.bare([] as [&str; 0]).program("script").args(["-qec", &inner, "/dev/null"]);
    let outcome = run.keep_stdin().run().code(6);
    let stdout = outcome.stdout();
    for said in ["on a terminal\r\n", "31 97\r\n", "/dev/pts/"] {
        assert!(stdout.contains(said), "{said:?} was not said{outcome}");
    }
    // Without a terminal outside there is none inside.
    run_line(&room, &image, "test -t 0 || echo none").run().ok().printed("none\n");
    room.expect_no_leftovers();
}

#[test]
fn ctrl_c_on_the_terminal_interrupts_the_command_inside() {
    need_root!();
    need_programs!("script");
    let (room, image) = room("ctrl-c");
    let line = "trap 'echo got INT; exit 42' INT; echo ready; while :; do sleep 0.05; done";
    let inner = run_line(&room, &image, line).shell_line();
    let run = room.bare([] as [&str; 0]).program("script").args(["-qec", &inner, "/dev/null"]);
    let mut run = run.keep_stdin().start();
    run.wait_for_output("ready");
    run.write(b"\x03");
    run.wait_for_output("got INT");
    run.wait().code(42);
    room.expect_no_leftovers();
}

// ---- without root ---------------------------------------------------------------------------------------------------

/// A room that `nobody` owns, with a copy of the binary that `nobody` may execute; the home of `nobody`.
fn rootless(name: &str) -> Option<(Room, String)> {
    let (room, image) = room(name);
    // By another process: if this one wrote it, children forked meanwhile by other tests would have it open for
    // writing, and it could not be executed (ETXTBSY).
    run_program("cp", [binary(), &room.join("keelblock")]);
    fs::set_permissions(room.join("keelblock"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(room.join("home")).unwrap();
    if support::binary::is_root() {
        chown(room.join("home"), Some(65534), Some(65534)).unwrap();
    }
    let mut probe = std::process::Command::new("unshare");
    let works = as_nobody(&mut probe).args(["-Ur", "true"]).status().is_ok_and(|status| status.success());
    if !works {
        support::binary::skip("user namespaces are not for ordinary users here");
        return None;
    }
    Some((room, image))
}

fn as_nobody(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    if support::binary::is_root() { command.uid(65534).gid(65534) } else { command }
}

/// A command by `nobody`, with the work dir where the default puts it.
fn unprivileged<'r>(room: &'r Room, args: &[&str]) -> Invocation<'r> {
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let through: &[&str] = if support::binary::is_root() { &nobody } else { &["setpriv"] };
    room.bare(args)
        .program(room.join("keelblock"))
        .through(through)
        .env("HOME", room.join("home"))
        .env("XDG_DATA_HOME", room.join("home/data"))
        .env("XDG_RUNTIME_DIR", "")
}

#[test]
fn without_root_the_same_command_runs_in_a_user_namespace() {
    need_programs!("setpriv", "unshare");
    let Some((room, image)) = rootless("rootless") else { return };
    let line = "id -u; cat /etc/passwd > /tmp/x && rm /etc/group && echo written; exit 9";
    for flags in [&[][..], &["--image_provisioner_backend=copy"]] {
        let args = [flags, &["run", &image, "--", "sh", "-c", line]].concat();
        unprivileged(&room, &args).run().code(9).printed("0\nwritten\n");
    }
    assert!(room.join("home/data/keelblock").is_dir(), "the default work dir is another:\n{}", room.tree());
    let listed = unprivileged(&room, &["ps", "--json"]).run().ok().json();
    assert!(!mentions(&listed, "running"), "{listed}");
    let images = unprivileged(&room, &["images", "--json"]).run().ok().json();
    assert!(mentions(&images, "oci"), "{images}");
    room.expect_no_leftovers();
}

#[test]
fn without_root_a_layer_that_rots_is_found_and_brought_again() {
    need_programs!("setpriv", "unshare");
    let Some((room, image)) = rootless("rootless-scrub") else { return };
    unprivileged(&room, &["pull", &image]).run().ok();
    let healthy = unprivileged(&room, &["scrub"]).run().ok().stdout();
    assert!(healthy.contains("whole") && !healthy.contains("not verifiable"), "{healthy}");
    let layers = room.join("home/data/keelblock/store/layers/sha256");
    let files = fs::read_dir(&layers).unwrap().map(|layer| layer.unwrap().path().join("tree/etc/passwd"));
    let path = files.into_iter().find(|path| path.is_file()).unwrap();
    let mut content = fs::read(&path).unwrap();
    content[0] ^= 1;
    fs::write(&path, content).unwrap();
    let found = unprivileged(&room, &["scrub", "--json"]).run().ok().json();
    let bad: Vec<_> = found.as_array().unwrap().iter().filter(|layer| layer["result"] == "bad").collect();
    assert_eq!((bad.len(), &bad[0]["repair"]), (1, &"pulled again".into()), "{found}");
    assert!(bad[0]["why"].as_str().unwrap().contains("etc/passwd"), "{found}");
    let healthy = unprivileged(&room, &["scrub", "--json"]).run().ok().json();
    assert!(healthy.as_array().unwrap().iter().all(|layer| layer["result"] == "whole"), "{healthy}");
    room.expect_no_leftovers();
}

#[test]
fn without_root_exit_statuses_and_signals_are_the_same() {
    need_programs!("setpriv", "unshare");
    let Some((room, image)) = rootless("rootless-status") else { return };
    unprivileged(&room, &["run", &image, "--", "no-such-command"]).run().code(127);
    unprivileged(&room, &["run", &image, "--", "/etc/passwd"]).run().code(126);
    unprivileged(&room, &["run", &image, "--", "sh", "-c", "kill -9 $$"]).run().code(137);
    unprivileged(&room, &["run", "oci:/no/such", "--", "true"]).run().failed_naming(&["/no/such"]);
    let line = "trap 'echo got TERM; exit 33' TERM; echo ready; while :; do sleep 0.05; done";
    let run = unprivileged(&room, &["run", &image, "--", "sh", "-c", line]).start();
    run.wait_for_output("ready");
    // setpriv became keelblock by exec: the process is the same.
    run.signal(Signal::SIGTERM);
    run.wait().code(33);
    room.expect_no_leftovers();
}

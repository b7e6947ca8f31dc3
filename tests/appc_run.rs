//! Appc images run by the real binary: exec, environment, user, mount points, event handlers, isolators.

use std::fs;
use std::io::Read;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

mod support {
    pub(crate) mod binary;
    pub(crate) mod cgroups;
    pub(crate) mod images;
}

use support::binary::{Invocation, Room, need_root};
use support::cgroups::CgroupRoot;
use support::images::{Image, Layer, shell};

const IMAGE: &str = "appc:example.com/some_app:1";

/// The archive of an image: a manifest, and a layer below `rootfs`.
fn aci(app: &Value, layer: &[u8]) -> Vec<u8> {
    let labels = [("version", "1"), ("os", "linux"), ("arch", "amd64")];
    let labels: Vec<_> = labels.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let manifest = json!({
        "acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/some_app", "labels": labels, "app": app,
    });
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let text = manifest.to_string();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "manifest", text.as_bytes()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    builder.append_data(&mut header, "rootfs", &[][..]).unwrap();
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (mut header, path) = (entry.header().clone(), entry.path().unwrap().into_owned());
        let path = Path::new("rootfs").join(path);
        match entry.link_name().unwrap().map(|link| link.into_owned()) {
            Some(link) if entry.header().entry_type() == tar::EntryType::Link => {
                builder.append_link(&mut header, path, Path::new("rootfs").join(link)).unwrap();
            }
            Some(link) => builder.append_link(&mut header, path, link).unwrap(),
            None => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                builder.append_data(&mut header, path, &data[..]).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// A room in which `IMAGE` is an image of a shell and this app.
fn room(name: &str, app: Value) -> Room {
    let room = Room::new(&format!("appc-run-{name}"));
    let shelf = room.join("shelf");
    fs::create_dir_all(shelf.join("example.com")).unwrap();
    let layer = shell().dir("srv", 0o755).file("seed/file", "seed\n", 0o644).finish();
    fs::write(shelf.join("example.com/some_app-1-linux-amd64.aci"), aci(&app, &layer)).unwrap();
    let flag = format!("--appc_simple_discovery_uri_prefix={}/", shelf.display());
    room.with_flag(flag).with_flag("--platform=linux/amd64").with_flag("--appc_verify=none")
}

/// `run FLAGS IMAGE -- ARGS`.
fn run<'r>(room: &'r Room, flags: &[&str], args: &[&str]) -> Invocation<'r> {
    room.keelblock(["run"]).args(flags).args([IMAGE, "--"]).args(args)
}

fn sh(line: &str) -> Value {
    json!(["/bin/sh", "-c", line])
}

fn app(exec: Value) -> Value {
    json!({"exec": exec, "user": "0", "group": "0"})
}

fn with(mut app: Value, key: &str, value: Value) -> Value {
    app[key] = value;
    app
}

#[test]
fn an_app_runs_as_its_manifest_says_and_below_what_the_caller_says() {
    need_root!();
    let look = "id; pwd; echo $A $B $AC_APP_NAME $container; cat /seed/file";
    let app = json!({
        "exec": ["/bin/sh", "-c", look], "user": "web", "group": "/seed/file", "workingDirectory": "/srv",
        "environment": [{"name": "A", "value": "image"}, {"name": "B", "value": "image"}],
    });
    let room = room("whole", app);
    let said = run(&room, &["--env=B=caller"], &[]).run().ok().stdout();
    assert!(said.contains("uid=1000"), "{said}");
    assert!(said.contains("gid=0"), "{said}");
    assert!(said.ends_with("/srv\nimage caller some-app keelblock\nseed\n"), "{said}");
    // Arguments stand for all of exec but its first; --entrypoint for all of it.
    run(&room, &[], &["-c", "echo other"]).run().ok().printed("other\n");
    run(&room, &["--entrypoint=/bin/echo"], &["alone"]).run().ok().printed("alone\n");
    run(&room, &["--shell"], &["echo", "line"]).run().ok().printed("line\n");
    let said = run(&room, &["--user=0", "--workdir=/new"], &[]).run().ok().stdout();
    assert!(said.contains("uid=0") && said.contains("\n/new\n"), "{said}");
    room.expect_no_leftovers();
}

#[test]
fn what_cannot_be_run_says_why() {
    need_root!();
    let bare = room("no-exec", json!({"user": "0", "group": "0"}));
    run(&bare, &[], &[]).run().code(125).failed_naming(&["example.com/some_app", "exec"]);
    run(&bare, &[], &["/bin/echo", "a base image"]).run().ok().printed("a base image\n");
    bare.expect_no_leftovers();
    let nowhere = with(app(sh("pwd")), "workingDirectory", json!("/none"));
    let nowhere = room("nowhere", nowhere);
    run(&nowhere, &[], &[]).run().code(125).failed_naming(&["/none", "--workdir"]);
    nowhere.expect_no_leftovers();
    let nobody = room("nobody", with(app(sh("id")), "user", json!("nobody-there")));
    run(&nobody, &[], &[]).run().code(125).failed_naming(&["nobody-there", "/etc/passwd"]);
    nobody.expect_no_leftovers();
}

#[test]
fn mount_points_are_filled_by_name_in_every_spelling() {
    need_root!();
    let points = json!([
        {"name": "work", "path": "/var/lib/work"}, {"name": "conf", "path": "/seed", "readOnly": true},
    ]);
    let line = "cat /var/lib/work/text; echo new > /var/lib/work/new; cat /seed/file /seed/text";
    let room = room("points", with(app(sh(line)), "mountPoints", points));
    let data = room.join("data").canonicalize().unwrap_or_else(|_| {
        fs::create_dir_all(room.join("data")).unwrap();
        room.join("data").canonicalize().unwrap()
    });
    fs::write(data.join("text"), "of the host\n").unwrap();
    let path = data.display();
    for flag in [
        format!("--mount_point=work={path}"),
        format!("--volume=work,kind=host,source={path}"),
        format!("--volume=work,kind=host,source={path},readOnly=false"),
    ] {
        let said = run(&room, &[&flag], &[]).run();
        assert_eq!(said.stdout(), "of the host\nseed\n", "{flag}: what nobody fills is as the image has it");
        assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
        fs::remove_file(data.join("new")).unwrap();
    }
    for flag in [
        format!("--mount_point=work={path}:ro"),
        format!("--volume=work,kind=host,source={path},readOnly=true"),
    ] {
        run(&room, &[&flag], &[]).run();
        assert!(!data.join("new").exists(), "{flag}");
    }
    let other = Image::new().layer(Layer::new().file("text", "of an image\n", 0o644));
    other.write_oci(&room.join("oci"), "t");
    let flag = format!("--mount_point_image=work=oci:{}:t", room.join("oci").display());
    let said = run(&room, &[&flag], &[]).run().stdout();
    assert_eq!(said, "of an image\nseed\n");
    // And that image for one that is read only, and holds something.
    let flag = format!("--mount_point_image=conf=oci:{}:t", room.join("oci").display());
    let said = run(&room, &[&flag], &["-c", "cat /seed/text; echo x > /seed/new || echo refused"]).run();
    assert_eq!(said.stdout(), "of an image\nrefused\n");
    said.complained("a volume hides what the image has at its mount point");

    run(&room, &[&format!("--mount_point=other={path}")], &[])
        .run()
        .code(125)
        .failed_naming(&["other", "work, conf"]);
    let twice = [format!("--mount_point=work={path}"), format!("--volume={path}:/var/lib/work/x")];
    run(&room, &[&twice[0], &twice[1]], &[]).run().code(125).failed_naming(&["overlap"]);
    run(&room, &["--mount_point=work"], &[]).run().code(2);
    run(&room, &["--volume=work,kind=empty"], &[]).run().code(2);
    room.expect_no_leftovers();
}

#[test]
fn a_mount_point_that_nobody_fills_can_be_written_on_every_backend() {
    need_root!();
    let points = json!([{"name": "work", "path": "/srv"}]);
    let line = "echo new > /srv/new; cat /srv/new; ls /srv";
    let room = room("backends", with(app(sh(line)), "mountPoints", points));
    for backend in ["overlay", "copy", "bind"] {
        let flag = format!("--image_provisioner_backend={backend}");
        let said = room.keelblock([flag.as_str(), "run", IMAGE]).run().ok();
        assert_eq!(said.stdout(), "new\nnew\n", "{backend}");
    }
    room.expect_no_leftovers();
}

fn handlers(app: Value, handlers: &[(&str, &str)]) -> Value {
    let list: Vec<_> = handlers.iter().map(|(name, line)| json!({"name": name, "exec": sh(line)})).collect();
    with(app, "eventHandlers", json!(list))
}

#[test]
fn event_handlers_run_around_the_command() {
    need_root!();
    let (before, after) = ("echo before > /tmp/file; echo before", "echo after; exit 9");
    let around = handlers(app(sh("cat /tmp/file; exit 7")), &[("pre-start", before), ("post-stop", after)]);
    let room = room("around", around);
    let said = run(&room, &[], &[]).run().code(7);
    assert_eq!(said.stdout(), "before\nbefore\nafter\n");
    assert!(said.stderr().contains("post-stop hook did not end well"), "{}", said.stderr());
    assert!(said.stderr().contains("exited with 9"), "{}", said.stderr());
    let said = run(&room, &["--json"], &[]).run().code(7).json();
    assert_eq!(said["exit_status"], 7);
    let tty = run(&room, &["--tty"], &[]).run().code(7).stdout();
    assert_eq!(tty.replace('\r', ""), "before\nbefore\n", "with its terminal the rest of the output goes");
    room.expect_no_leftovers();
}

#[test]
fn a_pre_start_handler_that_fails_keeps_the_command_from_running() {
    need_root!();
    let failing = handlers(
        app(sh("echo command")),
        &[("pre-start", "echo before; exit 3"), ("post-stop", "echo after")],
    );
    let room = room("failing", failing);
    let said = run(&room, &[], &[]).run().code(125);
    assert_eq!(said.stdout(), "before\n");
    said.complained("its pre-start hook \"/bin/sh\" exited with 3");
    room.expect_no_leftovers();
}

#[test]
fn a_hung_handler_can_be_ended_by_a_signal_and_by_destroy() {
    need_root!();
    let hung = "echo hook; exec sleep 1000";
    let hanging = room("hung", handlers(app(sh("echo command")), &[("pre-start", hung)]));
    let running = run(&hanging, &["--id=hung"], &[]).start();
    running.wait_for_output("hook");
    running.signal(Signal::SIGTERM);
    running.wait().code(125).complained("pre-start hook \"/bin/sh\" was ended by signal 15");

    let running = run(&hanging, &["--id=hung"], &[]).start();
    running.wait_for_output("hook");
    // Another process sees and reaches it like any container.
    let listed = hanging.keelblock(["inspect", "--json", "hung"]).run().ok().json();
    assert!(listed.to_string().contains("running"), "{listed}");
    hanging
        .keelblock(["exec", "hung", "--", "sh", "-c", "echo $AC_APP_NAME"])
        .run()
        .ok()
        .printed("some-app\n");
    hanging.keelblock(["destroy", "hung"]).run().ok();
    let ended = running.wait();
    assert!(!ended.stdout().contains("command"));
    assert_ne!(ended.exit_code(), Some(0));
    hanging.expect_no_leftovers();

    let late = handlers(app(sh("echo command; exec sleep 1000")), &[("post-stop", "echo after")]);
    let late = room("late", late);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let running = run(&late, &["--id=late"], &[]).start();
        running.wait_for_output("command");
        running.signal(signal);
        assert_eq!(running.wait().code(code).stdout(), "command\nafter\n");
    }
    let running = run(&late, &["--id=late"], &[]).start();
    running.wait_for_output("command");
    late.keelblock(["kill", "late"]).run().ok();
    assert_eq!(running.wait().code(137).stdout(), "command\nafter\n", "also after SIGKILL");
    late.expect_no_leftovers();
}

#[test]
fn it_is_told_which_isolators_are_in_place_and_strict_mode_wants_all() {
    need_root!();
    let isolators = json!([
        {"name": "os/linux/no-new-privileges", "value": true},
        {"name": "os/unix/sysctl", "value": {"net.ipv4.tcp_mtu_probing": "1"}},
        {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}},
    ]);
    let isolated = with(app(sh("echo ready; exec sleep 1000")), "isolators", isolators);
    let room = room("isolators", isolated);
    let running = run(&room, &["--id=told"], &[]).start();
    running.wait_for_output("ready");
    let said = room.keelblock(["inspect", "--json", "told"]).run().ok().json();
    let said = said.as_array().and_then(|all| all.first()).cloned().unwrap_or(said);
    let outcomes: Vec<_> =
        said["image_isolators"].as_array().unwrap().iter().map(|one| &one["outcome"]).collect();
    assert_eq!(outcomes, ["enforced", "ignored", "modified"], "{said}");
    room.keelblock(["destroy", "told"]).run().ok();
    let ended = running.wait();
    for part in ["os/unix/sysctl", "ignored", "os/linux/capabilities-retain-set", "modified", "SYS_ADMIN"] {
        assert!(ended.stderr().contains(part), "{part}: {}", ended.stderr());
    }
    let strict = room.keelblock(["--appc_strict_isolators", "run", IMAGE]);
    strict.run().code(125).failed_naming(&["os/unix/sysctl", "--appc_strict_isolators"]);
    room.expect_no_leftovers();
}

#[test]
fn resource_isolators_of_an_image_hold_where_cgroups_are_asked_for() {
    need_root!();
    let Some(root) = CgroupRoot::new("appc-run") else { return };
    let isolators = json!([
        {"name": "resource/memory", "value": {"limit": "16Mi"}},
        {"name": "resource/cpu", "value": {"limit": "1500m", "request": "500m"}},
    ]);
    let grows = sh("echo ready; read go; x=0123456789abcdef; while :; do x=$x$x; done");
    let room = room("resources", with(app(grows), "isolators", isolators)).with_flag(root.flag());
    let isolation = "--isolation=filesystem/linux,appc/runtime,namespaces/pid,cgroups/mem,cgroups/cpu";
    let strict = [isolation, "--appc_strict_isolators", "run", "--id=own", IMAGE];
    let mut running = room.keelblock(strict).keep_stdin().start();
    running.wait_for_output("ready");
    assert_eq!(root.value("memory", "own", "memory.limit_in_bytes"), (16 << 20).to_string());
    assert_eq!(root.value("cpu", "own", "cpu.cfs_quota_us"), "150000");
    assert_eq!(root.value("cpu", "own", "cpu.shares"), "512");
    running.write(b"go\n");
    let ended = running.wait().code(137);
    assert!(ended.stderr().contains("limit_bytes: 16777216"), "{ended}");
    // Without them it is told that nothing limits it.
    let plain = ["--isolation=filesystem/linux,appc/runtime", "--appc_strict_isolators", "run", IMAGE];
    room.keelblock(plain).run().failed_naming(&["resource/memory", "cgroups/mem is not in --isolation"]);
    root.expect_empty();
    room.expect_no_leftovers();
}

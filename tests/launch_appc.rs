//! Real containers of Appc images: mount points, directories, users, isolators.

mod launch_support;

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use keelblock::isolator::{DEFAULT_ISOLATION, Settings};
use keelblock_actors::container::{ExitStatus, VolumeSource, VolumeSpec};
use keelblock_actors::image::appc::{App, Isolator, MountPoint};
use keelblock_actors::launch::MountedVolume;
use keelblock_actors::ports::ExecSpec;
use keelblock_actors::ports::Launcher;
use launch_support::{House, app, block_on, house, house_with, line};

fn points(text: &str, points: &[(&str, &str, bool)]) -> App {
    let point = |(name, path, read_only): &(&str, &str, bool)| MountPoint {
        name: name.parse().expect("a name"),
        path: (*path).to_owned(),
        read_only: *read_only,
    };
    App { mount_points: points.iter().map(point).collect(), ..app(text) }
}

fn filling(name: &str, source: &Path) -> MountedVolume {
    let spec = VolumeSpec {
        container_path: Default::default(),
        mount_point: Some(name.parse().expect("a name")),
        read_only: false,
        source: VolumeSource::HostPath(source.to_owned()),
    };
    MountedVolume { spec, host_path: source.to_owned() }
}

/// Runs an app with these volumes: its output, of a command that ends well.
fn run(house: &House, id: &str, app: App, volumes: Vec<MountedVolume>) -> String {
    let mut context = house.appc(id, app);
    context.volumes = volumes;
    let (status, output) = house.run(&context);
    assert_eq!(status, ExitStatus::Exited(0), "{id}: {output}");
    output
}

/// A directory of the host with a file, by its real path.
fn data(house: &House) -> std::path::PathBuf {
    let data = house.directory.path().canonicalize().expect("there").join("data");
    std::fs::create_dir_all(&data).expect("made");
    std::fs::write(data.join("file"), "of the host\n").expect("written");
    data
}

#[test]
fn a_volume_fills_a_mount_point_whatever_the_image_has_there() {
    let Some(house) = house() else { return };
    let data = data(&house);
    let root = &house.rootfs;
    std::fs::create_dir_all(root.join("full/below")).expect("made");
    std::fs::write(root.join("a-file"), "of the image").expect("written");
    std::fs::write(root.join("kept"), "kept\n").expect("written");
    symlink("/kept", root.join("a-link")).expect("linked");
    for (id, path) in
        [("missing", "/srv/deep/er"), ("full", "/full"), ("file", "/a-file"), ("link", "/a-link")]
    {
        let text = format!("cat {path}/file; ls {path}; echo new > {path}/new; cat /kept");
        let output = run(&house, id, points(&text, &[("work", path, false)]), vec![filling("work", &data)]);
        assert_eq!(output, "of the host\nfile\nkept\n", "{id}");
        assert!(std::fs::remove_file(data.join("new")).is_ok(), "{id}");
    }
    // Made as the specification says.
    for path in ["srv", "srv/deep", "srv/deep/er"] {
        let made = root.join(path).metadata().expect("made");
        let owner = (std::os::unix::fs::MetadataExt::uid(&made), std::os::unix::fs::MetadataExt::gid(&made));
        assert_eq!((made.permissions().mode() & 0o7777, owner), (0o755, (0, 0)), "{path}");
    }
    let read_only = "cat /srv/file; touch /srv/x 2>/dev/null || echo read-only";
    let output =
        run(&house, "ro", points(read_only, &[("work", "/srv", true)]), vec![filling("work", &data)]);
    assert_eq!(output, "of the host\nread-only\n");
}

#[test]
fn a_mount_point_that_nobody_fills_has_what_the_image_has_there() {
    let Some(house) = house() else { return };
    std::fs::create_dir_all(house.rootfs.join("seed")).expect("made");
    std::fs::write(house.rootfs.join("seed/file"), "seed\n").expect("written");
    chown(house.rootfs.join("seed"), Some(33), Some(34)).expect("given");
    let all = [("seed", "/seed", false), ("new", "/made/for/it", false), ("ro", "/seed-ro", true)];
    let text = "cat /seed/file; stat -c '%u:%g' /seed; touch /seed/x /made/for/it/x && echo written; \
                touch /seed-ro/x 2>/dev/null || echo read-only; grep -c -e ' /seed' -e ' /made' /proc/self/mountinfo";
    let output = run(&house, "seeded", points(text, &all), Vec::new());
    assert_eq!(output, "seed\n33:34\nwritten\nread-only\n3\n");

    // A root that cannot be written: an empty directory, its user's.
    let mut app =
        points("id -u; ls /seed; touch /seed/x && echo written; touch /tmp/x || echo no", &all[..1]);
    (app.user, app.group) = ("web".to_owned(), "web".to_owned());
    let mut context = house.appc("read-only", app);
    context.read_only = true;
    let (status, output) = house.run(&context);
    assert_eq!(status, ExitStatus::Exited(0), "{output}");
    assert!(output.starts_with("33\nwritten\nno\n"), "{output}");
}

#[test]
fn the_working_directory_of_the_image_must_exist_and_the_callers_is_made() {
    let Some(house) = house() else { return };
    let app = || App { working_directory: Some("/none/there".to_owned()), ..app("pwd") };
    let context = house.appc("nowhere", app());
    let error = house.launch(&context).err().expect("it is not there").text();
    assert!(error.contains("/none/there") && error.contains("--workdir"), "{error}");
    assert!(!house.rootfs.join("none").exists(), "nothing was made");
    let mut context = house.appc("mine", app());
    context.command.working_directory = Some("/none/mine".into());
    assert_eq!(house.run(&context), (ExitStatus::Exited(0), "/none/mine\n".to_owned()));
    // One that a volume brings is there.
    let data = data(&house);
    let mut app = points("pwd; cat file", &[("work", "/vol", false)]);
    app.working_directory = Some("/vol".to_owned());
    assert_eq!(run(&house, "brought", app, vec![filling("work", &data)]), "/vol\nof the host\n");
    assert_eq!(run(&house, "default", launch_support::app("pwd"), Vec::new()), "/\n");
}

#[test]
fn an_app_runs_as_the_user_that_its_image_names_in_any_way() {
    let Some(house) = house() else { return };
    std::fs::write(house.rootfs.join("owned"), "").expect("written");
    chown(house.rootfs.join("owned"), Some(1234), Some(4321)).expect("given");
    for (id, user, group, expected) in [
        ("name", "web", "adm", "33 4 4 7 8\n"),
        ("number", "77", "78", "77 78 78 7 8\n"),
        ("path", "/owned", "/owned", "1234 4321 4321 7 8\n"),
    ] {
        let mut app = app("echo $(id -u) $(id -g) $(id -G)");
        (app.user, app.group) = (user.to_owned(), group.to_owned());
        app.supplementary_gids = vec![7, 8];
        assert_eq!(run(&house, id, app, Vec::new()), expected);
    }
}

#[test]
fn one_more_command_has_the_environment_and_user_of_the_app() {
    let Some(house) = house() else { return };
    let mut app = app("echo ready; exec sleep 1000");
    (app.user, app.group) = ("web".to_owned(), "web".to_owned());
    app.environment = vec![("A".to_owned(), "image".to_owned())];
    let context = house.appc("joined", app);
    let launched = house.launch(&context).expect("launched");
    let test = "test \"$(id -u) $A $AC_APP_NAME $container $PWD\" = '33 image test keelblock /'";
    let argv = ["/bin/sh", "-c", test].map(str::to_owned).to_vec();
    let joined = house.launcher.exec(&context.id, ExecSpec { argv, ..ExecSpec::default() }).expect("joined");
    assert_eq!(block_on(joined.wait()), ExitStatus::Exited(0));
    launched.kill_all().expect("killed");
}

#[test]
fn isolators_of_the_image_are_in_place() {
    let Some(house) = house() else { return };
    let isolator =
        |name: &str, value: &str| Isolator { name: name.parse().expect("a name"), value: value.to_owned() };
    let look = "grep -e CapBnd -e CapEff -e NoNewPrivs /proc/self/status | tr -s '\\t' ' '; cat /proc/self/oom_score_adj";
    let mut app = app(look);
    app.isolators = vec![
        isolator("os/linux/capabilities-retain-set", r#"{"set": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}"#),
        isolator("os/linux/no-new-privileges", "true"),
        isolator("os/linux/oom-score-adj", "321"),
    ];
    let expected = "CapEff: 0000000000000001\nCapBnd: 0000000000000001\nNoNewPrivs: 1\n321\n";
    assert_eq!(run(&house, "narrow", app.clone(), Vec::new()), expected);
    // Another user has none of it; hooks are as the command is.
    (app.user, app.group) = ("web".to_owned(), "web".to_owned());
    app.event_handlers = launch_support::hooked("", Some(look), None).event_handlers;
    let expected = expected.replacen("0000000000000001", "0000000000000000", 1);
    assert_eq!(run(&house, "narrow-web", app, Vec::new()), expected.repeat(2));
}

#[test]
fn without_the_isolator_nothing_of_the_app_counts() {
    let isolation: Vec<_> = DEFAULT_ISOLATION.into_iter().filter(|name| *name != "appc/runtime").collect();
    let Some(house) = house_with(&isolation, Settings::default()) else { return };
    let mut app = launch_support::hooked("echo image", Some("echo before"), Some("echo after"));
    app.user = "web".to_owned();
    let mut context = house.appc("plain", app);
    context.command = line("id -u; pwd; echo $container");
    assert_eq!(house.run(&context), (ExitStatus::Exited(0), "0\n/mnt/mesos/sandbox\n\n".to_owned()));
}

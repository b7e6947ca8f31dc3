//! A container with an Appc image in, a plan out.

use std::path::{Path, PathBuf};

use keelblock_actors::container::{CommandSpec, VolumeSource, VolumeSpec};
use keelblock_actors::error::chain;
use keelblock_actors::image::appc::{App, EventHandler, EventName, Isolator, MountPoint};
use keelblock_actors::image::plan::RuntimeConfig;
use keelblock_actors::launch::{
    CapabilitySet, Hook, HookTime, IsolatorOutcome, LaunchContext, LaunchPlan, MissingTarget, MountSource,
    MountStep, MountedVolume, StdioSpec, TreeStep,
};
use tempfile::TempDir;

use super::sample;
use crate::isolator::{DEFAULT_ISOLATION, Settings, compose, parse_capabilities};
use crate::rootless::{IdMaps, IdRange};

/// A root filesystem and a sandbox.
struct House(TempDir);

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["root/etc", "root/bin", "sandbox", "data"] {
            std::fs::create_dir_all(directory.path().join(name)).expect("made");
        }
        let house = Self(directory);
        house.write("etc/passwd", "root:x:0:0::/root:\nweb:x:0:34::/srv:\n7:x:0:8::/seven:\n");
        house.write("etc/group", "root:x:0:\nweb:x:0:\n9:x:0:\nlog:x:9:web\n");
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("root").join(name), text).expect("written");
    }

    fn context(&self, app: App) -> LaunchContext {
        LaunchContext {
            id: "c".parse().expect("an ID"),
            rootfs: Some(self.path("root")),
            rootfs_read_only: false,
            runtime: Some(RuntimeConfig {
                appc: Some(Box::new(sample(Some(app)))),
                // Not of an Appc image, and without effect there.
                entrypoint: vec!["/docker".to_owned()],
                ..RuntimeConfig::default()
            }),
            command: CommandSpec::default(),
            volumes: Vec::new(),
            sandbox: self.path("sandbox"),
            effective_capabilities: None,
            bounding_capabilities: None,
            resources: Default::default(),
            tty: false,
            stdio: StdioSpec::Null,
            read_only: false,
        }
    }

    fn filling(&self, name: &str, source: &Path, read_only: bool) -> MountedVolume {
        let spec = VolumeSpec {
            container_path: PathBuf::new(),
            mount_point: Some(name.parse().expect("a name")),
            read_only,
            source: VolumeSource::HostPath(source.to_owned()),
        };
        MountedVolume { spec, host_path: source.to_owned() }
    }
}

fn app() -> App {
    App { exec: vec!["/bin/app".to_owned()], user: "0".to_owned(), group: "0".to_owned(), ..App::default() }
}

/// As if all users were there, whoever runs the tests.
fn settings() -> Settings {
    let all = vec![IdRange { inside: 0, outside: 0, count: u32::MAX }];
    Settings { ids: IdMaps { uids: all.clone(), gids: all, sets_groups: true }, ..Settings::default() }
}

fn plan_with(context: &LaunchContext, isolation: &[&str], settings: &Settings) -> Result<LaunchPlan, String> {
    let mut plan = LaunchPlan::default();
    for isolator in compose(isolation, settings).expect("isolators") {
        isolator.prepare(context, &mut plan).map_err(|error| chain(&error))?;
    }
    Ok(plan)
}

fn plan(context: &LaunchContext) -> Result<LaunchPlan, String> {
    plan_with(context, &DEFAULT_ISOLATION, &settings())
}

fn variable<'a>(plan: &'a LaunchPlan, name: &str) -> Option<&'a str> {
    plan.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn mount_at<'a>(plan: &'a LaunchPlan, path: &str) -> Option<&'a MountStep> {
    let mut mounts = plan.tree.iter().filter_map(|step| match step {
        TreeStep::Mount(step) if step.target == Path::new(path) => Some(step),
        _ => None,
    });
    let found = mounts.next();
    assert!(mounts.next().is_none(), "{path} is mounted twice");
    found
}

#[test]
fn the_environment_has_what_the_specification_asks_for_and_the_caller_wins() {
    let house = House::new();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let environment =
        vec![pair("A", "image"), pair("B", "image"), pair("container", "lie"), pair("AC_APP_NAME", "lie")];
    let mut context = house.context(App { environment, ..app() });
    context.command.environment = vec![pair("B", "caller")];
    let made = plan(&context).expect("a plan");
    for (name, value) in [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("AC_APP_NAME", "some-app"),
        ("container", "keelblock"),
        ("A", "image"),
        ("B", "caller"),
        ("HOME", "/root"),
    ] {
        assert_eq!(variable(&made, name), Some(value), "{name}");
    }
    assert_eq!(variable(&made, "AC_METADATA_URL"), None, "there is no such service");
    let path = vec![pair("PATH", "/image")];
    let made = plan(&house.context(App { environment: path, ..app() })).expect("a plan");
    assert_eq!(variable(&made, "PATH"), Some("/image"));
}

#[test]
fn the_working_directory_is_the_root_unless_said_and_must_exist_if_the_image_says_it() {
    let house = House::new();
    let directory = |context: &LaunchContext| {
        let plan = plan(context).expect("a plan");
        (plan.working_directory.expect("one").display().to_string(), plan.working_directory_must_exist)
    };
    assert_eq!(directory(&house.context(app())), ("/".to_owned(), true));
    let mut context = house.context(App { working_directory: Some("/srv/x".to_owned()), ..app() });
    assert_eq!(directory(&context), ("/srv/x".to_owned(), true));
    context.command.working_directory = Some("/mine".into());
    assert_eq!(directory(&context), ("/mine".to_owned(), false));
    let bad = house.context(App { working_directory: Some("/a/../b".to_owned()), ..app() });
    assert!(plan(&bad).is_err());
}

#[test]
fn without_an_app_only_the_callers_side_counts() {
    let house = House::new();
    let mut context = house.context(app());
    context.runtime = Some(RuntimeConfig { appc: Some(Box::new(sample(None))), ..RuntimeConfig::default() });
    let error = plan(&context).expect_err("nothing to run");
    assert!(error.contains("example.com/some_app") && error.contains("exec"), "{error}");
    context.command.value = Some("/bin/x".to_owned());
    let made = plan(&context).expect("a plan");
    assert_eq!(made.argv, Some(vec!["/bin/x".to_owned()]));
    assert_eq!(variable(&made, "AC_APP_NAME"), None);
    assert_eq!(made.working_directory.as_deref(), Some(Path::new("/mnt/mesos/sandbox")));
}

#[test]
fn each_runtime_isolator_sees_to_images_of_its_kind_and_to_no_others() {
    let house = House::new();
    let appc = house.context(app());
    let mut docker = house.context(app());
    let entrypoint = vec!["/docker".to_owned()];
    docker.runtime = Some(RuntimeConfig { entrypoint, ..RuntimeConfig::default() });
    let argv = |context: &LaunchContext, isolation: &[&str]| {
        plan_with(context, isolation, &settings()).ok().and_then(|plan| plan.argv).map(|argv| argv.join(" "))
    };
    let both = ["filesystem/linux", "docker/runtime", "appc/runtime"];
    for (isolation, of_docker, of_appc) in [
        (&both[..], Some("/docker"), Some("/bin/app")),
        (&both[..2], Some("/docker"), None),
        (&["filesystem/linux", "appc/runtime"][..], None, Some("/bin/app")),
        (&both[..1], None, None),
    ] {
        assert_eq!(argv(&docker, isolation).as_deref(), of_docker, "{isolation:?}");
        assert_eq!(argv(&appc, isolation).as_deref(), of_appc, "{isolation:?}");
    }
    let mut own = appc.clone();
    own.command.value = Some("/own".to_owned());
    assert_eq!(argv(&own, &both[..1]).as_deref(), Some("/own"));
    let ignoring = Settings { docker_ignore_runtime: true, ..settings() };
    assert!(plan_with(&appc, &both, &ignoring).is_ok(), "that flag is about docker images");
}

#[test]
fn users_and_groups_are_looked_up_in_the_image_then_taken_as_numbers_then_as_files() {
    let house = House::new();
    let who = |user: &str, group: &str| {
        let app =
            App { user: user.to_owned(), group: group.to_owned(), supplementary_gids: vec![40, 41], ..app() };
        super::owner::resolve(&house.path("root"), &app, 4 << 20)
            .map(|found| (found.credentials, found.home))
            .map_err(|error| chain(&error))
    };
    house.write("etc/passwd", "root:x:0:0::/root:\nweb:x:33:34::/srv:\n7:x:70:8::/seven:\n");
    house.write("etc/group", "root:x:0:\nweb:x:34:\n9:x:90:\nlog:x:9:web\n");
    let ids = |user, group| who(user, group).map(|(who, _)| (who.uid, who.gid)).expect(user);
    assert_eq!(ids("web", "log"), (33, 9));
    assert_eq!(ids("33", "34"), (33, 34));
    assert_eq!(ids("7", "9"), (70, 90), "a name of digits is a name first");
    assert_eq!(ids("1234", "5678"), (1234, 5678));
    let (who_33, home) = who("33", "0").expect("found");
    assert_eq!((who_33.groups, home.as_deref()), (vec![40, 41], Some("/srv")), "no groups but those listed");
    for (user, group, text) in [
        ("nobody", "0", "/etc/passwd"),
        ("0", "nogroup", "/etc/group"),
        ("4294967295", "0", "4294967295"),
        ("0", "4294967295", "4294967295"),
        ("-1", "0", "-1"),
        ("", "0", "user number"),
        ("/bin/none", "0", "/bin/none"),
        ("0", "/bin/none", "group"),
    ] {
        let error = who(user, group).expect_err(user);
        assert!(error.contains(text), "{user}:{group}: {error}");
    }
}

#[test]
fn the_owner_of_a_file_is_found_inside_the_image_whatever_its_links_say() {
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    let house = House::new();
    let ours = house.path("root").metadata().expect("there");
    house.write("bin/ping", "");
    symlink("/bin/ping", house.path("root/bin/link")).expect("linked");
    let outside = house.path("outside");
    std::fs::write(&outside, "").expect("written");
    symlink(&outside, house.path("root/bin/absolute")).expect("linked");
    symlink("../../../../../../outside", house.path("root/bin/up")).expect("linked");
    if ours.uid() == 0 {
        chown(house.path("root/bin/ping"), Some(12), Some(13)).expect("given away");
    }
    let ping = house.path("root/bin/ping").metadata().expect("there");
    let who = |path: &str| {
        let app = App { user: path.to_owned(), group: path.to_owned(), ..app() };
        super::owner::resolve(&house.path("root"), &app, 4 << 20).map(|found| found.credentials)
    };
    for path in ["/bin/ping", "/bin/link", "/../bin/ping"] {
        let found = who(path).expect(path);
        assert_eq!((found.uid, found.gid), (ping.uid(), ping.gid()), "{path}");
    }
    for path in ["/bin/absolute", "/bin/up", "/bin/none", "/bin/ping/x"] {
        assert!(who(path).is_err(), "{path}");
    }
}

#[test]
fn the_callers_user_wins() {
    let house = House::new();
    let mut context = house.context(App { user: "nobody-there".to_owned(), ..app() });
    assert!(plan(&context).is_err());
    context.command.user = Some("0:9".to_owned());
    let credentials = plan(&context).expect("a plan").credentials.expect("set");
    assert_eq!((credentials.uid, credentials.gid), (0, 0), "9 is a name of the image's, with number 0");
}

fn point(name: &str, path: &str, read_only: bool) -> MountPoint {
    MountPoint { name: name.parse().expect("a name"), path: path.to_owned(), read_only }
}

fn with_points() -> App {
    App { mount_points: vec![point("work", "/var//work/", false), point("conf", "/etc/conf", true)], ..app() }
}

#[test]
fn volumes_fill_mount_points_by_name() {
    let house = House::new();
    let data = house.path("data").canonicalize().expect("there");
    let mut context = house.context(with_points());
    context.volumes = vec![house.filling("work", &data, false), house.filling("conf", &data, false)];
    let made = plan(&context).expect("a plan");
    let work = mount_at(&made, "/var/work").expect("mounted");
    assert_eq!(work.source, MountSource::Bind(data.clone()));
    assert!(!work.attributes.read_only && work.missing == MissingTarget::Directory);
    assert!(mount_at(&made, "/etc/conf").expect("mounted").attributes.read_only, "as the image says");
    assert!(made.tree.contains(&TreeStep::Room("/var/work".into())), "a file there gives way");
    context.volumes[0].spec.read_only = true;
    let made = plan(&context).expect("a plan");
    assert!(mount_at(&made, "/var/work").expect("mounted").attributes.read_only, "as the caller says");
    // An image's tree as well.
    context.volumes[0].spec.source = VolumeSource::Image(
        keelblock_actors::image::name::ImageRequest::cached("busybox".parse().expect("a name")),
    );
    assert!(mount_at(&plan(&context).expect("a plan"), "/var/work").is_some());
}

#[test]
fn names_that_the_image_has_not_are_refused_with_those_it_has() {
    let house = House::new();
    let data = house.path("data").canonicalize().expect("there");
    let mut context = house.context(with_points());
    context.volumes = vec![house.filling("other", &data, false)];
    let error = plan(&context).expect_err("unknown");
    assert!(error.contains("other") && error.contains("work, conf"), "{error}");
    context.runtime = Some(RuntimeConfig { cmd: vec!["x".to_owned()], ..RuntimeConfig::default() });
    let error = plan(&context).expect_err("a docker image");
    assert!(error.contains("Appc"), "{error}");
}

#[test]
fn overlapping_volumes_missing_sources_and_links_are_refused() {
    let house = House::new();
    let data = house.path("data").canonicalize().expect("there");
    let mut context = house.context(with_points());
    let work = house.filling("work", &data, false);
    for path in ["/var/work/below", "/var", "/var/work"] {
        let mut plain = house.filling("work", &data, false);
        (plain.spec.mount_point, plain.spec.container_path) = (None, path.into());
        context.volumes = vec![work.clone(), plain];
        let error = plan(&context).expect_err(path);
        assert!(error.contains("overlap"), "{path}: {error}");
    }
    context.volumes = vec![house.filling("work", &data.join("nothing"), false)];
    assert!(plan(&context).expect_err("missing").contains("nothing"));
    let link = house.path("link");
    std::os::unix::fs::symlink(&data, &link).expect("linked");
    std::fs::create_dir(data.join("below")).expect("made");
    for path in [link.clone(), link.join("below")] {
        context.volumes = vec![house.filling("work", &path, false)];
        let error = plan(&context).expect_err("a link");
        assert!(error.contains("symbolic link") && error.contains(&*data.to_string_lossy()), "{error}");
    }
}

#[test]
fn a_mount_point_that_nobody_fills_stays_as_the_image_has_it_where_that_can_be_written() {
    let house = House::new();
    let mut context = house.context(with_points());
    let made = plan(&context).expect("a plan");
    let work = mount_at(&made, "/var/work").expect("mounted");
    assert_eq!(work.source, MountSource::Inside("/var/work".into()));
    assert!(!work.attributes.read_only && work.missing == MissingTarget::Directory);
    assert!(mount_at(&made, "/etc/conf").expect("mounted").attributes.read_only);
    // Not where a volume lies above it.
    let mut above = house.filling("work", &house.path("data"), false);
    (above.spec.mount_point, above.spec.container_path) = (None, "/var".into());
    context.volumes = vec![above];
    assert!(mount_at(&plan(&context).expect("a plan"), "/var/work").is_none());
    // Nor where every container has something mounted.
    let kernel =
        App { mount_points: vec![point("shm", "/dev/shm", false), point("p", "/proc/x", false)], ..app() };
    let made = plan(&house.context(kernel)).expect("a plan");
    assert!(mount_at(&made, "/proc/x").is_none() && mount_at(&made, "/dev/shm").is_some());
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a directory can be given away by root alone");
        return;
    }
    context.volumes.clear();
    context.rootfs_read_only = true;
    let made = plan(&context).expect("a plan");
    let empty = house.path("sandbox/mount_points/work");
    assert_eq!(mount_at(&made, "/var/work").expect("mounted").source, MountSource::Bind(empty.clone()));
    assert!(empty.read_dir().expect("a directory").next().is_none());
    assert_eq!(mount_at(&made, "/etc/conf").expect("mounted").missing, MissingTarget::Skip);
}

#[test]
fn what_a_volume_hides_is_known() {
    let house = House::new();
    let data = house.path("data").canonicalize().expect("there");
    let mut context = house.context(with_points());
    context.volumes = vec![house.filling("work", &data, false), house.filling("conf", &data, false)];
    assert_eq!(super::mount_points::masked(&context), []);
    std::fs::create_dir_all(house.path("root/var/work")).expect("made");
    assert_eq!(super::mount_points::masked(&context), [], "an empty directory is nothing");
    house.write("var/work/file", "");
    house.write("etc/conf", "");
    let masked = super::mount_points::masked(&context);
    let whats: Vec<_> = masked.iter().map(|masked| masked.what).collect();
    assert_eq!(whats, ["its directory is not empty", "it is a file"]);
}

fn isolator(name: &str, value: &str) -> Isolator {
    Isolator { name: name.parse().expect("a name"), value: value.to_owned() }
}

fn of(isolators: &[(&str, &str)]) -> App {
    App { isolators: isolators.iter().map(|(name, value)| isolator(name, value)).collect(), ..app() }
}

const RETAIN: &str = "os/linux/capabilities-retain-set";
const REMOVE: &str = "os/linux/capabilities-remove-set";

#[test]
fn capability_sets_of_the_image_narrow_what_it_has_and_never_widen_it() {
    use IsolatorOutcome::{Enforced, Modified};
    let house = House::new();
    let set = |text: &str| parse_capabilities(text).expect(text);
    let default = crate::isolator::capabilities::default_set();
    let operator = Settings { bounding_capabilities: Some(set("CHOWN,NET_ADMIN")), ..settings() };
    let bounding = |settings: &Settings, name, value| {
        let plan =
            plan_with(&house.context(of(&[(name, value)])), &DEFAULT_ISOLATION, settings).expect(value);
        let sets = plan.capabilities.expect("set");
        assert_eq!(sets.ambient, CapabilitySet(0), "another user than root has none of it");
        (sets.bounding, plan.image_isolators[0].outcome)
    };
    let free = settings();
    for (settings, name, value, expected, outcome) in [
        (&free, RETAIN, r#"{"set": ["CAP_CHOWN", "CAP_KILL"]}"#, set("CHOWN,KILL"), Enforced),
        (&free, RETAIN, r#"{"set": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}"#, set("CHOWN"), Modified),
        (&free, RETAIN, r#"{"set": ["CAP_NOT_THERE_YET"]}"#, set("none"), Modified),
        (&operator, RETAIN, r#"{"set": ["CAP_NET_ADMIN"]}"#, set("NET_ADMIN"), Enforced),
        (&operator, RETAIN, r#"{"set": ["CAP_KILL"]}"#, set("none"), Modified),
        (&free, REMOVE, r#"{"set": ["CAP_CHOWN"]}"#, CapabilitySet(default.0 & !set("CHOWN").0), Enforced),
        (&free, REMOVE, r#"{"set": ["CAP_SYS_ADMIN", "CAP_X"]}"#, default, Enforced),
        (&operator, REMOVE, r#"{"set": ["CAP_KILL"]}"#, set("CHOWN"), Enforced),
    ] {
        assert_eq!(bounding(settings, name, value), (expected, outcome), "{name} {value}");
    }
    let both = of(&[(RETAIN, r#"{"set": ["CAP_KILL"]}"#), (REMOVE, r#"{"set": ["CAP_KILL"]}"#)]);
    assert!(plan(&house.context(both)).expect_err("both").contains("only one"));
    assert!(plan(&house.context(of(&[(RETAIN, "7")]))).is_err());
}

#[test]
fn the_callers_capabilities_win_over_the_images() {
    let house = House::new();
    let mut context = house.context(of(&[(RETAIN, r#"{"set": ["CAP_CHOWN"]}"#)]));
    let kill = parse_capabilities("KILL").expect("known");
    context.bounding_capabilities = Some(kill);
    let made = plan(&context).expect("a plan");
    assert_eq!(made.capabilities.expect("set").bounding, kill);
    assert_eq!(made.image_isolators[0].outcome, IsolatorOutcome::Modified);
    context.bounding_capabilities = None;
    let made = plan_with(&context, &["filesystem/linux", "appc/runtime"], &settings()).expect("a plan");
    assert_eq!(made.capabilities, None);
    assert_eq!(made.image_isolators[0].outcome, IsolatorOutcome::Ignored);
    // Without appc/runtime the image has no say.
    context.command.value = Some("x".to_owned());
    let made = plan_with(&context, &["filesystem/linux", "linux/capabilities"], &settings()).expect("a plan");
    assert_eq!(made.capabilities.expect("set").bounding, crate::isolator::capabilities::default_set());
}

#[test]
fn every_isolator_is_told_of_and_strict_mode_refuses_what_is_not_in_place() {
    use IsolatorOutcome::{Enforced, Ignored};
    let house = House::new();
    let strict = Settings { appc_strict_isolators: true, ..settings() };
    for (name, value, outcome) in [
        ("os/linux/no-new-privileges", "true", Enforced),
        ("os/linux/no-new-privileges", "false", Enforced),
        ("os/linux/oom-score-adj", "1000", Enforced),
        ("os/unix/sysctl", r#"{"net.x": "1"}"#, Ignored),
        ("os/linux/seccomp-retain-set", r#"{"set": ["@appc.io/all"]}"#, Ignored),
        ("os/linux/seccomp-remove-set", r#"{"set": ["reboot"]}"#, Ignored),
        ("os/linux/selinux-context", "{}", Ignored),
        ("os/linux/apparmor-profile", r#"{"profile": "x"}"#, Ignored),
        ("os/linux/cpu-shares", "512", Ignored),
        ("resource/network-bandwidth", "{}", Ignored),
        ("example.com/of-its-own", "null", Ignored),
    ] {
        let context = house.context(of(&[(name, value)]));
        let made = plan(&context).expect(name);
        let told = &made.image_isolators[0];
        assert_eq!((told.name.as_str(), told.outcome), (name, outcome), "{value}");
        assert_eq!(told.why.is_empty(), outcome == Enforced, "{name}");
        assert_eq!(made.no_new_privs, name.ends_with("privileges") && value == "true");
        assert_eq!(made.oom_score_adj, name.ends_with("score-adj").then_some(1000));
        match plan_with(&context, &DEFAULT_ISOLATION, &strict) {
            Ok(_) => assert_eq!(outcome, Enforced, "{name}"),
            Err(error) => {
                assert_eq!(outcome, Ignored, "{name}: {error}");
                assert!(error.contains(name) && error.contains("--appc_strict_isolators"), "{error}");
            }
        }
    }
    for (name, value) in [
        ("os/linux/no-new-privileges", "1"),
        ("os/linux/oom-score-adj", "1001"),
        ("os/linux/oom-score-adj", "-1001"),
        ("os/linux/oom-score-adj", "99999999999"),
        ("os/linux/oom-score-adj", "\"5\""),
    ] {
        let error = plan(&house.context(of(&[(name, value)]))).expect_err(value);
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn event_handlers_become_hooks() {
    let house = House::new();
    let handler = |name, exec: &[&str]| EventHandler {
        name,
        exec: exec.iter().map(|word| (*word).to_owned()).collect(),
    };
    let event_handlers = vec![
        handler(EventName::PostStop, &["/bin/after", "x"]),
        handler(EventName::PreStart, &["/bin/before"]),
    ];
    let made = plan(&house.context(App { event_handlers, ..app() })).expect("a plan");
    let hook =
        |when, argv: &[&str]| Hook { when, argv: argv.iter().map(|word| (*word).to_owned()).collect() };
    let expected =
        [hook(HookTime::PostStop, &["/bin/after", "x"]), hook(HookTime::PreStart, &["/bin/before"])];
    assert_eq!(made.hooks, expected);
}

//! Containers of ordinary users. A program of its own: a user namespace is entered by a process with one thread.
//!
//! As root it starts itself again as `nobody`, who has no subordinate numbers, and as a user who has some, if the
//! machine knows one.

mod launch_support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use keelblock::isolator::{DEFAULT_ISOLATION, Settings};
use keelblock::launcher::LinuxLauncher;
use keelblock::rootless::{self, IdMaps, Rootless};
use keelblock_actors::container::{ExitStatus, ProcessIdentity};
use keelblock_actors::ports::{ExecSpec, Launcher};
use launch_support::{House, app, bare_house, block_on, hooked, line, output, skipped};

const NOBODY: u32 = 65534;
const STAGE: &str = "KEELBLOCK_TEST_STAGE";

fn main() -> ExitCode {
    match std::env::var(STAGE).as_deref() {
        Ok("outside") => outside(),
        Ok("inside") => inside(),
        Ok("joins") => joins(),
        _ if rustix::process::geteuid().is_root() => as_others(),
        _ => outside(),
    }
    println!("launch_rootless: ok");
    ExitCode::SUCCESS
}

/// Starts this program again as users who are not root.
fn as_others() {
    as_user("nobody", NOBODY, NOBODY);
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let subuid = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let known = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let (name, uid, gid) = (fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        let listed = subuid.lines().any(|line| line.split(':').next() == Some(name));
        (listed && uid != 0).then(|| ((*name).to_owned(), uid, gid))
    });
    match known {
        Some((name, uid, gid)) => as_user(&name, uid, gid),
        None => skipped("no user of this machine has numbers in /etc/subuid"),
    }
}

fn as_user(name: &str, uid: u32, gid: u32) {
    println!("as {name}");
    // By the link: the directory of this program may be closed to others.
    let status =
        again("outside").current_dir("/").uid(uid).gid(gid).status().expect("this program as another user");
    assert!(status.success(), "as {name}: {status}");
}

fn again(stage: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(STAGE, stage);
    command
}

/// As an ordinary user: one process enters a namespace and keeps a container, another joins it there.
fn outside() {
    let mut keeper = again("inside").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
    let lines = BufReader::new(keeper.stdout.take().expect("its output")).lines();
    let mut stdin = keeper.stdin.take().expect("its input");
    for line in lines.map_while(Result::ok) {
        println!("{line}");
        if let Some(running) = line.strip_prefix("running ") {
            let status = again("joins").env("RUNNING", running).status().expect("a process");
            assert!(status.success(), "joining: {status}");
            stdin.write_all(b"joined\n").expect("told");
        }
    }
    let status = keeper.wait().expect("reaped");
    assert!(status.success(), "inside: {status}");
}

fn inside() {
    assert!(rootless::is_needed());
    let outside = rustix::process::geteuid().as_raw();
    let rootless = match rootless::enter() {
        Ok(rootless) => rootless,
        Err(error) => {
            let text = keelblock_actors::error::chain(&error);
            assert!(text.contains("user namespace"), "{text}");
            return skipped(&text);
        }
    };
    println!("{rootless:?}");
    maps_are_as_told(&rootless, outside);
    let Some(house) = bare_house(&DEFAULT_ISOLATION, Settings::default()) else { return };
    a_container_runs(&house);
    another_user_needs_a_full_map(&house, rootless.full_map);
    hosts_files_keep_their_owner(&house);
    commands_are_executed_in_it(&house);
    without_a_pid_namespace();
    terminals_work(&house);
    hooks_run(&house, rootless.full_map);
    println!("inside: done");
}

fn maps_are_as_told(rootless: &Rootless, outside: u32) {
    let maps = IdMaps::read();
    assert_eq!(maps.uids, rootless.uids);
    assert_eq!(maps.gids, rootless.gids);
    assert_eq!(maps.uids.first().map(|range| (range.inside, range.outside)), Some((0, outside)));
    assert_eq!(maps.sets_groups, rootless.full_map);
    assert_eq!(rootless.reason.is_none(), rootless.full_map);
    assert!(rustix::process::geteuid().is_root() && !maps.is_whole_machine());
}

fn a_container_runs(house: &House) {
    let text = "id -u; grep -c . /proc/mounts > /dev/null && cat /proc/1/comm; echo x > /dev/null; head -c 2 /dev/zero | wc -c; \
                ls /sys/fs/cgroup | wc -l; echo 1 2>/dev/null > /proc/sys/kernel/panic || echo refused; \
                mkdir /sys/x 2>/dev/null || echo refused; touch /made && echo made; \
                cat /proc/1/environ /proc/1/mem 2>/dev/null | wc -c; ls / | tr '\\n' ' '";
    let output = house.output("rootless", text);
    let expected =
        "0\nkeelblock-init\n2\n0\nrefused\nrefused\nmade\n0\nbin dev etc made mnt proc root sys tmp ";
    assert_eq!(output, expected);
    let context = house.context("rootless-status", line("kill -9 $$"));
    assert_eq!(house.run(&context).0, ExitStatus::Signaled(9));
}

fn another_user_needs_a_full_map(house: &House, full_map: bool) {
    let mut context = house.context("rootless-user", line("id -u; id -g"));
    context.command.user = Some("web".to_owned());
    if full_map {
        assert_eq!(house.run(&context).1, "33\n34\n");
    } else {
        let failure = house.launch(&context).err().expect("there is no user 33").text();
        assert!(failure.contains("user") && failure.contains("33"), "{failure}");
    }
}

fn hosts_files_keep_their_owner(house: &House) {
    // Root of the namespace is not root of the machine.
    let mut context =
        house.context("rootless-host", line("cat /host/shadow; touch /host/made; mount -t tmpfs x /tmp"));
    context.volumes = vec![keelblock_actors::launch::MountedVolume {
        spec: keelblock_actors::container::VolumeSpec {
            container_path: "/host".into(),
            mount_point: None,
            read_only: false,
            source: keelblock_actors::container::VolumeSource::HostPath("/etc".into()),
        },
        host_path: "/etc".into(),
    }];
    let (_, output) = house.run(&context);
    assert!(output.contains("/host/shadow': Permission denied"), "{output}");
    assert!(output.contains("/host/made: Permission denied"), "{output}");
    assert!(output.contains("permission denied") || output.contains("Operation not permitted"), "{output}");
}

fn commands_are_executed_in_it(house: &House) {
    let context = house.context("rootless-exec", line("echo ready; exec sleep 1000"));
    let launched = house.launch(&context).unwrap_or_else(|failure| panic!("{}", failure.text()));
    while !output(&context).contains("ready") {
        std::thread::yield_now();
    }
    let spec = || ExecSpec {
        argv: ["/bin/sh", "-c", "test $(cat /proc/1/comm) = keelblock-init && exit 9"]
            .map(str::to_owned)
            .to_vec(),
        ..ExecSpec::default()
    };
    let command = house.launcher.exec(&context.id, spec()).expect("executed");
    assert_eq!(block_on(command.wait()), ExitStatus::Exited(9));
    // Now the other process: see `joins`.
    let (pid, run_dir) = (std::process::id(), house.directory.path().join("containers"));
    println!("running {pid} {} {}", run_dir.display(), context.id);
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).expect("an answer");
    assert_eq!(answer, "joined\n");
    launched.signal(15).expect("sent");
    assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(15));
}

/// A later `keelblock exec` of the same user: into the namespace of the process that keeps the container, then
/// into the container.
fn joins() {
    let running = std::env::var("RUNNING").expect("told");
    let words: Vec<_> = running.split(' ').collect();
    let [pid, run_dir, id] = words[..] else { panic!("{running}") };
    let owner = identity(pid.parse().expect("a pid"));
    let later = ProcessIdentity { start_ticks: owner.start_ticks + 1, ..owner.clone() };
    assert!(rootless::join(&later).is_err(), "another process of that number");
    rootless::join(&owner).unwrap_or_else(|error| panic!("{}", keelblock_actors::error::chain(&error)));
    assert!(rustix::process::geteuid().is_root());

    let launcher = LinuxLauncher::new(run_dir.as_ref(), &slog::Logger::root(slog::Discard, slog::o!()));
    let id = id.parse().expect("an ID");
    let argv = ["/bin/sh", "-c", "test $(cat /proc/1/comm) = keelblock-init && exit 11"].map(str::to_owned);
    let spec = ExecSpec { argv: argv.to_vec(), user: Some("0".to_owned()), ..ExecSpec::default() };
    let command = launcher.exec(&id, spec).expect("executed");
    assert_eq!(block_on(command.wait()), ExitStatus::Exited(11));
}

fn identity(pid: u32) -> ProcessIdentity {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = stat.rsplit_once(") ").expect("fields");
    let start_ticks = rest.split(' ').nth(19).and_then(|text| text.parse().ok()).expect("a start time");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("readable");
    ProcessIdentity { pid, start_ticks, boot_id: boot_id.trim().to_owned() }
}

fn without_a_pid_namespace() {
    let isolation = ["filesystem/linux", "docker/runtime", "appc/runtime", "linux/capabilities"];
    let Some(shared) = bare_house(&isolation, Settings::default()) else { return };
    let own = std::process::id();
    hooks_run(&shared, false);
    // The host's procfs, bound: our own process is seen in it.
    let output =
        shared.output("rootless-shared", &format!("cat /proc/{own}/comm; ls /sys/kernel > /dev/null"));
    assert!(output.starts_with("launch_rootless") || output.starts_with("exe"), "{output}");
}

fn terminals_work(house: &House) {
    let mut context = house.context("rootless-tty", line("tty; exit 3"));
    context.tty = true;
    let launched = house.launch(&context).unwrap_or_else(|failure| panic!("{}", failure.text()));
    let master = house.launcher.terminal(&context.id);
    assert!(master.is_some());
    assert_eq!(block_on(launched.wait()), ExitStatus::Exited(3));
}

/// Event handlers of an Appc image; as another user than root where there is one.
fn hooks_run(house: &House, another: bool) {
    let who = |text: &str| format!("echo {text} $(id -u)");
    for (id, user) in [("rootless-hooks-0", 0), ("rootless-hooks-33", 33)] {
        if user != 0 && !another {
            continue;
        }
        let (before, after) = (who("before"), who("after"));
        let mut hooked_app = hooked(&who("command"), Some(&before), Some(&after));
        (hooked_app.user, hooked_app.group) = (user.to_string(), user.to_string());
        let (status, output) = house.run(&house.appc(id, hooked_app));
        let expected = format!("before {user}\ncommand {user}\nafter {user}\n");
        assert_eq!((status, output), (ExitStatus::Exited(0), expected));
    }
    let context = house.appc("rootless-hung", hooked("true", Some("echo hook; exec sleep 1000"), None));
    let launched = house.launch(&context).unwrap_or_else(|failure| panic!("{}", failure.text()));
    while !output(&context).contains("hook") {
        std::thread::yield_now();
    }
    // By the process of the hook, the supervisor being out of reach.
    let argv = ["/bin/sh", "-c", "test $AC_APP_NAME = test"].map(str::to_owned).to_vec();
    let joined = house.launcher.exec(&context.id, ExecSpec { argv, ..ExecSpec::default() }).expect("joined");
    assert_eq!(block_on(joined.wait()), ExitStatus::Exited(0));
    launched.signal(15).expect("sent");
    assert_eq!(block_on(launched.wait()), ExitStatus::Exited(125));
    assert!(block_on(launched.started()).is_err());
    // Its oom_score_adj cannot be set here: ignored, and told of.
    let mut app = app("true");
    let name = "os/linux/oom-score-adj".parse().expect("a name");
    app.isolators = vec![keelblock_actors::image::appc::Isolator { name, value: "500".to_owned() }];
    assert_eq!(house.run(&house.appc("rootless-oom", app)).0, ExitStatus::Exited(0));
}

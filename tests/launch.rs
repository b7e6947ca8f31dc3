//! Real containers: what is executed, as whom, with what, and how it ends.

mod launch_support;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use keelblock::isolator::{DEFAULT_ISOLATION, Settings, parse_capabilities};
use keelblock_actors::container::{CommandSpec, ExitStatus};
use keelblock_actors::error::LaunchError;
use keelblock_actors::image::plan::RuntimeConfig;
use keelblock_actors::launch::StdioSpec;
use keelblock_actors::ports::{Launched, Launcher};
use launch_support::{Failure, House, block_on, house, house_with, line, output, program, skipped};

/// Waits until a container has written a word: a gate without sleeping for a guessed time.
fn await_word(context: &keelblock_actors::launch::LaunchContext, word: &str) {
    while !output(context).contains(word) {
        std::thread::yield_now();
    }
}

fn is_gone(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_command_runs_in_its_root_and_its_output_comes_back() {
    let Some(house) = house() else { return };
    let output = house.output("first", "echo hello; echo /*");
    assert_eq!(output, "hello\n/bin /dev /etc /mnt /proc /root /sys /tmp\n");
}

#[test]
fn exit_statuses_are_exact() {
    let Some(house) = house() else { return };
    for code in [0u8, 1, 7, 125, 126, 127, 128, 137, 254, 255] {
        let context = house.context(&format!("exit-{code}"), line(&format!("exit {code}")));
        assert_eq!(house.run(&context).0, ExitStatus::Exited(code));
    }
    for signal in [1, 2, 6, 9, 11, 15, 34, 64] {
        let words = ["/bin/sh", "-c", &format!("kill -{signal} $$; sleep 9")];
        let context = house.context(&format!("signal-{signal}"), program(&words));
        assert_eq!(house.run(&context).0, ExitStatus::Signaled(signal));
    }
}

#[test]
fn every_signal_sent_reaches_the_command() {
    let Some(house) = house() else { return };
    for signal in [1, 2, 3, 6, 9, 10, 13, 15, 17 /* ignored by default */, 34, 64] {
        let context = house.context(&format!("kill-{signal}"), line("echo ready; exec sleep 1000"));
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "ready");
        if signal == 17 {
            launched.signal(signal).expect("sent");
            launched.signal(15).expect("sent");
            assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(15));
            continue;
        }
        // The word comes before exec: a shell with a handler may still be there, so again until it works.
        let waiting = launched.wait();
        launched.signal(signal).expect("sent");
        assert_eq!(block_on(waiting), ExitStatus::Signaled(signal));
        assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(signal), "answers again");
    }
    let context = house.context("kill-bad", line("exec sleep 1000"));
    let launched = house.launch(&context).expect("launched");
    for signal in [0, -1, 65] {
        assert!(launched.signal(signal).is_err(), "{signal}");
    }
    launched.kill_all().expect("killed");
    assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
    assert!(matches!(launched.signal(15), Err(LaunchError::NotRunning { .. })));
    launched.kill_all().expect("killing the dead is no error");
}

#[test]
fn a_stopped_command_stays_until_it_is_continued() {
    let Some(house) = house() else { return };
    let context = house.context("stop", line("echo ready; exec sleep 1000"));
    let launched = house.launch(&context).expect("launched");
    await_word(&context, "ready");
    launched.signal(19).expect("stopped");
    let init = launched.init().pid;
    let state = || {
        let children =
            std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("children");
        let task = children.split_whitespace().next().expect("a task").to_owned();
        let stat = std::fs::read_to_string(format!("/proc/{task}/stat")).expect("stat");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
    };
    while state() != 'T' {
        std::thread::yield_now();
    }
    launched.signal(18).expect("continued");
    while state() == 'T' {
        std::thread::yield_now();
    }
    launched.kill_all().expect("killed");
}

#[test]
fn orphans_are_reaped_by_the_supervisor_and_die_with_it() {
    let Some(house) = house() else { return };
    let text = "for n in 1 2 3 4 5 6 7 8; do (sleep 0 &) ; done; (sleep 1000 &); \
                until test \"$(ps -o stat,comm | grep -v -e ps -e sh -e init -e grep | tr -s ' ')\" = \"$(printf 'STAT COMMAND\\nS sleep')\"; do :; done; exit 3";
    let context = house.context("zombies", line(text));
    let (status, output) = house.run(&context);
    assert_eq!(status, ExitStatus::Exited(3), "{output}");
    assert_eq!(output, "", "all but the one that sleeps on were seen to go");
}

#[test]
fn what_a_command_leaves_without_a_pid_namespace_is_killed_when_it_ends() {
    let isolation = ["filesystem/linux", "docker/runtime", "linux/capabilities"];
    let Some(house) = house_with(&isolation, Settings::default()) else { return };
    let text = "(sleep 7654321 & echo $!) ; (sh -c 'sleep 7654321 & sleep 7654321' & ) ; exit 4";
    let context = house.context("leftovers", line(text));
    let launched = house.launch(&context).expect("launched");
    assert_eq!(block_on(launched.wait()), ExitStatus::Exited(4));
    let pid: u32 = output(&context).trim().parse().expect("a number of the host's");
    assert!(is_gone(pid));

    let context = house.context("leftovers-killed", line("sleep 7654321 & echo $!; sleep 7654321"));
    let launched = house.launch(&context).expect("launched");
    await_word(&context, "\n");
    launched.kill_all().expect("killed");
    let pid: u32 = output(&context).trim().parse().expect("a number of the host's");
    assert!(is_gone(pid));
    assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
}

#[test]
fn the_environment_is_the_plans_and_nothing_else() {
    let Some(house) = house() else { return };
    let mut context = house.context("environment", program(&["/bin/env"]));
    context.runtime = Some(RuntimeConfig {
        env: vec![("A".into(), "image".into()), ("B".into(), "image".into())],
        ..RuntimeConfig::default()
    });
    context.command.environment = vec![("B".into(), "caller".into()), ("C".into(), "x=y\nz".into())];
    let (_, output) = house.run(&context);
    let expected = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\nA=image\n\
                    B=caller\nMESOS_SANDBOX=/mnt/mesos/sandbox\nC=x=y\nz\n";
    assert_eq!(output, expected);
}

#[test]
fn nothing_of_the_launching_process_is_seen_inside() {
    let Some(house) = house() else { return };
    let output = house.output(
        "leaks",
        "ls /proc/self/fd | tr '\\n' ' '; echo; tr -d '\\0' < /proc/1/cmdline; echo; cat /proc/1/comm; \
         for file in environ maps mem exe root/etc/hostname fd/*; do head -c 9 /proc/1/$file 2>&1; done; true",
    );
    let mut lines = output.lines();
    // `ls` itself has 3 open.
    assert_eq!(lines.next(), Some("0 1 2 3 "), "{output}");
    assert_eq!(lines.next(), Some(""), "command line: {output}");
    assert_eq!(lines.next(), Some("keelblock-init"), "{output}");
    let rest: Vec<_> = lines.collect();
    assert!(rest.iter().all(|line| line.contains("ermission denied")), "{output}");
    assert!(rest.len() >= 6, "{output}");
}

#[test]
fn a_supervisor_keeps_little_memory_and_one_capability() {
    let Some(house) = house() else { return };
    // Something to shed, touched so that it is really there.
    let ballast = vec![1u8; 64 << 20];
    let context = house.context("memory", line("echo ready; exec sleep 1000"));
    let launched = house.launch(&context).expect("launched");
    await_word(&context, "ready");
    let status = std::fs::read_to_string(format!("/proc/{}/status", launched.init().pid)).expect("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let anonymous: u64 = field("RssAnon:").parse().expect("a number");
    assert!(anonymous < 2048, "{anonymous} KiB of {} MiB", ballast.len() >> 20);
    assert_eq!(field("CapEff:"), "0000000000000020");
    assert_eq!(field("CapPrm:"), "0000000000000020");
    let open = std::fs::read_dir(format!("/proc/{}/fd", launched.init().pid)).expect("descriptors").count();
    assert_eq!(open, 1, "the status file alone");
    launched.kill_all().expect("killed");
}

#[test]
fn signal_state_is_the_default_inside() {
    let Some(house) = house() else { return };
    let context = house.context("signals", program(&["/bin/grep", "^Sig", "/proc/self/status"]));
    let (_, output) = house.run(&context);
    for name in ["SigBlk:", "SigIgn:", "SigCgt:"] {
        assert!(output.contains(&format!("{name}\t0000000000000000")), "{output}");
    }
}

#[test]
fn users_are_those_of_the_image() {
    let Some(house) = house() else { return };
    for (image, caller, expected) in [
        (None, None, "uid=0(root) gid=0(root)"),
        (Some("web"), None, "uid=33(web) gid=34(web) groups=4(adm)\n"),
        (Some("33:adm"), None, "uid=33(web) gid=4(adm)\n"),
        (Some("web"), Some("0"), "uid=0(root) gid=0(root)"),
        (None, Some("12345:54321"), "uid=12345 gid=54321\n"),
    ] {
        let mut context = house.context("user", program(&["/bin/id"]));
        context.runtime = Some(RuntimeConfig { user: image.map(str::to_owned), ..RuntimeConfig::default() });
        context.command.user = caller.map(str::to_owned);
        let _ = std::fs::remove_file(context.sandbox.join("stdout"));
        let (status, output) = house.run(&context);
        assert_eq!(status, ExitStatus::Exited(0), "{output}");
        assert!(output.starts_with(expected), "{image:?} {caller:?}: {output}");
    }
    let mut context = house.context("nobody", program(&["/bin/id"]));
    context.command.user = Some("mallory".to_owned());
    let Err(Failure::Isolator(error)) = house.launch(&context) else { panic!("launched as an unknown user") };
    let text = Failure::Isolator(error).text();
    assert!(text.contains("mallory") && text.contains("/etc/passwd"), "{text}");
}

#[test]
fn what_an_image_asks_can_be_ignored() {
    let ignore_user = Settings { docker_ignore_user: true, ..Settings::default() };
    let ignore_all = Settings { docker_ignore_runtime: true, ..Settings::default() };
    for (settings, expected) in [(ignore_user, "0 image /tmp\n"), (ignore_all, "0 /mnt/mesos/sandbox\n")] {
        let Some(house) = house_with(&DEFAULT_ISOLATION, settings) else { return };
        let mut context = house.context("ignore", line("echo $(id -u) $A $(pwd)"));
        context.runtime = Some(RuntimeConfig {
            user: Some("web".into()),
            env: vec![("A".into(), "image".into())],
            working_dir: Some("/tmp".into()),
            ..RuntimeConfig::default()
        });
        assert_eq!(house.run(&context).1, expected);
    }
}

#[test]
fn an_image_without_the_isolator_for_it_is_refused() {
    let Some(house) = house_with(&[], Settings::default()) else { return };
    let Err(failure) = house.launch(&house.context("posix", line("true"))) else { panic!("launched") };
    assert!(failure.text().contains("filesystem/linux"), "{}", failure.text());
    let mut context = house.context("posix", line("pwd; exit 8"));
    context.rootfs = None;
    let (status, output) = house.run(&context);
    assert_eq!(status, ExitStatus::Exited(8));
    assert_eq!(output, format!("{}\n", context.sandbox.display()));
}

#[test]
fn a_user_owns_the_sandbox_and_can_open_the_standard_streams() {
    let Some(house) = house() else { return };
    let mut context = house.context("streams", line("echo out > /dev/stdout; touch made; pwd; echo $HOME"));
    context.command.user = Some("web".to_owned());
    let (status, output) = house.run(&context);
    assert_eq!((status, output.as_str()), (ExitStatus::Exited(0), "out\n/mnt/mesos/sandbox\n/srv\n"));
    let made = context.sandbox.join("made").metadata().expect("made");
    assert_eq!((made.uid(), made.gid()), (33, 34));
}

fn capability_lines(
    house: &House,
    id: &str,
    user: &str,
    effective: Option<&str>,
    bounding: Option<&str>,
) -> Vec<u64> {
    let mut context = house.context(id, program(&["/bin/grep", "^Cap", "/proc/self/status"]));
    context.command.user = Some(user.to_owned());
    let set = |text: &str| parse_capabilities(text).expect("names");
    context.effective_capabilities = effective.map(set);
    context.bounding_capabilities = bounding.map(set);
    let (_, output) = house.run(&context);
    let value = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap_or_default(), 16);
    output.lines().map(|line| value(line).expect("a number")).collect()
}

#[test]
fn capabilities_are_what_capabilities_7_makes_of_the_plan() {
    let Some(house) = house() else { return };
    let default = 0x8004_25fb & !parse_capabilities("MKNOD,NET_RAW,AUDIT_WRITE").expect("names").0;
    let default = default | parse_capabilities("SYS_CHROOT,SETFCAP").expect("names").0;
    // Inheritable, permitted, effective, bounding, ambient.
    assert_eq!(capability_lines(&house, "caps-root", "0", None, None), [0, default, default, default, 0]);
    assert_eq!(capability_lines(&house, "caps-user", "web", None, None), [0, 0, 0, default, 0]);
    let net = parse_capabilities("NET_RAW").expect("a name").0;
    let asked = capability_lines(&house, "caps-asked", "web", Some("NET_RAW"), None);
    assert_eq!(asked, [net, net, net, net, net]);
    let both = net | parse_capabilities("CHOWN").expect("a name").0;
    let bounded = capability_lines(&house, "caps-bounded", "web", Some("NET_RAW"), Some("NET_RAW,CHOWN"));
    assert_eq!(bounded, [net, net, net, both, net]);
    assert_eq!(capability_lines(&house, "caps-none", "0", Some("none"), None), [0, 0, 0, 0, 0]);
    assert_eq!(
        capability_lines(&house, "caps-root-asked", "0", Some("NET_RAW"), None),
        [0, net, net, net, 0]
    );
}

#[test]
fn a_device_cannot_be_made_nor_used_from_the_image() {
    let Some(house) = house() else { return };
    let made = Command::new("mknod").arg(house.rootfs.join("zero")).args(["c", "1", "5"]).status();
    if !made.is_ok_and(|status| status.success()) {
        return skipped("cannot make a device node");
    }
    let output =
        house.output("devices", "head -c 1 /zero 2>&1; mknod /tmp/x c 1 5 2>&1; head -c 1 /dev/zero | wc -c");
    assert!(output.contains("/zero: Permission denied"), "{output}");
    assert!(output.contains("mknod: /tmp/x: Operation not permitted"), "{output}");
    assert!(output.ends_with("1\n"), "{output}");
}

#[test]
fn no_new_privs_is_set_when_asked_and_only_then() {
    let isolation = [&DEFAULT_ISOLATION[..], &["linux/nnp"]].concat();
    let Some(strict) = house_with(&isolation, Settings::default()) else { return };
    let Some(lenient) = house() else { return };
    for (house, expected) in [(&strict, "NoNewPrivs:\t1\n"), (&lenient, "NoNewPrivs:\t0\n")] {
        assert_eq!(house.output("nnp", "grep NoNewPrivs /proc/self/status"), expected);
    }
}

#[test]
fn commands_that_are_missing_or_cannot_be_executed_say_which() {
    let Some(house) = house() else { return };
    std::fs::write(house.rootfs.join("bin/text"), "no program\n").expect("written");
    let launch = |id: &str, command: CommandSpec| match house.launch(&house.context(id, command)) {
        Err(Failure::Launch(error)) => error,
        Err(Failure::Isolator(error)) => panic!("{error}"),
        Ok(_) => panic!("{id} was launched"),
    };
    for missing in ["nothing", "/bin/nothing", "./nothing", "bin/nothing", "", "/etc/passwd/x"] {
        let error = launch("missing", program(&[missing]));
        assert!(matches!(error, LaunchError::CommandNotFound { .. }), "{missing}: {error:?}");
    }
    for unfit in ["text", "/bin/text", "/tmp", "/etc/passwd"] {
        let error = launch("unfit", program(&[unfit]));
        assert!(matches!(error, LaunchError::CommandNotExecutable { .. }), "{unfit}: {error:?}");
    }
}

#[test]
fn a_program_is_found_by_the_containers_path_and_then_in_its_directory() {
    let Some(house) = house() else { return };
    std::fs::create_dir(house.rootfs.join("own")).expect("made");
    std::os::unix::fs::symlink("/bin/busybox", house.rootfs.join("own/true")).expect("linked");
    let mut context = house.context("path", program(&["true"]));
    context.command.environment = vec![("PATH".into(), "/own".into())];
    assert_eq!(house.run(&context).0, ExitStatus::Exited(0));
    let mut context = house.context("path-cwd", program(&["true"]));
    context.command.environment = vec![("PATH".into(), "/none".into())];
    context.command.working_directory = Some("/own".into());
    assert_eq!(house.run(&context).0, ExitStatus::Exited(0));
    let spec = CommandSpec {
        value: Some("/bin/busybox".to_owned()),
        arguments: vec!["echo".to_owned(), "as echo".to_owned()],
        ..CommandSpec::default()
    };
    assert_eq!(house.run(&house.context("argv-0", spec)).1, "as echo\n");
}

#[test]
fn the_working_directory_is_made_when_missing_and_belongs_to_root() {
    let Some(house) = house() else { return };
    let mut context = house.context("directory", line("pwd"));
    context.command.user = Some("web".to_owned());
    context.runtime =
        Some(RuntimeConfig { working_dir: Some("/deep/er/one".into()), ..RuntimeConfig::default() });
    assert_eq!(house.run(&context).1, "/deep/er/one\n");
    let made = house.rootfs.join("deep/er/one").metadata().expect("made");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (0, 0, 0o755));
}

#[test]
fn streams_can_go_nowhere() {
    let Some(house) = house() else { return };
    let mut context = house.context("null", line("cat; echo lost; echo lost >&2; exit 5"));
    context.stdio = StdioSpec::Null;
    let (status, output) = house.run(&context);
    assert_eq!((status, output.as_str()), (ExitStatus::Exited(5), ""));
}

#[test]
fn an_unreleased_container_ends_when_it_is_dropped() {
    let Some(house) = house() else { return };
    let context = house.context("dropped", line("echo never"));
    let launched = house.start(&context).expect("started");
    let (init, waiting) = (launched.init(), launched.wait());
    assert!(house.launcher.is_alive(&init));
    drop(launched);
    block_on(waiting);
    assert!(!house.launcher.is_alive(&init));
    assert_eq!(output(&context), "");

    let launched = house.start(&house.context("unreleased", line("echo never"))).expect("started");
    launched.kill_all().expect("killed");
    assert!(is_gone(launched.init().pid) || !house.launcher.is_alive(&launched.init()));
}

#[test]
fn two_hundred_launches_leave_no_process_no_descriptor_and_no_mount() {
    let Some(house) = house() else { return };
    let _ = house.output("warm", "true");
    let inits: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let house = &house;
                scope.spawn(move || {
                    let launch = |n: u32| {
                        let code = (thread * 25 + n) as u8;
                        let context =
                            house.context(&format!("many-{thread}-{n}"), line(&format!("exit {code}")));
                        let launched =
                            house.launch(&context).unwrap_or_else(|error| panic!("{}", error.text()));
                        (code, launched)
                    };
                    let launched: Vec<_> = (0..25).map(launch).collect();
                    let check = |(code, launched): (u8, std::sync::Arc<dyn Launched>)| {
                        assert_eq!(block_on(launched.wait()), ExitStatus::Exited(code));
                        launched.init()
                    };
                    launched.into_iter().map(check).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread")).collect()
    });
    assert_eq!(inits.len(), 200);
    assert!(inits.iter().all(|init| !house.launcher.is_alive(init)));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&*house.directory.path().to_string_lossy()), "{mounts}");
    // Descriptors of this process that belong to launches: pidfds and pipes. Other tests run beside this one, so
    // those of our dead supervisors are looked for by what they are open on.
    let dead: Vec<String> = inits.iter().map(|init| format!("Pid:\t{}", init.pid)).collect();
    for entry in std::fs::read_dir("/proc/self/fdinfo").expect("descriptors").flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let held = text.lines().any(|line| dead.iter().any(|pid| pid == line));
        assert!(!held, "{} holds a dead supervisor", entry.path().display());
    }
}

/// Not a test of its own: what the next one kills.
#[test]
fn helper_that_launches_and_hangs() {
    if std::env::var_os("KEELBLOCK_TEST_HANG").is_none() {
        return;
    }
    let Some(house) = house() else { return };
    let context = house.context("hang", line("sleep 1000 & echo ready; wait"));
    let launched = house.launch(&context).expect("launched");
    await_word(&context, "ready");
    println!("init={} directory={}", launched.init().pid, house.directory.path().display());
    block_on(launched.wait());
}

#[test]
fn a_killed_launching_process_leaves_no_container() {
    if !rustix::process::geteuid().is_root() {
        return skipped("needs root");
    }
    let mut helper = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "helper_that_launches_and_hangs", "--nocapture"])
        .env("KEELBLOCK_TEST_HANG", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a helper");
    let mut text = String::new();
    let mut stdout = helper.stdout.take().expect("its output");
    let mut byte = [0];
    let complete = |text: &str| text.contains("directory=") && text.ends_with('\n');
    while !complete(&text) && stdout.read(&mut byte).expect("its output") == 1 {
        text.push(char::from(byte[0]));
    }
    let field = |name: &str| {
        let at = text.find(name).map(|at| &text[at + name.len()..]);
        at.and_then(|rest| rest.split_whitespace().next()).map(str::to_owned)
    };
    let Some(init) = field("init=") else {
        let _ = helper.wait();
        return skipped("the helper could not launch");
    };
    let init: i32 = init.parse().expect("a number");
    let process = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(init).expect("a pid"),
        rustix::process::PidfdFlags::empty(),
    )
    .expect("the supervisor lives");
    helper.kill().expect("killed");
    helper.wait().expect("reaped");
    // Readable once the supervisor has ended, and with it its pid namespace. Without the death signal this
    // would wait for the thousand seconds.
    assert!(process.as_raw_fd() > 2);
    let mut poll = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut poll, Some(&limit)), Ok(1), "the container outlived its launcher");
    if let Some(directory) = field("directory=") {
        let _ = std::fs::remove_dir_all(directory);
    }
}

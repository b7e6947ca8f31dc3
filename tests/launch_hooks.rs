//! Real containers with event handlers: what runs before and after their commands, and what becomes of it.

mod launch_support;

use std::io::Read;
use std::sync::{Arc, Mutex};

use keelblock::isolator::{DEFAULT_CAPABILITIES, DEFAULT_ISOLATION, Settings};
use keelblock::launcher::LinuxLauncher;
use keelblock_actors::container::ExitStatus;
use keelblock_actors::error::{LaunchError, chain};
use keelblock_actors::image::appc::{App, EventHandler, EventName};
use keelblock_actors::launch::LaunchContext;
use keelblock_actors::ports::{ExecSpec, Launcher};
use launch_support::{Failure, House, block_on, hooked, house, house_with, output};

/// With and without a pid namespace: what a supervisor's end is differs.
const ISOLATIONS: [&[&str]; 2] =
    [&DEFAULT_ISOLATION, &["filesystem/linux", "appc/runtime", "linux/capabilities"]];

fn houses() -> Vec<House> {
    ISOLATIONS.iter().filter_map(|isolation| house_with(isolation, Settings::default())).collect()
}

fn await_word(context: &LaunchContext, word: &str) {
    while !output(context).contains(word) {
        std::thread::yield_now();
    }
}

/// Runs to the end: status, whether and why not the command was executed, output.
fn run(house: &House, id: &str, app: App) -> (ExitStatus, Result<(), Arc<LaunchError>>, String) {
    let context = house.appc(id, app);
    let launched = house.launch(&context).unwrap_or_else(|failure| panic!("{}", failure.text()));
    let status = block_on(launched.wait());
    (status, block_on(launched.started()), output(&context))
}

#[test]
fn hooks_run_around_the_command_as_who_and_where_it_runs() {
    for house in houses() {
        let look = "id -u; id -g; id -G; pwd; echo $A $AC_APP_NAME $container; grep -e ^Cap -e ^Sig -e NoNew \
                    /proc/self/status | grep -v SigQ; readlink /proc/self/ns/pid; readlink /proc/self/ns/mnt; \
                    ls /proc/self/fd | tr '\\n' ' '; echo";
        for user in ["root", "web"] {
            let text = |what: &str| format!("echo {what}; {look}; echo");
            let mut app = hooked(&text("command"), Some(&text("before")), Some(&text("after")));
            (app.user, app.group) = (user.to_owned(), user.to_owned());
            app.supplementary_gids = vec![4, 40];
            app.environment = vec![("A".to_owned(), "image".to_owned())];
            app.working_directory = Some("/tmp".to_owned());
            let (status, started, output) = run(&house, &format!("around-{user}"), app);
            assert_eq!(status, ExitStatus::Exited(0), "{output}");
            started.expect("executed");
            let parts: Vec<_> = ["before\n", "command\n", "after\n"]
                .iter()
                .map(|what| {
                    output.find(what).map(|at| at + what.len()).unwrap_or_else(|| panic!("{what}: {output}"))
                })
                .collect();
            assert!(parts.is_sorted(), "{output}");
            let part = |at: usize| {
                output[parts[at]..].lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>()
            };
            let command = part(1).join("\n");
            assert!(command.contains("image test keelblock") && command.ends_with("0 1 2 3 "), "{output}");
            assert_eq!((part(0).join("\n"), part(2).join("\n")), (command.clone(), command));
        }
    }
}

#[test]
fn a_command_does_not_run_when_its_pre_start_hook_does_not_end_well() {
    for house in houses() {
        let app = |exec: &[&str]| {
            let mut app = hooked("echo command", None, Some("echo after"));
            let exec = exec.iter().map(|word| (*word).to_owned()).collect();
            app.event_handlers.push(EventHandler { name: EventName::PreStart, exec });
            app
        };
        for (id, exec, told) in [
            ("bad-exit", &["/bin/sh", "-c", "exit 3"][..], "exited with 3"),
            ("bad-kill", &["/bin/sh", "-c", "kill -9 $$"], "was ended by signal 9"),
            ("bad-missing", &["/bin/nothing"], "could not be executed: No such file"),
            ("bad-unfit", &["/etc/passwd"], "could not be executed: Permission denied"),
        ] {
            let (status, started, output) = run(&house, id, app(exec));
            assert_eq!(status, ExitStatus::Exited(125), "{id}: the container failed, not its command");
            let error = started.expect_err(id);
            assert!(matches!(&*error, LaunchError::Hook { .. }), "{id}: {error}");
            let text = chain(&*error);
            assert!(text.contains(told) && text.contains(exec[0]), "{text}");
            assert_eq!(output, "", "{id}: neither the command nor what is to follow it");
        }
    }
}

#[test]
fn a_command_that_cannot_be_executed_after_its_hook_says_so() {
    for house in houses() {
        for (exec, code) in [("/bin/nothing", 127), ("/etc/passwd", 126)] {
            let mut app = hooked("", Some("echo before"), Some("echo after"));
            app.exec = vec![exec.to_owned()];
            let (status, started, output) = run(&house, &format!("unfit-{code}"), app);
            assert_eq!(status, ExitStatus::Exited(code));
            let error = started.expect_err(exec);
            match code {
                127 => assert!(matches!(&*error, LaunchError::CommandNotFound { .. }), "{error}"),
                _ => assert!(matches!(&*error, LaunchError::CommandNotExecutable { .. }), "{error}"),
            }
            assert_eq!(output, "before\n");
        }
        // With nothing before it the launch fails, as one without hooks.
        let mut app = hooked("", None, Some("echo after"));
        app.exec = vec!["/bin/nothing".to_owned()];
        let context = house.appc("unfit-after", app);
        let error = house.launch(&context).err().expect("not executed");
        assert!(matches!(error, Failure::Launch(LaunchError::CommandNotFound { .. })), "{}", error.text());
        assert_eq!(output(&context), "");
    }
}

#[test]
fn a_post_stop_hook_follows_however_the_command_ends_and_changes_no_status() {
    for house in houses() {
        for (code, after) in [(0u8, "exit 9"), (7, "true"), (125, "kill -9 $$")] {
            let app = hooked(&format!("exit {code}"), None, Some(&format!("echo after; {after}")));
            let (status, started, output) = run(&house, &format!("after-{code}"), app);
            assert_eq!((status, output.as_str()), (ExitStatus::Exited(code), "after\n"));
            started.expect("executed");
        }
        for signal in [15, 9, 11] {
            let app = hooked("echo ready; exec sleep 1000", Some("true"), Some("echo after"));
            let context = house.appc(&format!("after-signal-{signal}"), app);
            let launched = house.launch(&context).expect("launched");
            block_on(launched.started()).expect("executed");
            await_word(&context, "ready");
            launched.signal(signal).expect("sent");
            assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(signal));
            assert_eq!(output(&context), "ready\nafter\n", "signal {signal}");
        }
    }
}

#[test]
fn a_post_stop_hook_that_fails_is_told_of_in_the_log() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);
    impl slog::Drain for Lines {
        type Ok = ();
        type Err = slog::Never;
        fn log(&self, record: &slog::Record<'_>, values: &slog::OwnedKVList) -> Result<(), slog::Never> {
            struct Text(String);
            impl slog::Serializer for Text {
                fn emit_arguments(
                    &mut self,
                    key: slog::Key,
                    value: &std::fmt::Arguments<'_>,
                ) -> slog::Result {
                    self.0 += &format!(" {key}={value}");
                    Ok(())
                }
            }
            let mut text = Text(record.msg().to_string());
            let _ = slog::KV::serialize(&record.kv(), record, &mut text);
            let _ = slog::KV::serialize(values, record, &mut text);
            self.0.lock().expect("lines").push(text.0);
            Ok(())
        }
    }
    for mut house in houses() {
        let lines = Lines::default();
        let log = slog::Logger::root(slog::Fuse(lines.clone()), slog::o!());
        house.launcher = LinuxLauncher::new(&house.directory.path().join("logged"), &log);
        let mut missing = hooked("true", None, None);
        let exec = vec!["/bin/nothing".to_owned()];
        missing.event_handlers = vec![EventHandler { name: EventName::PostStop, exec }];
        for (id, app, told) in [
            ("late-exit", hooked("true", None, Some("exit 9")), "exited with 9"),
            ("late-missing", missing, "could not be executed"),
        ] {
            let (status, _, _) = run(&house, id, app);
            assert_eq!(status, ExitStatus::Exited(0));
            let about =
                |line: &&String| line.contains("post-stop") && line.contains(id) && line.contains(told);
            let lines = lines.0.lock().expect("lines");
            assert!(lines.iter().any(|line| about(&line)), "{id}: {lines:?}");
        }
    }
}

#[test]
fn killing_everything_ends_a_hook_and_nothing_follows() {
    for house in houses() {
        let app = hooked("echo command", Some("echo hook; exec sleep 1000"), Some("echo after"));
        let context = house.appc("hung-before", app);
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "hook");
        launched.kill_all().expect("killed");
        assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
        assert!(block_on(launched.started()).is_err());
        assert_eq!(output(&context), "hook\n");

        let context = house.appc("killed", hooked("echo command; exec sleep 1000", None, Some("echo after")));
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "command");
        launched.kill_all().expect("killed");
        assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
        assert_eq!(output(&context), "command\n");

        let context = house.appc("hung-after", hooked("exit 5", None, Some("echo after; exec sleep 1000")));
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "after");
        launched.kill_all().expect("killed");
        assert_eq!(block_on(launched.wait()), ExitStatus::Exited(5), "it had ended by then");
    }
}

#[test]
fn signals_go_to_the_hook_that_runs() {
    for house in houses() {
        // One that bears it: the command runs, and does not get the signal too.
        let before = "trap 'echo got; exit 0' TERM; echo hook; while :; do sleep 0.01; done";
        let context = house.appc("borne", hooked("echo command", Some(before), None));
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "hook");
        launched.signal(15).expect("sent");
        assert_eq!(block_on(launched.wait()), ExitStatus::Exited(0));
        assert_eq!(output(&context), "hook\ngot\ncommand\n");

        // Those that do not: the command does not run.
        for signal in [15, 9] {
            let app = hooked("echo command", Some("echo hook; exec sleep 1000"), Some("echo after"));
            let context = house.appc(&format!("not-borne-{signal}"), app);
            let launched = house.launch(&context).expect("launched");
            await_word(&context, "hook");
            launched.signal(signal).expect("sent");
            assert_eq!(block_on(launched.wait()), ExitStatus::Exited(125));
            let error = block_on(launched.started()).expect_err("not executed").to_string();
            assert!(error.contains(&format!("was ended by signal {signal}")), "{error}");
            assert_eq!(output(&context), "hook\n");
        }

        // A hung hook at the end is ended so too.
        let context = house.appc("late", hooked("exit 4", None, Some("echo after; exec sleep 1000")));
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "after");
        launched.signal(15).expect("sent");
        assert_eq!(block_on(launched.wait()), ExitStatus::Exited(4));
    }
}

#[test]
fn what_hooks_leave_behind_dies_with_the_container() {
    for house in houses() {
        let leave = "sleep 7654321 > /dev/null 2>&1 &";
        let app = hooked("true", Some(leave), Some(leave));
        let context = house.appc("left", app);
        let launched = house.launch(&context).expect("launched");
        assert_eq!(block_on(launched.wait()), ExitStatus::Exited(0));
        let alive = std::fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
            let root = std::fs::read_link(entry.path().join("root"));
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            root.is_ok() && line == b"sleep\x007654321\x00" && is_in(&entry.path(), &house)
        });
        assert!(!alive);
    }
}

/// Whether a process has the root of a house.
fn is_in(process: &std::path::Path, house: &House) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode =
        |path: &std::path::Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    inode(&process.join("root")).is_some_and(|root| Some(root) == inode(&house.rootfs))
}

#[test]
fn a_supervisor_with_hooks_keeps_little_and_no_more_than_it_needs() {
    let Some(house) = house() else { return };
    let ballast = vec![1u8; 64 << 20];
    let field = |pid: u32, name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    // What containers have, which holds what it takes to become another user.
    let default = DEFAULT_CAPABILITIES.iter().fold(0, |set, one| set | one.bitmask());
    let kept = |pid| {
        let set = u64::from_str_radix(&field(pid, "CapEff:"), 16).expect("a set");
        assert_eq!(field(pid, "CapPrm:"), field(pid, "CapEff:"));
        set
    };
    for (id, before, after) in
        [("kept-before", true, false), ("kept-after", false, true), ("kept-both", true, true)]
    {
        let hook = "echo hook; until test -e /tmp/go; do sleep 0.01; done";
        let _ = std::fs::remove_file(house.rootfs.join("tmp/go"));
        let app = hooked("echo command; exec sleep 1000", before.then_some(hook), after.then_some("true"));
        let context = house.appc(id, app);
        let launched = house.launch(&context).expect("launched");
        let pid = launched.init().pid;
        if before {
            await_word(&context, "hook");
            assert_eq!(kept(pid) & !default, 0, "{id}: {:x}", kept(pid));
            std::fs::write(house.rootfs.join("tmp/go"), "").expect("told");
        }
        block_on(launched.started()).expect("executed");
        await_word(&context, "command");
        match after {
            true => assert_eq!(kept(pid) & !default, 0, "{id}: {:x}", kept(pid)),
            false => assert_eq!(kept(pid), 0x20, "{id}: as without hooks"),
        }
        let anonymous: u64 = field(pid, "RssAnon:").parse().expect("a number");
        assert!(anonymous < 2048, "{id}: {anonymous} KiB of {} MiB", ballast.len() >> 20);
        if !after {
            assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count(), 1);
        }
        launched.kill_all().expect("killed");
    }
}

#[test]
fn neither_hooks_nor_the_command_see_into_the_supervisor() {
    let Some(house) = house() else { return };
    let look = "tr -d '\\0' < /proc/1/cmdline; for file in environ maps mem exe root/etc/hostname fd/*; do \
                head -c 9 /proc/1/$file 2>&1; done; set -- /proc/[0-9]*; echo $#";
    let (status, _, output) = run(&house, "blind", hooked(look, Some(look), Some(look)));
    assert_eq!(status, ExitStatus::Exited(0), "{output}");
    let (counts, refused): (Vec<_>, Vec<_>) = output.lines().partition(|line| line.parse::<u32>().is_ok());
    // The supervisor and the shell: nobody waits for his turn.
    assert_eq!(counts, ["2", "2", "2"], "{output}");
    assert!(refused.len() >= 18 && refused.iter().all(|line| line.contains("ermission denied")), "{output}");
}

#[test]
fn a_hook_writes_to_the_containers_terminal_and_the_command_has_it_after() {
    for house in houses() {
        for user in ["0", "33"] {
            let mut app = hooked(
                "tty; echo command > /dev/tty",
                Some(
                    "test -t 0 && test -t 1 && test -t 2 && echo before; seq 1 20000; echo opened > /dev/pts/0; echo x 2> /dev/null > /dev/tty || echo none",
                ),
                Some("echo after; test -t 1 || touch /tmp/after"),
            );
            app.user = user.to_owned();
            let mut context = house.appc(&format!("tty-{user}"), app);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
            std::fs::set_permissions(house.rootfs.join("tmp"), mode).expect("for all");
            let _ = std::fs::remove_file(house.rootfs.join("tmp/after"));
            context.tty = true;
            let launched = house.launch(&context).expect("launched");
            let mut master = std::fs::File::from(house.launcher.terminal(&context.id).expect("a terminal"));
            let mut bytes = Vec::new();
            // Ends with EIO, when the other side is closed.
            let _ = master.read_to_end(&mut bytes);
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            assert_eq!(block_on(launched.wait()), ExitStatus::Exited(0), "{text}");
            block_on(launched.started()).expect("executed");
            assert!(text.starts_with("before\n1\n2\n"), "{}", &text[..text.len().min(200)]);
            assert!(
                text.ends_with("20000\nopened\nnone\n/dev/pts/0\ncommand\n"),
                "{}",
                &text[text.len() - 200..]
            );
            assert!(house.rootfs.join("tmp/after").exists(), "it ran, without a terminal");
        }
    }
}

#[test]
fn others_can_join_while_a_hook_runs_and_after() {
    for house in houses() {
        let _ = std::fs::remove_file(house.rootfs.join("tmp/go"));
        let app = hooked(
            "echo command; exec sleep 1000",
            Some("echo hook; until test -e /tmp/go; do sleep 0.01; done"),
            None,
        );
        let context = house.appc("joined", app);
        let launched = house.launch(&context).expect("launched");
        await_word(&context, "hook");
        let touch = ["/bin/sh", "-c", "test \"$AC_APP_NAME\" = test && test $PWD = / && touch /tmp/go"];
        let spec = ExecSpec { argv: touch.map(str::to_owned).to_vec(), ..ExecSpec::default() };
        let joined = house.launcher.exec(&context.id, spec.clone()).expect("joined");
        assert_eq!(block_on(joined.wait()), ExitStatus::Exited(0));
        await_word(&context, "command");
        let joined = house.launcher.exec(&context.id, spec).expect("joined");
        assert_eq!(block_on(joined.wait()), ExitStatus::Exited(0));
        launched.kill_all().expect("killed");
    }
}

#[test]
fn a_signal_of_another_process_does_not_cut_off_what_follows() {
    let Some(house) = house() else { return };
    let context = house.appc("foreign", hooked("echo ready; exec sleep 1000", None, Some("echo after")));
    let launched = house.launch(&context).expect("launched");
    await_word(&context, "ready");
    // By what is on disk alone, as another process would.
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let other = LinuxLauncher::new(&house.directory.path().join("containers"), &log);
    let waiting = other.wait(&context.id, &launched.init());
    other.signal(&context.id, &launched.init(), 9).expect("sent");
    assert_eq!(block_on(waiting).expect("known"), Some(ExitStatus::Signaled(9)));
    assert_eq!(output(&context), "ready\nafter\n");
}

//! Real containers: commands executed in them later, terminals, and what other launchers may do with them.

mod launch_support;

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;

use keelblock::launcher::{LinuxLauncher, Terminal};
use keelblock_actors::container::{ContainerId, ExitStatus};
use keelblock_actors::error::LaunchError;
use keelblock_actors::launch::LaunchContext;
use keelblock_actors::ports::{ExecSpec, Launched, Launcher};
use launch_support::{House, block_on, house, line, output};

/// A container that waits until it is killed.
fn running(house: &House, id: &str) -> (LaunchContext, Arc<dyn Launched>) {
    let mut context = house.context(id, line("echo ready; exec sleep 1000"));
    context.command.environment = vec![("FROM".into(), "container".into())];
    let launched = house.launch(&context).expect("launched");
    while !output(&context).contains("ready") {
        std::thread::yield_now();
    }
    (context, launched)
}

/// Another process's launcher knows no more than what is on disk.
fn another(house: &House) -> LinuxLauncher {
    let log = slog::Logger::root(slog::Discard, slog::o!());
    LinuxLauncher::new(&house.directory.path().join("containers"), &log)
}

fn shell(text: &str) -> ExecSpec {
    let argv = ["/bin/sh", "-c", text].iter().map(|word| (*word).to_owned()).collect();
    ExecSpec { argv, ..ExecSpec::default() }
}

fn exec(house: &House, id: &ContainerId, spec: ExecSpec) -> ExitStatus {
    let launched = another(house).exec(id, spec).expect("executed");
    block_on(launched.wait())
}

#[test]
fn a_command_is_executed_in_the_containers_namespaces_root_and_environment() {
    let Some(house) = house() else { return };
    let (context, launched) = running(&house, "exec");
    let text = "{ pwd; echo $FROM $OWN; for n in mnt pid ipc net user; do readlink /proc/self/ns/$n; done; \
                id; grep -E 'CapEff|CapBnd' /proc/self/status; ls /proc/self/fd | tr '\\n' ' '; \
                cat /proc/1/comm; } > /mnt/mesos/sandbox/seen";
    let mut spec = shell(text);
    spec.environment = vec![("OWN".into(), "exec".into())];
    assert_eq!(exec(&house, &context.id, spec), ExitStatus::Exited(0));
    let seen = std::fs::read_to_string(context.sandbox.join("seen")).expect("written");
    let link = |name: &str| {
        let path = format!("/proc/{}/ns/{name}", launched.init().pid);
        std::fs::read_link(path).expect("a namespace").to_string_lossy().into_owned()
    };
    let pid = std::fs::read_link(format!("/proc/{}/ns/pid", launched.init().pid)).expect("a namespace");
    let expected = format!(
        "/mnt/mesos/sandbox\ncontainer exec\n{}\n{}\n{}\n{}\n{}\nuid=0(root) gid=0(root)\n",
        link("mnt"),
        pid.display(),
        link("ipc"),
        link("net"),
        link("user")
    );
    assert!(seen.starts_with(&expected), "{seen}\n{expected}");
    assert!(seen.ends_with("0 1 2 3 keelblock-init\n"), "{seen}");
    launched.kill_all().expect("killed");
}

#[test]
fn users_directories_and_statuses_of_an_exec_are_its_own() {
    let Some(house) = house() else { return };
    let (context, launched) = running(&house, "exec-user");
    let mut spec = shell("test $(id -u) = 33 && test $(pwd) = /tmp && test $HOME = /srv && exit 42");
    spec.user = Some("web".to_owned());
    spec.working_directory = Some("/tmp".into());
    assert_eq!(exec(&house, &context.id, spec), ExitStatus::Exited(42));
    assert_eq!(exec(&house, &context.id, shell("kill -9 $$")), ExitStatus::Signaled(9));
    let missing = ExecSpec { argv: vec!["nothing".to_owned()], ..ExecSpec::default() };
    assert!(matches!(house.launcher.exec(&context.id, missing), Err(LaunchError::CommandNotFound { .. })));
    let unfit = ExecSpec { argv: vec!["/etc/passwd".to_owned()], ..ExecSpec::default() };
    assert!(matches!(house.launcher.exec(&context.id, unfit), Err(LaunchError::CommandNotExecutable { .. })));
    let mut spec = shell("true");
    spec.user = Some("mallory".to_owned());
    assert!(house.launcher.exec(&context.id, spec).is_err());
    launched.kill_all().expect("killed");
}

#[test]
fn an_exec_can_be_signalled_and_killed_by_itself() {
    let Some(house) = house() else { return };
    let (context, launched) = running(&house, "exec-kill");
    for signal in [15, 9] {
        let command = house.launcher.exec(&context.id, shell("exec sleep 1000")).expect("executed");
        command.signal(signal).expect("sent");
        assert_eq!(block_on(command.wait()), ExitStatus::Signaled(signal));
    }
    let command = house.launcher.exec(&context.id, shell("exec sleep 1000")).expect("executed");
    command.kill_all().expect("killed");
    assert_eq!(block_on(command.wait()), ExitStatus::Signaled(9));
    assert!(house.launcher.is_alive(&launched.init()));
    // And it ends with the container.
    let command = house.launcher.exec(&context.id, shell("exec sleep 1000")).expect("executed");
    launched.kill_all().expect("killed");
    assert_eq!(block_on(command.wait()), ExitStatus::Signaled(9));
}

#[test]
fn nothing_is_executed_in_a_container_that_is_gone() {
    let Some(house) = house() else { return };
    let (context, launched) = running(&house, "exec-gone");
    launched.kill_all().expect("killed");
    let gone = |error| matches!(error, Err(LaunchError::NotRunning { .. }));
    assert!(gone(house.launcher.exec(&context.id, shell("true")).map(drop)));
    assert!(gone(house.launcher.exec(&"never-was".parse().expect("an ID"), shell("true")).map(drop)));
    assert!(gone(house.launcher.signal(&context.id, &launched.init(), 15)));
    house.launcher.kill_orphan(&context.id, &launched.init()).expect("nothing to kill");
}

#[test]
fn another_launcher_can_signal_and_wait_and_sees_the_exact_status() {
    let Some(house) = house() else { return };
    let context =
        house.context("foreign", line("trap 'exit 77' TERM; echo ready; while :; do sleep 0.01; done"));
    let launched = house.launch(&context).expect("launched");
    while !output(&context).contains("ready") {
        std::thread::yield_now();
    }
    let other = another(&house);
    let waiting = other.wait(&context.id, &launched.init());
    other.signal(&context.id, &launched.init(), 15).expect("sent");
    assert_eq!(block_on(waiting).expect("waited"), Some(ExitStatus::Exited(77)));
    assert_eq!(block_on(launched.wait()), ExitStatus::Exited(77));
    let late = block_on(other.wait(&context.id, &launched.init())).expect("waited");
    assert_eq!(late, Some(ExitStatus::Exited(77)), "its status is still there");
    let never = block_on(other.wait(&"never-was".parse().expect("an ID"), &launched.init()));
    assert_eq!(never.expect("waited"), None);
}

#[test]
fn an_orphan_is_killed_and_a_later_process_of_its_number_is_not() {
    let Some(house) = house() else { return };
    let (context, launched) = running(&house, "orphan");
    let other = another(&house);
    let mut later = launched.init();
    later.start_ticks += 1;
    other.kill_orphan(&context.id, &later).expect("nobody");
    assert!(!other.is_alive(&later));
    assert!(other.is_alive(&launched.init()));
    let mut before = launched.init();
    before.boot_id = "another boot".to_owned();
    assert!(!other.is_alive(&before));
    other.kill_orphan(&context.id, &launched.init()).expect("killed");
    assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(9));
    assert!(!other.is_alive(&launched.init()));
}

/// Everything a terminal says until it is closed.
fn read_all(master: &mut File) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}

#[test]
fn a_terminal_is_the_containers_own_and_controls_it() {
    let Some(house) = house() else { return };
    let text = "test -t 0 && test -t 1 && test -t 2 && tty; echo $TERM; stty size; ls -i /dev/console | wc -l; \
                test -c /dev/console && echo console; read word; echo got $word; sleep 1000";
    let mut context = house.context("tty", line(text));
    context.tty = true;
    context.command.user = Some("web".to_owned());
    let launched = house.launch(&context).expect("launched");
    let master = house.launcher.terminal(&context.id).expect("a terminal");
    assert!(house.launcher.terminal(&context.id).is_none(), "to whoever asks first");
    let mut master = File::from(master);
    master.write_all(b"hello\n").expect("written");
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.contains("got hello") {
        let length = master.read(&mut buffer).expect("output");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]).replace('\r', ""));
    }
    assert!(
        seen.contains("/dev/pts/0\n") && seen.contains("xterm\n") && seen.contains("console\n"),
        "{seen}"
    );
    // Ctrl-C is a signal to the foreground: it is the controlling terminal.
    master.write_all(&[3]).expect("written");
    assert_eq!(block_on(launched.wait()), ExitStatus::Signaled(2));
    read_all(&mut master);
}

#[test]
fn an_exec_can_have_a_terminal() {
    let Some(house) = house() else { return };
    let (context, launched) = running(&house, "exec-tty");
    let mut spec = shell("tty; echo $TERM; exit 6");
    spec.tty = true;
    let command = house.launcher.exec(&context.id, spec).expect("executed");
    let mut master = File::from(house.launcher.terminal_of(&command.init()).expect("a terminal"));
    assert_eq!(block_on(command.wait()), ExitStatus::Exited(6));
    assert_eq!(read_all(&mut master), "/dev/pts/0\nxterm\n");
    launched.kill_all().expect("killed");
}

/// Not a test of its own: the next one runs it on a terminal.
#[test]
fn helper_that_attaches_a_terminal() {
    if std::env::var_os("KEELBLOCK_TEST_ATTACH").is_none() {
        return;
    }
    let Some(house) = house() else { return };
    let text = "stty size; read word; echo got $word; while test \"$(stty size)\" = '33 77'; do sleep 0.01; done; \
                stty size; exec sleep 1000";
    let mut context = house.context("attach", line(text));
    context.tty = true;
    let launched = house.launch(&context).expect("launched");
    let master = house.launcher.terminal(&context.id).expect("a terminal");
    let terminal = Terminal::attach(master).expect("attached");
    let status = block_on(launched.wait());
    terminal.finish();
    println!("ended {status:?}");
}

#[test]
fn the_callers_terminal_is_raw_while_attached_and_as_before_afterwards() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
    if !rustix::process::geteuid().is_root() {
        return launch_support::skipped("needs root");
    }
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
    let size = |rows, columns| {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("a size");
    };
    size(33, 77);
    let slave = File::options().read(true).write(true).open(&name).expect("its other end");
    let own = || slave.try_clone().expect("a descriptor");
    // `setsid -c`: changes of size are signalled to the foreground of the controlling terminal.
    let mut helper = Command::new("setsid");
    helper.arg("-c").arg(std::env::current_exe().expect("this program"));
    helper.args(["--exact", "helper_that_attaches_a_terminal", "--nocapture"]);
    helper.env("KEELBLOCK_TEST_ATTACH", "1").stdin(own()).stdout(own()).stderr(own());
    let Ok(mut helper) = helper.spawn() else { return launch_support::skipped("needs setsid") };
    let mut seen = String::new();
    let mut ours = File::from(master.try_clone().expect("a descriptor"));
    let mut await_text = |text: &str| {
        let mut buffer = [0; 512];
        while !seen.contains(text) {
            let length = ours.read(&mut buffer).expect("output");
            assert!(length > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]).replace('\r', ""));
            if seen.contains("skipped") {
                return false;
            }
        }
        true
    };
    if !await_text("33 77") {
        helper.wait().expect("reaped");
        return launch_support::skipped("the helper skipped");
    }
    let is_canonical = || {
        let modes = tcgetattr(&slave).expect("a mode").local_modes;
        modes.contains(LocalModes::ICANON) && modes.contains(LocalModes::ISIG)
    };
    assert!(!is_canonical());
    let mut keys = File::from(master.try_clone().expect("a descriptor"));
    keys.write_all(b"word\r").expect("typed");
    assert!(await_text("got word"));
    size(11, 22);
    assert!(await_text("11 22"));
    // Ctrl-C is the container's.
    keys.write_all(&[3]).expect("typed");
    assert!(await_text("ended Signaled(2)"));
    assert!(helper.wait().expect("reaped").success());
    assert!(is_canonical());
}

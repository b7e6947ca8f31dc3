//! Runs the `keelblock` binary in a room of its own: a temporary directory with a work dir in it.
//!
//! A failing expectation prints the command, the tree of the room, standard output and standard error, so that a
//! failure on another machine can be read without repeating it. Every command has a deadline: a hanging binary is
//! a failure that says what it hung on, not a test run that never ends. Leaving the room kills and unmounts what a
//! failed test left, so that the next one starts clean.

#![allow(dead_code, unused_macros, unused_imports, reason = "each file of tests uses its part of this")]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a single command may take before it counts as hanging. Generous: the test machine may be busy.
const DEADLINE: Duration = Duration::from_secs(240);

/// How long a process that was killed may take to vanish from `/proc`.
const GONE_DEADLINE: Duration = Duration::from_secs(20);

/// Where the binary under test lies.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_keelblock"))
}

/// Whether this process is root: what mounts in the caller's namespace need.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether missing tools are failures: the place that must prove everything sets `CI=true`.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// Says why a test proves nothing here. Where everything must be proved, that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(!is_ci(), "CI must prove this, but {why}");
    eprintln!("skipped: {why}");
}

/// Leaves the test, saying so, unless it runs as root.
macro_rules! need_root {
    () => {
        if !crate::support::binary::is_root() {
            crate::support::binary::skip("this needs root");
            return;
        }
    };
}
pub(crate) use need_root;

/// Leaves the test, saying so, unless these programs are installed.
macro_rules! need_programs {
    ($($program:expr),+ $(,)?) => {
        for program in [$($program),+] {
            if crate::support::binary::find_program(program).is_none() {
                crate::support::binary::skip(&format!("{program} is not installed"));
                return;
            }
        }
    };
}
pub(crate) use need_programs;

/// A program in `PATH`, or where Debian keeps those of the system.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

/// Runs another program to its end and gives its standard output; panics with everything it said otherwise.
pub(crate) fn run_program<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let file = find_program(program).unwrap_or_else(|| panic!("{program} is not installed"));
    let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let output = Command::new(file)
        .args(&args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} could not be run: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?} ended with {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A temporary directory for one test, with the work dir of its `keelblock` commands below it.
pub(crate) struct Room {
    dir: PathBuf,
    flags: Vec<OsString>,
}

impl Room {
    /// A new one, on tmpfs where there is one. Its path occurs nowhere else on the machine, which is how
    /// mounts and processes are known to belong to it.
    pub(crate) fn new(name: &str) -> Self {
        let below = ["/dev/shm"]
            .map(PathBuf::from)
            .into_iter()
            .find(|dir| fs::metadata(dir).is_ok_and(|m| m.is_dir()) && tempfile::tempfile_in(dir).is_ok())
            .unwrap_or_else(std::env::temp_dir);
        Self::below(&below, name)
    }

    /// A new one in this directory: for tests that care about the filesystem.
    pub(crate) fn below(parent: &Path, name: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix(&format!("keelblock-{name}-"))
            .tempdir_in(parent)
            .expect("a temporary directory can be made")
            .keep();
        // Other users look in here too, in the tests of rootless containers.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("our own directory");
        Self { dir, flags: Vec::new() }
    }

    /// Adds an agent flag to all commands of this room.
    pub(crate) fn with_flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// A path below it.
    pub(crate) fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.dir.join(below)
    }

    /// The work dir of its commands; made by the first of them.
    pub(crate) fn work_dir(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// A `keelblock` command on the work dir of this room.
    pub(crate) fn keelblock<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation<'_> {
        let mut invocation = self.bare([] as [&str; 0]);
        invocation.args.push("--work_dir".into());
        invocation.args.push(self.work_dir().into());
        invocation.args.extend(self.flags.iter().cloned());
        invocation.args(args)
    }

    /// A `keelblock` command with nothing but these arguments: for tests of the flags themselves.
    pub(crate) fn bare<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation<'_> {
        Invocation {
            room: self,
            program: binary().into(),
            before: Vec::new(),
            args: Vec::new(),
            envs: Vec::new(),
            stdin: None,
            keep_stdin: false,
        }
        .args(args)
    }

    /// Mounts in this process's namespace that belong to this room.
    pub(crate) fn mounts(&self) -> BTreeSet<String> {
        let name = self.dir.file_name().expect("a room has a name").to_string_lossy().into_owned();
        fs::read_to_string("/proc/self/mountinfo")
            .expect("/proc is mounted")
            .lines()
            .filter(|line| line.contains(&name))
            .map(str::to_owned)
            .collect()
    }

    /// Processes that belong to this room: those with its path on their command line, and those in another
    /// mount namespace that show one of its directories there.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let name = self.dir.file_name().expect("a room has a name").to_string_lossy().into_owned();
        let ours = fs::read_link("/proc/self/ns/mnt").ok();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let dir = entry.path();
            let Ok(cmdline) = fs::read(dir.join("cmdline")) else { continue };
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            let named = cmdline.contains(&name);
            let shown = || {
                let theirs = fs::read_link(dir.join("ns/mnt")).ok();
                theirs.is_some()
                    && theirs != ours
                    && fs::read_to_string(dir.join("mountinfo")).is_ok_and(|info| info.contains(&name))
            };
            let dead = || {
                fs::read_to_string(dir.join("stat"))
                    .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
            };
            if pid as u32 != std::process::id() && (named || shown()) && !dead() {
                found.push((pid, cmdline));
            }
        }
        found
    }

    /// What is left of commands that ended: mounts, processes, entries of staging and gc directories, containers.
    /// Empty when they cleaned up after themselves. Processes that the kernel is still taking down are waited
    /// for, and so are those of other tests that show our mounts for the moment before they pivot away, and the
    /// process that removes what was moved away, until it has ended; then nothing may be left of that.
    pub(crate) fn leftovers(&self) -> Leftovers {
        let deadline = Instant::now() + GONE_DEADLINE;
        loop {
            let left = Leftovers {
                mounts: self.mounts().into_iter().collect(),
                processes: self.processes(),
                staged: self.staged(),
                containers: self.container_dirs(),
            };
            // It stands back for whatever else this machine does.
            let collects = left.processes.iter().any(|(_, line)| line.contains(" collect "));
            let patience = if collects { DEADLINE } else { Duration::ZERO };
            if left.processes.is_empty() || Instant::now() > deadline + patience {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Panics with a list if anything is left (see [`Room::leftovers`]).
    #[track_caller]
    pub(crate) fn expect_no_leftovers(&self) {
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind:\n{left}\nthe room:\n{}", self.tree());
    }

    /// What lies in staging directories of the work dir.
    fn staged(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.work_dir()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            let is_staging =
                dir.file_name().is_some_and(|name| ["staging", "gc"].iter().any(|known| name == *known));
            for entry in entries.flatten() {
                if is_staging {
                    found.push(entry.path());
                }
                // Not into layers and root filesystems: an image may well have a directory named tmp.
                let foreign = ["rootfs", "tree", "mounts", "rootfses", "sandbox"]
                    .iter()
                    .any(|n| entry.file_name() == *n);
                if !foreign && entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth(&self.dir, &dir) < 5
                {
                    dirs.push(entry.path());
                }
            }
        }
        found
    }

    /// Directories of containers, as the work dir has them.
    fn container_dirs(&self) -> Vec<PathBuf> {
        ["containers", "provisioner/containers"]
            .iter()
            .filter_map(|below| fs::read_dir(self.work_dir().join(below)).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    }

    /// The directory tree of the room, three hundred lines of it at most.
    pub(crate) fn tree(&self) -> String {
        let mut text = String::new();
        let mut lines = 0;
        list(&self.dir, 0, &mut text, &mut lines);
        text
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for _ in 0..8 {
            let mounts = self.mounts();
            let points: Vec<_> = mounts.iter().filter_map(|line| line.split(' ').nth(4)).collect();
            for point in &points {
                let _ = nix::mount::umount2(Path::new(point), nix::mount::MntFlags::MNT_DETACH);
            }
            if points.is_empty() {
                break;
            }
        }
        if std::env::var_os("KEELBLOCK_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
        } else if fs::remove_dir_all(&self.dir).is_err() {
            // What user namespaces made without root has owners of its own: only root can remove it all.
            let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(&self.dir).status();
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn depth(top: &Path, dir: &Path) -> usize {
    dir.strip_prefix(top).map_or(0, |below| below.components().count())
}

fn list(dir: &Path, level: usize, text: &mut String, lines: &mut usize) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        *lines += 1;
        if *lines > 300 {
            return;
        }
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        let _ = writeln!(
            text,
            "{:level$}{} {:o} {} {}",
            "",
            entry.file_name().to_string_lossy(),
            meta.mode(),
            meta.uid(),
            meta.len(),
            level = level * 2
        );
        if meta.is_dir() && level < 7 {
            list(&entry.path(), level + 1, text, lines);
        }
    }
}

/// What ended commands left; see [`Room::leftovers`].
#[derive(Debug)]
pub(crate) struct Leftovers {
    pub(crate) mounts: Vec<String>,
    pub(crate) processes: Vec<(i32, String)>,
    pub(crate) staged: Vec<PathBuf>,
    pub(crate) containers: Vec<PathBuf>,
}

impl Leftovers {
    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.mounts.is_empty()
            && self.processes.is_empty()
            && self.staged.is_empty()
            && self.containers.is_empty()
    }
}

impl std::fmt::Display for Leftovers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for mount in &self.mounts {
            writeln!(f, "  mount: {mount}")?;
        }
        for (pid, cmdline) in &self.processes {
            writeln!(f, "  process {pid}: {cmdline}")?;
        }
        for path in self.staged.iter().chain(&self.containers) {
            writeln!(f, "  on disk: {}", path.display())?;
        }
        Ok(())
    }
}

/// Open descriptors of this process, by what they point to: for tests that run the library in-process.
pub(crate) fn open_descriptors() -> Vec<String> {
    let mut open: Vec<String> = fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| !target.ends_with("/fd"))
        .collect();
    open.sort();
    open
}

/// A command about to be run.
pub(crate) struct Invocation<'r> {
    room: &'r Room,
    program: PathBuf,
    before: Vec<OsString>,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    keep_stdin: bool,
}

impl<'r> Invocation<'r> {
    /// More arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One more argument.
    pub(crate) fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    /// Sets a variable for it.
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// What it reads on standard input; nothing by default.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Leaves its standard input open, for [`Running::write`].
    pub(crate) fn keep_stdin(mut self) -> Self {
        self.keep_stdin = true;
        self
    }

    /// Runs another file in place of the binary: a copy that another user may execute.
    pub(crate) fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// Has it run by another program: `setpriv`, `script`.
    pub(crate) fn through<S: AsRef<OsStr>>(mut self, before: impl IntoIterator<Item = S>) -> Self {
        self.before = before.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        self
    }

    /// The command line, quoted for a shell.
    pub(crate) fn shell_line(&self) -> String {
        let quote = |arg: &OsString| format!("'{}'", arg.to_string_lossy().replace('\'', r"'\''"));
        let program = OsString::from(&self.program);
        self.before.iter().chain([&program]).chain(&self.args).map(quote).collect::<Vec<_>>().join(" ")
    }

    fn command(&self) -> Command {
        let mut words = self.before.iter().cloned().chain([OsString::from(&self.program)]);
        let mut command = Command::new(words.next().expect("there is a program"));
        command.args(words).args(&self.args);
        // Whatever the developer has set must not leak into what is tested.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KEELBLOCK_") {
                command.env_remove(name);
            }
        }
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.room.path());
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Outcome<'r> {
        self.start().wait()
    }

    /// Starts it; its output is collected meanwhile.
    #[track_caller]
    pub(crate) fn start(mut self) -> Running<'r> {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A process group of its own: a terminal's ctrl-C at the test run is not part of any test.
        command.process_group(0);
        let line = self.shell_line();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        let mut stdin = child.stdin.take().expect("it is piped");
        let stdin = match self.stdin.take() {
            None if self.keep_stdin => Some(stdin),
            bytes => {
                // The reader may end before it has read everything: that is its right.
                std::thread::spawn(move || drop(stdin.write_all(&bytes.unwrap_or_default())));
                None
            }
        };
        let stdout = Stream::collect(child.stdout.take().expect("it is piped"));
        let stderr = Stream::collect(child.stderr.take().expect("it is piped"));
        Running { room: self.room, line, child, stdin, stdout, stderr }
    }
}

/// Output of a running command, read by a thread so that the command never waits for us.
#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn collect(mut from: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let theirs = stream.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let n = from.read(&mut buffer).unwrap_or(0);
                let mut collected = theirs.0.0.lock().expect("no panic while it is held");
                collected.bytes.extend_from_slice(&buffer[..n]);
                collected.ended = n == 0;
                theirs.0.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// Waits until `enough` is content with what came, or the stream ended, or time is up.
    fn wait_until(&self, limit: Duration, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let collected = self.0.0.lock().expect("no panic while it is held");
        let waiting = |collected: &mut Collected| !collected.ended && !enough(&collected.bytes);
        let (collected, _) =
            self.0.1.wait_timeout_while(collected, limit, waiting).expect("no panic while it is held");
        collected.bytes.clone()
    }
}

/// A command under way.
pub(crate) struct Running<'r> {
    room: &'r Room,
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

impl<'r> Running<'r> {
    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends it a signal.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.line));
    }

    /// Kills it as a power cut would: nothing of its own runs any more. What it started lives on.
    #[track_caller]
    pub(crate) fn kill_nine(mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().expect("it is our child");
        assert_eq!(status.signal(), Some(9), "{} was not there any more to be killed: {status}", self.line);
    }

    /// Kills it like [`Running::kill_nine`], unless it has ended already.
    pub(crate) fn kill_if_running(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Writes to its standard input, which stays open (see [`Invocation::keep_stdin`]).
    #[track_caller]
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("keep_stdin was asked for");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("it reads its standard input");
    }

    /// Waits until its standard output holds this text; panics when it ends without.
    #[track_caller]
    pub(crate) fn wait_for_output(&self, text: &str) {
        let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        let stdout = self.stdout.wait_until(DEADLINE, holds);
        assert!(
            holds(&stdout),
            "{}\nnever said {text:?}\nstdout: {}\nstderr: {}",
            self.line,
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&self.stderr.wait_until(Duration::from_millis(200), |_| false))
        );
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Outcome<'r> {
        drop(self.stdin.take());
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break Some(status);
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        // Something it left behind may hold the pipes open: then what came so far is what there is.
        let rest = Duration::from_secs(5);
        let outcome = Outcome {
            room: self.room,
            line: self.line,
            stdout: self.stdout.wait_until(rest, |_| false),
            stderr: self.stderr.wait_until(rest, |_| false),
            status,
        };
        assert!(status.is_some(), "still running after {DEADLINE:?}{outcome}");
        outcome
    }
}

/// A command that ended.
pub(crate) struct Outcome<'r> {
    room: &'r Room,
    line: String,
    status: Option<ExitStatus>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Outcome<'_> {
    /// Panics unless it ended with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }

    /// Panics unless it ended with this status.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.exit_code(), Some(code), "not the exit status expected{self}");
        self
    }

    /// Its exit status; `None` when a signal ended it.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Panics unless it printed exactly this.
    #[track_caller]
    pub(crate) fn printed(self, text: &str) -> Self {
        assert_eq!(self.stdout(), text, "not the standard output expected{self}");
        self
    }

    /// Panics unless standard error holds this text.
    #[track_caller]
    pub(crate) fn complained(self, text: &str) -> Self {
        assert!(self.stderr().contains(text), "standard error does not hold {text:?}{self}");
        self
    }

    /// Panics unless it is an error of keelblock itself: status 125, one line on standard error besides what the log warns of
    /// attempts that come after another, and that names each of these.
    #[track_caller]
    pub(crate) fn failed_naming(self, names: &[&str]) -> Self {
        let outcome = self.code(125);
        let stderr = outcome.stderr();
        let is_attempt = |line: &str| {
            line.contains(" WARN ")
                && ["asked again after", "asked for again after", "fetched once more"]
                    .iter()
                    .any(|words| line.contains(words))
        };
        let is_reason = |line: &&str| !line.trim().is_empty() && !is_attempt(line);
        let lines: Vec<_> = stderr.lines().filter(is_reason).collect();
        assert_eq!(lines.len(), 1, "the reason is not one line{outcome}");
        for name in names {
            assert!(lines[0].contains(name), "the reason does not name {name:?}{outcome}");
        }
        assert!(outcome.stdout.is_empty(), "a failure printed something{outcome}");
        outcome
    }

    /// Standard output as it came.
    pub(crate) fn stdout_bytes(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard output.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as exactly one JSON document; panics with the reason when it is anything else.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("standard output is not one JSON document: {error}{self}"))
    }
}

impl std::fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.map_or_else(|| "killed by the test".to_owned(), |status| status.to_string());
        write!(
            f,
            "\n==== command ====\n{}\n==== status ====\n{status}\n==== room {} ====\n{}\
             ==== stdout ====\n{}\n==== stderr ====\n{}\n====",
            self.line,
            self.room.path().display(),
            self.room.tree(),
            self.stdout(),
            self.stderr()
        )
    }
}

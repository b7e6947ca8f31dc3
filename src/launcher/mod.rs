//! Starts processes: from a `LaunchPlan` to an executed command.
//!
//! A launch makes two processes. The first, the supervisor, is a clone of this process: it goes through the steps
//! of the plan, forks the command, and stays as PID 1 of the container's pid namespace to forward signals, reap
//! and record how the command ended. Between clone and exec there are system calls only (`sys::child`), so that no
//! helper program is needed and any program with threads can launch.
//!
//! In order: the plan is compiled (`program`), pipes and the status file are made, the launching thread clones
//! (`thread`), the supervisor waits. [`Launched::release`] lets it go on: namespaces; mounts cut off from the
//! host's; sources opened and filesystems made, detached; pivot_root; everything put in place inside; terminal;
//! working directory; fork. The command: session, streams, capabilities, groups, user, no_new_privs, exec.
//!
//! Needs Linux 5.12 (mount_setattr); there is no way around for older kernels. This room decides nothing about a
//! container: that is the isolators' part. On disk it has `<run_dir>/<id>/` (`record`).

mod channels;
mod error;
mod exec;
mod hooks;
mod host;
mod launched;
mod program;
mod reaper;
mod record;
mod search;
mod terminal;
mod thread;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::BoxFuture;
use keelblock_actors::container::{ContainerId, ExitStatus, ProcessIdentity};
use keelblock_actors::error::LaunchError;
use keelblock_actors::launch::{HookTime, LaunchPlan, Namespace};
use keelblock_actors::ports::{ExecSpec, Launched, Launcher};
use rustix::net::SocketType;
use slog::{Logger, debug, o};

pub use error::LauncherError;
pub use launched::LinuxLaunched;
pub use search::PATH_DEFAULT;
pub use terminal::{Terminal, TerminalError};

use crate::limits::Limits;
use crate::sys::child::{Op, Program};
use crate::sys::{clone, mount_bits, pidfd, process};
use channels::{Channels, null, socket_pair, streams};
use hooks::Hooks;
use host::Host;
use launched::{Ending, Pending, PendingHooks, Words};
use program::{Command, Ops};
use record::{Files, LaunchRecord};

/// The launcher of this process. See the module.
pub struct LinuxLauncher {
    run_dir: PathBuf,
    host: Host,
    wipe: Vec<(usize, usize)>,
    launches: Mutex<HashMap<(u32, u64), Weak<LinuxLaunched>>>,
    user_file_bytes_max: u64,
    log: Logger,
}

impl LinuxLauncher {
    /// A launcher that keeps what others must know of containers in `<run_dir>/<id>/`.
    ///
    /// In a user namespace: make it after `rootless::enter`, as it looks at what this process may do.
    pub fn new(run_dir: &Path, log: &Logger) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            host: Host::find(),
            wipe: process::own_arguments(),
            launches: Mutex::default(),
            user_file_bytes_max: Limits::default().user_file_bytes_max,
            log: log.new(o!("actor" => "launcher")),
        }
    }

    /// The same with another limit on the bytes of a container's `/etc/passwd` and `/etc/group`
    /// (`--user_file_bytes_max`).
    pub fn with_user_file_bytes_max(self, bytes: u64) -> Self {
        Self { user_file_bytes_max: bytes, ..self }
    }

    /// The master of the terminal of a container's command, to whoever asks first.
    pub fn terminal(&self, container: &ContainerId) -> Option<OwnedFd> {
        let launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        launches
            .values()
            .filter_map(Weak::upgrade)
            .filter(|launched| launched.container == *container && launched.is_of_start())
            .find_map(|launched| launched.take_terminal())
    }

    /// The master of the terminal of this launch or exec, to whoever asks first.
    pub fn terminal_of(&self, init: &ProcessIdentity) -> Option<OwnedFd> {
        let launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        launches.get(&(init.pid, init.start_ticks))?.upgrade()?.take_terminal()
    }

    fn remember(&self, launched: &Arc<LinuxLaunched>) {
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        launches.retain(|_, launched| launched.strong_count() > 0);
        let key = (launched.init.pid, launched.init.start_ticks);
        launches.insert(key, Arc::downgrade(launched));
    }

    /// Clones a supervisor for compiled ops.
    fn spawn(&self, container: &ContainerId, launch: Launch) -> Result<Arc<LinuxLaunched>, LauncherError> {
        let (release, release_theirs) = socket_pair(SocketType::STREAM)?;
        let (report, report_theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|source| LauncherError::Channel { what: "a pipe", source: source.into() })?;
        let Launch { before_fork, mut task, slots, command, pid_namespace, kill_leftovers, hooks, .. } =
            launch;
        let mut keep = launch.keep;
        let words = Arc::new(Words {
            before_fork: before_fork.texts,
            task: std::mem::take(&mut task.texts),
            command: command.name.clone(),
            hooks: hooks.names(),
        });
        let has_hooks = !hooks.is_empty();
        let late = if hooks.has_after() {
            let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|source| LauncherError::Channel { what: "a pipe", source: source.into() })?;
            keep.push(theirs);
            Some(ours)
        } else {
            None
        };
        let others: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
        let (task, command, story) = match has_hooks {
            false => (task, command, None),
            true => {
                let theirs = late.as_ref().and(others.last()).copied().unwrap_or(-1);
                (Ops::default(), Command::none(), Some(hooks.story(task, command, theirs)?))
            }
        };
        let mut program = Program {
            before_fork: before_fork.ops,
            task: task.ops,
            candidates: command.candidates,
            argv: command.argv,
            environment: command.environment,
            story,
            slots: vec![-1; slots],
            release: launched::raw(&release_theirs),
            report: launched::raw(&report_theirs),
            status: launch.status.as_raw_fd(),
            others,
            close: Vec::new(),
            first_in_namespace: pid_namespace,
            kill_leftovers,
            supervisor_capabilities: self.host.permitted & CAP_KILL,
            wipe: self.wipe.clone(),
        };
        let cloned = thread::run(move || {
            let cloned = clone::clone(&mut program);
            // Their ends are closed here only now that the child has its own.
            drop((keep, launch.status, release_theirs, report_theirs));
            cloned
        });
        let (pid, process) = cloned.and_then(|cloned| cloned).map_err(LauncherError::clone)?;
        let process = Arc::new(process);
        let identity = process::state_and_start(pid).map(|(_, start_ticks)| ProcessIdentity {
            pid,
            start_ticks,
            boot_id: process::boot_id().to_owned(),
        });
        let watched = reaper::watch(process.clone(), launch.status_read);
        let (init, ended) = match (identity, watched) {
            (Ok(init), Ok(ended)) => (init, ended),
            (Err(source), _) => {
                // Nobody can release it any more: it ends. A watch, if there is one, takes it.
                drop(release);
                return Err(LauncherError::Proc { pid, source });
            }
            (_, Err(source)) => {
                drop(release);
                let _ = pidfd::await_end(&*process);
                pidfd::reap(&*process);
                return Err(LauncherError::Channel { what: "a watch on the child", source });
            }
        };
        debug!(self.log, "process made"; "container" => %container, "pid" => pid);
        let record =
            launch.record.map(|(files, record)| (files, LaunchRecord { init: init.clone(), ..record }));
        let (tell, started) = tokio::sync::watch::channel((!has_hooks).then_some(Ok(())));
        let hooks = has_hooks.then(|| PendingHooks { late, started: tell, log: self.log.clone() });
        let launched = Arc::new(LinuxLaunched {
            container: container.clone(),
            init,
            process,
            ends_all: Ending { pid_namespace, hooks: has_hooks },
            of_start: record.is_some(),
            words,
            pending: Mutex::new(Some(Pending { release, report, terminal: launch.terminal, record, hooks })),
            started,
            terminal: Mutex::new(None),
            ended,
        });
        self.remember(&launched);
        Ok(launched)
    }

    fn start_plan(
        &self,
        container: &ContainerId,
        plan: &LaunchPlan,
    ) -> Result<Arc<LinuxLaunched>, LauncherError> {
        let files = Files::new(&self.run_dir, container);
        let (status, status_read) = files.make_status()?;
        let mut keep = Vec::new();
        let mut channels = Channels::default();
        let terminal = if plan.tty {
            let (ours, theirs) = socket_pair(SocketType::DGRAM)?;
            channels.terminal = Some(launched::raw(&theirs));
            channels.size = terminal::callers_size();
            keep.push(theirs);
            if plan.hooks.iter().any(|hook| hook.when == HookTime::PostStop) {
                let null = null()?;
                channels.null = Some(launched::raw(&null));
                keep.push(null);
            }
            Some(ours)
        } else {
            channels.streams = streams(plan, &mut keep)?;
            None
        };
        let compiled = program::compile(plan, &self.host, channels)?;
        let pid_namespace = plan.namespaces.contains(&Namespace::Pid);
        let record = LaunchRecord {
            init: nobody(),
            task: None,
            rootfs: plan.rootfs.clone(),
            namespaces: record::names(&plan.namespaces),
            credentials: plan.credentials.clone(),
            capabilities: plan.capabilities,
            no_new_privs: plan.no_new_privs,
            environment: plan.environment.clone(),
            working_directory: plan.working_directory.clone(),
            hooks: !compiled.hooks.is_empty(),
        };
        let launch = Launch {
            before_fork: compiled.before_fork,
            task: compiled.task,
            slots: compiled.slots,
            command: compiled.command,
            pid_namespace,
            kill_leftovers: !pid_namespace,
            status: status.into(),
            status_read,
            keep,
            terminal,
            record: Some((files, record)),
            hooks: compiled.hooks,
        };
        self.spawn(container, launch)
    }

    /// A live supervisor by descriptor; `None` = it is gone, or another process has its number.
    fn open(&self, init: &ProcessIdentity) -> Option<OwnedFd> {
        // The descriptor first: a process that is the right one afterwards was it all the time.
        let process = pidfd::open(init.pid).ok()?;
        self.is_alive(init).then_some(process)
    }
}

/// What a clone needs.
struct Launch {
    before_fork: Ops,
    task: Ops,
    slots: usize,
    command: Command,
    pid_namespace: bool,
    kill_leftovers: bool,
    status: OwnedFd,
    status_read: File,
    keep: Vec<OwnedFd>,
    terminal: Option<OwnedFd>,
    record: Option<(Files, LaunchRecord)>,
    hooks: Hooks,
}

const CAP_KILL: u64 = 1 << 5;

fn nobody() -> ProcessIdentity {
    ProcessIdentity { pid: 0, start_ticks: 0, boot_id: String::new() }
}

fn namespace_flags(namespaces: &[Namespace]) -> i32 {
    namespaces.iter().fold(0, |flags, namespace| flags | mount_bits::namespace(*namespace))
}

impl Launcher for LinuxLauncher {
    fn start(&self, container: &ContainerId, plan: LaunchPlan) -> Result<Arc<dyn Launched>, LaunchError> {
        let launched = self.start_plan(container, &plan).map_err(|error| failed(container, error))?;
        Ok(launched)
    }

    fn exec(&self, container: &ContainerId, exec: ExecSpec) -> Result<Arc<dyn Launched>, LaunchError> {
        let launched = self.exec_spec(container, &exec)?;
        launched.release()?;
        Ok(launched)
    }

    fn signal(
        &self,
        container: &ContainerId,
        init: &ProcessIdentity,
        signal: i32,
    ) -> Result<(), LaunchError> {
        let not_running = || LaunchError::NotRunning { container: container.clone() };
        let process = self.open(init).ok_or_else(not_running)?;
        let record = Files::new(&self.run_dir, container).read().map_err(|error| failed(container, error))?;
        let ending = record.as_ref().map_or(Ending::DEFAULT, LaunchRecord::ending);
        launched::send(&process, init.pid, ending, signal).map_err(|error| failed(container, error))
    }

    fn wait(
        &self,
        container: &ContainerId,
        init: &ProcessIdentity,
    ) -> BoxFuture<'static, Result<Option<ExitStatus>, LaunchError>> {
        // In this order: whoever removes the container closes our way to its status, but not one we hold.
        let files = Files::new(&self.run_dir, container);
        let watched = files.status().map_err(|error| failed(container, error)).and_then(|status| {
            let Some(status) = status else { return Ok(Err(None)) };
            let Some(process) = self.open(init) else {
                let ours = files.read().is_ok_and(|record| record.is_some_and(|record| record.init == *init));
                return Ok(Err(reaper::read_status(&status).filter(|_| ours)));
            };
            let watched = reaper::watch(Arc::new(process), status);
            let watched =
                watched.map_err(|source| LauncherError::Channel { what: "a watch on the container", source });
            watched.map(Ok).map_err(|error| failed(container, error))
        });
        Box::pin(async move {
            Ok(match watched? {
                Ok(ended) => Some(launched::wait_for(ended).await),
                Err(status) => status,
            })
        })
    }

    fn kill_orphan(&self, container: &ContainerId, init: &ProcessIdentity) -> Result<(), LaunchError> {
        let Some(process) = self.open(init) else { return Ok(()) };
        let record = Files::new(&self.run_dir, container).read().map_err(|error| failed(container, error))?;
        let ending = record.as_ref().map_or(Ending::DEFAULT, LaunchRecord::ending);
        launched::kill_all(&process, init.pid, ending).map_err(|error| failed(container, error))
    }

    fn is_alive(&self, identity: &ProcessIdentity) -> bool {
        identity.boot_id == process::boot_id()
            && process::state_and_start(identity.pid)
                .is_ok_and(|(state, start)| start == identity.start_ticks && !matches!(state, 'Z' | 'X'))
    }
}

fn failed(container: &ContainerId, source: LauncherError) -> LaunchError {
    LaunchError::Failed { container: container.clone(), source: Box::new(source) }
}

/// The op that joins namespaces of a process, for `exec`.
fn join(process: &OwnedFd, namespaces: i32) -> Op {
    Op::Join { process: launched::raw(process), namespaces }
}

//! Hooks: from a plan to what a supervisor needs of them, and from its reports to who waits or reads the log.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use keelblock_actors::container::{ContainerId, ExitStatus};
use keelblock_actors::error::LaunchError;
use keelblock_actors::launch::{HookTime, LaunchPlan};
use slog::{Logger, warn};
use tokio::sync::watch;

use super::channels::Channels;
use super::error::LauncherError;
use super::host::Host;
use super::launched::{Words, task_of};
use super::program::{self, Command, Ops};
use super::record::{Files, LaunchRecord};
use crate::sys::child::{Op, Report, Scene, Story, stage};

/// The hooks of a plan, compiled.
#[derive(Default)]
pub(super) struct Hooks {
    before: Vec<Hook>,
    after: Vec<Hook>,
    /// What the supervisor keeps as long as it has processes to make.
    capabilities: u64,
}

struct Hook {
    command: Command,
    task: Ops,
}

const CAP_KILL: u64 = 1 << 5;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// To become whom a plan names.
const CAPABILITIES: u64 = CAP_KILL | CAP_SETGID | CAP_SETUID | CAP_SETPCAP;

/// Every hook is who and where the command is, with its environment and streams. But for a terminal: its session is the
/// command's. Before that a hook only reads and writes there, after that it has none.
pub(super) fn hooks(plan: &LaunchPlan, host: &Host, channels: Channels) -> Result<Hooks, LauncherError> {
    let given = plan.capabilities.map_or(u64::MAX, |plan| plan.bounding.0 | plan.ambient.0);
    let oom = if plan.oom_score_adj.is_some() { CAP_SYS_RESOURCE } else { 0 };
    let capabilities = (given | CAPABILITIES | oom) & host.permitted;
    let mut hooks = Hooks { capabilities, ..Hooks::default() };
    for hook in &plan.hooks {
        let command = program::command(&hook.argv, None, &plan.environment)?;
        let mut task = Ops::default();
        match (plan.tty, hook.when) {
            (false, _) => {
                program::begin(&mut task);
                program::streams(plan, channels, &mut task);
            }
            (true, HookTime::PreStart) => {
                // In the supervisor's session: the first of one, it would make the terminal its own by opening it, and
                // hang it up by ending.
                task.push(Op::OwnGroup, "begin a process group");
                task.push(Op::Keyring, "make a session keyring");
                task.push(Op::TerminalStreams, "write to its terminal");
            }
            (true, HookTime::PostStop) => {
                program::begin(&mut task);
                for (to, from) in (0..3).zip(std::iter::repeat(channels.null).flatten()) {
                    task.push(Op::Stream { from, to }, format!("connect standard stream {to}"));
                }
            }
        }
        // `/dev/null` is the host's, and stays so.
        let owns_streams = !(plan.tty && hook.when == HookTime::PostStop);
        program::whoever(plan, host, owns_streams, &mut task);
        match hook.when {
            HookTime::PreStart => hooks.before.push(Hook { command, task }),
            HookTime::PostStop => hooks.after.push(Hook { command, task }),
        }
    }
    Ok(hooks)
}

impl Hooks {
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// Whether something can be told after the command has begun.
    pub(super) fn has_after(&self) -> bool {
        !self.after.is_empty()
    }

    /// Names, as reports count them.
    pub(super) fn names(&self) -> Vec<String> {
        self.before.iter().chain(&self.after).map(|hook| hook.command.name.clone()).collect()
    }

    /// All of it laid down for the supervisor.
    pub(super) fn story(self, task: Ops, command: Command, late: i32) -> Result<Story, LauncherError> {
        let scene = |ops: Ops, command: Command| Scene {
            ops: ops.ops,
            candidates: command.candidates,
            argv: command.argv,
            environment: command.environment,
        };
        let scenes = |hooks: Vec<Hook>| {
            hooks.into_iter().map(|hook| scene(hook.task, hook.command)).collect::<Vec<_>>()
        };
        let (before, after) = (scenes(self.before), scenes(self.after));
        Story::new(&before, &scene(task, command), &after, late, self.capabilities)
            .map_err(|source| LauncherError::Channel { what: "memory for hooks", source })
    }
}

/// Whether the command was executed, once that is known.
pub(super) type Started = Option<Result<(), Arc<LaunchError>>>;

/// Who listens to a supervisor that tells of hooks.
pub(super) struct Listener {
    pub(super) container: ContainerId,
    pub(super) words: Arc<Words>,
    /// At its end when the command is executed. `None` = it was.
    pub(super) report: Option<File>,
    /// Of post-stop hooks.
    pub(super) late: Option<File>,
    pub(super) started: watch::Sender<Started>,
    pub(super) record: Option<(Files, LaunchRecord)>,
    pub(super) log: Logger,
}

impl Listener {
    /// Listens on a thread of its own, until there is nothing more to be told: with post-stop hooks, as long as the
    /// supervisor lives.
    pub(super) fn listen(self) -> Result<(), LauncherError> {
        let builder = std::thread::Builder::new().name("keelblock-hooks".to_owned()).stack_size(128 << 10);
        let spawned = builder.spawn(move || self.listen_here());
        spawned.map(drop).map_err(|source| LauncherError::Channel { what: "a thread for hooks", source })
    }

    fn listen_here(mut self) {
        if let Some(report) = self.report.take() {
            self.listen_before(report);
        } else {
            let _ = self.started.send(Some(Ok(())));
        }
        let Some(mut late) = self.late else { return };
        let mut said = None;
        while let Ok(Some(report)) = next_report(&mut late) {
            // Of one that could not be executed it is told again when it has ended.
            if said.replace(report.index) == Some(report.index) {
                continue;
            }
            let (hook, ended) = self.words.hook(report);
            warn!(self.log, "a post-stop hook did not end well"; "container" => %self.container, "hook" => hook,
                "reason" => ended);
        }
    }

    fn listen_before(&mut self, mut pipe: File) {
        let (mut failure, mut begun) = (None, false);
        while let Ok(Some(report)) = next_report(&mut pipe) {
            match report.stage {
                stage::COMMAND_BEGINS => begun = true,
                // The first says it best: of a hook that could not be executed there is also told that it ended.
                _ => failure = failure.or_else(|| Some(self.words.failure(&self.container, report))),
            }
        }
        let started = match failure {
            Some(failure) => Err(Arc::new(failure)),
            None if begun => Ok(()),
            None => Err(Arc::new(LaunchError::NotRunning { container: self.container.clone() })),
        };
        if started.is_ok() {
            self.renew_record();
        }
        let _ = self.started.send(Some(started));
    }

    /// The process by which others may join the container was that of a hook.
    fn renew_record(&mut self) {
        let Some((files, mut record)) = self.record.take() else { return };
        record.task = task_of(&record.init);
        let still_ours = || matches!(files.read(), Ok(Some(known)) if known.init == record.init);
        if record.task.is_some() && still_ours() {
            let _ = files.write(&record);
        }
    }
}

/// The next report of a pipe; `None` at its end.
pub(super) fn next_report(pipe: &mut File) -> io::Result<Option<Report>> {
    let mut bytes = [0; size_of::<Report>()];
    match pipe.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(Report::from_bytes(bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

impl Words {
    /// Which hook a report is about, and what became of it.
    pub(super) fn hook(&self, report: Report) -> (&str, String) {
        let name = self.hooks.get(report.index as usize).map_or("unknown", String::as_str);
        let ended = match report.stage {
            stage::HOOK_ENDED => match ExitStatus::from_wait_status(report.errno) {
                ExitStatus::Exited(code) => format!("exited with {code}"),
                ExitStatus::Signaled(signal) => format!("was ended by signal {signal}"),
            },
            _ => format!("could not be executed: {}", io::Error::from_raw_os_error(report.errno)),
        };
        (name, ended)
    }
}

//! A launch from its clone on: released, waited for, signalled, killed.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use keelblock_actors::container::{ContainerId, ExitStatus, ProcessIdentity};
use keelblock_actors::error::LaunchError;
use keelblock_actors::ports::Launched;
use nix::errno::Errno;
use slog::Logger;
use tokio::sync::watch;

use super::error::LauncherError;
use super::hooks::{Listener, Started, next_report};
use super::reaper::{Ended, KILLED};
use super::record::{Files, LaunchRecord};
use crate::sys::child::{Detail, ORDER_KILL_ALL, ORDER_SIGNAL, ORDER_SIGNAL_TASK, Report, stage};
use crate::sys::{pidfd, process, pty};

/// The words for every report a child can make.
pub(super) struct Words {
    pub(super) before_fork: Vec<String>,
    pub(super) task: Vec<String>,
    pub(super) command: String,
    /// Names of hooks, those before the command first.
    pub(super) hooks: Vec<String>,
}

/// What the end of a supervisor is to a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// The end of all.
    pub(super) pid_namespace: bool,
    /// Whether something follows the end of the command, or of what runs before it.
    pub(super) hooks: bool,
}

impl Ending {
    /// Of one that has not said yet.
    pub(super) const DEFAULT: Self = Self { pid_namespace: true, hooks: false };
}

/// What is between a launch and its release.
pub(super) struct Pending {
    pub(super) release: OwnedFd,
    pub(super) report: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
    /// Written when the command runs; none for an exec.
    pub(super) record: Option<(Files, LaunchRecord)>,
    /// For a command with hooks.
    pub(super) hooks: Option<PendingHooks>,
}

/// What it takes to listen to hooks.
pub(super) struct PendingHooks {
    pub(super) late: Option<OwnedFd>,
    pub(super) started: watch::Sender<Started>,
    pub(super) log: Logger,
}

/// See [`Launched`].
pub struct LinuxLaunched {
    pub(super) container: ContainerId,
    pub(super) init: ProcessIdentity,
    pub(super) process: Arc<OwnedFd>,
    pub(super) ends_all: Ending,
    pub(super) of_start: bool,
    pub(super) words: Arc<Words>,
    pub(super) pending: Mutex<Option<Pending>>,
    pub(super) terminal: Mutex<Option<OwnedFd>>,
    pub(super) ended: Ended,
    pub(super) started: watch::Receiver<Started>,
}

impl LinuxLaunched {
    /// The master of its terminal, if it has one and nobody took it.
    pub fn take_terminal(&self) -> Option<OwnedFd> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it is the container's own command, not one of an exec.
    pub(super) fn is_of_start(&self) -> bool {
        self.of_start
    }

    fn failed(&self, source: LauncherError) -> LaunchError {
        LaunchError::Failed { container: self.container.clone(), source: Box::new(source) }
    }

    fn end_of_launch(&self, pending: Pending) -> Result<(), LaunchError> {
        // A socket and not a pipe: no SIGPIPE for an embedder who has not ignored that.
        let released = rustix::net::send(&pending.release, &[1], rustix::net::SendFlags::NOSIGNAL);
        drop(pending.release);
        if released.is_err() {
            // Nobody reads: it is dead already, which the report pipe says too.
            return Err(LaunchError::NotRunning { container: self.container.clone() });
        }
        let mut report = File::from(pending.report);
        let next = |report: &mut File| {
            let channel = |source| LauncherError::Channel { what: "a report of the child", source };
            next_report(report).map_err(|source| self.failed(channel(source)))
        };
        let first = next(&mut report)?;
        let report = match (first, &pending.hooks) {
            (Some(Report { stage: stage::HOOKS_BEGIN, .. }), Some(_)) => Some(report),
            // No hook precedes the command: its exec is waited for, as without any.
            (Some(Report { stage: stage::COMMAND_BEGINS, .. }), Some(_)) => match next(&mut report)? {
                Some(failed) => return Err(self.words.failure(&self.container, failed)),
                None => None,
            },
            (None, None) => None,
            // It ends by itself now; the reaper takes it.
            (Some(failed), _) => return Err(self.words.failure(&self.container, failed)),
            (None, Some(_)) => return Err(LaunchError::NotRunning { container: self.container.clone() }),
        };
        if let Some(socket) = &pending.terminal {
            let master =
                pty::receive(socket).map_err(|source| self.failed(LauncherError::Terminal { source }))?;
            *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = Some(master);
        }
        let mut record = pending.record;
        let told = match &mut record {
            Some((files, record)) => {
                record.task = task_of(&self.init);
                files.write(record)
            }
            None => Ok(()),
        };
        let listened = told.and_then(|()| match pending.hooks {
            Some(PendingHooks { late, started, log }) => {
                let (container, words) = (self.container.clone(), self.words.clone());
                let late = late.map(File::from);
                Listener { container, words, report, late, started, record, log }.listen()
            }
            None => Ok(()),
        });
        if let Err(error) = listened {
            // It runs, but nobody could find it, or would hear of it: then rather not.
            self.kill_all()?;
            return Err(self.failed(error));
        }
        Ok(())
    }
}

impl Words {
    /// What a report of a failure comes to.
    pub(super) fn failure(&self, container: &ContainerId, report: Report) -> LaunchError {
        let source = std::io::Error::from_raw_os_error(report.errno);
        let errno = Errno::from_raw(report.errno);
        let command = self.command.clone();
        let words = match (report.stage, errno) {
            (stage::HOOK | stage::HOOK_ENDED, _) => {
                let (hook, ended) = self.hook(report);
                return LaunchError::Hook { container: container.clone(), command: hook.to_owned(), ended };
            }
            (stage::EXEC, Errno::ENOENT | Errno::ENOTDIR) => {
                return LaunchError::CommandNotFound { command, source };
            }
            (stage::EXEC, _) => return LaunchError::CommandNotExecutable { command, source },
            (stage::BEFORE_FORK, _) => self.before_fork.get(report.index as usize),
            (stage::TASK, _) => self.task.get(report.index as usize),
            _ => None,
        };
        let step = words.map_or("fork the command", String::as_str);
        let remedy = remedy(report, errno, step);
        LaunchError::Step { container: container.clone(), step: format!("{step}{remedy}"), source }
    }
}

/// What to do about failures that users meet.
fn remedy(report: Report, errno: Errno, step: &str) -> &'static str {
    let making = report.detail == Detail::Make as u32;
    let finding = report.detail == Detail::Find as u32;
    match errno {
        Errno::EROFS if making => {
            " (its mount point is missing and the root filesystem is read-only: have it in the image, or use \
             --image_provisioner_backend=overlay or copy)"
        }
        Errno::ENOENT if finding && step.starts_with("enter working directory") => {
            " (the image says that it is there; use another with --workdir, which is made)"
        }
        Errno::ENOENT if finding => " (its mount point is missing)",
        Errno::EINVAL if step.starts_with("become user") || step.starts_with("become group") => {
            " (it has no number in this user namespace: give the caller more in /etc/subuid and /etc/subgid, \
             or run as root)"
        }
        Errno::EPERM if step.starts_with("make a new proc") => {
            " (in a user namespace procfs can be mounted only where the host's is fully visible, and in a pid \
             namespace of its own: isolator namespaces/pid)"
        }
        Errno::EPERM if step.starts_with("make a new sysfs") => {
            " (in a user namespace sysfs can be mounted only with a network namespace of its own)"
        }
        _ => "",
    }
}

impl Launched for LinuxLaunched {
    fn init(&self) -> ProcessIdentity {
        self.init.clone()
    }

    fn release(&self) -> Result<(), LaunchError> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        match pending {
            Some(pending) => self.end_of_launch(pending),
            None => Ok(()),
        }
    }

    fn wait(&self) -> BoxFuture<'static, ExitStatus> {
        let (ended, mut hooks) = (self.ended.clone(), self.started.clone());
        Box::pin(async move {
            let status = wait_for(ended).await;
            // Until whoever listens to its hooks, if anybody, has heard and logged all.
            while hooks.changed().await.is_ok() {}
            status
        })
    }

    fn started(&self) -> BoxFuture<'static, Result<(), Arc<LaunchError>>> {
        let (mut started, container) = (self.started.clone(), self.container.clone());
        Box::pin(async move {
            match started.wait_for(Option::is_some).await.ok().and_then(|started| started.clone()) {
                Some(started) => started,
                // It was never released.
                None => Err(Arc::new(LaunchError::NotRunning { container })),
            }
        })
    }

    fn signal(&self, signal: i32) -> Result<(), LaunchError> {
        send(&self.process, self.init.pid, self.ends_all, signal).map_err(|error| match error {
            LauncherError::Send { ref source, .. } if source.raw_os_error() == Some(Errno::ESRCH as i32) => {
                LaunchError::NotRunning { container: self.container.clone() }
            }
            error => self.failed(error),
        })
    }

    fn kill_all(&self) -> Result<(), LaunchError> {
        // Not released yet: it ends when nobody can release it.
        drop(self.pending.lock().unwrap_or_else(PoisonError::into_inner).take());
        kill_all(&self.process, self.init.pid, self.ends_all).map_err(|error| self.failed(error))
    }
}

/// How it ended, once it has.
pub(super) async fn wait_for(mut ended: Ended) -> ExitStatus {
    match ended.wait_for(Option::is_some).await {
        Ok(status) => status.unwrap_or(KILLED),
        Err(_) => KILLED,
    }
}

/// Sends the command of a supervisor a signal, through the supervisor: it alone knows the command for certain.
/// SIGKILL goes to the supervisor itself where that ends all and nothing is to follow; SIGSTOP, and signals that have another meaning to
/// a supervisor, go as orders.
pub(super) fn send(process: &OwnedFd, pid: u32, ending: Ending, signal: i32) -> Result<(), LauncherError> {
    const SIGKILL: i32 = 9;
    const SIGSTOP: i32 = 19;
    let sent = match signal {
        SIGKILL if ending.pid_namespace && !ending.hooks => pidfd::signal(process, SIGKILL),
        SIGKILL | SIGSTOP | ORDER_SIGNAL => {
            pidfd::queue(process, ORDER_SIGNAL, ORDER_SIGNAL_TASK | signal as usize)
        }
        1..=64 => pidfd::signal(process, signal),
        _ => return Err(LauncherError::Signal(signal)),
    };
    sent.map_err(|source| LauncherError::Send { signal, pid, source })
}

/// Kills the command of a supervisor and all it started, and waits for their end.
pub(super) fn kill_all(process: &OwnedFd, pid: u32, ending: Ending) -> Result<(), LauncherError> {
    const SIGKILL: i32 = 9;
    let sent = if ending.pid_namespace {
        pidfd::signal(process, SIGKILL)
    } else {
        pidfd::queue(process, ORDER_SIGNAL, ORDER_KILL_ALL)
    };
    match sent {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => return Ok(()),
        Err(source) => return Err(LauncherError::Send { signal: SIGKILL, pid, source }),
    }
    pidfd::await_end(process).map_err(|source| LauncherError::Send { signal: SIGKILL, pid, source })
}

/// The first child of a supervisor: the command.
pub(super) fn task_of(init: &ProcessIdentity) -> Option<ProcessIdentity> {
    let path = format!("/proc/{0}/task/{0}/children", init.pid);
    let children = std::fs::read_to_string(path).ok()?;
    let pid = children.split_whitespace().next()?.parse().ok()?;
    let (_, start_ticks) = process::state_and_start(pid).ok()?;
    Some(ProcessIdentity { pid, start_ticks, boot_id: init.boot_id.clone() })
}

/// Numbers of descriptors, for the child's program.
pub(super) fn raw(fd: &OwnedFd) -> RawFd {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

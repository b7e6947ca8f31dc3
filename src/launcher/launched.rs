//! A launch from its clone on: released, waited for, signalled, killed.

use std::io::Read;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use keelblock_actors::container::{ContainerId, ExitStatus, ProcessIdentity};
use keelblock_actors::error::LaunchError;
use keelblock_actors::ports::Launched;
use nix::errno::Errno;

use super::error::LauncherError;
use super::reaper::{Ended, KILLED};
use super::record::{Files, LaunchRecord};
use crate::sys::child::{Detail, ORDER_KILL_ALL, ORDER_SIGNAL, ORDER_SIGNAL_TASK, Report};
use crate::sys::{pidfd, process, pty};

/// The words for every report a child can make.
pub(super) struct Words {
    pub(super) before_fork: Vec<String>,
    pub(super) task: Vec<String>,
    pub(super) command: String,
}

/// What is between a launch and its release.
pub(super) struct Pending {
    pub(super) release: OwnedFd,
    pub(super) report: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
    /// Written when the command runs; none for an exec.
    pub(super) record: Option<(Files, LaunchRecord)>,
}

/// See [`Launched`].
pub struct LinuxLaunched {
    pub(super) container: ContainerId,
    pub(super) init: ProcessIdentity,
    pub(super) process: Arc<OwnedFd>,
    pub(super) pid_namespace: bool,
    pub(super) of_start: bool,
    pub(super) words: Words,
    pub(super) pending: Mutex<Option<Pending>>,
    pub(super) terminal: Mutex<Option<OwnedFd>>,
    pub(super) ended: Ended,
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
        let mut bytes = Vec::with_capacity(size_of::<Report>());
        let read = std::fs::File::from(pending.report).take(64).read_to_end(&mut bytes);
        read.map_err(|source| self.failed(LauncherError::Channel { what: "a report of the child", source }))?;
        if let Ok(report) = <[u8; 16]>::try_from(bytes.as_slice()) {
            // It ends by itself now; the reaper takes it.
            return Err(self.step_failed(Report::from_bytes(report)));
        }
        if let Some(socket) = &pending.terminal {
            let master =
                pty::receive(socket).map_err(|source| self.failed(LauncherError::Terminal { source }))?;
            *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = Some(master);
        }
        if let Some((files, mut record)) = pending.record {
            record.task = task_of(&self.init);
            if let Err(error) = files.write(&record) {
                // It runs, but nobody else could find it: then rather not.
                self.kill_all()?;
                return Err(self.failed(error));
            }
        }
        Ok(())
    }

    fn step_failed(&self, report: Report) -> LaunchError {
        let source = std::io::Error::from_raw_os_error(report.errno);
        let errno = Errno::from_raw(report.errno);
        let command = self.words.command.clone();
        let words = match (report.stage, errno) {
            (2, Errno::ENOENT | Errno::ENOTDIR) => {
                return LaunchError::CommandNotFound { command, source };
            }
            (2, _) => return LaunchError::CommandNotExecutable { command, source },
            (0, _) => self.words.before_fork.get(report.index as usize),
            (1, _) => self.words.task.get(report.index as usize),
            _ => None,
        };
        let step = words.map_or("fork the command", String::as_str);
        let remedy = remedy(report, errno, step);
        LaunchError::Step { container: self.container.clone(), step: format!("{step}{remedy}"), source }
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
        let ended = self.ended.clone();
        Box::pin(wait_for(ended))
    }

    fn signal(&self, signal: i32) -> Result<(), LaunchError> {
        send(&self.process, self.init.pid, self.pid_namespace, signal).map_err(|error| match error {
            LauncherError::Send { ref source, .. } if source.raw_os_error() == Some(Errno::ESRCH as i32) => {
                LaunchError::NotRunning { container: self.container.clone() }
            }
            error => self.failed(error),
        })
    }

    fn kill_all(&self) -> Result<(), LaunchError> {
        // Not released yet: it ends when nobody can release it.
        drop(self.pending.lock().unwrap_or_else(PoisonError::into_inner).take());
        kill_all(&self.process, self.init.pid, self.pid_namespace).map_err(|error| self.failed(error))
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
/// SIGKILL goes to the supervisor itself where that ends all; SIGSTOP, and signals that have another meaning to
/// a supervisor, go as orders.
pub(super) fn send(
    process: &OwnedFd,
    pid: u32,
    pid_namespace: bool,
    signal: i32,
) -> Result<(), LauncherError> {
    const SIGKILL: i32 = 9;
    const SIGSTOP: i32 = 19;
    let sent = match signal {
        SIGKILL if pid_namespace => pidfd::signal(process, SIGKILL),
        SIGKILL | SIGSTOP | ORDER_SIGNAL => {
            pidfd::queue(process, ORDER_SIGNAL, ORDER_SIGNAL_TASK | signal as usize)
        }
        1..=64 => pidfd::signal(process, signal),
        _ => return Err(LauncherError::Signal(signal)),
    };
    sent.map_err(|source| LauncherError::Send { signal, pid, source })
}

/// Kills the command of a supervisor and all it started, and waits for their end.
pub(super) fn kill_all(process: &OwnedFd, pid: u32, pid_namespace: bool) -> Result<(), LauncherError> {
    const SIGKILL: i32 = 9;
    let sent = if pid_namespace {
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
fn task_of(init: &ProcessIdentity) -> Option<ProcessIdentity> {
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

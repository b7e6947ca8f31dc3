//! Why a launch fails before or beside the steps of the child.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// See the variants; each becomes the source of a `LaunchError::Failed`.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// No isolator said what to run.
    #[error("no command: neither the image nor the caller says what to run")]
    NoCommand,
    /// C strings end at a null byte.
    #[error("{what} holds a null byte")]
    Null {
        /// Which text.
        what: String,
    },
    /// `=` ends the name of a variable.
    #[error("environment variable {name:?} has no valid name: it is empty or holds '='")]
    VariableName {
        /// As given.
        name: String,
    },
    /// A path of the plan is not absolute.
    #[error("path {path} is not absolute")]
    Relative {
        /// As given.
        path: PathBuf,
    },
    /// A plan that would mount in the host's namespace.
    #[error(
        "the plan mounts or changes the root without a mount namespace of its own; use the isolator filesystem/linux"
    )]
    NoMountNamespace,
    /// A file of the launcher's own.
    #[error("cannot {act} {path}")]
    File {
        /// read, write, open...
        act: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command that is to be limited as its container is.
    #[error("cannot put the command into the container's cgroups")]
    Cgroup {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pipes, sockets, memory files.
    #[error("cannot make {what}")]
    Channel {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// clone3(2).
    #[error("cannot make a process{hint}")]
    Clone {
        /// What to do about it.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new process cannot be seen.
    #[error("cannot read about process {pid} in /proc")]
    Proc {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What `launch.json` says is not what this version writes.
    #[error("{path} is damaged")]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The terminal did not come.
    #[error("cannot receive the container's terminal")]
    Terminal {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A signal number that is none.
    #[error("{0} is not a signal number; signals are 1 to 64")]
    Signal(i32),
    /// A signal could not be sent.
    #[error("cannot send signal {signal} to process {pid}")]
    Send {
        /// Which.
        signal: i32,
        /// To whom.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user of an exec.
    #[error(transparent)]
    User(#[from] crate::isolator::user::UserError),
}

impl LauncherError {
    pub(crate) fn clone(source: io::Error) -> Self {
        let hint = match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => ": it takes root, or a user namespace of one's own",
            Some(Errno::EAGAIN) => ": the limit of processes is reached (ulimit -u, pids.max)",
            Some(Errno::ENOSPC) => ": the limit of namespaces is reached (/proc/sys/user/max_pid_namespaces)",
            _ => "",
        };
        Self::Clone { hint, source }
    }
}

//! One more command in a running container, whichever process launched it.
//!
//! The container is joined through a descriptor of its supervisor, which cannot come to mean another process. In
//! a user namespace the supervisor is out of reach (it is not dumpable, and its memory belongs to the launching
//! process's namespace): there the container's command serves, as long as it is there.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use keelblock_actors::container::{ContainerId, ProcessIdentity};
use keelblock_actors::error::LaunchError;
use keelblock_actors::launch::Credentials;
use keelblock_actors::ports::{ExecSpec, Launched};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::SocketType;

use super::channels::socket_pair;
use super::error::LauncherError;
use super::hooks::Hooks;
use super::program::{Ops, absolute, become_user, begin, command};
use super::record::{Files, LaunchRecord};
use super::terminal::callers_size;
use super::{Launch, LinuxLaunched, LinuxLauncher, failed, join, launched, namespace_flags};
use crate::isolator::{cgroups, user};
use crate::sys::child::{Missing, Op};
use crate::sys::mount_bits::NEW_USER;

impl LinuxLauncher {
    pub(super) fn exec_spec(
        &self,
        container: &ContainerId,
        exec: &ExecSpec,
    ) -> Result<Arc<LinuxLaunched>, LaunchError> {
        let not_running = || LaunchError::NotRunning { container: container.clone() };
        let failed = |error| failed(container, error);
        let record = Files::new(&self.run_dir, container).read().map_err(failed)?.ok_or_else(not_running)?;
        let (member, process) = self.member(&record).ok_or_else(not_running)?;
        let launch = self.exec_launch(exec, &record, &member, process).map_err(failed)?;
        let launched = self.spawn(container, launch).map_err(failed)?;
        if let Err(source) = cgroups::join(&self.run_dir, container, &launched.init) {
            // Not released, it ends.
            launched.kill_all()?;
            return Err(failed(LauncherError::Cgroup { source: Box::new(source) }));
        }
        Ok(launched)
    }

    /// A process of the container whose namespaces we may join.
    fn member(&self, record: &LaunchRecord) -> Option<(ProcessIdentity, OwnedFd)> {
        let supervisor = self.open(&record.init)?;
        if namespace_of(record.init.pid, "mnt").is_some() {
            return Some((record.init.clone(), supervisor));
        }
        let task = record.task.clone()?;
        let process = self.open(&task)?;
        Some((task, process))
    }

    fn exec_launch(
        &self,
        exec: &ExecSpec,
        record: &LaunchRecord,
        member: &ProcessIdentity,
        process: OwnedFd,
    ) -> Result<Launch, LauncherError> {
        let mut environment = record.environment.clone();
        let mut credentials = record.credentials.clone().unwrap_or_default();
        if let Some(spec) = &exec.user {
            let root = format!("/proc/{}/root", member.pid);
            let user = user::resolve(root.as_ref(), spec, self.user_file_bytes_max)?;
            credentials = user.credentials;
            set(&mut environment, "HOME", user.home.as_deref().unwrap_or("/"));
        }
        if exec.tty && !environment.iter().any(|(name, _)| name == "TERM") {
            set(&mut environment, "TERM", "xterm");
        }
        for (name, value) in &exec.environment {
            set(&mut environment, name, value);
        }
        let command = command(&exec.argv, None, &environment)?;

        let mut keep = Vec::new();
        let (before_fork, terminal) = self.enter(exec, record, member, process, &mut keep)?;
        let mut task = Ops::default();
        begin(&mut task);
        if exec.tty {
            task.push(Op::ControlTerminal, "take its terminal");
        }
        self.who(&credentials, record, member, &mut task);
        let status = memory_file()?;
        let status_read =
            status.try_clone().map_err(|source| LauncherError::Channel { what: "a memory file", source })?;
        Ok(Launch {
            before_fork,
            task,
            slots: 0,
            command,
            pid_namespace: false,
            kill_leftovers: false,
            status: status.into(),
            status_read,
            keep,
            terminal,
            record: None,
            hooks: Hooks::default(),
        })
    }

    /// Into the container's namespaces, terminal and directory.
    fn enter(
        &self,
        exec: &ExecSpec,
        record: &LaunchRecord,
        member: &ProcessIdentity,
        process: OwnedFd,
        keep: &mut Vec<OwnedFd>,
    ) -> Result<(Ops, Option<OwnedFd>), LauncherError> {
        let mut before = Ops::default();
        let mut namespaces = namespace_flags(&record.namespaces());
        if is_foreign(member.pid) {
            namespaces |= NEW_USER;
        }
        if namespaces != 0 {
            before.push(join(&process, namespaces), "join the container's namespaces");
        }
        keep.push(process);
        let terminal = if exec.tty {
            let (ours, theirs) = socket_pair(SocketType::DGRAM)?;
            let socket = launched::raw(&theirs);
            keep.push(theirs);
            before.push(
                Op::Terminal { socket, console: false, size: callers_size() },
                "open a terminal at /dev/pts",
            );
            Some(ours)
        } else {
            None
        };
        let root = record.rootfs.as_ref().map(|_| "/".into());
        if let Some(directory) =
            exec.working_directory.as_ref().or(record.working_directory.as_ref()).or(root.as_ref())
        {
            let words = format!("enter working directory {}", directory.display());
            before.push(Op::Directory { path: absolute(directory)?, missing: Missing::Directory }, words);
        }
        Ok((before, terminal))
    }

    fn who(
        &self,
        credentials: &Credentials,
        record: &LaunchRecord,
        member: &ProcessIdentity,
        task: &mut Ops,
    ) {
        let mut host = self.host;
        if is_foreign(member.pid) {
            // Whoever joins a user namespace has all capabilities in it.
            host.permitted = u64::MAX >> (63 - host.last_capability.min(63));
            let setgroups = std::fs::read_to_string(format!("/proc/{}/setgroups", member.pid));
            host.sets_groups = setgroups.is_ok_and(|text| text.trim() == "allow");
        }
        if credentials.uid != 0 {
            let own = Op::OwnStreams { uid: credentials.uid, files_too: false };
            task.push(own, "own its standard streams");
        }
        become_user(credentials, record.capabilities.as_ref(), record.no_new_privs, &host, task);
        // It is a child of a process outside the pid namespace: nothing else would end it with that.
        task.push(Op::DieWithParent, "be bound to its supervisor");
    }
}

fn set(environment: &mut Vec<(String, String)>, name: &str, value: &str) {
    environment.retain(|(known, _)| known != name);
    environment.push((name.to_owned(), value.to_owned()));
}

fn namespace_of(pid: u32, kind: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

/// Whether a process is in another user namespace than we are.
fn is_foreign(pid: u32) -> bool {
    namespace_of(pid, "user") != std::fs::read_link("/proc/self/ns/user").ok()
}

fn memory_file() -> Result<std::fs::File, LauncherError> {
    memfd_create("keelblock-status", MemfdFlags::CLOEXEC)
        .map(Into::into)
        .map_err(|source| LauncherError::Channel { what: "a memory file", source: source.into() })
}

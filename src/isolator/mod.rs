//! The aspects of a container, in order: what `--isolation` names.
//!
//! [`compose`] turns names into isolators in a fixed order, whatever order they were given in: the file tree
//! first, then what runs in it, then namespaces, volumes, what a process may do, and how much it may have. Each fills in its part of
//! the `LaunchPlan`; none makes a system call on a container's behalf: that is the launcher's.
//!
//! A name that is not here is an error that lists those that are: an aspect that is asked for and not enforced
//! would be worse than none.

mod appc;
mod capabilities;
pub(crate) mod cgroups;
mod filesystem;
mod namespaces;
mod privileges;
mod runtime;
pub mod user;
mod volumes;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelblock_actors::container::ContainerId;
use keelblock_actors::error::{IsolatorError, quote};
use keelblock_actors::launch::CapabilitySet;
use keelblock_actors::ports::Isolator;
use slog::Logger;

pub use cgroups::CgroupSettings;

pub use capabilities::{CapabilityError, DEFAULT_CAPABILITIES, capability_names, parse_capabilities};
pub use runtime::CommandError;

use appc::isolators::Enforcers;

use crate::limits::Limits;
use crate::rootless::IdMaps;

/// What `--isolation` is without the flag. `linux/nnp` is not among it: it breaks setuid programs (`sudo`, `ping`)
/// that images count on.
pub const DEFAULT_ISOLATION: [&str; 6] = [
    "filesystem/linux",
    "docker/runtime",
    "appc/runtime",
    "namespaces/pid",
    "namespaces/ipc",
    "linux/capabilities",
];

/// All isolators, in the order they are called in.
const TABLE: [Kind; 13] = [
    Kind::FilesystemLinux,
    Kind::FilesystemPosix,
    Kind::DockerRuntime,
    Kind::AppcRuntime,
    Kind::NamespacesPid,
    Kind::NamespacesIpc,
    Kind::NamespacesUts,
    Kind::VolumeHostPath,
    Kind::VolumeImage,
    Kind::LinuxCapabilities,
    Kind::LinuxNnp,
    Kind::CgroupsCpu,
    Kind::CgroupsMem,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    FilesystemLinux,
    FilesystemPosix,
    DockerRuntime,
    AppcRuntime,
    NamespacesPid,
    NamespacesIpc,
    NamespacesUts,
    VolumeHostPath,
    VolumeImage,
    LinuxCapabilities,
    LinuxNnp,
    CgroupsCpu,
    CgroupsMem,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::FilesystemLinux => "filesystem/linux",
            Self::FilesystemPosix => "filesystem/posix",
            Self::DockerRuntime => "docker/runtime",
            Self::AppcRuntime => "appc/runtime",
            Self::NamespacesPid => "namespaces/pid",
            Self::NamespacesIpc => "namespaces/ipc",
            Self::NamespacesUts => "namespaces/uts",
            Self::VolumeHostPath => "volume/host_path",
            Self::VolumeImage => "volume/image",
            Self::LinuxCapabilities => "linux/capabilities",
            Self::LinuxNnp => "linux/nnp",
            Self::CgroupsCpu => cgroups::CPU,
            Self::CgroupsMem => cgroups::MEM,
        }
    }
}

/// What operators set of isolators, and what they must know of this machine. In a user namespace: make it after
/// `rootless::enter`, as the default looks at the users there are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--sandbox_directory`: where a container with a root filesystem of its own sees its sandbox.
    pub sandbox_directory: PathBuf,
    /// `--docker_ignore_runtime`: entrypoint, command, environment, directory and user of images count for
    /// nothing.
    pub docker_ignore_runtime: bool,
    /// `--docker_ignore_user`: the user of images counts for nothing (Mesos's way).
    pub docker_ignore_user: bool,
    /// Whether arguments replace the whole command of an image, and are the command where it has none (as
    /// `docker run` does); else Mesos's table holds, in which they replace all but its first word.
    pub arguments_replace_cmd: bool,
    /// `--effective_capabilities`: of containers that ask for none.
    pub effective_capabilities: Option<CapabilitySet>,
    /// `--bounding_capabilities`: the most that any container gets.
    pub bounding_capabilities: Option<CapabilitySet>,
    /// `--default_container_shm_size`: bytes of `/dev/shm`.
    pub shm_bytes: u64,
    /// Users and groups of this process's user namespace.
    pub ids: IdMaps,
    /// `--user_file_bytes_max`: most bytes of an image's `/etc/passwd` and `/etc/group`.
    pub user_file_bytes_max: u64,
    /// `--appc_strict_isolators`: an Appc image runs only if all isolators that it names are in place.
    pub appc_strict_isolators: bool,
    /// Where cgroups are made, for those isolators.
    pub cgroups: CgroupSettings,
    /// Where it is told what became of an image's isolators, and what volumes hide.
    pub log: Logger,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sandbox_directory: PathBuf::from("/mnt/mesos/sandbox"),
            docker_ignore_runtime: false,
            docker_ignore_user: false,
            arguments_replace_cmd: false,
            effective_capabilities: None,
            bounding_capabilities: None,
            // What docker and podman give.
            shm_bytes: 64 << 20,
            ids: IdMaps::read(),
            user_file_bytes_max: Limits::default().user_file_bytes_max,
            appc_strict_isolators: false,
            cgroups: CgroupSettings::default(),
            log: Logger::root(slog::Discard, slog::o!()),
        }
    }
}

/// Why a list of isolators cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsolationError {
    /// No such name.
    #[error("isolator {name:?} is unknown; known are {}", known())]
    Unknown {
        /// As given, cut.
        name: String,
    },
    /// Twice the same.
    #[error("isolator {name} is named twice")]
    Twice {
        /// Which.
        name: &'static str,
    },
    /// A container has one file tree.
    #[error("filesystem/linux and filesystem/posix exclude each other")]
    TwoFilesystems,
    /// It needs another.
    #[error("isolator {name} needs {needs}; add it to --isolation")]
    Needs {
        /// Which.
        name: &'static str,
        /// What.
        needs: &'static str,
    },
    /// `--sandbox_directory` must be a place inside a container's root.
    #[error("sandbox directory {path} must be absolute, without '..', and not the root")]
    SandboxDirectory {
        /// As given.
        path: PathBuf,
    },
}

fn known() -> String {
    TABLE.map(Kind::name).join(", ")
}

/// The isolators of these names, in the order they are to be called in.
///
/// `filesystem/linux` brings the volume isolators with it. Without a `filesystem/...` there is `filesystem/posix`.
/// Old names: `process`, `posix/cpu` and `posix/mem`, which limit nothing in Mesos either, are taken for nothing;
/// `cgroups` is `cgroups/cpu` and `cgroups/mem`.
/// What to run is always seen to: for images of a kind whose `.../runtime` is not named, and without an image, from the
/// caller's side alone.
///
/// # Errors
/// [`IsolationError`].
pub fn compose<S: AsRef<str>>(
    names: &[S],
    settings: &Settings,
) -> Result<Vec<Arc<dyn Isolator>>, IsolationError> {
    let kinds = kinds(names)?;
    let has = |kind| kinds.contains(&kind);
    if !is_inside(&settings.sandbox_directory) || settings.sandbox_directory == Path::new("/") {
        return Err(IsolationError::SandboxDirectory { path: settings.sandbox_directory.clone() });
    }
    let linux = has(Kind::FilesystemLinux);
    for (kind, needs) in [
        (Kind::NamespacesPid, "filesystem/linux"),
        (Kind::NamespacesIpc, "filesystem/linux"),
        (Kind::VolumeHostPath, "filesystem/linux"),
        (Kind::VolumeImage, "filesystem/linux"),
    ] {
        if has(kind) && !linux {
            return Err(IsolationError::Needs { name: kind.name(), needs });
        }
    }
    let own = Own { pid: has(Kind::NamespacesPid), ipc: has(Kind::NamespacesIpc) };
    let enforcers = Enforcers {
        appc: has(Kind::AppcRuntime),
        capabilities: has(Kind::LinuxCapabilities),
        no_new_privs: has(Kind::LinuxNnp),
        memory: has(Kind::CgroupsMem),
        cpu: has(Kind::CgroupsCpu),
        ..Enforcers::new(settings)
    };
    let mut isolators: Vec<Arc<dyn Isolator>> = Vec::new();
    for kind in TABLE {
        if has(kind) {
            isolators.extend(make(kind, settings, &enforcers, own));
        }
        // Someone must say what to run.
        if kind == Kind::AppcRuntime {
            let rest =
                runtime::command(settings, &enforcers, has(Kind::DockerRuntime), has(Kind::AppcRuntime));
            isolators.extend(rest.map(|rest| Arc::new(rest) as Arc<dyn Isolator>));
        }
    }
    // Also without them: it cleans up after those that had them, and lets nobody ask in vain.
    let limited = cgroups::Enforced { memory: enforcers.memory, cpu: enforcers.cpu, images: enforcers.appc };
    isolators.push(Arc::new(cgroups::Cgroups::new(settings, limited)));
    Ok(isolators)
}

/// Which namespaces a container has besides that of its mounts.
#[derive(Clone, Copy, Debug)]
struct Own {
    pid: bool,
    ipc: bool,
}

fn make(kind: Kind, settings: &Settings, enforcers: &Enforcers, own: Own) -> Option<Arc<dyn Isolator>> {
    Some(match kind {
        Kind::FilesystemLinux => Arc::new(filesystem::Linux::new(settings, own)),
        Kind::FilesystemPosix => Arc::new(filesystem::Posix),
        Kind::DockerRuntime => Arc::new(runtime::Runtime::docker(settings, enforcers)),
        Kind::AppcRuntime => Arc::new(runtime::Runtime::appc(settings, enforcers)),
        Kind::NamespacesPid => Arc::new(namespaces::Pid),
        Kind::NamespacesIpc => Arc::new(namespaces::Ipc { shm_bytes: settings.shm_bytes }),
        Kind::NamespacesUts => Arc::new(namespaces::Uts),
        Kind::VolumeHostPath => Arc::new(volumes::Volumes::host_path(settings)),
        Kind::VolumeImage => Arc::new(volumes::Volumes::image(settings)),
        Kind::LinuxCapabilities => Arc::new(capabilities::Capabilities::new(settings, enforcers.appc)),
        Kind::LinuxNnp => Arc::new(privileges::NoNewPrivileges),
        // One for both, behind all others.
        Kind::CgroupsCpu | Kind::CgroupsMem => return None,
    })
}

fn kinds<S: AsRef<str>>(names: &[S]) -> Result<BTreeSet<Kind>, IsolationError> {
    let mut kinds = BTreeSet::new();
    for name in names.iter().map(|name| name.as_ref().trim()).filter(|name| !name.is_empty()) {
        if matches!(name, "process" | "posix/cpu" | "posix/mem") {
            continue;
        }
        let known = TABLE.into_iter().filter(|kind| match name {
            "cgroups" => matches!(kind, Kind::CgroupsCpu | Kind::CgroupsMem),
            name => kind.name() == name,
        });
        let mut found = false;
        for kind in known {
            found = true;
            if !kinds.insert(kind) {
                return Err(IsolationError::Twice { name: kind.name() });
            }
        }
        if !found {
            return Err(IsolationError::Unknown { name: quote(name) });
        }
    }
    match (kinds.contains(&Kind::FilesystemLinux), kinds.contains(&Kind::FilesystemPosix)) {
        (true, true) => return Err(IsolationError::TwoFilesystems),
        (true, false) => kinds.extend([Kind::VolumeHostPath, Kind::VolumeImage]),
        (false, _) => {
            kinds.insert(Kind::FilesystemPosix);
        }
    }
    Ok(kinds)
}

/// Whether a path is absolute and free of `..`.
fn is_inside(path: &Path) -> bool {
    use std::path::Component;
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// An error of `prepare`.
fn refused(
    isolator: &'static str,
    container: &ContainerId,
    source: impl std::error::Error + Send + Sync + 'static,
) -> IsolatorError {
    IsolatorError { isolator, act: "prepare", container: container.clone(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Result<Vec<&'static str>, IsolationError> {
        let isolators = compose(list, &Settings::default())?;
        // The one behind all is always there.
        let (last, others) = isolators.split_last().expect("some");
        assert_eq!(last.name(), "cgroups");
        Ok(others.iter().map(|isolator| isolator.name()).collect())
    }

    #[test]
    fn isolators_come_in_the_order_of_the_table_whatever_the_order_of_the_flag() {
        let expected = Ok(vec![
            "filesystem/linux",
            "docker/runtime",
            "command",
            "namespaces/pid",
            "volume/host_path",
            "volume/image",
            "linux/nnp",
        ]);
        assert_eq!(names(&["linux/nnp", "namespaces/pid", "docker/runtime", "filesystem/linux"]), expected);
        assert!(names(&DEFAULT_ISOLATION).is_ok());
    }

    #[test]
    fn unknown_and_repeated_names_are_refused_and_the_known_listed() {
        let error = names(&["filesystem/linux", "cgroups/blkio"]).expect_err("unknown").to_string();
        assert!(error.contains("cgroups/blkio") && error.contains("linux/capabilities"), "{error}");
        assert_eq!(names(&["linux/nnp", "linux/nnp"]), Err(IsolationError::Twice { name: "linux/nnp" }));
        assert_eq!(names(&["filesystem/linux", "filesystem/posix"]), Err(IsolationError::TwoFilesystems));
        let twice = names(&["cgroups", "cgroups/mem"]);
        assert_eq!(twice, Err(IsolationError::Twice { name: "cgroups/mem" }));
        assert!(matches!(names(&["namespaces/pid"]), Err(IsolationError::Needs { .. })));
    }

    #[test]
    fn without_any_name_the_file_tree_is_the_hosts_and_a_command_still_runs() {
        assert_eq!(names(&[]), Ok(vec!["filesystem/posix", "command"]));
        assert_eq!(names(&["cgroups/cpu", "cgroups/mem"]), Ok(vec!["filesystem/posix", "command"]));
        assert_eq!(names(&["posix/cpu", "posix/mem"]), Ok(vec!["filesystem/posix", "command"]));
        let both = names(&["appc/runtime", "docker/runtime"]);
        assert_eq!(both, Ok(vec!["filesystem/posix", "docker/runtime", "appc/runtime"]));
        let appc = names(&["appc/runtime"]);
        assert_eq!(appc, Ok(vec!["filesystem/posix", "appc/runtime", "command"]));
    }

    #[test]
    fn a_sandbox_directory_outside_the_container_is_refused() {
        for path in ["sandbox", "/", "/a/../b"] {
            let settings = Settings { sandbox_directory: path.into(), ..Settings::default() };
            assert!(compose(&["linux/nnp"], &settings).is_err(), "{path}");
        }
    }
}

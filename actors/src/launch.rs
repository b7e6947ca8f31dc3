//! `LaunchPlan`: everything the launcher does between clone and exec, as data.
//!
//! Isolators fill it in turn; nothing here makes a system call. Paths of targets are inside the container's
//! root, of sources on the host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::{CommandSpec, ContainerId, Resources, VolumeSpec};
use crate::image::plan::RuntimeConfig;

/// A set of Linux capabilities by kernel number (bit n = capability n).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CapabilitySet(pub u64);

/// Where the standard streams of a container go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StdioSpec {
    /// Where the caller's own go.
    #[default]
    Inherit,
    /// Nowhere: input is empty.
    Null,
    /// Output and errors into `stdout` and `stderr` in the container's sandbox; input is empty.
    Sandbox,
}

/// What isolators know of the container when they prepare it.
#[derive(Clone, Debug)]
pub struct LaunchContext {
    /// Its name.
    pub id: ContainerId,
    /// Its root filesystem on the host; `None` = the host's own.
    pub rootfs: Option<PathBuf>,
    /// Whether the backend gave a root filesystem that cannot be written.
    pub rootfs_read_only: bool,
    /// What its image asks.
    pub runtime: Option<RuntimeConfig>,
    /// What the caller asks.
    pub command: CommandSpec,
    /// Volumes whose source lies on the host now: image volumes are provisioned already.
    pub volumes: Vec<MountedVolume>,
    /// The sandbox on the host: an existing directory of the container's own.
    pub sandbox: PathBuf,
    /// From the container's spec.
    pub effective_capabilities: Option<CapabilitySet>,
    /// From the container's spec.
    pub bounding_capabilities: Option<CapabilitySet>,
    /// From the container's spec.
    pub resources: Resources,
    /// From the container's spec.
    pub tty: bool,
    /// From the container's spec.
    pub stdio: StdioSpec,
    /// From the container's spec.
    pub read_only: bool,
}

/// A volume and the host path it comes from.
#[derive(Clone, Debug)]
pub struct MountedVolume {
    /// As asked for.
    pub spec: VolumeSpec,
    /// What to mount: the image's rootfs, or the host path.
    pub host_path: PathBuf,
}

/// Linux namespaces a container can have of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Namespace {
    Mount,
    Pid,
    Ipc,
    Uts,
    Network,
    Cgroup,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A file or directory of the host, with everything mounted below it.
    Bind(PathBuf),
    /// A path inside the container's own root, on itself or elsewhere (for read-only paths).
    Inside(PathBuf),
    /// A new instance of a filesystem type with its options (`mode=755`, `newinstance`).
    New {
        /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`...
        kind: &'static str,
        /// As fsconfig(2) takes them; an option without a value is a flag.
        options: Vec<(String, Option<String>)>,
    },
}

/// Attributes of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of mount(8)")]
pub struct MountAttributes {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub strictatime: bool,
}

/// What to make where a mount's target is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingTarget {
    /// A directory, parents too.
    Directory,
    /// An empty file, parents too.
    File,
    /// Nothing: without a target the mount is left out (masked and read-only paths).
    Skip,
    /// Nothing: without a target the launch fails.
    Fail,
}

/// One mount inside the container, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountStep {
    /// What.
    pub source: MountSource,
    /// Where, absolute inside the root; symlinks of the image are resolved inside it.
    pub target: PathBuf,
    /// How.
    pub attributes: MountAttributes,
    /// What to do without a target.
    pub missing: MissingTarget,
}

/// One thing to do to the container's file tree, in order, among the mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeStep {
    /// See [`MountStep`].
    Mount(MountStep),
    /// A symbolic link at `path`, in a directory that an earlier step mounted.
    Link {
        /// Where, absolute inside the root.
        path: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// A device node as the host has it (made anew, or bound where that is not allowed).
    Device {
        /// Where, absolute inside the root.
        path: PathBuf,
        /// Device major number.
        major: u32,
        /// Device minor number.
        minor: u32,
        /// Permission bits.
        mode: u32,
    },
    /// Nothing of this file or directory may be seen; skipped when it is not there.
    Mask(PathBuf),
    /// If what is at this path is no directory, an empty one takes its place.
    Room(PathBuf),
}

/// A command that runs before or after the container's own, as who and where that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When.
    pub when: HookTime,
    /// What; the first is looked up as that of the command.
    pub argv: Vec<String>,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookTime {
    /// Before the command, which does not run unless the hook ends with 0.
    PreStart,
    /// After the command has ended, however. Not when the whole container is killed. Its own end changes nothing.
    PostStop,
}

impl std::fmt::Display for HookTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PreStart => "pre-start",
            Self::PostStop => "post-stop",
        })
    }
}

/// What became of an isolator that an Appc image names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIsolator {
    /// Its name: `os/linux/no-new-privileges`.
    pub name: String,
    /// What became of it.
    pub outcome: IsolatorOutcome,
    /// Why it is not enforced as the image has it; empty when it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Whether an isolator of an image is in place (appc spec, ace.md, "Isolators").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolatorOutcome {
    /// As the image has it.
    Enforced,
    /// In part, or as somebody who is above the image has it.
    Modified,
    /// Not at all.
    Ignored,
}

/// Who the process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User number inside the container.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The capability sets a process starts with, by the rules of capabilities(7) for exec: root (user 0) has all of
/// `bounding`, whatever else is said; another user has what is in `ambient`, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityPlan {
    /// What it and its children can ever have; root has it all from the start.
    pub bounding: CapabilitySet,
    /// What it has when it is not root; within `bounding`.
    pub ambient: CapabilitySet,
}

/// Everything between clone and exec. Each `Option` is set by one isolator; a second that sets it is refused
/// by [`set_once`].
#[derive(Clone, Debug, Default)]
pub struct LaunchPlan {
    /// New root; `None` = the host's.
    pub rootfs: Option<PathBuf>,
    /// Whether the new root is made read-only once everything is in place.
    pub rootfs_read_only: bool,
    /// Namespaces to make, in any order.
    pub namespaces: Vec<Namespace>,
    /// Its host name, when it has a UTS namespace; `None` = the host's.
    pub hostname: Option<String>,
    /// Mounts, links, devices and masks, in order.
    pub tree: Vec<TreeStep>,
    /// The command; the first is looked up in `PATH` inside the container unless it holds a slash.
    pub argv: Option<Vec<String>>,
    /// `argv[0]` is another than the file executed (`CommandInfo` with value and arguments).
    pub executable: Option<String>,
    /// The whole environment: nothing of the agent's own leaks.
    pub environment: Vec<(String, String)>,
    /// Where it starts, inside the root; made (root-owned) when missing.
    pub working_directory: Option<PathBuf>,
    /// Whether the launch fails instead where that directory is missing.
    pub working_directory_must_exist: bool,
    /// Who it is; `None` = root of the container.
    pub credentials: Option<Credentials>,
    /// `None` = left as they are.
    pub capabilities: Option<CapabilityPlan>,
    /// Whether exec can never grant more (prctl `PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// How ready the kernel is to kill it when memory is short, -1000 to 1000; `None` = as we are.
    pub oom_score_adj: Option<i32>,
    /// What runs before and after the command, in order.
    pub hooks: Vec<Hook>,
    /// What became of the isolators that the image names.
    pub image_isolators: Vec<ImageIsolator>,
    /// Whether it gets a terminal of its own.
    pub tty: bool,
    /// Where its streams go otherwise.
    pub stdio: StdioSpec,
    /// The sandbox on the host (for [`StdioSpec::Sandbox`]).
    pub sandbox: PathBuf,
}

/// Two isolators want the same thing of a plan.
#[derive(Debug, Clone, thiserror::Error)]
#[error("another isolator has set the {what} already")]
pub struct SetTwice {
    /// Of what.
    pub what: &'static str,
}

/// Sets a field of a plan that only one isolator may set.
///
/// # Errors
/// [`SetTwice`] when it is set.
pub fn set_once<T>(field: &mut Option<T>, value: T, what: &'static str) -> Result<(), SetTwice> {
    match field {
        Some(_) => Err(SetTwice { what }),
        None => {
            *field = Some(value);
            Ok(())
        }
    }
}

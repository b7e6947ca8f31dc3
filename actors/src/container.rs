//! Containers as the outside names and asks for them, and what is remembered of them on disk.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::quote;
use crate::image::appc::AcName;
use crate::image::digest::DiffId;
use crate::image::name::ImageRequest;
use crate::image::plan::ImageIdentity;
use crate::launch::{CapabilitySet, ImageIsolator, StdioSpec};

/// Longest container ID in bytes (Mesos: 255 less what its file names add).
pub const CONTAINER_ID_BYTES_MAX: usize = 242;

/// Name of a container: a safe file name by construction (Mesos `ContainerID.value`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ContainerId(String);

/// Why a text is no container ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("container ID {text:?} {reason}")]
pub struct ContainerIdError {
    text: String,
    reason: &'static str,
}

impl ContainerId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = ContainerIdError;

    fn from_str(text: &str) -> Result<Self, ContainerIdError> {
        let reason = if text.is_empty() {
            "is empty"
        } else if text.len() > CONTAINER_ID_BYTES_MAX {
            "is longer than 242 bytes"
        } else if text.starts_with('-') {
            "begins with '-', which commands would take for a flag"
        } else if text
            .contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '\\' | '.'))
        {
            "contains a dot, slash, backslash, space or control character"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(ContainerIdError { text: quote(text), reason })
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Name of one rootfs of one container: a number that grows within the container, so that names are
/// short (they end up in mount options) and never reused while the container lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootfsId(pub u32);

impl fmt::Display for RootfsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The backends by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// Layers stacked by overlayfs below a writable directory.
    Overlay,
    /// A tree of its own, all layers applied.
    Copy,
    /// One layer, read-only.
    Bind,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::Copy => "copy",
            Self::Bind => "bind",
        })
    }
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "overlay" => Self::Overlay,
            "copy" => Self::Copy,
            "bind" => Self::Bind,
            _ => {
                return Err(format!(
                    "backend {:?} is unknown; known are overlay, copy and bind",
                    quote(text)
                ));
            }
        })
    }
}

/// A container to launch.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its name; must not be in use.
    pub id: ContainerId,
    /// Its root filesystem; `None` = the host's (Mesos: an absent `MesosInfo.image`).
    pub image: Option<ImageRequest>,
    /// What to run.
    pub command: CommandSpec,
    /// What else to mount.
    pub volumes: Vec<VolumeSpec>,
    /// Whether the root filesystem is mounted read-only for the container.
    pub read_only: bool,
    /// Whether the container gets a terminal of its own.
    pub tty: bool,
    /// Where its standard streams go (without a terminal).
    pub stdio: StdioSpec,
    /// Capabilities the command runs with; `None` = the operator's default.
    pub effective_capabilities: Option<CapabilitySet>,
    /// Capabilities it can ever gain; `None` = the effective ones.
    pub bounding_capabilities: Option<CapabilitySet>,
    /// How much of the machine it may have.
    pub resources: Resources,
}

/// What a container may have of memory and processors. What is asked for and cannot be enforced is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Most memory, in bytes. Whoever needs more is killed.
    pub memory_bytes: Option<u64>,
    /// Memory that is to be left to it where others want it, in bytes.
    pub memory_request_bytes: Option<u64>,
    /// Most processor time, in thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Its share where others want the same processors, in thousandths of one.
    pub cpu_request_millis: Option<u64>,
}

/// Mesos `CommandInfo`: what to run, by the table of the docker/runtime isolator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Whether `value` is a line for `/bin/sh -c`.
    pub shell: bool,
    /// The line, or the file to execute (then `arguments[0]` is its `argv[0]`).
    pub value: Option<String>,
    /// Without `value`: operands that follow the image's entrypoint and replace its command.
    pub arguments: Vec<String>,
    /// Set in the container, above what the image sets.
    pub environment: Vec<(String, String)>,
    /// `user[:group]`, names or numbers, above the image's `User`.
    pub user: Option<String>,
    /// Above the image's `WorkingDir`.
    pub working_directory: Option<PathBuf>,
}

/// Mesos `Volume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Relative: under the sandbox. Absolute: inside the rootfs, created there; without a rootfs it must
    /// exist on the host. Means nothing with a mount point.
    pub container_path: PathBuf,
    /// The mount point that it fills, by its name in the manifest of the container's Appc image: the path stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_point: Option<AcName>,
    /// Whether the container may only read.
    pub read_only: bool,
    /// What is mounted there.
    pub source: VolumeSource,
}

/// What is mounted by a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// The root filesystem of an image.
    Image(ImageRequest),
    /// A file or directory of the host, absolute.
    HostPath(PathBuf),
}

/// How a container's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By `exit(code)`.
    Exited(u8),
    /// By this signal.
    Signaled(i32),
}

impl ExitStatus {
    /// What a shell, and podman, make of it: the code, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Signaled(signal) => 128 + signal,
        }
    }

    /// From the status word of wait(2).
    pub fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8 & 0xff) as u8),
            signal => Self::Signaled(signal),
        }
    }
}

/// A process, so that it cannot be taken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number in the initial pid namespace of this machine (of the caller, in a container).
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), stat field 22).
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// Where a container stands, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseName {
    /// Its images are being brought and mounted.
    Provisioning,
    /// It has a root filesystem and no process: `keelblock provision`.
    Provisioned,
    /// Isolators are at work, its process is not released yet.
    Preparing,
    /// Its process runs.
    Running,
    /// It is being taken down.
    Destroying,
}

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Provisioning => "provisioning",
            Self::Provisioned => "provisioned",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Destroying => "destroying",
        })
    }
}

/// What is remembered of a container in `<work_dir>/containers/<id>/record.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its name.
    pub id: ContainerId,
    /// Where it stands.
    pub phase: PhaseName,
    /// When it was asked for, milliseconds since 1970.
    pub created_ms: u64,
    /// Who keeps it: the process that launched it. `None` for a container that stays when its command ends.
    pub owner: Option<ProcessIdentity>,
    /// Its root image, when it has one.
    pub image: Option<ImageIdentity>,
    /// Its root filesystem on the host, once mounted.
    pub rootfs: Option<PathBuf>,
    /// The supervisor of its processes, once started.
    pub init: Option<ProcessIdentity>,
    /// What it runs, once known.
    pub argv: Vec<String>,
    /// What became of the isolators that its image names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_isolators: Vec<ImageIsolator>,
}

/// What is remembered of a container's root filesystems in `<work_dir>/provisioner/containers/<id>/layers.json`:
/// written before the first layer is fetched, so that prune and recover know of all that may exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsRecord {
    /// Every layer of every image provisioned for the container: none of them is pruned.
    pub layers: BTreeSet<DiffId>,
    /// Every image provisioned for it: their records are not pruned either.
    pub images: Vec<ImageIdentity>,
    /// Every root filesystem begun, mounted or not.
    pub rootfses: Vec<(RootfsId, BackendName)>,
    /// `boot_id` at the time: mounts of another boot are gone.
    pub boot_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_id_is_a_safe_file_name() {
        for text in ["web-1", "a", "0f_x", &"x".repeat(242)] {
            assert!(text.parse::<ContainerId>().is_ok(), "{text}");
        }
        for text in ["", ".", "..", "a.b", "a/b", "a b", "a\nb", "a\\b", "-x", &"x".repeat(243)] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_exit_status_is_what_a_shell_would_say() {
        assert_eq!(ExitStatus::from_wait_status(7 << 8).code(), 7);
        assert_eq!(ExitStatus::from_wait_status(9).code(), 137);
        assert_eq!(ExitStatus::from_wait_status(0x80 | 11), ExitStatus::Signaled(11));
    }
}

//! `<run_dir>/<id>/launch.json` and `status`: what other processes must know of a container to signal it, wait for
//! it and execute commands in it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keelblock_actors::container::{ContainerId, ProcessIdentity};
use keelblock_actors::launch::{CapabilityPlan, Credentials, Namespace};
use serde::{Deserialize, Serialize};

use super::error::LauncherError;
use super::launched::Ending;

/// What is remembered of a launch. It holds the environment, so only the owner may read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LaunchRecord {
    /// The supervisor.
    pub(super) init: ProcessIdentity,
    /// The command, unless it ended at once.
    pub(super) task: Option<ProcessIdentity>,
    /// Root filesystem on the host; `None` = the host's.
    pub(super) rootfs: Option<PathBuf>,
    /// Namespaces of its own, by name.
    pub(super) namespaces: Vec<String>,
    pub(super) credentials: Option<Credentials>,
    pub(super) capabilities: Option<CapabilityPlan>,
    pub(super) no_new_privs: bool,
    pub(super) environment: Vec<(String, String)>,
    pub(super) working_directory: Option<PathBuf>,
    /// Whether hooks run before or after the command.
    #[serde(default)]
    pub(super) hooks: bool,
}

const NAMES: [(Namespace, &str); 6] = [
    (Namespace::Mount, "mount"),
    (Namespace::Pid, "pid"),
    (Namespace::Ipc, "ipc"),
    (Namespace::Uts, "uts"),
    (Namespace::Network, "network"),
    (Namespace::Cgroup, "cgroup"),
];

pub(super) fn names(namespaces: &[Namespace]) -> Vec<String> {
    let known = NAMES.iter().filter(|(namespace, _)| namespaces.contains(namespace));
    known.map(|(_, name)| (*name).to_owned()).collect()
}

impl LaunchRecord {
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        let known = NAMES.iter().filter(|(_, name)| self.namespaces.iter().any(|text| text == name));
        known.map(|(namespace, _)| *namespace).collect()
    }

    /// What its supervisor's end is.
    pub(super) fn ending(&self) -> Ending {
        Ending { pid_namespace: self.namespaces().contains(&Namespace::Pid), hooks: self.hooks }
    }
}

/// The files of one container.
#[derive(Clone, Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(super) fn new(run_dir: &Path, container: &ContainerId) -> Self {
        Self { directory: run_dir.join(container.as_str()) }
    }

    fn record_path(&self) -> PathBuf {
        self.directory.join("launch.json")
    }

    /// A new, empty status file: for the supervisor to write, and for us to read.
    pub(super) fn make_status(&self) -> Result<(File, File), LauncherError> {
        let mut make = fs::DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(&self.directory).map_err(|source| file("make", &self.directory, source))?;
        let path = self.directory.join("status");
        let _ = fs::remove_file(&path);
        let mut open = OpenOptions::new();
        open.write(true).create_new(true).mode(0o600);
        let write = open.open(&path).map_err(|source| file("make", &path, source))?;
        let read = File::open(&path).map_err(|source| file("open", &path, source))?;
        Ok((write, read))
    }

    /// The status file of a container, if there is one.
    pub(super) fn status(&self) -> Result<Option<File>, LauncherError> {
        let path = self.directory.join("status");
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file("open", &path, source)),
        }
    }

    /// Writes the record, whole or not at all.
    pub(super) fn write(&self, record: &LaunchRecord) -> Result<(), LauncherError> {
        let path = self.record_path();
        let staged = self.directory.join("launch.json.new");
        let damaged = |source| LauncherError::Record { path: path.clone(), source };
        let text = serde_json::to_vec(record).map_err(damaged)?;
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600);
        open.open(&staged)
            .and_then(|mut file| file.write_all(&text))
            .map_err(|source| file("write", &staged, source))?;
        fs::rename(&staged, &path).map_err(|source| file("write", &path, source))
    }

    /// The record, if a launch got as far as writing one.
    pub(super) fn read(&self) -> Result<Option<LaunchRecord>, LauncherError> {
        let path = self.record_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file("read", &path, source)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| LauncherError::Record { path, source })
    }
}

fn file(act: &'static str, path: &Path, source: std::io::Error) -> LauncherError {
    LauncherError::File { act, path: path.to_owned(), source }
}

//! `cgroups/mem`, `cgroups/cpu`: how much memory and how many processors a container has at most.
//!
//! A container has a cgroup below `<--cgroups_hierarchy>[/<controller>]/<--cgroups_root>/`, of either version of
//! the kernel's cgroups. Its supervisor is put there before it is released, so all that it forks is inside; so is every
//! later `exec`. Names of cgroups are the machine's, those of containers the work directory's: a cgroup is named
//! `<container ID>.<which work directory>`.
//!
//! Where the cgroups of a container lie is written to `<run_dir>/<id>/cgroups.json` before the first is made. Who cleans
//! up, or executes a command in the container, goes by that and not by flags of its own, which may be others by then:
//! this isolator is in every list, and without these names in `--isolation` it only cleans up.

mod hierarchy;
mod journal;
pub(super) mod resources;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use keelblock_actors::container::{ContainerId, ProcessIdentity};
use keelblock_actors::error::IsolatorError;
use keelblock_actors::launch::{LaunchContext, LaunchPlan};
use keelblock_actors::ports::Isolator;
use slog::{Logger, warn};

pub(crate) use hierarchy::CgroupError;
pub(super) use resources::Enforced;

use super::{Settings, refused};
use hierarchy::{Hierarchy, PATIENCE};

pub(super) const MEM: &str = "cgroups/mem";
pub(super) const CPU: &str = "cgroups/cpu";

/// Where cgroups are made.
#[derive(Clone, Debug)]
pub struct CgroupSettings {
    /// `--cgroups_hierarchy`: where cgroups are mounted: the unified hierarchy, or a directory of those by controller.
    pub hierarchy: PathBuf,
    /// `--cgroups_root`: the cgroup, below that, in which those of containers are.
    pub root: PathBuf,
    /// Where each container has a directory, the launcher's. `None`: no container has cgroups, and asking for them
    /// is an error.
    pub run_dir: Option<PathBuf>,
}

impl Default for CgroupSettings {
    fn default() -> Self {
        Self { hierarchy: "/sys/fs/cgroup".into(), root: "keelblock".into(), run_dir: None }
    }
}

/// See the module.
pub(super) struct Cgroups {
    settings: CgroupSettings,
    wanted: resources::Enforced,
    log: Logger,
}

impl Cgroups {
    pub(super) fn new(settings: &Settings, wanted: resources::Enforced) -> Self {
        Self { settings: settings.cgroups.clone(), wanted, log: settings.log.clone() }
    }

    fn make(&self, id: &ContainerId, limits: &resources::Limits) -> Result<(), CgroupError> {
        let Some(run_dir) = &self.settings.run_dir else { return Err(CgroupError::NoRunDirectory) };
        let hierarchy = Hierarchy::find(&self.settings.hierarchy, &self.settings.root);
        let controllers = self.wanted.controllers();
        for controller in &controllers {
            hierarchy.check(controller)?;
        }
        let name = journal::cgroup_name(run_dir, id)?;
        let directories = hierarchy.directories(&controllers, &name);
        journal::write(run_dir, id, &directories)?;
        hierarchy.make(&controllers, &name)?;
        for (controller, file, value) in limits.files(hierarchy.is_unified()) {
            let written = hierarchy.set(controller, &name, file.name, &value);
            if file.optional && matches!(written, Err(CgroupError::NoFile { .. })) {
                continue;
            }
            written?;
        }
        Ok(())
    }

    fn remove(&self, id: &ContainerId) -> Result<(), CgroupError> {
        let Some(run_dir) = &self.settings.run_dir else { return Ok(()) };
        let directories = match journal::read(run_dir, id) {
            Ok(None) => return Ok(()),
            Ok(Some(directories)) => directories,
            // It is written whole or not at all, but for a power cut: and that leaves no cgroup.
            Err(CgroupError::Journal { path, .. }) => {
                warn!(self.log, "where a container had its cgroups is not known any more"; "container" => %id,
                    "path" => path.display().to_string());
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for directory in &directories {
            if let Some(killed) = hierarchy::killed_for_memory(directory) {
                warn!(self.log, "processes of a container were killed: its memory was at its limit; give it more with \
                    --memory, or make it need less"; "container" => %id, "killed" => killed.processes,
                    "limit_bytes" => killed.limit);
            }
        }
        for directory in &directories {
            hierarchy::remove(directory, PATIENCE)?;
        }
        journal::remove(run_dir, id)
    }
}

impl Isolator for Cgroups {
    fn name(&self) -> &'static str {
        "cgroups"
    }

    fn prepare(&self, context: &LaunchContext, _: &mut LaunchPlan) -> Result<(), IsolatorError> {
        let limits = resources::limits(context, self.wanted)
            .map_err(|error| refused(error.isolator(), &context.id, error))?;
        if !self.wanted.any() {
            return Ok(());
        }
        let name = if self.wanted.memory { MEM } else { CPU };
        self.make(&context.id, &limits).map_err(|error| refused(name, &context.id, error))
    }

    fn isolate(&self, container: &ContainerId, init: &ProcessIdentity) -> Result<(), IsolatorError> {
        let Some(run_dir) = &self.settings.run_dir else { return Ok(()) };
        join(run_dir, container, init).map_err(|source| IsolatorError {
            isolator: self.name(),
            act: "isolate",
            container: container.clone(),
            source: Box::new(source),
        })
    }

    fn cleanup(&self, container: &ContainerId) -> Result<(), IsolatorError> {
        self.remove(container).map_err(|source| IsolatorError {
            isolator: self.name(),
            act: "clean up",
            container: container.clone(),
            source: Box::new(source),
        })
    }
}

/// Puts a process into the cgroups of a container, if that has any. It must be a child of ours that nobody has reaped
/// yet, or its number may come to mean another.
pub(crate) fn join(
    run_dir: &Path,
    container: &ContainerId,
    process: &ProcessIdentity,
) -> Result<(), CgroupError> {
    for directory in journal::read(run_dir, container)?.unwrap_or_default() {
        hierarchy::join(&directory, process)?;
    }
    Ok(())
}

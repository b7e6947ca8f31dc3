//! `volume/host_path` and `volume/image`: other trees in a container's.
//!
//! A relative path is under the sandbox, an absolute one in the root, where it is made to match its source;
//! and a volume that fills a mount point of an Appc image goes where the image says (`appc::mount_points`);
//! without a root of its own the container sees the host's tree, in which nothing is made: the path must exist.

use std::io;
use std::path::{Component, Path, PathBuf};

use keelblock_actors::container::VolumeSource;
use keelblock_actors::error::IsolatorError;
use keelblock_actors::launch::{
    LaunchContext, LaunchPlan, MissingTarget, MountAttributes, MountSource, MountedVolume, TreeStep,
};
use keelblock_actors::ports::Isolator;

use super::appc::mount_points::{self, MountPointError};
use super::filesystem::mount;
use super::{Settings, refused};

/// One of the two, by its sources.
pub(super) struct Volumes {
    name: &'static str,
    images: bool,
    sandbox_directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum VolumeError {
    #[error("container path {path} of a volume is empty, is the root, or holds '..'")]
    Path { path: PathBuf },
    #[error("host path {path} of a volume is not absolute")]
    RelativeSource { path: PathBuf },
    #[error(transparent)]
    MountPoint(#[from] MountPointError),
    #[error("cannot use {path} as a volume")]
    Source {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Volumes {
    pub(super) fn host_path(settings: &Settings) -> Self {
        let sandbox_directory = settings.sandbox_directory.clone();
        Self { name: "volume/host_path", images: false, sandbox_directory }
    }

    pub(super) fn image(settings: &Settings) -> Self {
        let sandbox_directory = settings.sandbox_directory.clone();
        Self { name: "volume/image", images: true, sandbox_directory }
    }

    fn steps(&self, context: &LaunchContext, volume: &MountedVolume) -> Result<Vec<TreeStep>, VolumeError> {
        let source = &volume.host_path;
        if !source.is_absolute() {
            return Err(VolumeError::RelativeSource { path: source.clone() });
        }
        let kind =
            source.metadata().map_err(|error| VolumeError::Source { path: source.clone(), source: error })?;
        mount_points::check_source(&volume.spec)?;
        let (path, read_only) = mount_points::place(context, &volume.spec)?;
        let target = self.target(context, &path)?;
        // Nothing of the host's tree is made for a container.
        let on_host = context.rootfs.is_none() && path.is_absolute();
        if on_host && target == *source && !read_only {
            return Ok(Vec::new());
        }
        let missing = match (on_host, kind.is_dir()) {
            (true, _) => MissingTarget::Fail,
            (false, true) => MissingTarget::Directory,
            (false, false) => MissingTarget::File,
        };
        // Devices are for those who name them: a tree of an image or of the host brings none.
        let attributes = MountAttributes {
            read_only,
            nodev: self.images || !source.starts_with("/dev"),
            ..MountAttributes::default()
        };
        let mut steps = Vec::new();
        if volume.spec.mount_point.is_some() && kind.is_dir() {
            steps.push(TreeStep::Room(target.clone()));
        }
        steps.push(mount(MountSource::Bind(source.clone()), target, attributes, missing));
        Ok(steps)
    }

    fn target(&self, context: &LaunchContext, path: &Path) -> Result<PathBuf, VolumeError> {
        let wrong = || VolumeError::Path { path: path.to_owned() };
        let mut names = 0;
        for part in path.components() {
            match part {
                Component::Normal(_) => names += 1,
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
            }
        }
        if names == 0 {
            return Err(wrong());
        }
        Ok(match (path.is_absolute(), &context.rootfs) {
            (true, _) => path.to_owned(),
            (false, Some(_)) => self.sandbox_directory.join(path),
            (false, None) => context.sandbox.join(path),
        })
    }
}

impl Isolator for Volumes {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        let ours =
            |volume: &&MountedVolume| matches!(volume.spec.source, VolumeSource::Image(_)) == self.images;
        let failed = |error| refused(self.name, &context.id, error);
        mount_points::check_overlaps(context).map_err(|error| failed(error.into()))?;
        for volume in context.volumes.iter().filter(ours) {
            plan.tree.extend(self.steps(context, volume).map_err(failed)?);
        }
        Ok(())
    }
}

//! `docker/runtime`: what the image's config asks of whoever runs it, below what the caller asks.
//!
//! Without it in the list the same room, then called `command`, sees to the caller's side alone.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use keelblock_actors::container::ContainerId;
use keelblock_actors::error::IsolatorError;
use keelblock_actors::image::plan::RuntimeConfig;
use keelblock_actors::launch::{Credentials, LaunchContext, LaunchPlan, set_once};
use keelblock_actors::ports::Isolator;

use super::user::{User, resolve};
use super::{Settings, command, environment, refused};
use crate::rootless::IdMaps;

/// See the module.
pub(super) struct Runtime {
    name: &'static str,
    use_image: bool,
    use_image_user: bool,
    arguments_replace_cmd: bool,
    sandbox_directory: PathBuf,
    ids: IdMaps,
    user_file_bytes_max: u64,
}

#[derive(Debug, thiserror::Error)]
enum RuntimeError {
    #[error("cannot give the sandbox {path} to user {uid}")]
    Sandbox {
        path: PathBuf,
        uid: u32,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "user {uid}:{gid} does not exist in the user namespace of this command; give this user numbers in /etc/subuid \
         and /etc/subgid, or run as the container's root with --user 0 or --docker_ignore_user"
    )]
    NoSuchUser { uid: u32, gid: u32 },
    #[error("working directory {path} holds '..' or a null byte")]
    WorkingDirectory { path: PathBuf },
}

impl Runtime {
    pub(super) fn new(settings: &Settings, docker: bool) -> Self {
        let use_image = docker && !settings.docker_ignore_runtime;
        Self {
            name: if docker { "docker/runtime" } else { "command" },
            use_image,
            use_image_user: use_image && !settings.docker_ignore_user,
            arguments_replace_cmd: settings.arguments_replace_cmd,
            sandbox_directory: settings.sandbox_directory.clone(),
            ids: settings.ids.clone(),
            user_file_bytes_max: settings.user_file_bytes_max,
        }
    }

    /// Who the command runs as: as the caller says, else the image, else root with root's groups.
    fn user(&self, context: &LaunchContext, image: Option<&RuntimeConfig>) -> Result<User, IsolatorError> {
        let of_image = image.filter(|_| self.use_image_user).and_then(|image| image.user.as_deref());
        let spec = context.command.user.as_deref().or(of_image);
        let root = match (&context.rootfs, spec) {
            (Some(rootfs), _) => rootfs.as_path(),
            (None, Some(_)) => Path::new("/"),
            // Without a root of its own and without a name: as we are.
            (None, None) => return Ok(User::default()),
        };
        resolve(root, spec.unwrap_or("0"), self.user_file_bytes_max)
            .map_err(|error| refused(self.name, &context.id, error))
    }

    fn directory(
        &self,
        context: &LaunchContext,
        image: Option<&RuntimeConfig>,
    ) -> Result<PathBuf, RuntimeError> {
        let of_image = image.and_then(|image| image.working_dir.as_ref());
        let asked = context.command.working_directory.as_ref();
        let Some(_) = &context.rootfs else {
            // Mesos: always the sandbox; a WORKDIR means nothing on the host.
            return Ok(asked.filter(|path| path.is_absolute()).unwrap_or(&context.sandbox).clone());
        };
        let Some(directory) = asked.or(of_image) else { return Ok(self.sandbox_directory.clone()) };
        let directory = Path::new("/").join(directory);
        // Inside it could not lead out; but nobody means it.
        if directory.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(RuntimeError::WorkingDirectory { path: directory });
        }
        Ok(directory)
    }
}

/// The sandbox is its user's, as in Mesos; what is in it stays as it is.
fn give_sandbox(sandbox: &Path, user: &User) -> Result<(), RuntimeError> {
    let (uid, gid) = (user.credentials.uid, user.credentials.gid);
    chown(sandbox, Some(uid), Some(gid)).map_err(|source| RuntimeError::Sandbox {
        path: sandbox.to_owned(),
        uid,
        source,
    })
}

impl Isolator for Runtime {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        let id: &ContainerId = &context.id;
        let image = context.runtime.as_ref().filter(|_| self.use_image);
        let argv = command::argv(&context.command, image, self.arguments_replace_cmd)
            .map_err(|error| refused(self.name, id, error))?;
        let user = self.user(context, image)?;
        let directory = self.directory(context, image).map_err(|error| refused(self.name, id, error))?;
        let Credentials { uid, gid, .. } = user.credentials;
        if !self.ids.has_uid(uid) || !self.ids.has_gid(gid) {
            return Err(refused(self.name, id, RuntimeError::NoSuchUser { uid, gid }));
        }
        if uid != 0 {
            give_sandbox(&context.sandbox, &user).map_err(|error| refused(self.name, id, error))?;
        }
        let sandbox = if context.rootfs.is_some() { &self.sandbox_directory } else { &context.sandbox };
        let home = user.home.as_deref().unwrap_or(if user.credentials.uid == 0 { "/root" } else { "/" });
        plan.environment = environment::merge(
            home,
            &sandbox.to_string_lossy(),
            context.tty,
            image.map_or(&[], |image| image.env.as_slice()),
            &context.command.environment,
        );
        let twice = |error| refused(self.name, id, error);
        set_once(&mut plan.argv, argv.argv, "command").map_err(twice)?;
        plan.executable = argv.executable;
        set_once(&mut plan.working_directory, directory, "working directory").map_err(twice)?;
        set_once(&mut plan.credentials, user.credentials, "user").map_err(twice)?;
        plan.tty = context.tty;
        plan.stdio = context.stdio.clone();
        plan.sandbox.clone_from(&context.sandbox);
        Ok(())
    }
}

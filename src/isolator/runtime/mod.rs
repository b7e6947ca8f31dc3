//! What a container's command is, its environment, directory and user: `docker/runtime` and `appc/runtime`.
//!
//! Each sees to the images of its kind: what the image asks of whoever runs it ([`docker`], [`appc`] turn that into an
//! [`Asked`]) comes below what the caller asks, here, once for both. A container whose kind is in no `--isolation`, or
//! that has no image, is `command`'s, for whom only the caller's side counts.

mod appc;
mod command;
mod docker;
mod environment;

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use keelblock_actors::error::IsolatorError;
use keelblock_actors::image::appc::AppcManifest;
use keelblock_actors::launch::{Credentials, LaunchContext, LaunchPlan, set_once};
use keelblock_actors::ports::Isolator;

pub use command::CommandError;

use super::appc::isolators::Enforcers;
use super::user::{User, UserError, resolve};
use super::{Settings, refused};
use crate::rootless::IdMaps;

/// The three isolators that say what to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Docker,
    Appc,
    /// Those that the two others leave, by whether they are there.
    Command {
        docker: bool,
        appc: bool,
    },
}

/// See the module.
pub(super) struct Runtime {
    name: Name,
    appc: appc::Appc,
    docker_ignore_runtime: bool,
    docker_ignore_user: bool,
    arguments_replace_cmd: bool,
    sandbox_directory: PathBuf,
    ids: IdMaps,
    user_file_bytes_max: u64,
}

/// What an image asks, below the caller.
#[derive(Default)]
struct Asked {
    /// Below what the caller sets.
    environment: Vec<(String, String)>,
    user: Option<AskedUser>,
    directory: Option<AskedDirectory>,
}

enum AskedUser {
    /// `user[:group]`, by docker's rules.
    Docker(String),
    /// Found already.
    Found(User),
}

struct AskedDirectory {
    path: PathBuf,
    must_exist: bool,
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

/// The isolator for containers of kinds that are not in the list, if there are such kinds.
pub(super) fn command(
    settings: &Settings,
    enforcers: &Enforcers,
    docker: bool,
    appc: bool,
) -> Option<Runtime> {
    (!(docker && appc)).then(|| Runtime::new(settings, enforcers, Name::Command { docker, appc }))
}

impl Runtime {
    pub(super) fn docker(settings: &Settings, enforcers: &Enforcers) -> Self {
        Self::new(settings, enforcers, Name::Docker)
    }

    pub(super) fn appc(settings: &Settings, enforcers: &Enforcers) -> Self {
        Self::new(settings, enforcers, Name::Appc)
    }

    fn new(settings: &Settings, enforcers: &Enforcers, name: Name) -> Self {
        Self {
            name,
            appc: appc::Appc::new(settings, enforcers),
            docker_ignore_runtime: settings.docker_ignore_runtime,
            docker_ignore_user: settings.docker_ignore_user,
            arguments_replace_cmd: settings.arguments_replace_cmd,
            sandbox_directory: settings.sandbox_directory.clone(),
            ids: settings.ids.clone(),
            user_file_bytes_max: settings.user_file_bytes_max,
        }
    }

    /// Whether a container is this one's.
    fn sees_to(&self, manifest: Option<&AppcManifest>) -> bool {
        match (self.name, manifest) {
            (Name::Docker, None) | (Name::Appc, Some(_)) => true,
            (Name::Command { docker, .. }, None) => !docker,
            (Name::Command { appc, .. }, Some(_)) => !appc,
            (Name::Docker, Some(_)) | (Name::Appc, None) => false,
        }
    }

    /// Who the command runs as: as the caller says, else the image, else root with root's groups.
    fn user(&self, context: &LaunchContext, image: Option<AskedUser>) -> Result<User, UserError> {
        let (of_caller, of_image) = (context.command.user.clone(), image);
        let spec = match (of_caller, of_image) {
            (Some(spec), _) | (None, Some(AskedUser::Docker(spec))) => Some(spec),
            (None, Some(AskedUser::Found(user))) => return Ok(user),
            (None, None) => None,
        };
        let root = match (&context.rootfs, &spec) {
            (Some(rootfs), _) => rootfs.as_path(),
            (None, Some(_)) => Path::new("/"),
            // Without a root of its own and without a name: as we are.
            (None, None) => return Ok(User::default()),
        };
        resolve(root, spec.as_deref().unwrap_or("0"), self.user_file_bytes_max)
    }

    fn directory(
        &self,
        context: &LaunchContext,
        image: Option<AskedDirectory>,
    ) -> Result<(PathBuf, bool), RuntimeError> {
        let asked = context.command.working_directory.as_ref();
        let Some(_) = &context.rootfs else {
            // Mesos: always the sandbox; a WORKDIR means nothing on the host.
            let directory = asked.filter(|path| path.is_absolute()).unwrap_or(&context.sandbox).clone();
            return Ok((directory, false));
        };
        let (directory, must_exist) = match (asked, image) {
            (Some(asked), _) => (asked.clone(), false),
            (None, Some(AskedDirectory { path, must_exist })) => (path, must_exist),
            (None, None) => return Ok((self.sandbox_directory.clone(), false)),
        };
        let directory = Path::new("/").join(directory);
        // Inside it could not lead out; but nobody means it.
        if directory.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(RuntimeError::WorkingDirectory { path: directory });
        }
        Ok((directory, must_exist))
    }

    /// The part of this isolator in the plan, both sides known.
    fn fill(
        &self,
        context: &LaunchContext,
        plan: &mut LaunchPlan,
        argv: command::Argv,
        asked: Asked,
    ) -> Result<(), IsolatorError> {
        let failed = |error| refused(self.name(), &context.id, error);
        let user =
            self.user(context, asked.user).map_err(|error| refused(self.name(), &context.id, error))?;
        let (directory, must_exist) = self.directory(context, asked.directory).map_err(failed)?;
        let Credentials { uid, gid, .. } = user.credentials;
        if !self.ids.has_uid(uid) || !self.ids.has_gid(gid) {
            return Err(failed(RuntimeError::NoSuchUser { uid, gid }));
        }
        if uid != 0 {
            give_sandbox(&context.sandbox, &user).map_err(failed)?;
        }
        let sandbox = if context.rootfs.is_some() { &self.sandbox_directory } else { &context.sandbox };
        let home = user.home.as_deref().unwrap_or(if user.credentials.uid == 0 { "/root" } else { "/" });
        plan.environment = environment::merge(
            home,
            &sandbox.to_string_lossy(),
            context.tty,
            &asked.environment,
            &context.command.environment,
        );
        let twice = |error| refused(self.name(), &context.id, error);
        set_once(&mut plan.argv, argv.argv, "command").map_err(twice)?;
        plan.executable = argv.executable;
        set_once(&mut plan.working_directory, directory, "working directory").map_err(twice)?;
        plan.working_directory_must_exist = must_exist;
        set_once(&mut plan.credentials, user.credentials, "user").map_err(twice)?;
        plan.tty = context.tty;
        plan.stdio = context.stdio.clone();
        plan.sandbox.clone_from(&context.sandbox);
        Ok(())
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
        match self.name {
            Name::Docker => "docker/runtime",
            Name::Appc => "appc/runtime",
            Name::Command { .. } => "command",
        }
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        let runtime = context.runtime.as_ref();
        let manifest = runtime.and_then(|runtime| runtime.appc.as_deref());
        if !self.sees_to(manifest) {
            return Ok(());
        }
        let failed = |error: CommandError| refused(self.name(), &context.id, error);
        let (caller, replace) = (&context.command, self.arguments_replace_cmd);
        match (self.name, manifest) {
            (Name::Appc, Some(manifest)) => {
                let app = manifest.app.as_ref();
                let argv = command::of_appc(caller, manifest, replace).map_err(failed)?;
                let Some(app) = app else { return self.fill(context, plan, argv, Asked::default()) };
                let asked = self.appc.asked(context, manifest, app)?;
                self.fill(context, plan, argv, asked)?;
                self.appc.rest(context, app, plan)
            }
            (Name::Docker, _) => {
                let image = runtime.filter(|_| !self.docker_ignore_runtime);
                let argv = command::argv(caller, image, replace).map_err(failed)?;
                let asked = image.map(|image| docker::asked(image, self.docker_ignore_user));
                self.fill(context, plan, argv, asked.unwrap_or_default())
            }
            _ => {
                let argv = command::argv(caller, None, replace).map_err(failed)?;
                self.fill(context, plan, argv, Asked::default())
            }
        }
    }
}

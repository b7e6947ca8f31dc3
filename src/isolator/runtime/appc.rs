//! What the `app` of an Appc image's manifest asks (appc spec 0.8.11, aci.md and ace.md, "Apps Perspective").
//!
//! `AC_METADATA_URL` is not set: there is no metadata service, and an address at which nobody answers would be worse.

use std::path::{Path, PathBuf};

use keelblock_actors::error::IsolatorError;
use keelblock_actors::image::appc::{App, AppcManifest, EventName};
use keelblock_actors::launch::{Hook, HookTime, IsolatorOutcome, LaunchContext, LaunchPlan};
use slog::{Logger, info, warn};

use super::{Asked, AskedDirectory, AskedUser};
use crate::isolator::appc::isolators::{Enforcers, NotInPlace};
use crate::isolator::appc::{isolators, mount_points, owner};
use crate::isolator::{Settings, refused};

/// Who keeps the environment variable `container`.
const EXECUTOR: &str = "keelblock";
const NAME: &str = "appc/runtime";

pub(super) struct Appc {
    enforcers: Enforcers,
    strict: bool,
    user_file_bytes_max: u64,
    log: Logger,
}

impl Appc {
    pub(super) fn new(settings: &Settings, enforcers: &Enforcers) -> Self {
        Self {
            enforcers: enforcers.clone(),
            strict: settings.appc_strict_isolators,
            user_file_bytes_max: settings.user_file_bytes_max,
            log: settings.log.clone(),
        }
    }

    pub(super) fn asked(
        &self,
        context: &LaunchContext,
        manifest: &AppcManifest,
        app: &App,
    ) -> Result<Asked, IsolatorError> {
        let mut environment = app.environment.clone();
        // What the executor says of itself is not the image's to say.
        environment.retain(|(name, _)| !matches!(name.as_str(), "AC_APP_NAME" | "container"));
        environment.push(("AC_APP_NAME".to_owned(), app_name(manifest)));
        environment.push(("container".to_owned(), EXECUTOR.to_owned()));
        let user = match (&context.command.user, &context.rootfs) {
            (None, Some(root)) => {
                let user = owner::resolve(root, app, self.user_file_bytes_max)
                    .map_err(|error| refused(NAME, &context.id, error))?;
                Some(AskedUser::Found(user))
            }
            _ => None,
        };
        let path = app.working_directory.as_deref().map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Ok(Asked { environment, user, directory: Some(AskedDirectory { path, must_exist: true }) })
    }

    /// Mount points, isolators, event handlers.
    pub(super) fn rest(
        &self,
        context: &LaunchContext,
        app: &App,
        plan: &mut LaunchPlan,
    ) -> Result<(), IsolatorError> {
        let owner = plan.credentials.clone().unwrap_or_default();
        let steps = mount_points::unfilled(context, app, &owner)
            .map_err(|error| refused(NAME, &context.id, error))?;
        plan.tree.extend(steps);
        for masked in mount_points::masked(context) {
            warn!(self.log, "a volume hides what the image has at its mount point"; "container" => %context.id,
                "path" => masked.path.display().to_string(), "reason" => masked.what);
        }
        self.isolators(context, app, plan)?;
        for handler in app.event_handlers.iter().filter(|handler| !handler.exec.is_empty()) {
            let when = match handler.name {
                EventName::PreStart => HookTime::PreStart,
                EventName::PostStop => HookTime::PostStop,
            };
            plan.hooks.push(Hook { when, argv: handler.exec.clone() });
        }
        Ok(())
    }

    fn isolators(
        &self,
        context: &LaunchContext,
        app: &App,
        plan: &mut LaunchPlan,
    ) -> Result<(), IsolatorError> {
        let decided = isolators::decide(context, app, &self.enforcers)
            .map_err(|error| refused(NAME, &context.id, error))?;
        plan.no_new_privs |= decided.no_new_privs;
        plan.oom_score_adj = decided.oom_score_adj;
        plan.image_isolators = decided.outcomes;
        if self.strict {
            NotInPlace::check(&plan.image_isolators).map_err(|error| refused(NAME, &context.id, error))?;
        }
        for isolator in &plan.image_isolators {
            let outcome = match isolator.outcome {
                IsolatorOutcome::Enforced => {
                    info!(self.log, "isolator of the image is enforced"; "container" => %context.id,
                        "isolator" => &isolator.name);
                    continue;
                }
                IsolatorOutcome::Modified => "modified",
                IsolatorOutcome::Ignored => "ignored",
            };
            warn!(self.log, "isolator of the image is not enforced as it has it"; "container" => %context.id,
                "isolator" => &isolator.name, "outcome" => outcome, "reason" => &isolator.why);
        }
        Ok(())
    }
}

/// The name of the app: the last part of the image's name, as an AC Name, which it must be in the addresses of a
/// metadata service. As rkt does.
fn app_name(manifest: &AppcManifest) -> String {
    let name = manifest.name.name.as_str();
    let last = Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or(name);
    last.replace(['.', '_', '~'], "-")
}

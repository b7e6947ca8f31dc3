//! What becomes of the isolators that an image names (appc spec 0.8.11, ace.md, "Isolators").
//!
//! A user must be told which were ignored, enforced or modified: each has an [`ImageIsolator`], in the log and in the
//! container's record. An image may narrow what it gets, never widen it: the most is the operator's to say.

use std::str::FromStr;

use keelblock_actors::error::quote;
use keelblock_actors::image::appc::{App, Isolator};
use keelblock_actors::launch::{CapabilitySet, ImageIsolator, IsolatorOutcome, LaunchContext};
use serde::Deserialize;

use crate::isolator::Settings;
use crate::isolator::capabilities::default_set;
use crate::isolator::cgroups::resources;

const RETAIN: &str = "os/linux/capabilities-retain-set";
const REMOVE: &str = "os/linux/capabilities-remove-set";
const NO_NEW_PRIVILEGES: &str = "os/linux/no-new-privileges";
const OOM_SCORE_ADJ: &str = "os/linux/oom-score-adj";

/// Who is there to enforce what.
#[derive(Clone, Debug)]
pub(in crate::isolator) struct Enforcers {
    /// Whether `appc/runtime` is in the list.
    pub(in crate::isolator) appc: bool,
    /// Whether `linux/capabilities` is in the list.
    pub(in crate::isolator) capabilities: bool,
    /// Whether `linux/nnp` is: it has no_new_privs set whatever images say.
    pub(in crate::isolator) no_new_privs: bool,
    /// Whether `cgroups/mem` is.
    pub(in crate::isolator) memory: bool,
    /// Whether `cgroups/cpu` is.
    pub(in crate::isolator) cpu: bool,
    pub(in crate::isolator) limits: CapabilityLimits,
    /// Least value of `oom_score_adj` that we may write.
    pub(in crate::isolator) oom_score_adj_min: i32,
}

/// What operators say of capabilities.
#[derive(Clone, Copy, Debug)]
pub(in crate::isolator) struct CapabilityLimits {
    /// What containers have that ask for none.
    default: CapabilitySet,
    /// What an image can have at most.
    most: CapabilitySet,
}

impl CapabilityLimits {
    pub(in crate::isolator) fn new(
        effective: Option<CapabilitySet>,
        bounding: Option<CapabilitySet>,
    ) -> Self {
        let default = effective.unwrap_or_else(default_set);
        let most = bounding.unwrap_or(default);
        Self { default: CapabilitySet(default.0 & most.0), most }
    }
}

impl Enforcers {
    /// None yet, but for what is found out of this process and the operator's settings.
    pub(in crate::isolator) fn new(settings: &Settings) -> Self {
        let ours = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
        let current = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
        let current = current.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let oom_score_adj_min = match settings.ids.is_whole_machine() {
            true if ours.contains(&caps::Capability::CAP_SYS_RESOURCE) => -1000,
            true => current,
            // The file of a process that is not dumpable is the machine's root's.
            false => i32::MAX,
        };
        Self {
            appc: false,
            capabilities: false,
            no_new_privs: false,
            memory: false,
            cpu: false,
            limits: CapabilityLimits::new(settings.effective_capabilities, settings.bounding_capabilities),
            oom_score_adj_min,
        }
    }
}

/// A value that is not what the name of its isolator says.
#[derive(Debug, thiserror::Error)]
pub(in crate::isolator) enum IsolatorValueError {
    #[error("isolator {name} of the image has a value that is none: {value:?}")]
    Value {
        name: String,
        value: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("isolator {OOM_SCORE_ADJ} of the image is {value}; it must be between -1000 and 1000")]
    OomScoreAdj { value: i64 },
    #[error(transparent)]
    Resource(#[from] resources::ImageValueError),
    #[error("the image has both {RETAIN} and {REMOVE}; only one of them can be")]
    BothSets,
}

/// With `--appc_strict_isolators`: something is not as the image has it.
#[derive(Debug, thiserror::Error)]
#[error(
    "isolators of the image are not in place: {list}; add what enforces them, or run it without --appc_strict_isolators"
)]
pub(in crate::isolator) struct NotInPlace {
    list: String,
}

impl NotInPlace {
    pub(in crate::isolator) fn check(isolators: &[ImageIsolator]) -> Result<(), Self> {
        let missing = isolators.iter().filter(|one| one.outcome != IsolatorOutcome::Enforced);
        let list: Vec<_> = missing.map(|one| format!("{} ({})", one.name, one.why)).collect();
        if list.is_empty() { Ok(()) } else { Err(Self { list: list.join(", ") }) }
    }
}

/// What is done about the isolators of an app.
#[derive(Debug, Default, PartialEq)]
pub(in crate::isolator) struct Decided {
    pub(in crate::isolator) no_new_privs: bool,
    pub(in crate::isolator) oom_score_adj: Option<i32>,
    /// One for each, in the image's order.
    pub(in crate::isolator) outcomes: Vec<ImageIsolator>,
}

/// Decides of every isolator of an app. What of them becomes capabilities is `linux/capabilities`' to carry out, by
/// [`bounding`].
pub(in crate::isolator) fn decide(
    context: &LaunchContext,
    app: &App,
    enforcers: &Enforcers,
) -> Result<Decided, IsolatorValueError> {
    let mut decided = Decided::default();
    let sets = capability_sets(app, enforcers.limits)?;
    for isolator in &app.isolators {
        let (outcome, why) = match isolator.name.as_str() {
            RETAIN | REMOVE => capabilities(context, enforcers, sets.as_ref()),
            NO_NEW_PRIVILEGES => {
                let asked: bool = value(isolator)?;
                decided.no_new_privs |= asked;
                match !asked && enforcers.no_new_privs {
                    true => modified("the operator has it set for all containers (linux/nnp)"),
                    false => enforced(),
                }
            }
            OOM_SCORE_ADJ => {
                let asked: i64 = value(isolator)?;
                let number = i32::try_from(asked).ok().filter(|number| (-1000..=1000).contains(number));
                let number = number.ok_or(IsolatorValueError::OomScoreAdj { value: asked })?;
                if number < enforcers.oom_score_adj_min {
                    ignored(
                        "it takes root, and CAP_SYS_RESOURCE to lower it, which keelblock does not have here",
                    )
                } else {
                    decided.oom_score_adj = Some(number);
                    enforced()
                }
            }
            name if name.starts_with("resource/") => resource(context, isolator, enforcers)?,
            name => others(name),
        };
        decided.outcomes.push(ImageIsolator { name: isolator.name.to_string(), outcome, why });
    }
    Ok(decided)
}

type Outcome = (IsolatorOutcome, String);

fn enforced() -> Outcome {
    (IsolatorOutcome::Enforced, String::new())
}

fn modified(why: impl Into<String>) -> Outcome {
    (IsolatorOutcome::Modified, why.into())
}

fn ignored(why: impl Into<String>) -> Outcome {
    (IsolatorOutcome::Ignored, why.into())
}

/// Limits of resources: whether what limits them is in the list.
fn resource(
    context: &LaunchContext,
    isolator: &Isolator,
    enforcers: &Enforcers,
) -> Result<Outcome, IsolatorValueError> {
    let name = isolator.name.as_str();
    let (there, missing) = match name {
        "resource/memory" => (enforcers.memory, "cgroups/mem is not in --isolation"),
        "resource/cpu" => (enforcers.cpu, "cgroups/cpu is not in --isolation"),
        _ => (false, "nothing limits this resource"),
    };
    if !there {
        return Ok(ignored(missing));
    }
    let asked = resources::asked_by_image(isolator)?;
    Ok(match asked.changed {
        _ if resources::caller_asks(&context.resources, name) => {
            modified("the caller asked for other limits")
        }
        Some(why) => modified(why),
        None => enforced(),
    })
}

/// Isolators that nothing here enforces.
fn others(name: &str) -> Outcome {
    ignored(match name {
        "os/unix/sysctl" => "kernel parameters are not set for containers",
        "os/linux/seccomp-remove-set" | "os/linux/seccomp-retain-set" => "system calls are not filtered",
        "os/linux/selinux-context" | "os/linux/apparmor-profile" => "labels and profiles are not applied",
        "os/linux/cpu-shares" => "shares of processors are not given",
        _ => "it is not known",
    })
}

fn capabilities(context: &LaunchContext, enforcers: &Enforcers, sets: Option<&Sets>) -> Outcome {
    if !enforcers.capabilities {
        return ignored("linux/capabilities is not in --isolation");
    }
    if context.effective_capabilities.is_some() || context.bounding_capabilities.is_some() {
        return modified("the caller asked for capabilities");
    }
    match sets.map(|sets| sets.beyond.as_slice()) {
        None | Some([]) => enforced(),
        Some(beyond) => modified(format!(
            "images cannot have {}; allow it with --bounding_capabilities or --cap_add",
            beyond.join(", ")
        )),
    }
}

/// What sets of capabilities come to.
struct Sets {
    bounding: CapabilitySet,
    /// Names that the image asks for and does not get.
    beyond: Vec<String>,
}

#[derive(Deserialize)]
struct SetValue {
    set: Vec<String>,
}

fn value<'a, T: Deserialize<'a>>(isolator: &'a Isolator) -> Result<T, IsolatorValueError> {
    serde_json::from_str(&isolator.value).map_err(|source| IsolatorValueError::Value {
        name: isolator.name.to_string(),
        value: quote(&isolator.value),
        source,
    })
}

fn capability_sets(app: &App, limits: CapabilityLimits) -> Result<Option<Sets>, IsolatorValueError> {
    let named = |name: &'static str| app.isolators.iter().filter(move |one| one.name.as_str() == name);
    let (mut retain, mut remove) = (named(RETAIN).peekable(), named(REMOVE).peekable());
    match (retain.peek().is_some(), remove.peek().is_some()) {
        (true, true) => return Err(IsolatorValueError::BothSets),
        (false, false) => return Ok(None),
        _ => {}
    }
    let mut sets = Sets { bounding: limits.default, beyond: Vec::new() };
    for isolator in retain {
        sets.bounding = CapabilitySet(0);
        for name in value::<SetValue>(isolator)?.set {
            match caps::Capability::from_str(&name) {
                Ok(known) if known.bitmask() & limits.most.0 != 0 => sets.bounding.0 |= known.bitmask(),
                // Of a newer kernel, or none at all: not to be had either way.
                _ => sets.beyond.push(quote(&name)),
            }
        }
    }
    for isolator in remove {
        for name in value::<SetValue>(isolator)?.set {
            sets.bounding.0 &= !caps::Capability::from_str(&name).map_or(0, |known| known.bitmask());
        }
    }
    Ok(Some(sets))
}

/// The bounding set that the image of a container asks for, within the operator's. `None` = it does not, or the caller
/// has a say.
pub(in crate::isolator) fn bounding(
    context: &LaunchContext,
    limits: CapabilityLimits,
) -> Result<Option<CapabilitySet>, IsolatorValueError> {
    let manifest = context.runtime.as_ref().and_then(|runtime| runtime.appc.as_deref());
    let Some(app) = manifest.and_then(|manifest| manifest.app.as_ref()) else { return Ok(None) };
    if context.effective_capabilities.is_some() || context.bounding_capabilities.is_some() {
        return Ok(None);
    }
    Ok(capability_sets(app, limits)?.map(|sets| sets.bounding))
}

//! `linux/capabilities`: what a container's processes may do of what root may.
//!
//! The rules are Mesos's: effective as the container asks, else as the operator does, else the default set;
//! bounding as the container asks, within the operator's, else the operator's, else as effective. Effective must
//! lie within bounding.
//!
//! An Appc image may narrow the bounding set (`appc::isolators`), when the container does not ask.
//!
//! What the kernel makes of it at exec: root has the whole bounding set, whatever is effective. Another user has
//! what the container or operator asked for as effective, by way of the ambient set; of the default, nothing, as
//! with runc and podman.

use keelblock_actors::error::{IsolatorError, quote};
use keelblock_actors::launch::{CapabilityPlan, CapabilitySet, LaunchContext, LaunchPlan, set_once};
use keelblock_actors::ports::Isolator;

use super::appc::isolators::{CapabilityLimits, bounding};
use super::{Settings, refused};

/// What containers have that ask for nothing: podman's eleven. Docker's has three more: AUDIT_WRITE and NET_RAW,
/// which containers on the host's network should not have, and MKNOD, which would open every disk of the machine
/// to them, as nothing else here limits devices.
pub const DEFAULT_CAPABILITIES: [caps::Capability; 11] = [
    caps::Capability::CAP_CHOWN,
    caps::Capability::CAP_DAC_OVERRIDE,
    caps::Capability::CAP_FOWNER,
    caps::Capability::CAP_FSETID,
    caps::Capability::CAP_KILL,
    caps::Capability::CAP_NET_BIND_SERVICE,
    caps::Capability::CAP_SETFCAP,
    caps::Capability::CAP_SETGID,
    caps::Capability::CAP_SETPCAP,
    caps::Capability::CAP_SETUID,
    caps::Capability::CAP_SYS_CHROOT,
];

/// Why a set of capabilities cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// No such name.
    #[error("capability {name:?} is unknown; names are like NET_RAW or CAP_NET_RAW, or `all`, or `none`")]
    Unknown {
        /// As given, cut.
        name: String,
    },
    /// More effective than ever possible.
    #[error("effective capabilities {} are not among the bounding ones; add them there", capability_names(*.extra))]
    NotBounded {
        /// Those beyond.
        extra: CapabilitySet,
    },
    /// More than the operator allows.
    #[error("bounding capabilities {} are beyond what --bounding_capabilities allows", capability_names(*.extra))]
    NotAllowed {
        /// Those beyond.
        extra: CapabilitySet,
    },
    /// More than we have.
    #[error("capabilities {} cannot be given: keelblock itself does not have them", capability_names(*.extra))]
    NotOurs {
        /// Those beyond.
        extra: CapabilitySet,
    },
}

/// A set from text: names with or without `CAP_`, separated by commas; `all`; `none`.
///
/// # Errors
/// [`CapabilityError::Unknown`].
pub fn parse_capabilities(text: &str) -> Result<CapabilitySet, CapabilityError> {
    let mut set = CapabilitySet(0);
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let upper = name.to_ascii_uppercase();
        match upper.as_str() {
            "ALL" => set.0 |= all(caps::all().into_iter()),
            "NONE" => {}
            _ => {
                let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
                let capability: caps::Capability =
                    full.parse().map_err(|_| CapabilityError::Unknown { name: quote(name) })?;
                set.0 |= capability.bitmask();
            }
        }
    }
    Ok(set)
}

/// The names of a set: `CHOWN, KILL`.
pub fn capability_names(set: CapabilitySet) -> String {
    let known = (0..64).filter(|bit| set.0 & 1 << bit != 0);
    let names = known.map(|bit| {
        let capability = caps::all().into_iter().find(|capability| capability.index() == bit);
        match capability {
            Some(capability) => capability.to_string().trim_start_matches("CAP_").to_owned(),
            None => format!("number {bit}"),
        }
    });
    names.collect::<Vec<_>>().join(", ")
}

fn all(capabilities: impl Iterator<Item = caps::Capability>) -> u64 {
    capabilities.fold(0, |set, capability| set | capability.bitmask())
}

/// See the module.
pub(super) struct Capabilities {
    effective: Option<CapabilitySet>,
    bounding: Option<CapabilitySet>,
    ours: CapabilitySet,
    /// Whether Appc images have a say.
    appc: bool,
}

impl Capabilities {
    pub(super) fn new(settings: &Settings, appc: bool) -> Self {
        let ours = caps::read(None, caps::CapSet::Permitted).unwrap_or_default();
        Self {
            effective: settings.effective_capabilities,
            bounding: settings.bounding_capabilities,
            ours: CapabilitySet(all(ours.into_iter())),
            appc,
        }
    }

    fn plan(
        &self,
        effective: Option<CapabilitySet>,
        bounding: Option<CapabilitySet>,
    ) -> Result<CapabilityPlan, CapabilityError> {
        let beyond = |set: CapabilitySet, of: CapabilitySet| CapabilitySet(set.0 & !of.0);
        if let (Some(asked), Some(allowed)) = (bounding, self.bounding) {
            let extra = beyond(asked, allowed);
            if extra.0 != 0 {
                return Err(CapabilityError::NotAllowed { extra });
            }
        }
        let asked = effective.or(self.effective);
        let limit = bounding.or(self.bounding);
        let effective = match (asked, limit) {
            (Some(asked), _) => asked,
            // A narrower limit than the default narrows the default.
            (None, Some(limit)) => CapabilitySet(default_set().0 & limit.0),
            (None, None) => default_set(),
        };
        let bounding = limit.unwrap_or(effective);
        let extra = beyond(effective, bounding);
        if extra.0 != 0 {
            return Err(CapabilityError::NotBounded { extra });
        }
        if let Some(asked) = asked {
            let extra = beyond(asked, self.ours);
            if extra.0 != 0 {
                return Err(CapabilityError::NotOurs { extra });
            }
        }
        Ok(CapabilityPlan { bounding, ambient: asked.unwrap_or_default() })
    }
}

pub(super) fn default_set() -> CapabilitySet {
    CapabilitySet(all(DEFAULT_CAPABILITIES.into_iter()))
}

impl Isolator for Capabilities {
    fn name(&self) -> &'static str {
        "linux/capabilities"
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        let of_image = match self.appc {
            true => bounding(context, CapabilityLimits::new(self.effective, self.bounding))
                .map_err(|error| refused(self.name(), &context.id, error))?,
            false => None,
        };
        // As the specification has it: the bounding set, so that another user than root has none of it.
        if let Some(bounding) = of_image {
            let sets = CapabilityPlan { bounding, ambient: CapabilitySet(0) };
            return set_once(&mut plan.capabilities, sets, "capabilities")
                .map_err(|error| refused(self.name(), &context.id, error));
        }
        let sets = self
            .plan(context.effective_capabilities, context.bounding_capabilities)
            .map_err(|error| refused(self.name(), &context.id, error))?;
        set_once(&mut plan.capabilities, sets, "capabilities")
            .map_err(|error| refused(self.name(), &context.id, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CapabilitySet {
        parse_capabilities(text).expect(text)
    }

    fn isolator(effective: Option<&str>, bounding: Option<&str>) -> Capabilities {
        Capabilities {
            effective: effective.map(set),
            bounding: bounding.map(set),
            ours: set("all"),
            appc: true,
        }
    }

    #[test]
    fn names_are_read_with_and_without_prefix_and_written_without() {
        assert_eq!(set("CHOWN, cap_kill"), CapabilitySet(0b10_0001));
        assert_eq!(capability_names(CapabilitySet(0b10_0001)), "CHOWN, KILL");
        assert_eq!(set("none"), CapabilitySet(0));
        assert_eq!(set("all").0.count_ones(), 41);
        let error = parse_capabilities("CHOWN,FLY").expect_err("unknown").to_string();
        assert!(error.contains("FLY"), "{error}");
    }

    #[test]
    fn what_nobody_asks_for_is_the_default_and_none_of_it_for_other_users() {
        let plan = isolator(None, None).plan(None, None).expect("plan");
        assert_eq!(plan, CapabilityPlan { bounding: default_set(), ambient: CapabilitySet(0) });
        assert_eq!(default_set().0 & set("MKNOD,SYS_ADMIN,NET_RAW,SYS_PTRACE").0, 0);
    }

    #[test]
    fn effective_must_lie_within_bounding_and_bounding_within_the_operators() {
        let free = isolator(None, None);
        assert_eq!(
            free.plan(Some(set("CHOWN,KILL")), Some(set("CHOWN"))),
            Err(CapabilityError::NotBounded { extra: set("KILL") })
        );
        let strict = isolator(None, Some("CHOWN,KILL"));
        assert_eq!(
            strict.plan(None, Some(set("CHOWN,SYS_ADMIN"))),
            Err(CapabilityError::NotAllowed { extra: set("SYS_ADMIN") })
        );
        assert!(matches!(strict.plan(Some(set("SYS_ADMIN")), None), Err(CapabilityError::NotBounded { .. })));
        let plan = strict.plan(Some(set("KILL")), None).expect("within");
        assert_eq!(plan, CapabilityPlan { bounding: set("CHOWN,KILL"), ambient: set("KILL") });
        assert_eq!(strict.plan(None, None).expect("default").bounding, set("CHOWN,KILL"));
    }

    #[test]
    fn effective_alone_bounds_itself_and_the_containers_wish_wins_over_the_operators() {
        let operator = isolator(Some("CHOWN"), None);
        assert_eq!(operator.plan(None, None).expect("plan").bounding, set("CHOWN"));
        assert_eq!(operator.plan(Some(set("KILL")), None).expect("plan").bounding, set("KILL"));
    }

    #[test]
    fn what_we_have_not_cannot_be_given() {
        let poor = Capabilities { ours: set("CHOWN"), ..isolator(None, None) };
        let error = poor.plan(Some(set("SYS_RESOURCE")), None).expect_err("not ours").to_string();
        assert!(error.contains("SYS_RESOURCE"), "{error}");
    }
}

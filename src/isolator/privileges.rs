//! `linux/nnp`: exec never grants more than the caller has.

use keelblock_actors::error::IsolatorError;
use keelblock_actors::launch::{LaunchContext, LaunchPlan};
use keelblock_actors::ports::Isolator;

/// See the module.
pub(super) struct NoNewPrivileges;

impl Isolator for NoNewPrivileges {
    fn name(&self) -> &'static str {
        "linux/nnp"
    }

    fn prepare(&self, _: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        plan.no_new_privs = true;
        Ok(())
    }
}

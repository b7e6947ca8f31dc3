//! `namespaces/pid`, `namespaces/ipc`, `namespaces/uts`.

use keelblock_actors::error::IsolatorError;
use keelblock_actors::launch::{
    LaunchContext, LaunchPlan, MissingTarget, MountAttributes, Namespace, set_once,
};
use keelblock_actors::ports::Isolator;

use super::filesystem::{mount, new, shared_memory};
use super::refused;

/// Longest host name of Linux (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;

/// The container sees its own processes only, and they all end with the first.
pub(super) struct Pid;

impl Isolator for Pid {
    fn name(&self) -> &'static str {
        "namespaces/pid"
    }

    fn prepare(&self, _: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        plan.namespaces.push(Namespace::Pid);
        Ok(())
    }
}

/// System V objects and message queues of its own, with `/dev/shm` and `/dev/mqueue` to them.
pub(super) struct Ipc {
    pub(super) shm_bytes: u64,
}

impl Isolator for Ipc {
    fn name(&self) -> &'static str {
        "namespaces/ipc"
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        plan.namespaces.push(Namespace::Ipc);
        if context.rootfs.is_some() {
            let safe = MountAttributes { nosuid: true, nodev: true, noexec: true, ..Default::default() };
            plan.tree.push(shared_memory(self.shm_bytes));
            plan.tree.push(mount(new("mqueue", &[]), "/dev/mqueue", safe, MissingTarget::Directory));
        }
        Ok(())
    }
}

/// A host name of its own: the container's ID.
pub(super) struct Uts;

impl Isolator for Uts {
    fn name(&self) -> &'static str {
        "namespaces/uts"
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        plan.namespaces.push(Namespace::Uts);
        let whole = context.id.as_str();
        let cut = (0..=HOSTNAME_BYTES_MAX.min(whole.len())).rev().find(|end| whole.is_char_boundary(*end));
        let name = &whole[..cut.unwrap_or_default()];
        set_once(&mut plan.hostname, name.to_owned(), "host name")
            .map_err(|error| refused(self.name(), &context.id, error))
    }
}

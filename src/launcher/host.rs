//! What this process may do, as far as programs depend on it.

use crate::rootless::IdMaps;

/// What the launching process is allowed, found out once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// Whether device nodes can be made and opened; else the host's are bound.
    pub(super) makes_nodes: bool,
    /// Whether supplementary groups can be set (not in a user namespace with one user).
    pub(super) sets_groups: bool,
    /// Capabilities this process has.
    pub(super) permitted: u64,
    /// Number of the last capability that the kernel knows.
    pub(super) last_capability: u8,
}

impl Host {
    /// As things are now: a user namespace entered later would change them.
    pub(super) fn find() -> Self {
        let maps = IdMaps::read();
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
        let permitted = caps::read(None, caps::CapSet::Permitted).unwrap_or_default();
        let makes_nodes = permitted.contains(&caps::Capability::CAP_MKNOD);
        Self {
            makes_nodes: makes_nodes && maps.is_whole_machine(),
            sets_groups: maps.sets_groups,
            permitted: permitted.iter().fold(0, |set, capability| set | capability.bitmask()),
            last_capability: last.and_then(|text| text.trim().parse().ok()).unwrap_or(40).min(63),
        }
    }
}

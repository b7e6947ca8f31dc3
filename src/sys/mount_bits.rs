//! Numbers of the kernel for mount attributes and device nodes.

use keelblock_actors::launch::MountAttributes;

/// As mount_setattr(2) and fsmount(2) take them.
pub(crate) fn attributes(attributes: MountAttributes) -> u64 {
    [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.nosuid, libc::MOUNT_ATTR_NOSUID),
        (attributes.nodev, libc::MOUNT_ATTR_NODEV),
        (attributes.noexec, libc::MOUNT_ATTR_NOEXEC),
        (attributes.strictatime, libc::MOUNT_ATTR_STRICTATIME),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |all, (_, bit)| all | bit)
}

/// Mode and number of a character device, as mknod(2) takes them.
pub(crate) fn character_device(mode: u32, major: u32, minor: u32) -> (libc::mode_t, libc::dev_t) {
    (libc::S_IFCHR | (mode & 0o7777), libc::makedev(major, minor))
}

/// `CLONE_NEW...` of a namespace.
pub(crate) fn namespace(namespace: keelblock_actors::launch::Namespace) -> i32 {
    use keelblock_actors::launch::Namespace;
    match namespace {
        Namespace::Mount => libc::CLONE_NEWNS,
        Namespace::Pid => libc::CLONE_NEWPID,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Uts => libc::CLONE_NEWUTS,
        Namespace::Network => libc::CLONE_NEWNET,
        Namespace::Cgroup => libc::CLONE_NEWCGROUP,
    }
}

/// `CLONE_NEWUSER`.
pub(crate) const NEW_USER: i32 = libc::CLONE_NEWUSER;
/// `CLONE_NEWNS`.
pub(crate) const NEW_MOUNT: i32 = libc::CLONE_NEWNS;

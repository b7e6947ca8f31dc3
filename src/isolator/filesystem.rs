//! `filesystem/linux`: a mount namespace, the root, what is mounted in it; `filesystem/posix`: the host's as it is.

use std::path::{Path, PathBuf};

use keelblock_actors::error::IsolatorError;
use keelblock_actors::launch::{
    LaunchContext, LaunchPlan, MissingTarget, MountAttributes, MountSource, MountStep, Namespace, TreeStep,
    set_once,
};
use keelblock_actors::ports::Isolator;

use super::{Own, Settings, refused};

/// Paths of procfs that say something of the host or change it, as Mesos, runc and podman hide them.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Name, major and minor number (Documentation/admin-guide/devices.txt); all may be read and written by all.
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/full", 1, 7),
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/zero", 1, 5),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Files by which a container on the host's network finds its way.
const NETWORK_FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

const SAFE: MountAttributes =
    MountAttributes { read_only: false, nosuid: true, nodev: true, noexec: true, strictatime: false };

/// See the module.
pub(super) struct Linux {
    sandbox_directory: PathBuf,
    own: Own,
    /// Whether all of the machine's procfs and sysfs may be mounted anew.
    whole_machine: bool,
    terminal_group: bool,
    shm_bytes: u64,
}

impl Linux {
    pub(super) fn new(settings: &Settings, own: Own) -> Self {
        Self {
            sandbox_directory: settings.sandbox_directory.clone(),
            own,
            whole_machine: settings.ids.is_whole_machine(),
            terminal_group: settings.ids.has_gid(5),
            shm_bytes: settings.shm_bytes,
        }
    }

    /// The tree of a container with a root of its own. The order is that of the Mesos isolator, and matters:
    /// later mounts cover earlier ones.
    fn tree(&self, context: &LaunchContext) -> Vec<TreeStep> {
        let mut tree = Vec::new();
        self.kernel(&mut tree);
        self.devices(&mut tree);
        // After the devices: files are hidden behind `/dev/null`.
        if self.own.pid {
            tree.extend(MASKED.iter().map(|path| TreeStep::Mask(path.into())));
        }
        tree.push(mount(
            MountSource::Bind(context.sandbox.clone()),
            &self.sandbox_directory,
            MountAttributes { nodev: true, nosuid: true, ..MountAttributes::default() },
            MissingTarget::Directory,
        ));
        for file in NETWORK_FILES {
            // What the host has not, the container cannot get; what a read-only root has not, neither.
            if Path::new(file).is_file() {
                let missing =
                    if context.rootfs_read_only { MissingTarget::Skip } else { MissingTarget::File };
                let attributes = MountAttributes { read_only: true, ..SAFE };
                tree.push(mount(MountSource::Bind(file.into()), file, attributes, missing));
            }
        }
        tree
    }

    /// `/proc` and `/sys`, what of them may only be read, what not be seen. `/sys/fs/cgroup` is an empty
    /// directory: the host's would be its to write.
    fn kernel(&self, tree: &mut Vec<TreeStep>) {
        // In a user namespace procfs can be mounted only by a pid namespace of that, sysfs only by a network
        // namespace of that: else the host's are shown, which is what a new one would show.
        let proc = if self.whole_machine || self.own.pid { new("proc", &[]) } else { bind("/proc") };
        tree.push(mount(proc, "/proc", SAFE, MissingTarget::Directory));
        for path in READ_ONLY {
            let attributes = MountAttributes { read_only: true, ..SAFE };
            tree.push(mount(MountSource::Inside(path.into()), path, attributes, MissingTarget::Skip));
        }
        let read_only = MountAttributes { read_only: true, ..SAFE };
        let sys = if self.whole_machine { new("sysfs", &[]) } else { bind("/sys") };
        tree.push(mount(sys, "/sys", read_only, MissingTarget::Directory));
        let cgroup = new("tmpfs", &[("mode", "755")]);
        tree.push(mount(cgroup, "/sys/fs/cgroup", read_only, MissingTarget::Skip));
    }

    fn devices(&self, tree: &mut Vec<TreeStep>) {
        let dev = MountAttributes { nosuid: true, noexec: true, strictatime: true, ..Default::default() };
        let small = new("tmpfs", &[("mode", "755"), ("size", "65536k")]);
        tree.push(mount(small, "/dev", dev, MissingTarget::Directory));
        let mut options = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
        if self.terminal_group {
            options.push(("gid", "5"));
        }
        let pts = MountAttributes { nosuid: true, noexec: true, ..Default::default() };
        tree.push(mount(new("devpts", &options), "/dev/pts", pts, MissingTarget::Directory));
        if !self.own.ipc {
            tree.push(shared_memory(self.shm_bytes));
        }
        for (path, major, minor) in DEVICES {
            tree.push(TreeStep::Device { path: path.into(), major, minor, mode: 0o666 });
        }
        for (path, target) in LINKS {
            tree.push(TreeStep::Link { path: path.into(), target: target.into() });
        }
    }
}

/// `/dev/shm`.
pub(super) fn shared_memory(bytes: u64) -> TreeStep {
    let bytes = bytes.to_string();
    let attributes =
        MountAttributes { nosuid: true, nodev: true, noexec: true, strictatime: true, ..Default::default() };
    let tmpfs = new("tmpfs", &[("mode", "1777"), ("size", &bytes)]);
    mount(tmpfs, "/dev/shm", attributes, MissingTarget::Directory)
}

pub(super) fn new(kind: &'static str, options: &[(&str, &str)]) -> MountSource {
    let options = options
        .iter()
        .map(|(key, value)| {
            ((*key).to_owned(), Some(*value).filter(|value| !value.is_empty()).map(str::to_owned))
        })
        .collect();
    MountSource::New { kind, options }
}

fn bind(path: &str) -> MountSource {
    MountSource::Bind(path.into())
}

pub(super) fn mount(
    source: MountSource,
    target: impl AsRef<Path>,
    attributes: MountAttributes,
    missing: MissingTarget,
) -> TreeStep {
    TreeStep::Mount(MountStep { source, target: target.as_ref().to_owned(), attributes, missing })
}

impl Isolator for Linux {
    fn name(&self) -> &'static str {
        "filesystem/linux"
    }

    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError> {
        plan.namespaces.push(Namespace::Mount);
        if let Some(rootfs) = &context.rootfs {
            set_once(&mut plan.rootfs, rootfs.clone(), "root filesystem")
                .map_err(|error| refused(self.name(), &context.id, error))?;
            plan.rootfs_read_only = context.read_only || context.rootfs_read_only;
            plan.tree.extend(self.tree(context));
        } else if self.own.pid {
            // The host's tree, but for the processes it shows.
            plan.tree.push(mount(new("proc", &[]), "/proc", SAFE, MissingTarget::Fail));
        }
        Ok(())
    }
}

/// No file tree of its own: refuses what would need one.
pub(super) struct Posix;

#[derive(Debug, thiserror::Error)]
#[error("{what} needs the isolator filesystem/linux")]
struct NeedsLinux {
    what: &'static str,
}

impl Isolator for Posix {
    fn name(&self) -> &'static str {
        "filesystem/posix"
    }

    fn prepare(&self, context: &LaunchContext, _: &mut LaunchPlan) -> Result<(), IsolatorError> {
        let what = if context.rootfs.is_some() {
            "a container with an image"
        } else if !context.volumes.is_empty() {
            "a volume"
        } else if context.read_only {
            "a read-only root filesystem"
        } else {
            return Ok(());
        };
        Err(refused(self.name(), &context.id, NeedsLinux { what }))
    }
}

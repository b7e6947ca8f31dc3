//! From a `LaunchPlan` to a program: every argument of every system call between clone and exec, and beside
//! each its words, should it fail.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use keelblock_actors::launch::{
    CapabilityPlan, Credentials, HookTime, LaunchPlan, MissingTarget, MountAttributes, MountSource,
    MountStep, Namespace, TreeStep,
};

use super::channels::Channels;
use super::error::LauncherError;
use super::hooks::{Hooks, hooks};
use super::host::Host;
use super::search;
use crate::sys::child::{Groups, Missing, Op, StringArray};
use crate::sys::mount_bits;

/// The ops of one process with their words.
#[derive(Default)]
pub(super) struct Ops {
    /// What is done.
    pub(super) ops: Vec<Op>,
    /// As an act: `mount proc at /proc`.
    pub(super) texts: Vec<String>,
}

impl Ops {
    pub(super) fn push(&mut self, op: Op, text: impl Into<String>) {
        self.ops.push(op);
        self.texts.push(text.into());
    }
}

/// A plan, compiled.
pub(super) struct Compiled {
    pub(super) before_fork: Ops,
    pub(super) task: Ops,
    pub(super) slots: usize,
    pub(super) command: Command,
    pub(super) hooks: Hooks,
}

/// What is executed.
pub(super) struct Command {
    /// As asked for, for messages.
    pub(super) name: String,
    pub(super) candidates: StringArray,
    pub(super) argv: StringArray,
    pub(super) environment: StringArray,
}

impl Command {
    /// Nothing.
    pub(super) fn none() -> Self {
        let none = || StringArray::new(Vec::new());
        Self { name: String::new(), candidates: none(), argv: none(), environment: none() }
    }
}

pub(super) fn compile(plan: &LaunchPlan, host: &Host, channels: Channels) -> Result<Compiled, LauncherError> {
    let argv = plan.argv.as_deref().unwrap_or_default();
    let command = command(argv, plan.executable.as_deref(), &plan.environment)?;
    let own_mounts = plan.namespaces.contains(&Namespace::Mount);
    if !own_mounts && (plan.rootfs.is_some() || !plan.tree.is_empty()) {
        return Err(LauncherError::NoMountNamespace);
    }

    let mut before = Ops::default();
    let others: Vec<Namespace> =
        plan.namespaces.iter().copied().filter(|namespace| *namespace != Namespace::Pid).collect();
    if !others.is_empty() {
        let flags = super::namespace_flags(&others) as u64;
        before.push(Op::Unshare(flags), format!("make its namespaces ({})", names(&others)));
    }
    if let Some(hostname) = &plan.hostname {
        let name = text(hostname, || "the host name".to_owned())?;
        before.push(Op::Hostname(name), format!("set host name {hostname:?}"));
    }
    let slots = tree(plan, host, own_mounts, &mut before)?;
    if let Some(socket) = channels.terminal {
        let console = plan.rootfs.is_some();
        before.push(Op::Terminal { socket, console, size: channels.size }, "open a terminal at /dev/pts");
    }
    let directory = plan.working_directory.as_deref().or(plan.rootfs.as_ref().map(|_| Path::new("/")));
    if let Some(directory) = directory {
        before.push(
            Op::Directory {
                path: absolute(directory)?,
                missing: match plan.working_directory_must_exist {
                    true => Missing::Fail,
                    false => Missing::Directory,
                },
            },
            format!("enter working directory {}", directory.display()),
        );
    }
    if plan.rootfs_read_only && plan.rootfs.is_some() {
        before.push(Op::ReadOnlyRoot, "make the root filesystem read-only");
    }
    if plan.tty && plan.hooks.iter().any(|hook| hook.when == HookTime::PreStart) {
        before.push(Op::Session, "begin a session without a terminal, for its hooks");
    }
    if !plan.namespaces.contains(&Namespace::Pid) {
        before.push(Op::Reaper, "become the reaper of its processes");
    }

    let mut task = Ops::default();
    begin(&mut task);
    streams(plan, channels, &mut task);
    whoever(plan, host, true, &mut task);
    let hooks = hooks(plan, host, channels)?;
    Ok(Compiled { before_fork: before, task, slots, command, hooks })
}

/// Who a process is that the supervisor forks.
pub(super) fn whoever(plan: &LaunchPlan, host: &Host, owns_streams: bool, task: &mut Ops) {
    if let Some(adjustment) = plan.oom_score_adj {
        let text = adjustment.to_string();
        let mut digits = [0; 5];
        let length = text.len().min(digits.len());
        digits[..length].copy_from_slice(&text.as_bytes()[..length]);
        task.push(Op::OomScoreAdj { digits, length }, format!("set its oom_score_adj to {adjustment}"));
    }
    let root = Credentials::default();
    let credentials = plan.credentials.as_ref().unwrap_or(&root);
    if owns_streams && credentials.uid != 0 {
        let files_too = matches!(plan.stdio, keelblock_actors::launch::StdioSpec::Sandbox);
        task.push(Op::OwnStreams { uid: credentials.uid, files_too }, "own its standard streams");
    }
    become_user(credentials, plan.capabilities.as_ref(), plan.no_new_privs, host, task);
    if !plan.namespaces.contains(&Namespace::Pid) {
        // Else the end of the pid namespace is its end too.
        task.push(Op::DieWithParent, "be bound to its supervisor");
    }
}

/// What to execute, and every file to try it on.
pub(super) fn command(
    argv: &[String],
    executable: Option<&str>,
    environment: &[(String, String)],
) -> Result<Command, LauncherError> {
    let name = executable.or(argv.first().map(String::as_str)).ok_or(LauncherError::NoCommand)?;
    let candidates = search::candidates(name, environment)
        .iter()
        .map(|candidate| text(candidate, || format!("command {name:?}")))
        .collect::<Result<_, _>>()?;
    let arguments = argv
        .iter()
        .enumerate()
        .map(|(index, argument)| text(argument, || format!("argument {index}")))
        .collect::<Result<Vec<_>, _>>()?;
    let variables = environment
        .iter()
        .map(|(key, value)| {
            if key.is_empty() || key.contains('=') {
                return Err(LauncherError::VariableName { name: key.clone() });
            }
            text(&format!("{key}={value}"), || format!("environment variable {key:?}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Command {
        name: name.to_owned(),
        candidates: StringArray::new(candidates),
        argv: StringArray::new(arguments),
        environment: StringArray::new(variables),
    })
}

/// Mounts, links, devices and masks. Sources are opened, and new filesystems made, before the root changes: the
/// host's paths are there to be found, and procfs, in a user namespace, can be made only while another is seen.
fn tree(plan: &LaunchPlan, host: &Host, own_mounts: bool, ops: &mut Ops) -> Result<usize, LauncherError> {
    if own_mounts {
        ops.push(Op::Slave, "cut its mounts off from the host's");
    }
    let mut slots = 0;
    let mut inside = Ops::default();
    for step in &plan.tree {
        match step {
            TreeStep::Mount(step) => mount(step, &mut slots, ops, &mut inside)?,
            TreeStep::Link { path, target } => {
                let (directory, name) = split(path)?;
                let words = format!("make link {} to {}", path.display(), target.display());
                inside.push(Op::Link { directory, name, target: os_text(target)? }, words);
            }
            TreeStep::Device { path, major, minor, mode } if host.makes_nodes => {
                let (directory, name) = split(path)?;
                let (mode, device) = mount_bits::character_device(*mode, *major, *minor);
                inside.push(
                    Op::Node { directory, name, mode, device },
                    format!("make device {}", path.display()),
                );
            }
            TreeStep::Device { path, .. } => {
                let bind = MountStep {
                    source: MountSource::Bind(path.clone()),
                    target: path.clone(),
                    attributes: MountAttributes::default(),
                    missing: MissingTarget::File,
                };
                mount(&bind, &mut slots, ops, &mut inside)?;
            }
            TreeStep::Mask(path) => {
                inside.push(Op::Mask(absolute(path)?), format!("mask {}", path.display()));
            }
            TreeStep::Room(path) => {
                let (parent, name) = split(path)?;
                let words = format!("make room for a directory at {}", path.display());
                inside.push(Op::Room { path: absolute(path)?, parent, name }, words);
            }
        }
    }
    if let Some(rootfs) = &plan.rootfs {
        // A device node of an image is no licence for the device: the container's own are in its /dev.
        let attributes =
            mount_bits::attributes(MountAttributes { nodev: true, ..MountAttributes::default() });
        ops.push(
            Op::Pivot { rootfs: absolute(rootfs)?, attributes },
            format!("change its root to {}", rootfs.display()),
        );
    }
    ops.ops.append(&mut inside.ops);
    ops.texts.append(&mut inside.texts);
    Ok(slots)
}

fn mount(step: &MountStep, slots: &mut usize, ops: &mut Ops, inside: &mut Ops) -> Result<(), LauncherError> {
    let target = absolute(&step.target)?;
    let at = step.target.display();
    let attributes = mount_bits::attributes(step.attributes);
    let missing = match step.missing {
        MissingTarget::Directory => Missing::Directory,
        MissingTarget::File => Missing::File,
        MissingTarget::Skip => Missing::Skip,
        MissingTarget::Fail => Missing::Fail,
    };
    let from = *slots;
    match &step.source {
        MountSource::Inside(path) => {
            let words = format!("mount {} of the container at {at}", path.display());
            inside.push(Op::Again { path: absolute(path)?, target, attributes, missing }, words);
            return Ok(());
        }
        MountSource::Bind(path) => {
            let tree = Op::Tree { path: absolute(path)?, attributes, into: from };
            ops.push(tree, format!("open {} of the host, to mount it at {at}", path.display()));
            inside.push(Op::Place { from, target, missing }, format!("mount {} at {at}", path.display()));
        }
        MountSource::New { kind, options } => {
            let options = options
                .iter()
                .map(|(key, value)| {
                    let what = || format!("a mount option of {kind}");
                    Ok((text(key, what)?, value.as_deref().map(|value| text(value, what)).transpose()?))
                })
                .collect::<Result<_, LauncherError>>()?;
            let make = Op::Filesystem {
                kind: text(kind, || "a filesystem type".to_owned())?,
                options,
                attributes,
                into: from,
            };
            ops.push(make, format!("make a new {kind} for {at}"));
            inside.push(Op::Place { from, target, missing }, format!("mount {kind} at {at}"));
        }
    }
    *slots += 1;
    Ok(())
}

/// A session, and a keyring for it.
pub(super) fn begin(task: &mut Ops) {
    task.push(Op::Session, "begin a session");
    task.push(Op::Keyring, "make a session keyring");
}

/// The standard streams of the task.
pub(super) fn streams(plan: &LaunchPlan, channels: Channels, task: &mut Ops) {
    if plan.tty {
        task.push(Op::ControlTerminal, "take its terminal");
    } else if let Some(streams) = channels.streams {
        for (to, from) in (0..).zip(streams) {
            task.push(Op::Stream { from, to }, format!("connect standard stream {to}"));
        }
    }
}

/// From root to who the command runs as. Order matters: the bounding set takes CAP_SETPCAP, groups before users,
/// capabilities last of what needs them.
///
/// As runc and podman: root has the bounding set; another user has nothing but the ambient set, which is carried
/// over the change of user (PR_SET_KEEPCAPS) and over exec (inheritable and ambient).
pub(super) fn become_user(
    credentials: &Credentials,
    capabilities: Option<&CapabilityPlan>,
    no_new_privs: bool,
    host: &Host,
    task: &mut Ops,
) {
    let root = credentials.uid == 0;
    let ambient = capabilities.map_or(0, |plan| plan.ambient.0 & plan.bounding.0);
    if let Some(plan) = capabilities {
        let dropped = (0..=host.last_capability).filter(|bit| plan.bounding.0 & 1 << bit == 0);
        let dropped = Op::DropBounding(dropped.fold(0, |set, bit| set | 1 << bit));
        task.push(dropped, "limit its bounding capabilities");
        if !root && ambient != 0 {
            task.push(Op::KeepCapabilities, "keep its capabilities");
        }
    }
    if host.sets_groups {
        task.push(
            Op::Groups(Groups::new(credentials.groups.clone())),
            format!("set its supplementary groups {:?}", credentials.groups),
        );
    }
    task.push(Op::Group(credentials.gid), format!("become group {}", credentials.gid));
    task.push(Op::User(credentials.uid), format!("become user {}", credentials.uid));
    if let Some(plan) = capabilities {
        let (permitted, inheritable) =
            if root { (plan.bounding.0 & host.permitted, 0) } else { (ambient, ambient) };
        task.push(Op::Capabilities { permitted, inheritable }, "set its capabilities");
        let raised = if root { 0 } else { ambient };
        task.push(Op::Ambient(raised), "set its ambient capabilities");
    }
    if no_new_privs {
        task.push(Op::NoNewPrivileges, "set no_new_privs");
    }
}

fn names(namespaces: &[Namespace]) -> String {
    let names = namespaces.iter().map(|namespace| format!("{namespace:?}").to_lowercase());
    names.collect::<Vec<_>>().join(", ")
}

pub(super) fn text(text: &str, what: impl Fn() -> String) -> Result<CString, LauncherError> {
    CString::new(text).map_err(|_| LauncherError::Null { what: what() })
}

fn os_text(path: &Path) -> Result<CString, LauncherError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| LauncherError::Null { what: format!("path {path:?}") })
}

pub(super) fn absolute(path: &Path) -> Result<CString, LauncherError> {
    if !path.is_absolute() {
        return Err(LauncherError::Relative { path: path.to_owned() });
    }
    os_text(path)
}

/// Directory and name of a path.
fn split(path: &Path) -> Result<(CString, CString), LauncherError> {
    match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) => Ok((absolute(directory)?, os_text(&PathBuf::from(name))?)),
        _ => Err(LauncherError::Relative { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_actors::launch::CapabilitySet;

    const HOST: Host =
        Host { makes_nodes: true, sets_groups: true, permitted: (1 << 41) - 1, last_capability: 40 };

    fn plan() -> LaunchPlan {
        LaunchPlan { argv: Some(vec!["true".to_owned()]), ..LaunchPlan::default() }
    }

    #[test]
    fn a_plan_that_mounts_without_a_mount_namespace_is_refused() {
        let plan = LaunchPlan { rootfs: Some("/r".into()), ..plan() };
        let error = compile(&plan, &HOST, Channels::default()).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("filesystem/linux")));
    }

    #[test]
    fn sources_are_opened_before_the_root_changes_and_placed_after() {
        let step = |source| {
            TreeStep::Mount(MountStep {
                source,
                target: "/t".into(),
                attributes: MountAttributes::default(),
                missing: MissingTarget::Directory,
            })
        };
        let plan = LaunchPlan {
            rootfs: Some("/r".into()),
            namespaces: vec![Namespace::Mount, Namespace::Pid],
            tree: vec![
                step(MountSource::Bind("/h".into())),
                step(MountSource::New { kind: "proc", options: Vec::new() }),
            ],
            ..plan()
        };
        let compiled = compile(&plan, &HOST, Channels::default()).expect("compiles");
        let place =
            |wanted: fn(&Op) -> bool| compiled.before_fork.ops.iter().position(wanted).expect("there");
        let pivot = place(|op| matches!(op, Op::Pivot { .. }));
        assert!(place(|op| matches!(op, Op::Tree { .. })) < pivot);
        assert!(place(|op| matches!(op, Op::Filesystem { .. })) < pivot);
        assert!(place(|op| matches!(op, Op::Place { .. })) > pivot);
        assert_eq!(compiled.slots, 2);
        assert_eq!(compiled.before_fork.ops.len(), compiled.before_fork.texts.len());
    }

    #[test]
    fn null_bytes_and_bad_variable_names_are_refused_by_name() {
        let environment = [("A=B".to_owned(), String::new())];
        assert!(command(&["x".to_owned()], None, &environment).is_err());
        let error = command(&["x\0y".to_owned()], None, &[]).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("null byte")), "names it");
        assert!(matches!(command(&[], None, &[]), Err(LauncherError::NoCommand)));
    }

    #[test]
    fn root_gets_the_bounding_set_and_others_the_ambient_one() {
        let plan = CapabilityPlan { bounding: CapabilitySet(0b11), ambient: CapabilitySet(0b101) };
        let permitted = |uid| {
            let credentials = Credentials { uid, ..Credentials::default() };
            let mut ops = Ops::default();
            become_user(&credentials, Some(&plan), false, &HOST, &mut ops);
            ops.ops.iter().find_map(|op| match op {
                Op::Capabilities { permitted, inheritable } => Some((*permitted, *inheritable)),
                _ => None,
            })
        };
        assert_eq!(permitted(0), Some((0b11, 0)));
        assert_eq!(permitted(7), Some((0b1, 0b1)), "never beyond the bounding set");
    }
}

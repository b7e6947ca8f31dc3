//! The mount points of an app and the volumes that fill them (appc spec 0.8.11, ace.md, "Volume Setup").
//!
//! A volume names the mount point, the image says where that is. One that nobody fills stays as the image has it, so
//! that its files and their owners are there: the root filesystem is the container's own. Only where that cannot be
//! written is an empty directory put in its place, for an app that wants to write there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use keelblock_actors::container::{VolumeSource, VolumeSpec};
use keelblock_actors::image::appc::{AcName, App, AppcManifest, MountPoint};
use keelblock_actors::launch::{
    Credentials, LaunchContext, MissingTarget, MountAttributes, MountSource, TreeStep,
};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

use crate::isolator::filesystem::mount;

/// What `filesystem/linux` mounts in every container.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

#[derive(Debug, thiserror::Error)]
pub(in crate::isolator) enum MountPointError {
    #[error("the image has no mount point {name}; {}", has(.known))]
    Unknown { name: AcName, known: Vec<String> },
    #[error("mount point {name} needs an Appc image: only those have mount points by name")]
    NotAppc { name: AcName },
    #[error("path {path} of mount point {name} is the root, or holds '..'")]
    Path { name: AcName, path: String },
    #[error("the volumes at {one} and {other} overlap")]
    Overlap { one: PathBuf, other: PathBuf },
    #[error("host path {path} for mount point {name} leads over a symbolic link; give {real}")]
    Link { name: AcName, path: PathBuf, real: PathBuf },
    #[error("cannot find host path {path} for mount point {name}")]
    Source {
        name: AcName,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make the empty directory {path} for a mount point")]
    Empty {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn has(known: &[String]) -> String {
    match known {
        [] => "it has none".to_owned(),
        known => format!("it has {}", known.join(", ")),
    }
}

fn manifest(context: &LaunchContext) -> Option<&AppcManifest> {
    context.runtime.as_ref().and_then(|runtime| runtime.appc.as_deref())
}

/// Where a volume goes, and whether it may only be read: as it says itself, or as the mount point does that it fills.
pub(in crate::isolator) fn place(
    context: &LaunchContext,
    volume: &VolumeSpec,
) -> Result<(PathBuf, bool), MountPointError> {
    let Some(name) = &volume.mount_point else {
        return Ok((volume.container_path.clone(), volume.read_only));
    };
    let manifest = manifest(context).ok_or_else(|| MountPointError::NotAppc { name: name.clone() })?;
    let points = manifest.app.as_ref().map_or(&[][..], |app| &app.mount_points);
    let point = points.iter().find(|point| point.name == *name).ok_or_else(|| MountPointError::Unknown {
        name: name.clone(),
        known: points.iter().map(|point| point.name.to_string()).collect(),
    })?;
    Ok((clean(point)?, volume.read_only || point.read_only))
}

/// The path without what says nothing.
fn clean(point: &MountPoint) -> Result<PathBuf, MountPointError> {
    let wrong = || MountPointError::Path { name: point.name.clone(), path: point.path.clone() };
    let mut path = PathBuf::from("/");
    for part in Path::new(&point.path).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
        }
    }
    if path.parent().is_none() { Err(wrong()) } else { Ok(path) }
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Refuses a volume at a mount point that lies at, above or below another volume.
pub(in crate::isolator) fn check_overlaps(context: &LaunchContext) -> Result<(), MountPointError> {
    let mut placed: Vec<(PathBuf, bool)> = Vec::new();
    for volume in &context.volumes {
        let (path, _) = place(context, &volume.spec)?;
        let by_name = volume.spec.mount_point.is_some();
        let path: PathBuf = path.components().collect();
        for (other, other_by_name) in &placed {
            if (by_name || *other_by_name) && overlap(&path, other) {
                return Err(MountPointError::Overlap { one: other.clone(), other: path });
            }
        }
        placed.push((path, by_name));
    }
    Ok(())
}

/// Refuses a path of the host that leads over symbolic links: whoever can change one chooses what is mounted.
pub(in crate::isolator) fn check_source(volume: &VolumeSpec) -> Result<(), MountPointError> {
    let (Some(name), VolumeSource::HostPath(path)) = (&volume.mount_point, &volume.source) else {
        return Ok(());
    };
    let real = path.canonicalize().map_err(|source| MountPointError::Source {
        name: name.clone(),
        path: path.clone(),
        source,
    })?;
    match path.components().eq(real.components()) {
        true => Ok(()),
        false => Err(MountPointError::Link { name: name.clone(), path: path.clone(), real }),
    }
}

/// What is to be done about mount points that no volume fills.
pub(in crate::isolator) fn unfilled(
    context: &LaunchContext,
    app: &App,
    owner: &Credentials,
) -> Result<Vec<TreeStep>, MountPointError> {
    let filled = context.volumes.iter().map(|volume| place(context, &volume.spec).map(|(path, _)| path));
    let filled: Vec<_> = filled.collect::<Result<_, _>>()?;
    let mut steps = Vec::new();
    for point in &app.mount_points {
        let path = clean(point)?;
        // A volume above or below decides for it, and what every container has mounted.
        let mounted = KERNEL.iter().any(|kernel| path.starts_with(kernel));
        if mounted || filled.iter().any(|filled| overlap(filled, &path)) {
            continue;
        }
        let attributes =
            MountAttributes { read_only: point.read_only, nodev: true, ..MountAttributes::default() };
        let read_only_root = context.read_only || context.rootfs_read_only;
        let source = match read_only_root && !point.read_only {
            true => MountSource::Bind(empty(context, &point.name, owner)?),
            false => MountSource::Inside(path.clone()),
        };
        let missing = match (context.rootfs_read_only, point.read_only) {
            // Nothing can be made in such a root; and there is nothing to read.
            (true, true) => MissingTarget::Skip,
            _ => MissingTarget::Directory,
        };
        steps.push(mount(source, path, attributes, missing));
    }
    Ok(steps)
}

/// A new directory in the container's sandbox, its user's.
fn empty(context: &LaunchContext, name: &AcName, owner: &Credentials) -> Result<PathBuf, MountPointError> {
    let all = context.sandbox.join("mount_points");
    let path = all.join(name.as_str());
    let made = std::fs::create_dir_all(&all)
        .and_then(|()| std::fs::create_dir(&path))
        .and_then(|()| std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid)));
    made.map(|()| path.clone()).map_err(|source| MountPointError::Empty { path, source })
}

/// Something of the image that a volume hides.
#[derive(Debug, PartialEq)]
pub(in crate::isolator) struct Masked {
    pub(in crate::isolator) path: PathBuf,
    pub(in crate::isolator) what: &'static str,
}

/// What of the image the volumes at mount points hide. What cannot be looked at is left out.
pub(in crate::isolator) fn masked(context: &LaunchContext) -> Vec<Masked> {
    let Some(rootfs) = &context.rootfs else { return Vec::new() };
    let root = open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let Ok(root) = root else { return Vec::new() };
    let named = context.volumes.iter().filter(|volume| volume.spec.mount_point.is_some());
    let paths = named.filter_map(|volume| place(context, &volume.spec).ok());
    paths.filter_map(|(path, _)| hidden(&root, &path).map(|what| Masked { path, what })).collect()
}

fn hidden(root: &OwnedFd, path: &Path) -> Option<&'static str> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(root.as_fd(), path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside).ok()?;
    match FileType::from_raw_mode(fstat(&found).ok()?.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let open = openat2(root.as_fd(), path, flags, Mode::empty(), inside).ok()?;
            let mut names = Dir::read_from(open).ok()?.filter_map(Result::ok);
            let real = names.any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
            real.then_some("its directory is not empty")
        }
        _ => Some("it is a file"),
    }
}

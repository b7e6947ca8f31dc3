//! `<run_dir>/<id>/cgroups.json`: where the cgroups of a container lie, from before they are made until they are gone.

use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use keelblock_actors::container::ContainerId;
use sha2::{Digest, Sha256};

use super::hierarchy::{CgroupError, file};

fn path(run_dir: &Path, id: &ContainerId) -> PathBuf {
    run_dir.join(id.as_str()).join("cgroups.json")
}

/// Digits that tell work directories apart. 12, as in a short digest: with a dot and the longest container ID it is
/// just as long as a file name may be.
const OWNER_DIGITS: usize = 12;

/// The name of a container's cgroups. IDs have no dot.
pub(super) fn cgroup_name(run_dir: &Path, id: &ContainerId) -> Result<String, CgroupError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(run_dir)
        .map_err(|source| file("make", run_dir, source))?;
    let known = run_dir.canonicalize().map_err(|source| file("find", run_dir, source))?;
    let owner: String =
        Sha256::digest(known.as_os_str().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{id}.{}", &owner[..OWNER_DIGITS]))
}

pub(super) fn write(run_dir: &Path, id: &ContainerId, directories: &[PathBuf]) -> Result<(), CgroupError> {
    let path = path(run_dir, id);
    let directory = run_dir.join(id.as_str());
    let made = DirBuilder::new().recursive(true).mode(0o711).create(&directory);
    made.map_err(|source| file("make", &directory, source))?;
    let text = serde_json::to_vec(directories)
        .map_err(|source| CgroupError::Journal { path: path.clone(), source })?;
    let staged = path.with_extension("json.new");
    fs::write(&staged, text).map_err(|source| file("write", &staged, source))?;
    fs::rename(&staged, &path).map_err(|source| file("write", &path, source))
}

pub(super) fn read(run_dir: &Path, id: &ContainerId) -> Result<Option<Vec<PathBuf>>, CgroupError> {
    let path = path(run_dir, id);
    match fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|source| CgroupError::Journal { path, source })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file("read", &path, source)),
    }
}

pub(super) fn remove(run_dir: &Path, id: &ContainerId) -> Result<(), CgroupError> {
    let path = path(run_dir, id);
    fs::remove_file(&path).map_err(|source| file("remove", &path, source))
}

//! The store as a whole: its directories, its version, and where its opaque marks are.
//!
//! Written when the first layer, image or pin comes, so that commands that only look make nothing. Decided once: a
//! stack of layers from one store never mixes `trusted.` and `user.` marks.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use keelblock_actors::error::StoreError;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::layout::{DIRECTORIES, Layout};
use super::privileges::Privileges;
use super::stage;
use super::whiteout::Namespace;

/// The version this program reads and writes.
const VERSION: u32 = 1;

/// The file `format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Format {
    version: u32,
    /// Where opaque marks are.
    pub(super) whiteouts: Namespace,
}

/// The format of a store; `None` = there is no store yet.
pub(super) fn read(layout: &Layout, privileges: Privileges) -> Result<Option<Format>, StoreError> {
    let path = layout.format();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { act: "read", path, source }),
    };
    let format: Format = match serde_json::from_slice(&bytes) {
        Ok(format) => format,
        Err(error) => return Err(StoreError::Damaged { path, source: error.into() }),
    };
    if format.version != VERSION {
        let source = io::Error::other(format!(
            "it says version {}, but this keelblock knows version {VERSION}; use the one that made the store",
            format.version
        ));
        return Err(StoreError::Io { act: "use", path, source });
    }
    if privileges.in_user_namespace && format.whiteouts == Namespace::Trusted {
        let source = io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the store was made by root, whose layers cannot be read in a user namespace; choose another --work_dir",
        );
        return Err(StoreError::Io { act: "use", path, source });
    }
    Ok(Some(format))
}

/// The format of a store, which is made if there is none.
///
/// What lies in its place without a format may be all that a power cut left of a store, so `check` has a look at it first.
pub(super) fn read_or_make(
    layout: &Layout,
    privileges: Privileges,
    disk: &dyn Disk,
    check: impl FnOnce() -> Result<(), StoreError>,
) -> Result<Format, StoreError> {
    if let Some(format) = read(layout, privileges)? {
        return Ok(format);
    }
    make_directory(layout.root(), true)?;
    check()?;
    make_directories(layout)?;
    let whiteouts = if privileges.in_user_namespace { Namespace::User } else { Namespace::Trusted };
    let format = Format { version: VERSION, whiteouts };
    let path = layout.format();
    let bytes = serde_json::to_vec(&format).map_err(|error| StoreError::Io {
        act: "write",
        path: path.clone(),
        source: error.into(),
    })?;
    // Whoever comes first decides; the others read what is there.
    match stage::write_new(layout, disk, &path, &bytes) {
        Ok(()) => Ok(format),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(layout, privileges)?
            .ok_or(StoreError::Io { act: "read", path, source: io::ErrorKind::NotFound.into() }),
        Err(source) => Err(StoreError::Io { act: "write", path, source }),
    }
}

/// The directories of a store that is there.
pub(super) fn make_directories(layout: &Layout) -> Result<(), StoreError> {
    DIRECTORIES.iter().try_for_each(|directory| make_directory(&layout.root().join(directory), false))
}

fn make_directory(path: &Path, with_parents: bool) -> Result<(), StoreError> {
    match std::fs::DirBuilder::new().recursive(with_parents).mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(StoreError::Io { act: "make", path: path.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

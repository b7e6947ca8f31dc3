//! Image records: `images/<sha256 of the canonical name>.json`, each written whole.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use keelblock_actors::error::StoreError;
use keelblock_actors::image::appc::AppcReference;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::ports::ImageRecord;
use slog::{Logger, warn};

use super::disk::{Barrier, Disk};
use super::layout::Layout;
use super::stage;

/// The record of an image. One that is named by its ID is any of that ID, the newest of several: they are of the same bytes.
pub(super) fn read(
    layout: &Layout,
    name: &ImageName,
    log: &Logger,
) -> Result<Option<ImageRecord>, StoreError> {
    match (read_file(&layout.image(name))?, name) {
        (None, ImageName::Appc(AppcReference::Id(id))) => by_id(layout, &id.digest(), log),
        (found, _) => Ok(found),
    }
}

/// The newest record of an Appc image that has this ID.
fn by_id(layout: &Layout, id: &Digest, log: &Logger) -> Result<Option<ImageRecord>, StoreError> {
    let records = list(layout, log)?.into_iter().filter(|(_, record)| {
        let identity = &record.plan.identity;
        identity.config == *id && matches!(identity.name, ImageName::Appc(_) | ImageName::Aci(_))
    });
    // One that was removed meanwhile is the oldest.
    let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    Ok(records.max_by_key(|(path, _)| written(path)).map(|(_, record)| record))
}

fn read_file(path: &Path) -> Result<Option<ImageRecord>, StoreError> {
    let path = path.to_owned();
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError::Damaged { path, source: error.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { act: "read", path, source }),
    }
}

/// Writes one, in place of an earlier one of its name; if there is a `disk`, its content is on disk before.
pub(super) fn write(
    layout: &Layout,
    disk: Option<&dyn Disk>,
    record: &ImageRecord,
) -> Result<(), StoreError> {
    let path = layout.image(&record.plan.identity.name);
    let written = serde_json::to_vec(record).map_err(io::Error::from);
    let written = written.and_then(|bytes| match disk {
        None => stage::write(layout, &path, &bytes),
        Some(disk) => stage::write_synced(layout, disk, Barrier::Record, &path, &bytes),
    });
    written.map_err(|source| StoreError::Io { act: "write", path, source })
}

/// All of them by name, with their files. Damaged ones are logged and left out: one bad file must not hide the others.
pub(super) fn list(layout: &Layout, log: &Logger) -> Result<Vec<(PathBuf, ImageRecord)>, StoreError> {
    let dir = layout.images();
    let mut records = Vec::new();
    for name in names(&dir)? {
        let path = dir.join(&name);
        if path.extension() != Some(OsStr::new("json")) {
            continue;
        }
        match read_file(&path) {
            Ok(Some(record)) => records.push((path, record)),
            // Pruned meanwhile.
            Ok(None) => {}
            Err(error @ StoreError::Damaged { .. }) => {
                warn!(log, "image record left out"; "error" => keelblock_actors::error::chain(&error));
            }
            Err(error) => return Err(error),
        }
    }
    records.sort_by(|(_, a), (_, b)| a.plan.identity.name.cmp(&b.plan.identity.name));
    Ok(records)
}

/// Names in a directory of the store; none if it is not there.
pub(super) fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, StoreError> {
    let failed = |source| StoreError::Io { act: "read", path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(failed)).collect()
}

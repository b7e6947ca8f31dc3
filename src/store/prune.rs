//! Removes images and layers that nobody uses.
//!
//! What is used: images and layers the caller names (those of all containers), layers of images that stay, and layers
//! pinned by live processes. Under the store lock, exclusive, it is decided and moved away, which is a matter of
//! renames; the trees are removed after the lock is given back, by whoever the store has for it ([`crate::gc`]).

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::{InUse, Keep, Pruned};
use slog::{Logger, debug, warn};

use super::disk::Disk;
use super::form::{Form, LayerRecord};
use super::images::{self, names};
use super::journal::Journal;
use super::layout::{ALGORITHMS, Layout};
use super::shown::Mounts;
use super::unsettled::Mark;
use super::{pin, quarantine, removal};
use crate::gc::Gc;
use crate::sys::lock::LockKind;

/// See the module.
pub(super) fn prune(
    layout: &Layout,
    disk: &dyn Disk,
    gc: &Gc,
    mounts: &Mounts,
    keep: &Keep,
    in_use: InUse<'_>,
    log: &Logger,
) -> Result<Pruned, StoreError> {
    let store = pin::lock_store(layout, LockKind::Exclusive)?;
    let mut pruned = Pruned::default();
    let (used, of_containers) = used(layout, keep, in_use, log, &mut pruned)?;
    let mut unused = layers(layout)?;
    unused.retain(|diff| !used.contains(diff));
    let mut records = Vec::new();
    for diff in &unused {
        match LayerRecord::read(layout, diff) {
            Ok(record) => records.push(record),
            // It goes all the same.
            Err(error) => debug!(log, "layer of unknown size pruned"; "layer" => %diff, "error" => %error),
        }
    }
    pruned.bytes = records.iter().map(|record| record.bytes).sum();
    for diff in &unused {
        // Nobody uses it; who died with it left it mounted.
        mounts.retire(diff)?;
    }
    // Of an image that lacks a file that shows ([`LayerRecord::has_its_files`]). Only of a tree nobody could tell, so only for
    // trees there is a wait.
    forget(layout, disk, records.iter().filter(|record| record.form == Form::Tree))?;
    let mut moved = quarantine::empty(layout, gc, &of_containers)?;
    for diff in unused {
        let path = layout.layer(&diff);
        moved.extend(gc.move_away(&path).map_err(|source| StoreError::Io {
            act: "move away",
            path,
            source,
        })?);
        pruned.layers.push(diff);
    }
    for record in &records {
        for failed in [false, true] {
            Mark { failed, ..Mark::of(&record.diff_id, &record.commit) }.remove(layout);
        }
    }
    forget_blobs(layout, log)?;
    drop(store);
    pruned.freed = gc.collect(&moved).map_err(removal)?;
    Ok(pruned)
}

/// Takes layers out of the journal before they are moved away: a power cut may bring their names back. To be called under the
/// store lock, exclusive.
pub(super) fn forget<'r>(
    layout: &Layout,
    disk: &dyn Disk,
    records: impl IntoIterator<Item = &'r LayerRecord>,
) -> Result<(), StoreError> {
    let commits = records.into_iter().map(|record| (record.diff_id.clone(), record.commit.clone()));
    let commits: Vec<_> = commits.collect();
    if commits.is_empty() {
        return Ok(());
    }
    let journal = Journal::read(layout)?;
    let known: Vec<_> = commits.into_iter().filter(|commit| journal.is_durable(commit)).collect();
    journal.remove(layout, disk, &known)
}

/// The layers that stay, and those of them that containers name; the records of images that do not are removed.
fn used(
    layout: &Layout,
    keep: &Keep,
    in_use: InUse<'_>,
    log: &Logger,
    pruned: &mut Pruned,
) -> Result<(BTreeSet<DiffId>, BTreeSet<DiffId>), StoreError> {
    // Pins before records: what drops its pin in between has written its record by then.
    let pinned = pin::pinned(layout, log)?;
    let in_use = in_use().map_err(StoreError::InUse)?;
    let named =
        keep.images.iter().chain(in_use.iter().flat_map(|used| used.images.iter().map(|id| &id.name)));
    let named: BTreeSet<ImageName> = named.map(ImageName::canonical).collect();
    let of_containers: BTreeSet<DiffId> =
        in_use.iter().flat_map(|used| used.layers.iter().cloned()).collect();
    let mut used = of_containers.clone();
    for key in pinned {
        match key {
            LayerKey::Diff(diff) | LayerKey::Aci(diff) => {
                used.insert(diff);
            }
            // Without an index it is not in the store by this name, so there is nothing to keep.
            LayerKey::Blob(blob) => used.extend(diff_of_blob(layout, &blob)?),
        }
    }
    for (path, record) in images::list(layout, log)? {
        let name = record.plan.identity.name;
        if named.contains(&name.canonical()) {
            used.extend(record.layers.into_iter().map(|layer| layer.diff_id));
            continue;
        }
        remove_file(path)?;
        pruned.images.push(name);
    }
    Ok((used, of_containers))
}

/// Every layer in the store.
pub(super) fn layers(layout: &Layout) -> Result<Vec<DiffId>, StoreError> {
    let mut layers = Vec::new();
    for algorithm in ALGORITHMS {
        for name in names(&layout.layers(algorithm))? {
            // What is no digest is not ours.
            if let Ok(diff) = format!("{algorithm}:{}", name.to_string_lossy()).parse() {
                layers.push(diff);
            }
        }
    }
    layers.sort();
    Ok(layers)
}

/// The layer that a blob unpacked to, as the index says; it may be gone.
pub(super) fn diff_of_blob(layout: &Layout, blob: &Digest) -> Result<Option<DiffId>, StoreError> {
    let path = layout.blob(blob);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            text.parse().map(Some).map_err(|error| StoreError::Damaged { path, source: Box::new(error) })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { act: "read", path, source }),
    }
}

/// Removes what the blob index says of layers that are not there.
fn forget_blobs(layout: &Layout, log: &Logger) -> Result<(), StoreError> {
    for algorithm in ALGORITHMS {
        for name in names(&layout.blobs(algorithm))? {
            let path = layout.blobs(algorithm).join(name);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let stays = match text.parse::<DiffId>() {
                Ok(diff) => layout.layer(&diff).exists(),
                Err(error) => {
                    warn!(log, "damaged blob index removed"; "path" => %path.display(), "error" => %error);
                    false
                }
            };
            if !stays {
                remove_file(path)?;
            }
        }
    }
    Ok(())
}

pub(super) fn remove_file(path: PathBuf) -> Result<(), StoreError> {
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { act: "remove", path, source })
        }
        _ => Ok(()),
    }
}

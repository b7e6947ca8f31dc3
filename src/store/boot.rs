//! The first look at a store after a boot: what may have been lost in a power cut goes, before anybody is shown it.
//!
//! In the boot in which the store was last looked at, all that the kernel shows is as it was written, whether it is on disk
//! or not: nothing is checked. In any other boot the machine may have lost power in between, so only that counts which is
//! known to have been on disk: layers by the journal, records and indexes by what they say themselves. The rest is moved
//! away, under the store lock, and pulled again when it is wanted.
//!
//! A store without the file `boot` was made by a version that kept no journal (or lost that file in a power cut). Its
//! layers that bear no commit are of that version: nobody can say whether they are on disk, and they are most likely old.
//! They stay, and are settled. No layer of this version is ever taken for one of those.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use keelblock_actors::error::{StoreError, chain};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::ports::ImageRecord;
use slog::{Logger, info, warn};

use super::form::LayerRecord;
use super::images::names;
use super::journal::Journal;
use super::layout::{ALGORITHMS, DIRECTORIES, Layout};
use super::unsettled::{self, Mark};
use super::{format, pin, prune, recover, stage};
use crate::gc::Gc;
use crate::sys::lock::{self, LockKind};

/// Looks at a store in this boot, unless that was done. Does nothing where there is none yet.
pub(super) fn check(layout: &Layout, gc: &Gc, boot: &str, log: &Logger) -> Result<(), StoreError> {
    let something = || DIRECTORIES.iter().any(|name| layout.root().join(name).exists());
    if was_checked(layout, boot)? || !something() {
        return Ok(());
    }
    check_now(layout, gc, boot, log)
}

/// As [`check`], for a store that is being made.
pub(super) fn check_now(layout: &Layout, gc: &Gc, boot: &str, log: &Logger) -> Result<(), StoreError> {
    let store = pin::lock_store(layout, LockKind::Exclusive)?;
    if was_checked(layout, boot)? {
        return Ok(());
    }
    // A cut may have taken some of those, too.
    format::make_directories(layout)?;
    let is_old = read(layout)?.is_none();
    let mut check = Check { layout, gc, log, is_old, layers: BTreeMap::new(), moved: Vec::new() };
    check.clear_claims()?;
    check.layers(&Journal::read(layout)?)?;
    check.images()?;
    check.blobs()?;
    let moved = check.moved;
    let path = layout.boot();
    stage::write(layout, &path, boot.as_bytes()).map_err(|source| StoreError::Io {
        act: "write",
        path,
        source,
    })?;
    drop(store);
    if let Err(error) = gc.collect(&moved) {
        warn!(log, "what was moved away cannot be removed"; "error" => chain(&error));
    }
    Ok(())
}

fn was_checked(layout: &Layout, boot: &str) -> Result<bool, StoreError> {
    Ok(read(layout)?.is_some_and(|last| last == boot.as_bytes()))
}

fn read(layout: &Layout) -> Result<Option<Vec<u8>>, StoreError> {
    let path = layout.boot();
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { act: "read", path, source }),
    }
}

struct Check<'a> {
    layout: &'a Layout,
    gc: &'a Gc,
    log: &'a Logger,
    is_old: bool,
    /// Those that stay, with the blobs that brought them.
    layers: BTreeMap<DiffId, Option<Digest>>,
    /// Where what goes is now.
    moved: Vec<PathBuf>,
}

impl Check<'_> {
    /// What processes of an earlier boot held: stages, claims, pins, marks.
    fn clear_claims(&mut self) -> Result<(), StoreError> {
        recover::move_stages_away(self.layout, self.gc, &mut self.moved)?;
        recover::remove_claims(self.layout)?;
        for name in names(&self.layout.pins())? {
            let path = self.layout.pins().join(name);
            let failed = |act, source| StoreError::Io { act, path: path.clone(), source };
            let unlocked = lock::try_lock_existing(&path, LockKind::Exclusive);
            if let Some(_locked) = unlocked.map_err(|error| failed("lock", error))? {
                std::fs::remove_file(&path).map_err(|error| failed("remove", error))?;
            }
        }
        unsettled::clear(self.layout)
    }

    fn layers(&mut self, journal: &Journal) -> Result<(), StoreError> {
        let mut dropped = 0u64;
        for algorithm in ALGORITHMS {
            for name in names(&self.layout.layers(algorithm))? {
                // What is no digest is not ours, and never shown.
                let Ok(diff) = format!("{algorithm}:{}", name.to_string_lossy()).parse::<DiffId>() else {
                    continue;
                };
                if let Some(record) = self.whole(&diff) {
                    if journal.is_durable(&(diff.clone(), record.commit.clone())) {
                        self.layers.insert(diff, record.blob);
                        continue;
                    }
                    if self.is_old && record.commit.is_empty() {
                        Mark::of(&diff, "").make(self.layout)?;
                        self.layers.insert(diff, record.blob);
                        continue;
                    }
                }
                self.move_away(&self.layout.layer(&diff))?;
                info!(self.log, "a layer that was not on disk before this boot is dropped"; "layer" => %diff);
                dropped += 1;
            }
        }
        if dropped > 0 {
            info!(self.log, "layers were dropped that may be damaged; they are pulled again when they are wanted";
                "count" => dropped);
        }
        Ok(())
    }

    /// The record of a layer of which no file is missing. A layer may lack some that was on disk: its removal had begun.
    fn whole(&self, diff: &DiffId) -> Option<LayerRecord> {
        let record = LayerRecord::read(self.layout, diff).ok()?;
        let dir = self.layout.layer(diff);
        (record.diff_id == *diff && record.has_its_files(&dir)).then_some(record)
    }

    /// A record that is torn goes; so does one that is in another's place.
    fn images(&mut self) -> Result<(), StoreError> {
        for name in names(&self.layout.images())? {
            let path = self.layout.images().join(name);
            let read = std::fs::read(&path).map_err(|source| StoreError::Io {
                act: "read",
                path: path.clone(),
                source,
            })?;
            let stays = serde_json::from_slice(&read).is_ok_and(|record: ImageRecord| {
                self.layout.image(&record.plan.identity.name).file_name() == path.file_name()
            });
            if !stays && path.extension() == Some(OsStr::new("json")) {
                info!(self.log, "an image record is torn and removed"; "path" => %path.display());
                prune::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// An index stays if the layer it leads to says the same.
    fn blobs(&mut self) -> Result<(), StoreError> {
        for algorithm in ALGORITHMS {
            for name in names(&self.layout.blobs(algorithm))? {
                let blob = format!("{algorithm}:{}", name.to_string_lossy()).parse::<Digest>().ok();
                let path = self.layout.blobs(algorithm).join(name);
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let layer = text.parse().ok().and_then(|diff: DiffId| self.layers.get(&diff));
                if !layer.is_some_and(|brought_by| blob.is_some() && *brought_by == blob) {
                    prune::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    fn move_away(&mut self, path: &Path) -> Result<(), StoreError> {
        let moved = self.gc.move_away(path).map_err(|source| StoreError::Io {
            act: "move away",
            path: path.to_owned(),
            source,
        })?;
        self.moved.extend(moved);
        Ok(())
    }
}

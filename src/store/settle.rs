//! Committed layers, made durable: written to disk in an order that lets the journal say so truly.
//!
//! A pass takes all layers that are marked unsettled, so that what costs most, the waits for the disk, is paid once for
//! all of them. The order, with the argument for it, is in `docs/durability.md`: content, names within the layer, names
//! of layers, journal. Nobody is kept waiting: a layer can be used, pruned and committed meanwhile. One process settles
//! at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keelblock_actors::error::{Cause, StoreError, chain};
use keelblock_actors::image::digest::DiffId;
use rustix::fs::OFlags;
use slog::{Logger, debug, error, info};

use super::disk::{Barrier, Disk};
use super::form::LayerRecord;
use super::images::names;
use super::journal::{Commit, Journal};
use super::layout::{IMAGE, Layout, TREE};
use super::pin;
use super::unsettled::{self, Mark};
use crate::sys::lock::{self, LockKind};
use crate::sys::{sync, verity};

/// Records and indexes younger than the journal by this much, or older by no more, are written to disk with it. 2 s: the
/// coarsest clock of a filesystem.
const CLOCK_SLACK_S: i64 = 2;

/// The act of an error that came from the disk.
const SYNC: &str = "sync";

/// What settling brought about.
#[derive(Debug, Default)]
pub struct Settled {
    /// Layers that are on disk now and were not before.
    pub layers: Vec<DiffId>,
    /// Layers that the disk refused, now or earlier. They can be used until the next boot, which drops them.
    pub failed: Vec<DiffId>,
    /// Why, for those of now.
    pub causes: BTreeMap<DiffId, Cause>,
    /// Layers that could not be looked at: the next pass tries again.
    pub left: Vec<DiffId>,
}

/// Commits whose content this process has forced to disk before they were visible ([`sync_staged`]).
#[derive(Debug, Default)]
pub(super) struct Synced(Mutex<BTreeSet<String>>);

impl Synced {
    fn commits(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers one.
    pub(super) fn add(&self, commit: &str) {
        self.commits().insert(commit.to_owned());
    }
}

/// A layer on its way to the disk.
struct Pending {
    mark: Mark,
    path: PathBuf,
    /// Of the layer, as it was found.
    dir: File,
    /// Whether only a sync of the filesystem reaches all of it.
    is_tree: bool,
}

/// Makes all layers durable that are visible when it begins, or become so meanwhile. Waits while another process does.
pub(super) fn settle(
    layout: &Layout,
    disk: &dyn Disk,
    synced: &Synced,
    log: &Logger,
) -> Result<Settled, StoreError> {
    let mut settled = Settled::default();
    if unsettled::marks(layout)?.is_empty() {
        return Ok(settled);
    }
    let path = layout.settling();
    let turn = lock::open_lock_file(&path)
        .and_then(|file| lock::lock(&file, LockKind::Exclusive).map(|()| file))
        .map_err(|source| StoreError::Io { act: "lock", path, source })?;
    // Tried once each: what cannot be looked at now cannot be a moment later.
    let mut tried = BTreeSet::new();
    loop {
        let marks = unsettled::marks(layout)?;
        settled.failed = marks.iter().filter(|mark| mark.failed).map(|mark| mark.commit.0.clone()).collect();
        let new: Vec<_> =
            marks.into_iter().filter(|mark| !mark.failed && tried.insert(mark.commit.clone())).collect();
        if new.is_empty() {
            break;
        }
        Pass { layout, disk, synced, log, settled: &mut settled }.run(new)?;
    }
    drop(turn);
    Ok(settled)
}

struct Pass<'a> {
    layout: &'a Layout,
    disk: &'a dyn Disk,
    synced: &'a Synced,
    log: &'a Logger,
    settled: &'a mut Settled,
}

impl Pass<'_> {
    fn run(&mut self, marks: Vec<Mark>) -> Result<(), StoreError> {
        let mut pending = Vec::new();
        for mark in marks {
            match find(self.layout, &mark) {
                Ok(Found::Layer(layer)) => pending.push(layer),
                Ok(Found::NotYet) => {}
                Ok(Found::Nothing) => mark.remove(self.layout),
                Err(error) => self.leave(&mark, &error),
            }
        }
        let pending = self.sync_content(pending)?;
        for layer in pending.iter().filter(|layer| !layer.is_tree) {
            self.protect(layer);
        }
        if pending.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.sync_names(&pending) {
            // What a failed sync was about is lost for good, for all the kernel says later.
            if matches!(error, StoreError::Io { act: SYNC, .. }) {
                for layer in &pending {
                    self.fail(&layer.mark, chain(&error).into())?;
                }
            }
            return Err(error);
        }
        self.record(pending)
    }

    /// Has the filesystem check what is read of an image, where it can: what rots is then an error to whoever reads it. Nothing
    /// depends on it.
    fn protect(&self, layer: &Pending) {
        let protected = open_file(&layer.path.join(IMAGE)).and_then(|image| verity::enable(&image));
        match protected {
            Ok(true) => {
                debug!(self.log, "the filesystem checks what is read of a layer"; "layer" => %layer.mark.commit.0)
            }
            Ok(false) => {}
            Err(error) => debug!(self.log, "the filesystem does not check what is read of a layer";
                "layer" => %layer.mark.commit.0, "error" => %error),
        }
    }

    fn leave(&mut self, mark: &Mark, cause: &dyn std::error::Error) {
        error!(self.log, "a layer cannot be written to disk now"; "layer" => %mark.commit.0,
            "error" => chain(cause));
        self.settled.left.push(mark.commit.0.clone());
    }

    fn fail(&mut self, mark: &Mark, cause: Cause) -> Result<(), StoreError> {
        error!(self.log, "the disk refuses a layer, which will be gone after the next boot";
            "layer" => %mark.commit.0, "error" => chain(&*cause));
        let diff = mark.commit.0.clone();
        self.settled.failed.push(diff.clone());
        self.settled.causes.insert(diff, cause);
        mark.fail(self.layout)
    }

    /// Files, and the names of files within their layers. Returns the layers of which all is well.
    fn sync_content(&mut self, pending: Vec<Pending>) -> Result<Vec<Pending>, StoreError> {
        let mut sound = Vec::new();
        // All that there is to write is on its way before the first is waited for.
        let mut opened = Vec::new();
        for layer in pending {
            if self.synced.commits().contains(&layer.mark.commit.1) {
                sound.push(layer);
                continue;
            }
            match files(&layer.path) {
                Ok(files) => opened.push((layer, files)),
                Err(error) => self.leave(&layer.mark, &error),
            }
        }
        for (layer, files) in opened {
            let synced = files.iter().try_for_each(|file| self.disk.sync(Barrier::Content, file));
            match synced.and_then(|()| self.disk.sync(Barrier::Layer, &layer.dir)) {
                Ok(()) => sound.push(layer),
                Err(error) => self.fail(&layer.mark, error.into())?,
            }
        }
        if sound.iter().any(|layer| layer.is_tree) {
            // One for all trees: file by file it would take longer than to unpack them.
            if let Err(error) =
                open_dir(self.layout.root()).and_then(|root| self.disk.sync(Barrier::Filesystem, &root))
            {
                let (trees, others) = sound.into_iter().partition(|layer| layer.is_tree);
                sound = others;
                let cause = error.to_string();
                for tree in <Vec<Pending> as IntoIterator>::into_iter(trees) {
                    self.fail(&tree.mark, cause.clone().into())?;
                }
            }
        }
        Ok(sound)
    }

    /// The names of the layers, in both directories that the rename has changed, and all above them.
    fn sync_names(&self, pending: &[Pending]) -> Result<(), StoreError> {
        let layout = self.layout;
        let algorithms: BTreeSet<_> = pending.iter().map(|layer| layer.mark.commit.0.0.algorithm()).collect();
        for algorithm in algorithms {
            sync_dir(self.disk, Barrier::Layers, &layout.layers(algorithm))?;
        }
        sync_dir(self.disk, Barrier::Staging, &layout.staging())?;
        if !layout.journal().exists() {
            first(layout, self.disk)?;
        }
        Ok(())
    }

    /// What is on disk now is said in the journal. Whoever removes layers waits meanwhile.
    fn record(&mut self, pending: Vec<Pending>) -> Result<(), StoreError> {
        let store = pin::lock_store(self.layout, LockKind::Shared)?;
        // Of a layer that was moved away since, nothing is said: its files may be going.
        let here = |layer: &Pending| lock::leads_to(&layer.path, &layer.dir).unwrap_or(false);
        let (pending, gone): (Vec<_>, Vec<_>) = pending.into_iter().partition(here);
        let commits: Vec<Commit> = pending.iter().map(|layer| layer.mark.commit.clone()).collect();
        let journal = Journal::read(self.layout)?;
        let records = younger_records(self.layout)?;
        journal.add(self.layout, self.disk, &commits)?;
        drop(store);
        // The journal's own name, which whoever made it may not have lived to see on disk.
        sync_dir(self.disk, Barrier::Store, self.layout.root())?;
        for layer in pending.iter().chain(&gone) {
            layer.mark.remove(self.layout);
            self.synced.commits().remove(&layer.mark.commit.1);
        }
        for (diff, _) in commits {
            info!(self.log, "layer on disk"; "layer" => %diff);
            self.settled.layers.push(diff);
        }
        self.sync_records(&records);
        Ok(())
    }

    /// Records and indexes are as well forced to disk, so that images stay known; nothing depends on it.
    fn sync_records(&self, records: &[PathBuf]) {
        let mut dirs = BTreeSet::new();
        for path in records {
            let synced = File::open(path).and_then(|file| self.disk.sync(Barrier::Record, &file));
            match synced {
                Ok(()) => dirs.extend(path.parent()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    debug!(self.log, "a record is not on disk"; "path" => %path.display(), "error" => %error);
                }
            }
        }
        for dir in dirs {
            if let Err(error) = sync_dir(self.disk, Barrier::Records, dir) {
                debug!(self.log, "records are not on disk"; "error" => chain(&error));
            }
        }
    }
}

enum Found {
    Layer(Pending),
    /// It is not visible yet.
    NotYet,
    /// It never was, or is no more.
    Nothing,
}

/// The layer of a mark.
fn find(layout: &Layout, mark: &Mark) -> Result<Found, StoreError> {
    let (diff, commit) = &mark.commit;
    let staged = layout.staging().join(commit);
    // First this, then the layer: else its rename could come between, and the mark would be taken for a dead one.
    if !commit.is_empty() && std::fs::symlink_metadata(&staged).is_ok() {
        return Ok(Found::NotYet);
    }
    let path = layout.layer(diff);
    let dir = match open_dir(&path) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(StoreError::Io { act: "open", path, source }),
    };
    match LayerRecord::read(layout, diff) {
        Ok(record) if record.commit == *commit => {}
        Ok(_) | Err(StoreError::Missing { .. }) => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    }
    let is_tree = std::fs::symlink_metadata(path.join(TREE)).is_ok_and(|tree| tree.is_dir());
    Ok(Found::Layer(Pending { mark: mark.clone(), path, dir, is_tree }))
}

/// The files in a layer's directory, all on their way to the disk.
fn files(dir: &Path) -> Result<Vec<File>, StoreError> {
    let mut files = Vec::new();
    for name in names(dir)? {
        let path = dir.join(name);
        let failed = |source| StoreError::Io { act: "open", path: path.clone(), source };
        if !std::fs::symlink_metadata(&path).map_err(failed)?.is_file() {
            continue;
        }
        let file = open_file(&path).map_err(failed)?;
        // A hint: who cannot take it is told again by the sync.
        let _ = sync::start_write_back(&file, 0, 0);
        files.push(file);
    }
    Ok(files)
}

/// Before the journal is made: what was there before it, and the way to the store from the root of its filesystem.
fn first(layout: &Layout, disk: &dyn Disk) -> Result<(), StoreError> {
    for dir in ["layers", "blobs", ""] {
        sync_dir(disk, Barrier::Store, &layout.root().join(dir))?;
    }
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let of_store = device(layout.root());
    for above in layout.root().ancestors().skip(1).take_while(|above| device(above) == of_store) {
        // One that we may not read, another made, and long ago.
        if let Ok(dir) = open_dir(above) {
            disk.sync(Barrier::Store, &dir).map_err(|source| StoreError::Io {
                act: SYNC,
                path: above.to_owned(),
                source,
            })?;
        }
    }
    Ok(())
}

/// Image records and blob indexes that were written since the journal was, as far as clocks can say.
fn younger_records(layout: &Layout) -> Result<Vec<PathBuf>, StoreError> {
    let since =
        std::fs::metadata(layout.journal()).map_or(i64::MIN, |journal| journal.mtime() - CLOCK_SLACK_S);
    let mut younger = Vec::new();
    for dir in [layout.images(), layout.blobs("sha256"), layout.blobs("sha512")] {
        for name in names(&dir)? {
            let path = dir.join(name);
            if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.ctime() >= since) {
                younger.push(path);
            }
        }
    }
    Ok(younger)
}

/// Forces names to disk.
pub(super) fn sync_dir(disk: &dyn Disk, what: Barrier, path: &Path) -> Result<(), StoreError> {
    let failed = |act, source| StoreError::Io { act, path: path.to_owned(), source };
    let dir = open_dir(path).map_err(|error| failed("open", error))?;
    disk.sync(what, &dir).map_err(|error| failed(SYNC, error))
}

/// Forces a record or an index to disk, and its name.
pub(super) fn sync_record(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    let failed = |act, source| StoreError::Io { act, path: path.to_owned(), source };
    let file = open_file(path).map_err(|error| failed("open", error))?;
    disk.sync(Barrier::Record, &file).map_err(|error| failed(SYNC, error))?;
    path.parent().map_or(Ok(()), |dir| sync_dir(disk, Barrier::Records, dir))
}

/// Forces a layer to disk that is staged yet, but for its name; of a tree, nothing: it is too much. Whether it did.
pub(super) fn sync_staged(disk: &dyn Disk, staged: &Path) -> Result<bool, StoreError> {
    if staged.join(TREE).exists() {
        return Ok(false);
    }
    let failed = |source| StoreError::Io { act: SYNC, path: staged.to_owned(), source };
    for file in files(staged)? {
        disk.sync(Barrier::Content, &file).map_err(failed)?;
    }
    sync_dir(disk, Barrier::Layer, staged)?;
    Ok(true)
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits() as i32).open(path)
}

fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    File::options().read(true).custom_flags(flags.bits() as i32).open(path)
}

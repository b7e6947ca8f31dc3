//! The way of a blob into the store: read, counted and hashed, decompressed, hashed again, unpacked.
//!
//! One pass (`pipeline`) and no copy on disk. Nothing is trusted before its hash is known: all of it goes to a private directory, and only when size,
//! blob digest and diff ID are right is that committed.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use keelblock_actors::error::UnpackError;
use keelblock_actors::image::appc::AciView;
use keelblock_actors::image::digest::{DiffId, Digest, Hasher};
use keelblock_actors::image::plan::{LayerKey, LayerSpec};
use keelblock_actors::ports::{Staging, StoredLayer};
use keelblock_actors::stop::Stop;
use slog::{info, warn};

use super::Inner;
use super::aci::{Archive, LeftOut};
use super::attributes::Attributes;
use super::entry::{Applied, Applier, Kept};
use super::flaw::Flaw;
use super::form::{Form, LayerRecord};
use super::image::{ImageApplier, ImageFile};
use super::intake::Intake;
use super::job;
use super::layout::{IMAGE, SUMS, TREE};
use super::meaning::Names;
use super::pipeline::{Stages, Threads, join, start};
use super::space::Outlay;
use super::stage::Stage;
use super::tar::{Bounds, Member, Reader, Source};
use super::treesums::Notes;
use super::whiteout::Namespace;
use super::writeback::WriteBack;
use crate::erofs::Watch;
use crate::sys::lock::NamedLock;

/// Bytes of a bad blob that are still read to learn whether its digest is wrong, which says more than what the
/// decompressor stumbled over.
const DIAGNOSE_BYTES_MAX: u64 = 16 << 20;

/// The right to bring one layer.
pub(super) struct DiskStaging {
    pub(super) store: std::sync::Arc<Inner>,
    pub(super) key: LayerKey,
    pub(super) namespace: Namespace,
    pub(super) form: Form,
    pub(super) stage: Stage,
    /// Given back after the stage is gone or committed.
    pub(super) claim: NamedLock,
}

impl Staging for DiskStaging {
    fn unpack(
        self: Box<Self>,
        layer: &LayerSpec,
        blob: &mut dyn Read,
        stop: &Stop,
    ) -> Result<StoredLayer, UnpackError> {
        let began = Instant::now();
        // In this order, so that on an error the stage goes before the claim.
        let Self { store, key, namespace, form, claim, stage } = *self;
        let declared = declared_digest(&key, layer)?;
        let aci = view(&key, layer)?;
        // An image would keep for ever what is only made to be linked to.
        let form = if aci.is_some_and(|view| !view.whitelists.is_empty()) { Form::Tree } else { form };
        let outlay =
            store.space.outlay(layer, form, stop).map_err(|error| Flaw::of_ledger(error).of(&key))?;
        let outlay = Arc::new(outlay);
        let ran = {
            let outlay = Arc::clone(&outlay);
            let job = Job {
                store: &store,
                key: &key,
                layer,
                aci,
                namespace,
                form,
                stage: &stage,
                outlay,
                declared,
                stop,
            };
            job.run(blob)
        };
        // While the stage is there: the numbers are those at which it failed.
        let mut record = ran.map_err(|error| outlay.explained(error))?;
        let stored = super::commit::commit(&store, &key, stage, &mut record);
        let stored = stored.map_err(|error| outlay.explained(error))?;
        // It is in the store: from here on it counts for nothing by itself.
        drop(outlay);
        drop(claim);
        store.settler.nudge(&store);
        let elapsed_ms = began.elapsed().as_millis() as u64;
        let layer = stored.diff_id.to_string();
        if !record.not_set.is_empty() {
            warn!(store.log, "parts of a layer could not be set"; "layer" => &layer,
                "owners" => record.not_set.owners, "devices" => record.not_set.devices,
                "xattrs" => record.not_set.xattrs, "whiteout_devices" => record.not_set.whiteout_devices,
                "foreign_xattrs" => record.not_set.foreign_xattrs);
        }
        info!(store.log, "layer committed"; "layer" => layer, "bytes" => record.bytes,
            "entries" => record.entries, "elapsed_ms" => elapsed_ms);
        Ok(stored)
    }
}

/// The digest the blob must have. For a layer known by its blob that is its key, which the spec cannot overrule.
fn declared_digest(key: &LayerKey, layer: &LayerSpec) -> Result<Option<Digest>, UnpackError> {
    match (key, &layer.blob.digest) {
        (LayerKey::Blob(expected), Some(actual)) if expected != actual => Err(UnpackError::WrongDigest {
            layer: key.clone(),
            expected: expected.clone(),
            actual: actual.clone(),
        }),
        (LayerKey::Blob(expected), _) => Ok(Some(expected.clone())),
        (LayerKey::Diff(_) | LayerKey::Aci(_), declared) => Ok(declared.clone()),
    }
}

/// What of an ACI a layer is, if it is of one; its key must be that of the view.
fn view<'l>(key: &LayerKey, layer: &'l LayerSpec) -> Result<Option<&'l AciView>, UnpackError> {
    let LayerKey::Aci(id) = key else { return Ok(None) };
    match &layer.aci {
        Some(view) if view.diff_id() == *id => Ok(Some(view)),
        view => Err(UnpackError::WrongView {
            layer: key.clone(),
            image: view.as_ref().map(|view| view.image_id.clone()),
        }),
    }
}

struct Job<'a> {
    store: &'a Inner,
    key: &'a LayerKey,
    layer: &'a LayerSpec,
    /// What of an ACI it is, if it is of one.
    aci: Option<&'a AciView>,
    namespace: Namespace,
    form: Form,
    stage: &'a Stage,
    outlay: Arc<Outlay>,
    declared: Option<Digest>,
    stop: &'a Stop,
}

impl Job<'_> {
    /// Unpacks into the stage; what it is, if all digests are right.
    fn run(&self, blob: &mut dyn Read) -> Result<LayerRecord, UnpackError> {
        let limits = &self.store.limits;
        let hasher = match (self.aci, self.key) {
            (Some(view), _) => view.image_id.digest().hasher(),
            (None, LayerKey::Diff(diff) | LayerKey::Aci(diff)) => diff.0.hasher(),
            (None, LayerKey::Blob(_)) => Hasher::sha256(),
        };
        let (size, declared) = (self.layer.blob.size, self.declared.as_ref());
        let mut intake = Intake::new(blob, size, declared, limits.layer_bytes_max, self.stop);
        let stages = Stages {
            blob: &self.layer.blob,
            aci: self.aci.is_some(),
            limits,
            outlay: Some(&self.outlay),
            stop: self.stop,
        };
        let ran = stages
            .run(&mut intake, hasher, |tar, threads| match self.form {
                Form::Tree => self.apply(tar, threads).map(|kept| (kept.applied, None, kept.sums)),
                Form::Erofs => self.make_image(tar).map(|(applied, image)| (applied, Some(image), None)),
            })
            .map_err(|flaw| self.diagnosed(flaw, &mut intake))?;
        self.verify_blob(&mut intake)?;
        let diff_id = self.verified(ran.digest)?;
        let (applied, image, tree) = ran.made;
        Ok(LayerRecord {
            form: self.form,
            diff_id,
            bytes: applied.bytes,
            entries: applied.entries,
            blob: self.declared.clone(),
            compression: ran.compression,
            implied_dirs: applied.implied_dirs,
            implied: applied.implied,
            whiteouts: applied.whiteouts,
            commit: String::new(),
            not_set: applied.not_set,
            image,
            tree,
        })
    }

    /// What the layer is stored by, if its tar, which has this digest, is the right one.
    fn verified(&self, of_tar: Digest) -> Result<DiffId, UnpackError> {
        let layer = || self.key.clone();
        if let Some(view) = self.aci
            && view.image_id.digest() != of_tar
        {
            let (expected, actual) = (view.image_id.clone(), of_tar);
            return Err(UnpackError::WrongImageId { layer: layer(), expected, actual });
        }
        let actual = DiffId(of_tar);
        match self.key {
            LayerKey::Diff(expected) if *expected != actual => {
                Err(UnpackError::WrongDiffId { layer: layer(), actual })
            }
            LayerKey::Aci(view) => Ok(view.clone()),
            LayerKey::Diff(_) | LayerKey::Blob(_) => Ok(actual),
        }
    }

    fn names(&self) -> Names {
        if self.aci.is_some() { Names::Plain } else { Names::Signs }
    }

    /// Unpacks the tar, with a second thread if there may be one.
    fn apply(&self, tar: &mut dyn Source, threads: Threads) -> Result<Kept, Flaw> {
        let at = self.stage.path().join(TREE);
        let written = |source| Flaw::Write { path: at.clone(), source };
        make_root(&at).map_err(written)?;
        let in_user_namespace = self.store.privileges.in_user_namespace;
        let sums = self.stage.path().join(SUMS);
        let notes = |name| Notes::new(&self.stage.path().join(name));
        let applier = |helper| {
            let notes = notes("notes");
            let spill = self.stage.path().join("times");
            let entries_max = self.store.limits.layer_entries_max;
            let outlay = Arc::clone(&self.outlay);
            let (at, namespace, names) = (at.clone(), self.namespace, self.names());
            Applier::new(at, spill, namespace, names, in_user_namespace, entries_max, outlay, helper, notes)
                .map_err(written)
        };
        match threads {
            Threads::One => self.apply_all(tar, applier(None)?)?.finish(None, &sums),
            Threads::Many => std::thread::scope(|scope| {
                let (helper, jobs) = job::helper();
                let attributes = Attributes::new(in_user_namespace);
                let helping =
                    start(scope, "write", || job::work(&{ jobs }, attributes, notes("helper"), &at))?;
                let applied = applier(Some(helper)).and_then(|applier| self.apply_all(tar, applier));
                match (join(helping), applied) {
                    (Ok(helped), applied) => applied?.finish(Some(helped), &sums),
                    // It is what cut the first thread off, if anything did.
                    (Err(flaw), Ok(_) | Err(Flaw::Cut)) => Err(flaw),
                    (Err(_), Err(flaw)) => Err(flaw),
                }
            }),
        }
    }

    /// Makes an image of the tar.
    fn make_image(&self, tar: &mut dyn Source) -> Result<(Applied, ImageFile), Flaw> {
        let (at, sums) = (self.stage.path().join(IMAGE), self.stage.path().join(SUMS));
        let applier = ImageApplier::new(
            at.clone(),
            sums,
            self.namespace,
            self.names(),
            &self.store.limits,
            Box::new(Watching { outlay: &self.outlay, write_back: WriteBack::default() }),
        );
        let mut applier = applier.map_err(|source| Flaw::Write { path: at, source })?;
        self.read_all(tar, |member, reader| {
            // What it announces must fit: else the file that fills the disk is written first.
            self.outlay.ensure(self.outlay.announced(member.content_bytes())).map_err(Flaw::of_ledger)?;
            applier.apply(member, reader)
        })?;
        applier.finish()
    }

    /// Applies all entries and reads the tar to its end; lets the helper go.
    fn apply_all(&self, tar: &mut dyn Source, mut applier: Applier) -> Result<Applier, Flaw> {
        let left_out = self.read_all(tar, |member, reader| applier.apply(member, reader))?;
        applier.dismiss_helper()?;
        if let Some(left_out) = left_out {
            applier.leave_out(&left_out)?;
        }
        Ok(applier)
    }

    /// Gives all entries of the layer to `apply` and reads the tar to its end. What was left out is to be removed again.
    fn read_all<'t>(
        &self,
        tar: &'t mut dyn Source,
        mut apply: impl FnMut(Member, &mut Reader<&'t mut dyn Source>) -> Result<(), Flaw>,
    ) -> Result<Option<LeftOut>, Flaw> {
        let limits = &self.store.limits;
        let bounds = Bounds {
            entries_max: limits.layer_entries_max,
            path_bytes_max: limits.path_bytes_max,
            xattr_bytes_max: limits.xattr_bytes_max,
            pax_bytes_max: limits.pax_bytes_max,
        };
        let mut archive = self.aci.map(|view| Archive::new(view, limits.layer_names_bytes_max));
        let mut reader = Reader::new(tar, bounds);
        while let Some(member) = reader.next()? {
            if self.stop.is_raised() {
                return Err(Flaw::Stopped);
            }
            match &mut archive {
                None => apply(member, &mut reader)?,
                Some(archive) => {
                    let path = member.path.clone();
                    if let Some(member) = archive.member(member)? {
                        let made = member.path.clone();
                        apply(member, &mut reader).map_err(|flaw| flaw.in_archive(&made, path))?;
                    }
                }
            }
        }
        let left_out = archive.map(Archive::finish).transpose()?.flatten();
        reader.finish()?;
        Ok(left_out)
    }

    /// Whether the blob, read to its end, has the digest it should.
    fn verify_blob(&self, intake: &mut Intake<'_>) -> Result<(), UnpackError> {
        let Some(expected) = self.declared.clone() else { return Ok(()) };
        // There is always one: the stages do not succeed before the end of the blob.
        let actual = intake.digest().ok_or_else(|| Flaw::Cut.of(self.key))?;
        if actual == expected {
            return Ok(());
        }
        Err(UnpackError::WrongDigest { layer: self.key.clone(), expected, actual })
    }

    /// The flaw as the port's error, or the one behind it: a blob that is not what it should be.
    fn diagnosed(&self, flaw: Flaw, intake: &mut Intake<'_>) -> UnpackError {
        let of_content = matches!(flaw, Flaw::Stream { .. } | Flaw::Entry { .. });
        if !of_content || self.declared.is_none() {
            return flaw.of(self.key);
        }
        match intake.drain(DIAGNOSE_BYTES_MAX) {
            Err(size @ Flaw::Size { .. }) => size.of(self.key),
            Ok(()) if intake.ended() => self.verify_blob(intake).err().unwrap_or_else(|| flaw.of(self.key)),
            _ => flaw.of(self.key),
        }
    }
}

/// What is told of an image being written: the ledger, which may end it, and the disk.
struct Watching<'a> {
    outlay: &'a Outlay,
    write_back: WriteBack,
}

impl Watch for Watching<'_> {
    fn written(&mut self, file: &File, end: u64, more: u64) -> io::Result<()> {
        self.outlay.image_written(more).map_err(|error| Flaw::of_ledger(error).carried())?;
        self.write_back.written(file, end, more)
    }
}

/// The root of a layer whose tar does not describe it is as every directory it does not describe.
fn make_root(at: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(at)?;
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755))
}

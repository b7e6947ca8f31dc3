//! The way of a blob into the store: read, counted and hashed, decompressed, hashed again, unpacked.
//!
//! ```text
//! calling thread:  source -> size and blob digest -> decompress --chunks--> diff hash -> tar -> files :second thread
//! ```
//!
//! One pass and no copy on disk. Memory is the chunks, what decompressing needs, and one entry's headers, whatever the
//! layer's size. Nothing is trusted before its hash is known: all of it goes to a private directory, and only when size,
//! blob digest and diff ID are right is that committed.

use std::cell::RefCell;
use std::io::{self, Read};
use std::time::Instant;

use keelblock_actors::error::UnpackError;
use keelblock_actors::image::digest::{DiffId, Digest, Hasher};
use keelblock_actors::image::plan::{Compression, LayerKey, LayerSpec};
use keelblock_actors::ports::{Staging, StoredLayer};
use keelblock_actors::stop::Stop;
use slog::{info, warn};

use super::Inner;
use super::blob::{BlobReader, Tally};
use super::chunks::{self, Receiving, Sending};
use super::entry::{Applied, Applier};
use super::flaw::Flaw;
use super::form::{Form, LayerRecord};
use super::layout::TREE;
use super::stage::Stage;
use super::tar::{Bounds, Reader};
use super::whiteout::Namespace;
use crate::sys::lock::NamedLock;

/// Bytes of a bad blob that are still read to learn whether its digest is wrong, which says more than what the
/// decompressor stumbled over.
const DIAGNOSE_BYTES_MAX: u64 = 16 << 20;

/// The right to bring one layer.
pub(super) struct DiskStaging {
    pub(super) store: std::sync::Arc<Inner>,
    pub(super) key: LayerKey,
    pub(super) namespace: Namespace,
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
        let Self { store, key, namespace, claim, stage } = *self;
        let declared = declared_digest(&key, layer)?;
        let job = Job { store: &store, key: &key, layer, namespace, stage: &stage, declared, stop };
        let record = job.run(blob)?;
        let stored = super::commit::commit(&store.layout, &key, stage, &record)?;
        drop(claim);
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
        (LayerKey::Diff(_), declared) => Ok(declared.clone()),
    }
}

struct Job<'a> {
    store: &'a Inner,
    key: &'a LayerKey,
    layer: &'a LayerSpec,
    namespace: Namespace,
    stage: &'a Stage,
    declared: Option<Digest>,
    stop: &'a Stop,
}

impl Job<'_> {
    /// Unpacks into the stage; what it is, if all digests are right.
    fn run(&self, blob: &mut dyn Read) -> Result<LayerRecord, UnpackError> {
        let limits = &self.store.limits;
        let hasher = match self.key {
            LayerKey::Diff(diff) => diff.0.hasher(),
            LayerKey::Blob(_) => Hasher::sha256(),
        };
        let tally = Tally::new(self.layer.blob.size, self.declared.as_ref(), limits.layer_bytes_max);
        let (sending, receiving) = chunks::pipe(hasher, limits.layer_bytes_max, self.stop);
        let mut reader = BlobReader { blob, tally: &tally, stop: self.stop };
        let (sent, applied) = std::thread::scope(|scope| {
            let worker = std::thread::Builder::new().name("unpack".to_owned());
            let worker = match worker.spawn_scoped(scope, || self.apply(receiving)) {
                Ok(worker) => worker,
                Err(source) => {
                    let path = self.stage.path().to_owned();
                    return (Err(Flaw::Write { path, source }.of(self.key)), Err(Flaw::Cut));
                }
            };
            let sent = self.send(&mut reader, &tally, sending);
            // A panic over there is one over here: the pool makes an error of it.
            let applied = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (sent, applied)
        });
        let (compression, (applied, diff)) = match (sent, applied) {
            (Ok(compression), Ok(applied)) => (compression, applied),
            (sent, applied) => {
                let error = match (sent, applied) {
                    (_, Err(flaw)) if !matches!(flaw, Flaw::Cut) => flaw.of(self.key),
                    (Err(error), _) => error,
                    (Ok(_), _) => Flaw::Cut.of(self.key),
                };
                return Err(self.diagnosed(error, &mut reader, &tally));
            }
        };
        if let Some(error) = self.wrong_digest(&tally) {
            return Err(error);
        }
        let diff_id = DiffId(diff);
        if let LayerKey::Diff(expected) = self.key
            && *expected != diff_id
        {
            return Err(UnpackError::WrongDiffId { layer: self.key.clone(), actual: diff_id });
        }
        Ok(LayerRecord {
            form: Form::Tree,
            diff_id,
            bytes: applied.bytes,
            entries: applied.entries,
            blob: self.declared.clone(),
            compression,
            implied_dirs: applied.implied_dirs,
            implied: applied.implied,
            not_set: applied.not_set,
        })
    }

    /// Decompresses the blob to its end.
    fn send(
        &self,
        reader: &mut BlobReader<'_>,
        tally: &RefCell<Tally>,
        sending: Sending,
    ) -> Result<Compression, UnpackError> {
        let failed = |compression: Option<Compression>, error: io::Error| {
            let flaw = tally.borrow_mut().take_flaw().unwrap_or_else(|| Flaw::Stream {
                what: match compression {
                    Some(Compression::Gzip) => "gzip stream",
                    Some(Compression::Zstd) => "zstd stream",
                    Some(Compression::None) | None => "layer",
                },
                source: error.into(),
            });
            flaw.of(self.key)
        };
        let mut opened = super::decompress::open(&mut *reader).map_err(|error| failed(None, error))?;
        let found = opened.compression;
        if let Some(declared) = self.layer.blob.compression
            && declared != found
        {
            return Err(UnpackError::WrongCompression {
                layer: self.key.clone(),
                media_type: self.layer.blob.media_type.clone().unwrap_or_default(),
                declared,
                found,
            });
        }
        loop {
            let mut buffer = sending.buffer().map_err(|flaw| flaw.of(self.key))?;
            let mut filled = 0;
            while filled < buffer.len() {
                match opened.reader.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(bytes) => filled += bytes,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed(Some(found), error)),
                }
            }
            if filled == 0 {
                break;
            }
            sending.send(buffer, filled).map_err(|flaw| flaw.of(self.key))?;
        }
        drop(opened);
        // The stream may have known its end without having seen the blob's.
        io::copy(reader, &mut io::sink()).map_err(|error| failed(Some(found), error))?;
        sending.end().map_err(|flaw| flaw.of(self.key))?;
        Ok(found)
    }

    /// Unpacks what comes.
    fn apply(&self, receiving: Receiving) -> Result<(Applied, Digest), Flaw> {
        let limits = &self.store.limits;
        let bounds = Bounds {
            entries_max: limits.layer_entries_max,
            path_bytes_max: limits.path_bytes_max,
            xattr_bytes_max: limits.xattr_bytes_max,
            pax_bytes_max: limits.pax_bytes_max,
        };
        let at = self.stage.path().join(TREE);
        let written = |source| Flaw::Write { path: at.clone(), source };
        make_root(&at).map_err(written)?;
        let spill = self.stage.path().join("times");
        let in_user_namespace = self.store.privileges.in_user_namespace;
        let mut applier =
            Applier::new(at.clone(), spill, self.namespace, in_user_namespace).map_err(written)?;
        let mut reader = Reader::new(receiving, bounds);
        while let Some(member) = reader.next()? {
            if self.stop.is_raised() {
                return Err(Flaw::Stopped);
            }
            applier.apply(&member, &mut reader)?;
        }
        let hasher = reader.finish()?.into_hasher();
        Ok((applier.finish()?, hasher.finish()))
    }

    fn wrong_digest(&self, tally: &RefCell<Tally>) -> Option<UnpackError> {
        let actual = tally.borrow_mut().digest()?;
        let expected = self.declared.clone()?;
        (actual != expected).then(|| UnpackError::WrongDigest { layer: self.key.clone(), expected, actual })
    }

    /// The same error, or the one behind it: a blob that is not what it should be.
    fn diagnosed(
        &self,
        error: UnpackError,
        reader: &mut BlobReader<'_>,
        tally: &RefCell<Tally>,
    ) -> UnpackError {
        let of_content = matches!(error, UnpackError::BadStream { .. } | UnpackError::BadEntry { .. });
        if !of_content || self.declared.is_none() {
            return error;
        }
        let drained = io::copy(&mut reader.take(DIAGNOSE_BYTES_MAX), &mut io::sink());
        if drained.is_err() || !tally.borrow().ended() {
            return match tally.borrow_mut().take_flaw() {
                Some(flaw @ Flaw::Size { .. }) => flaw.of(self.key),
                _ => error,
            };
        }
        self.wrong_digest(tally).unwrap_or(error)
    }
}

/// The root of a layer whose tar does not describe it is as every directory it does not describe.
fn make_root(at: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(at)?;
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755))
}

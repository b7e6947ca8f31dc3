//! The stages between a blob and its files, each on a thread of its own:
//!
//! ```text
//! caller: source -> size, blob digest --> decode --+--> diff ID
//!                                                  +--> tar -> files made --> content and attributes of small files
//! ```
//!
//! So a layer uses two processors and more, and takes as long as its slowest stage or as all of them on the processors
//! there are. A layer of a few kilobytes is not worth the threads: its stages run one after the other on the caller's.
//! Memory is two pools of buffers, what decoding needs, and one entry's headers, whatever the layer's size (and what is
//! kept of names: by images in the making, and of ACIs).

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use bytes::{Buf, Bytes};
use keelblock_actors::image::digest::{Digest, Hasher};
use keelblock_actors::image::plan::{BlobSpec, Compression};
use keelblock_actors::stop::Stop;

use super::chunks::{Pool, Receiving, Sending, pipe};
use super::decompress::{self, Accepted, Decompressed};
use super::flaw::Flaw;
use super::intake::Intake;
use super::space::Outlay;
use super::tar::Source;
use crate::limits::Limits;

/// Buffers of the blob: one that is filled, one that is read, one between.
const BLOB_CHUNKS: usize = 3;
/// Buffers of the tar. 8, 2.3 MiB: a buffer is read by two stages, and as long as small files of it are being written.
const TAR_CHUNKS: usize = 8;
/// A blob up to this size is unpacked on one thread: to start the others would take longer.
const INLINE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of tar that no blob is too small for, however it expands: only beyond them the expansion is limited.
pub(super) const EXPANSION_FREE_BYTES: u64 = 1 << 30;

/// What the stages need to know.
#[derive(Clone, Copy)]
pub(super) struct Stages<'a> {
    pub(super) blob: &'a BlobSpec,
    /// Whether it is an ACI.
    pub(super) aci: bool,
    pub(super) limits: &'a Limits,
    /// Told how much will come, once that is known; where nothing is written there is none.
    pub(super) outlay: Option<&'a Outlay>,
    pub(super) stop: &'a Stop,
}

/// Whether the stages have threads of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    /// All run on the caller's.
    One,
    /// Each has one, and may take another.
    Many,
}

/// What they found.
pub(super) struct Ran<T> {
    pub(super) compression: Compression,
    /// Of the tar.
    pub(super) digest: Digest,
    /// What the last stage made of the tar.
    pub(super) made: T,
}

impl Stages<'_> {
    fn accepted(&self) -> Accepted {
        if self.aci { Accepted::Aci } else { Accepted::Layer }
    }

    /// Runs a blob through all stages, to its end. `hasher` is that of the tar, `last` makes something of the tar and
    /// reads it to its end.
    pub(super) fn run<T: Send>(
        self,
        intake: &mut Intake<'_>,
        hasher: Hasher,
        last: impl FnOnce(&mut dyn Source, Threads) -> Result<T, Flaw> + Send,
    ) -> Result<Ran<T>, Flaw> {
        let ran = match intake.size() {
            Some(bytes) if bytes <= INLINE_BYTES_MAX => self.inline(intake, hasher, last),
            _ => self.threaded(intake, hasher, last),
        }?;
        // A decoder may know its end without having seen the blob's.
        intake.drain(u64::MAX)?;
        Ok(ran)
    }

    fn inline<T>(
        self,
        intake: &mut Intake<'_>,
        hasher: Hasher,
        last: impl FnOnce(&mut dyn Source, Threads) -> Result<T, Flaw>,
    ) -> Result<Ran<T>, Flaw> {
        let hashed = Rc::new(Cell::new(None));
        let decoding = Decoding::open(intake, self)?;
        let compression = decoding.opened.compression;
        let hashing = Hashing { decoding, hasher: Some(hasher), hashed: Rc::clone(&hashed) };
        let made = last(&mut Chunked::new(hashing, self.stop), Threads::One)?;
        let digest = hashed.take().ok_or(Flaw::Cut)?;
        Ok(Ran { compression, digest, made })
    }

    fn threaded<T: Send>(
        self,
        intake: &mut Intake<'_>,
        hasher: Hasher,
        last: impl FnOnce(&mut dyn Source, Threads) -> Result<T, Flaw> + Send,
    ) -> Result<Ran<T>, Flaw> {
        let pool = Pool::new(BLOB_CHUNKS);
        let (blob_to, blob_from) = pipe();
        let (hash_to, hash_from) = pipe();
        let (tar_to, tar_from) = pipe();
        std::thread::scope(|scope| {
            // Should a thread not start, the ends it had are gone, and the others stop.
            let decoded = start(scope, "decode", move || self.decode(blob_from, hash_to, tar_to))?;
            let hashed = start(scope, "hash", move || hash(hash_from, hasher))?;
            let tar = Chunked::new(tar_from, self.stop);
            let made = start(scope, "unpack", move || last(&mut { tar }, Threads::Many))?;
            let taken = intake.send(&pool, blob_to);
            let (decoded, hashed, made) = (join(decoded), join(hashed), join(made));
            // The first flaw in the order of the stream; those it cut off have nothing to tell.
            let flaws = [made.as_ref().err(), decoded.as_ref().err(), taken.as_ref().err()];
            match flaws.iter().position(|flaw| flaw.is_some_and(|flaw| !matches!(flaw, Flaw::Cut))) {
                None | Some(0) => {
                    let (made, compression) = (made?, decoded?);
                    Ok(Ran { compression, digest: hashed?, made })
                }
                Some(1) => Err(decoded.err().unwrap_or(Flaw::Cut)),
                Some(_) => Err(taken.err().unwrap_or(Flaw::Cut)),
            }
        })
    }

    /// The second stage.
    fn decode(self, from: Receiving, hash_to: Sending, tar_to: Sending) -> Result<Compression, Flaw> {
        let mut decoding = Decoding::open(Pieces { from, piece: Bytes::new() }, self)?;
        while let Some(chunk) = decoding.next()? {
            hash_to.send(chunk.clone())?;
            tar_to.send(chunk)?;
        }
        hash_to.end()?;
        tar_to.end()?;
        Ok(decoding.opened.compression)
    }
}

pub(super) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Flaw> {
    let path = format!("(a thread named {name})").into();
    Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, run)
        .map_err(|source| Flaw::Write { path, source })
}

/// What a stage answered. A panic over there is one over here: the pool makes an error of it.
pub(super) fn join<T>(stage: ScopedJoinHandle<'_, T>) -> T {
    stage.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The third stage.
fn hash(mut from: Receiving, mut hasher: Hasher) -> Result<Digest, Flaw> {
    while let Some(chunk) = from.next()? {
        hasher.update(&chunk);
    }
    Ok(hasher.finish())
}

/// Pieces of the blob, read as one.
struct Pieces {
    from: Receiving,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            // Given back before the wait.
            self.piece = Bytes::new();
            if let Some(piece) = self.from.next().map_err(Flaw::carried)? {
                self.piece = piece;
            }
        }
        let bytes = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..bytes]);
        Ok(bytes)
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + bytes as u64);
        Ok(bytes)
    }
}

/// A blob being decoded, in chunks of tar, under the limits of size and expansion.
struct Decoding<'a> {
    opened: Decompressed<'a>,
    pool: Pool,
    bytes: u64,
    blob_bytes: Rc<Cell<u64>>,
    limits: &'a Limits,
}

impl<'a> Decoding<'a> {
    fn open(blob: impl Read + 'a, stages: Stages<'a>) -> Result<Self, Flaw> {
        let blob_bytes = Rc::new(Cell::new(0));
        let counted = Counted { inner: blob, bytes: Rc::clone(&blob_bytes) };
        let opened =
            decompress::open(counted, stages.accepted()).map_err(|error| Flaw::of_decoder("layer", error))?;
        let found = opened.compression;
        if let Some(declared) = stages.blob.compression
            && declared != found
        {
            let media_type = stages.blob.media_type.clone().unwrap_or_default();
            if let (Compression::None, Some(name)) = (found, opened.foreign) {
                return Err(Flaw::foreign(name, Some((&media_type, declared))));
            }
            return Err(Flaw::Compression { declared, found, media_type });
        }
        // What is beyond the limit is a lie, or stopped by it.
        let known = opened.content_bytes.filter(|bytes| *bytes <= stages.limits.layer_bytes_max);
        if let Some(outlay) = stages.outlay {
            outlay.found(found, known).map_err(Flaw::of_ledger)?;
        }
        let pool = Pool::new(TAR_CHUNKS);
        Ok(Self { opened, pool, bytes: 0, blob_bytes, limits: stages.limits })
    }

    fn check(&self) -> Result<(), Flaw> {
        let limit = self.limits.layer_bytes_max;
        if self.bytes > limit {
            return Err(Flaw::Limit { limit, unit: "bytes", flag: "layer_bytes_max" });
        }
        let limit = self.limits.layer_expansion_max;
        if self.bytes > EXPANSION_FREE_BYTES && self.bytes > self.blob_bytes.get().saturating_mul(limit) {
            let unit = "times its size when decompressed";
            return Err(Flaw::Limit { limit, unit, flag: "layer_expansion_max" });
        }
        Ok(())
    }
}

/// Where chunks come from.
pub(super) trait Chunks {
    /// The next one, not empty; `None` = the end.
    fn next(&mut self) -> Result<Option<Bytes>, Flaw>;
}

impl Chunks for Receiving {
    fn next(&mut self) -> Result<Option<Bytes>, Flaw> {
        Receiving::next(self)
    }
}

impl Chunks for Decoding<'_> {
    fn next(&mut self) -> Result<Option<Bytes>, Flaw> {
        let mut buffer = self.pool.take()?;
        let filled = self.opened.fill(&mut buffer).map_err(|error| {
            let what = match self.opened.compression {
                Compression::Gzip => "gzip stream",
                Compression::Zstd => "zstd stream",
                Compression::Bzip2 => "bzip2 stream",
                Compression::Xz => "xz stream",
                Compression::None => "layer",
            };
            Flaw::of_decoder(what, error)
        })?;
        self.bytes += filled as u64;
        self.check()?;
        Ok((filled > 0).then(|| self.pool.lend(buffer)))
    }
}

/// Decodes and hashes on the thread that reads.
struct Hashing<'a> {
    decoding: Decoding<'a>,
    hasher: Option<Hasher>,
    /// The digest, once the end is reached.
    hashed: Rc<Cell<Option<Digest>>>,
}

impl Chunks for Hashing<'_> {
    fn next(&mut self) -> Result<Option<Bytes>, Flaw> {
        let chunk = self.decoding.next()?;
        match (&chunk, &mut self.hasher) {
            (Some(chunk), Some(hasher)) => hasher.update(chunk),
            (None, hasher) => {
                if let Some(hasher) = hasher.take() {
                    self.hashed.set(Some(hasher.finish()));
                }
            }
            (Some(_), None) => {}
        }
        Ok(chunk)
    }
}

/// Chunks as the source of a tar reader.
struct Chunked<'a, C> {
    chunks: C,
    chunk: Bytes,
    stop: &'a Stop,
}

impl<'a, C: Chunks> Chunked<'a, C> {
    fn new(chunks: C, stop: &'a Stop) -> Self {
        Self { chunks, chunk: Bytes::new(), stop }
    }
}

impl<C: Chunks> Source for Chunked<'_, C> {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        if self.chunk.is_empty() {
            if self.stop.is_raised() {
                return Err(Flaw::Stopped);
            }
            // Given back before the wait.
            self.chunk = Bytes::new();
            self.chunk = self.chunks.next()?.unwrap_or_default();
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, bytes: usize) {
        self.chunk.advance(bytes);
    }

    fn lend(&mut self, bytes: usize) -> Bytes {
        self.chunk.split_to(bytes)
    }
}

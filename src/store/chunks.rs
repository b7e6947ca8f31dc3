//! Buffers of tar bytes from the thread that decompresses to the thread that unpacks, a few and always the same.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use keelblock_actors::image::digest::Hasher;
use keelblock_actors::stop::Stop;

use super::flaw::Flaw;
use super::tar::Source;

/// Bytes of one buffer: small next to a layer, large next to a file header and the cost of handing over.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// Buffers of one layer, full or empty: 1 MiB in all.
const CHUNKS: usize = 4;

enum Sent {
    Chunk(Vec<u8>),
    /// The tar ended here, and its blob with it; without this the sender gave up.
    End,
}

/// The sending end.
pub(super) struct Sending {
    full: SyncSender<Sent>,
    empty: Receiver<Vec<u8>>,
}

/// The receiving end: counts and hashes what comes.
pub(super) struct Receiving {
    full: Receiver<Sent>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    used: usize,
    ended: bool,
    hasher: Hasher,
    bytes: u64,
    bytes_max: u64,
    stop: Stop,
}

/// Both ends; the tar is hashed by `hasher` and may be no longer than `bytes_max`.
pub(super) fn pipe(hasher: Hasher, bytes_max: u64, stop: &Stop) -> (Sending, Receiving) {
    let (full_in, full_out) = sync_channel(CHUNKS);
    let (empty_in, empty_out) = channel();
    for _ in 0..CHUNKS {
        // The receiver is right here.
        let _ = empty_in.send(Vec::new());
    }
    let receiving = Receiving {
        full: full_out,
        empty: empty_in,
        chunk: Vec::new(),
        used: 0,
        ended: false,
        hasher,
        bytes: 0,
        bytes_max,
        stop: stop.clone(),
    };
    (Sending { full: full_in, empty: empty_out }, receiving)
}

impl Sending {
    /// An empty buffer of [`CHUNK_BYTES`]; waits for one. `Cut` = the receiver is gone.
    pub(super) fn buffer(&self) -> Result<Vec<u8>, Flaw> {
        let mut buffer = self.empty.recv().map_err(|_| Flaw::Cut)?;
        buffer.resize(CHUNK_BYTES, 0);
        Ok(buffer)
    }

    /// Sends a buffer, of which so many bytes are filled.
    pub(super) fn send(&self, mut buffer: Vec<u8>, bytes: usize) -> Result<(), Flaw> {
        buffer.truncate(bytes);
        self.full.send(Sent::Chunk(buffer)).map_err(|_| Flaw::Cut)
    }

    /// Says that all was sent.
    pub(super) fn end(self) -> Result<(), Flaw> {
        self.full.send(Sent::End).map_err(|_| Flaw::Cut)
    }
}

impl Receiving {
    /// The hash of all that came.
    pub(super) fn into_hasher(self) -> Hasher {
        self.hasher
    }
}

impl Source for Receiving {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        while self.used == self.chunk.len() && !self.ended {
            if self.stop.is_raised() {
                return Err(Flaw::Stopped);
            }
            match self.full.recv().map_err(|_| Flaw::Cut)? {
                Sent::End => self.ended = true,
                Sent::Chunk(chunk) => {
                    self.bytes += chunk.len() as u64;
                    if self.bytes > self.bytes_max {
                        let limit = self.bytes_max;
                        return Err(Flaw::Limit { limit, unit: "bytes", flag: "layer_bytes_max" });
                    }
                    self.hasher.update(&chunk);
                    let empty = std::mem::replace(&mut self.chunk, chunk);
                    self.used = 0;
                    // The first one given back is none of the four.
                    if empty.capacity() > 0 {
                        let _ = self.empty.send(empty);
                    }
                }
            }
        }
        Ok(&self.chunk[self.used..])
    }

    fn consume(&mut self, bytes: usize) {
        self.used += bytes;
    }
}

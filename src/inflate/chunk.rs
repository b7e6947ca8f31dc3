//! `Chunk`: a buffer of decompressed bytes that can be filled without copying and passed to another thread.

use std::fmt;
use std::io::{self, Read};
use std::ops::Deref;

/// Bytes after which a chunk is full.
pub const CHUNK_BYTES: usize = 256 << 10;

/// How far back a match can reach (RFC 1951, section 2). So much lies before the content of a chunk, for what came
/// before it.
pub(super) const HISTORY: usize = 32 << 10;

/// The longest match. A symbol is never split between chunks: the last one may make a chunk so much longer.
pub(super) const MATCH_MAX: usize = 258;

/// What the decoder writes past the end, after the last literals and a match: copies are made in blocks.
const OVERSHOOT: usize = 62 + 64;

/// Where content ends at the latest when a symbol begins.
pub(super) const FULL: usize = HISTORY + CHUNK_BYTES;

/// A constant, so that the compiler can see where an index lies.
pub(super) const BUFFER: usize = FULL + MATCH_MAX + OVERSHOOT;

/// About [`CHUNK_BYTES`] of decompressed bytes, with room in front for the history that the decoder needs.
///
/// Make a few, let [`GzipDecoder::next_chunk`](super::GzipDecoder::next_chunk) fill them, read the content as a slice,
/// and use them again: nothing is ever allocated, cleared or copied but 32 KiB of history per chunk. Any chunk may be
/// given to any decoder at any time.
pub struct Chunk {
    pub(super) buffer: Box<[u8; BUFFER]>,
    /// Content is `buffer[HISTORY..end]`.
    pub(super) end: usize,
}

impl Chunk {
    /// An empty chunk.
    pub fn new() -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice().try_into().expect("it is made that long");
        Self { buffer, end: HISTORY }
    }

    /// Fills it with what comes from a reader: [`CHUNK_BYTES`], fewer only at the end, none after it. For streams
    /// that are not gzip and go the same way.
    ///
    /// # Errors
    /// Those of the reader; then the chunk is empty.
    pub fn read_from(&mut self, reader: &mut impl Read) -> io::Result<usize> {
        self.end = HISTORY;
        let mut end = HISTORY;
        while end < FULL {
            match reader.read(&mut self.buffer[end..FULL]) {
                Ok(0) => break,
                Ok(bytes) => end += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.end = end;
        Ok(end - HISTORY)
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[HISTORY..self.end]
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("bytes", &self.len()).finish()
    }
}

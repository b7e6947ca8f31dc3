//! gzip streams (RFC 1951, RFC 1952) decompressed at about libdeflate's speed, in bounded memory and safe Rust.
//!
//! gzip is what most layers are compressed with, and decompressing it takes longer than anything else that is done with
//! their bytes. The streaming decoders there are reach half to two thirds of what libdeflate does with whole buffers
//! (`benches/inflate.rs`). What makes it fast, one word at a time, large tables that hold a symbol's whole meaning, no
//! look at the ends of buffers within a symbol, does not need whole buffers: only output that lies in one piece, with
//! the 32 KiB before it, and room behind it. That is a [`Chunk`].
//!
//! What is a stream and what is not is as in zlib, with the header's fields of any length. Members may follow one
//! another; anything else after the last one is refused.
//!
//! `block` reads the heads of blocks, `tables` makes look-up tables of their codes, `symbols` is the loop, `input` and
//! `chunk` are what it reads and writes.

mod block;
mod chunk;
mod error;
mod input;
mod symbols;
mod tables;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read;

use crc32fast::Hasher;

pub use chunk::{CHUNK_BYTES, Chunk};
pub use error::{GzipError, GzipFlaw};

use block::Block;
use chunk::HISTORY;
use error::Fault;
use input::{Input, LOOKAHEAD};
use symbols::{Output, Stopped};
use tables::{FIXED, Tables};

/// Decompresses a gzip stream of any number of members, a [`Chunk`] at a time.
pub struct GzipDecoder<R> {
    input: Input<R>,
    tables: Box<Tables>,
    state: State,
    /// This block is the last one of its member.
    last_block: bool,
    /// The end of what was decompressed, as far as a match can reach.
    history: Box<[u8; HISTORY]>,
    history_bytes: usize,
    /// Of the content of this member.
    crc: Hasher,
    /// How long that content is, modulo 2^32.
    size: u32,
    chunk_bytes: usize,
    /// Found after a chunk had content; the next call returns it.
    error: Option<GzipError>,
}

/// What comes next in the stream.
#[derive(Debug, Clone, Copy)]
enum State {
    /// A member, which must be there if it is the first one.
    Member {
        first: bool,
    },
    /// A block, or the trailer.
    Block,
    Stored {
        left: usize,
    },
    Symbols {
        fixed: bool,
    },
    End,
    Failed,
}

impl<R: Read> GzipDecoder<R> {
    /// Decompresses what the source gives; reads nothing yet. The source is read in pieces of up to 64 KiB, so it
    /// needs no buffer of its own.
    pub fn new(source: R) -> Self {
        Self::with_chunk_bytes(source, CHUNK_BYTES)
    }

    /// The same with smaller chunks, of 1 to [`CHUNK_BYTES`] bytes (and up to 260 more each, see
    /// [`next_chunk`](Self::next_chunk)). For tests only: each chunk costs a copy of 32 KiB of history, whatever its size.
    pub(crate) fn with_chunk_bytes(source: R, chunk_bytes: usize) -> Self {
        Self {
            input: Input::new(source),
            tables: Box::new(Tables::new()),
            state: State::Member { first: true },
            last_block: false,
            history: vec![0; HISTORY].into_boxed_slice().try_into().expect("it is made that long"),
            history_bytes: 0,
            crc: Hasher::new(),
            size: 0,
            chunk_bytes: chunk_bytes.clamp(1, CHUNK_BYTES),
            error: None,
        }
    }

    /// Fills a chunk with the next bytes and says how many: [`CHUNK_BYTES`] and up to 260 more, because a match is
    /// never split, fewer before the end or an error, and none at the end.
    ///
    /// What was in the chunk before does not matter. The end is only reported when the last member's checksum and
    /// size are right and the source has nothing more.
    ///
    /// # Errors
    /// Those of the source, unchanged, and what is wrong with the stream. Bytes that were decompressed before are
    /// delivered first, by the call before. After an error there is nothing but [`GzipError::Failed`].
    pub fn next_chunk(&mut self, chunk: &mut Chunk) -> Result<usize, GzipError> {
        chunk.end = HISTORY;
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let floor = HISTORY - self.history_bytes;
        chunk.buffer[floor..HISTORY].copy_from_slice(&self.history[..self.history_bytes]);
        let limit = HISTORY + self.chunk_bytes;
        let mut output = Output { buffer: &mut chunk.buffer, at: HISTORY, limit, floor };
        let filled = self.fill(&mut output);
        let (end, floor) = (output.at, output.floor);
        let bytes = end - HISTORY;
        match filled {
            Ok(()) => {
                self.history_bytes = (end - floor).min(HISTORY);
                let history = &chunk.buffer[end - self.history_bytes..end];
                self.history[..self.history_bytes].copy_from_slice(history);
            }
            Err(fault) => {
                self.state = State::Failed;
                let offset = self.input.offset();
                let error = match fault {
                    Fault::Source(error) => GzipError::Source(error),
                    Fault::Truncated => GzipError::Truncated { offset: self.input.bytes_in() },
                    Fault::Flaw(flaw) => GzipError::Broken { flaw, offset },
                    Fault::Failed => GzipError::Failed,
                };
                self.history_bytes = 0;
                if bytes == 0 {
                    return Err(error);
                }
                self.error = Some(error);
            }
        }
        chunk.end = end;
        Ok(bytes)
    }

    /// Decompresses until the output is full or the stream at its end.
    fn fill(&mut self, output: &mut Output<'_>) -> Result<(), Fault> {
        // Where the bytes begin that are not in the checksum yet.
        let mut fresh = output.at;
        let filled = loop {
            match self.state {
                State::Member { first } => {
                    output.floor = output.at;
                    if !first && self.input.at_end()? {
                        self.state = State::End;
                        continue;
                    }
                    member(&mut self.input, first)?;
                    self.state = State::Block;
                }
                State::Block if self.last_block => {
                    self.last_block = false;
                    self.check(&output.buffer[fresh..output.at]);
                    fresh = output.at;
                    self.trailer()?;
                    self.state = State::Member { first: false };
                }
                State::Block => {
                    let (last, block) = block::header(&mut self.input, &mut self.tables)?;
                    self.last_block = last;
                    self.state = match block {
                        Block::Stored(left) => State::Stored { left },
                        Block::Fixed => State::Symbols { fixed: true },
                        Block::Dynamic => State::Symbols { fixed: false },
                    };
                }
                State::Stored { left: 0 } => self.state = State::Block,
                State::Stored { left } => {
                    let room = output.limit.saturating_sub(output.at);
                    if room == 0 {
                        break Ok(());
                    }
                    let bytes = self.input.peek(left.min(room))?;
                    let count = bytes.len();
                    output.buffer[output.at..output.at + count].copy_from_slice(bytes);
                    output.at += count;
                    self.input.skip(count);
                    self.state = State::Stored { left: left - count };
                }
                State::Symbols { fixed } => {
                    self.input.look_ahead(LOOKAHEAD)?;
                    let tables = if fixed { &**FIXED } else { &*self.tables };
                    let limit = self.input.turn_limit();
                    let stopped =
                        symbols::decode(tables, &self.input.bytes, limit, &mut self.input.bits, output);
                    self.input.check_end()?;
                    match stopped {
                        Stopped::Input => self.input.check_more()?,
                        Stopped::Output => break Ok(()),
                        Stopped::Block => self.state = State::Block,
                        Stopped::Flaw(flaw) => break Err(flaw.into()),
                    }
                }
                State::End => break Ok(()),
                State::Failed => return Err(Fault::Failed),
            }
        };
        self.check(&output.buffer[fresh..output.at]);
        filled
    }

    /// Takes content into what the trailer is compared with.
    fn check(&mut self, content: &[u8]) {
        self.crc.update(content);
        self.size = self.size.wrapping_add(content.len() as u32);
    }

    /// RFC 1952, section 2.3.1: the end of a member.
    fn trailer(&mut self) -> Result<(), Fault> {
        self.input.align();
        let [a, b, c, d, rest @ ..] = self.input.take::<8>()?;
        let (expected, actual) = (u32::from_le_bytes([a, b, c, d]), std::mem::take(&mut self.crc).finalize());
        if expected != actual {
            return Err(GzipFlaw::Checksum { expected, actual }.into());
        }
        let (expected, actual) = (u32::from_le_bytes(rest), std::mem::take(&mut self.size));
        if expected != actual {
            return Err(GzipFlaw::Size { expected, actual }.into());
        }
        Ok(())
    }
}

impl<R> fmt::Debug for GzipDecoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzipDecoder").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Reads the header of a member (RFC 1952, section 2.3). Names, comments and extra fields are of any length and not
/// kept.
fn member<R: Read>(input: &mut Input<R>, first: bool) -> Result<(), Fault> {
    const CHECKSUM: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const RESERVED: u8 = 0b1110_0000;

    let not_gzip = if first { GzipFlaw::Magic } else { GzipFlaw::AfterEnd };
    let mut crc = Hasher::new();
    // In steps, so that a single wrong byte is known as such and not as a cut header.
    let magic = input.take::<1>()?;
    if magic != [0x1f] || input.take::<1>()? != [0x8b] {
        return Err(not_gzip.into());
    }
    let fixed = input.take::<8>()?;
    crc.update(&[0x1f, 0x8b]);
    crc.update(&fixed);
    let [method, flags, ..] = fixed;
    if method != 8 {
        return Err(GzipFlaw::Method(method).into());
    }
    if flags & RESERVED != 0 {
        return Err(GzipFlaw::ReservedFlags(flags & RESERVED).into());
    }
    if flags & EXTRA != 0 {
        let length = input.take::<2>()?;
        crc.update(&length);
        let mut left = usize::from(u16::from_le_bytes(length));
        while left > 0 {
            let bytes = input.peek(left)?;
            crc.update(bytes);
            let count = bytes.len();
            left -= count;
            input.skip(count);
        }
    }
    for text in [NAME, COMMENT] {
        let mut ended = flags & text == 0;
        while !ended {
            let bytes = input.peek(usize::MAX)?;
            let zero = bytes.iter().position(|byte| *byte == 0);
            let count = zero.map_or(bytes.len(), |zero| zero + 1);
            crc.update(&bytes[..count]);
            input.skip(count);
            ended = zero.is_some();
        }
    }
    if flags & CHECKSUM != 0 {
        let (expected, actual) = (u16::from_le_bytes(input.take()?), crc.finalize() as u16);
        if expected != actual {
            return Err(GzipFlaw::HeaderChecksum { expected, actual }.into());
        }
    }
    Ok(())
}

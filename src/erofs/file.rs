//! The content of one file on its way into the image: as blocks one after the other, or, of a file with holes, as
//! chunks.
//!
//! A chunk is in the image when a byte of it is said; others are not. Small chunks need a long index, large ones are
//! filled up with zeros: what is smallest together is taken.

use super::error::Error;
use super::format::{BLOCK, BLOCK_BITS, HOLE, Layout};
use super::output::Output;

/// Bits of a chunk's size: what the format has room for.
const CHUNK_BITS_MAX: u32 = BLOCK_BITS + 31;

/// Content at a place in a file; what is in no run is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// See the module.
pub(super) enum Content {
    /// All of it, from this block on.
    Whole { block: u32, bytes: u64 },
    /// What is in the runs.
    Sparse(Sparse),
}

/// A file with holes.
pub(super) struct Sparse {
    size: u64,
    bits: u32,
    /// Ascending, none empty.
    runs: Vec<Run>,
    block: u32,
    /// The run whose content is next, and how much of it there was.
    run: usize,
    within: u64,
    /// What the chunks in the image have so far reaches up to here in the file.
    reached: u64,
}

impl Content {
    pub(super) fn whole(output: &mut Output<'_>) -> Result<Self, Error> {
        output.align()?;
        Ok(Self::Whole { block: output.block()?, bytes: 0 })
    }

    pub(super) fn sparse(size: u64, mut runs: Vec<Run>, output: &mut Output<'_>) -> Result<Self, Error> {
        runs.retain(|run| run.length > 0);
        let mut end = 0;
        for run in &runs {
            if run.offset < end {
                return Err(Error::Content);
            }
            end = run.offset.checked_add(run.length).ok_or(Error::Content)?;
        }
        if end > size || size > i64::MAX as u64 {
            return Err(Error::Content);
        }
        if size == 0 {
            return Self::whole(output);
        }
        output.align()?;
        let (bits, block) = (chunk_bits(size, &runs), output.block()?);
        Ok(Self::Sparse(Sparse { size, bits, runs, block, run: 0, within: 0, reached: 0 }))
    }

    pub(super) fn push(&mut self, bytes: &[u8], output: &mut Output<'_>) -> Result<(), Error> {
        match self {
            Self::Whole { bytes: so_far, .. } => {
                *so_far += bytes.len() as u64;
                output.push(bytes)
            }
            Self::Sparse(sparse) => sparse.push(bytes, output),
        }
    }
}

impl Sparse {
    fn push(&mut self, mut bytes: &[u8], output: &mut Output<'_>) -> Result<(), Error> {
        while !bytes.is_empty() {
            let run = *self.runs.get(self.run).ok_or(Error::Content)?;
            if self.within == 0 {
                self.reach(run.offset, output)?;
            }
            let now =
                usize::try_from(run.length - self.within).map_or(bytes.len(), |left| left.min(bytes.len()));
            output.push(&bytes[..now])?;
            self.within += now as u64;
            self.reached += now as u64;
            bytes = &bytes[now..];
            if self.within == run.length {
                (self.run, self.within) = (self.run + 1, 0);
            }
        }
        Ok(())
    }

    /// Fills up with zeros to this place in the file: all of the chunks that are begun, nothing of those between.
    fn reach(&mut self, offset: u64, output: &mut Output<'_>) -> Result<(), Error> {
        let chunk = 1 << self.bits;
        let begun = self.reached.next_multiple_of(chunk).min(offset) - self.reached;
        let begins = offset / chunk * chunk;
        output.zeros(begun)?;
        output.zeros(offset - begins.max(self.reached + begun))?;
        self.reached = offset;
        Ok(())
    }

    /// Ends the content; the size of the file.
    pub(super) fn end(&mut self, output: &mut Output<'_>) -> Result<u64, Error> {
        if self.run < self.runs.len() {
            return Err(Error::Content);
        }
        let rest = self.reached.next_multiple_of(1 << self.bits).min(self.size) - self.reached;
        output.zeros(rest)?;
        output.align()?;
        Ok(self.size)
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::Chunks { bits: self.bits }
    }

    /// Bytes of the index.
    pub(super) fn index_bytes(&self) -> u64 {
        4 * self.size.div_ceil(1 << self.bits)
    }

    /// The index, in pieces of some kilobytes.
    pub(super) fn index(&self, mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let mut piece = Vec::with_capacity(BLOCK);
        let mut add = |block: u32| {
            piece.extend_from_slice(&block.to_le_bytes());
            if piece.len() < BLOCK {
                return Ok(());
            }
            let done = each(&piece);
            piece.clear();
            done
        };
        let (mut next, mut block) = (0, u64::from(self.block));
        for run in &self.runs {
            let (first, last) = (run.offset >> self.bits, (run.offset + run.length - 1) >> self.bits);
            while next < first {
                add(HOLE)?;
                next += 1;
            }
            while next <= last {
                add(u32::try_from(block).map_err(|_| Error::Full)?)?;
                block += 1 << (self.bits - BLOCK_BITS);
                next += 1;
            }
        }
        while next < self.size.div_ceil(1 << self.bits) {
            add(HOLE)?;
            next += 1;
        }
        each(&piece)
    }
}

/// The size of chunks that takes the least room.
fn chunk_bits(size: u64, runs: &[Run]) -> u32 {
    // As the highest are no longer than the file, or have one chunk.
    (BLOCK_BITS..=CHUNK_BITS_MAX).min_by_key(|bits| room(*bits, size, runs)).unwrap_or(BLOCK_BITS)
}

/// Bytes of the chunks, of this size, that have content, and of the index.
fn room(bits: u32, size: u64, runs: &[Run]) -> u128 {
    let (mut chunks, mut next) = (0, 0);
    for run in runs.iter().filter(|run| run.length > 0) {
        let last = run.offset.saturating_add(run.length - 1) >> bits;
        chunks += (last + 1).saturating_sub((run.offset >> bits).max(next));
        next = last + 1;
    }
    (u128::from(chunks) << bits) + 4 * u128::from(size.div_ceil(1 << bits))
}

/// Bytes that a file of this size with content in these runs takes in an image, besides its inode: more than the runs have,
/// for it is filled up to whole chunks, of which there is an index.
pub fn sparse_bytes(size: u64, runs: &[Run]) -> u64 {
    u64::try_from(room(chunk_bits(size, runs), size, runs)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_small_where_content_is_and_large_where_none_is() {
        let run = |offset, length| Run { offset, length };
        assert_eq!(chunk_bits(1 << 20, &[run(0, 10), run(1 << 19, 10)]), 12);
        // Nothing to say: the shortest index.
        assert!((8u64 << 40) >> chunk_bits(8 << 40, &[]) <= 1);
        // The chunk, and the index.
        assert_eq!(sparse_bytes(1 << 20, &[run(0, 10)]), 4096 + 1024);
        assert_eq!(sparse_bytes(0, &[]), 0);
        // 2 GiB of index, were the chunks as small as can be.
        let bits = chunk_bits(2 << 40, &[run(1 << 40, 1)]);
        assert!((1 << bits) + 4 * ((2u64 << 40) >> bits) < 8 << 20, "{bits}");
    }
}

//! Inodes with what follows them, gathered in memory into segments that are written between the contents of files.
//!
//! So a listing that looks at inodes reads few places of the disk. Where a segment will be is known when it is
//! written; until then an inode is known by the number of its segment and its place therein.

use super::error::Error;
use super::format::{BLOCK, SLOT};
use super::output::Output;

/// Bytes of a segment. 512 KiB: some five thousand inodes.
const SEGMENT_BYTES: usize = 512 << 10;
/// Segments whose places are told when all is written. 64: 32 MiB, more than anybody reads ahead.
const RUNS_MAX: usize = 64;
/// Blocks with room for another inode that are kept in mind: small content leaves gaps that inodes without fill.
const OPEN_MAX: usize = 8;
/// A gap that is of no use to an inode.
const GAP_BYTES_MIN: usize = super::format::INODE_BYTES;

/// Where an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u32,
    /// In units of [`SLOT`].
    pub(super) slot: u16,
}

/// See the module.
pub(super) struct Metadata {
    /// The segment being filled.
    buffer: Vec<u8>,
    /// Blocks of it that are not full: number, and bytes used, always whole slots.
    open: Vec<(usize, usize)>,
    /// First blocks of the segments that were written.
    segments: Vec<u32>,
    /// Of the first of them ([`RUNS_MAX`]), where they are: offset and bytes in the image.
    written: Vec<(u64, u64)>,
}

/// Whether what follows an inode and its xattrs can be kept in the block where those end.
pub(super) fn has_room(head: usize, tail: usize) -> bool {
    head % BLOCK + tail <= BLOCK
}

impl Metadata {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(SEGMENT_BYTES),
            open: Vec::new(),
            segments: Vec::new(),
            written: Vec::new(),
        }
    }

    /// Whether there is an inode in a written segment.
    pub(super) fn any(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Where the first segments are, ascending: offset and bytes in the image.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        self.written.clone()
    }

    /// Adds an inode with its xattrs, and what follows at once.
    pub(super) fn add(&mut self, head: &[&[u8]], output: &mut Output<'_>) -> Result<Place, Error> {
        let bytes: usize = head.iter().map(|part| part.len()).sum();
        if bytes <= BLOCK
            && let Some(at) = self.best_gap(bytes)
        {
            return Ok(self.write(at, head));
        }
        if self.buffer.len() + bytes.next_multiple_of(BLOCK) > SEGMENT_BYTES {
            self.flush(output)?;
        }
        let at = self.buffer.len();
        self.buffer.resize(at + bytes.next_multiple_of(BLOCK), 0);
        let last = (self.buffer.len() - 1) / BLOCK;
        self.keep_open(last, (at + bytes - last * BLOCK).next_multiple_of(SLOT));
        Ok(self.write(at, head))
    }

    /// Begins a segment of its own, for what is too large for memory, and leaves its content to the caller.
    pub(super) fn add_large(&mut self, output: &mut Output<'_>) -> Result<Place, Error> {
        self.flush(output)?;
        let place = Place { segment: self.segments.len() as u32, slot: 0 };
        output.align()?;
        self.segments.push(output.block()?);
        Ok(place)
    }

    /// Writes the segment being filled, where the image is now.
    pub(super) fn flush(&mut self, output: &mut Output<'_>) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        output.align()?;
        self.segments.push(output.block()?);
        if self.written.len() < RUNS_MAX {
            self.written.push((output.position(), self.buffer.len() as u64));
        }
        output.push(&self.buffer)?;
        self.buffer.clear();
        self.open.clear();
        Ok(())
    }

    /// Where in the image an inode is, if its segment is written.
    pub(super) fn offset(&self, place: Place) -> u64 {
        let segment = self.segments.get(place.segment as usize).copied().unwrap_or_default();
        u64::from(segment) * BLOCK as u64 + u64::from(place.slot) * SLOT as u64
    }

    /// The fullest open block with so much room.
    fn best_gap(&mut self, bytes: usize) -> Option<usize> {
        let fits = |(_, gap): &(usize, &(usize, usize))| gap.1 + bytes <= BLOCK;
        let (at, &(block, used)) =
            self.open.iter().enumerate().filter(fits).max_by_key(|(_, (_, used))| *used)?;
        self.open.swap_remove(at);
        self.keep_open(block, (used + bytes).next_multiple_of(SLOT));
        Some(block * BLOCK + used)
    }

    fn keep_open(&mut self, block: usize, used: usize) {
        if used + GAP_BYTES_MIN > BLOCK {
            return;
        }
        self.open.push((block, used));
        if self.open.len() > OPEN_MAX
            && let Some(fullest) =
                self.open.iter().enumerate().max_by_key(|(_, (_, used))| *used).map(|(at, _)| at)
        {
            self.open.swap_remove(fullest);
        }
    }

    fn write(&mut self, at: usize, parts: &[&[u8]]) -> Place {
        let place = Place { segment: self.segments.len() as u32, slot: (at / SLOT) as u16 };
        let mut at = at;
        for part in parts {
            self.buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        place
    }
}

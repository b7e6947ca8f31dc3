//! Compressed bytes on their way from the source to the decoder, as bytes and as bits.

use std::io::{self, Read};

use super::error::{Fault, GzipFlaw};

/// Bytes asked of the source at once.
pub(super) const INPUT_BYTES: usize = 64 << 10;

/// Zeros after the last byte of the source, so that eight bytes can be read anywhere and the decoder of symbols need
/// not look for the end within a symbol. What it makes of them is thrown away: see [`Input::check_end`].
const PADDING: usize = 64;

/// A constant, so that the compiler can see where an index lies.
pub(super) const INPUT: usize = INPUT_BYTES + PADDING;

/// Bytes that the decoder of symbols reads in one turn at most: four refills of 7 bytes, the last one looking at 8.
const TURN: usize = 40;

/// A block header is 562 bytes at most (3 + 14 + 19 * 3 + 316 * 14 bits), a member header without its variable parts 12.
pub(super) const LOOKAHEAD: usize = 1024;

/// Where the decoder of symbols stands in the bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Bits {
    /// The next byte.
    pub(super) at: usize,
    /// The bits before it that were not used yet, lowest first.
    pub(super) buffer: u64,
    /// How many; less than 8 whenever someone else looks.
    pub(super) count: u64,
}

impl Bits {
    /// Gives back whole bytes and forgets what was looked at only.
    #[inline]
    pub(super) fn settle(&mut self) {
        self.count &= 63;
        self.at -= (self.count >> 3) as usize;
        self.count &= 7;
        self.buffer &= (1 << self.count) - 1;
    }
}

/// The source, and what was read of it and not yet used.
pub(super) struct Input<R> {
    source: R,
    pub(super) bytes: Box<[u8; INPUT]>,
    pub(super) bits: Bits,
    filled: usize,
    ended: bool,
    /// Bytes of the source that are no longer in the buffer.
    passed: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(source: R) -> Self {
        let bytes = vec![0; INPUT].into_boxed_slice().try_into().expect("it is made that long");
        Self { source, bytes, bits: Bits::default(), filled: 0, ended: false, passed: 0 }
    }

    /// Bytes used so far.
    pub(super) fn offset(&self) -> u64 {
        self.passed + self.bits.at.min(self.filled) as u64
    }

    /// Bytes that came so far.
    pub(super) fn bytes_in(&self) -> u64 {
        self.passed + self.filled as u64
    }

    fn available(&self) -> usize {
        self.filled.saturating_sub(self.bits.at)
    }

    /// Has so many bytes ready (at most [`LOOKAHEAD`]), or all there are. One read of the source suffices if it has
    /// them.
    #[inline]
    pub(super) fn look_ahead(&mut self, bytes: usize) -> Result<(), Fault> {
        if self.available() >= bytes || self.ended { Ok(()) } else { self.fill(bytes) }
    }

    #[cold]
    fn fill(&mut self, bytes: usize) -> Result<(), Fault> {
        let at = self.bits.at;
        self.bytes.copy_within(at..self.filled, 0);
        self.passed += at as u64;
        self.filled -= at;
        self.bits.at = 0;
        while self.filled < bytes {
            match self.source.read(&mut self.bytes[self.filled..INPUT_BYTES]) {
                Ok(0) => {
                    self.bytes[self.filled..self.filled + PADDING].fill(0);
                    self.ended = true;
                    break;
                }
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Source(error)),
            }
        }
        Ok(())
    }

    /// Where a turn of the decoder of symbols must not begin.
    pub(super) fn turn_limit(&self) -> usize {
        // At the end: a member still has its trailer of 8 bytes, so nothing that reaches up to here is whole.
        if self.ended { self.filled } else { self.filled.saturating_sub(TURN) }
    }

    /// To be called when the bits are settled: were zeros used that are not of the source?
    pub(super) fn check_end(&self) -> Result<(), Fault> {
        if self.bits.at > self.filled { Err(Fault::Truncated) } else { Ok(()) }
    }

    /// After a turn that stopped for want of input: can there be more?
    pub(super) fn check_more(&self) -> Result<(), Fault> {
        if self.ended { Err(Fault::Truncated) } else { Ok(()) }
    }

    /// Has so many bits ready, at most 56.
    #[inline]
    fn refill(&mut self) -> Result<(), Fault> {
        self.check_end()?;
        let word = self.bytes[self.bits.at..].first_chunk().copied().unwrap_or_default();
        self.bits.buffer |= u64::from_le_bytes(word) << self.bits.count;
        self.bits.at += ((63 - self.bits.count) >> 3) as usize;
        self.bits.count |= 56;
        Ok(())
    }

    /// The next so many bits, at most 32. Gives whole bytes back only with [`Bits::settle`].
    #[inline]
    pub(super) fn take_bits(&mut self, count: u32) -> Result<u32, Fault> {
        let value = self.peek_bits(count)?;
        self.drop_bits(count);
        Ok(value)
    }

    /// The next so many bits, at most 32, zeros after the end.
    #[inline]
    pub(super) fn peek_bits(&mut self, count: u32) -> Result<u32, Fault> {
        if self.bits.count < u64::from(count) {
            self.refill()?;
        }
        Ok((self.bits.buffer & ((1 << count) - 1)) as u32)
    }

    /// Uses bits that were peeked at.
    #[inline]
    pub(super) fn drop_bits(&mut self, count: u32) {
        self.bits.buffer >>= count;
        self.bits.count -= u64::from(count);
    }

    /// Forgets the rest of a byte; call it when the bits are settled.
    pub(super) fn align(&mut self) {
        self.bits.buffer = 0;
        self.bits.count = 0;
    }

    /// The next bytes, between blocks and members; at most [`LOOKAHEAD`].
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.look_ahead(N)?;
        if self.available() < N {
            self.bits.at = self.filled;
            return Err(Fault::Truncated);
        }
        let bytes = self.bytes[self.bits.at..].first_chunk().copied().unwrap_or([0; N]);
        self.bits.at += N;
        Ok(bytes)
    }

    /// Some next bytes, at least one and at most `max`, which is not zero; to be followed by [`skip`](Self::skip).
    pub(super) fn peek(&mut self, max: usize) -> Result<&[u8], Fault> {
        self.look_ahead(1)?;
        let bytes = self.available().min(max);
        if bytes == 0 {
            return Err(Fault::Truncated);
        }
        Ok(&self.bytes[self.bits.at..self.bits.at + bytes])
    }

    /// Uses bytes that were peeked at.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.bits.at += bytes;
    }

    /// Is there nothing more?
    pub(super) fn at_end(&mut self) -> Result<bool, Fault> {
        self.look_ahead(1)?;
        Ok(self.available() == 0)
    }
}

/// For the parts that read bits: a flaw that was found in the zeros after the end is no flaw.
pub(super) fn flaw<R: Read, T>(input: &Input<R>, flaw: GzipFlaw) -> Result<T, Fault> {
    input.check_end()?;
    Err(flaw.into())
}

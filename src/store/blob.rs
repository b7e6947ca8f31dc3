//! The blob on its way in: counted, hashed, and cut off where it is longer than declared.

use std::cell::RefCell;
use std::io::{self, Read};

use keelblock_actors::image::digest::{Digest, Hasher};
use keelblock_actors::stop::Stop;

use super::flaw::Flaw;

/// What is known of the bytes so far. Apart from the reader, because a decoder owns that.
pub(super) struct Tally {
    /// As declared.
    size: Option<u64>,
    /// Most bytes of a blob whose size nobody declared.
    bytes_max: u64,
    bytes: u64,
    hasher: Option<Hasher>,
    /// Why the reader failed; its own error is only a token, which passes through decoders.
    flaw: Option<Flaw>,
    ended: bool,
}

impl Tally {
    pub(super) fn new(size: Option<u64>, digest: Option<&Digest>, bytes_max: u64) -> RefCell<Self> {
        let hasher = digest.map(Digest::hasher);
        RefCell::new(Self { size, bytes_max, bytes: 0, hasher, flaw: None, ended: false })
    }

    /// Why the reader failed, if it did.
    pub(super) fn take_flaw(&mut self) -> Option<Flaw> {
        self.flaw.take()
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The digest of all bytes, if one was declared and the end was reached.
    pub(super) fn digest(&mut self) -> Option<Digest> {
        if !self.ended {
            return None;
        }
        self.hasher.take().map(Hasher::finish)
    }
}

/// Reads a blob for its tally.
pub(super) struct BlobReader<'a> {
    pub(super) blob: &'a mut dyn Read,
    pub(super) tally: &'a RefCell<Tally>,
    pub(super) stop: &'a Stop,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tally = self.tally.borrow_mut();
        match self.read_tallied(&mut tally, buffer) {
            Ok(bytes) => Ok(bytes),
            Err(flaw) => {
                tally.flaw = Some(flaw);
                Err(io::Error::other("the blob cannot be read"))
            }
        }
    }
}

impl BlobReader<'_> {
    fn read_tallied(&mut self, tally: &mut Tally, buffer: &mut [u8]) -> Result<usize, Flaw> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let bytes = loop {
            if self.stop.is_raised() {
                return Err(Flaw::Stopped);
            }
            match self.blob.read(buffer) {
                Ok(bytes) => break bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Flaw::Read(error)),
            }
        };
        tally.bytes += bytes as u64;
        match tally.size {
            Some(expected) if tally.bytes > expected || (bytes == 0 && tally.bytes < expected) => {
                return Err(Flaw::Size { expected, actual: tally.bytes });
            }
            None if tally.bytes > tally.bytes_max => {
                let limit = tally.bytes_max;
                return Err(Flaw::Limit { limit, unit: "bytes", flag: "layer_bytes_max" });
            }
            _ => {}
        }
        tally.ended |= bytes == 0;
        if let Some(hasher) = &mut tally.hasher {
            hasher.update(&buffer[..bytes]);
        }
        Ok(bytes)
    }
}

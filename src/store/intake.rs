//! The blob on its way in: counted, hashed, and cut off where it is longer than declared.

use std::io::{self, Read};

use keelblock_actors::image::digest::{Digest, Hasher};
use keelblock_actors::stop::Stop;

use super::chunks::{Pool, Sending};
use super::flaw::Flaw;

/// Reads a blob from its source. See the module.
pub(super) struct Intake<'a> {
    blob: &'a mut dyn Read,
    /// As declared.
    size: Option<u64>,
    /// Most bytes of a blob whose size nobody declared.
    bytes_max: u64,
    bytes: u64,
    hasher: Option<Hasher>,
    ended: bool,
    stop: &'a Stop,
}

impl<'a> Intake<'a> {
    /// Of this size and with this digest, where they are declared.
    pub(super) fn new(
        blob: &'a mut dyn Read,
        size: Option<u64>,
        digest: Option<&Digest>,
        bytes_max: u64,
        stop: &'a Stop,
    ) -> Self {
        let hasher = digest.map(Digest::hasher);
        Self { blob, size, bytes_max, bytes: 0, hasher, ended: false, stop }
    }

    /// The size, as declared.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether all of it came.
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

    /// Sends all of it on. Buffers are sent when they are full: the source's pieces may be small.
    pub(super) fn send(&mut self, pool: &Pool, to: Sending) -> Result<(), Flaw> {
        loop {
            let mut buffer = pool.take()?;
            let bytes = buffer.read_from(self).map_err(|error| Flaw::of_decoder("layer", error))?;
            if bytes == 0 {
                return to.end();
            }
            to.send(pool.lend(buffer))?;
        }
    }

    /// Reads on, at most so many bytes, to learn the digest; what the bytes are does not matter any more.
    pub(super) fn drain(&mut self, bytes_max: u64) -> Result<(), Flaw> {
        let mut buffer = vec![0; 64 << 10];
        let mut left = bytes_max;
        while !self.ended && left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= self.take(&mut buffer[..most])? as u64;
        }
        Ok(())
    }

    /// The next bytes; 0 = the end, when the buffer is not empty.
    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        if buffer.is_empty() || self.ended {
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
        self.bytes += bytes as u64;
        match self.size {
            Some(expected) if self.bytes > expected || (bytes == 0 && self.bytes < expected) => {
                return Err(Flaw::Size { expected, actual: self.bytes });
            }
            None if self.bytes > self.bytes_max => {
                let limit = self.bytes_max;
                return Err(Flaw::Limit { limit, unit: "bytes", flag: "layer_bytes_max" });
            }
            _ => {}
        }
        self.ended = bytes == 0;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..bytes]);
        }
        Ok(bytes)
    }
}

impl Read for Intake<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.take(buffer).map_err(Flaw::carried)
    }
}

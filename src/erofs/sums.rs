//! Checksums beside the image: a CRC-32 of every block, little endian, in the order of the blocks.
//!
//! They find bits that rotted. Who can write the image can write them, too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use super::format::BLOCK;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 64 << 10;

/// Of a block of zeros, and of a hole.
static OF_ZEROS: LazyLock<u32> = LazyLock::new(|| sum(&[0; BLOCK]));

/// See the module.
pub(super) struct Sums {
    file: File,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    begins: u64,
}

fn sum(block: &[u8]) -> u32 {
    crc32fast::hash(block)
}

impl Sums {
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER_BYTES), begins: 0 }
    }

    /// The next blocks.
    pub(super) fn blocks(&mut self, blocks: &[u8]) -> io::Result<()> {
        blocks.chunks(BLOCK).try_for_each(|block| self.push(sum(block)))
    }

    /// The next blocks are of zeros.
    pub(super) fn zeros(&mut self, blocks: u64) -> io::Result<()> {
        (0..blocks).try_for_each(|_| self.push(*OF_ZEROS))
    }

    /// A block that came before is now this one.
    pub(super) fn patch(&mut self, number: u64, block: &[u8]) -> io::Result<()> {
        let (at, sum) = (number * 4, sum(block).to_le_bytes());
        match at.checked_sub(self.begins) {
            Some(at) => {
                self.buffer[at as usize..][..4].copy_from_slice(&sum);
                Ok(())
            }
            None => self.file.write_all_at(&sum, at),
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.begins)?;
        self.begins += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn push(&mut self, sum: u32) -> io::Result<()> {
        if self.buffer.len() == BUFFER_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(&sum.to_le_bytes());
        Ok(())
    }
}

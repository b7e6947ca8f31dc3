//! The file of the image: written from its beginning to its end in large pieces; what is changed afterwards is a few
//! words of blocks that are on disk already, and block 0.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::Error;
use super::format::BLOCK;
use super::sums::Sums;

/// Bytes written at once. 256 KiB: enough that the calls do not count, little enough to stay in a processor's cache and not to
/// count in memory where several images are written at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// As much of zeros is not written, but left out of the file: less is not worth another write.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// Is told how the writing goes on, and may end it.
pub trait Watch {
    /// `more` bytes were written to the file, at most 4 MiB since it was told last. All before `end` is written now,
    /// and will not be written again, save block 0 and single words of others.
    ///
    /// # Errors
    /// An error ends the writing with [`Error::Image`].
    fn written(&mut self, file: &File, end: u64, more: u64) -> io::Result<()>;
}

/// Lets everything be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWatch;

impl Watch for NoWatch {
    fn written(&mut self, _: &File, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// See the module.
pub(super) struct Output<'a> {
    file: File,
    sums: Option<Sums>,
    watch: Box<dyn Watch + Send + 'a>,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins, at the beginning of a block.
    begins: u64,
}

impl<'a> Output<'a> {
    /// Block 0 is left free.
    pub(super) fn new(file: File, sums: Option<File>, watch: Box<dyn Watch + Send + 'a>) -> Self {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.resize(BLOCK, 0);
        Self { file, sums: sums.map(Sums::new), watch, buffer, begins: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.begins + self.buffer.len() as u64
    }

    /// The number of the block that comes next.
    pub(super) fn block(&self) -> Result<u32, Error> {
        debug_assert!(self.position().is_multiple_of(BLOCK as u64), "a block is begun");
        // The highest number stands for a hole.
        u32::try_from(self.position() / BLOCK as u64)
            .ok()
            .filter(|block| *block < u32::MAX)
            .ok_or(Error::Full)
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// So many zeros.
    pub(super) fn zeros(&mut self, bytes: u64) -> Result<(), Error> {
        let mut left = bytes;
        if left >= HOLE_BYTES_MIN {
            let rest = self.position().wrapping_neg() % BLOCK as u64;
            self.push(&[0; BLOCK][..rest as usize])?;
            self.flush()?;
            let hole = (left - rest) / BLOCK as u64;
            let end = self.begins.checked_add(hole * BLOCK as u64).ok_or(Error::Full)?;
            if end / BLOCK as u64 >= u64::from(u32::MAX) {
                return Err(Error::Full);
            }
            if let Some(sums) = &mut self.sums {
                sums.zeros(hole).map_err(Error::Sums)?;
            }
            self.begins = end;
            left -= rest + hole * BLOCK as u64;
        }
        while left > 0 {
            let now = left.min(BLOCK as u64);
            self.push(&[0; BLOCK][..now as usize])?;
            left -= now;
        }
        Ok(())
    }

    /// Fills a block that was begun.
    pub(super) fn align(&mut self) -> Result<(), Error> {
        let rest = self.buffer.len().wrapping_neg() % BLOCK;
        self.push(&[0; BLOCK][..rest])
    }

    /// Takes back what was put into a block that is not full.
    pub(super) fn take_back(&mut self, into: &mut Vec<u8>) {
        let full = self.buffer.len() / BLOCK * BLOCK;
        into.extend_from_slice(&self.buffer[full..]);
        self.buffer.truncate(full);
    }

    /// Writes what was gathered, which is whole blocks.
    fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        debug_assert!(self.buffer.len().is_multiple_of(BLOCK), "only whole blocks are written");
        let (bytes, at) = (self.buffer.len() as u64, self.begins);
        if (at + bytes) / BLOCK as u64 >= u64::from(u32::MAX) {
            return Err(Error::Full);
        }
        if let Some(sums) = &mut self.sums {
            sums.blocks(&self.buffer).map_err(Error::Sums)?;
        }
        self.file.write_all_at(&self.buffer, at).map_err(Error::Image)?;
        self.buffer.clear();
        self.begins += bytes;
        self.watch.written(&self.file, self.begins, bytes).map_err(Error::Image)
    }

    /// Changes some bytes within one block that came before.
    pub(super) fn patch(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        if let Some(at) = at.checked_sub(self.begins) {
            self.buffer[at as usize..][..bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        let number = at / BLOCK as u64;
        let mut block = [0; BLOCK];
        self.file.read_exact_at(&mut block, number * BLOCK as u64).map_err(Error::Image)?;
        block[(at % BLOCK as u64) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.rewrite(number, &block)
    }

    fn rewrite(&mut self, number: u64, block: &[u8; BLOCK]) -> Result<(), Error> {
        self.file.write_all_at(block, number * BLOCK as u64).map_err(Error::Image)?;
        match &mut self.sums {
            Some(sums) => sums.patch(number, block).map_err(Error::Sums),
            None => Ok(()),
        }
    }

    /// Writes what is left, and block 0 last: until then it is no image.
    pub(super) fn finish(mut self, first: &[u8; BLOCK]) -> Result<(), Error> {
        self.flush()?;
        self.rewrite(0, first)?;
        // The end may be a hole.
        self.file.set_len(self.begins).map_err(Error::Image)?;
        match &mut self.sums {
            Some(sums) => sums.flush().map_err(Error::Sums),
            None => Ok(()),
        }
    }
}

//! The bytes of a file: shared where the filesystem can, else copied inside the kernel, else through a buffer; holes
//! stay holes.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use keelblock_actors::stop::Stop;
use rustix::fs::{SeekFrom, Stat, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

/// Bytes copied between two looks at `stop`. 16 MiB: some 10 ms of a disk.
const CHUNK_BYTES: u64 = 16 << 20;

/// Size from which on a file is asked for holes that its number of blocks does not tell of. 64 KiB: for what is smaller the
/// question costs more than the hole saves.
const ASK_BYTES_MIN: u64 = 64 << 10;

/// Bytes read and written at once where the kernel cannot copy by itself. 256 KiB: as `cat` and `cp` do.
const BUFFER_BYTES: usize = 256 << 10;

/// What these two filesystems can do together, as found out so far. Shared by all threads of one copy.
#[derive(Debug)]
pub(super) struct Abilities {
    reflink: AtomicBool,
    copy_range: AtomicBool,
}

impl Default for Abilities {
    fn default() -> Self {
        Self { reflink: AtomicBool::new(true), copy_range: AtomicBool::new(true) }
    }
}

/// Why content did not come over.
#[derive(Debug)]
pub(super) enum ContentError {
    Stopped,
    System(Errno),
}

impl From<Errno> for ContentError {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// Makes an empty file hold what the other holds.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    stat: &Stat,
    to: BorrowedFd<'_>,
    abilities: &Abilities,
    stop: &Stop,
) -> Result<(), ContentError> {
    let size = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
    if size == 0 {
        return Ok(());
    }
    if abilities.reflink.load(Ordering::Relaxed) {
        match ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            // This file only: reflinks have limits of their own (block alignment, inline data).
            Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => {}
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                abilities.reflink.store(false, Ordering::Relaxed);
            }
            Err(error) => return Err(error.into()),
        }
    }
    // st_blocks counts 512 bytes each whatever the filesystem's block size (stat(2)).
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(u64::MAX).saturating_mul(512);
    // EROFS counts holes, too, so that only the file can tell.
    let whole = allocated >= size
        && (size < ASK_BYTES_MIN || seek(from, SeekFrom::Hole(0)).is_ok_and(|hole| hole >= size));
    if whole {
        return copy_range(from, to, 0, size, abilities, stop);
    }
    let mut at = 0;
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            // No such thing as holes here.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        copy_range(from, to, start, end, abilities, stop)?;
        at = end;
    }
    Ok(ftruncate(to, size)?)
}

fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    abilities: &Abilities,
    stop: &Stop,
) -> Result<(), ContentError> {
    let mut at = start;
    while at < end {
        if stop.is_raised() {
            return Err(ContentError::Stopped);
        }
        let chunk = (end - at).min(CHUNK_BYTES);
        let copied = if abilities.copy_range.load(Ordering::Relaxed) {
            let (mut in_at, mut out_at) = (at, at);
            match copy_file_range(from, Some(&mut in_at), to, Some(&mut out_at), chunk as usize) {
                // Some filesystems answer so for what they cannot: let read(2) tell.
                Ok(0) => through_buffer(from, to, at, chunk)?,
                Ok(copied) => copied as u64,
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                    abilities.copy_range.store(false, Ordering::Relaxed);
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
        } else {
            through_buffer(from, to, at, chunk)?
        };
        at += copied;
    }
    Ok(())
}

/// Copies at least one byte and at most `length`.
fn through_buffer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, length: u64) -> Result<u64, Errno> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(BUFFER_BYTES, 0);
        let length = usize::try_from(length).map_or(BUFFER_BYTES, |length| length.min(BUFFER_BYTES));
        let read = retry(|| pread(from, &mut buffer[..length], at))?;
        if read == 0 {
            // Shorter than its stat said: somebody changes the layer under us.
            return Err(Errno::STALE);
        }
        let mut written = 0;
        while written < read {
            written += retry(|| pwrite(to, &buffer[written..read], at + written as u64))?;
        }
        Ok(read as u64)
    })
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

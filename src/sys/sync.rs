//! Making what was written stay: fsync(2) and its relatives.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FsWord, fdatasync, fstatfs, fsync, syncfs};
use rustix::io::Errno;

/// linux/magic.h: filesystems without a disk.
const MEMORY: [FsWord; 2] = [0x0102_1994, 0x8584_58f6];

/// Returns when the content of a file, and what is needed to read it, is on disk.
pub(crate) fn content(file: impl AsFd) -> io::Result<()> {
    retried(|| fdatasync(&file))
}

/// Returns when a file, or the names in a directory, are on disk.
pub(crate) fn all(file: impl AsFd) -> io::Result<()> {
    retried(|| fsync(&file))
}

/// Returns when everything on the filesystem of this file is on disk.
pub(crate) fn filesystem(file: impl AsFd) -> io::Result<()> {
    retried(|| syncfs(&file))
}

fn retried(sync: impl Fn() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match sync() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether this file lies in memory, where nothing can be written back.
pub(crate) fn is_in_memory(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|filesystem| MEMORY.contains(&filesystem.f_type))
}

/// Starts writing a range of a file to disk (0 bytes: up to its end) and does not wait for the end of that; may wait
/// for the disk to take it. Promises nothing: only [`content`] does.
pub(crate) fn start_write_back(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let number = |number: u64| i64::try_from(number).map_err(|_| io::Error::from(Errno::OVERFLOW));
    let (offset, bytes) = (number(offset)?, number(bytes)?);
    // SAFETY: an open descriptor and numbers.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! Locks on ranges of bytes of a file, shared or exclusive, that die with their process: open file description locks
//! (fcntl(2), `F_OFD_SETLK`). The bytes need not be there. One descriptor holds any number of ranges, and taking a range it
//! has already only changes its kind.
//!
//! Like flock(2), a lock lives as long as any copy of its descriptor: a child between fork and exec has a copy, and one that
//! goes on without exec must close it.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::lock::LockKind;

/// A range of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub start: i64,
    /// How many; 0 = to the end, however far that moves.
    pub length: i64,
}

impl Range {
    /// The whole file.
    pub const ALL: Self = Self { start: 0, length: 0 };

    /// One byte.
    pub const fn byte(at: i64) -> Self {
        Self { start: at, length: 1 }
    }

    fn flock(self, kind: libc::c_int) -> libc::flock {
        // The casts narrow small constants: the fields are shorts.
        libc::flock {
            l_type: kind as _,
            l_whence: libc::SEEK_SET as _,
            l_start: self.start,
            l_len: self.length,
            l_pid: 0,
        }
    }
}

fn number(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// Locks a range, of a file open for reading (shared) or writing (exclusive); `false` when another descriptor, of this
/// process or another, has a lock that excludes it.
pub fn try_lock(file: impl AsFd, range: Range, kind: LockKind) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range.flock(number(kind)))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The same; waits while another has it.
pub fn lock(file: impl AsFd, range: Range, kind: LockKind) -> io::Result<()> {
    let file = file.as_fd();
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLKW(&range.flock(number(kind)))) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives a range back, whoever else has a copy of the descriptor.
pub fn unlock(file: impl AsFd, range: Range) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_OFD_SETLK(&range.flock(libc::F_UNLCK))).map(drop)?)
}

/// Whether another descriptor has any lock on the range. Takes nothing.
pub fn is_locked(file: impl AsFd, range: Range) -> io::Result<bool> {
    let mut lock = range.flock(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_independent_and_shared_ones_exclude_an_exclusive_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || std::fs::File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        let far = Range::byte(i64::MAX - 1);
        assert!(try_lock(&first, far, LockKind::Shared).unwrap());
        assert!(try_lock(&second, far, LockKind::Shared).unwrap());
        assert!(!try_lock(&first, far, LockKind::Exclusive).unwrap(), "another shares it");
        assert!(try_lock(&first, Range::byte(0), LockKind::Exclusive).unwrap());
        assert!(!try_lock(&second, Range::byte(0), LockKind::Shared).unwrap());
        assert!(is_locked(&second, Range::ALL).unwrap());
        unlock(&second, far).unwrap();
        assert!(try_lock(&first, far, LockKind::Exclusive).unwrap(), "the kind of one's own lock can change");
        drop(first);
        assert!(!is_locked(&second, Range::ALL).unwrap());
    }
}

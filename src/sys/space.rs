//! How much room a filesystem has.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{StatVfs, fstatfs, fstatvfs, syncfs};

/// What statvfs(2) and statfs(2) say of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that we may still write: what is kept for root, or beyond a project's quota, is not among them.
    pub bytes: u64,
    /// Bytes that it has altogether.
    pub bytes_total: u64,
    /// Files that can still be made; `None` where nothing but the bytes limits them.
    pub files: Option<u64>,
    /// Whether bytes written lately may still count as free, until they are on the disk.
    pub counts_late: bool,
}

/// Filesystems that find a place for bytes, and count them, only when they write them to the disk: btrfs, zfs,
/// bcachefs. ext4 and xfs put them off as well, but count at once what they promised.
const LATE: [u32; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];

/// The room in the filesystem of this open file or directory.
pub fn room(file: impl AsFd) -> io::Result<Room> {
    let stat: StatVfs = fstatvfs(&file)?;
    // The field is signed on some machines, and the numbers have 32 bits on all.
    let kind = fstatfs(&file)?.f_type as u32;
    let block = if stat.f_frsize > 0 { stat.f_frsize } else { stat.f_bsize };
    Ok(Room {
        bytes: stat.f_bavail.saturating_mul(block),
        bytes_total: stat.f_blocks.saturating_mul(block),
        // btrfs and others that make them as needed say none of none.
        files: (stat.f_files > 0).then_some(stat.f_favail),
        counts_late: LATE.contains(&kind),
    })
}

/// Writes everything of the filesystem of this open file or directory to its disk.
pub fn sync(file: impl AsFd) -> io::Result<()> {
    Ok(syncfs(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_a_filesystem_with_numbers_that_fit_together() {
        let directory = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(directory.path()).unwrap();
        let room = room(&file).unwrap();
        assert!(room.bytes <= room.bytes_total && room.bytes_total > 0, "{room:?}");
        sync(&file).unwrap();
    }
}

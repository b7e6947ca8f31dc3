//! fs-verity: the filesystem itself checks what is read of a file that never changes again (ioctl
//! `FS_IOC_ENABLE_VERITY`, Documentation/filesystems/fsverity.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// `_IOW('f', 133, struct fsverity_enable_arg)`, linux/fsverity.h.
const FS_IOC_ENABLE_VERITY: u64 = 0x4080_6685;
/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u32 = 1;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more_reserved: [u64; 11],
}

/// Has all that is read of a file checked from now on; it cannot be written any more. `false` where the kernel or the
/// filesystem has no such thing. Nobody may have it open for writing.
///
/// # Errors
/// Those of the disk, which is read for it, and `ETXTBSY`.
///
/// # Blocking
/// For as long as all of the file takes to be read and hashed.
pub(crate) fn enable(file: &File) -> io::Result<bool> {
    let argument = Enable {
        version: 1,
        hash_algorithm: SHA256,
        block_size: 4096,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        more_reserved: [0; 11],
    };
    // SAFETY: the request reads a `struct fsverity_enable_arg` from where the argument points; ours is laid out as one and
    // lives through the call.
    let enabled = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY as _, &raw const argument) };
    match Errno::result(enabled) {
        Ok(_) | Err(Errno::EEXIST) => Ok(true),
        Err(
            Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS | Errno::EACCES | Errno::EPERM,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_can_be_read_whether_the_filesystem_checks_it_or_not() {
        assert_eq!(size_of::<Enable>(), 128, "as the number of the request says");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let enabled = enable(&File::open(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "content");
        let writable = File::options().write(true).open(&path).is_ok();
        assert_eq!(writable, !enabled, "what is checked cannot be written");
    }
}

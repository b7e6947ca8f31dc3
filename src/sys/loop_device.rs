//! Files as block devices (loop(4)), for kernels that cannot mount a file itself. The device goes away with its last user:
//! the mount, once [`attach`]'s file is closed (`LO_FLAGS_AUTOCLEAR`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use nix::errno::Errno;

/// `LOOP_CTL_GET_FREE`, linux/loop.h.
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
/// `LOOP_CONFIGURE` (Linux 5.8), linux/loop.h.
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Times another process may take the device that we were told was free.
const TRIES: usize = 64;

/// `struct loop_info64`, linux/loop.h.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`, linux/loop.h.
#[repr(C)]
struct Configuration {
    descriptor: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Makes a read-only block device of a file. The device is there as long as the file that is returned is open or something
/// is mounted from it; its path comes along.
///
/// # Errors
/// Those of `/dev/loop-control` and of the device: `ENOENT` without loop devices, `EPERM` without CAP_SYS_ADMIN.
pub(crate) fn attach(backing: impl AsFd) -> io::Result<(File, PathBuf)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        // SAFETY: this request takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        let number = Errno::result(number)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).open(&path)?;
        let configuration = Configuration {
            descriptor: backing.as_fd().as_raw_fd() as u32,
            block_size: 0,
            info: Info {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the request reads a `struct loop_config` from where the argument points; ours is laid out as one, and
        // lives through the call.
        let configured =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const configuration) };
        match Errno::result(configured) {
            Ok(_) => return Ok((device, path)),
            // Another was faster.
            Err(Errno::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "others took every loop device that was free"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_file_is_read_through_its_device() {
        if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: loop devices need root");
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let (mut device, path) = attach(&file).unwrap();
        let mut bytes = Vec::new();
        device.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096], "{}", path.display());
    }
}

//! Images mounted by the kernel, and checked by `fsck.erofs` where there is one.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags};

/// Whether this process may mount EROFS images; says so when not.
pub(crate) fn can_mount() -> bool {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.trim() == "erofs") {
        eprintln!("skipped: this kernel has no EROFS");
        return false;
    }
    crate::tarball::root()
}

/// A mounted image. Unmounted when it goes, also on a panic.
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts at a new directory.
    pub(crate) fn new(image: &Path, at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        // Of a file where the kernel can, else by a loop device.
        let flags = MsFlags::MS_RDONLY;
        if nix::mount::mount(Some(image), at, Some("erofs"), flags, None::<&str>).is_err() {
            let status =
                Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(at).status();
            assert!(status.unwrap().success(), "{} cannot be mounted", image.display());
        }
        Self { at: at.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Runs `fsck.erofs`, if there is one.
pub(crate) fn fsck(image: &Path) {
    let output = match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => output,
        Err(error) => return eprintln!("skipped: no fsck.erofs ({error})"),
    };
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&said));
}

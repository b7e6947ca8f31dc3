//! Filesystems of their own for tests, really small and really filled.

#![allow(dead_code, reason = "each file of tests uses its part of this")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::binary::{find_program, run_program, skip};

/// A filesystem on a loop device, or a tmpfs. Dropping it unmounts it and removes its image.
pub(crate) struct Disk {
    pub(crate) kind: &'static str,
    point: tempfile::TempDir,
    _image: Option<tempfile::NamedTempFile>,
}

/// What fills a filesystem, until it drops.
pub(crate) struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where images of disks lie: in memory where there is room for them.
fn place() -> PathBuf {
    let enough = |dir: &Path| {
        File::open(dir).and_then(keelblock::sys::space::room).is_ok_and(|room| room.bytes > 600 << 20)
    };
    let memory = Path::new("/dev/shm");
    if enough(memory) { memory.to_owned() } else { std::env::temp_dir() }
}

impl Disk {
    /// A new one of so many MiB; `None`, said aloud, where it cannot be made.
    pub(crate) fn new(kind: &'static str, mib: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("to mount a filesystem needs root");
            return None;
        }
        let mkfs = format!("mkfs.{kind}");
        if find_program(&mkfs).is_none() {
            skip(&format!("{mkfs} is not installed"));
            return None;
        }
        let image = tempfile::NamedTempFile::with_prefix_in("keelblock-disk-", place()).expect("a file");
        image.as_file().set_len(mib << 20).expect("a sparse file");
        let options: &[&str] = match kind {
            "xfs" => &["-q", "-f"],
            "btrfs" => &["-q", "-f"],
            // Nothing is written later that was not written now.
            _ => &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        };
        run_program(
            &mkfs,
            options.iter().map(|&option| option.into()).chain([image.path().as_os_str().to_owned()]),
        );
        let disk = Self { kind, point: tempfile::tempdir().expect("a directory"), _image: Some(image) };
        let mut mount = Command::new(find_program("mount").expect("util-linux is installed"));
        mount.args(["-t", kind, "-o", "loop"]);
        if let Some(image) = &disk._image {
            mount.arg(image.path());
        }
        let mounted = mount.arg(disk.path()).output().expect("mount can be run");
        if mounted.status.success() {
            return Some(disk);
        }
        skip(&format!("{kind} cannot be mounted here: {}", String::from_utf8_lossy(&mounted.stderr).trim()));
        None
    }

    /// A tmpfs of so many MiB and files.
    pub(crate) fn memory(mib: u64, files: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("to mount a tmpfs needs root");
            return None;
        }
        let disk = Self { kind: "tmpfs", point: tempfile::tempdir().expect("a directory"), _image: None };
        let options = format!("size={mib}m,nr_inodes={files}");
        run_program("mount", ["-t", "tmpfs", "-o", &options, "tmpfs", disk.path().to_str().expect("text")]);
        Some(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        self.point.path()
    }

    /// Bytes that may still be written, all that was written counted.
    pub(crate) fn free_bytes(&self) -> u64 {
        let dir = File::open(self.path()).expect("our directory");
        keelblock::sys::space::sync(&dir).expect("a filesystem can be synced");
        keelblock::sys::space::room(&dir).expect("it can be asked").bytes
    }

    /// Fills it up to so many bytes, by a file that takes its blocks and no time.
    pub(crate) fn fill_up_to(&self, free_bytes: u64) -> Filler {
        let path = self.path().join(format!("filler-{}", self.free_bytes()));
        let file = File::create(&path).expect("there is room for a name");
        let bytes = self.free_bytes().saturating_sub(free_bytes);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1))
            .unwrap_or_else(|error| panic!("{} bytes of {}: {error}", bytes, self.kind));
        file.sync_all().expect("it can be synced");
        Filler(path)
    }

    /// Fills it to the brim, metadata left aside.
    pub(crate) fn fill(&self) -> Filler {
        let path = self.path().join("filler-brim");
        let file = File::create(&path).expect("there is room for a name");
        let (mut end, mut step) = (0, 64_u64 << 20);
        while step >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), end, step) {
                Ok(()) => end += step,
                Err(_) => step /= 2,
            }
        }
        file.sync_all().expect("it can be synced");
        Filler(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The loop device goes with the mount.
        let _ = nix::mount::umount2(self.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

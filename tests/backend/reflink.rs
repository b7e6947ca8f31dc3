//! On a filesystem with reflinks a copy costs no content.

use std::path::PathBuf;
use std::process::Command;

use keelblock::backend::CopyBackend;
use keelblock_actors::ports::Backend;
use keelblock_actors::stop::Stop;

use crate::support::*;

/// A filesystem in a file, mounted for the time of a test.
struct LoopFilesystem {
    directory: tempfile::TempDir,
}

impl LoopFilesystem {
    fn new(make: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let (program, arguments) = make.split_first().unwrap();
        let made = Command::new(program).args(arguments).arg(&image).output();
        match made {
            Ok(output) if output.status.success() => {}
            other => {
                eprintln!("skipped: {program} does not work here: {other:?}");
                return None;
            }
        }
        let mount = directory.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&image, &mount]).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { directory }),
            other => {
                eprintln!("skipped: cannot mount a loop file: {other:?}");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }
}

impl Drop for LoopFilesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn on_xfs_and_btrfs_the_content_is_shared_not_copied() {
    if !privileged() {
        return;
    }
    for make in [&["mkfs.xfs", "-q", "-m", "reflink=1"][..], &["mkfs.btrfs", "-q"]] {
        let Some(filesystem) = LoopFilesystem::new(make) else { continue };
        {
            let bed = Bed::within(&filesystem.path());
            let layer = bed.layer("base");
            let content: Vec<u8> = (0..4_000_000u32).flat_map(|number| number.to_le_bytes()).collect();
            layer.file("big", &content).file("small", "inline in some filesystems").file("empty", "");
            let place = bed.place(1);
            rustix::fs::syncfs(std::fs::File::open(bed.path()).unwrap()).unwrap();
            CopyBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
            assert_same(&snapshot(&layer.path), &snapshot(&place.rootfs));
            match Command::new("filefrag").arg("-v").arg(place.rootfs.join("big")).output() {
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stdout);
                    assert!(text.contains("shared"), "{make:?}: {text}");
                }
                Err(error) => eprintln!("skipped: extents cannot be listed without filefrag: {error}"),
            }
            assert!(CopyBackend::default().unmount(&place).unwrap());
        }
    }
}

#[test]
fn overlay_rootfses_can_be_made_on_xfs_and_btrfs() {
    if !privileged() {
        return;
    }
    for make in [&["mkfs.xfs", "-q"][..], &["mkfs.btrfs", "-q"]] {
        let Some(filesystem) = LoopFilesystem::new(make) else { continue };
        let bed = Bed::within(&filesystem.path());
        let chosen =
            keelblock::backend::choose(None, bed.path(), &bed.path().join("store"), false, true).unwrap();
        assert_eq!(chosen.default.to_string(), "overlay", "{make:?}: {:?}", chosen.fallback);
        let (base, top) = (bed.layer("base"), bed.layer("top"));
        base.file("a/b", "x").file("gone", "");
        top.opaque("a").whiteout("gone");
        assert_eq!(names(&bed.agreed_tree(&[&base, &top])), ["", "a"]);
    }
}

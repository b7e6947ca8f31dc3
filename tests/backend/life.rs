//! Making and unmaking: twice, half, after a crash, after a reboot, in use, given up.

use std::path::Path;

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend};
use keelblock::sys::mount::mountinfo;
use keelblock_actors::error::{MountError, chain};
use keelblock_actors::ports::Backend;
use keelblock_actors::stop::Stop;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};

use crate::support::*;

#[test]
fn a_rootfs_is_unmade_once_and_then_there_is_nothing() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.file("etc/hosts", "x");
    for backend in all_backends() {
        let place = bed.place(1);
        assert!(!backend.unmount(&place).unwrap(), "{}: nothing yet", backend.name());
        backend.mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
        assert!(place.rootfs.join("etc/hosts").exists());
        assert!(backend.unmount(&place).unwrap(), "{}", backend.name());
        assert!(!backend.unmount(&place).unwrap(), "{}: nothing any more", backend.name());
        assert!(!place.rootfs.exists() && !place.scratch.exists());
        assert_eq!(bed.mounts(), Vec::<std::path::PathBuf>::new());
    }
    assert_eq!(names(&snapshot(&layer.path)), ["", "etc", "etc/hosts"], "the layer is as it was");
}

#[test]
fn what_is_written_to_an_overlay_stays_out_of_the_layers() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.file("etc/hosts", "x").file("etc/gone", "x");
    let before = snapshot(&layer.path);
    for (id, backend) in [(1, &OverlayBackend::default() as &dyn Backend), (2, &CopyBackend::default())] {
        let place = bed.place(id);
        let rootfs = backend.mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
        assert!(!rootfs.read_only);
        std::fs::write(rootfs.path.join("etc/hosts"), "changed").unwrap();
        std::fs::remove_file(rootfs.path.join("etc/gone")).unwrap();
        std::fs::create_dir(rootfs.path.join("new")).unwrap();
        assert_same(&before, &snapshot(&layer.path));
        assert!(backend.unmount(&place).unwrap());
    }
}

#[test]
fn unmounting_an_overlay_does_not_write_it_to_disk_first() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    let place = bed.place(1);
    OverlayBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    let mounts = mountinfo::read().unwrap();
    let mount = mounts.iter().find(|mount| mount.target == place.rootfs.canonicalize().unwrap()).unwrap();
    let options: Vec<_> = mount.filesystem_options.split(',').collect();
    // Newer kernels show it as `fsync=volatile`.
    assert!(options.iter().any(|option| option.ends_with("volatile")), "{options:?}");
    OverlayBackend::default().unmount(&place).unwrap();
}

#[test]
fn an_image_without_layers_is_refused_by_all() {
    let bed = Bed::new();
    for backend in all_backends() {
        let error = backend.mount(&[], &bed.place(1), &Stop::default()).unwrap_err();
        assert!(matches!(error, MountError::NoLayers), "{error}");
    }
}

#[test]
fn a_place_that_is_taken_is_left_alone() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    for backend in all_backends() {
        let place = bed.place(1);
        std::fs::create_dir_all(&place.rootfs).unwrap();
        std::fs::write(place.rootfs.join("mine"), "").unwrap();
        let error = backend.mount(&stack(&[&layer]), &place, &Stop::default()).unwrap_err();
        assert!(chain(&error).contains("exists already"), "{}", chain(&error));
        assert!(place.rootfs.join("mine").exists());
        backend.unmount(&place).unwrap();
    }
}

#[test]
fn a_failed_mount_leaves_nothing_and_names_what_was_missing() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (here, gone) = (bed.layer("here"), bed.layer("gone"));
    std::fs::remove_dir(&gone.path).unwrap();
    for backend in all_backends() {
        let place = bed.place(1);
        for layers in [&[&gone][..], &[&gone, &here], &[&here, &gone]] {
            let error = backend.mount(&stack(layers), &place, &Stop::default()).unwrap_err();
            assert!(chain(&error).contains("store/gone"), "{}", chain(&error));
            assert!(!place.rootfs.exists() && !place.scratch.exists(), "{}", backend.name());
        }
    }
}

#[test]
fn bind_shows_one_layer_that_cannot_be_written_and_keeps_the_flags_of_its_mount() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let store = bed.path().join("store");
    std::fs::create_dir(&store).unwrap();
    rustix::mount::mount("none", &store, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None).unwrap();
    let layer = bed.layer("base");
    layer.file("etc/hosts", "x");
    let place = bed.place(1);
    let rootfs = BindBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    assert!(rootfs.read_only);
    let error = std::fs::write(place.rootfs.join("new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let mounts = mountinfo::read().unwrap();
    let mount = mounts.iter().find(|mount| mount.target == place.rootfs.canonicalize().unwrap()).unwrap();
    let options: Vec<_> = mount.options.split(',').collect();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.contains(&option), "{options:?}");
    }
    layer.file("still", "writable in the store");
    assert!(BindBackend::default().unmount(&place).unwrap());
    assert!(layer.path.join("etc/hosts").exists(), "the layer is not what was removed");
    unmount(&store, UnmountFlags::empty()).unwrap();
}

#[test]
fn bind_shows_many_layers_that_cannot_be_written() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (base, top, hiding) = (bed.layer("base"), bed.layer("top"), bed.layer("hiding"));
    base.file("etc/hosts", "x").file("etc/gone", "x");
    top.file("etc/hosts", "y").whiteout("etc/gone");
    hiding.file("kept", "x").whiteout("never-was");
    let before = [&base, &top, &hiding].map(|layer| snapshot(&layer.path));
    for (layers, path) in [(&[&base, &top][..], "etc/hosts"), (&[&hiding], "kept")] {
        let place = bed.place(1);
        let rootfs = BindBackend::default().mount(&stack(layers), &place, &Stop::default()).unwrap();
        assert!(rootfs.read_only);
        for error in [
            std::fs::write(place.rootfs.join("new"), "").unwrap_err(),
            std::fs::write(place.rootfs.join(path), "").unwrap_err(),
            std::fs::remove_file(place.rootfs.join(path)).unwrap_err(),
        ] {
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
        let mounts = mountinfo::read().unwrap();
        let mount = mounts.iter().find(|mount| mount.target == place.rootfs.canonicalize().unwrap()).unwrap();
        assert!(mount.options.split(',').any(|option| option == "ro"), "{}", mount.options);
        assert!(!mount.filesystem_options.contains("upperdir"), "{}", mount.filesystem_options);
        assert!(BindBackend::default().unmount(&place).unwrap());
        assert!(!place.rootfs.exists() && !place.scratch.exists());
        assert!(bed.mounts().is_empty());
    }
    for (layer, before) in [&base, &top, &hiding].iter().zip(before) {
        assert_same(&before, &snapshot(&layer.path));
    }
}

#[test]
fn a_strict_bind_refuses_two_layers_and_whiteouts_and_says_what_to_use() {
    let bed = Bed::new();
    let (a, b) = (bed.layer("a"), bed.layer("b"));
    let strict = BindBackend::default().strict(true);
    let error = strict.mount(&stack(&[&a, &b]), &bed.place(1), &Stop::default()).unwrap_err();
    assert!(matches!(error, MountError::ManyLayers { layers: 2 }));
    for remedy in ["--bind_strict", "--image_provisioner_backend=overlay or copy"] {
        assert!(error.to_string().contains(remedy), "{error}");
    }
    assert!(!bed.place(1).rootfs.exists());
    if !privileged() {
        return;
    }
    b.whiteout("gone");
    let error = chain(&strict.mount(&stack(&[&b]), &bed.place(1), &Stop::default()).unwrap_err());
    assert!(error.contains("has whiteouts") && error.contains("--bind_strict"), "{error}");
    assert!(!bed.place(1).rootfs.exists() && !bed.place(1).scratch.exists());
}

#[test]
fn all_mounts_stacked_at_the_place_go_and_none_of_their_content() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.file("file", "layer").directory("mnt", 0o755);
    let canary = bed.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "alive").unwrap();
    for backend in all_backends() {
        let place = bed.place(1);
        backend.mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
        mount_bind(&canary, &place.rootfs).unwrap();
        mount_bind(&canary, &place.rootfs).unwrap();
        assert!(backend.unmount(&place).unwrap());
        assert!(!place.rootfs.exists());
        assert_eq!(std::fs::read_to_string(canary.join("file")).unwrap(), "alive");
        assert!(layer.path.join("file").exists());
    }
}

#[test]
fn what_is_mounted_inside_a_rootfs_is_not_removed_with_it() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.directory("a/mnt", 0o755).file("a/file-mount", "");
    let canary = bed.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "alive").unwrap();

    // An overlay goes as a whole, with what hangs on it.
    let place = bed.place(1);
    OverlayBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    mount_bind(&canary, place.rootfs.join("a/mnt")).unwrap();
    assert!(OverlayBackend::default().unmount(&place).unwrap());
    assert!(canary.join("file").exists());
    assert!(bed.mounts().is_empty());

    // A copy is no mount: it stays until what is mounted in it is gone.
    for target in ["a/mnt", "a/file-mount"] {
        CopyBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
        let source = if target == "a/mnt" { canary.clone() } else { canary.join("file") };
        mount_bind(&source, place.rootfs.join(target)).unwrap();
        let error = CopyBackend::default().unmount(&place).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(target) && text.contains("unmount it first"), "{text}");
        assert_eq!(std::fs::read_to_string(canary.join("file")).unwrap(), "alive");
        unmount(place.rootfs.join(target), UnmountFlags::empty()).unwrap();
        assert!(CopyBackend::default().unmount(&place).unwrap(), "and then the rest goes");
        assert!(!place.rootfs.exists());
    }
}

#[test]
fn a_rootfs_in_use_goes_all_the_same() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.file("file", "x");
    let place = bed.place(1);
    let overlay = OverlayBackend::default();
    overlay.mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    let held = std::fs::File::open(place.rootfs.join("file")).unwrap();
    assert!(overlay.unmount(&place).unwrap());
    assert!(!place.rootfs.exists() && bed.mounts().is_empty());
    drop(held);
}

#[test]
fn after_a_reboot_the_directories_are_there_without_their_mounts() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.file("file", "x");
    for backend in all_backends() {
        let place = bed.place(1);
        backend.mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
        if backend.name() != CopyBackend::default().name() {
            unmount(&place.rootfs, UnmountFlags::empty()).unwrap();
        }
        assert!(backend.unmount(&place).unwrap(), "{}", backend.name());
        assert!(!place.rootfs.exists() && !place.scratch.exists());
        assert!(layer.path.join("file").exists());
    }
}

#[test]
fn a_crash_at_any_step_of_a_mount_leaves_what_unmount_takes_away() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    for backend in all_backends() {
        let place = bed.place(1);
        for made in [
            &place.rootfs,
            &place.scratch,
            &place.scratch.join("upper"),
            &place.scratch.join("work"),
            &place.scratch.join("top"),
        ] {
            std::fs::create_dir_all(made).unwrap();
            assert!(backend.unmount(&place).unwrap(), "{} after {}", backend.name(), made.display());
            assert!(!place.rootfs.exists() && !place.scratch.exists());
        }
    }
}

#[test]
fn a_copy_that_nobody_wants_any_more_stops_and_leaves_nothing() {
    let bed = Bed::in_memory();
    let layer = bed.layer("base");
    for directory in 0..200 {
        for file in 0..100 {
            layer.file(&format!("{directory}/{file}"), "content");
        }
    }
    let place = bed.place(1);
    let stop = Stop::default();
    let result = std::thread::scope(|scope| {
        // Raised once the copy is under way, not before.
        scope.spawn(|| {
            let begun =
                |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
            while !begun(&place.rootfs) {
                std::thread::yield_now();
            }
            stop.raise();
        });
        CopyBackend::default().mount(&stack(&[&layer]), &place, &stop)
    });
    assert!(matches!(result, Err(MountError::Stopped { .. })), "{result:?}");
    assert!(!place.rootfs.exists() && !place.scratch.exists());
    for backend in all_backends() {
        let result = backend.mount(&stack(&[&layer]), &place, &stop);
        assert!(matches!(result, Err(MountError::Stopped { .. })), "{}", backend.name());
        assert!(!place.rootfs.exists());
    }
}

#[test]
fn a_full_disk_is_named_with_the_entry_and_nothing_is_left() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let small = bed.path().join("rootfses");
    std::fs::create_dir(&small).unwrap();
    rustix::mount::mount("none", &small, "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
    let layer = bed.layer("base");
    layer.file("fits", "x").file("usr/too-large", vec![1; 3 << 20]);
    let place = bed.place(1);
    let error = CopyBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("usr/too-large") && text.contains("No space left"), "{text}");
    assert_eq!(names(&snapshot(&small)), [""]);
    unmount(&small, UnmountFlags::empty()).unwrap();
}

#[test]
fn different_places_are_made_and_unmade_side_by_side() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (base, top) = (bed.layer("base"), bed.layer("top"));
    base.file("a/b", "x").hard_link("a/c", "a/b");
    top.whiteout("a/b").link("d", "a");
    let stack = stack(&[&base, &top]);
    let (overlay, copy) = (OverlayBackend::default(), CopyBackend::default());
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let (bed, stack, overlay, copy) = (&bed, &stack, &overlay, &copy);
            scope.spawn(move || {
                for turn in 0..10 {
                    let backend: &dyn Backend = if (thread + turn) % 2 == 0 { overlay } else { copy };
                    let place = bed.place(thread);
                    backend.mount(stack, &place, &Stop::default()).unwrap();
                    assert_eq!(std::fs::read_to_string(place.rootfs.join("d/c")).unwrap(), "x");
                    assert!(!place.rootfs.join("a/b").exists());
                    assert!(backend.unmount(&place).unwrap());
                }
            });
        }
    });
    assert_eq!(names(&snapshot(&bed.path().join("rootfses"))), [""]);
    assert_eq!(names(&snapshot(&bed.path().join("scratch"))), [""]);
}

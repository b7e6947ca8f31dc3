//! Which backend is used, and what is said when the one asked for cannot be.

use keelblock::backend::choose;
use keelblock_actors::container::BackendName;
use keelblock_actors::error::chain;
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use crate::support::*;

#[test]
fn overlay_is_the_default_where_it_works_and_that_is_remembered() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (work, store) = (bed.path().join("work"), bed.path().join("store"));
    for _ in 0..2 {
        let chosen = choose(None, &work, &store, false, true).unwrap();
        assert_eq!(chosen.default, BackendName::Overlay);
        assert!(chosen.fallback.is_none());
        let names: Vec<_> = keelblock::backend::all(&keelblock::gc::Gc::default(), false)
            .iter()
            .map(|backend| backend.name())
            .collect();
        assert_eq!(names, [BackendName::Overlay, BackendName::Copy, BackendName::Bind]);
    }
    assert!(bed.mounts().is_empty());
    let left: Vec<_> = names(&snapshot(&work));
    assert_eq!(left, ["", "provisioner", "provisioner/overlay.probe"], "nothing of the trial is left");
    for requested in [BackendName::Overlay, BackendName::Copy, BackendName::Bind] {
        assert_eq!(choose(Some(requested), &work, &store, false, true).unwrap().default, requested);
    }
}

#[test]
fn a_damaged_or_foreign_memory_of_the_trial_only_costs_another_trial() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let probe = bed.path().join("provisioner/overlay.probe");
    choose(None, bed.path(), bed.path(), false, true).unwrap();
    let good = std::fs::read(&probe).unwrap();
    for text in [&b""[..], b"overlay works: boot x\n", &good[..good.len() - 1], b"\xff\xff\0"] {
        std::fs::write(&probe, text).unwrap();
        assert_eq!(choose(None, bed.path(), bed.path(), false, true).unwrap().default, BackendName::Overlay);
        assert_eq!(std::fs::read(&probe).unwrap(), good);
    }
}

#[test]
fn where_overlay_cannot_work_copy_is_used_and_naming_overlay_is_an_error() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    // Overlayfs does not take an overlay for its upper directory.
    let layer = bed.layer("base");
    let place = bed.place(1);
    let overlay = keelblock::backend::OverlayBackend::default();
    let backend: &dyn keelblock_actors::ports::Backend = &overlay;
    backend.mount(&stack(&[&layer]), &place, &Default::default()).unwrap();
    let work = place.rootfs.join("work");
    let chosen = choose(None, &work, &bed.path().join("store"), false, true).unwrap();
    assert_eq!(chosen.default, BackendName::Copy);
    let reason = chain(&chosen.fallback.unwrap());
    assert!(reason.contains("overlay backend cannot work here") && reason.contains("copy"), "{reason}");
    let error =
        choose(Some(BackendName::Overlay), &work, &bed.path().join("store"), false, true).unwrap_err();
    assert_eq!(chain(&error), reason);
    assert!(choose(Some(BackendName::Copy), &work, bed.path(), false, true).is_ok());
    backend.unmount(&place).unwrap();
}

#[test]
fn overlay_on_a_read_only_work_directory_is_refused_with_the_reason() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let work = bed.path().join("work");
    std::fs::create_dir(&work).unwrap();
    rustix::mount::mount("none", &work, "tmpfs", MountFlags::RDONLY, None).unwrap();
    let error = choose(Some(BackendName::Overlay), &work, bed.path(), false, true).unwrap_err();
    assert!(chain(&error).contains("Read-only"), "{}", chain(&error));
    unmount(&work, UnmountFlags::empty()).unwrap();
}

#[test]
fn without_root_a_rootfs_that_must_stay_is_copied() {
    let bed = Bed::new();
    let chosen = choose(None, bed.path(), bed.path(), true, true).unwrap();
    assert_eq!(chosen.default, BackendName::Copy);
    for backend in [BackendName::Overlay, BackendName::Bind] {
        let error = choose(Some(backend), bed.path(), bed.path(), true, true).unwrap_err();
        assert!(chain(&error).contains("would end with this command"), "{}", chain(&error));
    }
}

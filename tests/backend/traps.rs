//! Layers that mean harm: nothing outside the rootfs is ever written or removed.

use std::path::Path;

use keelblock::backend::CopyBackend;
use keelblock_actors::ports::Backend;
use keelblock_actors::stop::Stop;

use crate::support::*;

/// A directory beside the bed's store with a file in it, and what it looked like.
fn canary(bed: &Bed) -> (std::path::PathBuf, Tree) {
    let canary = bed.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "alive").unwrap();
    std::fs::write(canary.join("passwd"), "alive too").unwrap();
    let tree = snapshot(&canary);
    (canary, tree)
}

#[test]
fn a_link_of_a_lower_layer_is_never_written_through() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (outside, before) = canary(&bed);
    let base = bed.layer("base");
    base.link("etc", &outside)
        .link("usr/lib", "../../../canary")
        .link("passwd", outside.join("passwd"))
        .link("up", "../../canary")
        .link("loop", "loop");
    let top = bed.layer("top");
    top.file("etc/passwd", "evil")
        .whiteout("etc/file")
        .file("usr/lib/file", "evil")
        .file("passwd", "evil")
        .opaque("up")
        .file("up/file", "evil")
        .file("loop/inner", "evil");
    let tree = bed.agreed_tree(&[&base, &top]);
    assert_same(&before, &snapshot(&outside));
    assert_eq!(tree[Path::new("etc")].kind, "directory");
    assert_eq!(tree[Path::new("passwd")].kind, "file");
    assert!(tree.contains_key(Path::new("loop/inner")));
}

#[test]
fn a_link_over_a_directory_replaces_it_and_is_not_entered() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (outside, before) = canary(&bed);
    let base = bed.layer("base");
    base.file("data/file", "base").file("data/sub/file", "base");
    let top = bed.layer("top");
    top.link("data", &outside);
    let tree = bed.agreed_tree(&[&base, &top]);
    assert_same(&before, &snapshot(&outside));
    assert_eq!(names(&tree), ["", "data"]);
    assert_eq!(tree[Path::new("data")].kind, "symlink");
}

#[test]
fn a_hard_link_to_a_link_links_the_link() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (outside, before) = canary(&bed);
    let base = bed.layer("base");
    base.link("first", outside.join("passwd")).hard_link("second", "first").owner("first", 12, 12);
    let tree = bed.agreed_tree(&[&base]);
    assert_same(&before, &snapshot(&outside));
    assert_eq!(tree[Path::new("second")].links.len(), 1);
    assert_eq!(tree[Path::new("second")].kind, "symlink");
}

#[test]
fn a_rootfs_with_links_out_of_it_is_removed_alone() {
    let bed = Bed::new();
    let (outside, before) = canary(&bed);
    let layer = bed.layer("base");
    layer.link("a/out", &outside).link("a/file", outside.join("file")).link("root", "/");
    let place = bed.place(1);
    CopyBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    assert!(CopyBackend::default().unmount(&place).unwrap());
    assert_same(&before, &snapshot(&outside));
}

//! The same stack gives the same tree, whatever the backend.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend};
use keelblock_actors::ports::Backend;
use keelblock_actors::stop::Stop;
use rustix::fs::FileType;

use crate::support::*;

#[test]
fn all_backends_agree_on_every_kind_of_entry() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let base = bed.layer("base");
    base.directory("bin", 0o755)
        .file("bin/sh", "#!")
        .mode("bin/sh", 0o755)
        .file("bin/su", "setuid")
        .owner("bin/su", 0, 7)
        .mode("bin/su", 0o6755)
        .file("bin/ping", "capable")
        // VFS_CAP_REVISION_2, effective, cap_net_raw.
        .xattr(
            "bin/ping",
            "security.capability",
            &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .directory("etc", 0o755)
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .file("etc/empty", "")
        .file("etc/old", "replaced later")
        .link("lib", "usr/lib")
        .link("etc/absolute", "/usr/share/nothing")
        .owner("etc/absolute", 5, 6)
        .directory("usr/lib", 0o755)
        .file("usr/lib/one", vec![7u8; 100_000])
        .hard_link("usr/lib/two", "usr/lib/one")
        .hard_link("usr/three", "usr/lib/one")
        .hard_link("bin/four", "usr/lib/one")
        .node("dev/null", FileType::CharacterDevice, 1, 3)
        .node("dev/vda", FileType::BlockDevice, 254, 7)
        .node("run/pipe", FileType::Fifo, 0, 0)
        .node("run/socket", FileType::Socket, 0, 0)
        .mode("run/pipe", 0o622)
        .owner("dev/vda", 0, 6)
        .directory("tmp", 0o1777)
        .directory("closed", 0o000)
        .directory("shared", 0o2775)
        .owner("shared", 1000, 1000)
        .mode("shared", 0o2775)
        .file("shared/in-setgid", "not of the directory's group")
        .owner("shared/in-setgid", 0, 0)
        .xattr("etc/passwd", "user.comment", b"kept")
        .xattr("etc", "user.on-directory", &[0, 1, 255])
        .xattr("lib", "trusted.on-link", b"x")
        .xattr("run/pipe", "trusted.on-pipe", b"x")
        // A default access list: user 12 may read what is made here.
        .xattr(
            "shared",
            "system.posix_acl_default",
            &[
                2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 12, 0, 0, 0, 4, 0, 5, 0, 255, 255,
                255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255,
            ],
        );
    let middle = bed.layer("middle");
    middle
        .file("etc/old", "new")
        .owner("etc/old", 33, 33)
        .mode("etc/old", 0o640)
        .directory("etc", 0o750)
        .file("usr/lib/four", "four")
        .hard_link("usr/lib/five", "usr/lib/four")
        .whiteout("usr/lib/two")
        .whiteout("bin/ping");
    let top = bed.layer("top");
    top.directory("usr", 0o711).file("opt/odd \n name\u{fffd}", "odd").directory("var/deep/er/still", 0o700);
    for (seconds, layer) in [(1_000_000_000, &base), (1_100_000_000, &middle), (-5, &top)] {
        let mut paths: Vec<_> = names(&snapshot(&layer.path));
        paths.reverse();
        for path in paths {
            layer.time(&path, seconds);
        }
    }
    top.owner("", 3, 4).mode("", 0o751).xattr("", "user.root", b"of the top").time("", 77);

    let tree = bed.agreed_tree(&[&base, &middle, &top]);

    let root = &tree[Path::new("")];
    assert_eq!((root.mode, root.owner, root.mtime), (0o751, (3, 4), (77, 123_456_789)));
    assert_eq!(root.xattrs["user.root"], b"of the top");
    assert_eq!(tree[Path::new("etc")].mode, 0o750);
    assert!(
        !tree[Path::new("etc")].xattrs.contains_key("user.on-directory"),
        "the upper directory's own count"
    );
    assert_eq!(tree[Path::new("bin/su")].mode, 0o6755);
    assert_eq!(tree[Path::new("bin/su")].mtime, (1_000_000_000, 123_456_789));
    assert_eq!(tree[Path::new("usr")].mtime, (-5, 123_456_789));
    assert_eq!(tree[Path::new("dev/vda")].content, "254:7");
    assert_eq!(tree[Path::new("lib")].xattrs["trusted.on-link"], b"x");
    assert_eq!(tree[Path::new("shared/in-setgid")].owner, (0, 0));
    assert!(tree[Path::new("shared/in-setgid")].xattrs.is_empty());
    assert!(!tree.contains_key(Path::new("usr/lib/two")));
    assert!(!tree.contains_key(Path::new("bin/ping")));
    let others: Vec<_> =
        tree[Path::new("usr/lib/one")].links.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(others, ["bin/four", "usr/three"]);
    assert_eq!(tree[Path::new("usr/lib/five")].links.len(), 1);
}

#[test]
fn file_capabilities_survive_the_copy() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let layer = bed.layer("base");
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    layer.file("ping", "x").owner("ping", 10, 10).xattr("ping", "security.capability", &capability);
    let tree = bed.agreed_tree(&[&layer]);
    assert_eq!(tree[Path::new("ping")].xattrs["security.capability"], capability);
}

#[test]
fn every_kind_of_whiteout_hides_what_is_below_and_nothing_else() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let base = bed.layer("base");
    for path in
        ["file", "dir/a", "dir/b", "opaque/a", "opaque/sub/b", "turns/into/file", "back/old", "deep/x/y/z"]
    {
        base.file(path, path);
    }
    base.file("becomes", "a directory").file("untouched", "base");
    let middle = bed.layer("middle");
    middle
        .whiteout("file")
        .whiteout("dir")
        .opaque("opaque")
        .file("opaque/new", "new")
        .file("turns", "a file now")
        .file("becomes/directory", "inside")
        .whiteout("never-was")
        .whiteout("back")
        .opaque("deep/x")
        .file("untouched2", "middle");
    let top = bed.layer("top");
    top.file("back/new", "again")
        .file("opaque/sub/c", "c")
        .whiteout("untouched2")
        .file("turns/back", "a directory");
    let tree = bed.agreed_tree(&[&base, &middle, &top]);
    assert_eq!(
        names(&tree),
        [
            "",
            "back",
            "back/new",
            "becomes",
            "becomes/directory",
            "deep",
            "deep/x",
            "opaque",
            "opaque/new",
            "opaque/sub",
            "opaque/sub/c",
            "turns",
            "turns/back",
            "untouched",
        ]
    );
    let lower = bed.agreed_tree(&[&base, &middle]);
    assert_eq!(lower[Path::new("turns")].kind, "file");
    assert!(!lower.contains_key(Path::new("back")));
}

#[test]
fn an_opaque_root_hides_all_layers_below_it() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (base, middle, top) = (bed.layer("base"), bed.layer("middle"), bed.layer("top"));
    base.file("gone", "").file("etc/gone", "");
    middle.opaque("").file("etc/here", "");
    top.file("etc/too", "");
    let tree = bed.agreed_tree(&[&base, &middle, &top]);
    assert_eq!(names(&tree), ["", "etc", "etc/here", "etc/too"]);
}

#[test]
fn a_layer_that_comes_twice_counts_where_it_is_highest() {
    if !privileged() {
        return;
    }
    let bed = Bed::new();
    let (a, b) = (bed.layer("a"), bed.layer("b"));
    a.file("x", "of a").file("only-a", "a").whiteout("b-had");
    b.file("x", "of b").file("b-had", "b").whiteout("only-a");
    let tree = bed.agreed_tree(&[&a, &b, &a]);
    assert_eq!(names(&tree), ["", "only-a", "x"]);
    assert!(tree[Path::new("x")].text().starts_with("4 bytes"));
    let tree = bed.agreed_tree(&[&a, &a, &b, &b]);
    assert_eq!(names(&tree), ["", "b-had", "x"]);
}

#[test]
fn three_hundred_layers_are_stacked() {
    if !privileged() {
        return;
    }
    let bed = Bed::in_memory();
    let layers: Vec<_> = (0..300)
        .map(|number| {
            let layer = bed.layer(&format!("layer-{number}"));
            layer.file("same", format!("{number}")).file(&format!("own/{number}"), "");
            if number > 0 && number % 3 == 0 {
                layer.whiteout(&format!("own/{}", number - 1));
            }
            layer
        })
        .collect();
    let tree = bed.agreed_tree(&layers.iter().collect::<Vec<_>>());
    assert_eq!(tree.len(), 1 + 1 + 1 + 300 - 99);
    assert_eq!(tree[Path::new("same")].mtime, snapshot(&layers[299].path)[Path::new("same")].mtime);
}

#[test]
fn five_hundred_layers_are_the_limit_of_overlayfs_and_its_error_says_so() {
    if !privileged() {
        return;
    }
    let bed = Bed::in_memory();
    let layers: Vec<_> = (0..501).map(|number| bed.layer(&format!("{number}"))).collect();
    let stack = stack(&layers.iter().collect::<Vec<_>>());
    let (overlay, bind) = (OverlayBackend::default(), BindBackend::default());
    // Bind needs one for the attributes of the root.
    for (backend, limit) in [(&overlay as &dyn Backend, 500), (&bind, 499)] {
        assert_eq!(bed.tree_of(backend, &stack[..limit]).len(), 1);
        let error = backend.mount(&stack[..limit + 1], &bed.place(1), &Stop::default()).unwrap_err();
        let text = keelblock_actors::error::chain(&error);
        let words = [format!("{} layers", limit + 1), limit.to_string(), "copy".to_owned()];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!(bed.tree_of(&CopyBackend::default(), &stack).len(), 1);
}

#[test]
fn holes_stay_holes_and_what_is_between_them_is_copied() {
    let bed = Bed::new();
    let layer = bed.layer("base");
    layer.file("sparse", "");
    let file = std::fs::File::options().write(true).open(layer.path.join("sparse")).unwrap();
    let write = |at| std::os::unix::fs::FileExt::write_all_at(&file, &[9; 5000], at).unwrap();
    write(3 << 20);
    write(10 << 20);
    file.set_len(64 << 20).unwrap();
    layer.file("all-hole", "");
    std::fs::File::options().write(true).open(layer.path.join("all-hole")).unwrap().set_len(5 << 20).unwrap();
    let place = bed.place(1);
    CopyBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    assert_same(&snapshot(&layer.path), &snapshot(&place.rootfs));
    let allocated = std::fs::metadata(place.rootfs.join("sparse")).unwrap().blocks() * 512;
    assert!(allocated < 1 << 20, "{allocated} bytes allocated");
    assert!(CopyBackend::default().unmount(&place).unwrap());
}

#[test]
fn a_tree_as_deep_as_a_path_can_be_is_copied() {
    let bed = Bed::new();
    let layer = bed.layer("base");
    let deep = "d/".repeat(1900) + "file";
    // Path and prefix together are longer than a path may be: built in two halves.
    let half = "d/".repeat(950);
    std::fs::create_dir_all(layer.path.join(&half)).unwrap();
    let lower = rustix::fs::open(layer.path.join(&half), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
        .unwrap();
    let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lower));
    std::fs::create_dir_all(Path::new(&proc).join(&half)).unwrap();
    std::fs::write(Path::new(&proc).join(&half).join("file"), "deep").unwrap();
    let place = bed.place(1);
    CopyBackend::default().mount(&stack(&[&layer]), &place, &Stop::default()).unwrap();
    let root = rustix::fs::open(&place.rootfs, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let stat = rustix::fs::statat(&root, deep.as_str(), rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!(stat.st_size, 4);
    assert!(CopyBackend::default().unmount(&place).unwrap());
    assert!(!place.rootfs.exists());
}

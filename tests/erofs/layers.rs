//! The same tars as trees and as images.

use std::path::Path;

use keelblock::erofs::NoWatch;
use keelblock::fuzzing::{Layer, image};
use keelblock::limits::Limits;
use keelblock_actors::error::chain;
use keelblock_actors::ports::Store;

use crate::mount::{Mounted, can_mount, fsck};
use crate::tarball::{self, Entry, Tarball, dir, entry, file, hard_link, old_sparse, symlink};
use crate::tree::{Difference, Tree};

/// A tar as a tree and as an image: the same tree and the same record, or the same refusal.
pub(crate) fn compare(name: &str, tar: &[u8]) {
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    compare_in(scratch.path(), name, tar);
}

fn compare_in(scratch: &Path, name: &str, tar: &[u8]) {
    let store = tarball::store(&scratch.join("store"));
    let (at, sums) = (scratch.join("layer.erofs"), scratch.join("sums"));
    let tree = tarball::put_tar(&store, tar);
    let made = image(tar, &at, &sums, &Limits::default(), NoWatch);
    let (stored, (layer, _)) = match (tree, made) {
        (Ok(stored), Ok(made)) => (stored, made),
        (Err(tree), Err(image)) => {
            // The tree was in a store, which knows the layer by its diff ID.
            let tail =
                |text: &str| text.split_once(": ").map(|(_, tail)| tail.to_owned()).unwrap_or_default();
            assert_eq!(tail(&chain(&tree)), tail(&image), "{name}: refused in other words");
            return;
        }
        (tree, image) => panic!("{name}: as a tree {tree:?}, as an image {image:?}"),
    };
    let record = store.layer_record(&stored).unwrap();
    let expected = Layer {
        bytes: record.bytes,
        entries: record.entries,
        implied_dirs: record.implied_dirs,
        implied: record.implied,
        whiteouts: record.whiteouts,
        not_set: record.not_set,
    };
    assert_eq!(layer, expected, "{name}: the records are not the same");
    fsck(&at);
    let mounted = Mounted::new(&at, &scratch.join("mounted"));
    let tree = Tree::read(&store.show(&stored).unwrap().path);
    let image = Tree::read(mounted.path());
    tree.expect_same("the tree", &image, "the image", excuse);
}

/// What may differ.
fn excuse(difference: &Difference) -> Option<&'static str> {
    let of_whiteout = difference.aspect == "mtime" && difference.right == "0.000000000";
    of_whiteout.then_some("a whiteout of a tree has the time when it was made")
}

pub(crate) fn tar(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    Tarball::of(entries).end()
}

#[test]
fn all_kinds_of_entries_are_the_same() {
    if !can_mount() {
        return;
    }
    let long = "n".repeat(255);
    let entries = vec![
        dir("bin").mode(0o2775).owner(7, 8).mtime(1_700_000_000),
        file("bin/tool", b"#!/bin/sh\n").mode(0o4755).pax("mtime", "1700000000.123456789"),
        file("bin/empty", b""),
        file("bin/block", vec![7; 4096]),
        file("bin/more", vec![8; 4097]),
        file("bin/full", vec![8; 4032]),
        file("bin/over", vec![8; 4033]),
        file("bin/large", (0..3_000_000_u32).map(|n| n as u8).collect::<Vec<_>>()),
        file("old", b"1").pax("mtime", "-1.5"),
        symlink("lib", "usr/lib"),
        symlink("long", "t/".repeat(2010)).pax("linkpath", "t/".repeat(2010)),
        symlink("longest", "x").pax("linkpath", "t".repeat(4095)),
        file("lib/x", b"through a link"),
        hard_link("bin/second", "bin/tool"),
        hard_link("third", "bin/tool"),
        hard_link("lib2", "lib"),
        entry(b'3', "null").device(1, 3),
        entry(b'4', "disk").device(8, 300),
        entry(b'3', "far").device(4095, 0xf_ffff),
        entry(b'6', "pipe").mode(0o600),
        file("attr", b"").xattr("user.one", "1").xattr("user.two", vec![9; 3000]).xattr("trusted.x", ""),
        file("attr2", b"").xattr("user.one", "1").xattr("security.foo", "1"),
        file("attr3", b"").xattr("user.one", "1").xattr("security.foo", "1"),
        dir("attr4").xattr("user.one", "1").xattr("user.large", vec![b'v'; 3000]),
        file("gone/.wh.file", b""),
        file("gone/.wh.other", b""),
        file("opaque/.wh..wh..opq", b""),
        file("implied/a/b/c", b"c"),
        file(&long, b"long").pax("path", &long),
        old_sparse(
            "sparse",
            10_000_000,
            &[(0, vec![1; 512]), (5_000_000, vec![2; 70_000]), (10_000_000, vec![])],
        ),
        old_sparse("hole", 100_000, &[(100_000, vec![])]),
        old_sparse("none", 0, &[]),
    ];
    compare("all kinds", &tar(entries));
}

#[test]
fn an_empty_layer_is_a_root() {
    if !can_mount() {
        return;
    }
    compare("nothing", &tar([]));
    compare("a root", &tar([dir("./").mode(0o1777).owner(1, 2).mtime(5).xattr("user.x", vec![1; 3000])]));
}

#[test]
fn names_that_are_given_twice_are_the_same() {
    if !can_mount() {
        return;
    }
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("a file over a directory", vec![dir("a"), file("a/b", "b"), file("a", "x"), hard_link("c", "a")]),
        ("a directory over a file", vec![file("a", "x"), dir("a"), file("a/.wh.x", ""), file("a/b", "")]),
        (
            "a whiteout and its file",
            vec![file(".wh.a", ""), file("a", "x"), file("b", ""), file(".wh.b", "")],
        ),
        ("a whiteout and what is below", vec![file(".wh.a", ""), file("a/b/c", "x")]),
        ("opaque after whiteouts", vec![file("d/.wh.x", ""), file("d/y", ""), file("d/.wh..wh..opq", "")]),
        (
            "a whiteout of a directory",
            vec![dir("d"), file("d/.wh.x", ""), file(".wh.d", ""), file("d/z", "")],
        ),
        (
            "links that go",
            vec![file("a", "x"), hard_link("b", "a"), hard_link("c", "b"), file("a", "y"), file("b", "z")],
        ),
        ("a link into what it replaces", vec![file("a/b", "x"), hard_link("a", "a/b")]),
        ("a link to itself", vec![file("a", "x"), hard_link("a", "a"), hard_link("./a", "a")]),
        ("a link to a directory", vec![dir("a"), hard_link("b", "a")]),
        ("a link to nothing", vec![hard_link("b", "a")]),
        ("a link to a whiteout", vec![file(".wh.a", ""), hard_link("b", "a")]),
        (
            "a link through a symlink",
            vec![file("d/a", "x"), symlink("s", "d"), hard_link("b", "s/a"), hard_link("l", "s")],
        ),
        (
            "device 0:0",
            vec![entry(b'3', "d"), hard_link("e", "d"), file("f", ""), hard_link("f", "d"), file("d", "")],
        ),
        (
            "symlinks up",
            vec![
                dir("a/b"),
                symlink("a/b/s", "../../../c/./d"),
                file("a/b/s/f", "x"),
                symlink("t", "/a/b/s"),
                file("t/g", ""),
            ],
        ),
        ("symlinks in a circle", vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")]),
        (
            "a symlink is replaced",
            vec![dir("x"), dir("y"), symlink("s", "x"), file("s/a", ""), symlink("s", "y"), file("s/b", "")],
        ),
        (
            "a symlink by a directory",
            vec![dir("x"), symlink("s", "x"), file("s/a", ""), dir("s"), file("s/b", "")],
        ),
        ("a file in the way", vec![file("a", "x"), file("a/b", "")]),
        ("upwards", vec![file("a/../b", "")]),
        ("a bad whiteout", vec![file(".wh.", "")]),
        ("within a whiteout", vec![file(".wh.a/b", "")]),
        ("aufs", vec![file(".wh..wh.plnk/x", ""), file(".wh..wh.aufs", ""), file("a", "")]),
        ("a name too long", vec![file("x", "").pax("path", "n".repeat(256))]),
        ("a directory too long", vec![file("x", "").pax("path", format!("{}/x", "n".repeat(256)))]),
        ("a target too long", vec![symlink("x", "t").pax("linkpath", "t".repeat(4096))]),
        (
            "a directory twice",
            vec![
                dir("a").xattr("user.x", "1").mode(0o700),
                file("a/x", ""),
                dir("a").xattr("user.y", "2").owner(4, 5).mtime(77),
            ],
        ),
        (
            "implied in setgid",
            vec![dir("a").mode(0o2755).owner(0, 50), file("a/b/c/d", ""), dir("a/e"), file("a/f", "")],
        ),
        (
            "implied, then told",
            vec![file("a/b/c", ""), dir("a").mtime(9), symlink("s", "a"), dir("s/b").mtime(8)],
        ),
        ("the root is a file", vec![file("./", "").raw(156, b"0")]),
        ("no owner", vec![file("a", "").pax("uid", "4294967295")]),
        ("no device", vec![entry(b'3', "a").device(4096, 0)]),
    ];
    for (name, entries) in cases {
        compare(name, &tar(entries));
    }
}

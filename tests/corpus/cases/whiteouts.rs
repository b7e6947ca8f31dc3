//! Whiteouts: what they remove, what they leave, and what only looks like one.

use crate::case::{Group, layer};
use crate::tarball::*;

/// A base with something of every kind in it.
fn base() -> Vec<Entry> {
    vec![
        file("f", "f"),
        file("g", "g"),
        symlink("l", "f"),
        entry(b'6', "p"),
        dir("d/").mtime(4),
        file("d/f", "f"),
        file("d/g", "g"),
        dir("d/e/"),
        file("d/e/f", "f"),
    ]
}

fn over(above: Vec<Entry>) -> Vec<Vec<Entry>> {
    vec![base(), above]
}

pub(crate) fn add(group: &mut Group) {
    remove(group);
    again(group);
    opaque(group);
    names(group);
    forms(group);
    poses(group);
}

fn remove(group: &mut Group) {
    group.stack(
        "whiteout-of-a-file",
        over(vec![file(".wh.f", ""), file("d/.wh.f", "")]),
        "g file | l link =f | p fifo | d dir | d/g file | d/e dir | d/e/f file",
    );
    group.stack(
        "whiteout-of-a-symlink-and-a-fifo",
        over(vec![file(".wh.l", ""), file(".wh.p", ""), file(".wh.d", "")]),
        "f file | g file",
    );
    group.stack(
        "whiteout-of-a-directory",
        over(vec![file(".wh.d", "")]),
        "f file | g file | l link | p fifo",
    );
    group.stack(
        "whiteout-of-a-directory-within-one",
        over(vec![file("d/.wh.e", "")]),
        "f file | g file | l link | p fifo | d dir mtime=4 | d/f file | d/g file",
    );
    group.stack(
        "whiteout-of-nothing",
        over(vec![file(".wh.x", ""), file("d/.wh.x", ""), file("new/.wh.x", "")]),
        "f file | g file | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file | new dir",
    );
    group.tree(
        "whiteout-in-the-only-layer",
        vec![file(".wh.x", ""), file("d/.wh.y", ""), file("d/f", "f")],
        "d dir | d/f file =f",
    );
    group.tree("whiteout-in-a-new-directory-alone", vec![dir("d/"), file("d/.wh.y", "")], "d dir");
    group.stack(
        "whiteout-in-the-middle-layer",
        vec![
            base(),
            vec![file(".wh.f", ""), file(".wh.d", "")],
            vec![file("f", "again"), dir("d/").mode(0o700), file("d/new", "n")],
        ],
        "f file =again | g file | l link | p fifo | d dir mode=700 | d/new file =n",
    );
    group.stack(
        "whiteout-of-the-same-twice",
        over(vec![file(".wh.f", ""), file(".wh.f", ""), file("./.wh.f", "")]),
        "g file | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file",
    );
    group.stack(
        "whiteout-touches-its-directory-s-time-only-where-told",
        vec![vec![dir("d/").mtime(5), file("d/f", "")], vec![dir("d/").mtime(6), file("d/.wh.f", "")]],
        "d dir mtime=6",
    );
    let name = "n".repeat(251);
    group.stack(
        "whiteout-of-the-longest-name",
        vec![
            vec![file("x", "").pax("path", &name), file("y", "")],
            vec![file("x", "").pax("path", format!(".wh.{name}"))],
        ],
        "y file",
    );
}

fn again(group: &mut Group) {
    for (name, above) in [
        ("whiteout-before-the-file-that-stays", vec![file(".wh.f", ""), file("f", "new")]),
        ("whiteout-after-the-file-that-stays", vec![file("f", "new"), file(".wh.f", "")]),
        (
            "whiteout-before-and-after-the-file-that-stays",
            vec![file(".wh.f", ""), file("f", "new"), file(".wh.f", "")],
        ),
    ] {
        group.stack(
            name,
            over(above),
            "f file =new | g file | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file",
        );
    }
    for (name, above) in [
        (
            "whiteout-before-the-directory-that-stays",
            vec![file(".wh.d", ""), dir("d/").mode(0o700), file("d/new", "n")],
        ),
        (
            "whiteout-after-the-directory-that-stays",
            vec![dir("d/").mode(0o700), file("d/new", "n"), file(".wh.d", "")],
        ),
        (
            "whiteout-amid-the-directory-that-stays",
            vec![dir("d/").mode(0o700), file(".wh.d", ""), file("d/new", "n")],
        ),
    ] {
        group.stack(name, over(above), "f file | g file | l link | p fifo | d dir mode=700 | d/new file =n");
    }
    group.stack(
        "whiteout-before-a-directory-that-is-only-implied",
        over(vec![file(".wh.d", ""), file("d/new", "n")]),
        "f file | g file | l link | p fifo | d dir mode=755 | d/new file =n",
    );
    group.stack(
        "whiteout-and-anew-as-another-type",
        over(vec![
            file(".wh.f", ""),
            dir("f/"),
            file("f/x", "x"),
            file(".wh.d", ""),
            symlink("d", "g"),
            file(".wh.l", ""),
            entry(b'6', "l"),
            file(".wh.p", ""),
            hard_link("p", "f/x"),
        ]),
        "f dir | f/x file =x same=p | g file | d link =g | l fifo | p file",
    );
    group.stack(
        "whiteout-then-file-then-directory",
        vec![base(), vec![file(".wh.d", "")], vec![file("d", "file")], vec![dir("d/")]],
        "f file | g file | l link | p fifo | d dir",
    );
    group.stack(
        "directory-over-a-file-over-a-directory",
        vec![base(), vec![file("d", "file")], vec![dir("d/"), file("d/new", "n")]],
        "f file | g file | l link | p fifo | d dir | d/new file =n",
    );
    group.stack(
        "directory-in-place-of-a-file-of-its-own-layer",
        over(vec![file("d", "file"), dir("d/"), file("d/new", "n")]),
        "f file | g file | l link | p fifo | d dir | d/new file =n",
    );
    group.stack(
        "whiteout-of-what-the-same-layer-puts-below",
        over(vec![file("d/e/new", "n"), file("d/.wh.e", ""), file("d/.wh.f", "")]),
        "f file | g file | l link | p fifo | d dir mtime=4 | d/g file | d/e dir | d/e/new file =n",
    );
}

fn opaque(group: &mut Group) {
    const OPAQUE: &str = "d/.wh..wh..opq";
    let tree = "f file | g file | l link | p fifo | d dir mode=700 | d/own file =own";
    group.stack(
        "opaque-before-its-siblings",
        over(vec![dir("d/").mode(0o700), file(OPAQUE, ""), file("d/own", "own")]),
        tree,
    );
    group.stack(
        "opaque-after-its-siblings",
        over(vec![dir("d/").mode(0o700), file("d/own", "own"), file(OPAQUE, "")]),
        tree,
    );
    group.stack(
        "opaque-before-its-directory",
        over(vec![file(OPAQUE, ""), file("d/own", "own"), dir("d/").mode(0o700)]),
        tree,
    );
    group.stack(
        "opaque-in-a-directory-that-is-only-implied",
        over(vec![file(OPAQUE, ""), file("d/own", "own")]),
        "f file | g file | l link | p fifo | d dir mtime=4 | d/own file =own",
    );
    group.stack(
        "opaque-and-whiteouts-together",
        over(vec![file("d/.wh.f", ""), file(OPAQUE, ""), file("d/.wh.g", ""), file("d/own", "own")]),
        "f file | g file | l link | p fifo | d dir | d/own file =own",
    );
    group.stack("opaque-alone", over(vec![file(OPAQUE, "")]), "f file | g file | l link | p fifo | d dir");
    group.stack(
        "opaque-and-the-directory-below-it",
        over(vec![file(OPAQUE, ""), dir("d/e/"), file("d/e/own", "own")]),
        "f file | g file | l link | p fifo | d dir | d/e dir | d/e/own file =own",
    );
    group.stack("opaque-root", over(vec![file(".wh..wh..opq", ""), file("own", "own")]), "own file =own");
    group.stack(
        "opaque-root-in-the-middle",
        vec![base(), vec![file("./.wh..wh..opq", ""), file("mid", "m")], vec![file("own", "own")]],
        "mid file =m | own file =own",
    );
    group.stack(
        "opaque-root-of-the-base",
        vec![vec![file(".wh..wh..opq", ""), file("own", "own")], vec![file("f", "f")]],
        "own file | f file",
    );
    group.tree("opaque-in-the-only-layer", vec![file(OPAQUE, ""), file("d/f", "x")], "d dir | d/f file =x");
    group.stack(
        "opaque-in-the-middle-layer",
        vec![
            base(),
            vec![file(OPAQUE, ""), file("d/mid", "m")],
            vec![file("d/top", "t"), file("d/.wh.mid", "")],
        ],
        "f file | g file | l link | p fifo | d dir | d/top file =t",
    );
    group.stack(
        "opaque-where-below-there-is-a-file",
        vec![vec![file("d", "file"), file("f", "")], vec![file(OPAQUE, ""), file("d/own", "own")]],
        "d dir | d/own file =own | f file",
    );
    group.stack(
        "opaque-where-below-there-is-nothing",
        vec![vec![file("f", "")], vec![dir("n/"), file("n/.wh..wh..opq", ""), file("n/own", "own")]],
        "f file | n dir | n/own file =own",
    );
    group.stack(
        "opaque-twice",
        over(vec![file(OPAQUE, ""), file("d/own", "own"), file(OPAQUE, "")]),
        "f file | g file | l link | p fifo | d dir | d/own file =own",
    );
}

fn names(group: &mut Group) {
    group.stack(
        "what-aufs-left-means-nothing",
        over(vec![
            file(".wh..wh.aufs", ""),
            dir(".wh..wh.plnk/"),
            file(".wh..wh.plnk/77.88", "x"),
            hard_link("d/.wh..wh.x", "nowhere"),
            dir(".wh..wh.orph/"),
            file("d/.wh..wh.aufs", ""),
        ]),
        "f file | g file | l link | p fifo | d dir mtime=4 | d/f file | d/g file | d/e dir | d/e/f file",
    );
    for (name, path) in [
        ("whiteout-without-a-name", ".wh."),
        ("whiteout-without-a-name-in-a-directory", "d/.wh."),
        ("whiteout-of-dot", ".wh.."),
        ("whiteout-of-dotdot", ".wh..."),
        ("whiteout-of-dotdot-in-a-directory", "d/e/.wh..."),
        ("whiteout-as-a-parent", ".wh.a/b"),
        ("whiteout-as-a-parent-of-a-whiteout", ".wh.a/.wh.b"),
        ("whiteout-as-a-parent-far-above", "d/.wh.a/b/c"),
        ("opaque-as-a-parent", ".wh..wh..opq/x"),
    ] {
        group.made_refused(
            name,
            move |_| vec![layer(base()), layer([file(path, "")])],
            &["no valid whiteout"],
        );
    }
    group.stack(
        "names-that-only-look-like-whiteouts",
        over(vec![
            file(".WH.f", ""),
            file("f.wh.g", ""),
            file(".whiteout", ""),
            file(".wh", ""),
            file("wh.f", ""),
        ]),
        ".WH.f file | f.wh.g file | .whiteout file | .wh file | wh.f file
         f file | g file | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file",
    );
    group.stack(
        "whiteout-of-names-that-begin-with-dots",
        vec![
            vec![file(".hidden", ""), file("...", ""), file("....", ""), file(".whx", ""), file("f", "")],
            vec![file(".wh..hidden", ""), file(".wh.....", ""), file(".wh..whx", "")],
        ],
        "... file | f file",
    );
    group.stack(
        "whiteout-of-a-name-that-is-no-utf-8",
        vec![vec![file(b"\xff\xfe", ""), file("f", "")], vec![file(b".wh.\xff\xfe", "")]],
        "f file",
    );
    group.stack(
        "whiteout-of-a-whiteout-s-name",
        // `.wh..wh.x` is of aufs and removes nothing.
        vec![vec![file("f", ""), file("x", "")], vec![file(".wh..wh.x", "")]],
        "f file | x file",
    );
}

fn forms(group: &mut Group) {
    let tree = "g file | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file";
    group.stack("whiteout-with-payload", over(vec![file(".wh.f", "payload of a whiteout")]), tree);
    group.stack("whiteout-that-is-a-directory", over(vec![dir(".wh.f/")]), tree);
    group.stack("whiteout-that-is-a-symlink", over(vec![symlink(".wh.f", "/etc/passwd")]), tree);
    group.stack("whiteout-that-is-a-hard-link", over(vec![hard_link(".wh.f", "nowhere")]), tree);
    group.stack("whiteout-that-is-a-fifo", over(vec![entry(b'6', ".wh.f")]), tree);
    group.stack("whiteout-that-is-a-device", over(vec![entry(b'3', ".wh.f").device(1, 3)]), tree);
    group.stack(
        "whiteout-with-attributes",
        over(vec![
            file(".wh.f", "").mode(0o7777).owner(1, 2).xattr("user.x", "y").xattr("security.selinux", "z"),
        ]),
        tree,
    );
    group.stack(
        "opaque-with-payload",
        over(vec![file("d/.wh..wh..opq", "payload")]),
        "f file | g file | l link | p fifo | d dir",
    );
    group.stack(
        "opaque-that-is-a-directory",
        over(vec![dir("d/.wh..wh..opq/")]),
        "f file | g file | l link | p fifo | d dir",
    );
}

/// On disk whiteouts are devices 0:0 and xattrs: no layer may bring those itself.
fn poses(group: &mut Group) {
    let whole = "f file | g file | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file";
    group.stack_but(
        "a-device-0-0-is-no-whiteout",
        over(vec![
            entry(b'3', "f").device(0, 0),
            entry(b'3', "d").device(0, 0),
            entry(b'3', "new").device(0, 0),
        ]),
        whole,
        |case| case.drops("whiteout_devices=3"),
    );
    group.stack_but(
        "a-block-device-0-0-is-a-block-device",
        over(vec![entry(b'4', "b").device(0, 0)]),
        format!("{whole} | b block dev=0:0"),
        |case| case.drops_rootless("devices=1", "devices=1"),
    );
    for (name, value) in [
        ("opaque", "y"),
        ("opaque", "x"),
        ("whiteouts", "y"),
        ("redirect", "/f"),
        ("origin", ""),
        ("impure", "y"),
        ("nlink", "U+1"),
        ("upper", "x"),
        ("uuid", "x"),
    ] {
        let case: &'static str = Box::leak(
            format!("overlay-xattr-{name}-{}-on-a-directory", if value.is_empty() { "empty" } else { "set" })
                .into_boxed_str(),
        );
        if value == "x" && name == "opaque" {
            continue;
        }
        group.stack_but(
            case,
            over(vec![
                dir("d/")
                    .xattr(&format!("trusted.overlay.{name}"), value)
                    .xattr(&format!("user.overlay.{name}"), value)
                    .xattr("user.kept", "k"),
            ]),
            "f file | g file | l link | p fifo | d dir x:user.kept=k | d/f file | d/g file | d/e dir | d/e/f file",
            |case| case.drops("foreign_xattrs=2"),
        );
    }
    group.stack_but(
        "overlay-xattr-whiteout-on-a-file",
        // Since kernel 6.7 a whiteout may be an empty file with this xattr, in a directory whose opaque mark is "x".
        over(vec![
            dir("d/").xattr("trusted.overlay.opaque", "x").xattr("user.overlay.opaque", "x"),
            file("d/f", "").xattr("trusted.overlay.whiteout", "").xattr("user.overlay.whiteout", ""),
        ]),
        "f file | g file | l link | p fifo | d dir | d/f file size=0 | d/g file | d/e dir | d/e/f file",
        |case| case.drops("foreign_xattrs=4"),
    );
    group.stack_but(
        "overlay-xattr-metacopy-on-a-file",
        over(vec![
            file("g", "")
                .xattr("trusted.overlay.metacopy", "")
                .xattr("user.overlay.metacopy", "")
                .xattr("trusted.overlay.redirect", "/f")
                .xattr("user.overlay.redirect", "/f"),
        ]),
        "f file =f | g file size=0 | l link | p fifo | d dir | d/f file | d/g file | d/e dir | d/e/f file",
        |case| case.drops("foreign_xattrs=4"),
    );
    group.stack_but(
        "overlay-xattr-escaped",
        // Within an overlay these are what a nested one would read.
        over(vec![
            dir("d/").xattr("trusted.overlay.overlay.opaque", "y").xattr("user.overlay.overlay.opaque", "y"),
        ]),
        whole,
        |case| case.drops("foreign_xattrs=2"),
    );
    group.tree_but(
        "overlay-xattr-on-a-symlink",
        vec![symlink("l", "x").xattr("trusted.overlay.redirect", "/etc"), file("f", "x")],
        "l link =x | f file =x",
        |case| case.drops("foreign_xattrs=1"),
    );
    group.stack_but(
        "overlay-xattr-on-the-root",
        over(vec![dir("./").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.opaque", "y")]),
        whole,
        |case| case.drops("foreign_xattrs=2"),
    );
    group.tree(
        "xattr-names-close-to-overlay-s",
        vec![file("f", "").xattr("user.overlay", "x").xattr("user.overlayfs.opaque", "y")],
        "f file x:user.overlay=x x:user.overlayfs.opaque=y",
    );
}

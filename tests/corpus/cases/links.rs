//! Hard links: to anything that is not a directory, and to what is not there.

use crate::case::Group;
use crate::tarball::*;

pub(crate) fn add(group: &mut Group) {
    group.tree(
        "hard-link-to-a-file",
        vec![
            file("f", "x").mode(0o4711).mtime(3),
            hard_link("d/h", "f"),
            hard_link("i", "/f"),
            hard_link("j", "./d//h"),
        ],
        "f file =x mode=4711 mtime=3 names=4 same=d/h | d/h file | i file same=f | j file same=f",
    );
    group.tree(
        "hard-link-to-a-symlink",
        vec![symlink("l", "/no/where").mtime(7), hard_link("h", "l")],
        "l link =/no/where same=h names=2 mtime=7 | h link =/no/where",
    );
    group.tree("hard-link-to-a-fifo", vec![entry(b'6', "p"), hard_link("h", "p")], "p fifo same=h | h fifo");
    group.tree_but(
        "hard-link-to-a-device",
        vec![entry(b'3', "c").device(1, 3), hard_link("h", "c"), hard_link("i", "h"), file("after", "x")],
        "c char dev=1:3 same=h | h char dev=1:3 | i char same=c | after file =x",
        |case| case.drops_rootless("devices=3", "devices=3"),
    );
    group.tree_but(
        "hard-link-to-a-device-by-another-way",
        vec![
            dir("dev/"),
            entry(b'4', "dev/disk").device(8, 1),
            symlink("alias", "dev"),
            hard_link("h", "alias/disk"),
            hard_link("dev/disk", "./dev/disk"),
        ],
        "dev dir | dev/disk block dev=8:1 same=h | h block | alias link =dev",
        |case| case.drops_rootless("devices=3", "devices=3"),
    );
    group.tree_but(
        "hard-link-to-a-whiteout-device",
        vec![entry(b'3', "c").device(0, 0), hard_link("h", "c"), file("after", "x")],
        "after file =x",
        |case| case.drops("whiteout_devices=2"),
    );
    group.tree_but(
        "hard-link-to-a-file-that-was-a-device",
        vec![entry(b'3', "c").device(1, 3), file("c", "x"), hard_link("h", "c")],
        "c file =x same=h | h file",
        |case| case.drops_rootless("devices=1", "devices=1"),
    );
    group.tree(
        "hard-link-keeps-what-is-replaced-later",
        vec![file("f", "old"), hard_link("kept", "f"), file("f", "new")],
        "f file =new names=1 | kept file =old",
    );
    group.tree(
        "hard-link-in-place-of-a-file-a-link-and-a-directory",
        vec![
            file("f", "x"),
            file("a", "old"),
            hard_link("a", "f"),
            symlink("b", "old"),
            hard_link("b", "f"),
            dir("c/"),
            file("c/old", ""),
            hard_link("c", "f"),
        ],
        "f file =x names=4 same=a | a file | b file same=f | c file same=f",
    );
    group.tree(
        "hard-link-twice-and-to-itself",
        vec![
            file("f", "x"),
            hard_link("h", "f"),
            hard_link("h", "f"),
            hard_link("f", "f"),
            hard_link("f", "h"),
        ],
        "f file =x names=2 same=h | h file",
    );
    group.tree(
        "hard-link-through-a-symlink-of-the-layer",
        vec![dir("usr/lib/"), symlink("lib", "usr/lib"), file("lib/x", "x"), hard_link("h", "lib/x"), symlink("abs", "/usr"), hard_link("i", "abs/lib/x")],
        "usr/lib dir | usr/lib/x file =x same=h | h file | i file same=h | lib link =usr/lib | abs link =/usr",
    );
    group.stack(
        "hard-links-of-which-a-layer-hides-one",
        vec![
            vec![file("f", "x"), hard_link("g", "f"), hard_link("h", "f")],
            vec![file(".wh.f", ""), file("g", "other")],
        ],
        "h file =x | g file =other",
    );
    group.stack(
        "hard-links-of-a-layer-replaced-together",
        vec![vec![file("f", "old"), hard_link("g", "f")], vec![file("f", "new"), hard_link("g", "f")]],
        "f file =new same=g | g file",
    );
    let many: Vec<Entry> = std::iter::once(file("f", "x"))
        .chain((0..2000).map(|number| hard_link(format!("h{number}"), "f")))
        .collect();
    let tree: Vec<String> = (0..2000).map(|number| format!("h{number} file")).collect();
    group.tree("hard-links-two-thousand", many, tree.join("|") + "| f file =x names=2001 same=h7");

    group.refused(
        "hard-link-to-nothing",
        vec![hard_link("h", "nowhere")],
        &["\"h\"", "\"nowhere\" is not in this layer"],
    );
    group.refused(
        "hard-link-to-nothing-in-no-directory",
        vec![hard_link("h", "no/where")],
        &["not in this layer"],
    );
    group.refused("hard-link-to-itself-alone", vec![hard_link("h", "h")], &["not in this layer"]);
    group.refused(
        "hard-link-to-what-comes-later",
        vec![hard_link("h", "f"), file("f", "x")],
        &["not in this layer"],
    );
    group.refused(
        "hard-link-to-a-directory",
        vec![dir("d/"), hard_link("h", "d")],
        &["no hard link can lead"],
    );
    group.refused("hard-link-to-the-root", vec![hard_link("h", "/")], &["no hard link can lead"]);
    group.refused(
        "hard-link-into-what-it-replaces",
        vec![dir("d/"), file("d/f", "x"), hard_link("d", "d/f")],
        &["not in this layer"],
    );
    group.refused(
        "hard-link-to-a-removed-name",
        vec![file(".wh.w", ""), hard_link("x", "w")],
        &["removed name"],
    );
    group.made_refused(
        "hard-link-across-layers",
        |_| vec![crate::case::layer([file("below", "x")]), crate::case::layer([hard_link("h", "below")])],
        &["\"below\" is not in this layer", "across layers"],
    );
    group.refused("hard-link-without-target", vec![hard_link("h", "")], &["no hard link can lead"]);
}

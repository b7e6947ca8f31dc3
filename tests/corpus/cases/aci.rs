//! What is of ACIs alone: how their archives are laid out, what whitelists leave out, what names mean.

use std::sync::Arc;

use keelblock_actors::image::appc::{AciView, PathWhitelist};
use keelblock_actors::image::plan::Compression::None as Plain;

use crate::aci::{image_id, layer_of};
use crate::case::{Group, Layer};
use crate::tarball::*;

pub(crate) fn add(group: &mut Group) {
    layout(group);
    twice(group);
    links(group);
    names(group);
    whitelists(group);
}

/// An ACI of these entries as they are.
fn aci(entries: &[Entry]) -> Layer {
    let tar = Tarball::of(entries.to_vec()).end();
    layer_of(AciView::whole(image_id(&tar)), tar, Plain)
}

/// The same with a manifest before them.
fn with_manifest(entries: &[Entry]) -> Layer {
    aci(&[&[manifest()], entries].concat())
}

pub(super) fn manifest() -> Entry {
    file("manifest", r#"{"acKind":"ImageManifest","acVersion":"0.8.11","name":"example.com/a"}"#)
}

fn shown(entries: &[Entry], whitelists: &[&[&str]]) -> Layer {
    let tar = Tarball::of([&[manifest()], entries].concat()).end();
    let whitelists = whitelists.iter().filter_map(|paths| PathWhitelist::new(paths.iter().copied()));
    let view = AciView { image_id: image_id(&tar), whitelists: whitelists.map(Arc::new).collect() };
    layer_of(view, tar, Plain)
}

fn layout(group: &mut Group) {
    let mut is = |name, entries: Vec<Entry>, tree: &str| group.made(name, move |_| vec![aci(&entries)], tree);
    let root = || dir("rootfs/").mode(0o711).mtime(7).xattr("user.a", "b");
    is(
        "aci-of-a-manifest-and-a-rootfs",
        vec![manifest(), root(), file("rootfs/f", "x"), file("rootfs/d/g", "y")],
        ". dir mode=711 mtime=7 x:user.a=b | f file =x | d dir | d/g file =y",
    );
    is("aci-with-an-empty-rootfs", vec![manifest(), root()], ". dir mode=711 mtime=7 x:user.a=b");
    is(
        "aci-whose-manifest-comes-last",
        vec![file("rootfs/f", "x"), manifest()],
        ". dir mode=755 | f file =x",
    );
    is(
        "aci-whose-rootfs-is-only-implied",
        vec![manifest(), file("rootfs/f", "x")],
        ". dir mode=755 mtime=0 | f file =x",
    );
    is(
        "aci-whose-rootfs-comes-after-what-is-in-it",
        vec![manifest(), file("rootfs/f", "x"), root()],
        ". dir mode=711 mtime=7 x:user.a=b | f file =x",
    );
    is(
        "aci-as-tar-makes-it-of-a-dot",
        vec![
            dir("./").mode(0o700),
            file("./manifest", "{}"),
            dir("./rootfs/"),
            file("./rootfs/f", "x"),
            hard_link("./rootfs/g", "./rootfs/f"),
        ],
        ". dir mode=755 mtime=1000000 | f file =x same=g | g file",
    );
    is(
        "aci-with-names-like-its-own-inside",
        vec![
            manifest(),
            file("rootfs/manifest", "x"),
            dir("rootfs/rootfs/"),
            file("rootfs/rootfs/rootfs", "y"),
        ],
        "manifest file =x | rootfs dir | rootfs/rootfs file =y",
    );
    is(
        "aci-whose-manifest-is-sparse-or-large",
        vec![file("manifest", vec![b' '; 3 << 20]), file("rootfs/f", "x")],
        "f file =x",
    );
    let mut no = |name, entries: Vec<Entry>, words: &[&str]| {
        let words = [&["is no valid ACI"], words].concat();
        group.made_refused(name, move |_| vec![aci(&entries)], &words);
    };
    let top = "at the top of an archive are manifest and rootfs and nothing else";
    let with =
        |entries: Vec<Entry>| [vec![manifest(), dir("rootfs/"), file("rootfs/f", "x")], entries].concat();
    no("aci-with-a-third-file", with(vec![file("README", "x")]), &["\"README\"", top]);
    no(
        "aci-with-a-third-file-first",
        [vec![file("README", "x")], with(vec![])].concat(),
        &["\"README\"", top],
    );
    no("aci-with-a-directory-beside", with(vec![dir("etc/")]), &["\"etc/\"", top]);
    no("aci-with-a-file-below-another-top", with(vec![file("etc/passwd", "x")]), &["\"etc/passwd\"", top]);
    no("aci-with-rootfsx", with(vec![file("rootfsx", "x")]), &["\"rootfsx\"", top]);
    no("aci-with-something-in-rootfsx", with(vec![file("rootfsx/f", "x")]), &["\"rootfsx/f\"", top]);
    no("aci-with-manifest-in-capitals", with(vec![file("MANIFEST", "x")]), &["\"MANIFEST\"", top]);
    no("aci-with-a-whiteout-at-its-top", with(vec![file(".wh.rootfs", "")]), &["\".wh.rootfs\"", top]);
    no("aci-with-a-layer-of-docker-in-it", vec![dir("etc/"), file("etc/f", "x")], &["\"etc/\"", top]);
    no("aci-without-a-manifest", vec![dir("rootfs/"), file("rootfs/f", "x")], &["an archive has a manifest"]);
    no("aci-without-a-rootfs", vec![manifest()], &["an archive has a rootfs"]);
    no("aci-without-anything", vec![], &["an archive has a manifest"]);
    let rule = "manifest is a regular file";
    let odd = |manifest: Entry| vec![manifest, file("rootfs/f", "x")];
    no("aci-whose-manifest-is-a-symlink", odd(symlink("manifest", "/etc/passwd")), &["\"manifest\"", rule]);
    no("aci-whose-manifest-is-a-hard-link", odd(hard_link("manifest", "rootfs/f")), &["\"manifest\"", rule]);
    no("aci-whose-manifest-is-a-directory", odd(dir("manifest/")), &["\"manifest/\"", rule]);
    no("aci-whose-manifest-is-a-fifo", odd(entry(b'6', "manifest")), &["\"manifest\"", rule]);
    no("aci-whose-manifest-is-a-device", odd(entry(b'3', "manifest").device(1, 3)), &["\"manifest\"", rule]);
    no("aci-with-something-in-its-manifest", odd(file("manifest/f", "x")), &["\"manifest/f\"", rule]);
    let rule = "is a directory";
    let odd = |rootfs: Entry| vec![manifest(), rootfs, file("rootfs/f", "x")];
    no("aci-whose-rootfs-is-a-symlink", odd(symlink("rootfs", "/")), &["\"rootfs\"", rule]);
    no("aci-whose-rootfs-is-a-file", odd(file("rootfs", "x")), &["\"rootfs\"", rule]);
    no("aci-whose-rootfs-is-a-hard-link", odd(hard_link("rootfs", "manifest")), &["\"rootfs\"", rule]);
    no("aci-whose-rootfs-is-a-device", odd(entry(b'4', "rootfs").device(8, 0)), &["\"rootfs\"", rule]);
    no(
        "aci-whose-rootfs-becomes-a-symlink",
        vec![manifest(), file("rootfs/f", "x"), symlink("rootfs", "/")],
        &["\"rootfs\"", rule],
    );
    no("aci-whose-own-directory-is-a-symlink", odd(symlink(".", "/")), &["\".\"", rule]);
    let rule = "paths in an archive are relative";
    no("aci-with-an-absolute-path", with(vec![file("/rootfs/g", "x")]), &["\"/rootfs/g\"", rule]);
    no(
        "aci-with-an-absolute-manifest",
        vec![file("/manifest", "{}"), file("rootfs/f", "x")],
        &["\"/manifest\"", rule],
    );
    for (name, path) in [
        ("aci-up-from-rootfs", "rootfs/../x"),
        ("aci-up-from-rootfs-and-back", "rootfs/../rootfs/x"),
        ("aci-up-to-rootfs", "../rootfs/x"),
        ("aci-up-beside-its-manifest", "manifest/../rootfs/x"),
        ("aci-up-out-of-all", "rootfs/../../../../canary"),
    ] {
        let entries = with(vec![file(path, "dead")]);
        group.made_refused(name, move |_| vec![aci(&entries)], &["upwards", path]);
    }
}

fn twice(group: &mut Group) {
    let mut no = |name, entries: Vec<Entry>, named: &str| {
        group.made_refused(
            name,
            move |_| vec![with_manifest(&entries)],
            &["is no valid ACI", "no path comes twice", named],
        );
    };
    let f = || file("rootfs/f", "x");
    no("aci-with-two-manifests", vec![f(), manifest()], "\"manifest\"");
    no("aci-with-a-second-manifest-by-another-name", vec![f(), file("./manifest", "{}")], "\"./manifest\"");
    no("aci-with-two-rootfses", vec![dir("rootfs/"), f(), dir("rootfs")], "\"rootfs");
    no("aci-with-a-file-twice", vec![f(), file("rootfs/f", "y")], "\"rootfs/f\"");
    no("aci-with-a-file-twice-the-same", vec![f(), f()], "\"rootfs/f\"");
    no("aci-with-a-file-twice-by-another-name", vec![f(), file("./rootfs//f", "y")], "\"./rootfs//f\"");
    no("aci-with-a-directory-twice", vec![dir("rootfs/d/"), dir("rootfs/d/")], "\"rootfs/d/\"");
    no("aci-with-a-directory-in-place-of-a-file", vec![f(), dir("rootfs/f/")], "\"rootfs/f/\"");
    no("aci-with-itself-twice", vec![dir("./"), f(), dir(".")], "\".\"");
    // By other links to the same place it is no second entry of its path.
    group.made(
        "aci-with-a-file-twice-through-a-symlink",
        |_| {
            vec![with_manifest(&[
                dir("rootfs/d/"),
                symlink("rootfs/s", "d"),
                file("rootfs/d/f", "old"),
                file("rootfs/s/f", "new"),
            ])]
        },
        "d dir | s link =d | d/f file =new",
    );
}

fn links(group: &mut Group) {
    group.made(
        "aci-hard-links-are-from-its-top",
        |_| {
            vec![with_manifest(&[
                file("rootfs/a/f", "x"),
                hard_link("rootfs/b", "rootfs/a/f"),
                hard_link("rootfs/c", "/rootfs/./b"),
            ])]
        },
        "a/f file =x same=b names=3 | b file same=c | c file",
    );
    group.made(
        "aci-symlinks-are-from-its-rootfs",
        |_| {
            vec![with_manifest(&[
                symlink("rootfs/l", "/rootfs/f"),
                symlink("rootfs/up", "../../../manifest"),
                symlink("rootfs/d", "/e"),
                file("rootfs/d/f", "x"),
            ])]
        },
        "l link =/rootfs/f | up link =../../../manifest | d link =/e | e/f file =x",
    );
    for (name, target) in [
        ("aci-hard-link-to-its-manifest", "manifest"),
        ("aci-hard-link-without-rootfs", "f"),
        ("aci-hard-link-to-an-absolute-path", "/etc/passwd"),
        ("aci-hard-link-to-rootfsx", "rootfsx/f"),
        ("aci-hard-link-to-nothing", ""),
    ] {
        let entries = vec![file("rootfs/f", "x"), hard_link("rootfs/h", target)];
        let words = ["\"rootfs/h\"", "a hard link leads to a file below rootfs/"];
        group.made_refused(name, move |_| vec![with_manifest(&entries)], &words);
    }
    for (name, target, words) in [
        ("aci-hard-link-to-its-rootfs", "rootfs", "directory"),
        ("aci-hard-link-to-its-rootfs-with-a-slash", "rootfs/", "directory"),
        ("aci-hard-link-up-from-rootfs", "rootfs/../manifest", "upwards"),
        ("aci-hard-link-to-what-is-not-there", "rootfs/g", "is not in this layer"),
    ] {
        let entries = vec![file("rootfs/f", "x"), hard_link("rootfs/h", target)];
        group.made_refused(name, move |_| vec![with_manifest(&entries)], &["\"rootfs/h\"", words]);
    }
}

/// Nothing that an ACI says removes anything of what it depends on.
fn names(group: &mut Group) {
    let below = || {
        vec![
            file("rootfs/d/f", "below"),
            file("rootfs/g", "below"),
            dir("rootfs/e/"),
            file("rootfs/e/h", "below"),
        ]
    };
    let mut over = |name, above: Vec<Entry>, tree: &str, drops: &'static str| {
        let layers = move |_: &_| vec![with_manifest(&below()), with_manifest(&above)];
        group.made_but(name, layers, tree, |case| case.drops(drops));
    };
    over(
        "aci-whiteouts-are-files",
        vec![
            file("rootfs/.wh.g", "x"),
            file("rootfs/d/.wh.f", ""),
            dir("rootfs/.wh.d/"),
            symlink("rootfs/.wh.s", "g"),
        ],
        "d/f file =below | d/.wh.f file = | g file =below | .wh.g file =x | .wh.d dir | .wh.s link =g | e dir | e/h file =below",
        "",
    );
    over(
        "aci-opaque-marks-are-files",
        vec![
            file("rootfs/d/.wh..wh..opq", ""),
            file("rootfs/.wh..wh..opq", "all"),
            file("rootfs/.wh..wh.aufs", "a"),
        ],
        "d/f file =below | d/.wh..wh..opq file = | .wh..wh..opq file =all | .wh..wh.aufs file =a | g file =below | e dir | e/h file =below",
        "",
    );
    over(
        "aci-bad-whiteouts-are-files",
        vec![
            file("rootfs/.wh.", "1"),
            file("rootfs/.wh..", "2"),
            file("rootfs/.wh.d/x", "3"),
            hard_link("rootfs/h", "rootfs/.wh."),
        ],
        ".wh. file =1 same=h | h file | .wh.. file =2 | .wh.d/x file =3 | d/f file =below | g file =below | e dir | e/h file =below",
        "",
    );
    over(
        "aci-whiteout-devices-are-not-made",
        vec![
            entry(b'3', "rootfs/g").device(0, 0),
            entry(b'3', "rootfs/d/f").device(0, 0),
            hard_link("rootfs/e/h", "rootfs/g"),
        ],
        "d/f file =below | g file =below | e dir | e/h file =below",
        "whiteout_devices=3",
    );
    over(
        "aci-marks-of-overlayfs-are-not-set",
        vec![
            dir("rootfs/d/").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.opaque", "y"),
            dir("rootfs/").xattr("user.overlay.opaque", "y"),
            file("rootfs/g", "").xattr("user.overlay.whiteout", "").xattr("trusted.overlay.metacopy", ""),
            dir("rootfs/e/").xattr("trusted.overlay.redirect", "/d"),
        ],
        "d/f file =below | g file = | e dir | e/h file =below",
        "foreign_xattrs=6",
    );
    over(
        "aci-directory-that-replaces-a-file-hides-nothing",
        vec![symlink("rootfs/s", "."), file("rootfs/e", "x"), dir("rootfs/s/e/").mode(0o700)],
        "d/f file =below | g file =below | e dir mode=700 | e/h file =below | s link =.",
        "",
    );
}

fn whitelists(group: &mut Group) {
    let entries = || {
        vec![
            dir("rootfs/").mode(0o711),
            dir("rootfs/bin/").mode(0o750),
            file("rootfs/bin/app", "app"),
            file("rootfs/bin/tool", "tool"),
            dir("rootfs/etc/"),
            file("rootfs/etc/conf", "conf"),
            symlink("rootfs/lib", "bin"),
            entry(b'6', "rootfs/pipe"),
        ]
    };
    let mut is = |name, entries: Vec<Entry>, lists: &'static [&'static [&'static str]], tree: &str| {
        group.made(name, move |_| vec![shown(&entries, lists)], tree);
    };
    is(
        "whitelist-of-a-file",
        entries(),
        &[&["/bin/app"]],
        ". dir mode=711 | bin dir mode=750 | bin/app file =app names=1",
    );
    is(
        "whitelist-of-a-directory-is-not-of-what-is-in-it",
        entries(),
        &[&["/etc"]],
        ". dir mode=711 | etc dir",
    );
    is("whitelist-of-other-kinds", entries(), &[&["lib", "/pipe"]], "lib link =bin | pipe fifo");
    is("whitelist-of-what-is-not-there", entries(), &[&["/nothing"]], ". dir mode=711");
    is(
        "whitelists-all-let-through",
        entries(),
        &[&["/bin/app", "/etc/conf"], &["/bin/tool", "/etc/conf"]],
        "bin dir mode=750 | etc/conf file =conf",
    );
    is(
        "whitelist-of-none-is-of-all",
        entries(),
        &[&[]],
        "bin dir | bin/app file =app | bin/tool file =tool | etc dir | etc/conf file =conf | lib link =bin | pipe fifo",
    );
    let linked = || {
        vec![
            file("rootfs/first", "content").mode(0o4755).mtime(9),
            hard_link("rootfs/second", "rootfs/first"),
            hard_link("rootfs/d/third", "rootfs/second"),
            file("rootfs/other", "other"),
        ]
    };
    is(
        "whitelist-of-a-hard-link-alone",
        linked(),
        &[&["/second"]],
        "second file =content mode=4755 mtime=9 names=1",
    );
    is(
        "whitelist-of-a-hard-link-to-a-hard-link",
        linked(),
        &[&["/d/third"]],
        "d/third file =content mode=4755 names=1",
    );
    is(
        "whitelist-of-two-hard-links",
        linked(),
        &[&["/d/third", "/second"]],
        "second file =content same=d/third names=2 | d/third file",
    );
    is("whitelist-of-a-file-without-its-links", linked(), &[&["/first"]], "first file =content names=1");
    is(
        "whitelist-of-links-to-other-kinds",
        vec![
            symlink("rootfs/l", "/x"),
            entry(b'6', "rootfs/p"),
            hard_link("rootfs/m", "rootfs/l"),
            hard_link("rootfs/q", "rootfs/p"),
        ],
        &[&["/m", "/q"]],
        "m link =/x names=1 | q fifo names=1",
    );
    is(
        "whitelist-of-a-link-to-a-large-file",
        vec![file("rootfs/large", vec![7; 300_000]), hard_link("rootfs/l", "rootfs/large")],
        &[&["/l"]],
        "l file size=300000 names=1",
    );
    is(
        "whitelist-without-the-symlink-on-the-way",
        vec![symlink("rootfs/s", "/elsewhere"), file("rootfs/s/f", "x")],
        &[&["/s/f"]],
        "s dir | s/f file =x",
    );
    is(
        "whitelist-with-the-symlink-on-the-way",
        vec![symlink("rootfs/s", "/elsewhere"), file("rootfs/s/f", "x")],
        &[&["/s/f", "/s"]],
        "s link =/elsewhere | elsewhere/f file =x",
    );
    is(
        "whitelist-of-two-thousand-links-to-files-left-out",
        (0..1000)
            .flat_map(|at| {
                [
                    file(format!("rootfs/f{at}"), "x"),
                    hard_link(format!("rootfs/g{at}"), format!("rootfs/f{at}")),
                ]
            })
            .collect(),
        &[&["/g7", "/g999"]],
        "g7 file =x names=1 | g999 file =x names=1",
    );
    group.made_refused(
        "whitelist-and-a-bad-entry-that-is-left-out",
        |_| {
            vec![shown(
                &[file("rootfs/f", "x"), file("rootfs/bad", "x").raw(108, base256(u32::MAX.into(), 8))],
                &[&["/f"]],
            )]
        },
        &["\"rootfs/bad\"", "out of range"],
    );
    group.made_refused(
        "whitelist-and-a-link-out-that-is-left-out",
        |_| vec![shown(&[file("rootfs/f", "x"), hard_link("rootfs/h", "manifest")], &[&["/f"]])],
        &["\"rootfs/h\"", "below rootfs/"],
    );
    group.made(
        "whitelist-over-another-image",
        |_| {
            vec![
                with_manifest(&[file("rootfs/f", "below"), file("rootfs/g", "below")]),
                shown(&[file("rootfs/f", "above"), file("rootfs/g", "above")], &[&["/g"]]),
            ]
        },
        "f file =below | g file =above",
    );
}

//! Attempts to reach what is not the layer's. The canaries of `ground` lie where these aim.

use std::os::unix::ffi::OsStrExt;

use keelblock_actors::container::BackendName;

use crate::case::{Case, Group, Layer, layer};
use crate::ground::Ground;
use crate::tarball::*;

/// Where attacks aim: absolute paths, and as many `..` as lead to the root from anywhere.
fn aims(ground: &Ground) -> Vec<(&'static str, Vec<u8>)> {
    let absolute = |path: &std::path::Path| path.as_os_str().as_bytes().to_vec();
    let upwards =
        |path: &std::path::Path| [&b"../".repeat(40)[..], &path.as_os_str().as_bytes()[1..]].concat();
    let outside = ground.outside();
    vec![
        ("outside", absolute(&outside)),
        ("outside-by-dotdot", upwards(&outside)),
        ("far", absolute(ground.far())),
        ("far-by-dotdot", upwards(ground.far())),
        ("store", absolute(&ground.store())),
        ("from-staging", b"../../../../outside".to_vec()),
        ("proc-root", [b"/proc/self/root", outside.as_os_str().as_bytes()].concat()),
        ("proc-cwd", b"/proc/self/cwd".to_vec()),
        ("proc-fd", b"/proc/self/fd/3".to_vec()),
        ("thread-root", b"/proc/thread-self/root".to_vec()),
    ]
}

/// Every aim in one layer: `entries` makes an attack of a name of its own and a target.
fn every_aim(entries: impl Fn(&str, &[u8]) -> Vec<Entry>) -> impl Fn(&Ground) -> Vec<Layer> {
    move |ground| {
        vec![layer(aims(ground).iter().flat_map(|(name, aim)| entries(name, aim)).collect::<Vec<_>>())]
    }
}

const AIMS: [&str; 10] = [
    "outside",
    "outside-by-dotdot",
    "far",
    "far-by-dotdot",
    "store",
    "from-staging",
    "proc-root",
    "proc-cwd",
    "proc-fd",
    "thread-root",
];

pub(crate) fn add(group: &mut Group) {
    upwards(group);
    symlinks(group);
    replaced(group);
    across(group);
    own_names(group);
    shapes(group);
}

fn upwards(group: &mut Group) {
    for (case, path) in [
        ("dotdot-first", "../canary"),
        ("dotdot-after-a-slash", "/../canary"),
        ("dotdot-in-the-middle", "a/../../canary"),
        ("dotdot-in-the-middle-that-stays-inside", "a/../b"),
        ("dotdot-last", "a/.."),
        ("dotdot-alone", ".."),
        ("dotdot-with-a-slash", "../"),
        ("dotdot-after-dots", "./.././../canary"),
        ("dotdot-many", "d/../../../../../../../../../../dev/shm/x"),
    ] {
        group.refused(case, vec![dir("a/"), file(path, "dead")], &["upwards"]);
        let leak = |suffix: &str| -> &'static str { Box::leak(format!("{case}-{suffix}").into_boxed_str()) };
        group.refused(leak("by-pax"), vec![dir("a/"), file("f", "dead").pax("path", path)], &["upwards"]);
        group.refused(leak("as-a-directory"), vec![dir("a/"), dir(path).mode(0o777)], &["upwards"]);
        group.refused(leak("as-a-hard-link-s-target"), vec![dir("a/"), hard_link("h", path)], &["upwards"]);
    }
    group.refused(
        "dotdot-by-gnu-long-name",
        vec![long_name("../../canary"), file("f", "dead").gnu()],
        &["upwards"],
    );
    group.refused(
        "dotdot-by-gnu-long-link",
        vec![long_link("../../canary"), hard_link("h", "f").gnu()],
        &["upwards"],
    );
    group.refused("dotdot-by-ustar-prefix", vec![file("canary", "dead").raw(345, b"../..")], &["upwards"]);
    group.refused("dotdot-as-a-whiteout", vec![file("../.wh.canary", "")], &["upwards"]);
    group.refused("dotdot-before-an-opaque-mark", vec![file("../.wh..wh..opq", "")], &["upwards"]);
    group.refused("dotdot-as-a-device", vec![entry(b'3', "../null").device(1, 3)], &["upwards"]);
    group.refused("dotdot-as-a-symlink-s-name", vec![symlink("../l", "x")], &["upwards"]);
    group.tree(
        "absolute-names-are-inside",
        vec![file("/etc/passwd", "x"), dir("//var//"), symlink("/l", "/etc"), hard_link("/h", "/etc/passwd")],
        "etc/passwd file =x same=h | var dir | l link =/etc | h file",
    );
}

fn symlinks(group: &mut Group) {
    let links = |kind: &str| AIMS.map(|aim| format!("{aim} {kind}")).join(" | ");
    // The links are followed as in a chroot: what they lead to is made inside.
    group.made_but(
        "files-and-directories-through-symlinks",
        every_aim(|name, aim| {
            vec![
                symlink(name, aim),
                file(format!("{name}/canary"), "dead"),
                dir(format!("{name}/sub/")).mode(0o777),
                file(format!("{name}/sub/canary"), "dead"),
                file(format!("{name}/.wh.a"), ""),
                file(format!("{name}/.wh..wh..opq"), ""),
                entry(b'6', format!("{name}/b")),
            ]
        }),
        "",
        Case::some_tree,
    );
    group.made(
        "symlinks-alone-lead-anywhere",
        every_aim(|name, aim| vec![symlink(name, aim).mode(0o777)]),
        links("link"),
    );
    group.made_but(
        "attributes-of-symlinks-are-not-those-of-what-they-lead-to",
        every_aim(|name, aim| {
            vec![symlink(name, aim).mode(0o777).owner(1, 2).mtime(3).xattr("trusted.t", "x")]
        }),
        AIMS.map(|aim| {
            format!("root: {aim} link mtime=3 own=1:2 x:trusted.t=x\nuser: {aim} link mtime=3 own=1:2")
        })
        .join("\n"),
        |case| case.drops_rootless("owners=10 xattrs=10", "xattrs=10"),
    );
    group.made(
        "a-directory-in-place-of-a-symlink",
        every_aim(|name, aim| {
            vec![symlink(name, aim), dir(name).mode(0o700), file(format!("{name}/canary"), "dead")]
        }),
        AIMS.map(|aim| format!("{aim} dir mode=700 | {aim}/canary file =dead")).join(" | "),
    );
    group.made(
        "a-file-in-place-of-a-symlink",
        every_aim(|name, aim| {
            vec![symlink(name, [aim, b"/canary"].concat()), file(name, "dead").mode(0o777)]
        }),
        AIMS.map(|aim| format!("{aim} file =dead mode=777")).join(" | "),
    );
    group.made(
        "a-fifo-in-place-of-a-symlink",
        every_aim(|name, aim| vec![symlink(name, [aim, b"/canary"].concat()), entry(b'6', name).mode(0o777)]),
        AIMS.map(|aim| format!("{aim} fifo mode=777")).join(" | "),
    );
    group.made(
        "a-whiteout-beside-a-symlink-of-that-name",
        every_aim(|name, aim| vec![symlink(name, aim), file(format!(".wh.{name}"), "")]),
        links("link"),
    );
    for (case, path) in
        [("stolen-by-a-hard-link", "canary"), ("stolen-by-a-hard-link-from-below", "sub/canary")]
    {
        group.made_refused(
            case,
            every_aim(move |name, aim| {
                vec![symlink(name, aim), hard_link(format!("{name}-stolen"), format!("{name}/{path}"))]
            }),
            &["not in this layer"],
        );
    }
    group.made(
        "a-hard-link-to-a-symlink-is-the-symlink",
        every_aim(|name, aim| {
            let canary = [aim, b"/canary"].concat();
            vec![symlink(name, canary), hard_link(format!("{name}-h"), name), file(name, "replaced")]
        }),
        AIMS.map(|aim| format!("{aim} file =replaced | {aim}-h link")).join(" | "),
    );
    group.made_but(
        "symlinks-in-a-chain",
        |ground| {
            let mut entries = vec![symlink("l0", ground.outside().as_os_str().as_bytes())];
            entries.extend((1..20).map(|number| symlink(format!("l{number}"), format!("l{}", number - 1))));
            entries.push(file("l19/canary", "dead"));
            vec![layer(entries)]
        },
        "",
        crate::case::Case::some_tree,
    );
    group.refused(
        "symlinks-in-a-circle",
        vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")],
        &["symlinks"],
    );
    group.refused("a-symlink-to-itself", vec![symlink("a", "a"), file("a/x", "")], &["symlinks"]);
    group.refused("symlinks-that-grow", vec![symlink("a", "a/b"), file("a/x", "")], &["symlinks"]);
    let long: Vec<Entry> = std::iter::once(symlink("l0", "end"))
        .chain((1..60).map(|number| symlink(format!("l{number}"), format!("l{}", number - 1))))
        .chain([file("l59/x", "")])
        .collect();
    group.refused("more-symlinks-than-the-kernel-follows", long, &["symlinks"]);
    group.tree(
        "symlinks-to-what-is-yet-to-be-made",
        vec![
            symlink("dangling", "to/be/made"),
            file("dangling/f", "x"),
            symlink("up", "../../../up2"),
            file("up/g", "y"),
        ],
        "dangling link | to/be/made dir | to/be/made/f file =x | up link | up2/g file =y",
    );
    group.refused(
        "a-symlink-to-a-file-as-parent",
        vec![file("f", ""), symlink("l", "f"), file("l/x", "")],
        &["no directory"],
    );
}

fn replaced(group: &mut Group) {
    group.made(
        "a-parent-replaced-by-a-symlink",
        |ground| {
            let outside = ground.outside();
            let out = outside.as_os_str().as_bytes();
            vec![layer([
                dir("d/"),
                file("d/canary", "1"),
                // Whoever remembers `d` as a directory now writes through a link.
                symlink("d", out),
                hard_link("e", "d"),
                symlink("d", "inside"),
                file("d/canary", "2"),
                dir("d/").mode(0o700),
                file("d/canary", "3"),
            ])]
        },
        "d dir mode=700 | d/canary file =3 | e link | inside dir | inside/canary file =2",
    );
    group.made(
        "a-parent-of-a-parent-replaced",
        |ground| {
            let outside = ground.outside();
            vec![layer([
                dir("a/"),
                dir("a/sub/"),
                file("a/sub/f", "1"),
                file("a", "a file"),
                symlink("a", outside.as_os_str().as_bytes()),
                dir("a/"),
                file("a/sub/canary", "2"),
            ])]
        },
        "a dir | a/sub dir | a/sub/canary file =2",
    );
    group.made(
        "a-parent-moved-by-a-hard-link-to-a-symlink",
        |ground| {
            let outside = ground.outside();
            vec![layer([
                symlink("out", outside.as_os_str().as_bytes()),
                dir("d/"),
                file("d/f", "1"),
                hard_link("d", "out"),
                dir("d/").mode(0o711),
                file("d/canary", "2"),
            ])]
        },
        "out link | d dir mode=711 | d/canary file =2",
    );
    group.made(
        "times-of-a-directory-that-became-a-symlink",
        |ground| {
            let outside = ground.outside();
            vec![layer([
                dir("d/").mtime(5),
                dir("d/sub/").mtime(6),
                symlink("d", outside.as_os_str().as_bytes()).mtime(7),
            ])]
        },
        "d link mtime=7",
    );
    group.made(
        "a-default-acl-of-a-directory-that-became-a-symlink",
        |ground| {
            let outside = ground.outside();
            let acl = [
                &2u32.to_le_bytes()[..],
                &[
                    1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 0x20, 0, 5, 0, 255, 255,
                    255, 255,
                ],
            ]
            .concat();
            vec![layer([
                dir("d/").xattr("system.posix_acl_default", &acl),
                dir("d/sub/").xattr("system.posix_acl_default", &acl),
                symlink("d", outside.as_os_str().as_bytes()),
            ])]
        },
        "d link",
    );
}

fn across(group: &mut Group) {
    group.made(
        "a-symlink-below-a-directory-above",
        |ground| {
            let outside = ground.outside();
            let out = || symlink("d", outside.as_os_str().as_bytes());
            vec![
                layer([out(), file("f", "1")]),
                layer([dir("d/"), file("d/canary", "dead"), file("d/.wh.a", "")]),
            ]
        },
        "d dir | d/canary file =dead | f file",
    );
    group.made(
        "a-symlink-below-a-file-in-it-above",
        |ground| {
            let outside = ground.outside();
            let out = || symlink("d", outside.as_os_str().as_bytes());
            vec![layer([out(), file("f", "1")]), layer([file("d/canary", "dead")])]
        },
        "d dir | d/canary file =dead | f file",
    );
    group.made(
        "a-symlink-below-a-whiteout-in-it-above",
        |ground| {
            let outside = ground.outside();
            let out = || symlink("d", outside.as_os_str().as_bytes());
            vec![
                layer([out(), file("f", "1")]),
                layer([file("d/.wh.canary", ""), file("d/sub/.wh..wh..opq", "")]),
            ]
        },
        "d dir | d/sub dir | f file",
    );
    group.made(
        "a-directory-below-a-symlink-above-then-files",
        |ground| {
            let outside = ground.outside();
            let out = || symlink("d", outside.as_os_str().as_bytes());
            vec![
                layer([dir("d/"), file("d/canary", "1"), file("d/a", "1")]),
                layer([out()]),
                layer([file("d/canary", "dead"), file("d/.wh.b", "")]),
            ]
        },
        "d dir | d/canary file =dead",
    );
    group.made(
        "a-symlink-above-is-not-followed-into-the-layer-below",
        |ground| {
            let outside = ground.outside();
            vec![
                layer([dir("real/"), file("real/f", "1")]),
                layer([symlink("alias", "real"), symlink("out", outside.as_os_str().as_bytes())]),
                layer([file("alias/f", "2"), file("real/.wh.f", "")]),
            ]
        },
        "real dir | alias dir | alias/f file =2 | out link",
    );
}

fn own_names(group: &mut Group) {
    group.tree(
        "names-of-the-store-s-own-files",
        vec![
            file("layer.json", "{}"),
            file("times", "x"),
            dir("tree/"),
            file("tree/layer.json", "{}"),
            file("format", ""),
            file("lock", ""),
            dir("staging/"),
            dir("work/"),
            dir("upper/"),
            file(".keelblock-deep-1", "x"),
        ],
        "layer.json file | times file | tree dir | tree/layer.json file | format file | lock file | staging dir | work dir | upper dir | .keelblock-deep-1 file",
    );
    group.refused(
        "names-of-the-store-s-own-files-beside-the-tree",
        vec![file("../layer.json", "{}"), file("../times", "")],
        &["upwards"],
    );
    group.tree(
        "names-of-the-kernel-s-own-files",
        vec![
            dir("proc/"),
            file("proc/self", "x"),
            dir("sys/"),
            dir("dev/"),
            file("dev/null", "a file"),
            symlink("dev/fd", "/proc/self/fd"),
            symlink("dev/stdin", "/proc/self/fd/0"),
        ],
        "proc dir | proc/self file | sys dir | dev dir | dev/null file | dev/fd link | dev/stdin link",
    );
}

fn shapes(group: &mut Group) {
    group.tree(
        "setuid-setgid-and-sticky-on-everything",
        vec![
            file("f", "x").mode(0o7777),
            dir("d/").mode(0o7777),
            file("d/f", "x").mode(0o6755),
            entry(b'6', "p").mode(0o7666),
            symlink("l", "f").mode(0o7777),
            dir(".").mode(0o7755),
        ],
        "f file mode=7777 | d dir mode=7777 | d/f file mode=6755 | p fifo mode=7666 | l link mode=777 | . dir mode=7755",
    );
    group.tree_but(
        "setuid-files-of-others",
        vec![file("f", "x").mode(0o4755).owner(1000, 1000), file("g", "x").mode(0o2755).owner(0, 70_000)],
        "f file mode=4755 own=1000:1000 | g file mode=2755 own=0:70000",
        |case| case.drops_rootless("owners=2", "owners=1"),
    );
    group.tree_but(
        "device-nodes",
        vec![
            dir("dev/"),
            entry(b'3', "dev/mem").device(1, 1).mode(0o666),
            entry(b'4', "dev/sda").device(8, 0).mode(0o666).owner(0, 6),
            entry(b'3', "dev/kmsg").device(1, 11),
            file("dev/after", "x"),
        ],
        "dev dir | dev/mem char dev=1:1 mode=666 | dev/sda block dev=8:0 mode=666 own=0:6 | dev/kmsg char | dev/after file =x",
        |case| case.drops_rootless("devices=3", "devices=3"),
    );
    group.tree(
        "directories-that-forbid-everything",
        vec![
            dir("d/").mode(0),
            file("d/f", "f"),
            dir("d/e/").mode(0o555),
            file("d/e/f", "g").mode(0),
            dir(".").mode(0o500),
        ],
        "d dir mode=0 | d/f file =f | d/e dir mode=555 | d/e/f file =g mode=0 | . dir mode=500",
    );
    group.tree(
        "directories-that-forbid-everything-are-replaced",
        vec![dir("d/").mode(0), dir("d/e/").mode(0), file("d/e/f", "f"), file("d", "x")],
        "d file =x",
    );
    // Two thousand levels are what a path of 4,096 bytes can say; with a symlink on the way it says more.
    let depth = |levels: usize| -> Vec<Entry> {
        let stage = 500;
        let mut entries = vec![];
        let mut start = String::new();
        for level in 0..levels {
            if level > 0 && level % stage == 0 {
                let name = format!("s{}", level / stage);
                entries.push(symlink(&name, "x").pax("linkpath", format!("{start}{}", "d/".repeat(stage))));
                start = format!("{name}/");
            }
            entries.push(dir("x").pax("path", format!("{start}{}", "d/".repeat(level % stage + 1))).mtime(5));
        }
        entries.push(file("x", "bottom").pax(
            "path",
            format!(
                "{start}{}f",
                "d/".repeat(if levels.is_multiple_of(stage) { stage } else { levels % stage })
            ),
        ));
        entries
    };
    let tree = |levels: usize| {
        let lines: Vec<String> = (1..levels.div_ceil(500)).map(|stage| format!("s{stage} link")).collect();
        let deepest = format!("{}f file =bottom", "d/".repeat(levels));
        [lines, vec![deepest]].concat().join("|")
    };
    group.tree_but("directories-2500-deep", depth(2500), tree(2500), |case| {
        // It names a directory by its path; what overlayfs needs is only the way to the root.
        case.backend_refuses(BackendName::Copy, "File name too long")
            .only_root("it takes long, and rights do not matter")
    });
    group.tree(
        "directories-600-deep-replaced-by-a-file",
        [depth(600), vec![file("d", "x")]].concat(),
        "d file =x | s1 link",
    );
    group.refused_but(
        "directories-2500-deep-then-refused",
        [depth(2500), vec![file("../x", "")]].concat(),
        &["upwards"],
        |case| case.only_root("it takes long, and rights do not matter"),
    );
    group.stack(
        "directories-600-deep-in-two-layers",
        vec![depth(600), [depth(600), vec![file("d/.wh.x", "")]].concat()],
        tree(600),
    );
    group.tree_but(
        "directories-deep-and-only-implied",
        vec![
            symlink("s1", "d/".repeat(500)),
            file("x", "1").pax("path", "d/".repeat(1100) + "f"),
            symlink("s2", "x").pax("linkpath", "d/".repeat(1100)),
            file("x", "2").pax("path", "s2/".to_owned() + &"e/".repeat(1100) + "f"),
        ],
        format!(
            "s1 link | s2 link | {d}f file =1 | {d}{e}f file =2",
            d = "d/".repeat(1100),
            e = "e/".repeat(1100)
        ),
        |case| {
            case.backend_refuses(BackendName::Copy, "File name too long")
                .only_root("it takes long, and rights do not matter")
        },
    );
}

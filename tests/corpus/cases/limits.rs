//! Limits on layers: each ends in an error that names its flag, and what is within them passes. Streams too long to
//! be held are in `bombs`, limits on manifests in `documents`.

use crate::case::{Group, layer};
use crate::tarball::*;

pub(crate) fn add(group: &mut Group) {
    let files = |count: usize| (0..count).map(|number| file(format!("{number}"), "")).collect::<Vec<_>>();
    group.tree_but("entries-as-many-as-allowed", files(3), "0 file | 1 file | 2 file", |case| {
        case.limits(|limits| limits.layer_entries_max = 3)
    });
    group.refused_but(
        "entries-one-more-than-allowed",
        files(4),
        &["3 entries", "--layer_entries_max"],
        |case| case.limits(|limits| limits.layer_entries_max = 3),
    );
    group.refused_but(
        "entries-that-make-nothing-count",
        vec![file(".wh.a", ""), file(".wh.a", ""), file(".wh..wh.x", ""), dir("d/"), dir("d/")],
        &["--layer_entries_max"],
        |case| case.limits(|limits| limits.layer_entries_max = 4),
    );
    let tar = Tarball::of([file("f", [b'x'; 1000])]).end();
    let length = tar.len() as u64;
    group.made_but(
        "bytes-as-many-as-allowed",
        {
            let tar = tar.clone();
            move |_| vec![crate::case::raw(tar.clone())]
        },
        "f file size=1000",
        move |case| case.limits(|limits| limits.layer_bytes_max = length),
    );
    group.made_refused_but(
        "bytes-one-more-than-allowed",
        {
            let tar = tar.clone();
            move |_| vec![crate::case::raw(tar.clone())]
        },
        &["bytes", "--layer_bytes_max"],
        move |case| case.limits(|limits| limits.layer_bytes_max = length - 1),
    );
    group.made_refused_but(
        "bytes-after-the-end-of-the-tar-count",
        move |_| vec![crate::case::raw([tar.clone(), vec![0; 100_000]].concat())],
        &["--layer_bytes_max"],
        |case| case.limits(|limits| limits.layer_bytes_max = 50_000),
    );
    let twenty = |limits: &mut keelblock::limits::Limits| limits.path_bytes_max = 20;
    group.tree_but(
        "path-as-long-as-allowed",
        vec![file("12345678901234567890", "")],
        "12345678901234567890 file",
        move |case| case.limits(twenty),
    );
    group.refused_but(
        "path-too-long",
        vec![file("123456789012345678901", "")],
        &["20 bytes in a path", "--path_bytes_max"],
        move |case| case.limits(twenty),
    );
    group.refused_but(
        "path-too-long-by-pax",
        vec![file("x", "").pax("path", "x".repeat(21))],
        &["--path_bytes_max"],
        move |case| case.limits(twenty),
    );
    group.refused_but(
        "path-too-long-by-gnu",
        vec![long_name("x".repeat(21)), file("x", "").gnu()],
        &["--path_bytes_max"],
        move |case| case.limits(twenty),
    );
    group.refused_but(
        "path-too-long-by-slashes",
        vec![file("a///////////////////b", "")],
        &["--path_bytes_max"],
        move |case| case.limits(twenty),
    );
    group.refused_but(
        "link-target-too-long",
        vec![symlink("s", "123456789012345678901")],
        &["20 bytes in a link target", "--path_bytes_max"],
        move |case| case.limits(twenty),
    );
    group.refused_but(
        "path-too-long-by-sparse-name",
        vec![
            file("x", "")
                .pax("GNU.sparse.name", "x".repeat(21))
                .pax("GNU.sparse.size", "0")
                .pax("GNU.sparse.map", "0,0"),
        ],
        &["--path_bytes_max"],
        move |case| case.limits(twenty),
    );
    let thirty = |limits: &mut keelblock::limits::Limits| limits.xattr_bytes_max = 30;
    group.tree_but(
        "xattrs-as-many-bytes-as-allowed",
        vec![
            file("f", "").xattr("user.a", "123456789").xattr("user.b", "123456789"),
            file("g", "").xattr("user.a", [b'x'; 20]),
        ],
        "f file x:user.a=123456789 x:user.b=123456789 | g file x:user.a=xxxxxxxxxxxxxxxxxxxx",
        move |case| case.limits(thirty),
    );
    group.refused_but(
        "xattrs-of-too-many-bytes",
        vec![file("f", "").xattr("user.a", "1234567890").xattr("user.b", "123456789")],
        &["30 bytes of xattrs of one entry", "--xattr_bytes_max"],
        move |case| case.limits(thirty),
    );
    group.refused_but(
        "xattrs-of-too-many-bytes-in-one-name",
        vec![file("f", "").xattr("user.a", "1234567890").xattr("user.a", "1234567890")],
        &["--xattr_bytes_max"],
        move |case| case.limits(thirty),
    );
    let pax = |limits: &mut keelblock::limits::Limits| limits.pax_bytes_max = 600;
    let comment = |length| file("f", "").pax("comment", vec![b'c'; length]);
    group.tree_but(
        "extended-headers-as-long-as-allowed",
        vec![comment(500), comment(500)],
        "f file",
        move |case| case.limits(pax),
    );
    group.refused_but(
        "extended-header-too-long",
        vec![comment(700)],
        &["600 bytes of extended headers of one entry", "--pax_bytes_max"],
        move |case| case.limits(pax),
    );
    group.refused_but(
        "extended-headers-too-long-together",
        vec![long_name("n".repeat(400)), comment(300)],
        &["--pax_bytes_max"],
        move |case| case.limits(pax),
    );
    group.refused_but(
        "global-header-too-long",
        vec![global("comment", "c".repeat(700)), file("f", "")],
        &["--pax_bytes_max"],
        move |case| case.limits(pax),
    );
    group.refused_but(
        "long-name-of-a-terabyte",
        vec![file("x", "").size(1 << 40).kind(b'L'), file("f", "")],
        &["--pax_bytes_max"],
        move |case| case.limits(pax),
    );
    group.refused_but(
        "sparse-map-too-long",
        vec![
            file("s", [b'1'; 2048])
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.realsize", "1"),
        ],
        &["sparse map"],
        move |case| case.limits(pax),
    );
    group.refused_but(
        "sparse-map-in-too-many-blocks",
        vec![old_sparse("s", 1 << 20, &(0..100).map(|run| (run * 1024, vec![1; 512])).collect::<Vec<_>>())],
        &["--pax_bytes_max"],
        move |case| case.limits(pax),
    );
    group.refused(
        "extended-header-over-the-default",
        vec![file("f", "").pax("comment", vec![b'c'; (1 << 20) + 1])],
        &["1048576 bytes of extended headers", "--pax_bytes_max"],
    );
    group.refused(
        "xattrs-over-the-default",
        vec![file("f", "").xattr("user.a", vec![b'x'; 65_536])],
        &["65536 bytes of xattrs", "--xattr_bytes_max"],
    );
    group.made_refused_but(
        "a-good-layer-then-one-over-a-limit",
        |_| {
            vec![
                layer([file("a", ""), file("b", "")]),
                layer((0..4).map(|number| file(format!("{number}"), "")).collect::<Vec<_>>()),
            ]
        },
        &["--layer_entries_max"],
        |case| case.limits(|limits| limits.layer_entries_max = 3),
    );
}

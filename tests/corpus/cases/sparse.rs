//! Sparse files in the four ways they are written, and maps that lie.

use crate::case::Group;
use crate::tarball::*;

fn v00(size: u64, runs: &[(u64, u64)], payload: &[u8]) -> Entry {
    let mut entry = file("sparse", payload)
        .pax("GNU.sparse.size", size.to_string())
        .pax("GNU.sparse.numblocks", runs.len().to_string());
    for (offset, length) in runs {
        entry =
            entry.pax("GNU.sparse.offset", offset.to_string()).pax("GNU.sparse.numbytes", length.to_string());
    }
    entry
}

fn v01(size: &str, map: &str, payload: &[u8]) -> Entry {
    file("GNUSparseFile.1/sparse", payload)
        .pax("GNU.sparse.name", "sparse")
        .pax("GNU.sparse.size", size)
        .pax("GNU.sparse.map", map)
}

fn v10(size: &str, map: &str, payload: &[u8]) -> Entry {
    let mut head = map.as_bytes().to_vec();
    head.resize(head.len().next_multiple_of(512), 0);
    file("GNUSparseFile.1/sparse", [head, payload.to_vec()].concat())
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "sparse")
        .pax("GNU.sparse.realsize", size)
}

pub(crate) fn add(group: &mut Group) {
    // Digests are compared among backends; here sizes and holes, and the content of one that is small.
    let payload = [[b'a'; 512], [b'b'; 512]].concat();
    let runs = [(65_536, vec![b'a'; 512]), (524_288, vec![b'b'; 512])];
    let tree = "sparse file size=1048576 mode=644 sparse | after file =x";
    let after = || file("after", "x");
    group.tree("sparse-old-gnu", vec![old_sparse("sparse", 1 << 20, &runs), after()], tree);
    group.tree(
        "sparse-old-gnu-in-extension-blocks",
        vec![
            old_sparse(
                "sparse",
                1 << 20,
                &(0..60).map(|run| (run * 16_384, vec![b'r'; 512])).collect::<Vec<_>>(),
            ),
            after(),
        ],
        tree,
    );
    group.tree(
        "sparse-pax-0-0",
        vec![v00(1 << 20, &[(65_536, 512), (524_288, 512)], &payload), after()],
        tree,
    );
    group.tree("sparse-pax-0-1", vec![v01("1048576", "65536,512,524288,512", &payload), after()], tree);
    group.tree(
        "sparse-pax-1-0",
        vec![v10("1048576", "2\n65536\n512\n524288\n512\n", &payload), after()],
        tree,
    );
    group.tree(
        "sparse-pax-1-0-map-of-many-blocks",
        vec![
            v10(
                "1048576",
                &("200\n".to_owned()
                    + &(0..200).map(|run| format!("{}\n1\n", run * 4096)).collect::<String>()),
                &[b'm'; 200],
            ),
            after(),
        ],
        // A byte in every fourth kilobyte of most of it: on filesystems with larger blocks no room is saved.
        "sparse file size=1048576 | after file =x",
    );
    let small = [0, 0, b'a', b'b', 0, 0, b'c', 0].map(|byte: u8| format!("\\x{byte:02x}")).concat();
    for (name, entry) in [
        ("sparse-content-old-gnu", old_sparse("sparse", 8, &[(2, b"ab".to_vec()), (6, b"c".to_vec())])),
        ("sparse-content-pax-0-0", v00(8, &[(2, 2), (6, 1)], b"abc")),
        ("sparse-content-pax-0-1", v01("8", "2,2,6,1", b"abc")),
        ("sparse-content-pax-1-0", v10("8", "2\n2\n2\n6\n1\n", b"abc")),
    ] {
        group.tree(name, vec![entry, after()], format!("sparse file ={small} | after file =x"));
    }
    group.tree_but(
        "sparse-of-an-exabyte-stays-a-hole",
        vec![v01("1152921504606846976", "4096,512,1152921504606842880,512", &payload), after()],
        "sparse file size=1152921504606846976 sparse | after file =x",
        |case| case.image_refused(&["\"sparse\"", "File too large"]),
    );
    group.tree(
        "sparse-of-sixteen-terabytes-stays-a-hole",
        vec![v01("17592186040320", "4096,512,17592186036224,512", &payload), after()],
        "sparse file size=17592186040320 sparse | after file =x",
    );
    group.tree(
        "sparse-without-any-data",
        vec![v01("1000000000000", "0,0", b""), after()],
        "sparse file size=1000000000000 sparse | after file =x",
    );
    group.tree(
        "sparse-empty-runs-are-passed-over",
        vec![v01("8", "0,0,2,2,4,0,6,1,8,0", b"abc")],
        format!("sparse file ={small}"),
    );
    group.stack(
        "sparse-below-and-above",
        vec![vec![v01("1048576", "0,512,524288,512", &payload)], vec![file("sparse", "dense")]],
        "sparse file =dense",
    );
    group.tree(
        "sparse-with-a-second-name",
        vec![v01("1048576", "65536,512,524288,512", &payload), hard_link("h", "sparse")],
        "sparse file size=1048576 same=h | h file sparse",
    );

    for (name, size, map) in [
        ("sparse-map-runs-overlap", "65536", "0,512,256,512"),
        ("sparse-map-out-of-order", "65536", "4096,512,0,512"),
        ("sparse-map-longer-than-the-payload", "65536", "0,2048"),
        ("sparse-map-shorter-than-the-payload", "65536", "0,1023"),
        ("sparse-map-beyond-the-file", "1023", "0,1024"),
        ("sparse-map-offset-overflows", "65536", "18446744073709551615,1024"),
        ("sparse-map-sum-overflows", "65536", "9223372036854775807,9223372036854775807,1,2"),
        ("sparse-map-half-a-run", "65536", "0,1024,1"),
        ("sparse-map-no-number", "65536", "0,x"),
        ("sparse-map-below-zero", "65536", "-1,1024"),
        ("sparse-size-below-zero", "-1", "0,1024"),
    ] {
        group.refused(name, vec![v01(size, map, &payload)], &["\"sparse\"", "sparse map is wrong"]);
    }
    group.refused(
        "sparse-map-miscounted",
        vec![v01("1048576", "65536,512,524288,512", &payload).pax("GNU.sparse.numblocks", "3")],
        &["not as many runs"],
    );
    group.refused(
        "sparse-map-of-two-to-the-63-lines",
        vec![v10("1", "9223372036854775807\n", b"")],
        &["sparse map"],
    );
    group.refused("sparse-map-of-digits-without-end", vec![v10("1", &"9".repeat(512), b"")], &["sparse map"]);
    group.refused(
        "sparse-map-longer-than-its-file",
        vec![v10("1", "100\n0\n1\n", b"")],
        &["sparse map is wrong"],
    );
    group.refused(
        "sparse-offset-without-length",
        vec![v00(8, &[(2, 2)], b"ab").pax("GNU.sparse.offset", "4")],
        &["missing"],
    );
    group.refused(
        "sparse-version-unknown",
        vec![file("s", "").pax("GNU.sparse.major", "2").pax("GNU.sparse.minor", "0")],
        &["version is unknown"],
    );
    group.refused("sparse-directory", vec![dir("s/").pax("GNU.sparse.name", "t")], &["it is no file"]);
    group.refused("sparse-old-without-gnu-magic", vec![file("s", "").kind(b'S')], &["not GNU tar's"]);
    group.refused(
        "sparse-old-cut-in-its-blocks",
        vec![{
            let mut cut =
                old_sparse("s", 1 << 20, &(0..30).map(|run| (run * 512, vec![1; 512])).collect::<Vec<_>>());
            // The last block says there is another one: the payload is taken for it.
            let last = cut.blocks.len() - 8;
            cut.blocks[last] = 1;
            cut
        }],
        &["sparse map"],
    );
    group.refused(
        "sparse-name-that-leads-upwards",
        vec![v01("8", "2,2,6,1", b"abc").pax("GNU.sparse.name", "../s")],
        &["upwards"],
    );
}

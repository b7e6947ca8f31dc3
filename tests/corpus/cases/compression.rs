//! How a blob is wrapped, what its media type says, and everything that can be wrong with it on the way.

use std::io::Write;

use keelblock_actors::image::plan::Compression::{Gzip, None as Plain, Zstd};

use crate::case::{Group, packed, raw};
use crate::tarball::*;

fn tar() -> Vec<u8> {
    Tarball::of([file("f", "content"), file("g", [7; 3000])]).end()
}

const TREE: &str = "f file =content | g file size=3000";

/// A member with everything the header can have: name, comment, extra field, checksum of the header.
fn dressed(bytes: &[u8]) -> Vec<u8> {
    let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    deflated.write_all(bytes).unwrap();
    let mut member = vec![0x1f, 0x8b, 8, 0b1_1110, 1, 2, 3, 4, 0, 255];
    member.extend_from_slice(&[6, 0, b'S', b'G', 2, 0, 9, 9]);
    member.extend_from_slice(b"layer.tar\0a comment\0");
    let mut sum = flate2::Crc::new();
    sum.update(&member);
    member.extend_from_slice(&(sum.sum() as u16).to_le_bytes());
    member.extend_from_slice(&deflated.finish().unwrap());
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    member.extend_from_slice(&sum.sum().to_le_bytes());
    member.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    member
}

/// What ends an eStargz blob: an empty member whose extra field says where the table of contents is.
fn stargz_footer() -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    footer.extend_from_slice(b"0000000000000400STARGZ");
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

fn zstd_checked(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn add(group: &mut Group) {
    forms(group);
    media_types(group);
    broken(group);
    lies(group);
}

fn forms(group: &mut Group) {
    let mut ok = |name, blob: Vec<u8>, compression| {
        group.made(name, move |_| vec![packed(&tar(), blob.clone(), compression)], TREE);
    };
    ok("plain", tar(), Plain);
    ok("gzip", gzip(&tar()), Gzip);
    ok("gzip-of-many-members", tar().chunks(300).flat_map(gzip).collect(), Gzip);
    ok("gzip-with-empty-members", [gzip(b""), gzip(&tar()), gzip(b"")].concat(), Gzip);
    ok(
        "gzip-with-name-comment-extra-and-header-checksum",
        [dressed(&tar()[..512]), dressed(&tar()[512..])].concat(),
        Gzip,
    );
    ok(
        "gzip-not-compressed",
        {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
            encoder.write_all(&tar()).unwrap();
            encoder.finish().unwrap()
        },
        Gzip,
    );
    ok("estargz", [tar().chunks(1024).flat_map(gzip).collect::<Vec<_>>(), stargz_footer()].concat(), Gzip);
    ok("zstd", zstd(&tar()), Zstd);
    ok("zstd-of-many-frames", tar().chunks(300).flat_map(zstd).collect(), Zstd);
    ok("zstd-with-checksums", zstd_checked(&tar()), Zstd);
    ok(
        "zstd-with-skippable-frames",
        [
            skippable(b"first"),
            zstd(&tar()[..700]),
            skippable(&[9; 5000]),
            zstd(&tar()[700..]),
            skippable(b""),
        ]
        .concat(),
        Zstd,
    );
    ok(
        "zstd-chunked",
        [
            tar().chunks(1024).flat_map(zstd).collect::<Vec<_>>(),
            skippable(&zstd(b"{\"version\":1}")),
            skippable(&[0; 64]),
        ]
        .concat(),
        Zstd,
    );
    group.made("empty-gzip", |_| vec![packed(b"", gzip(b""), Gzip)], ". dir");
    group.made("empty-zstd", |_| vec![packed(b"", zstd(b""), Zstd)], ". dir");
    group.made(
        "three-layers-wrapped-in-three-ways",
        |_| {
            let of = |entry| Tarball::of([entry]).end();
            let (a, b, c) = (of(file("a", "1")), of(file("b", "2")), of(file(".wh.a", "")));
            vec![packed(&a, gzip(&a), Gzip), packed(&b, b.clone(), Plain), packed(&c, zstd(&c), Zstd)]
        },
        "b file =2",
    );
    group.made(
        "size-and-digest-not-declared",
        |_| {
            let mut layer = packed(&tar(), gzip(&tar()), Gzip).size(None);
            layer.spec.blob.digest = None;
            layer.spec.blob.compression = None;
            vec![layer]
        },
        TREE,
    );
}

fn media_types(group: &mut Group) {
    const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
    for (name, declared, blob, words) in [
        ("media-type-gzip-content-plain", Gzip, tar(), ["+gzip says gzip", "its content is"]),
        ("media-type-gzip-content-zstd", Gzip, zstd(&tar()), ["+gzip says gzip", "its content is zstd"]),
        ("media-type-zstd-content-gzip", Zstd, gzip(&tar()), ["+zstd says zstd", "its content is gzip"]),
        ("media-type-zstd-content-plain", Zstd, tar(), ["+zstd says zstd", "its content is"]),
        ("media-type-plain-content-gzip", Plain, gzip(&tar()), ["tar says", "its content is gzip"]),
        ("media-type-plain-content-zstd", Plain, zstd(&tar()), ["tar says", "its content is zstd"]),
    ] {
        let media_type = match declared {
            Gzip => format!("{OCI}+gzip"),
            Zstd => format!("{OCI}+zstd"),
            _ => OCI.to_owned(),
        };
        group.made_refused(
            name,
            move |_| vec![packed(&tar(), blob.clone(), declared).declared(Some(declared), &media_type)],
            &words,
        );
    }
    for (name, what, magic) in [
        ("compressed-with-xz", "xz", &b"\xfd7zXZ\0\0\x04"[..]),
        ("compressed-with-bzip2", "bzip2", b"BZh91AY&SY"),
        ("compressed-with-lz4", "lz4", b"\x04\x22\x4d\x18\x64\x40"),
        ("compressed-with-lzma", "lzma", b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0"),
        ("compressed-with-lzip", "lzip", b"LZIP\x01\x0c"),
        ("compressed-with-compress", "compress", b"\x1f\x9d\x90"),
        ("compressed-as-zip", "zip", b"PK\x03\x04\x14\0"),
        ("compressed-as-7z", "7z", b"7z\xbc\xaf\x27\x1c\0\x04"),
    ] {
        for (declared, suffix) in [(Gzip, "-said-to-be-gzip"), (Plain, "")] {
            let blob = [magic, &[0x55; 2000]].concat();
            let name: &'static str = Box::leak(format!("{name}{suffix}").into_boxed_str());
            group.made_refused(
                name,
                move |_| vec![packed(&tar(), blob.clone(), declared)],
                &[&format!("compressed with {what}"), "gzip, zstd"],
            );
        }
    }
    group.tree(
        "names-that-look-like-a-compression",
        vec![file("BZh91AY&SY", "x"), file("PK\x03\x04", "y"), file("LZIP", "z")],
        "BZh91AY&SY file =x | PK\\x03\\x04 file =y | LZIP file =z",
    );
}

fn broken(group: &mut Group) {
    // Cut at every part of the stream; the manifest is honest of the cut blob, so that only the stream can tell.
    let whole = [("gzip", gzip(&tar()), Gzip), ("zstd", zstd_checked(&tar()), Zstd)];
    for (what, blob, compression) in whole {
        for (part, at) in [
            ("header", 8),
            ("data", blob.len() / 2),
            ("checksum", blob.len() - 3),
            ("last-byte", blob.len() - 1),
        ] {
            let name: &'static str = Box::leak(format!("{what}-cut-in-its-{part}").into_boxed_str());
            let cut = blob[..at].to_vec();
            group.made_refused(
                name,
                move |_| vec![packed(&tar(), cut.clone(), compression)],
                &["no readable"],
            );
        }
        for (tail, name) in [(&b"garbage"[..], "garbage"), (&[0; 512], "zeros")] {
            let name: &'static str = Box::leak(format!("{what}-then-{name}").into_boxed_str());
            let long = [&blob[..], tail].concat();
            group.made_refused(
                name,
                move |_| vec![packed(&tar(), long.clone(), compression)],
                &["no readable"],
            );
        }
    }
    let mut bad = |name, blob: Vec<u8>, compression, word: &'static str| {
        group.made_refused(
            name,
            move |_| vec![packed(&tar(), blob.clone(), compression)],
            &["no readable", word],
        );
    };
    let changed = |mut blob: Vec<u8>, from_the_end: usize| {
        let at = blob.len() - from_the_end;
        blob[at] ^= 0x40;
        blob
    };
    bad("gzip-checksum-wrong", changed(gzip(&tar()), 6), Gzip, "gzip stream");
    bad("gzip-length-wrong", changed(gzip(&tar()), 2), Gzip, "gzip stream");
    bad(
        "gzip-second-member-s-checksum-wrong",
        [gzip(&tar()[..512]), changed(gzip(&tar()[512..]), 6)].concat(),
        Gzip,
        "gzip stream",
    );
    bad(
        "gzip-with-an-unknown-method",
        [&[0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0][..], &[0; 100]].concat(),
        Gzip,
        "gzip stream",
    );
    bad(
        "gzip-of-garbage",
        [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0][..], &[0xff; 1000]].concat(),
        Gzip,
        "gzip stream",
    );
    bad("zstd-checksum-wrong", changed(zstd_checked(&tar()), 2), Zstd, "zstd stream");
    bad(
        "zstd-second-frame-s-checksum-wrong",
        [zstd(&tar()[..512]), changed(zstd_checked(&tar()[512..]), 2)].concat(),
        Zstd,
        "zstd stream",
    );
    bad(
        "zstd-skippable-frame-cut",
        [zstd(&tar()), skippable(&[1; 100])[..50].to_vec()].concat(),
        Zstd,
        "zstd stream",
    );
    bad(
        "zstd-window-of-two-gigabytes",
        // Frame header: magic, no single segment, window descriptor for 2 GiB, then a raw block.
        [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[0x01, 0x00, 0x00]].concat(),
        Zstd,
        "zstd stream",
    );
    bad("html-instead-of-a-layer", b"<html>go away</html>".repeat(40), Plain, "tar");
}

fn lies(group: &mut Group) {
    group.made_refused(
        "blob-shorter-than-declared",
        |_| vec![packed(&tar(), gzip(&tar()), Gzip).size(Some(100_000))],
        &["its manifest says 100000"],
    );
    group.made_refused(
        "blob-longer-than-declared",
        |_| vec![packed(&tar(), gzip(&tar()), Gzip).size(Some(50))],
        &["its manifest says 50"],
    );
    group.made_refused(
        "blob-cut-on-the-way",
        |_| {
            let blob = gzip(&tar());
            let cut = blob[..blob.len() / 2].to_vec();
            vec![packed(&tar(), blob, Gzip).sent(cut)]
        },
        &["its manifest says"],
    );
    group.made_refused(
        "blob-with-another-digest",
        |_| vec![packed(&tar(), gzip(&tar()), Gzip).digest_of(b"something else")],
        &["blob has digest", "its manifest names"],
    );
    group.made_refused(
        "blob-changed-on-the-way",
        |_| {
            let blob = gzip(&tar());
            let mut changed = blob.clone();
            changed[30] ^= 1;
            vec![packed(&tar(), blob, Gzip).sent(changed)]
        },
        // What is wrong with the stream follows from that, and is not what is told.
        &["blob has digest"],
    );
    group.made_refused(
        "empty-blob-instead-of-a-layer",
        |_| vec![packed(&tar(), gzip(&tar()), Gzip).sent(vec![])],
        &["blob has 0 bytes"],
    );
    group.made_refused(
        "tar-with-another-diff-id",
        |_| vec![packed(&tar(), gzip(&tar()), Gzip).diff_of(b"another tar")],
        &["unpacks to sha256:"],
    );
    group.made_refused(
        "tar-with-a-changed-tail",
        // The entries are right; only what follows the end of the tar is not what was hashed.
        |_| {
            let lying = [tar(), b"tail".to_vec()].concat();
            vec![packed(&lying, gzip(&lying), Gzip).diff_of(&tar())]
        },
        &["unpacks to sha256:"],
    );
    group.made_refused(
        "a-good-layer-then-a-lying-one",
        |_| vec![raw(tar()), packed(&tar(), gzip(&tar()), Gzip).diff_of(b"another tar")],
        &["unpacks to sha256:"],
    );
    group.made_refused(
        "an-evil-entry-behind-a-right-digest",
        |_| {
            let evil = Tarball::of([file("f", "x"), file("../../canary", "dead")]).end();
            vec![raw(tar()), packed(&evil, gzip(&evil), Gzip).honest()]
        },
        &["upwards"],
    );
}

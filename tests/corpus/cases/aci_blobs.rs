//! How ACIs are compressed, and lies about them.

use std::io::Write;

use keelblock_actors::image::appc::AciView;
use keelblock_actors::image::plan::Compression::{self, Bzip2, Gzip, None as Plain, Xz, Zstd};
use keelblock_actors::image::plan::LayerKey;

use super::aci::manifest;
use crate::aci::{image_id, layer_of};
use crate::case::Group;
use crate::tarball::*;

pub(crate) fn add(group: &mut Group) {
    compression(group);
    lies(group);
}

/// xz with a dictionary of so many bytes: what a decoder must set aside for it.
fn xz_of_dictionary(bytes: &[u8], dictionary: u32) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let mut options = LzmaOptions::new_preset(0).unwrap();
    options.dict_size(dictionary);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let stream = Stream::new_stream_encoder(&filters, Check::Crc64).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(vec![], stream);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn compression(group: &mut Group) {
    let tar = || Tarball::of([manifest(), file("rootfs/f", "content"), file("rootfs/g", [7; 3000])]).end();
    let layer = move |blob: Vec<u8>, compression: Compression| {
        layer_of(AciView::whole(image_id(&tar())), blob, compression)
    };
    let tree = "f file =content | g file size=3000";
    let halves = move |pack: fn(&[u8]) -> Vec<u8>| {
        let tar = tar();
        let (one, other) = tar.split_at(700);
        [pack(one), pack(&[]), pack(other)].concat()
    };
    for (name, blob, compression) in [
        ("aci-by-gzip", gzip(&tar()), Gzip),
        ("aci-by-bzip2", bzip2(&tar()), Bzip2),
        ("aci-by-xz", xz(&tar()), Xz),
        ("aci-by-gzip-in-members", halves(gzip), Gzip),
        ("aci-by-bzip2-in-streams", halves(bzip2), Bzip2),
        ("aci-by-xz-in-streams", halves(xz), Xz),
        ("aci-by-xz-with-padding", [xz(&tar()), vec![0; 8]].concat(), Xz),
        ("aci-by-zstd", zstd(&tar()), Zstd),
    ] {
        group.made(name, move |_| vec![layer(blob.clone(), compression)], tree);
    }
    let mut no = |name, blob: Vec<u8>, compression, words: &[&str]| {
        group.made_refused(name, move |_| vec![layer(blob.clone(), compression)], words);
    };
    let cut = |blob: Vec<u8>| blob[..blob.len() - 9].to_vec();
    let with = |mut blob: Vec<u8>, tail: &[u8]| {
        blob.extend_from_slice(tail);
        blob
    };
    no("aci-by-bzip2-cut", cut(bzip2(&tar())), Bzip2, &["is no readable bzip2 stream"]);
    no("aci-by-xz-cut", cut(xz(&tar())), Xz, &["is no readable xz stream"]);
    no(
        "aci-by-xz-cut-between-streams",
        [xz(&tar()[..700]), xz(&tar()[700..])[..20].to_vec()].concat(),
        Xz,
        &["is no readable xz stream"],
    );
    no("aci-by-bzip2-and-more", with(bzip2(&tar()), b"garbage"), Bzip2, &["is no readable bzip2 stream"]);
    no("aci-by-bzip2-and-zeros", with(bzip2(&tar()), &[0; 512]), Bzip2, &["is no readable bzip2 stream"]);
    no("aci-by-xz-and-more", with(xz(&tar()), b"garbage!"), Xz, &["is no readable xz stream"]);
    no("aci-by-xz-with-odd-padding", with(xz(&tar()), &[0; 6]), Xz, &["is no readable xz stream"]);
    let mut bad = bzip2(&tar());
    let middle = bad.len() / 2;
    bad[middle] ^= 0x55;
    no("aci-by-bzip2-with-a-wrong-byte", bad, Bzip2, &["is no readable bzip2 stream"]);
    let mut bad = xz(&tar());
    let middle = bad.len() / 2;
    bad[middle] ^= 0x55;
    no("aci-by-xz-with-a-wrong-byte", bad, Xz, &["is no readable xz stream"]);
    no(
        "aci-by-xz-that-asks-for-much-memory",
        xz_of_dictionary(&tar(), 512 << 20),
        Xz,
        &["is no readable xz stream", "memory"],
    );
    no("aci-by-bzip2-that-is-said-to-be-xz", bzip2(&tar()), Xz, &["bzip2", "xz"]);
    let docker = Tarball::of([file("f", "x")]).end();
    for (name, blob) in [("layer-of-docker-by-bzip2", bzip2(&docker)), ("layer-of-docker-by-xz", xz(&docker))]
    {
        let docker = docker.clone();
        let layers = move |_: &_| {
            vec![crate::case::packed(&docker, blob.clone(), Plain).declared(None, "application/x-test")]
        };
        group.made_refused(name, layers, &["layers can be gzip, zstd or plain tar"]);
    }
}

fn lies(group: &mut Group) {
    let tar = || Tarball::of([manifest(), file("rootfs/f", "x")]).end();
    let whole = move || AciView::whole(image_id(&tar()));
    group.made_refused(
        "aci-that-is-another-image",
        move |_| vec![layer_of(AciView::whole(image_id(b"other")), tar(), Plain)],
        &["its archive is that of the image sha512-", "pull the image again"],
    );
    group.made_refused(
        "aci-with-one-more-zero-at-its-end",
        move |_| vec![layer_of(whole(), [tar(), vec![0]].concat(), Plain)],
        &["its archive is that of the image sha512-"],
    );
    group.made_refused(
        "aci-of-another-view-than-its-key",
        move |_| {
            let mut layer = layer_of(whole(), tar(), Plain);
            layer.spec.key = LayerKey::Aci(AciView::whole(image_id(b"other")).diff_id());
            vec![layer]
        },
        &["is not what its plan says", "pull the image again"],
    );
    group.made_refused(
        "aci-without-a-view",
        move |_| {
            let mut layer = layer_of(whole(), tar(), Plain);
            layer.spec.aci = None;
            vec![layer]
        },
        &["is not what its plan says"],
    );
    group.made_refused(
        "aci-shorter-than-it-is-said-to-be",
        move |_| vec![layer_of(whole(), tar(), Plain).size(Some(9999))],
        &["bytes, but its manifest says 9999"],
    );
    group.made_refused(
        "aci-whose-blob-is-another",
        move |_| vec![layer_of(whole(), gzip(&tar()), Gzip).digest_of(b"other")],
        &["but its manifest names"],
    );
}

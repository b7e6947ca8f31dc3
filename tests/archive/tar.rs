//! The tar around an image: cut off, lying, damaged.

use std::fs;
use std::path::Path;

use keelblock::limits::Limits;
use keelblock::provider::archive::ArchiveError;
use keelblock_actors::error::{ResolveError, chain};
use keelblock_actors::image::plan::LayerSource;
use proptest::prelude::*;
use serde_json::json;

use crate::support::*;

#[test]
fn an_archive_cut_off_anywhere_is_an_error_that_names_it() {
    let room = Room::new();
    let whole = new_form(&[("x", &["a:1"])]);
    // Behind the last data come padding and end mark, which some writers leave out.
    let data_end = whole.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    for length in (0..data_end).step_by(97).chain([1, 511, 512, 513, data_end - 1]) {
        let error = room.docker(&whole[..length]).expect_err("a cut archive resolved");
        let text = chain(&error);
        assert!(text.contains("image.tar"), "{length}: {text}");
    }
    assert!(room.docker(&whole[..data_end]).is_ok(), "no padding");
    assert!(room.docker(&whole[..whole.len() - 1024]).is_ok(), "no end mark");
    assert!(room.docker(&whole[..whole.len() - 512]).is_ok(), "half an end mark");
}

#[test]
fn what_is_no_tar_is_said_to_be_none() {
    let room = Room::new();
    for bytes in [&b""[..], b"hello", &[b'x'; 2048], b"\x1f\x8bnot gzip", b"\x28\xb5\x2f\xfdnot zstd"] {
        let error = cause(room.docker(bytes));
        assert!(matches!(error, ArchiveError::NotTar { .. } | ArchiveError::Read { .. }), "{error}");
    }
    assert!(room.spooled().is_empty(), "{:?}", room.spooled());
    for (magic, name) in [(&b"\xfd7zXZ\0\0\0"[..], "xz"), (b"BZh91AY&SY", "bzip2")] {
        assert!(matches!(cause(room.docker(magic)), ArchiveError::Compressed { by, .. } if by == name));
    }
    let missing = room.archives.docker_archive(Path::new("/nowhere/x.tar"), None);
    assert!(matches!(missing, Err(ResolveError::NotFound { .. })));
    let directory = room.archives.docker_archive(&fixtures().join("oci/hello"), None);
    assert!(cause(directory).to_string().contains("use oci:"));
    let file = room.archives.oci_layout(&fixtures().join("hello-oci.tar"), None);
    assert!(chain(&cause(file)).contains("use oci-archive:"));
}

#[test]
fn each_form_given_as_the_other_is_told_where_to_go() {
    let room = Room::new();
    let oci = cause(room.archives.docker_archive(&fixtures().join("hello-oci.tar"), None));
    assert!(oci.to_string().contains("use oci-archive:"), "{oci}");
    let docker = cause(room.archives.oci_archive(&fixtures().join("hello.tar"), None));
    assert!(docker.to_string().contains("use docker-archive:"), "{docker}");
}

#[test]
fn long_names_of_both_kinds_are_understood() {
    let room = Room::new();
    let long = format!("{}/layer.tar", "long-name-".repeat(30));
    let bytes = layer("x");
    let manifest = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": [long]}]);
    // ::tar::Builder writes GNU long names.
    let gnu =
        Tar::new().json("c", &config(&[&bytes])).file(&long, &bytes).json("manifest.json", &manifest).done();
    assert_layers_are_true(&room.docker(&gnu).unwrap());
    // The same by a PAX header, which states the size too and contradicts the plain header.
    let mut pax = Tar::new().json("c", &config(&[&bytes])).json("manifest.json", &manifest);
    let size = bytes.len().to_string();
    pax.0.append_pax_extensions([("path", long.as_bytes()), ("size", size.as_bytes())]).unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut tar = pax.0.into_inner().unwrap();
    tar.truncate(tar.len() - 1024);
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&bytes);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    assert_layers_are_true(&room.docker(&tar).unwrap());
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_allocated() {
    let room = Room::new();
    for (kind, size) in [
        (::tar::EntryType::Regular, u64::MAX),
        (::tar::EntryType::Regular, 1 << 40),
        (::tar::EntryType::GNULongName, 1 << 40),
        (::tar::EntryType::XHeader, u64::MAX - 511),
    ] {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("manifest.json").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        let tar = [header.as_bytes().as_slice(), &[0; 4096]].concat();
        let error = cause(room.docker(&tar));
        assert!(matches!(error, ArchiveError::Truncated { .. }), "{error}");
    }
    let small = Room::within(Limits { pax_bytes_max: 100, ..Limits::default() });
    let long = Tar::new().file(&"n".repeat(200), b"").done();
    assert!(matches!(cause(small.docker(&long)), ArchiveError::Limit { flag: "pax_bytes_max", .. }));
    let few = Room::within(Limits { archive_members_max: 2, ..Limits::default() });
    let many = Tar::new().file("a", b"").file("b", b"").file("c", b"").done();
    assert!(matches!(cause(few.docker(&many)), ArchiveError::Limit { flag: "archive_members_max", .. }));
    let names = Room::within(Limits { archive_members_max: 10, ..Limits::default() });
    let long = Tar::new().file(&"n".repeat(2561), b"").done();
    let error = cause(names.docker(&long));
    assert!(error.to_string().contains("2560 bytes of member names"), "{error}");
    let short = Room::within(Limits { manifest_bytes_max: 10, ..Limits::default() });
    let error = cause(short.docker(&new_form(&[("x", &["a:1"])])));
    assert!(matches!(error, ArchiveError::TooLarge { flag: "manifest_bytes_max", .. }));
}

#[test]
fn malformed_extended_headers_are_refused() {
    let room = Room::new();
    for records in ["x", "99 path=x\n", "0 a=b\n", "6 ab\n\n", "18446744073709551616 a=b\n", "7 a=b\n"] {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(::tar::EntryType::XHeader);
        header.set_path("x").unwrap();
        header.set_size(records.len() as u64);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend_from_slice(records.as_bytes());
        tar.resize(1024, 0);
        tar.extend(new_form(&[("x", &["a:1"])]));
        let error = cause(room.docker(&tar));
        assert!(matches!(error, ArchiveError::NotTar { offset: 0, .. }), "{records:?}: {error}");
    }
}

/// A header with its records before it, and data after it.
fn raw_member(kind: u8, name: &str, size: u64, records: &[(&str, &str)], data: &[u8]) -> Vec<u8> {
    let block = |kind: u8, name: &str, size: u64| {
        let mut header = ::tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.as_mut_bytes()[156] = kind;
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let mut member = Vec::new();
    if !records.is_empty() {
        let mut pax = ::tar::Builder::new(Vec::new());
        pax.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
        member = pax.into_inner().unwrap();
        member.truncate(member.len() - 1024);
    }
    member.extend(block(kind, name, size));
    member.extend_from_slice(data);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

/// Where an archive and a layer are read differently, what one tool checked is not what the other unpacks.
#[test]
fn fuzz_members_are_those_that_layers_would_have() {
    let room = Room::new();
    let image = new_form(&[("x", &["a:1"])]);
    let header = |kind: u8, name: &str| raw_member(kind, name, image.len() as u64, &[], b"");
    // No data follows a device, a fifo or an old directory, whatever size it states: the image comes right after it.
    for first in [header(b'3', "d"), header(b'4', "d"), header(b'6', "d"), header(0, "d/")] {
        assert_layers_are_true(&room.docker(&[&first[..], &image].concat()).unwrap());
    }
    // An empty record takes the one before it back, and a long name wins over a record, before or after it.
    let taken_back = raw_member(b'0', "manifest.json", 2, &[("path", "other"), ("path", "")], b"[]");
    let long = raw_member(b'L', "././@LongLink", 14, &[], b"manifest.json\0");
    let long_first = [long.clone(), raw_member(b'0', "x", 2, &[("path", "other")], b"[]")].concat();
    let records = raw_member(b'0', "x", 0, &[("path", "other")], b"");
    let (records, plain) = records.split_at(records.len() - 512);
    let mut two = raw_member(b'0', "x", 2, &[], b"[]");
    let data = two.split_off(512);
    assert_eq!(plain.len(), two.len());
    let long_last = [records, &long, &two, &data].concat();
    // The second of two headers with records takes the place of the first; an empty long name is none.
    let second = raw_member(b'0', "manifest.json", 2, &[("comment", "x")], b"[]");
    let twice = [records, &second[..]].concat();
    let no_name =
        [raw_member(b'L', "././@LongLink", 1, &[], b"\0"), raw_member(b'0', "manifest.json", 2, &[], b"[]")]
            .concat();
    for last in [taken_back, long_first, long_last, twice, no_name] {
        let tar = [&image[..image.len() - 1024], &last, &[0; 1024]].concat();
        let error = cause(room.docker(&tar));
        assert!(matches!(error, ArchiveError::NoSuchImage { .. }), "the last manifest is not seen: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A fixture with some bytes changed: an answer or an error, never a panic, and never a layer outside the file.
    #[test]
    fn a_damaged_archive_gets_an_answer(
        form in 0..4usize,
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let room = Room::new();
        let mut layout = Layout::new();
        let image = layout.image("a");
        layout.index(&[image]);
        let mut bytes = match form {
            0 => new_form(&[("x", &["a:1"])]),
            1 => old_form(&[("base", None), ("top", Some("base"))], Some(json!({"a": {"1": "top"}}))).done(),
            2 => layout.tar(),
            _ => gzip(&new_form(&[("x", &["a:1"])])),
        };
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let path = room.file("a", &bytes);
        let plan = if form == 2 { room.archives.oci_archive(&path, None) } else { room.archives.docker_archive(&path, None) };
        if let Ok(plan) = plan {
            for layer in &plan.layers {
                let LayerSource::Archive { path, offset, size, .. } = &layer.source else { panic!() };
                prop_assert!(offset + size <= fs::metadata(path).unwrap().len());
            }
        }
    }
}

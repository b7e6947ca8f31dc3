//! `docker save` archives of both forms, whole and broken.

use keelblock::limits::Limits;
use keelblock::provider::archive::ArchiveError;
use keelblock::provider::manifest::ManifestError;
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::LayerKey;
use serde_json::json;

use crate::support::*;

#[test]
fn layers_may_be_links_to_each_other() {
    let room = Room::new();
    let bytes = layer("shared");
    let manifest = json!([{"Config": "c.json", "RepoTags": ["a:1"],
                           "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar", "four/layer.tar"]}]);
    let tar = Tar::new()
        .file("one/layer.tar", &bytes)
        .entry(::tar::EntryType::Symlink, "two/layer.tar", "../one/layer.tar")
        .entry(::tar::EntryType::Link, "three/layer.tar", "one/layer.tar")
        .entry(::tar::EntryType::Symlink, "four/layer.tar", "../three/../two/layer.tar")
        .json("c.json", &config(&[&bytes, &bytes, &bytes, &bytes]))
        .json("manifest.json", &manifest)
        .done();
    let plan = room.docker(&tar).unwrap();
    assert_eq!(plan.layers.len(), 4);
    assert_layers_are_true(&plan);
}

#[test]
fn links_out_of_the_archive_and_in_circles_are_refused() {
    let room = Room::new();
    let with = |target: &str| {
        let manifest = json!([{"Config": "c", "RepoTags": [], "Layers": ["d/l"]}]);
        let tar = Tar::new().json("manifest.json", &manifest).json("c", &config(&[b""]));
        tar.entry(::tar::EntryType::Symlink, "d/l", target)
            .entry(::tar::EntryType::Symlink, "d/m", "l")
            .done()
    };
    for (target, wrong) in [("../../etc/passwd", "out of"), ("m", "circle"), ("./l", "circle")] {
        let error = cause(room.docker(&with(target)));
        assert!(matches!(&error, ArchiveError::Link { .. }) && error.to_string().contains(wrong), "{error}");
    }
    for target in ["/etc/passwd", "nothing"] {
        let error = cause(room.docker(&with(target)));
        assert!(matches!(&error, ArchiveError::Missing { .. }), "{error}");
    }
}

#[test]
fn what_is_missing_or_of_the_wrong_kind_is_named() {
    let room = Room::new();
    let bytes = layer("x");
    let manifest = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]);
    let start = || Tar::new().json("manifest.json", &manifest);
    let error = cause(room.docker(&start().file("l", &bytes).done()));
    assert!(matches!(&error, ArchiveError::Missing { member, .. } if member == "c"), "{error}");
    let error = cause(room.docker(&start().json("c", &config(&[&bytes])).done()));
    assert!(matches!(&error, ArchiveError::Missing { member, .. } if member == "l"), "{error}");
    let fifo = start().json("c", &config(&[&bytes])).entry(::tar::EntryType::Fifo, "l", "x").done();
    assert!(matches!(cause(room.docker(&fifo)), ArchiveError::NotRegular { .. }));
    let directory = start().json("c", &config(&[&bytes])).entry(::tar::EntryType::Directory, "l", "x").done();
    assert!(matches!(cause(room.docker(&directory)), ArchiveError::NotRegular { found: "a directory", .. }));
    let few = start().json("c", &config(&[])).file("l", &bytes).done();
    let error = cause(room.docker(&few));
    let ArchiveError::Manifest { source, member, .. } = &error else { panic!("{error}") };
    assert_eq!((source, member.as_str()), (&ManifestError::LayerCount { layers: 1, diff_ids: 0 }, "c"));
    for nonsense in ["", "{}", "[3]", "[{\"Config\": 3}]", "[[[[", "null"] {
        let error = cause(room.docker(&Tar::new().file("manifest.json", nonsense.as_bytes()).done()));
        assert!(matches!(&error, ArchiveError::Json { .. }), "{nonsense}: {error}");
    }
    let error = cause(room.docker(&Tar::new().file("etc/passwd", b"x").done()));
    assert!(error.to_string().contains("not made by docker save"), "{error}");
}

#[test]
fn a_config_must_have_the_digest_it_is_named_by() {
    let room = Room::new();
    let bytes = layer("x");
    let good = config(&[&bytes]).to_string();
    let (right, wrong) = (Digest::of(good.as_bytes()).hex(), Digest::of(b"other").hex());
    for form in ["{}.json", "blobs/sha256/{}", "sha256:{}"] {
        let with = |hex: &str| {
            let name = form.replace("{}", hex);
            let manifest = json!([{"Config": name, "RepoTags": ["a:1"], "Layers": ["l"]}]);
            Tar::new().json("manifest.json", &manifest).file(&name, good.as_bytes()).file("l", &bytes).done()
        };
        room.docker(&with(&right)).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(matches!(cause(room.docker(&with(&wrong))), ArchiveError::WrongDigest { .. }), "{form}");
    }
}

#[test]
fn the_old_form_is_a_chain_from_the_tag_to_the_base() {
    let room = Room::new();
    let tags = json!({"app": {"1": "top", "0": "base"}});
    let tar = old_form(&[("base", None), ("mid", Some("base")), ("top", Some("mid"))], Some(tags)).done();
    let path = room.file("old.tar", &tar);
    let plan = room.archives.docker_archive(&path, Some(&reference("app:1"))).unwrap();
    let expected = ["base", "mid", "top"].map(|id| LayerKey::Diff(DiffId(Digest::of(&layer(id)))));
    assert_eq!(diff_ids(&plan), expected);
    assert_eq!(plan.runtime.cmd, ["top"]);
    assert_layers_are_true(&plan);
    let base = room.archives.docker_archive(&path, Some(&reference("docker.io/library/app:0"))).unwrap();
    assert_eq!(base.layers.len(), 1);
    assert!(matches!(cause(room.archives.docker_archive(&path, None)), ArchiveError::Several { .. }));
    assert!(matches!(
        cause(room.archives.docker_archive(&path, Some(&reference("app")))),
        ArchiveError::NoSuchImage { .. }
    ));
}

#[test]
fn the_old_form_saved_by_id_has_its_one_top_found() {
    let room = Room::new();
    let tar = old_form(&[("base", Some("")), ("top", Some("base"))], None).done();
    assert_eq!(room.docker(&tar).unwrap().layers.len(), 2);
    let two = old_form(&[("base", None), ("x", Some("base")), ("y", Some("base"))], None).done();
    assert!(matches!(cause(room.docker(&two)), ArchiveError::Several { .. }));
    let circle = old_form(&[("x", Some("y")), ("y", Some("x"))], None).done();
    assert!(matches!(cause(room.docker(&circle)), ArchiveError::NoSuchImage { .. }));
}

#[test]
fn broken_chains_of_the_old_form_are_named() {
    let room = Room::new();
    let tags = || Some(json!({"a": {"latest": "top"}}));
    let circle = old_form(&[("top", Some("mid")), ("mid", Some("top"))], tags()).done();
    assert!(matches!(cause(room.docker(&circle)), ArchiveError::Cycle { layer, .. } if layer == "top"));
    let orphan = old_form(&[("top", Some("../../etc"))], tags()).done();
    assert!(
        matches!(cause(room.docker(&orphan)), ArchiveError::Missing { member, .. } if member == "../../etc/json")
    );
    let no_tar = Tar::new().json("top/json", &json!({})).json("repositories", &tags().unwrap()).done();
    assert!(
        matches!(cause(room.docker(&no_tar)), ArchiveError::Missing { member, .. } if member == "top/layer.tar")
    );
    let wrong =
        Tar::new().json("top/json", &json!({"parent": 3})).json("repositories", &tags().unwrap()).done();
    assert!(matches!(cause(room.docker(&wrong)), ArchiveError::Json { member, .. } if member == "top/json"));
    let few = Room::within(Limits { layers_max: 2, ..Limits::default() });
    let long = old_form(&[("a", None), ("b", Some("a")), ("top", Some("b"))], tags()).done();
    let error = cause(few.docker(&long));
    assert!(matches!(error, ArchiveError::Manifest { source: ManifestError::TooManyLayers { .. }, .. }));
}

#[test]
fn a_compressed_layer_of_the_old_form_is_known_by_its_tar() {
    let room = Room::new();
    let tar = layer("x");
    let archive = Tar::new()
        .json("top/json", &json!({}))
        .file("top/layer.tar", &gzip(&tar))
        .json("repositories", &json!({"a": {"latest": "top"}}))
        .done();
    let plan = room.docker(&archive).unwrap();
    assert_eq!(diff_ids(&plan), [LayerKey::Diff(DiffId(Digest::of(&tar)))]);
    assert_layers_are_true(&plan);
}

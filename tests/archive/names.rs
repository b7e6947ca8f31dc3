//! Images found by path, name, tag and platform.

use std::path::Path;

use keelblock::limits::Limits;
use keelblock::provider::archive::{ArchiveError, Archives};
use keelblock::provider::manifest::Platform;
use keelblock_actors::error::{ResolveError, chain};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::plan::LayerSource;
use serde_json::json;

use crate::support::*;

#[test]
fn every_bundled_image_is_found_by_name_and_its_layers_are_true() {
    let room = Room::new();
    for (name, layers) in [
        ("hello", 2),
        ("hello-old", 2),
        ("single", 1),
        ("entrypoint", 1),
        ("layers", 7),
        ("devices", 2),
        ("sparse", 2),
    ] {
        let plan =
            room.archives.by_name(&fixtures(), &reference(name)).unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(plan.layers.len(), layers, "{name}");
        assert_eq!(plan.identity.name.to_string(), format!("docker:docker.io/library/{name}:latest"));
        assert_layers_are_true(&plan);
        let tagged = room.archives.by_name(&fixtures(), &reference(&format!("{name}:latest"))).unwrap();
        assert_eq!(tagged, plan, "a tag that is the default changes nothing");
    }
    assert!(room.spooled().is_empty(), "plain archives are read where they are");
}

#[test]
fn one_image_has_the_same_layers_in_every_form() {
    let room = Room::new();
    let hello = room.archives.by_name(&fixtures(), &reference("hello")).unwrap();
    let old = room.archives.docker_archive(&fixtures().join("hello-old.tar"), None).unwrap();
    let directory = room.archives.oci_layout(&fixtures().join("oci/hello"), Some("latest")).unwrap();
    let archive = room.archives.oci_archive(&fixtures().join("hello-oci.tar"), None).unwrap();
    for other in [&old, &directory, &archive] {
        assert_eq!(diff_ids(other), diff_ids(&hello));
        assert_eq!(other.runtime, hello.runtime);
        assert_layers_are_true(other);
    }
    assert_eq!(directory.identity.config, hello.identity.config);
    assert_eq!(directory.identity.manifest, archive.identity.manifest);
    assert_eq!(hello.identity.manifest, hello.identity.config, "docker save keeps no manifest");
    assert_eq!(hello.runtime.cmd, ["/bin/hello"]);
    let name = format!("oci:{}:latest", fixtures().join("oci/hello").display());
    assert_eq!(directory.identity.name.to_string(), name);
}

#[test]
fn the_platform_chooses_in_the_index() {
    let room = Room::new();
    let arm: Platform = "linux/arm64/v8".parse().unwrap();
    let archives = Archives::new(Limits::default(), room.directory.path().join("spool"), arm);
    let plan = archives.oci_layout(&fixtures().join("oci/hello"), None).unwrap();
    assert_eq!(plan.layers.len(), 1);
    let s390: Platform = "linux/s390x".parse().unwrap();
    let archives = Archives::new(Limits::default(), room.directory.path().join("spool"), s390);
    let error = archives.oci_layout(&fixtures().join("oci/hello"), None).unwrap_err();
    assert!(chain(&error).contains("it offers linux/arm64, linux/amd64"), "{}", chain(&error));
}

#[test]
fn paths_are_remembered_absolute_whatever_they_are_given_as() {
    let room = Room::new();
    let relative = Path::new("fixtures/images/hello.tar");
    let plan = room.archives.docker_archive(relative, Some(&reference("hello"))).unwrap();
    let name = format!("docker-archive:{}:hello", fixtures().join("hello.tar").display());
    assert_eq!(plan.identity.name.to_string(), name);
    assert!(matches!(&plan.layers[0].source, LayerSource::Archive { path, .. } if path.is_absolute()));
}

#[test]
fn a_name_is_looked_for_as_written_and_by_the_default_tag() {
    let room = Room::new();
    room.file("dir/a/b:latest.tar", &new_form(&[("x", &["a/b:latest"])]));
    room.file("dir/c.tar", &new_form(&[("y", &["c:latest", "c:1"])]));
    room.file("dir/c:1.tar", &new_form(&[("z", &["docker.io/library/c:1"])]));
    room.file("dir/h.io:5000/d.tar", &new_form(&[("w", &["h.io:5000/d:latest"])]));
    let directory = room.directory.path().join("dir");
    let find = |name: &str| room.archives.by_name(&directory, &reference(name));
    for name in ["a/b", "a/b:latest", "c", "c:latest", "c:1", "h.io:5000/d"] {
        assert_layers_are_true(&find(name).unwrap_or_else(|error| panic!("{}", chain(&error))));
    }
    assert_ne!(diff_ids(&find("c").unwrap()), diff_ids(&find("c:1").unwrap()));
    let ResolveError::NotFound { place, source, .. } = find("c:2").unwrap_err() else { panic!() };
    assert_eq!(place, directory.display().to_string());
    assert_eq!(source.unwrap().to_string(), "there is no file c:2.tar");
    let error = find("nothing").unwrap_err();
    assert!(
        chain(&error).ends_with("there is no file nothing.tar, nor nothing:latest.tar"),
        "{}",
        chain(&error)
    );
    let digest = Digest::of(b"x");
    assert!(matches!(cause(find(&format!("c@{digest}"))), ArchiveError::ByDigest { .. }));
}

#[test]
fn an_archive_that_holds_another_image_says_which() {
    let room = Room::new();
    room.file("a.tar", &new_form(&[("x", &["other:1", "other:2"])]));
    let error = cause(room.archives.by_name(room.directory.path(), &reference("a")));
    assert!(matches!(&error, ArchiveError::NoSuchImage { .. }));
    assert!(error.to_string().ends_with("has no image \"a\"; it has \"other:1\", \"other:2\""), "{error}");
}

#[test]
fn one_image_of_several_is_chosen_by_name_alone() {
    let room = Room::new();
    let path = room.file("two.tar", &new_form(&[("x", &["a:1"]), ("y", &["b:1", "localhost/c:latest"])]));
    let one = |name: &str| room.archives.docker_archive(&path, Some(&reference(name)));
    assert_ne!(diff_ids(&one("a:1").unwrap()), diff_ids(&one("docker.io/library/b:1").unwrap()));
    assert_eq!(
        diff_ids(&one("c").unwrap()),
        diff_ids(&one("b:1").unwrap()),
        "podman's localhost/ is forgiven"
    );
    assert!(matches!(cause(one("a")), ArchiveError::NoSuchImage { .. }));
    let error = cause(room.archives.docker_archive(&path, None));
    assert!(error.to_string().contains("name one of \"a:1\", \"b:1\", \"localhost/c:latest\""), "{error}");
}

#[test]
fn an_image_without_a_name_is_the_only_one_or_none() {
    let room = Room::new();
    let layer = layer("x");
    let manifest = json!([{"Config": "c", "RepoTags": null, "Layers": ["l"]}]);
    let tar =
        Tar::new().json("manifest.json", &manifest).json("c", &config(&[&layer])).file("l", &layer).done();
    assert_layers_are_true(&room.docker(&tar).unwrap());
    assert!(matches!(
        cause(room.docker(&Tar::new().json("manifest.json", &json!([])).done())),
        ArchiveError::NoSuchImage { .. }
    ));
}

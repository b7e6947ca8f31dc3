//! OCI image layouts, as directory and as tar, and what other tools write.

use std::fs;
use std::process::Command;

use keelblock::provider::archive::ArchiveError;
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::plan::ImagePlan;
use serde_json::{Value, json};

use crate::support::*;

/// Resolves a layout as directory and as archive; both must say the same.
fn both(layout: &Layout, tag: Option<&str>) -> Result<ImagePlan, ArchiveError> {
    let room = Room::new();
    let directory = room.archives.oci_layout(&layout.write(&room), tag);
    let archive = room.archives.oci_archive(&room.file("layout.tar", &layout.tar()), tag);
    match (directory, archive) {
        (Ok(directory), Ok(archive)) => {
            assert_eq!(diff_ids(&directory), diff_ids(&archive));
            assert_eq!(directory.identity.manifest, archive.identity.manifest);
            assert_layers_are_true(&directory);
            assert_layers_are_true(&archive);
            Ok(directory)
        }
        (Err(directory), Err(archive)) => {
            let (directory, archive) = (cause(Err::<(), _>(directory)), cause(Err::<(), _>(archive)));
            assert_eq!(
                std::mem::discriminant(&directory),
                std::mem::discriminant(&archive),
                "{directory}, {archive}"
            );
            Err(directory)
        }
        (directory, archive) => panic!("as directory {directory:?}, as archive {archive:?}"),
    }
}

fn manifest_of(layout: &Layout, tag: Option<&str>) -> String {
    both(layout, tag).unwrap_or_else(|error| panic!("{}", chain(&error))).identity.manifest.to_string()
}

#[test]
fn a_tag_or_full_name_finds_its_manifest() {
    let mut layout = Layout::new();
    let (a, b, c) = (layout.image("a"), layout.image("b"), layout.image("c"));
    let mut by_docker = named(c.clone(), "1.0");
    by_docker["annotations"]["io.containerd.image.name"] = json!("docker.io/library/app:1.0");
    layout.index(&[named(a.clone(), "latest"), named(b.clone(), "docker.io/library/web:2"), by_docker]);
    for (tag, wanted) in [
        ("latest", &a),
        ("docker.io/library/web:2", &b),
        ("web:2", &b),
        ("2", &b),
        ("1.0", &c),
        ("docker.io/library/app:1.0", &c),
        ("app:1.0", &c),
    ] {
        assert_eq!(manifest_of(&layout, Some(tag)), digest_of(wanted), "{tag}");
    }
    let error = both(&layout, Some("3")).unwrap_err();
    assert!(matches!(&error, ArchiveError::NoSuchImage { .. }));
    assert!(
        error.to_string().ends_with("it has \"latest\", \"docker.io/library/web:2\", \"1.0\""),
        "{error}"
    );
    assert!(matches!(both(&layout, None).unwrap_err(), ArchiveError::Several { .. }));
}

#[test]
fn without_a_tag_one_image_or_one_name_will_do() {
    let mut layout = Layout::new();
    let (a, b) = (layout.image("a"), layout.image("b"));
    layout.index(std::slice::from_ref(&a));
    assert_eq!(manifest_of(&layout, None), digest_of(&a));
    layout.index(&[named(a.clone(), "x"), named(a.clone(), "y")]);
    assert_eq!(manifest_of(&layout, None), digest_of(&a), "two names of one image");
    layout.index(&[on(a.clone(), "linux/arm64"), on(b.clone(), "linux/amd64")]);
    assert_eq!(manifest_of(&layout, None), digest_of(&b));
    layout.index(&[named(on(a.clone(), "linux/arm64"), "x"), named(on(b.clone(), "linux/amd64"), "x")]);
    assert_eq!(manifest_of(&layout, None), digest_of(&b));
    assert_eq!(manifest_of(&layout, Some("x")), digest_of(&b));
    layout.index(&[named(on(a, "linux/arm64"), "x"), named(on(b, "linux/amd64"), "y")]);
    assert!(matches!(both(&layout, None), Err(ArchiveError::Several { .. })));
    layout.index(&[]);
    assert!(matches!(both(&layout, None), Err(ArchiveError::NoSuchImage { .. })));
}

#[test]
fn attestations_beside_an_image_are_passed_over() {
    let mut layout = Layout::new();
    let image = on(layout.image("a"), "linux/amd64");
    let mut attestation = on(layout.image("b"), "unknown/unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    layout.index(&[attestation.clone(), image.clone()]);
    assert_eq!(manifest_of(&layout, None), digest_of(&image));
    let inner = layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": [attestation, image]}));
    layout.index(&[named(inner, "latest")]);
    assert_eq!(manifest_of(&layout, Some("latest")), digest_of(&image));
}

#[test]
fn indexes_within_indexes_end_somewhere() {
    let mut layout = Layout::new();
    let image = layout.image("a");
    let mut entry = image.clone();
    for depth in 1..=6 {
        entry = layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": [entry]}));
        layout.index(std::slice::from_ref(&entry));
        match both(&layout, None) {
            Ok(plan) => {
                assert!(depth <= 4 && plan.identity.manifest.to_string() == digest_of(&image), "{depth}")
            }
            Err(error) => {
                assert!(
                    depth > 4 && matches!(error, ArchiveError::Limit { flag: "index_depth_max", .. }),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn blobs_that_are_not_what_their_names_say_are_refused() {
    let make = || {
        let mut layout = Layout::new();
        let image = layout.image("a");
        layout.index(std::slice::from_ref(&image));
        (layout, image)
    };
    let blob = |entry: &Value| format!("blobs/sha256/{}", &digest_of(entry)[7..]);
    let (mut layout, image) = make();
    let name = blob(&image);
    let bytes = layout.0.get_mut(&name).unwrap();
    let place = bytes.iter().position(|&byte| byte == b'2').unwrap();
    bytes[place] = b'3';
    assert!(matches!(both(&layout, None), Err(ArchiveError::WrongDigest { member, .. }) if member == name));
    layout.0.get_mut(&name).unwrap().push(b' ');
    assert!(matches!(both(&layout, None), Err(ArchiveError::WrongSize { .. })));
    layout.0.remove(&name);
    assert!(matches!(both(&layout, None), Err(ArchiveError::Missing { member, .. }) if member == name));

    // The layer blob: its length is seen here, its content by the store.
    let (mut layout, _) = make();
    let layer = format!("blobs/sha256/{}", Digest::of(&self::layer("a")).hex());
    layout.0.get_mut(&layer).unwrap().push(0);
    assert!(matches!(both(&layout, None), Err(ArchiveError::WrongSize { member, .. }) if member == layer));
    layout.0.remove(&layer);
    assert!(matches!(both(&layout, None), Err(ArchiveError::Missing { member, .. }) if member == layer));
}

#[test]
fn what_is_no_layout_of_a_known_version_is_refused() {
    let mut layout = Layout::new();
    let image = layout.image("a");
    layout.index(std::slice::from_ref(&image));
    for (marker, known) in [("1.1.3", true), ("2.0.0", false), ("", false), ("10", false)] {
        let text = json!({"imageLayoutVersion": marker}).to_string();
        layout.0.insert("oci-layout".into(), text.into_bytes());
        let result = both(&layout, None);
        assert!(known == result.is_ok());
        assert!(known || matches!(result, Err(ArchiveError::LayoutVersion { .. })));
    }
    layout.0.insert("oci-layout".into(), b"nonsense".to_vec());
    assert!(matches!(both(&layout, None), Err(ArchiveError::Json { .. })));
    layout.0.remove("oci-layout");
    let error = both(&layout, None).unwrap_err();
    assert!(error.to_string().contains("no OCI image layout"), "{error}");
    let mut layout = Layout::new();
    assert!(
        matches!(both(&layout, None), Err(ArchiveError::Missing { member, .. }) if member == "index.json")
    );
    for index in ["[]", "{}", "{\"manifests\": 3}", "{\"config\": null, \"layers\": []}"] {
        layout.0.insert("index.json".into(), index.as_bytes().to_vec());
        assert!(matches!(both(&layout, None), Err(ArchiveError::Manifest { .. })), "{index}");
    }
}

#[test]
fn blobs_may_be_links_but_only_to_files() {
    let room = Room::new();
    let mut layout = Layout::new();
    let image = layout.image("a");
    layout.index(std::slice::from_ref(&image));
    let path = layout.write(&room);
    let blob = path.join(format!("blobs/sha256/{}", &digest_of(&image)[7..]));
    let elsewhere = room.directory.path().join("elsewhere");
    fs::rename(&blob, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    assert_layers_are_true(&room.archives.oci_layout(&path, None).unwrap());
    for target in ["/dev/zero", "/"] {
        fs::remove_file(&blob).unwrap();
        std::os::unix::fs::symlink(target, &blob).unwrap();
        assert!(
            matches!(cause(room.archives.oci_layout(&path, None)), ArchiveError::NotRegular { .. }),
            "{target}"
        );
    }
}

#[test]
fn what_skopeo_writes_is_read() {
    let version = Command::new("skopeo").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: skopeo is not installed");
        return;
    }
    let room = Room::new();
    let hello = room.archives.by_name(&fixtures(), &reference("hello")).unwrap();
    let at = |name: &str| room.directory.path().join(name);
    for (target, name) in [
        (format!("docker-archive:{}:a:1", at("d.tar").display()), "d.tar"),
        (format!("oci:{}:a", at("o").display()), "o"),
        (format!("oci-archive:{}:a", at("o.tar").display()), "o.tar"),
    ] {
        let source = format!("docker-archive:{}", fixtures().join("hello.tar").display());
        let copy = Command::new("skopeo").args(["copy", "-q", &source, &target]).status().unwrap();
        assert!(copy.success(), "{target}");
        let plan = match name {
            "d.tar" => room.archives.docker_archive(&at(name), Some(&reference("a:1"))),
            "o" => room.archives.oci_layout(&at(name), Some("a")),
            _ => room.archives.oci_archive(&at(name), Some("a")),
        };
        let plan = plan.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(diff_ids(&plan), diff_ids(&hello), "{target}");
        assert_layers_are_true(&plan);
    }
}

#[test]
fn an_archive_of_docker_25_is_both_forms_at_once() {
    let room = Room::new();
    let mut layout = Layout::new();
    let bytes = layer("a");
    let image = layout.image("a");
    layout.index(&[named(image, "1")]);
    let config = config(&[&bytes]).to_string();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let manifest = json!([{"Config": blob(config.as_bytes()), "RepoTags": ["a:1"], "Layers": [blob(&bytes)],
                           "LayerSources": {}}]);
    layout.0.insert("manifest.json".into(), manifest.to_string().into_bytes());
    let path = room.file("25.tar", &layout.tar());
    let docker = room.archives.docker_archive(&path, Some(&reference("a:1"))).unwrap();
    let oci = room.archives.oci_archive(&path, Some("1")).unwrap();
    assert_eq!(diff_ids(&docker), diff_ids(&oci));
    assert_eq!(docker.identity.config, oci.identity.config);
    assert_layers_are_true(&docker);
}

//! Archives and layouts resolved and their layers read: the fixtures, what other tools make, and what enemies make.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use keelblock::limits::Limits;
use keelblock::provider::archive::{ArchiveError, Archives, SPOOL_IDLE};
use keelblock::provider::manifest::{ManifestError, Platform};
use keelblock::puller::local::LocalPuller;
use keelblock_actors::error::{FetchError, ResolveError, chain};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{ImagePlan, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::image::reference::Reference;
use keelblock_actors::ports::Puller;
use keelblock_actors::stop::Stop;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

// ---- support ------------------------------------------------------------------------------------------------

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images")
}

struct Room {
    directory: TempDir,
    archives: Archives,
}

impl Room {
    fn new() -> Self {
        Self::within(Limits::default())
    }

    fn within(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let archives = Archives::new(limits, directory.path().join("spool"), "linux/amd64".parse().unwrap());
        Self { directory, archives }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn docker(&self, bytes: &[u8]) -> Result<ImagePlan, ResolveError> {
        self.archives.docker_archive(&self.file("image.tar", bytes), None)
    }

    fn spooled(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory.path().join("spool")) else { return vec![] };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// The room's own error below the port's.
#[track_caller]
fn cause<T: std::fmt::Debug>(result: Result<T, ResolveError>) -> ArchiveError {
    match result.unwrap_err() {
        ResolveError::Failed { source, .. } | ResolveError::NotFound { source: Some(source), .. } => {
            *source.downcast().expect("the source is an ArchiveError")
        }
        other => panic!("{other}"),
    }
}

fn fetch(layer: &LayerSpec) -> Result<Vec<u8>, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut blob = runtime.block_on(LocalPuller.open(layer))?;
    let mut bytes = Vec::new();
    blob.reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(blob.size, Some(bytes.len() as u64));
    Ok(bytes)
}

/// Fetches every layer and compares it with the diff ID the plan promises.
#[track_caller]
fn assert_layers_are_true(plan: &ImagePlan) {
    for layer in &plan.layers {
        let bytes = fetch(layer).unwrap_or_else(|error| panic!("{}", chain(&error)));
        if let Some(digest) = &layer.blob.digest {
            assert_eq!(Digest::of(&bytes), *digest);
        }
        if let Some(size) = layer.blob.size {
            assert_eq!(bytes.len() as u64, size);
        }
        let tar = match &bytes[..2] {
            [0x1f, 0x8b] => {
                let mut tar = Vec::new();
                flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut tar).unwrap();
                tar
            }
            [0x28, 0xb5] => zstd::decode_all(&bytes[..]).unwrap(),
            _ => bytes,
        };
        assert_eq!(layer.key, LayerKey::Diff(DiffId(Digest::of(&tar))));
    }
}

fn diff_ids(plan: &ImagePlan) -> Vec<LayerKey> {
    plan.layers.iter().map(|layer| layer.key.clone()).collect()
}

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, name, bytes).unwrap();
        self
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string().as_bytes())
    }

    fn entry(mut self, kind: tar::EntryType, name: &str, target: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn layer(text: &str) -> Vec<u8> {
    Tar::new().file("file", text.as_bytes()).done()
}

fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|bytes| Digest::of(bytes).to_string()).collect();
    json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

/// An archive of the new form with one layer and these tags for each image.
fn new_form(images: &[(&str, &[&str])]) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut manifest = Vec::new();
    for (text, tags) in images {
        let layer = layer(text);
        manifest.push(
            json!({"Config": format!("{text}-config"), "RepoTags": tags, "Layers": [format!("{text}.tar")]}),
        );
        tar = tar.json(&format!("{text}-config"), &config(&[&layer])).file(&format!("{text}.tar"), &layer);
    }
    tar.json("manifest.json", &Value::Array(manifest)).done()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The files of an OCI layout, to be tampered with.
struct Layout(BTreeMap<String, Vec<u8>>);

impl Layout {
    fn new() -> Self {
        let mut files = BTreeMap::new();
        files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        Self(files)
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    fn document(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// An image of one layer.
    fn image(&mut self, text: &str) -> Value {
        let bytes = layer(text);
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", &bytes);
        let config = self.document("application/vnd.oci.image.config.v1+json", &config(&[&bytes]));
        self.document(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
    }

    fn index(&mut self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        self.0.insert("index.json".to_owned(), index.to_string().into_bytes());
    }

    fn write(&self, room: &Room) -> PathBuf {
        for (name, bytes) in &self.0 {
            room.file(&format!("layout/{name}"), bytes);
        }
        room.directory.path().join("layout")
    }

    fn tar(&self) -> Vec<u8> {
        self.0.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(&format!("./{name}"), bytes)).done()
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn named(mut entry: Value, name: &str) -> Value {
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    entry
}

fn on(mut entry: Value, platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').unwrap();
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry
}

fn digest_of(entry: &Value) -> String {
    entry["digest"].as_str().unwrap().to_owned()
}

// ---- fixtures -----------------------------------------------------------------------------------------------

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

// ---- names --------------------------------------------------------------------------------------------------

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

// ---- docker save --------------------------------------------------------------------------------------------

#[test]
fn layers_may_be_links_to_each_other() {
    let room = Room::new();
    let bytes = layer("shared");
    let manifest = json!([{"Config": "c.json", "RepoTags": ["a:1"],
                           "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar", "four/layer.tar"]}]);
    let tar = Tar::new()
        .file("one/layer.tar", &bytes)
        .entry(tar::EntryType::Symlink, "two/layer.tar", "../one/layer.tar")
        .entry(tar::EntryType::Link, "three/layer.tar", "one/layer.tar")
        .entry(tar::EntryType::Symlink, "four/layer.tar", "../three/../two/layer.tar")
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
        tar.entry(tar::EntryType::Symlink, "d/l", target).entry(tar::EntryType::Symlink, "d/m", "l").done()
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
    let fifo = start().json("c", &config(&[&bytes])).entry(tar::EntryType::Fifo, "l", "x").done();
    assert!(matches!(cause(room.docker(&fifo)), ArchiveError::NotRegular { .. }));
    let directory = start().json("c", &config(&[&bytes])).entry(tar::EntryType::Directory, "l", "x").done();
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

/// An archive of the old form: layers with their parents, and `repositories`.
fn old_form(layers: &[(&str, Option<&str>)], repositories: Option<Value>) -> Tar {
    let mut tar = Tar::new();
    for (id, parent) in layers {
        let json = json!({"id": id, "parent": parent, "config": {"Cmd": [id]}});
        tar = tar.json(&format!("{id}/json"), &json).file(&format!("{id}/layer.tar"), &layer(id));
    }
    match repositories {
        Some(value) => tar.json("repositories", &value),
        None => tar,
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

// ---- the tar itself -----------------------------------------------------------------------------------------

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
    // tar::Builder writes GNU long names.
    let gnu =
        Tar::new().json("c", &config(&[&bytes])).file(&long, &bytes).json("manifest.json", &manifest).done();
    assert_layers_are_true(&room.docker(&gnu).unwrap());
    // The same by a PAX header, which states the size too and contradicts the plain header.
    let mut pax = Tar::new().json("c", &config(&[&bytes])).json("manifest.json", &manifest);
    let size = bytes.len().to_string();
    pax.0.append_pax_extensions([("path", long.as_bytes()), ("size", size.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
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
        (tar::EntryType::Regular, u64::MAX),
        (tar::EntryType::Regular, 1 << 40),
        (tar::EntryType::GNULongName, 1 << 40),
        (tar::EntryType::XHeader, u64::MAX - 511),
    ] {
        let mut header = tar::Header::new_gnu();
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
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
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

// ---- compressed archives ------------------------------------------------------------------------------------

#[test]
fn a_compressed_archive_is_laid_out_once_and_read_from_there() {
    let room = Room::new();
    let tar = new_form(&[("x", &["a:1"])]);
    let plain = room.archives.docker_archive(&room.file("plain.tar", &tar), None).unwrap();
    for (name, bytes) in [("a.tar.gz", gzip(&tar)), ("a.tar.zst", zstd::encode_all(&tar[..], 1).unwrap())] {
        let path = room.file(name, &bytes);
        let plan = room.archives.docker_archive(&path, None).unwrap();
        assert_eq!(diff_ids(&plan), diff_ids(&plain));
        assert_layers_are_true(&plan);
        let spooled =
            room.spooled().into_iter().find(|name| name.starts_with(&Digest::of(&bytes).hex())).unwrap();
        let spooled = room.directory.path().join("spool").join(spooled);
        assert_eq!(fs::read(&spooled).unwrap(), tar);
        let before = fs::metadata(&spooled).unwrap();
        let copy = room.file(&format!("copy-{name}"), &bytes);
        room.archives.docker_archive(&copy, None).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            fs::metadata(&spooled).unwrap().ino(),
            before.ino(),
            "the same content is not laid out twice"
        );
        assert_eq!(before.mode() & 0o777, 0o600);
    }
    assert_eq!(room.spooled().len(), 2, "{:?}", room.spooled());
    // An archive made of several gzip members, as parallel compressors write them.
    let (left, right) = tar.split_at(700);
    let members = [gzip(left), gzip(right)].concat();
    assert_layers_are_true(&room.docker(&members).unwrap());
}

#[test]
fn a_compressed_archive_of_an_oci_layout_works_too() {
    let room = Room::new();
    let bytes = gzip(&fs::read(fixtures().join("hello-oci.tar")).unwrap());
    let plan = room.archives.oci_archive(&room.file("x.tgz", &bytes), Some("latest")).unwrap();
    assert_layers_are_true(&plan);
}

#[test]
fn a_bomb_or_a_broken_stream_leaves_no_file() {
    let room = Room::within(Limits { archive_bytes_max: 100_000, ..Limits::default() });
    let bomb = gzip(&vec![0; 10_000_000]);
    assert!(matches!(cause(room.docker(&bomb)), ArchiveError::Limit { flag: "archive_bytes_max", .. }));
    let cut = gzip(&new_form(&[("x", &["a:1"])]));
    for length in [10, cut.len() / 2, cut.len() - 1] {
        assert!(matches!(cause(room.docker(&cut[..length])), ArchiveError::Read { .. }), "{length}");
    }
    let mut flipped = cut.clone();
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    assert!(matches!(cause(room.docker(&flipped)), ArchiveError::Read { .. }), "the checksum of gzip counts");
    assert!(room.spooled().is_empty(), "{:?}", room.spooled());
}

#[test]
fn idle_spooled_files_and_those_of_dead_writers_are_swept() {
    let room = Room::new();
    let fresh = room.file("a.tgz", &gzip(&new_form(&[("x", &["a:1"])])));
    room.archives.docker_archive(&fresh, None).unwrap();
    let spooled = room.spooled().remove(0);
    let (_, boot) = spooled.split_once('.').unwrap();
    let idle = room.file(&format!("spool/idle.{boot}"), b"x");
    let then = SystemTime::now() - SPOOL_IDLE - Duration::from_secs(1);
    fs::File::options().write(true).open(&idle).unwrap().set_modified(then).unwrap();
    room.file("spool/of.an-earlier-boot.tar", b"x");
    room.file("spool/dead.part", b"x");
    room.file("spool/keep.me", b"x");
    let writer = fs::File::create(room.directory.path().join("spool/live.part")).unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(room.archives.sweep(), 3);
    let mut left = room.spooled();
    left.sort();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(
        left.contains(&spooled) && left.contains(&"live.part".into()) && left.contains(&"keep.me".into())
    );
}

#[test]
fn many_at_once_lay_a_compressed_archive_out_once() {
    let room = Room::new();
    let path = room.file("a.tgz", &gzip(&new_form(&[("x", &["a:1"])])));
    std::thread::scope(|scope| {
        let jobs: Vec<_> =
            (0..8).map(|_| scope.spawn(|| room.archives.docker_archive(&path, None))).collect();
        for job in jobs {
            assert_layers_are_true(&job.join().unwrap().unwrap());
        }
    });
    assert_eq!(room.spooled().len(), 1, "{:?}", room.spooled());
}

#[test]
fn raising_stop_ends_the_work() {
    let room = Room::new();
    let stop = Stop::default();
    stop.raise();
    let archives = room.archives.stopping(&stop);
    for bytes in [gzip(&new_form(&[("x", &["a:1"])])), new_form(&[("x", &["a:1"])])] {
        let result = archives.docker_archive(&room.file("a", &bytes), None);
        assert!(matches!(cause(result), ArchiveError::Stopped { .. }));
    }
    assert!(room.spooled().is_empty());
}

// ---- OCI layouts --------------------------------------------------------------------------------------------

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

// ---- the puller ---------------------------------------------------------------------------------------------

#[test]
fn a_layer_whose_file_changed_since_is_refused_or_breaks_off() {
    let room = Room::new();
    let path = room.file("a.tar", &new_form(&[("x", &["a:1"])]));
    let plan = room.archives.docker_archive(&path, None).unwrap();
    let layer = &plan.layers[0];
    fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = fetch(layer).unwrap_err();
    assert!(matches!(&error, FetchError::Refused { .. }));
    assert!(chain(&error).contains("replaced since the image was resolved"), "{}", chain(&error));
    fs::remove_file(&path).unwrap();
    let error = fetch(layer).unwrap_err();
    assert!(matches!(&error, FetchError::Refused { .. }));
    assert!(chain(&error).contains("a.tar"), "{}", chain(&error));
    fs::create_dir(&path).unwrap();
    assert!(chain(&fetch(layer).unwrap_err()).contains("not a regular file"));
}

#[test]
fn a_file_that_shrinks_under_its_reader_is_an_error_of_the_reader() {
    let room = Room::new();
    let path = room.file("blob", &[7; 100_000]);
    let mut layer =
        room.archives.docker_archive(&fixtures().join("single.tar"), None).unwrap().layers.remove(0);
    layer.source = LayerSource::File { path: path.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut blob = runtime.block_on(LocalPuller.open(&layer)).unwrap();
    assert_eq!(blob.size, Some(100_000));
    let mut first = [0; 1000];
    blob.reader.read_exact(&mut first).unwrap();
    assert_eq!(first, [7; 1000]);
    fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = blob.reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

// ---- peers --------------------------------------------------------------------------------------------------

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

// ---- anything -----------------------------------------------------------------------------------------------

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

//! Rooms to work in, and archives to order.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use keelblock::limits::Limits;
use keelblock::provider::archive::{ArchiveError, Archives};
use keelblock::puller::local::LocalPuller;
use keelblock_actors::error::{FetchError, ResolveError, chain};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{ImagePlan, LayerKey, LayerSpec};
use keelblock_actors::image::reference::Reference;
use keelblock_actors::ports::Puller;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images")
}

pub(crate) struct Room {
    pub directory: TempDir,
    pub archives: Archives,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self::within(Limits::default())
    }

    pub(crate) fn within(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let archives = Archives::new(limits, directory.path().join("spool"), "linux/amd64".parse().unwrap());
        Self { directory, archives }
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn docker(&self, bytes: &[u8]) -> Result<ImagePlan, ResolveError> {
        self.archives.docker_archive(&self.file("image.tar", bytes), None)
    }

    pub(crate) fn spooled(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory.path().join("spool")) else { return vec![] };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// The room's own error below the port's.
#[track_caller]
pub(crate) fn cause<T: std::fmt::Debug>(result: Result<T, ResolveError>) -> ArchiveError {
    match result.unwrap_err() {
        ResolveError::Failed { source, .. } | ResolveError::NotFound { source: Some(source), .. } => {
            *source.downcast().expect("the source is an ArchiveError")
        }
        other => panic!("{other}"),
    }
}

pub(crate) fn fetch(layer: &LayerSpec) -> Result<Vec<u8>, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut blob = runtime.block_on(LocalPuller.open(layer))?;
    let mut bytes = Vec::new();
    blob.reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(blob.size, Some(bytes.len() as u64));
    Ok(bytes)
}

/// Fetches every layer and compares it with the diff ID the plan promises.
#[track_caller]
pub(crate) fn assert_layers_are_true(plan: &ImagePlan) {
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

pub(crate) fn diff_ids(plan: &ImagePlan) -> Vec<LayerKey> {
    plan.layers.iter().map(|layer| layer.key.clone()).collect()
}

pub(crate) struct Tar(pub ::tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(::tar::Builder::new(Vec::new()))
    }

    pub(crate) fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, name, bytes).unwrap();
        self
    }

    pub(crate) fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string().as_bytes())
    }

    pub(crate) fn entry(mut self, kind: ::tar::EntryType, name: &str, target: &str) -> Self {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn layer(text: &str) -> Vec<u8> {
    Tar::new().file("file", text.as_bytes()).done()
}

pub(crate) fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|bytes| Digest::of(bytes).to_string()).collect();
    json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

/// An archive of the new form with one layer and these tags for each image.
pub(crate) fn new_form(images: &[(&str, &[&str])]) -> Vec<u8> {
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

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The files of an OCI layout, to be tampered with.
pub(crate) struct Layout(pub BTreeMap<String, Vec<u8>>);

impl Layout {
    pub(crate) fn new() -> Self {
        let mut files = BTreeMap::new();
        files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        Self(files)
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub(crate) fn document(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// An image of one layer.
    pub(crate) fn image(&mut self, text: &str) -> Value {
        let bytes = layer(text);
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", &bytes);
        let config = self.document("application/vnd.oci.image.config.v1+json", &config(&[&bytes]));
        self.document(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
    }

    pub(crate) fn index(&mut self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": entries});
        self.0.insert("index.json".to_owned(), index.to_string().into_bytes());
    }

    pub(crate) fn write(&self, room: &Room) -> PathBuf {
        for (name, bytes) in &self.0 {
            room.file(&format!("layout/{name}"), bytes);
        }
        room.directory.path().join("layout")
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        self.0.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(&format!("./{name}"), bytes)).done()
    }
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn named(mut entry: Value, name: &str) -> Value {
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    entry
}

pub(crate) fn on(mut entry: Value, platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').unwrap();
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry
}

pub(crate) fn digest_of(entry: &Value) -> String {
    entry["digest"].as_str().unwrap().to_owned()
}

/// An archive of the old form: layers with their parents, and `repositories`.
pub(crate) fn old_form(layers: &[(&str, Option<&str>)], repositories: Option<Value>) -> Tar {
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

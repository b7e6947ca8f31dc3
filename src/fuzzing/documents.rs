//! The fuzz targets `manifest` and `config`.

use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::plan::{ImageIdentity, LayerKey, LayerSource};
use serde_json::Value;

use crate::limits::Limits;
use crate::provider::manifest::{
    Descriptor, ImageConfig, LIST_MAX, OCI_INDEX, OCI_MANIFEST, Parsed, Platform, SCHEMA1_SIGNED, SIZE_MAX,
    Schema1, parse, parse_config, plan, signed_part,
};

/// Manifests and indexes: a document is one or the other and never both (CVE-2021-41190), says what a plain JSON reader
/// reads in it, and makes a plan within the limits or none. What is signed of a schema 1 manifest is the beginning of it
/// and a tail, and all that is read.
///
/// What follows a form feed is the image config that goes with the manifest.
pub fn manifest(bytes: &[u8]) {
    let (document, config) = match bytes.iter().position(|byte| *byte == 0x0c) {
        Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
        None => (bytes, None),
    };
    let Ok(part) = signed_part(document.to_vec(), None) else { return };
    if let Ok(signed) = signed_part(document.to_vec(), Some(SCHEMA1_SIGNED)) {
        assert_eq!(signed, part, "the media type changes what is signed");
    }
    let stays = signed_part(document.to_vec(), Some(OCI_MANIFEST));
    assert_eq!(stays.as_deref(), Ok(document), "another format is taken apart");
    let document = part.as_slice();
    let found = parse(document, None);
    let as_image = parse(document, Some(OCI_MANIFEST));
    let as_index = parse(document, Some(OCI_INDEX));
    assert!(as_image.is_err() || as_index.is_err(), "it is an image and an index");
    for stated in [as_image, as_index].into_iter().flatten() {
        assert_eq!(Some(&stated), found.as_ref().ok(), "the media type changes what it says");
    }
    let Ok(found) = found else { return };
    let Some(plain) = plain(document) else { return };
    let has = |key: &str| !plain[key].is_null();
    assert!(!has("manifests") || !(has("config") || has("layers")), "it has what both have");
    assert!(!has("fsLayers") || matches!(found, Parsed::Schema1(_)), "it is of schema 1, too");
    match found {
        Parsed::Schema1(image) => {
            assert!(!has("manifests") && !has("config") && !has("layers"), "it is of schema 2, too");
            schema1(image, &plain);
        }
        Parsed::Index(index) => {
            assert_eq!(
                plain.get("manifests").and_then(Value::as_array).map(Vec::len),
                Some(index.manifests.len())
            );
            for (descriptor, written) in index.manifests.iter().zip(list(&plain["manifests"])) {
                same(descriptor, written);
            }
            for platform in [Platform::host(), "linux/arm/v7".parse().expect("a platform")] {
                if let Ok(chosen) = index.choose(&platform) {
                    assert!(index.manifests.contains(chosen) && chosen.is_of_an_image());
                }
            }
            let same_bytes = parse(document, Some("application/json; charset=utf-8"));
            assert_eq!(same_bytes.ok(), Some(Parsed::Index(index)));
        }
        Parsed::Image(manifest) => {
            same(&manifest.config, &plain["config"]);
            assert_eq!(list(&plain["layers"]).len(), manifest.layers.len());
            for (descriptor, written) in manifest.layers.iter().zip(list(&plain["layers"])) {
                same(descriptor, written);
            }
            let config = match config.map(parse_config) {
                Some(Ok(config)) => config,
                // As many diff IDs as there are layers, so that a plan can be made.
                _ => ImageConfig {
                    diff_ids: vec![
                        keelblock_actors::image::digest::DiffId(Digest::of(b""));
                        manifest.layers.len()
                    ],
                    ..ImageConfig::default()
                },
            };
            let diff_ids = config.diff_ids.clone();
            let limits = Limits { layers_max: 8, ..Limits::default() };
            let identity = ImageIdentity {
                name: "app".parse().expect("a name"),
                manifest: Digest::of(document),
                config: manifest.config.digest.clone(),
            };
            let source = |layer: &Descriptor| LayerSource::File { path: layer.digest.hex().into() };
            if let Ok(plan) = plan(identity, &manifest, config, &limits, source) {
                assert!(plan.layers.len() == manifest.layers.len() && plan.layers.len() <= limits.layers_max);
                for ((layer, diff), written) in plan.layers.iter().zip(diff_ids).zip(&manifest.layers) {
                    assert_eq!(layer.key, LayerKey::Diff(diff));
                    assert_eq!(layer.blob.digest.as_ref(), Some(&written.digest));
                    assert!(layer.blob.size == Some(written.size) && layer.blob.compression.is_some());
                }
            }
        }
    }
}

/// Layers are those of the document from the end to the beginning, none of them new, and the config is one of its texts.
fn schema1(image: Schema1, written: &Value) {
    let (layers, history) = (list(&written["fsLayers"]), list(&written["history"]));
    assert!(!layers.is_empty() && layers.len() == history.len() && layers.len() <= LIST_MAX);
    let mut rest = layers.iter().rev().filter_map(|layer| layer["blobSum"].as_str());
    for layer in &image.layers {
        assert!(rest.any(|written| written == layer.to_string()), "{layer} is not where it should be");
    }
    let texts = || history.iter().filter_map(|entry| entry["v1Compatibility"].as_str());
    assert!(texts().any(|text| Digest::of(text.as_bytes()) == image.config));
    let runtime = &image.runtime;
    assert!(
        runtime.entrypoint.iter().chain(&runtime.cmd).chain(&runtime.user).all(|text| !text.contains('\0'))
    );
    let (layers, config) = (image.layers.clone(), image.config.clone());
    let limits = Limits { layers_max: 8, ..Limits::default() };
    let source = |blob: &Digest| LayerSource::File { path: blob.hex().into() };
    match image.plan("app".parse().expect("a name"), Digest::of(b""), &limits, source) {
        Ok(plan) => {
            assert!(plan.layers.len() <= limits.layers_max && plan.identity.config == config);
            let keys: Vec<_> = plan.layers.iter().map(|layer| layer.key.clone()).collect();
            assert_eq!(keys, layers.into_iter().map(LayerKey::Blob).collect::<Vec<_>>());
        }
        Err(_) => assert!(layers.len() > limits.layers_max),
    }
}

/// A document that was taken, all of it. `None` = what we skip in it a reader of everything does not take: strings that
/// are no text, numbers that no machine has, more brackets than it counts.
fn plain(document: &[u8]) -> Option<Value> {
    match serde_json::from_str(&String::from_utf8_lossy(document)) {
        Ok(plain) => Some(plain),
        Err(error) => {
            let why = error.to_string();
            let skipped =
                ["hex escape", "unicode code point", "number out of range", "recursion limit exceeded"];
            assert!(skipped.iter().any(|reason| why.contains(reason)), "it is no JSON: {why}");
            None
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn same(descriptor: &Descriptor, written: &Value) {
    assert_eq!(written["digest"].as_str(), Some(descriptor.digest.to_string().as_str()));
    assert_eq!(written["size"].as_u64(), Some(descriptor.size));
    assert!(descriptor.size <= SIZE_MAX);
    assert_eq!(written["mediaType"].as_str().unwrap_or_default(), descriptor.media_type);
    assert_eq!(
        written["annotations"].as_object().map_or(0, serde_json::Map::len),
        descriptor.annotations.len()
    );
    if let Some(platform) = &descriptor.platform {
        assert!(written["platform"].is_object() && !platform.to_string().contains(char::is_uppercase));
    }
}

/// Image configs: what is read is what a plain JSON reader reads, and nothing in it is more than a process can be given.
pub fn config(bytes: &[u8]) {
    let Ok(config) = parse_config(bytes) else { return };
    let Some(plain) = plain(bytes) else { return };
    let diff_ids: Vec<String> = config.diff_ids.iter().map(ToString::to_string).collect();
    let written: Vec<&str> = list(&plain["rootfs"]["diff_ids"]).iter().filter_map(Value::as_str).collect();
    assert_eq!(diff_ids, written);
    assert!(diff_ids.len() <= LIST_MAX);
    let (section, runtime) = (&plain["config"], &config.runtime);
    for (words, key) in [(&runtime.entrypoint, "Entrypoint"), (&runtime.cmd, "Cmd")] {
        let written: Vec<&str> = match &section[key] {
            Value::String(word) => vec![word],
            other => list(other).iter().filter_map(Value::as_str).collect(),
        };
        assert_eq!(*words, written, "{key}");
    }
    let env: Vec<String> = runtime.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let written: Vec<&str> = list(&section["Env"]).iter().filter_map(Value::as_str).collect();
    assert!(env.iter().all(|entry| written.contains(&entry.as_str()) && !entry.starts_with('=')));
    assert_eq!(env.len(), written.iter().filter(|entry| entry.find('=').is_some_and(|at| at > 0)).count());
    for (text, key) in [(&runtime.user, "User"), (&runtime.stop_signal, "StopSignal")] {
        assert_eq!(text.as_deref().unwrap_or_default(), section[key].as_str().unwrap_or_default(), "{key}");
    }
    let labels = section["Labels"].as_object();
    assert_eq!(runtime.labels.len(), labels.map_or(0, serde_json::Map::len));
    let strings = runtime.entrypoint.iter().chain(&runtime.cmd).chain(&env).chain(&runtime.user);
    assert!(strings.chain(&runtime.stop_signal).all(|text| !text.contains('\0')));
    assert!(
        runtime
            .working_dir
            .as_ref()
            .is_none_or(|path| path.to_str().is_some_and(|path| !path.contains('\0')))
    );
    if let Some(platform) = config.platform {
        assert!(plain["os"].is_string() && plain["architecture"].is_string() && !platform.os.is_empty());
    }
}

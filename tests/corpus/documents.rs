//! Limits on what comes before layers: manifests, indexes, configs. How they are read otherwise is the matter of
//! `tests/archive/`, `tests/registry.rs` and the tests beside the parsers.

use std::time::Instant;

use keelblock::limits::Limits;
use keelblock::provider::manifest::{parse, parse_config};
use keelblock_actors::error::chain;
use serde_json::{Value, json};

use crate::Filter;
use crate::layouts::{INDEX, Layout, MANIFEST, Room, config, layer};
use crate::run::Outcome;

const GROUP: &str = "documents";

/// Name, what is done, and words of its error; no words = it must pass.
type Document = (&'static str, fn() -> Result<(), String>, &'static [&'static str]);

const DOCUMENTS: [Document; 18] = [
    ("manifest-within-its-limit", || image(|_| {}, |_| {}), &[]),
    (
        "manifest-over-its-limit",
        || image(|limits| limits.manifest_bytes_max = 100, |_| {}),
        &["--manifest_bytes_max"],
    ),
    (
        "config-over-its-limit",
        || image(|limits| limits.config_bytes_max = 100, |_| {}),
        &["--config_bytes_max"],
    ),
    ("layers-over-their-limit", || image(|limits| limits.layers_max = 0, |_| {}), &["--layers_max"]),
    ("indexes-as-deep-as-allowed", || indexes(4), &[]),
    ("indexes-too-deep", || indexes(5), &["--index_depth_max"]),
    ("indexes-a-hundred-deep", || indexes(100), &["--index_depth_max"]),
    ("index-that-names-itself", itself, &["digest"]),
    (
        "manifest-and-index-in-one",
        || image(|_| {}, |manifest| manifest["manifests"] = json!([])),
        &["CVE-2021-41190"],
    ),
    (
        "manifest-of-eleven-thousand-layers",
        || {
            image(
                |_| {},
                |manifest| {
                    let layer = manifest["layers"][0].clone();
                    manifest["layers"] = Value::Array(vec![layer; 11_000]);
                },
            )
        },
        &["at most 10000 entries"],
    ),
    (
        "manifest-with-a-layer-of-an-exabyte",
        || image(|_| {}, |manifest| manifest["layers"][0]["size"] = json!(1u64 << 60)),
        &["size"],
    ),
    (
        "manifest-with-a-layer-that-is-no-layer",
        || {
            image(
                |_| {},
                |manifest| {
                    manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+xz")
                },
            )
        },
        &["media type", "xz"],
    ),
    (
        "manifest-with-more-layers-than-its-config",
        || {
            image(
                |_| {},
                |manifest| {
                    let layer = manifest["layers"][0].clone();
                    manifest["layers"] = Value::Array(vec![layer; 2]);
                },
            )
        },
        &["2 layers", "1 diff IDs"],
    ),
    ("manifest-of-brackets-without-end", || nested("[", ""), &["cannot be read", "128 levels"]),
    (
        "manifest-with-brackets-in-a-known-field",
        || nested("{\"schemaVersion\":2,\"config\":", ""),
        &["cannot be read"],
    ),
    ("manifest-with-brackets-in-a-field-nobody-knows", || nested("{\"x\":", "}"), &["128 levels"]),
    (
        "config-with-brackets-in-a-field-nobody-knows",
        || {
            let text = format!("{{\"x\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
            parse_config(text.as_bytes()).map(drop).map_err(|error| chain(&error))
        },
        &["128 levels"],
    ),
    (
        "config-that-is-no-object",
        || parse_config(b"[]").map(drop).map_err(|error| chain(&error)),
        &["image config cannot be read"],
    ),
];

fn nested(before: &str, after: &str) -> Result<(), String> {
    let text = format!("{before}{}{}{after}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    parse(text.as_bytes(), None).map(drop).map_err(|error| chain(&error))
}

/// Resolves a layout with one image whose manifest was changed.
fn image(limits: impl FnOnce(&mut Limits), change: impl FnOnce(&mut Value)) -> Result<(), String> {
    let mut layout = Layout::new();
    let bytes = layer("content");
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar", &bytes);
    let config = layout.document("application/vnd.oci.image.config.v1+json", &config(&[&bytes]));
    let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": [blob]});
    change(&mut manifest);
    let entry = layout.document(MANIFEST, &manifest);
    layout.index(&[entry]);
    resolve(&layout, limits)
}

fn indexes(depth: usize) -> Result<(), String> {
    let mut layout = Layout::new();
    let mut entry = layout.image("a");
    for _ in 0..depth {
        entry = layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": [entry]}));
    }
    layout.index(&[entry]);
    resolve(&layout, |_| {})
}

/// Whose bytes name their own digest nobody can write: the nearest is an index that claims to.
fn itself() -> Result<(), String> {
    let mut layout = Layout::new();
    let image = layout.image("a");
    let mut entry = layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": [image]}));
    let name = format!("blobs/sha256/{}", &entry["digest"].as_str().unwrap()[7..]);
    let bytes = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    entry["size"] = json!(bytes.len());
    layout.0.insert(name, bytes);
    layout.index(&[entry]);
    resolve(&layout, |_| {})
}

fn resolve(layout: &Layout, limits: impl FnOnce(&mut Limits)) -> Result<(), String> {
    let mut all = Limits::default();
    limits(&mut all);
    let room = Room::within(all);
    room.archives.oci_layout(&layout.write(&room), None).map(drop).map_err(|error| chain(&error))
}

pub(crate) fn names() -> Vec<(&'static str, &'static str)> {
    DOCUMENTS.iter().map(|(name, ..)| (GROUP, *name)).collect()
}

pub(crate) fn run(filter: &Filter) -> Vec<Outcome> {
    let wanted = DOCUMENTS.iter().filter(|(name, ..)| filter.takes(GROUP, name));
    wanted
        .map(|(name, document, words)| {
            let began = Instant::now();
            let result = document();
            let problems: Vec<String> = match &result {
                Ok(()) if words.is_empty() => vec![],
                Ok(()) => vec!["it was not refused".to_owned()],
                Err(error) if words.is_empty() => vec![format!("refused: {error}")],
                Err(error) => words
                    .iter()
                    .filter(|word| !error.contains(**word))
                    .map(|word| format!("refused, but not in the word {word:?}: {error}"))
                    .collect(),
            };
            let verdict = match () {
                () if !problems.is_empty() => "FAILED",
                () if result.is_ok() => "ok",
                () => "refused",
            };
            Outcome::of_one(GROUP, name, verdict, problems, began)
        })
        .collect()
}

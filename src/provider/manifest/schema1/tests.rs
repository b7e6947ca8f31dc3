//! Schema 1 as registries send it, and as enemies write it.

use keelblock_actors::error::chain;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::jws::tests::signed;
use super::super::{LIST_MAX, Parsed, SCHEMA1_MANIFEST, SCHEMA1_SIGNED, parse as parse_any, signed_part};
use super::*;

fn id(n: usize) -> String {
    format!("{n:064x}")
}

pub(in super::super) fn blob(n: usize) -> Digest {
    Digest::of(&n.to_be_bytes())
}

/// The entry of an image with this number, which builds on `parent`.
fn entry(n: usize, parent: Option<usize>) -> Value {
    let mut entry = json!({"id": id(n), "created": "2015-01-01T00:00:00Z",
                           "container_config": {"Cmd": ["not this"]}});
    if let Some(parent) = parent {
        entry["parent"] = json!(id(parent));
    }
    entry
}

/// A manifest of entries, newest first; each has the layer of its number.
pub(in super::super) fn manifest(entries: &[(Value, usize)]) -> Value {
    let layers: Vec<_> = entries.iter().map(|(_, n)| json!({"blobSum": blob(*n)})).collect();
    let history: Vec<_> =
        entries.iter().map(|(one, _)| json!({"v1Compatibility": one.to_string()})).collect();
    json!({"schemaVersion": 1, "name": "app", "tag": "1", "architecture": "amd64",
           "fsLayers": layers, "history": history})
}

/// Entries 1..=count, each on the one below.
pub(in super::super) fn chain_of(count: usize) -> Vec<(Value, usize)> {
    (1..=count).rev().map(|n| (entry(n, (n > 1).then(|| n - 1)), n)).collect()
}

fn read(document: &Value) -> Result<Schema1, ManifestError> {
    match parse_any(&serde_json::to_vec(document).unwrap(), None)? {
        Parsed::Schema1(found) => Ok(found),
        other => panic!("read as {other:?}"),
    }
}

fn wrong(document: &Value) -> Schema1Error {
    match read(document) {
        Err(ManifestError::Schema1 { source }) => source,
        other => panic!("{other:?}"),
    }
}

// ---- what works -------------------------------------------------------------------------------------------

#[test]
fn layers_come_base_first_and_the_newest_entry_is_the_config() {
    let mut entries = chain_of(3);
    entries[0].0["config"] = json!({"Entrypoint": ["/bin/app"], "Cmd": null, "Env": ["A=1"], "WorkingDir": "/w",
                                    "User": "1:2", "Labels": {"l": "m"}});
    entries[0].0["os"] = json!("linux");
    entries[0].0["architecture"] = json!("arm64");
    // Of no account: what is below, and what it is not to be known from.
    entries[1].0["config"] = json!({"Entrypoint": ["/bin/older"]});
    entries[0].0["rootfs"] = json!({"type": "layers+base", "diff_ids": "none"});
    let document = manifest(&entries);
    let found = read(&document).unwrap();
    assert_eq!(found.layers, [1, 2, 3].map(blob));
    assert_eq!(found.runtime.entrypoint, ["/bin/app"]);
    assert_eq!(found.runtime.env, [("A".to_owned(), "1".to_owned())]);
    assert_eq!(found.runtime.working_dir.as_deref(), Some(std::path::Path::new("/w")));
    assert_eq!((found.runtime.user.as_deref(), found.runtime.labels["l"].as_str()), (Some("1:2"), "m"));
    assert_eq!(found.platform.as_ref().unwrap().to_string(), "linux/arm64");
    let newest = document["history"][0]["v1Compatibility"].as_str().unwrap();
    assert_eq!(found.config, Digest::of(newest.as_bytes()));
    // The plan: known by blob, with nothing said of size and form.
    let source = |blob: &Digest| LayerSource::File { path: blob.hex().into() };
    let plan = found.clone().plan("app".parse().unwrap(), blob(9), &Limits::default(), source).unwrap();
    assert_eq!((&plan.identity.manifest, &plan.identity.config), (&blob(9), &found.config));
    for (layer, n) in plan.layers.iter().zip(1..) {
        assert_eq!(layer.key, LayerKey::Blob(blob(n)));
        assert_eq!(layer.blob.digest, Some(blob(n)));
        assert!(layer.blob.size.is_none() && layer.blob.compression.is_none());
        assert_eq!(layer.source, source(&blob(n)));
    }
    let few = Limits { layers_max: 2, ..Limits::default() };
    let refused = found.plan("app".parse().unwrap(), blob(9), &few, source);
    assert_eq!(refused, Err(ManifestError::TooManyLayers { layers: 3, limit: 2 }));
}

#[test]
fn empty_layers_are_left_out_and_repeated_ones_count_once() {
    let mut entries = chain_of(4);
    entries[0].0["throwaway"] = json!(true);
    entries[1].0["throwaway"] = json!(false);
    entries[2].0["throwaway"] = Value::Null;
    entries[3].0["throwaway"] = json!(true);
    assert_eq!(read(&manifest(&entries)).unwrap().layers, [2, 3].map(blob));
    let mut twice = chain_of(3);
    twice.insert(1, twice[1].clone());
    twice.insert(1, twice[1].clone());
    twice.push(twice.last().unwrap().clone());
    twice.insert(0, twice[0].clone());
    let found = read(&manifest(&twice)).unwrap();
    assert_eq!(found, read(&manifest(&chain_of(3))).unwrap());
    // One layer under several entries is an image with a layer twice: that is for the store.
    let mut same = chain_of(3);
    same[0].1 = 1;
    assert_eq!(read(&manifest(&same)).unwrap().layers, [1, 2, 1].map(blob));
    // All of it empty: an image without layers.
    let mut none = chain_of(1);
    none[0].0["throwaway"] = json!(true);
    assert!(read(&manifest(&none)).unwrap().layers.is_empty());
}

#[test]
fn the_platform_is_that_of_the_newest_entry_or_else_of_the_manifest() {
    let platform = |change: &dyn Fn(&mut Value, &mut Value)| {
        let mut newest = entry(1, None);
        let mut document = json!({});
        change(&mut newest, &mut document);
        let mut whole = manifest(&[(newest, 1)]);
        whole.as_object_mut().unwrap().extend(document.as_object().unwrap().clone());
        read(&whole).unwrap().platform.map(|platform| platform.to_string())
    };
    assert_eq!(platform(&|_, _| ()).as_deref(), Some("linux/amd64"));
    assert_eq!(platform(&|entry, _| entry["architecture"] = json!("s390x")).as_deref(), Some("linux/s390x"));
    assert_eq!(platform(&|entry, _| entry["os"] = json!("windows")).as_deref(), Some("windows/amd64"));
    assert_eq!(platform(&|_, whole| whole["architecture"] = Value::Null), None);
    assert_eq!(platform(&|_, whole| whole["architecture"] = json!("\u{1b}")), None);
}

// ---- what does not ----------------------------------------------------------------------------------------

#[test]
fn lists_of_two_lengths_and_empty_ones_are_refused() {
    let good = manifest(&chain_of(2));
    for key in ["fsLayers", "history"] {
        for value in [Value::Null, json!([])] {
            let mut document = good.clone();
            document[key] = value;
            assert!(matches!(wrong(&document), Schema1Error::Counts { .. }), "{key}");
        }
        let mut document = good.clone();
        document.as_object_mut().unwrap().remove(key);
        let error = wrong(&document);
        let (layers, entries) = if key == "fsLayers" { (0, 2) } else { (2, 0) };
        assert_eq!(error, Schema1Error::Counts { layers, entries });
        let mut document = good.clone();
        document[key].as_array_mut().unwrap().pop();
        assert!(matches!(wrong(&document), Schema1Error::Counts { .. }), "{key}");
        for nonsense in [json!({}), json!(3), json!([3]), json!([null]), json!([{}, {}])] {
            let mut document = good.clone();
            document[key] = nonsense;
            assert!(matches!(read(&document), Err(ManifestError::Manifest { .. })), "{key}");
        }
    }
    let mut neither = good;
    neither["fsLayers"] = json!([]);
    neither["history"] = json!([]);
    assert_eq!(wrong(&neither), Schema1Error::Counts { layers: 0, entries: 0 });
}

#[test]
fn a_history_that_is_no_chain_is_refused() {
    let of = |ids: &[(usize, Option<usize>)]| {
        let entries: Vec<_> = ids.iter().zip(1..).map(|(&(n, parent), at)| (entry(n, parent), at)).collect();
        wrong(&manifest(&entries))
    };
    // A ring: the base builds on the top.
    assert_eq!(of(&[(3, Some(2)), (2, Some(1)), (1, Some(3))]), Schema1Error::Base(id(3)));
    assert_eq!(of(&[(1, Some(1))]), Schema1Error::Base(id(1)));
    // One that comes back.
    assert_eq!(of(&[(2, Some(1)), (1, Some(2)), (2, Some(1)), (1, None)]), Schema1Error::Twice(id(2)));
    assert_eq!(of(&[(1, Some(2)), (2, Some(1)), (1, None)]), Schema1Error::Twice(id(1)));
    // A gap, and a stranger.
    let gap = Schema1Error::Parent { number: 1, parent: id(2), next: id(1) };
    assert_eq!(of(&[(3, Some(2)), (1, None)]), gap);
    let orphan = Schema1Error::Parent { number: 1, parent: String::new(), next: id(1) };
    assert_eq!(of(&[(2, None), (1, None)]), orphan);
    // One ID, two layers.
    let torn = Schema1Error::Torn { number: 2, layers: Box::new([blob(2), blob(3)]) };
    assert_eq!(of(&[(2, Some(1)), (1, None), (1, None)]), torn);
}

#[test]
fn ids_are_64_hex_digits() {
    for bad in
        ["", "abc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65), "../../../etc/passwd", "\u{1b}[31m"]
    {
        let mut only = entry(1, None);
        only["id"] = json!(bad);
        let error = wrong(&manifest(&[(only, 1)]));
        assert_eq!(error, Schema1Error::Id { number: 1, id: quote(bad) });
        assert!(!error.to_string().contains('\u{1b}'));
    }
    let mut none = entry(1, None);
    none.as_object_mut().unwrap().remove("id");
    assert!(matches!(wrong(&manifest(&[(none, 1)])), Schema1Error::Id { .. }));
    let mut long = chain_of(2);
    long[0].0["parent"] = json!("x".repeat(100_000));
    assert!(wrong(&manifest(&long)).to_string().len() < 700);
}

#[test]
fn compatibility_texts_that_are_no_configs_are_refused() {
    let with = |place: usize, text: Value| {
        let mut document = manifest(&chain_of(2));
        document["history"][place]["v1Compatibility"] = text;
        document
    };
    for place in [0, 1] {
        for text in ["", "{", "[]", "3", "null", "{\"id\": 3}", "{\"throwaway\": \"yes\"}", "{}x"] {
            let error = wrong(&with(place, json!(text)));
            assert!(
                matches!(error, Schema1Error::Entry { number, .. } if number == place + 1),
                "{text}: {error}"
            );
        }
        // Not a string at all: that is the manifest's fault.
        for value in [Value::Null, json!(3), json!({"id": id(1)}), json!(["x"])] {
            assert!(matches!(read(&with(place, value)), Err(ManifestError::Manifest { .. })));
        }
        // Deep in a string, where no bracket of the document is.
        let deep = format!("{{\"x\": {}", "[".repeat(1_000_000));
        assert!(matches!(wrong(&with(place, json!(deep))), Schema1Error::Entry { .. }));
    }
    // Much text, and all is well; nothing of it is in an error.
    let mut huge = chain_of(2);
    huge[1].0["comment"] = json!("x".repeat(3 << 20));
    read(&manifest(&huge)).unwrap();
    huge[1].0["id"] = json!("x".repeat(3 << 20));
    assert!(chain(&read(&manifest(&huge)).unwrap_err()).len() < 700);
    let config = |config: Value| {
        let mut only = chain_of(1);
        only[0].0["config"] = config;
        read(&manifest(&only))
    };
    assert_eq!(config(json!({"Env": ["A=b\0c"]})), Err(ManifestError::Nul { field: "Env" }));
    assert_eq!(config(json!({"Cmd": ["\0"]})), Err(ManifestError::Nul { field: "Cmd" }));
    assert!(matches!(config(json!({"Cmd": [3]})), Err(ManifestError::Schema1 { .. })));
    assert_eq!(config(Value::Null).unwrap().runtime, RuntimeConfig::default());
}

#[test]
fn blob_sums_are_digests() {
    for bad in ["", "sha256:00", "tarsum.dev+sha256:e3b0", "md5:00", "sha256:../../etc/passwd"] {
        let mut document = manifest(&chain_of(2));
        document["fsLayers"][1]["blobSum"] = json!(bad);
        assert!(matches!(read(&document), Err(ManifestError::Manifest { .. })), "{bad}");
    }
}

#[test]
fn more_layers_than_any_image_has_are_not_read() {
    let many = chain_of(LIST_MAX + 1);
    let error = read(&manifest(&many)).unwrap_err();
    assert!(
        matches!(&error, ManifestError::Manifest { source } if source.to_string().contains("10000")),
        "{error}"
    );
    // As many as are read make no plan, but cost no more than their length.
    let most = read(&manifest(&many[1..])).unwrap();
    assert_eq!(most.layers.len(), LIST_MAX);
    let source = |_: &Digest| LayerSource::File { path: "x".into() };
    let refused = most.plan("app".parse().unwrap(), blob(1), &Limits::default(), source);
    assert!(matches!(refused, Err(ManifestError::TooManyLayers { layers: LIST_MAX, .. })));
}

#[test]
fn fields_of_other_formats_are_not_those_of_schema_1() {
    let descriptor = json!({"mediaType": "", "digest": blob(1), "size": 1});
    for (key, value) in [
        ("layers", json!([descriptor])),
        ("config", descriptor.clone()),
        ("manifests", json!([])),
        ("layers", json!([])),
    ] {
        let mut document = manifest(&chain_of(2));
        document[key] = value;
        assert_eq!(read(&document), Err(ManifestError::Ambiguous), "{key}");
    }
}

#[test]
fn errors_say_which_entry_and_what_of_it() {
    let gap = [(entry(3, Some(2)), 3), (entry(1, None), 1)];
    let text = chain(&read(&manifest(&gap)).unwrap_err());
    let (parent, next) = (id(2), id(1));
    assert_eq!(
        text,
        format!(
            "the manifest is of docker schema 1 and cannot be used: history entry 1 has parent {parent:?}, but the entry \
             after it is {next:?}"
        )
    );
}

proptest! {
    /// What is written in reads back, signed or not: layers in order, empty and repeated ones left out.
    #[test]
    fn what_is_written_reads_back(
        stack in proptest::collection::vec((0..50usize, any::<bool>(), 1..3usize), 1..30),
        entrypoint in proptest::collection::vec("[^\0]{0,20}", 0..4),
        signatures in 0..3usize,
    ) {
        let mut entries = Vec::new();
        for (n, (layer, throwaway, times)) in stack.iter().enumerate().rev() {
            let mut one = entry(n + 1, (n > 0).then_some(n));
            one["throwaway"] = json!(throwaway);
            if n + 1 == stack.len() {
                one["config"] = json!({"Entrypoint": entrypoint});
            }
            entries.extend(std::iter::repeat_n((one, *layer), *times));
        }
        let document = manifest(&entries);
        let (payload, bytes) = match signatures {
            0 => (document.to_string(), document.to_string().into_bytes()),
            some => signed(&document, some),
        };
        let media_type = if signatures == 0 { SCHEMA1_MANIFEST } else { SCHEMA1_SIGNED };
        let part = signed_part(bytes, Some(media_type)).unwrap();
        prop_assert_eq!(&part, payload.as_bytes());
        // Taking it apart once more changes nothing.
        prop_assert_eq!(signed_part(part.clone(), None).unwrap(), part.clone());
        let Parsed::Schema1(found) = parse_any(&part, Some(media_type)).unwrap() else { panic!() };
        let expected: Vec<_> = stack.iter().filter(|(_, empty, _)| !empty).map(|(n, ..)| blob(*n)).collect();
        prop_assert_eq!(found.layers, expected);
        prop_assert_eq!(found.runtime.entrypoint, entrypoint);
    }

    /// Whatever stands where, there is an answer, and no ID twice in what is taken.
    #[test]
    fn any_history_gets_an_answer(
        ids in proptest::collection::vec((0..4usize, proptest::option::of(0..4usize), 0..3usize), 0..6),
    ) {
        let entries: Vec<_> = ids.iter().map(|&(n, parent, layer)| (entry(n, parent), layer)).collect();
        if let Ok(found) = read(&manifest(&entries)) {
            prop_assert!(!entries.is_empty() && found.layers.len() <= entries.len());
            let mut distinct = ids.iter().map(|(n, ..)| n).collect::<Vec<_>>();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), distinct.iter().collect::<HashSet<_>>().len());
        }
    }
}

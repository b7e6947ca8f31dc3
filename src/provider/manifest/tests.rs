//! Documents as found in the wild, and as enemies write them.

use keelblock_actors::image::digest::DiffId;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{Compression, ImageIdentity, ImagePlan, LayerKey, LayerSource};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits::Limits;

pub(super) fn digest(n: u8) -> String {
    Digest::of(&[n]).to_string()
}

pub(super) fn descriptor(media_type: &str, n: u8) -> Value {
    json!({"mediaType": media_type, "digest": digest(n), "size": 10})
}

fn image(media_type: &str, layer_types: &[&str]) -> Value {
    let layers: Vec<Value> = layer_types.iter().zip(1..).map(|(kind, n)| descriptor(kind, n)).collect();
    json!({"schemaVersion": 2, "mediaType": media_type,
           "config": descriptor("application/vnd.oci.image.config.v1+json", 0), "layers": layers})
}

pub(super) fn entry(n: u8, platform: Option<&str>) -> Value {
    let mut entry = descriptor(OCI_MANIFEST, n);
    if let Some(platform) = platform {
        let mut parts = platform.split('/');
        entry["platform"] = json!({"os": parts.next(), "architecture": parts.next()});
        if let Some(variant) = parts.next() {
            entry["platform"]["variant"] = json!(variant);
        }
    }
    entry
}

fn read(document: &Value, media_type: Option<&str>) -> Result<Parsed, ManifestError> {
    parse(&serde_json::to_vec(document).unwrap(), media_type)
}

pub(super) fn index(entries: Vec<Value>) -> Index {
    match read(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}), None).unwrap() {
        Parsed::Index(index) => index,
        other => panic!("an index was read as {other:?}"),
    }
}

pub(super) fn chosen(index: &Index, platform: &str) -> Option<Digest> {
    index.choose(&platform.parse().unwrap()).ok().map(|entry| entry.digest.clone())
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

#[test]
fn an_image_manifest_is_read_with_and_without_a_media_type() {
    for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
        let document = image(media_type, &[TAR]);
        let with_charset = format!("{media_type}; charset=utf-8");
        for given in [None, Some(media_type), Some("application/json"), Some(with_charset.as_str())] {
            let Parsed::Image(found) = read(&document, given).unwrap() else { panic!("{given:?}") };
            assert_eq!(found.config.digest.to_string(), digest(0));
            assert_eq!(found.layers.len(), 1);
        }
    }
    let mut bare = image(OCI_MANIFEST, &[TAR]);
    bare.as_object_mut().unwrap().remove("mediaType");
    assert!(matches!(read(&bare, None), Ok(Parsed::Image(_))));
    bare["layers"] = Value::Null;
    bare["manifests"] = Value::Null;
    assert!(matches!(read(&bare, None), Ok(Parsed::Image(found)) if found.layers.is_empty()));
}

#[test]
fn a_document_of_two_formats_is_refused() {
    let mut document = image(OCI_MANIFEST, &[TAR]);
    for manifests in [json!([]), json!([entry(1, None)])] {
        document["manifests"] = manifests;
        for given in [None, Some(OCI_MANIFEST), Some(OCI_INDEX)] {
            let error = read(&document, given).unwrap_err();
            assert!(matches!(error, ManifestError::Ambiguous | ManifestError::MediaTypes { .. }), "{error}");
        }
    }
    document["manifests"] = Value::Null;
    document["fsLayers"] = json!([]);
    assert_eq!(read(&document, None), Err(ManifestError::Ambiguous));
    let both = json!({"schemaVersion": 2, "manifests": [], "fsLayers": []});
    assert_eq!(read(&both, None), Err(ManifestError::Ambiguous));
}

#[test]
fn media_types_must_agree_with_each_other_and_with_the_content() {
    let document = image(OCI_MANIFEST, &[TAR]);
    let error = |given| read(&document, Some(given)).unwrap_err();
    assert!(matches!(error(DOCKER_MANIFEST), ManifestError::MediaTypes { .. }));
    assert!(matches!(error(OCI_INDEX), ManifestError::MediaTypes { .. }));
    assert!(matches!(error("text/html"), ManifestError::MediaType(_)));
    let mut bare = document.clone();
    bare["mediaType"] = Value::Null;
    assert!(matches!(read(&bare, Some(OCI_INDEX)), Err(ManifestError::Content { .. })));
    bare["mediaType"] = json!(DOCKER_INDEX);
    assert!(matches!(read(&bare, None), Err(ManifestError::Content { .. })));
    let index = json!({"manifests": []});
    assert!(matches!(read(&index, Some(OCI_MANIFEST)), Err(ManifestError::Content { .. })));
}

#[test]
fn schema_1_and_versions_to_come_are_told_apart() {
    let mut old = json!({"schemaVersion": 1, "name": "a", "tag": "b", "architecture": "amd64", "fsLayers": [],
                     "history": [], "signatures": []});
    for given in [None, Some("application/json"), Some(SCHEMA1_MANIFEST), Some(SCHEMA1_SIGNED)] {
        assert!(matches!(read(&old, given), Err(ManifestError::Schema1 { .. })));
    }
    for given in [OCI_MANIFEST, DOCKER_INDEX] {
        assert!(
            matches!(read(&old, Some(given)), Err(ManifestError::Content { found, .. }) if found == SCHEMA1_FOUND)
        );
    }
    old["schemaVersion"] = json!(2);
    assert_eq!(read(&old, None), Err(ManifestError::SchemaVersion(2)));
    let image_said_old = read(&image("", &[TAR]), Some(SCHEMA1_MANIFEST));
    assert!(matches!(image_said_old, Err(ManifestError::Content { .. })));
    let mut new = image(OCI_MANIFEST, &[TAR]);
    new["schemaVersion"] = json!(3);
    assert_eq!(read(&new, None), Err(ManifestError::SchemaVersion(3)));
}

#[test]
fn what_is_no_image_is_named() {
    let mut chart = image(OCI_MANIFEST, &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"]);
    chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    let error = read(&chart, None).unwrap_err();
    assert!(
        matches!(&error, ManifestError::NotAnImage { media_type } if media_type.contains("helm")),
        "{error}"
    );
    // A model, or what else lies in registries: the type is said, and the config is empty.
    let mut artifact = image(OCI_MANIFEST, &["application/vnd.example.model"]);
    artifact["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    let error = read(&artifact, None).unwrap_err();
    assert!(error.to_string().contains("vnd.oci.empty.v1+json"), "{error}");
    artifact["artifactType"] = json!("application/vnd.example\u{1b}");
    let error = read(&artifact, None).unwrap_err().to_string();
    assert_eq!(
        error,
        r#"the manifest is no container image, but an artifact of type "application/vnd.example\u{1b}""#
    );
    // Also with a config like that of an image; unless it is what stands in for a missing type.
    let mut disguised = image(OCI_MANIFEST, &[TAR]);
    disguised["artifactType"] = json!("application/vnd.example");
    assert!(matches!(read(&disguised, None), Err(ManifestError::Artifact { .. })));
    for artifact_type in ["", "application/vnd.oci.image.config.v1+json"] {
        disguised["artifactType"] = json!(artifact_type);
        assert!(matches!(read(&disguised, None), Ok(Parsed::Image(_))));
    }
    assert_eq!(read(&json!({}), None), Err(ManifestError::Neither));
    assert_eq!(read(&json!({"layers": []}), None), Err(ManifestError::Neither));
    for bytes in ["", "null", "[]", "3", "\"x\"", "{", "{}x", "\u{feff}{}", "<html>"] {
        assert!(parse(bytes.as_bytes(), None).is_err(), "{bytes}");
    }
}

#[test]
fn sizes_and_digests_are_checked_as_they_are_read() {
    for size in ["-1", "1125899906842625", "18446744073709551616", "1e3", "1.5", "\"1\"", "null"] {
        let text =
            image(OCI_MANIFEST, &[TAR]).to_string().replace("\"size\":10", &format!("\"size\":{size}"));
        assert!(matches!(parse(text.as_bytes(), None), Err(ManifestError::Manifest { .. })), "{size}");
    }
    for wrong in ["sha256:../../../etc/passwd", "md5:00", "", "sha256:AB"] {
        let mut document = image(OCI_MANIFEST, &[TAR]);
        document["layers"][0]["digest"] = json!(wrong);
        assert!(matches!(read(&document, None), Err(ManifestError::Manifest { .. })), "{wrong}");
    }
}

#[test]
fn a_field_twice_is_refused() {
    let text = format!(r#"{{"layers":[],"config":{0},"config":{0}}}"#, descriptor("", 0));
    assert!(matches!(parse(text.as_bytes(), None), Err(ManifestError::Manifest { .. })));
}

#[test]
fn deep_and_long_documents_cost_no_more_than_their_length() {
    let deep = "[".repeat(3_000_000);
    for prefix in ["", "{\"x\":", "{\"config\":", "{\"layers\":", "{\"manifests\":", "{\"rootfs\":"] {
        assert!(parse(format!("{prefix}{deep}").as_bytes(), None).is_err());
        assert!(parse_config(format!("{prefix}{deep}").as_bytes()).is_err());
    }
    for prefix in ["{\"config\":{\"Entrypoint\":", "{\"config\":{\"Labels\":"] {
        assert!(parse_config(format!("{prefix}{deep}").as_bytes()).is_err());
    }
    let one = descriptor(TAR, 1).to_string();
    let many = vec![one.as_str(); LIST_MAX + 1].join(",");
    let error = parse(format!("{{\"manifests\":[{many}]}}").as_bytes(), None).unwrap_err();
    assert!(matches!(&error, ManifestError::Manifest { source } if source.to_string().contains("10000")));
    let most = vec![one.as_str(); LIST_MAX].join(",");
    assert!(parse(format!("{{\"manifests\":[{most}]}}").as_bytes(), None).is_ok());
}

#[test]
fn foreign_text_in_messages_is_cut() {
    let long = "x".repeat(100_000);
    let mut document = image(&long, &[TAR]);
    assert!(read(&document, None).unwrap_err().to_string().len() < 600);
    document["mediaType"] = json!(OCI_MANIFEST);
    document["schemaVersion"] = json!(long);
    let error = read(&document, None).unwrap_err();
    let text = keelblock_actors::error::chain(&error);
    assert!(text.len() < 600 && text.contains("line 1"), "{text}");
    let entries = (0..2000).map(|n| entry(1, Some(&format!("os{n}/{long:.40}")))).collect();
    assert!(index(entries).choose(&Platform::host()).unwrap_err().to_string().len() < 600);
}

#[test]
fn a_config_is_read_with_all_its_fields() {
    let diff = digest(1);
    let config = json!({
        "architecture": "arm64", "os": "linux", "variant": "v8",
        "rootfs": {"type": "layers", "diff_ids": [diff]},
        "config": {
            "Entrypoint": ["/bin/a", "b"], "Cmd": ["c"], "Env": ["A=1=2", "B=", "broken", "=x"],
            "WorkingDir": "/w", "User": "app:1", "StopSignal": "SIGINT", "Labels": {"l": "m", "n": null},
            "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "OnBuild": null,
        },
        "history": [{"created_by": "x"}],
    });
    let found = parse_config(&serde_json::to_vec(&config).unwrap()).unwrap();
    assert_eq!(found.diff_ids, [diff.parse::<DiffId>().unwrap()]);
    assert_eq!(found.platform.unwrap().to_string(), "linux/arm64");
    let runtime = found.runtime;
    assert_eq!(runtime.entrypoint, ["/bin/a", "b"]);
    assert_eq!(runtime.cmd, ["c"]);
    assert_eq!(runtime.env, [("A".into(), "1=2".into()), ("B".into(), String::new())]);
    assert_eq!(runtime.working_dir.as_deref(), Some(std::path::Path::new("/w")));
    assert_eq!((runtime.user.as_deref(), runtime.stop_signal.as_deref()), (Some("app:1"), Some("SIGINT")));
    assert_eq!(runtime.labels["l"], "m");
    assert_eq!(runtime.labels["n"], "");
}

#[test]
fn null_and_missing_mean_empty() {
    for text in [
        "{}",
        r#"{"config": null, "rootfs": null}"#,
        r#"{"config": {}, "rootfs": {"type": "layers", "diff_ids": null}}"#,
        r#"{"config": {"Entrypoint": null, "Cmd": null, "Env": null, "Labels": null, "User": "", "WorkingDir": "",
            "StopSignal": ""}}"#,
    ] {
        assert_eq!(parse_config(text.as_bytes()).unwrap(), ImageConfig::default(), "{text}");
    }
    let shell = parse_config(br#"{"config": {"Entrypoint": "/bin/a", "Cmd": []}}"#).unwrap().runtime;
    assert_eq!((shell.entrypoint, shell.cmd), (vec!["/bin/a".to_owned()], vec![]));
}

#[test]
fn a_config_that_no_process_can_have_is_refused() {
    for (field, text) in [
        ("Entrypoint", r#"{"config": {"Entrypoint": ["a\u0000"]}}"#),
        ("Cmd", r#"{"config": {"Cmd": ["\u0000"]}}"#),
        ("Env", r#"{"config": {"Env": ["A=\u0000"]}}"#),
        ("WorkingDir", r#"{"config": {"WorkingDir": "/\u0000"}}"#),
        ("User", r#"{"config": {"User": "a\u0000b"}}"#),
    ] {
        assert_eq!(parse_config(text.as_bytes()), Err(ManifestError::Nul { field }));
    }
    let windows = br#"{"rootfs": {"type": "layers+base", "diff_ids": []}}"#;
    assert!(matches!(parse_config(windows), Err(ManifestError::RootfsType(_))));
    for text in [
        "",
        "null",
        "[",
        r#"{"config": 3}"#,
        r#"{"config": {"Cmd": [3]}}"#,
        r#"{"rootfs": {"diff_ids": ["x"]}}"#,
    ] {
        assert!(parse_config(text.as_bytes()).is_err(), "{text}");
    }
}

fn planned(layer_types: &[&str], diff_ids: u8, limits: &Limits) -> Result<ImagePlan, ManifestError> {
    let Parsed::Image(manifest) = read(&image(OCI_MANIFEST, layer_types), None).unwrap() else { panic!() };
    let config = ImageConfig {
        diff_ids: (0..diff_ids).map(|n| DiffId(Digest::of(&[n, n]))).collect(),
        ..ImageConfig::default()
    };
    let identity = ImageIdentity {
        name: "a".parse::<ImageName>().unwrap(),
        manifest: Digest::of(b"m"),
        config: manifest.config.digest.clone(),
    };
    plan(identity, &manifest, config, limits, |layer| LayerSource::File { path: layer.digest.hex().into() })
}
#[test]
fn a_plan_joins_layers_and_diff_ids_in_order() {
    let found =
        planned(&[TAR, "application/vnd.docker.image.rootfs.diff.tar.gzip"], 2, &Limits::default()).unwrap();
    let keys: Vec<_> = found.layers.iter().map(|layer| layer.key.clone()).collect();
    assert_eq!(keys, [0u8, 1].map(|n| LayerKey::Diff(DiffId(Digest::of(&[n, n])))));
    let second = &found.layers[1];
    assert_eq!(second.blob.digest, Some(Digest::of(&[2])));
    assert_eq!((second.blob.size, second.blob.compression), (Some(10), Some(Compression::Gzip)));
    assert_eq!(second.source, LayerSource::File { path: Digest::of(&[2]).hex().into() });
    assert!(planned(&[], 0, &Limits::default()).unwrap().layers.is_empty());
}

#[test]
fn a_plan_is_refused_when_its_parts_do_not_fit() {
    let limits = Limits::default();
    assert_eq!(planned(&[TAR], 2, &limits), Err(ManifestError::LayerCount { layers: 1, diff_ids: 2 }));
    assert_eq!(planned(&[TAR], 0, &limits), Err(ManifestError::LayerCount { layers: 1, diff_ids: 0 }));
    let few = Limits { layers_max: 1, ..limits.clone() };
    assert_eq!(planned(&[TAR, TAR], 2, &few), Err(ManifestError::TooManyLayers { layers: 2, limit: 1 }));
    let encrypted = format!("{TAR}+gzip+encrypted");
    let error = planned(&[TAR, &encrypted], 2, &limits).unwrap_err();
    assert_eq!(error, ManifestError::LayerMediaType { number: 2, media_type: encrypted });
}

#[test]
fn layer_media_types_say_how_a_layer_is_wrapped() {
    for (media_type, compression) in [
        ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+gzip; x=y", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tarball", None),
        ("application/vnd.in-toto+json", None),
        ("", None),
    ] {
        assert_eq!(layer_compression(media_type), compression, "{media_type}");
    }
}

proptest! {
    /// Whatever the bytes, there is an answer; whatever is answered fits the limits.
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes, None);
        let _ = parse_config(&bytes);
    }

    /// A good document with one value replaced by another JSON value.
    #[test]
    fn any_field_may_be_nonsense(field in 0..9usize, nonsense in prop_oneof![
        Just(json!(null)), Just(json!(-1)), Just(json!([])), Just(json!({})), Just(json!("")), Just(json!([[[]]])),
        any::<f64>().prop_map(|n| json!(n)), "\\PC{0,20}".prop_map(|text| json!(text)),
    ]) {
        let mut document = image(OCI_MANIFEST, &[TAR]);
        let target = match field {
            0 => &mut document["config"],
            1 => &mut document["layers"],
            2 => &mut document["mediaType"],
            3 => &mut document["schemaVersion"],
            4 => &mut document["layers"][0],
            5 => &mut document["layers"][0]["size"],
            6 => &mut document["layers"][0]["digest"],
            7 => &mut document["layers"][0]["platform"],
            _ => &mut document["manifests"],
        };
        *target = nonsense;
        if let Ok(Parsed::Image(found)) = read(&document, None) {
            prop_assert!(found.layers.iter().all(|layer| layer.size <= SIZE_MAX));
        }
    }

    /// What prints as a platform reads back as the same.
    #[test]
    fn platforms_read_back(os in "[a-z]{1,8}", architecture in "[a-z0-9]{1,8}", variant in proptest::option::of("v[0-9]")) {
        let text = variant.iter().fold(format!("{os}/{architecture}"), |text, variant| format!("{text}/{variant}"));
        let once: Platform = text.parse().unwrap();
        prop_assert_eq!(once.to_string().parse::<Platform>().unwrap(), once);
    }
}

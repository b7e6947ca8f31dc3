//! Schema 1, signed and plain, from a registry that may lie.

use ::base64::Engine as _;
use std::fs;
use std::io::Write;

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::manifest::Platform;
use keelblock::provider::oci::OciProvider;
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::Provider;
use serde_json::{Value, json};

use super::support::binary::Room;
use super::support::images::{Image, Layer};
use super::support::registry::{OCI_INDEX, OCI_MANIFEST, Reply, TestRegistry, descriptor};
use super::{PLAIN, Rig, manifest, put};

const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

fn base64url(bytes: &[u8]) -> String {
    ::base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// The payload with a signature before its last bracket, as registries do it.
fn sign(payload: &str) -> String {
    let head = payload.strip_suffix('}').unwrap();
    let header =
        json!({"formatLength": head.len(), "formatTail": base64url(b"}"), "time": "2015-01-01T00:00:00Z"});
    let signature = json!({"header": {"alg": "ES256"}, "signature": "nobody looks at it",
                           "protected": base64url(header.to_string().as_bytes())});
    format!("{head},\"signatures\":[{signature}]}}")
}

#[test]
fn schema_1_resolves_by_tag_and_digest_signed_and_plain() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let layers = [&b"base layer"[..], b"top layer"].map(|bytes| registry.put_blob("app", bytes));
    let payload = manifest("linux", "amd64", &layers);
    let digest = Digest::of(payload.as_bytes());
    put(&registry, "signed", SIGNED, &sign(&payload), &digest);
    put(&registry, "plain", PLAIN, &payload, &digest);
    put(&registry, "json", "application/json; charset=utf-8", &sign(&payload), &digest);
    let mut plans = Vec::new();
    for (n, name) in ["app:signed", "app:plain", "app:json"].into_iter().enumerate() {
        let by_tag = rig.resolve(&format!("{}/{name}", registry.host())).unwrap();
        assert_eq!(by_tag.identity.manifest, digest, "of the payload: {name}");
        assert_eq!(by_tag.runtime.cmd, ["/bin/true"]);
        let keys: Vec<_> = by_tag.layers.iter().map(|layer| layer.key.clone()).collect();
        assert_eq!(keys, layers.clone().map(LayerKey::Blob));
        assert_eq!(rig.blobs(&by_tag), [b"base layer".to_vec(), b"top layer".to_vec()]);
        // Nothing but the manifest and the layers: there is no config to ask for.
        assert_eq!(registry.seen().len(), (n + 1) * 3);
        plans.push(by_tag);
    }
    assert!(plans.windows(2).all(|pair| pair[0].identity.config == pair[1].identity.config));
    let by_digest = rig.resolve(&format!("{}/app@{digest}", registry.host())).unwrap();
    assert_eq!(by_digest.layers, plans[0].layers);
    // It is asked for, and last: a registry that has better shall give that.
    let accept = registry.seen()[0].accept.clone().unwrap();
    let place = |kind: &str| accept.find(kind).unwrap_or_else(|| panic!("{accept} without {kind}"));
    assert!(place(SIGNED) > place(OCI_INDEX) && place(PLAIN) > place(SIGNED), "{accept}");
    assert!(accept[place(SIGNED)..].starts_with(&format!("{SIGNED};q=0.")), "{accept}");
}

#[test]
fn the_digest_of_a_signed_manifest_is_that_of_what_is_signed_and_no_other() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let layers = [registry.put_blob("app", b"x".to_vec())];
    let payload = manifest("linux", "amd64", &layers);
    let whole = sign(&payload);
    // By the digest of the whole: not what distribution, docker and containerd name it by.
    let of_whole = Digest::of(whole.as_bytes());
    put(&registry, "1", SIGNED, &whole, &of_whole);
    let error = rig.resolve(&format!("{}/app@{of_whole}", registry.host())).unwrap_err();
    assert!(error.contains(&format!("gives {} for", Digest::of(payload.as_bytes()))), "{error}");
    let error = rig.resolve(&format!("{}/app:1", registry.host())).unwrap_err();
    assert!(error.contains(&format!("says that manifest 1 of app has digest {of_whole}")), "{error}");
    // Sha512 is a digest like the other.
    let mut long = format!("sha512:{}", "0".repeat(128)).parse::<Digest>().unwrap().hasher();
    long.update(payload.as_bytes());
    let long = long.finish();
    put(&registry, "long", SIGNED, &whole, &long);
    let plan = rig.resolve(&format!("{}/app@{long}", registry.host())).unwrap();
    assert_eq!(plan.identity.manifest, long);
    // One byte of the payload changed is another manifest; of the signature, it is the same.
    let digest = Digest::of(payload.as_bytes());
    put(&registry, "2", SIGNED, &whole.replace("nobody looks", "whoever looks"), &digest);
    rig.resolve(&format!("{}/app@{digest}", registry.host())).unwrap();
    put(&registry, "2", SIGNED, &whole.replace("else/where", "else/wherE"), &digest);
    for name in ["app:2".to_owned(), format!("app@{digest}")] {
        let error = rig.resolve(&format!("{}/{name}", registry.host())).unwrap_err();
        assert!(error.contains("corrupt"), "{error}");
    }
}

#[test]
fn an_index_may_lead_to_schema_1() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let payload = manifest("linux", "s390x", &[registry.put_blob("app", b"x".to_vec())]);
    let digest = Digest::of(payload.as_bytes());
    put(&registry, "1", SIGNED, &sign(&payload), &digest);
    let mut entry = descriptor(SIGNED, &digest, payload.len());
    // What the index says of the platform counts, whatever the image says.
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string();
    registry.put_manifest("app", "multi", OCI_INDEX, index.as_bytes());
    let rig_given = Rig::with(|settings| settings.platform_given = true);
    for rig in [rig, rig_given] {
        let plan = rig.resolve(&format!("{}/app:multi", registry.host())).unwrap();
        assert_eq!(plan.identity.manifest, digest);
    }
}

#[test]
fn each_fault_of_a_schema_1_manifest_has_its_own_words() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let layer = registry.put_blob("app", b"x".to_vec());
    let good = manifest("linux", "amd64", &[layer.clone(), layer]);
    let spoilt = |change: &dyn Fn(&mut Value)| {
        let mut document: Value = serde_json::from_str(&good).unwrap();
        change(&mut document);
        document.to_string()
    };
    let no_length = json!([{"protected": base64url(b"{}")}]);
    let faults: [(&str, &str, String, &str); 7] = [
        ("unsigned", SIGNED, good.clone(), "its media type says that it is signed, but it has no signatures"),
        (
            "too few",
            PLAIN,
            spoilt(&|document| document["history"] = json!([])),
            "it has 2 layers and 0 history entries; there must be as many of both, and one at least",
        ),
        (
            "a bad entry",
            PLAIN,
            spoilt(&|document| document["history"][1]["v1Compatibility"] = json!("{")),
            "history entry 2 cannot be read: EOF while parsing an object at line 1 column 1",
        ),
        (
            "no chain",
            PLAIN,
            spoilt(&|document| document["history"].as_array_mut().unwrap().reverse()),
            "history entry 1 has parent \"\", but the entry after it is \
             \"0000000000000000000000000000000000000000000000000000000000000001\"",
        ),
        (
            "a bad signature",
            SIGNED,
            spoilt(&|document| document["signatures"] = no_length.clone()),
            "signature 1 is not usable: its protected header has no formatLength and formatTail",
        ),
        (
            "signed twice",
            SIGNED,
            sign(&sign(&good)),
            "the manifest cannot be read: duplicate field `signatures`",
        ),
        ("said to be an image", OCI_MANIFEST, good.clone(), "but is a manifest of docker schema 1"),
    ];
    for (name, media_type, body, words) in faults {
        registry.on("/v2/app/manifests/1", Reply::new(200, body).header("content-type", media_type));
        let error = rig.resolve(&format!("{}/app:1", registry.host())).unwrap_err();
        let prefix = format!(
            "cannot resolve docker:{0}/app:1: cannot use manifest 1 of app from registry {0}: ",
            registry.host()
        );
        assert!(error.starts_with(&prefix) && error.contains(words), "{name}: {error}");
    }
    let few = Rig::with(|settings| settings.limits.layers_max = 1);
    registry.on("/v2/app/manifests/1", Reply::new(200, good).header("content-type", PLAIN));
    let error = few.resolve(&format!("{}/app:1", registry.host())).unwrap_err();
    assert!(error.ends_with("the image has 2 layers; the limit is 1 (--layers_max)"), "{error}");
}

#[test]
fn schema_1_in_an_oci_layout_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    Image::new().layer(Layer::new()).write_oci(dir.path(), "t");
    let payload = manifest("linux", "amd64", &[Digest::of(b"x")]);
    let digest = Digest::of(payload.as_bytes());
    fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &payload).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(PLAIN, &digest, payload.len())]});
    fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    let rig = Rig::new();
    let archives = Archives::new(Limits::default(), dir.path().join("spool"), Platform::host());
    let provider = OciProvider::new(rig.runtime.handle().clone(), archives);
    let request = ImageRequest::cached(format!("oci:{}", dir.path().display()).parse().unwrap());
    let error = chain(&rig.runtime.block_on(provider.resolve(request)).unwrap_err());
    assert!(error.ends_with("is of docker schema 1, which is understood from registries only"), "{error}");
}

#[test]
fn what_wraps_a_layer_is_found_out_and_a_wrong_one_leaves_nothing() {
    let room = Room::new("schema1-layers");
    let registry = TestRegistry::start();
    let tars = ["plain", "gzip", "zstd"].map(|name| Layer::new().file(name, name, 0o644).finish());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tars[1]).unwrap();
    let blobs = [tars[0].clone(), gzip.finish().unwrap(), zstd::encode_all(&tars[2][..], 1).unwrap()];
    let layers = blobs.clone().map(|blob| registry.put_blob("app", blob));
    let payload = manifest("linux", "amd64", &layers);
    put(&registry, "1", SIGNED, &sign(&payload), &Digest::of(payload.as_bytes()));
    let name = format!("{}/app:1", registry.host());
    // One that is not what its digest says, though it is a whole layer.
    let blob = |at: usize| format!("/v2/app/blobs/{}", layers[at]);
    registry.on(blob(1), Reply::new(200, blobs[0].clone()));
    room.keelblock(["pull", &name]).run().failed_naming(&[&layers[1].to_string(), &layers[0].to_string()]);
    // Cut, and gone.
    registry.on(blob(1), Reply::new(200, blobs[1][..40].to_vec()));
    room.keelblock(["pull", &name]).run().failed_naming(&[&layers[1].to_string()]);
    registry.on(blob(1), Reply::error(404, "BLOB_UNKNOWN", "it is gone"));
    room.keelblock(["pull", &name]).run().failed_naming(&[&layers[1].to_string(), "it is gone"]);
    assert_eq!(room.keelblock(["images", "--json"]).run().ok().json(), json!([]));
    registry.on(blob(1), Reply::new(200, blobs[1].clone()));
    let pulled = room.keelblock(["pull", "--json", &name]).run().ok().json();
    assert_eq!(pulled["layers"], json!(tars.map(|tar| Digest::of(&tar))));
    room.expect_no_leftovers();
}

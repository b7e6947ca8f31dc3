//! Manifests of docker schema 1, and images that no index chose: from a registry in this process, which may lie, and from
//! Debian's `docker-registry`, filled by `skopeo` and run by the real binary.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::docker::{DockerProvider, DockerSource};
use keelblock::provider::manifest::Platform;
use keelblock::provider::oci::OciProvider;
use keelblock::puller::registry::{RegistryClient, RegistryPuller, RegistrySettings};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::{ImagePlan, LayerKey};
use keelblock_actors::ports::{Provider, Puller};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
    pub(crate) mod registry;
}
use support::binary::{Room, need_programs, need_root};
use support::images::{Image, Layer, shell};
use support::peers::Registry;
use support::registry::{OCI_INDEX, OCI_MANIFEST, Reply, TestRegistry, descriptor};

const PLAIN: &str = "application/vnd.docker.distribution.manifest.v1+json";
const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const SCHEMA1: &str = "compatibility: {schema1: {enabled: true}}";

/// A client on a runtime of its own.
struct Rig {
    provider: DockerProvider,
    puller: RegistryPuller,
    runtime: Runtime,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut RegistrySettings)) -> Self {
        Self::logging(slog::Logger::root(slog::Discard, slog::o!()), change)
    }

    fn logging(log: slog::Logger, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut settings = RegistrySettings::new(Limits::default());
        settings.platform = "linux/amd64".parse().unwrap();
        change(&mut settings);
        let client = RegistryClient::new(settings, runtime.handle().clone(), log);
        let archives = Archives::new(Limits::default(), "/nonexistent/spool".into(), Platform::host());
        let provider =
            DockerProvider::new("docker.io".parse::<DockerSource>().unwrap(), client.clone(), archives);
        Self { provider, puller: RegistryPuller::new(client), runtime }
    }

    fn resolve(&self, name: &str) -> Result<ImagePlan, String> {
        let request = ImageRequest::cached(name.parse().unwrap());
        self.runtime.block_on(self.provider.resolve(request)).map_err(|error| chain(&error))
    }

    fn blobs(&self, plan: &ImagePlan) -> Vec<Vec<u8>> {
        let blob = |layer| {
            let mut blob =
                self.runtime.block_on(self.puller.open(layer)).unwrap_or_else(|e| panic!("{}", chain(&e)));
            let mut bytes = Vec::new();
            blob.reader.read_to_end(&mut bytes).unwrap();
            bytes
        };
        plan.layers.iter().map(blob).collect()
    }
}

/// Keeps what is said at `warn` and above.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl slog::Drain for Warnings {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(slog::Level::Warning) {
            self.0.lock().unwrap().push(record.msg().to_string());
        }
        Ok(())
    }
}

/// A manifest of layers, base first, for this system and processor, in one line as registries have it.
fn manifest(os: &str, architecture: &str, layers: &[Digest]) -> String {
    let id = |n: usize| format!("{n:064x}");
    let mut history = Vec::new();
    for n in 0..layers.len() {
        let mut entry =
            json!({"id": id(n), "os": os, "architecture": architecture, "config": {"Cmd": ["/bin/true"]}});
        if n > 0 {
            entry["parent"] = json!(id(n - 1));
        }
        history.insert(0, json!({"v1Compatibility": entry.to_string()}));
    }
    let layers: Vec<_> = layers.iter().rev().map(|layer| json!({"blobSum": layer})).collect();
    // Another name than it is asked by, as after a copy within a registry.
    json!({"schemaVersion": 1, "name": "else/where", "tag": "x", "architecture": architecture,
           "fsLayers": layers, "history": history})
    .to_string()
}

fn base64url(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        text.extend((0..=group.len()).map(|n| char::from(digits[(bits >> (18 - 6 * n) & 63) as usize])));
    }
    text
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

/// Answers with this manifest by tag and by digest, and states that digest.
fn put(registry: &TestRegistry, tag: &str, media_type: &str, body: &str, digest: &Digest) {
    let reply = Reply::new(200, body.to_owned())
        .header("content-type", media_type)
        .header("docker-content-digest", digest);
    for name in [tag.to_owned(), digest.to_string()] {
        registry.on(format!("/v2/app/manifests/{name}"), reply.clone());
    }
}

// ---- schema 1 from a registry of ours ---------------------------------------------------------------------

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

// ---- images for other machines, and rings of indexes ------------------------------------------------------

#[test]
fn an_image_for_another_platform_is_refused_to_whoever_named_one() {
    let registry = TestRegistry::start();
    let layers = [registry.put_blob("app", b"x".to_vec())];
    for (tag, os, architecture) in [("arm", "linux", "arm64"), ("windows", "windows", "amd64")] {
        let payload = manifest(os, architecture, &layers);
        put(&registry, tag, PLAIN, &payload, &Digest::of(payload.as_bytes()));
    }
    // An OCI image, for amd64.
    registry.put_image("app", "oci", &[b"x"]);
    let warnings = Warnings::default();
    let resolve = |platform: &str, given: bool, tag: &str| {
        let rig = Rig::logging(slog::Logger::root(warnings.clone(), slog::o!()), |settings| {
            settings.platform = platform.parse().unwrap();
            settings.platform_given = given;
        });
        rig.resolve(&format!("{}/app:{tag}", registry.host()))
    };
    let warned = || std::mem::take(&mut *warnings.0.lock().unwrap());
    for (platform, tag) in [("linux/amd64", "oci"), ("linux/amd64/v3", "oci"), ("linux/arm64", "arm")] {
        resolve(platform, true, tag).unwrap();
        resolve(platform, false, tag).unwrap();
        assert!(warned().is_empty());
    }
    for (platform, tag, found) in
        [("linux/arm64", "oci", "linux/amd64"), ("linux/amd64", "arm", "linux/arm64")]
    {
        let error = resolve(platform, true, tag).unwrap_err();
        let words = format!(
            "the image is for {found}, and not for {platform}; leave --platform out to take it as it is"
        );
        assert!(error.ends_with(&words), "{error}");
        assert!(warned().is_empty());
        // Whoever did not name one has said nothing of wanting another: a warning in the log, no more.
        resolve(platform, false, tag).unwrap();
        assert_eq!(warned(), ["the image is for another platform than this machine's"]);
    }
    // What is of another system cannot run at all.
    for given in [true, false] {
        let error = resolve("linux/amd64", given, "windows").unwrap_err();
        assert!(error.ends_with("the image is for windows/amd64, and not for linux/amd64"), "{error}");
    }
}

#[test]
fn a_registry_that_leads_in_a_ring_is_left_after_one_round() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let index = |entry: &Digest, size: usize| {
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_INDEX, entry, size)]})
            .to_string()
    };
    // An index cannot name itself; a registry that says so is found out at the second document.
    let body = index(&Digest::of(b"itself"), index(&Digest::of(b"itself"), 100).len());
    registry.script(move |_| Some(Reply::new(200, body.clone()).header("content-type", OCI_INDEX)));
    let error = rig.resolve(&format!("{}/app:1", registry.host())).unwrap_err();
    assert!(error.contains("it is corrupt or lies"), "{error}");
    assert_eq!(registry.seen().len(), 2);
    // A long way of honest indexes, without platforms, ends at the limit.
    let registry = TestRegistry::start();
    let mut body = index(&Digest::of(b"nowhere"), 1);
    for n in 0..20 {
        let digest = registry.put_manifest("app", &format!("{n}"), OCI_INDEX, body.as_bytes());
        body = index(&digest, body.len());
    }
    let error = rig.resolve(&format!("{}/app:19", registry.host())).unwrap_err();
    assert!(error.ends_with("leads through more than 4 indexes (--index_depth_max)"), "{error}");
    assert_eq!(registry.seen().len(), 5);
}

#[test]
fn an_index_within_an_index_is_followed_when_only_it_fits() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let image = registry.put_image("app", "1", &[b"x"]);
    let entry = |mut descriptor: Value, platform: Option<&str>| {
        if let Some(architecture) = platform {
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        }
        descriptor
    };
    let index = |entries: &[Value]| {
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string()
    };
    let manifest = descriptor(OCI_MANIFEST, &image.manifest, image.manifest_bytes.len());
    let inner = index(&[entry(manifest, Some("amd64"))]);
    let inner_digest = registry.put_manifest("app", "inner", OCI_INDEX, inner.as_bytes());
    let nested = descriptor(OCI_INDEX, &inner_digest, inner.len());
    let other = descriptor(OCI_MANIFEST, &Digest::of(b"other"), 9);
    let outer = index(&[entry(other.clone(), Some("s390x")), nested.clone()]);
    registry.put_manifest("app", "outer", OCI_INDEX, outer.as_bytes());
    let plan = rig.resolve(&format!("{}/app:outer", registry.host())).unwrap();
    assert_eq!(plan.identity.manifest, image.manifest);
    // One that names the platform is preferred to one that may have it.
    let preferred = index(&[nested, entry(other, Some("amd64"))]);
    registry.put_manifest("app", "preferred", OCI_INDEX, preferred.as_bytes());
    let error = rig.resolve(&format!("{}/app:preferred", registry.host())).unwrap_err();
    assert!(error.contains(&format!("no manifest {}", Digest::of(b"other"))), "{error}");
}

// ---- schema 1 from Debian's registry ----------------------------------------------------------------------

/// Three layers, one of them of nothing but a line in the history, as an OCI layout that skopeo can write as schema 1: that
/// needs a history.
fn layout(dir: &Path) {
    let image = Image::new()
        .layer(shell().file("etc/motd", "base\n", 0o644).file("etc/removed", "still here\n", 0o644))
        .layer(Layer::new().file("etc/motd", "three layers\n", 0o644).whiteout("etc/removed"))
        .layer(Layer::new().file("opt/c", "c\n", 0o644))
        .config("Env", json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "KEEL=block"]))
        .config("WorkingDir", json!("/opt"));
    image.write_oci(dir, "latest");
    let blob = |digest: &Value| {
        dir.join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let write = |document: &Value| {
        let bytes = document.to_string();
        let digest = Digest::of(bytes.as_bytes());
        fs::write(blob(&json!(digest)), &bytes).unwrap();
        (json!(digest), json!(bytes.len()))
    };
    let mut index = read(&dir.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    let line = |text: &str, empty: bool| json!({"created": "2020-01-01T00:00:00Z", "created_by": text, "empty_layer": empty});
    config["history"] =
        json!([line("a", false), line("ENV KEEL=block", true), line("b", false), line("c", false)]);
    (manifest["config"]["digest"], manifest["config"]["size"]) = write(&config);
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = write(&manifest);
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// The blobs of a schema 1 manifest that are no empty ones, base first.
fn layers(manifest: &Value) -> Vec<String> {
    assert_eq!(manifest["schemaVersion"], 1, "{manifest}");
    let history = manifest["history"].as_array().unwrap();
    let list = manifest["fsLayers"].as_array().unwrap();
    assert_eq!(list.len(), 4, "{manifest}");
    let full = list
        .iter()
        .zip(history)
        .filter(|(_, entry)| !entry["v1Compatibility"].as_str().unwrap().contains("throwaway"));
    full.map(|(layer, _)| layer["blobSum"].as_str().unwrap().to_owned()).rev().collect()
}

#[test]
fn schema_1_pushed_by_skopeo_is_pulled_once_and_kept() {
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("schema1-pull");
    let registry = Registry::start_with(SCHEMA1);
    layout(&room.join("layout"));
    let source = format!("oci:{}:latest", room.join("layout").display());
    let digest = registry.push(&source, "app:1", &["--format", "v2s1"]);
    let wanted = layers(&registry.manifest("app:1"));
    assert_eq!(wanted.len(), 3);

    let before = registry.requests().len();
    let name = registry.image("app:1");
    let first = room.keelblock(["pull", "--json", &name]).run().ok().json();
    assert_eq!(first["digest"], digest[..], "{first}");
    assert_eq!((&first["layers_fetched"], &first["layers_reused"]), (&json!(3), &json!(0)), "{first}");
    let mut fetched = registry.blobs_fetched(before);
    fetched.sort();
    let mut sorted = wanted.clone();
    sorted.sort();
    assert_eq!(fetched, sorted, "each layer once, and nothing that is empty");
    // The diff IDs are those of the layout, which the manifest never told.
    let manifest =
        room.keelblock(["pull", "--json", &format!("oci:{}:latest", room.join("layout").display())]);
    assert_eq!(manifest.run().ok().json()["layers"], first["layers"]);

    // Whoever names a platform gets that one or none.
    room.keelblock(["--platform=linux/s390x", "pull", &name]).run().failed_naming(&[
        "app:1",
        "linux/s390x",
        "leave --platform out",
    ]);

    // By digest and by tag again: the blobs are known.
    let before = registry.requests().len();
    for name in [name.clone(), registry.image(&format!("app@{digest}"))] {
        let again = room.keelblock(["pull", "--json", &name]).run().ok().json();
        assert_eq!((&again["layers_fetched"], &again["layers_reused"]), (&json!(0), &json!(3)), "{again}");
        assert_eq!(again["id"], first["id"]);
    }
    assert!(registry.blobs_fetched(before).is_empty());

    // A layer that rots is known by its diff ID alone, and found again by its blob.
    let rotten = first["layers"][1].as_str().unwrap();
    let at = room.work_dir().join("store/layers/sha256").join(&rotten["sha256:".len()..]);
    let file = [at.join("layer.erofs"), at.join("tree/etc/motd")].into_iter().find(|path| path.exists());
    let file = file.unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let before = registry.requests().len();
    room.keelblock(["scrub"]).run().ok();
    assert_eq!(registry.blobs_fetched(before), wanted[1..2]);
    let again = room.keelblock(["pull", "--json", &name]).run().ok().json();
    assert_eq!((&again["layers_fetched"], &again["layers"]), (&json!(0), &first["layers"]), "{again}");

    let images = room.keelblock(["images", "--json"]).run().ok().json();
    let listed = images.as_array().unwrap().iter().filter(|image| image["digest"] == digest[..]).count();
    assert_eq!(listed, 2, "{images}");
    // Nothing uses it, so nothing keeps it; and it comes back whole.
    room.keelblock(["prune"]).run().ok();
    assert_eq!(room.keelblock(["images", "--json"]).run().ok().json(), json!([]));
    let before = registry.requests().len();
    let back = room.keelblock(["pull", "--json", &name]).run().ok().json();
    assert_eq!((&back["layers_fetched"], &back["layers"]), (&json!(3), &first["layers"]), "{back}");
    assert_eq!(registry.blobs_fetched(before).len(), 3);
    room.expect_no_leftovers();
}

#[test]
fn an_image_in_schema_1_and_in_schema_2_has_the_same_layers_though_both_come_at_once() {
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("schema1-both");
    let registry = Registry::start_with(SCHEMA1);
    layout(&room.join("layout"));
    let source = format!("oci:{}:latest", room.join("layout").display());
    registry.push(&source, "app:1", &["--format", "v2s1"]);
    registry.push(&source, "app:2", &["--format", "v2s2"]);
    let names = [registry.image("app:1"), registry.image("app:2")];
    let both = room.keelblock(["pull", "--json", &names[0], &names[1]]).run().ok().json();
    assert_eq!(both[0]["layers"], both[1]["layers"], "{both}");
    assert_eq!(both[0]["layers"].as_array().unwrap().len(), 3);
    assert_ne!(both[0]["id"], both[1]["id"]);
    // With one of them gone the other is whole.
    room.keelblock(["prune", "--keep", &names[1]]).run().ok();
    let before = registry.requests().len();
    let again = room.keelblock(["pull", "--json", &names[0]]).run().ok().json();
    assert_eq!((&again["layers_fetched"], &again["layers_reused"]), (&json!(0), &json!(3)), "{again}");
    assert!(registry.blobs_fetched(before).is_empty());
    room.expect_no_leftovers();
}

#[test]
fn schema_1_images_run_with_each_backend_and_the_second_time_without_the_registry() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("schema1-run");
    let registry = Registry::start_with(SCHEMA1);
    layout(&room.join("layout"));
    let source = format!("oci:{}:latest", room.join("layout").display());
    let digest = registry.push(&source, "app:1", &["--format", "v2s1"]);
    let line =
        "cat /etc/motd; test ! -e /etc/removed || echo removed is there; pwd; cat c; echo $KEEL; exit 7";
    let mut before = 0;
    for backend in ["overlay", "copy", "bind"] {
        for name in [registry.image("app:1"), registry.image(&format!("app@{digest}"))] {
            for _ in 0..2 {
                let flag = format!("--image_provisioner_backend={backend}");
                room.keelblock([&flag, "run", &name, "--", "sh", "-c", line])
                    .run()
                    .code(7)
                    .printed("three layers\n/opt\nc\nblock\n");
            }
        }
        if before == 0 {
            assert_eq!(registry.blobs_fetched(0).len(), 3, "each layer once");
            before = registry.requests().len();
        }
    }
    assert_eq!(registry.requests().len(), before, "all of it was in the store");

    // A container keeps its layers, though its image goes.
    let name = registry.image("app:1");
    room.keelblock(["provision", "--id=kept", &name]).run().ok();
    let shown = room.keelblock(["inspect", "--json", "kept"]).run().ok().stdout();
    assert!(shown.contains(&digest), "{shown}");
    room.keelblock(["prune"]).run().ok();
    let again = room.keelblock(["pull", "--json", &name]).run().ok().json();
    assert_eq!((&again["layers_fetched"], &again["layers_reused"]), (&json!(0), &json!(3)), "{again}");
    room.keelblock(["destroy", "kept"]).run().ok();
    room.keelblock(["prune"]).run().ok();
    let again = room.keelblock(["pull", "--json", &name]).run().ok().json();
    assert_eq!(again["layers_fetched"], 3, "{again}");
    room.expect_no_leftovers();
}

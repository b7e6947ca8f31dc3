//! When the source of an image is asked, and who may have what is in the store already.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use keelblock::config::{Config, Secret};
use keelblock::{Agent, ImageRequest, NoObserver, PullPolicy};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;

mod support {
    pub(crate) mod registry;
}
use support::registry::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Reply, TestRegistry, descriptor};

/// A tar with one file of this content.
fn layer(content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

/// What a pull by an agent of its own gives: the manifest, or why not.
fn pull(
    home: &Path,
    image: &str,
    policy: Option<PullPolicy>,
    change: impl FnOnce(&mut Config),
) -> Result<Digest, String> {
    let mut config = Config { work_dir: home.to_owned(), ..Config::default() };
    config.limits.retries_max = 0;
    change(&mut config);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let agent = Agent::start(config, Arc::new(NoObserver), log).await.unwrap();
        let request = ImageRequest { policy, ..ImageRequest::cached(image.parse().unwrap()) };
        let pulled = agent.pull(request).await;
        agent.shutdown().await;
        pulled.map(|image| image.identity.manifest).map_err(|error| chain(&*error))
    })
}

#[test]
fn the_source_is_asked_as_the_policy_says() {
    let registry = TestRegistry::start();
    let home = tempfile::tempdir().unwrap();
    let image = format!("{}/app:1", registry.host());
    let asked = || registry.seen().len();

    let error = pull(home.path(), &image, Some(PullPolicy::Never), |_| {}).unwrap_err();
    assert!(error.contains("use --image_pull_policy=missing"), "{error}");
    assert_eq!(asked(), 0);

    let old = registry.put_image("app", "1", &[&layer("old")]);
    assert_eq!(pull(home.path(), &image, None, |_| {}), Ok(old.manifest.clone()));
    let first = asked();
    let new = registry.put_image("app", "1", &[&layer("new")]);
    for policy in [None, Some(PullPolicy::Missing), Some(PullPolicy::Never)] {
        assert_eq!(pull(home.path(), &image, policy, |_| {}), Ok(old.manifest.clone()), "{policy:?}");
    }
    assert_eq!(asked(), first);
    // What the agent is told holds for requests that do not say.
    let always = |config: &mut Config| config.image_pull_policy = Some(PullPolicy::Always);
    assert_eq!(pull(home.path(), &image, Some(PullPolicy::Missing), always), Ok(old.manifest));
    assert_eq!(pull(home.path(), &image, None, always), Ok(new.manifest.clone()));
    assert_eq!(pull(home.path(), &image, None, |_| {}), Ok(new.manifest));
}

#[test]
fn a_private_image_in_the_store_is_given_only_to_those_whom_the_registry_lets_have_it() {
    let registry = TestRegistry::start();
    registry.script(|seen| {
        let known = seen.authorization.as_deref() == Some("Basic b3duZXI6cmlnaHQ=");
        (!known).then(|| {
            Reply::error(401, "UNAUTHORIZED", "who?").header("www-authenticate", "Basic realm=\"r\"")
        })
    });
    let private = registry.put_image("app", "1", &[&layer("private")]);
    let home = tempfile::tempdir().unwrap();
    let image = format!("{}/app:1", registry.host());
    let as_user = |login: Option<&str>| {
        let login = login.map(|text| Secret(text.to_owned()));
        move |config: &mut Config| {
            config.docker_auth = login;
            config.authorize_stored_images = true;
        }
    };
    assert_eq!(pull(home.path(), &image, None, as_user(Some("owner:right"))), Ok(private.manifest.clone()));
    let asked = registry.seen().len();

    // Without the option it is anybody's.
    assert_eq!(pull(home.path(), &image, None, |_| {}), Ok(private.manifest.clone()));
    assert_eq!(registry.seen().len(), asked);

    for policy in [None, Some(PullPolicy::Never)] {
        let stranger = pull(home.path(), &image, policy, as_user(None)).unwrap_err();
        assert!(stranger.contains("is in the store, but its source does not give it"), "{stranger}");
        let wrong = pull(home.path(), &image, policy, as_user(Some("owner:wrong"))).unwrap_err();
        assert!(wrong.contains("HTTP 401") && !wrong.contains("wrong"), "{wrong}");
    }
    assert_eq!(pull(home.path(), &image, None, as_user(Some("owner:right"))), Ok(private.manifest.clone()));
    let last = registry.seen().pop().unwrap();
    assert_eq!((&*last.method, &*last.path), ("HEAD", &*format!("/v2/app/manifests/{}", private.manifest)));

    // A registry that cannot be asked has not said yes.
    drop(registry);
    let down = pull(home.path(), &image, None, as_user(Some("owner:right"))).unwrap_err();
    assert!(down.contains("its source does not give it") && down.contains("cannot connect"), "{down}");
}

/// An image of one layer that `bytes` are said to unpack to: a config may say what it likes.
fn put_claiming(registry: &TestRegistry, repository: &str, bytes: &[u8], diff_id: &Digest) {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config_bytes = config.to_string();
    let config = registry.put_blob(repository, config_bytes.clone());
    let blob = registry.put_blob(repository, bytes.to_vec());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &config, config_bytes.len()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &blob, bytes.len())],
    });
    registry.put_manifest(repository, "1", OCI_MANIFEST, manifest.to_string().as_bytes());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_layer_in_the_store_is_not_had_by_naming_its_diff_id() {
    let registry = TestRegistry::start();
    let secret = layer("private");
    let private = registry.put_image("private", "1", &[&secret]);
    let diff_id = &private.diff_ids[0];
    put_claiming(&registry, "thief", &gzip(&layer("something else")), diff_id);
    put_claiming(&registry, "owner", &gzip(&secret), diff_id);
    let home = tempfile::tempdir().unwrap();
    let pull = |repository: &str| {
        let image = format!("{}/{repository}:1", registry.host());
        pull(home.path(), &image, None, |config| config.authorize_stored_images = true)
    };
    pull("private").unwrap();
    let stolen = pull("thief").unwrap_err();
    assert!(stolen.contains("its blob or the image config is corrupt"), "{stolen}");
    // Who has its bytes in another form shows them; who has the very blob is believed by his registry.
    pull("owner").unwrap();
    let blob = Digest::of(&gzip(&secret));
    assert_eq!(registry.count(&format!("/v2/owner/blobs/{blob}")), 1);
    registry.put_image("copy", "1", &[&secret]);
    pull("copy").unwrap();
    let asked: Vec<_> =
        registry.seen().into_iter().filter(|seen| seen.path == format!("/v2/copy/blobs/{diff_id}")).collect();
    assert_eq!(asked.iter().map(|seen| &*seen.method).collect::<Vec<_>>(), ["HEAD"]);
}

#[test]
fn an_image_in_the_store_for_another_platform_is_not_the_one_that_is_wanted() {
    let registry = TestRegistry::start();
    let entries = ["amd64", "arm64"].map(|architecture| {
        let bytes = layer(architecture);
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&bytes)]},
        });
        let config_bytes = config.to_string();
        let config = registry.put_blob("app", config_bytes.clone());
        let blob = registry.put_blob("app", bytes.clone());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config, config_bytes.len()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &blob, bytes.len())],
        });
        let manifest = manifest.to_string();
        let digest = registry.put_manifest("app", architecture, OCI_MANIFEST, manifest.as_bytes());
        let mut entry = descriptor(OCI_MANIFEST, &digest, manifest.len());
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        (digest, entry)
    });
    let list: Vec<_> = entries.iter().map(|(_, entry)| entry).collect();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list});
    registry.put_manifest("app", "1", OCI_INDEX, index.to_string().as_bytes());
    let home = tempfile::tempdir().unwrap();
    let image = format!("{}/app:1", registry.host());
    let pull = |platform: &str, policy| {
        let platform = platform.parse().unwrap();
        pull(home.path(), &image, policy, |config| config.platform = Some(platform))
    };
    assert_eq!(pull("linux/amd64", None).as_ref(), Ok(&entries[0].0));
    let never = pull("linux/arm64", Some(PullPolicy::Never)).unwrap_err();
    assert!(never.contains("for another platform"), "{never}");
    assert_eq!(pull("linux/arm64", None).as_ref(), Ok(&entries[1].0));
    let asked = registry.seen().len();
    assert_eq!(pull("linux/arm64", None).as_ref(), Ok(&entries[1].0));
    assert_eq!(registry.seen().len(), asked);
    assert_eq!(pull("linux/amd64", None).as_ref(), Ok(&entries[0].0));
}

#[test]
fn an_image_for_another_processor_that_is_the_only_one_is_not_asked_for_each_time() {
    let registry = TestRegistry::start();
    let bytes = layer("foreign");
    let config = serde_json::json!({
        "architecture": "s390x", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&bytes)]},
    });
    let config_bytes = config.to_string();
    let config = registry.put_blob("app", config_bytes.clone());
    let blob = registry.put_blob("app", bytes.clone());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &config, config_bytes.len()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &blob, bytes.len())],
    });
    let digest = registry.put_manifest("app", "1", OCI_MANIFEST, manifest.to_string().as_bytes());
    let home = tempfile::tempdir().unwrap();
    let image = format!("{}/app:1", registry.host());
    assert_eq!(pull(home.path(), &image, None, |_| {}).as_ref(), Ok(&digest));
    let asked = registry.seen().len();
    for policy in [None, Some(PullPolicy::Never)] {
        assert_eq!(pull(home.path(), &image, policy, |_| {}).as_ref(), Ok(&digest));
    }
    assert_eq!(registry.seen().len(), asked);
    // Who names a platform is not given one for another.
    let other = |config: &mut Config| config.platform = Some("linux/arm64".parse().unwrap());
    let refused = pull(home.path(), &image, None, other).unwrap_err();
    assert!(refused.contains("is for linux/s390x, and not for linux/arm64"), "{refused}");
}

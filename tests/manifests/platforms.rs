//! Which image it is that an index leads to, and what of one that no index chose.

use std::sync::{Arc, Mutex};

use keelblock_actors::image::digest::Digest;
use serde_json::{Value, json};

use super::support::registry::{OCI_INDEX, OCI_MANIFEST, Reply, TestRegistry, descriptor};
use super::{PLAIN, Rig, manifest, put};

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

//! Schema 1 from Debian's registry, as skopeo pushes it, to the last byte of a running container.

use std::fs;
use std::path::Path;

use keelblock_actors::image::digest::Digest;
use serde_json::{Value, json};

use super::support::binary::{Room, need_programs, need_root};
use super::support::images::{Image, Layer, shell};
use super::support::peers::Registry;

const SCHEMA1: &str = "compatibility: {schema1: {enabled: true}}";

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

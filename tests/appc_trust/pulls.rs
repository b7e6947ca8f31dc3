//! What the commands do with signatures: images are pulled, or are not.

use std::path::PathBuf;

use crate::support::aci::{Aci, Pack};
use crate::support::acis::AciServer;
use crate::support::binary::Room;
use crate::support::pgp::{Key, Shape};
use crate::support::servers::ForwardProxy;

const IMAGE: &str = "appc:example.com/app:1.0,os=linux,arch=amd64";

/// A directory with an image that is found by its name, and the signature beside it.
fn published(room: &Room, signature: impl FnOnce(&[u8]) -> Option<String>) -> PathBuf {
    let aci = Aci::new("example.com/app:1.0").file("etc/motd", 0o644, "hello").packed(Pack::Gzip).bytes();
    let dir = room.join("acis");
    let path = dir.join("example.com/app-1.0-linux-amd64.aci");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &aci).unwrap();
    let beside = path.with_extension("aci.asc");
    let _ = std::fs::remove_file(&beside);
    if let Some(signature) = signature(&aci) {
        std::fs::write(beside, signature).unwrap();
    }
    path
}

fn pull(room: &Room, more: &[&str], status: i32, says: &str) {
    let prefix = format!("--appc_simple_discovery_uri_prefix={}/", room.join("acis").display());
    let pulled = room.keelblock(["pull", &prefix, IMAGE]).args(more).run().code(status);
    assert!(pulled.stderr().contains(says), "{}\ndoes not say {says:?}", pulled.stderr());
}

fn trust(room: &Room, key: &Key, prefix: &str) {
    let file = room.join("key.asc");
    std::fs::write(&file, key.armored()).unwrap();
    let command = ["appc", "trust", "--prefix", prefix, "--fingerprint", &key.fingerprint()];
    room.keelblock(command).arg(&file).run().code(0);
}

#[test]
fn an_image_is_pulled_once_its_key_is_trusted_for_its_name() {
    let room = Room::new("appc-trust-pull");
    let key = Shape::new(1).make();
    published(&room, |aci| Some(key.sign(aci)));
    pull(&room, &[], 125, &key.fingerprint());
    trust(&room, &key, "example.com/other");
    pull(&room, &[], 125, "trusted for example.com/other only");
    trust(&room, &key, "example.com");
    pull(&room, &[], 0, "");
    room.keelblock(["appc", "untrust", &key.fingerprint()]).run().code(0);
    // Another archive of that name, by the same key, which is not trusted any more.
    let aci = Aci::new("example.com/app:1.0").file("etc/motd", 0o644, "other").bytes();
    std::fs::write(room.join("acis/example.com/app-1.0-linux-amd64.aci"), &aci).unwrap();
    std::fs::write(room.join("acis/example.com/app-1.0-linux-amd64.aci.asc"), key.sign(&aci)).unwrap();
    pull(&room, &[], 125, "not trusted");
    room.expect_no_leftovers();
}

#[test]
fn an_image_that_was_changed_or_not_signed_is_pulled_by_the_policy_only() {
    let room = Room::new("appc-trust-policy");
    let key = Shape::new(1).make();
    trust(&room, &key, "example.com");
    let path = published(&room, |_| None);
    pull(&room, &["--appc_verify=required"], 125, "--appc_verify=required");
    pull(&room, &["--appc_verify=if-present"], 0, "");

    let room = Room::new("appc-trust-changed");
    trust(&room, &key, "example.com");
    let again = published(&room, |aci| Some(key.sign(&[aci, b"x"].concat())));
    assert_ne!(path, again);
    pull(&room, &[], 125, "was changed");
    pull(&room, &["--appc_verify=required"], 125, "was changed");
    std::fs::write(again.with_extension("aci.asc"), "").unwrap();
    pull(&room, &[], 125, "not in ASCII armour");
    assert_eq!(room.keelblock(["images", "--json"]).run().code(0).json(), serde_json::json!([]));
    pull(&room, &["--appc_verify=none"], 0, "");
}

#[test]
fn of_the_fixtures_the_pier_is_signed_and_the_wreck_is_not() {
    let room = Room::new("appc-trust-fixtures");
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/appc-signed");
    let prefix = format!("--appc_simple_discovery_uri_prefix={fixtures}/");
    let key = format!("{fixtures}/key.asc");
    let pull = |image: &str, verify: &str| {
        room.keelblock(["pull", &prefix, verify, image, "--platform=linux/amd64"]).run()
    };
    let (pier, wreck) = ("appc:keelblock.example/pier:1.0.0", "appc:keelblock.example/wreck:1.0.0");
    pull(pier, "--appc_verify=if-present").failed_naming(&["keelblock.example/pier", "not trusted"]);
    let trust = ["appc", "trust", "--prefix", "keelblock.example", "--skip_fingerprint_review", &key];
    room.keelblock(trust).run().code(0);
    pull(pier, "--appc_verify=required").code(0);
    for verify in ["--appc_verify=required", "--appc_verify=if-present"] {
        pull(wreck, verify).failed_naming(&["keelblock.example/wreck", "was changed"]);
    }
    pull(wreck, "--appc_verify=none").code(0);
}

#[test]
fn keys_are_discovered_and_fetched() {
    let room = Room::new("appc-trust-discover");
    let server = AciServer::start();
    let proxy = ForwardProxy::start(server.host(), None, None);
    let (one, two) = (Shape::new(1).make(), Shape::new(2).make());
    let page = "<html><head><meta name=\"ac-discovery-pubkeys\" content=\"example.com http://example.com/keys.asc\"></head>";
    server.put("example.com/?ac-discovery=1", page);
    server.put("example.com/keys.asc", format!("{}{}", one.armored(), two.armored()));
    let flags = [
        "--http_proxy".to_owned(),
        proxy.host(),
        "--appc_simple_discovery_uri_prefix=http://".to_owned(),
        "--retries_max=0".to_owned(),
    ];
    let keelblock = |args: &[&str]| room.keelblock(args).args(&flags).run();
    let trust = ["appc", "trust", "--prefix", "example.com/app", "--fingerprint", &one.fingerprint()];
    let done = keelblock(&trust).code(0);
    assert_eq!(done.stdout(), format!("{} example.com/app\n", one.fingerprint()));
    assert!(done.stderr().contains("from http://example.com/keys.asc"), "{}", done.stderr());

    let url = ["appc", "trust", "--root", "--skip_fingerprint_review", "http://example.com/keys.asc"];
    assert_eq!(keelblock(&url).code(0).stdout().lines().count(), 2);
    let missing = ["appc", "trust", "--root", "--skip_fingerprint_review", "http://example.com/none.asc"];
    keelblock(&missing).failed_naming(&["http://example.com/none.asc", "404"]);
    let none = ["appc", "trust", "--prefix", "example.org/app", "--skip_fingerprint_review"];
    keelblock(&none).failed_naming(&["example.org/app"]);
    let complained = keelblock(&["appc", "trust", "--root", "--skip_fingerprint_review"]).code(2);
    assert!(complained.stderr().contains("discovered for a --prefix only"), "{}", complained.stderr());
}

//! All of it at once: a signed image with two dependencies, found by the meta tags of pages, its key too; verified, pulled, run.

use std::fs;
use std::path::Path;

use serde_json::json;

mod support {
    pub(crate) mod aci;
    pub(crate) mod acis;
    pub(crate) mod binary;
    pub(crate) mod pgp;
    pub(crate) mod registry;
    pub(crate) mod servers;
}

use support::aci::{Aci, Pack};
use support::acis::AciServer;
use support::binary::{Room, need_root, skip};
use support::pgp::{Key, Shape};
use support::servers::ForwardProxy;

/// Hosts that no resolver knows: all that is asked goes to one server, which stands behind a proxy.
struct World {
    server: AciServer,
    room: Room,
    key: Key,
    // Before the server, which hears when nobody is left.
    _proxy: ForwardProxy,
}

const APP: &str = "appc:keel.test/app:1.0.0";

impl World {
    fn new(name: &str) -> Self {
        let server = AciServer::start();
        let proxy = ForwardProxy::start(server.host(), None, None);
        let room = Room::new(&format!("appc-whole-{name}"))
            .with_flag(format!("--http_proxy=http://{}", proxy.host()))
            .with_flag("--docker_insecure_registries=keel.test,cdn.test")
            .with_flag("--appc_verify=required")
            .with_flag("--platform=linux/amd64");
        let world = Self { server, room, key: Shape::new(7).make(), _proxy: proxy };
        // One page for all names of this host: it is found on the way up from them.
        world.server.put(
            "keel.test/?ac-discovery=1",
            r#"<html><head>
                <meta name="ac-discovery" content="keel.test http://cdn.test/acis/{name}-{version}-{os}-{arch}.{ext}">
                <meta name="ac-discovery-pubkeys" content="keel.test http://cdn.test/keys.asc">
            </head></html>"#,
        );
        world.server.put("cdn.test/keys.asc", world.key.armored());
        world
    }

    /// Publishes an image in this version, signed.
    fn publish(&self, version: &str, aci: &Aci) {
        let bytes = aci.bytes();
        let at =
            format!("cdn.test/acis/{}-{version}-linux-amd64.aci", aci.manifest["name"].as_str().unwrap());
        self.server.put(&format!("{at}.asc"), self.key.sign(&bytes));
        self.server.put(&at, bytes);
    }

    fn trust(&self) {
        let trusted =
            self.room.keelblock(["appc", "trust", "--prefix", "keel.test", "--skip-fingerprint-review"]);
        let said = trusted.run().ok().stdout();
        assert!(said.contains(&self.key.fingerprint()), "{said}");
    }

    /// How often the bytes of an address were asked for, not only whether they are still the same.
    fn asked(&self, end: &str) -> usize {
        let requests = self.server.requests().into_iter();
        requests.filter(|one| one.path.ends_with(end) && one.header("if-none-match").is_none()).count()
    }
}

/// `app` needs `lib/box`, whose program runs it, and `lib/text`, which is found as the latest.
fn publish_all(world: &World) -> Option<[Aci; 3]> {
    if !cfg!(target_arch = "x86_64") {
        skip("the program of the fixtures is for x86-64");
        return None;
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/program/keelbox-x86_64");
    let program = fs::read(program).unwrap();
    let base = Aci::new("keel.test/lib/box:2").dir("bin", 0o755).file("bin/keelbox", 0o755, program);
    let base = base.symlink("bin/sh", "keelbox").hard_link("bin/cat", "bin/keelbox").packed(Pack::Gzip);
    let text =
        Aci::new("keel.test/lib/text:3").file("text", 0o644, "of the library\n").file("other", 0o644, "x");
    let text = text.packed(Pack::Xz);
    let command = "cat /text; cat /own; echo $GREETING";
    let app = Aci::new("keel.test/app:1.0.0")
        .file("own", 0o644, "of the app\n")
        .needs_with("keel.test/lib/box:2", json!({"imageID": base.id(), "size": base.bytes().len()}))
        .needs("keel.test/lib/text")
        .only(&["/bin/keelbox", "/bin/sh", "/bin/cat", "/text", "/own"])
        .field(
            "app",
            json!({
                "exec": ["/bin/sh", "-c", command], "user": "0", "group": "0",
                "environment": [{"name": "GREETING", "value": "ahoy"}, {"name": "PATH", "value": "/bin"}],
            }),
        );
    world.publish("2", &base);
    world.publish("latest", &text);
    world.publish("1.0.0", &app);
    Some([app, base, text])
}

#[test]
fn a_signed_image_with_dependencies_is_discovered_verified_and_run() {
    need_root!();
    let world = World::new("run");
    let Some([app, ..]) = publish_all(&world) else { return };
    world.trust();
    let run = world.room.keelblock(["run", APP]).run().ok();
    run.printed("of the library\nof the app\nahoy\n");
    for archive in ["app-1.0.0", "lib/box-2", "lib/text-latest"] {
        assert_eq!(world.asked(&format!("/keel.test/{archive}-linux-amd64.aci")), 1, "{archive}");
    }
    // Now nothing is asked for, whether by name or by ID.
    let before = world.server.requests().len();
    for name in [APP.to_owned(), format!("appc:{}", app.id())] {
        world.room.keelblock(["run", &name]).run().ok().printed("of the library\nof the app\nahoy\n");
    }
    assert_eq!(world.server.requests().len(), before, "{:?}", world.server.asked());
    for backend in ["overlay", "copy"] {
        let flag = format!("--image_provisioner_backend={backend}");
        let said = world.room.keelblock([&flag, "provision", "--json", "--id", "c", APP]).run().ok().json();
        let rootfs = Path::new(said["rootfs"].as_str().unwrap());
        assert!(
            rootfs.join("text").exists() && !rootfs.join("other").exists(),
            "the whitelist holds on {backend}"
        );
        world.room.keelblock(["destroy", "c"]).run().ok();
    }
    world.room.expect_no_leftovers();
}

#[test]
fn nothing_runs_that_is_not_signed_by_a_key_that_is_trusted_for_its_name() {
    let world = World::new("refuse");
    let Some([app, _, text]) = publish_all(&world) else { return };
    // By whom?
    world.room.keelblock(["pull", APP]).run().failed_naming(&[APP, "keel.test/app", "must not be used"]);
    world.trust();
    // A dependency whose signature is another's.
    let stranger = Shape::new(8).make();
    let at = "cdn.test/acis/keel.test/lib/text-latest-linux-amd64.aci";
    world.server.put(&format!("{at}.asc"), stranger.sign(&text.bytes()));
    let failed = world.room.keelblock(["pull", APP]).run();
    failed.failed_naming(&["keel.test/lib/text", "which keel.test/app:1.0.0", "must not be used"]);
    // One that was changed after it was signed.
    world.server.put(&format!("{at}.asc"), world.key.sign(&text.bytes()));
    world.server.put(at, text.file("more", 0o644, "x").bytes());
    let failed = world.room.keelblock(["pull", APP]).run();
    failed.failed_naming(&["keel.test/lib/text", "which keel.test/app:1.0.0", "must not be used"]);
    // None at all.
    world.server.remove(&format!("{at}.asc"));
    let failed = world.room.keelblock(["pull", APP]).run();
    failed.failed_naming(&["keel.test/lib/text", "--appc_verify"]);
    let images = world.room.keelblock(["images", "--json"]).run().ok().json();
    assert_eq!(images, json!([]), "{}", app.id());
    world.room.expect_no_leftovers();
}

#[test]
fn a_prune_removes_archives_that_nobody_asked_for_lately() {
    let world = World::new("spool");
    world.publish("1.0.0", &Aci::new("keel.test/app:1.0.0").file("etc/motd", 0o644, "hello"));
    world.trust();
    world.room.keelblock(["pull", APP]).run().ok();
    let spooled = || -> Vec<_> {
        let entries = fs::read_dir(world.room.work_dir().join("store/spool")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    world.room.keelblock(["prune"]).run().ok();
    let fresh = spooled();
    assert!(!fresh.is_empty(), "a pull that was resolved just now may want them");
    let past = std::time::SystemTime::now() - keelblock::provider::archive::SPOOL_IDLE;
    for path in &fresh {
        fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    }
    world.room.keelblock(["prune"]).run().ok();
    assert_eq!(spooled(), [""; 0].map(std::path::PathBuf::from));
}

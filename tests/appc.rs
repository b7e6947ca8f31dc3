//! Appc images from a directory, through the real binary: dependencies, whitelists, what is fetched and what is not, and every way
//! in which an image is not what was asked for.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

mod support {
    pub(crate) mod aci;
    pub(crate) mod binary;
    pub(crate) mod images;
}

use support::aci::{Aci, Pack};
use support::binary::{Room, need_root, skip};
use support::images::{Image, Layer};

/// A room whose Appc images come from a directory.
struct Shelf {
    room: Room,
}

impl Shelf {
    fn new(name: &str) -> Self {
        let room = Room::new(&format!("appc-{name}"));
        let flag = format!("--appc_simple_discovery_uri_prefix={}/", room.join("shelf").display());
        Self { room: room.with_flag(flag) }
    }

    /// Where the archive of this name and version lies, or would.
    fn place(&self, name: &str, version: &str) -> PathBuf {
        self.room.join("shelf").join(format!("{name}-{version}-linux-amd64.aci"))
    }

    /// Puts an archive where discovery looks for its name, in this version.
    fn put(&self, version: &str, aci: &Aci) -> PathBuf {
        let path = self.place(aci.manifest["name"].as_str().unwrap(), version);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, aci.bytes()).unwrap();
        path
    }

    /// All archives are gone.
    fn clear(&self) {
        fs::remove_dir_all(self.room.join("shelf")).unwrap();
    }

    fn images(&self) -> Vec<Value> {
        let listed = self.room.keelblock(["images", "--json"]).run().ok().json();
        listed.as_array().unwrap().clone()
    }

    fn provision(&self, flags: &[&str], image: &str) -> (Value, PathBuf) {
        let command =
            self.room.keelblock(AMD64).args(flags).args(["provision", "--json", "--id", "c", image]);
        let said = command.run().ok().json();
        let rootfs = PathBuf::from(said["rootfs"].as_str().unwrap());
        (said, rootfs)
    }

    fn destroy(&self) {
        self.room.keelblock(["destroy", "c"]).run().ok();
    }

    fn pull(&self, image: &str) -> Value {
        self.room.keelblock(AMD64).args(["pull", "--json", image]).run().ok().json()
    }
}

/// What the archives here are for, whatever this machine is.
const AMD64: [&str; 1] = ["--platform=linux/amd64"];

/// Paths of files below a directory, sorted, without those that every root filesystem is given.
fn files(dir: &Path) -> Vec<String> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path().strip_prefix(dir).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

/// `app` needs `base`, which needs `libs`; each has a file of its own and one that all have.
fn three() -> [Aci; 3] {
    let common = |aci: Aci, text: &str| aci.dir("etc", 0o755).file("etc/common", 0o644, text);
    let libs = common(Aci::new("example.com/libs:3"), "libs")
        .dir("lib", 0o755)
        .file("lib/libs", 0o644, "libs")
        .packed(Pack::Xz);
    let base = common(Aci::new("example.com/base:2"), "base")
        .dir("lib", 0o700)
        .file("lib/base", 0o644, "base")
        .packed(Pack::Bzip2);
    let app = common(Aci::new("example.com/app:1"), "app")
        .dir("bin", 0o755)
        .file("bin/app", 0o755, "app")
        .packed(Pack::Gzip);
    [app.needs("example.com/base:2"), base.needs("example.com/libs:3"), libs]
}

fn put_three(shelf: &Shelf) -> [Aci; 3] {
    let all = three();
    for (aci, version) in all.iter().zip(["1", "2", "3"]) {
        shelf.put(version, aci);
    }
    all
}

const APP: &str = "appc:example.com/app:1";
const APP_CANONICAL: &str = "appc:example.com/app:1,arch=amd64,os=linux";

#[test]
fn an_image_lies_on_top_of_what_it_depends_on() {
    need_root!();
    let shelf = Shelf::new("three");
    let [app, ..] = put_three(&shelf);
    for backend in ["overlay", "copy"] {
        let (said, rootfs) = shelf.provision(&[&format!("--image_provisioner_backend={backend}")], APP);
        assert_eq!(said["image"]["kind"], "appc");
        assert_eq!(said["image"]["reference"], APP_CANONICAL);
        assert_eq!(said["image"]["image_id"], json!(app.id()));
        assert_eq!(said["image"]["digest"], json!(app.id().replace('-', ":")));
        assert_eq!(said["layers"].as_array().unwrap().len(), 3);
        for (file, text) in
            [("etc/common", "app"), ("bin/app", "app"), ("lib/base", "base"), ("lib/libs", "libs")]
        {
            assert_eq!(fs::read_to_string(rootfs.join(file)).unwrap(), text, "{backend} {file}");
        }
        shelf.destroy();
    }
    shelf.room.expect_no_leftovers();
}

#[test]
fn a_whitelist_leaves_out_paths_of_all_that_is_below() {
    need_root!();
    let shelf = Shelf::new("whitelist");
    let [_, base, libs] = three();
    shelf.put("2", &base.only(&["/lib/base", "/lib/libs", "/etc/common"]).file("lib/secret", 0o600, "x"));
    shelf.put("3", &libs.file("lib/more", 0o644, "x"));
    let app = Aci::new("example.com/app:1")
        .needs("example.com/base:2")
        .dir("bin", 0o755)
        .file("bin/app", 0o755, "app");
    let app = app.file("bin/other", 0o755, "x").only(&["/bin/app", "/lib/libs", "/lib/secret", "/lib/more"]);
    shelf.put("1", &app);
    for backend in ["overlay", "copy"] {
        let (_, rootfs) = shelf.provision(&[&format!("--image_provisioner_backend={backend}")], APP);
        assert_eq!(files(&rootfs), ["bin/app", "lib/libs"], "{backend}");
        shelf.destroy();
    }
    // One layer, for the backend that takes one.
    let alone = Aci::new("example.com/alone:1")
        .dir("a", 0o755)
        .file("a/in", 0o644, "")
        .file("a/out", 0o644, "")
        .dir("b", 0o755);
    shelf.put("1", &alone.only(&["/a/in"]));
    for backend in ["overlay", "copy", "bind"] {
        let flag = format!("--image_provisioner_backend={backend}");
        let (said, rootfs) = shelf.provision(&[&flag], "appc:example.com/alone:1");
        assert_eq!((files(&rootfs), &said["backend"]), (vec!["a/in".to_owned()], &json!(backend)));
        assert!(!rootfs.join("b").exists());
        shelf.destroy();
    }
    shelf.room.expect_no_leftovers();
}

#[test]
fn an_image_that_is_there_twice_has_two_views() {
    need_root!();
    let shelf = Shelf::new("views");
    let shared = Aci::new("example.com/shared:1").file("one", 0o644, "1").file("two", 0o644, "2");
    shelf.put("1", &shared);
    let by = |name: &str, only: &str| Aci::new(name).needs("example.com/shared:1").only(&[only]);
    shelf.put("1", &by("example.com/b:1", "/one"));
    shelf.put("1", &by("example.com/c:1", "/two"));
    shelf.put("1", &Aci::new("example.com/app:1").needs("example.com/b:1").needs("example.com/c:1"));
    let (said, rootfs) = shelf.provision(&[], APP);
    assert_eq!(files(&rootfs), ["one", "two"]);
    assert_eq!(said["layers"].as_array().unwrap().len(), 5);
    shelf.destroy();
    shelf.room.expect_no_leftovers();
}

#[test]
fn what_is_in_the_store_is_not_fetched_again() {
    let shelf = Shelf::new("cached");
    let [app, ..] = put_three(&shelf);
    let first = shelf.pull(APP);
    assert_eq!((&first["layers_fetched"], &first["layers_reused"]), (&json!(3), &json!(0)));
    assert!(first["bytes_fetched"].as_u64().unwrap() > 0);
    let second = shelf.pull(APP);
    assert_eq!((&second["layers_fetched"], &second["layers_reused"]), (&json!(0), &json!(3)));
    assert_eq!((&second["layers"], &second["bytes_fetched"]), (&first["layers"], &json!(0)));
    // Without any source now: by name, and by image ID.
    shelf.clear();
    for policy in ["missing", "never"] {
        let flag = format!("--image_pull_policy={policy}");
        let by_id = format!("appc:{}", app.id());
        for name in [APP, APP_CANONICAL, &by_id] {
            let pulled = shelf.room.keelblock(AMD64).args([&flag, "pull", "--json", name]).run().ok().json();
            assert_eq!(
                (&pulled["layers"], &pulled["layers_fetched"]),
                (&first["layers"], &json!(0)),
                "{name}"
            );
            assert_eq!(pulled["reference"], APP_CANONICAL);
        }
    }
    let fresh = shelf.room.keelblock(AMD64).args(["--image_pull_policy=always", "pull", APP]).run();
    fresh.failed_naming(&[APP_CANONICAL, "no such file"]);
    assert_eq!(shelf.images().len(), 1, "{:?}", shelf.images());
    shelf.room.expect_no_leftovers();
}

#[test]
fn uncached_asks_what_the_name_means_now() {
    let shelf = Shelf::new("always");
    let make = |text: &str| Aci::new("example.com/app:7").file("text", 0o644, text);
    shelf.put("latest", &make("one"));
    let name = "appc:example.com/app";
    let first = shelf.pull(name);
    assert_eq!(first["reference"], "appc:example.com/app:latest,arch=amd64,os=linux");
    shelf.put("latest", &make("two"));
    let with = |policy: &str| {
        let flag = format!("--image_pull_policy={policy}");
        shelf.room.keelblock(AMD64).args([&flag, "pull", "--json", name]).run().ok().json()["image_id"]
            .clone()
    };
    assert_eq!(with("missing"), first["image_id"]);
    assert_eq!(with("always"), json!(make("two").id()));
    assert_eq!(with("never"), json!(make("two").id()));
}

#[test]
fn an_image_id_that_is_not_in_the_store_says_what_to_do() {
    let shelf = Shelf::new("id");
    let name = format!("appc:sha512-{}", "0f".repeat(64));
    let failed = shelf.room.keelblock(["pull", &name]).run();
    failed.failed_naming(&[&name, "in the store", "pull it by its name"]);
}

#[test]
fn every_compression_is_the_same_image() {
    let shelf = Shelf::new("packs");
    let plain = Aci::new("example.com/app:1").file("a", 0o644, "a");
    let mut layers = Vec::new();
    for (at, pack) in [Pack::Plain, Pack::Gzip, Pack::Bzip2, Pack::Xz, Pack::Zstd].into_iter().enumerate() {
        let file = shelf.room.join(format!("{at}.aci"));
        fs::write(&file, plain.clone().packed(pack).bytes()).unwrap();
        let pulled = shelf.pull(&format!("aci:{}", file.display()));
        assert_eq!(
            (&pulled["image_id"], &pulled["layers_reused"]),
            (&json!(plain.id()), &json!(usize::from(at > 0)))
        );
        layers.push(pulled["layers"].clone());
    }
    layers.dedup();
    assert_eq!((layers.len(), shelf.images().len()), (1, 5));
}

#[test]
fn a_file_may_have_dependencies_that_are_discovered() {
    let shelf = Shelf::new("file");
    let [app, ..] = put_three(&shelf);
    let file = shelf.room.join("own.aci");
    fs::write(&file, app.bytes()).unwrap();
    let pulled = shelf.pull(&format!("aci:{}", file.display()));
    assert_eq!((&pulled["layers_fetched"], &pulled["image_id"]), (&json!(3), &json!(app.id())));
    let gone = shelf.room.keelblock(["pull", "aci:/nowhere/x.aci"]).run();
    gone.failed_naming(&["/nowhere/x.aci"]);
}

#[test]
fn what_is_not_what_was_asked_for_says_so_and_leaves_nothing() {
    let shelf = Shelf::new("wrong");
    let [_, base, libs] = three();
    shelf.put("2", &base);
    shelf.put("3", &libs);
    let no_id = format!("sha512-{}", "0".repeat(128));
    let app = |version: &str| Aci::new(&format!("example.com/app:{version}"));
    let size = libs.bytes().len();
    let (id, dependent) = (libs.id(), "which example.com/app:");
    let cases: [(&str, Aci, &[&str]); 11] = [
        (
            "id",
            app("id").needs_with("example.com/libs:3", json!({"imageID": no_id})),
            &["example.com/libs:3", &id, &no_id, dependent],
        ),
        (
            "size",
            app("size").needs_with("example.com/libs:3", json!({"size": size + 1})),
            &["example.com/libs:3", dependent],
        ),
        (
            "labels",
            app("labels").needs("example.com/libs:3,channel=beta"),
            &["example.com/libs", "channel=\"beta\"", dependent],
        ),
        (
            "gone",
            app("gone").needs("example.com/none:1"),
            &["example.com/none:1", dependent, "none-1-linux-amd64.aci"],
        ),
        (
            "circle",
            app("circle").needs("example.com/app:circle"),
            &["circle", "example.com/app:circle,arch=amd64,os=linux -> "],
        ),
        ("name", Aci::new("example.com/other:name"), &["example.com/other", "example.com/app"]),
        ("version", app("other"), &["version=\"other\"", "version=\"version\""]),
        ("arch", app("arch,arch=i386"), &["arch=\"i386\"", "arch=\"amd64\"", "--platform"]),
        (
            "kind",
            app("kind").field("acKind", json!("PodManifest")),
            &["acKind", "PodManifest", "ImageManifest"],
        ),
        ("user", app("user").field("app", json!({"exec": ["/a"], "group": "0"})), &["app.user"]),
        (
            "label",
            app("label").field("labels", json!([{"name": "os", "value": "plan9"}])),
            &["labels (os)", "plan9", "freebsd"],
        ),
    ];
    for (version, aci, names) in cases {
        let path = shelf.place("example.com/app", version);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, aci.bytes()).unwrap();
        let name = format!("appc:example.com/app:{version}");
        let failed = shelf.room.keelblock(AMD64).args(["pull", &name]).run();
        failed.failed_naming(&[&[name.as_str()], names].concat());
    }
    fs::write(shelf.place("example.com/app", "broken"), b"no archive at all").unwrap();
    let broken = shelf.room.keelblock(AMD64).args(["pull", "appc:example.com/app:broken"]).run();
    broken.failed_naming(&["example.com/app-broken-linux-amd64.aci", "an image archive is a tar"]);
    let limited =
        shelf.room.keelblock(AMD64).args(["--appc_dependency_depth_max=1", "pull", "appc:example.com/deep"]);
    shelf.put("latest", &Aci::new("example.com/deep").needs("example.com/base:2"));
    limited.run().failed_naming(&["--appc_dependency_depth_max", "example.com/deep", "example.com/libs:3"]);
    assert_eq!(shelf.images(), [] as [Value; 0]);
    // What is right still works, on the same store.
    assert_eq!(shelf.pull("appc:example.com/base:2")["layers_fetched"], 2);
    shelf.room.expect_no_leftovers();
}

#[test]
fn both_kinds_are_listed_inspected_kept_and_pruned() {
    let shelf = Shelf::new("both");
    let [app, ..] = put_three(&shelf);
    shelf.pull(APP);
    shelf.pull("appc:example.com/libs:3");
    Image::new().layer(Layer::new().file("a", "a", 0o644)).write_oci(&shelf.room.join("oci"), "t");
    let oci = format!("oci:{}:t", shelf.room.join("oci").display());
    shelf.pull(&oci);
    let table = shelf.room.keelblock(["images"]).run().ok().stdout();
    let short: String = app.id().chars().take(19).collect();
    assert!(table.contains("appc  ") && table.contains("oci   ") && table.contains(&short), "{table}");
    let mut kinds: Vec<_> = shelf.images().iter().map(|image| image["kind"].clone()).collect();
    kinds.sort_by_key(Value::to_string);
    assert_eq!(kinds, ["appc", "appc", "oci"]);

    let id = app.id();
    for name in [APP, &id, &format!("appc:{id}"), &id[..30]] {
        let shown = shelf.room.keelblock(AMD64).args(["inspect", "--json", name]).run().ok().json();
        assert_eq!(shown["manifest"]["name"], "example.com/app", "{name}");
        assert_eq!(shown["manifest"]["dependencies"][0]["imageName"], "example.com/base");
        assert_eq!(shown["image_id"], json!(id));
    }
    for keep in [APP, &format!("appc:{id}")] {
        let pruned = shelf.room.keelblock(AMD64).args(["prune", "--json", "--keep", keep]).run().ok().json();
        assert!(!pruned["images"].to_string().contains("example.com/app"), "{pruned}");
        assert_eq!(shelf.images().len(), 1);
    }
    let pruned = shelf.room.keelblock(["prune", "--json", "--wait"]).run().ok().json();
    assert_eq!(
        (pruned["images"].as_array().unwrap().len(), pruned["layers"].as_array().unwrap().len()),
        (1, 3)
    );
    assert_eq!(shelf.images(), [] as [Value; 0]);
    shelf.room.expect_no_leftovers();
}

#[test]
fn names_have_a_canonical_form() {
    let room = Room::new("appc-reference");
    let of = |name: &str| room.bare(AMD64).args(["reference", name]).run();
    of("appc:example.com/app").ok().printed("appc:example.com/app:latest,arch=amd64,os=linux\n");
    of("appc:a:1,os=freebsd,x=y").ok().printed("appc:a:1,arch=amd64,os=freebsd,x=y\n");
    of("aci:/x.aci").ok().printed("aci:/x.aci\n");
    of("appc:Upper").failed_naming(&["Upper", "AC Identifier"]);
    let arm = room.bare(["--platform=linux/arm64", "reference", "appc:a"]).run();
    arm.ok().printed("appc:a:latest,arch=aarch64,os=linux\n");
    let help = room.bare(["--help"]).run().ok().stdout();
    assert!(help.contains("appc:NAME[:VERSION]") && help.contains("aci:PATH"), "{help}");
}

/// An ACI with the program of the fixtures in it.
fn box_aci(name: &str) -> Option<Aci> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/program/keelbox-x86_64");
    if !cfg!(target_arch = "x86_64") {
        skip("the program of the fixtures is for x86-64");
        return None;
    }
    let aci = Aci::new(name).dir("bin", 0o755).file("bin/keelbox", 0o755, fs::read(program).unwrap());
    Some(
        ["cat", "hello", "ls"]
            .iter()
            .fold(aci, |aci, name| aci.hard_link(&format!("bin/{name}"), "bin/keelbox")),
    )
}

#[test]
fn containers_mix_the_kinds() {
    need_root!();
    let shelf = Shelf::new("mixed");
    let Some(program) = box_aci("example.com/box:1") else { return };
    shelf.put("1", &program);
    put_three(&shelf);
    let data = Image::new().layer(Layer::new().file("text", "from oci\n", 0o644));
    data.write_oci(&shelf.room.join("oci"), "t");
    let oci = format!("oci:{}:t", shelf.room.join("oci").display());
    let run = |volumes: &[String], image: &str, path: &str| {
        let flags = volumes.iter().map(|volume| format!("--volume_image={volume}"));
        let command =
            shelf.room.keelblock(AMD64).arg("run").args(flags).args([image, "--", "/bin/cat", path]);
        command.run().ok().stdout()
    };
    let box_image = "appc:example.com/box:1";
    assert_eq!(run(&[format!("{oci}:/data:ro")], box_image, "/data/text"), "from oci\n");
    assert_eq!(run(&[format!("{APP}:/data")], box_image, "/data/lib/libs"), "libs");
    let hello = format!("docker-archive:{}/fixtures/images/hello.tar", env!("CARGO_MANIFEST_DIR"));
    let volumes = [format!("{APP}:/data:ro"), format!("{oci}:/more")];
    assert_eq!(run(&volumes, &hello, "/data/lib/base"), "base");
    assert_eq!(run(&volumes, &hello, "/more/text"), "from oci\n");
    shelf.room.expect_no_leftovers();
}

#[test]
fn the_images_of_the_fixtures_are_what_they_say() {
    need_root!();
    let room = Room::new("appc-fixtures");
    let shelf = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/appc");
    let room = room.with_flag(format!("--appc_simple_discovery_uri_prefix={}/", shelf.display()));
    let shelf = Shelf { room };
    for backend in ["overlay", "copy"] {
        let flag = format!("--image_provisioner_backend={backend}");
        let (said, rootfs) = shelf.provision(&[&flag], "appc:keelblock.example/app:1.0.0");
        assert_eq!(said["layers"].as_array().unwrap().len(), 5);
        let read = |file: &str| fs::read_to_string(rootfs.join(file)).unwrap();
        assert_eq!(read("etc/common"), "app\n");
        assert_eq!(read("etc/motd") + &read("etc/notes"), "Welcome aboard.\nMind the keel.\n");
        assert_eq!(read("lib/words"), "keel block mast\n");
        assert!(!rootfs.join("lib/unused").exists(), "the whitelist of base leaves it out");
        shelf.destroy();
    }
    // The command of the README.
    if cfg!(target_arch = "x86_64") {
        let run = shelf.room.keelblock(["run", "appc:keelblock.example/app:1.0.0"]).run().ok();
        run.printed("Welcome aboard.\nMind the keel.\nkeel block mast\napp\nahoy\n");
    }
    shelf.room.expect_no_leftovers();
}

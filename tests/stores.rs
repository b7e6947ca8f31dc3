//! Two stores as one (`--appc_store_dir`): what is of Appc images lies in the second and nowhere else, and whoever looks,
//! verifies, cleans up or mounts sees both.

#[path = "support/tarball.rs"]
mod tarball;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelblock::agent::Agent;
use keelblock::backend::{CopyBackend, OverlayBackend};
use keelblock::config::Config;
use keelblock::limits::Limits;
use keelblock::store::{DiskStore, LayerForm, Privileges, StoreSettings, Verdict};
use keelblock::stores::Stores;
use keelblock_actors::container::{RootfsId, RootfsRecord};
use keelblock_actors::error::StoreError;
use keelblock_actors::image::appc::{AciView, AppcReference, ImageId};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::{ImageName, ImageRequest};
use keelblock_actors::image::plan::{
    Compression, ImageIdentity, ImagePlan, LayerKey, LayerSpec, RuntimeConfig,
};
use keelblock_actors::ports::{Backend, Claim, ImageRecord, Keep, RootfsPlace, Store, StoredLayer};
use keelblock_actors::progress::NoObserver;
use keelblock_actors::stop::Stop;
use tarball::{Tarball, dir, file, quiet, root, spec};

struct Home {
    top: tempfile::TempDir,
    stores: Stores,
}

impl Home {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let stores = open(top.path());
        Self { top, stores }
    }

    fn main(&self) -> PathBuf {
        self.top.path().join("main")
    }

    fn appc(&self) -> PathBuf {
        self.top.path().join("appc")
    }
}

fn open(top: &Path) -> Stores {
    let settings = || {
        let settings = StoreSettings::new(Limits::default(), Privileges::detect().unwrap());
        StoreSettings { form: LayerForm::Tree, ..settings }
    };
    Stores::open(&[top.join("main"), top.join("appc")], settings, &quiet()).unwrap()
}

/// Paths of files and directories in a store that is there, but for its fixed ones.
fn listing(store: &Path) -> Vec<String> {
    let mut names = vec![];
    for part in ["layers/sha256", "layers/sha512", "images", "pins", "staging", "gc", "quarantine"] {
        for entry in std::fs::read_dir(store.join(part)).into_iter().flatten() {
            names.push(format!("{part}/{}", entry.unwrap().file_name().to_string_lossy()));
        }
    }
    names
}

fn image_id(tar: &[u8]) -> ImageId {
    let any: ImageId = format!("sha512-{}", "0".repeat(128)).parse().unwrap();
    let mut hasher = any.digest().hasher();
    hasher.update(tar);
    ImageId::of(&hasher.finish()).unwrap()
}

fn aci(content: &str) -> (LayerSpec, Vec<u8>) {
    let tar = Tarball::of([
        file("manifest", "{}"),
        dir("rootfs/"),
        file("rootfs/aci", content),
        file("rootfs/.wh.docker", ""),
    ])
    .end();
    let view = AciView::whole(image_id(&tar));
    let mut spec = tarball::spec_of(&tar, &tar, Compression::None);
    (spec.key, spec.aci) = (LayerKey::Aci(view.diff_id()), Some(view));
    (spec, tar)
}

fn docker(content: &str) -> (LayerSpec, Vec<u8>) {
    let tar = Tarball::of([file("docker", content)]).end();
    (spec(&tar), tar)
}

fn put(stores: &Stores, (spec, blob): &(LayerSpec, Vec<u8>)) -> StoredLayer {
    let Claim::Mine(staging) = stores.claim(&spec.key).unwrap() else { panic!("it is there") };
    staging.unpack(spec, &mut &blob[..], &Stop::default()).unwrap()
}

fn record(name: &str, config: &Digest, layers: &[(&LayerSpec, &StoredLayer)], pulled_ms: u64) -> ImageRecord {
    let name: ImageName = name.parse().unwrap();
    let identity = ImageIdentity { name: name.canonical(), manifest: config.clone(), config: config.clone() };
    ImageRecord {
        plan: ImagePlan {
            identity,
            layers: layers.iter().map(|(spec, _)| (*spec).clone()).collect(),
            runtime: RuntimeConfig::default(),
            platform: None,
            chosen_for: None,
        },
        layers: layers.iter().map(|(_, layer)| (*layer).clone()).collect(),
        pulled_ms,
    }
}

#[test]
fn each_layer_and_record_lies_in_its_own_store_and_nowhere_else() {
    let home = Home::new();
    let of_docker = docker("x");
    let layer = put(&home.stores, &of_docker);
    home.stores.record_image(&record("busybox", &Digest::of(b"c"), &[(&of_docker.0, &layer)], 1)).unwrap();
    drop(home.stores.pin(std::slice::from_ref(&of_docker.0.key)).unwrap());
    drop(home.stores.reserve(std::slice::from_ref(&of_docker.0)).unwrap());
    assert!(!home.appc().exists(), "images of docker make nothing in it");
    let before = listing(&home.main());

    let of_appc = aci("y");
    drop(home.stores.reserve(&[of_appc.0.clone(), docker("z").0]).unwrap());
    let layer = put(&home.stores, &of_appc);
    let id = of_appc.0.aci.clone().unwrap().image_id;
    home.stores
        .record_image(&record("appc:example.com/a", &id.digest(), &[(&of_appc.0, &layer)], 2))
        .unwrap();
    assert_eq!(listing(&home.main()), before);
    let found = listing(&home.appc());
    assert!(found.len() == 2 && found[0] == format!("layers/sha512/{}", layer.diff_id.0.hex()), "{found:?}");

    // What is there is found by its key, and by its ID alone; also by others.
    for stores in [home.stores.clone(), open(home.top.path())] {
        for key in [of_appc.0.key.clone(), LayerKey::Diff(layer.diff_id.clone()), of_docker.0.key.clone()] {
            assert!(stores.find(&key).unwrap().is_some(), "{key}");
        }
        assert!(matches!(stores.claim(&of_appc.0.key).unwrap(), Claim::Here(_)));
        assert_eq!(stores.layer_size(&layer).unwrap().bytes, 1);
        assert_eq!(stores.blob_of(&layer).unwrap(), of_appc.0.blob.digest);
        let names: Vec<_> =
            stores.images().unwrap().iter().map(|image| image.plan.identity.name.to_string()).collect();
        assert_eq!(names.len(), 2);
        assert_eq!(stores.layers().unwrap().len(), 2);
        for name in &names {
            assert!(stores.image(&name.parse().unwrap()).unwrap().is_some(), "{name}");
        }
    }
    let unknown = StoredLayer { diff_id: aci("unknown").0.aci.unwrap().diff_id() };
    assert!(matches!(home.stores.show(&unknown), Err(StoreError::Missing { .. })));
}

#[test]
fn an_image_by_its_id_is_the_newest_record_of_it() {
    let home = Home::new();
    let (spec, tar) = aci("x");
    let layer = put(&home.stores, &(spec.clone(), tar.clone()));
    let id = image_id(&tar);
    let by_id = ImageName::Appc(AppcReference::Id(id.clone()));
    assert_eq!(home.stores.image(&by_id).unwrap(), None);
    // An image of docker whose config has such a digest is none.
    home.stores.record_image(&record("busybox", &id.digest(), &[], 0)).unwrap();
    let names = ["appc:example.com/b:1", "aci:/tmp/b.aci", "appc:example.com/a"];
    for (at, name) in names.iter().enumerate() {
        let record = record(name, &id.digest(), &[(&spec, &layer)], at as u64);
        home.stores.record_image(&record).unwrap();
        // The clock of the filesystem goes in steps.
        let written = || {
            let files = std::fs::read_dir(home.appc().join("images")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().modified().unwrap()).max().unwrap()
        };
        let last = written();
        let probe = home.top.path().join("clock");
        loop {
            std::fs::write(&probe, at.to_string()).unwrap();
            if probe.metadata().unwrap().modified().unwrap() > last {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(home.stores.image(&by_id).unwrap(), Some(record));
    }
    let (_, other) = aci("other");
    assert_eq!(home.stores.image(&ImageName::Appc(AppcReference::Id(image_id(&other)))).unwrap(), None);
}

#[test]
fn prune_keeps_what_is_pinned_named_or_used_in_both_and_removes_the_rest() {
    let home = Home::new();
    let stores = &home.stores;
    let [pinned, used, named, gone] =
        ["pinned", "used", "named", "gone"].map(|name| (aci(name), docker(name)));
    let all = [&pinned, &used, &named, &gone].map(|(aci, docker)| [put(stores, aci), put(stores, docker)]);
    let id = |aci: &(LayerSpec, Vec<u8>)| image_id(&aci.1).digest();
    for ((aci, docker), [of_aci, of_docker], name) in [(&named, &all[2], "named"), (&gone, &all[3], "gone")] {
        stores
            .record_image(&record(&format!("appc:example.com/{name}"), &id(aci), &[(&aci.0, of_aci)], 1))
            .unwrap();
        stores.record_image(&record(name, &Digest::of(b"c"), &[(&docker.0, of_docker)], 1)).unwrap();
    }
    let pin = stores.pin(&[pinned.0.0.key.clone(), pinned.1.0.key.clone()]).unwrap();
    // As containers hold what was there: by its ID alone.
    let by_id = all[0].clone().map(|layer| LayerKey::Diff(layer.diff_id));
    let pin_by_id = stores.pin(&by_id).unwrap();
    let in_use = || {
        Ok(vec![RootfsRecord {
            layers: all[1].iter().map(|layer| layer.diff_id.clone()).collect(),
            ..RootfsRecord::default()
        }])
    };
    let keep = Keep { images: ["appc:example.com/named", "named"].map(|name| name.parse().unwrap()).into() };
    let pruned = stores.prune(&keep, &in_use).unwrap();
    let mut removed = pruned.layers;
    removed.sort();
    let mut expected: Vec<_> = all[3].iter().map(|layer| layer.diff_id.clone()).collect();
    expected.sort();
    assert_eq!((removed, pruned.images.len(), pruned.freed), (expected, 2, true));
    drop(pin);
    assert_eq!(stores.prune(&keep, &in_use).unwrap().layers, []);
    drop(pin_by_id);
    assert_eq!(stores.prune(&keep, &in_use).unwrap().layers.len(), 2);
    assert_eq!(stores.prune(&Keep::default(), &|| Ok(vec![])).unwrap().layers.len(), 4);
    for store in [home.main(), home.appc()] {
        assert_eq!(listing(&store), [""; 0]);
    }
}

#[test]
fn scrubbing_sees_both_and_moves_bad_layers_away_where_they_are() {
    let home = Home::new();
    let stores = &home.stores;
    let layers = [put(stores, &aci("content")), put(stores, &docker("content"))];
    let flip = |path: PathBuf| std::fs::write(path, "CONTENT").unwrap();
    flip(home.appc().join(format!("layers/sha512/{}/tree/aci", layers[0].diff_id.0.hex())));
    flip(home.main().join(format!("layers/sha256/{}/tree/docker", layers[1].diff_id.0.hex())));
    let mut bad = vec![];
    stores
        .scrub_due(std::time::Duration::from_secs(3600), 0, &Stop::default(), |layer| {
            assert!(matches!(layer.verdict, Verdict::Bad(_)), "{:?}", layer.verdict);
            bad.push(layer.diff_id.clone());
        })
        .unwrap();
    assert_eq!(bad.len(), 2);
    for (layer, store) in layers.iter().zip([home.appc(), home.main()]) {
        let scrubbed = stores.scrub(&layer.diff_id, 0, &Stop::default()).unwrap().unwrap();
        assert!(matches!(scrubbed.verdict, Verdict::Bad(_)));
        let moved = stores.quarantine(&layer.diff_id, &[]).unwrap().unwrap();
        assert!(moved.starts_with(store));
        assert_eq!(stores.find(&LayerKey::Diff(layer.diff_id.clone())).unwrap(), None);
        assert!(stores.scrub(&layer.diff_id, 0, &Stop::default()).unwrap().is_none());
    }
    let dirs = [home.main(), home.appc()];
    assert_eq!(Stores::quarantined(&dirs).unwrap().len(), 2);
}

#[test]
fn a_root_filesystem_is_made_of_layers_of_both() {
    let home = Home::new();
    let stores = &home.stores;
    let stack = [put(stores, &docker("below")), put(stores, &aci("above"))];
    let stack: Vec<_> = stack.iter().map(|layer| stores.show(layer).unwrap()).collect();
    assert!(stack[0].path.starts_with(home.main()) && stack[1].path.starts_with(home.appc()));
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(CopyBackend::default())];
    if root() {
        backends.push(Box::new(OverlayBackend::default()));
    }
    for backend in backends {
        let place = RootfsPlace {
            container: "mixed".parse().unwrap(),
            id: RootfsId(1),
            rootfs: home.top.path().join("rootfs"),
            scratch: home.top.path().join("scratch"),
        };
        let mounted = backend.mount(&stack, &place, &Stop::default());
        let seen = mounted.as_ref().ok().map(|rootfs| {
            // What an ACI says is a name is one.
            ["docker", "aci", ".wh.docker"].map(|name| std::fs::read_to_string(rootfs.path.join(name)).ok())
        });
        backend.unmount(&place).unwrap();
        if let (Err(error), keelblock_actors::container::BackendName::Overlay) = (&mounted, backend.name()) {
            eprintln!("skipped overlay: {error}");
            continue;
        }
        let expected = ["below", "above", ""].map(|content| Some(content.to_owned()));
        assert_eq!(seen, Some(expected), "{} {mounted:?}", backend.name());
    }
}

#[test]
fn one_directory_by_two_names_is_one_store() {
    let top = tempfile::tempdir().unwrap();
    let [main, appc] = ["main", "appc"].map(|name| top.path().join(name));
    let config = |appc_store_dir: Option<&Path>| Config {
        work_dir: top.path().join("work"),
        docker_store_dir: Some(main.clone()),
        appc_store_dir: appc_store_dir.map(Path::to_owned),
        ..Config::default()
    };
    assert_eq!(config(None).store_dirs(), std::slice::from_ref(&main));
    assert_eq!(config(Some(&main)).store_dirs(), std::slice::from_ref(&main));
    assert_eq!(config(Some(&appc)).store_dirs(), [main.clone(), appc.clone()]);
    assert_eq!(config(Some(&appc)).gc_dirs().len(), 3);
    std::fs::create_dir(&main).unwrap();
    std::os::unix::fs::symlink(&main, &appc).unwrap();
    assert_eq!(config(Some(&appc)).store_dirs(), std::slice::from_ref(&main));
}

#[test]
fn an_agent_lists_and_prunes_both() {
    if !root() {
        return;
    }
    let home = Home::new();
    let of_appc = aci("x");
    let layer = put(&home.stores, &of_appc);
    let id = image_id(&of_appc.1).digest();
    home.stores.record_image(&record("appc:example.com/a", &id, &[(&of_appc.0, &layer)], 1)).unwrap();
    let config = Config {
        work_dir: home.top.path().join("work"),
        docker_store_dir: Some(home.main()),
        appc_store_dir: Some(home.appc()),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Agent::start(config, Arc::new(NoObserver), quiet()).await.unwrap();
        let archive = concat!("docker-archive:", env!("CARGO_MANIFEST_DIR"), "/fixtures/images/hello.tar");
        agent.pull(ImageRequest::cached(archive.parse().unwrap())).await.unwrap();
        let images = agent.images().await.unwrap();
        let bytes: Vec<_> = images.iter().map(|image| image.bytes > 0).collect();
        assert_eq!(bytes, [true, true]);
        assert_eq!(listing(&home.appc()).len(), 2, "it has what it had");
        let pruned = agent.prune(Keep::default()).await.unwrap();
        assert_eq!((pruned.images.len(), pruned.layers.len()), (2, 3));
        agent.shutdown().await;
    });
    for store in [home.main(), home.appc()] {
        assert!(listing(&store).iter().all(|name| name.starts_with("gc/")), "{:?}", listing(&store));
    }
}

#[test]
fn the_command_sees_settles_verifies_and_prunes_both() {
    if !root() {
        return;
    }
    let home = Home::new();
    let (of_appc, of_docker) = (aci("content"), docker("content"));
    let layers = [put(&home.stores, &of_appc), put(&home.stores, &of_docker)];
    let id = image_id(&of_appc.1).digest();
    home.stores.record_image(&record("appc:example.com/a", &id, &[(&of_appc.0, &layers[0])], 1)).unwrap();
    home.stores.record_image(&record("b", &Digest::of(b"c"), &[(&of_docker.0, &layers[1])], 1)).unwrap();
    let keelblock = |words: &[&str]| {
        let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_keelblock"))
            .arg(flag("work_dir", home.top.path().join("work")))
            .args([flag("docker_store_dir", home.main()), flag("appc_store_dir", home.appc())])
            .args(words)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let unsettled = || [home.main(), home.appc()].iter().any(|dir| DiskStore::is_unsettled(dir));
    assert!(unsettled());
    let (status, text) = keelblock(&["images"]);
    assert!(status == Some(0) && text.contains("example.com/a") && text.contains("library/b"), "{text}");
    // By the process that it left behind.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while [home.main(), home.appc()].iter().any(|dir| !settled(dir)) {
        assert!(std::time::Instant::now() < deadline, "nobody settles them");
        std::thread::yield_now();
    }
    let bad = home.appc().join(format!("layers/sha512/{}/tree/aci", layers[0].diff_id.0.hex()));
    std::fs::write(bad, "CONTENT").unwrap();
    let (status, text) = keelblock(&["scrub", "--no_repair"]);
    assert_ne!(status, Some(0));
    assert_eq!((text.matches("whole").count(), text.matches("bad: ").count()), (1, 1), "{text}");
    let (status, text) = keelblock(&["prune", "--wait"]);
    assert!(status == Some(0) && text.contains("2 images, 2 layers"), "{text}");
    for store in [home.main(), home.appc()] {
        assert_eq!(listing(&store), [""; 0]);
    }
}

/// Whether no layer of a store is marked as one that is to be written to disk.
fn settled(store: &Path) -> bool {
    std::fs::read_dir(store.join("unsettled")).map_or(0, Iterator::count) == 0
}

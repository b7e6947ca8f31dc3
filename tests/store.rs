//! The store as others see it: claims, lies about digests and sizes, pins and pruning, leftovers of the dead.

#[path = "support/tarball.rs"]
mod tarball;

use std::io::Read;
use std::path::Path;
use std::process::Command;

use keelblock::limits::Limits;
use keelblock::store::DiskStore;
use keelblock_actors::container::RootfsRecord;
use keelblock_actors::error::{StoreError, UnpackError, chain};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{
    Compression, ImageIdentity, ImagePlan, LayerKey, LayerSpec, RuntimeConfig,
};
use keelblock_actors::ports::{Claim, ImageRecord, Keep, Store, StoredLayer};
use keelblock_actors::stop::Stop;
use tarball::*;

fn tar() -> Vec<u8> {
    Tarball::of([dir("etc/"), file("etc/hostname", "keel\n")]).end()
}

/// Names of everything in the store but its directories and fixed files.
fn listing(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for part in ["layers/sha256", "layers/sha512", "blobs/sha256", "images", "locks", "pins", "staging", "gc"]
    {
        for entry in std::fs::read_dir(root.join(part)).into_iter().flatten() {
            names.push(format!("{part}/{}", entry.unwrap().file_name().to_string_lossy()));
        }
    }
    names.sort();
    names
}

#[test]
fn a_layer_is_found_and_shown_once_it_is_committed() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let (tar, spec) = (tar(), spec(&tar()));
    assert!(store.find(&spec.key).unwrap().is_none());
    assert!(listing(home.path()).is_empty(), "looking makes nothing");
    let layer = put(&store, &spec, &tar).unwrap();
    assert_eq!(store.find(&spec.key).unwrap(), Some(layer.clone()));
    assert!(matches!(store.claim(&spec.key).unwrap(), Claim::Here(here) if here == layer));
    let shown = store.show(&layer).unwrap();
    assert!(shown.path.is_absolute());
    assert_eq!(std::fs::read(shown.path.join("etc/hostname")).unwrap(), b"keel\n");
    assert_eq!(store.layer_size(&layer).unwrap().bytes, 5);
    assert_eq!(store.layer_record(&layer).unwrap().entries, 2);
    assert_eq!(listing(home.path()), [format!("layers/sha256/{}", layer.diff_id.0.hex())]);
    let other = self::store(home.path());
    assert_eq!(other.find(&spec.key).unwrap(), Some(layer));
}

#[test]
fn every_compression_brings_the_same_layer() {
    let tar = tar();
    let halves = tar.split_at(700);
    let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    for (compression, blob) in [
        (Compression::None, tar.clone()),
        (Compression::Gzip, gzip(&tar)),
        (Compression::Gzip, [gzip(halves.0), gzip(halves.1)].concat()),
        (Compression::Zstd, [&skippable[..], &zstd(halves.0), &skippable, &zstd(halves.1)].concat()),
    ] {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path());
        let layer = put(&store, &spec_of(&tar, &blob, compression), &blob).unwrap();
        assert_eq!(layer.diff_id.0, Digest::of(&tar));
        assert_eq!(store.layer_record(&layer).unwrap().compression, compression);
    }
}

#[test]
fn a_layer_known_by_its_blob_is_found_by_both_names() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let tar = tar();
    let blob = gzip(&tar);
    let key = LayerKey::Blob(Digest::of(&blob));
    let mut spec = spec_of(&tar, &blob, Compression::Gzip);
    spec.key = key.clone();
    spec.blob.digest = None;
    let layer = put(&store, &spec, &blob).unwrap();
    assert_eq!(store.find(&key).unwrap(), Some(layer.clone()));
    assert_eq!(store.find(&LayerKey::Diff(layer.diff_id.clone())).unwrap(), Some(layer.clone()));

    // The key rules, also when the spec names another digest.
    let lie = LayerSpec { key: LayerKey::Blob(Digest::of(b"other")), ..spec.clone() };
    assert!(matches!(put(&store, &lie, &blob), Err(UnpackError::WrongDigest { .. })));
    store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    assert_eq!(store.find(&key).unwrap(), None);
    assert!(listing(home.path()).is_empty());
}

#[test]
fn every_lie_about_a_layer_is_refused_and_leaves_nothing() {
    let tar = tar();
    let (gz, other) = (gzip(&tar), Digest::of(b"other"));
    let honest = spec_of(&tar, &gz, Compression::Gzip);
    let with = |change: &dyn Fn(&mut LayerSpec)| {
        let mut spec = honest.clone();
        change(&mut spec);
        spec
    };
    let mut flipped = gz.clone();
    flipped[gz.len() / 2] ^= 0x10;
    let trailing = [&gz[..], b"garbage"].concat();
    let padded = [&gz[..], &[0; 64]].concat();
    let length = gz.len() as u64;
    let unnamed = |spec: &mut LayerSpec, size| (spec.blob.digest, spec.blob.size) = (None, size);
    type Check = fn(&UnpackError) -> bool;
    let cases: Vec<(&str, LayerSpec, &[u8], Check)> = vec![
        ("blob digest", with(&|s| s.blob.digest = Some(other.clone())), &gz, |e| {
            matches!(e, UnpackError::WrongDigest { .. })
        }),
        ("diff ID", with(&|s| s.key = LayerKey::Diff(DiffId(other.clone()))), &gz, |e| {
            matches!(e, UnpackError::WrongDiffId { .. })
        }),
        ("too long", with(&|s| s.blob.size = Some(length - 1)), &gz, |e| {
            matches!(e, UnpackError::WrongSize { .. })
        }),
        ("too short", with(&|s| s.blob.size = Some(length + 1)), &gz, |e| {
            matches!(e, UnpackError::WrongSize { .. })
        }),
        ("broke off", honest.clone(), &gz[..gz.len() - 9], |e| matches!(e, UnpackError::WrongSize { .. })),
        ("flipped bit", honest.clone(), &flipped, |e| matches!(e, UnpackError::WrongDigest { .. })),
        ("media type", with(&|s| s.blob.compression = Some(Compression::Zstd)), &gz, |e| {
            matches!(e, UnpackError::WrongCompression { found: Compression::Gzip, .. })
        }),
        ("plain for gzip", honest.clone(), &tar, |e| {
            matches!(e, UnpackError::WrongSize { .. } | UnpackError::WrongCompression { .. })
        }),
        ("trailing garbage", with(&|s| unnamed(s, None)), &trailing, |e| {
            matches!(e, UnpackError::BadStream { .. })
        }),
        ("trailing zeros", with(&|s| unnamed(s, None)), &padded, |e| {
            matches!(e, UnpackError::BadStream { .. })
        }),
        ("cut, nothing declared", with(&|s| unnamed(s, None)), &gz[..gz.len() / 2], |e| {
            matches!(e, UnpackError::BadStream { .. })
        }),
        ("empty, nothing declared", with(&|s| unnamed(s, None)), b"", |e| {
            matches!(e, UnpackError::WrongCompression { found: Compression::None, .. })
        }),
    ];
    for (what, spec, blob, check) in cases {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path());
        let error = put(&store, &spec, blob).expect_err(what);
        assert!(check(&error), "{what}: {}", chain(&error));
        assert!(listing(home.path()).is_empty(), "{what}: {:?}", listing(home.path()));
        assert!(store.find(&spec.key).unwrap().is_none());
    }
}

#[test]
fn a_source_that_fails_is_named_with_its_own_error() {
    struct Fails(bool);
    impl Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "cable cut"));
            }
            buffer[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
            Ok(3)
        }
    }
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let tar = tar();
    let spec = spec_of(&tar, &gzip(&tar), Compression::Gzip);
    let Claim::Mine(staging) = store.claim(&spec.key).unwrap() else { panic!("not mine") };
    let error = staging.unpack(&spec, &mut Fails(false), &Stop::default()).unwrap_err();
    assert!(matches!(error, UnpackError::Read { .. }), "{error}");
    assert!(chain(&error).ends_with("cable cut"), "{}", chain(&error));
    assert!(listing(home.path()).is_empty());
}

#[test]
fn a_stop_ends_the_unpacking_and_leaves_nothing() {
    struct Endless<'a>(&'a Stop, u32);
    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1 == 20 {
                self.0.raise();
            }
            assert!(self.1 < 40, "read on after the stop");
            buffer.fill(b'x');
            Ok(buffer.len())
        }
    }
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let mut spec = spec(&tar());
    (spec.blob.digest, spec.blob.size) = (None, None);
    let head = Tarball::of([file("big", "").size(1 << 40)]).0;
    let stop = Stop::default();
    let Claim::Mine(staging) = store.claim(&spec.key).unwrap() else { panic!("not mine") };
    let error = staging.unpack(&spec, &mut head.chain(Endless(&stop, 0)), &stop).unwrap_err();
    assert!(matches!(error, UnpackError::Stopped { .. }), "{error}");
    assert!(listing(home.path()).is_empty());
}

#[test]
fn bombs_are_bounded_while_they_stream() {
    let limits = Limits { layer_bytes_max: 1 << 20, ..Limits::default() };
    let tar = Tarball::of([file("zeros", vec![0; 64 << 20])]).end();
    for (compression, blob) in
        [(Compression::Gzip, gzip(&tar)), (Compression::Zstd, zstd::stream::encode_all(&tar[..], 1).unwrap())]
    {
        let home = tempfile::tempdir().unwrap();
        let store = store_with(home.path(), limits.clone());
        let error = put(&store, &spec_of(&tar, &blob, compression), &blob).unwrap_err();
        assert!(matches!(error, UnpackError::Limit { flag: "layer_bytes_max", .. }), "{error}");
        assert!(listing(home.path()).is_empty());
    }
}

#[test]
fn ten_gigabytes_of_zeros_end_at_the_first_one() {
    // Ten megabytes of gzip: the header of one file, and the same member of zeros again and again.
    let mut blob = gzip(&Tarball::of([file("zeros", "").size(10 << 30)]).0);
    let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zeros, &vec![0; 16 << 20]).unwrap();
    let zeros = zeros.finish().unwrap();
    for _ in 0..640 {
        blob.extend_from_slice(&zeros);
    }
    assert!(blob.len() < 11 << 20, "{}", blob.len());
    let memory = std::path::Path::new("/dev/shm");
    let home = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let store = store(home.path());
    let error = put(&store, &spec_of(b"", &blob, Compression::Gzip), &blob).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { flag: "layer_expansion_max", limit: 200, .. }), "{error}");
    assert!(error.to_string().contains("200 times its size when decompressed"), "{error}");
    assert!(listing(home.path()).is_empty());
}

#[test]
fn small_files_far_apart_do_not_hold_up_the_buffers_they_came_in() {
    // The decoder has eight buffers: files that wait for a second thread must not keep them all.
    let mut entries = vec![dir("d/")];
    for at in 0..40 {
        entries.push(file(format!("small-{at}"), "tiny"));
        if at % 2 == 0 {
            entries.push(file(format!("large-{at}"), vec![at; 400 << 10]));
        } else {
            entries.extend((0..800).map(|_| dir("d/")));
        }
    }
    let tar = Tarball::of(entries).end();
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path());
        let layer = put(&store, &spec(&tar), &tar).map(|layer| store.layer_record(&layer).unwrap());
        done.send(layer.map(|record| (record.entries, record.bytes))).unwrap();
    });
    // Only so that a deadlock is a failure and not a test that never ends.
    let unpacked = finished.recv_timeout(std::time::Duration::from_secs(120)).expect("it hangs");
    assert_eq!(unpacked.unwrap(), (1 + 40 + 20 + 20 * 800, 40 * 4 + 20 * (400 << 10)));
}

#[test]
fn of_many_that_claim_one_layer_one_brings_it() {
    let home = tempfile::tempdir().unwrap();
    let (tar, spec) = (tar(), spec(&tar()));
    let brought = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // A store each, as processes have.
                let store = store(home.path());
                loop {
                    match store.claim(&spec.key).unwrap() {
                        Claim::Here(_) => return,
                        Claim::Elsewhere => std::thread::yield_now(),
                        Claim::Mine(staging) => {
                            brought.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            staging.unpack(&spec, &mut &tar[..], &Stop::default()).unwrap();
                        }
                    }
                }
            });
        }
    });
    assert_eq!(brought.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(listing(home.path()).len(), 1);
}

#[test]
fn a_claim_given_back_can_be_had_by_the_next() {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (store(home.path()), store(home.path()));
    let key = spec(&tar()).key;
    let Claim::Mine(mine) = first.claim(&key).unwrap() else { panic!("not mine") };
    assert!(matches!(second.claim(&key).unwrap(), Claim::Elsewhere));
    second.recover().unwrap();
    assert_eq!(listing(home.path()).len(), 2, "a live claim is left alone: {:?}", listing(home.path()));
    drop(mine);
    assert!(listing(home.path()).is_empty());
    assert!(matches!(second.claim(&key).unwrap(), Claim::Mine(_)));
}

/// Runs this test binary again as another process, in one of the `child_` tests below.
fn child(name: &str, home: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("KEELBLOCK_TEST_STORE", home);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    command
}

fn wait_for_line(child: &mut std::process::Child, line: &str) {
    use std::io::BufRead;
    let mut output = std::io::BufReader::new(child.stdout.as_mut().unwrap());
    loop {
        let mut read = String::new();
        assert_ne!(output.read_line(&mut read).unwrap(), 0, "the child ended without {line:?}");
        if read.contains(line) {
            return;
        }
    }
}

#[test]
fn child_claims_pins_and_waits_to_be_killed() {
    let Some(home) = std::env::var_os("KEELBLOCK_TEST_STORE") else { return };
    struct Gate;
    impl Read for Gate {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            println!("in the middle");
            loop {
                std::thread::park();
            }
        }
    }
    let store = store(Path::new(&home));
    let spec = spec(&tar());
    let _pin = store.pin(&[LayerKey::Diff(DiffId(Digest::of(b"pinned")))]).unwrap();
    let Claim::Mine(staging) = store.claim(&spec.key).unwrap() else { panic!("not mine") };
    drop(staging.unpack(&spec, &mut tar()[..600].chain(Gate), &Stop::default()));
}

#[test]
fn what_a_killed_process_leaves_is_removed_and_not_before() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let (tar, spec) = (tar(), spec(&tar()));
    let mut child = child("child_claims_pins_and_waits_to_be_killed", home.path()).spawn().unwrap();
    wait_for_line(&mut child, "in the middle");
    assert!(matches!(store.claim(&spec.key).unwrap(), Claim::Elsewhere));
    store.recover().unwrap();
    store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    let alive = listing(home.path());
    assert_eq!(alive.len(), 3, "claim, pin and staging: {alive:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    store.recover().unwrap();
    let left = listing(home.path());
    assert!(left.len() == 1 && left[0].starts_with("pins"), "{left:?}");
    store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    put(&store, &spec, &tar).unwrap();
    assert_eq!(listing(home.path()).len(), 1, "{:?}", listing(home.path()));
}

#[test]
fn child_brings_the_layer_or_finds_it() {
    let Some(home) = std::env::var_os("KEELBLOCK_TEST_STORE") else { return };
    let store = store(Path::new(&home));
    let (tar, spec) = (tar(), spec(&tar()));
    loop {
        match store.claim(&spec.key).unwrap() {
            Claim::Here(_) => return println!("outcome found"),
            Claim::Elsewhere => std::thread::yield_now(),
            Claim::Mine(staging) => {
                staging.unpack(&spec, &mut &tar[..], &Stop::default()).unwrap();
                return println!("outcome brought");
            }
        }
    }
}

#[test]
fn child_brings_and_prunes_until_it_is_killed() {
    let Some(home) = std::env::var_os("KEELBLOCK_TEST_STORE") else { return };
    let store = store(Path::new(&home));
    for round in 0u64.. {
        let content = format!("{}", round % 3);
        let files = (0..40).map(|at| file(format!("d{}/f{at}", at % 4), &content));
        put_tar(&store, &Tarball::of(files).end()).unwrap();
        store.record_image(&image(&format!("image{}", round % 2), &[])).unwrap();
        println!("round done");
        if round % 4 == 3 {
            store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
        }
    }
}

#[test]
fn whenever_a_process_is_killed_the_store_is_whole() {
    let home = tempfile::tempdir().unwrap();
    for rounds in 1..20 {
        let mut child = child("child_brings_and_prunes_until_it_is_killed", home.path()).spawn().unwrap();
        for _ in 0..rounds {
            wait_for_line(&mut child, "round done");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = store(home.path());
        store.recover().unwrap();
        let left = listing(home.path());
        let whole = |name: &&String| name.starts_with("layers/") || name.starts_with("images/");
        assert_eq!(left.iter().filter(whole).count(), left.len(), "{left:?}");
        for name in left.iter().filter_map(|name| name.strip_prefix("layers/sha256/")) {
            let diff_id = DiffId(format!("sha256:{name}").parse().unwrap());
            let layer = StoredLayer { diff_id };
            let files = (0..40).filter(|at| {
                let path = store.show(&layer).unwrap().path.join(format!("d{}/f{at}", at % 4));
                std::fs::read(path).is_ok_and(|content| content.len() == 1)
            });
            assert_eq!(files.count(), 40);
            assert_eq!(store.layer_size(&layer).unwrap().bytes, 40);
        }
        for record in store.images().unwrap() {
            assert!(store.image(&record.plan.identity.name).unwrap().is_some());
        }
    }
}

#[test]
fn of_many_processes_one_brings_a_layer() {
    let home = tempfile::tempdir().unwrap();
    let children: Vec<_> =
        (0..6).map(|_| child("child_brings_the_layer_or_finds_it", home.path()).spawn().unwrap()).collect();
    let outputs: Vec<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let count = |what| outputs.iter().filter(|output| output.contains(what)).count();
    assert_eq!((count("outcome brought"), count("outcome found")), (1, 5), "{outputs:?}");
}

fn image(name: &str, layers: &[&StoredLayer]) -> ImageRecord {
    let name: ImageName = name.parse().unwrap();
    let identity = ImageIdentity {
        manifest: Digest::of(name.to_string().as_bytes()),
        config: Digest::of(b"config"),
        name: name.canonical(),
    };
    ImageRecord {
        plan: ImagePlan {
            identity,
            layers: vec![],
            runtime: RuntimeConfig::default(),
            platform: None,
            chosen_for: None,
            signed: false,
        },
        layers: layers.iter().map(|layer| (*layer).clone()).collect(),
        pulled_ms: 7,
    }
}

fn layer(store: &DiskStore, content: &str) -> StoredLayer {
    put_tar(store, &Tarball::of([file("f", content)]).end()).unwrap()
}

#[test]
fn images_are_remembered_by_canonical_name() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    assert_eq!(store.images().unwrap(), []);
    let record = image("busybox", &[]);
    store.record_image(&record).unwrap();
    store.record_image(&image("alpine:3", &[])).unwrap();
    let canonical = "docker.io/library/busybox:latest".parse().unwrap();
    assert_eq!(store.image(&canonical).unwrap(), Some(record.clone()));
    assert_eq!(store.image(&"nginx".parse().unwrap()).unwrap(), None);
    let newer = ImageRecord { pulled_ms: 8, ..record };
    store.record_image(&newer).unwrap();
    let names: Vec<u64> = store.images().unwrap().iter().map(|record| record.pulled_ms).collect();
    assert_eq!(names, [7, 8], "by name");

    // One bad file is one image's trouble.
    let damaged = home.path().join("images").join(listing(home.path())[0].trim_start_matches("images/"));
    std::fs::write(&damaged, "{").unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    let errors = ["busybox", "alpine:3"].map(|name| store.image(&name.parse().unwrap()).err());
    let error = errors.into_iter().flatten().next().unwrap();
    assert!(error.to_string().contains(damaged.to_str().unwrap()), "{error}");
}

#[test]
fn prune_removes_what_nobody_names_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    assert_eq!(store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap().layers, []);
    let [kept, shared, used, pinned, loose, unused] =
        ["kept", "shared", "used", "pinned", "loose", "unused12"].map(|content| layer(&store, content));
    store.record_image(&image("kept", &[&kept, &shared])).unwrap();
    store.record_image(&image("gone", &[&shared, &unused])).unwrap();
    store.record_image(&image("running", &[])).unwrap();
    let in_use = RootfsRecord {
        layers: [used.diff_id.clone()].into(),
        images: vec![image("running", &[]).plan.identity],
        ..RootfsRecord::default()
    };
    let pin = store.pin(&[LayerKey::Diff(pinned.diff_id.clone())]).unwrap();
    let keep = Keep { images: vec!["kept".parse().unwrap()] };
    let pruned = store.prune(&keep, &|| Ok(vec![in_use.clone()])).unwrap();
    let mut gone = vec![loose.diff_id.clone(), unused.diff_id.clone()];
    gone.sort();
    assert_eq!((pruned.layers, pruned.bytes), (gone, 13));
    let gone: ImageName = "gone".parse().unwrap();
    assert_eq!(pruned.images, [gone.canonical()]);
    for (layer, stays) in
        [(&kept, true), (&shared, true), (&used, true), (&pinned, true), (&loose, false), (&unused, false)]
    {
        assert_eq!(store.find(&LayerKey::Diff(layer.diff_id.clone())).unwrap().is_some(), stays);
    }
    assert!(matches!(store.show(&loose), Err(StoreError::Missing { .. })));
    assert_eq!(store.images().unwrap().len(), 2);
    drop(pin);
    assert_eq!(store.prune(&keep, &|| Ok(vec![in_use.clone()])).unwrap().layers, [pinned.diff_id]);
    assert!(!listing(home.path()).iter().any(|name| name.starts_with("gc") || name.starts_with("pins")));
}

#[test]
fn a_pin_and_a_prune_at_once_never_lose_a_layer() {
    let home = tempfile::tempdir().unwrap();
    let (tar, spec) = (tar(), spec(&tar()));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = store(home.path());
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
                store.recover().unwrap();
            }
        });
        let store = store(home.path());
        for _ in 0..100 {
            let pin = store.pin(std::slice::from_ref(&spec.key)).unwrap();
            let layer = put(&store, &spec, &tar).unwrap();
            let shown = store.show(&layer).unwrap();
            for _ in 0..20 {
                assert!(shown.path.join("etc/hostname").exists());
            }
            drop(pin);
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn a_damaged_layer_record_is_named() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let layer = layer(&store, "x");
    let path = home.path().join("layers/sha256").join(layer.diff_id.0.hex()).join("layer.json");
    std::fs::write(&path, r#"{"form":"hologram"}"#).unwrap();
    let error = store.show(&layer).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap().layers, [layer.diff_id]);
}

#[test]
fn a_store_of_another_version_is_refused() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("format"), r#"{"version":99,"whiteouts":"user"}"#).unwrap();
    let open = DiskStore::open(
        home.path(),
        Limits::default(),
        keelblock::store::Privileges { in_user_namespace: false },
        quiet(),
    );
    let error = open.err().unwrap();
    assert!(chain(&error).contains("version 99"), "{}", chain(&error));
}

#[test]
fn a_full_disk_is_an_error_that_names_the_store_and_leaves_nothing() {
    if !root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    if let Err(error) = nix::mount::mount(Some("keel"), home.path(), Some("tmpfs"), flags, Some("size=2m")) {
        eprintln!("skipped: tmpfs cannot be mounted here: {error}");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let store = store(home.path());
        let tar = Tarball::of([dir("d/"), file("d/large", vec![7; 4 << 20])]).end();
        let error = put_tar(&store, &tar).unwrap_err();
        assert!(
            matches!(&error, UnpackError::NoRoom { source, .. }
                if source.dir == home.path() && source.unit == "bytes" && source.need > 4 << 20),
            "{}",
            chain(&error)
        );
        assert!(listing(home.path()).is_empty());
        layer(&store, "there is room again");
    });
    nix::mount::umount(home.path()).unwrap();
    outcome.unwrap();
}

#[test]
fn the_store_is_closed_to_strangers() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let store = store(&home.path().join("deep/store"));
    layer(&store, "x");
    let mode = std::fs::metadata(home.path().join("deep/store")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

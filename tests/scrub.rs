//! Layers that rot on disk are found, and no others.

#[path = "support/tarball.rs"]
mod tarball;

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
}

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keelblock::limits::Limits;
use keelblock::store::{DiskStore, LayerForm, Verdict};
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::{Store, StoredLayer};
use keelblock_actors::stop::Stop;
use serde_json::json;
use support::binary::Room;
use support::images::{Image, Layer};
use tarball::{Tarball, dir, file, hard_link, image_store, images, put_tar, store, symlink};

/// Flips one bit; done again, it is as it was.
fn flip(path: &Path, at: u64) {
    // In another file: one that the filesystem checks (fs-verity) cannot be written.
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x10;
    let rotten = path.with_extension("rotten");
    let mut file = File::create(&rotten).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    fs::rename(rotten, path).unwrap();
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn verdict(store: &DiskStore, layer: &StoredLayer) -> Verdict {
    store.scrub(&layer.diff_id, 0, &Stop::default()).unwrap().unwrap().verdict
}

fn is_bad(store: &DiskStore, layer: &StoredLayer) -> bool {
    matches!(verdict(store, layer), Verdict::Bad(_))
}

/// More than one piece of it, so that what is read later counts too.
fn large() -> Vec<u8> {
    (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn one_bit_anywhere_is_found_in_that_layer_and_no_other() {
    if !images() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let store = image_store(&top.path().join("store"), Limits::default());
    let rotten = put_tar(&store, &Tarball::of([dir("d"), file("d/f", large())]).end()).unwrap();
    let other = put_tar(&store, &Tarball::of([file("f", "other")]).end()).unwrap();
    assert_eq!(store.layers().unwrap().len(), 2);
    let at = top.path().join("store/layers/sha256").join(rotten.diff_id.0.hex());
    let (image, sums, record) = (at.join("layer.erofs"), at.join("sums"), at.join("layer.json"));
    let end = len(&image);
    assert_eq!((verdict(&store, &rotten), verdict(&store, &other)), (Verdict::Whole, Verdict::Whole));
    let places = [0, 1024, 1100, 4096, end / 3, end / 2, (1 << 20) - 1, 1 << 20, end - 4096, end - 1];
    let places = places.map(|place| (&image, place)).into_iter();
    let places = places.chain([0, len(&sums) / 2, len(&sums) - 1].map(|place| (&sums, place)));
    for (path, place) in places.chain((0..len(&record)).map(|place| (&record, place))) {
        flip(path, place);
        assert!(is_bad(&store, &rotten), "byte {place} of {}", path.display());
        assert_eq!(verdict(&store, &other), Verdict::Whole);
        flip(path, place);
        assert_eq!(verdict(&store, &rotten), Verdict::Whole);
    }
    for path in [&image, &sums, &record] {
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..whole.len() - 1]).unwrap();
        assert!(is_bad(&store, &rotten), "{} cut off", path.display());
        fs::remove_file(path).unwrap();
        assert!(is_bad(&store, &rotten), "{} gone", path.display());
        fs::write(path, whole).unwrap();
    }
    assert_eq!(verdict(&store, &rotten), Verdict::Whole);
    let stop = Stop::default();
    stop.raise();
    assert_eq!(store.scrub(&rotten.diff_id, 0, &stop).unwrap(), None);
    assert_eq!(fs::read_dir(top.path().join("store/pins")).unwrap().count(), 0);
}

/// The file `layer.json` of a layer in the store at `home`.
fn record_of(home: &Path, layer: &StoredLayer) -> PathBuf {
    home.join("layers/sha256").join(layer.diff_id.0.hex()).join("layer.json")
}

#[test]
fn one_bit_anywhere_in_its_record_and_a_layer_is_not_used_but_brought_again() {
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("store");
    let store = store(&home);
    // Something of everything that a record may have.
    let tar = Tarball::of([file("implied/f", "x"), file(".wh.gone", ""), dir("d")]).end();
    let layer = put_tar(&store, &tar).unwrap();
    let record = record_of(&home, &layer);
    let whole = fs::read(&record).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    assert!(
        ["whiteouts", "implied", "\"commit\"", "\"sum\""].iter().all(|field| text.contains(field)),
        "{text}"
    );
    let key = LayerKey::Diff(layer.diff_id.clone());
    for bit in 0..whole.len() * 8 {
        let mut rotten = whole.clone();
        rotten[bit / 8] ^= 1 << (bit % 8);
        fs::write(&record, &rotten).unwrap();
        let seen = String::from_utf8_lossy(&rotten).into_owned();
        assert!(is_bad(&store, &layer), "{seen}");
        assert_eq!(store.find(&key).unwrap(), None, "{seen}");
        assert!(store.show(&layer).is_err() && store.layer_size(&layer).is_err(), "{seen}");
    }
    let quarantined = || fs::read_dir(home.join("quarantine")).map_or(0, Iterator::count);
    assert_eq!(quarantined(), 0);
    assert_eq!(put_tar(&store, &tar).unwrap(), layer, "in the place of the bad one, which is kept");
    assert_eq!(quarantined(), 1);
    assert!(store.find(&key).unwrap().is_some() && store.show(&layer).is_ok() && !is_bad(&store, &layer));
    // As versions wrote it that knew of no sums.
    let text = fs::read_to_string(&record).unwrap();
    let (older, _) = text.split_once(",\"sum\":").unwrap();
    fs::write(&record, format!("{older}}}")).unwrap();
    assert!(store.find(&key).unwrap().is_some() && store.show(&layer).is_ok() && !is_bad(&store, &layer));
}

/// A tree with a bit of everything that whoever runs the tests can make.
fn tree() -> Vec<u8> {
    let holes =
        tarball::old_sparse("d/holes", 9 << 20, &[(1 << 20, b"one".to_vec()), (8 << 20, vec![7; 5000])]);
    Tarball::of([
        dir("d").mode(0o750),
        file("d/small", "small"),
        file("d/large", large()),
        holes,
        file("d/empty", ""),
        file("d/script", "#!").mode(0o755),
        symlink("link", "d"),
        file("link/through", "a symlink"),
        hard_link("d/again", "d/small"),
        hard_link("a", "d/large"),
        file("twice", "first"),
        hard_link("first", "twice"),
        file("twice", "second"),
        file("implied/f", "x"),
        dir("d/gone"),
        file("d/gone/f", "f"),
        file("d/gone", "a file now"),
        dir("d-e"),
        file("d-e/f", "after d/ in order of paths"),
    ])
    .end()
}

#[test]
fn whatever_is_changed_in_a_tree_is_found_and_named_and_other_layers_are_not_accused() {
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("store");
    let store = store(&home);
    let layer = put_tar(&store, &tree()).unwrap();
    let other = put_tar(&store, &Tarball::of([file("d/small", "other")]).end()).unwrap();
    let at = record_of(&home, &layer).with_file_name("tree");
    assert_eq!((verdict(&store, &layer), verdict(&store, &other)), (Verdict::Whole, Verdict::Whole));
    let times = |path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        std::fs::FileTimes::new()
            .set_accessed(found.accessed().unwrap())
            .set_modified(found.modified().unwrap())
    };
    // Something is changed, and what a filesystem would not change with it is set back.
    let changed = |path: &str, what: &str, change: &dyn Fn(&Path)| {
        let (path, name) = (at.join(path), path);
        let dir = path.parent().unwrap().to_owned();
        let before = times(&dir);
        change(&path);
        File::open(&dir).unwrap().set_times(before).unwrap();
        match verdict(&store, &layer) {
            Verdict::Bad(why) => {
                assert!(why.contains(&format!("tree: {name}: {what}")), "{name}, {what}: {why}");
            }
            other => panic!("{name}, {what}: {other:?}"),
        }
        assert_eq!(verdict(&store, &other), Verdict::Whole);
    };
    let whole = |what: &str| assert_eq!(verdict(&store, &layer), Verdict::Whole, "{what} was put right");
    for name in [
        "d/small",
        "d/large",
        "d/holes",
        "d/script",
        "d/through",
        "first",
        "twice",
        "implied/f",
        "d/gone",
        "d-e/f",
    ] {
        let path = at.join(name);
        let bytes = len(&path);
        // In a hole nothing is on the disk that could rot.
        let places =
            if name == "d/holes" { [1 << 20, 8 << 20, (8 << 20) + 4999] } else { [0, bytes / 2, bytes - 1] };
        for place in places {
            let flip = |path: &Path| {
                let before = times(path);
                let file = File::options().read(true).write(true).open(path).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, place).unwrap();
                file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
                file.set_times(before).unwrap();
            };
            changed(name, "other content", &flip);
            flip(&path);
            whole(name);
        }
    }
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (name, right) in [("d", 0o750), ("d/empty", 0o644), ("d/script", 0o755)] {
        changed(name, "another mode", &|path| mode(path, right ^ 0o001));
        mode(&at.join(name), right);
        whole(name);
    }
    let aside = top.path().join("aside");
    for name in ["d/small", "d/empty", "link", "d-e/f"] {
        changed(name, "it is not there", &|path| fs::rename(path, &aside).unwrap());
        let before = times(at.join(name).parent().unwrap());
        fs::rename(&aside, at.join(name)).unwrap();
        File::open(at.join(name).parent().unwrap()).unwrap().set_times(before).unwrap();
        whole(name);
    }
    for name in ["new", "d/new", "d/gonf", "d-e/f2"] {
        changed(name, "it was not there", &|path| fs::write(path, "").unwrap());
        let (path, before) = (at.join(name), times(at.join(name).parent().unwrap()));
        fs::remove_file(&path).unwrap();
        File::open(path.parent().unwrap()).unwrap().set_times(before).unwrap();
        whole(name);
    }
    changed("d/empty", "another size", &|path| fs::write(path, "x").unwrap());
    fs::write(at.join("d/empty"), "").unwrap();
    changed("d/empty", "another time", &|_| {});
    let reset = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    File::open(at.join("d/empty")).unwrap().set_modified(reset).unwrap();
    whole("the time");
    changed("link", "another", &|path| {
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("e", path).unwrap();
    });
    assert_eq!(put_again(&store, &layer, &tree()), Verdict::Whole);
    // Links: one that became a file of its own, with all that it had.
    changed("d/again", "it is no longer another name of the same file", &|path| {
        let before = times(path);
        fs::copy(path, &aside).unwrap();
        File::open(&aside).unwrap().set_times(before).unwrap();
        fs::rename(&aside, path).unwrap();
    });
    assert_eq!(put_again(&store, &layer, &tree()), Verdict::Whole);
    changed("d", "it is not there", &|path| fs::remove_dir_all(path).unwrap());
    assert_eq!(put_again(&store, &layer, &tree()), Verdict::Whole);
    // What it is verified by.
    let sums = at.with_file_name("sums");
    for place in 0..len(&sums) {
        flip(&sums, place);
        assert!(is_bad(&store, &layer), "byte {place}");
        flip(&sums, place);
    }
    whole("sums");
    fs::remove_file(&sums).unwrap();
    assert!(is_bad(&store, &layer));
    fs::remove_dir_all(&at).unwrap();
    assert!(is_bad(&store, &layer));
}

/// What becomes of a bad layer that is brought again.
fn put_again(store: &DiskStore, layer: &StoredLayer, tar: &[u8]) -> Verdict {
    store.quarantine(&layer.diff_id, &[]).unwrap().unwrap();
    assert_eq!(put_tar(store, tar).unwrap(), *layer);
    verdict(store, layer)
}

#[test]
fn of_a_tree_of_before_there_were_sums_nothing_is_said() {
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("store");
    let store = store(&home);
    let layer = put_tar(&store, &Tarball::of([file("f", "tree")]).end()).unwrap();
    let record = record_of(&home, &layer);
    let mut fields: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    for newer in ["tree", "sum"] {
        fields.as_object_mut().unwrap().remove(newer).unwrap();
    }
    fs::write(&record, fields.to_string()).unwrap();
    fs::remove_file(record.with_file_name("sums")).unwrap();
    assert_eq!(verdict(&store, &layer), Verdict::NotVerifiable);
}

/// What `ps` and `inspect` say of the container "user": its phase, and the bad layers it stands on.
fn told_of_user(room: &Room) -> (String, serde_json::Value) {
    let listed = room.keelblock(["ps"]).run().ok().stdout();
    let line = listed.lines().find(|line| line.starts_with("user ")).unwrap().to_owned();
    let inspected = room.keelblock(["--json", "inspect", "user"]).run().ok().json();
    let all = room.keelblock(["--json", "ps"]).run().ok().json();
    let user = all.as_array().unwrap().iter().find(|one| one["container_id"] == "user").unwrap();
    assert_eq!(user["damaged_layers"], inspected["damaged_layers"]);
    (line, inspected["damaged_layers"].clone())
}

#[test]
fn the_command_names_the_layer_and_the_container_on_it() {
    if images() {
        the_command_names(LayerForm::Erofs);
    }
}

#[test]
fn the_command_names_the_tree_and_the_container_on_it() {
    the_command_names(LayerForm::Tree);
}

fn the_command_names(form: LayerForm) {
    let (flag, file) = match form {
        LayerForm::Erofs => ("--layer_form=erofs", "layer.erofs"),
        _ => ("--layer_form=tree", "tree/large"),
    };
    let large_image = |layers: &Path| {
        let all = fs::read_dir(layers).unwrap().map(|layer| layer.unwrap().path().join(file));
        all.into_iter().find(|path| path.exists() && len(path) > 1_000_000).unwrap()
    };
    let room = Room::below(&std::env::temp_dir(), "scrub").with_flag(flag);
    let layers = Image::new().layer(Layer::new().file("large", large(), 0o644));
    let image = layers.layer(Layer::new().file("small", "small", 0o644));
    image.write_oci(&room.join("image"), "latest");
    let name = format!("oci:{}:latest", room.join("image").display());
    let rootfs = room.keelblock(["provision", "--json", "--id", "user", &name]).run().ok().json();
    let healthy = room.keelblock(["scrub"]).run().ok();
    assert_eq!(healthy.stdout().matches("whole").count(), 2, "{}", healthy.stdout());
    let path = large_image(&room.work_dir().join("store/layers/sha256"));
    flip(&path, len(&path) / 2);
    let found = room.keelblock(["scrub", "--json", "--no_repair", &name]).run().code(125).json();
    let bad: Vec<_> = found.as_array().unwrap().iter().filter(|layer| layer["result"] == "bad").collect();
    assert_eq!(bad.len(), 1, "{found}");
    let hex = path.strip_prefix(room.work_dir().join("store/layers/sha256")).unwrap();
    let hex = hex.components().next().unwrap().as_os_str().to_str().unwrap();
    assert_eq!(told_of_user(&room).1, json!([]), "it is where it was");
    assert_eq!(
        (&bad[0]["layer"], &bad[0]["containers"]),
        (&json!(format!("sha256:{hex}")), &json!(["user"]))
    );
    room.keelblock(["scrub", "--no-repair", "--scrub_rate=100000000"])
        .run()
        .code(125)
        .complained("1 of 2 layers");
    let small = Path::new(rootfs["rootfs"].as_str().unwrap()).join("small");
    assert_eq!(fs::read_to_string(&small).unwrap(), "small", "the container goes on");
    room.keelblock(["scrub", "no-such-layer"]).run().code(125);
    // The source has it no more: the layer is out of the way, and the error says what failed.
    let away = room.join("away");
    fs::rename(room.join("image"), &away).unwrap();
    let quarantine = room.work_dir().join("store/quarantine");
    room.keelblock(["scrub"]).run().code(125).complained("could not be brought again");
    assert_eq!(fs::read_dir(&quarantine).unwrap().count(), 1);
    let (line, damaged) = told_of_user(&room);
    assert!(
        line.contains("(damaged layer)") && damaged == json!([format!("sha256:{hex}")]),
        "{line} {damaged}"
    );
    fs::rename(&away, room.join("image")).unwrap();
    let pulled = room.keelblock(["--json", "pull", &name]).run().ok().json().to_string();
    assert!(pulled.contains("\"layers_fetched\":1"), "the bad one alone: {pulled}");
    room.keelblock(["scrub"]).run().ok();
    // Found and brought at once.
    let path = large_image(&room.work_dir().join("store/layers/sha256"));
    flip(&path, len(&path) / 3);
    let found = room.keelblock(["scrub", "--json"]).run().ok().json();
    let repaired: Vec<_> =
        found.as_array().unwrap().iter().filter(|layer| !layer["repair"].is_null()).collect();
    assert_eq!(repaired.len(), 1, "{found}");
    assert_eq!((&repaired[0]["result"], &repaired[0]["repair"]), (&json!("bad"), &json!("pulled again")));
    assert_eq!(fs::read_dir(&quarantine).unwrap().count(), 2);
    room.keelblock(["scrub"]).run().ok();
    assert_eq!(fs::read_to_string(&small).unwrap(), "small", "the container still goes on");
    room.keelblock(["prune", "--wait"]).run().ok();
    assert_eq!(fs::read_dir(&quarantine).unwrap().count(), 2, "a container stands on it");
    assert_eq!(fs::read_to_string(&small).unwrap(), "small", "and goes on after a prune");
    assert!(told_of_user(&room).0.contains("(damaged layer)"), "although the layer is there again");
    room.keelblock(["destroy", "user"]).run().ok();
    // Another of its name stands on the new one.
    room.keelblock(["provision", "--id", "user", &name]).run().ok();
    let (line, damaged) = told_of_user(&room);
    assert!(!line.contains("damaged") && damaged == json!([]), "{line} {damaged}");
    room.keelblock(["destroy", "user"]).run().ok();
    room.keelblock(["prune", "--wait"]).run().ok();
    assert_eq!(fs::read_dir(&quarantine).unwrap().count(), 0);
    room.expect_no_leftovers();
}

/// A message and its facts.
struct Line(String);

impl slog::Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.0.push_str(&format!(" {key}={value}"));
        Ok(())
    }
}

/// A log that counts what is said of bad layers.
#[derive(Clone, Default)]
struct Told(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl slog::Drain for Told {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let mut line = Line(record.msg().to_string());
        slog::KV::serialize(&record.kv(), record, &mut line).unwrap();
        self.0.lock().unwrap().push(line.0);
        Ok(())
    }
}

#[test]
fn in_the_background_each_layer_is_verified_in_its_time_and_a_bad_one_moved_away() {
    if !images() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("store");
    let store = image_store(&home, Default::default());
    let layers =
        ["good", "rotten"].map(|name| put_tar(&store, &Tarball::of([file(name, large())]).end()).unwrap());
    let path = home.join("layers/sha256").join(layers[1].diff_id.0.hex()).join("layer.erofs");
    flip(&path, len(&path) / 2);
    let told = Told::default();
    let log = slog::Logger::root(slog::Drain::fuse(told.clone()), slog::o!());
    let hour = std::time::Duration::from_secs(3600);
    let none = Box::new(|| Ok(Vec::new()));
    let scrubber = keelblock::scrub::Scrubber::start(store.clone().into(), hour, 0, none, log).unwrap();
    let quarantine = home.join("quarantine");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !home.join("scrubbed.json").exists() || fs::read_dir(&quarantine).map_or(0, Iterator::count) == 0 {
        assert!(std::time::Instant::now() < deadline, "nobody looked: {:?}", told.0.lock().unwrap());
        std::thread::yield_now();
    }
    drop(scrubber);
    let found = |layer: &StoredLayer| store.find(&LayerKey::Diff(layer.diff_id.clone())).unwrap().is_some();
    assert_eq!(layers.each_ref().map(found), [true, false]);
    let bad =
        told.0.lock().unwrap().iter().filter(|message| message.contains("not what was written")).count();
    assert_eq!(bad, 1);
    // What was looked at is not looked at again before its time.
    let mut looked = 0;
    store.scrub_due(hour, 0, &Stop::default(), |_| looked += 1).unwrap();
    assert!(looked <= 1, "the other layer at most, if the thread was stopped before it");
    store.scrub_due(std::time::Duration::ZERO, 0, &Stop::default(), |_| looked += 1).unwrap();
    assert!(looked >= 1);
}

#[test]
fn in_the_background_the_containers_on_a_bad_layer_are_logged_and_other_processes_are_told() {
    let room = Room::below(&std::env::temp_dir(), "scrubber").with_flag("--layer_form=tree");
    let image = Image::new().layer(Layer::new().file("file", "content", 0o644));
    image.write_oci(&room.join("image"), "latest");
    let name = format!("oci:{}:latest", room.join("image").display());
    for id in ["user", "healthy"] {
        let other = Image::new().layer(Layer::new().file("file", "other", 0o644));
        other.write_oci(&room.join("other"), "latest");
        let name =
            if id == "user" { name.clone() } else { format!("oci:{}:latest", room.join("other").display()) };
        room.keelblock(["provision", "--id", id, &name]).run().ok();
    }
    let layers = room.work_dir().join("store/layers/sha256");
    let mut files = fs::read_dir(&layers).unwrap().map(|layer| layer.unwrap().path().join("tree/file"));
    let path = files.find(|path| fs::read(path).unwrap() == b"content").unwrap();
    fs::write(&path, "CONTENT").unwrap();
    // An agent of ours, as one that an embedder starts: the first look is at once.
    let told = Told::default();
    let log = slog::Logger::root(slog::Drain::fuse(told.clone()), slog::o!());
    let config = keelblock::config::Config {
        scrub_interval: Some(std::time::Duration::from_secs(3600)),
        work_dir: room.work_dir(),
        ..keelblock::config::Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let observer = std::sync::Arc::new(keelblock_actors::progress::NoObserver);
        let agent = keelblock::agent::Agent::start(config, observer, log).await.unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while fs::read_dir(room.work_dir().join("store/quarantine")).map_or(0, Iterator::count) == 0 {
            assert!(std::time::Instant::now() < deadline, "nobody looked: {:?}", told.0.lock().unwrap());
            tokio::task::yield_now().await;
        }
        agent.shutdown().await;
    });
    let lines = told.0.lock().unwrap();
    let line = lines.iter().find(|line| line.contains("not what was written")).unwrap();
    assert!(line.contains("containers=user "), "{line}");
    drop(lines);
    let (line, damaged) = told_of_user(&room);
    assert!(line.contains("(damaged layer)") && damaged.as_array().unwrap().len() == 1, "{line}");
    let healthy = room.keelblock(["--json", "inspect", "healthy"]).run().ok().json();
    assert_eq!(healthy["damaged_layers"], json!([]));
    room.keelblock(["destroy", "user", "healthy"]).run().ok();
    room.keelblock(["prune", "--wait"]).run().ok();
    room.expect_no_leftovers();
}

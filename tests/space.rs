//! Disk admission on real filesystems: what cannot fit is refused before its first byte with the numbers, two pulls do
//! not count on the same space, a dead one counts for nothing, and a disk that somebody else has filled leaves a store
//! without a trace of what was on its way.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use keelblock::limits::Limits;
use keelblock::store::{DiskStore, LayerForm, Privileges, StoreSettings};
use keelblock_actors::error::{NoRoom, StoreError, UnpackError, chain};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::plan::Compression;
use keelblock_actors::ports::{Claim, Keep, Store};
use keelblock_actors::stop::Stop;

#[path = "support/registry.rs"]
mod registry;
mod support {
    pub(crate) mod binary;
    pub(crate) mod disk;
}
#[path = "support/tarball.rs"]
mod tarball;

use registry::{Ending, Reply, TestRegistry};
use support::binary::Room;
use support::disk::Disk;
use tarball::{Tarball, file, gzip, put, quiet, spec, spec_of, store};

/// The filesystems that stores lie on, and the least that they are made with here, in MiB.
const FILESYSTEMS: [(&str, u64); 3] = [("ext4", 300), ("xfs", 320), ("btrfs", 400)];

/// Room that is left on them, so that tests need not move much.
const LEFT_BYTES: u64 = 72 << 20;

/// What a pull leaves free; said in each test, as the default is nearly all of a disk this small.
const KEEP_BYTES: u64 = 4 << 20;

/// A layer of one file with bytes of its own.
fn layer(name: &str, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; bytes as usize];
    let mut seed = Digest::of(name.as_bytes())
        .hex()
        .bytes()
        .fold(1_u64, |sum, byte| sum.wrapping_mul(31) ^ u64::from(byte));
    for chunk in content.chunks_mut(8) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let length = chunk.len();
        chunk.copy_from_slice(&seed.to_le_bytes()[..length]);
    }
    Tarball::of([file(name, content)]).end()
}

/// A room on this disk whose pulls leave [`KEEP_BYTES`].
fn room_on(disk: &Disk) -> Room {
    Room::below(disk.path(), "space").with_flag(format!("--disk_free_min={KEEP_BYTES}"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing is reserved, staged or on its way out.
fn expect_clean(store: &Path) {
    for dir in ["space", "staging", "gc", "locks"] {
        assert_eq!(names(&store.join(dir)), [""; 0], "in {dir}");
    }
}

fn layers_in(store: &Path) -> usize {
    names(&store.join("layers/sha256")).len()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn blob_path(repository: &str, layer: &[u8]) -> String {
    format!("/v2/{repository}/blobs/{}", Digest::of(layer))
}

#[test]
fn an_image_that_cannot_fit_is_refused_at_once_with_the_numbers_and_nothing_is_fetched() {
    for (kind, mib) in FILESYSTEMS {
        let Some(disk) = Disk::new(kind, mib) else { continue };
        let room = room_on(&disk);
        let _filler = disk.fill_up_to(LEFT_BYTES);
        let registry = TestRegistry::start();
        // Each of its layers would fit.
        let half = LEFT_BYTES * 6 / 10;
        let (first, second) = (layer("first", half), layer("second", half));
        registry.put_image("big", "1", &[&first, &second]);
        let need = first.len() + second.len();
        let said = room.keelblock(["pull", &format!("{}/big:1", registry.host())]).run();
        let said = said.failed_naming(&["big", "not enough room", "keelblock prune", "--docker_store_dir"]);
        let text = said.stderr();
        // The sizes are known: what is needed is the tars and a little for the rest.
        let said = text.split(" bytes are needed").next().and_then(|before| before.rsplit(' ').next());
        let said: usize = said.and_then(|number| number.parse().ok()).expect("the need is said");
        assert!((need..need + need / 32).contains(&said), "{kind}: {need} and {text}");
        assert!(text.contains(&format!("and {KEEP_BYTES} stay free (--disk_free_min)")), "{kind}: {text}");
        for layer in [&first, &second] {
            assert_eq!(registry.count(&blob_path("big", layer)), 0, "{kind}: a layer was asked for");
        }
        let store = room.work_dir().join("store");
        expect_clean(&store);
        assert_eq!(layers_in(&store), 0);
        // What fits is pulled.
        registry.put_image("small", "1", &[&first]);
        room.keelblock(["pull", &format!("{}/small:1", registry.host())]).run().ok();
        assert_eq!(layers_in(&store), 1);
        expect_clean(&store);
    }
}

#[test]
fn of_two_pulls_at_once_of_which_one_fits_one_succeeds_and_one_is_refused() {
    for (kind, mib) in FILESYSTEMS {
        let Some(disk) = Disk::new(kind, mib) else { continue };
        let room = room_on(&disk);
        let _filler = disk.fill_up_to(LEFT_BYTES);
        let registry = TestRegistry::start();
        let half = LEFT_BYTES * 6 / 10;
        for name in ["one", "two"] {
            registry.put_image(name, "1", &[&layer(name, half)]);
        }
        let pulls = ["one", "two"]
            .map(|name| room.keelblock(["pull", &format!("{}/{name}:1", registry.host())]).start());
        let said = pulls.map(support::binary::Running::wait);
        let pulled = said.iter().filter(|said| said.exit_code() == Some(0)).count();
        assert_eq!(pulled, 1, "{kind}:{}{}", said[0], said[1]);
        for refused in said.into_iter().filter(|said| said.exit_code() != Some(0)) {
            refused.failed_naming(&["not enough room"]);
        }
        let store = room.work_dir().join("store");
        assert_eq!(layers_in(&store), 1, "{kind}");
        expect_clean(&store);
        let listed = room.keelblock(["images", "--json"]).run().ok().json();
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{kind}: {listed}");
    }
}

#[test]
fn what_a_pull_has_reserved_is_there_for_nobody_else_until_it_is_killed() {
    for (kind, mib) in FILESYSTEMS {
        let Some(disk) = Disk::new(kind, mib) else { continue };
        let room = room_on(&disk);
        let _filler = disk.fill_up_to(LEFT_BYTES);
        let registry = TestRegistry::start();
        let half = LEFT_BYTES * 6 / 10;
        let (held, other) = (layer("held", half), layer("other", half));
        registry.put_image("held", "1", &[&held]);
        registry.put_image("other", "1", &[&other]);
        // Its first half comes, then nothing, for ever.
        let path = blob_path("held", &held);
        let stalling = Reply::new(200, held[..held.len() / 2].to_vec())
            .header("content-length", held.len())
            .ending(Ending::Stall);
        registry.on(path.clone(), stalling);
        let pull = room.keelblock(["pull", &format!("{}/held:1", registry.host())]).start();
        wait_until("its layer is asked for", || registry.count(&path) > 0);

        let said = room.keelblock(["pull", &format!("{}/other:1", registry.host())]).run();
        let text = said.failed_naming(&["other", "not enough room"]).stderr();
        assert!(!text.contains(", 0 are reserved"), "{kind}: {text}");
        assert_eq!(registry.count(&blob_path("other", &other)), 0, "{kind}");

        pull.kill_nine();
        room.keelblock(["pull", &format!("{}/other:1", registry.host())]).run().ok();
        let store = room.work_dir().join("store");
        assert_eq!(layers_in(&store), 1, "{kind}");
        wait_until("the dead pull's staging is removed", || names(&store.join("gc")).is_empty());
        expect_clean(&store);
    }
}

/// A blob in the middle of which something happens.
struct Midway<'a, F> {
    blob: &'a [u8],
    at: usize,
    act: Option<F>,
}

impl<F: FnOnce()> Read for Midway<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.blob.len() <= self.at
            && let Some(act) = self.act.take()
        {
            act();
        }
        self.blob.read(buffer)
    }
}

/// A store whose pulls leave [`KEEP_BYTES`], and that keeps what comes in this form.
fn store_of(dir: &Path, form: LayerForm) -> DiskStore {
    let limits = Limits { disk_free_min: Some(KEEP_BYTES), ..Limits::default() };
    let settings = StoreSettings { form, ..StoreSettings::new(limits, Privileges::detect().unwrap()) };
    DiskStore::open_with(dir, settings, quiet()).unwrap()
}

#[test]
fn a_disk_that_somebody_else_fills_midway_is_told_with_the_numbers_and_nothing_is_left() {
    for (kind, mib) in FILESYSTEMS {
        let Some(disk) = Disk::new(kind, mib) else { continue };
        let _filler = disk.fill_up_to(LEFT_BYTES);
        for form in [LayerForm::Tree, LayerForm::Auto] {
            filled_midway(&disk, form);
        }
    }
}

fn filled_midway(disk: &Disk, form: LayerForm) {
    let dir = disk.path().join(format!("store-{form:?}"));
    let store = store_of(&dir, form);
    let what = format!("{} {form:?}", disk.kind);
    let tar = layer("content", LEFT_BYTES / 2);
    let spec = spec(&tar);
    let room = store.reserve(std::slice::from_ref(&spec)).unwrap();
    let before = disk.free_bytes();
    let Claim::Mine(staging) = store.claim(&spec.key).unwrap() else { panic!("nobody else is here") };
    let brim = std::cell::Cell::new(None);
    let mut blob =
        Midway { blob: &tar, at: tar.len() - (8 << 20), act: Some(|| brim.set(Some(disk.fill()))) };
    let error = staging.unpack(&spec, &mut blob, &Stop::default()).unwrap_err();
    let UnpackError::NoRoom { source: NoRoom { dir: named, unit, need, free, .. }, .. } = &error else {
        panic!("{what}: {}", chain(&error));
    };
    assert_eq!((named.as_path(), *unit), (dir.as_path(), "bytes"), "{what}");
    assert!(*need > 0 && *free < before, "{what}: {}", chain(&error));
    drop(room);
    drop(brim.take());
    expect_clean(&dir);
    assert_eq!(layers_in(&dir), 0);
    // xfs frees in the background, and sets blocks aside for files that grow; btrfs frees late.
    wait_until(&format!("{what}: what was written is not freed"), || disk.free_bytes() + (4 << 20) >= before);
    put(&store, &spec, &tar).unwrap();
    store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    wait_until(&format!("{what}: what was pruned is not freed"), || disk.free_bytes() + (4 << 20) >= before);
}

#[test]
fn many_files_beyond_the_estimate_fail_before_they_have_filled_the_disk() {
    let Some(disk) = Disk::new("ext4", 300) else { return };
    let _filler = disk.fill_up_to(LEFT_BYTES);
    // Each fits, and each becomes a few KiB of blob.
    let content: Vec<u8> = (0..1_u32 << 18).flat_map(|n| (n % 250 + 1).to_le_bytes()).collect();
    let tar = Tarball::of((0..100).map(|n| file(format!("f{n}"), &content))).end();
    let blob = gzip(&tar);
    assert!(blob.len() < 4 << 20, "{} bytes", blob.len());
    let spec = spec_of(&tar, &blob, Compression::Gzip);
    for form in [LayerForm::Tree, LayerForm::Auto] {
        let dir = disk.path().join(format!("store-{form:?}"));
        let store = store_of(&dir, form);
        let error = put(&store, &spec, &blob).unwrap_err();
        let UnpackError::NoRoom { source: numbers, .. } = &error else { panic!("{}", chain(&error)) };
        assert_eq!((numbers.unit, numbers.keep), ("bytes", KEEP_BYTES), "{form:?}");
        // What was written and not yet told counts twice; what the filesystem keeps of itself does not count.
        assert!(numbers.free >= KEEP_BYTES / 2 && numbers.free < LEFT_BYTES / 2, "{form:?}: {numbers:?}");
        expect_clean(&dir);
        assert_eq!(layers_in(&dir), 0, "{form:?}");
    }
}

#[test]
fn a_layer_larger_than_its_estimate_reserves_more_as_it_comes_or_fails_at_its_first_large_file() {
    let Some(disk) = Disk::memory(64, 10_000) else { return };
    let dir = disk.path().join("store");
    let store = store(&dir);
    // Some KiB that become so many MiB.
    let zeros = |mib: usize| {
        let tar = Tarball::of([file("small", b"x"), file("zeros", vec![0; mib << 20])]).end();
        let blob = gzip(&tar);
        assert!(blob.len() < 1 << 20);
        (spec_of(&tar, &blob, Compression::Gzip), blob)
    };
    let (too_large, blob) = zeros(80);
    let room = store.reserve(std::slice::from_ref(&too_large)).unwrap();
    let Claim::Mine(staging) = store.claim(&too_large.key).unwrap() else { panic!("nobody else is here") };
    let mut rest = &blob[..];
    let error = staging.unpack(&too_large, &mut rest, &Stop::default()).unwrap_err();
    let UnpackError::NoRoom { source: numbers, .. } = &error else { panic!("{}", chain(&error)) };
    assert!(numbers.need >= 80 << 20 && numbers.need < 82 << 20, "{numbers:?}");
    // The default, cut to what suits a filesystem this small.
    assert_eq!(numbers.keep, 4 << 20);
    drop(room);
    expect_clean(&dir);
    let (fits, blob) = zeros(40);
    put(&store, &fits, &blob).unwrap();
    expect_clean(&dir);
}

#[test]
fn files_are_counted_where_a_filesystem_has_a_limit_of_them() {
    let Some(disk) = Disk::memory(64, 200) else { return };
    let dir = disk.path().join("store");
    let store = store_of(&dir, LayerForm::Tree);
    let tar = Tarball::of((0..300).map(|n| file(format!("f{n}"), b"x"))).end();
    let error = put(&store, &spec(&tar), &tar).unwrap_err();
    let UnpackError::NoRoom { source: numbers, .. } = &error else { panic!("{}", chain(&error)) };
    assert_eq!(numbers.unit, "files", "{numbers:?}");
    expect_clean(&dir);
    let tar = Tarball::of((0..100).map(|n| file(format!("f{n}"), b"x"))).end();
    put(&store, &spec(&tar), &tar).unwrap();
}

#[test]
fn a_layer_counts_once_however_many_ask_for_it_and_not_at_all_when_it_is_there() {
    let Some(disk) = Disk::memory(64, 10_000) else { return };
    let dir = disk.path().join("store");
    let (one, two) = (store(&dir), store(&dir));
    let tars = ["a", "b", "c"].map(|name| layer(name, 25 << 20));
    let specs = tars.each_ref().map(|tar| spec(tar));
    let a = one.reserve(&specs[..1]).unwrap();
    let ab = two.reserve(&specs[..2]).unwrap();
    let refused = |wanted: &[_]| match one.reserve(wanted).err().expect("there is no room for three") {
        StoreError::NoRoom(numbers) => numbers,
        other => panic!("{}", chain(&other)),
    };
    let numbers = refused(&specs[2..]);
    let about = |bytes: u64, mib: u64| bytes >= mib << 20 && bytes < (mib + 1) << 20;
    assert!(about(numbers.need, 25) && about(numbers.reserved, 50), "{numbers:?}");
    put(&two, &specs[0], &tars[0]).unwrap();
    put(&two, &specs[1], &tars[1]).unwrap();
    let numbers = refused(&specs[2..]);
    assert!(about(numbers.need, 25) && numbers.reserved == 0, "{numbers:?}");
    // They are all there.
    drop(one.reserve(&specs[..2]).unwrap());
    drop((a, ab));
    expect_clean(&dir);
    // What was pruned and waits to be removed is removed for whoever needs the room.
    let gone = two.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    assert_eq!(gone.layers.len(), 2);
    put(&one, &specs[2], &tars[2]).unwrap();
}

#[test]
fn room_that_is_still_being_freed_counts_for_whoever_needs_it() {
    let Some(disk) = Disk::memory(64, 10_000) else { return };
    let dir = disk.path().join("store");
    let privileges = Privileges::detect().unwrap();
    // Nobody removes what is moved away, until somebody must.
    let later = keelblock::gc::Collector::later();
    let settings = StoreSettings { collector: later, ..StoreSettings::new(Limits::default(), privileges) };
    let store = DiskStore::open_with(&dir, settings, quiet()).unwrap();
    let tars = ["a", "b"].map(|name| layer(name, 40 << 20));
    put(&store, &spec(&tars[0]), &tars[0]).unwrap();
    let gone = store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    assert!(!gone.freed);
    drop(store.reserve(&[spec(&tars[1])]).unwrap());
    put(&store, &spec(&tars[1]), &tars[1]).unwrap();
}

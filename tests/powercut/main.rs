//! Power cuts: a store on a filesystem that takes notes (`fuse`, `record`), used as pulls and prunes use it (`script`), and
//! everything that a cut at any moment may leave of it (`replay`), opened as after a boot.
//!
//! What must hold each time: the store opens; no layer is visible that is not exactly what it should be; what was said to
//! be on disk is there; what is gone can be pulled again. That the test sees mistakes is shown by making some.
//!
//! The argument that this supports is in `docs/durability.md`.

mod fuse;
mod record;
mod replay;
mod script;
#[path = "../support/tarball.rs"]
mod tarball;
#[path = "../support/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use keelblock::store::{Barrier, DiskStore, Form, LayerForm, LayerRecord};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::DiffId;
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::{Keep, Store, StoredLayer};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use record::{Op, Recorder};
use replay::{Cut, Model, mix};
use script::{Layer, Mistake, STORE, Script, Told, layer, layers, settings};
use tree::Tree;

/// Cuts of the store as it is, for each form of layers; `POWERCUT_CUTS` in the environment says otherwise.
const CUTS: usize = 1600;
/// Cuts within which a mistake must show.
const CUTS_WITH_MISTAKE: usize = 1200;

type Notes = Vec<Op<Told>>;

/// Runs the script on a filesystem that takes notes. `None` = this cannot be done here, as was said.
fn notes(form: LayerForm, mistake: Option<Mistake>) -> Option<Notes> {
    if !tarball::root() {
        return None;
    }
    noted(|top, recorder| Script::new(recorder, form, mistake).run(top))
}

/// Notes of what is done below a directory.
fn noted(act: impl FnOnce(&Path, Recorder<Told>) + Send) -> Option<Notes> {
    let home = tempfile::tempdir().unwrap();
    let recorder = Recorder::default();
    let noted = recorder.clone();
    // Mounts of a thread with a mount table of its own go with it, whatever happens.
    let done = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let private = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            });
            if let Err(error) = private {
                eprintln!("skipped: no mount table of its own here: {error}");
                return false;
            }
            let _mounted = match fuse::Mounted::new(home.path(), recorder.clone()) {
                Ok(mounted) => mounted,
                Err(error) => {
                    eprintln!("skipped: no filesystem can be served here: {error}");
                    return false;
                }
            };
            act(home.path(), recorder);
            true
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    done.then(|| noted.take())
}

/// Whether layers can be images here; says so when not.
fn images_work() -> bool {
    if !tarball::root() {
        return false;
    }
    let home = tempfile::tempdir_in(place()).unwrap();
    let store = open(home.path(), "any", LayerForm::Erofs).unwrap();
    let layer = layer(0);
    let made = tarball::put(&store, &layer.spec, &layer.blob);
    if let Err(error) = &made {
        eprintln!("skipped: layers cannot be images here: {}", chain(error));
    }
    made.is_ok()
}

/// Where stores are made by the thousand, each of some 300 KB: in memory if there is room.
fn place() -> PathBuf {
    const ROOM_BYTES: u64 = 64 << 20;
    let memory = Path::new("/dev/shm");
    let has_room = |found: &rustix::fs::StatVfs| found.f_bavail * found.f_frsize >= ROOM_BYTES;
    match rustix::fs::statvfs(memory) {
        Ok(found) if has_room(&found) => memory.to_owned(),
        _ => std::env::temp_dir(),
    }
}

/// The layers as they should be.
struct Known {
    form: LayerForm,
    layers: Vec<Layer>,
    contents: BTreeMap<DiffId, Content>,
}

/// A layer in a store.
struct Content {
    record: LayerRecord,
    tree: Option<Tree>,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Content {
    fn read(store: &DiskStore, dir: &Path, layer: &Layer) -> Result<Self, String> {
        let mut record = store
            .layer_record(&StoredLayer { diff_id: layer.diff.clone() })
            .map_err(|error| format!("corrupt: {}", chain(&error)))?;
        // Which is another each time.
        record.commit.clear();
        let dir = dir.join("layers/sha256").join(layer.diff.0.hex());
        let (mut tree, mut files) = (None, BTreeMap::new());
        match record.form {
            Form::Tree if !dir.join("tree").exists() => return Err("corrupt: there is no tree".to_owned()),
            Form::Tree => tree = Some(Tree::read(&dir.join("tree"))),
            Form::Erofs => {}
        }
        let names: &[_] = if record.form == Form::Erofs { &["layer.erofs", "sums"] } else { &["sums"] };
        for name in names {
            let read = std::fs::read(dir.join(name)).map_err(|error| format!("corrupt: {name}: {error}"));
            files.insert(*name, read?);
        }
        Ok(Self { record, tree, files })
    }

    fn compare(&self, found: &Self) -> Result<(), String> {
        if self.record != found.record {
            return Err(format!("corrupt: {:?} is not {:?}", found.record, self.record));
        }
        if let Some((name, _)) = self.files.iter().find(|(name, bytes)| found.files.get(*name) != Some(bytes))
        {
            return Err(format!("corrupt: {name}"));
        }
        let (Some(tree), Some(found)) = (&self.tree, &found.tree) else { return Ok(()) };
        let mut differences = tree.differences(found);
        // When a whiteout was made is nobody's word.
        differences.retain(|found| !(found.path.ends_with("gone") && found.aspect == "mtime"));
        match differences.first() {
            None => Ok(()),
            Some(difference) => Err(format!("corrupt: {difference} and {} more", differences.len() - 1)),
        }
    }
}

impl Known {
    fn new(form: LayerForm) -> Self {
        let home = tempfile::tempdir_in(place()).unwrap();
        let store = open(home.path(), "any", form).unwrap();
        let layers = layers();
        let contents = layers.iter().map(|layer| {
            tarball::put(&store, &layer.spec, &layer.blob).unwrap();
            (layer.diff.clone(), Content::read(&store, home.path(), layer).unwrap())
        });
        let contents = contents.collect();
        Self { form, layers, contents }
    }

    /// Whether a store has a layer; an error says what is wrong with it.
    fn has(&self, store: &DiskStore, dir: &Path, layer: &Layer) -> Result<bool, String> {
        let found = store.find(&layer.spec.key).map_err(|error| chain(&error))?;
        let by_diff = store.find(&LayerKey::Diff(layer.diff.clone())).map_err(|error| chain(&error))?;
        if found.as_ref().is_some_and(|found| found.diff_id != layer.diff) {
            return Err(format!("the index of {} leads to {found:?}", layer.spec.key));
        }
        if by_diff.is_none() {
            return Ok(false);
        }
        let found = Content::read(store, dir, layer)?;
        self.contents[&layer.diff].compare(&found)?;
        Ok(true)
    }
}

fn open(dir: &Path, boot: &str, form: LayerForm) -> Result<DiskStore, String> {
    DiskStore::open_with(dir, settings(boot, form), tarball::quiet()).map_err(|error| chain(&error))
}

/// What was promised by these operations.
#[derive(Default)]
struct Promised<'a> {
    layers: BTreeSet<&'a DiffId>,
    images: Vec<&'a keelblock_actors::image::name::ImageName>,
    boot: &'static str,
}

impl<'a> Promised<'a> {
    fn by(ops: &'a [Op<Told>]) -> Self {
        let mut promised = Self { boot: "none", ..Self::default() };
        for op in ops {
            match op {
                Op::Told(Told::Durable(layers)) => promised.layers.extend(layers),
                Op::Told(Told::Going(layers)) => promised.layers.retain(|layer| !layers.contains(layer)),
                Op::Told(Told::Image(name)) => promised.images.push(name),
                Op::Told(Told::Boot(boot)) => promised.boot = boot,
                _ => {}
            }
        }
        promised
    }
}

/// What a cut does to the store; an error says what must not be.
fn check(known: &Known, ops: &[Op<Told>], model: Model, seed: u64, boot_check: bool) -> Result<(), String> {
    let home = tempfile::tempdir_in(place()).unwrap();
    Cut::new(ops, model, seed).make(home.path());
    let promised = Promised::by(ops);
    let boot = if boot_check { "after the cut" } else { promised.boot };
    let dir = home.path().join(STORE);
    let store = open(&dir, boot, known.form)?;
    for layer in &known.layers {
        if !known.has(&store, &dir, layer)? && promised.layers.contains(&layer.diff) {
            return Err(format!("lost: {} was on disk", layer.diff));
        }
    }
    for name in &promised.images {
        if store.image(name).map_err(|error| chain(&error))?.is_none() {
            return Err(format!("lost: the record of {name} was on disk"));
        }
    }
    store.images().map_err(|error| chain(&error))?;
    store.recover().map_err(|error| chain(&error))?;
    // With a boot that nobody looked at, directories of the store may be missing.
    if boot_check && seed.is_multiple_of(4) {
        go_on(known, &dir, store, boot)?;
    }
    Ok(())
}

/// All of it can be pulled again, settled, found by the next process, and pruned.
fn go_on(known: &Known, dir: &Path, store: DiskStore, boot: &str) -> Result<(), String> {
    for layer in &known.layers {
        tarball::put(&store, &layer.spec, &layer.blob).map_err(|error| chain(&error))?;
    }
    let settled = store.settle().map_err(|error| chain(&error))?;
    if !settled.failed.is_empty() || !settled.left.is_empty() {
        return Err(format!("cannot be settled: {settled:?}"));
    }
    drop(store);
    for boot in [boot, "one more"] {
        let store = open(dir, boot, known.form)?;
        for layer in &known.layers {
            if !known.has(&store, dir, layer)?
                || store.find(&layer.spec.key).is_ok_and(|found| found.is_none())
            {
                return Err(format!("{} was pulled again and is not there in {boot}", layer.spec.key));
            }
        }
    }
    let store = open(dir, "one more", known.form)?;
    store.prune(&Keep::default(), &|| Ok(Vec::new())).map_err(|error| chain(&error))?;
    match std::fs::read_dir(dir.join("gc")).map(Iterator::count) {
        Ok(0) => Ok(()),
        left => Err(format!("garbage is left: {left:?}")),
    }
}

/// The cuts to make: after which operation, in which model, with which seed. Every place gets its turn before one gets a
/// second.
fn cuts(ops: usize, count: usize) -> Vec<(usize, Model, u64)> {
    let models = [Model::Lax, Model::Ordered, Model::Everything, Model::Lax, Model::Ordered, Model::Nothing];
    // Strides through the notes, so that a first failure comes early wherever it is.
    let stride = (ops * 5 / 8) | 1;
    let stride = (stride..).find(|stride| gcd(*stride, ops) == 1).unwrap_or(1);
    (0..count)
        .map(|number| {
            let end = 1 + (number * stride) % ops;
            (end, models[(number + number / ops) % models.len()], mix(number as u64, 77))
        })
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Makes cuts on all processors until one fails with these words; how many were made, and what failed so.
fn run(known: &Known, ops: &Notes, count: usize, boot_check: bool, words: &str) -> (usize, Vec<String>) {
    let cuts = cuts(ops.len(), count);
    let (next, made, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((end, model, seed)) = cuts.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let checked = check(known, &ops[..*end], *model, *seed, boot_check);
                    if let Some(error) = checked.err().filter(|error| error.contains(words)) {
                        let line =
                            format!("cut after {end} of {}, {model:?}, seed {seed}: {error}", ops.len());
                        failed.lock().unwrap().push(line);
                        next.fetch_max(cuts.len(), Ordering::SeqCst);
                    }
                    made.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (made.into_inner(), failed.into_inner().unwrap())
}

fn cut_often(form: LayerForm) {
    let Some(ops) = notes(form, None) else { return };
    let cuts = std::env::var("POWERCUT_CUTS").map_or(CUTS, |text| text.parse().unwrap());
    let (made, failed) = run(&Known::new(form), &ops, cuts, true, "");
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(made, cuts);
    eprintln!("{form:?}: {made} cuts within {} operations, no corrupt layer visible", ops.len());
}

fn make_mistakes(form: LayerForm, expected: &[(Mistake, &str)]) {
    let known = Known::new(form);
    for (mistake, consequence) in expected {
        let Some(ops) = notes(form, Some(*mistake)) else { return };
        let boot_check = *mistake != Mistake::NoBootCheck;
        let (made, failed) = run(&known, &ops, CUTS_WITH_MISTAKE, boot_check, consequence);
        let seen = failed.first().unwrap_or_else(|| panic!("{mistake:?} was not seen in {made} cuts"));
        eprintln!("{form:?}, {mistake:?}: seen after {made} cuts: {seen}");
    }
}

#[test]
fn no_power_cut_leaves_a_corrupt_tree_visible_or_takes_one_that_was_on_disk() {
    cut_often(LayerForm::Tree);
}

/// One sync of the filesystem covers more than it is asked for: what is not waited for besides does not show.
#[test]
fn each_mistake_that_could_be_made_with_trees_is_seen() {
    let expected = [
        (Mistake::Without(Barrier::Filesystem), "corrupt"),
        (Mistake::Without(Barrier::Store), "lost"),
        (Mistake::Without(Barrier::Journal), "lost"),
        (Mistake::ForgottenTooLate, "corrupt"),
        (Mistake::NoBootCheck, "corrupt"),
    ];
    make_mistakes(LayerForm::Tree, &expected);
}

#[test]
fn no_power_cut_leaves_a_corrupt_image_visible_or_takes_one_that_was_on_disk() {
    if images_work() {
        cut_often(LayerForm::Erofs);
    }
}

#[test]
fn each_mistake_that_could_be_made_with_images_is_seen() {
    let expected = [
        (Mistake::Without(Barrier::Content), "corrupt"),
        (Mistake::Without(Barrier::Layer), "lost"),
        (Mistake::Without(Barrier::Layers), "lost"),
        (Mistake::Without(Barrier::Staging), "lost"),
        (Mistake::Without(Barrier::Store), "lost"),
        (Mistake::Without(Barrier::Journal), "lost"),
        (Mistake::Without(Barrier::Record), "format is damaged"),
        (Mistake::Without(Barrier::Records), "lost: the record"),
        (Mistake::NoBootCheck, "corrupt"),
    ];
    if images_work() {
        make_mistakes(LayerForm::Erofs, &expected);
    }
}

/// The command, from its arguments to its exit status.
#[test]
fn what_the_command_has_pulled_to_the_disk_is_there_after_a_cut_at_any_moment() {
    if !images_work() {
        return;
    }
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images/hello.tar");
    let mut layers = BTreeMap::new();
    let ops = noted(|top, recorder| {
        let pulled = std::process::Command::new(env!("CARGO_BIN_EXE_keelblock"))
            .args(["pull", "--sync=full", "--layer_form=erofs", "--work_dir"])
            .arg(top)
            .arg(format!("docker-archive:{}", image.display()))
            .output()
            .unwrap();
        assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
        recorder.push(Op::Told(Told::Boot("all is on disk")));
        layers.extend(images_in(&top.join("store")));
    });
    let Some(ops) = ops else { return };
    assert!(!layers.is_empty());
    let end = ops.iter().position(|op| matches!(op, Op::Told(_))).unwrap();
    for at in 1..=end {
        for (model, seed) in [(Model::Everything, 1), (Model::Ordered, at as u64), (Model::Lax, at as u64)] {
            let home = tempfile::tempdir_in(place()).unwrap();
            Cut::new(&ops[..at], model, seed).make(home.path());
            let store = home.path().join("store");
            open(&store, "after the cut", LayerForm::Erofs)
                .unwrap_or_else(|error| panic!("{at}, {model:?}: {error}"));
            let left = images_in(&store);
            for (name, files) in &left {
                assert!(layers[name] == *files, "{at}, {model:?}: {name:?} is corrupt");
            }
            assert!(
                at < end || left.len() == layers.len(),
                "{model:?}: the pull was done, and a layer is gone"
            );
        }
    }
}

/// The files of all layers in a store.
fn images_in(store: &Path) -> BTreeMap<std::ffi::OsString, Vec<Vec<u8>>> {
    let layers = std::fs::read_dir(store.join("layers/sha256")).into_iter().flatten().flatten();
    let files = |dir: PathBuf| {
        ["layer.erofs", "sums", "layer.json"].map(|name| std::fs::read(dir.join(name)).unwrap())
    };
    layers.map(|layer| (layer.file_name(), files(layer.path()).to_vec())).collect()
}

//! Layers as EROFS images, mounted for whoever uses them: once each, for all processes, and no longer than they are used.
//!
//! What images show is the corpus's business, and that of `tests/erofs`. These tests need root.

#[path = "support/tarball.rs"]
mod tarball;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use keelblock::backend::OverlayBackend;
use keelblock::limits::Limits;
use keelblock::store::{DiskStore, Form};
use keelblock::sys::mount::mountinfo;
use keelblock_actors::container::{RootfsId, RootfsRecord};
use keelblock_actors::error::chain;
use keelblock_actors::ports::{Backend, LayerDir, RootfsPlace, Store, StoredLayer};
use keelblock_actors::stop::Stop;
use tarball::{Tarball, dir, file, image_store, images, put_tar};

/// Tells this program, started again, which store to hold a layer of.
const HOLD: &str = "KEELBLOCK_TEST_HOLD";

/// A store that takes its mounts along when the test ends, however it does.
struct Ground {
    top: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        Self { top: tempfile::tempdir().unwrap() }
    }

    /// In memory, where no file can be mounted without a loop device.
    fn in_memory() -> Self {
        Self { top: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.top.path().join("store")
    }

    fn store(&self) -> DiskStore {
        image_store(&self.dir(), Limits::default())
    }

    /// What is mounted of the store: IDs and sources.
    fn mounted(&self) -> Vec<(u64, PathBuf)> {
        let mounts = mountinfo::read().unwrap();
        let ours = mounts.into_iter().filter(|mount| mount.target.starts_with(self.top.path()));
        ours.filter(|mount| mount.kind == "erofs").map(|mount| (mount.id, mount.source)).collect()
    }

    /// Directories for mounts.
    fn places(&self) -> usize {
        std::fs::read_dir(self.dir().join("mounts")).map_or(0, Iterator::count)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for mount in mountinfo::read().unwrap_or_default().into_iter().rev() {
            if mount.target.starts_with(self.top.path()) {
                let _ = rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

/// Puts a layer with one file of this content.
fn put(store: &DiskStore, content: &str) -> StoredLayer {
    put_tar(store, &Tarball::of([dir("d"), file("d/f", content)]).end()).unwrap()
}

fn content(layer: &LayerDir) -> String {
    std::fs::read_to_string(layer.path.join("d/f")).unwrap()
}

fn using(layers: &[&StoredLayer]) -> Vec<RootfsRecord> {
    let layers = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    vec![RootfsRecord { layers, ..RootfsRecord::default() }]
}

#[test]
fn a_layer_is_mounted_once_and_goes_with_its_last_user() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let store = ground.store();
    let layer = put(&store, "one");
    assert_eq!(store.layer_record(&layer).unwrap().form, Form::Erofs);
    assert!(ground.mounted().is_empty(), "unpacking mounts nothing");
    let first = store.show(&layer).unwrap();
    // As another process would have it.
    let again = ground.store();
    let second = again.show(&layer).unwrap();
    let third = store.show(&layer).unwrap();
    assert_eq!(ground.mounted().len(), 1);
    assert_eq!((content(&first), content(&second)), ("one".to_owned(), "one".to_owned()));
    drop(first);
    drop(third);
    assert_eq!(content(&second), "one");
    assert_eq!(ground.mounted().len(), 1);
    drop(second);
    assert!(ground.mounted().is_empty());
    assert_eq!(ground.places(), 0);
    assert_eq!(content(&store.show(&layer).unwrap()), "one", "it can be shown again");
    assert!(ground.mounted().is_empty());
}

#[test]
fn what_stays_shown_is_found_again_and_hidden_when_no_record_names_it() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let (kept, other);
    {
        let store = ground.store();
        (kept, other) = (put(&store, "kept"), put(&store, "other"));
        for layer in [&kept, &other] {
            let shown = store.show(layer).unwrap();
            shown.hold.keep();
        }
    }
    let before = ground.mounted();
    assert_eq!(before.len(), 2);
    let store = ground.store();
    let shown = store.show(&kept).unwrap();
    assert_eq!(ground.mounted(), before, "nothing was mounted a second time");
    store.hide_idle(&|| Ok(using(&[&other]))).unwrap();
    assert_eq!(ground.mounted(), before, "one is shown, the other is named");
    drop(shown);
    assert_eq!(ground.mounted().len(), 1, "its last user did not ask for it to stay");
    store.hide_idle(&|| Ok(vec![])).unwrap();
    assert!(ground.mounted().is_empty());
    assert_eq!(ground.places(), 0);
    store.hide_idle(&|| panic!("nothing is mounted, so nobody needs to be asked")).unwrap();
}

/// No test: what the next one starts.
#[test]
fn holder() {
    let Ok(dir) = std::env::var(HOLD) else { return };
    let store = image_store(Path::new(&dir), Limits::default());
    let layer = put(&store, "held");
    let shown = store.show(&layer).unwrap();
    println!("held {}", content(&shown));
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

fn start_holder(dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "holder", "--nocapture", "--test-threads=1"]).env(HOLD, dir);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).any(|line| line.contains("held held"));
    assert!(said, "the other process holds the layer");
    child
}

#[test]
fn processes_share_a_mount_and_a_killed_one_holds_nothing() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let mut child = start_holder(&ground.dir());
    let before = ground.mounted();
    assert_eq!(before.len(), 1);
    let store = ground.store();
    let layer = put(&store, "held");
    drop(store.show(&layer).unwrap());
    store.hide_idle(&|| Ok(vec![])).unwrap();
    assert_eq!(ground.mounted(), before, "the other process uses it");
    let shown = store.show(&layer).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(content(&shown), "held");
    assert_eq!(ground.mounted(), before);
    drop(shown);
    assert!(ground.mounted().is_empty(), "nobody else uses it any more");

    let mut child = start_holder(&ground.dir());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ground.mounted().len(), 1, "nobody was there to take it down");
    store.hide_idle(&|| Ok(vec![])).unwrap();
    assert!(ground.mounted().is_empty());
}

#[test]
fn many_threads_show_and_hide_at_once() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let store = ground.store();
    let layers = ["a", "b", "c"].map(|content| put(&store, content));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (layers, ground) = (&layers, &ground);
            scope.spawn(move || {
                // Each store is as a process of its own.
                let store = ground.store();
                for round in 0..40 {
                    let at = (thread + round) % 3;
                    let shown = store.show(&layers[at]).unwrap();
                    assert_eq!(content(&shown), ["a", "b", "c"][at]);
                }
            });
        }
    });
    assert!(ground.mounted().is_empty());
    assert_eq!(ground.places(), 0);
}

fn place(ground: &Ground) -> RootfsPlace {
    RootfsPlace {
        container: "images".parse().unwrap(),
        id: RootfsId(0),
        rootfs: ground.top.path().join("rootfs"),
        scratch: ground.top.path().join("scratch"),
    }
}

#[test]
fn five_hundred_layers_are_stacked_and_all_go_again() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let store = ground.store();
    let layers: Vec<_> = (0..500)
        .map(|number| {
            put_tar(
                &store,
                &Tarball::of([file(format!("f{number}"), ""), file("top", format!("{number}"))]).end(),
            )
            .unwrap()
        })
        .collect();
    let stack: Vec<_> = layers.iter().map(|layer| store.show(layer).unwrap()).collect();
    assert_eq!(ground.mounted().len(), 500);
    let (backend, place) = (OverlayBackend::default(), place(&ground));
    let rootfs = backend.mount(&stack, &place, &Stop::default()).unwrap();
    let names: BTreeSet<_> =
        std::fs::read_dir(&rootfs.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 501);
    assert_eq!(std::fs::read_to_string(rootfs.path.join("top")).unwrap(), "499");
    backend.unmount(&place).unwrap();
    drop(stack);
    assert!(ground.mounted().is_empty());
}

#[test]
fn a_root_filesystem_outlives_what_its_layers_were_shown_by() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let store = ground.store();
    let layer = put(&store, "deep");
    let (backend, place) = (OverlayBackend::default(), place(&ground));
    let shown = store.show(&layer).unwrap();
    let rootfs = backend.mount(&[shown], &place, &Stop::default()).unwrap();
    assert!(ground.mounted().is_empty(), "the hold is gone, and the mount with it");
    assert_eq!(std::fs::read_to_string(rootfs.path.join("d/f")).unwrap(), "deep");
    // A prune that knows of no container takes the file away; those that have it open keep it.
    store.prune(&Default::default(), &|| Ok(vec![])).unwrap();
    assert!(
        store.find(&keelblock_actors::image::plan::LayerKey::Diff(layer.diff_id.clone())).unwrap().is_none()
    );
    assert_eq!(std::fs::read_to_string(rootfs.path.join("d/f")).unwrap(), "deep");
    backend.unmount(&place).unwrap();
}

#[test]
fn a_prune_takes_down_what_a_dead_process_left_mounted() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let mut child = start_holder(&ground.dir());
    child.kill().unwrap();
    child.wait().unwrap();
    let store = ground.store();
    let pruned = store.prune(&Default::default(), &|| Ok(vec![])).unwrap();
    assert_eq!(pruned.layers.len(), 1);
    assert!(ground.mounted().is_empty());
    assert_eq!(ground.places(), 0);
}

#[test]
fn where_a_file_cannot_be_mounted_a_loop_device_is() {
    if !images() {
        return;
    }
    if !Path::new("/dev/loop-control").exists() || !Path::new("/dev/shm").is_dir() {
        eprintln!("skipped: no loop devices, or no file system in memory");
        return;
    }
    let ground = Ground::in_memory();
    let store = ground.store();
    let layer = put(&store, "looped");
    let shown = store.show(&layer).unwrap();
    assert_eq!(content(&shown), "looped");
    let mounted = ground.mounted();
    assert_eq!(mounted.len(), 1);
    let source = mounted[0].1.clone();
    if !source.starts_with("/dev") {
        eprintln!("note: this kernel mounts files in memory without a loop device");
        return;
    }
    drop(shown);
    assert!(ground.mounted().is_empty());
    let backing = Path::new("/sys/block").join(source.file_name().unwrap()).join("loop/backing_file");
    let still =
        std::fs::read_to_string(backing).is_ok_and(|file| Path::new(&file).starts_with(ground.top.path()));
    assert!(!still, "{} still has the image", source.display());
}

#[test]
fn an_image_that_is_none_is_named_and_nothing_stays_mounted() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let store = ground.store();
    let layer = put(&store, "x");
    let image = ground.dir().join("layers/sha256").join(layer.diff_id.0.hex()).join("layer.erofs");
    std::fs::write(&image, [0; 8192]).unwrap();
    let error = chain(&store.show(&layer).err().unwrap());
    assert!(error.contains("mount a layer at") && error.contains(&layer.diff_id.0.hex()), "{error}");
    assert!(ground.mounted().is_empty());
    // Nobody's share of it is left: another can have it for itself.
    store.hide_idle(&|| Ok(vec![])).unwrap();
    assert_eq!(ground.places(), 0);
}

#[test]
fn a_store_may_hold_images_and_trees() {
    if !images() {
        return;
    }
    let ground = Ground::new();
    let tree = put(&tarball::store_with(&ground.dir(), Limits::default()), "tree");
    let store = ground.store();
    let image = put(&store, "image");
    let shown = [&tree, &image].map(|layer| store.show(layer).unwrap());
    assert_eq!(shown.each_ref().map(content), ["tree", "image"]);
    assert_eq!(ground.mounted().len(), 1);
    let record = store.layer_record(&tree).unwrap();
    assert_eq!((record.form, record.image), (Form::Tree, None));
    let shown: Arc<[LayerDir]> = shown.into();
    drop(shown);
    assert!(ground.mounted().is_empty());
}

//! What is on disk and what is not, as others see it: boots, layers of older versions, and a disk that refuses. Power cuts are
//! another test, `powercut`.

#[path = "support/tarball.rs"]
mod tarball;

use std::path::Path;

use keelblock::limits::Limits;
use keelblock::store::{
    Barrier, Disk, DiskStore, LayerForm, Privileges, RealDisk, Settler, StoreSettings, SyncMode,
};
use keelblock_actors::error::{StoreError, chain};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{
    Compression, ImageIdentity, ImagePlan, LayerKey, LayerSpec, RuntimeConfig,
};
use keelblock_actors::ports::{ImageRecord, Keep, Store, StoredLayer};
use tarball::*;

fn layer(store: &DiskStore, content: &str) -> StoredLayer {
    put_tar(store, &Tarball::of([file("f", content)]).end()).unwrap()
}

fn image(name: &str, layer: &StoredLayer) -> ImageRecord {
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
        layers: vec![layer.clone()],
        pulled_ms: 7,
    }
}

/// A disk that refuses what it is told to, for as long as it is told to.
#[derive(Debug, Default)]
struct Refusing(std::sync::Mutex<Vec<Barrier>>);

impl Disk for Refusing {
    fn sync(&self, what: Barrier, file: &std::fs::File) -> std::io::Result<()> {
        if self.0.lock().unwrap().contains(&what) {
            return Err(std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        RealDisk.sync(what, file)
    }
}

impl Refusing {
    fn refuse(&self, what: &[Barrier]) {
        *self.0.lock().unwrap() = what.to_vec();
    }
}

fn settings(boot: &str) -> StoreSettings {
    let settings = StoreSettings::new(Limits::default(), Privileges::detect().unwrap());
    StoreSettings { boot: Some(boot.to_owned()), form: LayerForm::Tree, ..settings }
}

fn open_in(dir: &Path, boot: &str) -> DiskStore {
    DiskStore::open_with(dir, settings(boot), quiet()).unwrap()
}

fn is_there(store: &DiskStore, layer: &StoredLayer) -> bool {
    store.find(&LayerKey::Diff(layer.diff_id.clone())).unwrap().is_some()
}

#[test]
fn a_boot_drops_what_was_not_settled_and_keeps_what_was() {
    let home = tempfile::tempdir().unwrap();
    let first = open_in(home.path(), "one");
    let settled = layer(&first, "settled");
    assert!(DiskStore::is_unsettled(home.path()));
    assert_eq!(first.settle().unwrap().layers, std::slice::from_ref(&settled.diff_id));
    assert!(!DiskStore::is_unsettled(home.path()));
    assert!(first.settle().unwrap().layers.is_empty(), "once is enough");
    let not = layer(&first, "not");
    let again = open_in(home.path(), "one");
    assert!(is_there(&again, &settled) && is_there(&again, &not), "in one boot all counts");
    let second = open_in(home.path(), "two");
    assert!(is_there(&second, &settled) && !is_there(&second, &not));
    assert!(!DiskStore::is_unsettled(home.path()));
    assert_eq!(layer(&second, "not"), not, "it is pulled again");
    second.settle().unwrap();
    assert!(is_there(&open_in(home.path(), "three"), &not));
}

#[test]
fn a_layer_that_was_pruned_and_pulled_again_is_not_taken_for_the_one_on_disk() {
    let home = tempfile::tempdir().unwrap();
    let store = open_in(home.path(), "one");
    let layer_of = |store: &DiskStore| layer(store, "again");
    let first = layer_of(&store);
    store.settle().unwrap();
    store.prune(&Keep::default(), &|| Ok(Vec::new())).unwrap();
    assert_eq!(layer_of(&store), first);
    assert!(!is_there(&open_in(home.path(), "two"), &first));
    // Also when nobody told the journal.
    let store = open_in(home.path(), "two");
    layer_of(&store);
    store.settle().unwrap();
    std::fs::remove_dir_all(home.path().join("layers/sha256").join(first.diff_id.0.hex())).unwrap();
    layer_of(&store);
    assert!(!is_there(&open_in(home.path(), "three"), &first));
}

#[test]
fn layers_of_a_version_without_a_journal_stay_and_are_settled() {
    let home = tempfile::tempdir().unwrap();
    let store = open_in(home.path(), "one");
    let (old, new) = (layer(&store, "old"), layer(&store, "new"));
    // As that version left it.
    let record = home.path().join("layers/sha256").join(old.diff_id.0.hex()).join("layer.json");
    let mut fields: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    for newer in ["commit", "sum"] {
        fields.as_object_mut().unwrap().remove(newer).unwrap();
    }
    std::fs::write(&record, fields.to_string()).unwrap();
    std::fs::remove_file(home.path().join("boot")).unwrap();
    std::fs::remove_dir_all(home.path().join("unsettled")).unwrap();
    let store = open_in(home.path(), "one");
    assert!(is_there(&store, &old));
    assert!(!is_there(&store, &new), "this version's own must be in the journal");
    assert_eq!(store.settle().unwrap().layers, std::slice::from_ref(&old.diff_id));
    assert!(is_there(&open_in(home.path(), "two"), &old));
}

#[test]
fn a_layer_that_the_disk_refused_is_used_and_never_called_durable() {
    let home = tempfile::tempdir().unwrap();
    let disk = std::sync::Arc::new(Refusing::default());
    for barrier in [Barrier::Filesystem, Barrier::Layer, Barrier::Layers, Barrier::Staging] {
        let boot = format!("{barrier:?}");
        let store = DiskStore::open_with(
            home.path(),
            StoreSettings { disk: disk.clone(), ..settings(&boot) },
            quiet(),
        )
        .unwrap();
        let refused = layer(&store, "refused");
        disk.refuse(&[barrier]);
        let failed = match store.settle() {
            Ok(settled) => settled.failed,
            Err(error) => {
                assert!(chain(&error).contains("sync"), "{}", chain(&error));
                store.settle().unwrap().failed
            }
        };
        assert_eq!(failed, std::slice::from_ref(&refused.diff_id), "{barrier:?}");
        disk.refuse(&[]);
        let settled = store.settle().unwrap();
        assert!(settled.layers.is_empty(), "a second sync says nothing: {settled:?}");
        assert_eq!(settled.failed, std::slice::from_ref(&refused.diff_id));
        assert!(is_there(&store, &refused));
        assert!(!is_there(&open_in(home.path(), &format!("after {boot}")), &refused));
    }
    // What the journal could not say is said later.
    let store =
        DiskStore::open_with(home.path(), StoreSettings { disk: disk.clone(), ..settings("last") }, quiet());
    let store = store.unwrap();
    let layer = layer(&store, "unsaid");
    disk.refuse(&[Barrier::Journal]);
    assert!(store.settle().is_err());
    disk.refuse(&[]);
    assert_eq!(store.settle().unwrap().layers, std::slice::from_ref(&layer.diff_id));
    assert!(is_there(&open_in(home.path(), "after the last"), &layer));
}

#[test]
fn a_pull_that_waits_for_the_disk_fails_with_it_and_records_nothing() {
    let home = tempfile::tempdir().unwrap();
    let disk = std::sync::Arc::new(Refusing::default());
    let settler = Settler::later().with_mode(SyncMode::Full);
    let full = StoreSettings { disk: disk.clone(), settler, ..settings("one") };
    let store = DiskStore::open_with(home.path(), full, quiet()).unwrap();
    let good = layer(&store, "good");
    store.record_image(&image("good", &good)).unwrap();
    assert!(is_there(&open_in(home.path(), "two"), &good));
    let bad = layer(&store, "bad");
    disk.refuse(&[Barrier::Filesystem]);
    let error = store.record_image(&image("bad", &bad)).unwrap_err();
    assert!(matches!(&error, StoreError::NotDurable { layer, .. } if *layer == bad.diff_id), "{error}");
    assert!(chain(&error).contains("Input/output error"), "{}", chain(&error));
    assert_eq!(store.images().unwrap().len(), 1);
    disk.refuse(&[]);
    let error = store.record_image(&image("bad", &bad)).unwrap_err();
    assert!(matches!(error, StoreError::NotDurable { source: None, .. }), "{error}");
}

#[test]
fn records_and_indexes_that_a_cut_has_torn_are_removed_and_hide_nothing() {
    let home = tempfile::tempdir().unwrap();
    let store = open_in(home.path(), "one");
    let tar = Tarball::of([file("f", "by blob")]).end();
    let blob = gzip(&tar);
    let key = LayerKey::Blob(Digest::of(&blob));
    let spec = LayerSpec { key: key.clone(), ..spec_of(&tar, &blob, Compression::Gzip) };
    let stored = put(&store, &spec, &blob).unwrap();
    let (whole, torn, moved) = (image("whole", &stored), image("torn", &stored), image("moved", &stored));
    for record in [&whole, &torn, &moved] {
        store.record_image(record).unwrap();
    }
    store.settle().unwrap();
    let path = |record: &ImageRecord| {
        let name = Digest::of(record.plan.identity.name.canonical().to_string().as_bytes());
        home.path().join("images").join(format!("{}.json", name.hex()))
    };
    std::fs::write(path(&torn), "").unwrap();
    std::fs::copy(path(&whole), path(&moved)).unwrap();
    let stray = home.path().join("blobs/sha256").join(Digest::of(b"stray").hex());
    std::fs::write(&stray, stored.diff_id.to_string()).unwrap();
    let store = open_in(home.path(), "two");
    assert_eq!(store.images().unwrap(), [whole]);
    assert_eq!(store.image(&torn.plan.identity.name).unwrap(), None);
    assert_eq!(store.image(&moved.plan.identity.name).unwrap(), None);
    assert_eq!(store.find(&key).unwrap(), Some(stored));
    assert!(!stray.exists(), "its layer says that another blob brought it");
}

#[test]
fn a_thread_settles_what_comes() {
    let home = tempfile::tempdir().unwrap();
    let settler = Settler::thread(quiet());
    let with = StoreSettings { settler: settler.clone(), ..settings("one") };
    let store = DiskStore::open_with(home.path(), with, quiet()).unwrap();
    let layers = ["a", "b", "c"].map(|text| layer(&store, text));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::fs::read_dir(home.path().join("unsettled")).unwrap().next().is_some() {
        assert!(std::time::Instant::now() < until, "it is not settled");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    settler.stop();
    let store = open_in(home.path(), "two");
    assert!(layers.iter().all(|layer| is_there(&store, layer)));
    let _late = layer(&store, "late");
    settler.stop();
}

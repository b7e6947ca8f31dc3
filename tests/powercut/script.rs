//! What is done to a store while notes are taken, and what it promised by when.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keelblock::limits::Limits;
use keelblock::store::{
    Barrier, Disk, DiskStore, LayerForm, Privileges, RealDisk, Settler, StoreSettings, SyncMode,
};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{
    Compression, ImageIdentity, ImagePlan, LayerKey, LayerSpec, RuntimeConfig,
};
use keelblock_actors::ports::{ImageRecord, Keep, Store, StoredLayer};

use super::record::{Op, Recorder};
use super::tarball::*;

/// Where the store is below the top of the filesystem.
pub(crate) const STORE: &str = "var/store";

/// What the store said.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// These layers are on disk.
    Durable(Vec<DiffId>),
    /// These may be gone from now on.
    Going(Vec<DiffId>),
    /// This image is on disk with all its layers.
    Image(ImageName),
    /// The store is used in this boot from now on.
    Boot(&'static str),
}

/// A layer and how it is asked for.
pub(crate) struct Layer {
    pub(crate) spec: LayerSpec,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff: DiffId,
}

/// Layers by number. Each has a bit of everything, and content of its own.
pub(crate) fn layer(number: u8) -> Layer {
    let text = |length: usize| (0..length).map(|at| (at as u8).wrapping_mul(31) ^ number).collect::<Vec<_>>();
    let tar = Tarball::of([
        dir("d/").mtime(5),
        file("d/large", text(9000 + usize::from(number))).mode(0o4755).owner(7, 8),
        file("d/small", text(100)).xattr("user.of", [number]),
        file("empty", ""),
        hard_link("link", "d/large"),
        symlink("symlink", format!("d/small{number}")),
        file("implied/name", text(10)),
        file("d/.wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        entry(b'3', "null").device(1, 3),
    ])
    .end();
    let blob = gzip(&tar);
    let spec = spec_of(&tar, &blob, Compression::Gzip);
    Layer { spec, diff: DiffId(Digest::of(&tar)), blob }
}

/// As [`layer`], known by its blob alone.
pub(crate) fn layer_by_blob(number: u8) -> Layer {
    let mut layer = layer(number);
    layer.spec.key = LayerKey::Blob(Digest::of(&layer.blob));
    layer
}

/// All layers that the script brings.
pub(crate) fn layers() -> Vec<Layer> {
    (0..8).map(|number| if number == 4 { layer_by_blob(4) } else { layer(number) }).collect()
}

/// An image of these layers.
pub(crate) fn image(name: &str, layers: &[&Layer]) -> ImageRecord {
    let digest = Digest::of(name.as_bytes());
    let name: ImageName = name.parse().unwrap();
    ImageRecord {
        plan: ImagePlan {
            identity: ImageIdentity { name: name.canonical(), manifest: digest.clone(), config: digest },
            layers: layers.iter().map(|layer| layer.spec.clone()).collect(),
            runtime: RuntimeConfig::default(),
            platform: None,
            chosen_for: None,
            signed: false,
        },
        layers: layers.iter().map(|layer| StoredLayer { diff_id: layer.diff.clone() }).collect(),
        pulled_ms: 1,
    }
}

/// A mistake that could be made in the order of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// This is not waited for.
    Without(Barrier),
    /// Layers are removed before the journal says so.
    ForgottenTooLate,
    /// After a boot all is believed.
    NoBootCheck,
}

/// The kernel's syncs, and the one that it does not pass on to a filesystem of ours.
#[derive(Debug)]
struct Noting {
    recorder: Recorder<Told>,
    mistake: Option<Mistake>,
    pruning: Arc<AtomicBool>,
}

impl Disk for Noting {
    fn sync(&self, what: Barrier, file: &File) -> io::Result<()> {
        let skipped = match self.mistake {
            Some(Mistake::Without(barrier)) => barrier == what,
            Some(Mistake::ForgottenTooLate) => {
                what == Barrier::Journal && self.pruning.load(Ordering::SeqCst)
            }
            _ => false,
        };
        if skipped {
            return Ok(());
        }
        if what == Barrier::Filesystem {
            self.recorder.push(Op::SyncAll);
            return Ok(());
        }
        RealDisk.sync(what, file)
    }
}

/// A store as the script opens it.
pub(crate) fn settings(boot: &str, form: LayerForm) -> StoreSettings {
    let settings = StoreSettings::new(Limits::default(), Privileges::detect().unwrap());
    StoreSettings { boot: Some(boot.to_owned()), form, ..settings }
}

/// Does it all.
pub(crate) struct Script {
    recorder: Recorder<Told>,
    form: LayerForm,
    mistake: Option<Mistake>,
    pruning: Arc<AtomicBool>,
}

impl Script {
    pub(crate) fn new(recorder: Recorder<Told>, form: LayerForm, mistake: Option<Mistake>) -> Self {
        Self { recorder, form, mistake, pruning: Arc::default() }
    }

    fn open(&self, top: &Path, boot: &'static str, mode: SyncMode) -> DiskStore {
        let (recorder, mistake, pruning) = (self.recorder.clone(), self.mistake, self.pruning.clone());
        let disk = Arc::new(Noting { recorder, mistake, pruning });
        self.recorder.push(Op::Told(Told::Boot(boot)));
        let settings =
            StoreSettings { disk, settler: Settler::later().with_mode(mode), ..settings(boot, self.form) };
        DiskStore::open_with(&top.join(STORE), settings, quiet()).unwrap()
    }

    fn put(&self, store: &DiskStore, layer: &Layer) {
        put(store, &layer.spec, &layer.blob).unwrap();
    }

    fn settle(&self, store: &DiskStore, expected: &[&Layer]) {
        let mut settled = store.settle().unwrap();
        assert!(settled.failed.is_empty() && settled.left.is_empty(), "{settled:?}");
        let mut expected: Vec<_> = expected.iter().map(|layer| layer.diff.clone()).collect();
        settled.layers.sort();
        expected.sort();
        assert_eq!(settled.layers, expected);
        self.recorder.push(Op::Told(Told::Durable(settled.layers)));
    }

    fn prune(&self, store: &DiskStore, keep: &ImageRecord, going: &[&Layer]) {
        let going: Vec<_> = going.iter().map(|layer| layer.diff.clone()).collect();
        self.recorder.push(Op::Told(Told::Going(going.clone())));
        self.pruning.store(true, Ordering::SeqCst);
        let keep = Keep { images: vec![keep.plan.identity.name.clone()] };
        let mut pruned = store.prune(&keep, &|| Ok(Vec::new())).unwrap().layers;
        self.pruning.store(false, Ordering::SeqCst);
        let mut going = going;
        pruned.sort();
        going.sort();
        assert_eq!(pruned, going);
    }

    pub(crate) fn run(&self, top: &Path) {
        let layers = layers();
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|at| &layers[at]);
        let (one, two) = (image("one", &[a, b]), image("two", &[a, c]));

        let store = self.open(top, "first", SyncMode::Background);
        self.put(&store, a);
        self.put(&store, b);
        store.record_image(&one).unwrap();
        self.settle(&store, &[a, b]);
        self.put(&store, c);
        self.put(&store, e);
        // Layers that the journal never heard of, and one that it did.
        self.prune(&store, &one, &[c, e]);
        self.put(&store, c);
        self.settle(&store, &[c]);
        store.record_image(&two).unwrap();
        self.prune(&store, &one, &[c]);
        self.put(&store, c);
        self.put(&store, d);
        self.put(&store, e);
        self.settle(&store, &[c, d, e]);
        drop(store);

        let store = self.open(top, "second", SyncMode::Background);
        assert!(store.find(&e.spec.key).unwrap().is_some(), "an index that its layer confirms stays");
        store.record_image(&two).unwrap();
        self.put(&store, f);
        drop(store);

        let store = self.open(top, "third", SyncMode::Full);
        if self.mistake.is_none() {
            assert!(store.find(&f.spec.key).unwrap().is_none(), "it was not on disk");
        }
        self.put(&store, g);
        self.put(&store, h);
        let three = image("three", &[e, g, h]);
        store.record_image(&three).unwrap();
        let durable = [g, h].map(|layer| layer.diff.clone()).to_vec();
        self.recorder.push(Op::Told(Told::Durable(durable)));
        self.recorder.push(Op::Told(Told::Image(three.plan.identity.name.clone())));
        self.prune(&store, &three, &self.left(&store, &[a, b, c, d, f]));
    }

    /// Those that are there.
    fn left<'l>(&self, store: &DiskStore, layers: &[&'l Layer]) -> Vec<&'l Layer> {
        layers.iter().copied().filter(|layer| store.find(&layer.spec.key).unwrap().is_some()).collect()
    }
}

//! The fuzz target `layers`: whole layers, unpacked to disk.
//!
//! Bytes are read as a script of entries rather than as a tar, so that what is tried is what a layer can say, not how
//! its headers can be broken (that is the target `tar`). A script that begins with 0xff is a blob as it is.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use keelblock_actors::container::RootfsId;
use keelblock_actors::image::appc::AciView;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{BlobSpec, Compression, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::{Backend, Claim, Keep, LayerDir, RootfsPlace, Store, StoredLayer};
use keelblock_actors::stop::Stop;

use super::home;
use super::script::{Script, entry};
use crate::backend::CopyBackend;
use crate::limits::Limits;
use crate::store::{DiskStore, Form, LayerForm, LayerRecord, Privileges, StoreSettings, whiteout};

const LAYERS_MAX: usize = 4;
pub(super) const ENTRIES_MAX: usize = 40;
/// Their directories.
const STORES: [&str; 3] = ["store", "other", "images"];
const SECRET: &[u8] = b"nobody writes here";

/// A place with two stores, and beside them what no layer may touch.
pub(super) struct Place {
    home: PathBuf,
    pub(super) store: DiskStore,
    /// Where a layer is unpacked in the other way, to compare.
    pub(super) other: DiskStore,
    /// Where it becomes an image, for root.
    pub(super) images: DiskStore,
}

/// A layer to be.
pub(super) struct Blob {
    pub(super) bytes: Vec<u8>,
    /// What is in it, if that is known beforehand.
    pub(super) tar: Option<Vec<u8>>,
    /// What of an ACI it is, if it is one.
    pub(super) view: Option<AciView>,
    /// On all threads, whatever its size; else on one.
    pub(super) threaded: bool,
    /// In both ways, which must come to the same.
    pub(super) twice: bool,
}

/// Whatever comes as a layer, unpacking ends with a layer or an error, touches nothing outside of the store and leaves
/// nothing staged. Of a layer that is taken every file is inside, none is a marker, and a copy of all layers holds no
/// trace of how layers say that something is gone.
pub fn layers(bytes: &[u8]) {
    static PLACE: OnceLock<Mutex<Place>> = OnceLock::new();
    let place = PLACE.get_or_init(|| Mutex::new(Place::new("layers")));
    // One after the other: tests have threads. A place that was panicked in is reported once.
    let place = place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let blobs = match bytes.split_first() {
        Some((0xff, blob)) => {
            let threaded = blob.len() % 2 == 0;
            vec![Blob { bytes: blob.to_vec(), tar: None, view: None, threaded, twice: blob.len() % 16 == 0 }]
        }
        _ => script(bytes),
    };
    let mut taken = Vec::new();
    for blob in &blobs {
        let layer = place.unpack(&place.store, blob, blob.threaded);
        if blob.twice {
            let other = place.unpack(&place.other, blob, !blob.threaded);
            assert_eq!(
                layer.as_ref().map(describe),
                other.as_ref().map(describe),
                "what becomes of a layer depends on the number of threads"
            );
        }
        let image = place.unpack(&place.images, blob, blob.threaded);
        assert_eq!(
            layer.as_ref().map(describe),
            image.as_ref().map(describe),
            "what becomes of a layer depends on how it is kept"
        );
        if let Some(layer) = layer {
            place.check_tree(&layer.dir.path, Some(Marks::Of { user: layer.dir.user_xattrs }));
            taken.push(layer.dir);
        }
        place.check_outside();
    }
    if !taken.is_empty() {
        place.copy(&taken);
        place.check_outside();
    }
    drop(taken);
    for store in [&place.store, &place.other, &place.images] {
        store.prune(&Keep { images: Vec::new() }, &|| Ok(Vec::new())).expect("a prune");
    }
}

/// A layer in a store.
pub(super) struct Unpacked {
    pub(super) dir: LayerDir,
    record: LayerRecord,
}

/// What a tree may have of what overlayfs reads.
#[derive(Clone, Copy)]
pub(super) enum Marks {
    /// Marks in this namespace: it is a layer.
    Of { user: bool },
    /// None, and any name is a name: it is of an ACI.
    Plain,
}

/// All that can be seen of a layer, a line for each name.
pub(super) fn describe(layer: &Unpacked) -> Vec<String> {
    let tree = &layer.dir.path;
    // The same tar may have come before, in another blob.
    let record = LayerRecord {
        blob: None,
        compression: Compression::None,
        form: Form::Tree,
        image: None,
        // Sums that say of the tree what is seen of it below.
        tree: None,
        commit: String::new(),
        ..layer.record.clone()
    };
    let mut lines = vec![format!("{record:?}")];
    let mut first_names = BTreeMap::new();
    let mut todo = vec![tree.clone()];
    while let Some(path) = todo.pop() {
        let stat = path.symlink_metadata().expect("it is there");
        let name = path.strip_prefix(tree).expect("it is below").to_owned();
        let content = if stat.is_dir() {
            let entries = path.read_dir().expect("it can be listed");
            let mut below: Vec<PathBuf> = entries.map(|entry| entry.expect("it is listed").path()).collect();
            below.sort();
            todo.extend(below);
            Vec::new()
        } else if stat.is_symlink() {
            std::fs::read_link(&path).expect("it is a link").into_os_string().into_encoded_bytes()
        } else if stat.is_file() && stat.size() <= 4 << 20 {
            std::fs::read(&path).expect("root reads everything")
        } else {
            Vec::new()
        };
        let mut xattrs: Vec<(String, Vec<u8>)> = xattrs(&path);
        xattrs.sort();
        let size = if stat.is_dir() { 0 } else { stat.size() };
        // Nobody sees a whiteout's time, so nobody sets it.
        let whiteout = stat.file_type().is_char_device() && stat.rdev() == 0;
        let mtime = if whiteout { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) };
        let facts = (stat.mode(), stat.uid(), stat.gid(), stat.rdev(), size, mtime);
        let first = if stat.is_dir() { &name } else { first_names.entry(stat.ino()).or_insert(name.clone()) };
        let content = Digest::of(&content);
        lines.push(format!("{name:?} {facts:?} {xattrs:?} like {first:?}: {content}"));
    }
    lines
}

/// The extended attributes of a file, with their values.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).expect("they can be listed");
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let all = names.map(|name| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("it is there");
        value.truncate(length);
        (String::from_utf8_lossy(name).into_owned(), value)
    });
    all.collect()
}

impl Place {
    pub(super) fn new(name: &str) -> Self {
        let home = home(name);
        let limits = Limits {
            layer_bytes_max: 1 << 20,
            layer_entries_max: 100,
            path_bytes_max: 1024,
            xattr_bytes_max: 4096,
            pax_bytes_max: 16 << 10,
            ..Limits::default()
        };
        std::fs::create_dir_all(home.join("canary/etc")).expect("a directory in memory");
        std::fs::write(home.join("canary/etc/passwd"), SECRET).expect("a file in memory");
        std::os::unix::fs::symlink("etc/passwd", home.join("canary/link")).expect("a symlink in memory");
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let privileges = Privileges::detect().expect("/proc is there");
        let store = |name, form| {
            let settings = StoreSettings { form, ..StoreSettings::new(limits.clone(), privileges) };
            DiskStore::open_with(&home.join(name), settings, log.clone()).expect("a fresh store")
        };
        let (store, other, images) = (
            store("store", LayerForm::Tree),
            store("other", LayerForm::Tree),
            store("images", LayerForm::Auto),
        );
        Self { home, store, other, images }
    }

    pub(super) fn unpack(&self, store: &DiskStore, blob: &Blob, threaded: bool) -> Option<Unpacked> {
        let show = |stored: &StoredLayer| Unpacked {
            dir: store.show(stored).expect("what was committed can be shown"),
            record: store.layer_record(stored).expect("what was committed has a record"),
        };
        let digest = Digest::of(&blob.bytes);
        let key = match (&blob.view, &blob.tar) {
            (Some(view), _) => LayerKey::Aci(view.diff_id()),
            (None, Some(tar)) => LayerKey::Diff(DiffId(Digest::of(tar))),
            (None, None) => LayerKey::Blob(digest.clone()),
        };
        let staging = match store.claim(&key).expect("a claim") {
            Claim::Mine(staging) => staging,
            // The same layer twice in a stack.
            Claim::Here(layer) => return Some(show(&layer)),
            Claim::Elsewhere => panic!("nobody else is here"),
        };
        // Blobs this small get threads of their own when nobody says how small they are.
        let size = (!threaded).then_some(blob.bytes.len() as u64);
        let layer = LayerSpec {
            key,
            blob: BlobSpec { digest: Some(digest), size, compression: None, media_type: None },
            source: LayerSource::File { path: PathBuf::from("/fuzz") },
            aci: blob.view.clone(),
            access: None,
        };
        let stored = staging.unpack(&layer, &mut &blob.bytes[..], &Stop::default());
        for name in STORES {
            let staged = self.home.join(name).join("staging").read_dir().map_or(0, Iterator::count);
            assert_eq!(staged, 0, "something is left in staging after {:?}", stored.err());
        }
        let stored = stored.ok()?;
        assert!(store.layer_size(&stored).expect("a record").bytes <= 1 << 20);
        Some(show(&stored))
    }

    /// What lies beside the store is as it was.
    pub(super) fn check_outside(&self) {
        let canary = self.home.join("canary");
        let mut names: Vec<PathBuf> = Vec::new();
        let mut visit = vec![canary.clone(), self.home.clone()];
        while let Some(dir) = visit.pop() {
            for entry in dir.read_dir().expect("it is still there") {
                let path = entry.expect("it can be listed").path();
                if path.is_dir() && path.starts_with(&canary) && path != canary {
                    visit.push(path.clone());
                }
                names.push(path.strip_prefix(&self.home).expect("it is below").to_owned());
            }
        }
        names.sort();
        // Stores are made when they are first written to.
        names.retain(|name| !STORES.iter().any(|store| name == Path::new(store)));
        let expected = ["canary", "canary/etc", "canary/etc/passwd", "canary/link"];
        assert_eq!(names, expected.map(PathBuf::from));
        let passwd = canary.join("etc/passwd");
        assert_eq!(std::fs::read(&passwd).expect("it is still there"), SECRET);
        let stat = passwd.symlink_metadata().expect("it is still there");
        assert!(stat.nlink() == 1 && stat.mode() & 0o7000 == 0);
    }

    /// Every name in a tree is one of a file inside, and none is a marker of a whiteout.
    pub(super) fn check_tree(&self, tree: &Path, layer: Option<Marks>) {
        let mut links: BTreeMap<u64, (u64, u64, PathBuf)> = BTreeMap::new();
        let mut todo = vec![tree.to_owned()];
        let mut count = 0;
        let device = tree.symlink_metadata().expect("it is there").dev();
        while let Some(dir) = todo.pop() {
            self.check_xattrs(&dir, layer);
            for entry in dir.read_dir().expect("it can be listed") {
                let path = entry.expect("it can be listed").path();
                count += 1;
                let name = path.file_name().expect("it has one").as_bytes();
                let plain = matches!(layer, Some(Marks::Plain));
                assert!(plain || !name.starts_with(whiteout::PREFIX), "{}", path.display());
                let stat = path.symlink_metadata().expect("it is there");
                assert_eq!(stat.dev(), device, "{} is elsewhere", path.display());
                if stat.is_dir() {
                    todo.push(path);
                    continue;
                }
                self.check_xattrs(&path, layer);
                let kind = stat.file_type();
                assert!(!kind.is_socket());
                let marked = matches!(layer, Some(Marks::Of { .. }));
                assert!(marked || !whiteout::is_whiteout(&stat), "{} is a whiteout", path.display());
                if kind.is_file() {
                    assert!(stat.size() <= 16 << 30, "{} is as long as nothing said", path.display());
                }
                let seen = links.entry(stat.ino()).or_insert((stat.nlink(), 0, path));
                seen.1 += 1;
            }
        }
        assert!(count <= 100 * 40, "{count} names come of {ENTRIES_MAX} entries");
        for (nlink, found, path) in links.values() {
            assert_eq!(nlink, found, "{} has a name outside of its tree", path.display());
        }
    }

    /// Of overlayfs's attributes there are at most those that we write, and only in layers.
    fn check_xattrs(&self, path: &Path, layer: Option<Marks>) {
        for (name, value) in xattrs(path) {
            if !whiteout::is_overlay_xattr(name.as_bytes()) {
                continue;
            }
            let namespace = match layer {
                Some(Marks::Of { user: true }) => whiteout::Namespace::User,
                Some(Marks::Of { user: false }) => whiteout::Namespace::Trusted,
                _ => panic!("{} has {name}", path.display()),
            };
            match &value[..] {
                whiteout::OPAQUE_VALUE => assert_eq!(name, namespace.opaque()),
                other => assert!(other.is_empty() && name == namespace.origin()),
            }
        }
    }

    fn copy(&self, stack: &[LayerDir]) {
        let place = RootfsPlace {
            container: "fuzz".parse().expect("a name"),
            id: RootfsId(1),
            rootfs: self.home.join("store/rootfs"),
            scratch: self.home.join("store/scratch"),
        };
        let copied = CopyBackend::default().mount(stack, &place, &Stop::default());
        if copied.is_ok() {
            self.check_tree(&place.rootfs, None);
        }
        CopyBackend::default().unmount(&place).expect("it goes away again");
        for left in [&place.rootfs, &place.scratch] {
            assert!(left.symlink_metadata().is_err(), "{} is left", left.display());
        }
    }
}

/// The blobs that a script means.
fn script(bytes: &[u8]) -> Vec<Blob> {
    let mut script = Script { left: bytes, aci: false };
    let mut blobs = Vec::new();
    let mut entries = 0;
    while blobs.len() < LAYERS_MAX && (blobs.is_empty() || !script.left.is_empty()) {
        let how = script.byte();
        let mut tar = Vec::new();
        while !script.left.is_empty() && entries < ENTRIES_MAX {
            // The end of a layer comes in between, so that a script is still one when some of it is cut out.
            let op = script.byte();
            if op & 0x1f == 0x1f {
                break;
            }
            entries += 1;
            entry(&mut script, op, &mut tar);
        }
        if how & 0x10 == 0 {
            tar.resize(tar.len() + 1024, 0);
        }
        let bytes = match how % 4 {
            0 | 1 => tar.clone(),
            2 => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).and_then(|()| encoder.finish()).expect("memory does not fail")
            }
            _ => zstd::stream::encode_all(&tar[..], 1).expect("memory does not fail"),
        };
        let tar = (how & 0x20 == 0).then_some(tar);
        blobs.push(Blob { bytes, tar, view: None, threaded: how & 0x40 != 0, twice: how & 0x88 == 0x80 });
    }
    blobs
}

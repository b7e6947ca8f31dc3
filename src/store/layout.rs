//! Every path of the store. Nothing here touches the disk.
//!
//! ```text
//! <store>/                          mode 0700: layers hold setuid files of strangers
//!   format                          JSON: version, and in which xattr namespace opaque marks are
//!   lock                            flock: shared to pin or record, exclusive to prune, for moments
//!   boot                            text: the boot in which all that is here was written or checked (see `boot`)
//!   journal                         text: which layers are on disk (see `journal`)
//!   settling                        flock: whoever writes layers to disk (see `settle`)
//!   layers/<alg>/<hex>/             one committed layer, named by its diff ID; appears by rename, whole
//!     layer.json                    what it is: form, bytes, entries, blob digest, what could not be set
//!     tree/                         form "tree": the unpacked layer in overlayfs form
//!     sums                          beside it: what each of its names is (see `treesums`)
//!     layer.erofs                   form "erofs": the same as an EROFS image
//!     sums                          beside it: a CRC-32 of each of its blocks
//!   blobs/<alg>/<hex>               text: the diff ID that the blob of this digest unpacks to
//!   images/<sha256 of name>.json    one pulled image
//!   locks/<alg>-<hex>               flock: the right to bring this layer; there while somebody has it
//!   pins/<name>                     flock: layer keys that a live process keeps from being pruned
//!   space/<name>                    flock: disk space a live process sets aside; space itself: flock of the ledger
//!   unsettled/<alg>-<hex>-<commit>  empty: this layer is not known to be on disk; `.failed` behind it: and never will
//!   staging/<name>                  flock: a layer or a file being made; anybody's garbage once unlocked
//!   scrubbed.json                   when each layer was last verified in the background
//!   quarantine/<alg>-<hex>-<name>   a layer that is not what was written, until no container is on it
//!   mounts/<alg>-<hex>              where a layer that is an image is mounted while somebody uses it
//!   mounts.lock                     byte locks: who uses which of those (see `shown`)
//!   gc/<name>                       renamed away, to be removed (see `crate::gc`); gc itself: flock of who does
//! ```
//!
//! `staging`, `layers`, `images` and `gc` are on one filesystem, since everything moves between them by rename.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::LayerKey;

/// Where everything is.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

/// The directories of a store, besides the store itself.
pub(super) const DIRECTORIES: [&str; 14] = [
    "layers",
    "layers/sha256",
    "layers/sha512",
    "blobs",
    "blobs/sha256",
    "blobs/sha512",
    "images",
    "locks",
    "pins",
    "space",
    "unsettled",
    "staging",
    "mounts",
    "gc",
];

/// Digests by which layers and blobs are known: names of directories below `layers` and `blobs`.
pub(super) const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// Below a layer or a staging directory: what it is.
pub(super) const LAYER_RECORD: &str = "layer.json";
/// Below a layer or a staging directory: the unpacked tree.
pub(super) const TREE: &str = "tree";
/// Below a layer or a staging directory: the layer as an image.
pub(super) const IMAGE: &str = "layer.erofs";
/// Below a layer or a staging directory: the sums of the image's blocks.
pub(super) const SUMS: &str = "sums";

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    pub(super) fn store_lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    pub(super) fn settling(&self) -> PathBuf {
        self.root.join("settling")
    }

    pub(super) fn unsettled(&self) -> PathBuf {
        self.root.join("unsettled")
    }

    pub(super) fn layers(&self, algorithm: &str) -> PathBuf {
        self.root.join("layers").join(algorithm)
    }

    pub(super) fn layer(&self, diff: &DiffId) -> PathBuf {
        self.layers(diff.0.algorithm()).join(diff.0.hex())
    }

    pub(super) fn layer_record(&self, diff: &DiffId) -> PathBuf {
        self.layer(diff).join(LAYER_RECORD)
    }

    pub(super) fn blobs(&self, algorithm: &str) -> PathBuf {
        self.root.join("blobs").join(algorithm)
    }

    pub(super) fn blob(&self, blob: &Digest) -> PathBuf {
        self.blobs(blob.algorithm()).join(blob.hex())
    }

    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(super) fn image(&self, name: &ImageName) -> PathBuf {
        let digest = Digest::of(name.canonical().to_string().as_bytes());
        self.images().join(format!("{}.json", digest.hex()))
    }

    /// The lock on bringing a layer. A layer known by blob and one known by diff ID lock differently even if they
    /// turn out to be one: then both are unpacked and the second commit finds the first.
    pub(super) fn claim_lock(&self, key: &LayerKey) -> PathBuf {
        let (kind, digest) = match key {
            LayerKey::Diff(diff) => ("diff", &diff.0),
            LayerKey::Aci(diff) => ("aci", &diff.0),
            LayerKey::Blob(blob) => ("blob", blob),
        };
        self.locks().join(format!("{kind}-{}-{}", digest.algorithm(), digest.hex()))
    }

    pub(super) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    pub(super) fn space(&self) -> PathBuf {
        self.root.join("space")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(super) fn scrubbed(&self) -> PathBuf {
        self.root.join("scrubbed.json")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    pub(super) fn mount(&self, diff: &DiffId) -> PathBuf {
        self.mounts().join(format!("{}-{}", diff.0.algorithm(), diff.0.hex()))
    }

    pub(super) fn mounts_lock(&self) -> PathBuf {
        self.root.join("mounts.lock")
    }

    pub(super) fn gc(&self) -> PathBuf {
        self.root.join("gc")
    }
}

/// A file name that no other process and no other call will come up with; whoever makes the file still excludes
/// that it exists.
pub(crate) fn fresh_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{:x}-{:x}-{nanos:x}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

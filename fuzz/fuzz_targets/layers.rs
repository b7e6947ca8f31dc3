//! Layers: whatever bytes come as a layer (plain tar, gzip, zstd or none of them), unpacking ends with a layer or an
//! error, touches nothing outside of the store, and leaves nothing staged.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use keelblock::limits::Limits;
use keelblock::store::{DiskStore, Privileges};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{BlobSpec, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::{Claim, Keep, Store};
use keelblock_actors::stop::Stop;
use libfuzzer_sys::fuzz_target;

static STORE: OnceLock<(PathBuf, DiskStore)> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let (dir, store) = STORE.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("keelblock-fuzz-{}", std::process::id()));
        let limits = Limits { layer_bytes_max: 4 << 20, layer_entries_max: 10_000, ..Limits::default() };
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let privileges = Privileges::detect().expect("/proc is there");
        let store = DiskStore::open(&dir, limits, privileges, log).expect("a store in a fresh directory");
        std::fs::create_dir_all(dir.join("canary")).expect("the directory is ours");
        (dir, store)
    });
    let digest = Digest::of(bytes);
    let key = LayerKey::Blob(digest.clone());
    let Ok(Claim::Mine(staging)) = store.claim(&key) else { return };
    let layer = LayerSpec {
        key,
        blob: BlobSpec {
            digest: Some(digest),
            size: Some(bytes.len() as u64),
            compression: None,
            media_type: None,
        },
        source: LayerSource::File { path: PathBuf::from("/fuzz") },
    };
    let mut reader = bytes;
    let unpacked = staging.unpack(&layer, &mut reader, &Stop::default());
    if let Ok(stored) = &unpacked {
        store.show(stored).expect("what was committed can be shown");
    }
    let staged = std::fs::read_dir(dir.join("staging")).map_or(0, |entries| entries.count());
    assert_eq!(staged, 0, "something is left in staging after {:?}", unpacked.err());
    assert_eq!(std::fs::read_dir(dir.join("canary")).expect("it is still there").count(), 0);
    store.prune(&Keep { images: Vec::<ImageName>::new() }, &|| Ok(Vec::new())).expect("a prune");
});

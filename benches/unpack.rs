//! What unpacking a layer costs: `cargo bench --bench unpack -- FILE.tar[.gz|.zst] [STORE_DIR]`.
//!
//! Unpacks the file five times, each into a fresh store in a directory that should be a fresh filesystem, and prints
//! machine-readable lines: seconds, bytes, entries. Without a file it makes a tar of 5,000 small files.

use std::path::PathBuf;
use std::time::Instant;

use keelblock::limits::Limits;
use keelblock::store::{DiskStore, Privileges};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{BlobSpec, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::{Claim, Store};
use keelblock_actors::stop::Stop;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let blob = match arguments.next() {
        Some(path) => std::fs::read(path).expect("cannot read the layer"),
        None => sample(),
    };
    let home = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let digest = Digest::of(&blob);
    let spec = LayerSpec {
        key: LayerKey::Blob(digest.clone()),
        blob: BlobSpec {
            digest: Some(digest),
            size: Some(blob.len() as u64),
            compression: None,
            media_type: None,
        },
        source: LayerSource::File { path: "/bench".into() },
        aci: None,
        access: None,
    };
    // Warms the page cache of nothing, but the processor and the allocator.
    drop(DiffId(Digest::of(&blob)));
    let mut seconds = Vec::new();
    for round in 0..5 {
        let dir = home.join(format!("keelblock-bench-{}-{round}", std::process::id()));
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let privileges = Privileges::detect().expect("cannot read /proc");
        let store = DiskStore::open(&dir, Limits::default(), privileges, log).expect("cannot open the store");
        let Claim::Mine(staging) = store.claim(&spec.key).expect("cannot claim") else {
            panic!("a fresh store has the layer")
        };
        let began = Instant::now();
        let layer = staging.unpack(&spec, &mut &blob[..], &Stop::default()).expect("cannot unpack");
        let took = began.elapsed().as_secs_f64();
        let record = store.layer_record(&layer).expect("no record");
        println!(
            "unpack seconds={took:.3} blob_bytes={} bytes={} entries={}",
            blob.len(),
            record.bytes,
            record.entries
        );
        seconds.push(took);
        std::fs::remove_dir_all(&dir).expect("cannot clean up");
    }
    seconds.sort_by(f64::total_cmp);
    println!("unpack median_seconds={:.3} min={:.3} max={:.3}", seconds[2], seconds[0], seconds[4]);
}

fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for at in 0..5000u32 {
        let content: Vec<u8> = (0..4000u32).map(|byte| ((byte * at) >> 5) as u8).collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("dir{}/file{at}", at / 100), &content[..])
            .expect("a vector takes everything");
    }
    builder.into_inner().expect("a vector takes everything")
}

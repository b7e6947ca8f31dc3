//! What a root filesystem costs: mounting and unmounting layers that are images, and root filesystems of layers; copying
//! against `cp -aT` layer after layer; and what every command pays at its start (the choice of a backend, the list of
//! containers).
//!
//! `cargo bench --bench rootfs [-- FILES]`, as root. Prints the median, the spread and the 99th percentile of some runs;
//! files lie in `$TMPDIR`, and each copy is removed before the next.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend, choose};
use keelblock::limits::Limits;
use keelblock::records::DiskRecords;
use keelblock::store::{DiskStore, LayerForm, Privileges, StoreSettings};
use keelblock_actors::container::{ContainerRecord, PhaseName, RootfsId, RootfsRecord};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{BlobSpec, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::{Backend, Claim, LayerDir, Records, RootfsPlace, Store, StoredLayer};
use keelblock_actors::stop::Stop;

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounts need root");
        return;
    }
    let files = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(6000);
    let bed = tempfile::tempdir().unwrap();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!("{cores} cores, {} in {}", env!("CARGO_PKG_VERSION"), bed.path().display());
    images(bed.path(), files);
    mounts(bed.path());
    start(bed.path());
    copies(bed.path(), files);
}

fn report(what: &str, mut runs: Vec<Duration>) {
    runs.sort();
    let ms = |run: Duration| run.as_secs_f64() * 1000.0;
    let (median, low, high) = (runs[runs.len() / 2], runs[0], runs[runs.len() - 1]);
    let p99 = runs[(runs.len() * 99).div_ceil(100) - 1];
    println!(
        "{what:<44} {:>9.3} ms  ({:.3} to {:.3}, p99 {:.3}, {} runs)",
        ms(median),
        ms(low),
        ms(high),
        ms(p99),
        runs.len()
    );
}

fn time(mut act: impl FnMut()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

fn layer(bed: &Path, number: usize) -> LayerDir {
    let path = bed.join(format!("store/{number}"));
    std::fs::create_dir_all(&path).unwrap();
    LayerDir {
        diff_id: DiffId(Digest::of(&number.to_le_bytes())),
        path,
        user_xattrs: false,
        whiteouts: false,
        implied: Arc::default(),
        hold: Arc::new(()),
    }
}

fn place(bed: &Path) -> RootfsPlace {
    RootfsPlace {
        container: "bench".parse().unwrap(),
        id: RootfsId(0),
        rootfs: bed.join("rootfses/0"),
        scratch: bed.join("scratch/0"),
    }
}

/// A layer of this many files as an image: mounted by its first user, shared by a second, unmounted after the last.
fn images(bed: &Path, files: usize) {
    let home = bed.join("images");
    let (store, layer) = match image_layer(&home, files) {
        Ok(made) => made,
        Err(why) => return println!("skipped: layers as images: {why}"),
    };
    let [mut first, mut shared, mut left, mut unmounted] = [const { Vec::new() }; 4];
    for _ in 0..1000 {
        let mut held = Vec::new();
        first.push(time(|| held.push(store.show(&layer).unwrap())));
        shared.push(time(|| held.push(store.show(&layer).unwrap())));
        left.push(time(|| drop(held.pop())));
        unmounted.push(time(|| drop(held.pop())));
    }
    report(&format!("image of {files} files: first mount"), first);
    report("image: share the mount", shared);
    report("image: leave a mount that is shared", left);
    report("image: unmount after the last user", unmounted);
}

fn image_layer(home: &Path, files: usize) -> Result<(DiskStore, StoredLayer), String> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in 0..files {
        let content = vec![b'x'; file % 30_000];
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("usr/share/{}/{file}", file % 300), &content[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let digest = Digest::of(&tar);
    let size = Some(tar.len() as u64);
    let spec = LayerSpec {
        key: LayerKey::Diff(DiffId(digest.clone())),
        blob: BlobSpec { digest: Some(digest), size, compression: None, media_type: None },
        source: LayerSource::File { path: "/bench".into() },
        aci: None,
        access: None,
    };
    let settings = StoreSettings {
        form: LayerForm::Erofs,
        ..StoreSettings::new(Limits::default(), Privileges::detect().map_err(|error| error.to_string())?)
    };
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let store = DiskStore::open_with(home, settings, log).map_err(|error| chain(&error))?;
    let layer = match store.claim(&spec.key).map_err(|error| chain(&error))? {
        Claim::Mine(staging) => staging.unpack(&spec, &mut &tar[..], &Stop::default()),
        _ => return Err("a fresh store has the layer".to_owned()),
    };
    layer.map(|layer| (store, layer)).map_err(|error| chain(&error))
}

fn mounts(bed: &Path) {
    let backends: [(&str, Box<dyn Backend>, usize); 5] = [
        ("overlay, 1 layer", Box::new(OverlayBackend::default()), 1),
        ("overlay, 5 layers", Box::new(OverlayBackend::default()), 5),
        ("overlay, 100 layers", Box::new(OverlayBackend::default()), 100),
        ("bind, 1 layer", Box::new(BindBackend::default()), 1),
        ("bind, 5 layers", Box::new(BindBackend::default()), 5),
    ];
    for (name, backend, layers) in backends {
        let stack: Vec<_> = (0..layers).map(|number| layer(bed, number)).collect();
        let (mut made, mut unmade) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            made.push(time(|| drop(backend.mount(&stack, &place(bed), &Stop::default()).unwrap())));
            unmade.push(time(|| assert!(backend.unmount(&place(bed)).unwrap())));
        }
        report(&format!("{name}: mount"), made);
        report(&format!("{name}: unmount"), unmade);
    }
}

fn start(bed: &Path) {
    let work = bed.join("work");
    let choice = || drop(choose(None, &work, &bed.join("store"), false, true).unwrap());
    report("choose a backend, first time", vec![time(choice)]);
    report("choose a backend, from then on", (0..100).map(|_| time(choice)).collect());
    report("open records", (0..100).map(|_| time(|| drop(DiskRecords::open(&work).unwrap()))).collect());
    let records = DiskRecords::open(&work).unwrap();
    let take = |number: usize| {
        let id = format!("container-{number}").parse().unwrap();
        let guard = records.create(&id).unwrap();
        let record = ContainerRecord {
            id: id.clone(),
            phase: PhaseName::Running,
            created_ms: records.now_ms(),
            owner: Some(records.us()),
            image: None,
            rootfs: None,
            init: None,
            argv: Vec::new(),
            image_isolators: Vec::new(),
        };
        records.write_container(&record).unwrap();
        let layers = (0..5usize).map(|number| DiffId(Digest::of(&number.to_le_bytes()))).collect();
        records.write_rootfses(&id, &RootfsRecord { layers, ..RootfsRecord::default() }).unwrap();
        drop(guard);
        id
    };
    let mut ids = Vec::new();
    report(
        "create a container and write its records",
        (0..1000).map(|n| time(|| ids.push(take(n)))).collect(),
    );
    report(
        "list 1000 containers",
        (0..10).map(|_| time(|| assert_eq!(records.list().unwrap().len(), 1000))).collect(),
    );
    let remove = |id| {
        let guard = records.adopt(id).unwrap();
        records.remove(id).unwrap();
        drop(guard);
    };
    report("adopt and remove a container", ids.iter().map(|id| time(|| remove(id))).collect());
}

/// Three layers: a base of small files, one that replaces a tenth of them, one with a few large ones.
fn copies(bed: &Path, files: usize) {
    let stack: Vec<_> = (1000..1003).map(|number| layer(bed, number)).collect();
    let write = |layer: usize, file: usize, bytes: usize| {
        let path = stack[layer].path.join(format!("usr/share/{}/{file}", file % 300));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![b'x'; bytes]).unwrap();
    };
    for file in 0..files {
        write(0, file, 500 + file % 30_000);
        if file % 10 == 0 {
            write(1, file, 7000);
        }
    }
    for file in 0..5 {
        write(2, 1_000_000 + file, 20 << 20);
    }
    let (mut ours, mut removed, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let target = bed.join("cp");
    for _ in 0..5 {
        ours.push(time(|| {
            drop(CopyBackend::default().mount(&stack, &place(bed), &Stop::default()).unwrap())
        }));
        removed.push(time(|| assert!(CopyBackend::default().unmount(&place(bed)).unwrap())));
        theirs.push(time(|| {
            for layer in &stack {
                assert!(
                    Command::new("cp").arg("-aT").args([&layer.path, &target]).status().unwrap().success()
                );
            }
        }));
        std::fs::remove_dir_all(&target).unwrap();
    }
    report(&format!("copy {files} files, 3 layers"), ours);
    report("cp -aT of the same, layer after layer", theirs);
    report("remove the copy", removed);
}

//! Stacks that nobody thought of, unpacked by `umoci` and by us: the trees must be the same, entry by entry.
//!
//! umoci applies layers one after the other to one directory, so it knows nothing of overlay marks: two quite different
//! ways to one result.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::ports::{Backend, LayerDir, Store};
use keelblock_actors::stop::Stop;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::Filter;
use crate::ground::Ground;
use crate::run::{Outcome, Rights};
use crate::tarball::*;
use crate::tree::{self, Tree};

const GROUP: &str = "stacks";
const NAME: &str = "random-stacks-come-out-as-umoci-unpacks-them";
/// A number, to try the same stacks again.
const SEED: &str = "KEELBLOCK_CORPUS_SEED";
const STACKS: u32 = 24;

/// Few names, so that layers meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

pub(crate) fn names() -> Vec<(&'static str, &'static str)> {
    vec![(GROUP, NAME)]
}

pub(crate) fn run(filter: &Filter, root: bool, notes: &mut Vec<String>) -> Vec<Outcome> {
    if !filter.takes(GROUP, NAME) {
        return vec![];
    }
    let began = Instant::now();
    let skipped = |why: &str| vec![Outcome::of_one(GROUP, NAME, &format!("skipped ({why})"), vec![], began)];
    if !root {
        return skipped("it needs root");
    }
    if Command::new("umoci").arg("--version").output().is_err() {
        return skipped("there is no umoci");
    }
    let seed = std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config =
        Config { cases: STACKS, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let ground = Ground::new(&crate::bed(Rights::Root));
    let entries = std::cell::Cell::new(0);
    let result = runner.run(&stacks(), |stack| {
        let differ = compare(&ground, &stack, &entries);
        if differ.is_empty() { Ok(()) } else { Err(TestCaseError::fail(differ.join("\n  "))) }
    });
    let problems: Vec<String> = result.err().map(|error| error.to_string()).into_iter().collect();
    notes.push(format!(
        "{STACKS} random stacks with {} entries left against umoci, seed {seed} (again: {SEED}={seed})",
        entries.get()
    ));
    let verdict = if problems.is_empty() { "ok" } else { "FAILED" };
    let mut problems = problems;
    problems.extend(ground.touched());
    vec![Outcome::of_one(GROUP, NAME, verdict, problems, began)]
}

/// What a random layer does at a random place.
#[derive(Clone, Debug)]
enum Put {
    File { content: u8, mode: u32 },
    Directory { mode: u32, xattr: bool },
    Symlink(usize),
    HardLink(usize),
    Fifo,
    Device(u32),
    Whiteout,
    Opaque,
}

type RandomLayer = Vec<(Vec<usize>, Put, (u32, u32, i64))>;

fn stacks() -> impl Strategy<Value = Vec<(RandomLayer, bool)>> {
    let put = prop_oneof![
        5 => (any::<u8>(), 0..0o10000u32).prop_map(|(content, mode)| Put::File { content, mode }),
        6 => (0..0o10000u32, any::<bool>()).prop_map(|(mode, xattr)| Put::Directory { mode, xattr }),
        1 => any::<usize>().prop_map(Put::Symlink),
        2 => any::<usize>().prop_map(Put::HardLink),
        1 => Just(Put::Fifo),
        1 => (1..200u32).prop_map(Put::Device),
        4 => Just(Put::Whiteout),
        2 => Just(Put::Opaque),
    ];
    let place = prop::collection::vec(0..NAMES.len(), 1..5);
    let about = (0..70_000u32, 0..70_000u32, -1_000_000i64..2_000_000_000);
    // The flag says whether directories come before what is in them or last.
    let layer = (prop::collection::vec((place, put, about), 0..25), any::<bool>());
    prop::collection::vec(layer, 2..=4)
}

/// The entries of a layer: a tree, as every builder makes it, but with parents left out or late.
///
/// Nothing is put into what a layer below has as a file or link: umoci follows that link, or cannot.
fn entries(layer: &RandomLayer, late: bool, below: &mut BTreeSet<String>) -> Vec<Entry> {
    let mut kinds: std::collections::BTreeMap<String, bool> = std::collections::BTreeMap::new();
    let (mut found, mut directories, mut links, mut files) = (vec![], vec![], vec![], vec![]);
    let mut explicit = BTreeSet::new();
    for (place, put, (uid, gid, mtime)) in layer {
        let path = place.iter().map(|name| NAMES[*name]).collect::<Vec<_>>().join("/");
        let parents: Vec<String> = path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect();
        if parents.iter().any(|parent| kinds.get(parent) == Some(&false) || below.contains(parent)) {
            continue;
        }
        let (parent, name) = path.rsplit_once('/').map_or(("", &path[..]), |(parent, name)| (parent, name));
        let beside =
            |name: &str| if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        let common = |entry: Entry| {
            entry.owner((*uid).into(), (*gid).into()).pax("mtime", format!("{mtime}.000000123"))
        };
        let is_directory = matches!(put, Put::Directory { .. } | Put::Opaque);
        match put {
            // umoci makes no directory for a mark in it, where nothing else is in it: nothing says who is right.
            Put::Whiteout if !parent.is_empty() && !kinds.contains_key(parent) => continue,
            Put::Opaque if !kinds.contains_key(&path) => continue,
            // They go with whatever is of that name in this layer, and hide what is below.
            Put::Whiteout => {
                found.push(file(beside(&format!(".wh.{name}")), ""));
                for parent in parents {
                    kinds.insert(parent, true);
                }
                continue;
            }
            _ if kinds.get(&path).is_some_and(|directory| !directory || !is_directory) => continue,
            // umoci takes from a directory that comes again what it had before.
            Put::Directory { .. } if !explicit.insert(path.clone()) => continue,
            Put::File { content, mode } => {
                files.push(path.clone());
                found.push(common(file(&path, vec![*content; usize::from(*content)]).mode(*mode)));
            }
            // umoci lets directories that nobody tells of inherit the group.
            Put::Directory { mode, xattr } => {
                let entry = common(dir(format!("{path}/")).mode(*mode & !0o2000));
                directories.push(if *xattr { entry.xattr("user.random", path.as_bytes()) } else { entry });
            }
            Put::Symlink(target) => {
                found.push(common(symlink(&path, ["a", "../b", "/c", "nowhere"][target % 4])));
            }
            Put::HardLink(target) => {
                let Some(target) = files.get(target % files.len().max(1)) else { continue };
                links.push(hard_link(&path, target));
            }
            Put::Fifo => found.push(common(entry(b'6', &path))),
            Put::Device(minor) => found.push(common(entry(b'3', &path).device(5, *minor))),
            Put::Opaque => found.push(file(format!("{path}/.wh..wh..opq"), "")),
        }
        for parent in parents {
            kinds.insert(parent, true);
        }
        kinds.insert(path, is_directory);
    }
    // Whether a directory that is only implied is that of the layer below depends, with umoci, on whether a mark above it
    // comes before or after: with marks all directories are told of.
    if found.iter().any(|entry| entry.name.windows(4).any(|part| part == b".wh.")) {
        for (path, _) in kinds.iter().filter(|(path, directory)| **directory && !explicit.contains(*path)) {
            directories.push(dir(format!("{path}/")));
        }
    }
    below.extend(kinds.into_iter().filter(|(_, directory)| !directory).map(|(path, _)| path));
    if late { [found, links, directories].concat() } else { [directories, found, links].concat() }
}

fn compare(ground: &Ground, stack: &[(RandomLayer, bool)], counted: &std::cell::Cell<usize>) -> Vec<String> {
    let mut below = BTreeSet::new();
    let tars: Vec<Vec<u8>> =
        stack.iter().map(|(layer, late)| Tarball::of(entries(layer, *late, &mut below)).end()).collect();
    let home = tempfile::tempdir_in(crate::bed(Rights::Root)).unwrap();
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let theirs = match by_umoci(home.path(), &tars) {
        Ok(tree) => tree,
        Err(text) => return vec![format!("umoci: {text}")],
    };
    counted.set(counted.get() + theirs.len());
    let store = store(&ground.store());
    let mut layers: Vec<LayerDir> = vec![];
    for tar in &tars {
        match put_tar(&store, tar) {
            Ok(layer) => layers.push(store.show(&layer).unwrap()),
            Err(error) => return vec![chain(&error)],
        }
    }
    let mut differ = vec![];
    let backends: [&dyn Backend; 3] =
        [&OverlayBackend::default(), &CopyBackend::default(), &BindBackend::default()];
    for (id, backend) in (1..).zip(backends) {
        let place = ground.place(id);
        let rootfs = backend.mount(&layers, &place, &Stop::default()).unwrap();
        let ours = tree::without_marks(tree::read(&rootfs.path));
        let lines = tree::differences(&tree::with_times_of_none(&theirs, &ours, began), &ours);
        differ.extend(lines.into_iter().map(|line| format!("umoci against {}: {line}", backend.name())));
        backend.unmount(&place).unwrap();
    }
    drop(layers);
    keelblock::sys::remove::remove_tree(&ground.store()).unwrap();
    for part in ["rootfses", "scratch"] {
        keelblock::sys::remove::remove_tree(&ground.work().join(part)).unwrap();
    }
    differ
}

/// What umoci makes of an image of these layers.
fn by_umoci(home: &Path, tars: &[Vec<u8>]) -> Result<Tree, String> {
    let layout = home.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest, "size": bytes.len() })
    };
    let layers: Vec<_> = tars.iter().map(|tar| put("layer.v1.tar", tar)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": tars.iter().map(|tar| Digest::of(tar)).collect::<Vec<_>>() },
    });
    let config = put("config.v1+json", config.to_string().as_bytes());
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = put("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "t" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:t", layout.display()))
        .arg(home.join("bundle"))
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(tree::read(&home.join("bundle/rootfs")))
}

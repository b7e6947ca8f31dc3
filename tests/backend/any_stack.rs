//! Stacks that nobody thought of: whatever the layers hold, overlayfs, with and without an upper directory, and the copy agree.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::*;

const PATHS: [&str; 10] = ["a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b", "a/b/a", "b/a/a"];

#[derive(Clone, Copy, Debug)]
enum Put {
    Directory,
    Opaque,
    File,
    Link,
    HardLink,
    Whiteout,
}

/// Puts an entry into a layer, unless something of it is in the way there: a layer is a tree, too.
fn put(layer: &Layer, path: &str, what: Put, number: usize) {
    let at = layer.path.join(path);
    let blocked = |at: &Path| at.symlink_metadata().is_ok_and(|found| !found.is_dir());
    if Path::new(path).ancestors().skip(1).any(|parent| blocked(&layer.path.join(parent))) || blocked(&at) {
        return;
    }
    match what {
        Put::Directory => drop(layer.directory(path, 0o700 + number as u32 % 64)),
        Put::Opaque => drop(layer.opaque(path)),
        _ if at.is_dir() => {}
        Put::File => drop(layer.file(path, format!("{path} {number}"))),
        Put::Link => drop(layer.link(path, "a")),
        Put::Whiteout => drop(layer.whiteout(path)),
        Put::HardLink => {
            let is_file =
                |path: &&&str| layer.path.join(path).symlink_metadata().is_ok_and(|found| found.is_file());
            if let Some(first) = PATHS.iter().find(is_file) {
                layer.hard_link(path, first);
            }
        }
    }
}

#[test]
fn all_backends_agree_on_any_stack() {
    if !privileged() {
        return;
    }
    let what = prop_oneof![
        3 => Just(Put::Directory),
        2 => Just(Put::Opaque),
        4 => Just(Put::File),
        2 => Just(Put::Link),
        2 => Just(Put::HardLink),
        3 => Just(Put::Whiteout),
    ];
    let layer = prop::collection::vec((prop::sample::select(&PATHS[..]), what), 0..12);
    let stacks = prop::collection::vec(layer, 1..5);
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let result = runner.run(&stacks, |stack| {
        let bed = Bed::in_memory();
        let layers: Vec<_> = (0..stack.len()).map(|number| bed.layer(&format!("layer-{number}"))).collect();
        for (layer, puts) in layers.iter().zip(&stack) {
            for (number, (path, what)) in puts.iter().enumerate() {
                put(layer, path, *what, number);
            }
        }
        bed.agreed_tree(&layers.iter().collect::<Vec<_>>());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

//! What the fuzzer kept is run again, without the fuzzer: every input of `fixtures/fuzz/` through the body of its target.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use keelblock::fuzzing::TARGETS;

/// The inputs of a target by name. They are packed, since most are no text and some hundred bytes long.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/fuzz/{target}.tar.zst"));
    let packed = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut archive = tar::Archive::new(zstd::Decoder::new(packed).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    entries.collect()
}

#[test]
fn everything_that_the_fuzzer_kept_holds() {
    let mut failed = Vec::new();
    for (target, body) in TARGETS {
        let corpus = corpus(target);
        assert!(corpus.len() >= 5, "{target} has only {} inputs", corpus.len());
        for (name, bytes) in &corpus {
            if catch_unwind(AssertUnwindSafe(|| body(bytes))).is_err() {
                failed.push(format!("{target}/{name}"));
            }
        }
        println!("{target}: {} inputs", corpus.len());
    }
    keelblock::fuzzing::leave();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn every_target_has_a_file_a_corpus_and_a_line_in_the_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_to_string(root.join("docs/fuzzing.md")).unwrap();
    let list = |dir: &str, end: &str| {
        let names = std::fs::read_dir(root.join(dir)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> =
            names.filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect();
        names.sort();
        names
    };
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(list("fuzz/fuzz_targets", ".rs"), names);
    assert_eq!(list("fixtures/fuzz", ".tar.zst"), names);
    for name in names {
        assert!(docs.contains(&format!("`{name}`")), "docs/fuzzing.md says nothing of {name}");
    }
}

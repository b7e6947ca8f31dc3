//! Layers that never end, or nearly: each must stop at the limit it passes, at bounded memory, with nothing left.
//!
//! They are made while they are read, since no machine could hold them. Each is unpacked by a process of its own, whose
//! peak of memory is the kernel's word (`VmHWM`).

use std::io::{Cursor, Read, Write};
use std::process::{Command, Stdio};

use keelblock::limits::Limits;
use keelblock_actors::error::chain;
use keelblock_actors::image::appc::AciView;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{BlobSpec, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::{Claim, Store};
use keelblock_actors::stop::Stop;

use crate::ground::Ground;
use crate::run::{Outcome, Rights};
use crate::tarball::*;
use crate::{Filter, STAGE};

const GROUP: &str = "bombs";

/// Bytes of memory that unpacking may take: buffers between its threads, what zstd needs for the windows used here,
/// and one entry's headers.
const MEMORY_BYTES_MAX: u64 = 48 << 20;

struct Bomb {
    name: &'static str,
    /// More than the limit lets through.
    stream: fn() -> Box<dyn Read>,
    limits: fn(&mut Limits),
    words: &'static [&'static str],
}

const BYTES: &[&str] = &["268435456 bytes", "--layer_bytes_max"];

fn few_bytes(limits: &mut Limits) {
    limits.layer_bytes_max = 256 << 20;
}

fn few_entries(limits: &mut Limits) {
    limits.layer_entries_max = 100_000;
}

const BOMBS: [Bomb; 12] = [
    Bomb {
        name: "ten-gigabytes-of-zeros",
        stream: || Box::new(Cursor::new(head(file("f", "").size(10 << 30))).chain(zeros(10 << 30))),
        limits: few_bytes,
        words: BYTES,
    },
    Bomb {
        name: "ten-gigabytes-of-zeros-by-gzip",
        stream: || Box::new(one_member(&head(file("f", "").size(10 << 30)), 10 << 30)),
        limits: few_bytes,
        words: BYTES,
    },
    Bomb {
        name: "ten-gigabytes-of-zeros-by-gzip-members",
        stream: || {
            let head = gzip(&head(file("f", "").size(10 << 30)));
            Box::new(Cursor::new(head).chain(again(gzip(&[0; 8 << 20]), 1280)))
        },
        limits: few_bytes,
        words: BYTES,
    },
    Bomb {
        name: "ten-gigabytes-of-zeros-by-zstd",
        stream: || {
            let head = zstd(&head(file("f", "").size(10 << 30)));
            Box::new(Cursor::new(head).chain(again(zstd(&[0; 8 << 20]), 1280)))
        },
        limits: few_bytes,
        words: BYTES,
    },
    Bomb {
        name: "ten-gigabytes-after-the-end-of-the-tar",
        stream: || Box::new(Cursor::new(gzip(&[0; 1024])).chain(again(gzip(&[0; 8 << 20]), 1280))),
        limits: few_bytes,
        words: BYTES,
    },
    Bomb {
        name: "a-hundred-million-entries",
        stream: || Box::new(again(Tarball::of([file("f", "")]).0, 100_000_000)),
        limits: few_entries,
        words: &["100000 entries", "--layer_entries_max"],
    },
    Bomb {
        name: "a-hundred-million-directories-by-gzip",
        stream: || {
            // Each of them one level below another: what is noted of directories must not be held in memory.
            let members = (0..u64::MAX).map(|number| gzip(&directories(number)));
            Box::new(Parts { parts: members, part: Cursor::new(vec![]) })
        },
        limits: few_entries,
        words: &["100000 entries", "--layer_entries_max"],
    },
    Bomb {
        name: "a-hundred-million-whiteouts",
        stream: || {
            Box::new(again(Tarball::of([file("d/.wh.f", ""), file("d/.wh..wh..opq", "")]).0, 50_000_000))
        },
        limits: |limits| limits.layer_entries_max = 20_000,
        words: &["20000 entries", "--layer_entries_max"],
    },
    Bomb {
        name: "two-thousand-directories-in-each-name",
        stream: || {
            let entries = (0..u64::MAX).map(|number| {
                let path = format!("{number}/{}f", "d/".repeat(2000));
                Tarball::of([file("f", "").pax("path", path)]).0
            });
            Box::new(Parts { parts: entries, part: Cursor::new(vec![]) })
        },
        limits: |limits| limits.layer_entries_max = 20_000,
        words: &["20000 entries, with the directories that they only imply", "--layer_entries_max"],
    },
    Bomb {
        name: "an-extended-header-of-a-gigabyte",
        stream: || {
            let header = head(file("pax", "").size(1 << 30).kind(b'x'));
            Box::new(
                Cursor::new(header).chain(Cursor::new(b"1073741824 comment=".to_vec())).chain(zeros(1 << 30)),
            )
        },
        limits: |_| {},
        words: &["1048576 bytes of extended headers", "--pax_bytes_max"],
    },
    Bomb {
        name: "extended-headers-without-end",
        stream: || {
            let header = file("pax", pax_records(&[(b"comment".to_vec(), vec![b'c'; 2000])])).kind(b'x');
            Box::new(again(Tarball::of([header]).0, u64::MAX))
        },
        limits: |_| {},
        words: &["1048576 bytes of extended headers", "--pax_bytes_max"],
    },
    Bomb {
        name: "global-headers-without-end",
        stream: || Box::new(again(Tarball::of([global("comment", vec![b'c'; 100_000])]).0, u64::MAX)),
        limits: few_bytes,
        words: BYTES,
    },
];

/// The same of ACIs, whose compressions are more, and whose paths are remembered.
const ACIS: [Bomb; 4] = [
    Bomb {
        name: "ten-gigabytes-of-zeros-by-bzip2",
        stream: || {
            let start = bzip2(&of_aci(file("rootfs/f", "").size(10 << 30)));
            Box::new(Cursor::new(start).chain(again(bzip2(&[0; 8 << 20]), 1280)))
        },
        limits: |limits| limits.layer_bytes_max = 64 << 20,
        words: &["67108864 bytes", "--layer_bytes_max"],
    },
    Bomb {
        name: "ten-gigabytes-of-zeros-by-xz",
        stream: || {
            let start = xz(&of_aci(file("rootfs/f", "").size(10 << 30)));
            Box::new(Cursor::new(start).chain(again(xz(&[0; 8 << 20]), 1280)))
        },
        limits: |limits| limits.layer_bytes_max = 64 << 20,
        words: &["67108864 bytes", "--layer_bytes_max"],
    },
    Bomb {
        name: "ten-gigabytes-in-a-manifest",
        stream: || {
            let start = gzip(&head(file("manifest", "").size(10 << 30)));
            Box::new(Cursor::new(start).chain(again(gzip(&[0; 8 << 20]), 1280)))
        },
        limits: |limits| limits.layer_bytes_max = 64 << 20,
        words: &["67108864 bytes", "--layer_bytes_max"],
    },
    Bomb {
        name: "paths-without-end-in-an-aci",
        stream: || {
            let files = (0..u64::MAX).map(|number| Tarball::of([dir(format!("rootfs/{number}/"))]).0);
            Box::new(Parts { parts: files, part: Cursor::new(vec![]) })
        },
        limits: |limits| limits.layer_names_bytes_max = 256 << 10,
        words: &["262144 bytes", "--layer_names_bytes_max"],
    },
];

/// All of them, and whether it is an ACI.
fn all() -> impl Iterator<Item = (&'static Bomb, bool)> {
    BOMBS.iter().map(|bomb| (bomb, false)).chain(ACIS.iter().map(|bomb| (bomb, true)))
}

fn of_aci(entry: Entry) -> Vec<u8> {
    [head(file("manifest", "{}")), head(entry)].concat()
}

fn head(entry: Entry) -> Vec<u8> {
    Tarball::of([entry]).0
}

fn zeros(bytes: u64) -> impl Read {
    std::io::repeat(0).take(bytes)
}

/// A thousand directories that no other part has.
fn directories(part: u64) -> Vec<u8> {
    Tarball::of((0..1000).map(|number| dir(format!("{part}/{number}/")))).0
}

/// The same bytes so many times.
fn again(bytes: Vec<u8>, times: u64) -> impl Read {
    Parts { parts: (0..times).map(move |_| bytes.clone()), part: Cursor::new(vec![]) }
}

struct Parts<I> {
    parts: I,
    part: Cursor<Vec<u8>>,
}

impl<I: Iterator<Item = Vec<u8>>> Read for Parts<I> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let bytes = self.part.read(buffer)?;
            if bytes > 0 {
                return Ok(bytes);
            }
            match self.parts.next() {
                Some(part) => self.part = Cursor::new(part),
                None => return Ok(0),
            }
        }
    }
}

/// One gzip member of these bytes and then zeros: a part of it that ends at a byte and looks at nothing before it is
/// made once and sent as often as needed.
fn one_member(head: &[u8], zeros: u64) -> impl Read + use<> {
    const PART: usize = 8 << 20;
    let mut compress = flate2::Compress::new(flate2::Compression::fast(), false);
    let mut deflate = |bytes: &[u8]| {
        let mut out = Vec::with_capacity(bytes.len() + 4096);
        let (before, flush) = (compress.total_in(), flate2::FlushCompress::Full);
        compress.compress_vec(bytes, &mut out, flush).unwrap();
        assert_eq!(compress.total_in() - before, bytes.len() as u64);
        out
    };
    let start = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &deflate(head)].concat();
    Cursor::new(start).chain(again(deflate(&[0; PART]), zeros / PART as u64))
}

pub(crate) fn names() -> Vec<(&'static str, &'static str)> {
    all().map(|(bomb, _)| (GROUP, bomb.name)).collect()
}

/// Runs them, one after the other: as trees, and where they can be kept so as images.
pub(crate) fn run(filter: &Filter, images: bool, notes: &mut Vec<String>) -> Vec<Outcome> {
    let mut found: Vec<Outcome> = vec![];
    let mut largest = (0, "");
    let wanted = all().map(|(bomb, _)| bomb).filter(|bomb| filter.takes(GROUP, bomb.name));
    let forms: &[_] = if images { &[Rights::Root, Rights::Images] } else { &[Rights::Root] };
    for (bomb, rights) in wanted.flat_map(|bomb| forms.iter().map(move |rights| (bomb, *rights))) {
        let began = std::time::Instant::now();
        let output = Command::new("/proc/self/exe")
            .env(STAGE, format!("bomb {} {}", rights as usize, bomb.name))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut problems: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("problem ").map(str::to_owned)).collect();
        let memory = text.lines().find_map(|line| line.strip_prefix("memory ")?.parse::<u64>().ok());
        match memory {
            Some(memory) if output.status.success() => {
                largest = largest.max((memory, bomb.name));
                if memory > MEMORY_BYTES_MAX {
                    problems
                        .push(format!("it took {memory} bytes of memory; {MEMORY_BYTES_MAX} are allowed"));
                }
            }
            _ => problems.push(format!(
                "its process ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
        let verdict = if problems.is_empty() { "refused" } else { "FAILED" };
        found.push(Outcome { rights, ..Outcome::of_one(GROUP, bomb.name, verdict, problems, began) });
    }
    if !found.is_empty() {
        notes.push(format!("bombs took at most {} KiB of memory ({})", largest.0 >> 10, largest.1));
    }
    found
}

/// Unpacks one of them: memory in bytes, and what went wrong, on standard output.
pub(crate) fn child(what: &str) {
    let (rights, name) = what.split_once(' ').unwrap();
    let rights = Rights::ALL.into_iter().find(|one| (*one as usize).to_string() == rights).unwrap();
    let (bomb, is_aci) = all().find(|(bomb, _)| bomb.name == name).unwrap();
    let ground = Ground::new(&crate::bed(rights));
    let mut limits = Limits::default();
    (bomb.limits)(&mut limits);
    let store = match rights {
        Rights::Images => image_store(&ground.store(), limits),
        _ => store_with(&ground.store(), limits),
    };
    let view = AciView::whole(crate::aci::image_id(b"never reached"));
    let spec = LayerSpec {
        key: match is_aci {
            true => LayerKey::Aci(view.diff_id()),
            false => LayerKey::Diff(DiffId(Digest::of(b"never reached"))),
        },
        blob: BlobSpec {
            digest: Some(Digest::of(b"nor this")),
            size: None,
            compression: None,
            media_type: None,
        },
        source: LayerSource::File { path: "/bomb".into() },
        aci: is_aci.then_some(view),
        access: None,
    };
    let mut stream = (bomb.stream)();
    let Ok(Claim::Mine(staging)) = store.claim(&spec.key) else { panic!("nobody else is here") };
    let mut problems = vec![];
    let before = peak();
    match staging.unpack(&spec, &mut stream, &Stop::default()) {
        Ok(_) => problems.push("it was not refused".to_owned()),
        Err(error) => {
            let text = chain(&error);
            problems.extend(
                bomb.words
                    .iter()
                    .filter(|word| !text.contains(**word))
                    .map(|word| format!("refused, but not in the word {word:?}: {text}")),
            );
        }
    }
    let memory = peak() - before;
    for part in ["layers/sha256", "layers/sha512", "staging", "gc", "locks"] {
        let left = std::fs::read_dir(ground.store().join(part)).unwrap().count();
        if left > 0 {
            problems.push(format!("{left} things are left in {part}/"));
        }
    }
    problems.extend(ground.touched());
    keelblock::sys::remove::remove_tree(&ground.store()).unwrap();
    let mut out = std::io::stdout().lock();
    for problem in problems {
        writeln!(out, "problem {problem}").unwrap();
    }
    writeln!(out, "memory {memory}").unwrap();
}

/// The most memory this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

impl Outcome {
    /// Of what is tried once, whatever the rights and backends.
    pub(crate) fn of_one(
        group: &str,
        case: &str,
        verdict: &str,
        problems: Vec<String>,
        began: std::time::Instant,
    ) -> Self {
        Self {
            group: group.to_owned(),
            case: case.to_owned(),
            rights: Rights::Root,
            cells: [verdict.to_owned(), ".".to_owned(), ".".to_owned()],
            problems,
            millis: began.elapsed().as_millis() as u64,
        }
    }
}

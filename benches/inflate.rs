//! How fast gzip is decompressed: `cargo bench --bench inflate -- [FILE.gz ...]`.
//!
//! Each file (or, without any, some of this machine's programs and of its text files, compressed here by level 6) is
//! decompressed by `keelblock::inflate`, by flate2 on zlib-rs as a stream, and by libdeflate in one piece into memory
//! that was touched before: the limit, since it never has to stop. Five rounds, the three one after the other; the
//! medians, in MB of output a second, and their ratios.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use keelblock::inflate::{Chunk, GzipDecoder};

const ROUNDS: usize = 5;
/// Bytes of each sample.
const SAMPLE_BYTES: usize = 64 << 20;

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut streams: Vec<(String, Vec<u8>)> = Vec::new();
    for path in &paths {
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        streams.push((name, std::fs::read(path).expect("cannot read the stream")));
    }
    if paths.is_empty() {
        for (name, from) in [("programs", ["/usr/lib", "/usr/bin"]), ("text", ["/usr/share", "/usr/include"])]
        {
            let mut sample = Vec::new();
            from.iter().for_each(|dir| collect(Path::new(dir), name == "text", &mut sample));
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(&sample).expect("a vector takes everything");
            streams.push((name.to_owned(), encoder.finish().expect("a vector takes everything")));
        }
    }
    println!(
        "{:<16} {:>9} {:>9} {:>11} {:>9} {:>11} {:>10} {:>14}",
        "stream", "MB in", "MB out", "ours MB/s", "zlib-rs", "libdeflate", "/ zlib-rs", "/ libdeflate"
    );
    for (name, stream) in &streams {
        let mut seconds = [const { Vec::new() }; 3];
        let content = streamed(stream);
        let mut whole = content.clone();
        for _ in 0..ROUNDS {
            seconds[0].push(timed(|| ours(stream, content.len())));
            seconds[1].push(timed(|| theirs(stream, content.len())));
            // It takes one member only.
            seconds[2].push(timed(|| {
                let mut decompressor = libdeflater::Decompressor::new();
                decompressor.gzip_decompress(stream, &mut whole).is_ok_and(|bytes| bytes == content.len())
            }));
        }
        let [ours, theirs, whole] = seconds.map(|mut seconds: Vec<Option<f64>>| {
            seconds.sort_by(|one, other| one.partial_cmp(other).expect("no time is NaN"));
            seconds[ROUNDS / 2].map(|seconds| content.len() as f64 / 1e6 / seconds)
        });
        let number = |number: Option<f64>, digits: usize| {
            number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        let ratio = |to: Option<f64>| ours.zip(to).map(|(ours, to)| ours / to);
        println!(
            "{:<16} {:>9.1} {:>9.1} {:>11} {:>9} {:>11} {:>10} {:>14}",
            name,
            stream.len() as f64 / 1e6,
            content.len() as f64 / 1e6,
            number(ours, 0),
            number(theirs, 0),
            number(whole, 0),
            number(ratio(theirs), 2),
            number(ratio(whole), 2),
        );
    }
}

/// Seconds; `None` if it failed.
fn timed(run: impl FnOnce() -> bool) -> Option<f64> {
    let began = Instant::now();
    run().then(|| began.elapsed().as_secs_f64())
}

fn ours(stream: &[u8], expected: usize) -> bool {
    let (mut decoder, mut chunk, mut bytes) = (GzipDecoder::new(stream), Chunk::new(), 0);
    loop {
        match decoder.next_chunk(&mut chunk).expect("it was read before") {
            0 => return bytes == expected,
            more => bytes += more,
        }
    }
}

fn theirs(stream: &[u8], expected: usize) -> bool {
    let mut decoder = flate2::bufread::MultiGzDecoder::new(stream);
    let (mut buffer, mut bytes) = (vec![0; keelblock::inflate::CHUNK_BYTES], 0);
    loop {
        match decoder.read(&mut buffer).expect("it was read before") {
            0 => return bytes == expected,
            more => bytes += more,
        }
    }
}

fn streamed(stream: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    flate2::bufread::MultiGzDecoder::new(stream).read_to_end(&mut content).expect("this is no gzip stream");
    content
}

/// Adds files below a directory that are text, or are not, in the order of their names, until it is enough.
fn collect(dir: &Path, text: bool, sample: &mut Vec<u8>) {
    let mut entries: Vec<_> = dir.read_dir().into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if sample.len() >= SAMPLE_BYTES {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&entry.path(), text, sample);
        } else if kind.is_file()
            && let Ok(content) = std::fs::read(entry.path())
            && content.iter().take(1024).all(|byte| *byte != 0) == text
        {
            let room = SAMPLE_BYTES - sample.len();
            sample.extend_from_slice(&content[..content.len().min(room)]);
        }
    }
}

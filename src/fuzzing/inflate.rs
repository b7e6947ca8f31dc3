//! The fuzz target `inflate`: the gzip decoder against flate2's.
//!
//! Blind changes to a compressed stream end at its first Huffman code, and those that do not at its checksum. So an input
//! is read in one of three ways, by its first byte: as a stream, as it is; as what deflate says in a member, whose head
//! and right trailer are put around it; or as a script of blocks, whose codes, symbols and extra bits are written by an
//! encoder that can also say what no encoder would.

use std::io::{self, Read};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::{Dribble, Lengths};
use crate::inflate::{CHUNK_BYTES, Chunk, GzipDecoder, GzipError};

/// Most content of a stream that is looked at.
const CONTENT_BYTES_MAX: usize = 1 << 20;
/// The most that a chunk has more than it was asked to have.
const OVERSHOOT_MAX: usize = 260;
const STREAM: u8 = 0;
const MEMBER: u8 = 1;
const WAYS: u8 = 3;

/// gzip: whatever comes, however it comes and into chunks of whatever length, the decoder takes what flate2 takes, makes
/// the same bytes of it, and refuses what flate2 refuses after bytes that flate2 would have given, too.
pub fn inflate(bytes: &[u8]) {
    let Some((way, rest)) = bytes.split_first() else { return };
    let stream = match way % WAYS {
        STREAM => rest.to_vec(),
        MEMBER => member(rest, 0),
        _ => script(rest),
    };
    let theirs = theirs(&stream);
    let whole = ours(&stream[..], CHUNK_BYTES);
    let pieces = Dribble { bytes: &stream, lengths: Lengths::of(bytes) };
    let chunk_bytes = 1 + bytes.iter().fold(way % 7, |sum, byte| sum.wrapping_add(*byte)) as usize * 9;
    let pieces = ours(pieces, chunk_bytes);
    assert_eq!(whole.end, pieces.end, "the end depends on how the bytes come and go");
    assert_eq!(whole.content, pieces.content, "the content depends on how the bytes come and go");
    let both = whole.content.len().min(theirs.content.len());
    assert!(whole.content[..both] == theirs.content[..both], "flate2 reads other bytes");
    if whole.content.len() < CONTENT_BYTES_MAX && theirs.content.len() < CONTENT_BYTES_MAX {
        assert_eq!(whole.end.is_ok(), theirs.end.is_ok(), "{:?}, and flate2: {:?}", whole.end, theirs.end);
        assert!(whole.end.is_err() || whole.content.len() == theirs.content.len());
        // Wrong blocks that were taken would have a wrong checksum, too.
        let late = |end: &Result<(), String>, words: &[&str]| {
            end.as_ref().is_err_and(|end| words.iter().any(|word| end.contains(word)))
        };
        let (mine, others) =
            (late(&whole.end, &[" Checksum", " Size", " HeaderChecksum"]), late(&theirs.end, &["checksum"]));
        assert_eq!(mine, others, "{:?}, and flate2: {:?}", whole.end, theirs.end);
        // flate2 may lose what it has when it fails. We do not, but for symbols so near to where a stream is cut that
        // they cannot be the last.
        let cut = whole.end.as_ref().is_err_and(|end| end.starts_with("Truncated"));
        assert!(
            cut || whole.content.len() >= theirs.content.len(),
            "bytes before {:?} are missing",
            whole.end
        );
    }
    source_fails(&stream, &whole.content);
}

struct Told {
    content: Vec<u8>,
    /// Of the stream, or of what is looked at.
    end: Result<(), String>,
}

fn theirs(stream: &[u8]) -> Told {
    let mut content = Vec::new();
    let decoder = flate2::bufread::MultiGzDecoder::new(stream);
    let end = decoder.take(CONTENT_BYTES_MAX as u64).read_to_end(&mut content);
    Told { content, end: end.map(drop).map_err(|error| error.to_string()) }
}

fn ours(source: impl Read, chunk_bytes: usize) -> Told {
    // Always the same, and in turn: what a chunk holds from before must not matter.
    static CHUNKS: LazyLock<Mutex<[Chunk; 2]>> = LazyLock::new(Mutex::default);
    let mut chunks = CHUNKS.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut content, mut end) = (Vec::new(), Ok(()));
    let mut decoder = GzipDecoder::with_chunk_bytes(source, chunk_bytes);
    while content.len() < CONTENT_BYTES_MAX {
        chunks.swap(0, 1);
        match decoder.next_chunk(&mut chunks[0]) {
            Ok(0) => {
                assert!(matches!(decoder.next_chunk(&mut chunks[1]), Ok(0)), "there is more after the end");
                assert!(
                    chunks.iter().all(|chunk| chunk.is_empty() || chunk.len() <= chunk_bytes + OVERSHOOT_MAX)
                );
                break;
            }
            Ok(bytes) => {
                assert!(bytes == chunks[0].len() && bytes <= chunk_bytes + OVERSHOOT_MAX);
                content.extend_from_slice(&chunks[0]);
            }
            Err(error) => {
                let again = decoder.next_chunk(&mut chunks[1]);
                assert!(
                    matches!(again, Err(GzipError::Failed)) && chunks[1].is_empty(),
                    "{again:?} after {error}"
                );
                end = Err(format!("{error:?}"));
                break;
            }
        }
    }
    // Where it stops within what is looked at depends on the length of chunks.
    if content.len() >= CONTENT_BYTES_MAX {
        end = Ok(());
    }
    content.truncate(CONTENT_BYTES_MAX);
    Told { content, end }
}

/// A source that fails in the middle: its own error comes out, after some of the right bytes.
fn source_fails(stream: &[u8], content: &[u8]) {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 if !buffer.is_empty() => Err(io::Error::other("the line is dead")),
                bytes => Ok(bytes),
            }
        }
    }
    let told = ours(Failing(&stream[..stream.len() / 2]), CHUNK_BYTES);
    let both = told.content.len().min(content.len());
    assert!(told.content[..both] == content[..both], "a source that fails changes what came before");
    if told.content.len() < CONTENT_BYTES_MAX {
        assert!(told.end.is_err(), "half a stream is taken for all of it");
    }
}

/// A member around what deflate says, its trailer right if it is anything; what follows its last block follows the member.
/// Bits of `wrong` make the header or the trailer otherwise.
fn member(deflated: &[u8], wrong: usize) -> Vec<u8> {
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    match wrong & 7 {
        1 => {
            // All that a header may have, and its checksum.
            stream[3] = 0x1e;
            stream.extend_from_slice(b"\x03\0abcname\0comment\0");
            let mut sum = flate2::Crc::new();
            sum.update(&stream);
            stream.extend_from_slice(&(sum.sum() as u16).to_le_bytes());
        }
        2 => stream[3] = (wrong >> 3) as u8,
        _ => {}
    }
    let mut decoder = flate2::bufread::DeflateDecoder::new(deflated);
    let mut content = Vec::new();
    let ended = decoder.by_ref().take(CONTENT_BYTES_MAX as u64).read_to_end(&mut content).is_ok();
    let used = usize::try_from(decoder.total_in()).unwrap_or(usize::MAX).min(deflated.len());
    let used = if ended && content.len() < CONTENT_BYTES_MAX { used } else { deflated.len() };
    stream.extend_from_slice(&deflated[..used]);
    let mut sum = flate2::Crc::new();
    sum.update(&content);
    let (mut crc, mut size) = (sum.sum(), content.len() as u32);
    match wrong & 7 {
        3 => crc ^= 1 << (wrong >> 3 & 31),
        4 => size ^= 1 << (wrong >> 3 & 31),
        _ => {}
    }
    stream.extend_from_slice(&crc.to_le_bytes());
    stream.extend_from_slice(&size.to_le_bytes());
    if wrong & 7 == 5 {
        let short = stream.len().saturating_sub(1 + (wrong >> 3 & 15));
        stream.truncate(short);
    }
    stream.extend_from_slice(&deflated[used..]);
    stream
}

// ---- scripts ------------------------------------------------------------------------------------------------

/// Symbols of one block, and blocks and members of one script, at most.
const SYMBOLS_MAX: usize = 300;
const BLOCKS_MAX: usize = 12;
const MEMBERS_MAX: usize = 3;

/// In which order code lengths of the code for code lengths are written (RFC 1951, section 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    fn pair(&mut self) -> usize {
        self.byte() << 8 | self.byte()
    }
}

/// Bits, the lowest of each byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Of the last byte; 0 = there is none to go on with.
    used: usize,
}

impl Bits {
    fn put(&mut self, value: usize, count: usize) {
        for at in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> at & 1) as u8) << self.used;
            }
            self.used = (self.used + 1) % 8;
        }
    }

    /// A symbol by its code, whose bits come highest first; one without a code is not written.
    fn symbol(&mut self, code: &[(usize, usize)], symbol: usize) {
        let (value, length) = code.get(symbol).copied().unwrap_or_default();
        for at in (0..length).rev() {
            self.put(value >> at & 1, 1);
        }
    }
}

/// The members that a script means.
fn script(bytes: &[u8]) -> Vec<u8> {
    let mut script = Script(bytes);
    let mut stream = Vec::new();
    for _ in 0..MEMBERS_MAX {
        let wrong = script.pair();
        let (mut bits, mut produced) = (Bits::default(), 0);
        for number in 1..=BLOCKS_MAX {
            let how = script.byte();
            // Now and then there is no last block, or one before the last.
            let last = how & 0x10 != 0 || number == BLOCKS_MAX || script.0.is_empty();
            bits.put(usize::from(last), 1);
            block(&mut script, how, &mut produced, &mut bits);
            if last {
                break;
            }
        }
        stream.extend(member(&bits.bytes, wrong));
        if script.0.is_empty() {
            break;
        }
    }
    stream
}

fn block(script: &mut Script<'_>, how: usize, produced: &mut usize, bits: &mut Bits) {
    match how & 7 {
        0 => {
            let length = script.byte() * if how & 8 != 0 { 40 } else { 1 };
            bits.put(0, 2);
            bits.used = 0;
            let wrong = usize::from(how & 0xe0 == 0xe0);
            bits.put(length ^ wrong, 16);
            bits.put(!length & 0xffff, 16);
            let first = script.byte();
            for at in 0..length {
                bits.put((first + at * 7) & 0xff, 8);
            }
            *produced += length;
        }
        1 | 2 => {
            bits.put(1, 2);
            let literals: Vec<usize> = (0..288)
                .map(|symbol| match symbol {
                    0..=143 => 8,
                    144..=255 => 9,
                    256..=279 => 7,
                    _ => 8,
                })
                .collect();
            symbols(script, &code(&literals), &code(&[5; 32]), produced, bits);
        }
        3 if how & 0xe0 == 0xe0 => bits.put(3, 2),
        _ => dynamic(script, how, produced, bits),
    }
}

/// A block with codes of its own.
fn dynamic(script: &mut Script<'_>, how: usize, produced: &mut usize, bits: &mut Bits) {
    bits.put(2, 2);
    let (literals, distances) = (257 + script.byte() % 32, 1 + script.byte() % 32);
    let literals = lengths(script, literals, how & 8 != 0);
    let distances = lengths(script, distances, false);
    bits.put(literals.len() - 257, 5);
    bits.put(distances.len() - 1, 5);
    // A complete code: 13 of 4 bits, 6 of 5. Or whatever.
    let mut lengths_of_lengths: Vec<usize> = (0..19).map(|symbol| if symbol < 13 { 4 } else { 5 }).collect();
    let strange = script.byte();
    if strange >= 0xe0 {
        lengths_of_lengths[script.byte() % 19] = strange & 7;
    }
    let written = if strange & 0x0f == 0x0f { 4 + script.byte() % 16 } else { 19 };
    bits.put(written - 4, 4);
    for symbol in &ORDER[..written] {
        bits.put(lengths_of_lengths[*symbol], 3);
    }
    for symbol in &ORDER[written..] {
        lengths_of_lengths[*symbol] = 0;
    }
    let of_lengths = code(&lengths_of_lengths);
    // One list, in which repeats may run from the one code into the other.
    let all: Vec<usize> = literals.iter().chain(&distances).copied().collect();
    let mut at = 0;
    while at < all.len() {
        let same = all[at..].iter().take_while(|length| **length == all[at]).count();
        match all[at] {
            0 if same >= 11 => {
                let same = same.min(138);
                bits.symbol(&of_lengths, 18);
                bits.put(same - 11, 7);
                at += same;
            }
            0 if same >= 3 => {
                bits.symbol(&of_lengths, 17);
                bits.put(same.min(10) - 3, 3);
                at += same.min(10);
            }
            length if same >= 4 => {
                bits.symbol(&of_lengths, length);
                bits.symbol(&of_lengths, 16);
                bits.put((same - 1).min(6) - 3, 2);
                at += 1 + (same - 1).min(6);
            }
            length => {
                bits.symbol(&of_lengths, length);
                at += 1;
            }
        }
    }
    symbols(script, &code(&literals), &code(&distances), produced, bits);
}

/// Lengths of a code for so many symbols: complete, unless the script says otherwise. Some symbols have none.
fn lengths(script: &mut Script<'_>, symbols: usize, with_end: bool) -> Vec<usize> {
    let mut lengths = vec![0; symbols];
    let (shape, step) = (script.byte(), 1 + 2 * (script.byte() % 64));
    let most = [1, 2, 3, 9, 40, 130, 256, symbols][shape % 8].min(symbols);
    let mut used: Vec<usize> = (0..most).map(|number| number * step % symbols).collect();
    if (with_end || shape & 8 == 0) && symbols > 256 {
        used.push(256);
    }
    used.sort_unstable();
    used.dedup();
    // A complete code is a tree whose leaves are split until there are enough of them.
    let mut leaves = vec![usize::from(used.len() == 1)];
    while leaves.len() < used.len() {
        let count = leaves.len();
        let from = match shape >> 4 & 3 {
            0 => leaves.iter().enumerate().min_by_key(|(_, length)| **length).map_or(0, |(at, _)| at),
            1 => 0,
            2 => count - 1,
            _ => count * step / 2 % count,
        };
        // There is always one: 2^15 leaves are more than there are symbols.
        let split = (from..from + count).map(|at| at % count).find(|at| leaves[*at] < 15).unwrap_or(0);
        leaves[split] += 1;
        leaves.push(leaves[split]);
    }
    for (symbol, length) in used.iter().zip(leaves) {
        lengths[*symbol] = length;
    }
    let strange = script.byte();
    if strange >= 0xe8 {
        let symbol = script.pair() % symbols;
        lengths[symbol] = strange & 15;
    }
    lengths
}

/// Codes of these lengths, as deflate numbers them (RFC 1951, section 3.2.2): word and length.
fn code(lengths: &[usize]) -> Vec<(usize, usize)> {
    let (mut next, mut word) = ([0usize; 16], 0);
    for (length, next) in next.iter_mut().enumerate().skip(1) {
        *next = word;
        word = (word + lengths.iter().filter(|other| **other == length).count()) << 1;
    }
    let mut give = |length: usize| {
        let word = next[length] & 0xffff;
        next[length] += 1;
        (word, length)
    };
    lengths.iter().map(|length| if *length == 0 { (0, 0) } else { give(*length) }).collect()
}

/// Literals and matches, and mostly an end. `produced` is what the member has so far, so that most matches begin in it.
fn symbols(
    script: &mut Script<'_>,
    literals: &[(usize, usize)],
    distances: &[(usize, usize)],
    produced: &mut usize,
    bits: &mut Bits,
) {
    for _ in 0..SYMBOLS_MAX {
        let op = script.byte();
        match op {
            0 => break,
            0xff => return,
            0xf8..=0xfe => bits.put(script.byte(), op & 7),
            0x80..=0xf7 => {
                let (length, far) = (257 + op % 31, script.pair());
                let (base, extra) = length_of(length);
                let more = far >> 5 & ((1 << extra) - 1);
                bits.symbol(literals, length);
                bits.put(more, extra);
                let before = *produced;
                *produced += base + more;
                let mut distance = far % 32;
                let anywhere = far & 0xf000 == 0xf000;
                while !anywhere && distance > 0 && distance_of(distance).0 > before {
                    distance /= 2;
                }
                let (base, extra) = distance_of(distance);
                bits.symbol(distances, distance);
                let room = if anywhere { usize::MAX } else { before.saturating_sub(base) };
                bits.put((far.wrapping_mul(0x9e37) & ((1 << extra) - 1)).min(room), extra);
            }
            1..=0x3f => {
                for at in 0..op {
                    bits.symbol(literals, (op * 5 + at) % 256);
                }
                *produced += op;
            }
            _ => {
                bits.symbol(literals, script.byte());
                *produced += 1;
            }
        }
    }
    bits.symbol(literals, 256);
}

/// The shortest match that a symbol means, and its extra bits (RFC 1951, section 3.2.5).
fn length_of(symbol: usize) -> (usize, usize) {
    match symbol {
        265..=284 => {
            let extra = (symbol - 261) / 4;
            (3 + ((4 + (symbol - 265) % 4) << extra), extra)
        }
        285.. => (258, 0),
        _ => (symbol - 254, 0),
    }
}

/// The nearest place that a symbol means, and its extra bits; there are none beyond 29.
fn distance_of(symbol: usize) -> (usize, usize) {
    match symbol {
        0..=3 => (symbol + 1, 0),
        4..=29 => (1 + ((2 + symbol % 2) << (symbol / 2 - 1)), symbol / 2 - 1),
        _ => (1, 0),
    }
}

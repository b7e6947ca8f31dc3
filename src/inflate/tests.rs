//! Against flate2, which decides what a gzip stream is: the same bytes, and a refusal where it refuses.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A member around a deflate stream as it is.
fn member_of(deflate: &[u8], content: &[u8]) -> Vec<u8> {
    let crc = crc32fast::hash(content).to_le_bytes();
    let size = (content.len() as u32).to_le_bytes();
    [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], deflate, &crc, &size].concat()
}

/// Everything up to the end or the error.
fn decode(source: impl Read, chunk_bytes: usize) -> (Vec<u8>, Result<(), GzipError>) {
    let mut decoder = GzipDecoder::with_chunk_bytes(source, chunk_bytes);
    let (mut chunk, mut bytes) = (Chunk::new(), Vec::new());
    loop {
        match decoder.next_chunk(&mut chunk) {
            Ok(0) => {
                assert!(chunk.is_empty());
                return (bytes, Ok(()));
            }
            Ok(count) => {
                assert!(count == chunk.len() && count <= chunk_bytes + 260, "{count} of {chunk_bytes}");
                bytes.extend_from_slice(&chunk);
            }
            Err(error) => {
                assert!(chunk.is_empty());
                assert!(matches!(decoder.next_chunk(&mut chunk), Err(GzipError::Failed)));
                return (bytes, Err(error));
            }
        }
    }
}

fn refused(stream: &[u8]) -> GzipError {
    let (_, ended) = decode(stream, CHUNK_BYTES);
    let mut bytes = Vec::new();
    assert!(MultiGzDecoder::new(stream).read_to_end(&mut bytes).is_err(), "flate2 takes it");
    ended.expect_err("it is refused")
}

fn flaw(stream: &[u8]) -> GzipFlaw {
    match refused(stream) {
        GzipError::Broken { flaw, .. } => flaw,
        other => panic!("{other:?}"),
    }
}

/// The same as flate2 in every way that can be seen.
fn compare(stream: &[u8], chunk_bytes: usize, pieces: usize) {
    let mut expected = Vec::new();
    let theirs = MultiGzDecoder::new(stream).read_to_end(&mut expected);
    let (bytes, ours) = decode(Pieces(stream, pieces), chunk_bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?}, but flate2 {theirs:?}");
    let both = bytes.len().min(expected.len());
    assert!(bytes[..both] == expected[..both], "other bytes");
    if ours.is_ok() {
        assert_eq!(bytes.len(), expected.len());
    }
}

/// A source that gives a few bytes at a time, and is interrupted between.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1 < 100 && self.0.len() % 3 == 1 && self.1 % 2 == 1 {
            self.1 += 1;
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = buffer.len().min(self.1.max(1)).min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        self.1 |= 1;
        Ok(count)
    }
}

/// Bits as deflate writes them: lowest first, Huffman codes highest first.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    used: u32,
}

impl Writer {
    fn bits(mut self, value: u32, count: u32) -> Self {
        for bit in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << self.used;
            self.used = (self.used + 1) % 8;
        }
        self
    }

    fn code(self, value: u32, count: u32) -> Self {
        self.bits(value.reverse_bits() >> (32 - count), count)
    }

    /// The head of a dynamic block, the last one: the length of each code of lengths, in their order of the format.
    fn dynamic(self, literals: u32, distances: u32, lengths: &[u32]) -> Self {
        let head = self
            .bits(0b101, 3)
            .bits(literals - 257, 5)
            .bits(distances - 1, 5)
            .bits(lengths.len() as u32 - 4, 4);
        lengths.iter().fold(head, |writer, length| writer.bits(*length, 3))
    }

    fn member(self, content: &[u8]) -> Vec<u8> {
        member_of(&self.bytes, content)
    }
}

/// Bytes with everything in them that compressors see: text, runs, noise, far and near repeats.
fn mixed(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut all: Vec<u8> = Vec::with_capacity(bytes + 70_000);
    while all.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (kind, length) = (state >> 61, (state >> 20) as usize % 3000 + 1);
        match kind {
            0 => all.extend(std::iter::repeat_n((state >> 8) as u8, length)),
            1 => all.extend((0..length).map(|at| (state.rotate_left(at as u32 % 61) >> (at % 7)) as u8)),
            2 => all.extend(format!("{state} files, {length} links\n").repeat(length / 20 + 1).bytes()),
            _ => {
                let back = ((state >> 33) as usize % 33_000 + 1).min(all.len());
                let from = all.len() - back;
                (0..length.min(if kind == 3 { 300 } else { 20 })).for_each(|at| {
                    if let Some(byte) = all.get(from + at).copied() {
                        all.push(byte);
                    }
                });
                all.push(state as u8);
            }
        }
    }
    all.truncate(bytes);
    all
}

#[test]
fn whatever_flate2_compresses_comes_back() {
    for bytes in [0, 1, 2, 3, 257, 258, 259, 32_767, 32_768, 32_769, 262_143, 262_144, 262_145, 1_000_000] {
        let content = mixed(bytes);
        for level in [0, 1, 6, 9] {
            let (back, ended) = decode(&gzip(&content, level)[..], CHUNK_BYTES);
            ended.unwrap();
            assert!(back == content, "{bytes} bytes at level {level}");
        }
    }
}

#[test]
fn chunks_and_pieces_may_be_of_any_size() {
    let content = mixed(90_000);
    let stream = [gzip(&content, 6), gzip(&content[..700], 0), gzip(b"", 9), gzip(&content, 1)].concat();
    let expected = [&content[..], &content[..700], &content].concat();
    for chunk_bytes in [1, 2, 255, 4096, 32_768, 40_000] {
        for pieces in [1, 2, 7, 1023, 65_536] {
            let (back, ended) = decode(Pieces(&stream, pieces), chunk_bytes);
            ended.unwrap();
            assert!(back == expected, "chunks of {chunk_bytes}, pieces of {pieces}");
        }
    }
}

#[test]
fn chunks_may_be_given_in_any_order_and_to_any_decoder() {
    let (one, two) = (mixed(900_000), mixed(600_000).split_off(7));
    let (first, second) = (gzip(&one, 6), gzip(&two, 6));
    let (mut first, mut second) = (GzipDecoder::new(&first[..]), GzipDecoder::new(&second[..]));
    let mut chunks = [Chunk::new(), Chunk::new(), Chunk::new()];
    let (mut ones, mut twos) = (Vec::new(), Vec::new());
    for turn in 0..20 {
        let chunk = &mut chunks[turn * 7 % 3];
        first.next_chunk(chunk).unwrap();
        ones.extend_from_slice(chunk);
        let chunk = &mut chunks[turn * 5 % 3];
        second.next_chunk(chunk).unwrap();
        twos.extend_from_slice(chunk);
    }
    assert!(ones == one && twos == two);
}

#[test]
fn a_stream_that_is_cut_anywhere_is_cut() {
    let content = mixed(3000);
    let stream = [gzip(&content[..40], 9), gzip(&content, 6), gzip(&content[..300], 0)].concat();
    let whole = [gzip(&content[..40], 9).len(), gzip(&content[..40], 9).len() + gzip(&content, 6).len()];
    for cut in (0..stream.len()).filter(|cut| !whole.contains(cut)) {
        match refused(&stream[..cut]) {
            GzipError::Truncated { offset } => assert_eq!(offset, cut as u64),
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[test]
fn what_follows_the_last_member_is_refused() {
    for tail in [&b"\0"[..], &[0; 512], b"garbage", &[0x1f], &[0x1f, 0x8c], &[0x1f, 0x8b]] {
        let error = refused(&[&gzip(b"content", 6), tail].concat());
        match tail {
            [0x1f] | [0x1f, 0x8b] => assert!(matches!(error, GzipError::Truncated { .. }), "{error:?}"),
            _ => assert!(matches!(error, GzipError::Broken { flaw: GzipFlaw::AfterEnd, .. }), "{error:?}"),
        }
    }
}

#[test]
fn every_field_of_a_header_is_read() {
    let tail = &gzip(b"content", 6)[10..];
    let header = |flags: u8, fields: &[u8]| {
        let head = [&[0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 3][..], fields].concat();
        [&head[..], tail].concat()
    };
    let long = [&[0xff, 0xff][..], &[7; 0xffff], &[b'n'; 100_000], &[0], &[b'c'; 70_000], &[0]].concat();
    for stream in [header(1, b""), header(0x1c, &long), header(4, b"\0\0"), header(0x18, b"\0\0")] {
        let (bytes, ended) = decode(&stream[..], CHUNK_BYTES);
        ended.unwrap();
        assert_eq!(bytes, b"content");
        // It takes fields up to 64 KiB only.
        if stream.len() < 10_000 {
            compare(&stream, CHUNK_BYTES, 1000);
        }
    }
    let crc = crc32fast::hash(&[0x1f, 0x8b, 8, 10, 1, 2, 3, 4, 2, 3, b'n', 0]) as u16;
    let [low, high] = crc.to_le_bytes();
    assert_eq!(decode(&header(10, &[b'n', 0, low, high])[..], CHUNK_BYTES).0, b"content");
    let actual = crc;
    let expected = crc ^ 1;
    let wrong = flaw(&header(10, &[b'n', 0, low ^ 1, high]));
    assert_eq!(wrong, GzipFlaw::HeaderChecksum { expected, actual });
    assert_eq!(flaw(&header(0x20, b"")), GzipFlaw::ReservedFlags(0x20));
    assert_eq!(flaw(&[0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0]), GzipFlaw::Method(7));
    assert_eq!(flaw(b"PK"), GzipFlaw::Magic);
}

#[test]
fn a_trailer_must_fit_its_content() {
    let stream = gzip(b"content", 6);
    let end = stream.len();
    for (at, wrong) in [(end - 8, "checksum"), (end - 5, "checksum"), (end - 4, "bytes"), (end - 1, "bytes")]
    {
        let mut stream = stream.clone();
        stream[at] ^= 0x80;
        let text = flaw(&stream).to_string();
        assert!(text.contains(wrong), "{text}");
    }
}

#[test]
fn what_is_no_deflate_is_refused_by_name() {
    let fixed = || Writer::default().bits(0b011, 3);
    // A literal, then a match of three bytes, two bytes back.
    let back = fixed().code(0x30 + 65, 8).code(1, 7).code(1, 5).code(0, 7);
    assert_eq!(flaw(&back.member(b"AAAA")), GzipFlaw::TooFarBack { distance: 2, available: 1 });
    assert_eq!(flaw(&Writer::default().bits(0b111, 3).member(b"")), GzipFlaw::BlockType);
    let stored = member_of(&[1, 1, 0, 0xff, 0xff, 7], &[7]);
    assert_eq!(flaw(&stored), GzipFlaw::StoredLength { length: 1, complement: 0xffff });
    assert_eq!(flaw(&fixed().code(0b1100_0110, 8).code(0, 32).member(b"")), GzipFlaw::Literal);
    assert_eq!(
        flaw(&fixed().code(0x30, 8).code(1, 7).code(30, 5).code(0, 32).member(b"")),
        GzipFlaw::Distance
    );

    let head =
        |literals, distances| Writer::default().dynamic(literals, distances, &[0, 0, 0, 1, 1]).code(0, 32);
    let (literals, distances) = (288, 1);
    assert_eq!(flaw(&head(288, 1).member(b"")), GzipFlaw::SymbolCounts { literals, distances });
    let (literals, distances) = (257, 31);
    assert_eq!(flaw(&head(257, 31).member(b"")), GzipFlaw::SymbolCounts { literals, distances });
    let zeros = |writer: Writer| (0..9).fold(writer, |writer, _| writer.bits(0, 32));
    let head = |lengths: &[u32]| zeros(Writer::default().dynamic(257, 1, lengths));
    assert_eq!(flaw(&head(&[1, 1, 1, 0]).member(b"")), GzipFlaw::LengthCode);
    assert_eq!(flaw(&head(&[0, 0, 0, 1]).member(b"")), GzipFlaw::LengthCode);
    assert_eq!(flaw(&head(&[0, 0, 0, 0]).member(b"")), GzipFlaw::LengthCode);
    // The first length repeats the one before it.
    assert_eq!(flaw(&head(&[1, 0, 0, 1]).member(b"")), GzipFlaw::NoEndOfBlock);
    let again = Writer::default().dynamic(257, 1, &[1, 0, 0, 1]).bits(1, 1).bits(0, 32);
    assert_eq!(flaw(&again.member(b"")), GzipFlaw::LengthRepeat);
    // 258 lengths, of which the last zeros go too far.
    let far = Writer::default().dynamic(257, 1, &[0, 0, 1, 1]);
    let far = (0..2).fold(far, |writer, _| writer.code(1, 1).bits(127, 7));
    assert_eq!(flaw(&far.bits(0, 32).member(b"")), GzipFlaw::LengthRepeat);
}

/// The head of a block whose lengths are all written as they are: symbol 0..=3 by two bits.
fn lengths(literals: &[(usize, u32)], distances: &[u32]) -> Writer {
    // Codes 0, 1, 2 and 18 have two bits.
    let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1];
    let head: Vec<u32> =
        order.iter().map(|symbol| if [0, 1, 2, 18].contains(symbol) { 2 } else { 0 }).collect();
    let mut writer = Writer::default().dynamic(286, distances.len() as u32, &head);
    let mut all = [0; 286];
    for (symbol, length) in literals {
        all[*symbol] = *length;
    }
    for length in all.iter().chain(distances) {
        writer = writer.code(*length, 2);
    }
    writer
}

#[test]
fn codes_that_are_not_full_are_refused_but_for_one_of_one_bit() {
    // Only the end; its one bit is 0.
    let end = lengths(&[(256, 1)], &[0]);
    assert_eq!(decode(&end.bits(0, 1).member(b"")[..], CHUNK_BYTES).0, b"");
    assert_eq!(flaw(&lengths(&[(256, 1)], &[0]).bits(1, 1).bits(0, 32).member(b"")), GzipFlaw::Literal);
    assert_eq!(flaw(&lengths(&[(256, 2)], &[0]).bits(0, 32).member(b"")), GzipFlaw::LiteralCode);
    assert_eq!(flaw(&lengths(&[(1, 2), (256, 2)], &[0]).bits(0, 32).member(b"")), GzipFlaw::LiteralCode);
    let full = [(65, 1), (256, 2), (257, 2)];
    assert_eq!(flaw(&lengths(&full, &[2, 2]).bits(0, 32).member(b"")), GzipFlaw::DistanceCode);
    assert_eq!(flaw(&lengths(&full, &[1, 1, 1]).bits(0, 32).member(b"")), GzipFlaw::DistanceCode);
    // 'A', three times the last byte, the end: with one distance code, and with none at all.
    let match_of = |writer: Writer, bit| writer.code(0, 1).code(3, 2).code(bit, 1).code(2, 2).bits(0, 32);
    let one = match_of(lengths(&full, &[1]), 0);
    let bytes = one.bytes;
    let content = b"AAAA";
    let stream = member_of(&bytes[..bytes.len() - 4], content);
    assert_eq!(decode(&stream[..], CHUNK_BYTES).0, content);
    assert_eq!(flaw(&match_of(lengths(&full, &[1]), 1).member(b"")), GzipFlaw::Distance);
    assert_eq!(flaw(&match_of(lengths(&full, &[0]), 0).member(b"")), GzipFlaw::Distance);
}

#[test]
fn the_past_of_a_member_is_no_past_of_the_next() {
    let back = Writer::default().bits(0b011, 3).code(1, 7).code(0, 5).code(0, 7).member(b"aaa");
    let stream = [gzip(&[b'a'; 1000], 6), back].concat();
    assert_eq!(flaw(&stream), GzipFlaw::TooFarBack { distance: 1, available: 0 });
}

#[test]
fn a_match_reaches_back_32_kib_across_chunks() {
    let head: Vec<u8> = (0..32_768u32).map(|at| ((at * at) >> 7) as u8).collect();
    let block = |last: u8| {
        let length = (head.len() as u16).to_le_bytes();
        let complement = (!(head.len() as u16)).to_le_bytes();
        [&[last][..], &length, &complement, &head].concat()
    };
    // Length 258 at distance 32,768, and the end.
    let far =
        Writer::default().bits(0b011, 3).code(0b1100_0101, 8).code(29, 5).bits(0x1fff, 13).code(0, 7).bytes;
    let stream = member_of(&[block(0), far].concat(), &[&head[..], &head[..258]].concat());
    for chunk_bytes in [1, 258, 32_767, 32_768, CHUNK_BYTES] {
        let (bytes, ended) = decode(&stream[..], chunk_bytes);
        ended.unwrap();
        assert_eq!(bytes[32_768..], head[..258]);
    }
}

#[test]
fn an_error_of_the_source_passes_through_after_the_bytes_before_it() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the line is dead"));
            }
            self.0.read(buffer)
        }
    }
    let content = mixed(200_000);
    let stream = gzip(&content, 6);
    let (bytes, ended) = decode(Failing(&stream[..stream.len() / 2]), CHUNK_BYTES);
    let error = io::Error::from(ended.unwrap_err());
    assert_eq!(
        (error.kind(), error.to_string()),
        (io::ErrorKind::ConnectionReset, "the line is dead".to_owned())
    );
    assert!(!bytes.is_empty() && content.starts_with(&bytes));
}

proptest! {
    #[test]
    fn streams_that_were_changed_are_taken_and_refused_as_by_flate2(
        seed in any::<u32>(),
        level in 0u32..=9,
        bytes in 1usize..6000,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        chunk_bytes in prop_oneof![1usize..600, Just(CHUNK_BYTES)],
        pieces in prop_oneof![1usize..9, 1usize..5000],
    ) {
        let content = &mixed(70_000)[(seed % 60_000) as usize..][..bytes];
        let mut stream = gzip(content, level);
        for (at, value) in changes {
            // The header is changed elsewhere: its time does not matter to anyone.
            let at = 10 + at.index(stream.len() - 10);
            stream[at] = value;
        }
        compare(&stream, chunk_bytes, pieces);
    }

    /// A block of made-up codes: most are refused, and those that are not decode to the same.
    #[test]
    fn made_up_blocks_are_taken_and_refused_as_by_flate2(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        kind in 0u8..4,
        chunk_bytes in prop_oneof![1usize..600, Just(CHUNK_BYTES)],
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = *first & !7 | kind << 1 | 1;
        }
        compare(&member_of(&bytes, b""), chunk_bytes, 300);
    }
}

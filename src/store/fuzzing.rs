//! What must hold of the tar reader, of decompression and of names in layers, whatever the bytes: bodies of the fuzz
//! targets `tar`, `blob` and `whiteout`.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Component, Path};

use bytes::Bytes;
use keelblock_actors::image::plan::Compression;

use super::flaw::Flaw;
use super::tar::{Bounds, Kind, Member, Reader, Segment, Source};
use super::whiteout::{self, Sign};
use super::{decompress, meaning};
use crate::fuzzing::{Dribble, Lengths};
use crate::inflate::Chunk;

const BLOCK: usize = 512;
/// Small, so that inputs of some KiB can reach them.
const BOUNDS: Bounds =
    Bounds { entries_max: 64, path_bytes_max: 600, xattr_bytes_max: 1000, pax_bytes_max: 4096 };
/// Most output of one stream that is looked at.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

// ---- tar ----------------------------------------------------------------------------------------------------

/// The tar reader: how bytes arrive changes nothing, every byte belongs to one header or one payload, and other readers
/// see the same members in the same places.
pub(crate) fn tar(bytes: &[u8]) {
    let whole = read(bytes, Lengths::whole(), |_| Take::Borrowed);
    // Payload that is not asked for is skipped, which must lead to the same place.
    let how = [Take::Skipped, Take::Borrowed, Take::Lent];
    let pieces = read(bytes, Lengths::of(bytes), |number| how[number % 3]);
    assert_eq!(whole.end, pieces.end, "the end depends on how the bytes come");
    assert_eq!(whole.members.len(), pieces.members.len());
    for (one, other) in whole.members.iter().zip(&pieces.members) {
        assert_eq!(one.facts, other.facts, "a member depends on how the bytes come");
        assert_eq!((one.begins, one.payload), (other.begins, other.payload));
        assert!(other.lent.as_ref().is_none_or(|lent| Some(lent) == one.lent.as_ref()));
    }
    assert!(whole.members.len() as u64 <= BOUNDS.entries_max);
    let mut next = 0;
    let mut walk = Walk { bytes, plain: true };
    let mut plain = 0;
    for seen in &whole.members {
        let facts = &seen.facts;
        assert!(facts.path.len() <= BOUNDS.path_bytes_max && facts.target.len() <= BOUNDS.path_bytes_max);
        let xattr_bytes: usize = facts.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(
            xattr_bytes <= BOUNDS.xattr_bytes_max && facts.mode <= 0o7777 && facts.mtime.1 < 1_000_000_000
        );
        assert_eq!(seen.begins, next, "a member begins where the one before it ended");
        let place = walk.member(seen.begins);
        assert_eq!(seen.payload, place.payload, "headers end elsewhere: {facts:?}");
        assert!(facts.kind == Kind::File || (facts.size == 0 && facts.sparse.is_none() && place.length == 0));
        let whole_payload = seen.lent.as_ref().is_some_and(|lent| lent.len() as u64 == place.length);
        // Only the last payload may be cut off, and that is an error.
        assert!(whole_payload || whole.end.is_err(), "payload is not as long as it is said to be: {facts:?}");
        match &facts.sparse {
            None => assert!(!whole_payload || facts.size == place.length || facts.kind != Kind::File),
            Some(map) => fits(map, facts.size, place.length),
        }
        if let Some(lent) = &seen.lent {
            assert_eq!(lent[..], bytes[place.payload..place.payload + lent.len()]);
        }
        next = place.payload.saturating_add(usize::try_from(place.length).unwrap_or(usize::MAX));
        next = next.saturating_add(next.wrapping_neg() % BLOCK).min(bytes.len());
        plain += usize::from(walk.plain);
    }
    if whole.end.is_ok() {
        assert_eq!(whole.used, bytes.len(), "what follows the end is read, too");
    }
    same_as_the_tar_crate(bytes, &whole, plain, walk.plain);
}

/// A member as it matters to an index.
pub(crate) struct Extent {
    pub(crate) name: Vec<u8>,
    pub(crate) is_file: bool,
    /// Of its payload.
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// All members of a tar; `None` = not a tar that the reader takes, or one with sparse members, whose payload is not
/// their content.
pub(crate) fn members(bytes: &[u8]) -> Option<Vec<Extent>> {
    let read = read(bytes, Lengths::whole(), |_| Take::Borrowed);
    read.end.is_ok().then_some(())?;
    let all = read.members.into_iter().map(|Seen { facts, payload, .. }| {
        let is_file = facts.kind == Kind::File;
        let extent = Extent { name: facts.path, is_file, offset: payload as u64, size: facts.size };
        facts.sparse.is_none().then_some(extent)
    });
    all.collect()
}

struct Told {
    members: Vec<Seen>,
    /// Bytes taken from the source.
    used: usize,
    end: Result<(), String>,
}

struct Seen {
    facts: Facts,
    /// Where its first header begins, after the padding of the member before.
    begins: usize,
    /// Where its payload begins.
    payload: usize,
    /// The payload, if it was asked for.
    lent: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    path: Vec<u8>,
    kind: Kind,
    target: Vec<u8>,
    mode: u32,
    owner: (i64, i64),
    mtime: (i64, u32),
    size: u64,
    sparse: Option<Vec<Segment>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl From<Member> for Facts {
    fn from(member: Member) -> Self {
        let Member { path, kind, target, mode, uid, gid, mtime, size, sparse, xattrs } = member;
        Self { path, kind, target, mode, owner: (uid, gid), mtime, size, sparse, xattrs }
    }
}

/// Bytes in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    used: &'a std::cell::Cell<usize>,
    lengths: Lengths,
    left: usize,
}

impl Source for Pieces<'_> {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        if self.left == 0 {
            self.left = self.lengths.next();
        }
        let rest = &self.bytes[self.used.get()..];
        Ok(&rest[..self.left.min(rest.len())])
    }

    fn consume(&mut self, bytes: usize) {
        self.left -= bytes;
        self.used.set(self.used.get() + bytes);
    }

    fn lend(&mut self, bytes: usize) -> Bytes {
        let lent = Bytes::copy_from_slice(&self.bytes[self.used.get()..][..bytes]);
        self.consume(bytes);
        lent
    }
}

/// What is done with the payload of a member.
#[derive(Clone, Copy)]
enum Take {
    /// Nothing; the reader goes over it.
    Skipped,
    /// It is looked at in the reader's buffers, as large files are.
    Borrowed,
    /// It is taken out of them, as small files are.
    Lent,
}

fn read(bytes: &[u8], lengths: Lengths, how: impl Fn(usize) -> Take) -> Told {
    let used = std::cell::Cell::new(0);
    let mut reader = Reader::new(Pieces { bytes, used: &used, lengths, left: 0 }, BOUNDS);
    let mut members: Vec<Seen> = Vec::new();
    let mut begins = 0;
    let mut all = || -> Result<(), Flaw> {
        while let Some(member) = reader.next()? {
            let payload = used.get();
            let length: u64 = match &member.sparse {
                None => member.size,
                Some(map) => map.iter().map(|segment| segment.length).sum(),
            };
            members.push(Seen { facts: member.into(), begins, payload, lent: None });
            let end = payload.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            begins = end.saturating_add(end.wrapping_neg() % BLOCK).min(bytes.len());
            let (lent, taken) = match how(members.len()) {
                Take::Skipped => (None, Ok(())),
                Take::Borrowed => {
                    let (lent, taken) = borrow(&mut reader);
                    (Some(lent), taken)
                }
                Take::Lent => match reader.lend(length) {
                    Ok(pieces) => (Some(pieces.concat()), Ok(())),
                    Err(flaw) => (None, Err(flaw)),
                },
            };
            if let Some(seen) = members.last_mut() {
                seen.lent = lent;
            }
            assert_eq!(reader.place(), used.get() as u64, "the reader is not where it believes to be");
            taken?;
        }
        Ok(())
    };
    let end = all().and_then(|()| reader.finish().map(drop)).map_err(|flaw| format!("{flaw:?}"));
    Told { members, used: used.get(), end }
}

/// All payload of the current member that there is.
fn borrow(reader: &mut Reader<Pieces<'_>>) -> (Vec<u8>, Result<(), Flaw>) {
    let mut all = Vec::new();
    loop {
        match reader.payload(1000) {
            Ok([]) => return (all, Ok(())),
            Ok(some) => {
                all.extend_from_slice(some);
                let count = some.len();
                reader.advance(count);
            }
            Err(flaw) => return (all, Err(flaw)),
        }
    }
}

/// A map ascends, does not overlap, lies within its file and uses up the payload.
fn fits(map: &[Segment], size: u64, payload: u64) {
    let (mut end, mut total) = (0u64, 0u64);
    for segment in map {
        assert!(segment.offset >= end && segment.length > 0, "runs overlap, go back or are empty: {map:?}");
        end = segment.offset.checked_add(segment.length).expect("a run ends in range");
        total += segment.length;
    }
    assert!(
        end <= size && total == payload,
        "{map:?} is no map of {size} bytes with {payload} bytes of payload"
    );
}

/// A second reader, as simple as can be: it has all bytes, and is asked only about members that were accepted.
struct Walk<'a> {
    bytes: &'a [u8],
    /// Nothing was met yet on which the tar crate is known to differ.
    plain: bool,
}

struct Place {
    payload: usize,
    length: u64,
}

impl Walk<'_> {
    /// The place of the payload of the member whose first header is here.
    fn member(&mut self, mut at: usize) -> Place {
        let (mut pax_size, mut sparse_1_0, mut sparse) = (None, (false, false), false);
        let (mut long, mut records) = (0, HashMap::new());
        loop {
            let block = &self.bytes[at..at + BLOCK];
            let stated = number(&block[124..136]);
            self.plain &= matches!(&block[257..265], b"ustar\x0000" | b"ustar  \0");
            self.plain &= block[124] & 0x80 == 0 && block[100..124].is_ascii();
            at += BLOCK;
            let kind = block[156];
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                let file =
                    matches!(kind, b'0' | b'7' | b'S') || (kind == 0 && !self.is_directory(block, &records));
                let mut length = if file { pax_size.unwrap_or(stated) } else { 0 };
                self.plain &= matches!(kind, b'0'..=b'6') && (file || (stated == 0 && pax_size.is_none()));
                self.plain &= !sparse && long <= 1;
                if kind == b'S' {
                    let mut more = block[482] != 0;
                    while more {
                        more = self.bytes[at + 504] != 0;
                        at += BLOCK;
                    }
                } else if sparse_1_0 == (true, true) {
                    let map = self.map_bytes(at);
                    at += map;
                    length -= map as u64;
                }
                return Place { payload: at, length };
            }
            let size = usize::try_from(stated).expect("it was read");
            let content = &self.bytes[at..at + size];
            at += size.next_multiple_of(BLOCK);
            at = at.min(self.bytes.len());
            long += 1;
            let nul = content.iter().position(|byte| *byte == 0).unwrap_or(size);
            self.plain &= kind == b'x' || (kind != b'g' && nul > 0 && nul + 1 >= size);
            if kind != b'x' {
                let name = content[..nul].to_vec();
                match (kind, name.is_empty()) {
                    (b'L', false) => drop(records.insert(b"long".to_vec(), name)),
                    (b'L', true) => drop(records.remove(&b"long"[..])),
                    _ => {}
                }
                continue;
            }
            // It takes the place of the one before it.
            (pax_size, sparse_1_0, sparse) = (None, (false, false), false);
            records.retain(|key, _| key == b"long");
            let mut rest = content;
            while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
                let length = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse().ok());
                let length: usize = length.expect("it was read");
                let record = &rest[space + 1..length - 1];
                rest = &rest[length..];
                let equals = record.iter().position(|byte| *byte == b'=').expect("it was read");
                let (key, value) = (&record[..equals], &record[equals + 1..]);
                let some = (!value.is_empty()).then_some(value);
                match key {
                    b"size" => {
                        pax_size = some.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                    }
                    b"GNU.sparse.major" => sparse_1_0.0 = value == b"1",
                    b"GNU.sparse.minor" => sparse_1_0.1 = value == b"0",
                    _ => {}
                }
                sparse |= key.starts_with(b"GNU.sparse.");
                // It splits records at line breaks and takes the first of a kind.
                self.plain &= !record.contains(&b'\n') && some.is_some();
                self.plain &= std::str::from_utf8(record).is_ok();
                self.plain &=
                    !matches!(key, b"uid" | b"gid" | b"size") || value.iter().all(u8::is_ascii_digit);
                self.plain &= records.insert(key.to_vec(), value.to_vec()).is_none();
            }
        }
    }

    /// A member without a type whose name, wherever that is from, ends in a slash.
    fn is_directory(&self, block: &[u8], records: &HashMap<Vec<u8>, Vec<u8>>) -> bool {
        let named = |key: &[u8]| records.get(key).filter(|name| key == b"long" || !name.is_empty());
        match named(b"long").or_else(|| named(b"path")) {
            Some(name) => name.ends_with(b"/"),
            None => ::tar::Header::from_byte_slice(block).path_bytes().ends_with(b"/"),
        }
    }

    /// Blocks that a map of version 1.0 takes.
    fn map_bytes(&self, at: usize) -> usize {
        let mut lines = self.bytes[at..].split_inclusive(|byte| *byte == b'\n');
        let mut line = || {
            let line = lines.next().expect("it was read");
            (
                line.len(),
                std::str::from_utf8(line).ok().and_then(|text| text.trim_end().parse::<usize>().ok()),
            )
        };
        let (mut bytes, count) = line();
        for _ in 0..2 * count.expect("it was read") {
            bytes += line().0;
        }
        bytes.next_multiple_of(BLOCK)
    }
}

/// A size: octal digits among blanks, NULs before them and after, or base-256.
fn number(field: &[u8]) -> u64 {
    if field[0] & 0x80 != 0 {
        return field[1..].iter().fold(0, |value: u64, byte| value.wrapping_mul(256) + u64::from(*byte));
    }
    let begins = field.iter().position(u8::is_ascii_digit).unwrap_or(field.len());
    let digits = field[begins..].iter().take_while(|byte| **byte != 0).filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |value, digit| value * 8 + u64::from(digit - b'0'))
}

/// Of the first `plain` members the tar crate says the same, as far as it goes along.
fn same_as_the_tar_crate(bytes: &[u8], whole: &Told, plain: usize, all_plain: bool) {
    let mut archive = ::tar::Archive::new(bytes);
    let Ok(entries) = archive.entries() else { return };
    let mut theirs = 0;
    for entry in entries {
        let Ok(entry) = entry else { return };
        // To the crate a member of its own, even where no other follows.
        if entry.header().entry_type().is_pax_global_extensions() {
            continue;
        }
        let Some(seen) = whole.members[..plain].get(theirs) else {
            let more = theirs == whole.members.len() && all_plain && whole.end.is_ok();
            assert!(!more, "the tar crate finds {:?} after the end", entry.path_bytes());
            return;
        };
        theirs += 1;
        assert_eq!(entry.path_bytes()[..], seen.facts.path, "the tar crate reads another name");
        assert_eq!(entry.raw_file_position(), seen.payload as u64, "the tar crate finds payload elsewhere");
        if seen.facts.kind == Kind::File {
            assert_eq!(entry.size(), seen.facts.size, "the tar crate reads another size");
        }
        if matches!(seen.facts.kind, Kind::HardLink | Kind::Symlink) {
            assert_eq!(entry.link_name_bytes().unwrap_or_default()[..], seen.facts.target);
        }
    }
    assert!(
        !all_plain || whole.end.is_err() || theirs == whole.members.len(),
        "the tar crate stops after {theirs}"
    );
}

// ---- blob ---------------------------------------------------------------------------------------------------

/// Decompression: how bytes arrive changes nothing, nothing may be cut off a stream or follow it, and
/// what was compressed comes back.
pub(crate) fn blob(bytes: &[u8]) {
    let whole = inflate(bytes, Lengths::whole());
    let pieces = inflate(bytes, Lengths::of(bytes));
    assert_eq!(whole.compression, pieces.compression);
    assert_eq!(whole.ok, pieces.ok, "whether a stream is right depends on how it comes");
    let both = whole.output.len().min(pieces.output.len());
    assert_eq!(whole.output[..both], pieces.output[..both], "what a stream says depends on how it comes");
    if whole.ok {
        assert_eq!(whole.output.len(), pieces.output.len());
    }
    if whole.compression == Some(Compression::None) {
        assert!(whole.ok && whole.output == bytes[..bytes.len().min(OUTPUT_BYTES_MAX)]);
    } else if whole.ok && whole.output.len() < OUTPUT_BYTES_MAX {
        for tail in [&b"\0"[..], b"keel"] {
            let followed = inflate(&[bytes, tail].concat(), Lengths::whole());
            assert!(!followed.ok, "{tail:?} may follow a stream");
        }
        let cut = inflate(&bytes[..bytes.len() - 1], Lengths::whole());
        assert!(!cut.ok, "the last byte of a stream may be missing");
    }
    if bytes.first().is_none_or(|first| first % 16 == 0) {
        comes_back(bytes);
    }
}

fn comes_back(bytes: &[u8]) {
    let (one, two) = bytes.split_at(bytes.len() / 3);
    let gzip = |bytes: &[u8]| {
        let level = flate2::Compression::new(u32::from(bytes.len() as u8 % 10));
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory does not fail")
    };
    let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).expect("memory does not fail");
    for blob in [[gzip(one), gzip(two)].concat(), [zstd(one), zstd(two)].concat()] {
        let back = inflate(&blob, Lengths::of(bytes));
        assert!(back.ok && back.output == bytes, "what was compressed does not come back");
    }
}

struct Inflated {
    compression: Option<Compression>,
    output: Vec<u8>,
    /// It came to its end, or to the most that is looked at.
    ok: bool,
}

fn inflate(bytes: &[u8], comes: Lengths) -> Inflated {
    let mut inflated = Inflated { compression: None, output: Vec::new(), ok: false };
    let Ok(mut opened) = decompress::open(Dribble { bytes, lengths: comes }, decompress::Accepted::Layer)
    else {
        return inflated;
    };
    inflated.compression = Some(opened.compression);
    let mut chunk = Chunk::new();
    while inflated.output.len() < OUTPUT_BYTES_MAX {
        match opened.fill(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                assert_eq!(count, chunk.len());
                inflated.output.extend_from_slice(&chunk);
            }
            Err(_) => return inflated,
        }
    }
    inflated.output.truncate(OUTPUT_BYTES_MAX);
    inflated.ok = true;
    inflated
}

// ---- whiteout -----------------------------------------------------------------------------------------------

/// Paths and names in a layer: what is cleaned stays below its root, and no whiteout names anything but one entry of its
/// directory.
pub(crate) fn whiteout(path: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let plain = Path::new(std::ffi::OsStr::from_bytes(path));
    let upwards = plain.components().any(|component| component == Component::ParentDir);
    let clean = match meaning::clean(path) {
        Ok(clean) => clean,
        Err(_) => {
            assert!(upwards || path.contains(&0), "{plain:?} is refused");
            return;
        }
    };
    assert!(!upwards && !clean.contains(&0));
    let named: Vec<&[u8]> = plain
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        })
        .collect();
    assert_eq!(clean, named.join(&b'/'), "std takes {plain:?} apart otherwise");
    assert_eq!(meaning::clean(&clean).ok().as_ref(), Some(&clean));
    assert_eq!(meaning::components(&clean).collect::<Vec<_>>(), named);
    let (parent, name) = meaning::split(&clean);
    assert_eq!(name, named.last().copied().unwrap_or_default());
    assert_eq!(parent, named[..named.len().saturating_sub(1)].join(&b'/'));
    for name in named {
        match whiteout::sign(name) {
            Sign::None => assert!(!name.starts_with(whiteout::PREFIX)),
            Sign::Opaque => assert_eq!(name, b".wh..wh..opq"),
            Sign::Meta => assert!(name.starts_with(b".wh..wh.") && name != whiteout::OPAQUE),
            Sign::Bad => assert!(matches!(name, b".wh." | b".wh.." | b".wh...")),
            Sign::Whiteout(removed) => {
                assert_eq!([whiteout::PREFIX, removed].concat(), name);
                assert!(!matches!(removed, b"" | b"." | b"..") && !removed.contains(&b'/'));
                assert!(!removed.starts_with(whiteout::PREFIX), "a whiteout of a whiteout: {name:?}");
            }
        }
    }
}

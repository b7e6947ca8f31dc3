//! The tars of all cases as ACIs: the same members below `rootfs/`, hard links too, beside a manifest.
//!
//! Done to the bytes, so that a tar stays as odd as it was: of each header only names, targets and the checksum change, of
//! extended headers only the records that hold names. What the reader would not understand is copied as it is.

use std::collections::BTreeSet;

use keelblock::limits::Limits;
use keelblock_actors::image::appc::{AciView, ImageId};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{BlobSpec, Compression, LayerKey};

use crate::case::{Expected, Layer};
use crate::tarball::{Tarball, dir, file, pax_records};

const BLOCK: usize = 512;
const ROOTFS: &[u8] = b"rootfs/";

/// A tar as an ACI, with a manifest before what is in it.
pub(crate) struct Wrapped {
    pub(crate) tar: Vec<u8>,
    /// Whether a path comes twice.
    pub(crate) twice: bool,
    /// Whether a name begins like a whiteout.
    pub(crate) signs: bool,
}

/// SHA-512 of a tar.
pub(crate) fn image_id(tar: &[u8]) -> ImageId {
    let any: ImageId = format!("sha512-{}", "0".repeat(128)).parse().unwrap();
    let mut hasher = any.digest().hasher();
    hasher.update(tar);
    ImageId::of(&hasher.finish()).unwrap()
}

/// The layer of this view of an ACI that comes as this blob.
pub(crate) fn layer_of(view: AciView, blob: Vec<u8>, compression: Compression) -> Layer {
    let mut layer = crate::case::raw(blob);
    layer.spec.key = LayerKey::Aci(view.diff_id());
    layer.spec.blob = BlobSpec { compression: Some(compression), ..layer.spec.blob };
    layer.spec.aci = Some(view);
    layer
}

/// The layers of a case as views of ACIs, what their limits must then be, and what must become of them. `None` when one comes
/// compressed, or is lied about, which are cases of blobs and not of what is in them, or has a header without room.
pub(crate) fn of_case(
    layers: &[Layer],
    limits: &mut Limits,
    expected: Expected,
) -> Option<(Vec<Layer>, Expected)> {
    let (mut made, mut twice, mut signs) = (vec![], vec![], false);
    for Layer { blob, spec } in layers {
        let digest = Digest::of(blob);
        let honest = spec.key == LayerKey::Diff(DiffId(digest.clone()))
            && spec.blob.digest == Some(digest)
            && spec.blob.size == Some(blob.len() as u64)
            && spec.blob.compression == Some(Compression::None);
        let wrapped = honest.then(|| wrap(blob)).flatten()?;
        signs |= wrapped.signs;
        twice.push(wrapped.twice);
        limits.layer_bytes_max += (wrapped.tar.len() - blob.len()) as u64;
        made.push(layer_of(AciView::whole(image_id(&wrapped.tar)), wrapped.tar, Compression::None));
    }
    // The manifest, and what stands before each name.
    limits.layer_entries_max += 1;
    limits.path_bytes_max += ROOTFS.len();
    limits.pax_bytes_max += 2 * ROOTFS.len() + 2;
    if let Some(at) = twice.iter().position(|twice| *twice) {
        made.truncate(at + 1);
        let earlier = matches!(&expected, Expected::Refused(_));
        let words = if earlier { vec![] } else { vec!["no path comes twice".to_owned()] };
        return Some((made, Expected::Refused(words)));
    }
    let expected = match expected {
        // Here they are names of files, and what they would have removed is there.
        _ if signs => Expected::Anything,
        // Limits are said as they are here.
        Expected::Refused(words) => {
            let unit = |word: String| word.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
            Expected::RefusedOr(words.into_iter().map(unit).collect(), "is no valid ACI")
        }
        expected => expected,
    };
    Some((made, expected))
}

/// See the module.
pub(crate) fn wrap(tar: &[u8]) -> Option<Wrapped> {
    let manifest = Tarball::of([file("manifest", "{}")]);
    let mut walk = Walk { tar, at: 0, out: manifest.0, paths: BTreeSet::new(), twice: false, signs: false };
    while walk.member()? {}
    if walk.paths.is_empty() {
        // Not even implied.
        walk.out.extend_from_slice(&Tarball::of([dir("rootfs/").mtime(0)]).0);
    }
    let rest = walk.at.min(tar.len());
    walk.out.extend_from_slice(&tar[rest..]);
    Some(Wrapped { tar: walk.out, twice: walk.twice, signs: walk.signs })
}

struct Walk<'a> {
    tar: &'a [u8],
    at: usize,
    out: Vec<u8>,
    paths: BTreeSet<Vec<u8>>,
    twice: bool,
    signs: bool,
}

/// What extended headers say.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    long_path: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
    size: Option<u64>,
    map_bytes: bool,
}

impl Walk<'_> {
    fn block(&self, at: usize) -> Option<[u8; BLOCK]> {
        self.tar.get(at..at + BLOCK).map(|bytes| bytes.try_into().unwrap())
    }

    /// Copies one member. `Some(false)`: there is none here; `None`: it has no room.
    fn member(&mut self) -> Option<bool> {
        let begin = self.at;
        let mut at = begin;
        let mut said = Said::default();
        // Which kind it is decides what becomes of targets, and comes last.
        loop {
            let Some(block) = self.block(at).filter(is_header) else { return Some(false) };
            let kind = block[156];
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.copy(begin, at, &block, &said);
            }
            let Some(size) = number(&block[124..136]).and_then(|size| usize::try_from(size).ok()) else {
                return Some(false);
            };
            let Some(content) = self.tar.get(at + BLOCK..(at + BLOCK).saturating_add(size)) else {
                return Some(false);
            };
            match kind {
                b'L' => said.long_path = until_nul(content),
                b'K' => said.long_target = until_nul(content),
                b'x' => {
                    let Some(records) = records(content) else { return Some(false) };
                    let last = |key: &str| {
                        let found = records.iter().rev().find(|(name, _)| name == key.as_bytes());
                        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
                    };
                    said.path = last("GNU.sparse.name").or_else(|| last("path"));
                    said.target = last("linkpath");
                    said.size = last("size").and_then(|value| String::from_utf8(value).ok()?.parse().ok());
                    said.map_bytes = last("GNU.sparse.major").is_some();
                }
                _ => {}
            }
            at += BLOCK + size.next_multiple_of(BLOCK);
        }
    }

    /// Copies from here to the header, its payload too.
    fn copy(&mut self, begin: usize, header: usize, block: &[u8; BLOCK], said: &Said) -> Option<bool> {
        let kind = block[156];
        let named = |long: &Option<Vec<u8>>, pax: &Option<Vec<u8>>| long.clone().or_else(|| pax.clone());
        let path = named(&said.long_path, &said.path);
        let target = named(&said.long_target, &said.target);
        let is_link = kind == b'1';
        let mut at = begin;
        while at < header {
            let mut extended = self.block(at)?;
            let size = usize::try_from(number(&extended[124..136])?).ok()?;
            let content = &self.tar[at + BLOCK..at + BLOCK + size];
            let content = match extended[156] {
                b'L' if until_nul(content).is_some() => below(content),
                b'K' if is_link && until_nul(content).is_some() => below(content),
                b'x' => {
                    let mut records = records(content)?;
                    for (key, value) in records.iter_mut().filter(|(_, value)| !value.is_empty()) {
                        let names = matches!(&key[..], b"path" | b"GNU.sparse.name");
                        if names || is_link && key == b"linkpath" {
                            *value = below(value);
                        }
                    }
                    pax_records(&records)
                }
                _ => content.to_vec(),
            };
            if content.len() != size {
                extended[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
            }
            self.out.extend_from_slice(&summed(extended));
            self.out.extend_from_slice(&content);
            self.out.resize(self.out.len().next_multiple_of(BLOCK), 0);
            at += BLOCK + size.next_multiple_of(BLOCK);
        }
        let mut changed = *block;
        let ustar = &block[257..265] == b"ustar\x0000";
        let written = field(&block[..100]);
        let prefix = if ustar { field(&block[345..500]) } else { b"" };
        let of_header = if prefix.is_empty() { written.to_vec() } else { [prefix, b"/", written].concat() };
        if path.is_none() {
            if ustar && prefix.is_empty() {
                changed[345..351].copy_from_slice(b"rootfs");
            } else if ustar {
                put(&mut changed[345..500], &below(prefix))?;
            } else {
                put(&mut changed[..100], &below(written))?;
            }
        }
        if is_link && target.is_none() {
            put(&mut changed[157..257], &below(field(&block[157..257])))?;
        }
        self.out.extend_from_slice(&summed(changed));
        let path = path.unwrap_or(of_header);
        self.note(&path);
        let is_dir = kind == b'5' || kind == 0 && path.ends_with(b"/");
        let has_content = matches!(kind, b'0' | b'7' | b'S' | 0) && !is_dir;
        let size = said.size.or_else(|| number(&block[124..136]));
        let size = if has_content { usize::try_from(size?).ok()? } else { 0 };
        let mut at = header + BLOCK;
        let mut more = kind == b'S' && block[482] != 0;
        while more {
            let Some(extension) = self.block(at) else { break };
            self.out.extend_from_slice(&extension);
            more = extension[504] != 0;
            at += BLOCK;
        }
        let end =
            at.saturating_add(size).checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX).min(self.tar.len());
        self.out.extend_from_slice(&self.tar[at.min(end)..end]);
        self.at = end;
        Some(true)
    }

    fn note(&mut self, path: &[u8]) {
        let names: Vec<_> =
            path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
        self.signs |= names.iter().any(|name| name.starts_with(b".wh."));
        // What leads upwards is refused for that.
        let leads_up = names.contains(&&b".."[..]) || path.contains(&0);
        self.twice |= !self.paths.insert(names.join(&b'/')) && !leads_up;
    }
}

fn below(path: &[u8]) -> Vec<u8> {
    [ROOTFS, path].concat()
}

fn put(field: &mut [u8], value: &[u8]) -> Option<()> {
    field.fill(0);
    field.get_mut(..value.len())?.copy_from_slice(value);
    Some(())
}

fn field(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(field(bytes).to_vec()).filter(|text| !text.is_empty())
}

/// Octal among blanks, or base-256.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (zeros, value) = field[1..].split_at(field.len() - 9);
        return zeros.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(value.try_into().unwrap()));
    }
    let text = String::from_utf8_lossy(field);
    let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn records(mut content: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = vec![];
    while !content.is_empty() {
        let space = content.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&content[..space]).ok()?.parse().ok()?;
        let record = content.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        found.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        content = &content[length..];
    }
    Some(found)
}

fn sum(block: &[u8; BLOCK]) -> u64 {
    let byte = |(at, byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(byte).sum()
}

/// Whether its checksum is right, as the sum of bytes with or without a sign.
fn is_header(block: &[u8; BLOCK]) -> bool {
    let byte = |(at, byte): (usize, &u8)| {
        i64::from(if (148..156).contains(&at) { b' ' } else { *byte }.cast_signed())
    };
    let signed: i64 = block.iter().enumerate().map(byte).sum();
    let said = number(&block[148..156]);
    block != &[0; BLOCK] && (said == Some(sum(block)) || said.is_some() && said == u64::try_from(signed).ok())
}

fn summed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    let sum = sum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

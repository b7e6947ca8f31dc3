//! Where the members of a tar archive lie: one walk over its headers, without reading data.
//!
//! The walk is our own rather than the tar crate's: that holds long names and PAX headers of any stated length in
//! memory and takes an archive that ends early for one that is complete. Header fields are still decoded by the crate.
//! Of members of the same name the last counts, as it would after extraction.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keelblock_actors::error::quote;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::stop::Stop;
use tar::{EntryType, Header};

use super::error::ArchiveError;
use super::extended::{Pending, extends};
use crate::limits::Limits;

const BLOCK: u64 = 512;
/// Where a header has its type flag.
const TYPE_AT: usize = 156;
type Block = [u8; BLOCK as usize];
/// Bytes of names and link targets that the index holds for each member allowed, on average: an ID and `/layer.tar`
/// take 74.
const NAME_BYTES: u64 = 256;
/// Links followed from one name: `docker save` makes chains of one.
const HOPS_MAX: usize = 16;

/// An open archive and the places of its members.
#[derive(Debug)]
pub(super) struct TarIndex {
    /// What messages call it: the archive as the user named it.
    pub(super) archive: PathBuf,
    /// Where its bytes are: the same, or a spooled file.
    pub(super) bytes: PathBuf,
    file: File,
    members: HashMap<String, Member>,
    /// Whether the end mark was there.
    ended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File(Extent),
    /// To another member, by name; `None` = out of the archive.
    Link(Option<String>),
    Other(&'static str),
}

/// A member's data in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl TarIndex {
    /// Walks the headers of `file`, which is an uncompressed tar.
    pub(super) fn read(
        archive: &Path,
        bytes: &Path,
        file: File,
        limits: &Limits,
        stop: &Stop,
    ) -> Result<Self, ArchiveError> {
        let mut index = Self {
            archive: archive.to_owned(),
            bytes: bytes.to_owned(),
            file,
            members: HashMap::new(),
            ended: false,
        };
        index.walk(limits, stop)?;
        Ok(index)
    }

    fn walk(&mut self, limits: &Limits, stop: &Stop) -> Result<(), ArchiveError> {
        let length = self.file.metadata().map_err(|source| self.unread(source))?.len();
        let (mut at, mut headers, mut name_bytes) = (0, 0, 0);
        let mut pending = Pending::default();
        while let Some(block) = self.header(at, length, &pending)? {
            if stop.is_raised() {
                return Err(ArchiveError::Stopped { archive: self.archive.clone() });
            }
            headers += 1;
            if headers > limits.archive_members_max {
                return Err(self.too_many(limits.archive_members_max as u64, "members"));
            }
            let header = Header::from_byte_slice(&block);
            let (name, kind, extent, next) = self.entry(at, length, header, &pending)?;
            if extends(kind) {
                if extent.size > limits.pax_bytes_max as u64 {
                    let (archive, limit) = (self.archive.clone(), limits.pax_bytes_max as u64);
                    let (unit, flag) = ("bytes of extended headers of one entry", "pax_bytes_max");
                    return Err(ArchiveError::Limit { archive, limit, unit, flag });
                }
                let bytes = self.bytes_at(extent)?;
                pending.take(kind, &bytes).ok_or_else(|| self.invalid(at))?;
            } else {
                let link = pending.link().map(<[u8]>::to_vec);
                let target = link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                // Names that are no text or lead out of the archive are none that anybody asks for.
                if let Some(key) = name.and_then(|name| normal("", &name)) {
                    name_bytes += (key.len() + target.as_ref().map_or(0, Vec::len)) as u64;
                    let limit = (limits.archive_members_max as u64).saturating_mul(NAME_BYTES);
                    if name_bytes > limit {
                        return Err(self.too_many(limit, "bytes of member names, 256 to a member"));
                    }
                    let member = member(kind, &key, extent, target);
                    self.members.insert(key, member);
                }
                pending = Pending::default();
            }
            at = next;
        }
        Ok(())
    }

    /// The header at a place; `None` at the end of the archive.
    fn header(&mut self, at: u64, length: u64, pending: &Pending) -> Result<Option<Block>, ArchiveError> {
        let block = self.block(at)?;
        match block {
            Some(block) if block.iter().any(|&byte| byte != 0) => {
                let stated = Header::from_byte_slice(&block).cksum().ok();
                return if stated == Some(checksum(&block)) {
                    Ok(Some(block))
                } else {
                    Err(self.invalid(at))
                };
            }
            Some(_) => self.ended = true,
            // Some writers leave the end mark out; an empty file or half a header is no archive.
            None if at == 0 || at < length => return Err(self.invalid(at)),
            None => {}
        }
        // A header announced by an extended one must follow.
        if pending.is_empty() { Ok(None) } else { Err(self.invalid(at)) }
    }

    /// What a header says: name (unless it is no text), kind, where the data is, and where the next header is.
    fn entry(
        &self,
        at: u64,
        length: u64,
        header: &Header,
        pending: &Pending,
    ) -> Result<(Option<String>, EntryType, Extent, u64), ArchiveError> {
        let mut kind = header.entry_type();
        let name = match pending.path() {
            Some(path) if !extends(kind) => path.to_vec(),
            _ => header.path_bytes().into_owned(),
        };
        // Before there was a type for directories their names ended in a slash.
        if header.as_bytes()[TYPE_AT] == 0 && name.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        let stated = header.entry_size().map_err(|_| self.invalid(at))?;
        let size = match pending.size {
            _ if has_no_data(kind) => 0,
            Some(size) if !extends(kind) => size,
            _ => stated,
        };
        let name = String::from_utf8(name).ok();
        let mut data = at + BLOCK;
        if kind.is_gnu_sparse() {
            data = self.after_sparse_map(header, data)?.ok_or_else(|| self.invalid(at))?;
        }
        let next = size.checked_next_multiple_of(BLOCK).and_then(|size| data.checked_add(size));
        match next {
            // The last member's padding may be missing, its data may not.
            Some(next) if data + size <= length => Ok((name, kind, Extent { offset: data, size }, next)),
            _ => {
                let member = quote(name.as_deref().unwrap_or_default());
                Err(ArchiveError::Truncated { archive: self.archive.clone(), member })
            }
        }
    }

    /// Whether there is a member of this name, of whatever kind.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The names of all members.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Where the data of a member is, links followed within the archive.
    pub(super) fn find(&self, name: &str) -> Result<Extent, ArchiveError> {
        let link = |wrong| {
            let (archive, member) = (self.archive.clone(), quote(name));
            Err(ArchiveError::Link { archive, member, wrong })
        };
        let Some(mut at) = normal("", name) else { return Err(self.missing(name)) };
        for _ in 0..=HOPS_MAX {
            match self.members.get(&at) {
                None => return Err(self.missing(if at == name { name } else { &at })),
                Some(Member::File(extent)) => return Ok(*extent),
                Some(Member::Link(Some(target))) => at.clone_from(target),
                Some(Member::Link(None)) => return link("out of the archive"),
                Some(Member::Other(found)) => {
                    let (archive, member) = (self.archive.clone(), quote(name));
                    return Err(ArchiveError::NotRegular { archive, member, found });
                }
            }
        }
        link("in a circle")
    }

    /// The bytes of a document, at most `limit` of them.
    pub(super) fn document(
        &self,
        name: &str,
        limit: u64,
        flag: &'static str,
    ) -> Result<Vec<u8>, ArchiveError> {
        let extent = self.find(name)?;
        if extent.size > limit {
            let (archive, member) = (self.archive.clone(), quote(name));
            return Err(ArchiveError::TooLarge { archive, member, size: extent.size, limit, flag });
        }
        self.bytes_at(extent)
    }

    /// The data of a member, as it is read.
    pub(super) fn reader(&self, extent: Extent) -> impl io::Read {
        crate::puller::local::Extract::new(&self.file, extent.offset, extent.size)
    }

    /// An error for a member that is not there.
    pub(super) fn missing(&self, name: &str) -> ArchiveError {
        let hint = if self.ended { "" } else { "; it has no end mark, so it may be cut off" };
        ArchiveError::Missing { archive: self.archive.clone(), member: quote(name), hint }
    }

    fn invalid(&self, offset: u64) -> ArchiveError {
        ArchiveError::NotTar { archive: self.archive.clone(), offset }
    }

    fn too_many(&self, limit: u64, unit: &'static str) -> ArchiveError {
        ArchiveError::Limit { archive: self.archive.clone(), limit, unit, flag: "archive_members_max" }
    }

    pub(super) fn unread(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read { archive: self.archive.clone(), source }
    }

    /// One block, or `None` where the file ends.
    fn block(&self, at: u64) -> Result<Option<Block>, ArchiveError> {
        let mut block = [0; BLOCK as usize];
        match self.file.read_exact_at(&mut block, at) {
            Ok(()) => Ok(Some(block)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(self.unread(source)),
        }
    }

    /// Bytes whose extent was checked against a limit and the length of the file.
    fn bytes_at(&self, extent: Extent) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; usize::try_from(extent.size).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, extent.offset).map_err(|source| self.unread(source))?;
        Ok(bytes)
    }

    /// Where the data of a GNU sparse member begins: behind the rest of its map.
    fn after_sparse_map(&self, header: &Header, mut at: u64) -> Result<Option<u64>, ArchiveError> {
        let mut more = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
        while more {
            let Some(block) = self.block(at)? else { return Ok(None) };
            // GNU tar, `struct sparse_header`: 21 entries of 24 bytes, then the flag.
            more = block[504] != 0;
            at += BLOCK;
        }
        Ok(Some(at))
    }
}

/// Kinds that no data follows, whatever size they state (POSIX ustar; Go's archive/tar, `isHeaderOnly`). A reader that
/// skips data there sees other members than one that does not.
fn has_no_data(kind: EntryType) -> bool {
    kind.is_symlink()
        || kind.is_hard_link()
        || kind.is_dir()
        || kind.is_character_special()
        || kind.is_block_special()
        || kind.is_fifo()
}

fn member(kind: EntryType, key: &str, extent: Extent, target: Option<Vec<u8>>) -> Member {
    let target = target.and_then(|target| String::from_utf8(target).ok());
    let beside = key.rsplit_once('/').map_or("", |(parent, _)| parent);
    match kind {
        EntryType::Regular | EntryType::Continuous => Member::File(extent),
        // An absolute target means the archive's root, as it would after a chroot.
        EntryType::Symlink => {
            let from = |target: &str| if target.starts_with('/') { "" } else { beside };
            Member::Link(target.and_then(|target| normal(from(&target), &target)))
        }
        EntryType::Link => Member::Link(target.and_then(|target| normal("", &target))),
        EntryType::Directory => Member::Other("a directory"),
        EntryType::GNUSparse => Member::Other("a sparse file"),
        _ => Member::Other("a special file"),
    }
}

/// `path` seen from the directory `from`, without `.`, `..` and doubled slashes; `None` when it leads out.
pub(super) fn normal(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The sum of all bytes, those of the checksum field counted as blanks.
fn checksum(block: &Block) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..])
}

/// Compares bytes with the digest that names them.
pub(super) fn verify(
    archive: &Path,
    member: &str,
    bytes: &[u8],
    expected: &Digest,
) -> Result<(), ArchiveError> {
    let mut hasher = expected.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected {
        return Ok(());
    }
    let (archive, member) = (archive.to_owned(), quote(member));
    Err(ArchiveError::WrongDigest { archive, member, expected: expected.clone(), actual })
}

//! Reads a tar as a stream of members: the one place that decides what belongs to a header and what is payload.
//!
//! Layouts and names of fields come from the tar crate's `Header`. Its entry iterator is not used: it takes payload
//! for directories, splits extended headers at line breaks, holds them without a limit and knows no PAX sparse
//! files. Where readers differ, Go's archive/tar is followed, which docker, containerd and podman build, push and
//! unpack with:
//! - entries that cannot have content (links, directories, devices, fifos) have none, whatever their size field;
//! - an extended header wins over the header, a GNU long name over both, the last of several records over the others,
//!   and an empty record or long name counts as none;
//! - of two extended headers in a row the first counts for nothing;
//! - a tar ends at two zero blocks or at the end of the stream; what follows the zero blocks is only hashed; one zero
//!   block before another header is an error;
//! - global extended headers change nothing. One that would change names or sizes, had we listened to it, is an error:
//!   other tools do listen.
//!
//! Nothing is unpacked here, and payload is lent out of the buffers it came in.

mod extended;
mod number;
mod pax;
mod sparse;

pub(super) use sparse::Segment;

use bytes::Bytes;

use self::extended::{Extended, global};
use super::flaw::{EntryError, Flaw};
use super::foreign;

/// Size of everything in a tar.
const BLOCK: usize = 512;
/// Where the bytes come from.
pub(super) trait Source {
    /// The next bytes, as many as are at hand; empty = the end.
    fn fill(&mut self) -> Result<&[u8], Flaw>;
    /// Marks so many of them as used.
    fn consume(&mut self, bytes: usize);
    /// The same, and gives them away to be read later, without a copy where that can be.
    fn lend(&mut self, bytes: usize) -> Bytes;
}

impl<S: Source + ?Sized> Source for &mut S {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        (**self).fill()
    }

    fn consume(&mut self, bytes: usize) {
        (**self).consume(bytes);
    }

    fn lend(&mut self, bytes: usize) -> Bytes {
        (**self).lend(bytes)
    }
}

/// What a reader may be asked to hold or to go through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) entries_max: u64,
    pub(super) path_bytes_max: usize,
    pub(super) xattr_bytes_max: usize,
    pub(super) pax_bytes_max: usize,
}

/// What a member is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    File,
    HardLink,
    Symlink,
    Char {
        major: i64,
        minor: i64,
    },
    Block {
        major: i64,
        minor: i64,
    },
    Directory,
    Fifo,
}

/// One member, all headers merged.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// As written, neither cleaned nor checked.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Target of a link, as written.
    pub(super) target: Vec<u8>,
    /// Permission bits, setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) uid: i64,
    pub(super) gid: i64,
    /// Seconds since 1970 and nanoseconds after that.
    pub(super) mtime: (i64, u32),
    /// Length of the file as a process will see it.
    pub(super) size: u64,
    /// Where the payload goes in the file. `None` = the whole file from the start.
    pub(super) sparse: Option<Vec<Segment>>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    /// Bytes of content that come with it.
    pub(super) fn content_bytes(&self) -> u64 {
        match &self.sparse {
            _ if self.kind != Kind::File => 0,
            None => self.size,
            Some(segments) => segments.iter().fold(0, |sum: u64, segment| sum.saturating_add(segment.length)),
        }
    }
}

/// See the module.
pub(super) struct Reader<S> {
    source: S,
    bounds: Bounds,
    entries: u64,
    /// Bytes of the tar that were read.
    place: u64,
    /// Payload of the current member not yet lent out.
    left: u64,
    /// Zeros after it, up to a block.
    padding: u64,
}

impl<S: Source> Reader<S> {
    pub(super) fn new(source: S, bounds: Bounds) -> Self {
        Self { source, bounds, entries: 0, place: 0, left: 0, padding: 0 }
    }

    /// The next member; what was not read of the one before is skipped. `None` = the end of the tar.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Flaw> {
        self.skip_payload()?;
        let mut extended: Option<Extended> = None;
        loop {
            let Some(block) = self.header_block()? else {
                if extended.is_some() {
                    return Err(Flaw::tar("it ends after an extended header that describes nothing"));
                }
                return Ok(None);
            };
            let header = tar::Header::from_byte_slice(&block);
            match block[156] {
                b'g' => {
                    // Go forgets the one before it, others do not.
                    if extended.is_some() {
                        return Err(Flaw::tar(
                            "a global extended header stands between a header and its entry",
                        ));
                    }
                    let bytes = self.extension(header, 0)?;
                    global(&bytes)?;
                }
                kind @ (b'x' | b'L' | b'K') => {
                    let extended = extended.get_or_insert_default();
                    let bytes = self.extension(header, extended.bytes)?;
                    extended.bytes += bytes.len();
                    let text = || bytes.split(|byte| *byte == 0).next().filter(|text| !text.is_empty());
                    match kind {
                        b'L' => extended.long_path = text().map(Into::into),
                        b'K' => extended.long_target = text().map(Into::into),
                        _ => {
                            extended.forget_records();
                            extended.read(&bytes, &self.bounds)?;
                        }
                    }
                }
                _ => {
                    self.entries += 1;
                    if self.entries > self.bounds.entries_max {
                        return Err(Flaw::Limit {
                            limit: self.bounds.entries_max,
                            unit: "entries",
                            flag: "layer_entries_max",
                        });
                    }
                    return self.member(header, extended.unwrap_or_default()).map(Some);
                }
            }
        }
    }

    /// The next payload bytes of the current member, at most `max` of them; empty only when there are no more or
    /// `max` is 0. To be followed by [`Self::advance`].
    pub(super) fn payload(&mut self, max: u64) -> Result<&[u8], Flaw> {
        let max = usize::try_from(max.min(self.left)).unwrap_or(usize::MAX);
        if max == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill()?;
        if bytes.is_empty() {
            return Err(Flaw::tar("it ends in the middle of a file"));
        }
        Ok(&bytes[..bytes.len().min(max)])
    }

    /// So much payload of the current member, which must have it, in the pieces it came in.
    pub(super) fn lend(&mut self, bytes: u64) -> Result<Vec<Bytes>, Flaw> {
        let mut pieces = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let length = self.payload(left)?.len();
            pieces.push(self.source.lend(length));
            self.left -= length as u64;
            self.place += length as u64;
            left -= length as u64;
        }
        Ok(pieces)
    }

    /// How many bytes of the tar were read up to here.
    pub(super) fn place(&self) -> u64 {
        self.place
    }

    /// Marks payload as used.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.consume(bytes);
        self.left -= bytes as u64;
    }

    fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.place += bytes as u64;
    }

    /// Reads what follows the end of the tar, so that it is hashed, and gives the source back.
    pub(super) fn finish(mut self) -> Result<S, Flaw> {
        loop {
            match self.source.fill()?.len() {
                0 => return Ok(self.source),
                some => self.consume(some),
            }
        }
    }

    fn skip_payload(&mut self) -> Result<(), Flaw> {
        while self.left > 0 {
            let bytes = self.payload(u64::MAX)?.len();
            self.advance(bytes);
        }
        while self.padding > 0 {
            let bytes = self.source.fill()?.len();
            if bytes == 0 {
                // Go accepts a last file without its padding, and so do its users' images.
                self.padding = 0;
                break;
            }
            let bytes = bytes.min(usize::try_from(self.padding).unwrap_or(usize::MAX));
            self.consume(bytes);
            self.padding -= bytes as u64;
        }
        Ok(())
    }

    fn begin_payload(&mut self, bytes: u64) {
        self.left = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK as u64;
    }

    /// One block; `None` = the stream ended before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Flaw> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return if have == 0 {
                    Ok(None)
                } else {
                    Err(self.no_header(&block[..have], "it ends in the middle of a header"))
                };
            }
            let more = bytes.len().min(BLOCK - have);
            block[have..have + more].copy_from_slice(&bytes[..more]);
            self.consume(more);
            have += more;
        }
        Ok(Some(block))
    }

    /// The next header, its checksum checked; `None` = the end of the tar.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, Flaw> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; BLOCK] {
            return match self.block()? {
                Some(next) if next != [0; BLOCK] => {
                    Err(Flaw::tar("a lone zero block stands before another header"))
                }
                _ => Ok(None),
            };
        }
        let declared = number::field(&block[148..156]);
        let spaced =
            block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        // Some old writers summed signed bytes.
        let unsigned: i64 = spaced.clone().map(i64::from).sum();
        let signed: i64 = spaced.map(|byte| i64::from(byte as i8)).sum();
        if declared != Some(unsigned) && declared != Some(signed) {
            return Err(self.no_header(&block, "the checksum of a header is wrong"));
        }
        Ok(Some(block))
    }

    /// The block just read is no header; the first of all may tell what the layer is instead.
    fn no_header(&self, block: &[u8], why: &'static str) -> Flaw {
        match foreign::name(block) {
            Some(name) if self.place <= BLOCK as u64 => Flaw::foreign(name, None),
            _ => Flaw::tar(why),
        }
    }

    /// The content of an extended header.
    fn extension(&mut self, header: &tar::Header, already: usize) -> Result<Vec<u8>, Flaw> {
        let size = unsigned(number::field(&header.as_old().size)).ok_or_else(|| bad_field("size"))?;
        let room = self.bounds.pax_bytes_max.saturating_sub(already);
        if size > room as u64 {
            return Err(self.bounds.too_much_extended());
        }
        self.begin_payload(size);
        let mut content = Vec::with_capacity(size as usize);
        while self.left > 0 {
            let bytes = self.payload(u64::MAX)?;
            content.extend_from_slice(bytes);
            let length = bytes.len();
            self.advance(length);
        }
        self.skip_payload()?;
        Ok(content)
    }

    fn member(&mut self, header: &tar::Header, mut extended: Extended) -> Result<Member, Flaw> {
        let path = extended.long_path.take().or(extended.path.take());
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = extended.long_target.take().or(extended.target.take());
        let target = target.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default();
        let fields = header.as_old();
        let of_pax = |record: &Option<Vec<u8>>, field: &[u8], name| {
            let value = match record {
                Some(text) => number::decimal(text),
                None => number::field(field),
            };
            value.ok_or_else(|| bad_field(name))
        };
        let uid = of_pax(&extended.uid, &fields.uid, "uid")?;
        let gid = of_pax(&extended.gid, &fields.gid, "gid")?;
        let size = of_pax(&extended.size, &fields.size, "size")?;
        let mtime = match &extended.mtime {
            Some(text) => number::seconds(text),
            None => number::field(&fields.mtime).map(|seconds| (seconds, 0)),
        };
        let mut member = Member {
            kind: kind(header, &path)?,
            path,
            target,
            mode: (number::field(&fields.mode).ok_or_else(|| bad_field("mode"))? & 0o7777) as u32,
            uid,
            gid,
            mtime: mtime.ok_or_else(|| bad_field("mtime"))?,
            size: unsigned(Some(size)).ok_or_else(|| bad_field("size"))?,
            sparse: None,
            xattrs: extended.xattrs,
        };
        if member.kind != Kind::File {
            member.size = 0;
        }
        self.begin_payload(member.size);
        self.find_sparse(header, extended.sparse, &mut member)?;
        for (what, bytes) in [(&member.path, "bytes in a path"), (&member.target, "bytes in a link target")] {
            if what.len() > self.bounds.path_bytes_max {
                let limit = self.bounds.path_bytes_max as u64;
                return Err(Flaw::Limit { limit, unit: bytes, flag: "path_bytes_max" });
            }
        }
        Ok(member)
    }

    /// Sets size, name and map of a sparse file, whichever of the four ways it is written.
    fn find_sparse(
        &mut self,
        header: &tar::Header,
        records: sparse::Records,
        member: &mut Member,
    ) -> Result<(), Flaw> {
        let old = header.as_bytes()[156] == b'S';
        if !old && records.is_empty() {
            return Ok(());
        }
        let wrong = |path: &[u8], why| Flaw::Entry { path: path.to_vec(), source: EntryError::Sparse(why) };
        let map = if old {
            let Some(gnu) = header.as_gnu() else {
                return Err(wrong(&member.path, "the header is not GNU tar's"));
            };
            let size = unsigned(number::field(&gnu.realsize));
            member.size = size.ok_or_else(|| wrong(&member.path, "no real size"))?;
            let mut map = Vec::new();
            let more = sparse::old_descriptors(&gnu.sparse, gnu.isextended[0] != 0, &mut map);
            let mut more = more.map_err(|why| wrong(&member.path, why))?;
            // Descriptors go on in blocks of their own, before the payload and not counted in its size.
            let payload = (self.left, self.padding);
            let mut bytes = 0;
            while more {
                bytes += BLOCK;
                if bytes > self.bounds.pax_bytes_max {
                    return Err(self.bounds.too_much_extended());
                }
                let block = self.block()?.ok_or_else(|| Flaw::tar("it ends in a sparse map"))?;
                let mut next = tar::GnuExtSparseHeader::new();
                next.as_mut_bytes().copy_from_slice(&block);
                let described = sparse::old_descriptors(next.sparse(), next.isextended[0] != 0, &mut map);
                more = described.map_err(|why| wrong(&member.path, why))?;
            }
            (self.left, self.padding) = payload;
            Ok(map)
        } else {
            if member.kind != Kind::File {
                return Err(wrong(&member.path, "it is no file"));
            }
            if let Some(name) = &records.name {
                member.path.clone_from(name);
            }
            if let Some(size) = &records.size {
                let size: Option<i64> = number::decimal(size);
                member.size = unsigned(size).ok_or_else(|| wrong(&member.path, "no real size"))?;
            }
            match records.form() {
                None => return Err(wrong(&member.path, "its version is unknown")),
                Some(sparse::Form::Records) => records.map(),
                Some(sparse::Form::Payload) => self.map_in_payload(&member.path)?,
            }
        };
        let map = map.and_then(|map| sparse::fits(map, member.size, self.left));
        member.sparse = Some(map.map_err(|why| wrong(&member.path, why))?);
        Ok(())
    }

    /// The map of PAX sparse 1.0: decimal lines at the head of the payload, padded to a block.
    fn map_in_payload(&mut self, path: &[u8]) -> Result<Result<Vec<Segment>, &'static str>, Flaw> {
        let mut parser = sparse::Lines::default();
        let mut bytes = 0;
        while !parser.is_done() {
            bytes += BLOCK;
            if bytes > self.bounds.pax_bytes_max {
                return Err(self.bounds.too_much_extended());
            }
            if self.left < BLOCK as u64 {
                return Ok(Err("it is longer than its file"));
            }
            let block = self.block()?.ok_or_else(|| Flaw::tar("it ends in a sparse map"))?;
            self.left -= BLOCK as u64;
            if let Err(why) = parser.feed(&block) {
                return Err(Flaw::Entry { path: path.to_vec(), source: EntryError::Sparse(why) });
            }
        }
        Ok(Ok(parser.finish()))
    }
}

impl Bounds {
    fn too_much_extended(&self) -> Flaw {
        let limit = self.pax_bytes_max as u64;
        Flaw::Limit { limit, unit: "bytes of extended headers of one entry", flag: "pax_bytes_max" }
    }
}

fn kind(header: &tar::Header, path: &[u8]) -> Result<Kind, Flaw> {
    let device = || {
        let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
            (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
            (None, None) => return Ok((0, 0)),
        };
        let major = number::field(major).ok_or_else(|| bad_field("devmajor"))?;
        Ok((major, number::field(minor).ok_or_else(|| bad_field("devminor"))?))
    };
    Ok(match header.as_bytes()[156] {
        // Before there was a type for directories their names ended in a slash.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => device().map(|(major, minor)| Kind::Char { major, minor })?,
        b'4' => device().map(|(major, minor)| Kind::Block { major, minor })?,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            let source = EntryError::Type(char::from(other));
            return Err(Flaw::Entry { path: path.to_vec(), source });
        }
    })
}

fn unsigned(value: Option<i64>) -> Option<u64> {
    value.and_then(|value| u64::try_from(value).ok())
}

fn bad_field(name: &'static str) -> Flaw {
    Flaw::Stream { what: "tar", source: format!("the {name} of an entry is not a number in range").into() }
}

#[cfg(test)]
mod tests;

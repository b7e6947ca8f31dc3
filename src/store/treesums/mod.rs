//! What each name of a layer's tree is, kept beside the tree, so that it can be told later whether it still is: kind, mode,
//! owner, size, time, target, a sum of its xattrs and one of its content.
//!
//! Nothing is read back for it, and the tree is not walked: what is made is noted when it is made ([`notes`]), content is
//! summed while it is written, and when all is there the notes are put in order of paths and written to the file `sums`
//! ([`mod@compile`]). Only what cannot be known from what was asked for (xattrs, which the kernel may rewrite; a second name of
//! a file whose first is gone) is asked of the filesystem then. [`mod@verify`] compares the file with the tree. Memory is bounded,
//! whatever the layer's size.
//!
//! ```text
//! sums: MAGIC, sum of the ID maps (u32), entries in order of paths ('/' before any other byte)
//! entry: bytes of its path that are those of the path before, how many follow, those, and what it is ([`Fact`])
//! ```
//!
//! Numbers are little endian, seven bits a byte (LEB128). SHA-256 of the file is in `layer.json`.

mod compile;
mod notes;
mod verify;

use std::io::{self, Read};

use keelblock_actors::image::digest::Digest;
use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

pub(in crate::store) use self::compile::compile;
pub(super) use self::notes::{Act, Notes};
pub(super) use self::verify::verify;
use super::attributes::Set;
use super::tar::Member;

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"KBTREE1\n";
/// Bytes of one path, target or list of runs at most: more is no file of ours. 16 MiB: far above what a tar may say.
const FIELD_BYTES_MAX: u64 = 16 << 20;

/// What the record keeps of a tree's sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeSums {
    /// Of the file.
    pub bytes: u64,
    /// Names in the tree, its root among them.
    pub names: u64,
    /// SHA-256 of the file.
    pub sums: Digest,
}

/// The kinds of files that a tree has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File = 1,
    Directory,
    Symlink,
    Char,
    Block,
    Fifo,
    /// Another name of a file that has a name already.
    Link,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::File, Self::Directory, Self::Symlink, Self::Char, Self::Block, Self::Fifo, Self::Link];

    fn of(stat: &Stat) -> Option<Self> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(Self::File),
            FileType::Directory => Some(Self::Directory),
            FileType::Symlink => Some(Self::Symlink),
            FileType::CharacterDevice => Some(Self::Char),
            FileType::BlockDevice => Some(Self::Block),
            FileType::Fifo => Some(Self::Fifo),
            _ => None,
        }
    }
}

/// What is at a name. `None` = it is not known, and not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) kind: Kind,
    /// Without the kind; of symlinks 0.
    pub(super) mode: u32,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mtime: Option<(i64, u32)>,
    /// Of files.
    pub(super) size: u64,
    /// Of devices.
    pub(super) device: u64,
    /// CRC-32 of the content, without holes.
    pub(super) content: Option<u32>,
    /// Where a file with holes has content: offset and length. Empty = everywhere.
    pub(super) runs: Vec<(u64, u64)>,
    /// Of a symlink what it says, of another name the first one.
    pub(super) target: Vec<u8>,
    /// Sum of its xattrs; 0 = it has none.
    pub(super) xattrs: u32,
    /// The filesystem is to be asked when all is made.
    pub(super) ask: bool,
}

impl Fact {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            mode: 0,
            owner: None,
            mtime: None,
            size: 0,
            device: 0,
            content: None,
            runs: Vec::new(),
            target: Vec::new(),
            xattrs: 0,
            ask: false,
        }
    }

    /// A directory of which the filesystem knows more than we do.
    pub(super) fn dir_to_ask() -> Self {
        Self { ask: true, ..Self::new(Kind::Directory) }
    }

    /// What an entry is after this was set of it.
    pub(super) fn made(kind: Kind, member: &Member, set: &Set) -> Self {
        let mode = if kind == Kind::Symlink { 0 } else { member.mode & 0o7777 };
        // That of a directory comes when nothing is made in it any more.
        let mtime = (kind != Kind::Directory).then_some(member.mtime);
        Self { mode, mtime, owner: set.owner, ask: set.ask, ..Self::new(kind) }
    }

    fn is_whiteout(&self) -> bool {
        self.kind == Kind::Char && self.device == 0
    }

    /// Adds all that it says.
    fn write(&self, to: &mut Vec<u8>) {
        let flags = [
            self.owner.is_some(),
            self.mtime.is_some(),
            self.content.is_some(),
            !self.runs.is_empty(),
            self.xattrs != 0,
            self.ask,
        ];
        to.push(self.kind as u8);
        to.push(flags.iter().enumerate().map(|(bit, is)| u8::from(*is) << bit).sum());
        number(to, self.mode.into());
        if let Some((uid, gid)) = self.owner {
            number(to, uid.into());
            number(to, gid.into());
        }
        if let Some((seconds, nanos)) = self.mtime {
            // Zigzag: small ones are short, also before 1970.
            number(to, ((seconds << 1) ^ (seconds >> 63)).cast_unsigned());
            number(to, nanos.into());
        }
        number(to, self.size);
        number(to, self.device);
        if let Some(content) = self.content {
            to.extend_from_slice(&content.to_le_bytes());
        }
        if !self.runs.is_empty() {
            number(to, self.runs.len() as u64);
            for (offset, length) in &self.runs {
                number(to, *offset);
                number(to, *length);
            }
        }
        bytes(to, &self.target);
        if self.xattrs != 0 {
            to.extend_from_slice(&self.xattrs.to_le_bytes());
        }
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        let [kind, flags] = exactly::<2>(from)?;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind).ok_or_else(malformed)?;
        let flag = |bit: u8| flags & (1 << bit) != 0;
        let mut fact = Self::new(kind);
        fact.mode = small(from)?;
        if flag(0) {
            fact.owner = Some((small(from)?, small(from)?));
        }
        if flag(1) {
            let zigzag = read_number(from)?;
            let seconds = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
            fact.mtime = Some((seconds, small(from)?));
        }
        fact.size = read_number(from)?;
        fact.device = read_number(from)?;
        if flag(2) {
            fact.content = Some(u32::from_le_bytes(exactly(from)?));
        }
        if flag(3) {
            let runs = read_number(from)?;
            if runs > FIELD_BYTES_MAX / 2 {
                return Err(malformed());
            }
            for _ in 0..runs {
                fact.runs.push((read_number(from)?, read_number(from)?));
            }
        }
        fact.target = read_bytes(from)?;
        if flag(4) {
            fact.xattrs = u32::from_le_bytes(exactly(from)?);
        }
        fact.ask = flag(5);
        Ok(fact)
    }

    /// What of it is not as the filesystem says, if anything is.
    fn differs(&self, stat: &Stat, owners: bool) -> Option<&'static str> {
        if Kind::of(stat) != Some(self.kind) {
            return Some("another kind of file");
        }
        if self.kind != Kind::Symlink && stat.st_mode & 0o7777 != self.mode {
            return Some("another mode");
        }
        if owners && self.owner.is_some_and(|owner| owner != (stat.st_uid, stat.st_gid)) {
            return Some("another owner");
        }
        if self.kind == Kind::File && stat.st_size.cast_unsigned() != self.size {
            return Some("another size");
        }
        if matches!(self.kind, Kind::Char | Kind::Block) && stat.st_rdev != self.device {
            return Some("another device");
        }
        let found = (stat.st_mtime, stat.st_mtime_nsec as u32);
        if self.mtime.is_some_and(|mtime| !is_time(mtime, found)) {
            return Some("another time");
        }
        None
    }
}

/// Whether a filesystem that was given a time may show this one: some keep whole seconds, or microseconds, and none all of those
/// that a tar can say.
fn is_time((seconds, nanos): (i64, u32), found: (i64, u32)) -> bool {
    let kept_by_all = 0..i64::from(i32::MAX);
    !kept_by_all.contains(&seconds)
        || seconds == found.0
            && [1, 100, 1_000, 1_000_000_000].iter().any(|unit| nanos / unit * unit == found.1)
}

/// Sum of the xattrs that a layer may have brought; 0 = there are none. Labels of this machine do not count.
fn sum_of_xattrs(dir: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> io::Result<u32> {
    use crate::sys::beneath;
    const OURS: [&[u8]; 4] = [b"user.", b"trusted.", b"security.capability", b"system.posix_acl_"];
    let mut names = beneath::xattr_names(dir, name)?;
    names.retain(|name| OURS.iter().any(|ours| name.starts_with(ours)));
    if names.is_empty() {
        return Ok(0);
    }
    names.sort();
    let mut sum = crc32fast::Hasher::new();
    for xattr in names {
        let value = beneath::xattr(dir, name, &xattr)?.unwrap_or_default();
        for part in [&xattr, &value] {
            sum.update(&(part.len() as u64).to_le_bytes());
            sum.update(part);
        }
    }
    Ok(sum.finalize().max(1))
}

/// Sum of the maps of user and group IDs: in a user namespace with others the same file has another owner.
fn sum_of_id_maps() -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        // Where they cannot be read they are the same each time.
        sum.update(&std::fs::read(map).unwrap_or_default());
    }
    sum.finalize()
}

fn number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    number(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

fn read_number(from: &mut impl Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = exactly::<1>(from)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(malformed())
}

fn small(from: &mut impl Read) -> io::Result<u32> {
    u32::try_from(read_number(from)?).map_err(|_| malformed())
}

fn read_bytes(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = read_number(from)?;
    if length > FIELD_BYTES_MAX {
        return Err(malformed());
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn exactly<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not what this program writes")
}

/// A name in a directory.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_comes_back_as_it_was_written() {
        let full = Fact {
            mode: 0o4755,
            owner: Some((0, u32::MAX - 1)),
            mtime: Some((-5, 999_999_999)),
            size: u64::MAX,
            device: 0x0102_0304_0506,
            content: Some(7),
            runs: vec![(0, 10), (1 << 40, 1)],
            target: b"../x\xff".to_vec(),
            xattrs: 9,
            ask: true,
            ..Fact::new(Kind::File)
        };
        for fact in Kind::ALL.map(Fact::new).into_iter().chain([full]) {
            let mut written = Vec::new();
            fact.write(&mut written);
            let mut from = &written[..];
            assert_eq!((Fact::read(&mut from).unwrap(), from), (fact, &b""[..]));
            for cut in 0..written.len() {
                assert!(Fact::read(&mut &written[..cut]).is_err());
            }
        }
    }

    #[test]
    fn times_are_compared_as_coarsely_as_filesystems_keep_them() {
        for (said, found, same) in [
            ((7, 123_456_789), (7, 123_456_789), true),
            ((7, 123_456_789), (7, 0), true),
            ((7, 123_456_789), (7, 123_456_700), true),
            ((7, 123_456_789), (7, 123_456_788), false),
            ((7, 0), (6, 0), false),
            ((1 << 40, 0), ((1 << 34) - 1, 0), true),
        ] {
            assert_eq!(is_time(said, found), same, "{said:?} {found:?}");
        }
    }
}

//! What a power cut leaves: the notes up to a moment, less what no sync had forced to disk and the cut took.
//!
//! What was synced is there. Of the rest a [`Model`] says what may be lost, and a seed says what is: each *cell* (a name
//! in a directory, a block of a file, its size, an attribute) is as it was at some moment between its last sync and the cut.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, utimensat};

use super::record::{Ino, Kind, Op, Time};

/// How a filesystem loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// It does not: the process was killed.
    Nothing,
    /// All that no sync covers.
    Everything,
    /// Names and attributes reach the disk in order, and any sync forces all of them so far; content comes when it comes,
    /// or never: a file may have its size and no content, or its name and no size. As ext4 with `data=writeback` or
    /// delayed allocation.
    Ordered,
    /// Anything in any order, each half of a rename by itself. A directory that two names lead to then keeps one of them,
    /// as a check of the filesystem would have it.
    Lax,
}

pub(crate) struct Cut<'a, T> {
    ops: &'a [Op<T>],
    model: Model,
    seed: u64,
    synced: HashMap<Ino, usize>,
    all_synced: usize,
    any_synced: usize,
    /// Metadata of the ordered model is as it was at this moment.
    metadata_until: usize,
    block_bytes: u64,
}

#[derive(Default)]
struct Inode {
    kind: Option<Kind>,
    mode: u32,
    owner: (u32, u32),
    mtime: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    blocks: Vec<u8>,
    size: u64,
}

impl<'a, T> Cut<'a, T> {
    /// A cut behind the last of these operations.
    pub(crate) fn new(ops: &'a [Op<T>], model: Model, seed: u64) -> Self {
        let (mut synced, mut all_synced, mut any_synced) = (HashMap::new(), 0, 0);
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::Sync(ino) => drop(synced.insert(*ino, at)),
                Op::SyncAll => all_synced = at,
                _ => continue,
            }
            any_synced = at;
        }
        let span = (ops.len() - any_synced) as u64;
        let metadata_until = match mix(seed, 1) % 3 {
            0 => ops.len(),
            1 => any_synced,
            _ => any_synced + (mix(seed, 2) % (span + 1)) as usize,
        };
        let block_bytes = if mix(seed, 3).is_multiple_of(2) { 512 } else { 4096 };
        Self { ops, model, seed, synced, all_synced, any_synced, metadata_until, block_bytes }
    }

    /// Whether an operation is on disk, by its number, the inode that a sync would have to name, and its cell.
    fn stays(&self, at: usize, owner: Ino, cell: Cell<'_>) -> bool {
        let base = self.all_synced.max(self.synced.get(&owner).copied().unwrap_or(0));
        if at < base {
            return true;
        }
        let is_content = matches!(cell, Cell::Block(_) | Cell::Size);
        match self.model {
            Model::Nothing => return true,
            Model::Everything => return false,
            Model::Ordered if !is_content => return at < self.any_synced || at < self.metadata_until,
            Model::Ordered | Model::Lax => {}
        }
        // Some cuts take all of a kind, or none.
        match (mix(self.seed, 4) % 8, is_content) {
            (0, true) | (1, false) => return false,
            (0, false) | (1, true) | (2, false) => return true,
            _ => {}
        }
        let hash = mix(self.seed ^ cell.hash(), owner);
        let until = match hash % 4 {
            0 => self.ops.len(),
            1 => base,
            _ => base + (mix(hash, 5) as usize % (self.ops.len() - base + 1)),
        };
        at < until
    }

    /// Makes what is left, in a directory that is there and empty.
    pub(crate) fn make(&self, at: &Path) {
        let mut inodes: HashMap<Ino, Inode> = HashMap::new();
        let mut names: BTreeMap<Ino, BTreeMap<&[u8], Ino>> = BTreeMap::new();
        for (number, op) in self.ops.iter().enumerate() {
            match op {
                Op::Make { ino, kind, mode, owner } => {
                    // Whether anything leads to it is another matter.
                    let inode = inodes.entry(*ino).or_default();
                    (inode.kind, inode.mode, inode.owner) = (Some(kind.clone()), *mode, *owner);
                }
                Op::Names(changes) => {
                    for (dir, name, to) in changes {
                        if !self.stays(number, *dir, Cell::Name(name)) {
                            continue;
                        }
                        let names = names.entry(*dir).or_default();
                        match to {
                            Some(ino) => names.insert(name, *ino),
                            None => names.remove(&name[..]),
                        };
                    }
                }
                Op::Write { ino, offset, data } => {
                    let inode = inodes.entry(*ino).or_default();
                    let end = offset + data.len() as u64;
                    if inode.blocks.len() < end as usize {
                        inode.blocks.resize(end as usize, 0);
                    }
                    let mut from = *offset;
                    while from < end {
                        let block = from / self.block_bytes;
                        let to = ((block + 1) * self.block_bytes).min(end);
                        if self.stays(number, *ino, Cell::Block(block)) {
                            let bytes = &data[(from - offset) as usize..(to - offset) as usize];
                            inode.blocks[from as usize..to as usize].copy_from_slice(bytes);
                        }
                        from = to;
                    }
                    if self.stays(number, *ino, Cell::Size) {
                        inode.size = inode.size.max(end);
                    }
                }
                Op::Size { ino, size } if self.stays(number, *ino, Cell::Size) => {
                    let inode = inodes.entry(*ino).or_default();
                    inode.blocks.truncate(*size as usize);
                    inode.size = *size;
                }
                Op::Mode { ino, mode } if self.stays(number, *ino, Cell::Mode) => {
                    inodes.entry(*ino).or_default().mode = *mode;
                }
                Op::Owner { ino, owner } if self.stays(number, *ino, Cell::Owner) => {
                    inodes.entry(*ino).or_default().owner = *owner;
                }
                Op::Times { ino, mtime } if self.stays(number, *ino, Cell::Times) => {
                    inodes.entry(*ino).or_default().mtime = Some(*mtime);
                }
                Op::Xattr { ino, name, value } if self.stays(number, *ino, Cell::Xattr(name)) => {
                    let xattrs = &mut inodes.entry(*ino).or_default().xattrs;
                    match value {
                        Some(value) => xattrs.insert(name.clone(), value.clone()),
                        None => xattrs.remove(name),
                    };
                }
                _ => {}
            }
        }
        let parents = self.parents(&inodes, &names);
        let mut made = HashMap::new();
        make_names(at, 1, &inodes, &names, &parents, &mut made);
    }

    /// Of directories with several names, the one that stays.
    fn parents<'n>(
        &self,
        inodes: &HashMap<Ino, Inode>,
        names: &BTreeMap<Ino, BTreeMap<&'n [u8], Ino>>,
    ) -> HashMap<Ino, (Ino, &'n [u8])> {
        let mut all: BTreeMap<Ino, Vec<(Ino, &[u8])>> = BTreeMap::new();
        for (dir, names) in names {
            for (name, ino) in names {
                if inodes.get(ino).is_some_and(|inode| inode.kind == Some(Kind::Directory)) {
                    all.entry(*ino).or_default().push((*dir, name));
                }
            }
        }
        all.into_iter().map(|(ino, names)| (ino, names[mix(self.seed, ino) as usize % names.len()])).collect()
    }
}

/// What is on disk or not by itself.
#[derive(Clone, Copy)]
enum Cell<'a> {
    Name(&'a [u8]),
    Block(u64),
    Size,
    Mode,
    Owner,
    Times,
    Xattr(&'a [u8]),
}

impl Cell<'_> {
    fn hash(self) -> u64 {
        let text = |start, text: &[u8]| text.iter().fold(start, |hash, byte| mix(hash, u64::from(*byte)));
        match self {
            Self::Name(name) => text(1, name),
            Self::Block(block) => mix(2, block),
            Self::Size => 3,
            Self::Mode => 4,
            Self::Owner => 5,
            Self::Times => 6,
            Self::Xattr(name) => text(7, name),
        }
    }
}

/// Two numbers stirred into one (the finish of splitmix64).
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut hash = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn make_names(
    at: &Path,
    dir: Ino,
    inodes: &HashMap<Ino, Inode>,
    names: &BTreeMap<Ino, BTreeMap<&[u8], Ino>>,
    parents: &HashMap<Ino, (Ino, &[u8])>,
    made: &mut HashMap<Ino, PathBuf>,
) {
    for (name, ino) in names.get(&dir).into_iter().flatten() {
        let path = at.join(OsStr::from_bytes(name));
        let Some(inode) = inodes.get(ino) else { continue };
        if let Some(first) = made.get(ino) {
            if inode.kind != Some(Kind::Directory) {
                std::fs::hard_link(first, &path).unwrap();
            }
            continue;
        }
        match &inode.kind {
            Some(Kind::Directory) => {
                if parents.get(ino) != Some(&(dir, *name)) {
                    continue;
                }
                std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
                make_names(&path, *ino, inodes, names, parents, made);
            }
            Some(Kind::File) => {
                let mut content = inode.blocks.clone();
                content.resize(inode.size as usize, 0);
                let mut file =
                    std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
                std::io::Write::write_all(&mut file, &content).unwrap();
            }
            Some(Kind::Symlink(target)) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Some(Kind::Node(bits, rdev)) => {
                let kind = FileType::from_raw_mode(*bits);
                // The kernel's encoding of a device number in 32 bits.
                let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00));
                let device = rustix::fs::makedev(major, minor);
                mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device).unwrap();
            }
            None => continue,
        }
        dress(&path, inode);
        made.insert(*ino, path);
    }
}

fn dress(path: &Path, inode: &Inode) {
    lchown(path, Some(inode.owner.0), Some(inode.owner.1)).unwrap();
    if !matches!(inode.kind, Some(Kind::Symlink(_))) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(inode.mode)).unwrap();
    }
    for (name, value) in &inode.xattrs {
        rustix::fs::lsetxattr(path, OsStr::from_bytes(name), value, XattrFlags::empty()).unwrap();
    }
    if let Some((seconds, nanos)) = inode.mtime {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

//! The names of an image: what stands in memory until the directories are written.
//!
//! A name is 24 bytes, its text, and some four in a hash table of all names of all directories. Names that go away
//! leave their record behind, which serves when the same name comes again; directories that go away are merely not
//! reached any more.

use std::hash::BuildHasher;
use std::hash::RandomState;

use super::chunked::Chunked;
use super::directories::Packed;
use super::error::Error;
use super::format::{Kind, NAME_BYTES_MAX};
use super::metadata::Place;
use super::xattrs::Xattrs;

/// No name, in lists of them.
pub(super) const NONE: u32 = u32::MAX;
/// Bytes of a piece of the arena, in which texts lie; none lies in two.
const ARENA_BYTES: usize = 64 << 10;
const TABLE_SLOTS_MIN: usize = 1024;

/// A directory of the image. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirId(pub(super) u32);

/// What every inode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, setuid, setgid and sticky.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds after that.
    pub mtime: (i64, u32),
}

impl Attributes {
    /// Root's, from the beginning of 1970.
    pub fn new(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: (0, 0) }
    }
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A directory.
    Directory(DirId),
    /// A symlink, with its target.
    Symlink(super::Inode, &'a [u8]),
    /// Anything else.
    Other(super::Inode),
}

impl Found<'_> {
    /// The inode of all but directories.
    pub fn inode(self) -> Option<super::Inode> {
        match self {
            Self::Directory(_) => None,
            Self::Symlink(inode, _) | Self::Other(inode) => Some(inode),
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Nothing,
    Dir(DirId),
    Inode { place: Place, kind: Kind, tag: u8 },
}

/// One name.
pub(super) struct Name {
    /// In the arena: its text, and after that of a symlink two bytes of length and the target.
    text: u32,
    hash: u32,
    /// The directory it is in.
    dir: u32,
    /// The next of that directory.
    next: u32,
    /// Segment, or the directory it stands for.
    node: u32,
    slot: u16,
    length: u8,
    /// Of [`Kind`]; 0 = nothing; above that the tag of the inode, and [`LINKED`].
    what: u8,
}

/// Another name had the same inode at some time.
const LINKED: u8 = 0x80;
const TAG_SHIFT: u32 = 3;
/// Tags an inode can have: 4 bits.
pub(super) const TAG_MAX: u8 = 15;

/// A directory.
pub(super) struct Dir {
    pub(super) attributes: Attributes,
    pub(super) xattrs: Option<Box<Xattrs>>,
    /// Its own name; [`NONE`] = the root.
    name: u32,
    /// The first of its names.
    pub(super) first: u32,
    /// Directories in it, once they are counted.
    pub(super) subdirs: u32,
    /// Its inode, once that has a place; it and the following are `directories`'.
    pub(super) nid: u64,
    /// Its xattrs as they will be written.
    pub(super) body: Box<[u8]>,
    /// Of its entries.
    pub(super) listing: Packed,
    pub(super) first_block: u32,
}

/// See the module.
pub(super) struct Names {
    names: Chunked<Name>,
    pub(super) dirs: Chunked<Dir>,
    arena: Vec<Vec<u8>>,
    /// Numbers of names by hash, open addressing.
    table: Vec<u32>,
    hasher: RandomState,
    /// Bytes of memory, save what is small.
    used: usize,
    max: usize,
}

impl Names {
    pub(super) fn new(max: usize, root: Attributes) -> Self {
        let mut names = Self {
            names: Chunked::new(),
            dirs: Chunked::new(),
            arena: Vec::new(),
            table: vec![NONE; TABLE_SLOTS_MIN],
            hasher: RandomState::new(),
            used: 0,
            max,
        };
        names.dirs.push(Dir::new(root, NONE));
        names
    }

    /// Takes so much of the memory that there may be.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        let used = self.used.saturating_add(bytes);
        if used > self.max {
            return Err(Error::Names { max: self.max });
        }
        self.used = used;
        Ok(())
    }

    pub(super) fn give_back(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// The record of a name, if it has ever been one.
    fn find(&self, dir: DirId, name: &[u8]) -> Option<u32> {
        let hash = self.hash(dir.0, name);
        let mut slot = hash as usize;
        loop {
            let at = self.table[slot & (self.table.len() - 1)];
            if at == NONE {
                return None;
            }
            let found = &self.names[at];
            if found.hash == hash && found.dir == dir.0 && self.text(found) == name {
                return Some(at);
            }
            slot += 1;
        }
    }

    pub(super) fn node(&self, dir: DirId, name: &[u8]) -> Node {
        self.find(dir, name).map_or(Node::Nothing, |at| self.names[at].node())
    }

    pub(super) fn target(&self, dir: DirId, name: &[u8]) -> &[u8] {
        let Some(found) = self.find(dir, name).map(|at| &self.names[at]) else { return &[] };
        let after = self.bytes(found.text as usize + found.length as usize, 2);
        let length = u16::from_le_bytes([after[0], after[1]]);
        self.bytes(found.text as usize + found.length as usize + 2, length as usize)
    }

    /// Lets a name stand for something; a symlink has a target. The name is a possible one.
    pub(super) fn set(&mut self, dir: DirId, name: &[u8], node: Node, target: &[u8]) -> Result<u32, Error> {
        let at = match self.find(dir, name) {
            Some(at) => at,
            None if node == Node::Nothing => return Ok(NONE),
            None => self.insert(dir, name)?,
        };
        if !target.is_empty() {
            let mut text = Vec::with_capacity(name.len() + 2 + target.len());
            text.extend_from_slice(name);
            text.extend_from_slice(&(target.len() as u16).to_le_bytes());
            text.extend_from_slice(target);
            self.names[at].text = self.keep(&text)?;
        }
        self.names[at].set_node(node);
        Ok(at)
    }

    /// Takes note that the inode at a name has another name, too.
    pub(super) fn set_linked(&mut self, at: u32) {
        self.names[at].what |= LINKED;
    }

    pub(super) fn linked(&mut self, dir: DirId, name: &[u8]) {
        if let Some(at) = self.find(dir, name) {
            self.set_linked(at);
        }
    }

    pub(super) fn add_dir(
        &mut self,
        dir: DirId,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<DirId, Error> {
        self.charge(self.dirs.bytes_for_next())?;
        // Its place in the order of writing.
        self.charge(4)?;
        let id = DirId(self.dirs.len() as u32);
        let at = self.set(dir, name, Node::Dir(id), &[])?;
        self.dirs.push(Dir::new(attributes, at));
        Ok(id)
    }

    /// The directory that a directory is in; the root is in itself.
    pub(super) fn parent(&self, dir: DirId) -> DirId {
        match self.dirs[dir.0].name {
            NONE => dir,
            name => DirId(self.names[name].dir),
        }
    }

    /// Whether a directory is still where it was made, and all above it.
    pub(super) fn is_reached(&self, dir: DirId) -> bool {
        let mut dir = dir;
        while self.dirs[dir.0].name != NONE {
            let name = &self.names[self.dirs[dir.0].name];
            if name.node() != Node::Dir(dir) {
                return false;
            }
            dir = DirId(name.dir);
        }
        true
    }

    pub(super) fn remove_tagged(&mut self, dir: DirId, tag: u8) {
        let mut next = self.dirs[dir.0].first;
        while next != NONE {
            let name = &mut self.names[next];
            if matches!(name.node(), Node::Inode { tag: of, .. } if of == tag) {
                name.set_node(Node::Nothing);
            }
            next = name.next;
        }
    }

    pub(super) fn record(&self, at: u32) -> &Name {
        &self.names[at]
    }

    pub(super) fn set_next(&mut self, at: u32, next: u32) {
        self.names[at].next = next;
    }

    pub(super) fn text(&self, name: &Name) -> &[u8] {
        self.bytes(name.text as usize, name.length as usize)
    }

    fn bytes(&self, at: usize, length: usize) -> &[u8] {
        &self.arena[at / ARENA_BYTES][at % ARENA_BYTES..][..length]
    }

    fn insert(&mut self, dir: DirId, name: &[u8]) -> Result<u32, Error> {
        debug_assert!(name.len() <= NAME_BYTES_MAX, "names are checked before");
        // Four more for the sorting of a directory.
        self.charge(self.names.bytes_for_next() + 4)?;
        let at = self.names.len() as u32;
        if (self.names.len() + 1) * 4 > self.table.len() * 3 {
            self.grow()?;
        }
        let (text, hash) = (self.keep(name)?, self.hash(dir.0, name));
        let next = std::mem::replace(&mut self.dirs[dir.0].first, at);
        let length = name.len() as u8;
        self.names.push(Name { text, hash, dir: dir.0, next, node: 0, slot: 0, length, what: 0 });
        Self::enter(&mut self.table, hash, at);
        Ok(at)
    }

    fn grow(&mut self) -> Result<(), Error> {
        let slots = self.table.len() * 2;
        // The old one stays until the new one is filled.
        self.charge(slots * 4)?;
        let mut table = vec![NONE; slots];
        for at in self.table.iter().copied().filter(|at| *at != NONE) {
            Self::enter(&mut table, self.names[at].hash, at);
        }
        self.give_back(self.table.len() * 4);
        self.table = table;
        Ok(())
    }

    fn enter(table: &mut [u32], hash: u32, at: u32) {
        let mut slot = hash as usize & (table.len() - 1);
        while table[slot] != NONE {
            slot = (slot + 1) & (table.len() - 1);
        }
        table[slot] = at;
    }

    /// Its order is nowhere seen, and nobody outside can find names that collide.
    fn hash(&self, dir: u32, name: &[u8]) -> u32 {
        self.hasher.hash_one((dir, name)) as u32
    }

    /// Keeps a text; where.
    fn keep(&mut self, text: &[u8]) -> Result<u32, Error> {
        if self.arena.last().is_none_or(|last| last.len() + text.len() > ARENA_BYTES) {
            self.charge(ARENA_BYTES)?;
            self.arena.push(Vec::with_capacity(ARENA_BYTES));
        }
        let piece = self.arena.len().saturating_sub(1);
        let full = Error::Names { max: self.max };
        let Some(last) = self.arena.last_mut() else { return Err(full) };
        let at = u32::try_from(piece * ARENA_BYTES + last.len()).map_err(|_| full)?;
        last.extend_from_slice(text);
        Ok(at)
    }
}

impl Name {
    pub(super) fn node(&self) -> Node {
        match self.what & 7 {
            0 => Node::Nothing,
            2 => Node::Dir(DirId(self.node)),
            number => Node::Inode {
                place: Place { segment: self.node, slot: self.slot },
                kind: Kind::of_number(number),
                tag: self.what >> TAG_SHIFT & TAG_MAX,
            },
        }
    }

    fn set_node(&mut self, node: Node) {
        (self.node, self.slot, self.what) = match node {
            Node::Nothing => (0, 0, 0),
            Node::Dir(dir) => (dir.0, 0, Kind::Directory.number()),
            Node::Inode { place, kind, tag } => {
                (place.segment, place.slot, kind.number() | (tag & TAG_MAX) << TAG_SHIFT)
            }
        };
    }

    pub(super) fn is_linked(&self) -> bool {
        self.what & LINKED != 0
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }
}

impl Dir {
    fn new(attributes: Attributes, name: u32) -> Self {
        Self {
            attributes,
            xattrs: None,
            name,
            first: NONE,
            subdirs: 0,
            nid: 0,
            body: Box::default(),
            listing: Packed::default(),
            first_block: 0,
        }
    }
}

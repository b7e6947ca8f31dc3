//! Directories, written together at the end, when all names are known and all inodes have their places: a program that
//! walks the tree reads them in one go.
//!
//! First all directories are gone through in the order in which they will be written, their names sorted, and each is
//! given its place; then their inodes are written, with what does not fill a block after each; then the blocks.

use std::collections::BTreeMap;

use super::error::Error;
use super::format::{
    self, BLOCK, DIRENT_BYTES, INODE_BYTES, Kind, Layout, NLINK_AT, ROOT_AT, RawInode, SLOT,
};
use super::metadata::{Metadata, Place, has_room};
use super::names::{DirId, NONE, Name, Names, Node};
use super::output::Output;
use super::shared::{Share, Shared};

/// What a directory's entries take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed {
    /// Blocks before the last.
    full: u32,
    /// Bytes of the last one.
    last: u16,
    /// Whether that follows the inode.
    inline: bool,
}

impl Packed {
    fn of<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut full, mut used) = (0, 0);
        for name in names {
            let bytes = DIRENT_BYTES + name.len();
            if used + bytes > BLOCK {
                (full, used) = (full + 1, 0);
            }
            used += bytes;
        }
        Self { full, last: used as u16, inline: false }
    }

    fn size(self) -> u64 {
        u64::from(self.full) * BLOCK as u64 + u64::from(self.last)
    }

    /// Blocks of their own.
    fn blocks(self) -> u32 {
        self.full + u32::from(!self.inline)
    }

    /// Bytes after the inode.
    fn tail(self) -> usize {
        if self.inline { self.last as usize } else { 0 }
    }
}

/// What was found on the way.
pub(super) struct Written {
    pub(super) inodes: u64,
    /// The root's inode and what follows it, for its place in block 0.
    pub(super) root: Vec<u8>,
}

/// Writes all directories that are reached, and the numbers of names of inodes that have more than one.
pub(super) fn write(
    names: &mut Names,
    metadata: &Metadata,
    shared: &mut Shared,
    output: &mut Output<'_>,
) -> Result<Written, Error> {
    output.align()?;
    let base = output.block()?;
    let mut plan = Plan {
        names,
        shared,
        base: u64::from(base) * BLOCK as u64,
        bytes: 0,
        inodes: 0,
        links: BTreeMap::new(),
    };
    let order = plan.all()?;
    let Plan { bytes, inodes, links, .. } = plan;
    for (place, count) in links.into_iter().filter(|(_, count)| *count != 1) {
        output.patch(metadata.offset(place) + NLINK_AT, &count.to_le_bytes())?;
    }
    let mut block = u64::from(base) + bytes.div_ceil(BLOCK as u64);
    for dir in &order {
        let first = u32::try_from(block).map_err(|_| Error::Full)?;
        names.dirs[*dir].first_block = first;
        block += u64::from(names.dirs[*dir].listing.blocks());
    }
    let writing = Writing { names, metadata };
    let root = writing.inode(DirId(0));
    // The root comes first, and has its place in block 0.
    for dir in order.iter().skip(1) {
        let at = names.dirs[*dir].nid * SLOT as u64;
        output.zeros(at - output.position())?;
        output.push(&writing.inode(DirId(*dir)))?;
    }
    output.align()?;
    for dir in &order {
        writing.blocks(DirId(*dir), |block, inline| {
            if inline {
                return Ok(());
            }
            output.push(block)?;
            output.align()
        })?;
    }
    Ok(Written { inodes, root })
}

struct Plan<'a> {
    names: &'a mut Names,
    shared: &'a mut Shared,
    /// Where the inodes begin in the image.
    base: u64,
    /// Of inodes so far.
    bytes: u64,
    inodes: u64,
    /// Names of inodes that have had several.
    links: BTreeMap<Place, u32>,
}

impl Plan<'_> {
    /// All directories, each before those in it, in the order of their names.
    fn all(&mut self) -> Result<Vec<u32>, Error> {
        let (mut order, mut pending, mut children) = (Vec::new(), vec![0], Vec::new());
        while let Some(dir) = pending.pop() {
            order.push(dir);
            self.sort(DirId(dir), &mut children)?;
            let subdirs = children.iter().rev().filter_map(|child| match self.names.record(*child).node() {
                Node::Dir(dir) => Some(dir.0),
                _ => None,
            });
            let before = pending.len();
            pending.extend(subdirs);
            self.names.dirs[dir].subdirs = (pending.len() - before) as u32;
            self.place(DirId(dir))?;
        }
        Ok(order)
    }

    /// Sorts the names of a directory, and leaves out those that are gone.
    fn sort(&mut self, dir: DirId, children: &mut Vec<u32>) -> Result<(), Error> {
        children.clear();
        let mut next = self.names.dirs[dir.0].first;
        while next != NONE {
            let name = self.names.record(next);
            let node = name.node();
            if node != Node::Nothing {
                children.push(next);
            }
            if let Node::Inode { place, .. } = node {
                if name.is_linked() {
                    let count = self.links.entry(place).or_insert(0);
                    *count += 1;
                    self.inodes += u64::from(*count == 1);
                } else {
                    self.inodes += 1;
                }
            }
            next = name.next();
        }
        let names = &*self.names;
        children.sort_unstable_by(|a, b| names.text(names.record(*a)).cmp(names.text(names.record(*b))));
        let mut next = NONE;
        for child in children.iter().rev() {
            self.names.set_next(*child, next);
            next = *child;
        }
        self.names.dirs[dir.0].first = next;
        self.inodes += 1;
        Ok(())
    }

    /// Gives the inode its place.
    fn place(&mut self, dir: DirId) -> Result<(), Error> {
        let is_root = dir == DirId(0);
        let mut listing = Packed::of(Listing::of(self.names, dir).map(|(name, _)| name));
        let xattrs = self.names.dirs[dir.0].xattrs.take().unwrap_or_default();
        let share = if is_root { Share::All } else { Share::Repeated };
        let body = self.shared.encode(&xattrs, share)?;
        let head = INODE_BYTES + body.len();
        let nid = if is_root {
            if ROOT_AT + head > BLOCK {
                return Err(Error::Xattrs { bytes: body.len() });
            }
            listing.inline = ROOT_AT + head + listing.last as usize <= BLOCK;
            (ROOT_AT / SLOT) as u64
        } else {
            listing.inline = has_room(head, listing.last as usize);
            let bytes = (head + listing.tail()) as u64;
            if self.bytes % BLOCK as u64 + bytes > BLOCK as u64 {
                self.bytes = self.bytes.next_multiple_of(BLOCK as u64);
            }
            let at = self.base + self.bytes;
            self.bytes = (self.bytes + bytes).next_multiple_of(SLOT as u64);
            at / SLOT as u64
        };
        let dir = &mut self.names.dirs[dir.0];
        (dir.nid, dir.listing, dir.body) = (nid, listing, body.into());
        Ok(())
    }
}

struct Writing<'a> {
    names: &'a Names,
    metadata: &'a Metadata,
}

impl Writing<'_> {
    /// The inode with all that follows it.
    fn inode(&self, id: DirId) -> Vec<u8> {
        let dir = &self.names.dirs[id.0];
        let raw = RawInode {
            kind: Kind::Directory,
            attributes: &dir.attributes,
            layout: if dir.listing.inline {
                Layout::Inline(dir.first_block)
            } else {
                Layout::Plain(dir.first_block)
            },
            size: dir.listing.size(),
            xattr_bytes: dir.body.len(),
            nlink: 2 + dir.subdirs,
            serial: dir.nid as u32,
        };
        let mut bytes = raw.encode().to_vec();
        bytes.extend_from_slice(&dir.body);
        if dir.listing.inline {
            // Never an error: there is nothing to write to.
            let _ = self.blocks(id, |block, inline| {
                if inline {
                    bytes.extend_from_slice(block);
                }
                Ok(())
            });
        }
        bytes
    }

    /// The blocks of entries, each as far as it is used, and whether it follows the inode.
    fn blocks(&self, id: DirId, mut each: impl FnMut(&[u8], bool) -> Result<(), Error>) -> Result<(), Error> {
        let inline = self.names.dirs[id.0].listing.inline;
        let (mut entries, mut used) = (Vec::new(), 0);
        for entry in Listing::of(self.names, id) {
            let bytes = DIRENT_BYTES + entry.0.len();
            if used + bytes > BLOCK {
                each(&self.block(id, &entries, used), false)?;
                entries.clear();
                used = 0;
            }
            used += bytes;
            entries.push(entry);
        }
        each(&self.block(id, &entries, used), inline)
    }

    fn block(&self, id: DirId, entries: &[(&[u8], Listed<'_>)], used: usize) -> Vec<u8> {
        let mut block = Vec::with_capacity(used);
        let mut name_at = entries.len() * DIRENT_BYTES;
        for (name, listed) in entries {
            let (nid, kind) = match listed {
                Listed::Itself => (self.names.dirs[id.0].nid, Kind::Directory),
                Listed::Parent => (self.names.dirs[self.names.parent(id).0].nid, Kind::Directory),
                Listed::Child(name) => match name.node() {
                    Node::Dir(dir) => (self.names.dirs[dir.0].nid, Kind::Directory),
                    Node::Inode { place, kind, .. } => (self.metadata.offset(place) / SLOT as u64, kind),
                    Node::Nothing => continue,
                },
            };
            block.extend_from_slice(&format::dirent(nid, name_at as u16, kind));
            name_at += name.len();
        }
        entries.iter().for_each(|(name, _)| block.extend_from_slice(name));
        block
    }
}

/// The entries of a directory whose names are sorted, `.` and `..` in their places among them.
struct Listing<'a> {
    names: &'a Names,
    next: u32,
    dots: std::slice::Iter<'static, &'static [u8]>,
}

#[derive(Clone, Copy)]
enum Listed<'a> {
    Itself,
    Parent,
    Child(&'a Name),
}

const DOTS: [&[u8]; 2] = [b".", b".."];

impl<'a> Listing<'a> {
    fn of(names: &'a Names, dir: DirId) -> Self {
        Self { names, next: names.dirs[dir.0].first, dots: DOTS.iter() }
    }
}

impl<'a> Iterator for Listing<'a> {
    type Item = (&'a [u8], Listed<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let child = (self.next != NONE).then(|| self.names.record(self.next));
        let dot = self.dots.as_slice().first().copied();
        match (child, dot) {
            (Some(child), dot) if dot.is_none_or(|dot| self.names.text(child) < dot) => {
                self.next = child.next();
                Some((self.names.text(child), Listed::Child(child)))
            }
            (_, Some(dot)) => {
                self.dots.next();
                Some((dot, if dot.len() == 1 { Listed::Itself } else { Listed::Parent }))
            }
            _ => None,
        }
    }
}

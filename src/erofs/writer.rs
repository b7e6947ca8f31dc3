//! The writer: names in memory, inodes on disk.

use std::fs::File;

use super::directories;
use super::error::Error;
use super::file::{Content, Run};
use super::format::{self, BLOCK, Kind, Layout, NAME_BYTES_MAX, ROOT_AT, RawInode};
use super::metadata::{Metadata, Place, has_room};
use super::names::{Attributes, DirId, Found, Names, Node, TAG_MAX};
use super::output::{Output, Watch};
use super::shared::{Share, Shared};
use super::xattrs::Xattrs;

/// Bytes of a symlink's target: what the kernel reads, and takes.
const TARGET_BYTES_MAX: usize = 4095;
/// Bytes of a file's index from which on it is not gathered in memory.
const INDEX_BYTES_MAX: u64 = 64 << 10;

/// How an image is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most bytes of memory for names and directories; all else is some 3 MiB. 192 MiB: some three million names.
    pub names_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { names_bytes_max: 192 << 20 }
    }
}

/// An inode in the image, all but directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    place: Place,
    kind: Kind,
    tag: u8,
}

impl Inode {
    /// What it is.
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// A mark of the caller, of 4 bits, kept with the names of the inode; it is not in the image.
    pub fn tag(self) -> u8 {
        self.tag
    }

    /// The same with this mark.
    #[must_use]
    pub fn tagged(mut self, tag: u8) -> Self {
        self.tag = tag & TAG_MAX;
        self
    }

    /// Whether it is the same inode, whatever its mark.
    pub fn is(self, other: Self) -> bool {
        self.place == other.place
    }

    fn node(self) -> Node {
        Node::Inode { place: self.place, kind: self.kind, tag: self.tag }
    }
}

/// Files that are no files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Special {
    /// What its inode is.
    pub fn kind(self) -> Kind {
        match self {
            Self::Char(..) => Kind::Char,
            Self::Block(..) => Kind::Block,
            Self::Fifo => Kind::Fifo,
            Self::Socket => Kind::Socket,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the image, always whole blocks.
    pub bytes: u64,
    /// Inodes that are reached.
    pub inodes: u64,
    /// Where inodes are, offset and bytes, ascending: of the first 32 MiB of them.
    pub inodes_at: Vec<(u64, u64)>,
    /// Where directories begin: from here on all is names, up to the end.
    pub directories: u64,
}

/// Writes one image. See the [module](super).
///
/// Its methods are of three kinds: those that write an inode ([`Self::begin_file`], [`Self::content`],
/// [`Self::end_file`]; [`Self::special`]; [`Self::add_symlink`]), those that give names to inodes ([`Self::put`],
/// [`Self::link`], [`Self::make_dir`], [`Self::remove`]), and those that look at what is there. A name that is given
/// anew loses what it stood for; an inode without a name stays in the file, unreached.
pub struct Writer<'a> {
    output: Output<'a>,
    metadata: Metadata,
    shared: Shared,
    names: Names,
    content: Option<Content>,
    /// What of a file does not fill a block.
    tail: Vec<u8>,
    chunked: bool,
    inodes: u32,
}

impl<'a> Writer<'a> {
    /// Begins an image in an empty file that is open for reading and writing, and the checksums of its blocks in
    /// another: CRC-32, four bytes each. Nothing is written yet.
    pub fn new(image: File, sums: Option<File>, options: Options, watch: Box<dyn Watch + Send + 'a>) -> Self {
        Self {
            output: Output::new(image, sums, watch),
            metadata: Metadata::new(),
            shared: Shared::default(),
            names: Names::new(options.names_bytes_max, Attributes::new(0o755)),
            content: None,
            tail: Vec::with_capacity(BLOCK),
            chunked: false,
            inodes: 0,
        }
    }

    /// The root: root's, mode 0755, until [`Self::set_dir`] says otherwise.
    pub fn root(&self) -> DirId {
        DirId(0)
    }

    // ---- what is there ------------------------------------------------------------------------------------------

    /// What is at a name.
    pub fn lookup(&self, dir: DirId, name: &[u8]) -> Option<Found<'_>> {
        match self.names.node(dir, name) {
            Node::Nothing => None,
            Node::Dir(dir) => Some(Found::Directory(dir)),
            Node::Inode { place, kind: Kind::Symlink, tag } => {
                let inode = Inode { place, kind: Kind::Symlink, tag };
                Some(Found::Symlink(inode, self.names.target(dir, name)))
            }
            Node::Inode { place, kind, tag } => Some(Found::Other(Inode { place, kind, tag })),
        }
    }

    /// The directory a directory is in; the root is in itself.
    pub fn parent(&self, dir: DirId) -> DirId {
        self.names.parent(dir)
    }

    /// Whether a directory can still be reached from the root.
    pub fn is_reached(&self, dir: DirId) -> bool {
        self.names.is_reached(dir)
    }

    /// Attributes of a directory.
    pub fn dir(&self, dir: DirId) -> Attributes {
        self.names.dirs[dir.0].attributes
    }

    /// Xattrs of a directory.
    pub fn dir_xattrs(&self, dir: DirId) -> Option<&Xattrs> {
        self.names.dirs[dir.0].xattrs.as_deref()
    }

    // ---- directories and names ----------------------------------------------------------------------------------

    /// A new, empty directory, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Names`].
    pub fn make_dir(&mut self, dir: DirId, name: &[u8], attributes: Attributes) -> Result<DirId, Error> {
        check_name(name)?;
        self.names.add_dir(dir, name, attributes)
    }

    /// Sets the attributes and all xattrs of a directory.
    ///
    /// # Errors
    /// [`Error::Names`]; [`Error::Xattrs`] and [`Error::Xattr`] come at the end.
    pub fn set_dir(&mut self, dir: DirId, attributes: Attributes, xattrs: Xattrs) -> Result<(), Error> {
        self.names.charge(xattrs.memory())?;
        let place = &mut self.names.dirs[dir.0];
        place.attributes = attributes;
        let old = std::mem::replace(&mut place.xattrs, (!xattrs.is_empty()).then(|| Box::new(xattrs)));
        self.names.give_back(old.map_or(0, |old| old.memory()));
        Ok(())
    }

    /// Gives an inode a name that it alone has; symlinks have theirs from [`Self::add_symlink`].
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Names`].
    pub fn put(&mut self, dir: DirId, name: &[u8], inode: Inode) -> Result<(), Error> {
        check_name(name)?;
        self.names.set(dir, name, inode.node(), &[]).map(drop)
    }

    /// Gives the inode at a name another name; whether there was one that is no directory.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Names`].
    pub fn link(&mut self, from: DirId, existing: &[u8], dir: DirId, name: &[u8]) -> Result<bool, Error> {
        check_name(name)?;
        let node = self.names.node(from, existing);
        let Node::Inode { kind, .. } = node else { return Ok(false) };
        if (from, existing) == (dir, name) {
            return Ok(true);
        }
        // What is counted at the end.
        self.names.charge(64)?;
        let target = match kind {
            Kind::Symlink => self.names.target(from, existing).to_vec(),
            _ => Vec::new(),
        };
        let at = self.names.set(dir, name, node, &target)?;
        self.names.set_linked(at);
        self.names.linked(from, existing);
        Ok(true)
    }

    /// Takes a name away, and all below it if it is a directory's.
    pub fn remove(&mut self, dir: DirId, name: &[u8]) {
        // Nothing new is kept.
        let _ = self.names.set(dir, name, Node::Nothing, &[]);
    }

    /// Takes the names of inodes with this mark away from a directory.
    pub fn remove_tagged(&mut self, dir: DirId, tag: u8) {
        self.names.remove_tagged(dir, tag);
    }

    /// Takes memory for something of the caller's that grows with the image, within the limit for names.
    ///
    /// # Errors
    /// [`Error::Names`].
    pub fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.names.charge(bytes)
    }

    // ---- inodes -------------------------------------------------------------------------------------------------

    /// Begins a file, whose content comes by [`Self::content`].
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Sums`], [`Error::Full`].
    pub fn begin_file(&mut self) -> Result<(), Error> {
        self.content = Some(Content::whole(&mut self.output)?);
        Ok(())
    }

    /// The same of a file with holes: the content is that of the runs, one after the other.
    ///
    /// # Errors
    /// [`Error::Content`] for runs that are not ascending or beyond the size; else as [`Self::begin_file`].
    pub fn begin_sparse_file(&mut self, size: u64, runs: Vec<Run>) -> Result<(), Error> {
        self.content = Some(Content::sparse(size, runs, &mut self.output)?);
        Ok(())
    }

    /// More content of the file.
    ///
    /// # Errors
    /// [`Error::Content`] if no file was begun or there is more than its runs have; else as [`Self::begin_file`].
    pub fn content(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.content.as_mut().ok_or(Error::Content)?.push(bytes, &mut self.output)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`Error::Content`] if no file was begun or its runs have more; [`Error::Xattr`], [`Error::Xattrs`]; else as
    /// [`Self::begin_file`].
    pub fn end_file(&mut self, attributes: &Attributes, xattrs: &Xattrs) -> Result<Inode, Error> {
        let content = self.content.take().ok_or(Error::Content)?;
        let body = self.shared.encode(xattrs, Share::Repeated)?;
        match content {
            Content::Whole { block, bytes } => {
                let mut tail = std::mem::take(&mut self.tail);
                tail.clear();
                let head = format::INODE_BYTES + body.len();
                let inline = bytes > 0 && has_room(head, (bytes % BLOCK as u64) as usize);
                if inline {
                    self.output.take_back(&mut tail);
                }
                let layout = if tail.is_empty() { Layout::Plain(block) } else { Layout::Inline(block) };
                let inode = self.inode(Kind::File, attributes, layout, bytes, &body, &tail);
                self.tail = tail;
                inode
            }
            Content::Sparse(mut sparse) => {
                self.chunked = true;
                let size = sparse.end(&mut self.output)?;
                let (layout, index_bytes) = (sparse.layout(), sparse.index_bytes());
                if index_bytes <= INDEX_BYTES_MAX {
                    let mut index = Vec::with_capacity(index_bytes as usize);
                    sparse.index(|piece| {
                        index.extend_from_slice(piece);
                        Ok(())
                    })?;
                    return self.inode(Kind::File, attributes, layout, size, &body, &index);
                }
                let raw = self.raw(Kind::File, attributes, layout, size, &body);
                let place = self.metadata.add_large(&mut self.output)?;
                self.output.push(&raw)?;
                self.output.push(&body)?;
                sparse.index(|piece| self.output.push(piece))?;
                self.output.align()?;
                Ok(Inode { place, kind: Kind::File, tag: 0 })
            }
        }
    }

    /// A symlink of this name, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Target`], [`Error::Names`], [`Error::Xattr`], [`Error::Xattrs`]; else as
    /// [`Self::begin_file`].
    pub fn add_symlink(
        &mut self,
        dir: DirId,
        name: &[u8],
        target: &[u8],
        attributes: &Attributes,
        xattrs: &Xattrs,
    ) -> Result<(), Error> {
        check_name(name)?;
        if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
            return Err(Error::Target { bytes: target.len() });
        }
        let body = self.shared.encode(xattrs, Share::Repeated)?;
        let attributes = Attributes { mode: 0o777, ..*attributes };
        let size = target.len() as u64;
        let inode = if has_room(format::INODE_BYTES + body.len(), target.len()) {
            self.inode(Kind::Symlink, &attributes, Layout::Inline(0), size, &body, target)?
        } else {
            self.output.align()?;
            let block = self.output.block()?;
            self.output.push(target)?;
            self.output.align()?;
            self.inode(Kind::Symlink, &attributes, Layout::Plain(block), size, &body, &[])?
        };
        self.names.set(dir, name, inode.node(), target).map(drop)
    }

    /// A device, pipe or socket.
    ///
    /// # Errors
    /// [`Error::Xattr`], [`Error::Xattrs`]; else as [`Self::begin_file`].
    pub fn special(
        &mut self,
        special: Special,
        attributes: &Attributes,
        xattrs: &Xattrs,
    ) -> Result<Inode, Error> {
        let body = self.shared.encode(xattrs, Share::Repeated)?;
        let number = match special {
            Special::Char(major, minor) | Special::Block(major, minor) => format::device(major, minor),
            Special::Fifo | Special::Socket => 0,
        };
        self.inode(special.kind(), attributes, Layout::Device(number), 0, &body, &[])
    }

    fn inode(
        &mut self,
        kind: Kind,
        attributes: &Attributes,
        layout: Layout,
        size: u64,
        body: &[u8],
        tail: &[u8],
    ) -> Result<Inode, Error> {
        let raw = self.raw(kind, attributes, layout, size, body);
        let place = self.metadata.add(&[&raw, body, tail], &mut self.output)?;
        Ok(Inode { place, kind, tag: 0 })
    }

    fn raw(
        &mut self,
        kind: Kind,
        attributes: &Attributes,
        layout: Layout,
        size: u64,
        body: &[u8],
    ) -> [u8; format::INODE_BYTES] {
        self.inodes = self.inodes.wrapping_add(1);
        let (xattr_bytes, serial) = (body.len(), self.inodes);
        RawInode { kind, attributes, layout, size, xattr_bytes, nlink: 1, serial }.encode()
    }

    // ---- the end ------------------------------------------------------------------------------------------------

    /// Writes what stands in memory, and the superblock last.
    ///
    /// # Errors
    /// [`Error::Xattr`] and [`Error::Xattrs`] for directories; else as [`Self::begin_file`].
    pub fn finish(mut self) -> Result<Written, Error> {
        let output = &mut self.output;
        output.align()?;
        self.metadata.flush(output)?;
        output.align()?;
        let directories = output.position();
        let written = directories::write(&mut self.names, &self.metadata, &mut self.shared, output)?;
        output.align()?;
        let shared_xattrs = output.block()?;
        output.push(self.shared.table())?;
        output.align()?;
        if output.position() == directories && self.metadata.any() {
            // An inode ends the image, perhaps with its last byte; `fsck.erofs` reads what may follow one all the same.
            output.zeros(BLOCK as u64)?;
        }
        let blocks = output.block()?;
        let mut first = [0; BLOCK];
        first[ROOT_AT..ROOT_AT + written.root.len()].copy_from_slice(&written.root);
        let inodes = written.inodes;
        format::Super { inodes, blocks, shared_xattrs, chunked: self.chunked }.encode(&mut first);
        self.output.finish(&first)?;
        Ok(Written {
            bytes: u64::from(blocks) * BLOCK as u64,
            inodes,
            inodes_at: self.metadata.runs(),
            directories,
        })
    }
}

fn check_name(name: &[u8]) -> Result<(), Error> {
    let possible = (1..=NAME_BYTES_MAX).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|byte| matches!(byte, b'/' | 0));
    if possible { Ok(()) } else { Err(Error::Name { bytes: name.len() }) }
}

//! A small reader of images, after `docs/erofs.md` and not after the writer: what it does not expect it panics at.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = 4096;

/// Prefix number and rest of the name, and value.
type Xattrs = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// One inode as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) nid: u64,
    /// With the type.
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    /// Of a device.
    pub(crate) device: u32,
    pub(crate) xattrs: Xattrs,
    /// How many of them are shared.
    pub(crate) shared: usize,
    layout: u16,
    place: u32,
    /// Behind the xattrs.
    after: u64,
}

/// See the module.
pub(crate) struct Image {
    file: File,
    shared_at: u64,
    inodes: u64,
    pub(crate) blocks: u64,
    root: u64,
}

impl Image {
    /// Opens an image, and checks its superblock.
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let mut first = [0; BLOCK as usize];
        file.read_exact_at(&mut first, 0).unwrap();
        let raw = &first[1024..];
        assert_eq!(u32_at(raw, 0), 0xe0f5_e1e2, "no magic");
        let mut summed = raw.to_vec();
        summed[4..8].fill(0);
        assert_eq!(crc32c(&summed), u32_at(raw, 4), "the checksum of the superblock");
        assert_eq!((raw[12], u32_at(raw, 40)), (12, 0));
        let blocks = u64::from(u32_at(raw, 36));
        assert_eq!(file.metadata().unwrap().len(), blocks * BLOCK, "the superblock knows its size");
        Self {
            shared_at: u64::from(u32_at(raw, 44)) * BLOCK,
            inodes: u64_at(raw, 16),
            blocks,
            root: u64::from(u16_at(raw, 14)),
            file,
        }
    }

    /// All that is reached, by path; the root is empty. Directories are checked.
    pub(crate) fn all(&self) -> BTreeMap<Vec<u8>, Node> {
        let mut found = BTreeMap::new();
        let mut pending = vec![(Vec::new(), self.root, self.root)];
        let mut inodes = std::collections::BTreeSet::new();
        while let Some((path, nid, parent)) = pending.pop() {
            let node = self.node(nid);
            inodes.insert(nid);
            let mut subdirs = 0;
            for (name, child, kind) in self.entries(&node, parent) {
                let path = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
                inodes.insert(child);
                let inode = self.node(child);
                assert_eq!(kind, kind_of(inode.mode), "the type of {}", String::from_utf8_lossy(&path));
                if kind == 2 {
                    subdirs += 1;
                    pending.push((path, child, nid));
                } else {
                    found.insert(path, inode);
                }
            }
            assert_eq!(node.nlink, 2 + subdirs, "names of a directory");
            found.insert(path, node);
        }
        assert_eq!(self.inodes, inodes.len() as u64, "the superblock knows its inodes");
        found
    }

    pub(crate) fn node(&self, nid: u64) -> Node {
        let at = nid * 32;
        let raw = self.bytes(at, 64);
        assert!(at % BLOCK <= BLOCK - 64, "an inode lies in one block");
        let format = u16_at(&raw, 0);
        assert_eq!(format & 1, 1, "all inodes are extended");
        let xattr_bytes = match u16_at(&raw, 2) {
            0 => 0,
            count => 12 + 4 * (u64::from(count) - 1),
        };
        let (xattrs, shared) = self.xattrs(at + 64, xattr_bytes);
        Node {
            nid,
            mode: u16_at(&raw, 4),
            owner: (u32_at(&raw, 24), u32_at(&raw, 28)),
            mtime: (u64_at(&raw, 32) as i64, u32_at(&raw, 40)),
            nlink: u32_at(&raw, 44),
            size: u64_at(&raw, 8),
            device: u32_at(&raw, 16),
            xattrs,
            shared,
            layout: format >> 1,
            place: u32_at(&raw, 16),
            after: at + 64 + xattr_bytes,
        }
    }

    /// Content of a file, target of a symlink, entries of a directory.
    pub(crate) fn content(&self, node: &Node) -> Vec<u8> {
        let place = u64::from(node.place);
        let full = node.size / BLOCK * BLOCK;
        match node.layout {
            0 => self.bytes(place * BLOCK, node.size),
            2 => {
                let rest = node.size - full;
                assert!(node.after % BLOCK + rest <= BLOCK, "inline content lies in one block");
                [self.bytes(place * BLOCK, full), self.bytes(node.after, rest)].concat()
            }
            4 => {
                let mut content = vec![];
                for (chunk, block) in self.index(node) {
                    let bytes = (node.size - content.len() as u64).min(chunk);
                    match block {
                        None => content.resize(content.len() + bytes as usize, 0),
                        Some(block) => content.extend(self.bytes(u64::from(block) * BLOCK, bytes)),
                    }
                }
                content
            }
            other => panic!("layout {other}"),
        }
    }

    /// Size and first block of each chunk of a file.
    pub(crate) fn index(&self, node: &Node) -> Vec<(u64, Option<u32>)> {
        assert_eq!(node.layout, 4, "it is in chunks");
        let chunk = BLOCK << (node.place & 31);
        let raw = self.bytes(node.after, 4 * node.size.div_ceil(chunk));
        let block = |raw: &[u8]| Some(u32_at(raw, 0)).filter(|block| *block != u32::MAX);
        raw.chunks(4).map(|raw| (chunk, block(raw))).collect()
    }

    fn entries(&self, node: &Node, parent: u64) -> Vec<(Vec<u8>, u64, u8)> {
        assert_eq!(kind_of(node.mode), 2);
        let content = self.content(node);
        let mut all: Vec<(Vec<u8>, u64, u8)> = vec![];
        for block in content.chunks(BLOCK as usize) {
            let count = usize::from(u16_at(block, 8)) / 12;
            for entry in 0..count {
                let begins = usize::from(u16_at(block, entry * 12 + 8));
                let ends = if entry + 1 < count {
                    usize::from(u16_at(block, entry * 12 + 20))
                } else {
                    begins
                        + block[begins..].iter().position(|byte| *byte == 0).unwrap_or(block.len() - begins)
                };
                all.push((block[begins..ends].to_vec(), u64_at(block, entry * 12), block[entry * 12 + 10]));
            }
        }
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "names are sorted");
        let (dots, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(name, ..)| matches!(&name[..], b"." | b".."));
        assert_eq!(dots, [(b".".to_vec(), node.nid, 2), (b"..".to_vec(), parent, 2)]);
        others
    }

    fn xattrs(&self, at: u64, bytes: u64) -> (Xattrs, usize) {
        let mut found = BTreeMap::new();
        if bytes == 0 {
            return (found, 0);
        }
        let raw = self.bytes(at, bytes);
        let shared = usize::from(raw[4]);
        for place in raw[12..12 + 4 * shared].chunks(4) {
            let at = self.shared_at + 4 * u64::from(u32_at(place, 0));
            let head = self.bytes(at, 4);
            let length = 4 + u64::from(head[0]) + u64::from(u16_at(&head, 2));
            xattr(&self.bytes(at, length), &mut found);
        }
        let mut rest = &raw[12 + 4 * shared..];
        while !rest.is_empty() {
            let length = xattr(rest, &mut found);
            rest = &rest[length.next_multiple_of(4)..];
        }
        (found, shared)
    }

    fn bytes(&self, at: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Whether a file of checksums is that of this image.
    pub(crate) fn check_sums(&self, sums: &Path) {
        let sums = std::fs::read(sums).unwrap();
        assert_eq!(sums.len() as u64, 4 * self.blocks);
        for (number, sum) in sums.chunks(4).enumerate() {
            let block = self.bytes(number as u64 * BLOCK, BLOCK);
            assert_eq!(u32_at(sum, 0), crc32fast::hash(&block), "the checksum of block {number}");
        }
    }
}

fn xattr(raw: &[u8], found: &mut Xattrs) -> usize {
    let (name, value) = (4 + usize::from(raw[0]), usize::from(u16_at(raw, 2)));
    let before = found.insert((raw[1], raw[4..name].to_vec()), raw[name..name + value].to_vec());
    assert_eq!(before, None, "an xattr is there twice");
    name + value
}

/// In a directory entry.
fn kind_of(mode: u16) -> u8 {
    match mode >> 12 {
        0o10 => 1,
        0o04 => 2,
        0o02 => 3,
        0o06 => 4,
        0o01 => 5,
        0o14 => 6,
        0o12 => 7,
        other => panic!("type {other:o}"),
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    sum
}

fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(raw[at..at + 2].try_into().unwrap())
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(raw[at..at + 4].try_into().unwrap())
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(raw[at..at + 8].try_into().unwrap())
}

//! The structures on disk, little endian: superblock, inode, directory entry. See `docs/erofs.md`.

/// Bytes of a block, of the image and of everything in it.
pub const BLOCK: usize = 4096;
/// First word of the superblock.
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 255;

/// Where the superblock is.
pub(super) const SUPER_AT: usize = 1024;
const SUPER_BYTES: usize = 128;
/// Where the root's inode is: its number has 16 bits.
pub(super) const ROOT_AT: usize = SUPER_AT + SUPER_BYTES;
/// Inodes are where their number says, times this.
pub(super) const SLOT: usize = 32;
/// Bytes of an inode of the extended kind.
pub(super) const INODE_BYTES: usize = 64;
/// Bytes of a directory entry, its name not counted.
pub(super) const DIRENT_BYTES: usize = 12;
/// Bits of a block's size.
pub(super) const BLOCK_BITS: u32 = BLOCK.trailing_zeros();
/// Where the number of names is in an inode.
pub(super) const NLINK_AT: u64 = 44;
/// In a file's index: nothing but zeros.
pub(super) const HOLE: u32 = u32::MAX;

/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// Times are those of modification.
const COMPAT_MTIME: u32 = 2;
/// There are files in chunks.
const INCOMPAT_CHUNKED: u32 = 4;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A symlink.
    Symlink,
}

impl Kind {
    /// In a directory entry.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::Char => 3,
            Self::Block => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }

    pub(super) fn of_number(number: u8) -> Self {
        match number {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Char,
            4 => Self::Block,
            5 => Self::Fifo,
            6 => Self::Socket,
            _ => Self::Symlink,
        }
    }

    /// The upper bits of a mode.
    fn mode(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::Char => 0o020_000,
            Self::Directory => 0o040_000,
            Self::Block => 0o060_000,
            Self::File => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }
}

/// Where an inode's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks from this one on.
    Plain(u32),
    /// The same, but what does not fill a block follows the inode.
    Inline(u32),
    /// In chunks of so many bits, whose first blocks are listed after the inode.
    Chunks { bits: u32 },
    /// None: a device of this number.
    Device(u32),
}

/// An inode as it is written.
pub(super) struct RawInode<'a> {
    pub(super) kind: Kind,
    pub(super) attributes: &'a super::Attributes,
    pub(super) layout: Layout,
    pub(super) size: u64,
    /// What follows it at once.
    pub(super) xattr_bytes: usize,
    pub(super) nlink: u32,
    /// For programs with 32-bit inode numbers.
    pub(super) serial: u32,
}

impl RawInode<'_> {
    pub(super) fn encode(&self) -> [u8; INODE_BYTES] {
        let (layout, place) = match self.layout {
            Layout::Plain(block) => (0, block),
            Layout::Inline(block) => (2, block),
            Layout::Chunks { bits } => (4, bits - BLOCK_BITS),
            Layout::Device(number) => (0, number),
        };
        let mut raw = Fields::<INODE_BYTES>::new();
        raw.put(0, &(1u16 | layout << 1).to_le_bytes());
        raw.put(2, &xattr_count(self.xattr_bytes).to_le_bytes());
        raw.put(4, &(self.kind.mode() | self.attributes.mode & 0o7777).to_le_bytes());
        raw.put(8, &self.size.to_le_bytes());
        raw.put(16, &place.to_le_bytes());
        raw.put(20, &self.serial.to_le_bytes());
        raw.put(24, &self.attributes.uid.to_le_bytes());
        raw.put(28, &self.attributes.gid.to_le_bytes());
        raw.put(32, &self.attributes.mtime.0.to_le_bytes());
        raw.put(40, &self.attributes.mtime.1.to_le_bytes());
        raw.put(NLINK_AT as usize, &self.nlink.to_le_bytes());
        raw.0
    }
}

/// Bytes of the header of the xattrs after an inode.
pub(super) const XATTR_HEADER_BYTES: usize = 12;
/// Most bytes of xattrs after an inode: their number of words has 16 bits.
pub(super) const XATTR_BYTES_MAX: usize = XATTR_HEADER_BYTES + 4 * (u16::MAX as usize - 1);

/// The count in the inode: 0 = none; else the header is one, and each word after it.
fn xattr_count(bytes: usize) -> u16 {
    match bytes {
        0 => 0,
        bytes => (1 + bytes.saturating_sub(XATTR_HEADER_BYTES) / 4) as u16,
    }
}

/// A device's number as the kernel reads it: `new_encode_dev`.
pub(super) fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// A directory entry without its name.
pub(super) fn dirent(nid: u64, name_at: u16, kind: Kind) -> [u8; DIRENT_BYTES] {
    let mut raw = Fields::<DIRENT_BYTES>::new();
    raw.put(0, &nid.to_le_bytes());
    raw.put(8, &name_at.to_le_bytes());
    raw.put(10, &[kind.number()]);
    raw.0
}

/// What the superblock tells.
pub(super) struct Super {
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// Where the xattrs are that inodes share.
    pub(super) shared_xattrs: u32,
    pub(super) chunked: bool,
}

impl Super {
    /// Writes it into block 0, whose other parts are as they will be.
    pub(super) fn encode(&self, block: &mut [u8; BLOCK]) {
        let mut raw = Fields::<SUPER_BYTES>::new();
        raw.put(0, &MAGIC.to_le_bytes());
        raw.put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        raw.put(12, &[BLOCK_BITS as u8]);
        raw.put(14, &((ROOT_AT / SLOT) as u16).to_le_bytes());
        raw.put(16, &self.inodes.to_le_bytes());
        raw.put(36, &self.blocks.to_le_bytes());
        raw.put(44, &self.shared_xattrs.to_le_bytes());
        let incompat = if self.chunked { INCOMPAT_CHUNKED } else { 0 };
        raw.put(80, &incompat.to_le_bytes());
        block[SUPER_AT..ROOT_AT].copy_from_slice(&raw.0);
        let sum = crc32c(&block[SUPER_AT..]).to_le_bytes();
        block[SUPER_AT + 4..SUPER_AT + 8].copy_from_slice(&sum);
    }
}

/// CRC-32C, not inverted at the end. Of one block per image: a bit at a time will do.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// A structure that is filled field by field.
struct Fields<const N: usize>([u8; N]);

impl<const N: usize> Fields<N> {
    fn new() -> Self {
        Self([0; N])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_counts_are_those_of_the_format() {
        // The check value of CRC-32C, before its inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(xattr_count(0), 0);
        assert_eq!(xattr_count(12), 1);
        assert_eq!(xattr_count(XATTR_BYTES_MAX), u16::MAX);
        assert_eq!(device(0xabc, 0x12345), 0x123a_bc45);
    }
}

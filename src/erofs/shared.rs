//! Xattrs of inodes as bytes, and the table of those that inodes share.
//!
//! A value that comes a second time goes to the table, and from then on inodes name its place there. The table stands
//! in memory and is written at the end: places in it are counted from its own beginning.

use std::collections::{HashMap, HashSet};

use super::error::Error;
use super::format::{XATTR_BYTES_MAX, XATTR_HEADER_BYTES};
use super::xattrs::{self, Xattrs};

/// Bytes of the table, beyond which nothing more is shared. 256 KiB: layers have a few values that come often, or none.
const TABLE_BYTES_MAX: usize = 256 << 10;
/// Values that are remembered as having come once, by checksum. 16,384: 512 KiB at most.
const SEEN_MAX: usize = 16_384;
/// Shared xattrs of one inode: their number has 8 bits.
const OF_INODE_MAX: usize = 255;

/// See the module.
#[derive(Default)]
pub(super) struct Shared {
    table: Vec<u8>,
    /// Where they are in it, in words.
    places: HashMap<Vec<u8>, u32>,
    seen: HashSet<u32>,
}

/// Which xattrs go to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Those that come again.
    Repeated,
    /// As many as can be: the inode has little room.
    All,
}

impl Shared {
    /// What follows the inode: nothing if there are none.
    pub(super) fn encode(&mut self, xattrs: &Xattrs, share: Share) -> Result<Vec<u8>, Error> {
        if xattrs.is_empty() {
            return Ok(Vec::new());
        }
        let mut all =
            xattrs.iter().map(|(name, value)| xattrs::encode(name, value)).collect::<Result<Vec<_>, _>>()?;
        if share == Share::All {
            // The largest are the ones that must.
            all.sort_by_key(|raw| std::cmp::Reverse(raw.len()));
        }
        let (mut places, mut inline) = (Vec::new(), Vec::new());
        for raw in all {
            match self.place(&raw, share).filter(|_| places.len() < OF_INODE_MAX) {
                Some(place) => places.push(place),
                None => inline.extend_from_slice(&raw),
            }
        }
        let bytes = XATTR_HEADER_BYTES + 4 * places.len() + inline.len();
        if bytes > XATTR_BYTES_MAX {
            return Err(Error::Xattrs { bytes });
        }
        let mut body = Vec::with_capacity(bytes);
        body.extend_from_slice(&[0; 4]);
        body.push(places.len() as u8);
        body.resize(XATTR_HEADER_BYTES, 0);
        places.iter().for_each(|place| body.extend_from_slice(&place.to_le_bytes()));
        body.extend_from_slice(&inline);
        Ok(body)
    }

    pub(super) fn table(&self) -> &[u8] {
        &self.table
    }

    fn place(&mut self, raw: &[u8], share: Share) -> Option<u32> {
        if let Some(place) = self.places.get(raw) {
            return Some(*place);
        }
        if share == Share::Repeated {
            // Two values with one checksum: the second is shared at once, which does no harm.
            let sum = crc32fast::hash(raw);
            if !self.seen.contains(&sum) {
                if self.seen.len() < SEEN_MAX {
                    self.seen.insert(sum);
                }
                return None;
            }
            if self.table.len() + raw.len() > TABLE_BYTES_MAX {
                return None;
            }
        }
        let place = (self.table.len() / 4) as u32;
        self.table.extend_from_slice(raw);
        self.places.insert(raw.to_vec(), place);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_is_shared() {
        let mut shared = Shared::default();
        let mut xattrs = Xattrs::default();
        assert!(shared.encode(&xattrs, Share::Repeated).unwrap().is_empty());
        xattrs.set(b"user.a", b"value".to_vec());
        let inline = shared.encode(&xattrs, Share::Repeated).unwrap();
        assert_eq!(inline.len(), 12 + 12);
        assert_eq!(inline[4], 0);
        for _ in 0..2 {
            let by_place = shared.encode(&xattrs, Share::Repeated).unwrap();
            assert_eq!(by_place, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(shared.table().len(), 12);
        xattrs.set(b"user.b", b"other".to_vec());
        assert_eq!(shared.encode(&xattrs, Share::All).unwrap()[4], 2);
    }
}

//! Extended headers, local and global, as far as layers need them.

use super::{Bounds, pax, sparse};
use crate::store::flaw::Flaw;

/// Prefix of the records that hold xattrs.
pub(super) const XATTR: &str = "SCHILY.xattr.";

/// What extended headers say of the next member.
#[derive(Default)]
pub(super) struct Extended {
    /// Bytes of all extended headers of this member.
    pub(super) bytes: usize,
    pub(super) long_path: Option<Vec<u8>>,
    pub(super) long_target: Option<Vec<u8>>,
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<Vec<u8>>,
    pub(super) uid: Option<Vec<u8>>,
    pub(super) gid: Option<Vec<u8>>,
    pub(super) mtime: Option<Vec<u8>>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    xattr_bytes: usize,
    pub(super) sparse: sparse::Records,
}

impl Extended {
    /// Another header comes in the place of those whose records were taken; names of GNU stay.
    pub(super) fn forget_records(&mut self) {
        let (long_path, long_target) = (self.long_path.take(), self.long_target.take());
        *self = Self { bytes: self.bytes, long_path, long_target, ..Self::default() };
    }

    /// Takes the records of one header.
    pub(super) fn read(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<(), Flaw> {
        for record in pax::Records(bytes) {
            let (key, value) = record.ok_or_else(|| Flaw::tar("an extended header is malformed"))?;
            let some = || (!value.is_empty()).then(|| value.to_vec());
            match key {
                b"path" => self.path = some(),
                b"linkpath" => self.target = some(),
                b"size" => self.size = some(),
                b"uid" => self.uid = some(),
                b"gid" => self.gid = some(),
                b"mtime" => self.mtime = some(),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR.as_bytes()) {
                        self.xattr_bytes += name.len() + value.len();
                        if self.xattr_bytes > bounds.xattr_bytes_max {
                            let limit = bounds.xattr_bytes_max as u64;
                            let unit = "bytes of xattrs of one entry";
                            return Err(Flaw::Limit { limit, unit, flag: "xattr_bytes_max" });
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.add(name, value);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Global records are not listened to, but must not matter.
pub(super) fn global(bytes: &[u8]) -> Result<(), Flaw> {
    for record in pax::Records(bytes) {
        let (key, _) = record.ok_or_else(|| Flaw::tar("a global extended header is malformed"))?;
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err(Flaw::tar(
                "a global extended header sets names or sizes, which some tools obey and others ignore",
            ));
        }
    }
    Ok(())
}

//! An inode before it is written, which takes attributes as a file of a tree does from the system calls.

use std::io;

use super::super::attributes::Settable;
use super::{acl, rules};
use crate::erofs::{Attributes, Kind, Xattrs};

/// See the module.
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
}

impl Inode {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, attributes: Attributes::new(0), xattrs: Xattrs::default() }
    }
}

impl Settable for &mut Inode {
    fn chown(&mut self, uid: u32, gid: u32) -> io::Result<()> {
        (self.attributes.uid, self.attributes.gid) = (uid, gid);
        Ok(())
    }

    fn chmod(&mut self, mode: u32) -> io::Result<()> {
        if self.kind == Kind::Symlink {
            return Ok(());
        }
        self.attributes.mode = (mode & 0o7777) as u16;
        acl::follow_mode(self);
        Ok(())
    }

    fn set_xattr(&mut self, xattr: &[u8], value: &[u8]) -> io::Result<()> {
        Ok(rules::set_xattr(self, xattr, value)?)
    }
}

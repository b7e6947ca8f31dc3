//! What the kernel lets root set, and how: the rules of setxattr(2) and of names, for inodes that no kernel made.
//!
//! After fs/xattr.c, fs/namei.c and security/commoncap.c of Linux 6.18; a test asks the running kernel for each rule.

use rustix::io::Errno;

use super::super::attributes::DEFAULT_ACL;
use super::acl;
use super::inode::Inode;
use crate::erofs::{Kind, NAME_BYTES_MAX};
use crate::store::flaw::EntryError;

/// Bytes of an xattr's name: `XATTR_NAME_MAX`.
const XATTR_NAME_BYTES_MAX: usize = 255;
/// Bytes of a value: `XATTR_SIZE_MAX`.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a symlink's target: `PATH_MAX`, less a NUL.
const TARGET_BYTES_MAX: usize = 4095;
/// What each namespace but `system.` may be set on.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
pub(super) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const CAPABILITY: &[u8] = b"security.capability";

/// Whether a name is short enough.
pub(super) fn name(name: &[u8]) -> Result<(), EntryError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(EntryError::Refused(Errno::NAMETOOLONG.into()));
    }
    Ok(())
}

/// Whether a symlink's target is short enough.
pub(super) fn target(target: &[u8]) -> Result<(), EntryError> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(EntryError::Refused(Errno::NAMETOOLONG.into()));
    }
    Ok(())
}

/// Sets an xattr as root does who is alone on the machine.
pub(super) fn set_xattr(inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno::RANGE);
    }
    if value.len() > XATTR_BYTES_MAX {
        return Err(Errno::TOOBIG);
    }
    if name == ACCESS_ACL {
        return acl::set_access(inode, value);
    }
    if name == DEFAULT_ACL {
        return acl::set_default(inode, value);
    }
    if name == CAPABILITY && !value.is_empty() {
        capability(value)?;
    }
    if name.starts_with(b"user.") && !matches!(inode.kind, Kind::File | Kind::Directory) {
        return Err(Errno::PERM);
    }
    let prefix = PREFIXES.iter().find(|prefix| name.starts_with(prefix)).ok_or(Errno::OPNOTSUPP)?;
    if name.len() == prefix.len() {
        return Err(Errno::INVAL);
    }
    inode.xattrs.set(name, value.to_vec());
    Ok(())
}

/// File capabilities: `validheader` and `cap_convert_nscap`.
fn capability(value: &[u8]) -> Result<(), Errno> {
    const EFFECTIVE: u32 = 1;
    let word =
        |at: usize| value.get(at..at + 4).and_then(|word| Some(u32::from_le_bytes(word.try_into().ok()?)));
    match (value.len(), word(0).map(|magic| magic & !EFFECTIVE)) {
        (20, Some(0x0200_0000)) => Ok(()),
        // The root user of the namespace it is for.
        (24, Some(0x0300_0000)) if word(20) != Some(u32::MAX) => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

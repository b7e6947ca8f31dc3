//! POSIX ACLs as the kernel takes them (fs/posix_acl.c): checked, and one with a mode that a file's mode says as well
//! is kept as that.

use rustix::io::Errno;

use super::super::attributes::DEFAULT_ACL;
use super::inode::Inode;
use super::rules::ACCESS_ACL;
use crate::erofs::Kind;

/// First word of an ACL in an xattr.
const VERSION: u32 = 2;
/// What stands for no ID.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// Sets the access ACL, and the mode with it.
pub(super) fn set_access(inode: &mut Inode, value: &[u8]) -> Result<(), Errno> {
    let acl = parse(value)?;
    if inode.kind == Kind::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    let Some(acl) = acl else {
        inode.xattrs.remove(ACCESS_ACL);
        return Ok(());
    };
    check(&acl)?;
    let (mode, is_all) = mode(&acl);
    inode.attributes.mode = inode.attributes.mode & !0o777 | mode;
    if is_all {
        inode.xattrs.remove(ACCESS_ACL);
    } else {
        inode.xattrs.set(ACCESS_ACL, encode(&acl));
    }
    Ok(())
}

/// Sets the default ACL of a directory.
pub(super) fn set_default(inode: &mut Inode, value: &[u8]) -> Result<(), Errno> {
    let acl = parse(value)?;
    if inode.kind == Kind::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    let Some(acl) = acl else {
        inode.xattrs.remove(DEFAULT_ACL);
        return Ok(());
    };
    if inode.kind != Kind::Directory {
        return Err(Errno::ACCESS);
    }
    check(&acl)?;
    inode.xattrs.set(DEFAULT_ACL, encode(&acl));
    Ok(())
}

/// Lets an access ACL that is there follow a new mode: `posix_acl_chmod`.
pub(super) fn follow_mode(inode: &mut Inode) {
    let Some(Ok(Some(mut acl))) = inode.xattrs.get(ACCESS_ACL).map(parse) else { return };
    let mode = inode.attributes.mode;
    let group = if acl.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ };
    for entry in &mut acl {
        match entry.tag {
            USER_OBJ => entry.permissions = mode >> 6 & 7,
            OTHER => entry.permissions = mode & 7,
            tag if tag == group => entry.permissions = mode >> 3 & 7,
            _ => {}
        }
    }
    inode.xattrs.set(ACCESS_ACL, encode(&acl));
}

/// `posix_acl_from_xattr`; `None` = no ACL, which takes away what is there.
fn parse(value: &[u8]) -> Result<Option<Vec<Entry>>, Errno> {
    if value.is_empty() {
        return Ok(None);
    }
    let (version, entries) = value.split_first_chunk().ok_or(Errno::INVAL)?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(Errno::OPNOTSUPP);
    }
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Errno::INVAL);
    }
    let entry = |raw: &[u8; 8]| {
        let [t0, t1, p0, p1, id @ ..] = *raw;
        let (tag, permissions) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]));
        match (tag, u32::from_le_bytes(id)) {
            (USER_OBJ | GROUP_OBJ | MASK | OTHER, _) => Ok(Entry { tag, permissions, id: NO_ID }),
            (USER | GROUP, id) if id != NO_ID => Ok(Entry { tag, permissions, id }),
            _ => Err(Errno::INVAL),
        }
    };
    let entries = entries.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    Ok((!entries.is_empty()).then_some(entries))
}

/// `posix_acl_valid`: owner, users, group, groups, mask if there are users or groups, others.
fn check(acl: &[Entry]) -> Result<(), Errno> {
    let (mut state, mut needs_mask) = (USER_OBJ, false);
    for entry in acl {
        if entry.permissions > 7 {
            return Err(Errno::INVAL);
        }
        state = match (entry.tag, state) {
            (USER_OBJ, USER_OBJ) => USER,
            (USER, USER) | (GROUP, GROUP) => {
                needs_mask = true;
                state
            }
            (GROUP_OBJ, USER) => GROUP,
            (MASK, GROUP) => OTHER,
            (OTHER, OTHER) => 0,
            (OTHER, GROUP) if !needs_mask => 0,
            _ => return Err(Errno::INVAL),
        };
    }
    if state == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

/// `posix_acl_equiv_mode`: the permissions, and whether they say all.
fn mode(acl: &[Entry]) -> (u16, bool) {
    acl.iter().fold((0, true), |(mode, is_all), entry| match entry.tag {
        USER_OBJ => (mode | entry.permissions << 6, is_all),
        GROUP_OBJ => (mode | entry.permissions << 3, is_all),
        OTHER => (mode | entry.permissions, is_all),
        MASK => (mode & !0o070 | entry.permissions << 3, false),
        _ => (mode, false),
    })
}

fn encode(acl: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for Entry { tag, permissions, id } in acl {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

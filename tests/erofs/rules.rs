//! What the kernel lets root set on what: it is asked for each rule that `store/image/rules.rs` and `acl.rs` have.

use crate::layers::{compare, tar};
use crate::mount::can_mount;
use crate::tarball::{Entry, dir, entry, file, symlink};

const NONE: u32 = u32::MAX;

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

fn acls() -> Vec<Vec<u8>> {
    let (owner, group, others) = ((1, 6, NONE), (4, 5, NONE), (32, 4, NONE));
    let (user, team, mask) = ((2, 7, 1000), (8, 3, 50), (16, 2, NONE));
    vec![
        // As a mode, and as more than one.
        acl(&[owner, group, others]),
        acl(&[owner, group, mask, others]),
        acl(&[owner, user, group, mask, others]),
        acl(&[owner, user, (2, 1, 5), group, team, (8, 0, 4), mask, others]),
        acl(&[(1, 6, 9), (4, 5, 9), (32, 4, 9)]),
        // Nothing.
        vec![],
        acl(&[]),
        // Wrong.
        acl(&[owner, user, group, others]),
        acl(&[group, owner, others]),
        acl(&[owner, owner, group, others]),
        acl(&[owner, group]),
        acl(&[owner, group, others, others]),
        acl(&[owner, group, mask, mask, others]),
        acl(&[owner, group, user, mask, others]),
        acl(&[owner, team, group, mask, others]),
        acl(&[(1, 8, NONE), group, others]),
        acl(&[owner, (2, 7, NONE), group, mask, others]),
        acl(&[owner, group, (64, 1, NONE), others]),
        acl(&[owner, group, others])[..27].to_vec(),
        [&1_u32.to_le_bytes()[..], &acl(&[owner, group, others])[4..]].concat(),
        b"\x02\0\0".to_vec(),
    ]
}

fn capabilities() -> Vec<Vec<u8>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    // An empty one can be set and not be read.
    vec![
        words(&[0x0200_0001, 0x400, 0, 0, 0]),
        words(&[0x0200_0000, 0x400, 0, 0, 0]),
        words(&[0x0300_0001, 0x400, 0, 0, 0, 1000]),
        words(&[0x0300_0001, 0x400, 0, 0, 0, 0]),
        words(&[0x0300_0001, 0x400, 0, 0, 0, NONE]),
        words(&[0x0200_0001, 0x400, 0, 0, 0, 0]),
        words(&[0x0300_0001, 0x400, 0, 0, 0]),
        words(&[0x0200_0002, 0x400, 0, 0, 0]),
        words(&[0x0100_0001, 0x400, 0]),
        b"rubbish".to_vec(),
    ]
}

fn xattrs() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = vec![];
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        all.extend(acls().into_iter().map(|value| (name.to_owned(), value)));
    }
    all.extend(capabilities().into_iter().map(|value| ("security.capability".to_owned(), value)));
    let names = [
        "user.",
        "user.x",
        "user",
        "trusted.",
        "trusted.x",
        "security.",
        "security.x",
        "system.",
        "system.x",
        "com.apple.x",
        "security.selinux",
        "trusted.overlay.opaque",
        "user.overlay.x",
        "system.posix_acl_accessx",
    ];
    all.extend(names.map(|name| (name.to_owned(), b"y".to_vec())));
    all.push(("user.empty".to_owned(), vec![]));
    for length in [255, 256] {
        let name = format!("user.{}", "n".repeat(length - 5));
        all.push((name, b"v".to_vec()));
    }
    all.push((format!("com.{}", "n".repeat(252)), b"v".to_vec()));
    all
}

fn kinds() -> Vec<(&'static str, Entry)> {
    vec![
        ("a file", file("x", "content").mode(0o2754)),
        ("a directory", dir("x").mode(0o3775)),
        ("a symlink", symlink("x", "y")),
        ("a pipe", entry(b'6', "x").mode(0o640)),
        ("a device", entry(b'3', "x").device(1, 3).mode(0o640)),
    ]
}

#[test]
fn every_xattr_on_every_kind_is_as_the_kernel_has_it() {
    if !can_mount() {
        return;
    }
    for (kind, entry) in kinds() {
        for (name, value) in xattrs() {
            compare(&format!("{name} = {value:x?} on {kind}"), &tar([entry.clone().xattr(&name, &value)]));
        }
    }
}

#[test]
fn an_acl_follows_the_mode_of_a_second_entry() {
    if !can_mount() {
        return;
    }
    for acl in acls().into_iter().take(4) {
        let first = dir("d").mode(0o700).xattr("system.posix_acl_access", &acl).xattr("user.x", "1");
        let first = first.xattr("system.posix_acl_default", &acl);
        compare("twice", &tar([first.clone(), file("d/f", ""), dir("d").mode(0o2751).owner(3, 4)]));
        compare("implied below", &tar([first, file("d/e/f", ""), dir("d/g"), symlink("s", "d"), dir("s/h")]));
    }
}

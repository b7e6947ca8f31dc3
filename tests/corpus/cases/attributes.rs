//! Owners, modes, xattrs: what is kept, what is dropped and counted, what is refused.

use crate::case::Group;
use crate::tarball::*;
use crate::tree::escape;

/// File capabilities, version 2: `cap_net_bind_service=ep`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The same of version 3, with the root of the namespace they are for.
fn capability_of(root: u32) -> Vec<u8> {
    let mut value = CAPABILITY.to_vec();
    value[3] = 3;
    value.extend_from_slice(&root.to_le_bytes());
    value
}

fn acl(user: u32) -> Vec<u8> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, none),
        entry(2, 4, user),
        entry(4, 4, none),
        entry(0x10, 4, none),
        entry(0x20, 0, none),
    ]
    .concat()
}

pub(crate) fn add(group: &mut Group) {
    group.tree(
        "capabilities-are-kept",
        vec![file("f", "x").mode(0o755).xattr("security.capability", CAPABILITY)],
        format!("f file mode=755 x:security.capability={}", escape(&CAPABILITY)),
    );
    group.tree_but(
        "capabilities-survive-the-change-of-owner",
        vec![file("f", "x").mode(0o755).owner(7, 8).xattr("security.capability", CAPABILITY)],
        format!("f file own=7:8 x:security.capability={}", escape(&CAPABILITY)),
        |case| case.drops_rootless("owners=1", ""),
    );
    group.tree_but(
        "capabilities-of-a-namespace-s-root",
        vec![file("f", "x").mode(0o755).xattr("security.capability", capability_of(1000))],
        format!(
            "root: f file x:security.capability={}\nfull: f file x:security.capability={}\none: f file",
            escape(&capability_of(1000)),
            escape(&capability_of(1000))
        ),
        |case| case.drops_rootless("xattrs=1", ""),
    );
    group.refused_but(
        "capabilities-malformed",
        vec![file("f", "x").xattr("security.capability", [1, 2, 3])],
        &["\"f\"", "security.capability", "3 bytes"],
        |case| case.tree_rootless("f file =x").drops_rootless("xattrs=1", "xattrs=1"),
    );
    group.tree(
        "user-xattrs-of-any-bytes",
        vec![
            file("f", "")
                .xattr("user.one", b"1\n2\0=\xff")
                .xattr("user.one", "last")
                .xattr("user.two", b"1\n2\0=\xff")
                .xattr("user.\u{e9}", ""),
            dir("d/").xattr("user.d", "x\ny"),
        ],
        format!(
            "f file x:user.one=last x:user.two={} x:{}= | d dir x:user.d=x\\ny",
            escape(b"1\n2\0=\xff"),
            "user.\u{e9}"
        ),
    );
    group.tree_but(
        "trusted-xattrs",
        vec![file("f", "").xattr("trusted.t", "x"), dir("d/").xattr("trusted.d", "")],
        "root: f file x:trusted.t=x\nroot: d dir x:trusted.d=\nuser: f file\nuser: d dir",
        |case| case.drops_rootless("xattrs=2", "xattrs=2"),
    );
    group.tree_but(
        "labels-of-the-building-machine-are-dropped",
        vec![
            file("f", "x").xattr("security.selinux", "system_u:object_r:etc_t:s0\0").xattr("user.x", "y"),
            dir("d/").xattr("security.selinux", "x").xattr("system.nfs4_acl", "x"),
            symlink("l", "f").xattr("security.selinux", "x"),
        ],
        "f file x:user.x=y | d dir | l link",
        |case| case.drops("foreign_xattrs=4"),
    );
    group.tree_but(
        "xattrs-that-no-filesystem-here-knows",
        // Archives from macOS have them; docker, containerd and podman pass over them with a warning.
        vec![
            file("f", "x").xattr("com.apple.provenance", "x").xattr("nonsense", "x").xattr("user.x", "y"),
            dir("d/").xattr("com.apple.quarantine", "x"),
        ],
        "f file =x x:user.x=y | d dir",
        |case| case.drops("xattrs=3"),
    );
    group.tree_but(
        "user-xattrs-where-the-kernel-allows-none",
        vec![symlink("l", "x").xattr("user.x", "y"), entry(b'6', "p").xattr("user.x", "y"), file("f", "x")],
        "l link | p fifo | f file",
        |case| case.drops("xattrs=2"),
    );
    group.refused("xattr-without-a-name", vec![file("f", "").xattr("", "x")], &["xattr"]);
    group.refused(
        "xattr-name-of-300-bytes",
        vec![file("f", "").xattr(&format!("user.{}", "n".repeat(300)), "x")],
        &["\"f\"", "xattr \"user.nnn"],
    );
    group.tree(
        "access-acls-are-kept",
        vec![file("f", "").mode(0o640).xattr("system.posix_acl_access", acl(0))],
        format!("f file mode=640 x:system.posix_acl_access={}", escape(&acl(0))),
    );
    group.tree_but(
        "access-acls-of-users-that-are-not-mapped",
        vec![file("f", "").mode(0o640).xattr("system.posix_acl_access", acl(1000))],
        format!("root: f file x:system.posix_acl_access={a}\nfull: f file x:system.posix_acl_access={a}\none: f file mode=640", a = escape(&acl(1000))),
        |case| case.drops_rootless("xattrs=1", ""),
    );
    group.tree(
        "default-acls-are-kept-and-not-passed-on",
        vec![
            dir("d/").xattr("system.posix_acl_default", acl(0)).mtime(9),
            file("d/f", "").mode(0o644),
            dir("d/sub/").mode(0o755),
            file("d/implied/f", ""),
            entry(b'6', "d/p").mode(0o666),
        ],
        format!(
            "d dir mtime=9 mode=755 x:system.posix_acl_default={} | d/f file mode=644 | d/sub dir mode=755 | d/implied dir mode=755 | d/implied/f file mode=644 | d/p fifo mode=666",
            escape(&acl(0))
        ),
    );
    group.stack(
        "default-acls-below-are-not-passed-on-above",
        vec![vec![dir("d/").xattr("system.posix_acl_default", acl(0)), dir(".").xattr("system.posix_acl_default", acl(0))], vec![file("d/f", "").mode(0o600), file("g", "").mode(0o604)]],
        format!("d dir x:system.posix_acl_default={a} | d/f file mode=600 | g file mode=604 | . dir x:system.posix_acl_default={a}", a = escape(&acl(0))),
    );
    group.refused_but(
        "acls-malformed",
        vec![file("f", "").xattr("system.posix_acl_access", "rubbish")],
        &["\"f\"", "system.posix_acl_access"],
        |case| case.tree_rootless("f file").drops_rootless("xattrs=1", "xattrs=1"),
    );
    group.refused_but(
        "default-acls-malformed",
        vec![dir("d/").xattr("system.posix_acl_default", "rubbish")],
        &["posix_acl_default"],
        |case| case.tree_rootless("d dir").drops_rootless("xattrs=1", "xattrs=1"),
    );
    group.tree_but(
        "default-acls-on-what-is-no-directory",
        vec![file("f", "").xattr("system.posix_acl_default", acl(0))],
        "f file",
        |case| case.drops("xattrs=1"),
    );
    group.tree_but(
        "setgid-directories-do-not-pass-their-group-on",
        vec![
            dir("mail/").mode(0o2775).owner(0, 8),
            file("mail/box", "").owner(0, 0),
            dir("mail/sub/").owner(0, 0),
            file("mail/implied/f", ""),
            symlink("mail/link", "box"),
        ],
        "mail dir mode=2775 own=0:8 | mail/box file own=0:0 | mail/sub dir own=0:0 mode=755 | mail/implied dir own=0:0 mode=755 | mail/implied/f file own=0:0 | mail/link link own=0:0",
        |case| case.drops_rootless("owners=1", ""),
    );
    group.tree_but(
        "the-highest-owner-there-is",
        vec![
            file("f", "").pax("uid", "4294967294").pax("gid", "4294967294"),
            symlink("l", "x").pax("uid", "4294967294"),
        ],
        "f file own=4294967294:4294967294 | l link own=4294967294:0",
        |case| case.drops_rootless("owners=2", "owners=2"),
    );
    for (name, key, value) in [
        ("owner-that-means-leave-it", "uid", "4294967295"),
        ("group-that-means-leave-it", "gid", "4294967295"),
        ("owner-of-33-bits", "uid", "4294967296"),
        ("owner-below-zero", "uid", "-1"),
        ("group-below-zero", "gid", "-1000"),
    ] {
        group.refused(name, vec![file("f", "").pax(key, value)], &["\"f\"", "out of range"]);
    }
    group.tree_but(
        "modes-with-more-bits-than-there-are",
        vec![file("f", "").raw(100, b"7177755\0"), dir("d/").raw(100, b"0040711\0")],
        "f file mode=7755 | d dir mode=711",
        |case| case,
    );
    group.tree(
        "modes-are-not-the-umask-s",
        vec![
            file("f", "").mode(0o666),
            dir("d/").mode(0o777),
            entry(b'6', "p").mode(0o666),
            dir("i/j/").mode(0o777),
        ],
        "f file mode=666 | d dir mode=777 | p fifo mode=666 | i dir mode=755 | i/j dir mode=777",
    );
}

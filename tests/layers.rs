//! Layers as trees: everything a tar can say, and everything it must not.

#[path = "support/tarball.rs"]
mod tarball;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use keelblock::limits::Limits;
use keelblock::store::{DiskStore, NotSet, Privileges, whiteout};
use keelblock_actors::error::{UnpackError, chain};
use keelblock_actors::ports::{Store, StoredLayer};
use tarball::*;

/// A layer in a store of its own.
struct Layer {
    home: tempfile::TempDir,
    store: DiskStore,
    layer: StoredLayer,
    tree: PathBuf,
}

fn unpacked(tar: &[u8]) -> Layer {
    let home = tempfile::tempdir().unwrap();
    let store = store(&home.path().join("store"));
    let layer = put_tar(&store, tar).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let tree = store.show(&layer).unwrap().path;
    // What is kept to verify it must be true of it, however odd the layer is.
    let scrubbed = store.scrub(&layer.diff_id, 0, &keelblock_actors::stop::Stop::default()).unwrap().unwrap();
    assert_eq!(scrubbed.verdict, keelblock::store::Verdict::Whole);
    Layer { home, store, layer, tree }
}

fn of(entries: impl IntoIterator<Item = Entry>) -> Layer {
    unpacked(&Tarball::of(entries).end())
}

/// The failure of a layer, of which nothing must be left; a canary beside the store must live.
fn refused(tar: &[u8]) -> String {
    refused_with(tar, Limits::default()).1
}

fn refused_with(tar: &[u8], limits: Limits) -> (UnpackError, String) {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("canary"), "alive").unwrap();
    let store = store_with(&home.path().join("store"), limits);
    let error = put_tar(&store, tar).expect_err("must be refused");
    assert_eq!(std::fs::read(home.path().join("canary")).unwrap(), b"alive");
    for part in ["layers/sha256", "staging", "gc", "locks"] {
        assert_eq!(std::fs::read_dir(home.path().join("store").join(part)).unwrap().count(), 0, "{part}");
    }
    let text = chain(&error);
    (error, text)
}

impl Layer {
    fn at(&self, path: impl AsRef<Path>) -> std::fs::Metadata {
        let path = self.tree.join(path);
        std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8(std::fs::read(self.tree.join(path)).unwrap()).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.tree.join(path)).is_ok()
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = [0; 4096];
        let length = rustix::fs::lgetxattr(self.tree.join(path), name, &mut value).ok()?;
        Some(value[..length].to_vec())
    }

    fn is_whiteout(&self, path: &str) -> bool {
        whiteout::is_whiteout(&self.at(path))
    }

    fn is_opaque(&self, path: &str) -> bool {
        let shown = self.store.show(&self.layer).unwrap();
        let namespace =
            if shown.user_xattrs { whiteout::Namespace::User } else { whiteout::Namespace::Trusted };
        self.xattr(path, namespace.opaque()).as_deref() == Some(whiteout::OPAQUE_VALUE)
    }

    fn not_set(&self) -> NotSet {
        self.store.layer_record(&self.layer).unwrap().not_set
    }
}

// ---- what a tar can say ---------------------------------------------------------------------------------------

#[test]
fn every_kind_of_file_is_made_with_all_its_attributes() {
    if !root() {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = of([
        dir("./"),
        dir("d/").mode(0o3775).owner(3, 4).mtime(5),
        file("d/set", "s").mode(0o4755).owner(1000, 1001),
        file("d/cap", "c").mode(0o755).owner(7, 8).xattr("security.capability", capability),
        file("d/wide", "w").mode(0o666),
        symlink("d/link", "/no/where").owner(9, 10).mtime(77),
        hard_link("hard", "d/set"),
        hard_link("hard-link-to-symlink", "d/link"),
        entry(b'3', "null").device(1, 3).mode(0o666),
        entry(b'4', "disk").device(259, 70000).mode(0o660).owner(0, 6),
        entry(b'6', "pipe").mode(0o622),
        file("tagged", "").xattr("user.one", b"1\n2\0").xattr("trusted.t", "").xattr("user.one", "last"),
    ]);
    let set = layer.at("d/set");
    assert_eq!((set.mode(), set.uid(), set.gid(), set.nlink()), (0o104_755, 1000, 1001, 2));
    assert_eq!(set.ino(), layer.at("hard").ino());
    let d = layer.at("d");
    assert_eq!((d.mode(), d.uid(), d.gid(), d.mtime()), (0o043_775, 3, 4, 5));
    assert_eq!(layer.xattr("d/cap", "security.capability").unwrap(), capability);
    assert_eq!((layer.at("d/cap").uid(), layer.at("d/cap").gid()), (7, 8));
    let wide = layer.at("d/wide");
    assert_eq!((wide.mode(), wide.gid()), (0o100_666, 0), "the group is the entry's, not its directory's");
    let link = layer.at("d/link");
    assert_eq!((link.uid(), link.gid(), link.mtime(), link.nlink()), (9, 10, 77, 2));
    assert_eq!(std::fs::read_link(layer.tree.join("hard-link-to-symlink")).unwrap(), Path::new("/no/where"));
    let null = layer.at("null");
    assert!(null.file_type().is_char_device() && null.mode() & 0o777 == 0o666);
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    let disk = layer.at("disk");
    assert!(disk.file_type().is_block_device() && disk.gid() == 6);
    assert_eq!(disk.rdev(), rustix::fs::makedev(259, 70000));
    assert!(layer.at("pipe").file_type().is_fifo() && layer.at("pipe").mode() & 0o777 == 0o622);
    assert_eq!(layer.xattr("tagged", "user.one").unwrap(), b"last");
    assert_eq!(layer.xattr("tagged", "trusted.t").unwrap(), b"");
    assert_eq!(layer.store.layer_size(&layer.layer).unwrap().bytes, 3);
    assert!(layer.not_set().is_empty());
}

#[test]
fn times_of_directories_are_right_whatever_comes_after() {
    if !root() {
        return;
    }
    let layer = of([
        dir("a/").mtime(100),
        dir("a/b/").mtime(200),
        file("a/b/c", "").mtime(300),
        file("a/late", ""),
        dir("z/").mtime(400),
        dir("z/").mtime(500),
        file("a/b/later", ""),
        dir(".").mtime(600),
    ]);
    for (path, time) in [("a", 100), ("a/b", 200), ("a/b/c", 300), ("z", 500), ("", 600)] {
        assert_eq!(layer.at(path).mtime(), time, "{path}");
    }
}

#[test]
fn pax_records_win_over_the_header() {
    if !root() {
        return;
    }
    let long: String = ["deep/"; 60].concat() + "name";
    let layer = of([
        file("short", "12345").pax("path", &long).pax("mtime", "1700000000.123456789").size(5),
        file("old", "").pax("mtime", "-1.5").pax("comment", "n\nm"),
        symlink("link", "short").pax("linkpath", "x".repeat(300)),
        file("not\nutf8", "").pax("path", b"caf\xe9\nx"),
        file("size", "abc").size(0).pax("size", "3"),
        file("after", "whole"),
        file("emptied", "").pax("path", "gone").pax("path", ""),
    ]);
    assert_eq!(layer.read(&long), "12345");
    let time = layer.at(&long);
    assert_eq!((time.mtime(), time.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!((layer.at("old").mtime(), layer.at("old").mtime_nsec()), (-2, 500_000_000));
    assert_eq!(std::fs::read_link(layer.tree.join("link")).unwrap().as_os_str().len(), 300);
    assert!(layer.tree.join(std::ffi::OsStr::from_bytes(b"caf\xe9\nx")).exists());
    assert_eq!(layer.read("size"), "abc");
    assert_eq!(layer.read("after"), "whole");
    assert!(layer.has("emptied") && !layer.has("gone"));
}

#[test]
fn gnu_long_names_and_large_numbers_are_read() {
    if !root() {
        return;
    }
    let long = "n".repeat(200);
    let mut big = [0x80, 0, 0, 0, 0, 0, 0, 0];
    big[4..].copy_from_slice(&5_000_000u32.to_be_bytes());
    let mut old = [0xff; 12];
    old[8..].copy_from_slice(&(-86_400i32).to_be_bytes());
    let gnu = |entry: Entry| entry.raw(257, b"ustar  \0").raw(329, [0; 16]);
    let layer = of([
        gnu(file("././@LongLink", format!("{long}\0")).raw(156, b"L")),
        gnu(file("cut", "content")),
        gnu(file("././@LongLink", format!("{long}\0")).raw(156, b"K")),
        gnu(hard_link("alias", "cut")),
        gnu(file("times", "").raw(136, old).raw(108, big)),
    ]);
    assert_eq!(layer.read(&long), "content");
    assert_eq!(layer.at("alias").ino(), layer.at(&long).ino());
    assert_eq!(layer.at("times").mtime(), -86_400);
    if root() {
        assert_eq!(layer.at("times").uid(), 5_000_000);
    }
}

#[test]
fn ustar_prefixes_and_names_without_slash_are_read() {
    if !root() {
        return;
    }
    let layer = of([
        file("name", "x").raw(345, b"some/prefix"),
        file("/etc//./passwd", "absolute"),
        file("./dot", "dot"),
        entry(0, "v7dir/"),
        entry(b'7', "contiguous"),
    ]);
    assert_eq!(layer.read("some/prefix/name"), "x");
    assert_eq!(layer.read("etc/passwd"), "absolute");
    assert_eq!(layer.read("dot"), "dot");
    assert!(layer.at("v7dir").is_dir());
    assert!(layer.at("contiguous").is_file());
    let implied = layer.at("some/prefix");
    assert_eq!((implied.mode() & 0o7777, implied.uid()), (0o755, 0));
    assert_eq!(layer.store.layer_record(&layer.layer).unwrap().implied_dirs, 3);
}

#[test]
fn all_four_ways_to_write_a_sparse_file_make_the_same_file() {
    if !root() {
        return;
    }
    let payload = [[b'a'; 512], [b'b'; 512]].concat();
    let old = file("sparse", &payload)
        .raw(156, b"S")
        .raw(257, b"ustar  \0")
        .raw(329, [0; 16])
        .raw(386, "00000010000\0")
        .raw(398, "00000001000\0")
        .raw(410, "00000100000\0")
        .raw(422, "00000001000\0")
        .raw(483, "00000200000\0");
    let named = |entry: Entry| entry.pax("GNU.sparse.name", "sparse");
    let v00 = file("sparse", &payload)
        .pax("GNU.sparse.size", "65536")
        .pax("GNU.sparse.numblocks", "2")
        .pax("GNU.sparse.offset", "4096")
        .pax("GNU.sparse.numbytes", "512")
        .pax("GNU.sparse.offset", "32768")
        .pax("GNU.sparse.numbytes", "512");
    let v01 = named(file("GNUSparseFile.1/sparse", &payload))
        .pax("GNU.sparse.size", "65536")
        .pax("GNU.sparse.map", "4096,512,32768,512");
    let mut head = b"2\n4096\n512\n32768\n512\n".to_vec();
    head.resize(512, 0);
    let v10 = named(file("GNUSparseFile.1/sparse", [head, payload].concat()))
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.realsize", "65536");
    for (form, entry) in [("old", old), ("0.0", v00), ("0.1", v01), ("1.0", v10)] {
        let layer = of([entry, file("next", "next")]);
        let content = std::fs::read(layer.tree.join("sparse")).unwrap();
        assert_eq!(content.len(), 65536, "{form}");
        let expected = |at: usize| match at {
            4096..4608 => b'a',
            32768..33280 => b'b',
            _ => 0,
        };
        assert!(content.iter().enumerate().all(|(at, byte)| *byte == expected(at)), "{form}");
        assert!(layer.at("sparse").blocks() * 512 < 65536, "{form}: holes stay holes");
        assert_eq!(layer.read("next"), "next", "{form}");
        assert_eq!(layer.store.layer_size(&layer.layer).unwrap().bytes, 1028, "{form}");
    }
}

#[test]
fn wrong_sparse_maps_are_refused() {
    if !root() {
        return;
    }
    let sparse = |map: &str, size: &str| {
        let entry = file("s", [1; 512]).pax("GNU.sparse.size", size).pax("GNU.sparse.map", map);
        refused(&Tarball::of([entry]).end())
    };
    for (map, size) in [
        ("0,512,256,0,100,0", "65536"),
        ("0,1024", "65536"),
        ("0,511", "65536"),
        ("0,512", "511"),
        ("18446744073709551615,512", "65536"),
        ("0,512,1", "65536"),
        ("0,x", "65536"),
        ("0,512", "-1"),
        ("", "512"),
    ] {
        let text = sparse(map, size);
        assert!(text.contains("sparse map"), "{map}: {text}");
    }
    let in_payload = |head: &[u8]| {
        let entry = file("s", head).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
        refused(&Tarball::of([entry.pax("GNU.sparse.realsize", "1")]).end())
    };
    assert!(in_payload(&[b'9'; 512]).contains("sparse map"));
    assert!(in_payload(b"100\n").contains("sparse map"));
    let miscounted = file("s", [1; 512]).pax("GNU.sparse.size", "512").pax("GNU.sparse.map", "0,512");
    assert!(refused(&Tarball::of([miscounted.pax("GNU.sparse.numblocks", "2")]).end()).contains("as many"));
    // GNU tar and Go would end these maps in different places.
    let old = |entry: Entry| {
        let entry = entry.raw(156, b"S").raw(257, b"ustar  \0").raw(329, [0; 16]).raw(483, "00000001000\0");
        refused(&Tarball::of([entry]).end())
    };
    let whole = |at| file("s", [1; 512]).raw(at, "00000000000\0").raw(at + 12, "00000001000\0");
    assert!(old(whole(386).raw(482, [1])).contains("ends before the blocks"));
    assert!(old(whole(386).raw(386, [0; 12])).contains("no offset"));
    assert!(old(whole(386).raw(410, "00000001000\0")).contains("no length"));
    let unknown = file("s", "").pax("GNU.sparse.major", "2").pax("GNU.sparse.minor", "0");
    assert!(refused(&Tarball::of([unknown]).end()).contains("version"));
    let on_dir = dir("s").pax("GNU.sparse.name", "t");
    assert!(refused(&Tarball::of([on_dir]).end()).contains("no file"));
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    if !root() {
        return;
    }
    let layer = of([
        file("f", "old"),
        hard_link("kept", "f"),
        file("f", "new"),
        dir("d/"),
        file("d/child", "stays"),
        dir("d/").mode(0o700),
        file("was-file", ""),
        dir("was-file/"),
        file("was-file/x", "x"),
        dir("was-dir/"),
        file("was-dir/x", ""),
        symlink("was-dir", "f"),
        symlink("was-link", "d"),
        dir("was-link/"),
        file("was-link/x", "x"),
        hard_link("f2", "f"),
        hard_link("f2", "f"),
        hard_link("f", "f"),
    ]);
    assert_eq!((layer.read("f"), layer.read("kept")), ("new".into(), "old".into()));
    assert_eq!((layer.read("d/child"), layer.at("d").mode() & 0o777), ("stays".into(), 0o700));
    assert_eq!(layer.read("was-file/x"), "x");
    assert!(layer.at("was-dir").is_symlink());
    assert!(layer.at("was-link").is_dir() && !layer.has("d/x"));
    assert_eq!(layer.at("f").nlink(), 2);
}

#[test]
fn symlinks_of_the_layer_are_followed_inside_it_alone() {
    if !root() {
        return;
    }
    let layer = of([
        dir("usr/lib/"),
        symlink("lib", "usr/lib"),
        file("lib/x", "x"),
        symlink("absolute", "/usr/lib"),
        file("absolute/y", "y"),
        symlink("up", "../../../../../../usr"),
        file("up/z", "z"),
        symlink("dangling", "to/be/made"),
        file("dangling/w", "w"),
        hard_link("linked", "lib/x"),
    ]);
    assert_eq!((layer.read("usr/lib/x"), layer.read("usr/lib/y")), ("x".into(), "y".into()));
    assert_eq!((layer.read("usr/z"), layer.read("to/be/made/w")), ("z".into(), "w".into()));
    assert_eq!(layer.read("linked"), "x");
    assert!(layer.at("lib").is_symlink());
}

#[test]
fn a_directory_that_forbids_writing_still_gets_its_files() {
    if !root() {
        return;
    }
    let layer = of([dir("d/").mode(0o000), file("d/f", "f"), dir("d/e/").mode(0o555), file("d/e/f", "g")]);
    assert_eq!(layer.at("d").mode() & 0o7777, 0);
    assert_eq!(layer.at("d/e").mode() & 0o7777, 0o555);
    assert!(layer.at("d/e/f").is_file());
}

#[test]
fn setgid_directories_do_not_pass_their_group_on() {
    if !root() {
        return;
    }
    let layer = of([
        dir("mail/").mode(0o2775).owner(0, 8),
        file("mail/box", "").owner(0, 0),
        dir("mail/sub/").owner(0, 0),
        file("mail/implied/f", ""),
        symlink("mail/link", "box"),
    ]);
    for path in ["mail/box", "mail/sub", "mail/implied", "mail/implied/f", "mail/link"] {
        assert_eq!((layer.at(path).gid(), layer.at(path).mode() & 0o2000), (0, 0), "{path}");
    }
    assert_eq!(layer.at("mail").mode() & 0o7777, 0o2775);
}

#[test]
fn a_default_acl_is_kept_and_not_passed_on_while_unpacking() {
    if !root() {
        return;
    }
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 7, none),
        entry(2, 7, 1000),
        entry(4, 5, none),
        entry(0x10, 7, none),
        entry(0x20, 0, none),
    ]
    .concat();
    let layer = of([
        dir("d/").xattr("system.posix_acl_default", &acl).mtime(9),
        file("d/f", "").mode(0o644),
        dir("d/sub/").mode(0o755),
        file("d/implied/f", ""),
        file("with", "").mode(0o670).xattr("system.posix_acl_access", &acl),
    ]);
    assert_eq!(layer.xattr("d", "system.posix_acl_default").unwrap(), acl);
    assert_eq!(layer.xattr("with", "system.posix_acl_access").unwrap(), acl);
    assert_eq!(layer.at("d").mtime(), 9);
    for (path, mode) in [("d/f", 0o644), ("d/sub", 0o755), ("d/implied", 0o755)] {
        assert_eq!(layer.at(path).mode() & 0o7777, mode, "{path}");
        assert_eq!(layer.xattr(path, "system.posix_acl_access"), None, "{path}");
        assert_eq!(layer.xattr(path, "system.posix_acl_default"), None, "{path}");
    }
}

#[test]
fn sizes_of_what_has_no_content_mean_nothing() {
    if !root() {
        return;
    }
    // As Go's archive/tar reads them, with which images are made and unpacked.
    let layer = of([
        file("f", "f"),
        dir("d/").size(512),
        hard_link("h", "f").size(1 << 30),
        symlink("s", "f").size(7),
        file("last", "last"),
    ]);
    assert_eq!(layer.read("last"), "last");
    assert_eq!(layer.at("h").nlink(), 2);
}

#[test]
fn global_headers_change_nothing_and_must_not_try() {
    if !root() {
        return;
    }
    let global =
        |key: &str, value: &str| file("g", pax_records(&[(key.into(), value.into())])).raw(156, b"g");
    let layer = of([global("comment", "commit"), global("mtime", "5"), file("f", "f")]);
    assert_eq!(layer.at("f").mtime(), 1_000_000);
    for key in ["path", "size", "linkpath", "GNU.sparse.size"] {
        assert!(refused(&Tarball::of([global(key, "5"), file("f", "f")]).end()).contains("global"), "{key}");
    }
}

#[test]
fn the_end_of_a_tar_is_where_peers_see_it() {
    if !root() {
        return;
    }
    let one = Tarball::of([file("f", "f")]).0;
    let next = Tarball::of([file("g", "g")]).0;
    let zeros = |count: usize| vec![0; 512 * count];
    for tar in [
        one.clone(),
        [&one[..], &zeros(1)].concat(),
        [&one[..], &zeros(20)].concat(),
        [&one[..], &zeros(2), &next].concat(),
        [&one[..], &zeros(2), b"odd tail"].concat(),
        one[..513].to_vec(),
    ] {
        let layer = unpacked(&tar);
        assert_eq!(layer.read("f"), "f");
        assert!(!layer.has("g"));
    }
    assert!(unpacked(b"").at("").is_dir());
    assert!(refused(&[&one[..], &zeros(1), &next].concat()).contains("lone zero block"));
    assert!(refused(&one[..512]).contains("middle of a file"));
    assert!(refused(&one[..300]).contains("middle of a header"));
}

// ---- whiteouts ------------------------------------------------------------------------------------------------

#[test]
fn whiteouts_are_overlay_whiteouts_and_touch_only_what_is_below() {
    if !root() {
        return;
    }
    let layer = of([
        file(".wh.gone", ""),
        dir("d/"),
        file("d/.wh.gone", ""),
        file(".wh.file-after", ""),
        file("file-after", "stays"),
        file("file-before", "stays"),
        file(".wh.file-before", ""),
        dir("dir-before/"),
        file("dir-before/x", "stays"),
        file(".wh.dir-before", ""),
        file(".wh.dir-after", ""),
        dir("dir-after/"),
        file("dir-after/x", "stays"),
        file(".wh.implied", ""),
        file("implied/x", "stays"),
        file("implied-parent/.wh.gone", ""),
        file(".wh.file-after", ""),
    ]);
    for path in ["gone", "d/gone", "implied-parent/gone"] {
        assert!(layer.is_whiteout(path), "{path}");
    }
    for path in ["file-after", "file-before", "dir-before/x", "dir-after/x", "implied/x"] {
        assert_eq!(layer.read(path), "stays", "{path}");
    }
    for (path, opaque) in
        [("dir-before", true), ("dir-after", true), ("implied", true), ("d", false), ("", false)]
    {
        assert_eq!(layer.is_opaque(path), opaque, "{path}");
    }
}

#[test]
fn opaque_directories_keep_their_own_wherever_the_mark_stands() {
    if !root() {
        return;
    }
    let layer = of([
        dir("first/"),
        file("first/.wh..wh..opq", ""),
        file("first/own", "own"),
        file("first/.wh.pointless", ""),
        dir("last/"),
        file("last/.wh.pointless", ""),
        file("last/own", "own"),
        dir("last/sub/"),
        file("last/.wh..wh..opq", ""),
        file("implied/.wh..wh..opq", ""),
        dir("implied/").mode(0o700),
    ]);
    for path in ["first", "last", "implied"] {
        assert!(layer.is_opaque(path), "{path}");
    }
    assert!(!layer.is_opaque("last/sub"));
    assert_eq!((layer.read("first/own"), layer.read("last/own")), ("own".into(), "own".into()));
    assert!(!layer.has("first/pointless") && !layer.has("last/pointless"));
    assert!(of([file(".wh..wh..opq", "")]).is_opaque(""));
}

#[test]
fn what_aufs_left_is_skipped_and_nonsense_is_refused() {
    if !root() {
        return;
    }
    let layer = of([
        file(".wh..wh.aufs", ""),
        dir(".wh..wh.plnk/"),
        file(".wh..wh.plnk/77.88", "x"),
        dir(".wh..wh.orph/"),
        file("d/.wh..wh.aufs", ""),
    ]);
    assert_eq!(std::fs::read_dir(&layer.tree).unwrap().count(), 0);
    for name in [".wh.", "d/.wh.", ".wh..", ".wh...", ".wh.a/b", "d/.wh.a/b/c"] {
        assert!(refused(&Tarball::of([file(name, "")]).end()).contains("whiteout"), "{name}");
    }
}

#[test]
fn nothing_in_a_layer_can_pose_as_an_overlay_mark() {
    if !root() {
        return;
    }
    let layer = of([
        file("target", ""),
        entry(b'3', "device").device(0, 0),
        dir("d/")
            .xattr("trusted.overlay.opaque", "y")
            .xattr("user.overlay.opaque", "y")
            .xattr("trusted.overlay.redirect", "/etc")
            .xattr("security.selinux", "label")
            .xattr("user.kept", "yes"),
        file("f", "").xattr("user.overlay.metacopy", "").xattr("trusted.overlay.overlay.opaque", "y"),
    ]);
    assert!(!layer.has("device"));
    assert!(!layer.is_opaque("d"));
    for (path, name) in [
        ("d", "trusted.overlay.opaque"),
        ("d", "user.overlay.opaque"),
        ("d", "trusted.overlay.redirect"),
        ("d", "security.selinux"),
        ("f", "user.overlay.metacopy"),
        ("f", "trusted.overlay.overlay.opaque"),
    ] {
        assert_eq!(layer.xattr(path, name), None, "{path} {name}");
    }
    assert_eq!(layer.xattr("d", "user.kept").unwrap(), b"yes");
    let not_set = layer.not_set();
    assert_eq!((not_set.whiteout_devices, not_set.foreign_xattrs), (1, 6));
    let second_name = [file(".wh.w", ""), hard_link("x", "w")];
    assert!(refused(&Tarball::of(second_name).end()).contains("removed name"));
}

/// Two layers of every kind of change, and a third whose root is opaque, as overlayfs shows them. `None` = it cannot
/// be mounted here.
fn shown_by_overlayfs(home: &Path, options: &str) -> Option<Vec<PathBuf>> {
    let store = store(&home.join("store"));
    let stack = [
        vec![
            dir("d/"),
            file("d/below", ""),
            file("d/removed", ""),
            dir("opaque/"),
            file("opaque/below", ""),
            dir("again/"),
            file("again/below", ""),
            file("file", "below"),
        ],
        vec![
            file("d/.wh.removed", ""),
            file("opaque/.wh..wh..opq", ""),
            file("opaque/own", ""),
            file(".wh.again", ""),
            file("again/own", ""),
            file("new/.wh.never-was", ""),
            file("file", "above"),
        ],
    ];
    let layers: Vec<PathBuf> = stack
        .into_iter()
        .map(|entries| put_tar(&store, &Tarball::of(entries).end()).unwrap())
        .map(|layer| store.show(&layer).unwrap().path)
        .collect();
    let merged = home.join("merged");
    std::fs::create_dir(&merged).unwrap();
    let options = format!("lowerdir={}:{}{options}", layers[1].display(), layers[0].display());
    let flags = nix::mount::MsFlags::MS_RDONLY;
    if let Err(error) = nix::mount::mount(Some("keel"), &merged, Some("overlay"), flags, Some(&options[..])) {
        eprintln!("skipped: overlayfs cannot be mounted here: {error}");
        return None;
    }
    let listed = std::panic::catch_unwind(|| paths(&merged));
    nix::mount::umount(&merged).unwrap();
    Some(listed.unwrap())
}

const SHOWN: [&str; 8] = ["again", "again/own", "d", "d/below", "file", "new", "opaque", "opaque/own"];

#[test]
fn overlayfs_shows_what_the_image_spec_says() {
    if !root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    if let Some(shown) = shown_by_overlayfs(home.path(), "") {
        assert_eq!(shown, SHOWN.map(PathBuf::from));
    }
}

#[test]
fn child_mounts_an_overlay_in_a_user_namespace() {
    let Some(home) = std::env::var_os("KEELBLOCK_TEST_ROOTLESS") else { return };
    if let Some(shown) = shown_by_overlayfs(Path::new(&home), ",userxattr") {
        assert_eq!(shown, SHOWN.map(PathBuf::from));
    }
}

fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                todo.push(path.clone());
            }
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
    found
}

// ---- what it must not say -------------------------------------------------------------------------------------

#[test]
fn no_path_leads_out() {
    if !root() {
        return;
    }
    for name in ["../canary", "/../canary", "a/../../canary", "a/..", "..", "d/../../../../../../tmp/x"] {
        assert!(refused(&Tarball::of([file(name, "dead")]).end()).contains("upwards"), "{name}");
        assert!(refused(&Tarball::of([file("f", ""), hard_link("h", name)]).end()).contains("upwards"));
        assert!(refused(&Tarball::of([file("f", "").pax("path", name)]).end()).contains("upwards"));
    }
}

#[test]
fn no_symlink_leads_out() {
    if !root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let victim = home.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("canary"), "alive").unwrap();
    let out = victim.to_str().unwrap();
    let up = "../".repeat(40) + out.trim_start_matches('/');
    for target in [out, &up, "/proc/self/root", "/proc/self/cwd"] {
        let layer = of([
            symlink("out", target),
            file("out/canary", "dead"),
            file("out/.wh.canary", ""),
            file("out/.wh..wh..opq", ""),
            dir("out/sub/"),
            symlink("out2", "out"),
            file("out2/deeper/canary", "dead"),
        ]);
        assert_eq!(std::fs::read(victim.join("canary")).unwrap(), b"alive");
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 1);
        let stolen = Tarball::of([symlink("out", target), hard_link("stolen", "out/canary")]).end();
        assert!(refused(&stolen).contains("not in this layer"));
        drop(layer.home);
    }
    let through_file = [symlink("f", format!("{out}/canary")), file("f", "replaced")];
    assert_eq!(of(through_file).read("f"), "replaced");
    let removal = [symlink("d", out), dir("d/")];
    drop(of(removal));
    assert_eq!(std::fs::read(victim.join("canary")).unwrap(), b"alive");
}

#[test]
fn malformed_entries_are_refused_by_name() {
    if !root() {
        return;
    }
    let loops = [symlink("a", "b"), symlink("b", "a"), file("a/x", "")];
    let cases: Vec<(&str, Vec<Entry>, &str)> = vec![
        ("loop", loops.to_vec(), "symlinks"),
        ("file as parent", vec![file("f", ""), file("f/x", "")], "no directory"),
        ("no target", vec![hard_link("h", "nowhere")], "not in this layer"),
        ("no target's parent", vec![hard_link("h", "no/where")], "not in this layer"),
        ("link to directory", vec![dir("d/"), hard_link("h", "d")], "no hard link can lead"),
        ("link to root", vec![hard_link("h", "/")], "no hard link can lead"),
        ("root as file", vec![file("./", "x")], "root of the layer"),
        ("empty symlink", vec![symlink("s", "")], "no target"),
        ("unknown type", vec![entry(b'V', "volume")], "type 'V'"),
        ("huge uid", vec![file("f", "").pax("uid", "4294967296")], "out of range"),
        ("uid -1", vec![file("f", "").pax("uid", "4294967295")], "out of range"),
        ("negative gid", vec![file("f", "").pax("gid", "-1")], "out of range"),
        ("huge device", vec![entry(b'3', "c").device(4096, 0)], "device 4096:0"),
        ("long component", vec![file("x", "").pax("path", "y".repeat(256))], "refuses"),
        ("bad size", vec![file("f", "").raw(124, b"-0000000001")], "size"),
        ("bad pax size", vec![file("f", "").pax("size", "-5")], "size"),
        ("bad pax mtime", vec![file("f", "").pax("mtime", "soon")], "mtime"),
        ("nul in pax path", vec![file("f", "").pax("path", b"a\0b")], "malformed"),
        ("no xattr name", vec![file("f", "").xattr("", "x")], "xattr"),
        ("nothing described", vec![file("x", pax_records(&[])).raw(156, b"x")], "describes nothing"),
        ("bad pax", vec![file("x", "12 path=a\n").raw(156, b"x"), file("f", "")], "malformed"),
    ];
    for (what, entries, reason) in cases {
        let text = refused(&Tarball::of(entries).end());
        assert!(text.contains(reason), "{what}: {text}");
    }
    let mut tar = Tarball::of([file("f", "")]).end();
    tar[0] ^= 1;
    assert!(refused(&tar).contains("checksum"));
    assert!(refused(&[b'x'; 2048]).contains("checksum"));
    assert!(refused(&Tarball::of([file("f", "").size(1 << 40)]).end()).contains("middle of a file"));
}

#[test]
fn limits_hold_and_name_their_flags() {
    if !root() {
        return;
    }
    let limits = Limits {
        layer_entries_max: 3,
        path_bytes_max: 20,
        xattr_bytes_max: 30,
        pax_bytes_max: 600,
        ..Limits::default()
    };
    let tar = |entries: Vec<Entry>| Tarball::of(entries).end();
    let extended = |size| file("f", "").pax("comment", vec![b'c'; size]);
    for (flag, bad) in [
        ("layer_entries_max", tar((0..4).map(|n| file(format!("{n}"), "")).collect())),
        ("path_bytes_max", tar(vec![file("123456789012345678901", "")])),
        ("path_bytes_max", tar(vec![symlink("s", "123456789012345678901")])),
        ("xattr_bytes_max", tar(vec![file("f", "").xattr("user.a", [0; 15]).xattr("user.b", [0; 15])])),
        ("pax_bytes_max", tar(vec![extended(700)])),
        ("pax_bytes_max", tar(vec![file("x", vec![b'n'; 400]).raw(156, b"L"), extended(300)])),
        ("pax_bytes_max", tar(vec![file("x", "").size(1 << 40).raw(156, b"L")])),
    ] {
        let (error, text) = refused_with(&bad, limits.clone());
        assert!(matches!(error, UnpackError::Limit { flag: named, .. } if named == flag), "{text}");
        assert!(text.contains(&format!("--{flag}")), "{text}");
    }
    let home = tempfile::tempdir().unwrap();
    let store = store_with(home.path(), limits);
    put_tar(&store, &tar(vec![file("a", "").xattr("user.a", [0; 15]), file("b", ""), extended(400)]))
        .unwrap();
}

/// Paths of few names, so that entries meet, some of them leading out if anything lets them.
fn hostile_path() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let name = prop_oneof![
        24 => Just("a"), 24 => Just("b"), 12 => Just("c"), 1 => Just(".."), 2 => Just(""), 2 => Just("."),
        1 => Just(".wh.a"), 1 => Just(".wh.b"), 1 => Just(".wh..wh..opq"), 3 => Just("outside"),
    ];
    proptest::collection::vec(name, 1..5).prop_map(|names| names.join("/"))
}

fn hostile_entry() -> impl proptest::strategy::Strategy<Value = Entry> {
    use proptest::prelude::*;
    let target = prop_oneof![
        hostile_path(),
        hostile_path().prop_map(|path| format!("/{path}")),
        hostile_path().prop_map(|path| format!("../../../../../../../../../../{path}")),
        Just("..".to_owned()),
        Just("../../..".to_owned()),
        Just("/proc/self/cwd".to_owned()),
    ];
    // Where only the last name may be a whiteout, more sequences go far.
    let path = prop_oneof![
        4 => hostile_path(),
        1 => hostile_path().prop_map(|path| format!("{path}/.wh.a")),
        1 => hostile_path().prop_map(|path| format!("{path}/.wh..wh..opq")),
    ];
    (prop::sample::select(b"0122222555555".to_vec()), path, target, 0..0o1000u32).prop_map(
        |(kind, path, target, mode)| Entry { link: target.into_bytes(), ..entry(kind, path).mode(mode) },
    )
}

#[test]
fn no_sequence_of_entries_touches_anything_outside() {
    if !root() {
        return;
    }
    use proptest::test_runner::{Config, TestRunner};
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let (kept, turned_away) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let entries = proptest::collection::vec(hostile_entry(), 1..12);
    let home = tempfile::tempdir().unwrap();
    for name in ["a", "b", "outside"] {
        std::fs::create_dir(home.path().join(name)).unwrap();
        std::fs::write(home.path().join(name).join("a"), "alive").unwrap();
    }
    let before = survey(home.path());
    TestRunner::new(config)
        .run(&entries, |entries| {
            let inner = tempfile::tempdir_in(home.path()).unwrap();
            let store = store(inner.path());
            match put_tar(&store, &Tarball::of(entries).end()) {
                Ok(layer) => {
                    kept.set(kept.get() + 1);
                    store.show(&layer).unwrap();
                }
                Err(UnpackError::BadEntry { .. }) => {
                    turned_away.set(turned_away.get() + 1);
                    assert_eq!(std::fs::read_dir(inner.path().join("staging")).unwrap().count(), 0);
                }
                Err(error) => panic!("not an entry's fault: {}", chain(&error)),
            }
            drop(inner);
            let mut after = survey(home.path());
            // Made and removed in it: only its own time may differ.
            after.insert(PathBuf::new(), before[Path::new("")].clone());
            assert_same(&after, &before);
            Ok(())
        })
        .unwrap();
    let (kept, turned_away) = (kept.get(), turned_away.get());
    eprintln!("kept {kept}, turned away {turned_away}");
    assert!(kept > 0 && turned_away > 0, "kept {kept}, turned away {turned_away}");
}

// ---- against GNU tar ------------------------------------------------------------------------------------------

/// Everything about every file of a tree.
fn survey(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut all = paths(root);
    all.push(PathBuf::new());
    all.sort();
    for path in all {
        let full = root.join(&path);
        let at = std::fs::symlink_metadata(&full).unwrap();
        let content = if at.is_symlink() {
            format!("{:?}", std::fs::read_link(&full).unwrap())
        } else if at.is_file() {
            format!("{:?}", std::fs::read(&full).unwrap())
        } else {
            String::new()
        };
        let size = if at.is_dir() { 0 } else { at.size() };
        let nlink = if at.is_dir() { 0 } else { at.nlink() };
        let first = inodes.entry(at.ino()).or_insert_with(|| path.clone()).clone();
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&full, &mut names[..]).unwrap_or(0);
        let mut xattrs: Vec<_> = names[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = [0; 1024];
                let length = rustix::fs::lgetxattr(&full, name, &mut value).unwrap();
                (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
            })
            .collect();
        xattrs.sort();
        let line = format!(
            "{:o} {}:{} dev {} size {size} links {nlink} first {first:?} time {}.{:09} {xattrs:?} {content}",
            at.mode(),
            at.uid(),
            at.gid(),
            at.rdev(),
            at.mtime(),
            at.mtime_nsec(),
        );
        found.insert(path, line);
    }
    found
}

fn gnu_tar(dir: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = std::process::Command::new("tar").arg("-C").arg(dir).args(arguments).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

/// What a random tree holds at a random place.
#[derive(Clone, Debug)]
enum Node {
    File { content: Vec<u8>, hole: bool, mode: u32, owner: (u32, u32), xattr: Option<Vec<u8>> },
    Dir { mode: u32, owner: (u32, u32) },
    Symlink(String),
    HardLink(usize),
    Device(u32, u32),
    Fifo,
}

fn plant(root: &Path, nodes: &[(Vec<u8>, Node, i64, u32)]) {
    use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
    use std::os::unix::fs::PermissionsExt;
    let mut made: Vec<PathBuf> = Vec::new();
    let mut dirs = vec![root.to_owned()];
    let mut times = Vec::new();
    for (at, (name, node, seconds, nanos)) in nodes.iter().enumerate() {
        let path = dirs[at * 7 % dirs.len()].join(std::ffi::OsStr::from_bytes(name));
        if std::fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        let mut attributes = None;
        match node {
            Node::File { content, hole, mode, owner, xattr } => {
                std::fs::write(&path, content).unwrap();
                if *hole {
                    let file = std::fs::File::options().write(true).open(&path).unwrap();
                    file.set_len(content.len() as u64 + 200_000).unwrap();
                }
                attributes = Some((*mode, *owner));
                std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).unwrap();
                if let Some(value) = xattr {
                    let flags = rustix::fs::XattrFlags::empty();
                    rustix::fs::setxattr(&path, "user.random", value, flags).unwrap();
                }
            }
            Node::Dir { mode, owner } => {
                std::fs::create_dir(&path).unwrap();
                attributes = Some((*mode, *owner));
                dirs.push(path.clone());
            }
            Node::Symlink(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            Node::HardLink(which) => {
                let files: Vec<&PathBuf> = made.iter().filter(|path| path.is_file()).collect();
                if files.is_empty() {
                    continue;
                }
                std::fs::hard_link(files[which % files.len()], &path).unwrap();
                continue;
            }
            Node::Device(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                let mode = Mode::from_raw_mode(0o640);
                rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device).unwrap();
            }
            Node::Fifo => {
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            }
        }
        if let Some((mode, (uid, gid))) = attributes {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        times.push((path.clone(), *seconds, *nanos));
        made.push(path);
    }
    for (path, seconds, nanos) in times.into_iter().rev() {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn nodes() -> impl proptest::strategy::Strategy<Value = Vec<(Vec<u8>, Node, i64, u32)>> {
    use proptest::prelude::*;
    let name = prop_oneof![
        "[a-zA-Z0-9 .,=_\n-]{1,30}".prop_map(String::into_bytes),
        proptest::collection::vec(prop::num::u8::ANY.prop_filter("name", |b| !matches!(b, 0 | b'/')), 1..120),
        "[x]{101,255}".prop_map(String::into_bytes),
    ]
    .prop_filter("special", |name| !name.starts_with(b".wh.") && !matches!(&name[..], b"." | b".."));
    let owner = || (prop_oneof![Just(0), 0..3_000_000u32], prop_oneof![Just(0), 0..70_000u32]);
    let content = prop_oneof![
        proptest::collection::vec(prop::num::u8::ANY, 0..40),
        (0..70_000usize).prop_map(|length| (0..length).map(|at| ((at * 31) >> 3) as u8).collect()),
    ];
    let xattr = proptest::option::of(proptest::collection::vec(prop::num::u8::ANY, 0..50));
    let node = prop_oneof![
        4 => (content, prop::bool::weighted(0.1), 0..0o10000u32, owner(), xattr)
            .prop_map(|(content, hole, mode, owner, xattr)| Node::File { content, hole, mode, owner, xattr }),
        3 => (0..0o10000u32, owner()).prop_map(|(mode, owner)| Node::Dir { mode, owner }),
        1 => "[a-z/.]{1,150}".prop_map(Node::Symlink),
        1 => prop::num::usize::ANY.prop_map(Node::HardLink),
        1 => (1..300u32, 0..70_000u32).prop_map(|(major, minor)| Node::Device(major, minor)),
        1 => Just(Node::Fifo),
    ];
    let time = (-1_000_000_000..4_000_000_000i64, 0..1_000_000_000u32);
    proptest::collection::vec((name, node, time).prop_map(|(n, d, (s, ns))| (n, d, s, ns)), 0..60)
}

#[test]
fn random_trees_come_out_as_gnu_tar_packed_them() {
    if !root() {
        return;
    }
    use proptest::test_runner::{Config, TestRunner};
    if gnu_tar(Path::new("/"), &["--version"]).is_none() {
        eprintln!("skipped: no tar here");
        return;
    }
    let mut runner = TestRunner::new(Config { cases: 25, failure_persistence: None, ..Config::default() });
    runner
        .run(&nodes(), |nodes| {
            let source = tempfile::tempdir().unwrap();
            plant(source.path(), &nodes);
            let pack = |arguments: &[&str]| {
                let common = ["--numeric-owner", "-c", "-f", "-", "."];
                gnu_tar(source.path(), &[arguments, &common].concat()).unwrap()
            };
            let expected = survey(source.path());
            let xattrs = ["--format=posix", "--xattrs", "--xattrs-include=*"];
            assert_same(&survey(&unpacked(&pack(&xattrs)).tree), &expected);
            for version in ["0.0", "0.1", "1.0"] {
                let sparse = ["--sparse", &format!("--sparse-version={version}")];
                let tar = pack(&[&xattrs[..], &sparse].concat());
                assert_same(&survey(&unpacked(&tar).tree), &expected);
            }
            // The old format knows whole seconds only and no xattrs: what GNU tar itself makes of it.
            let tar = pack(&["--format=gnu", "--sparse"]);
            let home = tempfile::tempdir().unwrap();
            let file = home.path().join("tar");
            std::fs::write(&file, &tar).unwrap();
            let twin = home.path().join("twin");
            std::fs::create_dir(&twin).unwrap();
            gnu_tar(&twin, &["-x", "-p", "--numeric-owner", "-f", file.to_str().unwrap()]).unwrap();
            assert_same(&survey(&unpacked(&tar).tree), &survey(&twin));
            Ok(())
        })
        .unwrap();
}

fn assert_same(actual: &BTreeMap<PathBuf, String>, expected: &BTreeMap<PathBuf, String>) {
    for (path, line) in expected {
        assert_eq!(actual.get(path), Some(line), "{path:?}");
    }
    assert_eq!(actual.len(), expected.len());
}

// ---- against umoci --------------------------------------------------------------------------------------------

/// Writes an OCI layout with an image of one layer, tagged `t`.
fn oci_layout(at: &Path, tar: &[u8]) {
    use keelblock_actors::image::digest::Digest;
    let blobs = at.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let of = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let layer = put(&of("layer.v1.tar+gzip"), &gzip(tar));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(tar)] },
    });
    let config = put(&of("config.v1+json"), &serde_json::to_vec(&config).unwrap());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": of("manifest.v1+json"), "config": config, "layers": [layer],
    });
    let mut manifest = put(&of("manifest.v1+json"), &serde_json::to_vec(&manifest).unwrap());
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "t" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(at.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    std::fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn a_layer_with_everything_comes_out_as_umoci_unpacks_it() {
    if !root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let gnu = |entry: Entry| entry.raw(257, b"ustar  \0").raw(329, [0; 16]);
    let long = "n".repeat(180);
    let tar = Tarball::of([
        dir("./").mode(0o755),
        dir("etc/").mode(0o750).owner(1, 2).mtime(11),
        file("etc/f", "content").owner(3, 4).mode(0o640).pax("mtime", "1600000000.987654321"),
        file("etc/suid", "s").owner(1000, 1000).mode(0o6755),
        file("etc/cap", "c")
            .xattr("security.capability", [1, 0, 0, 2, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        dir("tmp/").mode(0o1777).xattr("user.dir", "x\ny"),
        symlink("link", "etc/f").owner(5, 6).mtime(12),
        hard_link("hard", "etc/f"),
        hard_link("hardsym", "link"),
        entry(b'3', "null").device(1, 3).mode(0o666),
        entry(b'4', "disk").device(8, 17).owner(0, 6),
        entry(b'6', "fifo").mode(0o600),
        gnu(file("././@LongLink", format!("{long}\0")).raw(156, b"L")),
        gnu(file("cut", "long")),
        dir("size/").size(512),
        file("sparse", [9; 512])
            .pax("GNU.sparse.size", "1048576")
            .pax("GNU.sparse.map", "4096,512")
            .pax("GNU.sparse.numblocks", "1"),
        file("twice", "first").mode(0o600),
        file("twice", "second").mode(0o604),
        dir("late/").mtime(13),
        file("late/x", ""),
        file("café", "utf-8"),
        file(b"latin-\xe9", "not utf-8"),
        dir("last/").mode(0o500).mtime(14),
        dir("./").mtime(15),
    ])
    .end();
    oci_layout(&home.path().join("layout"), &tar);
    let unpacked_by_umoci = std::process::Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:t", home.path().join("layout").display()))
        .arg(home.path().join("bundle"))
        .output();
    let Ok(output) = unpacked_by_umoci else {
        eprintln!("skipped: no umoci here");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&survey(&unpacked(&tar).tree), &survey(&home.path().join("bundle/rootfs")));
}

// ---- without root ---------------------------------------------------------------------------------------------

#[test]
fn child_unpacks_in_a_user_namespace() {
    let Some(home) = std::env::var_os("KEELBLOCK_TEST_ROOTLESS") else { return };
    assert!(Privileges::detect().unwrap().in_user_namespace);
    let store = store(Path::new(&home));
    let entries = [
        dir("./").mtime(9),
        file("mine", "x").mode(0o4755),
        file("theirs", "x").owner(1000, 1000).mode(0o2755),
        entry(b'3', "null").device(1, 3),
        file("cap", "").xattr("trusted.secret", "x"),
        dir("d/"),
        file("d/.wh..wh..opq", ""),
        file(".wh.gone", ""),
        file("setgid/f", "").owner(5, 5),
    ];
    let layer =
        put_tar(&store, &Tarball::of(entries).end()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let record = store.layer_record(&layer).unwrap();
    let expected = NotSet { owners: 2, devices: 1, xattrs: 1, ..NotSet::default() };
    assert_eq!(record.not_set, expected);
    let shown = store.show(&layer).unwrap();
    assert!(shown.user_xattrs);
    let at = |path: &str| std::fs::symlink_metadata(shown.path.join(path)).unwrap();
    assert_eq!((at("mine").mode() & 0o7777, at("theirs").uid()), (0o4755, 0));
    assert!(whiteout::is_whiteout(&at("gone")));
    let mut value = [0; 8];
    let length = rustix::fs::lgetxattr(shown.path.join("d"), "user.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    let pruned = store.prune(&Default::default(), &|| Ok(Vec::new())).unwrap();
    assert_eq!(pruned.layers, [layer.diff_id]);
}

#[test]
fn in_a_user_namespace_what_cannot_be_set_is_counted() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("overlay")).unwrap();
    let run = |name: &str, store: &Path| {
        std::process::Command::new("unshare")
            .args(["-Urm", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env("KEELBLOCK_TEST_ROOTLESS", store)
            .output()
    };
    let works = std::process::Command::new("unshare").args(["-Urm", "true"]).status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no user namespaces here");
        return;
    }
    let output = run("child_unpacks_in_a_user_namespace", &home.path().join("store")).unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    let output = run("child_mounts_an_overlay_in_a_user_namespace", &home.path().join("overlay")).unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    // Whoever opens it later goes by what the store says of itself.
    let tar = Tarball::of([file("d/.wh..wh..opq", "")]).end();
    let later = store(&home.path().join("store"));
    let shown = later.show(&put_tar(&later, &tar).unwrap()).unwrap();
    assert!(shown.user_xattrs);
    let dir = std::fs::File::open(shown.path.join("d")).unwrap();
    assert!(whiteout::is_opaque(&dir, whiteout::Namespace::User).unwrap());
}

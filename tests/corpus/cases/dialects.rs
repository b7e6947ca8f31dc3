//! Every way to write a tar that builders use or used, and every way in which readers are known to differ.

use crate::case::{Group, raw};
use crate::tarball::*;
use crate::tree::escape;

/// A tar as it would lie in somebody's payload: read as entries it would leave a file `smuggled`.
fn smuggled() -> Vec<u8> {
    Tarball::of([file("smuggled", "x")]).0
}

pub(crate) fn add(group: &mut Group) {
    numbers(group);
    names(group);
    extended(group);
    sizes(group);
    times(group);
    kinds(group);
    order(group);
    ends(group);
}

fn numbers(group: &mut Group) {
    group.tree_but(
        "ustar-has-every-attribute",
        vec![
            file("f", "content").mode(0o640).owner(3, 4).mtime(5),
            dir("d/").mode(0o1750).owner(5, 6).mtime(7),
            symlink("l", "d/f").owner(7, 8).mtime(9),
            entry(b'6', "fifo").mode(0o622).mtime(11),
            entry(b'3', "null").device(1, 3).mode(0o666).mtime(12),
            entry(b'4', "disk").device(259, 70_000).mode(0o660).owner(0, 6),
        ],
        "f file =content mode=640 own=3:4 mtime=5
         d dir mode=1750 own=5:6 mtime=7
         l link =d/f own=7:8 mtime=9
         fifo fifo mode=622 own=0:0 mtime=11
         null char dev=1:3 mode=666 mtime=12
         disk block dev=259:70000 mode=660 own=0:6",
        |case| case.drops_rootless("owners=3 devices=2", "devices=2"),
    );
    group.tree(
        "v7-without-magic",
        vec![
            file("f", "x").v7().raw(156, [0]).mode(0o600),
            entry(b'5', "d/").v7().raw(156, [0]).mode(0o700),
            symlink("l", "f").v7(),
            hard_link("h", "f").v7(),
        ],
        "f file =x mode=600 same=h | d dir mode=700 | l link =f | h file =x",
    );
    group.tree(
        "ustar-prefix-is-joined-to-the-name",
        vec![file("name", "x").raw(345, b"some/prefix"), file("n", "y").raw(345, vec![b'p'; 155])],
        format!("some/prefix/name file =x | {}/n file =y", "p".repeat(155)),
    );
    group.tree(
        "gnu-magic-has-no-prefix",
        // Where ustar has its prefix GNU tar keeps times of access and change.
        vec![file("name", "x").gnu().raw(345, b"14753216321\x0014753216321\0")],
        "name file =x",
    );
    group.made(
        "checksum-of-signed-bytes",
        |_| {
            // As writers made it whose `char` was signed.
            let mut tar = Tarball::of([file(b"caf\xe9", "x")]).end();
            tar[148..156].fill(b' ');
            let sum: i64 = tar[..512].iter().map(|byte| i64::from(*byte as i8)).sum();
            tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            vec![raw(tar)]
        },
        "caf\\xe9 file =x",
    );
    group.made_refused(
        "checksum-wrong",
        |_| {
            let mut tar = Tarball::of([file("f", "x")]).end();
            tar[0] ^= 1;
            vec![raw(tar)]
        },
        &["no readable tar", "checksum"],
    );
    group.tree(
        "numbers-padded-with-spaces-and-nuls",
        vec![
            file("f", "x")
                .raw(100, b" 640 \0\0\0")
                .raw(124, b"         1 \0")
                .raw(136, b"\0\0\0\0\0\0\0\x0015\0\0"),
        ],
        "f file =x mode=640 mtime=13",
    );
    group.tree(
        "blank-numbers-are-zero",
        vec![file("f", "").raw(100, [0; 8]).raw(108, b"        ").raw(116, [0; 8]).raw(136, [0; 12])],
        "f file mode=0 own=0:0 mtime=0",
    );
    group.tree(
        "base-256-size-and-mode",
        vec![file("f", "four").gnu().raw(124, base256(4, 12)).raw(100, base256(0o604, 8)), file("g", "next")],
        "f file =four mode=604 | g file =next",
    );
    group.tree_but(
        "base-256-owner",
        vec![file("f", "").gnu().raw(108, base256(5_000_000, 8)).raw(116, base256(60_000, 8))],
        "f file own=5000000:60000",
        |case| case.drops_rootless("owners=1", "owners=1"),
    );
    group.tree(
        "base-256-time-before-1970",
        vec![file("f", "").gnu().raw(136, base256(-86_400, 12))],
        "f file mtime=-86400",
    );
    group.refused(
        "base-256-size-below-zero",
        vec![file("f", "").gnu().raw(124, base256(-512, 12))],
        &["no readable tar", "size", "not a number in range"],
    );
    group.refused(
        "base-256-size-beyond-63-bits",
        vec![
            file("f", "")
                .gnu()
                .raw(124, [0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ],
        &["size", "not a number in range"],
    );
    group.refused("octal-with-a-minus", vec![file("f", "").raw(124, b"-0000000001")], &["size"]);
    group.refused("octal-with-an-8", vec![file("f", "").raw(100, b"0000898\0")], &["mode"]);
}

fn names(group: &mut Group) {
    group.tree(
        "names-are-cleaned",
        vec![
            file("./dot", "a"),
            file("/etc//./passwd", "b"),
            file("a/./b/.//c", "c"),
            file("trailing/", "d"),
            dir("././e//").mode(0o700),
            file("...", "f"),
            file("..g", "g"),
        ],
        "dot file =a | etc/passwd file =b | a/b/c file =c | trailing file =d | e dir mode=700 | ... file =f | ..g file =g",
    );
    group.tree(
        "names-that-are-not-utf-8",
        vec![
            file(b"latin-\xe9", "x"),
            dir(b"\xff\xfe/"),
            file(b"\xff\xfe/\x80", "y"),
            symlink("l", b"\xf0\x28"),
        ],
        "latin-\\xe9 file =x | \\xff\\xfe dir | \\xff\\xfe/\\x80 file =y | l link =\\xf0\\x28",
    );
    group.tree(
        "names-with-line-breaks-and-escapes",
        vec![
            file("a\nb", "x"),
            file("\x1b[31mred", "y").pax("path", "\x1b[31mred\r"),
            file("tab\tand space", "z"),
            file("back\\slash|pipe", "p"),
        ],
        "a\\nb file =x | \\x1b[31mred\\x0d file =y | tab\\x09and\\sspace file =z | back\\\\slash\\ppipe file =p",
    );
    group.tree(
        "component-of-255-bytes",
        vec![
            file("x", "x").pax("path", "y".repeat(255)),
            file("z", "z").pax("path", "d/".to_owned() + &"z".repeat(255)),
        ],
        format!("{} file =x | d/{} file =z", "y".repeat(255), "z".repeat(255)),
    );
    group.refused(
        "component-of-256-bytes",
        vec![file("x", "").pax("path", "y".repeat(256))],
        &["filesystem refuses"],
    );
    let deep: String = format!("{}/", "d".repeat(255)).repeat(15) + "d/" + &"f".repeat(254);
    assert_eq!(deep.len(), 4096);
    group.tree(
        "path-of-4096-bytes",
        vec![file("x", "deep").pax("path", &deep)],
        format!("{deep} file =deep"),
    );
    group.refused(
        "path-of-4097-bytes",
        vec![file("x", "deep").pax("path", format!("{deep}f"))],
        &["4096 bytes in a path", "--path_bytes_max"],
    );
    let target: String = "t/".repeat(2040);
    group.tree(
        "symlink-to-a-path-of-4080-bytes",
        vec![symlink("l", "x").pax("linkpath", &target)],
        format!("l link ={target}"),
    );
    group.tree(
        "gnu-long-name-and-long-link",
        vec![
            long_name("n".repeat(200)),
            file("cut", "content").gnu(),
            long_link("n".repeat(200)),
            hard_link("h", "cut").gnu(),
            long_name("s".repeat(150)),
            long_link("t".repeat(300)),
            symlink("cut", "cut").gnu(),
            file("after", "whole"),
        ],
        format!(
            "{} file =content same=h | h file | {} link ={} | after file =whole",
            "n".repeat(200),
            "s".repeat(150),
            "t".repeat(300)
        ),
    );
    group.tree(
        "gnu-long-name-twice-the-last-counts",
        vec![long_name("first"), long_name("second"), file("header", "x").gnu()],
        "second file =x",
    );
    group.tree(
        "gnu-long-name-wins-over-pax-path",
        vec![long_name("by-gnu"), file("header", "x").pax("path", "by-pax")],
        "by-gnu file =x",
    );
    group.tree(
        "gnu-long-name-that-is-empty-counts-for-nothing",
        vec![long_name(""), file("header", "x").gnu(), long_name(""), dir("d/").gnu().mode(0o700)],
        "header file =x | d dir mode=700 | . dir mode=755",
    );
    group.tree(
        "gnu-long-name-ends-at-its-first-nul",
        vec![file("././@LongLink", "short\0and/more\0").gnu().kind(b'L'), file("header", "x").gnu()],
        "short file =x",
    );
    let unended = "ab/".repeat(170) + "xx";
    group.tree(
        "gnu-long-name-without-a-nul",
        vec![file("././@LongLink", &unended).gnu().kind(b'L'), file("header", "x").gnu()],
        format!("{unended} file =x"),
    );
    group.refused("no-name-at-all", vec![file("", "x")], &["root of the layer"]);
    group.refused(
        "nul-in-a-pax-path",
        vec![file("f", "").pax("path", b"a\0b")],
        &["extended header is malformed"],
    );
}

fn extended(group: &mut Group) {
    let long: String = ["deep/"; 60].concat() + "name";
    group.tree(
        "pax-records-win-over-the-header",
        vec![
            file("short", "12345").pax("path", &long).pax("mtime", "17.123456789"),
            symlink("link", "short").pax("linkpath", "x".repeat(300)),
            file("f", "").pax("comment", "n\nm").pax("SCHILY.dev", "1").pax("VENDOR.thing", "x=y"),
        ],
        format!("{long} file =12345 mtime=17.123456789 | link link ={} | f file", "x".repeat(300)),
    );
    group.tree_but(
        "pax-owner-wins",
        vec![file("f", "").owner(1, 2).pax("uid", "70000").pax("gid", "3").pax("uname", "root")],
        "f file own=70000:3",
        |case| case.drops_rootless("owners=1", "owners=1"),
    );
    group.tree(
        "pax-record-twice-the-last-counts",
        vec![file("f", "x").pax("path", "first").pax("path", "second").pax("mtime", "1").pax("mtime", "2")],
        "second file =x mtime=2",
    );
    group.tree(
        "pax-record-emptied-counts-for-nothing",
        vec![
            file("f", "x")
                .pax("path", "gone")
                .pax("path", "")
                .pax("mtime", "")
                .pax("size", "")
                .pax("uid", ""),
        ],
        "f file =x mtime=1000000 own=0:0",
    );
    group.tree(
        "pax-header-twice-the-last-counts",
        // As Go's archive/tar has it: the second header is not added to the first, it stands in its place.
        vec![
            file(
                "pax",
                pax_records(&[(b"path".to_vec(), b"first".to_vec()), (b"mtime".to_vec(), b"7".to_vec())]),
            )
            .kind(b'x'),
            file("f", "x").pax("path", "second"),
        ],
        "second file =x mtime=1000000",
    );
    group.refused(
        "pax-header-then-a-global-one",
        // Go forgets the first, others do not.
        vec![
            file("pax", pax_records(&[(b"path".to_vec(), b"other".to_vec())])).kind(b'x'),
            global("comment", "x"),
            file("f", "x"),
        ],
        &["no readable tar", "global"],
    );
    group.tree(
        "global-headers-change-nothing",
        vec![
            global("comment", "commit"),
            global("mtime", "5"),
            global("uid", "7"),
            file("f", "x"),
            global("uname", "x"),
        ],
        "f file =x mtime=1000000 own=0:0",
    );
    for (name, key) in [
        ("global-header-with-a-path", "path"),
        ("global-header-with-a-size", "size"),
        ("global-header-with-a-link-target", "linkpath"),
        ("global-header-with-a-sparse-size", "GNU.sparse.size"),
    ] {
        group.refused(
            name,
            vec![global(key, "5"), file("f", "12345")],
            &["global extended header", "names or sizes"],
        );
    }
    for (name, records) in [
        ("pax-length-too-long", &b"99 path=a\n"[..]),
        ("pax-length-too-short", b"8 path=ab\n"),
        ("pax-length-zero", b"0 path=a\n"),
        ("pax-length-with-a-sign", b"+10 path=a\n"),
        ("pax-length-below-zero", b"-10 path=a\n"),
        ("pax-length-of-30-digits", b"000000000000000000000000000010 path=a\n"),
        ("pax-record-without-line-break", b"10 path=ab"),
        ("pax-record-without-equals", b"8 path\n\n"),
        ("pax-record-without-key", b"6 =ab\n"),
        ("pax-record-with-a-nul", b"11 path=a\0\n"),
        ("pax-record-then-zeros", b"10 path=a\n\0\0\0"),
    ] {
        group.refused(
            name,
            vec![file("pax", records).kind(b'x'), file("f", "x")],
            &["extended header is malformed"],
        );
    }
    group.refused(
        "pax-header-describes-nothing",
        vec![file("pax", pax_records(&[])).kind(b'x')],
        &["describes nothing"],
    );
    for (name, key, value, word) in [
        ("pax-size-below-zero", "size", "-5", "size"),
        ("pax-size-beyond-63-bits", "size", "9223372036854775808", "size"),
        ("pax-size-in-hexadecimal", "size", "0x5", "size"),
        ("pax-time-that-is-none", "mtime", "soon", "mtime"),
        ("pax-time-with-an-exponent", "mtime", "1e9", "mtime"),
        ("pax-owner-that-is-none", "uid", "root", "uid"),
    ] {
        group.refused(name, vec![file("f", "").pax(key, value)], &[word, "not a number in range"]);
    }
}

/// Where header and extended header do not agree on the size, one reader sees payload where another sees entries:
/// CVE-2025-62518 ("TARmageddon") and CVE-2026-33055.
fn sizes(group: &mut Group) {
    let payload = smuggled();
    let length = payload.len().to_string();
    group.tree(
        "pax-size-where-the-header-has-none",
        vec![file("f", &payload).size(0).pax("size", &length), file("after", "x")],
        "f file size=1024 | after file =x",
    );
    group.tree(
        "pax-size-larger-than-the-header-s",
        vec![file("f", &payload).size(512).pax("size", &length), file("after", "x")],
        "f file size=1024 | after file =x",
    );
    group.tree(
        "pax-size-smaller-than-the-header-s",
        // The header's size would swallow the next entry.
        vec![file("f", "x").size(1536).pax("size", "1"), file("after", "x")],
        "f file =x | after file =x",
    );
    group.tree(
        "pax-size-zero-where-the-header-has-some",
        vec![file("f", "").size(1024).pax("size", "0"), file("seen", "x")],
        "f file size=0 | seen file =x",
    );
    group.tree(
        "pax-size-twice-the-last-counts",
        vec![file("f", &payload).size(0).pax("size", "0").pax("size", &length), file("after", "x")],
        "f file size=1024 | after file =x",
    );
    group.tree(
        "pax-size-of-the-first-of-two-headers-is-forgotten",
        vec![
            file("pax", pax_records(&[(b"size".to_vec(), b"0".to_vec())])).kind(b'x'),
            file("f", &payload).pax("comment", "nothing of a size"),
            file("after", "x"),
        ],
        "f file size=1024 | after file =x",
    );
    group.tree(
        "pax-size-on-what-has-no-content",
        vec![
            dir("d/").pax("size", "1024"),
            symlink("l", "d").pax("size", "1024"),
            entry(b'6', "p").pax("size", "1024"),
            file("f", "f"),
            hard_link("h", "f").pax("size", "1024"),
            file("after", "x"),
        ],
        "d dir | l link =d | p fifo | f file =f same=h | h file | after file =x",
    );
    group.tree(
        "header-size-on-what-has-no-content",
        vec![
            dir("d/").size(512),
            file("f", "f"),
            hard_link("h", "f").size(1 << 30),
            symlink("l", "f").size(7),
            file("after", "x"),
        ],
        "d dir | f file =f same=h | h file | l link =f | after file =x",
    );
    group.tree(
        "a-tar-in-a-file-stays-a-file",
        vec![file("f", [payload.clone(), vec![0; 1024]].concat()), file("after", "x")],
        "f file size=2048 | after file =x",
    );
    group.tree(
        "a-tar-in-a-long-name-stays-a-name",
        // Its first NUL ends the name; the rest of the payload is skipped as such.
        vec![
            file("././@LongLink", [&b"named\0"[..], &vec![0; 506], &payload].concat()).gnu().kind(b'L'),
            file("header", "x").gnu(),
        ],
        "named file =x",
    );
    group.tree(
        "a-tar-in-a-comment-stays-a-comment",
        vec![file("f", "x").pax("SCHILY.xattr.user.tar", &payload)],
        format!("f file =x x:user.tar={}", escape(&payload)),
    );
    group.refused("size-beyond-the-end", vec![file("f", "x").size(1 << 40)], &["middle of a file"]);
    group.refused(
        "pax-size-beyond-the-end",
        vec![file("f", "x").pax("size", "9223372036854775807")],
        &["middle of a file"],
    );
}

fn times(group: &mut Group) {
    group.tree(
        "times-to-the-nanosecond-before-and-after-1970",
        vec![
            file("now", "").pax("mtime", "1700000000.123456789"),
            file("half", "").pax("mtime", "-1.5"),
            file("early", "").pax("mtime", "-0.25"),
            file("cut", "").pax("mtime", "1.9999999999"),
            file("short", "").pax("mtime", "2.5"),
            file("point", "").pax("mtime", "3."),
            dir("d/").pax("mtime", "4.000000001"),
            symlink("l", "x").pax("mtime", "5.000000002"),
        ],
        "now file mtime=1700000000.123456789
         half file mtime=-2.500000000
         early file mtime=-1.750000000
         cut file mtime=1.999999999
         short file mtime=2.500000000
         point file mtime=3
         d dir mtime=4.000000001
         l link mtime=5.000000002",
    );
    group.tree(
        "times-of-the-far-future",
        vec![file("f", "").pax("mtime", "10000000000.5"), file("g", "").raw(136, b"77777777777\0")],
        "f file mtime=10000000000.500000000 | g file mtime=8589934591",
    );
    group.tree(
        "times-of-directories-whatever-comes-after",
        vec![
            dir("a/").mtime(100),
            dir("a/b/").mtime(200),
            file("a/b/c", "").mtime(300),
            file("a/late", ""),
            dir("z/").mtime(400),
            dir("z/").mtime(500),
            file("a/b/later", ""),
            dir(".").mtime(600).mode(0o711),
        ],
        "a dir mtime=100 | a/b dir mtime=200 | a/b/c file mtime=300 | a/late file | z dir mtime=500
         a/b/later file | . dir mtime=600 mode=711",
    );
    group.tree(
        "directories-after-their-children",
        vec![file("d/e/f", "x"), dir("d/e/").mode(0o710).mtime(20), dir("d/").mode(0o701).mtime(30)],
        "d dir mode=701 mtime=30 | d/e dir mode=710 mtime=20 | d/e/f file =x",
    );
    group.tree(
        "directories-never",
        vec![file("d/e/f", "x")],
        ". dir mode=755 own=0:0 mtime=0 | d dir mode=755 own=0:0 mtime=0 | d/e dir mode=755 own=0:0 mtime=0 | d/e/f file =x",
    );
    group.stack_but(
        "directories-never-keep-what-the-layer-below-says",
        vec![
            vec![dir("d/").mode(0o2750).owner(0, 7).mtime(40).xattr("user.x", "y"), dir(".").mode(0o711).mtime(50), dir(b"d/\xff/").mode(0o700).mtime(60)],
            vec![file("d/f", "x"), file(b"d/\xff/g", "y")],
        ],
        "d dir mode=2750 own=0:7 mtime=40 x:user.x=y | d/f file =x | . dir mode=711 mtime=50 | d/\\xff dir mode=700 mtime=60 | d/\\xff/g file =y",
        |case| case.drops_rootless("owners=1", ""),
    );
    let many: Vec<Entry> = (0..300).map(|number| file(format!("{number:04}/f"), "")).collect();
    let explicit: Vec<Entry> =
        (0..300).map(|number| dir(format!("{number:04}/")).mode(0o700).mtime(9)).collect();
    let tree: Vec<String> =
        (0..300).map(|number| format!("{number:04} dir mode=700 mtime=9 | {number:04}/f file")).collect();
    group.stack("directories-never-300-of-them", vec![explicit, many], tree.join("|"));
    let name = "a-directory-s-name-of-24/";
    let deep = name.repeat(150);
    let levels: Vec<Entry> =
        (1..=150).map(|level| dir("x").pax("path", name.repeat(level)).mode(0o700).mtime(3)).collect();
    let tree: Vec<String> = (1..=150)
        .map(|level| format!("{} dir mode=700 mtime=3", name.repeat(level).trim_end_matches('/')))
        .collect();
    group.stack(
        "directories-never-at-the-end-of-a-long-path",
        vec![levels, vec![file("f", "x").pax("path", format!("{deep}f"))]],
        tree.join("|") + &format!("|{deep}f file =x"),
    );
}

fn kinds(group: &mut Group) {
    group.tree("contiguous-files-are-files", vec![file("f", "x").kind(b'7')], "f file =x");
    group.tree(
        "type-nul-is-a-file-or-with-a-slash-a-directory",
        vec![file("f", "x").kind(0), entry(0, "d/")],
        "f file =x | d dir",
    );
    for (name, kind) in [
        ("type-v-volume-label", b'V'),
        ("type-m-of-many-volumes", b'M'),
        ("type-d-gnu-dump", b'D'),
        ("type-n-old-long-name", b'N'),
        ("type-a-solaris-acl", b'A'),
        ("type-e-solaris-attributes", b'E'),
        ("type-x-solaris-extended", b'X'),
        ("type-8-unknown", b'8'),
        ("type-byte-255", 0xff),
    ] {
        let shown = format!("tar type {:?}", char::from(kind));
        group.refused(name, vec![file("f", "payload").kind(kind), file("after", "x")], &["\"f\"", &shown]);
    }
    group.tree(
        "records-that-peers-ignore",
        vec![
            file("f", "x")
                .pax("SCHILY.acl.access", "user::rw-,user:lisa:r--,group::r--,mask::r--,other::r--")
                .pax("SCHILY.fflags", "immutable")
                .pax("LIBARCHIVE.xattr.user.base64", "eA==")
                .pax("LIBARCHIVE.creationtime", "5")
                .pax("RHT.security.selinux", "label")
                .pax("hdrcharset", "BINARY")
                .pax("charset", "ISO-IR 8859 1 1998"),
        ],
        "f file =x mode=644",
    );
    group.refused(
        "device-out-of-range",
        vec![entry(b'3', "c").device(4096, 0)],
        &["device 4096:0 is out of range"],
    );
    group.refused("device-below-zero", vec![entry(b'3', "c").raw(329, base256(-1, 8))], &["out of range"]);
    group.refused("root-that-is-a-file", vec![file("./", "x")], &["root of the layer"]);
    group.refused("root-that-is-a-symlink", vec![symlink(".", "/etc")], &["root of the layer"]);
    group.refused("symlink-without-target", vec![symlink("s", "")], &["no target"]);
    group.refused("file-as-parent", vec![file("f", ""), file("f/x", "")], &["\"f/x\"", "no directory"]);
}

fn order(group: &mut Group) {
    group.tree(
        "entries-repeated-the-last-counts",
        vec![
            file("f", "old"),
            file("f", "new").mode(0o600),
            dir("d/"),
            file("d/child", "stays"),
            dir("d/").mode(0o700),
        ],
        "f file =new mode=600 | d dir mode=700 | d/child file =stays",
    );
    group.tree(
        "entries-that-change-their-type",
        vec![
            file("a", "x"),
            dir("a/"),
            file("a/f", "x"),
            symlink("a", "nowhere"),
            entry(b'6', "a"),
            hard_link("a2", "a"),
            dir("b/"),
            file("b/f", "x"),
            file("b", "a file"),
            symlink("c", "b"),
            dir("c/").mode(0o700),
            file("c/f", "x"),
            entry(b'6', "d"),
            symlink("d", "x"),
            file("d", "x"),
            dir("e/"),
            entry(b'6', "e"),
        ],
        "a fifo same=a2 | a2 fifo | b file =a\\sfile | c dir mode=700 | c/f file =x | d file =x | e fifo",
    );
    group.stack(
        "types-change-from-layer-to-layer",
        vec![
            vec![
                file("a", "1"),
                dir("b/"),
                file("b/below", "1"),
                symlink("c", "b"),
                entry(b'6', "d"),
                file("e", "1"),
                dir("f/"),
                file("f/below", ""),
            ],
            vec![
                dir("a/"),
                file("a/x", "2"),
                file("b", "2"),
                dir("c/"),
                file("c/x", "2"),
                symlink("d", "e"),
                entry(b'6', "e"),
                symlink("f", "a"),
            ],
            vec![
                file("a", "3"),
                dir("b/"),
                file("b/above", "3"),
                file("c", "3"),
                dir("f/"),
                file("f/above", "3"),
            ],
        ],
        "a file =3 | b dir | b/above file =3 | c file =3 | d link =e | e fifo | f dir | f/above file =3",
    );
    group.tree(
        "zero-length-files",
        vec![file("a", ""), file("b", ""), file("c", "c")],
        "a file size=0 | b file size=0 | c file =c",
    );
    group.stack(
        "a-layer-twice-in-one-image",
        vec![
            vec![file("f", "1"), file("g", "1")],
            vec![file("f", "2"), file(".wh.g", "")],
            vec![file("f", "1"), file("g", "1")],
        ],
        "f file =1 | g file =1",
    );
    group.stack(
        "layers-without-entries",
        vec![vec![], vec![file("f", "x")], vec![]],
        "f file =x | . dir mode=755 mtime=0",
    );
    let stack = (0..60)
        .map(|number| vec![file(format!("f{number}"), number.to_string()), file("top", number.to_string())])
        .collect();
    let tree: Vec<String> = (0..60).map(|number| format!("f{number} file ={number}")).collect();
    group.stack("sixty-layers", stack, tree.join("|") + "| top file =59");
}

fn ends(group: &mut Group) {
    let one = || Tarball::of([file("f", "f")]).0;
    let zeros = |count: usize| vec![0; 512 * count];
    let mut ok = |name, tar: Vec<u8>| group.made(name, move |_| vec![raw(tar.clone())], "f file =f");
    ok("end-without-zero-blocks", one());
    ok("end-after-one-zero-block", [one(), zeros(1)].concat());
    ok("end-with-twenty-zero-blocks", [one(), zeros(20)].concat());
    ok("end-then-another-tar", [one(), zeros(2), smuggled()].concat());
    ok("end-then-garbage", [one(), zeros(2), b"odd tail".to_vec()].concat());
    ok("end-without-the-last-padding", one()[..513].to_vec());
    group.made("end-at-once", |_| vec![raw(vec![0; 1024])], ". dir mode=755");
    group.made("nothing-at-all", |_| vec![raw(vec![])], ". dir mode=755");
    let mut refused = |name, tar: Vec<u8>, word: &str| {
        group.made_refused(name, move |_| vec![raw(tar.clone())], &["no readable tar", word])
    };
    refused("one-zero-block-then-an-entry", [one(), zeros(1), smuggled()].concat(), "lone zero block");
    refused("cut-in-a-header", one()[..300].to_vec(), "middle of a header");
    refused("cut-before-a-file", one()[..512].to_vec(), "middle of a file");
    refused("cut-in-a-file", Tarball::of([file("f", [1; 2000])]).0[..1024].to_vec(), "middle of a file");
    refused("cut-in-the-second-zero-block", [one(), zeros(1), vec![0; 100]].concat(), "middle of a header");
    refused(
        "cut-in-an-extended-header",
        Tarball::of([file("f", "").pax("path", "x".repeat(900))]).0[..900].to_vec(),
        "middle of a file",
    );
    refused("no-tar-but-text", b"<html>not found</html>\n".repeat(100), "checksum");
}

//! Images of every shape: by our own reader, and by the kernel against the same tree made by system calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use keelblock::erofs::{Attributes, Error, NoWatch, Options, Run, Special, Watch, Writer, Xattrs};
use proptest::prelude::*;

use crate::items::{self, Item, What, files, item, new};
use crate::mount::{Mounted, can_mount, fsck};
use crate::read::Image;
use crate::tree::Tree;

/// A directory in memory, if there is room for one.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Writes the items, and reads them back in every way there is here.
fn check(items: &[Item]) {
    let scratch = scratch();
    let (image, sums) = files(scratch.path(), "one");
    let written = items::write(items, &image, &sums);
    let read = Image::open(&image);
    assert_eq!(written.bytes, read.blocks * 4096);
    read.check_sums(&sums);
    same(items, &read);
    let (again, sums_again) = files(scratch.path(), "again");
    items::write(items, &again, &sums_again);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&again).unwrap(), "another image of the same");
    fsck(&image);
    if can_mount() {
        items::make(items, &scratch.path().join("tree"));
        let mounted = Mounted::new(&image, &scratch.path().join("mounted"));
        let (tree, shown) = (Tree::read(&scratch.path().join("tree")), Tree::read(mounted.path()));
        tree.expect_same("the tree", &shown, "the image", |_| None);
    }
}

/// Whether our own reader finds the items.
fn same(items: &[Item], image: &Image) {
    let all = image.all();
    let mut names: BTreeMap<&[u8], u32> = BTreeMap::new();
    for item in items {
        match &item.what {
            What::Link(to) => *names.entry(to).or_insert(1) += 1,
            _ => drop(names.entry(&item.path).or_insert(1)),
        }
    }
    for item in items {
        let node = &all[&item.path];
        let content = || image.content(node);
        match &item.what {
            What::Link(to) => {
                assert_eq!(node.nid, all[to].nid);
                continue;
            }
            What::File(bytes) => assert!(content() == *bytes),
            What::Symlink(target) => assert_eq!(content(), *target),
            What::Sparse(size, parts) => {
                let mut bytes = vec![0; *size as usize];
                parts.iter().for_each(|(at, part)| bytes[*at as usize..][..part.len()].copy_from_slice(part));
                assert!(content() == bytes);
            }
            What::Special(Special::Char(major, minor) | Special::Block(major, minor)) => {
                assert_eq!(node.device, minor & 0xff | major << 8 | (minor & !0xff) << 12);
            }
            What::Special(_) => assert_eq!(node.device, 0),
            What::Dir => {}
        }
        let mode = if matches!(item.what, What::Symlink(_)) { 0o777 } else { item.attributes.mode };
        assert_eq!(node.mode & 0o7777, mode);
        assert_eq!(node.owner, (item.attributes.uid, item.attributes.gid));
        assert_eq!(node.mtime, item.attributes.mtime);
        assert_eq!(node.xattrs.len(), item.xattrs.len());
        assert!(item.xattrs.iter().all(|(_, value)| node.xattrs.values().any(|there| there == value)));
        if !matches!(item.what, What::Dir) {
            assert_eq!(node.nlink, names[&item.path[..]]);
        }
    }
    let root = usize::from(!items.iter().any(|item| item.path.is_empty()));
    assert_eq!(all.len(), items.len() + root);
}

// ---- shapes that are known --------------------------------------------------------------------------------------

#[test]
fn an_image_of_nothing_is_a_root() {
    check(&[]);
}

#[test]
fn an_inode_may_end_with_the_last_byte_of_a_block() {
    // 64 bytes each: as many as fill a block, one fewer, one more.
    for fifos in 63..=65 {
        let fifo = |number| item(format!("{number}"), What::Special(Special::Fifo));
        check(&(0..fifos).map(fifo).collect::<Vec<_>>());
    }
}

#[test]
fn content_of_every_length_around_a_block_is_whole() {
    let lengths =
        [0, 1, 31, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8128, 8129, 8192, 1 << 20, (1 << 20) + 1];
    let mut items = vec![];
    for (number, length) in lengths.into_iter().enumerate() {
        let content = (0..length).map(|at| (at * 7 + number) as u8).collect();
        items.push(item(format!("f{length}"), What::File(content)));
        if (1..4096).contains(&length) {
            items.push(item(format!("s{length}"), What::Symlink(vec![b't'; length])));
        }
    }
    check(&items);
}

#[test]
fn times_before_1970_and_of_nanoseconds_stay() {
    // On tmpfs, which keeps all of them.
    let times = [(-1, 999_999_999), (0, 0), (i64::from(i32::MIN), 1), (1 << 33, 123_456_789)];
    let file = |(number, time)| item(format!("{number}"), What::File(vec![])).mtime(time);
    let mut items: Vec<_> = times.into_iter().enumerate().map(file).collect();
    items.push(item("", What::Dir).mtime((-77, 5)));
    check(&items);
}

#[test]
fn xattrs_are_inline_once_and_shared_from_then_on() {
    let large = vec![b'x'; 3000];
    let mut items = vec![item("", What::Dir).xattr("trusted.root", &large).xattr("user.b", &large)];
    for number in 0..40 {
        let file = item(format!("f{number}"), What::File(vec![number; 100])).xattr("user.same", "value");
        items.push(file.xattr("user.own", [number; 5]).xattr("security.x", vec![number % 3; 900]));
    }
    items.push(item("all", What::Dir).xattr("user.many", vec![7; 40_000]).xattr("user.same", "value"));
    check(&items);
    let scratch = scratch();
    let (image, sums) = files(scratch.path(), "i");
    items::write(&items, &image, &sums);
    let read = Image::open(&image);
    let shared: Vec<_> =
        ["", "f0", "f1", "f2", "f3", "f4"].map(|path| read.all()[path.as_bytes()].shared).into();
    assert_eq!(shared, [2, 0, 1, 1, 2, 2]);
}

#[test]
fn acls_are_read_by_the_kernel() {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let acl = |user: u32| {
        let none = u32::MAX;
        let entries =
            [entry(1, 7, none), entry(2, 6, user), entry(4, 5, none), entry(16, 7, none), entry(32, 4, none)];
        [&2_u32.to_le_bytes()[..], &entries.concat()].concat()
    };
    let mut file = item("f", What::File(vec![1])).xattr("system.posix_acl_access", acl(1000));
    file.attributes.mode = 0o774;
    let mut dir = item("d", What::Dir).xattr("system.posix_acl_access", acl(1));
    dir.attributes.mode = 0o774;
    check(&[file, dir.xattr("system.posix_acl_default", acl(2))]);
}

#[test]
fn a_directory_of_a_hundred_thousand_names_is_sorted_and_found() {
    const NAMES: u32 = 100_000;
    let scratch = scratch();
    let (image, _) = files(scratch.path(), "i");
    let mut writer = Writer::new(new(&image), None, Options::default(), Box::new(NoWatch));
    let dir = writer.make_dir(writer.root(), b"d", Attributes::new(0o755)).unwrap();
    let name = |number: u32| format!("{:x}-{number}", number.wrapping_mul(2_654_435_761)).into_bytes();
    for number in 0..NAMES {
        let fifo = writer.special(Special::Fifo, &Attributes::new(0o600), &Xattrs::default()).unwrap();
        writer.put(dir, &name(number), fifo).unwrap();
    }
    assert!((0..NAMES).all(|number| writer.lookup(dir, &name(number)).is_some()));
    assert!(writer.lookup(dir, b"no").is_none());
    writer.finish().unwrap();
    // It checks the order.
    let all = Image::open(&image).all();
    assert_eq!(all.len(), NAMES as usize + 2);
    fsck(&image);
    if can_mount() {
        let mounted = Mounted::new(&image, &scratch.path().join("mounted"));
        let dir = mounted.path().join("d");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), NAMES as usize);
        for number in (0..NAMES).step_by(997) {
            let name = String::from_utf8(name(number)).unwrap();
            assert!(std::fs::symlink_metadata(dir.join(name)).is_ok());
        }
        assert!(std::fs::symlink_metadata(dir.join("no")).is_err());
    }
}

#[test]
fn a_file_over_4_gib_has_holes_that_are_found() {
    const SIZE: u64 = (5 << 30) + 17;
    let scratch = scratch();
    let (image, sums) = files(scratch.path(), "i");
    let parts = [(0, 10), (4 << 30, 100_000), (SIZE - 5, 5)];
    let run = |(offset, length): (u64, u64)| Run { offset, length };
    let mut writer = Writer::new(new(&image), Some(new(&sums)), Options::default(), Box::new(NoWatch));
    writer.begin_sparse_file(SIZE, parts.map(run).into()).unwrap();
    parts.iter().for_each(|(_, length)| writer.content(&vec![9; *length as usize]).unwrap());
    let file = writer.end_file(&Attributes::new(0o644), &Xattrs::default()).unwrap();
    writer.put(writer.root(), b"large", file).unwrap();
    let written = writer.finish().unwrap();
    // An index of 1.3 million blocks would be larger than what is said; chunks of some blocks are not.
    assert!(written.bytes < 8 << 20, "{}", written.bytes);
    assert!(std::fs::metadata(&image).unwrap().blocks() * 512 <= written.bytes);
    let read = Image::open(&image);
    read.check_sums(&sums);
    let node = &read.all()[&b"large"[..]];
    assert_eq!((node.size, read.index(node).iter().flat_map(|(_, block)| block).count()), (SIZE, 3));
    if can_mount() {
        let mounted = Mounted::new(&image, &scratch.path().join("mounted"));
        let file = File::open(mounted.path().join("large")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE);
        let mut bytes = [0; 20];
        file.read_exact_at(&mut bytes, (4 << 30) - 10).unwrap();
        assert_eq!(bytes, [[0; 10], [9; 10]].concat()[..]);
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        assert!(hole > 0 && hole < 1 << 30, "{hole}");
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole)).unwrap();
        assert!(data <= 4 << 30 && data > 3 << 30, "{data}");
        (&file).seek(SeekFrom::Start(SIZE - 6)).unwrap();
        let mut end = vec![];
        (&file).read_to_end(&mut end).unwrap();
        assert_eq!(end, [0, 9, 9, 9, 9, 9]);
    }
}

#[test]
fn large_runs_of_zeros_are_left_out_of_the_file() {
    let scratch = scratch();
    let (image, sums) = files(scratch.path(), "i");
    // One chunk of many megabytes, of which a little is said.
    let (offset, content) = (1_000_000_000_000, [1; 10]);
    let mut writer = Writer::new(new(&image), Some(new(&sums)), Options::default(), Box::new(NoWatch));
    writer.begin_sparse_file(8 << 40, vec![Run { offset, length: 10 }]).unwrap();
    writer.content(&content).unwrap();
    let file = writer.end_file(&Attributes::new(0o644), &Xattrs::default()).unwrap();
    writer.put(writer.root(), b"f", file).unwrap();
    let written = writer.finish().unwrap();
    let allocated = std::fs::metadata(&image).unwrap().blocks() * 512;
    assert!(allocated < written.bytes, "{allocated} of {}", written.bytes);
    let read = Image::open(&image);
    read.check_sums(&sums);
    assert_eq!(read.index(&read.all()[&b"f"[..]]).iter().flat_map(|(_, block)| block).count(), 1);
    fsck_can_read(&image);
}

/// It reads all content, holes too: not of terabytes.
fn fsck_can_read(image: &Path) {
    if can_mount() {
        let at = image.with_extension("mounted");
        let mounted = Mounted::new(image, &at);
        let file = File::open(mounted.path().join("f")).unwrap();
        let mut bytes = [0; 12];
        file.read_exact_at(&mut bytes, 999_999_999_999).unwrap();
        assert_eq!(bytes, [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }
}

// ---- errors and limits ------------------------------------------------------------------------------------------

#[test]
fn what_cannot_be_in_an_image_is_refused_and_the_writer_goes_on() {
    let scratch = scratch();
    let (image, _) = files(scratch.path(), "i");
    let mut writer = Writer::new(new(&image), None, Options::default(), Box::new(NoWatch));
    let (root, plain, none) = (writer.root(), Attributes::new(0o644), Xattrs::default());
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'n'; 256]] {
        assert!(matches!(writer.make_dir(root, name, plain), Err(Error::Name { .. })));
    }
    for target in [&b""[..], b"a\0", &[b't'; 4096]] {
        assert!(matches!(writer.add_symlink(root, b"s", target, &plain, &none), Err(Error::Target { .. })));
    }
    assert!(matches!(writer.content(b"x"), Err(Error::Content)));
    assert!(matches!(writer.end_file(&plain, &none), Err(Error::Content)));
    let run = |offset, length| Run { offset, length };
    for runs in [vec![run(5, 5), run(9, 1)], vec![run(0, 11)], vec![run(u64::MAX, 2)]] {
        assert!(matches!(writer.begin_sparse_file(10, runs), Err(Error::Content)));
    }
    let mut foreign = Xattrs::default();
    foreign.set(b"com.apple.x", vec![]);
    assert!(matches!(writer.special(Special::Fifo, &plain, &foreign), Err(Error::Xattr { .. })));
    let mut many = Xattrs::default();
    (0..5).for_each(|number| many.set(format!("user.{number}").as_bytes(), vec![number; 65_535]));
    assert!(matches!(writer.special(Special::Fifo, &plain, &many), Err(Error::Xattrs { .. })));
    let fifo = writer.special(Special::Fifo, &plain, &none).unwrap();
    writer.put(root, b"fifo", fifo).unwrap();
    writer.finish().unwrap();
    assert_eq!(Image::open(&image).all().len(), 2);
}

#[test]
fn names_without_end_come_to_the_limit_of_memory() {
    let scratch = scratch();
    let (image, _) = files(scratch.path(), "i");
    let options = Options { names_bytes_max: 4 << 20 };
    let mut writer = Writer::new(new(&image), None, options, Box::new(NoWatch));
    let fifo = writer.special(Special::Fifo, &Attributes::new(0), &Xattrs::default()).unwrap();
    let mut put = |number: u32| writer.put(writer.root(), format!("{number:08}").as_bytes(), fifo);
    let refused = (0..1_000_000).find_map(|number| Some((number, put(number).err()?)));
    let (number, error) = refused.expect("a million names in 4 MiB");
    assert!(matches!(error, Error::Names { max } if max == 4 << 20));
    // 24 bytes and the text, and a table that doubles.
    assert!((50_000..120_000).contains(&number), "{number}");
}

#[test]
fn the_watch_is_told_of_every_byte_and_can_end_it() {
    struct Told<'a> {
        end: &'a mut u64,
        bytes: &'a mut u64,
        fail_at: u64,
    }
    impl Watch for Told<'_> {
        fn written(&mut self, file: &File, end: u64, more: u64) -> std::io::Result<()> {
            assert!(more <= 4 << 20 && end > *self.end);
            assert!(file.metadata()?.len() >= end, "all before the end is written");
            (*self.end, *self.bytes) = (end, *self.bytes + more);
            if end >= self.fail_at { Err(std::io::Error::other("enough")) } else { Ok(()) }
        }
    }
    let scratch = scratch();
    let (image, sums) = files(scratch.path(), "i");
    let (mut end, mut bytes) = (0, 0);
    let items: Vec<_> =
        (0..3).map(|number| item(format!("{number}"), What::File(vec![1; 5_000_000]))).collect();
    let watch = Told { end: &mut end, bytes: &mut bytes, fail_at: u64::MAX };
    let written = items::write_watched(&items, &image, &sums, watch);
    assert_eq!((end, bytes), (written.bytes, written.bytes));
    (end, bytes) = (0, 0);
    let watch = Told { end: &mut end, bytes: &mut bytes, fail_at: 2 << 20 };
    let (image, _) = files(scratch.path(), "j");
    let mut writer = Writer::new(new(&image), None, Options::default(), Box::new(watch));
    writer.begin_file().unwrap();
    assert!(matches!(writer.content(&vec![1; 5_000_000]), Err(Error::Image(_))));
}

// ---- shapes that nobody thought of ------------------------------------------------------------------------------

fn attributes() -> impl Strategy<Value = Attributes> {
    let time = (-2_000_000_000_i64..6_000_000_000, 0_u32..1_000_000_000);
    (0_u16..0o10000, any::<u16>(), 0..u32::MAX, time).prop_map(|(mode, uid, gid, mtime)| Attributes {
        mode,
        uid: uid.into(),
        gid,
        mtime,
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0_usize..200, 3900_usize..4200, 0_usize..20_000, 200_000_usize..1_200_000];
    (length, any::<u8>()).prop_map(|(length, salt)| (0..length).map(|at| (at / 3) as u8 ^ salt).collect())
}

fn what() -> impl Strategy<Value = What> {
    let device = (0_u32..4096, 1_u32..1 << 20);
    let parts = prop::collection::vec((0_u64..200_000, bytes()), 0..5);
    prop_oneof![
        4 => bytes().prop_map(What::File),
        3 => Just(What::Dir),
        1 => (parts, 0_u64..300_000).prop_map(|(parts, more)| {
            let (mut end, mut placed) = (0, vec![]);
            for (gap, bytes) in parts {
                placed.push((end + gap, bytes));
                end = placed.last().map_or(0, |(at, bytes)| at + bytes.len() as u64);
            }
            What::Sparse(end + more, placed)
        }),
        1 => prop::collection::vec(1_u8.., 1..4095).prop_map(What::Symlink),
        1 => device.clone().prop_map(|(major, minor)| What::Special(Special::Char(major, minor))),
        1 => device.prop_map(|(major, minor)| What::Special(Special::Block(major, minor))),
        1 => Just(What::Special(Special::Fifo)),
        1 => Just(What::Link(vec![])),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'!'), Just(b'.'), Just(b'-'), Just(0xff_u8), b'a'..b'e'];
    prop_oneof![9 => prop::collection::vec(byte.clone(), 1..12), 1 => prop::collection::vec(byte, 200..=255)]
}

type Drawn = (Vec<u8>, What, Attributes, Vec<(u8, u16)>, prop::sample::Index, prop::sample::Index);

/// A tree of what was drawn: each item in one of the directories before it, under a name that is free there.
fn arranged(drawn: Vec<Drawn>) -> Vec<Item> {
    let mut items: Vec<Item> = vec![];
    let (mut dirs, mut files) = (vec![vec![]], vec![]);
    for (name, what, attributes, xattrs, dir, target) in drawn {
        let parent: &Vec<u8> = dir.get(&dirs);
        let path = if parent.is_empty() { name.clone() } else { [&parent[..], b"/", &name].concat() };
        let taken = items.iter().any(|item| item.path == path);
        if taken || matches!(&name[..], b"." | b"..") || path.len() > 3000 {
            continue;
        }
        let what = match what {
            What::Link(_) if files.is_empty() => What::Dir,
            What::Link(_) => What::Link(target.get::<Vec<u8>>(&files).clone()),
            other => other,
        };
        match &what {
            What::Dir => dirs.push(path.clone()),
            What::Link(_) => {}
            _ => files.push(path.clone()),
        }
        let mut item = Item { path, what, attributes, xattrs: vec![] };
        if matches!(item.what, What::File(_) | What::Dir) {
            for (which, length) in xattrs {
                let prefix = ["user", "trusted", "security"][usize::from(which) % 3];
                let name = format!("{prefix}.{}", which % 16);
                if !item.xattrs.iter().any(|(there, _)| there == name.as_bytes()) {
                    item = item.xattr(&name, vec![which / 100; usize::from(length)]);
                }
            }
        }
        items.push(item);
    }
    items
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_the_same_as_an_image(drawn in prop::collection::vec(
        (
            name(), what(), attributes(), prop::collection::vec((any::<u8>(), 0_u16..2000), 0..3),
            any::<prop::sample::Index>(), any::<prop::sample::Index>(),
        ), 0..60,
    )) {
        check(&arranged(drawn));
    }
}

//! What an image is to hold, as a list; made an image by the writer, and a tree by system calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keelblock::erofs::{Attributes, DirId, NoWatch, Options, Run, Special, Watch, Writer, Written, Xattrs};
use keelblock::sys::beneath;

/// One name, in a directory that comes before it.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) path: Vec<u8>,
    pub(crate) what: What,
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Dir,
    File(Vec<u8>),
    /// Size, and content at places.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    Symlink(Vec<u8>),
    Special(Special),
    /// Another name of an item.
    Link(Vec<u8>),
}

pub(crate) fn item(path: impl AsRef<[u8]>, what: What) -> Item {
    let attributes = Attributes { mtime: (1_000_000, 7), ..Attributes::new(0o755) };
    Item { path: path.as_ref().to_vec(), what, attributes, xattrs: vec![] }
}

impl Item {
    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.into(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn mtime(mut self, mtime: (i64, u32)) -> Self {
        self.attributes.mtime = mtime;
        self
    }

    fn xattrs(&self) -> Xattrs {
        let mut xattrs = Xattrs::default();
        self.xattrs.iter().for_each(|(name, value)| xattrs.set(name, value.clone()));
        xattrs
    }
}

/// Files for an image and its checksums.
pub(crate) fn files(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.erofs")), dir.join(format!("{name}.sums")))
}

pub(crate) fn new(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Writes the items as an image.
pub(crate) fn write(items: &[Item], image: &Path, sums: &Path) -> Written {
    write_watched(items, image, sums, NoWatch)
}

pub(crate) fn write_watched(items: &[Item], image: &Path, sums: &Path, watch: impl Watch + Send) -> Written {
    let mut writer = Writer::new(new(image), Some(new(sums)), Options::default(), Box::new(watch));
    let mut dirs: BTreeMap<Vec<u8>, DirId> = BTreeMap::from([(vec![], writer.root())]);
    for item in items {
        let (parent, name) = split(&item.path);
        let dir = dirs[parent];
        let (attributes, xattrs) = (&item.attributes, &item.xattrs());
        match &item.what {
            What::Dir => {
                let made = match name {
                    b"" => dir,
                    name => writer.make_dir(dir, name, *attributes).unwrap(),
                };
                writer.set_dir(made, *attributes, xattrs.clone()).unwrap();
                dirs.insert(item.path.clone(), made);
            }
            What::File(content) => {
                writer.begin_file().unwrap();
                // In pieces of odd lengths.
                content.chunks(70_001).for_each(|piece| writer.content(piece).unwrap());
                let file = writer.end_file(attributes, xattrs).unwrap();
                writer.put(dir, name, file).unwrap();
            }
            What::Sparse(size, parts) => {
                let run =
                    |(offset, bytes): &(u64, Vec<u8>)| Run { offset: *offset, length: bytes.len() as u64 };
                writer.begin_sparse_file(*size, parts.iter().map(run).collect()).unwrap();
                parts.iter().for_each(|(_, bytes)| writer.content(bytes).unwrap());
                let file = writer.end_file(attributes, xattrs).unwrap();
                writer.put(dir, name, file).unwrap();
            }
            What::Symlink(target) => writer.add_symlink(dir, name, target, attributes, xattrs).unwrap(),
            What::Special(special) => {
                let inode = writer.special(*special, attributes, xattrs).unwrap();
                writer.put(dir, name, inode).unwrap();
            }
            What::Link(to) => {
                let (from, existing) = split(to);
                assert!(writer.link(dirs[from], existing, dir, name).unwrap());
            }
        }
    }
    writer.finish().unwrap()
}

/// Makes the items a tree, by system calls; needs root.
pub(crate) fn make(items: &[Item], top: &Path) {
    std::fs::create_dir(top).unwrap();
    let root = beneath::open_root(top).unwrap();
    beneath::chmod(root.as_fd(), b".", 0o755).unwrap();
    let open = |path: &[u8]| beneath::open_dir_beneath(root.as_fd(), path).unwrap();
    for item in items {
        let (parent, name) = split(&item.path);
        let name = if name.is_empty() { b"." } else { name };
        let dir = open(parent);
        let dir = dir.as_fd();
        match &item.what {
            What::Dir if name == b"." => {}
            What::Dir => beneath::make_dir(dir, name, 0o700).unwrap(),
            What::File(content) => {
                beneath::create_file(dir, name, 0o600).unwrap().write_all_at(content, 0).unwrap();
            }
            What::Sparse(size, parts) => {
                let file = beneath::create_file(dir, name, 0o600).unwrap();
                parts.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
                file.set_len(*size).unwrap();
            }
            What::Symlink(target) => beneath::make_symlink(dir, name, target).unwrap(),
            What::Special(special) => {
                let special = match *special {
                    Special::Char(major, minor) => beneath::Special::Char(major, minor),
                    Special::Block(major, minor) => beneath::Special::Block(major, minor),
                    Special::Fifo => beneath::Special::Fifo,
                    Special::Socket => panic!("no sockets"),
                };
                beneath::make_special(dir, name, special, 0o600).unwrap();
            }
            What::Link(to) => {
                let (from, existing) = split(to);
                beneath::make_link(open(from).as_fd(), existing, dir, name).unwrap();
                continue;
            }
        }
        let Attributes { mode, uid, gid, .. } = item.attributes;
        beneath::chown(dir, name, uid, gid).unwrap();
        if !matches!(item.what, What::Symlink(_)) {
            beneath::chmod(dir, name, mode.into()).unwrap();
        }
        for (xattr, value) in &item.xattrs {
            beneath::set_xattr(dir, name, xattr, value).unwrap();
        }
    }
    // What is made in a directory changes its time. That of a root that is no item is the writer's.
    beneath::set_times(root.as_fd(), b".", 0, 0).unwrap();
    for item in items.iter().rev().filter(|item| !matches!(item.what, What::Link(_))) {
        let (parent, name) = split(&item.path);
        let name = if name.is_empty() { b"." } else { name };
        let (seconds, nanos) = item.attributes.mtime;
        beneath::set_times(open(parent).as_fd(), name, seconds, nanos).unwrap();
    }
}

pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

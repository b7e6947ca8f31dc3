//! Trees as they lie on disk, and as a case says they should.
//!
//! Read by descriptors, one directory after the other and back by `..`, so that a tree may be deeper than any path;
//! content is read where there is data, so that a hole of an exabyte costs nothing.
//!
//! A case writes a tree as lines (or parts between `|`): `PATH KIND [ASPECT...]`. Kinds: `dir`, `file`, `link`,
//! `fifo`, `char`, `block`. Aspects, none of which need be given:
//!
//! ```text
//! =TEXT         content of a file, target of a symlink
//! size=N  mode=OCTAL  own=UID:GID  mtime=SECONDS[.NANOSECONDS]  dev=MAJOR:MINOR
//! same=PATH     another name of the same file      names=N   that many names in all
//! sparse        takes less room than its size
//! x:NAME=TEXT   an xattr; those that are not given must not be there
//! ```
//!
//! In texts and paths `\s` is a space, `\n` a line break, `\p` a `|`, `\xNN` a byte, `\\` a backslash. Every path
//! of the tree must be in the list, save directories above others in it. A line that begins with `root:` counts only
//! for real root, `user:` only in user namespaces, `one:` and `full:` only in those with one ID and with many.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use keelblock_actors::image::digest::Digest;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::run::Rights;

/// Paths from the root, which is empty.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// Everything that backends must agree on, and `blocks`.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    /// Bytes of a small file, digest of a larger one, target of a symlink.
    content: Vec<u8>,
    device: (u32, u32),
    mtime: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of its names, if it has several.
    first: Option<Vec<u8>>,
    names: u64,
    blocks: u64,
    /// Whether a file tells of a hole: not all filesystems count them in its blocks.
    holes: bool,
}

impl Node {
    /// How many blocks it takes is the filesystem's business, and overlayfs counts names that are hidden.
    fn comparable(&self) -> String {
        format!("{:?}", Self { blocks: 0, names: 0, holes: false, ..self.clone() })
    }
}

/// Files up to this size are kept as they are.
const CONTENT_BYTES_MAX: u64 = 4096;

/// Reads a tree.
pub(crate) fn read(root: &Path) -> Tree {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut tree = Tree::new();
    let mut groups: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
    let mut at = rustix::fs::openat(CWD, root, open, Mode::empty()).unwrap();
    tree.insert(vec![], node(at.as_fd(), c".", &rustix::fs::fstat(&at).unwrap()));
    let mut path: Vec<u8> = vec![];
    // Directories still to be read in each one on the way here.
    let mut todo: Vec<Vec<CString>> = vec![];
    loop {
        let mut below = vec![];
        for entry in Dir::read_from(&at).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Listed and not there: that must be seen, and not end the reading.
                Err(Errno::NOENT) => {
                    tree.insert(join(&path, name), Node::ghost());
                    continue;
                }
                Err(error) => panic!("{}: {error}", escape(&join(&path, name))),
            };
            let full = join(&path, name);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                below.push(name.to_owned());
            } else {
                groups.entry((stat.st_dev, stat.st_ino)).or_default().push(full.clone());
            }
            tree.insert(full, node(at.as_fd(), name, &stat));
        }
        todo.push(below);
        loop {
            let Some(next) = todo.last_mut() else {
                for group in groups.into_values().filter(|group| group.len() > 1) {
                    let first = group.iter().min().unwrap().clone();
                    for name in &group {
                        tree.get_mut(name).unwrap().first = Some(first.clone());
                    }
                }
                return tree;
            };
            if let Some(name) = next.pop() {
                at = rustix::fs::openat(&at, &name, open, Mode::empty()).unwrap();
                path = join(&path, &name);
                break;
            }
            todo.pop();
            if !todo.is_empty() {
                at = rustix::fs::openat(&at, c"..", open, Mode::empty()).unwrap();
                path.truncate(path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            }
        }
    }
}

fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() }
}

fn node(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Node {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = if kind == FileType::RegularFile { stat.st_size as u64 } else { 0 };
    let content = match kind {
        FileType::RegularFile if size > 0 => content(dir, name, size),
        FileType::Symlink => rustix::fs::readlinkat(dir, name, vec![]).unwrap().into_bytes(),
        _ => vec![],
    };
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    Node {
        kind: match kind {
            FileType::Directory => "dir",
            FileType::RegularFile => "file",
            FileType::Symlink => "link",
            FileType::Fifo => "fifo",
            FileType::CharacterDevice => "char",
            FileType::BlockDevice => "block",
            _ => "unknown",
        },
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        size,
        content,
        device: if is_device {
            (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        } else {
            (0, 0)
        },
        // A directory that no layer tells of has the time of the epoch; the store marks it by one nanosecond more.
        mtime: match (stat.st_mtime, stat.st_mtime_nsec as u32) {
            keelblock::store::NOBODYS_ROOT if kind == FileType::Directory => (0, 0),
            mtime => mtime,
        },
        xattrs: xattrs(dir, name),
        first: None,
        names: if kind == FileType::Directory { 1 } else { stat.st_nlink },
        blocks: stat.st_blocks as u64,
        holes: kind == FileType::RegularFile && size > 0 && has_holes(dir, name, size),
    }
}

impl Node {
    fn ghost() -> Self {
        Self {
            kind: "ghost",
            mode: 0,
            owner: (0, 0),
            size: 0,
            content: vec![],
            device: (0, 0),
            mtime: (0, 0),
            xattrs: BTreeMap::new(),
            first: None,
            names: 0,
            blocks: 0,
            holes: false,
        }
    }
}

fn has_holes(dir: BorrowedFd<'_>, name: &CStr, size: u64) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap();
    rustix::fs::seek(&file, SeekFrom::Hole(0)).is_ok_and(|hole| hole < size)
}

/// The bytes, or a digest of the runs of data that are not zeros.
fn content(dir: BorrowedFd<'_>, name: &CStr, size: u64) -> Vec<u8> {
    let file: OwnedFd = rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    let read = |from: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        let mut have = 0;
        while have < bytes.len() {
            match rustix::io::pread(&file, &mut bytes[have..], from + have as u64).unwrap() {
                0 => break,
                more => have += more,
            }
        }
        bytes.truncate(have);
        bytes
    };
    if size <= CONTENT_BYTES_MAX {
        return read(0, size);
    }
    const PART: u64 = 4096;
    let (mut hasher, mut at) = (keelblock_actors::image::digest::Hasher::sha256(), 0);
    while at < size {
        let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap_or(size);
        // Filesystems know holes in blocks of different sizes: what is all zeros counts as one.
        let mut part = start / PART * PART;
        while part < end {
            let bytes = read(part, PART.min(size - part));
            if bytes.iter().any(|byte| *byte != 0) {
                hasher.update(&part.to_le_bytes());
                hasher.update(&bytes);
            }
            part += PART;
        }
        at = end.max(part);
    }
    hasher.finish().to_string().into_bytes()
}

fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(&path[..], &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => panic!("cannot list the xattrs of {}: {error}", escape(&path)),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::lgetxattr(&path[..], name, &mut value) {
            Ok(length) => drop(found.insert(name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => panic!("cannot read the xattr {} of {}: {error}", escape(name), escape(&path)),
        }
    }
    found
}

/// Without what overlayfs keeps for itself, which a rootfs may show where it is a layer, and nowhere else.
pub(crate) fn without_marks(mut tree: Tree) -> Tree {
    for node in tree.values_mut() {
        node.xattrs
            .retain(|name, _| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
    }
    tree
}

/// Without the times of whiteouts, which nobody sees.
pub(crate) fn without_times_of_whiteouts(mut tree: Tree) -> Tree {
    for node in tree.values_mut().filter(|node| node.kind == "char" && node.device == (0, 0)) {
        node.mtime = (0, 0);
    }
    tree
}

/// A tree of umoci's, which leaves some directories that no entry tells of with the time when it made them: those get
/// that of another tree.
pub(crate) fn with_times_of_none(theirs: &Tree, ours: &Tree, since: i64) -> Tree {
    let mut theirs = theirs.clone();
    for (path, node) in &mut theirs {
        if node.kind == "dir" && (since..since + 600).contains(&node.mtime.0) {
            node.mtime = ours.get(path).map_or(node.mtime, |ours| ours.mtime);
        }
    }
    theirs
}

/// What is not the same in two trees, at most so many lines of it.
pub(crate) fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let mut lines = vec![];
    for path in paths {
        match (left.get(path), right.get(path)) {
            (Some(left), Some(right)) if left.comparable() == right.comparable() => {}
            (left, right) => lines.push(format!("{}: {left:?} but {right:?}", escape(path))),
        }
        if lines.len() == 10 {
            break;
        }
    }
    lines
}

/// What is not as the text says.
pub(crate) fn unlike(tree: &Tree, expected: &str, rights: Rights) -> Vec<String> {
    let rights = rights.of_case();
    let mut wrong = vec![];
    let mut listed: BTreeSet<Vec<u8>> = BTreeSet::new();
    for line in expected.split(['\n', '|']).map(str::trim).filter(|line| !line.is_empty()) {
        let line = match line.split_once(": ") {
            Some(("root", rest)) if rights == Rights::Root => rest,
            Some(("user", rest)) if rights != Rights::Root => rest,
            Some(("one", rest)) if rights == Rights::One => rest,
            Some(("full", rest)) if rights == Rights::Full => rest,
            Some(("root" | "user" | "one" | "full", _)) => continue,
            _ => line,
        };
        let mut words = line.split_ascii_whitespace();
        let (path, kind) = (words.next().unwrap(), words.next().unwrap_or_else(|| panic!("no kind: {line}")));
        let path = if path == "." { vec![] } else { unescape(path) };
        // Devices are not made in a user namespace.
        if matches!(kind, "char" | "block") && rights != Rights::Root {
            continue;
        }
        listed.insert(path.clone());
        let Some(node) = tree.get(&path) else {
            wrong.push(format!("{} is missing", escape(&path)));
            continue;
        };
        wrong.extend(node.unlike(tree, kind, words, rights).into_iter().map(|what| {
            let path = escape(&path);
            format!("{path}: {what} ({node:?})")
        }));
    }
    let mut above = BTreeSet::from([vec![]]);
    for path in &listed {
        above.extend(
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| path[..at].to_vec()),
        );
    }
    for (path, node) in tree {
        let is_way = above.contains(path) && node.kind == "dir";
        if !listed.contains(path) && !is_way {
            wrong.push(format!("{} should not be there: {node:?}", escape(path)));
        }
    }
    wrong.truncate(10);
    wrong
}

impl Node {
    fn unlike<'a>(
        &self,
        tree: &Tree,
        kind: &str,
        aspects: impl Iterator<Item = &'a str>,
        rights: Rights,
    ) -> Vec<String> {
        let mut wrong = vec![];
        if self.kind != kind {
            wrong.push(format!("is no {kind}"));
        }
        let mut xattrs = BTreeMap::new();
        for aspect in aspects {
            let (name, value) = aspect.split_once('=').unwrap_or((aspect, ""));
            let right = match name {
                "" => self.content == unescape(value),
                "size" => value.parse() == Ok(self.size),
                "mode" => u32::from_str_radix(value, 8) == Ok(self.mode),
                "own" => {
                    let (uid, gid) = value.split_once(':').unwrap();
                    self.owner == rights.owner((uid.parse().unwrap(), gid.parse().unwrap()))
                }
                "mtime" => {
                    let (seconds, nanos) = value.split_once('.').unwrap_or((value, "0"));
                    self.mtime == (seconds.parse().unwrap(), nanos.parse().unwrap())
                }
                "dev" => value == format!("{}:{}", self.device.0, self.device.1),
                "same" => {
                    let other = tree.get(&unescape(value)).and_then(|other| other.first.as_ref());
                    other.is_some() && other == self.first.as_ref()
                }
                "names" => value.parse() == Ok(self.names),
                "sparse" => self.blocks * 512 < self.size || self.holes,
                _ => match name.strip_prefix("x:") {
                    Some(name) => {
                        xattrs.insert(name.as_bytes().to_vec(), unescape(value));
                        true
                    }
                    None => panic!("{name} is no aspect of a file"),
                },
            };
            if !right {
                wrong.push(format!("{aspect} is not so"));
            }
        }
        if self.xattrs != xattrs {
            wrong.push("its xattrs are others".to_owned());
        }
        wrong
    }
}

/// Reads a text as the module describes it.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (what, after) = rest.split_first().expect("a backslash ends it");
        rest = after;
        bytes.push(match what {
            b's' => b' ',
            b'n' => b'\n',
            b'p' => b'|',
            b'\\' => b'\\',
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).unwrap();
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).unwrap()
            }
            other => panic!("\\{} means nothing", char::from(*other)),
        });
    }
    bytes
}

/// Writes bytes so that [`unescape`] reads them.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b' ' => text.push_str("\\s"),
            b'\n' => text.push_str("\\n"),
            b'|' => text.push_str("\\p"),
            b'\\' => text.push_str("\\\\"),
            0x21..=0x7e => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// A digest of what a layer is on disk, to see whether anybody changed it.
pub(crate) fn fingerprint(tree: &Tree) -> Digest {
    let mut hasher = keelblock_actors::image::digest::Hasher::sha256();
    for (path, node) in tree {
        hasher.update(path);
        hasher.update(node.comparable().as_bytes());
    }
    hasher.finish()
}

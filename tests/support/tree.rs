//! Compares two directory trees entry by entry, in everything an image can say of a file.
//!
//! Type, mode, owner, size, content, link target, hard-link group, xattrs, device numbers and modification time
//! to the nanosecond. The answer is a list of differences, one line each, so that a failing test shows what is
//! wrong with which file. Differences that are right are excused by the caller, one rule and one reason each.

#![allow(dead_code, unused_macros, unused_imports, reason = "each file of tests uses its part of this")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Everything of one entry that is compared, as text by aspect.
type Aspects = BTreeMap<String, String>;

/// A tree as it lies on disk, by path below its top; the top itself is `.`.
#[derive(Debug)]
pub(crate) struct Tree {
    entries: BTreeMap<PathBuf, Aspects>,
}

/// One aspect of one entry that is not the same in two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Below the top.
    pub(crate) path: PathBuf,
    /// `missing`, `type`, `mode`, `owner`, `size`, `content`, `target`, `links`, `rdev`, `mtime` or
    /// `xattr NAME`.
    pub(crate) aspect: String,
    /// In the first tree; empty when there is none.
    pub(crate) left: String,
    /// In the second.
    pub(crate) right: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {:?} != {:?}", self.path.display(), self.aspect, self.left, self.right)
    }
}

impl Tree {
    /// Reads a tree. Panics on what cannot be read: a tree half read would compare as equal.
    pub(crate) fn read(top: &Path) -> Self {
        let mut tree = Self { entries: BTreeMap::new() };
        let mut links: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
        let mut pending = vec![PathBuf::from(".")];
        while let Some(path) = pending.pop() {
            let full = top.join(&path);
            let meta = full.symlink_metadata().unwrap_or_else(|e| panic!("cannot stat {full:?}: {e}"));
            if meta.is_dir() {
                let entries = fs::read_dir(&full).unwrap_or_else(|e| panic!("cannot list {full:?}: {e}"));
                for entry in entries {
                    let entry = entry.unwrap_or_else(|e| panic!("cannot list {full:?}: {e}"));
                    pending.push(path.join(entry.file_name()));
                }
            } else if meta.nlink() > 1 {
                links.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
            }
            tree.entries.insert(path, aspects(&full, &meta));
        }
        for mut group in links.into_values() {
            group.sort();
            let names = group.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
            for path in group {
                tree.entries.entry(path).or_default().insert("links".into(), names.clone());
            }
        }
        tree
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has this entry.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(Path::new(".").join(path).as_path())
    }

    /// What is not the same in the other tree.
    pub(crate) fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut say = |path: &Path, aspect: &str, left: Option<&String>, right: Option<&String>| {
            found.push(Difference {
                path: path.to_owned(),
                aspect: aspect.to_owned(),
                left: left.cloned().unwrap_or_default(),
                right: right.cloned().unwrap_or_default(),
            });
        };
        for (path, left) in &self.entries {
            let Some(right) = other.entries.get(path) else {
                say(path, "missing", left.get("type"), None);
                continue;
            };
            let names = left.keys().chain(right.keys().filter(|name| !left.contains_key(*name)));
            for aspect in names {
                if left.get(aspect) != right.get(aspect) {
                    say(path, aspect, left.get(aspect), right.get(aspect));
                }
            }
        }
        for (path, right) in &other.entries {
            if !self.entries.contains_key(path) {
                say(path, "missing", None, right.get("type"));
            }
        }
        found
    }

    /// Panics with a list of all differences that `excuse` has no reason for. Says how many it excused.
    #[track_caller]
    pub(crate) fn expect_same(
        &self,
        name: &str,
        other: &Self,
        other_name: &str,
        excuse: impl Fn(&Difference) -> Option<&'static str>,
    ) {
        let mut excused: BTreeMap<&'static str, usize> = BTreeMap::new();
        let (mut lines, mut count) = (Vec::new(), 0);
        for difference in self.differences(other) {
            match excuse(&difference) {
                Some(reason) => *excused.entry(reason).or_default() += 1,
                None => {
                    count += 1;
                    if lines.len() < 100 {
                        lines.push(difference.to_string());
                    }
                }
            }
        }
        for (reason, count) in excused {
            eprintln!("{name} and {other_name} differ in {count} places, rightly: {reason}");
        }
        assert!(
            count == 0,
            "{count} differences between {name} (left, {} entries) and {other_name} (right, {}):\n{}",
            self.len(),
            other.len(),
            lines.join("\n")
        );
    }
}

fn aspects(path: &Path, meta: &fs::Metadata) -> Aspects {
    let kind = meta.file_type();
    let mut all = Aspects::new();
    let mut say = |aspect: &str, value: String| drop(all.insert(aspect.to_owned(), value));
    let name = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "unknown",
    };
    say("type", name.to_owned());
    say("mode", format!("{:04o}", meta.mode() & 0o7777));
    say("owner", format!("{}:{}", meta.uid(), meta.gid()));
    say("mtime", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    if kind.is_file() {
        say("size", meta.len().to_string());
        say("content", digest(path));
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).unwrap_or_else(|e| panic!("cannot read link {path:?}: {e}"));
        say("target", target.to_string_lossy().into_owned());
    }
    if kind.is_char_device() || kind.is_block_device() {
        let device = meta.rdev();
        say("rdev", format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)));
    }
    for (name, value) in xattrs(path) {
        say(&format!("xattr {name}"), value);
    }
    all
}

fn digest(path: &Path) -> String {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("cannot open {path:?}: {e}"));
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 17]);
    loop {
        match file.read(&mut buffer).unwrap_or_else(|e| panic!("cannot read {path:?}: {e}")) {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn xattrs(path: &Path) -> Vec<(String, String)> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => panic!("cannot list xattrs of {path:?}: {error}"),
    };
    let mut value = vec![0_u8; 64 << 10];
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = OsStr::from_bytes(name);
            let length = rustix::fs::lgetxattr(path, name, &mut value)
                .unwrap_or_else(|error| panic!("cannot read xattr {name:?} of {path:?}: {error}"));
            let hex: String = value[..length].iter().map(|byte| format!("{byte:02x}")).collect();
            (name.to_string_lossy().into_owned(), hex)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The comparison itself is proved here, or a comparison that sees nothing would pass for equality.
    #[test]
    fn every_kind_of_difference_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        for top in [&a, &b] {
            fs::create_dir_all(top.join("d")).unwrap();
            for name in ["same", "mode", "size", "content", "mtime", "only-a", "l1"] {
                fs::write(top.join(name), "text").unwrap();
            }
            symlink("same", top.join("target")).unwrap();
            fs::copy(top.join("l1"), top.join("l2")).unwrap();
            for name in ["same", "mode", "size", "content", "mtime", "only-a", "l1", "l2", "d", "."] {
                fs::File::open(top.join(name)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            }
            let _ = fs::remove_file(top.join("target"));
            symlink(if top == &a { "same" } else { "mode" }, top.join("target")).unwrap();
        }
        fs::set_permissions(b.join("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(b.join("size"), "texts").unwrap();
        fs::write(b.join("content"), "tex!").unwrap();
        fs::remove_file(b.join("only-a")).unwrap();
        fs::remove_file(b.join("l2")).unwrap();
        fs::hard_link(b.join("l1"), b.join("l2")).unwrap();
        let epoch = std::time::UNIX_EPOCH;
        for name in ["size", "content"] {
            fs::File::open(b.join(name)).unwrap().set_modified(epoch).unwrap();
        }
        let one = epoch + std::time::Duration::from_nanos(1);
        fs::File::open(b.join("mtime")).unwrap().set_modified(one).unwrap();
        for top in [&a, &b] {
            fs::File::open(top).unwrap().set_modified(epoch).unwrap();
        }
        let seen: Vec<_> = Tree::read(&a)
            .differences(&Tree::read(&b))
            .into_iter()
            .filter(|d| !(d.path.ends_with("target") && d.aspect == "mtime"))
            .map(|d| format!("{} {}", d.path.display(), d.aspect))
            .collect();
        let expected = [
            "./content content",
            "./l1 links",
            "./l2 links",
            "./mode mode",
            "./mtime mtime",
            "./only-a missing",
            "./size content",
            "./size size",
            "./target target",
        ];
        assert_eq!(seen, expected);
        assert!(Tree::read(&a).differences(&Tree::read(&a)).is_empty());
    }
}

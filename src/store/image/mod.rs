//! Applies the members of a layer's tar to an EROFS image: the twin of [`Applier`](super::entry), which makes a tree.
//!
//! What becomes of a layer is the same, entry by entry; here no system call says so. What the kernel would have
//! refused root is refused (`rules`), links resolve as in a chroot (`walk`), and what a name or an entry means is
//! decided where it is for trees (`meaning`, `attributes`). Unlike those a whiteout has a time, which is 0: the same
//! tar makes the same image.

mod acl;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod inode;
mod rules;
mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use keelblock_actors::image::digest::{Digest, Hasher};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::inode::Inode;
use super::attributes::{Attributes, Inherited, default_acl};
use super::dirtimes::NOBODYS_ROOT;
use super::entry::Applied;
use super::failed::Failed;
use super::flaw::{EntryError, Flaw, text};
use super::form;
use super::meaning::{Aim, Implied, ImpliedPaths, Names, SKIPPED_MAX, Skipped, aim, clean, device, split};
use super::tar::{Kind, Member, Reader, Source};
use super::tree::Lost;
use super::whiteout::{Namespace, OPAQUE_VALUE};
use crate::erofs::{self, DirId, Found, Options, Run, Special, Watch, Writer, Xattrs};
use crate::limits::Limits;

/// The mark of whiteouts among the inodes of an image.
const WHITEOUT: u8 = 1;
/// Size of a file with holes at most. 16 TiB: as on ext4; the index of a larger one would be larger than many an image.
const SPARSE_BYTES_MAX: u64 = 16 << 40;
/// Bytes of directories that are read ahead. 8 MiB: those of 100,000 files; some milliseconds of a disk.
const DIRECTORIES_AHEAD_BYTES_MAX: u64 = 8 << 20;
/// Bytes of memory that a default ACL takes beside itself and its path, while it waits.
const WAITING_BYTES: usize = 64;

/// What the record keeps of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Of the file.
    pub bytes: u64,
    /// Where its inodes are, offset and bytes, of the first 32 MiB of them: read ahead like the directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inodes: Vec<(u64, u64)>,
    /// Where its directories begin, which reach to its end: read ahead when it is mounted.
    pub directories: u64,
    /// SHA-256 of the file of checksums.
    pub sums: Digest,
}

impl ImageFile {
    /// What of it whoever uses the layer needs first, offset and bytes: names, then inodes with the small content beside them.
    pub(super) fn read_ahead(&self) -> Vec<(u64, u64)> {
        let directories = self.bytes.saturating_sub(self.directories).min(DIRECTORIES_AHEAD_BYTES_MAX);
        [(self.directories, directories)].into_iter().chain(self.inodes.iter().copied()).collect()
    }
}

/// See the module.
pub(super) struct ImageApplier<'a> {
    writer: Writer<'a>,
    namespace: Namespace,
    names: Names,
    attributes: Attributes,
    at: PathBuf,
    sums: PathBuf,
    applied: Applied,
    entries_max: u64,
    names_bytes_max: usize,
    bytes_max: u64,
    /// Bytes that files with holes take beside their content.
    filled: u64,
    /// Directories made because something in them came first.
    implied_dirs: u64,
    implied: ImpliedPaths,
    whiteouts: bool,
    skipped: HashMap<(DirId, Vec<u8>), Skipped>,
    /// Default ACLs of directories, with the paths of the entries that told of them: as in a tree, they are looked at
    /// when all entries are there.
    default_acls: Vec<(DirId, Vec<u8>, Vec<u8>)>,
    /// The directory of the entry before: most are in the same.
    last: Option<(Vec<u8>, DirId)>,
}

impl<'a> ImageApplier<'a> {
    /// Begins an image in the new file `at`, and the checksums of its blocks in the new file `sums`.
    pub(super) fn new(
        at: PathBuf,
        sums: PathBuf,
        namespace: Namespace,
        names: Names,
        limits: &Limits,
        watch: Box<dyn Watch + Send + 'a>,
    ) -> io::Result<Self> {
        let new = |path| File::options().read(true).write(true).create_new(true).open(path);
        let names_bytes_max = limits.layer_names_bytes_max;
        let options = Options { names_bytes_max };
        let mut writer = Writer::new(new(&at)?, Some(new(&sums)?), options, watch);
        let root = erofs::Attributes { mtime: NOBODYS_ROOT, ..erofs::Attributes::new(0o755) };
        writer.set_dir(writer.root(), root, Xattrs::default()).map_err(io::Error::other)?;
        Ok(Self {
            writer,
            namespace,
            names,
            attributes: Attributes::new(false),
            at,
            sums,
            applied: Applied::default(),
            entries_max: limits.layer_entries_max,
            names_bytes_max,
            bytes_max: limits.layer_bytes_max,
            filled: 0,
            implied_dirs: 0,
            implied: ImpliedPaths::default(),
            whiteouts: false,
            skipped: HashMap::new(),
            default_acls: Vec::new(),
            last: None,
        })
    }

    /// Applies one member; its payload is the reader's.
    pub(super) fn apply<S: Source>(
        &mut self,
        mut member: Member,
        payload: &mut Reader<S>,
    ) -> Result<(), Flaw> {
        self.applied.entries += 1;
        let applied = self.try_apply(&mut member, payload);
        applied.map_err(|failed| failed.of(member.path, &self.at))?;
        self.applied.within(self.implied_dirs, self.entries_max)
    }

    /// Writes what had to wait for the last entry.
    pub(super) fn finish(mut self) -> Result<(Applied, ImageFile), Flaw> {
        for (dir, path, acl) in std::mem::take(&mut self.default_acls) {
            // It may be gone since.
            if self.writer.is_reached(dir) {
                self.set_default_acl(dir, &acl).map_err(|failed| failed.of(path, &self.at))?;
            }
        }
        for path in std::mem::take(&mut self.implied.paths) {
            // Unless an entry that came later says otherwise, by whatever path it led there.
            if self.dir_still(&path).is_some_and(|dir| self.writer.dir(dir).mtime == NOBODYS_ROOT) {
                self.applied.implied.push(form::written(&path));
            }
        }
        self.applied.implied_dirs = self.implied_dirs;
        self.applied.whiteouts = self.whiteouts;
        self.applied.not_set = self.attributes.not_set;
        let refused = Refused { at: &self.at, sums: &self.sums, names_bytes_max: self.names_bytes_max };
        let written =
            self.writer.finish().map_err(|error| refused.failed(error).of(b".".to_vec(), &self.at))?;
        let sums = digest(&self.sums).map_err(|source| Flaw::Write { path: self.sums.clone(), source })?;
        Ok((
            self.applied,
            ImageFile {
                bytes: written.bytes,
                inodes: written.inodes_at,
                directories: written.directories,
                sums,
            },
        ))
    }

    fn try_apply<S: Source>(&mut self, member: &mut Member, payload: &mut Reader<S>) -> Result<(), Failed> {
        let path = clean(&member.path)?;
        if path.is_empty() {
            return self.root(member);
        }
        let (parent, name) = match aim(&path, self.names)? {
            Aim::Nothing => return Ok(()),
            Aim::Opaque(dir) => {
                let dir = self.find_or_make(dir)?;
                return self.hide_below(dir);
            }
            Aim::Removed(parent, removed) => {
                let dir = self.find_or_make(parent)?;
                return self.whiteout(dir, removed);
            }
            Aim::Entry(parent, name) => (parent, name),
        };
        let dir = self.find_or_make(parent)?;
        if matches!(member.kind, Kind::Char { major: 0, minor: 0 }) {
            self.skip(dir, name, Skipped::Whiteout);
            return Ok(());
        }
        match member.kind {
            Kind::HardLink => self.hard_link(dir, name, member),
            Kind::Char { major, minor } => {
                let (major, minor) = device(major, minor)?;
                self.special(dir, name, Special::Char(major, minor), member)
            }
            Kind::Block { major, minor } => {
                let (major, minor) = device(major, minor)?;
                self.special(dir, name, Special::Block(major, minor), member)
            }
            Kind::File => self.file(dir, name, member, payload),
            Kind::Symlink => self.symlink(dir, name, member),
            Kind::Directory => self.directory(dir, name, member),
            Kind::Fifo => self.special(dir, name, Special::Fifo, member),
        }
    }

    fn root(&mut self, member: &Member) -> Result<(), Failed> {
        if member.kind != Kind::Directory {
            return Err(EntryError::Malformed("it would replace the root of the layer").into());
        }
        self.set_dir(self.writer.root(), member)
    }

    fn file<S: Source>(
        &mut self,
        dir: DirId,
        name: &[u8],
        member: &mut Member,
        payload: &mut Reader<S>,
    ) -> Result<(), Failed> {
        rules::name(name)?;
        self.clear(dir, name);
        let length = match member.sparse.take() {
            None => {
                self.try_write(Writer::begin_file)?;
                member.size
            }
            Some(segments) => {
                let runs = segments.iter().map(|part| Run { offset: part.offset, length: part.length });
                let runs: Vec<_> = runs.collect();
                self.admit_holes(member.size, &runs)?;
                self.try_write(|writer| writer.begin_sparse_file(member.size, runs))?;
                segments.iter().map(|part| part.length).sum()
            }
        };
        let mut left = length;
        while left > 0 {
            let bytes = payload.payload(left)?;
            let count = bytes.len();
            let written = self.writer.content(bytes);
            written.map_err(|error| self.refused().failed(error))?;
            payload.advance(count);
            left -= count as u64;
        }
        self.applied.bytes += length;
        let inode = self.new_inode(erofs::Kind::File, member)?;
        let file = self.try_write(|writer| writer.end_file(&inode.attributes, &inode.xattrs))?;
        self.try_write(|writer| writer.put(dir, name, file))
    }

    /// Whether a file with holes may come: what it is filled up with, and its index, count as bytes of the layer, or a few
    /// bytes of tar could become as many megabytes as they like.
    fn admit_holes(&mut self, size: u64, runs: &[Run]) -> Result<(), Failed> {
        if size > SPARSE_BYTES_MAX {
            return Err(EntryError::Refused(Errno::FBIG.into()).into());
        }
        let content: u64 = runs.iter().map(|run| run.length).sum();
        self.filled = self.filled.saturating_add(erofs::sparse_bytes(size, runs).saturating_sub(content));
        if self.filled.saturating_add(self.applied.bytes).saturating_add(content) > self.bytes_max {
            let limit = self.bytes_max;
            return Err(Flaw::Limit { limit, unit: "bytes", flag: "layer_bytes_max" }.into());
        }
        Ok(())
    }

    fn hard_link(&mut self, dir: DirId, name: &[u8], member: &Member) -> Result<(), Failed> {
        let target = clean(&member.target)?;
        let missing = || Failed::Entry(EntryError::NoLinkTarget(text(&member.target)));
        let bad = || Failed::Entry(EntryError::BadLinkTarget(text(&member.target)));
        if target.is_empty() {
            return Err(bad());
        }
        let (parent, existing) = split(&target);
        let from = match self.find(parent) {
            Err(Lost::Missing) => return Err(missing()),
            other => other?,
        };
        rules::name(existing)?;
        rules::name(name)?;
        let source = match self.writer.lookup(from, existing) {
            Some(Found::Directory(_)) => return Err(bad()),
            // A second name for a whiteout would remove a second file.
            Some(found) => match found.inode() {
                Some(inode) if inode.tag() == WHITEOUT => return Err(bad()),
                other => other,
            },
            None => None,
        };
        let Some(source) = source else {
            let key = (from, existing.to_vec());
            let Some(skipped) = self.skipped.get(&key).copied() else { return Err(missing()) };
            self.clear(dir, name);
            self.skip(dir, name, skipped);
            return Ok(());
        };
        let there = self.writer.lookup(dir, name).and_then(Found::inode);
        if there.is_some_and(|there| there.is(source)) {
            return Ok(());
        }
        self.clear(dir, name);
        // The target may have been in the directory whose place this takes.
        if !self.writer.is_reached(from) {
            return Err(missing());
        }
        let linked = self.try_write(|writer| writer.link(from, existing, dir, name))?;
        if linked { Ok(()) } else { Err(missing()) }
    }

    fn symlink(&mut self, dir: DirId, name: &[u8], member: &Member) -> Result<(), Failed> {
        if member.target.is_empty() || member.target.contains(&0) {
            return Err(EntryError::Malformed("a symlink has no target, or one with a NUL byte").into());
        }
        rules::target(&member.target)?;
        rules::name(name)?;
        self.clear(dir, name);
        let inode = self.new_inode(erofs::Kind::Symlink, member)?;
        let target = &member.target;
        self.try_write(|writer| writer.add_symlink(dir, name, target, &inode.attributes, &inode.xattrs))
    }

    fn special(&mut self, dir: DirId, name: &[u8], special: Special, member: &Member) -> Result<(), Failed> {
        rules::name(name)?;
        self.clear(dir, name);
        let inode = self.new_inode(special.kind(), member)?;
        let made = self.try_write(|writer| writer.special(special, &inode.attributes, &inode.xattrs))?;
        self.try_write(|writer| writer.put(dir, name, made))
    }

    fn directory(&mut self, dir: DirId, name: &[u8], member: &Member) -> Result<(), Failed> {
        rules::name(name)?;
        let made = match self.writer.lookup(dir, name) {
            Some(Found::Directory(there)) => there,
            there => {
                let replaces = there.is_some();
                if replaces {
                    self.clear(dir, name);
                }
                let made = self.make_dir(dir, name, erofs::Attributes::new(0o755))?;
                if replaces && self.names == Names::Signs {
                    self.hide_below(made)?;
                }
                made
            }
        };
        self.set_dir(made, member)
    }

    fn whiteout(&mut self, dir: DirId, removed: &[u8]) -> Result<(), Failed> {
        if self.is_opaque(dir) {
            return Ok(());
        }
        rules::name(removed)?;
        match self.writer.lookup(dir, removed) {
            Some(Found::Directory(there)) => return self.hide_below(there),
            Some(_) => return Ok(()),
            None => {}
        }
        let attributes = erofs::Attributes::new(0);
        let made =
            self.try_write(|writer| writer.special(Special::Char(0, 0), &attributes, &Xattrs::default()))?;
        self.try_write(|writer| writer.put(dir, removed, made.tagged(WHITEOUT)))?;
        self.whiteouts = true;
        self.set_dir_xattr(dir, self.namespace.origin(), b"")
    }

    /// Makes a directory opaque, and removes the whiteouts in it: they have nothing left to remove.
    fn hide_below(&mut self, dir: DirId) -> Result<(), Failed> {
        // There are none in one that is opaque.
        if !self.is_opaque(dir) {
            self.set_dir_xattr(dir, self.namespace.opaque(), OPAQUE_VALUE)?;
            self.writer.remove_tagged(dir, WHITEOUT);
        }
        Ok(())
    }

    fn is_opaque(&self, dir: DirId) -> bool {
        let mark =
            self.writer.dir_xattrs(dir).and_then(|xattrs| xattrs.get(self.namespace.opaque().as_bytes()));
        mark == Some(OPAQUE_VALUE)
    }

    /// Takes note of a device that is not made: hard links to it are not, either.
    fn skip(&mut self, dir: DirId, name: &[u8], skipped: Skipped) {
        match skipped {
            Skipped::Device => self.attributes.not_set.devices += 1,
            Skipped::Whiteout => self.attributes.not_set.whiteout_devices += 1,
        }
        if self.skipped.len() < SKIPPED_MAX {
            self.skipped.insert((dir, name.to_vec()), skipped);
        }
    }

    /// Removes what is at a name.
    fn clear(&mut self, dir: DirId, name: &[u8]) {
        match self.writer.lookup(dir, name) {
            None => return,
            // Paths that led through it now lead elsewhere.
            Some(Found::Directory(_) | Found::Symlink(..)) => self.last = None,
            Some(Found::Other(_)) => {}
        }
        self.writer.remove(dir, name);
    }

    // ---- attributes ---------------------------------------------------------------------------------------------

    /// The inode of an entry that is no directory.
    fn new_inode(&mut self, kind: erofs::Kind, member: &Member) -> Result<Inode, Failed> {
        let mut inode = Inode::new(kind);
        self.attributes.set(&mut inode, member, Inherited { ours: false })?;
        inode.attributes.mtime = member.mtime;
        Ok(inode)
    }

    /// Gives a directory what its entry says.
    fn set_dir(&mut self, dir: DirId, member: &Member) -> Result<(), Failed> {
        let mut inode = self.dir_inode(dir);
        self.attributes.set(&mut inode, member, Inherited { ours: false })?;
        inode.attributes.mtime = member.mtime;
        let acl = default_acl(member);
        if !acl.is_empty() {
            self.try_write(|writer| writer.charge(WAITING_BYTES + acl.len() + member.path.len()))?;
            // In the words in which a tree names it.
            let path = match clean(&member.path)? {
                path if path.is_empty() => b".".to_vec(),
                path => path,
            };
            self.default_acls.push((dir, path, acl.to_vec()));
        }
        self.try_write(|writer| writer.set_dir(dir, inode.attributes, inode.xattrs))
    }

    fn set_default_acl(&mut self, dir: DirId, acl: &[u8]) -> Result<(), Failed> {
        let mut inode = self.dir_inode(dir);
        self.attributes.set_default_acl(&mut inode, acl)?;
        self.try_write(|writer| writer.set_dir(dir, inode.attributes, inode.xattrs))
    }

    fn set_dir_xattr(&mut self, dir: DirId, name: &str, value: &[u8]) -> Result<(), Failed> {
        let mut inode = self.dir_inode(dir);
        inode.xattrs.set(name.as_bytes(), value.to_vec());
        self.try_write(|writer| writer.set_dir(dir, inode.attributes, inode.xattrs))
    }

    /// What a directory is now.
    fn dir_inode(&self, dir: DirId) -> Inode {
        let xattrs = self.writer.dir_xattrs(dir).cloned().unwrap_or_default();
        Inode { kind: erofs::Kind::Directory, attributes: self.writer.dir(dir), xattrs }
    }

    // ---- the writer ---------------------------------------------------------------------------------------------

    fn make_dir(&mut self, dir: DirId, name: &[u8], attributes: erofs::Attributes) -> Result<DirId, Failed> {
        self.try_write(|writer| writer.make_dir(dir, name, attributes))
    }

    fn try_write<T>(
        &mut self,
        write: impl FnOnce(&mut Writer<'a>) -> Result<T, erofs::Error>,
    ) -> Result<T, Failed> {
        write(&mut self.writer).map_err(|error| self.refused().failed(error))
    }

    fn refused(&self) -> Refused<'_> {
        Refused { at: &self.at, sums: &self.sums, names_bytes_max: self.names_bytes_max }
    }
}

/// What it takes to say whose fault an error of the writer is.
struct Refused<'a> {
    at: &'a std::path::Path,
    sums: &'a std::path::Path,
    names_bytes_max: usize,
}

impl Refused<'_> {
    fn failed(&self, error: erofs::Error) -> Failed {
        let refused = |errno: Errno| Failed::Entry(EntryError::Refused(errno.into()));
        match error {
            erofs::Error::Image(source) => {
                // What watches over the writing may have an error of its own.
                let flaw = Flaw::carried_by(&source);
                flaw.unwrap_or_else(|| Flaw::Write { path: self.at.to_owned(), source }).into()
            }
            erofs::Error::Sums(source) => Flaw::Write { path: self.sums.to_owned(), source }.into(),
            erofs::Error::Full => refused(Errno::FBIG),
            erofs::Error::Name { .. } | erofs::Error::Target { .. } => refused(Errno::NAMETOOLONG),
            erofs::Error::Xattr { name, bytes } => {
                let source = Errno::TOOBIG.into();
                EntryError::Xattr { name: text(name.as_bytes()), bytes, source }.into()
            }
            error @ erofs::Error::Xattrs { .. } => EntryError::Refused(io::Error::other(error)).into(),
            // The reader has checked the map.
            error @ erofs::Error::Content => Failed::Io(io::Error::other(error)),
            erofs::Error::Names { .. } => {
                let limit = self.names_bytes_max as u64;
                let unit = "bytes of names and directories in memory";
                Flaw::Limit { limit, unit, flag: "layer_names_bytes_max" }.into()
            }
        }
    }
}

/// SHA-256 of a file.
fn digest(path: &std::path::Path) -> io::Result<Digest> {
    let (mut file, mut hasher) = (File::open(path)?, Hasher::sha256());
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            some => hasher.update(&buffer[..some]),
        }
    }
}

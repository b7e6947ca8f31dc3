//! Applies the members of a layer's tar, one after the other, to a private tree.
//!
//! A later entry for a name replaces an earlier one, except that a directory stays with what is in it. A directory
//! that replaces anything else, or a whiteout, is opaque: applied in order to a full tree (as umoci does), what stood
//! in its way would have removed what the layers below have there. In an ACI there are neither ([`Names::Plain`]).
//!
//! A character device 0:0 in a tar is not made, and counted: on disk it would be a whiteout, which the layer did not
//! say, and it opens nothing. Images with a docker store in them have some.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::aci::LeftOut;
use super::attributes::{Attributes, DEFAULT_ACL, Inherited, Made, NotSet, default_acl};
use super::dirtimes::{DirTimes, NOBODYS_ROOT, SettingDirs};
use super::failed::Failed;
use super::flaw::{EntryError, Flaw, text};
use super::form;
use super::job::{Helper, JOB_BYTES_MAX, Job};
use super::meaning::{Aim, Implied, ImpliedPaths, Names, SKIPPED_MAX, Skipped, aim, clean, device, split};
use super::space::{Need, Outlay};
use super::tar::{Kind, Member, Reader, Segment, Source};
use super::tree::{Dir, Lost, Tree, is_whiteout};
use super::treesums::{self, Act, Fact, Notes, TreeSums, join};
use super::whiteout::{self, Namespace};
use crate::sys::beneath::{self, Special};
use crate::sys::remove::remove_tree_at;

/// What was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Bytes of file content.
    pub(super) bytes: u64,
    /// Entries, whiteouts among them.
    pub(super) entries: u64,
    /// Directories that had no entry before something in them had.
    pub(super) implied_dirs: u64,
    /// See [`LayerRecord::implied`](super::form::LayerRecord::implied).
    pub(super) implied: Vec<String>,
    /// Whether a whiteout was made.
    pub(super) whiteouts: bool,
    pub(super) not_set: NotSet,
}

impl Applied {
    /// Whether so many entries, and directories that were made for them, are allowed.
    pub(super) fn within(&self, implied: u64, entries_max: u64) -> Result<(), Flaw> {
        // A name of 4096 bytes makes two thousand directories.
        if self.entries + implied > entries_max {
            let unit = "entries, with the directories that they only imply";
            return Err(Flaw::Limit { limit: entries_max, unit, flag: "layer_entries_max" });
        }
        Ok(())
    }
}

/// See the module.
pub(super) struct Applier {
    tree: Tree,
    namespace: Namespace,
    names: Names,
    attributes: Attributes,
    times: DirTimes,
    /// For messages.
    at: PathBuf,
    spill: PathBuf,
    applied: Applied,
    whiteouts: bool,
    /// Most entries, and directories that were made for them.
    entries_max: u64,
    implied: ImpliedPaths,
    /// Devices that were not made, by directory and name, up to [`SKIPPED_MAX`].
    skipped: HashMap<(u64, Vec<u8>), Skipped>,
    /// Told what each entry takes, before it is made.
    outlay: Arc<Outlay>,
    helper: Option<Helper>,
    /// What is made, and how many notes there were.
    notes: Notes,
    number: u64,
}

/// What of a layer is kept besides its tree.
pub(super) struct Kept {
    pub(super) applied: Applied,
    pub(super) sums: Option<TreeSums>,
}

impl Applier {
    /// Applies to the directory at `at`, whose owner and mode are root's and 0755 until an entry says otherwise.
    /// `spill` is a name for a file that may be made meanwhile, `notes` is empty. A helper is given small files to complete.
    #[expect(clippy::too_many_arguments, reason = "each is something else, and there is one caller")]
    pub(super) fn new(
        at: PathBuf,
        spill: PathBuf,
        namespace: Namespace,
        names: Names,
        in_user_namespace: bool,
        entries_max: u64,
        outlay: Arc<Outlay>,
        helper: Option<Helper>,
        mut notes: Notes,
    ) -> io::Result<Self> {
        let root = beneath::open_root(&at)?;
        let attributes = Attributes::new(in_user_namespace);
        let tree = Tree::new(root, namespace);
        let (mut times, applied) = (DirTimes::default(), Applied::default());
        // Until an entry of the root says otherwise: a later note wins.
        times.note(b"", NOBODYS_ROOT, b"", &spill)?;
        // What the directory of the store hands down to all that is made in it is nobody's word.
        if beneath::xattr(tree.root(), b".", DEFAULT_ACL)?.is_some() {
            notes.give_up();
        }
        notes.note(0, b"", &Act::Made(Fact::dir_to_ask()))?;
        Ok(Self {
            tree,
            namespace,
            names,
            attributes,
            times,
            at,
            spill,
            applied,
            whiteouts: false,
            entries_max,
            implied: ImpliedPaths::default(),
            skipped: HashMap::new(),
            outlay,
            helper,
            notes,
            number: 0,
        })
    }

    /// Notes what happened at a path.
    fn note(&mut self, path: &[u8], act: &Act) -> io::Result<()> {
        self.number += 1;
        self.notes.note(self.number, path, act)
    }

    /// Notes what is at a name now, after this was set of it.
    fn note_made(&mut self, dir: &Dir, name: &[u8], fact: Fact) -> io::Result<()> {
        self.note(&join(&dir.path, name), &Act::Made(fact))
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
        self.applied.within(self.tree.implied, self.entries_max)
    }

    /// Sets what had to wait for the last entry. The helper must have ended; `helped` is what it could not set, and what it noted.
    /// The sums of the tree are written to the new file `sums`.
    pub(super) fn finish(mut self, helped: Option<(NotSet, Notes)>, sums: &Path) -> Result<Kept, Flaw> {
        let written = |source| Flaw::Write { path: self.at.clone(), source };
        let mut setting = SettingDirs {
            attributes: &mut self.attributes,
            at: &self.at,
            notes: &mut self.notes,
            number: self.number,
            indirectly: false,
        };
        self.times.apply(self.tree.root(), &mut setting).map_err(|error| {
            Flaw::carried_by(&error).unwrap_or_else(|| Flaw::Write { path: self.at.clone(), source: error })
        })?;
        let indirectly = setting.indirectly;
        for path in self.implied.paths {
            let Some(dir) = open_still(self.tree.root(), &path).map_err(written)? else { continue };
            let stat = beneath::stat_fd(&dir).map_err(written)?;
            // Unless an entry that came later says otherwise, by whatever path it led there.
            if (stat.st_mtime, stat.st_mtime_nsec as u32) == NOBODYS_ROOT {
                self.applied.implied.push(form::written(&path));
            }
        }
        self.applied.implied_dirs = self.tree.implied;
        self.applied.whiteouts = self.whiteouts;
        self.applied.not_set = self.attributes.not_set;
        let mut notes = vec![self.notes];
        if let Some((not_set, helped)) = helped {
            self.applied.not_set.add(&not_set);
            notes.push(helped);
        }
        let compiled = treesums::compile(self.tree.root(), notes, indirectly, sums);
        let compiled = compiled.map_err(|source| Flaw::Write { path: sums.to_owned(), source })?;
        Ok(Kept { applied: self.applied, sums: compiled })
    }

    /// Lets the helper go: it ends when it has done what it was given. To be called after the last entry.
    pub(super) fn dismiss_helper(&mut self) -> Result<(), Flaw> {
        let Some(mut helper) = self.helper.take() else { return Ok(()) };
        helper
            .flush(&mut self.attributes, &mut self.notes)
            .map_err(|(path, failed)| failed.of(path, &self.at))
    }

    /// Removes what was made for others to be linked to, and counts for nothing. To be called after the last entry.
    pub(super) fn leave_out(&mut self, left: &LeftOut) -> Result<(), Flaw> {
        let name = left.dir.as_bytes();
        let cleared = self.tree.find(b"").map_err(Failed::from).and_then(|root| self.clear(&root, name));
        cleared.map_err(|failed| failed.of(name.to_vec(), &self.at))?;
        // It was made for the first thing in it.
        self.tree.implied = self.tree.implied.saturating_sub(1);
        left.uncounted(&mut self.applied);
        Ok(())
    }

    fn try_apply<S: Source>(&mut self, member: &mut Member, payload: &mut Reader<S>) -> Result<(), Failed> {
        let path = clean(&member.path)?;
        if path.is_empty() {
            return self.root(member);
        }
        let (parent, name) = match aim(&path, self.names)? {
            Aim::Nothing => return Ok(()),
            Aim::Opaque(dir) => return self.opaque(dir),
            Aim::Removed(parent, removed) => {
                let dir = self.find_or_make(parent)?;
                return self.whiteout(&dir, removed);
            }
            Aim::Entry(parent, name) => (parent, name),
        };
        self.charge(member)?;
        let dir = self.find_or_make(parent)?;
        if matches!(member.kind, Kind::Char { major: 0, minor: 0 }) {
            return self.skip(&dir, name, Skipped::Whiteout);
        }
        match member.kind {
            Kind::File => self.file(&dir, name, member, payload),
            Kind::HardLink => self.hard_link(&dir, name, member),
            Kind::Symlink => self.symlink(&dir, name, member),
            Kind::Directory => self.directory(&dir, name, &path, member),
            Kind::Char { major, minor } => {
                let (major, minor) = device(major, minor)?;
                self.special(&dir, name, Special::Char(major, minor), member)
            }
            Kind::Block { major, minor } => {
                let (major, minor) = device(major, minor)?;
                self.special(&dir, name, Special::Block(major, minor), member)
            }
            Kind::Fifo => self.special(&dir, name, Special::Fifo, member),
        }
    }

    /// Sees to it that there is room for what an entry brings. Small files are taken for written; the content of large
    /// ones counts as it comes.
    fn charge(&self, member: &Member) -> Result<(), Failed> {
        let now = match member.kind {
            Kind::HardLink => Need::default(),
            Kind::Directory => Need::directory(),
            Kind::File if is_small(member) => Need::file(member.size),
            _ => Need::file(0),
        };
        let later = if is_small(member) { 0 } else { member.content_bytes() };
        self.outlay.ensure(now.plus(self.outlay.announced(later)))?;
        Ok(self.outlay.spend(now)?)
    }

    fn root(&mut self, member: &Member) -> Result<(), Failed> {
        if member.kind != Kind::Directory {
            return Err(EntryError::Malformed("it would replace the root of the layer").into());
        }
        let made = Made::Named(self.tree.root(), b".");
        let set = self.attributes.set(made, member, Inherited { ours: false })?;
        self.note(b"", &Act::Made(Fact::made(treesums::Kind::Directory, member, &set)))?;
        self.times.note(b".", member.mtime, default_acl(member), &self.spill)?;
        Ok(())
    }

    fn file<S: Source>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        member: &mut Member,
        payload: &mut Reader<S>,
    ) -> Result<(), Failed> {
        let mode = member.mode & 0o777;
        let file = self.make(dir, name, || beneath::create_file(dir.as_fd(), name, mode))?;
        let inherited = Inherited { ours: !dir.setgid };
        if let Some(helper) = &mut self.helper
            && is_small(member)
        {
            self.applied.bytes += member.size;
            let content = payload.lend(member.size)?;
            self.number += 1;
            let (path, number) = (join(&dir.path, name), self.number);
            let job = Job { file, path, number, content, inherited, member: std::mem::take(member) };
            let given = helper.give(job, payload.place(), &mut self.attributes, &mut self.notes);
            return given.map_err(|(path, failed)| {
                // Of this or of an earlier entry.
                member.path = path;
                failed
            });
        }
        let outlay = (!is_small(member)).then_some(&*self.outlay);
        let (mut sum, mut runs) = (crc32fast::Hasher::new(), Vec::new());
        match &member.sparse {
            None => self.applied.bytes += write(&file, 0, member.size, payload, outlay, &mut sum)?,
            Some(segments) => {
                for Segment { offset, length } in segments {
                    self.applied.bytes += write(&file, *offset, *length, payload, outlay, &mut sum)?;
                    runs.push((*offset, *length));
                }
                file.set_len(member.size)?;
            }
        }
        let made = Made::Open(&file);
        let set = self.attributes.set(made, member, inherited)?;
        made.set_times(member.mtime)?;
        // A file that is all hole has no run, and none of its content is to be read.
        let content = (member.sparse.is_none() || !runs.is_empty()).then(|| sum.finalize());
        let fact = Fact::made(treesums::Kind::File, member, &set);
        Ok(self.note_made(dir, name, Fact { size: member.size, content, runs, ..fact })?)
    }

    fn hard_link(&mut self, dir: &Rc<Dir>, name: &[u8], member: &Member) -> Result<(), Failed> {
        let target = clean(&member.target)?;
        let missing = || Failed::Entry(EntryError::NoLinkTarget(text(&member.target)));
        let bad = || Failed::Entry(EntryError::BadLinkTarget(text(&member.target)));
        if target.is_empty() {
            return Err(bad());
        }
        let (parent, existing) = split(&target);
        let from = match self.tree.find(parent) {
            Err(Lost::Missing) => return Err(missing()),
            other => other?,
        };
        let stat = || beneath::stat(from.as_fd(), existing);
        // A second name for a whiteout would remove a second file.
        if self.whiteouts && stat()?.is_some_and(|stat| is_whiteout(&stat)) {
            return Err(bad());
        }
        let link = || beneath::make_link(from.as_fd(), existing, dir.as_fd(), name);
        let linked = Act::Linked(join(&from.path, existing));
        let error = match link() {
            Ok(()) => return Ok(self.note(&join(&dir.path, name), &linked)?),
            Err(error) => error,
        };
        let (source, there) = (stat()?, beneath::stat(dir.as_fd(), name)?);
        let Some(source) = source else {
            let key = (beneath::stat_fd(&*from)?.st_ino, existing.to_vec());
            let Some(skipped) = self.skipped.get(&key).copied() else { return Err(missing()) };
            self.clear(dir, name)?;
            return self.skip(dir, name, skipped);
        };
        if FileType::from_raw_mode(source.st_mode) == FileType::Directory {
            return Err(bad());
        }
        match there {
            // The same file already: to clear the way would remove it.
            Some(there) if (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino) => Ok(()),
            Some(_) => {
                self.clear(dir, name)?;
                beneath::make_link(from.as_fd(), existing, dir.as_fd(), name)
                    .map_err(|error| not_found(error, missing))?;
                Ok(self.note(&join(&dir.path, name), &linked)?)
            }
            None => Err(error.into()),
        }
    }

    fn symlink(&mut self, dir: &Dir, name: &[u8], member: &Member) -> Result<(), Failed> {
        if member.target.is_empty() || member.target.contains(&0) {
            return Err(EntryError::Malformed("a symlink has no target, or one with a NUL byte").into());
        }
        self.make(dir, name, || beneath::make_symlink(dir.as_fd(), name, &member.target))?;
        let made = Made::Symlink(dir.as_fd(), name);
        let set = self.attributes.set(made, member, Inherited { ours: !dir.setgid })?;
        made.set_times(member.mtime)?;
        let fact = Fact::made(treesums::Kind::Symlink, member, &set);
        Ok(self.note_made(dir, name, Fact { target: member.target.clone(), ..fact })?)
    }

    fn special(&mut self, dir: &Dir, name: &[u8], special: Special, member: &Member) -> Result<(), Failed> {
        let mode = member.mode & 0o777;
        match self.make(dir, name, || beneath::make_special(dir.as_fd(), name, special, mode)) {
            Err(Failed::Io(error)) if self.attributes.forgives_device(&error) => {
                return self.skip(dir, name, Skipped::Device);
            }
            other => other?,
        }
        let made = Made::Named(dir.as_fd(), name);
        let set = self.attributes.set(made, member, Inherited { ours: !dir.setgid })?;
        made.set_times(member.mtime)?;
        let (kind, device) = match special {
            Special::Char(major, minor) => (treesums::Kind::Char, beneath::device(major, minor)),
            Special::Block(major, minor) => (treesums::Kind::Block, beneath::device(major, minor)),
            Special::Fifo => (treesums::Kind::Fifo, 0),
        };
        Ok(self.note_made(dir, name, Fact { device, ..Fact::made(kind, member, &set) })?)
    }

    fn directory(&mut self, dir: &Dir, name: &[u8], path: &[u8], member: &Member) -> Result<(), Failed> {
        let make = || beneath::make_dir(dir.as_fd(), name, member.mode & 0o777);
        let (mut ours, mut hidden) = (!dir.setgid, false);
        if let Err(error) = make() {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error.into());
            }
            let there = beneath::stat(dir.as_fd(), name)?;
            if there.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
                ours = false;
            } else {
                self.clear(dir, name)?;
                make()?;
                if self.names == Names::Signs {
                    self.tree.hide_below(dir.as_fd(), name)?;
                    hidden = true;
                }
            }
        }
        let made = Made::Named(dir.as_fd(), name);
        let set = self.attributes.set(made, member, Inherited { ours })?;
        let fact = Fact::made(treesums::Kind::Directory, member, &set);
        self.note_made(dir, name, Fact { ask: fact.ask || hidden, ..fact })?;
        if !ours {
            // It may be open, and known with another setgid bit than it has now.
            self.tree.forget();
        }
        self.times.note(path, member.mtime, default_acl(member), &self.spill)?;
        Ok(())
    }

    fn whiteout(&mut self, dir: &Dir, removed: &[u8]) -> Result<(), Failed> {
        if whiteout::is_opaque(dir, self.namespace)? {
            return Ok(());
        }
        match beneath::make_special(dir.as_fd(), removed, Special::Char(0, 0), 0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = beneath::stat(dir.as_fd(), removed)?;
                if there.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
                    self.tree.hide_below(dir.as_fd(), removed)?;
                    self.note(&join(&dir.path, removed), &Act::Unhidden)?;
                }
                return Ok(());
            }
            other => other?,
        }
        self.whiteouts = true;
        beneath::set_xattr(dir.as_fd(), b".", self.namespace.origin().as_bytes(), b"")?;
        // When it was made, and whose it is, is nobody's word.
        self.note_made(dir, removed, Fact::new(treesums::Kind::Char))?;
        Ok(self.note(&dir.path, &Act::Ask)?)
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), Failed> {
        let dir = self.find_or_make(path)?;
        self.tree.hide_below(dir.as_fd(), b".")?;
        Ok(self.note(&dir.path, &Act::Unhidden)?)
    }

    /// The directory of this path, made if need be; what had to be made is noted.
    fn find_or_make(&mut self, path: &[u8]) -> Result<Rc<Dir>, Failed> {
        let dir = self.tree.find_or_make(path);
        for (path, implied) in std::mem::take(&mut self.tree.just_implied) {
            self.note(&path, &Act::Made(Fact::dir_to_ask()))?;
            if implied == Implied::New {
                self.times.note(&path, (0, 0), b"", &self.spill)?;
                continue;
            }
            self.times.note_implied(&path, &self.spill)?;
            self.implied.push(path);
        }
        Ok(dir?)
    }

    /// Takes note of a device that is not made: hard links to it are not, either.
    fn skip(&mut self, dir: &Dir, name: &[u8], skipped: Skipped) -> Result<(), Failed> {
        match skipped {
            Skipped::Device => self.attributes.not_set.devices += 1,
            Skipped::Whiteout => self.attributes.not_set.whiteout_devices += 1,
        }
        if self.skipped.len() < SKIPPED_MAX {
            self.skipped.insert((beneath::stat_fd(dir)?.st_ino, name.to_vec()), skipped);
        }
        Ok(())
    }

    /// Makes something at a name, in place of what is there.
    fn make<T>(&mut self, dir: &Dir, name: &[u8], make: impl Fn() -> io::Result<T>) -> Result<T, Failed> {
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.clear(dir, name)?;
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Removes what is at a name.
    fn clear(&mut self, dir: &Dir, name: &[u8]) -> Result<(), Failed> {
        let Some(stat) = beneath::stat(dir.as_fd(), name)? else { return Ok(()) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                remove_tree_at(dir.as_fd(), name).map_err(io::Error::from)?;
                self.tree.forget();
            }
            FileType::Symlink => {
                beneath::unlink(dir.as_fd(), name)?;
                self.tree.forget();
            }
            _ => beneath::unlink(dir.as_fd(), name)?,
        }
        Ok(self.note(&join(&dir.path, name), &Act::Gone)?)
    }
}

/// Whether a file's content is given away, and counts as soon as it is there.
fn is_small(member: &Member) -> bool {
    member.sparse.is_none() && member.size <= JOB_BYTES_MAX
}

/// Writes payload to a place in a file, sums it, and tells the outlay; bytes written. A small file is one write, unless a buffer ends in it.
fn write<S: Source>(
    file: &std::fs::File,
    mut at: u64,
    length: u64,
    payload: &mut Reader<S>,
    outlay: Option<&Outlay>,
    sum: &mut crc32fast::Hasher,
) -> Result<u64, Failed> {
    let end = at + length;
    while at < end {
        let bytes = payload.payload(end - at)?;
        sum.update(bytes);
        file.write_all_at(bytes, at)?;
        let count = bytes.len();
        payload.advance(count);
        at += count as u64;
        if let Some(outlay) = outlay {
            outlay.spend(Need::content(count as u64))?;
        }
    }
    Ok(length)
}

fn not_found(error: io::Error, missing: impl Fn() -> Failed) -> Failed {
    match error.kind() {
        io::ErrorKind::NotFound => missing(),
        _ => error.into(),
    }
}

/// A directory of the layer, if that is what it still is.
fn open_still(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    match beneath::read_dir_beneath(root, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            _ => Err(error),
        },
    }
}

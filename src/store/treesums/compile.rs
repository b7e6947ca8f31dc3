//! From notes in order of paths to the file `sums`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use keelblock_actors::image::digest::Hasher;
use rustix::io::Errno;

use super::notes::{Act, InOrder, Note, Notes};
use super::{Fact, Kind, MAGIC, TreeSums, bytes, number, sum_of_id_maps, sum_of_xattrs};
use crate::store::meaning::split;
use crate::sys::beneath;

/// Bytes of the file that are written at once.
const WRITE_BYTES: usize = 64 << 10;
/// Names that are compared at once with what the filesystem says of them. 16: enough to see that it does not keep what it was
/// told (owners, say), and nothing beside the calls that made a layer.
const SAMPLE: u64 = 16;
/// Bytes of content that are read again in one layer, of second names of files whose first name is gone: an odd thing for a tar
/// to do. 64 MiB: what is beyond has no sum of its content.
const REREAD_BYTES_MAX: u64 = 64 << 20;

/// Files with a name that comes before their first one that are kept in mind. 65,536: of more each such name says what it is.
const AHEAD_MAX: usize = 65_536;

/// Writes the new file `to`, on the tree below `root`, of which these are all notes. `None`: nothing was noted, or the filesystem
/// does not keep what it is told; then there is no file.
pub(in crate::store) fn compile(
    root: BorrowedFd<'_>,
    all: Vec<Notes>,
    ask_dirs: bool,
    to: &Path,
) -> io::Result<Option<TreeSums>> {
    if !all.iter().all(Notes::is_on) {
        return Ok(None);
    }
    let file = File::options().write(true).create_new(true).open(to)?;
    let out =
        Out { file, buffer: Vec::new(), bytes: 0, hasher: Hasher::sha256(), last: Vec::new(), names: 0 };
    let mut compiler = Compiler {
        tree: Within::new(root),
        out,
        above: Vec::new(),
        ask_dirs,
        ahead: HashSet::new(),
        reread: REREAD_BYTES_MAX,
        is_kept: true,
    };
    compiler.out.begin();
    let mut notes = InOrder::new(all)?;
    let mut at: Option<Place> = None;
    while let Some(Note { key, number, act }) = notes.next()? {
        if at.as_ref().is_none_or(|place| place.key != key) {
            if let Some(place) = at.take() {
                compiler.place(place)?;
            }
            at = Some(Place::new(key));
        }
        if let Some(place) = &mut at {
            place.add(number, act);
        }
    }
    if let Some(place) = at.take() {
        compiler.place(place)?;
    }
    if !compiler.is_kept {
        std::fs::remove_file(to)?;
        return Ok(None);
    }
    compiler.out.end().map(Some)
}

/// A path, and what became of it.
struct Place {
    key: Vec<u8>,
    now: Option<Now>,
    made: u64,
    time: Option<(i64, u32)>,
    ask: bool,
    gone: u64,
    unhidden: u64,
}

enum Now {
    Made(Fact),
    Linked(Vec<u8>),
}

impl Place {
    fn new(key: Vec<u8>) -> Self {
        Self { key, now: None, made: 0, time: None, ask: false, gone: 0, unhidden: 0 }
    }

    fn add(&mut self, number: u64, act: Act) {
        match act {
            Act::Made(fact) => {
                let is_dir = |now: &Now| matches!(now, Now::Made(fact) if fact.kind == Kind::Directory);
                let same = fact.kind == Kind::Directory && self.now.as_ref().is_some_and(is_dir);
                self.ask = fact.ask || same && self.ask;
                (self.now, self.made) = (Some(Now::Made(fact)), number);
            }
            Act::Linked(target) => {
                (self.now, self.made, self.ask) = (Some(Now::Linked(target)), number, false);
            }
            Act::Gone => (self.now, self.ask, self.gone) = (None, false, number),
            Act::Unhidden => (self.unhidden, self.ask) = (number, true),
            Act::Ask => self.ask = true,
            Act::Time(time) => self.time = Some(time),
        }
    }
}

/// A directory on the way to the path at hand.
struct Above {
    key: Vec<u8>,
    /// When it or one above it was last removed.
    gone: u64,
    unhidden: u64,
}

struct Compiler<'a> {
    tree: Within<'a>,
    out: Out,
    above: Vec<Above>,
    /// Whether the filesystem is to be asked for all directories.
    ask_dirs: bool,
    /// Files of which a name came before the first one, which says what they are.
    ahead: HashSet<u64>,
    /// Bytes that may still be read again.
    reread: u64,
    is_kept: bool,
}

impl Compiler<'_> {
    /// Writes what is at a path in the end, if anything is.
    fn place(&mut self, place: Place) -> io::Result<()> {
        while self.above.last().is_some_and(|above| !is_below(&above.key, &place.key)) {
            self.above.pop();
        }
        let Place { key, now, made, time, ask, gone, unhidden } = place;
        let gone_last = self.above.last().map_or(0, |above| above.gone);
        let gone_above = gone_last > made;
        let unhidden_above = self.above.last().is_some_and(|above| {
            // In this directory, not somewhere below it.
            above.unhidden > made && !key[above.key.len()..].iter().skip(1).any(|byte| *byte == 0)
        });
        let path: Vec<u8> = key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
        self.above.push(Above { key, gone: gone.max(gone_last), unhidden });
        let fact = match now {
            Some(_) if gone_above => return Ok(()),
            None => return Ok(()),
            Some(Now::Made(fact)) if unhidden_above && fact.is_whiteout() => return Ok(()),
            Some(Now::Made(fact)) => {
                let is_dir = fact.kind == Kind::Directory;
                let ask = ask || is_dir && self.ask_dirs;
                let mtime = if is_dir { time } else { fact.mtime };
                let fact = Fact { mtime, ask: false, ..fact };
                if ask { self.asked(&path, fact)? } else { fact }
            }
            Some(Now::Linked(target)) => self.link(&path, target)?,
        };
        if self.out.names < SAMPLE && fact.kind != Kind::Link {
            let found = self.tree.stat(&path)?;
            self.is_kept &= found.is_some_and(|stat| fact.differs(&stat, true).is_none());
        }
        self.out.entry(&path, &fact)
    }

    /// What the filesystem says of a path, with what was noted of its content.
    fn asked(&mut self, path: &[u8], mut fact: Fact) -> io::Result<Fact> {
        let Some(stat) = self.tree.stat(path)? else {
            self.is_kept = false;
            return Ok(fact);
        };
        if fact.kind != Kind::Symlink {
            fact.mode = stat.st_mode & 0o7777;
        }
        fact.owner = Some((stat.st_uid, stat.st_gid));
        fact.mtime = Some((stat.st_mtime, stat.st_mtime_nsec as u32));
        let (dir, name) = self.tree.parent(path)?;
        fact.xattrs = sum_of_xattrs(dir, name)?;
        Ok(fact)
    }

    /// Another name, if the first one still leads to the same file; else what the filesystem says of it.
    fn link(&mut self, path: &[u8], target: Vec<u8>) -> io::Result<Fact> {
        let (this, first) = (self.tree.stat(path)?, self.tree.stat(&target)?);
        let Some(this) = this else {
            self.is_kept = false;
            return Ok(Fact::new(Kind::Link));
        };
        let before = target.iter().map(order).lt(path.iter().map(order));
        let same = first.is_some_and(|first| (first.st_dev, first.st_ino) == (this.st_dev, this.st_ino));
        // Two names may each be noted as another of the other: the later one then says what they are.
        let by_first = match before {
            true => !self.ahead.contains(&this.st_ino),
            false => {
                self.ahead.len() < AHEAD_MAX && {
                    self.ahead.insert(this.st_ino);
                    true
                }
            }
        };
        if same && by_first {
            return Ok(Fact { target, ..Fact::new(Kind::Link) });
        }
        let Some(kind) = Kind::of(&this) else {
            self.is_kept = false;
            return Ok(Fact::new(Kind::Link));
        };
        let mut fact = self.asked(path, Fact::new(kind))?;
        (fact.size, fact.device) = (this.st_size.cast_unsigned(), 0);
        let (dir, name) = self.tree.parent(path)?;
        match kind {
            Kind::File if fact.size <= self.reread => {
                self.reread -= fact.size;
                let mut sum = crc32fast::Hasher::new();
                let (mut file, mut buffer) = (beneath::open_file(dir, name)?, vec![0; WRITE_BYTES]);
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        some => sum.update(&buffer[..some]),
                    }
                }
                fact.content = Some(sum.finalize());
            }
            Kind::Symlink => fact.target = beneath::read_link(dir, name)?,
            Kind::Char | Kind::Block => fact.device = this.st_rdev,
            _ => {}
        }
        if kind != Kind::File {
            fact.size = 0;
        }
        Ok(fact)
    }
}

fn order(byte: &u8) -> u8 {
    if *byte == b'/' { 0 } else { *byte }
}

/// Whether a key is that of something below another.
fn is_below(dir: &[u8], key: &[u8]) -> bool {
    dir.is_empty() && !key.is_empty() || key.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&0))
}

/// Names below a directory, found by descriptor; no symlink is followed.
pub(super) struct Within<'a> {
    root: BorrowedFd<'a>,
    /// The directory that was looked into last.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl<'a> Within<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, last: None }
    }

    /// The directory of a path, and the name in it.
    pub(super) fn parent<'p>(&mut self, path: &'p [u8]) -> io::Result<(BorrowedFd<'_>, &'p [u8])> {
        let (dir, name) = split(path);
        if dir.is_empty() {
            return Ok((self.root, if name.is_empty() { b"." } else { name }));
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != dir) {
            self.last = Some((dir.to_vec(), beneath::open_dir_beneath(self.root, dir)?));
        }
        let fd = self.last.as_ref().map_or(self.root, |(_, fd)| fd.as_fd());
        Ok((fd, name))
    }

    /// A directory, to be listed.
    pub(super) fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        beneath::read_dir_beneath(self.root, path)
    }

    /// What is at a path; `None` = nothing, or something that no directory leads to.
    pub(super) fn stat(&mut self, path: &[u8]) -> io::Result<Option<rustix::fs::Stat>> {
        let found = self.parent(path).and_then(|(dir, name)| beneath::stat(dir, name));
        match found {
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(error),
            },
            found => found,
        }
    }
}

/// The file being written.
struct Out {
    file: File,
    buffer: Vec<u8>,
    bytes: u64,
    hasher: Hasher,
    last: Vec<u8>,
    names: u64,
}

impl Out {
    fn begin(&mut self) {
        self.buffer.extend_from_slice(MAGIC);
        self.buffer.extend_from_slice(&sum_of_id_maps().to_le_bytes());
    }

    fn entry(&mut self, path: &[u8], fact: &Fact) -> io::Result<()> {
        let shared = self.last.iter().zip(path).take_while(|(a, b)| a == b).count();
        number(&mut self.buffer, shared as u64);
        bytes(&mut self.buffer, &path[shared..]);
        fact.write(&mut self.buffer);
        path.clone_into(&mut self.last);
        self.names += 1;
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer)?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<TreeSums> {
        self.flush()?;
        Ok(TreeSums { bytes: self.bytes, names: self.names, sums: self.hasher.finish() })
    }
}

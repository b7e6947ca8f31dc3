//! Compares a tree with its sums: by descriptor, following no link, name after name in the order of the sums. What is in a
//! directory besides shows by the number of its names.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use keelblock_actors::image::digest::Hasher;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::compile::Within;
use super::{Fact, Kind, MAGIC, TreeSums, malformed, read_bytes, read_number, sum_of_id_maps, sum_of_xattrs};
use crate::store::flaw::text;
use crate::store::layout::{SUMS, TREE};
use crate::store::meaning::split;
use crate::store::scrub::{Pace, open};
use crate::sys::beneath;

/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;
/// Differences that are named; of others there is the number.
const NAMED_MAX: usize = 3;

/// What is wrong with the tree of the layer in `dir`, if anything is; `Interrupted` when it was told to stop. Adds the bytes
/// that it reads to `read`.
pub(in crate::store) fn verify(
    dir: &Path,
    sums: &TreeSums,
    read: &mut u64,
    pace: &Pace<'_>,
) -> io::Result<Option<String>> {
    let path = dir.join(SUMS);
    let Some(file) = open(&path)? else { return Ok(Some(format!("{SUMS} is not there"))) };
    // First, since sums that rotted accuse files that did not.
    if let Some(why) = check_sums(file, sums, read, pace)? {
        return Ok(Some(why));
    }
    let root = match beneath::open_root(&dir.join(TREE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("{TREE} is not there")));
        }
        root => root?,
    };
    let mut entries = Entries::open(&path)?;
    let mut walk = Walk {
        tree: Within::new(root.as_fd()),
        sums: &path,
        owners: entries.owners,
        above: Vec::new(),
        named: Vec::new(),
        more: 0,
        read,
        pace,
        buffer: vec![0; PIECE_BYTES],
    };
    while let Some((path, fact)) = entries.next()? {
        walk.entry(path, &fact)?;
    }
    while let Some((dir, names)) = walk.above.pop() {
        walk.end_dir(&dir, names)?;
    }
    let Walk { mut named, more, .. } = walk;
    if more > 0 {
        named.push(format!("{more} more"));
    }
    Ok((!named.is_empty()).then(|| named.join("; ")))
}

fn check_sums(
    mut file: File,
    sums: &TreeSums,
    read: &mut u64,
    pace: &Pace<'_>,
) -> io::Result<Option<String>> {
    let found = file.metadata()?.len();
    if found != sums.bytes {
        return Ok(Some(format!("{SUMS} has {found} bytes, not {}", sums.bytes)));
    }
    let (mut hasher, mut buffer) = (Hasher::sha256(), vec![0; PIECE_BYTES]);
    loop {
        pace.wait(*read)?;
        match file.read(&mut buffer)? {
            0 => break,
            some => {
                hasher.update(&buffer[..some]);
                *read += some as u64;
            }
        }
    }
    Ok((hasher.finish() != sums.sums).then(|| format!("{SUMS} is not what layer.json says")))
}

/// The file, entry by entry.
struct Entries {
    from: BufReader<File>,
    path: Vec<u8>,
    /// Whether owners and xattrs are seen here as they were where the tree was made.
    owners: bool,
}

impl Entries {
    fn open(path: &Path) -> io::Result<Self> {
        let mut from = BufReader::new(File::open(path)?);
        if super::exactly(&mut from)? != *MAGIC {
            return Err(malformed());
        }
        let owners = u32::from_le_bytes(super::exactly(&mut from)?) == sum_of_id_maps();
        Ok(Self { from, path: Vec::new(), owners })
    }

    fn next(&mut self) -> io::Result<Option<(&[u8], Fact)>> {
        if io::BufRead::fill_buf(&mut self.from)?.is_empty() {
            return Ok(None);
        }
        let shared = read_number(&mut self.from)?;
        if shared > self.path.len() as u64 {
            return Err(malformed());
        }
        self.path.truncate(shared as usize);
        let rest = read_bytes(&mut self.from)?;
        self.path.extend_from_slice(&rest);
        Ok(Some((&self.path, Fact::read(&mut self.from)?)))
    }
}

struct Walk<'a> {
    tree: Within<'a>,
    sums: &'a Path,
    owners: bool,
    /// Directories on the way to the entry at hand, with how many names there are to be in each.
    above: Vec<(Vec<u8>, u64)>,
    named: Vec<String>,
    more: u64,
    read: &'a mut u64,
    pace: &'a Pace<'a>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn entry(&mut self, path: &[u8], fact: &Fact) -> io::Result<()> {
        let (dir, _) = split(path);
        while let Some((above, names)) = self.above.pop_if(|(above, _)| above != dir || path.is_empty()) {
            self.end_dir(&above, names)?;
        }
        if let Some((_, names)) = self.above.last_mut() {
            *names += 1;
        }
        self.pace.wait(*self.read)?;
        match self.differs(path, fact) {
            Ok(None) => {}
            Ok(Some(why)) => self.say(path, why),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.say(path, "it is not there"),
                Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG) => self.say(path, "it cannot be read"),
                _ => return Err(error),
            },
        }
        if fact.kind == Kind::Directory {
            self.above.push((path.to_vec(), 0));
        }
        Ok(())
    }

    /// In which way a name is not what it was.
    fn differs(&mut self, path: &[u8], fact: &Fact) -> io::Result<Option<&'static str>> {
        let Some(stat) = self.tree.stat(path)? else { return Ok(Some("it is not there")) };
        if fact.kind == Kind::Link {
            let first = self.tree.stat(&fact.target)?;
            let same = first.is_some_and(|first| (first.st_dev, first.st_ino) == (stat.st_dev, stat.st_ino));
            return Ok((!same).then_some("it is no longer another name of the same file"));
        }
        if let Some(why) = fact.differs(&stat, self.owners) {
            return Ok(Some(why));
        }
        let (dir, name) = self.tree.parent(path)?;
        if self.owners && sum_of_xattrs(dir, name)? != fact.xattrs {
            return Ok(Some("other xattrs"));
        }
        match fact.kind {
            Kind::Symlink if beneath::read_link(dir, name)? != fact.target => Ok(Some("another target")),
            Kind::File if fact.content.is_some() && fact.size > 0 => {
                let file = beneath::open_file(dir, name)?;
                Ok((!self.is_content(&file, fact)?).then_some("other content"))
            }
            _ => Ok(None),
        }
    }

    fn is_content(&mut self, file: &File, fact: &Fact) -> io::Result<bool> {
        // What is on the disk is asked for, not what memory has of it; where that cannot be, memory is what readers get, too.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        let mut sum = crc32fast::Hasher::new();
        let all = [(0, fact.size)];
        for (offset, length) in if fact.runs.is_empty() { &all[..] } else { &fact.runs } {
            let (mut at, mut left) = (*offset, *length);
            while left > 0 {
                self.pace.wait(*self.read)?;
                let length = left.min(PIECE_BYTES as u64);
                let read = file.read_at(&mut self.buffer[..length as usize], at)? as u64;
                if read == 0 {
                    return Ok(false);
                }
                sum.update(&self.buffer[..read as usize]);
                (at, left) = (at + read, left - read);
                *self.read += read;
            }
        }
        Ok(Some(sum.finalize()) == fact.content)
    }

    /// A directory of which all names were looked at.
    fn end_dir(&mut self, dir: &[u8], names: u64) -> io::Result<()> {
        let opened = self.tree.open_dir(dir);
        let found = match opened {
            // Said already.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                ) =>
            {
                return Ok(());
            }
            opened => opened?,
        };
        if beneath::count(found.as_fd())? <= names {
            return Ok(());
        }
        // Which: of those that are there, what the sums do not name.
        let mut there: BTreeSet<Vec<u8>> = beneath::list(found.as_fd())?.into_iter().collect();
        let mut entries = Entries::open(self.sums)?;
        while let Some((path, _)) = entries.next()? {
            let (parent, name) = split(path);
            if parent == dir {
                there.remove(name);
            }
        }
        for name in there {
            self.say(&super::join(dir, &name), "it was not there");
        }
        Ok(())
    }

    fn say(&mut self, path: &[u8], why: &str) {
        if self.named.len() == NAMED_MAX {
            self.more += 1;
            return;
        }
        let path = if path.is_empty() { "/".to_owned() } else { text(path) };
        self.named.push(format!("{TREE}: {path}: {why}"));
    }
}

//! The journal: which layers are on disk.
//!
//! A text file, a line a record: checksum, `+` or `-`, diff ID, commit. `+` = this commit of this layer is on disk, as
//! whole as the layer is; `-` = it is on its way out, so that its files may be going. Lines are appended in one write and
//! forced to disk before anybody acts on them. Each stands for itself: one whose checksum is wrong (the torn end of a power
//! cut) says nothing, and since a commit is never made twice the order of lines does not matter: what is durable is `+`
//! without `-`.
//!
//! Written under the store lock, by whoever has it alone, or shares it and holds the settling lock. When most lines are
//! about layers that are gone it is written anew and takes the old one's place by rename.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::DiffId;

use super::disk::{Barrier, Disk};
use super::layout::Layout;
use super::stage;

/// Lines about layers that are gone, besides as many as there are about others, before the journal is written anew.
/// 1000: 150 KB, read in a millisecond.
const DEAD_LINES_MAX: usize = 1000;

/// One commit of one layer.
pub(super) type Commit = (DiffId, String);

/// What the journal says.
#[derive(Debug, Default)]
pub(super) struct Journal {
    on_disk: BTreeSet<Commit>,
    removed: BTreeSet<Commit>,
    lines: usize,
}

impl Journal {
    /// Reads it; there may be none yet.
    pub(super) fn read(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.journal();
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(StoreError::Io { act: "read", path, source }),
        }
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut journal = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            journal.lines += 1;
            let Some((adds, commit)) = std::str::from_utf8(line).ok().and_then(parse_line) else { continue };
            match adds {
                true => journal.on_disk.insert(commit),
                false => journal.removed.insert(commit),
            };
        }
        journal
    }

    /// Whether this commit is on disk.
    pub(super) fn is_durable(&self, commit: &Commit) -> bool {
        self.on_disk.contains(commit) && !self.removed.contains(commit)
    }

    /// Says that these commits are on disk. Returns when that is on disk itself. For the locks see the module.
    pub(super) fn add(&self, layout: &Layout, disk: &dyn Disk, commits: &[Commit]) -> Result<(), StoreError> {
        self.append(layout, disk, '+', commits)
    }

    /// Says that these commits are on their way out. Returns when that is on disk.
    pub(super) fn remove(
        &self,
        layout: &Layout,
        disk: &dyn Disk,
        commits: &[Commit],
    ) -> Result<(), StoreError> {
        self.append(layout, disk, '-', commits)
    }

    fn append(
        &self,
        layout: &Layout,
        disk: &dyn Disk,
        sign: char,
        commits: &[Commit],
    ) -> Result<(), StoreError> {
        if commits.is_empty() {
            return Ok(());
        }
        let path = layout.journal();
        let text: String = commits.iter().map(|commit| line(sign, commit)).collect();
        let live: Vec<_> = self.on_disk.iter().filter(|commit| self.is_live(layout, commit)).collect();
        let written = if self.lines > 2 * live.len() + DEAD_LINES_MAX {
            // What goes out now keeps its line: its layer is there still.
            let kept: String = live.into_iter().map(|commit| line('+', commit)).collect();
            rewrite(layout, disk, &(kept + &text))
        } else {
            append(&path, disk, &text)
        };
        written.map_err(|source| StoreError::Io { act: "write", path, source })
    }

    fn is_live(&self, layout: &Layout, commit: &Commit) -> bool {
        !self.removed.contains(commit) && layout.layer_record(&commit.0).exists()
    }
}

fn append(path: &std::path::Path, disk: &dyn Disk, text: &str) -> io::Result<()> {
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    // A line that a dead process, or a power cut, left unfinished must not swallow ours.
    let mut last = [b'\n'];
    if end > 0 {
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut last)?;
    }
    let text = if last == [b'\n'] { text.to_owned() } else { format!("\n{text}") };
    let written = file.write_all(text.as_bytes()).and_then(|()| disk.sync(Barrier::Journal, &file));
    if written.is_err() {
        // Else others would read what may never be on disk, and a second sync could succeed without writing it.
        let _ = file.set_len(end);
    }
    written
}

/// In place of the old one.
fn rewrite(layout: &Layout, disk: &dyn Disk, text: &str) -> io::Result<()> {
    stage::write_synced(layout, disk, Barrier::Journal, &layout.journal(), text.as_bytes())?;
    disk.sync(Barrier::Store, &File::open(layout.root())?)?;
    disk.sync(Barrier::Staging, &File::open(layout.staging())?)
}

fn line(sign: char, (diff, commit): &Commit) -> String {
    let said = format!("{sign} {diff} {commit}");
    format!("{:08x} {said}\n", crc32fast::hash(said.as_bytes()))
}

fn parse_line(line: &str) -> Option<(bool, Commit)> {
    let (checksum, said) = line.split_once(' ')?;
    if checksum.len() != 8 || u32::from_str_radix(checksum, 16).ok()? != crc32fast::hash(said.as_bytes()) {
        return None;
    }
    let (sign, rest) = said.split_once(' ')?;
    let (diff, commit) = rest.split_once(' ')?;
    let adds = match sign {
        "+" => true,
        "-" => false,
        _ => return None,
    };
    Some((adds, (diff.parse().ok()?, commit.to_owned())))
}

#[cfg(test)]
mod tests {
    use keelblock_actors::image::digest::Digest;

    use super::super::disk::RealDisk;
    use super::*;

    fn commit(content: &str, name: &str) -> Commit {
        (DiffId(Digest::of(content.as_bytes())), name.to_owned())
    }

    fn place() -> (tempfile::TempDir, Layout) {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout::new(home.path().to_owned());
        for directory in super::super::layout::DIRECTORIES {
            std::fs::create_dir_all(home.path().join(directory)).unwrap();
        }
        (home, layout)
    }

    /// A journal says nothing of layers that are not there when it is written anew.
    fn layer(layout: &Layout, commit: &Commit) {
        std::fs::create_dir_all(layout.layer(&commit.0)).unwrap();
        std::fs::write(layout.layer_record(&commit.0), "{}").unwrap();
    }

    #[test]
    fn what_was_added_and_not_removed_is_durable() {
        let (_home, layout) = place();
        let (a, b, again) = (commit("a", "1-0-a"), commit("b", "1-1-b"), commit("a", "2-0-c"));
        assert!(!Journal::read(&layout).unwrap().is_durable(&a));
        Journal::read(&layout).unwrap().add(&layout, &RealDisk, &[a.clone(), b.clone()]).unwrap();
        Journal::read(&layout).unwrap().remove(&layout, &RealDisk, std::slice::from_ref(&a)).unwrap();
        let journal = Journal::read(&layout).unwrap();
        assert!(!journal.is_durable(&a) && journal.is_durable(&b));
        assert!(!journal.is_durable(&again), "another commit of the same layer");
        journal.add(&layout, &RealDisk, std::slice::from_ref(&again)).unwrap();
        assert!(Journal::read(&layout).unwrap().is_durable(&again));
    }

    #[test]
    fn a_torn_end_says_nothing_and_swallows_nothing() {
        let (_home, layout) = place();
        let (a, b, c) = (commit("a", "1"), commit("b", "2"), commit("c", "3"));
        Journal::default().add(&layout, &RealDisk, std::slice::from_ref(&a)).unwrap();
        let whole = std::fs::read(layout.journal()).unwrap();
        let torn = line('+', &b);
        for end in 0..torn.len() - 1 {
            for filler in [&b""[..], &[0; 40], b"\xff\xfe\n\n"] {
                let bytes = [&whole, &torn.as_bytes()[..end], filler].concat();
                std::fs::write(layout.journal(), &bytes).unwrap();
                let journal = Journal::read(&layout).unwrap();
                assert!(journal.is_durable(&a) && !journal.is_durable(&b), "{end}");
                journal.add(&layout, &RealDisk, std::slice::from_ref(&c)).unwrap();
                let journal = Journal::read(&layout).unwrap();
                assert!(journal.is_durable(&a) && !journal.is_durable(&b) && journal.is_durable(&c), "{end}");
            }
        }
        // Any bit.
        for at in 0..whole.len() - 1 {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            assert!(!Journal::parse(&bytes).is_durable(&a), "{at}");
        }
    }

    #[test]
    fn it_is_written_anew_when_most_of_it_is_about_layers_that_are_gone() {
        let (_home, layout) = place();
        let stays = commit("stays", "1");
        layer(&layout, &stays);
        Journal::default().add(&layout, &RealDisk, std::slice::from_ref(&stays)).unwrap();
        let gone: Vec<_> = (0..DEAD_LINES_MAX + 2).map(|n| commit("gone", &n.to_string())).collect();
        Journal::read(&layout).unwrap().add(&layout, &RealDisk, &gone).unwrap();
        let last = commit("last", "2");
        layer(&layout, &last);
        Journal::read(&layout).unwrap().add(&layout, &RealDisk, std::slice::from_ref(&last)).unwrap();
        let journal = Journal::read(&layout).unwrap();
        assert!(journal.is_durable(&stays) && journal.is_durable(&last));
        assert_eq!(journal.on_disk.len(), 2);
        assert_eq!(std::fs::read_dir(layout.staging()).unwrap().count(), 0);
    }

    #[test]
    fn what_the_disk_refuses_is_not_read_back() {
        #[derive(Debug)]
        struct Broken;
        impl Disk for Broken {
            fn sync(&self, _: Barrier, _: &File) -> io::Result<()> {
                Err(rustix::io::Errno::IO.into())
            }
        }
        let (_home, layout) = place();
        let a = commit("a", "1");
        assert!(Journal::default().add(&layout, &Broken, std::slice::from_ref(&a)).is_err());
        let journal = Journal::read(&layout).unwrap();
        assert!(!journal.is_durable(&a));
        journal.add(&layout, &RealDisk, std::slice::from_ref(&a)).unwrap();
        assert!(Journal::read(&layout).unwrap().is_durable(&a));
    }
}

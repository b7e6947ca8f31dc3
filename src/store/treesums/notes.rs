//! What happens to a tree while it is made, noted by path, and read again in order of paths.
//!
//! Each thread that makes files has notes of its own; numbers that one of them gives say what came first. Notes are kept in
//! memory up to a bound, then sorted and spilled; they are merged when they are read.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Fact, malformed, number, read_bytes, read_number};

/// Bytes of notes in memory. 1 MiB: ten thousand entries, as many as most layers have.
const NOTES_BYTES_MAX: usize = 1 << 20;
/// Bytes read at once of what was spilled. 16 KiB: of a layer of ten million entries there are a thousand pieces.
const READ_BYTES: usize = 16 << 10;

/// What happened at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Act {
    /// This is there now; of a directory that was there before it says what it is now.
    Made(Fact),
    /// Another name of the file at this path is there now.
    Linked(Vec<u8>),
    /// Nothing is there or below it any more.
    Gone,
    /// Whiteouts in this directory are gone.
    Unhidden,
    /// Something was set of it that the filesystem must be asked for.
    Ask,
    /// This is the time of the directory.
    Time((i64, u32)),
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// With NUL in the place of slashes: so paths below one follow it.
    pub(super) key: Vec<u8>,
    pub(super) number: u64,
    pub(super) act: Act,
}

/// See the module.
pub(in crate::store) struct Notes {
    /// Where may be spilled to.
    at: PathBuf,
    spilled: Option<Arc<File>>,
    /// Pieces of what was spilled, each in order: offset and bytes.
    pieces: Vec<(u64, u64)>,
    buffer: Vec<u8>,
    /// Where each note in the buffer begins.
    begins: Vec<usize>,
    /// Whether anything is noted.
    on: bool,
}

impl Notes {
    /// `at` is a name for a file that may be made.
    pub(in crate::store) fn new(at: &Path) -> Self {
        Self {
            at: at.to_owned(),
            spilled: None,
            pieces: Vec::new(),
            buffer: Vec::new(),
            begins: Vec::new(),
            on: true,
        }
    }

    /// Notes nothing, and has nothing noted.
    pub(in crate::store) fn give_up(&mut self) {
        (self.on, self.spilled) = (false, None);
        (self.buffer, self.begins, self.pieces) = Default::default();
    }

    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    pub(in crate::store) fn note(&mut self, number_: u64, path: &[u8], act: &Act) -> io::Result<()> {
        if !self.on {
            return Ok(());
        }
        let begins = self.buffer.len();
        self.begins.push(begins);
        number(&mut self.buffer, path.len() as u64);
        let from = self.buffer.len();
        self.buffer.extend_from_slice(path);
        self.buffer[from..].iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = 0);
        self.buffer.extend_from_slice(&number_.to_le_bytes());
        act.write(&mut self.buffer);
        if self.buffer.len() >= NOTES_BYTES_MAX {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let sorted = self.sorted();
        let file = match &self.spilled {
            Some(file) => file,
            None => {
                let file = File::options().read(true).write(true).create_new(true).open(&self.at)?;
                // Needed no longer than it is open.
                std::fs::remove_file(&self.at)?;
                self.spilled.insert(Arc::new(file))
            }
        };
        let at = self.pieces.last().map_or(0, |(offset, bytes)| offset + bytes);
        file.write_all_at(&sorted, at)?;
        self.pieces.push((at, sorted.len() as u64));
        Ok(())
    }

    /// The notes in memory, in order; none are there afterwards.
    fn sorted(&mut self) -> Vec<u8> {
        let buffer = &self.buffer;
        let parts = |begins: usize| {
            let mut from = &buffer[begins..];
            let length = read_number(&mut from).unwrap_or_default() as usize;
            let (key, rest) = from.split_at(length);
            (key, rest.first_chunk().map(|number| u64::from_le_bytes(*number)))
        };
        let mut order: Vec<_> = self
            .begins
            .iter()
            .zip(self.begins.iter().skip(1).chain([&buffer.len()]))
            .map(|(begins, ends)| (*begins, *ends))
            .collect();
        order.sort_by(|a, b| parts(a.0).cmp(&parts(b.0)));
        let mut sorted = Vec::with_capacity(buffer.len());
        for (begins, ends) in order {
            sorted.extend_from_slice(&buffer[begins..ends]);
        }
        self.buffer.clear();
        self.begins.clear();
        sorted
    }

    fn runs(&mut self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        if let Some(file) = &self.spilled {
            for (at, left) in &self.pieces {
                let piece = Piece { file: Arc::clone(file), at: *at, left: *left };
                runs.push(Box::new(BufReader::with_capacity(READ_BYTES, piece)));
            }
        }
        runs.push(Box::new(Cursor::new(self.sorted())));
        runs
    }
}

type Run = Box<dyn Read + Send>;

/// A part of a file.
struct Piece {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Piece {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        if read == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// All notes, in order of paths, and for one path of numbers.
pub(super) struct InOrder {
    runs: Vec<Run>,
    /// The next note of each run that has one.
    heads: BinaryHeap<Head>,
}

struct Head {
    note: Note,
    run: usize,
}

impl Head {
    fn place(&self) -> (&[u8], u64) {
        (&self.note.key, self.note.number)
    }
}

/// The first note is the greatest: a heap gives that one.
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        other.place().cmp(&self.place())
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl InOrder {
    pub(super) fn new(all: Vec<Notes>) -> io::Result<Self> {
        let runs = all.into_iter().flat_map(|mut notes| notes.runs()).collect();
        let mut in_order = Self { runs, heads: BinaryHeap::new() };
        (0..in_order.runs.len()).try_for_each(|run| in_order.advance(run))?;
        Ok(in_order)
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Note>> {
        let Some(Head { note, run }) = self.heads.pop() else { return Ok(None) };
        self.advance(run)?;
        Ok(Some(note))
    }

    /// Takes the next note of a run.
    fn advance(&mut self, run: usize) -> io::Result<()> {
        let from = &mut self.runs[run];
        let mut first = [0];
        if from.read(&mut first)? == 0 {
            return Ok(());
        }
        let mut from = first.chain(from);
        let key = read_bytes(&mut from)?;
        let number = u64::from_le_bytes(super::exactly(&mut from)?);
        let note = Note { key, number, act: Act::read(&mut from)? };
        self.heads.push(Head { note, run });
        Ok(())
    }
}

impl Act {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Made(fact) => {
                to.push(0);
                fact.write(to);
            }
            Self::Linked(target) => {
                to.push(1);
                super::bytes(to, target);
            }
            Self::Gone => to.push(2),
            Self::Unhidden => to.push(3),
            Self::Ask => to.push(4),
            Self::Time((seconds, nanos)) => {
                to.push(5);
                to.extend_from_slice(&seconds.to_le_bytes());
                to.extend_from_slice(&nanos.to_le_bytes());
            }
        }
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        Ok(match super::exactly(from)? {
            [0] => Self::Made(Fact::read(from)?),
            [1] => Self::Linked(read_bytes(from)?),
            [2] => Self::Gone,
            [3] => Self::Unhidden,
            [4] => Self::Ask,
            [5] => {
                let seconds = i64::from_le_bytes(super::exactly(from)?);
                Self::Time((seconds, u32::from_le_bytes(super::exactly(from)?)))
            }
            _ => return Err(malformed()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_several_threads_come_in_order_also_those_that_were_spilled() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = ["a", "b"].map(|name| Notes::new(&dir.path().join(name)));
        let mut expected = Vec::new();
        let acts = [Act::Gone, Act::Time((-1, 5)), Act::Linked(b"x/y".to_vec()), Act::Unhidden, Act::Ask];
        for number in 0..100_000_u64 {
            let path = format!("d{}/f{}/{}", number * 7919 % 13, number * 31 % 7, number % 1000);
            let act = &acts[number as usize % acts.len()];
            all[number as usize % 2].note(number, path.as_bytes(), act).unwrap();
            expected.push((path.replace('/', "\0").into_bytes(), number, act.clone()));
        }
        assert!(all.iter().all(|notes| !notes.pieces.is_empty()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        expected.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut in_order = InOrder::new(all.into()).unwrap();
        for (key, number, act) in expected {
            assert_eq!(in_order.next().unwrap().unwrap(), Note { key, number, act });
        }
        assert_eq!(in_order.next().unwrap(), None);
    }
}

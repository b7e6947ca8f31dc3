//! What directories get when nothing is made in them any more: their times, and their default ACLs, which everything
//! made in them would inherit.
//!
//! What was noted is spilled to a file when it grows: a hostile layer of ten million directories must not be held in
//! memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use super::attributes::{Attributes, Made};
use super::failed::Failed;
use super::treesums::{Act, Notes};
use crate::sys::beneath;

/// Bytes noted in memory.
const NOTES_BYTES_MAX: usize = 1 << 20;

/// The time of a layer's root that the layer has no entry for: what it shows is nobody's word, and backends take the
/// attributes of the root from a layer that has one. A nanosecond after the epoch, which no tool writes.
pub const NOBODYS_ROOT: (i64, u32) = (0, 1);

/// In place of the length of an ACL: nobody told of this directory.
const IMPLIED: u32 = u32::MAX;

/// See the module.
#[derive(Default)]
pub(super) struct DirTimes {
    notes: Vec<u8>,
    spilled: Option<File>,
}

impl DirTimes {
    /// Notes a directory that no entry tells of, by a path without symlinks: its time is [`NOBODYS_ROOT`] unless a later
    /// note says otherwise.
    pub(super) fn note_implied(&mut self, path: &[u8], spill_to: &Path) -> io::Result<()> {
        self.add(path, NOBODYS_ROOT, None, spill_to)
    }

    /// Notes the time of a directory, by clean path, and the default ACL, empty for none. A later note for the same
    /// path wins.
    pub(super) fn note(
        &mut self,
        path: &[u8],
        mtime: (i64, u32),
        acl: &[u8],
        spill_to: &Path,
    ) -> io::Result<()> {
        self.add(path, mtime, Some(acl), spill_to)
    }

    fn add(&mut self, path: &[u8], mtime: (i64, u32), acl: Option<&[u8]>, spill_to: &Path) -> io::Result<()> {
        self.notes.extend_from_slice(&(path.len() as u32).to_le_bytes());
        self.notes.extend_from_slice(path);
        self.notes.extend_from_slice(&mtime.0.to_le_bytes());
        self.notes.extend_from_slice(&mtime.1.to_le_bytes());
        let length = acl.map_or(IMPLIED, |acl| acl.len() as u32);
        self.notes.extend_from_slice(&length.to_le_bytes());
        self.notes.extend_from_slice(acl.unwrap_or_default());
        if self.notes.len() < NOTES_BYTES_MAX {
            return Ok(());
        }
        if self.spilled.is_none() {
            let file = File::options().read(true).write(true).create_new(true).open(spill_to)?;
            // Needed no longer than it is open.
            std::fs::remove_file(spill_to)?;
            self.spilled = Some(file);
        }
        if let Some(file) = &mut self.spilled {
            file.write_all(&self.notes)?;
            self.notes.clear();
        }
        Ok(())
    }

    /// Sets them all, below `root`, the ACLs by `setting`, which is told of each. What is no directory any more is left as it is.
    pub(super) fn apply(mut self, root: BorrowedFd<'_>, setting: &mut impl Setting) -> io::Result<()> {
        if let Some(mut file) = self.spilled.take() {
            file.seek(SeekFrom::Start(0))?;
            apply_each(&mut io::BufReader::new(file), root, setting)?;
        }
        apply_each(&mut &self.notes[..], root, setting)
    }
}

/// Is told what directories get.
pub(super) trait Setting {
    /// Sets the default ACL of an open directory, whose path is for messages.
    fn acl(&mut self, dir: BorrowedFd<'_>, path: &[u8], acl: &[u8]) -> io::Result<()>;
    /// A directory got a time, and an ACL perhaps. Its path; `None` = symlinks led there.
    fn set(&mut self, path: Option<&[u8]>, time: (i64, u32), acl: bool) -> io::Result<()>;
}

/// Sets and notes what directories get at last.
pub(super) struct SettingDirs<'a> {
    pub(super) attributes: &'a mut Attributes,
    pub(super) at: &'a Path,
    pub(super) notes: &'a mut Notes,
    pub(super) number: u64,
    /// Whether one was reached by symlinks: which one that was nobody knows.
    pub(super) indirectly: bool,
}

impl Setting for SettingDirs<'_> {
    fn acl(&mut self, dir: BorrowedFd<'_>, path: &[u8], acl: &[u8]) -> io::Result<()> {
        let set = self.attributes.set_default_acl(Made::Named(dir, b"."), acl).map_err(Failed::from);
        set.map_err(|failed| failed.of(path.to_vec(), self.at).carried())
    }

    fn set(&mut self, path: Option<&[u8]>, time: (i64, u32), acl: bool) -> io::Result<()> {
        let Some(path) = path else {
            self.indirectly = true;
            return Ok(());
        };
        let path = if path == b"." { b"" } else { path };
        for act in [Some(Act::Time(time)), acl.then_some(Act::Ask)].into_iter().flatten() {
            self.number += 1;
            self.notes.note(self.number, path, &act)?;
        }
        Ok(())
    }
}

fn apply_each(notes: &mut impl Read, root: BorrowedFd<'_>, setting: &mut impl Setting) -> io::Result<()> {
    let (mut length, mut seconds, mut nanos) = ([0; 4], [0; 8], [0; 4]);
    loop {
        match notes.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut path = vec![0; u32::from_le_bytes(length) as usize];
        notes.read_exact(&mut path)?;
        notes.read_exact(&mut seconds)?;
        notes.read_exact(&mut nanos)?;
        notes.read_exact(&mut length)?;
        let implied = u32::from_le_bytes(length) == IMPLIED;
        let mut acl = vec![0; if implied { 0 } else { u32::from_le_bytes(length) as usize }];
        notes.read_exact(&mut acl)?;
        let dir = if implied {
            beneath::read_dir_beneath(root, &path).map(|dir| (dir, true))
        } else {
            match beneath::open_dir_in_root_for_reading_unless_linked(root, &path) {
                Ok(Some(dir)) => Ok((dir, true)),
                Ok(None) => beneath::open_dir_in_root_for_reading(root, &path).map(|dir| (dir, false)),
                Err(error) => Err(error),
            }
        };
        let (dir, direct) = match dir {
            Ok(dir) => dir,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                _ => return Err(error),
            },
        };
        if !acl.is_empty() {
            setting.acl(dir.as_fd(), &path, &acl)?;
        }
        let time = (i64::from_le_bytes(seconds), u32::from_le_bytes(nanos));
        beneath::set_times_fd(dir.as_fd(), time.0, time.1)?;
        setting.set(direct.then_some(&path), time, !acl.is_empty())?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    struct NoAcls;

    impl Setting for NoAcls {
        fn acl(&mut self, _: BorrowedFd<'_>, _: &[u8], _: &[u8]) -> io::Result<()> {
            panic!("no ACL")
        }

        fn set(&mut self, path: Option<&[u8]>, _: (i64, u32), acl: bool) -> io::Result<()> {
            assert_eq!((path, acl), (Some(&b"a"[..]), false));
            Ok(())
        }
    }

    #[test]
    fn times_are_set_in_order_also_those_that_were_spilled() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let before = std::fs::metadata(dir.path().join("file")).unwrap().mtime();
        let mut times = DirTimes::default();
        let spill = dir.path().join("spill");
        for seconds in 0..60_000 {
            times.note(b"a", (seconds, 7), b"", &spill).unwrap();
            times.note(b"gone", (1, 1), b"acl", &spill).unwrap();
        }
        times.note(b"file", (1, 1), b"", &spill).unwrap();
        assert!(times.spilled.is_some());
        let root = beneath::open_root(dir.path()).unwrap();
        times.apply(root.as_fd(), &mut NoAcls).unwrap();
        let a = std::fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((a.mtime(), a.mtime_nsec()), (59_999, 7));
        assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().mtime(), before);
        assert!(!spill.exists());
    }
}

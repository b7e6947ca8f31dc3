//! Content and attributes of small files, on a second thread.
//!
//! Making a file costs the kernel about as much as filling and dressing it. One thread makes the files, in the order of
//! the tar, which is what decides between entries of one name; the other has each one's descriptor, which is all that the
//! rest needs, and no order matters there: content and attributes of different files have nothing to do with each other.
//! When the second one is behind, the first completes its file itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::Receiver;

use bytes::Bytes;

use super::attributes::{Attributes, Inherited, Made, NotSet};
use super::failed::Failed;
use super::flaw::Flaw;
use super::tar::Member;

/// Largest file that is given away: as large as the buffers it comes in, which are held until it is written.
pub(super) const JOB_BYTES_MAX: u64 = 128 << 10;
/// Files that wait, open, for the second thread. 32: six layers at once stay far below the usual 1024 open files.
pub(super) const JOBS: usize = 32;

/// A file that was made and is to be completed.
pub(super) struct Job {
    pub(super) file: File,
    pub(super) member: Member,
    /// All of it.
    pub(super) content: Vec<Bytes>,
    pub(super) inherited: Inherited,
}

impl Job {
    /// Gives the file all that its entry says.
    pub(super) fn complete(&mut self, attributes: &mut Attributes) -> Result<(), Failed> {
        let mut at = 0;
        for piece in self.content.drain(..) {
            self.file.write_all_at(&piece, at)?;
            at += piece.len() as u64;
        }
        let made = Made::Open(&self.file);
        attributes.set(made, &self.member, self.inherited)?;
        Ok(made.set_times(self.member.mtime)?)
    }
}

/// Completes files until there will be no more; what could not be set of them. `tree` is for messages.
pub(super) fn work(jobs: &Receiver<Job>, mut attributes: Attributes, tree: &Path) -> Result<NotSet, Flaw> {
    for mut job in jobs {
        job.complete(&mut attributes).map_err(|failed| failed.of(job.member.path, tree))?;
    }
    Ok(attributes.not_set)
}

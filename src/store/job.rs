//! Content and attributes of small files, on a second thread.
//!
//! Making a file costs the kernel about as much as filling and dressing it. One thread makes the files, in the order of
//! the tar, which is what decides between entries of one name; the other has each one's descriptor, which is all that the
//! rest needs, and no order matters there: content and attributes of different files have nothing to do with each other.
//! When the second one is behind, the first completes its files itself. They are handed over some at a time: to wake a
//! thread for each one costs a tenth of all the processor time of an unpack.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::Bytes;

use super::attributes::{Attributes, Inherited, Made, NotSet};
use super::failed::Failed;
use super::flaw::Flaw;
use super::tar::Member;
use super::treesums::{self, Act, Fact, Notes};

/// Largest file that is given away: as large as the buffers it comes in, which are held until it is written.
pub(super) const JOB_BYTES_MAX: u64 = 128 << 10;
/// Files handed over at once.
const BATCH_JOBS: usize = 16;
/// Bytes of tar from which on fewer are. What waits holds on to the buffers it came in, and the decoder waits for those:
/// so a batch must not wait for a file that comes long after its first.
const BATCH_TAR_BYTES: u64 = 256 << 10;
/// Batches that wait. With one being gathered and one being written, up to 64 files are open: six layers at once stay
/// well below the usual 1024.
const BATCHES: usize = 2;

/// A file that was made and is to be completed.
pub(super) struct Job {
    pub(super) file: File,
    /// Where it is, and what number is this.
    pub(super) path: Vec<u8>,
    pub(super) number: u64,
    pub(super) member: Member,
    /// All of it.
    pub(super) content: Vec<Bytes>,
    pub(super) inherited: Inherited,
}

impl Job {
    /// Gives the file all that its entry says.
    fn complete(&mut self, attributes: &mut Attributes, notes: &mut Notes) -> Result<(), Failed> {
        let (mut at, mut sum) = (0, crc32fast::Hasher::new());
        for piece in self.content.drain(..) {
            sum.update(&piece);
            self.file.write_all_at(&piece, at)?;
            at += piece.len() as u64;
        }
        let made = Made::Open(&self.file);
        let set = attributes.set(made, &self.member, self.inherited)?;
        made.set_times(self.member.mtime)?;
        let fact = Fact {
            size: at,
            content: Some(sum.finalize()),
            ..Fact::made(treesums::Kind::File, &self.member, &set)
        };
        Ok(notes.note(self.number, &self.path, &Act::Made(fact))?)
    }
}

/// The way to the second thread.
pub(super) struct Helper {
    to: SyncSender<Vec<Job>>,
    batch: Vec<Job>,
    /// Where in the tar its first file is.
    begins: u64,
}

/// A way to a second thread, which is to [`work`] on what comes.
pub(super) fn helper() -> (Helper, Receiver<Vec<Job>>) {
    let (to, jobs) = sync_channel(BATCHES);
    (Helper { to, batch: Vec::with_capacity(BATCH_JOBS), begins: 0 }, jobs)
}

impl Helper {
    /// Takes a job, whose content ends at this place in the tar; what the second thread has no time for is done here,
    /// with these attributes. On a failure the path of the entry is said.
    pub(super) fn give(
        &mut self,
        job: Job,
        place: u64,
        attributes: &mut Attributes,
        notes: &mut Notes,
    ) -> Result<(), (Vec<u8>, Failed)> {
        if self.batch.is_empty() {
            self.begins = place;
        }
        self.batch.push(job);
        if self.batch.len() < BATCH_JOBS && place - self.begins < BATCH_TAR_BYTES {
            return Ok(());
        }
        self.flush(attributes, notes)
    }

    /// Hands over what was gathered; to be called after the last job.
    pub(super) fn flush(
        &mut self,
        attributes: &mut Attributes,
        notes: &mut Notes,
    ) -> Result<(), (Vec<u8>, Failed)> {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH_JOBS));
        match self.to.try_send(batch) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(batch)) => complete(batch, attributes, notes),
            // It failed, and will tell why.
            Err(TrySendError::Disconnected(_)) => Err((Vec::new(), Flaw::Cut.into())),
        }
    }
}

fn complete(
    batch: Vec<Job>,
    attributes: &mut Attributes,
    notes: &mut Notes,
) -> Result<(), (Vec<u8>, Failed)> {
    for mut job in batch {
        job.complete(attributes, notes).map_err(|failed| (job.member.path, failed))?;
    }
    Ok(())
}

/// Completes files until there will be no more; what could not be set of them, and what they are. `tree` is for messages.
pub(super) fn work(
    jobs: &Receiver<Vec<Job>>,
    mut attributes: Attributes,
    mut notes: Notes,
    tree: &Path,
) -> Result<(NotSet, Notes), Flaw> {
    for batch in jobs {
        complete(batch, &mut attributes, &mut notes).map_err(|(path, failed)| failed.of(path, tree))?;
    }
    Ok((attributes.not_set, notes))
}

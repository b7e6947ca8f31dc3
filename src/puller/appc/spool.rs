//! Archives on their way into the spool, and what is known of those that lie there.
//!
//! Everything about one address happens under the lock on its unfinished file. An archive gets a name of its own when it is
//! whole, so one that was resolved stays what it was until it is swept, whatever its address gives by then. Beside it lies what
//! its server said of it, by which it is asked whether it is still the same; that is written before the archive gets its name,
//! so that what has a name is known.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use keelblock_actors::image::digest::Digest;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::error::PlaceError;
use super::web::Validators;
use crate::base64;
use crate::puller::registry::Task;
use crate::spool::{self, LOCK_POLL, SPOOL_IDLE};

/// What is known of an archive that lies here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    /// The archive's own name in the spool.
    pub(super) file: String,
    pub(super) size: u64,
    pub(super) validators: Validators,
    /// When its server last said that this is what there is; nanoseconds since 1970.
    pub(super) asked_ns: u64,
    pub(super) signature: Option<KnownSignature>,
}

/// What is known of its signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KnownSignature {
    /// In base64; none when there is no signature.
    pub(super) bytes: Option<String>,
    pub(super) validators: Validators,
    pub(super) asked_ns: u64,
}

impl KnownSignature {
    pub(super) fn new(bytes: Option<&[u8]>, validators: Validators) -> Self {
        Self { bytes: bytes.map(base64::encode), validators, asked_ns: now() }
    }

    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        base64::decode(self.bytes.as_deref()?)
    }
}

/// Nanoseconds since 1970. Compared only with those of this machine and boot.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The right to bring the archive of one address, until dropped: nobody else on this spool is at it. What was written and not
/// finished goes with it.
pub(super) struct Claim {
    spool: PathBuf,
    key: String,
    part: PathBuf,
    file: File,
    finished: bool,
}

impl Claim {
    /// Waits for it.
    ///
    /// # Cancel safety
    /// Dropping the future gives it up.
    pub(super) async fn take(spool: &Path, address: &str) -> Result<Self, PlaceError> {
        let failed = |path: &Path, source| PlaceError::Spool { path: path.to_owned(), source };
        spool::make(spool).map_err(|source| failed(spool, source))?;
        let key = Digest::of(address.as_bytes()).hex();
        let part = spool::unfinished(spool, &key);
        loop {
            if let Some(file) = spool::try_lock(&part).map_err(|source| failed(&part, source))? {
                return Ok(Self { spool: spool.to_owned(), key, part, file, finished: false });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Where it is written.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn index(&self) -> PathBuf {
        spool::finished(&self.spool, &self.key, "json")
    }

    fn failed(&self, source: io::Error) -> PlaceError {
        PlaceError::Spool { path: self.part.clone(), source }
    }

    /// What lies here of this address, whole, and marked as asked for now.
    pub(super) fn known(&self) -> Option<Known> {
        let index = self.index();
        let known: Known = serde_json::from_slice(&fs::read(&index).ok()?).ok()?;
        let file = spool::reuse(&self.archive(&known)).ok()?;
        let _ = spool::reuse(&index);
        (file.metadata().ok()?.len() == known.size).then_some(known)
    }

    /// Where the archive lies that this is known of.
    pub(super) fn archive(&self, known: &Known) -> PathBuf {
        // It was written by us, and still names no place but the spool.
        let name: String = known.file.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        spool::finished(&self.spool, &name, "aci")
    }

    /// What is to be known of the archive that was just written, whole.
    pub(super) fn describe(&self, validators: Validators) -> Result<Known, PlaceError> {
        let written = self.file.metadata().map_err(|source| self.failed(source))?;
        // No other file here has this number as long as this one is there.
        let file = format!("{}-{:x}", self.key, written.ino());
        Ok(Known { file, size: written.len(), validators, asked_ns: now(), signature: None })
    }

    /// Keeps what was written, and what is known of it.
    pub(super) fn finish(mut self, known: &Known) -> Result<PathBuf, PlaceError> {
        self.note(known)?;
        let archive = self.archive(known);
        fs::rename(&self.part, &archive).map_err(|source| self.failed(source))?;
        self.finished = true;
        Ok(archive)
    }

    /// Keeps what lay here already, and what is known of it now.
    pub(super) fn keep(self, known: &Known) -> Result<PathBuf, PlaceError> {
        self.note(known)?;
        Ok(self.archive(known))
    }

    fn note(&self, known: &Known) -> Result<(), PlaceError> {
        let index = self.index();
        let failed = |source| PlaceError::Spool { path: index.clone(), source };
        let text = serde_json::to_vec(known).map_err(|error| failed(error.into()))?;
        // Whoever reads it has the claim; what a crash leaves of it is no JSON and is not used.
        fs::write(&index, text).map_err(failed)
    }

    /// Removes what nobody asked for lately.
    pub(super) async fn sweep(&self) -> Result<(), PlaceError> {
        let spool = self.spool.clone();
        let swept = Task::spawn_blocking(&Handle::current(), move || spool::sweep(&spool, SPOOL_IDLE)).await;
        swept.map(drop).map_err(|why| PlaceError::Lost(why.to_string()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.finished {
            // Still locked: nobody else has begun to write it.
            let _ = fs::remove_file(&self.part);
        }
    }
}

//! Reads layers as the disk has them, and compares them with what was written.
//!
//! An image is verified against the checksums of its blocks (`sums`), those against their digest in `layer.json`. A tree
//! is verified against what was kept of each of its names (`treesums`). They find what rotted; who can write the one can write the
//! others. `layer.json` has a sum of its own;
//! one of before there were such sums is believed if it can be read and names its layer. Nothing can be said of trees of before they had sums.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use keelblock_actors::error::{StoreError, chain};
use keelblock_actors::image::digest::{DiffId, Hasher};
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::stop::Stop;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::form::{Form, LayerRecord, SUM_BYTES, SUMMED_BYTES};
use super::image::ImageFile;
use super::layout::{IMAGE, LAYER_RECORD, Layout, SUMS};
use super::pin;
use super::treesums::{self, TreeSums};

/// Bytes of an image read at once. 1 MiB: an end is asked for and the rate kept in steps of it, and a disk reads no faster
/// by larger ones.
const PIECE_BYTES: usize = 1 << 20;
/// How long it is slept at once for the rate: a stop is seen as soon.
const NAP: Duration = Duration::from_millis(100);

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it was written.
    Whole,
    /// It has no sums: a tree of a version that kept none, or on a filesystem that does not keep owners, modes or times.
    NotVerifiable,
    /// Not what was written; why.
    Bad(String),
}

/// A layer that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// Which.
    pub diff_id: DiffId,
    /// Its form; `None` = its record cannot be read.
    pub form: Option<Form>,
    /// Bytes that were read.
    pub bytes: u64,
    /// How it is.
    pub verdict: Verdict,
}

/// Looks at one layer, at so many bytes a second (0 = no limit). `None`: it is not there, or was told to stop.
pub(super) fn scrub(
    layout: &Layout,
    diff: &DiffId,
    rate: u64,
    stop: &Stop,
) -> Result<Option<Scrubbed>, StoreError> {
    // Else a prune could take files from under us, which would look like damage.
    let _pin = pin::pin(layout, &[LayerKey::Diff(diff.clone())])?;
    let at = layout.layer(diff);
    let bad =
        |form, why: String| Scrubbed { diff_id: diff.clone(), form, bytes: 0, verdict: Verdict::Bad(why) };
    let record = match LayerRecord::read(layout, diff) {
        Ok(record) => record,
        Err(StoreError::Missing { .. }) if !at.exists() => return Ok(None),
        Err(StoreError::Missing { .. }) => {
            return Ok(Some(bad(None, format!("{LAYER_RECORD} is not there"))));
        }
        Err(error @ StoreError::Damaged { .. }) => return Ok(Some(bad(None, chain(&error)))),
        Err(StoreError::Io { source, .. }) if is_damage(&source) => {
            return Ok(Some(bad(None, format!("{LAYER_RECORD} cannot be read: {source}"))));
        }
        Err(error) => return Err(error),
    };
    let mut bytes = 0;
    let verdict = match (record.form, &record.image) {
        (Form::Tree, _) if record.tree.is_none() => Verdict::NotVerifiable,
        (Form::Erofs, None) => Verdict::Bad(format!("{LAYER_RECORD} names no image")),
        (_, image) => {
            match verify(&at, image.as_ref(), record.tree.as_ref(), &mut bytes, &Pace::new(rate, stop)) {
                Ok(None) => Verdict::Whole,
                Ok(Some(why)) => Verdict::Bad(why),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
                Err(error) if is_damage(&error) => Verdict::Bad(format!("cannot be read: {error}")),
                // Says nothing of the layer: no descriptor was left, perhaps.
                Err(source) => return Err(StoreError::Io { act: "verify", path: at, source }),
            }
        }
    };
    Ok(Some(Scrubbed { diff_id: diff.clone(), form: Some(record.form), bytes, verdict }))
}

/// Whether a failure to read is the disk's, or the filesystem's.
pub(super) fn is_damage(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(errno, Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG))
}

/// What is wrong with what a layer is, if anything is; `Interrupted` when it was told to stop.
fn verify(
    dir: &Path,
    image: Option<&ImageFile>,
    tree: Option<&TreeSums>,
    read: &mut u64,
    pace: &Pace<'_>,
) -> io::Result<Option<String>> {
    match (image, tree) {
        (Some(image), _) => verify_image(dir, image, read, pace),
        (None, Some(tree)) => treesums::verify(dir, tree, read, pace),
        (None, None) => Ok(None),
    }
}

fn verify_image(
    dir: &Path,
    image: &ImageFile,
    read: &mut u64,
    pace: &Pace<'_>,
) -> io::Result<Option<String>> {
    let (Some(mut file), Some(mut sums)) = (open(&dir.join(IMAGE))?, open(&dir.join(SUMS))?) else {
        return Ok(Some(format!("{IMAGE} or {SUMS} is not there")));
    };
    let sums_bytes = image.bytes.div_ceil(SUMMED_BYTES).saturating_mul(SUM_BYTES);
    for (name, file, bytes) in [(IMAGE, &file, image.bytes), (SUMS, &sums, sums_bytes)] {
        let found = file.metadata()?.len();
        if found != bytes {
            return Ok(Some(format!("{name} has {found} bytes, not {bytes}")));
        }
    }
    let mut hasher = Hasher::sha256();
    let mut piece = vec![0; PIECE_BYTES];
    let mut expected = vec![0; PIECE_BYTES / SUMMED_BYTES as usize * SUM_BYTES as usize];
    let mut wrong = None;
    while *read < image.bytes {
        pace.wait(*read)?;
        let length = (image.bytes - *read).min(PIECE_BYTES as u64) as usize;
        let (piece, expected) = (
            &mut piece[..length],
            &mut expected[..length.div_ceil(SUMMED_BYTES as usize) * SUM_BYTES as usize],
        );
        sums.read_exact(expected)?;
        hasher.update(expected);
        file.read_exact(piece)?;
        let blocks = piece.chunks(SUMMED_BYTES as usize).zip(expected.chunks(SUM_BYTES as usize));
        for (number, (block, sum)) in (*read / SUMMED_BYTES..).zip(blocks) {
            if crc32fast::hash(block).to_le_bytes() != *sum {
                wrong.get_or_insert(number);
            }
        }
        *read += length as u64;
    }
    // First, since a sum that rotted accuses a block that did not.
    if hasher.finish() != image.sums {
        return Ok(Some(format!("{SUMS} is not what {LAYER_RECORD} says")));
    }
    Ok(wrong.map(|number| format!("block {number} of {IMAGE} is not what {SUMS} says")))
}

/// A file, of which the next reads ask the disk: pages that are on it are dropped from memory, others cannot differ yet.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    // Where it cannot be done, memory is what readers get, too.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    Ok(Some(file))
}

/// Keeps to a rate.
pub(super) struct Pace<'a> {
    began: Instant,
    rate: u64,
    stop: &'a Stop,
}

impl<'a> Pace<'a> {
    fn new(rate: u64, stop: &'a Stop) -> Self {
        Self { began: Instant::now(), rate, stop }
    }

    /// Returns when so many bytes may have been read.
    pub(super) fn wait(&self, bytes: u64) -> io::Result<()> {
        loop {
            if self.stop.is_raised() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let due = match self.rate {
                0 => Duration::ZERO,
                rate => Duration::from_secs_f64(bytes as f64 / rate as f64),
            };
            match due.checked_sub(self.began.elapsed()) {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(left) => std::thread::sleep(left.min(NAP)),
            }
        }
    }
}

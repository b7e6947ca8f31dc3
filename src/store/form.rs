//! What a committed layer is on disk, as its `layer.json` says.
//!
//! A layer is something that can be shown as a read-only directory: an EROFS image, which is mounted for as long as the
//! [`LayerDir`]'s hold is there, or a tree that is that directory. Both may be in one store. An image is one file: made
//! without an inode for each entry, removed by one unlink, synced by one fdatasync. A tree needs no mount, and so no root.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::Compression;
use keelblock_actors::ports::{Hold, LayerDir};
use serde::{Deserialize, Serialize};

use super::attributes::NotSet;
use super::image::ImageFile;
use super::layout::{IMAGE, LAYER_RECORD, Layout, SUMS, TREE};
use super::shown::Mounts;
use super::treesums::TreeSums;
use super::whiteout::Namespace;

/// Bytes of an image that one of its sums is about, and bytes of that sum.
pub(super) const SUMMED_BYTES: u64 = 4096;
pub(super) const SUM_BYTES: u64 = 4;

/// How a layer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Unpacked below `tree/`.
    Tree,
    /// An EROFS image, `layer.erofs`.
    Erofs,
}

/// In which form layers are kept that come from now on: `--layer_form`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerForm {
    /// As images where they can be mounted here, else as trees.
    #[default]
    Auto,
    /// As images.
    Erofs,
    /// As trees.
    Tree,
}

/// `layer.json`. Behind its last field is a sum of all before it (`seal`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// How it is kept.
    pub form: Form,
    /// What it is; also the name of its directory.
    pub diff_id: DiffId,
    /// Bytes of file content, holes and second names of a file not counted.
    pub bytes: u64,
    /// Entries of its tar.
    pub entries: u64,
    /// The blob that brought it, where its digest was known.
    pub blob: Option<Digest>,
    /// How that was compressed.
    pub compression: Compression,
    /// How many directories were made before an entry of their own came, if one ever did: root's, mode 0755.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub implied_dirs: u64,
    /// Those that never got one, relative to the root: backends give them the attributes of the same directory in a
    /// lower layer. At most 4 MiB of them; a `\` stands for itself doubled, and `\xNN` for a byte that is not UTF-8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implied: Vec<String>,
    /// Whether there are whiteouts in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whiteouts: bool,
    /// Which commit made it: the name it had in staging, so that what is said of this one is never taken for the word on
    /// a later layer of the same diff ID. Empty = a version of this program that kept no journal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// What the layer asked for and did not get.
    #[serde(default, skip_serializing_if = "NotSet::is_empty")]
    pub not_set: NotSet,
    /// Of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageFile>,
    /// Of a tree, what is kept to verify it; `None` = a version of this program made it that kept nothing, or the filesystem
    /// does not keep what it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeSums>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl LayerRecord {
    /// That of a committed layer.
    pub(super) fn read(layout: &Layout, diff: &DiffId) -> Result<Self, StoreError> {
        let path = layout.layer_record(diff);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { layer: diff.clone() });
            }
            Err(source) => return Err(StoreError::Io { act: "read", path, source }),
        };
        let damaged = |source| StoreError::Damaged { path: path.clone(), source };
        let record: Self = match opened(&bytes) {
            Ok(None) => serde_json::from_slice(&bytes),
            Ok(Some(document)) => serde_json::from_slice(&document),
            Err(why) => return Err(damaged(why.into())),
        }
        .map_err(|error| damaged(error.into()))?;
        if record.diff_id != *diff {
            return Err(damaged(format!("it is that of {}", record.diff_id).into()));
        }
        Ok(record)
    }

    /// Writes it into a layer still in staging.
    pub(super) fn write(&self, staged: &Path) -> io::Result<()> {
        std::fs::write(staged.join(LAYER_RECORD), seal(serde_json::to_vec(self)?))
    }

    /// Whether the files that make this layer are all in its directory, as far as names and sizes can tell.
    pub(super) fn has_its_files(&self, dir: &Path) -> bool {
        let is = |name, bytes| {
            std::fs::symlink_metadata(dir.join(name))
                .is_ok_and(|found| found.is_file() && found.len() == bytes)
        };
        match self.form {
            Form::Tree => {
                let tree = std::fs::symlink_metadata(dir.join(TREE)).is_ok_and(|tree| tree.is_dir());
                tree && self.tree.as_ref().is_none_or(|tree| is(SUMS, tree.bytes))
            }
            Form::Erofs => {
                let sums_bytes = |image: &ImageFile| image.bytes.div_ceil(SUMMED_BYTES) * SUM_BYTES;
                self.image.as_ref().is_some_and(|image| is(IMAGE, image.bytes) && is(SUMS, sums_bytes(image)))
            }
        }
    }

    /// Shows the layer.
    pub(super) fn show(
        &self,
        layout: &Layout,
        mounts: &Arc<Mounts>,
        namespace: Namespace,
    ) -> Result<LayerDir, StoreError> {
        let at = layout.layer(&self.diff_id);
        let (path, hold): (_, Arc<dyn Hold>) = match self.form {
            Form::Tree => (at.join(TREE), Arc::new(())),
            Form::Erofs => {
                let ahead = self.image.as_ref().map(ImageFile::read_ahead).unwrap_or_default();
                mounts.show(&self.diff_id, &at.join(IMAGE), &ahead)?
            }
        };
        Ok(LayerDir {
            diff_id: self.diff_id.clone(),
            path,
            user_xattrs: namespace == Namespace::User,
            whiteouts: self.whiteouts,
            implied: self.implied.iter().map(|path| read(path)).collect(),
            hold,
        })
    }
}

/// What comes before the sum at the end of a record, and after it.
const SEAL: (&[u8], &[u8]) = (b",\"sum\":\"", b"\"}");
/// Digits of the sum.
const SEAL_DIGITS: usize = 8;

/// A JSON object with one more field, the last: a CRC-32 of all the bytes before that field.
fn seal(mut document: Vec<u8>) -> Vec<u8> {
    document.pop();
    let digits = format!("{:08x}", crc32fast::hash(&document));
    [&document, SEAL.0, digits.as_bytes(), SEAL.1].concat()
}

/// The object that was sealed, if its sum is right; `None` = it has none: a version of this program wrote it that knew of no
/// sums. One whose last field is not quite what [`seal`] writes is no such record either: its fields are known, and another
/// is an error.
fn opened(sealed: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let parts = sealed.strip_suffix(SEAL.1).and_then(|rest| rest.split_last_chunk::<SEAL_DIGITS>());
    let Some((document, digits)) =
        parts.and_then(|(rest, digits)| Some((rest.strip_suffix(SEAL.0)?, digits)))
    else {
        return Ok(None);
    };
    if format!("{:08x}", crc32fast::hash(document)).as_bytes() != digits {
        return Err("its sum is not that of its content");
    }
    Ok(Some([document, b"}"].concat()))
}

/// A path of any bytes as JSON can hold it.
pub(super) fn written(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// The same again as a path; what [`written`] never writes stands for itself.
fn read(text: &str) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = match after {
            [b'\\', ..] => Some((b'\\', 1)),
            [b'x', high, low, ..] => {
                let digit = |digit: u8| char::from(digit).to_digit(16);
                digit(*high).zip(digit(*low)).map(|(high, low)| ((high << 4 | low) as u8, 3))
            }
            _ => None,
        };
        let (byte, skip) = escaped.filter(|_| *byte == b'\\').unwrap_or((*byte, 0));
        path.push(byte);
        rest = &after[skip..];
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn no_bit_of_a_sealed_record_can_flip_unseen() {
        let document = br#"{"form":"tree","entries":17,"whiteouts":true}"#;
        let sealed = seal(document.to_vec());
        assert_eq!(opened(&sealed), Ok(Some(document.to_vec())));
        assert_eq!(opened(document), Ok(None), "of before there were sums");
        for bit in 0..sealed.len() * 8 {
            let mut rotten = sealed.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            // Without its sum it is taken for an older one, so it must be no object of fields that are known.
            let taken = opened(&rotten).is_ok_and(|found| {
                let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&rotten);
                found.is_some() || object.is_ok_and(|fields| fields.len() == 3)
            });
            assert!(!taken, "{}", String::from_utf8_lossy(&rotten));
        }
    }

    #[test]
    fn paths_of_any_bytes_come_back_from_a_record() {
        for path in [&b"a/b"[..], b"", b"a\\b", b"\\x41", b"\xff/\xfe\\", "\u{e9}\\\\".as_bytes(), b"\xc3"] {
            assert_eq!(read(&written(path)).as_os_str().as_bytes(), path);
        }
        assert_eq!(written(b"a\\\xff"), "a\\\\\\xff");
    }
}

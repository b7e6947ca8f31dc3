//! A tar made an image without a store, for the tests that compare images and trees.

use std::path::Path;

use bytes::Bytes;
use keelblock_actors::error::chain;
use keelblock_actors::image::plan::LayerKey;

use super::{ImageApplier, ImageFile};
use crate::erofs::Watch;
use crate::limits::Limits;
use crate::store::NotSet;
use crate::store::flaw::Flaw;
use crate::store::meaning::Names;
use crate::store::tar::{Bounds, Reader, Source};
use crate::store::whiteout::Namespace;

/// What a layer's record says of it, in either form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Directories that only names of others told of, at first.
    pub implied_dirs: u64,
    /// Those that never had an entry.
    pub implied: Vec<String>,
    /// Whether it has whiteouts.
    pub whiteouts: bool,
    /// What could not be set.
    pub not_set: NotSet,
}

struct Whole<'a>(&'a [u8]);

impl Source for Whole<'_> {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        Ok(&self.0[..self.0.len().min(64 << 10)])
    }

    fn consume(&mut self, bytes: usize) {
        self.0 = &self.0[bytes..];
    }

    fn lend(&mut self, bytes: usize) -> Bytes {
        let (lent, rest) = self.0.split_at(bytes);
        self.0 = rest;
        Bytes::copy_from_slice(lent)
    }
}

/// Makes an image of a tar.
///
/// # Errors
/// In words, as those that refuse the layer.
pub fn image(
    tar: &[u8],
    at: &Path,
    sums: &Path,
    limits: &Limits,
    watch: impl Watch + Send,
) -> Result<(Layer, ImageFile), String> {
    let apply = || {
        let written = |source| Flaw::Write { path: at.to_owned(), source };
        let (at, sums) = (at.to_owned(), sums.to_owned());
        let mut applier =
            ImageApplier::new(at, sums, Namespace::Trusted, Names::Signs, limits, Box::new(watch))
                .map_err(written)?;
        let bounds = Bounds {
            entries_max: limits.layer_entries_max,
            path_bytes_max: limits.path_bytes_max,
            xattr_bytes_max: limits.xattr_bytes_max,
            pax_bytes_max: limits.pax_bytes_max,
        };
        let mut reader = Reader::new(Whole(tar), bounds);
        while let Some(member) = reader.next()? {
            applier.apply(member, &mut reader)?;
        }
        applier.finish()
    };
    let key = LayerKey::Blob(keelblock_actors::image::digest::Digest::of(tar));
    let (applied, file) = apply().map_err(|flaw| chain(&flaw.of(&key)))?;
    let layer = Layer {
        bytes: applied.bytes,
        entries: applied.entries,
        implied_dirs: applied.implied_dirs,
        implied: applied.implied,
        whiteouts: applied.whiteouts,
        not_set: applied.not_set,
    };
    Ok((layer, file))
}

//! Blobs in files and archives on this machine.
//!
//! Opens, positions and reads; follows what the plan says and verifies nothing but that the bytes are there. An archive
//! may have been replaced since its image was resolved: then the digest check of the store fails, or the file is too
//! short, which is said here. Only regular files are opened, so a pipe or device behind a symlink cannot hang a pull.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keelblock_actors::error::{FetchError, quote};
use keelblock_actors::image::plan::{LayerSource, LayerSpec, SourceKind};
use keelblock_actors::ports::{Blob, Puller};

/// The puller of [`SourceKind::Local`]. Holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalPuller;

/// Why a local blob could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalError {
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is not a regular file")]
    NotAFile { path: PathBuf },
    #[error(
        "{path} has {length} bytes, but the layer should end at byte {end}: it was replaced since the image was resolved"
    )]
    Replaced { path: PathBuf, length: u64, end: u64 },
    #[error("{0} is no source on this machine")]
    Elsewhere(String),
}

impl LocalError {
    /// Whether there is no such file.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the source has no such blob, rather than that this machine failed.
    pub(super) fn is_of_the_source(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotAFile { .. } | Self::Replaced { .. } => true,
            Self::Elsewhere(_) => false,
        }
    }
}

impl Puller for LocalPuller {
    fn kind(&self) -> SourceKind {
        SourceKind::Local
    }

    /// A file's name is no word on its content.
    fn authorize(&self, _: &LayerSpec) -> BoxFuture<'static, Result<bool, FetchError>> {
        async { Ok(false) }.boxed()
    }

    fn open(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<Blob, FetchError>> {
        let (source, key) = (layer.source.clone(), layer.key.clone());
        async move {
            open(&source).await.map_err(|error| {
                let (blob, from) = (key.to_string(), quote(&source.to_string()));
                if error.is_of_the_source() {
                    FetchError::Refused { blob, from, source: error.into() }
                } else {
                    FetchError::Broken { blob, from, source: error.into() }
                }
            })
        }
        .boxed()
    }
}

async fn open(source: &LayerSource) -> Result<Blob, LocalError> {
    let (path, extent) = match source {
        LayerSource::File { path } => (path, None),
        LayerSource::Archive { path, offset, size, .. } => (path, Some((*offset, *size))),
        LayerSource::Registry(_) | LayerSource::Aci { .. } => {
            return Err(LocalError::Elsewhere(source.to_string()));
        }
    };
    let (file, length) = regular(path).await?;
    let (offset, size) = extent.unwrap_or((0, length));
    let end = offset.saturating_add(size);
    if end > length {
        return Err(LocalError::Replaced { path: path.clone(), length, end });
    }
    Ok(Blob { reader: Box::new(Extract::new(file, offset, size)), lease: Box::new(()), size: Some(size) })
}

/// All of a regular file.
pub(super) async fn whole(path: &Path) -> Result<Blob, LocalError> {
    let (file, size) = regular(path).await?;
    Ok(Blob { reader: Box::new(Extract::new(file, 0, size)), lease: Box::new(()), size: Some(size) })
}

/// A regular file, open, and its length.
async fn regular(path: &Path) -> Result<(File, u64), LocalError> {
    let failed = |source| LocalError::Open { path: path.to_owned(), source };
    // Looked at before it is opened: opening a pipe waits for its writer.
    if !tokio::fs::metadata(path).await.map_err(failed)?.is_file() {
        return Err(LocalError::NotAFile { path: path.to_owned() });
    }
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    Ok((file.into_std().await, length))
}

/// A part of a file, by positioned reads: readers of one file do not disturb each other. A file that ends too early is
/// an error.
pub(crate) struct Extract<F> {
    file: F,
    at: u64,
    left: u64,
}

impl<F: Borrow<File>> Extract<F> {
    pub(crate) fn new(file: F, offset: u64, size: u64) -> Self {
        Self { file, at: offset, left: size }
    }
}

impl<F: Borrow<File>> Read for Extract<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.borrow().read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            let text = format!("the file ends {} bytes early", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

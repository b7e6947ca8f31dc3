//! Archives that are files of this machine: asked for by path, or found in a directory of simple discovery. They stay where they
//! are.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{PlaceError, Tried, nowhere};
use super::fetch::SIGNATURE_BYTES_MAX;
use crate::provider::appc::ports::{AciFetchError, FetchedAci, Signature};
use tokio::io::AsyncReadExt;

/// The archive, and its signature beside it.
pub(super) async fn fetch(
    path: PathBuf,
    size: Option<u64>,
    signature: bool,
) -> Result<FetchedAci, AciFetchError> {
    let place = path.display().to_string();
    match found(&path, size, signature).await {
        Ok((path, signature)) => Ok(FetchedAci { path, from: place, bytes_fetched: 0, signature }),
        Err((place, error)) => Err(nowhere(vec![Tried { place, error }])),
    }
}

async fn found(
    path: &Path,
    size: Option<u64>,
    signature: bool,
) -> Result<(PathBuf, Option<Signature>), (String, PlaceError)> {
    let place = || path.display().to_string();
    let actual = regular(path).await.map_err(|error| (place(), error))?;
    if let Some(expected) = size.filter(|&expected| expected != actual) {
        return Err((place(), PlaceError::WrongSize { expected, actual }));
    }
    let absolute = std::path::absolute(path).map_err(|error| (place(), PlaceError::Read(error)))?;
    if !signature {
        return Ok((absolute, None));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".asc");
    let beside = PathBuf::from(beside);
    let from = beside.display().to_string();
    match signature_in(&beside).await {
        Ok(bytes) => Ok((absolute, Some(Signature { bytes, from }))),
        Err(PlaceError::NoFile) => Ok((absolute, None)),
        Err(error) => Err((from, error)),
    }
}

/// The length of a regular file. Looked at before it is opened: opening a pipe waits for its writer.
async fn regular(path: &Path) -> Result<u64, PlaceError> {
    match tokio::fs::metadata(path).await {
        Ok(meta) if meta.is_file() => Ok(meta.len()),
        Ok(_) => Err(PlaceError::NotAFile),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PlaceError::NoFile),
        Err(error) => Err(PlaceError::Read(error)),
    }
}

async fn signature_in(path: &Path) -> Result<Vec<u8>, PlaceError> {
    regular(path).await?;
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await.map_err(PlaceError::Read)?;
    file.take(SIGNATURE_BYTES_MAX + 1).read_to_end(&mut bytes).await.map_err(PlaceError::Read)?;
    match bytes.len() as u64 > SIGNATURE_BYTES_MAX {
        true => Err(PlaceError::TooLarge { limit: SIGNATURE_BYTES_MAX, flag: None }),
        false => Ok(bytes),
    }
}

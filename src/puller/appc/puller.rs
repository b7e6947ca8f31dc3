//! The blobs of ACIs: files that were brought when their images were resolved.

use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keelblock_actors::error::{Cause, FetchError, quote};
use keelblock_actors::image::plan::{LayerSource, LayerSpec, SourceKind};
use keelblock_actors::ports::{Blob, Puller};

use crate::puller::local::{self, LocalError};
use crate::spool;

/// The puller of [`SourceKind::Discovery`]. Holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppcPuller;

#[derive(Debug, thiserror::Error)]
enum AppcPullError {
    #[error(
        "the archive that was fetched is no longer in {path}: hours have passed since; pull the image again"
    )]
    Gone { path: PathBuf },
    #[error("{0} is no ACI")]
    Elsewhere(String),
}

impl Puller for AppcPuller {
    fn kind(&self) -> SourceKind {
        SourceKind::Discovery
    }

    /// A file's name is no word on its content.
    fn authorize(&self, _: &LayerSpec) -> BoxFuture<'static, Result<bool, FetchError>> {
        async { Ok(false) }.boxed()
    }

    fn open(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<Blob, FetchError>> {
        let (source, blob) = (layer.source.clone(), layer.key.to_string());
        async move {
            let from = quote(&source.to_string());
            let LayerSource::Aci { path, .. } = source else {
                let source: Cause = AppcPullError::Elsewhere(from.clone()).into();
                return Err(FetchError::Broken { blob, from, source });
            };
            // So that it is not swept while it is read by name again.
            let _ = spool::reuse(&path);
            local::whole(&path).await.map_err(|error| match error {
                error if error.is_missing() => {
                    FetchError::Refused { blob, from, source: AppcPullError::Gone { path }.into() }
                }
                error if LocalError::is_of_the_source(&error) => {
                    FetchError::Refused { blob, from, source: error.into() }
                }
                error => FetchError::Broken { blob, from, source: error.into() },
            })
        }
        .boxed()
    }
}

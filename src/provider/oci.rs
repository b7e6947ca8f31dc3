//! The OCI provider: image layouts, as directory and as tar.

use futures_util::future::BoxFuture;
use keelblock_actors::error::ResolveError;
use keelblock_actors::image::name::{ImageKind, ImageName, ImageRequest};
use keelblock_actors::image::plan::ImagePlan;
use keelblock_actors::ports::Provider;
use tokio::runtime::Handle;

use super::archive::Archives;
use super::docker::{no_provider, reading};

/// Resolves `oci:` and `oci-archive:` names.
pub struct OciProvider {
    handle: Handle,
    archives: Archives,
}

impl OciProvider {
    /// Reads layouts on the blocking threads of this runtime.
    pub fn new(handle: Handle, archives: Archives) -> Self {
        Self { handle, archives }
    }
}

impl Provider for OciProvider {
    fn kind(&self) -> ImageKind {
        ImageKind::Oci
    }

    fn resolve(&self, request: ImageRequest) -> BoxFuture<'static, Result<ImagePlan, ResolveError>> {
        match request.name {
            ImageName::OciLayout { path, tag } => reading(&self.handle, &self.archives, move |archives| {
                archives.oci_layout(&path, tag.as_deref())
            }),
            ImageName::OciArchive { path, tag } => reading(&self.handle, &self.archives, move |archives| {
                archives.oci_archive(&path, tag.as_deref())
            }),
            other => no_provider(other),
        }
    }

    /// What is in files is asked for there, each time.
    fn fits(&self, _: &ImagePlan) -> bool {
        true
    }

    /// Files are read by whoever may read them, each time.
    fn authorize(&self, _: ImageRequest, _: &ImagePlan) -> BoxFuture<'static, Result<(), ResolveError>> {
        Box::pin(async { Ok(()) })
    }
}

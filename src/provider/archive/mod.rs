//! Image archives and layouts on this machine: `docker save` archives of both forms, OCI image layouts as directory
//! and as tar.
//!
//! From a path (or a directory and a name, as with the local puller of Mesos) to an
//! [`ImagePlan`] whose layers are extents of the archive or files of the layout. Layer bytes are not read here, with
//! two exceptions: a compressed archive is decompressed to a spool file, and the old `docker save` form, which has no diff
//! IDs, has its layers hashed. Nothing is ever extracted; names of members are keys of a map and never become paths.
//!
//! - `index` and `extended`: where the members of a tar lie;
//! - `spool`: compressed archives;
//! - `docker_save`: `manifest.json`, or `repositories` and parent chains;
//! - `oci`: `index.json`, manifests and blobs.

mod docker_save;
mod error;
mod extended;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod index;
mod oci;
mod spool;

use std::path::{Path, PathBuf};

use keelblock_actors::error::ResolveError;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::ImagePlan;
use keelblock_actors::image::reference::{DEFAULT_TAG, Reference};
use keelblock_actors::stop::Stop;

pub use crate::spool::{SPOOL_IDLE, sweep};
pub use error::ArchiveError;

use super::manifest::Platform;
use crate::limits::Limits;

/// Reads archives and layouts. All methods block on the disk, mostly for milliseconds; for as long as the bytes take
/// with compressed archives and those of the old form.
#[derive(Clone, Debug)]
pub struct Archives {
    limits: Limits,
    spool: PathBuf,
    platform: Platform,
    stop: Stop,
}

impl ArchiveError {
    /// Whether it says that there is no such image, rather than that it cannot be used.
    fn is_absence(&self) -> bool {
        match self {
            Self::NoFile { .. } | Self::NoSuchImage { .. } => true,
            Self::Open { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

impl Archives {
    /// Reads within these limits, lays decompressed archives out in `spool` (made when needed), and chooses this
    /// platform where an index offers several.
    pub fn new(limits: Limits, spool: PathBuf, platform: Platform) -> Self {
        Self { limits, spool, platform, stop: Stop::default() }
    }

    /// The same, whose work ends with [`ArchiveError::Stopped`] soon after `stop` is raised.
    pub fn stopping(&self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self.clone() }
    }

    /// Removes spooled archives that nobody asked for lately: see [`SPOOL_IDLE`]. Answers how many.
    pub fn sweep(&self) -> usize {
        sweep(&self.spool, SPOOL_IDLE)
    }

    /// An image from a directory of `docker save` archives, as the local puller of Mesos finds it: in
    /// `<reference as written>.tar`, slashes as sub-directories; for `abc` then in `abc:latest.tar`, for `abc:latest` in
    /// `abc.tar`. In the archive it must have that name and tag. The archive may be compressed all the same: content
    /// decides, not the file's name.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] with the names tried, or the images the archive has; [`ResolveError::Failed`] for
    /// a reference with a digest, and for archives that cannot be used; its source is an [`ArchiveError`].
    pub fn by_name(&self, directory: &Path, reference: &Reference) -> Result<ImagePlan, ResolveError> {
        let name = ImageName::Docker(reference.canonical());
        let directory = absolute(directory);
        self.answer(name, &directory, |name| {
            if let Some(digest) = &reference.digest {
                return Err(ArchiveError::ByDigest { digest: digest.clone() });
            }
            let tried = file_names(reference);
            for path in tried.iter().map(|file| directory.join(file)) {
                // A name that cannot be looked at is not one that is not there.
                if path.try_exists().map_err(|source| ArchiveError::Open { archive: path.clone(), source })? {
                    return self.docker_save(&path, Some(reference), name);
                }
            }
            Err(ArchiveError::NoFile { tried })
        })
    }

    /// An image from one `docker save` archive; which one may be left out when it has only one.
    ///
    /// # Errors
    /// As of [`Archives::by_name`]; several images and no reference is [`ResolveError::Failed`] with their names.
    pub fn docker_archive(
        &self,
        path: &Path,
        reference: Option<&Reference>,
    ) -> Result<ImagePlan, ResolveError> {
        let path = absolute(path);
        let name = ImageName::DockerArchive { path: path.clone(), reference: reference.cloned() };
        self.answer(name, &path, |name| {
            if let Some(digest) = reference.and_then(|reference| reference.digest.clone()) {
                return Err(ArchiveError::ByDigest { digest });
            }
            self.docker_save(&path, reference, name)
        })
    }

    /// An image from an OCI image layout directory; which one may be left out when all it has differ by platform
    /// alone. Blobs may be symbolic links, as some tools lay them out; they are used only if they have the digest they are
    /// named by.
    ///
    /// # Errors
    /// As of [`Archives::docker_archive`].
    pub fn oci_layout(&self, path: &Path, tag: Option<&str>) -> Result<ImagePlan, ResolveError> {
        let path = absolute(path);
        let name = ImageName::OciLayout { path: path.clone(), tag: tag.map(str::to_owned) };
        self.answer(name, &path, |name| {
            let layout = oci::Layout::directory(&path)?;
            oci::resolve(&layout, tag, name, &self.platform, &self.limits)
        })
    }

    /// An image from the tar of an OCI image layout, plain or compressed.
    ///
    /// # Errors
    /// As of [`Archives::docker_archive`].
    pub fn oci_archive(&self, path: &Path, tag: Option<&str>) -> Result<ImagePlan, ResolveError> {
        let path = absolute(path);
        let name = ImageName::OciArchive { path: path.clone(), tag: tag.map(str::to_owned) };
        self.answer(name, &path, |name| {
            let index = spool::open(&path, &self.spool, &self.limits, &self.stop)?;
            oci::resolve(&oci::Layout::Archive(index), tag, name, &self.platform, &self.limits)
        })
    }

    fn docker_save(
        &self,
        path: &Path,
        reference: Option<&Reference>,
        name: ImageName,
    ) -> Result<ImagePlan, ArchiveError> {
        let index = spool::open(path, &self.spool, &self.limits, &self.stop)?;
        docker_save::resolve(&index, reference, name, &self.limits, &self.stop)
    }

    fn answer(
        &self,
        name: ImageName,
        place: &Path,
        resolve: impl FnOnce(ImageName) -> Result<ImagePlan, ArchiveError>,
    ) -> Result<ImagePlan, ResolveError> {
        resolve(name.clone()).map_err(|error| {
            if !error.is_absence() {
                return ResolveError::Failed { image: name, source: error.into() };
            }
            let place = place.display().to_string();
            ResolveError::NotFound { image: name, place, source: Some(error.into()) }
        })
    }
}

/// The name under which an image is remembered: canonical, and its path absolute, so that it means the same from
/// every working directory. What [`Archives`] resolves carries this name.
pub fn canonical(name: &ImageName) -> ImageName {
    match name.canonical() {
        ImageName::DockerArchive { path, reference } => {
            ImageName::DockerArchive { path: absolute(&path), reference }
        }
        ImageName::OciLayout { path, tag } => ImageName::OciLayout { path: absolute(&path), tag },
        ImageName::OciArchive { path, tag } => ImageName::OciArchive { path: absolute(&path), tag },
        ImageName::Aci(path) => ImageName::Aci(absolute(&path)),
        other => other,
    }
}

/// Symbolic links are left as they are: the user's name for the place counts.
fn absolute(path: &Path) -> PathBuf {
    // Fails for an empty path only, and opening that says so better.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The files in which an image of this name may lie, in the order to try them.
fn file_names(reference: &Reference) -> Vec<String> {
    let untagged = Reference { tag: None, ..reference.clone() };
    let mut names = vec![format!("{reference}.tar")];
    match reference.tag.as_deref() {
        None => names.push(format!("{untagged}:{DEFAULT_TAG}.tar")),
        Some(DEFAULT_TAG) => names.push(format!("{untagged}.tar")),
        Some(_) => {}
    }
    names
}

/// Whether a file name is a digest's hex part: such names are promises about the content.
fn named_by_digest(name: &str) -> Option<Digest> {
    format!("sha256:{name}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_looked_for_as_written_then_by_the_default_tag() {
        let names = |text: &str| file_names(&text.parse().unwrap());
        assert_eq!(names("abc"), ["abc.tar", "abc:latest.tar"]);
        assert_eq!(names("abc:latest"), ["abc:latest.tar", "abc.tar"]);
        assert_eq!(names("abc:1"), ["abc:1.tar"]);
        assert_eq!(names("h:5000/a/b"), ["h:5000/a/b.tar", "h:5000/a/b:latest.tar"]);
    }

    #[test]
    fn names_are_remembered_with_absolute_paths() {
        let here = std::env::current_dir().unwrap();
        let name = |text: &str| canonical(&text.parse().unwrap()).to_string();
        assert_eq!(name("oci:x:t"), format!("oci:{}/x:t", here.display()));
        assert_eq!(name("docker-archive:/a/b.tar:app"), "docker-archive:/a/b.tar:app");
        assert_eq!(name("alpine"), "docker:docker.io/library/alpine:latest");
    }
}

//! The Docker provider: which source a name means, and its plan.
//!
//! A registry inside a name wins; a name without one means what `--docker_registry` says. That flag may change between two
//! commands on one store, so the name under which an image is remembered must say where it came from: [`DockerSource::canonical`]
//! writes the source into the name, and both the edge (before it looks an image up) and the provider (in the plan's identity) use
//! it. `app` then is `docker.io/library/app:latest`, `127.0.0.1:5000/app:latest` or `docker-archive:/images:app`, and these
//! never answer for one another.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures_util::future::BoxFuture;
use keelblock_actors::error::{JobLost, ResolveError, quote};
use keelblock_actors::image::name::{ImageKind, ImageName, ImageRequest};
use keelblock_actors::image::plan::ImagePlan;
use keelblock_actors::image::reference::{DEFAULT_REGISTRY, Reference};
use keelblock_actors::ports::Provider;
use keelblock_actors::stop::Stop;
use tokio::runtime::Handle;

use super::archive::{self, Archives};
use crate::puller::registry::{EndpointError, RegistryClient, RegistryUrl, Task};

/// Where names without a registry are looked for: the value of `--docker_registry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerSource {
    /// A directory of `docker save` archives by name and tag, absolute.
    Directory(PathBuf),
    /// A registry.
    Registry(RegistryUrl),
}

/// Why a text is no value of `--docker_registry`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerSourceError {
    /// Nothing.
    #[error("it is empty; give a registry (https://host[:port]) or an absolute directory of archives")]
    Empty,
    /// A path from somewhere.
    #[error("directory {0:?} is not an absolute path")]
    Relative(String),
    /// `file://host/dir`.
    #[error("{0:?} names a directory on another host; write file:///dir or /dir")]
    ForeignHost(String),
    /// A path that image names cannot carry.
    #[error(
        "directory {0:?} has a colon or control character in its name; image names cannot tell where it ends"
    )]
    Unnameable(String),
    /// `hdfs://`, `s3://`, ...
    #[error("{scheme}:// is not supported; known are http://, https://, file:// and absolute paths")]
    Scheme {
        /// What stands before `://`, cut.
        scheme: String,
    },
    /// A registry whose address is none.
    #[error(transparent)]
    Registry(#[from] EndpointError),
}

impl FromStr for DockerSource {
    type Err = DockerSourceError;

    fn from_str(text: &str) -> Result<Self, DockerSourceError> {
        if text.is_empty() {
            return Err(DockerSourceError::Empty);
        }
        if text.starts_with('/') {
            return directory(text);
        }
        if let Some(path) = text.strip_prefix("file:") {
            return match path.strip_prefix("//").unwrap_or(path) {
                path if path.starts_with('/') => directory(path),
                _ if path.starts_with("//") => Err(DockerSourceError::ForeignHost(quote(text))),
                path => Err(DockerSourceError::Relative(quote(path))),
            };
        }
        match text.split_once("://") {
            Some(("http" | "https", _)) => Ok(Self::Registry(text.parse()?)),
            Some((scheme, _)) => Err(DockerSourceError::Scheme { scheme: quote(scheme) }),
            None if text.starts_with('.') => Err(DockerSourceError::Relative(quote(text))),
            None => Ok(Self::Registry(text.parse()?)),
        }
    }
}

/// Records keep the directory as part of an image's name, so one directory must have one spelling.
fn directory(path: &str) -> Result<DockerSource, DockerSourceError> {
    if path.contains(|c: char| c == ':' || c.is_control()) {
        return Err(DockerSourceError::Unnameable(quote(path)));
    }
    Ok(DockerSource::Directory(Path::new(path).components().collect()))
}

impl Default for DockerSource {
    /// Docker Hub, as in Mesos.
    fn default() -> Self {
        Self::Registry(RegistryUrl { scheme: None, host: DEFAULT_REGISTRY.to_owned() })
    }
}

impl DockerSource {
    /// The registry of names without one, if that is what it is: goes into
    /// [`RegistrySettings`](crate::puller::registry::RegistrySettings).
    pub fn registry(&self) -> Option<&RegistryUrl> {
        match self {
            Self::Registry(url) => Some(url),
            Self::Directory(_) => None,
        }
    }

    /// The name under which an image is looked up and remembered while this is where names without a registry come from: the source
    /// written into the name, every default filled in, paths absolute. The same for its own result.
    pub fn canonical(&self, name: &ImageName) -> ImageName {
        match (name, self) {
            (ImageName::Docker(reference), Self::Registry(url)) if reference.registry.is_none() => {
                let registry = Some(url.host.clone());
                ImageName::Docker(Reference { registry, ..reference.clone() }.canonical())
            }
            (ImageName::Docker(reference), Self::Directory(directory)) if reference.registry.is_none() => {
                let (path, reference) = (directory.clone(), Some(reference.clone()));
                archive::canonical(&ImageName::DockerArchive { path, reference })
            }
            _ => archive::canonical(name),
        }
    }
}

/// Resolves `docker:` names through registries or a directory of archives, and `docker-archive:` names.
pub struct DockerProvider {
    source: DockerSource,
    registries: RegistryClient,
    archives: Archives,
}

impl DockerProvider {
    /// Resolves names without a registry by `source`. Archives are read on the blocking threads of the client's runtime.
    pub fn new(source: DockerSource, registries: RegistryClient, archives: Archives) -> Self {
        Self { source, registries, archives }
    }
}

impl Provider for DockerProvider {
    fn kind(&self) -> ImageKind {
        ImageKind::Docker
    }

    fn resolve(&self, request: ImageRequest) -> BoxFuture<'static, Result<ImagePlan, ResolveError>> {
        let name = self.source.canonical(&request.name);
        match name.clone() {
            ImageName::Docker(reference) => {
                Box::pin(self.registries.resolve(name, reference, request.access))
            }
            ImageName::DockerArchive { path, reference } => {
                let handle = self.registries.handle();
                reading(handle, &self.archives, move |archives| {
                    let mut plan = docker_archive(archives, &path, reference.as_ref())?;
                    plan.identity.name = name;
                    Ok(plan)
                })
            }
            _ => no_provider(request.name),
        }
    }

    fn fits(&self, plan: &ImagePlan) -> bool {
        self.registries.fits(plan)
    }

    fn authorize(
        &self,
        request: ImageRequest,
        plan: &ImagePlan,
    ) -> BoxFuture<'static, Result<(), ResolveError>> {
        match self.source.canonical(&request.name) {
            ImageName::Docker(reference) => {
                let manifest = plan.identity.manifest.clone();
                Box::pin(self.registries.authorize(request.name, reference, manifest, request.access))
            }
            // Files are read by whoever may read them, each time.
            _ => Box::pin(async { Ok(()) }),
        }
    }
}

/// An archive, or a directory of them: the form that [`DockerSource::canonical`] gives to names without a registry.
fn docker_archive(
    archives: &Archives,
    path: &Path,
    reference: Option<&Reference>,
) -> Result<ImagePlan, ResolveError> {
    match reference {
        Some(reference) if path.is_dir() => archives.by_name(path, reference),
        _ => archives.docker_archive(path, reference),
    }
}

/// Runs `read` on a thread that may block; a caller that leaves stops it soon.
pub(super) fn reading(
    handle: &Handle,
    archives: &Archives,
    read: impl FnOnce(&Archives) -> Result<ImagePlan, ResolveError> + Send + 'static,
) -> BoxFuture<'static, Result<ImagePlan, ResolveError>> {
    const POOL: &str = "archive";
    let stop = Stop::default();
    let (archives, leaving) = (archives.stopping(&stop), stop.on_drop());
    let job = Task::spawn_blocking(handle, move || read(&archives));
    Box::pin(async move {
        let _leaving = leaving;
        job.await.unwrap_or_else(|lost| {
            let lost = match lost.try_into_panic() {
                Ok(panic) => JobLost::Panicked { pool: POOL, panic: text_of(&*panic) },
                Err(_) => JobLost::Shutdown { pool: POOL },
            };
            Err(lost.into())
        })
    })
}

/// A name of another kind came to a provider: a mistake of whoever routes names.
pub(super) fn no_provider(image: ImageName) -> BoxFuture<'static, Result<ImagePlan, ResolveError>> {
    Box::pin(async move { Err(ResolveError::NoProvider { kind: image.kind(), image }) })
}

pub(super) fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "a panic without words".to_owned(), |text| quote(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> DockerSource {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_flag_names_a_directory_or_a_registry() {
        assert_eq!(source("/images"), DockerSource::Directory("/images".into()));
        assert_eq!(source("file:///images"), DockerSource::Directory("/images".into()));
        assert_eq!(source("file:/images"), DockerSource::Directory("/images".into()));
        assert_eq!(source("//images/./x/").to_owned(), source("/images/x"));
        let host = |text| source(text).registry().unwrap().host.clone();
        assert_eq!(host("https://registry-1.docker.io"), "docker.io");
        assert_eq!(host("http://127.0.0.1:5000"), "127.0.0.1:5000");
        assert_eq!(host("r.io:5000"), "r.io:5000");
    }

    #[test]
    fn other_values_are_refused_each_for_its_reason() {
        use DockerSourceError as E;
        let error = |text: &str| text.parse::<DockerSource>().unwrap_err();
        assert_eq!(error(""), E::Empty);
        assert!(matches!(error("./images"), E::Relative(_)));
        assert!(matches!(error("file:images"), E::Relative(_)));
        assert!(matches!(error("file://host/images"), E::ForeignHost(_)));
        assert!(matches!(error("/images:1"), E::Unnameable(_)));
        assert!(matches!(error("/images\n"), E::Unnameable(_)));
        assert!(matches!(error("hdfs://host/images"), E::Scheme { .. }));
        assert!(matches!(error("images"), E::Registry(_)));
        assert!(matches!(error("https://r.io/a/b"), E::Registry(_)));
    }

    #[test]
    fn the_name_of_an_image_says_where_it_came_from() {
        let canonical = |flag: &str, name: &str| {
            let source = source(flag);
            let name = source.canonical(&name.parse().unwrap());
            assert_eq!(source.canonical(&name), name);
            assert_eq!(name.canonical(), name);
            assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
            name.to_string()
        };
        assert_eq!(canonical("https://registry-1.docker.io", "app"), "docker:docker.io/library/app:latest");
        assert_eq!(canonical("https://index.docker.io", "u/app:1"), "docker:docker.io/u/app:1");
        assert_eq!(canonical("http://127.0.0.1:5000", "app:1"), "docker:127.0.0.1:5000/app:1");
        assert_eq!(canonical("/images", "app:1"), "docker-archive:/images:app:1");
        for flag in ["/images", "https://r.io"] {
            assert_eq!(canonical(flag, "quay.io/app"), "docker:quay.io/app:latest");
            assert_eq!(canonical(flag, "docker.io/app"), "docker:docker.io/library/app:latest");
            assert_eq!(canonical(flag, "docker-archive:/x.tar"), "docker-archive:/x.tar");
        }
    }
}

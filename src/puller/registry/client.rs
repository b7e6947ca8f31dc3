//! Manifests, indexes and configs of a registry, verified; blobs, opened.
//!
//! Whatever is asked by digest is checked against it before anything else looks at it; what is asked by tag, against the digest
//! that the registry itself states, if it does. Of a schema 1 manifest with signatures only the signed part counts, in
//! digests as in all else.

use std::collections::{BTreeMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use hyper::Method;
use hyper::header::{self, HeaderName, HeaderValue};
use keelblock_actors::error::{ResolveError, quote};
use keelblock_actors::image::access::Access;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{ImageIdentity, ImagePlan, LayerSource};
use keelblock_actors::image::reference::{DEFAULT_REGISTRY, Reference};
use keelblock_actors::ports::Blob;
use keelblock_actors::transfer::Transfer;
use slog::Logger;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::ask::{Need, Question, Served};
use super::auth::Authorizer;
use super::blob;
use super::error::{Asked, RegistryError};
use super::health::Health;
use super::hosts_dir::HostsDirs;
use super::http::{Answer, Http};
use super::meter::{HostMetrics, Meter};
use super::ranges;
use super::resume::{Source, Stream};
use super::{RegistrySettings, Task};
use crate::provider::manifest::{self, Descriptor, ImageManifest, ManifestError, Parsed, Platform, Schema1};

/// Everything that can be a manifest here, one header. Schema 1 comes last: a registry that has an image in both forms
/// shall give the one with a config. With less weight also for those that ignore the order.
const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, \
    application/vnd.docker.distribution.manifest.v1+json;q=0.4";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The registries of the world, as one client with one set of connections and tokens. Cheap to make and to clone; the first use
/// of TLS reads the system's certificates.
#[derive(Clone)]
pub struct RegistryClient {
    handle: Handle,
    state: Arc<State>,
}

/// What the clones of a client share.
pub(super) struct State {
    pub(super) settings: RegistrySettings,
    pub(super) log: Logger,
    pub(super) http: Http,
    pub(super) authorizer: Authorizer,
    /// Servers on loopback, or insecure ones, that turned out to speak TLS.
    pub(super) over_tls: Mutex<HashSet<String>>,
    pub(super) meter: Arc<Meter>,
    pub(super) health: Health,
    pub(super) hosts: Arc<HostsDirs>,
    /// For what is fetched ahead of its readers.
    pub(super) ahead: Arc<Semaphore>,
}

/// What one pull works with: all that clients share, and what came with its image.
#[derive(Clone)]
pub(super) struct Session {
    state: Arc<State>,
    /// Who asks, if not the agent.
    pub(super) access: Option<Access>,
}

impl Deref for Session {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

/// A repository, with every default of its name filled in.
pub(super) struct Place {
    registry: String,
    repository: String,
}

/// A manifest or index, verified: of a signed one the signed part.
struct Document {
    bytes: Vec<u8>,
    media_type: Option<String>,
    digest: Digest,
}

/// What a reference led to.
enum Found {
    Image(ImageManifest),
    Schema1(Schema1),
}

impl RegistryClient {
    /// A client that works on the runtime of this handle, which must have timers and sockets enabled and threads of its own: readers
    /// of blobs block until it brings them bytes.
    pub fn new(settings: RegistrySettings, handle: Handle, log: Logger) -> Self {
        let http = Http::new(&settings);
        let hosts = Arc::new(HostsDirs::new(settings.hosts_dirs.clone(), log.clone()));
        let authorizer = Authorizer::new(&settings);
        let ahead = ranges::budget(&settings.limits);
        Self {
            handle,
            state: Arc::new(State {
                settings,
                log,
                http,
                authorizer,
                over_tls: Mutex::default(),
                meter: Arc::default(),
                health: Health::default(),
                hosts,
                ahead,
            }),
        }
    }

    /// How the servers that were asked did so far, by server.
    pub fn metrics(&self) -> BTreeMap<String, HostMetrics> {
        self.state.meter.snapshot()
    }

    /// The runtime it works on.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn session(&self, access: Option<Access>) -> Session {
        Session { state: Arc::clone(&self.state), access }
    }

    /// The plan of the image that a reference means now, under the name `name`: manifest and config fetched and verified, indexes
    /// followed to this machine's platform. Its layers come from the same registry. `access` is what came with the image, and
    /// then is in the place of the credentials of the settings.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] when the registry has no such manifest, else [`ResolveError::Failed`]; the source of both is
    /// a [`RegistryError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the requests.
    pub fn resolve(
        &self,
        name: ImageName,
        reference: Reference,
        access: Option<Access>,
    ) -> impl Future<Output = Result<ImagePlan, ResolveError>> + Send + 'static {
        let state = self.session(access);
        let image = name.clone();
        let place = state.place(&reference);
        let asked = asked(&place, "manifest", name_of(&reference));
        let chosen_for = Some(self.state.settings.platform.to_string());
        let task = Task::spawn(&self.handle, async move {
            let plan = state.resolve(name, &reference, &place).await?;
            Ok(ImagePlan { chosen_for, ..plan })
        });
        async move {
            let place = format!("registry {}", asked.registry);
            let wanted = asked.clone();
            let lost = |why: tokio::task::JoinError| {
                Err(RegistryError::Lost { asked, why: quote(&why.to_string()) })
            };
            task.await.unwrap_or_else(lost).map_err(|error| match error {
                // An image whose config or platform manifest is missing is there, and broken.
                error if matches!(error.of_the_last(), RegistryError::NotFound { asked, .. } if *asked == wanted) => {
                    ResolveError::NotFound { image, place, source: Some(error.into()) }
                }
                error => ResolveError::Failed { image, source: error.into() },
            })
        }
    }

    /// Whether this is what would be resolved for the platform that is wanted: an image that runs on it, or that was chosen for
    /// it whatever it says of itself (there was no other, and whoever pulled it was warned). One that does not say is taken to run.
    pub fn fits(&self, plan: &ImagePlan) -> bool {
        let wanted = &self.state.settings.platform;
        let found = plan.platform.as_deref().and_then(|text| text.parse().ok());
        found.is_none_or(|found| wanted.runs(&found)) || plan.chosen_for == Some(wanted.to_string())
    }

    /// Whether the registry itself, no mirror, gives this manifest to whoever asks.
    ///
    /// # Errors
    /// [`ResolveError::NotAuthorized`] when it does not, or cannot be asked.
    pub fn authorize(
        &self,
        image: ImageName,
        reference: Reference,
        manifest: Digest,
        access: Option<Access>,
    ) -> impl Future<Output = Result<(), ResolveError>> + Send + 'static {
        let session = self.session(access);
        let asked = asked(&session.place(&reference), "manifest", manifest.to_string());
        let question = Question::get(asked, format!("manifests/{manifest}"))
            .header(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let gives = self.gives(session, question);
        async move { gives.await.map_err(|error| ResolveError::NotAuthorized { image, source: error.into() }) }
    }

    /// The same for a blob of the repository of this reference.
    pub(super) fn authorize_blob(
        &self,
        reference: Reference,
        digest: Digest,
        access: Option<Access>,
    ) -> impl Future<Output = Result<(), RegistryError>> + Send + 'static {
        let session = self.session(access);
        let asked = asked(&session.place(&reference), "blob", digest.to_string());
        self.gives(session, Question::get(asked, format!("blobs/{digest}")))
    }

    /// Whether the registry itself has an answer to this question; what it is, is not asked for.
    fn gives(
        &self,
        session: Session,
        question: Question,
    ) -> impl Future<Output = Result<(), RegistryError>> + Send + 'static {
        let context = question.asked.clone();
        let question = Question { need: Need::Authorize, method: Method::HEAD, ..question };
        let task = Task::spawn(&self.handle, async move { session.get(&question).await.map(|_| ()) });
        async move {
            let lost = |why: tokio::task::JoinError| {
                Err(RegistryError::Lost { asked: context, why: quote(&why.to_string()) })
            };
            task.await.unwrap_or_else(lost)
        }
    }

    /// The bytes of a blob of the repository of this reference, as they come, unverified. `size` is what the manifest says;
    /// a registry that announces another length is refused before the first byte. What breaks off goes on, as far as
    /// `--retries_max` goes; `transfer` is told.
    ///
    /// # Cancel safety
    /// Dropping the future, or the reader, ends the request.
    pub(super) fn open_blob(
        &self,
        reference: Reference,
        digest: Digest,
        size: Option<u64>,
        access: Option<Access>,
        transfer: Arc<Transfer>,
    ) -> impl Future<Output = Result<Blob, RegistryError>> + Send + 'static {
        let session = self.session(access);
        let place = session.place(&reference);
        let asked = asked(&place, "blob", digest.to_string());
        let context = asked.clone();
        let task = Task::spawn(&self.handle, async move {
            let question = Question::get(asked, format!("blobs/{digest}"));
            let question = Question { size, transfer: Some(transfer.clone()), ..question };
            let stream = Stream::open(Source { session, question, transfer }, size).await?;
            Ok(blob::moving(stream))
        });
        async move {
            let lost = |why: tokio::task::JoinError| {
                Err(RegistryError::Lost { asked: context, why: quote(&why.to_string()) })
            };
            task.await.unwrap_or_else(lost)
        }
    }
}

impl Session {
    fn place(&self, reference: &Reference) -> Place {
        let canonical = reference.canonical();
        Place {
            registry: canonical.registry.unwrap_or_else(|| DEFAULT_REGISTRY.to_owned()),
            repository: canonical.repository,
        }
    }

    async fn resolve(
        &self,
        name: ImageName,
        reference: &Reference,
        place: &Place,
    ) -> Result<ImagePlan, RegistryError> {
        let limits = &self.settings.limits;
        let wanted = name_of(reference);
        let mut at = asked(place, "manifest", wanted.clone());
        let mut document = self.manifest(&at, reference.digest.as_ref(), None).await?;
        let mut indexes = 0;
        // By an index: then what the image says of its platform does not count any more.
        let mut chosen = false;
        let found = loop {
            let unusable = |source| RegistryError::Manifest { asked: at.clone(), source };
            let index = match manifest::parse(&document.bytes, document.media_type.as_deref()) {
                Ok(Parsed::Image(image)) => break Found::Image(image),
                Ok(Parsed::Schema1(image)) => break Found::Schema1(image),
                Ok(Parsed::Index(index)) => index,
                Err(source) => return Err(unusable(source)),
            };
            indexes += 1;
            if indexes > limits.index_depth_max {
                let asked = asked(place, "manifest", wanted);
                return Err(RegistryError::TooDeep { asked, limit: limits.index_depth_max });
            }
            let entry = index.choose(&self.settings.platform).map_err(unusable)?;
            chosen |= entry.platform.is_some();
            at = asked(place, "manifest", entry.digest.to_string());
            document = self.manifest(&at, Some(&entry.digest), Some(entry)).await?;
        };
        let whole = Reference {
            registry: Some(place.registry.clone()),
            repository: place.repository.clone(),
            tag: None,
            digest: None,
        };
        let source = LayerSource::Registry(whole);
        let image = match found {
            Found::Image(image) => image,
            Found::Schema1(image) => {
                let planned = self.check_platform(&name, image.platform.as_ref(), chosen);
                let planned =
                    planned.and_then(|()| image.plan(name, document.digest, limits, |_| source.clone()));
                return planned.map_err(|source| RegistryError::Manifest { asked: at, source });
            }
        };
        let config_at = asked(place, "config", image.config.digest.to_string());
        let bytes = self.config(&config_at, &image.config).await?;
        let config = manifest::parse_config(&bytes)
            .and_then(|config| self.check_platform(&name, config.platform.as_ref(), chosen).map(|()| config))
            .map_err(|source| RegistryError::Manifest { asked: config_at, source })?;
        let identity = ImageIdentity { name, manifest: document.digest, config: image.config.digest.clone() };
        manifest::plan(identity, &image, config, limits, |_| source.clone())
            .map_err(|source| RegistryError::Manifest { asked: at, source })
    }

    /// Whether an image that no index chose for a platform may be taken. That of another operating system cannot run here.
    /// That for another processor may, with an emulator, and many say the wrong one: it is refused to whoever named a platform,
    /// as by dockerd, and else taken with a warning.
    fn check_platform(
        &self,
        name: &ImageName,
        found: Option<&Platform>,
        chosen: bool,
    ) -> Result<(), ManifestError> {
        let wanted = &self.settings.platform;
        let Some(found) = found.filter(|found| !chosen && !wanted.runs(found)) else { return Ok(()) };
        let (given, other_os) = (self.settings.platform_given, found.os != wanted.os);
        if given || other_os {
            let hint = if other_os { "" } else { "; leave --platform out to take it as it is" };
            let (found, wanted) = (quote(&found.to_string()), wanted.to_string());
            return Err(ManifestError::OtherPlatform { found, wanted, hint });
        }
        slog::warn!(self.log, "the image is for another platform than this machine's";
            "image" => %name, "platform" => %found, "machine" => %wanted);
        Ok(())
    }

    /// A manifest by tag or digest; `entry` is the index entry that led to it.
    async fn manifest(
        &self,
        asked: &Asked,
        digest: Option<&Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<Document, RegistryError> {
        let (limit, flag) = (self.settings.limits.manifest_bytes_max, "manifest_bytes_max");
        if let Some(size) = entry.map(|entry| entry.size).filter(|&size| size > limit) {
            return Err(RegistryError::TooLarge { asked: asked.clone(), size, limit, flag });
        }
        let question = Question::get(asked.clone(), format!("manifests/{}", asked.name));
        let question = Question {
            need: if digest.is_some() { Need::Pull } else { Need::Resolve },
            ..question.header(header::ACCEPT, HeaderValue::from_static(ACCEPT))
        };
        let take = |Served { answer, .. }| -> BoxFuture<'_, _> {
            Box::pin(self.manifest_in(asked, digest, entry, answer))
        };
        self.get_and(&question, &take).await
    }

    /// The manifest in an answer, if it is the one that was asked for.
    async fn manifest_in(
        &self,
        asked: &Asked,
        digest: Option<&Digest>,
        entry: Option<&Descriptor>,
        answer: Answer,
    ) -> Result<Document, RegistryError> {
        let (limit, flag) = (self.settings.limits.manifest_bytes_max, "manifest_bytes_max");
        let encoding = answer.header(header::CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(RegistryError::Encoded { asked: asked.clone(), encoding: quote(encoding) });
        }
        let content_type = answer.header(header::CONTENT_TYPE).map(str::to_owned);
        // One that cannot be read cannot be checked either; registries need not send any.
        let stated: Option<Digest> = answer.header(CONTENT_DIGEST).and_then(|text| text.parse().ok());
        // What the index says of its entry is as verified as the index is, so it counts before the header.
        let media_type = entry.map(|entry| entry.media_type.clone()).filter(|text| !text.is_empty());
        let media_type = media_type.or(content_type);
        let bytes = self.whole(asked, answer, limit, flag).await?;
        let bytes = manifest::signed_part(bytes, media_type.as_deref())
            .map_err(|source| RegistryError::Manifest { asked: asked.clone(), source })?;
        if let Some(expected) = entry.map(|entry| entry.size)
            && expected != bytes.len() as u64
        {
            let actual = bytes.len() as u64;
            return Err(RegistryError::WrongSize { asked: asked.clone(), expected, actual });
        }
        if let Some(expected) = digest {
            verify(asked, expected, &bytes)?;
        }
        if let Some(stated) = stated.as_ref().filter(|stated| Some(*stated) != digest) {
            let actual = digest_like(stated, &bytes);
            if actual != *stated {
                let (asked, stated) = (asked.clone(), stated.clone());
                return Err(RegistryError::HeaderDigest { asked, stated, actual });
            }
        }
        let digest = digest.cloned().unwrap_or_else(|| Digest::of(&bytes));
        Ok(Document { bytes, media_type, digest })
    }

    async fn config(&self, asked: &Asked, config: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let (limit, flag) = (self.settings.limits.config_bytes_max, "config_bytes_max");
        if config.size > limit {
            let (asked, size) = (asked.clone(), config.size);
            return Err(RegistryError::TooLarge { asked, size, limit, flag });
        }
        let question = Question::get(asked.clone(), format!("blobs/{}", config.digest));
        let take =
            |Served { answer, .. }| -> BoxFuture<'_, _> { Box::pin(self.config_in(asked, config, answer)) };
        self.get_and(&question, &take).await
    }

    /// The config in an answer, if it is the one that was asked for.
    async fn config_in(
        &self,
        asked: &Asked,
        config: &Descriptor,
        answer: Answer,
    ) -> Result<Vec<u8>, RegistryError> {
        let (limit, flag) = (self.settings.limits.config_bytes_max, "config_bytes_max");
        let wrong_size =
            |actual| RegistryError::WrongSize { asked: asked.clone(), expected: config.size, actual };
        if let Some(actual) = answer.body.size().filter(|&actual| actual != config.size) {
            return Err(wrong_size(actual));
        }
        let bytes = self.whole(asked, answer, limit, flag).await?;
        if bytes.len() as u64 != config.size {
            return Err(wrong_size(bytes.len() as u64));
        }
        verify(asked, &config.digest, &bytes)?;
        Ok(bytes)
    }

    async fn whole(
        &self,
        asked: &Asked,
        answer: Answer,
        limit: u64,
        flag: &'static str,
    ) -> Result<Vec<u8>, RegistryError> {
        let whole = answer.body.whole(limit, Some(flag)).await;
        whole.map_err(|source| RegistryError::Http { asked: asked.clone(), source })
    }
}

fn asked(place: &Place, what: &'static str, name: String) -> Asked {
    Asked { what, name, repository: place.repository.clone(), registry: place.registry.clone() }
}

/// What the registry is asked by: the digest where there is one, else the tag.
fn name_of(reference: &Reference) -> String {
    match &reference.digest {
        Some(digest) => digest.to_string(),
        None => reference.tag_or_default().to_owned(),
    }
}

fn verify(asked: &Asked, expected: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
    let actual = digest_like(expected, bytes);
    if actual == *expected {
        Ok(())
    } else {
        Err(RegistryError::WrongDigest { asked: asked.clone(), actual })
    }
}

/// The digest of these bytes by the algorithm of that one.
fn digest_like(digest: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = digest.hasher();
    hasher.update(bytes);
    hasher.finish()
}

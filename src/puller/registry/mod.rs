//! Blobs and manifests over HTTP: the pull side of the distribution API, v2.
//!
//! From a reference to verified manifests and configs ([`RegistryClient`]), and from a layer to its bytes as they
//! come ([`RegistryPuller`]). Layer bytes pass through unverified and unstored: the store hashes and unpacks them. Everything
//! a registry sends is hostile: sizes are bounded before bytes are read, texts are quoted and cut.
//!
//! All network work happens on the runtime whose handle is passed in; the futures given out only wait for it, so they
//! can be awaited on any thread, and dropping one ends the request.
//!
//! - `endpoint`: which server a reference means, and whether it is spoken to over TLS;
//! - `http`: one GET with redirects; `body`: what comes, under limits; `location`: where a redirect leads; `tls`: whom to
//!   trust; `failure`: why nothing came;
//! - `challenge`, `credentials`, `auth` and `token`: what a 401 asks for, who we are, what answers it, and the token servers;
//! - `pools`: connections and their reuse; `connect`: how one is made, `proxy`: through whom; `slots`: how many at once;
//!   `identity` and `unverified`: client certificates, and `skip_verify`;
//! - `hosts`: the servers of a registry, mirrors first; `hosts_toml` and `hosts_dir`: where that is written; `health`: which
//!   of them are left out for a while;
//! - `ask`: one question, with all of these; `retry`: whether it is asked again, and when; `meter`: counts;
//! - `client`: manifests, indexes and configs, verified;
//! - `resume`: a blob in however many answers it takes; `ranges`: over several connections at once; `blob`: on its way to a
//!   thread that reads it.
//!
//! HTTP/1.1 or, where a server offers it over TLS, HTTP/2, whose windows are such that blobs that wait for a slot to be unpacked
//! do not starve the very blob whose unpacking they wait for: see `pools`.
//!

mod ask;
mod auth;
mod blob;
pub(super) mod body;
mod challenge;
mod client;
mod connect;
mod credentials;
mod endpoint;
mod error;
pub(super) mod failure;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod health;
mod hosts;
mod hosts_dir;
mod hosts_toml;
pub(super) mod http;
mod identity;
pub(super) mod location;
pub(super) mod meter;
mod pools;
pub(super) mod proxy;
mod ranges;
pub(super) mod resume;
pub(super) mod retry;
mod slots;
mod task;
#[cfg(test)]
#[path = "../../../tests/support/registry.rs"]
mod test_registry;
mod tls;
mod token;
mod unverified;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use keelblock_actors::error::FetchError;
use keelblock_actors::image::plan::{LayerSource, LayerSpec, SourceKind};
use keelblock_actors::ports::{Blob, Puller};
use keelblock_actors::transfer::Transfer;

pub use auth::AuthError;
pub use client::RegistryClient;
pub use connect::ConnectError;
pub use credentials::{
    AccessError, Credentials, DockerConfig, DockerConfigError, DockerConfigSource, FileError, Found,
    HelperError, Login, LoginFor, NoCredentials, ParseLoginError, Secret, Sources, UsualPlace, Wanted,
    usual_places,
};
pub use endpoint::{Endpoint, EndpointError, InsecureRegistries, RegistryUrl, Scheme};
pub use error::{Asked, RegistryError, Said, Tried};
pub use failure::{HttpError, Innermost};
pub use hosts::Host;
pub use hosts_toml::HostsError;
pub use meter::{HostMetrics, LATENCY_BOUNDS, Meter};
pub use proxy::{NoProxy, Proxies, Proxy, ProxyError};
pub(crate) use task::Task;
pub use tls::TlsError;

use crate::limits::Limits;
use crate::provider::manifest::Platform;

/// What the registry client is told once, by flags.
#[derive(Clone)]
pub struct RegistrySettings {
    /// The limits in force.
    pub limits: Limits,
    /// Which image of an index to take.
    pub platform: Platform,
    /// Whether somebody asked for that platform. Then an image that says it is for another processor is refused, also where
    /// there is no index to choose from.
    pub platform_given: bool,
    /// The registry of names without one, where its scheme was written out: that scheme then holds for that host in any
    /// name (`--docker_registry=https://localhost:5000`).
    pub default_registry: Option<RegistryUrl>,
    /// `--docker_insecure_registries`.
    pub insecure: InsecureRegistries,
    /// `--registry_ca`: certificates trusted beside those of the system, PEM. Read when TLS is first needed.
    pub ca_file: Option<PathBuf>,
    /// `--registry_config_path`: directories with a `hosts.toml`, or certificates, for each registry. Read when needed.
    pub hosts_dirs: Vec<PathBuf>,
    /// The proxies that connections are made through.
    pub proxies: Proxies,
    /// Whether HTTP/2 is spoken with servers that offer it.
    pub http2: bool,
    /// Who to be, and where.
    pub credentials: Arc<dyn Credentials>,
}

impl RegistrySettings {
    /// Docker Hub and other public registries, without mirrors, proxies and credentials, for this machine.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            platform: Platform::host(),
            platform_given: false,
            default_registry: None,
            insecure: InsecureRegistries::default(),
            ca_file: None,
            hosts_dirs: Vec::new(),
            proxies: Proxies::default(),
            http2: true,
            credentials: Arc::new(NoCredentials),
        }
    }
}

/// The puller of layers that lie in registries.
#[derive(Clone)]
pub struct RegistryPuller {
    client: RegistryClient,
}

impl RegistryPuller {
    /// Pulls through this client, sharing its connections and tokens.
    pub fn new(client: RegistryClient) -> Self {
        Self { client }
    }
}

impl Puller for RegistryPuller {
    fn kind(&self) -> SourceKind {
        SourceKind::Registry
    }

    fn authorize(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<bool, FetchError>> {
        let (LayerSource::Registry(reference), Some(digest)) = (&layer.source, &layer.blob.digest) else {
            return Box::pin(async { Ok(false) });
        };
        let (blob, from) = (digest.to_string(), layer.source.to_string());
        let asked = self.client.authorize_blob(reference.clone(), digest.clone(), layer.access.clone());
        Box::pin(async move {
            let refused = |error: RegistryError| FetchError::Refused { blob, from, source: error.into() };
            asked.await.map(|()| true).map_err(refused)
        })
    }

    fn open(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<Blob, FetchError>> {
        self.open_for(layer, Arc::default())
    }

    fn open_for(
        &self,
        layer: &LayerSpec,
        transfer: Arc<Transfer>,
    ) -> BoxFuture<'static, Result<Blob, FetchError>> {
        let (blob, from) = match (&layer.blob.digest, &layer.source) {
            (Some(digest), LayerSource::Registry(_)) => (digest.to_string(), layer.source.to_string()),
            _ => (layer.key.to_string(), layer.source.to_string()),
        };
        let opened = match (&layer.source, &layer.blob.digest) {
            (LayerSource::Registry(reference), Some(digest)) => {
                let (digest, size, access) = (digest.clone(), layer.blob.size, layer.access.clone());
                Ok(self.client.open_blob(reference.clone(), digest, size, access, transfer))
            }
            _ => Err(RegistryError::NotAddressed),
        };
        Box::pin(async move {
            let opened = match opened {
                Ok(opening) => opening.await,
                Err(error) => Err(error),
            };
            opened.map_err(|error| {
                let broken = error.is_of_the_connection();
                let source = error.into();
                match broken {
                    true => FetchError::Broken { blob, from, source },
                    false => FetchError::Refused { blob, from, source },
                }
            })
        })
    }
}

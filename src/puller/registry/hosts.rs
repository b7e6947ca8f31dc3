//! The servers that may be asked for what is in a registry: its own, and mirrors before it.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderMap;
use keelblock_actors::image::reference::DEFAULT_REGISTRY;

use super::endpoint::Scheme;
use super::tls::Trust;

/// Where Docker Hub answers.
pub(super) const HUB: &str = "registry-1.docker.io";

/// One server that may be asked for what is in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What credentials for it are looked up by, and what messages call it: the registry as names have it (`docker.io`), the
    /// server of a mirror.
    pub name: String,
    /// The server: `registry-1.docker.io`, `127.0.0.1:5000`.
    pub server: String,
    /// How to speak to it.
    pub scheme: Scheme,
    /// Plain http is a guess from where the server is, so one that turns out to want TLS may be given it.
    pub may_upgrade: bool,
    /// What its API begins with: `/v2`.
    pub path: String,
    /// Whether it is another than the registry's own: it is told for which registry it is asked, and whoever logs in at
    /// the registry does not thereby log in here.
    pub mirror: bool,
    /// Whether it may be asked what a tag means.
    pub resolve: bool,
    /// Whether it may be asked for manifests by digest, and for blobs.
    pub pull: bool,
    /// Headers of every request to it.
    pub(super) headers: HeaderMap,
    /// Whom to believe there.
    pub(super) trust: Arc<Trust>,
    /// The time limit for a connection there: `dial_timeout` of `hosts.toml`.
    pub(super) connect: Option<Duration>,
}

impl Host {
    /// The registry's own server.
    pub(super) fn own(registry: &str, scheme: Scheme) -> Self {
        Self {
            name: registry.to_owned(),
            server: if registry == DEFAULT_REGISTRY { HUB.to_owned() } else { registry.to_owned() },
            scheme,
            may_upgrade: false,
            path: "/v2".to_owned(),
            mirror: false,
            resolve: true,
            pull: true,
            headers: HeaderMap::new(),
            trust: Arc::default(),
            connect: None,
        }
    }
}

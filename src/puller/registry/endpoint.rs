//! Which server a reference means, and whether it is spoken to over TLS.
//!
//! Pure. `docker.io` is a name, not a server; loopback speaks plain http unless told otherwise; any other host speaks https
//! unless it stands in `--docker_insecure_registries`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use hyper::Uri;
use keelblock_actors::error::quote;
use keelblock_actors::image::reference::{DEFAULT_REGISTRY, Reference};

use super::hosts::Host;

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    pub(in crate::puller) fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Why a text names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No `host[:port]`.
    #[error("{0:?} is no registry: write http://, https:// or nothing, and then host[:port]")]
    Host(String),
    /// A user name in the address.
    #[error("the registry address for {0} has a user name in it; give --docker_auth instead")]
    UserName(String),
    /// A path after the host.
    #[error(
        "registry {0:?} has a path after its host; the API of a registry begins at /v2/ of the host itself"
    )]
    Path(String),
}

/// A registry as written in a flag: `host[:port]`, with or without scheme.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryUrl {
    /// The scheme, when written.
    pub scheme: Option<Scheme>,
    /// `host[:port]`, as in references; `docker.io` for all names of Docker Hub.
    pub host: String,
}

impl FromStr for RegistryUrl {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(EndpointError::Host(quote(text))),
            None => (None, text),
        };
        if let Some((_, host)) = rest.rsplit_once('@') {
            return Err(EndpointError::UserName(quote(host)));
        }
        let host = match rest.trim_end_matches('/').strip_suffix("/v2").unwrap_or(rest.trim_end_matches('/'))
        {
            host if host.contains(['/', '?', '#']) => return Err(EndpointError::Path(quote(text))),
            host => host.to_ascii_lowercase(),
        };
        // The grammar of references decides what a host is. It takes a bare word for part of a repository, which in an
        // address it is not: a port makes it a host.
        let bare = !host.contains(['.', ':']) && host != "localhost";
        if bare && scheme.is_none() {
            return Err(EndpointError::Host(quote(text)));
        }
        let written = if bare { format!("{host}:1/x") } else { format!("{host}/x") };
        match written.parse::<Reference>() {
            Ok(reference) if reference.registry.is_some() => {}
            _ => return Err(EndpointError::Host(quote(text))),
        }
        // A bare word cannot be told from a repository in a reference, so it gets the port it means.
        let port = if scheme == Some(Scheme::Http) { 80 } else { 443 };
        let host = if bare { format!("{host}:{port}") } else { host };
        let canonical = Reference { registry: Some(host), repository: "x".into(), tag: None, digest: None };
        Ok(Self { scheme, host: canonical.canonical().registry.unwrap_or_default() })
    }
}

/// Registries that are spoken to over plain http: `host` (any port) or `host:port`, separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InsecureRegistries(Vec<String>);

impl FromStr for InsecureRegistries {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let checked = entries.map(|entry| {
            let host =
                entry.strip_prefix("http://").unwrap_or(entry).trim_end_matches('/').to_ascii_lowercase();
            let url = format!("http://{host}").parse::<RegistryUrl>();
            url.map(|_| host).map_err(|_| EndpointError::Host(quote(entry)))
        });
        checked.collect::<Result<_, _>>().map(Self)
    }
}

impl InsecureRegistries {
    /// Whether this `host[:port]` is spoken to in plain http where nothing says how: loopback, and who stands in it.
    pub(in crate::puller) fn are_plain(&self, server: &str) -> bool {
        is_loopback(server) || self.contains(server)
    }

    /// Whether secrets may travel in plain http to this `host[:port]`: nobody listens on loopback, and elsewhere somebody said
    /// that it is all right.
    pub(super) fn may_see_secrets(&self, server: &str) -> bool {
        self.are_plain(server)
    }

    fn contains(&self, registry: &str) -> bool {
        let (registry, host) = (registry.to_ascii_lowercase(), without_port(registry).to_ascii_lowercase());
        self.0.iter().any(|entry| *entry == registry || *entry == host)
    }
}

/// A repository of a registry, and a server to ask for it: the registry's own, or a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The registry as names have it: `docker.io`, `127.0.0.1:5000`.
    pub registry: String,
    /// The repository, with `library/` where Docker Hub's rule applies.
    pub repository: String,
    /// The server to ask.
    pub host: Arc<Host>,
}

impl Endpoint {
    /// The registry's own server for a reference, in canonical form or not; one without registry is Docker Hub's.
    pub fn of(
        reference: &Reference,
        default_registry: Option<&RegistryUrl>,
        insecure: &InsecureRegistries,
    ) -> Self {
        let canonical = reference.canonical();
        let registry = canonical.registry.unwrap_or_else(|| DEFAULT_REGISTRY.to_owned());
        let written = default_registry.filter(|url| url.host == registry.to_ascii_lowercase());
        let written = written.and_then(|url| url.scheme);
        let plain = insecure.are_plain(&registry);
        let scheme = written.unwrap_or(if plain { Scheme::Http } else { Scheme::Https });
        let host = Host { may_upgrade: written.is_none(), ..Host::own(&registry, scheme) };
        Self { host: Arc::new(host), repository: canonical.repository, registry }
    }

    /// The same over TLS.
    pub(super) fn upgraded(&self) -> Self {
        let host = Host { scheme: Scheme::Https, may_upgrade: false, ..(*self.host).clone() };
        Self { host: Arc::new(host), ..self.clone() }
    }

    /// The address of the API itself, which asks for credentials if anything does.
    pub(super) fn base(&self) -> Option<Uri> {
        let path = format!("{}/", self.host.path);
        let uri = Uri::builder().scheme(self.host.scheme.text()).authority(self.host.server.as_str());
        uri.path_and_query(path).build().ok()
    }

    /// The address of something of the repository: `manifests/latest`, `blobs/sha256:...`. `None` when host and path make no
    /// address, which names that were parsed never do.
    pub(super) fn address(&self, what: &str) -> Option<Uri> {
        let mut path = format!("{}/{}/{what}", self.host.path, self.repository);
        if self.host.mirror {
            // What containerd tells mirrors, and Spegel, Dragonfly and Kraken listen to.
            path.push_str("?ns=");
            path.push_str(&self.registry);
        }
        Uri::builder()
            .scheme(self.host.scheme.text())
            .authority(self.host.server.as_str())
            .path_and_query(path)
            .build()
            .ok()
    }
}

fn without_port(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => registry,
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = without_port(registry);
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bracketed {
        Some(address) => address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(name: &str, default: Option<&str>, insecure: &str) -> String {
        let default = default.map(|text| text.parse().unwrap());
        let endpoint = Endpoint::of(&name.parse().unwrap(), default.as_ref(), &insecure.parse().unwrap());
        endpoint.address("manifests/t").unwrap().to_string()
    }

    #[test]
    fn each_name_leads_to_its_server() {
        for (name, expected) in [
            ("alpine", "https://registry-1.docker.io/v2/library/alpine/manifests/t"),
            ("docker.io/user/app", "https://registry-1.docker.io/v2/user/app/manifests/t"),
            ("quay.io/x/y", "https://quay.io/v2/x/y/manifests/t"),
            ("quay.io/x", "https://quay.io/v2/x/manifests/t"),
            ("r.io:8443/x", "https://r.io:8443/v2/x/manifests/t"),
            ("localhost/x", "http://localhost/v2/x/manifests/t"),
            ("127.0.0.1:5000/x", "http://127.0.0.1:5000/v2/x/manifests/t"),
            ("127.8.8.8/x", "http://127.8.8.8/v2/x/manifests/t"),
            ("[::1]:5000/x", "http://[::1]:5000/v2/x/manifests/t"),
            ("[fe80::1]:5000/x", "https://[fe80::1]:5000/v2/x/manifests/t"),
            ("localhost.evil.io/x", "https://localhost.evil.io/v2/x/manifests/t"),
            ("127.0.0.1.evil.io/x", "https://127.0.0.1.evil.io/v2/x/manifests/t"),
        ] {
            assert_eq!(address(name, None, ""), expected);
        }
    }

    #[test]
    fn flags_decide_how_a_host_is_spoken_to() {
        let scheme = |name, default, insecure| {
            address(name, default, insecure).split(':').next().unwrap_or_default().to_owned()
        };
        assert_eq!(scheme("localhost:5000/x", Some("https://localhost:5000"), ""), "https");
        assert_eq!(scheme("localhost:5001/x", Some("https://localhost:5000"), ""), "http");
        assert_eq!(scheme("r.io/x", Some("http://r.io"), ""), "http");
        assert_eq!(scheme("r.io/x", Some("r.io"), ""), "https");
        assert_eq!(scheme("r.io:81/x", None, "q.io, R.io"), "http");
        assert_eq!(scheme("r.io:81/x", None, "r.io:82"), "https");
        assert_eq!(scheme("[fe80::1]:81/x", None, "[fe80::1]"), "http");
        assert_eq!(scheme("xr.io/x", None, "r.io"), "https");
    }

    #[test]
    fn addresses_in_flags_are_checked() {
        let url = |text: &str| text.parse::<RegistryUrl>();
        assert_eq!(url("https://registry-1.docker.io").unwrap().host, "docker.io");
        assert_eq!(url("https://R.io:5000/").unwrap().host, "r.io:5000");
        assert_eq!(url("https://r.io/v2/").unwrap().host, "r.io");
        assert_eq!(url("http://registry").unwrap().host, "registry:80");
        assert_eq!(url("https://registry").unwrap().host, "registry:443");
        assert_eq!(url("registry:5000").unwrap().scheme, None);
        for text in [
            "",
            "registry",
            "ftp://r.io",
            "https://",
            "https://r io",
            "http://[::1",
            "http://r.io:0",
            "https://ü.io",
        ] {
            assert!(matches!(url(text), Err(EndpointError::Host(_))), "{text}");
        }
        assert!(matches!(url("https://r.io/prefix"), Err(EndpointError::Path(_))));
        let secret = url("https://user:secret@r.io").unwrap_err();
        assert!(!secret.to_string().contains("secret"), "{secret}");
        assert!("r.io,b ad".parse::<InsecureRegistries>().is_err());
    }
}

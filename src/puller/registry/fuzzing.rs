//! What must hold of the headers a registry sends, and of what an operator writes of registries, proxies and credentials:
//! bodies of the fuzz targets `challenge`, `hosts` and `docker_config`.

use hyper::Uri;

use super::challenge::{self, Challenge};
use super::endpoint::{Endpoint, InsecureRegistries};
use super::hosts_toml::HostsFile;
use super::location;
use super::proxy::{NoProxy, Proxy};

/// A docker config: see `credentials/docker_config.rs`.
pub(crate) fn docker_config(bytes: &[u8]) {
    super::credentials::docker_config::holds(bytes);
}

/// `WWW-Authenticate` and `Location`: no parameter comes from nowhere, what was read can be written and reads the same
/// again, and a redirect leads to an http address with a host and no user name, or nowhere.
pub(crate) fn challenge(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let challenges = challenge::parse(text);
    let parameters: usize = challenges.iter().map(|challenge| challenge.parameters().len()).sum();
    assert!(parameters <= text.matches('=').count());
    assert!(challenges.len() <= text.len());
    let written: Vec<String> = challenges.iter().map(write).collect();
    assert_eq!(
        challenge::parse(&written.join(", ")),
        challenges,
        "it reads otherwise when it is written by the rules"
    );
    for challenge in &challenges {
        for (name, value) in challenge.parameters() {
            let first =
                challenge.parameters().iter().find(|(other, _)| other == name).map(|(_, value)| value);
            assert_eq!(
                challenge.parameter(name),
                first.map(String::as_str).filter(|value| !value.is_empty())
            );
            assert!(value.len() <= text.len());
        }
        let realm = challenge.parameter("realm");
        if let Some(Ok(address)) = realm.map(str::parse::<Uri>).map(|uri| uri.map(location::checked))
            && let Ok(address) = address
        {
            safe(&address);
        }
    }
    let base: Uri = "https://r.io:5000/v2/app/blobs/x?y=1".parse().expect("an address");
    if let Ok(target) = location::resolve(&base, text) {
        safe(&target);
        assert!(!location::authority(&target).contains(['/', '?', '@']));
        // Where it leads does not depend on where it is said.
        let there = location::resolve(&target, &target.to_string());
        assert_eq!(there.as_ref(), Ok(&target));
    }
}

/// `hosts.toml`, `NO_PROXY` and the address of a proxy: every server that is written can be asked and is told for which
/// registry unless it is that one, hosts keep their order, and what stands before an `@` is in no text.
pub(crate) fn hosts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let dir = std::path::Path::new("/certs.d/r.io");
    if let Ok(file) = HostsFile::parse(text, dir) {
        let reference = "r.io/a/b".parse().expect("a reference");
        let own = Endpoint::of(&reference, None, &InsecureRegistries::default());
        let endpoints = file.endpoints(&own);
        assert_eq!(endpoints.len(), file.hosts.len() + 1);
        for endpoint in &endpoints {
            let address = endpoint.address("blobs/x").expect("every server can be asked");
            safe(&address);
            assert!(address.path().ends_with("/a/b/blobs/x") && !address.path().contains("//"));
            assert_eq!(address.query(), endpoint.host.mirror.then_some("ns=r.io"));
            assert_eq!(endpoint.host.mirror, endpoint.host.server != "r.io");
            let trust = &endpoint.host.trust;
            let files = trust.ca.iter().chain(trust.client.iter().flat_map(|(one, other)| [one, other]));
            assert!(files.into_iter().all(|path| path.is_absolute()));
        }
        let again = HostsFile::parse(text, dir).expect("it was read before");
        assert_eq!(file, again);
    }
    let without = NoProxy::parse(text);
    assert!(without.covers("localhost", 1) && without.covers("127.0.0.1", 1) && without.covers("[::1]", 1));
    let _ = (without.covers("a.r.io", 443), without.covers("10.0.0.1", 80), without.covers("[2001::1]", 80));
    let shown = match Proxy::parse(&format!("http://me:hushhush@{text}"), "P") {
        Ok(proxy) => {
            safe(&proxy.address);
            proxy.to_string()
        }
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains("hushhush") || text.contains("hushhush"));
}

fn safe(address: &Uri) {
    assert!(matches!(address.scheme_str(), Some("http" | "https")));
    let authority = address.authority().expect("a host").as_str();
    assert!(
        !authority.contains(['@', '/', '?', '#', '\\'])
            && address.host().is_some_and(|host| !host.is_empty())
    );
}

fn write(challenge: &Challenge) -> String {
    let token = |text: &str| {
        !text.is_empty()
            && !text.contains(|c: char| c.is_ascii_uppercase() || c.is_whitespace() || "=,\"\\".contains(c))
    };
    assert!(token(&challenge.scheme), "{challenge:?}");
    let parameters = challenge.parameters().iter().map(|(name, value)| {
        assert!(token(name), "{challenge:?}");
        format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    });
    format!("{} {}", challenge.scheme, parameters.collect::<Vec<_>>().join(", "))
}

//! `hosts.toml`: the servers of a registry as containerd has them written down
//! (its docs/hosts.md and core/remotes/docker/config), so that files written for it work unchanged.
//!
//! Pure. Unlike containerd, which falls back to no mirrors at all, a file that cannot be understood is an error: whoever sets
//! up mirrors may do so because the registry itself must not be asked. Keys that are not known are told, and are no error.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use keelblock_actors::error::quote;
use keelblock_actors::image::reference::DEFAULT_REGISTRY;
use toml::{Table, Value};

use super::endpoint::{Endpoint, Scheme};
use super::hosts::{HUB, Host};
use super::tls::Trust;

/// Why the servers of a registry are not known.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A directory of `--registry_config_path`, or a file in it, cannot be read.
    #[error("cannot read {path} (--registry_config_path), so nothing is asked")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no TOML.
    #[error("{path} is not valid TOML: {why}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why, cut.
        why: String,
    },
    /// A key has a value that means nothing.
    #[error("{path}: {key} must be {wanted}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, as `host."https://mirror".ca`.
        key: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// The file is larger than any that is meant.
    #[error("{path} has more than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many are allowed.
        limit: u64,
    },
}

/// A key that has a wrong value, and what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongKey(pub(super) String, pub(super) &'static str);

const TEXT: &str = "a string";
const YES_OR_NO: &str = "true or false";
const TEXTS: &str = "a string or a list of strings";
const CLIENTS: &str = "a file, a list of files, or a list of [certificate, key]";
const ADDRESS: &str = "http:// or https:// and host[:port], with a path or without, without a user name";
const TABLE: &str = "a table";
const DURATION: &str = "a time above nothing, as in \"300ms\", \"5s\" or \"1m30s\"";
const HEADER: &str = "a header that may be sent: no control characters, and none of the connection's own";

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostsFile {
    /// The servers to ask first, in this order.
    pub(super) hosts: Vec<Written>,
    /// The one to ask last; without a place it is the registry's own.
    pub(super) server: Written,
    /// Keys and capabilities that mean nothing here.
    pub(super) unknown: Vec<String>,
}

/// One server, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Scheme, `host[:port]`, and what its API begins with.
    place: Option<(Option<Scheme>, String, String)>,
    resolve: bool,
    pull: bool,
    pub(super) trust: Trust,
    tls_is_set: bool,
    headers: HeaderMap,
    connect: Option<Duration>,
}

impl HostsFile {
    /// Reads a file whose relative paths are relative to `dir`.
    pub(super) fn parse(text: &str, dir: &Path) -> Result<Self, HostsFileError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let line = line.map_or_else(String::new, |line| format!("line {line}: "));
            // What stands around may be a secret header, so the message alone is repeated.
            HostsFileError::Toml(format!("{line}{}", quote(error.message())))
        })?;
        let mut unknown = Vec::new();
        let server = match table.get("server") {
            Some(value) => Some(text_of(value, "server", TEXT)?),
            None => None,
        };
        let mut file = Self {
            server: written(server.filter(|text| !text.is_empty()), &table, "", dir, &mut unknown)?,
            ..Self::default()
        };
        if let Some(hosts) = table.get("host") {
            let hosts = hosts.as_table().ok_or_else(|| WrongKey("host".to_owned(), TABLE))?;
            for (address, host) in hosts {
                let key = format!("host.{:?}", quote(address));
                let host = host.as_table().ok_or_else(|| WrongKey(key.clone(), TABLE))?;
                let written = written(Some(address), host, &format!("{key}."), dir, &mut unknown)?;
                file.hosts.push(written);
            }
        }
        file.unknown = unknown;
        Ok(file)
    }

    /// The servers to ask for what is in the registry of `own`, in order; `own` is what is asked when the file says nothing.
    pub(super) fn endpoints(&self, own: &Endpoint) -> Vec<Endpoint> {
        let all = self.hosts.iter().chain([&self.server]);
        all.map(|written| Endpoint { host: Arc::new(written.host(own)), ..own.clone() }).collect()
    }
}

/// Why a text is no `hosts.toml`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HostsFileError {
    Toml(String),
    Key(WrongKey),
}

impl From<WrongKey> for HostsFileError {
    fn from(wrong: WrongKey) -> Self {
        Self::Key(wrong)
    }
}

impl HostsFileError {
    pub(super) fn of(self, path: &Path) -> HostsError {
        let path = path.to_owned();
        match self {
            Self::Toml(why) => HostsError::Toml { path, why },
            Self::Key(WrongKey(key, wanted)) => HostsError::Key { path, key, wanted },
        }
    }
}

impl Written {
    /// The registry's own server with these files: Docker's way, without a `hosts.toml`.
    pub(super) fn of_files(ca: Vec<PathBuf>, client: Vec<(PathBuf, PathBuf)>) -> Self {
        let tls_is_set = !(ca.is_empty() && client.is_empty());
        let trust = Trust { ca, client, ..Trust::default() };
        Self { resolve: true, pull: true, trust, tls_is_set, ..Self::default() }
    }

    fn host(&self, own: &Endpoint) -> Host {
        let mut host = match &self.place {
            // containerd does not look at the capabilities here either.
            None => (*own.host).clone(),
            Some((scheme, server, path)) => {
                let registry = &own.registry;
                let is_own = server == registry || (registry == DEFAULT_REGISTRY && server == HUB);
                Host {
                    name: if is_own { registry.clone() } else { server.clone() },
                    server: server.clone(),
                    path: path.clone(),
                    mirror: !is_own,
                    resolve: self.resolve,
                    pull: self.pull,
                    // Whoever writes certificates for a host in plain http may mean TLS.
                    may_upgrade: *scheme == Some(Scheme::Http) && self.tls_is_set,
                    ..Host::own(registry, scheme.unwrap_or(Scheme::Https))
                }
            }
        };
        host.headers.clone_from(&self.headers);
        host.trust = Arc::new(self.trust.clone());
        host.connect = self.connect;
        host
    }
}

/// A server's keys in its table, or in that of the whole file (`prefix` is empty).
fn written(
    address: Option<&str>,
    table: &Table,
    prefix: &str,
    dir: &Path,
    unknown: &mut Vec<String>,
) -> Result<Written, WrongKey> {
    let mut written = Written { resolve: true, pull: true, ..Written::default() };
    let mut override_path = false;
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match name.as_str() {
            "server" | "host" if prefix.is_empty() => {}
            "capabilities" => (written.resolve, written.pull) = capabilities(value, &key, unknown)?,
            "ca" => written.trust.ca = texts(value, &key, TEXTS)?.iter().map(|path| dir.join(path)).collect(),
            "client" => written.trust.client = clients(value, &key, dir)?,
            "skip_verify" => written.trust.skip_verify = yes_or_no(value, &key)?,
            "override_path" => override_path = yes_or_no(value, &key)?,
            "header" => written.headers = headers(value, &key)?,
            "dial_timeout" => written.connect = dial_timeout(value, &key)?,
            _ => unknown.push(quote(&key)),
        }
        written.tls_is_set |= matches!(name.as_str(), "ca" | "client" | "skip_verify");
    }
    let key = match prefix.strip_suffix('.') {
        None => "server",
        Some(key) => key,
    };
    let place = |address| place(address, override_path).ok_or_else(|| WrongKey(key.to_owned(), ADDRESS));
    written.place = address.map(place).transpose()?;
    Ok(written)
}

/// Scheme, server and path of an address. Without a scheme it is https.
fn place(address: &str, override_path: bool) -> Option<(Option<Scheme>, String, String)> {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => ("https".to_owned(), address),
    };
    let scheme = match scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let uri: Uri = format!("http://{rest}").parse().ok()?;
    let server = uri.authority()?.as_str().to_ascii_lowercase();
    if uri.host()?.is_empty() || server.contains('@') || uri.query().is_some() || rest.contains('#') {
        return None;
    }
    let has_port = server.len() > uri.host()?.len();
    if has_port && uri.port_u16().is_none_or(|port| port == 0) {
        return None;
    }
    let mut path = cleaned(uri.path());
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    Some((Some(scheme), server, path))
}

/// Without empty parts, `.` and `..`; the root is empty.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.iter().flat_map(|part| ["/", part]).collect()
}

fn text_of<'a>(value: &'a Value, key: &str, wanted: &'static str) -> Result<&'a str, WrongKey> {
    value.as_str().ok_or_else(|| WrongKey(key.to_owned(), wanted))
}

fn texts<'a>(value: &'a Value, key: &str, wanted: &'static str) -> Result<Vec<&'a str>, WrongKey> {
    match value {
        Value::Array(items) => items.iter().map(|item| text_of(item, key, wanted)).collect(),
        one => Ok(vec![text_of(one, key, wanted)?]),
    }
}

fn yes_or_no(value: &Value, key: &str) -> Result<bool, WrongKey> {
    value.as_bool().ok_or_else(|| WrongKey(key.to_owned(), YES_OR_NO))
}

/// Whether tags may be asked for, and digests. An empty list is no list.
fn capabilities(value: &Value, key: &str, unknown: &mut Vec<String>) -> Result<(bool, bool), WrongKey> {
    let wanted = "a list of \"pull\", \"resolve\" and \"push\"";
    let items = value.as_array().ok_or_else(|| WrongKey(key.to_owned(), wanted))?;
    let (mut resolve, mut pull) = (items.is_empty(), items.is_empty());
    for item in items {
        let text = text_of(item, key, wanted)?;
        match text.to_ascii_lowercase().as_str() {
            "resolve" => resolve = true,
            "pull" => pull = true,
            "push" | "referrers" => {}
            _ => unknown.push(quote(&format!("{key}: {text}"))),
        }
    }
    Ok((resolve, pull))
}

fn clients(value: &Value, key: &str, dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>, WrongKey> {
    let wrong = || WrongKey(key.to_owned(), CLIENTS);
    let both = |path: &str| (dir.join(path), dir.join(path));
    match value {
        Value::String(path) => Ok(vec![both(path)]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(path) => Ok(both(path)),
                Value::Array(_) => match texts(item, key, CLIENTS)?.as_slice() {
                    [certificate, private] => Ok((dir.join(certificate), dir.join(private))),
                    _ => Err(wrong()),
                },
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

fn headers(value: &Value, key: &str) -> Result<HeaderMap, WrongKey> {
    let table = value.as_table().ok_or_else(|| WrongKey(key.to_owned(), TABLE))?;
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let key = format!("{key}.{}", quote(name));
        let wrong = || WrongKey(key.clone(), HEADER);
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let own = [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TE,
            header::UPGRADE,
            header::HOST,
            header::RANGE,
        ];
        if own.contains(&name) {
            return Err(wrong());
        }
        for text in texts(value, &key, TEXTS)? {
            let mut text = HeaderValue::from_str(text).map_err(|_| wrong())?;
            // They are how some mirrors are logged in at.
            text.set_sensitive(true);
            headers.append(&name, text);
        }
    }
    Ok(headers)
}

/// A duration of Go; 0 is no limit of its own.
fn dial_timeout(value: &Value, key: &str) -> Result<Option<Duration>, WrongKey> {
    let wrong = || WrongKey(key.to_owned(), DURATION);
    let text = text_of(value, key, DURATION)?;
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let units =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, seconds) = units.iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(wrong)?;
        total += number * seconds;
        rest = &after[unit.len()..];
    }
    let total = Duration::try_from_secs_f64(total).map_err(|_| wrong())?;
    Ok((!total.is_zero()).then_some(total))
}

#[cfg(test)]
#[path = "hosts_toml_tests.rs"]
mod tests;

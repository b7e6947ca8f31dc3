//! Why a registry did not give what was asked of it, in its own words where it has some.

use std::fmt;
use std::time::Duration;

use keelblock_actors::error::{chain, quote};
use keelblock_actors::image::digest::Digest;
use serde::Deserialize;

use super::auth::AuthError;
use super::failure::HttpError;
use super::hosts_toml::HostsError;
use crate::provider::manifest::ManifestError;

/// What was asked of which registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `manifest`, `config` or `blob`.
    pub what: &'static str,
    /// Its tag or digest.
    pub name: String,
    /// The repository.
    pub repository: String,
    /// The registry: `docker.io`, `127.0.0.1:5000`.
    pub registry: String,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", self.what, self.name, self.repository)
    }
}

/// What a server said of its refusal; prints as an appendix to a sentence, or as nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(pub Option<String>);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|text| write!(f, "; it says {text:?}"))
    }
}

impl Said {
    /// The words in the body of an error answer: `errors` of the distribution API, or what token servers send; of plain text
    /// the first line. HTML and the rest says nothing worth repeating.
    pub(super) fn in_body(body: &[u8], content_type: Option<&str>) -> Self {
        #[derive(Deserialize)]
        struct Body {
            errors: Option<Vec<Entry>>,
            error: Option<String>,
            error_description: Option<String>,
            details: Option<String>,
            message: Option<String>,
        }
        #[derive(Deserialize)]
        struct Entry {
            code: Option<String>,
            message: Option<String>,
        }
        let join = |code: Option<String>, message: Option<String>| match (code, message) {
            (Some(code), Some(message)) => Some(format!("{code}: {message}")),
            (code, message) => code.or(message),
        };
        if let Ok(body) = serde_json::from_slice::<Body>(body) {
            let first = body.errors.and_then(|errors| errors.into_iter().next());
            let words = match first {
                Some(entry) => join(entry.code, entry.message),
                None => join(body.error, body.error_description.or(body.details).or(body.message)),
            };
            return Self(words.filter(|text| !text.is_empty()).map(|text| quote(&text)));
        }
        let plain = content_type.is_some_and(|text| text.trim_start().starts_with("text/plain"));
        let text = String::from_utf8_lossy(if plain { body } else { b"" });
        let line = text.lines().map(str::trim).find(|line| !line.is_empty());
        Self(line.map(quote))
    }
}

/// Why a registry did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry could not be asked, or broke off.
    #[error("cannot get {asked} from registry {}", asked.registry)]
    Http {
        /// What was asked.
        asked: Asked,
        /// Why.
        #[source]
        source: HttpError,
    },
    /// The registry does not have it.
    #[error("registry {} has no {asked} (HTTP 404){said}", asked.registry)]
    NotFound {
        /// What was asked.
        asked: Asked,
        /// What the registry said.
        said: Said,
    },
    /// The registry refuses it to whoever we are.
    #[error(
        "registry {} refuses {asked} (HTTP {status}){said}; asked {credentials}: the repository is private or does not exist, check its name and your credentials (--docker_config, --docker_auth)", asked.registry
    )]
    Denied {
        /// What was asked.
        asked: Asked,
        /// 401 or 403.
        status: u16,
        /// What the registry said.
        said: Said,
        /// As whom it was asked: `without credentials`, `as USER of --docker_auth`.
        credentials: String,
    },
    /// The registry limits how often it is asked.
    #[error(
        "registry {} limits requests and refuses {asked} for now (HTTP 429){said}; asked {credentials}, try again {}", asked.registry, later(*wait)
    )]
    TooMany {
        /// What was asked.
        asked: Asked,
        /// What the registry said.
        said: Said,
        /// As whom it was asked.
        credentials: String,
        /// For how long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// Any other answer than 200.
    #[error("registry {} answers HTTP {status} when asked for {asked}{said}{hint}", asked.registry)]
    Status {
        /// What was asked.
        asked: Asked,
        /// The status.
        status: u16,
        /// What the registry said.
        said: Said,
        /// What to do, beginning with `; `, or nothing.
        hint: &'static str,
        /// For how long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// It broke off, again and again.
    #[error(
        "{asked} of registry {} broke off after {at}{} bytes; tried again {retries} times in all, at last", asked.registry, of(*size)
    )]
    BrokeOff {
        /// What was asked.
        asked: Asked,
        /// Bytes that came.
        at: u64,
        /// Of so many.
        size: Option<u64>,
        /// Attempts after the first, also those that brought something.
        retries: u64,
        /// What became of the last one.
        #[source]
        last: Box<RegistryError>,
    },
    /// Neither mirrors nor the registry gave it.
    #[error("{}{}{}", chain(last), asked_at(at.as_deref()), list(tried))]
    Mirrors {
        /// What became of the last of them, which is the registry itself unless it is switched off.
        last: Box<RegistryError>,
        /// Who that was, if it was not the registry itself.
        at: Option<String>,
        /// The mirrors that were tried before.
        tried: Vec<Tried>,
    },
    /// It failed in a way that may pass, and did so each time.
    #[error("{}; it was asked {attempts} times", chain(last))]
    Retried {
        /// How often it was asked.
        attempts: usize,
        /// What became of the last time.
        last: Box<RegistryError>,
    },
    /// Mirrors are set up, but none that may be asked for this.
    #[error("no host is set up that may be asked for {asked} of registry {}", asked.registry)]
    NoHost {
        /// What would have been asked.
        asked: Asked,
    },
    /// What is written of its servers cannot be read or understood.
    #[error("cannot tell which servers to ask for {asked} of registry {}", asked.registry)]
    Hosts {
        /// What would have been asked.
        asked: Asked,
        /// Why.
        #[source]
        source: Box<HostsError>,
    },
    /// No token or credentials to show.
    #[error("cannot authenticate to registry {} for {asked}", asked.registry)]
    Auth {
        /// What was asked.
        asked: Asked,
        /// Why.
        #[source]
        source: AuthError,
    },
    /// The bytes are not those of the digest they were asked by.
    #[error("registry {} gives {actual} for {asked}; it is corrupt or lies", asked.registry)]
    WrongDigest {
        /// What was asked.
        asked: Asked,
        /// Of the bytes.
        actual: Digest,
    },
    /// The bytes are not those of the digest in the answer's own header.
    #[error(
        "registry {} says that {asked} has digest {stated}, but what it gives has {actual}; it or a proxy before it is corrupt", asked.registry
    )]
    HeaderDigest {
        /// What was asked.
        asked: Asked,
        /// `Docker-Content-Digest`.
        stated: Digest,
        /// Of the bytes.
        actual: Digest,
    },
    /// Not as long as the manifest says.
    #[error(
        "registry {} gives {actual} bytes for {asked}, but its manifest says {expected}; it is corrupt or lies", asked.registry
    )]
    WrongSize {
        /// What was asked.
        asked: Asked,
        /// Of the manifest.
        expected: u64,
        /// Of the answer.
        actual: u64,
    },
    /// A descriptor asks for more than is allowed, before anything was fetched.
    #[error("{asked} in registry {} has {size} bytes; the limit is {limit} (--{flag})", asked.registry)]
    TooLarge {
        /// What would have been asked.
        asked: Asked,
        /// Of its descriptor.
        size: u64,
        /// How many are allowed.
        limit: u64,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// Encoded though it must not be.
    #[error(
        "registry {} sends {asked} with Content-Encoding {encoding:?}, which was not asked for; a proxy before it must leave it alone", asked.registry
    )]
    Encoded {
        /// What was asked.
        asked: Asked,
        /// The encoding, cut.
        encoding: String,
    },
    /// The manifest or config cannot be used.
    #[error("cannot use {asked} from registry {}", asked.registry)]
    Manifest {
        /// What was asked.
        asked: Asked,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Indexes in indexes.
    #[error("{asked} in registry {} leads through more than {limit} indexes (--index_depth_max)", asked.registry)]
    TooDeep {
        /// What was asked.
        asked: Asked,
        /// How many are allowed.
        limit: usize,
    },
    /// A layer that does not say where it is.
    #[error("the layer has no registry and digest to be fetched by")]
    NotAddressed,
    /// Host and repository make no address.
    #[error("registry {} and repository {} make no address", asked.registry, asked.repository)]
    Address {
        /// What would have been asked.
        asked: Asked,
    },
    /// The task that asked is gone.
    #[error("the request for {asked} failed from inside: {why}")]
    Lost {
        /// What was asked.
        asked: Asked,
        /// What the runtime says.
        why: String,
    },
}

/// A mirror that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// `host:port`.
    pub server: String,
    /// What became of it.
    pub why: String,
}

fn list(tried: &[Tried]) -> String {
    let one = |tried: &Tried| format!("mirror {}: {}", tried.server, tried.why);
    match tried.iter().map(one).collect::<Vec<_>>().join("; ") {
        none if none.is_empty() => none,
        list => format!("; before that {list}"),
    }
}

fn asked_at(mirror: Option<&str>) -> String {
    mirror.map_or_else(String::new, |mirror| format!(" (asked at mirror {mirror})"))
}

fn of(size: Option<u64>) -> String {
    size.map_or_else(String::new, |size| format!(" of {size}"))
}

fn later(wait: Option<Duration>) -> String {
    wait.map_or_else(|| "later".to_owned(), |wait| format!("in {} s", wait.as_secs()))
}

impl RegistryError {
    /// What the last server said, whatever others said before it.
    pub fn of_the_last(&self) -> &Self {
        match self {
            Self::Mirrors { last, .. } | Self::BrokeOff { last, .. } | Self::Retried { last, .. } => {
                last.of_the_last()
            }
            own => own,
        }
    }

    /// Whether a server gave something else than was asked for.
    pub(super) fn is_a_lie(&self) -> bool {
        matches!(self, Self::WrongDigest { .. } | Self::HeaderDigest { .. } | Self::WrongSize { .. })
    }

    /// Whether the connection failed, rather than the registry refused or lied.
    pub fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Http { source, .. } => source.is_of_the_connection(),
            Self::Lost { .. } => true,
            Self::Mirrors { last, .. } | Self::BrokeOff { last, .. } | Self::Retried { last, .. } => {
                last.is_of_the_connection()
            }
            Self::Auth { source: AuthError::Http { source, .. }, .. } => source.is_of_the_connection(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_error_answer_are_found_and_cut() {
        let said = |body: &str, content_type| Said::in_body(body.as_bytes(), content_type).0;
        let registry = r#"{"errors":[{"code":"DENIED","message":"no","detail":{"x":1}},{"code":"X"}]}"#;
        assert_eq!(said(registry, None).as_deref(), Some("DENIED: no"));
        assert_eq!(said(r#"{"errors":[]}"#, None), None);
        assert_eq!(
            said(r#"{"details":"incorrect username or password"}"#, None).as_deref(),
            Some("incorrect username or password")
        );
        assert_eq!(
            said(r#"{"error":"invalid_scope","error_description":"d"}"#, None).as_deref(),
            Some("invalid_scope: d")
        );
        assert_eq!(said("\n oops \nmore", Some("text/plain; charset=utf-8")).as_deref(), Some("oops"));
        assert_eq!(said("<html>oops", Some("text/html")), None);
        assert_eq!(said("", Some("text/plain")), None);
        assert_eq!(said("[1,2", None), None);
        let long = said(&format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(5000)), None).unwrap();
        assert!(long.len() < 300);
        assert_eq!(Said(Some("a\n\u{1b}[31m".into())).to_string(), r#"; it says "a\n\u{1b}[31m""#);
    }
}

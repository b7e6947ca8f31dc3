//! Why an answer did not come, in words that say what to do; read out of what hyper, rustls and the kernel report.

use std::error::Error;
use std::io;
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::Error as ClientError;
use keelblock_actors::error::quote;
use rustls::{AlertDescription, CertificateError};

use super::connect::ConnectError;
use super::location;
use super::tls::TlsError;

/// Why an answer did not come, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("cannot connect to {authority}")]
    Connect {
        /// `host:port`.
        authority: String,
        /// Why.
        #[source]
        source: Innermost,
    },
    /// No connection in time.
    #[error("{authority} does not answer: no connection within {} s (--connect_timeout, or dial_timeout of its hosts.toml)", limit.as_secs_f64())]
    ConnectTimeout {
        /// `host:port`.
        authority: String,
        /// The limit.
        limit: Duration,
    },
    /// No way there: its name has no address, or a proxy is in the way.
    #[error("cannot reach {authority}")]
    Unreachable {
        /// `host:port`.
        authority: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// A proxy that wants to know who asks.
    #[error(
        "proxy {proxy} refuses to ask {authority} (HTTP {status}); give the proxy's address as http://USER:PASSWORD@HOST:PORT"
    )]
    ProxyDenied {
        /// `host:port`.
        authority: String,
        /// `http://host:port`.
        proxy: String,
        /// 407.
        status: u16,
    },
    /// A certificate that nobody here vouches for.
    #[error(
        "the certificate of {authority} is signed by an unknown authority; if that is its own, give its certificate by --registry_ca, or as `ca` in its hosts.toml"
    )]
    UnknownAuthority {
        /// `host:port`.
        authority: String,
    },
    /// A certificate that is wrong in itself.
    #[error("the certificate of {authority} is not valid")]
    Certificate {
        /// `host:port`.
        authority: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Plain http where TLS was expected.
    #[error(
        "{authority} does not speak TLS; if it is meant to speak plain http, add it to --docker_insecure_registries"
    )]
    NotTls {
        /// `host:port`.
        authority: String,
    },
    /// A server that wants to know who asks, or does not believe it.
    #[error(
        "{authority} does not accept the client certificate, or wants one; name it as `client` in its hosts.toml"
    )]
    ClientCertificate {
        /// `host:port`.
        authority: String,
        /// Its alert.
        #[source]
        source: rustls::Error,
    },
    /// TLS with something else wrong.
    #[error("cannot agree on TLS with {authority}")]
    Handshake {
        /// `host:port`.
        authority: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// TLS cannot be spoken at all.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nothing came for too long.
    #[error("{authority} sent nothing for {} s (--stall_timeout)", limit.as_secs_f64())]
    Stalled {
        /// `host:port`.
        authority: String,
        /// The limit.
        limit: Duration,
    },
    /// What came is no HTTP.
    #[error("{authority} answers with something that is not HTTP")]
    NotHttp {
        /// `host:port`.
        authority: String,
        /// What is wrong with it.
        #[source]
        source: Innermost,
    },
    /// The connection ended in the middle.
    #[error("the connection to {authority} broke off")]
    Broken {
        /// `host:port`.
        authority: String,
        /// Why.
        #[source]
        source: Innermost,
    },
    /// More than fits the limit.
    #[error("the answer of {authority} has more than {limit} bytes{}", flag.map_or_else(String::new, |flag| format!(" (--{flag})")))]
    TooLarge {
        /// `host:port`.
        authority: String,
        /// How many are allowed.
        limit: u64,
        /// The flag that sets it, unless the limit comes of a manifest.
        flag: Option<&'static str>,
    },
    /// A redirect that leads nowhere.
    #[error("{authority} redirects to {location:?}, but {why}")]
    BadRedirect {
        /// Who sent it.
        authority: String,
        /// Where to, without query, cut.
        location: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A redirect from https to http.
    #[error("{authority} redirects from https to plain http at {to}, which is refused")]
    Downgrade {
        /// Who sent it.
        authority: String,
        /// Where to.
        to: String,
    },
    /// A redirect back to where it came from.
    #[error("{authority} redirects in a circle")]
    RedirectLoop {
        /// Who sent the last one.
        authority: String,
    },
    /// A chain of redirects without end in sight.
    #[error("{authority} redirects once more after {limit} redirects (--redirects_max)")]
    TooManyRedirects {
        /// Who sent the last one.
        authority: String,
        /// How many are allowed.
        limit: usize,
    },
}

impl HttpError {
    /// What became of a request to this address that got no answer; `connect` is the time limit for connections.
    pub(in crate::puller) fn of(address: &Uri, client_error: &ClientError, connect: Duration) -> Self {
        let authority = location::authority(address);
        let source = Innermost::of(client_error);
        if let Some(error) = find::<ConnectError>(client_error) {
            return match error {
                ConnectError::Timeout { limit } => HttpError::ConnectTimeout { authority, limit: *limit },
                source => HttpError::Unreachable { authority, source: source.clone() },
            };
        }
        if let Some(error) = find::<rustls::Error>(client_error) {
            let error_is_connect = client_error.is_connect();
            return match error {
                // The latter by one that has the name of a known one.
                rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                ) => HttpError::UnknownAuthority { authority },
                rustls::Error::InvalidCertificate(_) => {
                    HttpError::Certificate { authority, source: error.clone() }
                }
                rustls::Error::InvalidMessage(_) if error_is_connect => HttpError::NotTls { authority },
                rustls::Error::AlertReceived(alert) if wants_certificate(*alert) => {
                    HttpError::ClientCertificate { authority, source: error.clone() }
                }
                source => HttpError::Handshake { authority, source: source.clone() },
            };
        }
        if client_error.is_connect() {
            return match find::<io::Error>(client_error).map(io::Error::kind) {
                Some(io::ErrorKind::TimedOut) => HttpError::ConnectTimeout { authority, limit: connect },
                // Servers that are given a TLS greeting they cannot read hang up.
                Some(io::ErrorKind::UnexpectedEof) if address.scheme_str() == Some("https") => {
                    HttpError::NotTls { authority }
                }
                _ => HttpError::Connect { authority, source },
            };
        }
        Self::broken(authority, client_error)
    }

    /// What became of an answer that broke off.
    pub(in crate::puller) fn broken(authority: String, error: &(dyn Error + 'static)) -> Self {
        let source = Innermost::of(error);
        match find::<hyper::Error>(error) {
            Some(error) if error.is_parse() => Self::NotHttp { authority, source },
            _ => Self::Broken { authority, source },
        }
    }

    /// Whether the connection failed, rather than the server sent what it must not.
    pub(in crate::puller) fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Stalled { .. }
            | Self::Broken { .. } => true,
            Self::Unreachable { source, .. } => source.is_of_the_connection(),
            _ => false,
        }
    }

    /// Whether the same request may have an answer later.
    pub(in crate::puller) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.may_pass(),
            other => other.is_of_the_connection(),
        }
    }
}

/// Alerts by which servers refuse a client's certificate, or the lack of one.
fn wants_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// The deepest cause of a library's error: what the layers above it say is known already.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Innermost(String);

impl Innermost {
    pub(in crate::puller) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut deepest = error;
        while let Some(next) = below(deepest) {
            deepest = next;
        }
        Self(quote(&deepest.to_string()))
    }
}

/// The first error of this type in a chain.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = below(error);
    }
    None
}

/// The cause of an error. `io::Error` leaves out of its chain the very error it wraps.
fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return Some(inner);
    }
    error.source()
}

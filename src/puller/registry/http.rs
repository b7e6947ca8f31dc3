//! One GET: connections reused, time limits that follow progress, redirects.
//!
//! `Authorization` goes to the server it was made for and nowhere else: no request after a redirect carries it, not even
//! one to the same server (signed addresses of object stores refuse to be asked both ways; MESOS-5172). A redirect never leads from
//! https to http. Queries are never printed: they are signatures.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use keelblock_actors::error::quote;
use rustls::CertificateError;
use tokio::sync::OnceCell;

use super::location;
use super::tls::{self, TlsError};
use crate::limits::Limits;

/// Largest read from a connection, and so the largest piece of a body and the largest head of an answer.
const READ_BYTES_MAX: usize = 64 << 10;
/// Longest body of a redirect that is read to keep its connection.
const DRAIN_BYTES_MAX: u64 = 16 << 10;
/// How long a connection is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);

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
    #[error("{authority} does not answer: no connection within {} s (--connect_timeout)", limit.as_secs_f64())]
    ConnectTimeout {
        /// `host:port`.
        authority: String,
        /// The limit.
        limit: Duration,
    },
    /// A certificate that nobody here vouches for.
    #[error(
        "the certificate of {authority} is signed by an unknown authority; if that is its own, give its certificate by --registry_ca"
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
    /// Whether the connection failed, rather than the server sent what it must not.
    pub(super) fn is_of_the_connection(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Stalled { .. } | Self::Broken { .. }
        )
    }
}

/// The deepest cause of a library's error: what the layers above it say is known already.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Innermost(String);

impl Innermost {
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut deepest = error;
        while let Some(next) = below(deepest) {
            deepest = next;
        }
        Self(quote(&deepest.to_string()))
    }
}

/// What to get.
pub(super) struct Get {
    pub(super) address: Uri,
    pub(super) accept: Option<HeaderValue>,
    pub(super) authorization: Option<HeaderValue>,
}

/// An answer whose head is here and whose body comes.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Whether it comes from where a redirect led.
    pub(super) redirected: bool,
    pub(super) body: Body,
}

impl Answer {
    /// A header's text, if it is there and text.
    pub(super) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A body on its way.
pub(super) struct Body {
    incoming: Incoming,
    authority: String,
    stall: Duration,
}

/// The HTTP client. Making one opens no socket and reads no file.
pub(super) struct Http {
    plain: Client<HttpConnector, Empty<Bytes>>,
    over_tls: OnceCell<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>>,
    ca_file: Option<PathBuf>,
    connect: Duration,
    stall: Duration,
    redirects_max: usize,
}

impl Http {
    pub(super) fn new(limits: &Limits, ca_file: Option<PathBuf>) -> Self {
        Self {
            plain: client().build(tcp(limits.connect_timeout)),
            over_tls: OnceCell::new(),
            ca_file,
            connect: limits.connect_timeout,
            stall: limits.stall_timeout,
            redirects_max: limits.redirects_max,
        }
    }

    /// The answer to a GET, whatever its status, after any redirects.
    pub(super) async fn get(&self, get: Get) -> Result<Answer, HttpError> {
        let Get { mut address, accept, mut authorization } = get;
        let mut seen = HashSet::from([address.to_string()]);
        loop {
            let authority = location::authority(&address);
            let response = self.once(&address, accept.as_ref(), authorization.take()).await?;
            let (head, incoming) = response.into_parts();
            let body = Body { incoming, authority: authority.clone(), stall: self.stall };
            let target = match head.status.as_u16() {
                301 | 302 | 303 | 307 | 308 => head.headers.get(header::LOCATION),
                _ => None,
            };
            let Some(target) = target else {
                let redirected = seen.len() > 1;
                return Ok(Answer { status: head.status, headers: head.headers, redirected, body });
            };
            let text = String::from_utf8_lossy(target.as_bytes());
            let next = location::resolve(&address, &text).map_err(|why| {
                let shown = text.split(['?', '#']).next().unwrap_or_default();
                // A user name would come with a password.
                let shown = shown.rsplit_once('@').map_or(shown, |(_, rest)| rest);
                HttpError::BadRedirect { authority: authority.clone(), location: quote(shown), why }
            })?;
            if address.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(HttpError::Downgrade { authority, to: location::authority(&next) });
            }
            if !seen.insert(next.to_string()) {
                return Err(HttpError::RedirectLoop { authority });
            }
            if seen.len() > self.redirects_max + 1 {
                return Err(HttpError::TooManyRedirects { authority, limit: self.redirects_max });
            }
            body.drain().await;
            address = next;
        }
    }

    async fn once(
        &self,
        address: &Uri,
        accept: Option<&HeaderValue>,
        authorization: Option<HeaderValue>,
    ) -> Result<hyper::Response<Incoming>, HttpError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = address.clone();
        let headers = request.headers_mut();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("keelblock/", env!("CARGO_PKG_VERSION"))),
        );
        // Digests are of the bytes as they lie in the registry.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(accept.map(|accept| (header::ACCEPT, accept.clone())));
        headers.extend(authorization.map(|authorization| (header::AUTHORIZATION, authorization)));
        let response = match address.scheme_str() {
            Some("https") => self.over_tls().await?.request(request),
            _ => self.plain.request(request),
        };
        match tokio::time::timeout(self.stall, response).await {
            Ok(response) => response.map_err(|error| self.failed(address, &error)),
            Err(_) => Err(HttpError::Stalled { authority: location::authority(address), limit: self.stall }),
        }
    }

    async fn over_tls(&self) -> Result<&Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, HttpError> {
        let made = self.over_tls.get_or_try_init(|| async {
            let (ca_file, connect) = (self.ca_file.clone(), self.connect);
            let connector = move || tls::connector(ca_file.as_deref(), tcp(connect));
            let handle = tokio::runtime::Handle::current();
            let connector = super::Task::spawn_blocking(&handle, connector).await;
            let connector = connector.map_err(|lost| HttpError::Broken {
                authority: "the TLS library".to_owned(),
                source: Innermost(lost.to_string()),
            })??;
            Ok::<_, HttpError>(client().build(connector))
        });
        made.await
    }

    fn failed(&self, address: &Uri, client_error: &ClientError) -> HttpError {
        let authority = location::authority(address);
        let source = Innermost::of(client_error);
        if let Some(error) = find::<rustls::Error>(client_error) {
            let error_is_connect = client_error.is_connect();
            return match error {
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                    HttpError::UnknownAuthority { authority }
                }
                rustls::Error::InvalidCertificate(_) => {
                    HttpError::Certificate { authority, source: error.clone() }
                }
                rustls::Error::InvalidMessage(_) if error_is_connect => HttpError::NotTls { authority },
                source => HttpError::Handshake { authority, source: source.clone() },
            };
        }
        if client_error.is_connect() {
            return match find::<io::Error>(client_error).map(io::Error::kind) {
                Some(io::ErrorKind::TimedOut) => HttpError::ConnectTimeout { authority, limit: self.connect },
                // Servers that are given a TLS greeting they cannot read hang up.
                Some(io::ErrorKind::UnexpectedEof) if address.scheme_str() == Some("https") => {
                    HttpError::NotTls { authority }
                }
                _ => HttpError::Connect { authority, source },
            };
        }
        broken(authority, client_error)
    }
}

impl Body {
    /// How many bytes are still to come, where the head said so.
    pub(super) fn size(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// The next bytes, never none; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.incoming.frame()).await;
            let authority = || self.authority.clone();
            match frame {
                Err(_) => return Err(HttpError::Stalled { authority: authority(), limit: self.stall }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(broken(authority(), &error)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    // Trailers end the body; nothing in them is wanted.
                    _ => {}
                },
            }
        }
    }

    /// All of it, if that is at most `limit` bytes.
    pub(super) async fn whole(
        mut self,
        limit: u64,
        flag: Option<&'static str>,
    ) -> Result<Vec<u8>, HttpError> {
        let too_large =
            |authority: &str| HttpError::TooLarge { authority: authority.to_owned(), limit, flag };
        let size = self.size();
        if size.is_some_and(|size| size > limit) {
            return Err(too_large(&self.authority));
        }
        let mut bytes = Vec::with_capacity(size.unwrap_or_default().try_into().unwrap_or_default());
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large(&self.authority));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// As much of it as comes within `limit` bytes: for answers that are read for their message alone.
    pub(super) async fn beginning(mut self, limit: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(bytes.len());
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
        bytes
    }

    /// Reads a short rest so that the connection can serve the next request.
    pub(super) async fn drain(self) {
        if self.size().is_some_and(|size| size <= DRAIN_BYTES_MAX) {
            self.beginning(DRAIN_BYTES_MAX).await;
        }
    }
}

fn client() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).http1_max_buf_size(READ_BYTES_MAX);
    builder
}

fn tcp(connect: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect));
    tcp
}

fn broken(authority: String, error: &(dyn Error + 'static)) -> HttpError {
    let source = Innermost::of(error);
    match find::<hyper::Error>(error) {
        Some(error) if error.is_parse() => HttpError::NotHttp { authority, source },
        _ => HttpError::Broken { authority, source },
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

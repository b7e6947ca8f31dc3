//! One request: connections reused, time limits that follow progress, redirects.
//!
//! `Authorization` goes to the server it was made for and nowhere else: no request after a redirect carries it, not even
//! one to the same server (signed addresses of object stores refuse to be asked both ways; MESOS-5172). A redirect never leads from
//! https to http. Queries are never printed: they are signatures.
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use keelblock_actors::error::quote;
use tokio::sync::OnceCell;

use super::body::Body;
use super::failure::{HttpError, Innermost};
use super::location;
use super::tls::{self, Trust};
use crate::limits::Limits;

/// Largest read from a connection, and so the largest piece of a body and the largest head of an answer.
const READ_BYTES_MAX: usize = 128 << 10;
/// How long a connection is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);

/// What to ask.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) address: Uri,
    /// Goes to whoever answers in the end: `Accept`, `Range`.
    pub(super) headers: HeaderMap,
    /// Goes to the server of `address` and nowhere else.
    pub(super) authorization: Option<HeaderValue>,
    /// Goes to the server of `address` and nowhere else: headers of `hosts.toml`.
    pub(super) private: HeaderMap,
    pub(super) body: Bytes,
    /// Whom to believe there, and who to be.
    pub(super) trust: Arc<Trust>,
}

impl Outgoing {
    pub(super) fn get(address: Uri) -> Self {
        Self {
            method: Method::GET,
            address,
            headers: HeaderMap::new(),
            authorization: None,
            private: HeaderMap::new(),
            body: Bytes::new(),
            trust: Arc::default(),
        }
    }
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

/// The HTTP client. Making one opens no socket and reads no file.
pub(super) struct Http {
    plain: Client<HttpConnector, Full<Bytes>>,
    over_tls: OnceCell<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
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

    /// The answer, whatever its status, after any redirects.
    pub(super) async fn send(&self, outgoing: Outgoing) -> Result<Answer, HttpError> {
        let Outgoing { mut method, mut address, headers, authorization, private, mut body, trust } = outgoing;
        let _ = trust;
        let mut own = private;
        own.extend(authorization.map(|authorization| (header::AUTHORIZATION, authorization)));
        let mut seen = HashSet::from([address.to_string()]);
        loop {
            let authority = location::authority(&address);
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = address.clone();
            *request.headers_mut() = headers.clone();
            request.headers_mut().extend(std::mem::take(&mut own));
            let response = self.once(&address, request).await?;
            let (head, incoming) = response.into_parts();
            let answer = Body::new(incoming, authority.clone(), self.stall);
            let target = match head.status.as_u16() {
                301 | 302 | 303 | 307 | 308 => head.headers.get(header::LOCATION),
                _ => None,
            };
            let Some(target) = target else {
                let redirected = seen.len() > 1;
                return Ok(Answer { status: head.status, headers: head.headers, redirected, body: answer });
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
            answer.drain().await;
            // RFC 9110 section 15.4: 307 and 308 keep the method. No secret of a form goes where a redirect leads.
            if method == Method::POST {
                (method, body) = (Method::GET, Bytes::new());
            }
            address = next;
        }
    }

    async fn once(
        &self,
        address: &Uri,
        mut request: Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, HttpError> {
        let headers = request.headers_mut();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("keelblock/", env!("CARGO_PKG_VERSION"))),
        );
        // Digests are of the bytes as they lie in the registry.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let response = match address.scheme_str() {
            Some("https") => self.over_tls().await?.request(request),
            _ => self.plain.request(request),
        };
        match tokio::time::timeout(self.stall, response).await {
            Ok(response) => response.map_err(|error| HttpError::of(address, &error, self.connect)),
            Err(_) => Err(HttpError::Stalled { authority: location::authority(address), limit: self.stall }),
        }
    }

    async fn over_tls(&self) -> Result<&Client<HttpsConnector<HttpConnector>, Full<Bytes>>, HttpError> {
        let made = self.over_tls.get_or_try_init(|| async {
            let (ca_file, connect) = (self.ca_file.clone(), self.connect);
            let connector = move || tls::connector(ca_file.as_deref(), tcp(connect));
            let handle = tokio::runtime::Handle::current();
            let connector = super::Task::spawn_blocking(&handle, connector).await;
            let connector = connector.map_err(|lost| HttpError::Broken {
                authority: "the TLS library".to_owned(),
                source: Innermost::of(&lost),
            })??;
            Ok::<_, HttpError>(client().build(connector))
        });
        made.await
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

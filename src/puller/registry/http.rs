//! One request: connections reused, time limits that follow progress, redirects.
//!
//! `Authorization` goes to the server it was made for and nowhere else: no request after a redirect carries it, not even
//! one to the same server (signed addresses of object stores refuse to be asked both ways; MESOS-5172). A redirect never leads from
//! https to http. Queries are never printed: they are signatures.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use keelblock_actors::error::quote;

use super::body::Body;
use super::connect::ConnectError;
use super::failure::HttpError;
use super::pools::{Pool, Pools};
use super::slots::Slots;
use super::tls::Trust;
use super::{RegistrySettings, location};
use crate::limits::Limits;

/// Slots of a server beside those of blobs, for manifests and tokens.
const SLOTS_BESIDE_FETCHES: usize = 2;

/// What to ask.
pub(in crate::puller) struct Outgoing {
    pub(in crate::puller) method: Method,
    pub(in crate::puller) address: Uri,
    /// Goes to whoever answers in the end: `Accept`, `Range`.
    pub(in crate::puller) headers: HeaderMap,
    /// Goes to the server of `address` and nowhere else.
    pub(in crate::puller) authorization: Option<HeaderValue>,
    /// Goes to the server of `address` and nowhere else: headers of `hosts.toml`.
    pub(in crate::puller) private: HeaderMap,
    pub(in crate::puller) body: Bytes,
    /// Whom to believe there, and who to be.
    pub(in crate::puller) trust: Arc<Trust>,
    /// The time limit for a connection there, where it is another than `--connect_timeout`.
    pub(in crate::puller) connect: Option<Duration>,
}

impl Outgoing {
    pub(in crate::puller) fn get(address: Uri) -> Self {
        Self {
            method: Method::GET,
            address,
            headers: HeaderMap::new(),
            authorization: None,
            private: HeaderMap::new(),
            body: Bytes::new(),
            trust: Arc::default(),
            connect: None,
        }
    }
}

/// An answer whose head is here and whose body comes.
pub(in crate::puller) struct Answer {
    pub(in crate::puller) status: StatusCode,
    pub(in crate::puller) headers: HeaderMap,
    /// Whether it comes from where a redirect led.
    pub(in crate::puller) redirected: bool,
    pub(in crate::puller) body: Body,
}

impl Answer {
    /// A header's text, if it is there and text.
    pub(in crate::puller) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The HTTP client. Making one opens no socket and reads no file.
pub(in crate::puller) struct Http {
    pools: Pools,
    slots: Slots,
    connect: Duration,
    stall: Duration,
    redirects_max: usize,
}

impl Http {
    pub(in crate::puller) fn new(settings: &RegistrySettings) -> Self {
        let limits = &settings.limits;
        let slots = slots(limits);
        Self {
            pools: Pools::new(settings, slots),
            slots: Slots::new(slots),
            connect: limits.connect_timeout,
            stall: limits.stall_timeout,
            redirects_max: limits.redirects_max,
        }
    }

    /// The answer, whatever its status, after any redirects.
    pub(in crate::puller) async fn send(&self, outgoing: Outgoing) -> Result<Answer, HttpError> {
        let Outgoing { mut method, mut address, headers, authorization, private, mut body, trust, connect } =
            outgoing;
        let home = location::authority(&address);
        let (elsewhere, connect) = (trust.elsewhere(), connect.unwrap_or(self.connect));
        let mut own = private;
        if let Some(authorization) = authorization {
            own.insert(header::AUTHORIZATION, authorization);
        }
        let mut seen = HashSet::from([address.to_string()]);
        loop {
            let authority = location::authority(&address);
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = address.clone();
            *request.headers_mut() = headers.clone();
            request.headers_mut().extend(std::mem::take(&mut own));
            // What is to follow on the bytes that came before must not wait for those that wait for it.
            let slot = match headers.contains_key(header::RANGE) {
                true => self.slots.now(&authority),
                false => self.slots.one(&authority).await,
            };
            let way = match authority == home {
                true => (&trust, connect),
                false => (&elsewhere, self.connect),
            };
            let response = self.once(&address, request, way).await?;
            let (head, incoming) = response.into_parts();
            let answer = Body::new(incoming, authority.clone(), self.stall).holding(slot);
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
        (trust, connect): (&Arc<Trust>, Duration),
    ) -> Result<hyper::Response<Incoming>, HttpError> {
        let headers = request.headers_mut();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("keelblock/", env!("CARGO_PKG_VERSION"))),
        );
        // Digests are of the bytes as they lie in the registry.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let over_tls = address.scheme_str() == Some("https");
        let unusable = |error: &super::ProxyError| HttpError::Unreachable {
            authority: location::authority(address),
            source: ConnectError::from(error.clone()),
        };
        let proxy = self.pools.proxies().of(address).map_err(unusable)?;
        // Over TLS the tunnel has been asked for with it, and the host inside must not see it.
        if let Some(authorization) = proxy.filter(|_| !over_tls).and_then(|proxy| proxy.authorization.clone())
        {
            headers.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let pool = self.pools.get(over_tls.then(|| Arc::clone(trust)), connect).await?;
        let response = match &pool {
            Pool::Plain(client) => client.request(request),
            Pool::OverTls(client) => client.request(request),
        };
        let response = match tokio::time::timeout(self.stall, response).await {
            Ok(response) => response.map_err(|error| HttpError::of(address, &error, connect))?,
            Err(_) => {
                return Err(HttpError::Stalled {
                    authority: location::authority(address),
                    limit: self.stall,
                });
            }
        };
        match proxy {
            Some(proxy) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                let (proxy, status) = (proxy.to_string(), response.status().as_u16());
                Err(HttpError::ProxyDenied { authority: location::authority(address), proxy, status })
            }
            _ => Ok(response),
        }
    }
}

/// Requests at once to one server: `--connections_per_host_max`, and enough for all blobs that are fetched at once and a
/// question beside them, because a blob that has no slot may be waited for by those that have one.
fn slots(limits: &Limits) -> usize {
    limits.connections_per_host_max.max(limits.fetches_max.saturating_add(SLOTS_BESIDE_FETCHES))
}

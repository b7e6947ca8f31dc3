//! Connections: names looked up, addresses of both families tried, proxies asked to make a tunnel.
//!
//! A host of several addresses is tried at all of them within one time limit, of which each has its share, and the other family
//! is begun with when the first has not answered within 300 ms (RFC 8305). TLS with the host itself is the affair of the
//! layer above, inside the tunnel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use keelblock_actors::error::quote;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_service::Service;

use super::failure::Innermost;
use super::proxy::{Proxies, Proxy, ProxyError};

/// Longest head of a proxy's answer to CONNECT. 8 KiB: what servers allow for a whole head.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Why there is no connection, where the words of the libraries would not tell.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address for a name.
    #[error("cannot resolve host {host:?}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: Innermost,
    },
    /// Not in time.
    #[error("no connection within {} s", limit.as_secs_f64())]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The proxy is none that can be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// No connection to the proxy.
    #[error("cannot connect to proxy {proxy}")]
    ToProxy {
        /// `http://host:port`.
        proxy: String,
        /// Why.
        #[source]
        source: Innermost,
    },
    /// The proxy makes no tunnel.
    #[error("proxy {proxy} refuses CONNECT (HTTP {status}{}){}", words(said), hint(*status))]
    Refused {
        /// `http://host:port`.
        proxy: String,
        /// The status.
        status: u16,
        /// Its reason phrase, cut.
        said: String,
    },
    /// It speaks something else.
    #[error("proxy {proxy} answers CONNECT with something that is not HTTP; is it a proxy?")]
    NoHttp {
        /// `http://host:port`.
        proxy: String,
    },
}

fn words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(", {said:?}") }
}

fn hint(status: u16) -> &'static str {
    match status {
        407 => "; give the proxy's address as http://USER:PASSWORD@HOST:PORT",
        400 | 404 | 405 | 501 => "; it seems to be no proxy for https",
        403 => "; it does not let this host through",
        _ => "",
    }
}

impl ConnectError {
    /// Whether the network failed, rather than somebody refused.
    pub(super) fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Timeout { .. } | Self::ToProxy { .. } => true,
            Self::Refused { status, .. } => super::retry::status_may_pass(*status),
            Self::Proxy(_) | Self::NoHttp { .. } => false,
        }
    }

    /// Whether it may be otherwise next time. A name that does not exist is one that was mistyped: only its resolver's words
    /// (of glibc and musl) tell it from a resolver that does not answer.
    pub(super) fn may_pass(&self) -> bool {
        const NO_SUCH_NAME: [&str; 3] = ["not known", "No address associated", "does not resolve"];
        match self {
            Self::Resolve { source, .. } => {
                let why = source.to_string();
                !NO_SUCH_NAME.iter().any(|words| why.contains(words))
            }
            other => other.is_of_the_connection(),
        }
    }
}

/// Looks names up as the system does, and says which one it could not.
#[derive(Clone)]
pub(super) struct Resolver(GaiResolver);

impl Service<Name> for Resolver {
    type Response = <GaiResolver as Service<Name>>::Response;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let host = quote(name.as_str());
        let found = self.0.call(name);
        Box::pin(async move {
            found.await.map_err(|error| ConnectError::Resolve { host, source: Innermost::of(&error) })
        })
    }
}

type Tcp = HttpConnector<Resolver>;

/// Makes connections, through proxies where it must.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: Tcp,
    /// To proxies that speak TLS.
    over_tls: Option<HttpsConnector<Tcp>>,
    proxies: Arc<Proxies>,
    limit: Duration,
}

impl Connector {
    /// `tls` is spoken to proxies, where one of them wants it; `limit` is for a connection, tunnel included.
    pub(super) fn new(proxies: Arc<Proxies>, tls: Option<ClientConfig>, limit: Duration) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver(GaiResolver::new()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limit));
        let over_tls = tls.map(|config| {
            let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
            builder.enable_http1().wrap_connector(tcp.clone())
        });
        Self { tcp, over_tls, proxies, limit }
    }
}

/// A connection to a host, or to a proxy on the way to it.
pub(super) struct Wire {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// Requests on it must name their host: it ends at a proxy.
    of_proxy: bool,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = Wire;
    type Error = Boxed;
    type Future = BoxFuture<'static, Result<Wire, Boxed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Boxed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let limit = connector.limit;
            match tokio::time::timeout(limit, connector.connect(address)).await {
                Ok(wire) => wire,
                Err(_) => Err(ConnectError::Timeout { limit }.into()),
            }
        })
    }
}

impl Connector {
    async fn connect(mut self, address: Uri) -> Result<Wire, Boxed> {
        let proxies = Arc::clone(&self.proxies);
        let Some(proxy) = proxies.of(&address).map_err(|error| ConnectError::from(error.clone()))? else {
            let inner = MaybeHttpsStream::Http(self.tcp.call(address).await?);
            return Ok(Wire { inner, of_proxy: false });
        };
        let inner = self.reach(proxy).await.map_err(|error| ConnectError::ToProxy {
            proxy: proxy.to_string(),
            source: Innermost::of(&*error),
        })?;
        if address.scheme_str() != Some("https") {
            return Ok(Wire { inner, of_proxy: true });
        }
        Ok(Wire { inner: tunnel(inner, proxy, &address).await?, of_proxy: false })
    }

    async fn reach(&mut self, proxy: &Proxy) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, Boxed> {
        match &mut self.over_tls {
            Some(connector) if proxy.address.scheme_str() == Some("https") => {
                connector.call(proxy.address.clone()).await
            }
            _ => Ok(MaybeHttpsStream::Http(self.tcp.call(proxy.address.clone()).await?)),
        }
    }
}

/// Has the proxy connect to the host of this address (RFC 9110 section 9.3.6).
async fn tunnel<S: Read + Write + Unpin>(stream: S, proxy: &Proxy, address: &Uri) -> Result<S, ConnectError> {
    let broken = |source: &io::Error| ConnectError::ToProxy {
        proxy: proxy.to_string(),
        source: Innermost::of(source),
    };
    let port = address.port_u16().unwrap_or(443);
    let host = address.host().unwrap_or_default();
    let mut request = format!(
        "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: keelblock/{}\r\n",
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes();
    if let Some(authorization) = proxy.authorization.as_ref().map(HeaderValue::as_bytes) {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let mut stream = TokioIo::new(stream);
    stream.write_all(&request).await.map_err(|error| broken(&error))?;
    stream.flush().await.map_err(|error| broken(&error))?;
    let mut head = Vec::new();
    while end_of_head(&head).is_none() {
        if head.len() >= HEAD_BYTES_MAX || !could_be_http(&head) {
            return Err(ConnectError::NoHttp { proxy: proxy.to_string() });
        }
        let mut piece = [0; 1024];
        match stream.read(&mut piece).await.map_err(|error| broken(&error))? {
            0 => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
            count => head.extend_from_slice(&piece[..count]),
        }
    }
    let (status, said) =
        status_line(&head).ok_or_else(|| ConnectError::NoHttp { proxy: proxy.to_string() })?;
    match status {
        // In TLS the client speaks first: whatever follows is not the host's.
        200..=299 if end_of_head(&head) == Some(head.len()) => Ok(stream.into_inner()),
        200..=299 => Err(ConnectError::NoHttp { proxy: proxy.to_string() }),
        _ => Err(ConnectError::Refused { proxy: proxy.to_string(), status, said: quote(&said) }),
    }
}

fn end_of_head(head: &[u8]) -> Option<usize> {
    head.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn could_be_http(head: &[u8]) -> bool {
    let start = b"HTTP/1.";
    let count = head.len().min(start.len());
    head[..count] == start[..count]
}

/// `HTTP/1.1 407 Proxy Authentication Required`.
fn status_line(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    let mut words = line.splitn(3, ' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next().filter(|status| status.len() == 3)?.parse().ok()?;
    Some((status, words.next().unwrap_or_default().trim().to_owned()))
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.of_proxy)
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(bytes: &'static [u8]) -> (Result<(), String>, String) {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let proxy = Proxy::parse("http://me:hush@p.io:3128", "HTTPS_PROXY").unwrap();
        let address: Uri = "https://r.io/v2/?sig=secret".parse().unwrap();
        let ask = async { tunnel(TokioIo::new(ours), &proxy, &address).await };
        let serve = async {
            let mut request = vec![0; 4096];
            let count = theirs.read(&mut request).await.unwrap();
            theirs.write_all(bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            String::from_utf8(request[..count].to_vec()).unwrap()
        };
        let (asked, request) = tokio::join!(ask, serve);
        let asked = asked.map(drop).map_err(|error| keelblock_actors::error::chain(&error));
        assert!(asked.as_ref().err().is_none_or(|text| !text.contains("hush") && !text.contains("secret")));
        (asked, request)
    }

    #[test]
    fn a_name_that_does_not_exist_is_not_looked_up_again() {
        let resolve = |why: &str| ConnectError::Resolve {
            host: "h".into(),
            source: Innermost::of(&io::Error::other(why.to_owned())),
        };
        let known = "failed to lookup address information: Name or service not known";
        let away = "failed to lookup address information: Temporary failure in name resolution";
        assert!(!resolve(known).may_pass() && resolve(known).is_of_the_connection());
        assert!(resolve(away).may_pass());
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_answers_are_understood() {
        let (made, request) = answer(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await;
        assert_eq!(made, Ok(()));
        assert!(request.starts_with("CONNECT r.io:443 HTTP/1.1\r\nHost: r.io:443\r\n"), "{request}");
        assert!(request.contains("\r\nProxy-Authorization: Basic bWU6aHVzaA==\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n") && !request.contains("secret"));
        for (bytes, expected) in [
            (
                &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
                "refuses CONNECT (HTTP 407, \"Proxy Authentication Required\"); give the proxy's address as http://USER",
            ),
            (
                b"HTTP/1.0 403 Blocked by policy\r\n\r\n<html>",
                "(HTTP 403, \"Blocked by policy\"); it does not let",
            ),
            (b"HTTP/1.1 405\r\n\r\n", "(HTTP 405); it seems to be no proxy"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "(HTTP 502, \"Bad Gateway\")"),
            (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
            (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
            (b"HTTP/1.1 200 OK\r\n\r\nmore", "not HTTP"),
            (b"HTTP/1.1 200 OK\r\n", "end of file"),
        ] {
            let (refused, _) = answer(bytes).await;
            let refused = refused.unwrap_err();
            assert!(refused.contains("proxy http://p.io:3128"), "{refused}");
            assert!(refused.contains(expected), "{refused}");
        }
    }
}

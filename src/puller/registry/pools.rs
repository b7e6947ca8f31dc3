//! The connections that are there: one pool for each trust and time limit, made when first needed.
//!
//! Over TLS, HTTP/2 is offered (ALPN) and spoken where the server wants it, on one connection for all requests. All its streams
//! share one window of flow control, so a layer whose reader waits for a slot to be unpacked could hold it and starve the
//! very layer that has the slot. Therefore the window of a connection is as large as those of all streams that may be under
//! way ([`super::slots`]) together: what is not read fills its own stream's window and no other's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Builder, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use tokio::sync::OnceCell;

use super::connect::Connector;
use super::failure::{HttpError, Innermost};
use super::proxy::Proxies;
use super::tls::{self, TlsError, Trust};
use super::{RegistrySettings, Task};

/// Largest read from a connection, and so the largest piece of a body and the largest head of an answer.
const READ_BYTES_MAX: usize = 128 << 10;
/// How long a connection is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of one HTTP/2 stream that may be on their way or wait to be read. 2 MiB: 1 Gbit/s at 16 ms, and no more memory for a
/// blob that waits than over HTTP/1.1.
const STREAM_WINDOW: u32 = 2 << 20;
/// Largest piece of a body that a server may send over HTTP/2. 128 KiB, as of a read over HTTP/1.1; servers that have less at
/// once send less.
const FRAME_BYTES_MAX: u32 = 128 << 10;
/// How often an HTTP/2 connection with requests is asked whether it still stands. 20 s: below the 30 s after which the most hasty
/// of load balancers forget one.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long it has to answer that. 20 s: as hyper has it.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pools kept. 64: hosts of a `hosts.toml` that have certificates of their own, and these before the last change.
const POOLS_MAX: usize = 64;

type Plain = Client<Connector, Full<Bytes>>;
type OverTls = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// A client for plain http or for TLS.
#[derive(Clone)]
pub(super) enum Pool {
    Plain(Plain),
    OverTls(OverTls),
}

/// Servers that share connections: the trust they have over TLS, and the limit for a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    trust: Option<Arc<Trust>>,
    connect: Duration,
}

/// The pools.
pub(super) struct Pools {
    made: Mutex<HashMap<Key, Arc<OnceCell<Pool>>>>,
    roots: OnceCell<Arc<RootCertStore>>,
    ca_file: Option<PathBuf>,
    proxies: Arc<Proxies>,
    http2: bool,
    /// Streams at once on one connection.
    streams: usize,
}

impl Pools {
    pub(super) fn new(settings: &RegistrySettings, streams: usize) -> Self {
        Self {
            made: Mutex::default(),
            roots: OnceCell::new(),
            ca_file: settings.ca_file.clone(),
            proxies: Arc::new(settings.proxies.clone()),
            http2: settings.http2,
            streams,
        }
    }

    /// The proxies in force.
    pub(super) fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The pool for plain http (`trust` is `None`) or for TLS with this trust.
    pub(super) async fn get(&self, trust: Option<Arc<Trust>>, connect: Duration) -> Result<Pool, HttpError> {
        let cell = self.cell(Key { trust: trust.clone(), connect });
        let made = cell.get_or_try_init(|| async {
            let for_proxy = match self.proxies.over_tls() {
                true => Some(self.config(Arc::default()).await?),
                false => None,
            };
            let connector = Connector::new(Arc::clone(&self.proxies), for_proxy, connect);
            let Some(trust) = trust else {
                return Ok(Pool::Plain(self.builder().build(connector)));
            };
            let config = self.config(trust).await?;
            let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
            let connector = match self.http2 {
                true => builder.enable_all_versions().wrap_connector(connector),
                false => builder.enable_http1().wrap_connector(connector),
            };
            Ok(Pool::OverTls(self.builder().build(connector)))
        });
        made.await.cloned()
    }

    fn cell(&self, key: Key) -> Arc<OnceCell<Pool>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= POOLS_MAX && !made.contains_key(&key) {
            // Those in use live on in their requests; the plain ones and those of the default trust are cheap to make again.
            made.clear();
        }
        Arc::clone(made.entry(key).or_default())
    }

    async fn config(&self, trust: Arc<Trust>) -> Result<rustls::ClientConfig, HttpError> {
        let ca_file = self.ca_file.clone();
        let roots = self.roots.get_or_try_init(|| async {
            reading(move || tls::roots(ca_file.as_deref()).map(Arc::new)).await
        });
        let roots = Arc::clone(roots.await?);
        reading(move || tls::config(&roots, &trust)).await
    }

    fn builder(&self) -> Builder {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(READ_BYTES_MAX)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(connection_window(self.streams))
            .http2_max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT);
        builder
    }
}

/// The windows of twice so many streams, as some requests do not wait for a slot; at most what the protocol has.
fn connection_window(streams: usize) -> u32 {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    STREAM_WINDOW.saturating_mul(streams.saturating_mul(2)).min(i32::MAX.cast_unsigned())
}

async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, TlsError> + Send + 'static,
) -> Result<T, HttpError> {
    let handle = tokio::runtime::Handle::current();
    let done = Task::spawn_blocking(&handle, read).await;
    let done = done.map_err(|lost| HttpError::Broken {
        authority: "the TLS library".to_owned(),
        source: Innermost::of(&lost),
    })?;
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_room_for_all_its_streams() {
        assert_eq!(connection_window(16), 32 * STREAM_WINDOW);
        assert_eq!(connection_window(usize::MAX), i32::MAX.cast_unsigned());
    }
}

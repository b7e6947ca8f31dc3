//! ACIs over HTTP and from directories: discovery by name, and the fetch into the spool (appc spec, discovery.md).
//!
//! From a name to a file on this machine that nobody has verified yet ([`AppcSource`]), and from that file to its bytes
//! ([`AppcPuller`]). Connections, TLS, proxies, redirects, time limits and pauses are those of `registry`; this room adds which
//! addresses a name means, and a spool, because nothing is known of an archive before it was read to its end. Everything a server
//! sends is hostile: pages and signatures are bounded, archives by `--layer_bytes_max`.
//!
//! - `prefix`: where simple discovery looks; `template`: addresses, by its rule and by templates; `html`: the tags of a page;
//! - `discover`: from place to place; `error`: what all of them said;
//! - `web`: one question, who to be, and whether it is asked again; `fetch`: an archive in however many answers it takes;
//!   `spool`: where it lies, and what is known of it; `files`: those that lie on this machine already;
//! - `puller`: the bytes.

mod discover;
mod error;
mod fetch;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod html;
mod prefix;
mod puller;
mod spool;
mod template;
mod web;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use keelblock_actors::image::appc::AcIdentifier;
use keelblock_actors::progress::Observer;
use slog::Logger;
use tokio::runtime::Handle;

pub use discover::KeyPlace;
pub use error::PlaceError;
pub use prefix::{AppcPrefix, PrefixError};
pub use puller::AppcPuller;
pub use template::AddressError;

use self::discover::Search;
use self::fetch::Wanted;
use self::web::{Small, Web};
use crate::provider::appc::ports::{AciFetchError, AciSource, FetchedAci, WantedAci};
use crate::puller::registry::{HostMetrics, RegistrySettings, Task};

/// What an [`AppcSource`] is told once, by flags.
#[derive(Clone)]
pub struct AppcSourceSettings {
    /// `--appc_simple_discovery_uri_prefix`.
    pub prefix: AppcPrefix,
    /// Limits, trust, proxies, who is spoken to in plain http (`insecure`), who to be: as for registries.
    pub registry: RegistrySettings,
    /// Where archives lie until they are unpacked. Made when it is needed.
    pub spool: PathBuf,
    /// Hears of archives on their way.
    pub observer: Arc<dyn Observer>,
}

/// Brings ACIs. Cheap to make and to clone; the first use of TLS reads the system's certificates.
#[derive(Clone)]
pub struct AppcSource {
    handle: Handle,
    state: Arc<State>,
}

type Flight = Shared<BoxFuture<'static, Result<FetchedAci, error::Shared>>>;
type Watch = WeakShared<BoxFuture<'static, Result<FetchedAci, error::Shared>>>;

struct State {
    web: Web,
    prefix: AppcPrefix,
    spool: PathBuf,
    /// The fetches under way. The map only watches: the last of those who wait for one ends it by leaving.
    flights: Mutex<HashMap<WantedAci, Watch>>,
}

impl State {
    fn search(&self) -> Search<'_> {
        Search { web: &self.web, prefix: &self.prefix, spool: &self.spool }
    }

    async fn fetch(&self, wanted: WantedAci) -> Result<FetchedAci, AciFetchError> {
        match wanted {
            WantedAci::Named { name, size, signature } => {
                self.search().archive(&name, Wanted { size, signature }).await
            }
            WantedAci::File { path, signature } => files::fetch(path, None, signature).await,
        }
    }
}

impl AppcSource {
    /// A source that works on the runtime of this handle, which must have timers and sockets enabled and threads of its own.
    pub fn new(settings: AppcSourceSettings, handle: Handle, log: Logger) -> Self {
        let AppcSourceSettings { prefix, registry, spool, observer } = settings;
        let web = Web::new(registry, observer, log);
        Self { handle, state: Arc::new(State { web, prefix, spool, flights: Mutex::default() }) }
    }

    /// How the servers that were asked did so far, by `host:port`.
    pub fn metrics(&self) -> std::collections::BTreeMap<String, HostMetrics> {
        self.state.web.meter.snapshot()
    }

    /// The public keys that discovery pages name for a name, or a prefix of names (`ac-discovery-pubkeys`): those of the first
    /// page, from the path of the name up, that names any. Nothing says yet that they are to be trusted.
    ///
    /// # Errors
    /// [`AciFetchError`] when no page names any, or none of those that are named can be had.
    ///
    /// # Cancel safety
    /// Dropping the future ends the requests.
    pub async fn keys(&self, prefix: &AcIdentifier) -> Result<Vec<KeyPlace>, AciFetchError> {
        let (state, name) = (Arc::clone(&self.state), prefix.clone());
        let from = name.to_string();
        let task = Task::spawn(&self.handle, async move { state.search().keys(&name).await });
        let lost = |why: tokio::task::JoinError| {
            let source = PlaceError::Lost(why.to_string()).into();
            Err(AciFetchError::Failed { from, source })
        };
        task.await.unwrap_or_else(lost)
    }

    /// What lies at this address, if it has at most so many bytes. For plain http the address must say so.
    ///
    /// # Errors
    /// [`PlaceError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the request.
    pub async fn get_small(&self, address: &str, bytes_max: u64) -> Result<Vec<u8>, PlaceError> {
        let address = template::address(address)?;
        let state = Arc::clone(&self.state);
        let task = Task::spawn(&self.handle, async move {
            match state.web.small(&address, bytes_max, false, None).await? {
                Small::Whole { bytes, .. } => Ok(bytes),
                // It was not asked on a condition.
                Small::NotModified => {
                    Err(PlaceError::Status { status: 304, hint: String::new(), wait: None })
                }
            }
        });
        task.await.unwrap_or_else(|why| Err(PlaceError::Lost(why.to_string())))
    }

    /// The fetch of this archive that is under way, or a new one.
    fn flight(&self, wanted: WantedAci) -> Flight {
        let mut flights = self.state.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = flights.get(&wanted).and_then(WeakShared::upgrade);
        // What ended is not joined: it may be another by now.
        if let Some(flight) = under_way.filter(|flight| flight.peek().is_none()) {
            return flight;
        }
        flights.retain(|_, watch| watch.upgrade().is_some_and(|flight| flight.peek().is_none()));
        let (state, own) = (Arc::clone(&self.state), wanted.clone());
        let task = Task::spawn(&self.handle, async move { state.fetch(own).await });
        let from = match &wanted {
            WantedAci::Named { name, .. } => name.to_string(),
            WantedAci::File { path, .. } => path.display().to_string(),
        };
        let fetched = async move {
            let lost = |why: tokio::task::JoinError| {
                let source = PlaceError::Lost(why.to_string()).into();
                Err(AciFetchError::Failed { from, source })
            };
            task.await.unwrap_or_else(lost).map_err(|error| error::Shared(Arc::new(error)))
        };
        let flight = fetched.boxed().shared();
        if let Some(watch) = flight.downgrade() {
            flights.insert(wanted, watch);
        }
        flight
    }
}

impl AciSource for AppcSource {
    fn fetch(&self, wanted: WantedAci) -> BoxFuture<'static, Result<FetchedAci, AciFetchError>> {
        let flight = self.flight(wanted);
        async move { flight.await.map_err(error::Shared::take) }.boxed()
    }
}

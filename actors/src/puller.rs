//! Pullers: one actor per source; together they see to it that each layer is brought once.
//!
//! All pullers share one table of flights ([`crate::flight`]), since the same layer may be wanted from a registry and
//! from an archive at once. A flight claims the layer in the store (which settles it with other processes), opens the
//! blob, and has the store unpack it while the bytes come.

use std::cell::RefCell;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use futures_util::FutureExt;
use slog::Logger;
use tokio::sync::Semaphore;

use crate::error::{JobLost, PullError};
use crate::flight::Flights;
use crate::image::plan::{LayerKey, LayerSource, LayerSpec};
use crate::messages::{PullLayer, Pulled, PulledLayer};
use crate::pool::{Pool, guarded};
use crate::ports::{Claim, Puller, Staging, Store};
use crate::progress::{LayerEvent, Observer};
use crate::reply::WhileWanted;

/// First pause before a layer that another process is bringing is asked for again.
const ELSEWHERE_PAUSE_MIN: Duration = Duration::from_millis(25);
/// Longest such pause.
const ELSEWHERE_PAUSE_MAX: Duration = Duration::from_millis(250);

/// The flights of all pullers: who leads from which source, and the second flights of their followers.
pub(crate) type LayerFlights = Rc<RefCell<Flights<(LayerKey, Option<LayerSource>), Landed>>>;

/// What a flight brought, and from which source it tried.
type Landed = (Pulled, LayerSource);

/// What every flight needs.
pub(crate) struct PullDeps {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) disk: Pool,
    pub(crate) unpack: Pool,
    pub(crate) fetches: Arc<Semaphore>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) log: Logger,
}

pub(crate) struct PullerActor {
    pub(crate) port: Arc<dyn Puller>,
    pub(crate) deps: Rc<PullDeps>,
    pub(crate) flights: LayerFlights,
}

impl Actor for PullerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(crate::system::MAILBOX);
    }
}

impl Handler<PullLayer> for PullerActor {
    type Result = WhileWanted<Pulled>;

    fn handle(&mut self, PullLayer { layer }: PullLayer, _: &mut Self::Context) -> Self::Result {
        let (flights, deps, port) = (self.flights.clone(), self.deps.clone(), self.port.clone());
        WhileWanted(
            async move {
                let fly = |flights: &LayerFlights, own: Option<LayerSource>| {
                    let start = || {
                        let (deps, port, layer) = (deps.clone(), port.clone(), layer.clone());
                        async move {
                            let source = layer.source.clone();
                            (guarded("pull", pull(deps, port, layer)).await.map_err(Arc::new), source)
                        }
                    };
                    flights.borrow_mut().join((layer.key.clone(), own), start).0
                };
                let (landed, source) = fly(&flights, None).await;
                match landed {
                    Err(error) if error.is_of_the_source() && source != layer.source => {
                        slog::info!(deps.log, "a layer failed from another source, trying our own";
                            "layer" => %layer.key, "error" => crate::error::chain(&*error));
                        fly(&flights, Some(layer.source.clone())).await.0
                    }
                    landed => landed,
                }
            }
            .boxed_local(),
        )
    }
}

/// One flight, from claim to commit.
async fn pull(d: Rc<PullDeps>, port: Arc<dyn Puller>, layer: LayerSpec) -> Result<PulledLayer, PullError> {
    let staging = match claim(&d, &layer).await? {
        Here(stored) => {
            d.observer.layer(&layer.key, LayerEvent::Reused);
            return Ok(PulledLayer { layer: stored, fetched_bytes: None });
        }
        Ours(staging) => staging,
    };
    let ended = Ended { observer: d.observer.clone(), key: layer.key.clone(), committed: false };
    // Bytes move from here on: at most so many at once, and the place is free as soon as they stop.
    let Ok(_fetching) = d.fetches.clone().acquire_owned().await else {
        return Err(JobLost::Shutdown { pool: "fetch" }.into());
    };
    let blob = port.open(&layer).await?;
    // Dropped with this future: the reader on the pool thread then ends even while it waits for bytes.
    let _lease = blob.lease;
    d.observer.layer(&layer.key, LayerEvent::Started { total: layer.blob.size.or(blob.size) });
    let mut reader =
        Counted { inner: blob.reader, bytes: 0, observer: d.observer.clone(), key: layer.key.clone() };
    let job_layer = layer.clone();
    let unpacked = d.unpack.run(move |stop| {
        let stored = staging.unpack(&job_layer, &mut reader, stop)?;
        Ok::<_, crate::error::UnpackError>((stored, reader.bytes))
    });
    let (stored, bytes) = unpacked.await?;
    ended.committed();
    slog::info!(d.log, "layer unpacked"; "layer" => %layer.key, "bytes" => bytes);
    Ok(PulledLayer { layer: stored, fetched_bytes: Some(bytes) })
}

enum Claimed {
    Here(crate::ports::StoredLayer),
    Ours(Box<dyn Staging>),
}
use Claimed::{Here, Ours};

/// The layer, or the right to bring it, once no other process has it.
async fn claim(d: &PullDeps, layer: &LayerSpec) -> Result<Claimed, PullError> {
    let mut pause = ELSEWHERE_PAUSE_MIN;
    loop {
        let (store, key) = (d.store.clone(), layer.key.clone());
        match d.disk.run(move |_| store.claim(&key)).await? {
            Claim::Here(stored) => return Ok(Here(stored)),
            Claim::Mine(staging) => return Ok(Ours(staging)),
            Claim::Elsewhere => {
                d.observer.layer(&layer.key, LayerEvent::WaitingForOther);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ELSEWHERE_PAUSE_MAX);
            }
        }
    }
}

/// Tells the observer how a flight ended, also one that is given up.
struct Ended {
    observer: Arc<dyn Observer>,
    key: LayerKey,
    committed: bool,
}

impl Ended {
    fn committed(mut self) {
        self.committed = true;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let event = if self.committed { LayerEvent::Committed } else { LayerEvent::Ended };
        self.observer.layer(&self.key, event);
    }
}

/// Counts what goes through.
struct Counted {
    inner: Box<dyn Read + Send>,
    bytes: u64,
    observer: Arc<dyn Observer>,
    key: LayerKey,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        if read > 0 {
            self.observer.layer(&self.key, LayerEvent::Fetched { bytes: read as u64 });
        }
        Ok(read)
    }
}

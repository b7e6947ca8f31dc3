//! Pullers: one actor per source; together they see to it that each layer is brought once.
//!
//! All pullers share one table of flights ([`crate::flight`]), since the same layer may be wanted from a registry and
//! from an archive at once. A flight claims the layer in the store (which settles it with other processes), opens the
//! blob, and has the store unpack it while the bytes come.
//!
//! It takes its place in the lane of its source first and the slot of its unpack second, and then opens the blob: a
//! connection is never opened before there is a thread that drains it, so none runs into a timeout in a queue; and a registry that
//! is slow fills its own lane, which is narrower than the pool. The place in the lane goes with the last byte, not with the
//! fsync and the rename that follow.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::{Actor, Context, Handler};
use futures_util::FutureExt;
use slog::Logger;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{PullError, UnpackError};
use crate::flight::Flights;
use crate::image::plan::{LayerKey, LayerSpec};
use crate::lanes::Lanes;
use crate::messages::{PullLayer, Pulled, PulledLayer};
use crate::pool::{Pool, caught, guarded};
use crate::ports::{Claim, Puller, Staging, Store};
use crate::progress::{LayerEvent, Observer};
use crate::reply::WhileWanted;
use crate::transfer::Transfer;

/// First pause before a layer that another process is bringing is asked for again.
const ELSEWHERE_PAUSE_MIN: Duration = Duration::from_millis(25);
/// Longest such pause.
const ELSEWHERE_PAUSE_MAX: Duration = Duration::from_millis(250);

/// The flights of all pullers: first ones (`None`), and second ones of followers by what they ask for.
pub(crate) type LayerFlights = Rc<RefCell<Flights<(LayerKey, Option<Rc<LayerSpec>>), Landed>>>;

/// What a flight brought, and what its leader asked for.
type Landed = (Pulled, Rc<LayerSpec>);

/// What every flight needs.
pub(crate) struct PullDeps {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) disk: Pool,
    pub(crate) unpack: Pool,
    pub(crate) lanes: Lanes,
    /// Whether a layer in the store is given only to those who can show, or whose source says, that they may have it.
    pub(crate) authorize_stored: bool,
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
                let layer = Rc::new(layer);
                let fly = |own: Option<Rc<LayerSpec>>| {
                    let start = || {
                        let (deps, port, layer) = (deps.clone(), port.clone(), layer.clone());
                        async move {
                            (guarded("pull", pull(deps, port, &layer)).await.map_err(Arc::new), layer.clone())
                        }
                    };
                    flights.borrow_mut().join((layer.key.clone(), own), start).0
                };
                // What one may have says nothing of what another may.
                if deps.authorize_stored {
                    return fly(Some(layer.clone())).await.0;
                }
                let (landed, asked) = fly(None).await;
                match landed {
                    // Another source, or another manifest's word for the blob at the same source.
                    Err(error) if error.is_of_the_source() && asked != layer => {
                        slog::info!(deps.log, "a layer failed from another source, trying our own";
                            "layer" => %layer.key, "error" => crate::error::chain(&*error));
                        fly(Some(layer.clone())).await.0
                    }
                    landed => landed,
                }
            }
            .boxed_local(),
        )
    }
}

/// One flight, from claim to commit.
async fn pull(d: Rc<PullDeps>, port: Arc<dyn Puller>, layer: &LayerSpec) -> Result<PulledLayer, PullError> {
    let told = Told { observer: d.observer.clone(), key: layer.key.clone(), open: Cell::new(false) };
    let (observer, key) = (d.observer.clone(), layer.key.clone());
    let transfer = Arc::new(Transfer::new(move |event| observer.layer(&key, event)));
    let fetched = Arc::new(AtomicU64::new(0));
    loop {
        let attempt = attempt(&d, &*port, layer, &told, &transfer, &fetched).await;
        let error = match attempt {
            Err(PullError::Unpack(error)) if is_of_the_bytes(&error) => error,
            attempt => return attempt,
        };
        // A bit that flipped on the line, a mirror that lies: another attempt may bring the right ones.
        let Some(servers) = transfer.begin_anew(fetched.swap(0, Ordering::Relaxed)) else {
            return Err(error.into());
        };
        slog::warn!(d.log, "a layer came wrong and is fetched once more, from another host if there is one";
            "layer" => %layer.key, "hosts" => servers.join(" "), "error" => crate::error::chain(&error));
    }
}

/// Whether the bytes are not those that the manifest means, so that others would do.
fn is_of_the_bytes(error: &UnpackError) -> bool {
    // What cannot be decompressed is seen as such before the end, where its digest would tell why.
    matches!(error, UnpackError::WrongDigest { .. } | UnpackError::BadStream { .. })
}

/// One attempt, from claim to commit.
async fn attempt(
    d: &PullDeps,
    port: &dyn Puller,
    layer: &LayerSpec,
    told: &Told,
    transfer: &Arc<Transfer>,
    fetched: &Arc<AtomicU64>,
) -> Result<PulledLayer, PullError> {
    let mut claimed = claim(d, layer, told, false).await?;
    if let Here(stored) = &claimed
        && d.authorize_stored
        && !is_vouched_for(d, port, layer, stored).await?
    {
        slog::info!(d.log, "a layer of the store is fetched to see whether it may be had"; "layer" => %layer.key);
        claimed = claim(d, layer, told, true).await?;
    }
    let staging = match claimed {
        Here(stored) => {
            told.end(LayerEvent::Reused);
            let transfer = transfer.counts();
            return Ok(PulledLayer { layer: stored, fetched_bytes: None, transfer });
        }
        Ours(staging) => staging,
    };
    let permit = d.lanes.enter(&layer.source).await?;
    let slot = d.unpack.slot().await?;
    // Bytes move from here on.
    told.tell(LayerEvent::Started { total: layer.blob.size });
    let blob = port.open_for(layer, transfer.clone()).await?;
    // Dropped with this future: the reader on the pool thread then ends even while it waits for bytes.
    let _lease = blob.lease;
    let fetch = Some((blob.reader, permit));
    let bytes = fetched.clone();
    let mut reader = Fetching { fetch, bytes, observer: d.observer.clone(), key: layer.key.clone() };
    let job_layer = layer.clone();
    let unpacked = slot.run(move |stop| staging.unpack(&job_layer, &mut reader, stop));
    let stored = unpacked.await?;
    let (bytes, counts) = (fetched.load(Ordering::Relaxed), transfer.counts());
    told.end(LayerEvent::Committed);
    slog::info!(d.log, "layer unpacked"; "layer" => %layer.key, "bytes" => bytes,
        "retries" => counts.retries, "resumed" => counts.resumed, "bytes_again" => counts.bytes_again);
    Ok(PulledLayer { layer: stored, fetched_bytes: Some(bytes), transfer: counts })
}

enum Claimed {
    Here(crate::ports::StoredLayer),
    Ours(Box<dyn Staging>),
}
use Claimed::{Here, Ours};

/// Whether the source of this layer says that whoever asks may have the very blob that brought the layer in the store.
///
/// An image config may name any diff ID, also that of a layer which its author has never seen: so it is the blob that
/// counts, and a source that has another one for the diff ID must give it.
async fn is_vouched_for(
    d: &PullDeps,
    port: &dyn Puller,
    layer: &LayerSpec,
    stored: &crate::ports::StoredLayer,
) -> Result<bool, PullError> {
    let (store, stored) = (d.store.clone(), stored.clone());
    let brought_by = d.disk.run(move |_| store.blob_of(&stored)).await?;
    if brought_by.is_none() || brought_by != layer.blob.digest {
        return Ok(false);
    }
    Ok(port.authorize(layer).await?)
}

/// The layer, or the right to bring it, once no other process has it; with `anew` that right in any case.
async fn claim(d: &PullDeps, layer: &LayerSpec, told: &Told, anew: bool) -> Result<Claimed, PullError> {
    let mut pause = ELSEWHERE_PAUSE_MIN;
    loop {
        let (store, key) = (d.store.clone(), layer.key.clone());
        let claim = d.disk.run(move |_| if anew { store.claim_anew(&key) } else { store.claim(&key) });
        match claim.await? {
            Claim::Here(stored) => return Ok(Here(stored)),
            Claim::Mine(staging) => return Ok(Ours(staging)),
            Claim::Elsewhere => {
                if pause == ELSEWHERE_PAUSE_MIN {
                    told.tell(LayerEvent::WaitingForOther);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ELSEWHERE_PAUSE_MAX);
            }
        }
    }
}

/// Tells the observer of one flight; also that it ended, when it failed or was given up.
struct Told {
    observer: Arc<dyn Observer>,
    key: LayerKey,
    /// Something was told that wants an end.
    open: Cell<bool>,
}

impl Told {
    fn tell(&self, event: LayerEvent) {
        self.open.set(true);
        self.observer.layer(&self.key, event);
    }

    fn end(&self, event: LayerEvent) {
        self.open.set(false);
        self.observer.layer(&self.key, event);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.open.get() {
            // This may run while a panic of this very observer unwinds: a second one would end the process.
            let _ = caught("observer", || self.observer.layer(&self.key, LayerEvent::Ended));
        }
    }
}

/// A blob's reader that counts, and holds the slot of its fetch until there is nothing more to read.
struct Fetching {
    fetch: Option<(Box<dyn Read + Send>, OwnedSemaphorePermit)>,
    bytes: Arc<AtomicU64>,
    observer: Arc<dyn Observer>,
    key: LayerKey,
}

impl Read for Fetching {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some((reader, _)) = &mut self.fetch else { return Ok(0) };
        match reader.read(buffer) {
            Ok(0) if buffer.is_empty() => Ok(0),
            Ok(0) => {
                self.fetch = None;
                Ok(0)
            }
            Ok(read) => {
                self.bytes.fetch_add(read as u64, Ordering::Relaxed);
                self.observer.layer(&self.key, LayerEvent::Fetched { bytes: read as u64 });
                Ok(read)
            }
            Err(error) => Err(error),
        }
    }
}

//! Layers looked at in the background: one after the other, at a low priority and a bounded rate, each again when its time
//! has come. A bad one is moved to quarantine, so that whoever wants it next pulls it anew, and logged with its reason and with the
//! containers on it.

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use keelblock_actors::error::{RecordError, chain};
use keelblock_actors::image::digest::DiffId;
use keelblock_actors::ports::Found;
use keelblock_actors::stop::Stop;
use slog::{Logger, error, warn};

use crate::store::{Quarantined, Standing, Verdict};
use crate::stores::Stores;
use crate::sys::priority;

/// How often it is looked whether a layer's time has come, at most. 1 min: a layer that came since is not urgent.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);

/// Tells which containers there are.
pub type Containers = dyn Fn() -> Result<Vec<Found>, RecordError> + Send;

/// Which of these containers stand on a layer.
pub fn standing_on(containers: &[Found], layer: &DiffId) -> Vec<Standing> {
    let on_it = containers
        .iter()
        .filter(|found| found.rootfses.as_ref().is_some_and(|record| record.layers.contains(layer)));
    on_it
        .map(|found| Standing {
            container: found.id.clone(),
            created_ms: found.container.as_ref().map(|record| record.created_ms),
        })
        .collect()
}

/// Which of the layers in quarantine a container stands on.
pub fn damaged_layers(found: &Found, quarantined: &[Quarantined]) -> BTreeSet<DiffId> {
    let created_ms = found.container.as_ref().map(|record| record.created_ms);
    let this = Standing { container: found.id.clone(), created_ms };
    let damaged = quarantined.iter().filter(|layer| layer.standing.contains(&this));
    damaged.map(|layer| layer.diff_id.clone()).collect()
}

/// A thread that scrubs. Dropping it ends the thread after the piece it is reading.
#[derive(Debug)]
pub struct Scrubber {
    stop: Stop,
    /// Dropped to wake the thread.
    _wake: Sender<()>,
}

impl Scrubber {
    /// Looks at each layer of all stores every `interval`, at so many bytes a second (0 = no limit). `containers` may block.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        stores: Stores,
        interval: Duration,
        rate: u64,
        containers: Box<Containers>,
        log: Logger,
    ) -> std::io::Result<Self> {
        let stop = Stop::default();
        let (wake, woken) = channel();
        let raised = stop.clone();
        std::thread::Builder::new().name("keelblock-scrub".to_owned()).spawn(move || {
            priority::lower();
            loop {
                pass(&stores, interval, rate, &*containers, &raised, &log);
                match woken.recv_timeout(interval.min(LOOK_EVERY_MAX)) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        })?;
        Ok(Self { stop, _wake: wake })
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop.raise();
    }
}

/// Looks at all layers whose time has come.
fn pass(stores: &Stores, interval: Duration, rate: u64, containers: &Containers, stop: &Stop, log: &Logger) {
    let scrubbed = stores.scrub_due(interval, rate, stop, |layer| {
        let Verdict::Bad(why) = &layer.verdict else { return };
        let standing = containers().map(|found| standing_on(&found, &layer.diff_id));
        let standing = standing.unwrap_or_else(|error| {
            warn!(log, "which containers are on a bad layer cannot be said"; "layer" => %layer.diff_id,
                "error" => chain(&error));
            Vec::new()
        });
        let names: Vec<_> = standing.iter().map(|standing| standing.container.as_str()).collect();
        error!(log, "a layer is not what was written, and is pulled again when it is next wanted";
            "layer" => %layer.diff_id, "why" => why, "containers" => names.join(","));
        if let Err(error) = stores.quarantine(&layer.diff_id, &standing) {
            warn!(log, "a bad layer cannot be moved away"; "layer" => %layer.diff_id, "error" => chain(&error));
        }
    });
    if let Err(error) = scrubbed {
        warn!(log, "layers cannot be verified now"; "error" => chain(&error));
    }
}

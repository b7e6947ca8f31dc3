//! Layers looked at in the background: one after the other, at a low priority and a bounded rate, each again when its time
//! has come. A bad one is moved to quarantine, so that whoever wants it next pulls it anew, and logged with its reason.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use keelblock_actors::error::chain;
use keelblock_actors::stop::Stop;
use slog::{Logger, error, warn};

use crate::store::{DiskStore, Verdict};
use crate::sys::priority;

/// How often it is looked whether a layer's time has come, at most. 1 min: a layer that came since is not urgent.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);

/// A thread that scrubs. Dropping it ends the thread after the piece it is reading.
#[derive(Debug)]
pub struct Scrubber {
    stop: Stop,
    /// Dropped to wake the thread.
    _wake: Sender<()>,
}

impl Scrubber {
    /// Looks at each layer of a store every `interval`, at so many bytes a second (0 = no limit).
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(store: Arc<DiskStore>, interval: Duration, rate: u64, log: Logger) -> std::io::Result<Self> {
        let stop = Stop::default();
        let (wake, woken) = channel();
        let raised = stop.clone();
        std::thread::Builder::new().name("keelblock-scrub".to_owned()).spawn(move || {
            priority::lower();
            loop {
                pass(&store, interval, rate, &raised, &log);
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
fn pass(store: &DiskStore, interval: Duration, rate: u64, stop: &Stop, log: &Logger) {
    let scrubbed = store.scrub_due(interval, rate, stop, |layer| {
        let Verdict::Bad(why) = &layer.verdict else { return };
        error!(log, "a layer is not what was written, and is pulled again when it is next wanted";
            "layer" => %layer.diff_id, "why" => why);
        if let Err(error) = store.quarantine(&layer.diff_id) {
            warn!(log, "a bad layer cannot be moved away"; "layer" => %layer.diff_id, "error" => chain(&error));
        }
    });
    if let Err(error) = scrubbed {
        warn!(log, "layers cannot be verified now"; "error" => chain(&error));
    }
}

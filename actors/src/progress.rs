//! Progress as it happens, for whoever shows it: bars on a terminal, lines in a log, counters.

use crate::image::plan::LayerKey;

/// What became of a layer, or of an archive. Byte counts are of the blob, as fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// Its pull began; how many bytes will come, where the manifest says so.
    Started {
        /// Bytes of the blob.
        total: Option<u64>,
    },
    /// Another process on the same store is pulling it; we wait.
    WaitingForOther,
    /// These many more bytes came.
    Fetched {
        /// Bytes since the last event.
        bytes: u64,
    },
    /// It failed for now and is tried again, so many times by now.
    Retrying {
        /// Attempts after the first.
        retries: u64,
    },
    /// It goes on where it broke off.
    Resumed {
        /// The first byte that had not come.
        at: u64,
    },
    /// These many bytes came more than once or for nothing; [`LayerEvent::Fetched`] does not count them.
    Again {
        /// Bytes since the last event.
        bytes: u64,
    },
    /// The store had it.
    Reused,
    /// It is unpacked, verified and visible.
    Committed,
    /// Its pull failed or was given up.
    Ended,
}

/// Hears of progress.
///
/// # Blocking
/// Called from actor and pool threads between buffers: must return at once.
pub trait Observer: Send + Sync {
    /// Something became of this layer.
    fn layer(&self, key: &LayerKey, event: LayerEvent);

    /// Something became of an archive that is fetched to learn what its image is; its layers come later, from this machine.
    /// `from` is its address. [`LayerEvent::Started`] may come again: then it begins anew.
    fn archive(&self, from: &str, event: LayerEvent) {
        let _ = (from, event);
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn layer(&self, _: &LayerKey, _: LayerEvent) {}
}

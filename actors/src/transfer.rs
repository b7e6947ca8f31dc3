//! What a puller tells of the transfer of one layer, and what it is told of it.
//!
//! A transfer outlives the attempt that began it: when the bytes that came turn out to be wrong, the next attempt knows
//! whom they came from.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::progress::LayerEvent;

/// What a transfer took besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferCounts {
    /// Attempts after one that failed.
    pub retries: u64,
    /// How often it went on from where it broke off.
    pub resumed: u64,
    /// Bytes that had come before it broke off, and were not asked for again.
    pub bytes_resumed: u64,
    /// Bytes that came more than once, or for nothing.
    pub bytes_again: u64,
    /// Ranges that were fetched beside the stream that is read.
    pub ranges: u64,
}

impl AddAssign for TransferCounts {
    fn add_assign(&mut self, other: Self) {
        self.retries += other.retries;
        self.resumed += other.resumed;
        self.bytes_resumed += other.bytes_resumed;
        self.bytes_again += other.bytes_again;
        self.ranges += other.ranges;
    }
}

/// See the module.
pub struct Transfer {
    heard: Box<dyn Fn(LayerEvent) + Send + Sync>,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    counts: TransferCounts,
    /// Servers that gave bytes of this attempt.
    served: BTreeSet<String>,
    /// Servers to leave out while there are others.
    avoided: BTreeSet<String>,
    /// It began anew.
    anew: bool,
}

impl Transfer {
    /// One whose events are heard there.
    ///
    /// # Blocking
    /// `heard` is called from threads that move bytes: it must return at once.
    pub fn new(heard: impl Fn(LayerEvent) + Send + Sync + 'static) -> Self {
        Self { heard: Box::new(heard), noted: Mutex::default() }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So far.
    pub fn counts(&self) -> TransferCounts {
        self.noted().counts
    }

    // ---- for pullers

    /// Bytes come from this server.
    pub fn served_by(&self, server: &str) {
        self.noted().served.insert(server.to_owned());
    }

    /// This server is to be left out from here on.
    pub fn avoid(&self, server: &str) {
        self.noted().avoided.insert(server.to_owned());
    }

    /// Whether this server is to be left out while there are others.
    pub fn avoids(&self, server: &str) -> bool {
        self.noted().avoided.contains(server)
    }

    /// Whether the bytes of an earlier attempt were wrong: parts are not to be put together then.
    pub fn is_anew(&self) -> bool {
        self.noted().anew
    }

    /// It is tried again.
    pub fn retried(&self) {
        let retries = {
            let mut noted = self.noted();
            noted.counts.retries += 1;
            noted.counts.retries
        };
        (self.heard)(LayerEvent::Retrying { retries });
    }

    /// It goes on at this byte; `kept` bytes that had come since it last broke off are not fetched again.
    pub fn resumed(&self, at: u64, kept: u64) {
        {
            let mut noted = self.noted();
            noted.counts.resumed += 1;
            noted.counts.bytes_resumed += kept;
        }
        (self.heard)(LayerEvent::Resumed { at });
    }

    /// These bytes came for nothing.
    pub fn again(&self, bytes: u64) {
        if bytes > 0 {
            self.noted().counts.bytes_again += bytes;
            (self.heard)(LayerEvent::Again { bytes });
        }
    }

    /// One more range is fetched.
    pub fn ranged(&self) {
        self.noted().counts.ranges += 1;
    }

    // ---- for whoever reads

    /// The bytes were wrong: whoever gave them is left out if there is anybody else. Returns who that was; there is no
    /// second attempt when it was no server, and no third.
    pub fn begin_anew(&self, bytes: u64) -> Option<Vec<String>> {
        let servers = {
            let mut noted = self.noted();
            if noted.anew || noted.served.is_empty() {
                return None;
            }
            noted.anew = true;
            let served = std::mem::take(&mut noted.served);
            noted.avoided.extend(served.iter().cloned());
            served.into_iter().collect()
        };
        self.retried();
        self.again(bytes);
        Some(servers)
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.noted().fmt(f)
    }
}

/// Heard by nobody.
impl Default for Transfer {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_transfer_begins_anew_once_and_leaves_out_who_served_it() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = heard.clone();
        let transfer = Transfer::new(move |event| hearing.lock().unwrap().push(event));
        // What no server gave is as it is.
        assert_eq!(transfer.begin_anew(1), None);
        transfer.served_by("a");
        transfer.served_by("b");
        assert!(!transfer.avoids("a") && !transfer.is_anew());
        assert_eq!(transfer.begin_anew(7), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert!(transfer.avoids("a") && transfer.avoids("b") && !transfer.avoids("c") && transfer.is_anew());
        transfer.served_by("c");
        assert_eq!(transfer.begin_anew(7), None);
        assert_eq!(transfer.counts(), TransferCounts { retries: 1, bytes_again: 7, ..Default::default() });
        let expected = [LayerEvent::Retrying { retries: 1 }, LayerEvent::Again { bytes: 7 }];
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}

//! What registries were asked and how they did, counted by server: for logs and metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;

/// How one server did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostMetrics {
    /// Requests that were sent, those of redirects not counted.
    pub requests: u64,
    /// Of these, those without an answer, or with one of 5xx or 429.
    pub failures: u64,
    /// Questions that were asked again after a pause.
    pub retries: u64,
    /// Bodies that broke off and went on from where they were.
    pub resumed: u64,
    /// Bytes of blobs that came, each once for every attempt that began anew.
    pub bytes: u64,
    /// Bytes of blobs that came though they had come before in the same attempt: their server does not know ranges.
    pub bytes_again: u64,
    /// From a request to the head of its answer, all requests together.
    pub latency_total: Duration,
    /// The longest of these.
    pub latency_max: Duration,
    /// How many took at most as long as each of [`LATENCY_BOUNDS`] and longer than the bound before; the last counts those
    /// that took longer than all.
    pub latencies: [u64; LATENCY_BOUNDS.len() + 1],
}

/// Of the buckets in which latencies are counted: from a registry on the same machine to one that is overloaded.
pub const LATENCY_BOUNDS: [Duration; 10] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(1000),
    Duration::from_millis(5000),
    Duration::from_millis(30000),
];

/// Counts. One for each client.
#[derive(Debug, Default)]
pub struct Meter(Mutex<BTreeMap<String, HostMetrics>>);

impl Meter {
    /// All of it, by server (`host:port`).
    pub fn snapshot(&self) -> BTreeMap<String, HostMetrics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in crate::puller) fn count(&self, server: &str, change: impl FnOnce(&mut HostMetrics)) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get_mut(server) {
            change(host);
        } else {
            change(hosts.entry(server.to_owned()).or_default());
        }
    }

    pub(in crate::puller) fn answered(&self, server: &str, after: Duration, status: Option<StatusCode>) {
        let failed =
            status.is_none_or(|status| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS);
        self.count(server, |host| {
            host.requests += 1;
            host.failures += u64::from(failed);
            host.latency_total += after;
            host.latency_max = host.latency_max.max(after);
            let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < after);
            host.latencies[bucket] += 1;
        });
    }

    pub(in crate::puller) fn retried(&self, server: &str) {
        self.count(server, |host| host.retries += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_buckets() {
        let meter = Meter::default();
        for millis in [0, 1, 2, 1000, 60_000] {
            meter.answered("h", Duration::from_millis(millis), Some(StatusCode::OK));
        }
        let host = &meter.snapshot()["h"];
        assert_eq!(host.latencies, [2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1]);
        assert_eq!((host.requests, host.failures), (5, 0));
    }
}

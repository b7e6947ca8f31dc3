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
    /// Bytes of blobs that came, once.
    pub bytes: u64,
    /// Bytes of blobs that came though they had come before: their server does not know ranges.
    pub bytes_again: u64,
    /// From a request to the head of its answer, all requests together.
    pub latency_total: Duration,
    /// The longest of these.
    pub latency_max: Duration,
}

/// Counts. One for each client.
#[derive(Debug, Default)]
pub struct Meter(Mutex<BTreeMap<String, HostMetrics>>);

impl Meter {
    /// All of it, by server (`host:port`).
    pub fn snapshot(&self) -> BTreeMap<String, HostMetrics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count(&self, server: &str, change: impl FnOnce(&mut HostMetrics)) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get_mut(server) {
            change(host);
        } else {
            change(hosts.entry(server.to_owned()).or_default());
        }
    }

    pub(super) fn answered(&self, server: &str, after: Duration, status: Option<StatusCode>) {
        let failed =
            status.is_none_or(|status| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS);
        self.count(server, |host| {
            host.requests += 1;
            host.failures += u64::from(failed);
            host.latency_total += after;
            host.latency_max = host.latency_max.max(after);
        });
    }

    pub(super) fn retried(&self, server: &str) {
        self.count(server, |host| host.retries += 1);
    }
}

//! One blob over several connections, where one alone is slower than whoever reads it.
//!
//! It begins with one stream. While the reader takes pieces as fast as they come, the network is what is waited for; then ranges
//! ahead are fetched beside it, in pieces of `fetch_range_bytes`, and put together in order. A connection more is added as long
//! as the last one raised the rate. A reader that is slower than one connection never gets a second one.
//!
//! Memory: what lies ahead of the reader is bounded over all blobs of a client ([`budget`]). The range at the front passes through to
//! the reader; those behind it take a permit each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slog::debug;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::blob::Piece;
use super::error::RegistryError;
use super::resume::{Failure, Source, Stream};
use crate::limits::Limits;

/// Bytes of ranges ahead of their readers in memory, over all blobs. 32 MiB: eight ranges of the default size.
const AHEAD_BYTES_MAX: u64 = 32 << 20;
/// A rate that needs no help, bytes per second. 128 MiB/s: about what a layer is unpacked at.
const RATE_ENOUGH: f64 = (128u64 << 20) as f64;
/// What the rate must be times the one before for the last connection to have been worth it. 1.15: half of what the fourth
/// connection brings at best, and more than rates waver.
const WORTH: f64 = 1.15;

/// Permits for ranges ahead of their readers, one for each.
pub(super) fn budget(limits: &Limits) -> Arc<Semaphore> {
    let permits = AHEAD_BYTES_MAX / range_bytes(limits);
    Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(1).min(Semaphore::MAX_PERMITS)))
}

fn range_bytes(limits: &Limits) -> u64 {
    limits.fetch_range_bytes.clamp(1, AHEAD_BYTES_MAX)
}

/// What became of it.
pub(super) enum Outcome {
    /// All is handed on.
    Whole,
    /// Nobody reads any more.
    Closed,
    Failed(RegistryError),
    /// Ranges are not to be had after all: this one goes on alone.
    Alone(Box<Stream>),
}

/// How fast bytes are handed on, and how long the reader let them wait.
pub(super) struct Gauge {
    since: Instant,
    bytes: u64,
    blocked: Duration,
}

impl Gauge {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0, blocked: Duration::ZERO }
    }

    /// Hands a piece on; `false` when nobody takes it.
    pub(super) async fn hand_on(&mut self, bytes: Bytes, sender: &mpsc::Sender<Piece>) -> bool {
        self.bytes += bytes.len() as u64;
        let piece = match sender.try_send(Piece::Bytes(bytes)) {
            Ok(()) => return true,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(piece)) => piece,
        };
        let begun = Instant::now();
        let sent = sender.send(piece).await;
        self.blocked += begun.elapsed();
        sent.is_ok()
    }

    /// The rate, once `window` bytes were handed on, and whether more would have been taken; begins anew.
    fn judged(&mut self, window: u64) -> Option<(f64, bool)> {
        if self.bytes < window {
            return None;
        }
        let elapsed = self.since.elapsed();
        let rate = self.bytes as f64 / elapsed.as_secs_f64().max(1e-9);
        let starved = self.blocked <= elapsed / 4 && rate < RATE_ENOUGH;
        *self = Self::new();
        Some((rate, starved))
    }
}

/// Whether this stream had better be helped, seen from the time since it was last asked; with its rate.
pub(super) fn wanted(stream: &Stream, gauge: &mut Gauge) -> Option<f64> {
    let limits = &stream.source.session.settings.limits;
    let range = range_bytes(limits);
    let size = stream.size().filter(|&size| size >= limits.fetch_ranges_min)?;
    let left = size - stream.position().min(size);
    if limits.fetch_ranges_max < 2 || left < 2 * range || !stream.can_be_split() {
        return None;
    }
    gauge.judged(range).filter(|(_, starved)| *starved).map(|(rate, _)| rate)
}

/// A range that is fetched, or was, and is not handed on yet.
struct Ahead {
    pieces: mpsc::UnboundedReceiver<Result<Bytes, Failure>>,
    /// Bytes still to be handed on.
    left: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Hands the rest of a blob on, by several connections; `alone` is the rate of one.
pub(super) async fn run(first: Stream, sender: &mpsc::Sender<Piece>, alone: f64) -> Outcome {
    let Some(size) = first.size() else { return Outcome::Alone(Box::new(first)) };
    let source = first.source.clone();
    let limits = source.session.settings.limits.clone();
    let mut all = Ranges {
        at: first.position(),
        next: first.position(),
        size,
        range: range_bytes(&limits),
        queue: VecDeque::new(),
        tasks: JoinSet::new(),
        source,
    };
    let mut growth = Growth { streams: 2, most: limits.fetch_ranges_max, rate: alone, growing: true };
    let mut gauge = Gauge::new();
    debug!(all.source.session.log, "blob is fetched in ranges"; "what" => %all.source.question.asked,
        "bytes" => all.at, "rate" => alone as u64);
    all.add(|end| first.until(end), None);
    loop {
        all.top_up(growth.streams);
        let Some(front) = all.queue.front_mut() else { return Outcome::Whole };
        let piece = tokio::select! {
            piece = front.pieces.recv() => piece,
            Some(_) = all.tasks.join_next() => continue,
            () = sender.closed() => return Outcome::Closed,
        };
        match piece {
            Some(Ok(bytes)) => {
                let count = bytes.len() as u64;
                front.left -= count.min(front.left);
                all.at += count;
                if !gauge.hand_on(bytes, sender).await {
                    return Outcome::Closed;
                }
                if let Some((rate, starved)) = gauge.judged(growth.streams as u64 * all.range) {
                    growth.judge(rate, starved);
                }
            }
            None if front.left == 0 => drop(all.queue.pop_front()),
            // Its task is gone without a word.
            None => {
                let (asked, why) = (all.source.question.asked.clone(), "a range ended too early".to_owned());
                return Outcome::Failed(RegistryError::Lost { asked, why });
            }
            Some(Err(Failure::Failed(error))) => return Outcome::Failed(*error),
            Some(Err(Failure::NoRanges)) => {
                all.give_up().await;
                debug!(all.source.session.log, "ranges are refused, the blob is fetched by one connection";
                    "what" => %all.source.question.asked, "bytes" => all.at);
                return Outcome::Alone(Box::new(Stream::rest(all.source, size, all.at)));
            }
        }
    }
}

struct Ranges {
    source: Arc<Source>,
    /// The next byte to hand on.
    at: u64,
    /// The next byte that nobody fetches yet.
    next: u64,
    size: u64,
    range: u64,
    /// In order, the one at the front being handed on.
    queue: VecDeque<Ahead>,
    tasks: JoinSet<()>,
}

impl Ranges {
    /// Begins ranges until so many are on their way, as far as memory goes.
    fn top_up(&mut self, streams: usize) {
        while self.tasks.len() < streams && self.next < self.size {
            let permit = match self.queue.is_empty() {
                // Whoever is read from needs none: else blobs would wait for each other.
                true => None,
                false => match self.source.session.ahead.clone().try_acquire_owned() {
                    Ok(permit) => Some(permit),
                    Err(_) => return,
                },
            };
            let (source, size, at) = (self.source.clone(), self.size, self.next);
            self.source.transfer.ranged();
            self.add(|end| Stream::part(source, size, at, end), permit);
        }
    }

    fn add(&mut self, stream: impl FnOnce(u64) -> Stream, permit: Option<OwnedSemaphorePermit>) {
        let end = self.size.min(self.next + self.range);
        let (sender, pieces) = mpsc::unbounded_channel();
        self.queue.push_back(Ahead { pieces, left: end - self.next, _permit: permit });
        self.tasks.spawn(fetch(stream(end), sender));
        self.next = end;
    }

    /// Ends all that is on its way, and counts what came for nothing.
    async fn give_up(&mut self) {
        self.tasks.shutdown().await;
        let mut lost = 0;
        for mut ahead in self.queue.drain(..) {
            while let Ok(piece) = ahead.pieces.try_recv() {
                lost += piece.map_or(0, |bytes| bytes.len() as u64);
            }
        }
        self.source.transfer.again(lost);
    }
}

async fn fetch(mut stream: Stream, sender: mpsc::UnboundedSender<Result<Bytes, Failure>>) {
    loop {
        let (piece, last) = match stream.next().await {
            Ok(Some(bytes)) => (Ok(bytes), false),
            Ok(None) => return,
            Err(failure) => (Err(failure), true),
        };
        if sender.send(piece).is_err() || last {
            return;
        }
    }
}

/// How many connections, by what the last one brought.
struct Growth {
    streams: usize,
    most: usize,
    /// Before the last connection was added.
    rate: f64,
    growing: bool,
}

impl Growth {
    fn judge(&mut self, rate: f64, starved: bool) {
        if !self.growing || !starved {
            return;
        }
        if rate < self.rate * WORTH {
            // Not below two: while one is asked for, the other brings.
            self.streams = (self.streams - 1).max(2);
            self.growing = false;
        } else {
            self.rate = rate;
            self.streams = (self.streams + 1).min(self.most);
            self.growing = self.streams < self.most || rate < RATE_ENOUGH;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_added_while_they_help() {
        let mut growth = Growth { streams: 2, most: 4, rate: 1.0, growing: true };
        growth.judge(2.0, true);
        assert_eq!(growth.streams, 3);
        // A reader that cannot take more says nothing of the network.
        growth.judge(1.0, false);
        assert_eq!(growth.streams, 3);
        growth.judge(3.0, true);
        assert_eq!(growth.streams, 4);
        growth.judge(4.0, true);
        assert_eq!(growth.streams, 4);
        // On a line that is full the second one stays, and no third comes.
        let mut growth = Growth { streams: 2, most: 4, rate: 1.0, growing: true };
        growth.judge(1.05, true);
        growth.judge(9.0, true);
        assert_eq!(growth.streams, 2);
        let mut growth = Growth { streams: 3, most: 4, rate: 2.0, growing: true };
        growth.judge(2.0, true);
        assert_eq!(growth.streams, 2);
    }

    #[test]
    fn what_lies_ahead_is_bounded_whatever_the_size_of_a_range() {
        for (bytes, permits) in [(4 << 20, 8), (1 << 40, 1), (64 << 10, 512)] {
            let limits = Limits { fetch_range_bytes: bytes, ..Limits::default() };
            assert_eq!(budget(&limits).available_permits(), permits);
        }
    }
}

//! SHARE: one running job per key.
//!
//! The map only watches; the waiters own. When the last owner of a flight goes its future is dropped, and that is
//! the cancellation. A finished, failed or abandoned flight is never joined: the next who asks starts anew.
//!
//! **Why the key of a layer is its diff ID and not its blob, image or source.** That shares most: one layer
//! wanted by ten images, gzip from one registry and zstd from another, is brought once. The price is that a leader
//! with wrong credentials or a lying manifest fails followers whose own source is sound. So a follower whose leader
//! failed for reasons of the leader's source, and whose own source is another, tries once more under
//! `(key, its own source)`; all followers from that source share that second flight.

use std::collections::HashMap;
use std::hash::Hash;

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, WeakShared};

/// A job under way; all clones get its answer.
pub type Flight<T> = Shared<LocalBoxFuture<'static, T>>;

/// The jobs under way.
pub struct Flights<K, T: Clone>(HashMap<K, WeakShared<LocalBoxFuture<'static, T>>>);

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq, T: Clone + 'static> Flights<K, T> {
    /// The flight for this key: the one under way (`false`), or a new one of `start` (`true`: the caller leads).
    pub fn join<F>(&mut self, key: K, start: impl FnOnce() -> F) -> (Flight<T>, bool)
    where
        F: Future<Output = T> + 'static,
    {
        if let Some(flight) = self.0.get(&key).and_then(WeakShared::upgrade).filter(|f| f.peek().is_none()) {
            return (flight, false);
        }
        // What ended is swept when something starts, so the map is never larger than twice what flies.
        if self.0.len() >= 64 && self.0.len().is_power_of_two() {
            self.0.retain(|_, watch| watch.upgrade().is_some_and(|flight| flight.peek().is_none()));
        }
        let flight = start().boxed_local().shared();
        if let Some(watch) = flight.downgrade() {
            self.0.insert(key, watch);
        }
        (flight, true)
    }
}

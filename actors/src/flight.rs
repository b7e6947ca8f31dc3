//! SHARE: one running job per key.
//!
//! The map only watches; the waiters own. When the last owner of a flight goes its future is dropped, and that is
//! the cancellation. A finished, failed or abandoned flight is never joined: the next who asks starts anew.
//!
//! **Why the key of a layer is its diff ID and not its blob, image or source.** That shares most: one layer
//! wanted by ten images, gzip from one registry and zstd from another, is brought once. The price is that a leader
//! with wrong credentials or a lying manifest fails followers whose own source is sound. So a follower whose leader
//! failed for reasons of the leader's source, and who asked otherwise (another source, or another manifest's word for
//! the blob), tries once more under `(key, what it asked for)`; all followers who asked the same share that second
//! flight. Second flights from different sources may be under way at once: the store's claim lets one of them work.
//!
//! What else the wide key costs: someone without credentials of his own may get a layer while someone else fetches it.
//! He gets it afterwards as well, since the store shares by diff ID, too; who may use which names is decided where
//! names are resolved. And a slow source slows all who want the layer, as the claim would make them wait in any case.

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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::rc::Rc;

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_thousand_waiters_share_one_job() {
        let mut flights = Flights::<u8, u32>::default();
        let (begun, gate) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let waiters: Vec<_> = (0..1000)
            .map(|n| {
                let (begun, gate) = (begun.clone(), gate.clone());
                let (flight, leads) = flights.join(1, move || {
                    begun.set(begun.get() + 1);
                    async move {
                        gate.notified().await;
                        42
                    }
                });
                assert_eq!(leads, n == 0);
                flight
            })
            .collect();
        gate.notify_one();
        assert!(join_all(waiters).await.iter().all(|answer| *answer == 42));
        assert_eq!(begun.get(), 1);
    }

    #[tokio::test]
    async fn the_last_waiter_to_leave_drops_the_job_and_nobody_joins_it_after() {
        struct Told(Rc<Cell<bool>>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let mut flights = Flights::<u8, u32>::default();
        let dropped = Rc::new(Cell::new(false));
        let told = Told(dropped.clone());
        let start = || async move {
            let _told = told;
            pending().await
        };
        let mut leader = Box::pin(flights.join(1, start).0);
        assert!(futures_util::poll!(leader.as_mut()).is_pending());
        let follower = flights.join(1, pending).0;
        drop(leader);
        assert!(!dropped.get(), "the one who began it may leave first");
        drop(follower);
        assert!(dropped.get());
        assert_eq!(flights.join(1, || async { 7 }).0.await, 7);
    }

    #[tokio::test]
    async fn a_finished_flight_is_not_joined_even_while_its_waiters_hold_it() {
        let mut flights = Flights::<u8, Result<u32, &str>>::default();
        let failed = flights.join(1, || async { Err("refused") }).0;
        assert_eq!(failed.clone().await, Err("refused"));
        assert_eq!(flights.join(1, || async { Ok(1) }).0.await, Ok(1));
        assert_eq!(failed.await, Err("refused"));
    }

    #[tokio::test]
    async fn what_has_ended_does_not_pile_up() {
        let mut flights = Flights::<u32, u32>::default();
        for key in 0..10_000 {
            drop(flights.join(key, pending));
        }
        assert!(flights.0.len() <= 64, "{} are remembered", flights.0.len());
    }
}

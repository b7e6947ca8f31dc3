//! How many requests are under way at one server at once.
//!
//! A slot is held from before a request is sent until its body has ended, so over HTTP/1.1 there are no more connections to
//! a server than slots, and over HTTP/2 no more streams than windows ([`super::pools`]). Whoever holds a slot never
//! waits for another: a redirect gives the first one back, and so does a 401 before a token is fetched. What cannot wait, because
//! others may wait for it, takes a slot only if there is one: see [`Slots::now`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Servers remembered before unused ones are looked for.
const SERVERS_BEFORE_SWEEP: usize = 256;

/// The slots of all servers.
pub(super) struct Slots {
    each: usize,
    servers: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A slot at a server, until dropped. Empty: the request did without.
#[derive(Default)]
pub(in crate::puller) struct Slot(#[allow(dead_code, reason = "it is held")] Option<OwnedSemaphorePermit>);

impl Slots {
    pub(super) fn new(each: usize) -> Self {
        Self { each, servers: Mutex::default() }
    }

    fn of(&self, server: &str) -> Arc<Semaphore> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if servers.len() > SERVERS_BEFORE_SWEEP && !servers.contains_key(server) {
            // A permit, and whoever waits for one, holds the semaphore too.
            servers.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        if let Some(slots) = servers.get(server) {
            return Arc::clone(slots);
        }
        let slots = Arc::new(Semaphore::new(self.each));
        servers.insert(server.to_owned(), Arc::clone(&slots));
        slots
    }

    /// A slot at this server, when there is one.
    ///
    /// # Cancel safety
    /// Dropping the future takes none.
    pub(super) async fn one(&self, server: &str) -> Slot {
        // It is never closed.
        Slot(self.of(server).acquire_owned().await.ok())
    }

    /// A slot at this server if there is one now. For the rest of a body that broke off, whose reader may hold up those that
    /// have the slots; and for parts of a body that are fetched at once.
    pub(super) fn now(&self, server: &str) -> Slot {
        Slot(self.of(server).try_acquire_owned().ok())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_server_has_slots_of_its_own() {
        let slots = Slots::new(2);
        let (first, _second) = (slots.one("a").await, slots.one("a").await);
        assert!(slots.one("a").now_or_never().is_none(), "both are taken");
        let _other = slots.one("b").now_or_never().expect("b has its own");
        let _extra = slots.now("a");
        drop(first);
        let _third = slots.one("a").now_or_never().expect("one is free again");
    }

    #[tokio::test]
    async fn servers_nobody_speaks_to_are_forgotten() {
        let slots = Slots::new(1);
        let held = slots.one("held").await;
        for n in 0..2 * SERVERS_BEFORE_SWEEP {
            drop(slots.one(&n.to_string()).await);
        }
        assert!(slots.servers.lock().unwrap().len() <= SERVERS_BEFORE_SWEEP + 1);
        assert!(slots.one("held").now_or_never().is_none());
        drop(held);
    }
}

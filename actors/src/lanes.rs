//! BOUND, by source: so many fetches at once from one registry, so that a slow one holds up nobody's pulls but its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::JobLost;
use crate::image::plan::LayerSource;

/// Lanes kept before idle ones are looked for.
const LANES_BEFORE_SWEEP: usize = 64;

/// A lane for each source that is fetched from, each of the same width.
pub(crate) struct Lanes {
    width: usize,
    lanes: RefCell<HashMap<String, Arc<Semaphore>>>,
}

impl Lanes {
    /// Lanes of this width; at least one.
    pub(crate) fn new(width: usize) -> Self {
        Self { width: width.clamp(1, Semaphore::MAX_PERMITS), lanes: RefCell::default() }
    }

    /// A place in the lane of this source, once one is free; first come, first served.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place in the queue up.
    pub(crate) async fn enter(&self, source: &LayerSource) -> Result<OwnedSemaphorePermit, JobLost> {
        let lane = self.lane(source);
        lane.acquire_owned().await.map_err(|_| JobLost::Shutdown { pool: "fetch" })
    }

    fn lane(&self, source: &LayerSource) -> Arc<Semaphore> {
        let key = match source {
            LayerSource::Registry(reference) => reference.registry.as_deref().unwrap_or_default(),
            // Files of this machine: no registry has this name.
            LayerSource::Archive { .. } | LayerSource::File { .. } | LayerSource::Aci { .. } => "/",
        };
        let mut lanes = self.lanes.borrow_mut();
        if lanes.len() >= LANES_BEFORE_SWEEP && !lanes.contains_key(key) {
            // A lane that somebody is in, or waits for, is held by him too.
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.available_permits() < self.width);
        }
        let lane = lanes.entry(key.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.width)));
        Arc::clone(lane)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::image::reference::Reference;

    fn registry(host: &str) -> LayerSource {
        let reference = Reference {
            registry: Some(host.to_owned()),
            repository: "app".to_owned(),
            tag: None,
            digest: None,
        };
        LayerSource::Registry(reference)
    }

    #[test]
    fn a_full_lane_holds_up_its_own_registry_alone() {
        let lanes = Lanes::new(2);
        let enter = |host: &str| lanes.enter(&registry(host)).now_or_never();
        let (first, second) = (enter("slow").unwrap(), enter("slow").unwrap());
        assert!(enter("slow").is_none());
        assert!(enter("other").is_some());
        assert!(lanes.enter(&LayerSource::File { path: "/x".into() }).now_or_never().is_some());
        drop(first);
        assert!(enter("slow").is_some());
        drop(second);
    }

    #[test]
    fn idle_lanes_go_and_used_ones_stay() {
        let lanes = Lanes::new(1);
        let held = lanes.enter(&registry("held")).now_or_never().unwrap().unwrap();
        for host in 0..LANES_BEFORE_SWEEP * 3 {
            let _ = lanes.enter(&registry(&host.to_string())).now_or_never();
        }
        assert!(lanes.lanes.borrow().len() <= LANES_BEFORE_SWEEP);
        assert!(lanes.enter(&registry("held")).now_or_never().is_none());
        drop(held);
    }
}

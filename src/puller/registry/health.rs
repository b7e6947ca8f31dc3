//! Which mirrors are left out for a while because no connection to them stood.
//!
//! Without it every blob of a pull waits for the same dead mirror anew. The registry itself is never left out: there is
//! nobody after it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// For how long a mirror is left out. 30 s: a pull of many layers waits for a dead one once, and one that comes back
/// serves again soon.
const OUT: Duration = Duration::from_secs(30);

/// What became of the last connections to servers.
#[derive(Default)]
pub(super) struct Health(Mutex<HashMap<String, (Instant, String)>>);

impl Health {
    /// Why this server is not to be asked now.
    pub(super) fn is_out(&self, server: &str) -> Option<String> {
        let out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, why) = out.get(server)?;
        (since.elapsed() < OUT).then(|| format!("left out, since a moment ago: {why}"))
    }

    pub(super) fn failed(&self, server: &str, why: String) {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.insert(server.to_owned(), (Instant::now(), why));
    }

    pub(super) fn is_well(&self, server: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_failed_is_left_out_for_a_while() {
        let health = Health::default();
        assert_eq!(health.is_out("m"), None);
        health.failed("m", "no route".into());
        assert!(health.is_out("m").unwrap().contains("no route"));
        assert_eq!(health.is_out("other"), None);
        tokio::time::advance(OUT).await;
        assert_eq!(health.is_out("m"), None);
        health.failed("m", "no route".into());
        health.is_well("m");
        assert_eq!(health.is_out("m"), None);
    }
}

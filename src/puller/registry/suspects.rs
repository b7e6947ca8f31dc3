//! Mirrors that gave a blob which turned out to be another one.
//!
//! That shows only in the store, when all of it has come. What a mirror gave is remembered, so that the next attempt at that
//! blob is made elsewhere. The registry itself is never left out: there is nobody after it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Blobs remembered. 4096: those of hundreds of images.
const BLOBS_MAX: usize = 4096;

/// Who gave what, and who is not asked for it again.
#[derive(Default)]
pub(super) struct Suspects(Mutex<Known>);

#[derive(Default)]
struct Known {
    served: HashMap<String, String>,
    rejected: HashSet<(String, String)>,
}

impl Suspects {
    /// `server` gives `what` (`blobs/sha256:...`).
    pub(super) fn serves(&self, what: &str, server: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.served.len() >= BLOBS_MAX {
            known.served.clear();
        }
        known.served.insert(what.to_owned(), server.to_owned());
    }

    /// What came last of this was something else. Gives the server that is not asked for it any more, if there is one.
    pub(super) fn reject(&self, what: &str) -> Option<String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let server = known.served.remove(what)?;
        if known.rejected.len() >= BLOBS_MAX {
            known.rejected.clear();
        }
        known.rejected.insert((what.to_owned(), server.clone()));
        Some(server)
    }

    /// Whether this server is not to be asked for it.
    pub(super) fn is_rejected(&self, what: &str, server: &str) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !known.rejected.is_empty() && known.rejected.contains(&(what.to_owned(), server.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gave_it_last_is_not_asked_again() {
        let suspects = Suspects::default();
        assert_eq!(suspects.reject("blobs/x"), None);
        suspects.serves("blobs/x", "a");
        suspects.serves("blobs/x", "b");
        suspects.serves("blobs/y", "a");
        assert_eq!(suspects.reject("blobs/x").as_deref(), Some("b"));
        assert!(suspects.is_rejected("blobs/x", "b"));
        assert!(!suspects.is_rejected("blobs/x", "a") && !suspects.is_rejected("blobs/y", "b"));
        assert_eq!(suspects.reject("blobs/x"), None, "once for each time that it came");
    }
}

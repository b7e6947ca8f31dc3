//! The body of an answer: its pieces under a time limit that follows progress, or all of it under a limit of size.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::failure::HttpError;
use super::slots::Slot;

/// Longest body that is read to no purpose but to keep its connection.
const DRAIN_BYTES_MAX: u64 = 16 << 10;

/// A body on its way.
pub(in crate::puller) struct Body {
    incoming: Incoming,
    authority: String,
    stall: Duration,
    slot: Slot,
}

impl Body {
    pub(in crate::puller) fn new(incoming: Incoming, authority: String, stall: Duration) -> Self {
        Self { incoming, authority, stall, slot: Slot::default() }
    }

    /// The same, which keeps a slot at its server until it has ended.
    pub(in crate::puller) fn holding(self, slot: Slot) -> Self {
        Self { slot, ..self }
    }

    /// Gives the slot back: nothing more of it is wanted, or its owner is about to ask for something else.
    pub(in crate::puller) fn release(&mut self) {
        self.slot = Slot::default();
    }

    /// How many bytes are still to come, where the head said so.
    pub(in crate::puller) fn size(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// The next bytes, never none; `None` at the end.
    pub(in crate::puller) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.incoming.frame()).await;
            let authority = || self.authority.clone();
            match frame {
                Err(_) => return Err(HttpError::Stalled { authority: authority(), limit: self.stall }),
                Ok(None) => {
                    self.release();
                    return Ok(None);
                }
                Ok(Some(Err(error))) => return Err(HttpError::broken(authority(), &error)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    // Trailers end the body; nothing in them is wanted.
                    _ => {}
                },
            }
        }
    }

    /// All of it, if that is at most `limit` bytes.
    pub(in crate::puller) async fn whole(
        mut self,
        limit: u64,
        flag: Option<&'static str>,
    ) -> Result<Vec<u8>, HttpError> {
        let too_large =
            |authority: &str| HttpError::TooLarge { authority: authority.to_owned(), limit, flag };
        let size = self.size();
        if size.is_some_and(|size| size > limit) {
            return Err(too_large(&self.authority));
        }
        let mut bytes = Vec::with_capacity(size.unwrap_or_default().try_into().unwrap_or_default());
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large(&self.authority));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// As much of it as comes within `limit` bytes: for answers that are read for their message alone.
    pub(in crate::puller) async fn beginning(mut self, limit: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(bytes.len());
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
        bytes
    }

    /// Reads a short rest so that the connection can serve the next request.
    pub(in crate::puller) async fn drain(self) {
        if self.size().is_some_and(|size| size <= DRAIN_BYTES_MAX) {
            self.beginning(DRAIN_BYTES_MAX).await;
        }
    }
}

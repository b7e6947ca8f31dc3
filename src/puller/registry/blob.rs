//! A body on its way from the network to a thread that reads it.
//!
//! Pieces pass through a bounded channel: a reader that falls behind stops the connection, not the memory. The end of
//! the stream is said, not guessed, so that a task that vanishes is an error and never a short blob.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use keelblock_actors::ports::Blob;
use tokio::sync::mpsc;

use super::error::RegistryError;
use super::failure::HttpError;
use super::ranges::{self, Gauge, Outcome};
use super::resume::{Failure, Stream};

/// Pieces on the way of one blob: with reads of at most 128 KiB, 2 MiB. Measured on loopback: as fast as fewer and larger ones,
/// and a third faster than twice as many of half the size.
const PIECES: usize = 16;

pub(super) enum Piece {
    Bytes(Bytes),
    End,
    Failed(RegistryError),
}

/// Begins to move a blob. Must be called on the runtime that is to do so; the reader belongs to any thread that may
/// block.
pub(super) fn moving(stream: Stream) -> Blob {
    let (sender, pieces) = mpsc::channel(PIECES);
    let size = stream.size();
    let pump = tokio::spawn(pump(stream, sender));
    let reader = Box::new(BlobReader { pieces, current: Bytes::new(), ended: false });
    Blob { reader, lease: Box::new(Lease(pump.abort_handle())), size }
}

/// Ends the request when dropped: a reader that waits for the next piece on another thread is told that none will come.
struct Lease(tokio::task::AbortHandle);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn pump(mut stream: Stream, sender: mpsc::Sender<Piece>) {
    let mut gauge = Gauge::new();
    let mut alone = false;
    let last = loop {
        let piece = tokio::select! {
            piece = stream.next() => piece,
            () = sender.closed() => return,
        };
        match piece {
            Ok(Some(bytes)) => {
                if !gauge.hand_on(bytes, &sender).await {
                    return;
                }
            }
            Ok(None) => break Piece::End,
            Err(Failure::Failed(error)) => break Piece::Failed(*error),
            // It is no part.
            Err(Failure::NoRanges) => return,
        }
        if alone {
            continue;
        }
        let Some(rate) = ranges::wanted(&stream, &mut gauge) else { continue };
        match ranges::run(stream, &sender, rate).await {
            Outcome::Whole => break Piece::End,
            Outcome::Closed => return,
            Outcome::Failed(error) => break Piece::Failed(error),
            Outcome::Alone(rest) => (stream, alone) = (*rest, true),
        }
    };
    let _ = sender.send(last).await;
}

/// The reading end. Dropping it ends the request.
struct BlobReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => {
                    let stalled = matches!(
                        error.of_the_last(),
                        RegistryError::Http { source: HttpError::Stalled { .. }, .. }
                    );
                    let kind = if stalled { io::ErrorKind::TimedOut } else { io::ErrorKind::Other };
                    return Err(io::Error::new(kind, error));
                }
                // After a failure that was reported, or at the end of the runtime.
                None => {
                    let why = "the connection is gone before the end of the blob";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

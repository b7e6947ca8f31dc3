//! A body on its way from the network to a thread that reads it.
//!
//! Pieces pass through a bounded channel: a reader that falls behind stops the connection, not the memory. The end of
//! the stream is said, not guessed, so that a task that vanishes is an error and never a short blob.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use keelblock_actors::ports::Blob;
use tokio::sync::mpsc;

use super::body::Body;
use super::error::{Asked, RegistryError};
use super::failure::HttpError;

/// Pieces on the way of one blob: with reads of at most 128 KiB, 2 MiB. Measured on loopback: as fast as fewer and larger ones,
/// and a third faster than twice as many of half the size.
const PIECES: usize = 16;

enum Piece {
    Bytes(Bytes),
    End,
    Failed(RegistryError),
}

/// Begins to move a body. Must be called on the runtime that is to do so; the reader belongs to any thread that may
/// block. `size` is what is known of its length.
pub(super) fn stream(asked: Asked, body: Body, size: Option<u64>) -> Blob {
    let (sender, pieces) = mpsc::channel(PIECES);
    let pump = tokio::spawn(pump(asked, body, sender));
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

async fn pump(asked: Asked, mut body: Body, sender: mpsc::Sender<Piece>) {
    loop {
        let chunk = tokio::select! {
            chunk = body.chunk() => chunk,
            () = sender.closed() => return,
        };
        let (piece, last) = match chunk {
            Ok(Some(bytes)) => (Piece::Bytes(bytes), false),
            Ok(None) => (Piece::End, true),
            Err(source) => (Piece::Failed(RegistryError::Http { asked: asked.clone(), source }), true),
        };
        if sender.send(piece).await.is_err() || last {
            return;
        }
    }
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
                    let stalled =
                        matches!(&error, RegistryError::Http { source: HttpError::Stalled { .. }, .. });
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

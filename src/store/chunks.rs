//! Buffers on their way from one stage of unpacking to the next: a few of each kind, used again and again.
//!
//! A buffer is filled from the [`Pool`] of its stage, lent out as [`Bytes`] to everyone who reads it, and comes back to
//! the pool when the last of them is done with it, whichever thread that is. So the pools bound the memory of a layer and
//! slow a fast stage down to its slowest reader, and the channels between the stages need no bound of their own.

use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;

use super::flaw::Flaw;
use crate::inflate::Chunk;

/// So many buffers.
pub(super) struct Pool {
    /// `None` until it is first used.
    empty: Receiver<Option<Chunk>>,
    back: Sender<Option<Chunk>>,
}

/// A filled buffer; on its end it goes back.
struct Lent {
    buffer: Option<Chunk>,
    back: Sender<Option<Chunk>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Nobody takes it any more when the pool is gone.
        let _ = self.back.send(self.buffer.take());
    }
}

impl Pool {
    /// So many buffers; memory is taken when they are first used.
    pub(super) fn new(buffers: usize) -> Self {
        let (back, empty) = channel();
        for _ in 0..buffers {
            // The receiver is right here.
            let _ = back.send(None);
        }
        Self { empty, back }
    }

    /// A buffer to be filled; waits until one is back.
    pub(super) fn take(&self) -> Result<Chunk, Flaw> {
        // Never an error: the pool holds a sender itself.
        let buffer = self.empty.recv().map_err(|_| Flaw::Cut)?;
        Ok(buffer.unwrap_or_default())
    }

    /// Lends a buffer of this pool with what it was filled with.
    pub(super) fn lend(&self, buffer: Chunk) -> Bytes {
        Bytes::from_owner(Lent { buffer: Some(buffer), back: self.back.clone() })
    }
}

/// What goes from stage to stage.
pub(super) enum Sent {
    /// Bytes, never none.
    Chunk(Bytes),
    /// All was sent; without this the sender gave up.
    End,
}

/// The sending end of what one stage reads.
pub(super) struct Sending(Sender<Sent>);

/// The receiving end.
pub(super) struct Receiving {
    from: Receiver<Sent>,
    ended: bool,
}

/// Both ends.
pub(super) fn pipe() -> (Sending, Receiving) {
    let (to, from) = channel();
    (Sending(to), Receiving { from, ended: false })
}

impl Sending {
    /// Sends bytes; `Cut` = the receiver is gone.
    pub(super) fn send(&self, chunk: Bytes) -> Result<(), Flaw> {
        self.0.send(Sent::Chunk(chunk)).map_err(|_| Flaw::Cut)
    }

    /// Says that all was sent.
    pub(super) fn end(self) -> Result<(), Flaw> {
        self.0.send(Sent::End).map_err(|_| Flaw::Cut)
    }
}

impl Receiving {
    /// The next bytes, waited for; `None` = the sender has sent all; `Cut` = it gave up.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Flaw> {
        if self.ended {
            return Ok(None);
        }
        match self.from.recv().map_err(|_| Flaw::Cut)? {
            Sent::Chunk(chunk) => Ok(Some(chunk)),
            Sent::End => {
                self.ended = true;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_reader_is_done() {
        let pool = Pool::new(1);
        let mut buffer = pool.take().unwrap();
        buffer.read_from(&mut &b"abc"[..]).unwrap();
        let (to, mut from) = pipe();
        let lent = pool.lend(buffer);
        let part = lent.slice(1..2);
        to.send(lent).unwrap();
        assert_eq!(from.next().unwrap().unwrap(), &b"abc"[..]);
        assert!(pool.empty.try_recv().is_err(), "a part of it is still read");
        assert_eq!(part, &b"b"[..]);
        drop(part);
        assert_eq!(&*pool.take().unwrap(), b"abc");
        to.end().unwrap();
        assert!(from.next().unwrap().is_none() && from.next().unwrap().is_none());
    }

    #[test]
    fn a_sender_that_gives_up_cuts_the_reader_off() {
        let (to, mut from) = pipe();
        drop(to);
        assert!(matches!(from.next(), Err(Flaw::Cut)));
        let (to, from) = pipe();
        drop(from);
        assert!(matches!(to.send(Bytes::from_static(b"x")), Err(Flaw::Cut)));
    }
}

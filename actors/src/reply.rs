//! What becomes of work whose asker leaves.
//!
//! | reply | when the asker leaves | used for |
//! |---|---|---|
//! | [`WhileWanted`] | the work is dropped | resolve, pull, wait |
//! | [`actix::ResponseFuture`] | it goes on to its end | destroy, prune, recover |
//! | the same, asked with a lease | it is undone, also when the answer was under way already | launch, exec |
//! | [`actix::AtomicResponse`] | it goes on, and the actor takes nothing else meanwhile | mount, unmount |
//!
//! A request that is still in a mailbox when its asker leaves is never begun (actix skips it).

use actix::dev::{MessageResponse, OneshotSender};
use actix::{Actor, Message};
use futures_util::future::LocalBoxFuture;
use tokio::sync::oneshot;

/// Answers a message with what the future brings, and drops the future when the asker leaves. actix itself runs a
/// response future to its end once begun, wanted or not.
pub struct WhileWanted<T>(pub LocalBoxFuture<'static, T>);

impl<A: Actor, M: Message> MessageResponse<A, M> for WhileWanted<M::Result> {
    fn handle(self, _: &mut A::Context, tx: Option<OneshotSender<M::Result>>) {
        // A message sent without waiting for its reply is wanted by nobody.
        let Some(mut tx) = tx else { return };
        actix::spawn(async move {
            tokio::select! {
                reply = self.0 => drop(tx.send(reply)),
                () = tx.closed() => {}
            }
        });
    }
}

/// A request whose result must not be lost on its way: its asker says that it has the answer.
///
/// Without it there is a moment in which an answer has been sent and its asker leaves before reading it: a container
/// would run that nobody knows of.
pub(crate) struct Leased<M> {
    pub(crate) message: M,
    pub(crate) lease: Lease,
}

impl<M: Message> Message for Leased<M> {
    type Result = M::Result;
}

/// The asker's end of a lease. Dropping it without [`Asker::took`] is leaving.
pub(crate) struct Asker(oneshot::Sender<()>);

/// The answerer's end of a lease.
pub(crate) struct Lease {
    end: oneshot::Receiver<()>,
    /// Whether the answer was taken; `None` = not known yet.
    taken: Option<bool>,
}

pub(crate) fn lease() -> (Asker, Lease) {
    let (asker, end) = oneshot::channel();
    (Asker(asker), Lease { end, taken: None })
}

impl Asker {
    /// The answer has arrived; whoever holds it answers for it now.
    pub(crate) fn took(self) {
        // An answerer that waits no more has refused the request.
        let _ = self.0.send(());
    }
}

impl Lease {
    /// Returns when the asker leaves; never, when it takes the answer.
    pub(crate) async fn left(&mut self) {
        if self.taken().await {
            std::future::pending().await
        }
    }

    /// Whether the asker took the answer, once it has or has left.
    pub(crate) async fn taken(&mut self) -> bool {
        match self.taken {
            Some(taken) => taken,
            None => *self.taken.insert((&mut self.end).await.is_ok()),
        }
    }
}

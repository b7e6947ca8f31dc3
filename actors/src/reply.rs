//! `WhileWanted`: a reply whose work ends when nobody waits for it any more.

use actix::dev::{MessageResponse, OneshotSender};
use actix::{Actor, Message};
use futures_util::future::LocalBoxFuture;

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

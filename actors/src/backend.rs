//! Backends: one actor per backend, which finds or starts the actor of a rootfs.
//!
//! Passing a request on is synchronous, so those for one rootfs keep the order in which they came; those for different
//! rootfses wait for a slot of the pool at most. A mount whose asker leaves goes on: what stops it is the unmount that
//! follows. The actor of a rootfs ends when nothing is mounted and no reply of it is due.

use std::collections::HashMap;
use std::sync::Arc;

use actix::{
    Actor, ActorFutureExt, Addr, Context, Handler, MailboxError, Message, ResponseActFuture, WrapFuture,
};

use crate::container::{ContainerId, RootfsId};
use crate::error::{Gone, MountError};
use crate::messages::{Mount, Unmount};
use crate::pool::Pool;
use crate::ports::{Backend, Rootfs, RootfsPlace, Store};
use crate::rootfs::RootfsActor;
use crate::stop::Stop;

pub(crate) struct BackendActor {
    pub(crate) port: Arc<dyn Backend>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pool: Pool,
    pub(crate) rootfses: HashMap<(ContainerId, RootfsId), Entry>,
}

/// The actor of a rootfs and how many replies of it are due; without any, and unmounted, it is let go.
pub(crate) struct Entry {
    addr: Addr<RootfsActor>,
    stop: Stop,
    due: usize,
}

/// Forget a rootfs without unmounting it: it stays.
pub(crate) struct LetGo {
    pub(crate) rootfs: (ContainerId, RootfsId),
}
impl Message for LetGo {
    type Result = ();
}

impl Actor for BackendActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(crate::system::MAILBOX);
    }
}

impl BackendActor {
    fn entry(&mut self, place: &RootfsPlace) -> &mut Entry {
        self.rootfses.entry((place.container.clone(), place.id)).or_insert_with(|| {
            let stop = Stop::default();
            let actor =
                RootfsActor::new(self.port.clone(), self.store.clone(), self.pool.clone(), stop.clone());
            Entry { addr: actor.start(), stop, due: 0 }
        })
    }

    /// A reply came; `gone` = the rootfs is not there any more as far as that reply knows.
    fn replied(&mut self, key: &(ContainerId, RootfsId), gone: bool) {
        if let Some(entry) = self.rootfses.get_mut(key) {
            entry.due -= 1;
            if gone && entry.due == 0 {
                // With its last address the actor ends.
                self.rootfses.remove(key);
            }
        }
    }
}

fn answered<T>(reply: Result<Result<T, Arc<MountError>>, MailboxError>) -> Result<T, Arc<MountError>> {
    reply.unwrap_or_else(|_| Err(Arc::new(Gone { actor: "rootfs" }.into())))
}

impl Handler<Mount> for BackendActor {
    type Result = ResponseActFuture<Self, Result<Rootfs, Arc<MountError>>>;

    fn handle(&mut self, mount: Mount, _: &mut Self::Context) -> Self::Result {
        let key = (mount.place.container.clone(), mount.place.id);
        let entry = self.entry(&mount.place);
        entry.due += 1;
        // Sent now, not when the future is polled: arrival order is the order of work.
        let reply = entry.addr.send(mount);
        Box::pin(reply.into_actor(self).map(move |reply, this, _| {
            let reply = answered(reply);
            this.replied(&key, reply.is_err());
            reply
        }))
    }
}

impl Handler<Unmount> for BackendActor {
    type Result = ResponseActFuture<Self, Result<bool, Arc<MountError>>>;

    fn handle(&mut self, unmount: Unmount, _: &mut Self::Context) -> Self::Result {
        let key = (unmount.place.container.clone(), unmount.place.id);
        let entry = self.entry(&unmount.place);
        entry.due += 1;
        // A mount under way is not wanted any more: a long copy ends early, the unmount waits its turn.
        entry.stop.raise();
        let reply = entry.addr.send(unmount);
        Box::pin(reply.into_actor(self).map(move |reply, this, _| {
            let reply = answered(reply);
            this.replied(&key, reply.is_ok());
            reply
        }))
    }
}

impl Handler<LetGo> for BackendActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, LetGo { rootfs }: LetGo, _: &mut Self::Context) -> Self::Result {
        let Some(entry) = self.rootfses.get_mut(&rootfs) else { return Box::pin(async {}.into_actor(self)) };
        entry.due += 1;
        let reply = entry.addr.send(crate::rootfs::LetGo);
        Box::pin(reply.into_actor(self).map(move |_, this, _| this.replied(&rootfs, true)))
    }
}

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

#[cfg(test)]
mod tests {
    use actix::MessageResult;
    use tokio::task::LocalSet;

    use super::*;
    use crate::container::BackendName;
    use crate::fakes::{Act, Step, World};
    use crate::image::digest::{DiffId, Digest};
    use crate::ports::{Records, StoredLayer};
    use crate::system::EngineLimits;

    /// How many rootfs actors there are.
    struct Count;
    impl Message for Count {
        type Result = usize;
    }
    impl Handler<Count> for BackendActor {
        type Result = MessageResult<Count>;

        fn handle(&mut self, _: Count, _: &mut Self::Context) -> Self::Result {
            MessageResult(self.rootfses.len())
        }
    }

    fn with_backend(world: &World, test: impl AsyncFnOnce(Addr<BackendActor>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let parts = world.parts(EngineLimits::default());
            let (port, store) = (parts.backends[0].clone(), parts.store.clone());
            let pool = Pool::new("mount", 8);
            test(BackendActor { port, store, pool, rootfses: HashMap::new() }.start()).await;
        });
    }

    fn place(world: &World, rootfs: u32) -> RootfsPlace {
        world.place(&"web".parse().unwrap(), BackendName::Overlay, RootfsId(rootfs))
    }

    fn mount(world: &World, rootfs: u32) -> Mount {
        let layer = StoredLayer { diff_id: DiffId(Digest::of(b"layer")) };
        Mount { stack: vec![layer], place: place(world, rootfs) }
    }

    #[test]
    fn the_actor_of_a_rootfs_lives_as_long_as_something_is_mounted_or_asked_there() {
        let world = World::default();
        with_backend(&world, async |backend| {
            let count = async || backend.send(Count).await.unwrap();
            let unmount = |rootfs| backend.send(Unmount { place: place(&world, rootfs) });
            backend.send(mount(&world, 0)).await.unwrap().unwrap();
            world.once(Step::Mount, Act::Fail);
            backend.send(mount(&world, 1)).await.unwrap().unwrap_err();
            world.once(Step::Show, Act::Panic);
            backend.send(mount(&world, 2)).await.unwrap().unwrap_err();
            assert_eq!(count().await, 1, "nothing stands of the two that failed");
            world.once(Step::Unmount, Act::Panic);
            unmount(0).await.unwrap().unwrap_err();
            assert_eq!(count().await, 1, "it may still be mounted");
            assert!(unmount(0).await.unwrap().unwrap());
            assert!(!unmount(0).await.unwrap().unwrap());
            assert_eq!(count().await, 0);
            backend.send(mount(&world, 3)).await.unwrap().unwrap();
            backend.send(LetGo { rootfs: (place(&world, 3).container, RootfsId(3)) }).await.unwrap();
            assert_eq!(count().await, 0);
        });
    }

    #[test]
    fn requests_for_one_rootfs_are_served_in_the_order_of_their_arrival() {
        let world = World::default();
        with_backend(&world, async |backend| {
            world.close(Step::Mount);
            let first = backend.send(mount(&world, 0));
            let other = backend.send(mount(&world, 1));
            let second = backend.send(Unmount { place: place(&world, 0) });
            let third = backend.send(Unmount { place: place(&world, 0) });
            let watch = async {
                // The other rootfs and the unmounts of the first, while the other is held.
                world.reached(Step::Mount, 1).await;
                let answers = (second.await, third.await);
                world.open_all();
                answers
            };
            let (first, other, (second, third)) = tokio::join!(first, other, watch);
            assert!(matches!(&*first.unwrap().unwrap_err(), MountError::Stopped { .. }));
            other.unwrap().unwrap();
            assert_eq!((second.unwrap().unwrap(), third.unwrap().unwrap()), (false, false));
            let of_first: Vec<_> = world.history().into_iter().filter(|line| line.ends_with('0')).collect();
            // Stopped before it began, or in the middle of it: in either case before the first unmount.
            let unmounts = ["unmount web 0", "unmount web 0"];
            assert!(
                of_first == unmounts || of_first == [&["mount web 0", "stop web 0"], &unmounts[..]].concat()
            );
        });
    }

    #[test]
    fn a_request_given_up_in_the_mailbox_is_never_begun() {
        let world = World::default();
        with_backend(&world, async |backend| {
            drop(backend.send(mount(&world, 0)));
            assert_eq!(backend.send(Count).await.unwrap(), 0);
            assert_eq!(world.count(Step::Mount), 0);
        });
    }
}

//! SERIALISE: the rootfs is an actor, its mailbox is its mount queue.
//!
//! Arrival order, and never stopping mid-mount, follow from `AtomicResponse`: the actor takes nothing else until the
//! work under way is done. Other rootfses run side by side. It calls no actor.

use std::sync::Arc;

use actix::{Actor, AtomicResponse, Context, Handler, WrapFuture};

use actix::ActorFutureExt;

use crate::error::MountError;
use crate::messages::{Mount, Unmount};
use crate::pool::{Pool, guarded};
use crate::ports::{Backend, LayerDir, Rootfs, Store};
use crate::stop::Stop;

pub(crate) struct RootfsActor {
    port: Arc<dyn Backend>,
    store: Arc<dyn Store>,
    pool: Pool,
    /// Raised by the backend when an unmount arrives.
    stop: Stop,
    /// What the rootfs is made of, shown until it is unmounted.
    layers: Vec<LayerDir>,
}

impl RootfsActor {
    pub(crate) fn new(port: Arc<dyn Backend>, store: Arc<dyn Store>, pool: Pool, stop: Stop) -> Self {
        Self { port, store, pool, stop, layers: Vec::new() }
    }
}

impl Actor for RootfsActor {
    type Context = Context<Self>;
}

impl Handler<Mount> for RootfsActor {
    type Result = AtomicResponse<Self, Result<Rootfs, Arc<MountError>>>;

    fn handle(&mut self, Mount { stack, place }: Mount, _: &mut Self::Context) -> Self::Result {
        let (port, store, pool, stop) =
            (self.port.clone(), self.store.clone(), self.pool.clone(), self.stop.clone());
        let mount = guarded("mount", async move {
            pool.run(move |_| {
                if stop.is_raised() {
                    return Err(MountError::Stopped { path: place.rootfs });
                }
                let layers = stack.iter().map(|layer| store.show(layer)).collect::<Result<Vec<_>, _>>()?;
                let rootfs = port.mount(&layers, &place, &stop)?;
                Ok((rootfs, layers))
            })
            .await
        });
        AtomicResponse::new(Box::pin(mount.into_actor(self).map(|mounted, this, _| {
            let (rootfs, layers) = mounted.map_err(Arc::new)?;
            this.layers = layers;
            Ok(rootfs)
        })))
    }
}

impl Handler<Unmount> for RootfsActor {
    type Result = AtomicResponse<Self, Result<bool, Arc<MountError>>>;

    fn handle(&mut self, Unmount { place }: Unmount, _: &mut Self::Context) -> Self::Result {
        let (port, pool) = (self.port.clone(), self.pool.clone());
        let unmount = guarded("mount", async move { pool.run(move |_| port.unmount(&place)).await });
        AtomicResponse::new(Box::pin(unmount.into_actor(self).map(|unmounted, this, _| {
            let was_there = unmounted.map_err(Arc::new)?;
            this.layers.clear();
            Ok(was_there)
        })))
    }
}

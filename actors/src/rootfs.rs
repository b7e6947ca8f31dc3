//! SERIALISE: the rootfs is an actor, its mailbox is its mount queue.
//!
//! Arrival order, and never stopping mid-mount, follow from `AtomicResponse`: the actor takes nothing else until the
//! work under way is done. Other rootfses run side by side. It calls no actor.

use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AtomicResponse, Context, Handler, Message, WrapFuture};

use crate::error::{JobLost, MountError};
use crate::messages::{Mount, Unmount};
use crate::pool::{Pool, caught, guarded};
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
        let layers = std::mem::take(&mut self.layers);
        let unmount = async move {
            pool.run(move |_| {
                let unmounted = caught("mount", || port.unmount(&place))
                    .map_err(MountError::from)
                    .and_then(|unmounted| unmounted);
                // Letting go of a layer may unmount it: here, where that may block, and after the rootfs.
                let kept = if unmounted.is_ok() { Vec::new() } else { layers };
                Ok::<_, JobLost>((unmounted, kept))
            })
            .await
        };
        AtomicResponse::new(Box::pin(unmount.into_actor(self).map(|done, this, _| {
            let (unmounted, kept) = done.map_err(|lost| Arc::new(lost.into()))?;
            this.layers = kept;
            unmounted.map_err(Arc::new)
        })))
    }
}

/// Forget the layers of a rootfs that stays.
pub(crate) struct LetGo;
impl Message for LetGo {
    type Result = ();
}

impl Handler<LetGo> for RootfsActor {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: LetGo, _: &mut Self::Context) -> Self::Result {
        let (pool, layers) = (self.pool.clone(), std::mem::take(&mut self.layers));
        let hide = async move {
            // Its only failure is a panic in there; nothing is left to be done about it.
            let job = move |_: &Stop| {
                layers.iter().for_each(|layer| layer.hold.keep());
                drop(layers);
                Ok::<_, JobLost>(())
            };
            let _ = pool.run(job).await;
        };
        AtomicResponse::new(Box::pin(hide.into_actor(self)))
    }
}

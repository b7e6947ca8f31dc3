//! Who does what, and when: the vocabulary, the ports, the messages and the actors of keelblock.
//!
//! No kernel, no network, no JSON text in this crate: those are adapters behind [`ports`], in the root package.
//!
//! [`system::Engine`] starts the actors and is the handle that outsiders hold; there is no actix type in it. Calls run
//! one way, from top to bottom of this table, so no two actors can wait for each other:
//!
//! | message | actor | reply | when its asker leaves |
//! |---|---|---|---|
//! | [`Launch`](messages::Launch) | containerizer | [`RunningContainer`](messages::RunningContainer) | taken down |
//! | [`ProvisionContainer`](messages::ProvisionContainer) | containerizer | [`Provisioned`](messages::Provisioned) | taken down |
//! | [`Exec`](messages::Exec) | containerizer | [`Executed`](messages::Executed) | the command is killed |
//! | [`Wait`](messages::Wait) | containerizer | [`ExitStatus`](container::ExitStatus), if there is one | given up |
//! | [`Kill`](messages::Kill) | containerizer | `()` | a signal on its way is sent |
//! | [`Destroy`](messages::Destroy) | containerizer | [`ExitStatus`](container::ExitStatus), if there is one | goes on |
//! | [`List`](messages::List) | containerizer | [`Found`](ports::Found), of all processes | given up |
//! | [`Recover`](messages::Recover) | containerizer | the containers taken down | goes on |
//! | [`Pull`](messages::Pull) | provisioner | [`PulledImage`](messages::PulledImage) | given up, unless shared |
//! | [`Provision`](messages::Provision) | provisioner | [`Provisioned`](messages::Provisioned) | the pull is given up, a mount goes on until it is destroyed |
//! | [`Deprovision`](messages::Deprovision) | provisioner | whether there was anything | goes on |
//! | [`Prune`](messages::Prune) | provisioner | [`Pruned`](ports::Pruned) | goes on |
//! | [`Resolve`](messages::Resolve) | provider of the image's kind | [`ResolvedImage`](messages::ResolvedImage) | given up, unless shared |
//! | [`PullImage`](messages::PullImage) | provider of the image's kind | [`PulledImage`](messages::PulledImage) | given up, unless shared |
//! | [`PullLayer`](messages::PullLayer) | puller of the layer's source | [`PulledLayer`](messages::PulledLayer) | given up, unless shared |
//! | [`Mount`](messages::Mount) | backend, then the rootfs | [`Rootfs`](ports::Rootfs) | goes on; the next unmount stops it |
//! | [`Unmount`](messages::Unmount) | backend, then the rootfs | whether there was a rootfs | goes on |
//!
//! Each mechanism lives in one place: SHARE in [`flight`], SERIALISE in the rootfs actor, BOUND in [`pool`], and what a
//! leaving asker means in [`reply`]. Why truth is on disk and no actor is supervised: [`system`]. How all of it is
//! tested without root, network or time: `fakes` (a feature).

#![forbid(unsafe_code)]

mod backend;
pub mod container;
mod containerizer;
pub mod error;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod flight;
pub mod image;
mod lanes;
pub mod launch;
pub mod messages;
pub mod pool;
pub mod ports;
pub mod progress;
mod provider;
mod provisioner;
mod puller;
pub mod reply;
mod rootfs;
pub mod stop;
pub mod system;
pub mod transfer;

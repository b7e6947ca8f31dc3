//! Root filesystems of layer stacks: overlay, copy, bind.
//!
//! Each backend turns the same stack into the same tree and takes it away again, however far it got. They are told
//! where ([`RootfsPlace`](keelblock_actors::ports::RootfsPlace)) and of what
//! ([`LayerDir`](keelblock_actors::ports::LayerDir)); they never write to a layer, never follow a symlink of an
//! image, and never remove anything below a mount. Which of them work here is found out by [`choose()`].
//!
//! Mounts take the propagation of what they are attached to: below a shared mount they are shared, so that they are
//! seen, and go, in every namespace that shares it. The launcher makes its own copies slaves of these.

pub mod bind;
pub mod choose;
pub mod copy;
pub mod error;
mod implied;
mod metadata;
pub mod overlay;
mod overlayfs;
mod place;
mod probe;
mod stack;

pub use bind::BindBackend;
pub use choose::{Chosen, all, choose};
pub use copy::CopyBackend;
pub use error::BackendError;
pub use overlay::OverlayBackend;

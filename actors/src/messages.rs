//! Every message beside its reply. Small values only: bytes stay in files and readers.

use std::sync::Arc;

use actix::Message;

use crate::container::{ContainerId, ContainerSpec, ExitStatus};
use crate::error::{
    ContainerError, DestroyError, JobLost, MountError, ProvisionError, PullError, RecordError, ResolveError,
    StoreError,
};
use crate::image::name::ImageRequest;
use crate::image::plan::{ImageIdentity, ImagePlan, LayerSpec, RuntimeConfig};
use crate::ports::{ExecSpec, Found, Keep, Launched, Pruned, Rootfs, RootfsPlace, StoredLayer};
use crate::transfer::TransferCounts;

// ---- to a puller -----------------------------------------------------------------------------------------------

/// Have this layer in the store, whole and verified; answer what it is.
#[derive(Clone, Debug)]
pub struct PullLayer {
    /// Which, and from where.
    pub layer: LayerSpec,
}
/// The layer, and whether bytes were fetched for it. Shared by all who waited.
pub type Pulled = Result<PulledLayer, Arc<PullError>>;
impl Message for PullLayer {
    type Result = Pulled;
}

/// A layer that is in the store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledLayer {
    /// The layer.
    pub layer: StoredLayer,
    /// Blob bytes fetched for it by this flight; `None` when the store had it.
    pub fetched_bytes: Option<u64>,
    /// What that took.
    pub transfer: TransferCounts,
}

// ---- to a provider ---------------------------------------------------------------------------------------------

/// Turn this name into layers that are in the store.
#[derive(Clone, Debug)]
pub struct Resolve {
    /// The image.
    pub request: ImageRequest,
}
/// What the name means; nothing is fetched yet.
pub type Resolved = Result<ResolvedImage, Arc<ResolveError>>;
impl Message for Resolve {
    type Result = Resolved;
}

/// A resolved name.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// What it means.
    pub plan: Arc<ImagePlan>,
    /// Its layers, base first, when the store answered and has them all; else they must be pulled.
    pub stored: Option<Vec<StoredLayer>>,
}

/// Have all layers of this plan in the store and remember the image.
#[derive(Clone, Debug)]
pub struct PullImage {
    /// The plan of a [`Resolved`].
    pub plan: Arc<ImagePlan>,
}
/// The image in the store.
pub type ImagePulled = Result<PulledImage, Arc<PullError>>;
impl Message for PullImage {
    type Result = ImagePulled;
}

/// An image that is in the store now.
#[derive(Clone, Debug)]
pub struct PulledImage {
    /// Who it is.
    pub identity: ImageIdentity,
    /// Its layers, base first.
    pub layers: Vec<StoredLayer>,
    /// Its config.
    pub runtime: RuntimeConfig,
    /// Blob bytes fetched for it.
    pub bytes_fetched: u64,
    /// Layers fetched for it.
    pub layers_fetched: usize,
    /// Layers that were there already.
    pub layers_reused: usize,
    /// What fetching took besides its bytes.
    pub transfer: TransferCounts,
}

// ---- to the provisioner ----------------------------------------------------------------------------------------

/// Bring an image into the store, for nobody in particular.
#[derive(Clone, Debug)]
pub struct Pull {
    /// The image.
    pub request: ImageRequest,
}
impl Message for Pull {
    type Result = Result<PulledImage, Arc<ProvisionError>>;
}

/// Give a container a root filesystem of this image; a container may have several.
#[derive(Clone, Debug)]
pub struct Provision {
    /// Whose name the caller holds.
    pub container: ContainerId,
    /// The image.
    pub request: ImageRequest,
}
impl Message for Provision {
    type Result = Result<Provisioned, Arc<ProvisionError>>;
}

/// A container's root filesystem, and the image it was made of.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// The image.
    pub image: PulledImage,
}

/// Remove every root filesystem of a container, whatever is under way. `false` = it had none.
#[derive(Clone, Debug)]
pub struct Deprovision {
    /// Which.
    pub container: ContainerId,
}
impl Message for Deprovision {
    type Result = Result<bool, Arc<DestroyError>>;
}

/// Remove images and layers that nobody uses.
#[derive(Clone, Debug)]
pub struct Prune {
    /// What must stay.
    pub keep: Keep,
}
impl Message for Prune {
    type Result = Result<Pruned, Arc<PruneError>>;
}

/// Pruning, or listing images, failed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`RecordError`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
    /// See [`crate::error::Gone`].
    #[error(transparent)]
    Gone(#[from] crate::error::Gone),
}

// ---- to a backend, and from it to the actor of one rootfs ---------------------------------------------------------

/// Make the rootfs at this place of these layers.
#[derive(Clone, Debug)]
pub struct Mount {
    /// The layers, base first.
    pub stack: Vec<StoredLayer>,
    /// Where.
    pub place: RootfsPlace,
}
impl Message for Mount {
    type Result = Result<Rootfs, Arc<MountError>>;
}

/// Unmake the rootfs at this place, behind whatever is under way there. `false` = there was none.
#[derive(Clone, Debug)]
pub struct Unmount {
    /// Where.
    pub place: RootfsPlace,
}
impl Message for Unmount {
    type Result = Result<bool, Arc<MountError>>;
}

// ---- to the containerizer ---------------------------------------------------------------------------------------

/// Provision, prepare, start and release a container; answer when its command runs.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What.
    pub spec: ContainerSpec,
}
impl Message for Launch {
    type Result = Result<RunningContainer, Arc<ContainerError>>;
}

/// A container whose command runs.
#[derive(Clone)]
pub struct RunningContainer {
    /// Its name.
    pub id: ContainerId,
    /// Its process: to wait for it, signal it.
    pub process: Arc<dyn Launched>,
    /// Its root filesystem.
    pub rootfs: Option<Rootfs>,
    /// Its image.
    pub image: Option<ImageIdentity>,
}

/// Give a container a root filesystem, no process, and let it stay when this process ends.
#[derive(Clone, Debug)]
pub struct ProvisionContainer {
    /// Its name; must not be in use.
    pub id: ContainerId,
    /// The image.
    pub request: ImageRequest,
}
impl Message for ProvisionContainer {
    type Result = Result<Provisioned, Arc<ContainerError>>;
}

/// Answer how a container ended; waits while it runs. Containers of other processes too.
#[derive(Clone, Debug)]
pub struct Wait {
    /// Which.
    pub id: ContainerId,
}
impl Message for Wait {
    /// `None` = it ended with no status to be had.
    type Result = Result<Option<ExitStatus>, Arc<ContainerError>>;
}

/// Send a signal to a container's command. Containers of other processes too.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Which.
    pub id: ContainerId,
    /// Signal number.
    pub signal: i32,
}
impl Message for Kill {
    type Result = Result<(), Arc<ContainerError>>;
}

/// Run one more command in a container. Containers of other processes too.
#[derive(Clone, Debug)]
pub struct Exec {
    /// Which.
    pub id: ContainerId,
    /// What.
    pub exec: ExecSpec,
}
impl Message for Exec {
    type Result = Result<Executed, Arc<ContainerError>>;
}

/// A command started by [`Exec`].
#[derive(Clone)]
pub struct Executed {
    /// Its process.
    pub process: Arc<dyn Launched>,
}

/// Take a container down, whatever its state, and remove everything of it. All callers share one teardown.
/// `None` = it had no process that ended.
#[derive(Clone, Debug)]
pub struct Destroy {
    /// Which.
    pub id: ContainerId,
}
impl Message for Destroy {
    type Result = Result<Option<ExitStatus>, Arc<ContainerError>>;
}

/// All containers, of all processes.
#[derive(Clone, Copy, Debug)]
pub struct List;
impl Message for List {
    type Result = Result<Vec<Found>, Arc<ContainerError>>;
}

/// Take down what dead processes left. Done once at start, before anything else.
#[derive(Clone, Copy, Debug)]
pub struct Recover;
impl Message for Recover {
    /// The containers taken down.
    type Result = Result<Vec<ContainerId>, Arc<ContainerError>>;
}

impl std::fmt::Debug for RunningContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "container {} of {:?}", self.id, self.image.as_ref().map(|image| &image.name))
    }
}

impl std::fmt::Debug for Executed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a command executed in a container")
    }
}

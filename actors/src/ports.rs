//! Every port of the engine: what the actors need of the world, and what the root package implements.
//!
//! Blocking ports are plain functions; only [`crate::pool`] decides on which thread they run. They may be called
//! from many threads at once. Asynchronous ports return futures that do their byte work elsewhere: an actor
//! thread only waits for them.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::container::{
    BackendName, ContainerId, ContainerRecord, ExitStatus, ProcessIdentity, RootfsId, RootfsRecord,
};
use crate::error::{
    Cause, FetchError, IsolatorError, LaunchError, MountError, RecordError, ResolveError, StoreError,
    UnpackError,
};
use crate::image::digest::{DiffId, Digest};
use crate::image::name::{ImageKind, ImageName, ImageRequest};
use crate::image::plan::{ImagePlan, LayerKey, LayerSpec, SourceKind};
use crate::launch::{LaunchContext, LaunchPlan};
use crate::stop::Stop;
use crate::transfer::Transfer;

// ---- images -----------------------------------------------------------------------------------------------

/// Asks the sources of one image kind what a name means now.
pub trait Provider: Send + Sync {
    /// The kind it resolves.
    fn kind(&self) -> ImageKind;

    /// The manifest and config behind a name, verified and turned into a plan. Fetches no layer.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] when the source has no such image, [`ResolveError::Failed`] when it could
    /// not be asked or answers nonsense.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work and leaves nothing behind.
    fn resolve(&self, request: ImageRequest) -> BoxFuture<'static, Result<ImagePlan, ResolveError>>;

    /// Whether this image, which is in the store, is one that the name would be resolved to: for the platform that is
    /// wanted now.
    fn fits(&self, plan: &ImagePlan) -> bool;

    /// Whether whoever makes this request may have this image, which is in the store: its source is asked, with his
    /// credentials.
    ///
    /// # Errors
    /// [`ResolveError::NotAuthorized`] when the source refuses or cannot be asked.
    fn authorize(
        &self,
        request: ImageRequest,
        plan: &ImagePlan,
    ) -> BoxFuture<'static, Result<(), ResolveError>>;
}

/// Bytes of a blob on their way.
pub struct Blob {
    /// The bytes, to be read on a pool thread. Dropping it ends the fetch.
    pub reader: Box<dyn Read + Send>,
    /// Dropping it ends the fetch, too, while the reader waits for bytes on another thread: a pull that is given up
    /// does not sit out a stall. Files need none: `Box::new(())`.
    pub lease: Box<dyn Send>,
    /// How many there will be, where the source says so.
    pub size: Option<u64>,
}

/// Opens the blobs of one kind of source.
pub trait Puller: Send + Sync {
    /// The kind it opens.
    fn kind(&self) -> SourceKind;

    /// The bytes of this layer's blob, from the start. Verifies nothing: the store does.
    ///
    /// # Errors
    /// [`FetchError`] for what fails before the first byte; what fails later is an error of the reader.
    ///
    /// # Cancel safety
    /// Dropping the future, or the reader, ends the request.
    fn open(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<Blob, FetchError>>;

    /// Whether the source says that whoever asks may have the blob of this digest, so that its bytes need not be
    /// brought again to show that he can: true. False: it cannot say so without giving them.
    ///
    /// # Errors
    /// [`FetchError`] when it refuses, or cannot be asked.
    fn authorize(&self, layer: &LayerSpec) -> BoxFuture<'static, Result<bool, FetchError>>;

    /// The same, as an attempt of this transfer, which is told of what becomes of it: sources that break off and are asked
    /// again do so.
    ///
    /// # Errors
    /// As [`Puller::open`].
    ///
    /// # Cancel safety
    /// As [`Puller::open`].
    fn open_for(
        &self,
        layer: &LayerSpec,
        transfer: Arc<Transfer>,
    ) -> BoxFuture<'static, Result<Blob, FetchError>> {
        let _ = transfer;
        self.open(layer)
    }
}

// ---- store ------------------------------------------------------------------------------------------------

/// A whole and verified layer in the store. What it looks like there is the store's business: it can be shown
/// as a read-only directory ([`Store::show`]), that is all others know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredLayer {
    /// What it is.
    pub diff_id: DiffId,
}

/// A stored layer, shown as a directory that must not be written, in overlayfs form: a whiteout is a character
/// device 0:0, an opaque directory has the xattr `trusted.overlay.opaque` or `user.overlay.opaque` = `y`, and a
/// directory that holds a whiteout has an empty `trusted.overlay.origin` or `user.overlay.origin`: without it
/// overlayfs lists the whiteouts of a directory that it need not merge (nothing lower has it) as broken entries.
#[derive(Clone)]
pub struct LayerDir {
    /// What it is.
    pub diff_id: DiffId,
    /// Where, absolute.
    pub path: PathBuf,
    /// Whether its opaque marks are in `user.overlay.` (overlayfs option `userxattr`).
    pub user_xattrs: bool,
    /// Whether there are whiteouts in it.
    pub whiteouts: bool,
    /// Directories that the layer has no entry for, relative to its root: made because something in them came. What they
    /// show besides what is in them is nobody's word, so the same directory in a lower layer keeps its attributes.
    pub implied: Arc<[PathBuf]>,
    /// Keeps it shown; the last clone to go may unmount it.
    pub hold: Arc<dyn Hold>,
}

/// Keeps a layer shown.
pub trait Hold: Send + Sync {
    /// The root filesystem that the layer is part of stays when this process ends: so the layer stays shown after the hold
    /// was dropped, until [`Store::hide_idle`] or a prune finds that no record names it.
    fn keep(&self) {}
}

/// For layers that are shown as long as they are there.
impl Hold for () {}

impl std::fmt::Debug for LayerDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.diff_id, self.path.display())
    }
}

/// The answer to a claim on a layer.
pub enum Claim {
    /// It is in the store.
    Here(StoredLayer),
    /// It is not, and this caller alone, among all processes on this store, may bring it now.
    Mine(Box<dyn Staging>),
    /// Another process is bringing it: ask again in a while.
    Elsewhere,
}

/// The right to bring one layer. Dropping it gives the right back and removes what was staged.
pub trait Staging: Send {
    /// Reads the blob to its end, verifies size, blob digest and diff ID on the way, unpacks it into a private
    /// directory, and commits that by rename: the layer is visible whole or not at all.
    ///
    /// # Errors
    /// [`UnpackError`]; nothing is left then.
    ///
    /// # Blocking
    /// For as long as the bytes take. Looks at `stop` between buffers and between tar entries.
    fn unpack(
        self: Box<Self>,
        layer: &LayerSpec,
        blob: &mut dyn Read,
        stop: &Stop,
    ) -> Result<StoredLayer, UnpackError>;
}

/// An image that was pulled whole, as the store remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// What it resolved to.
    pub plan: ImagePlan,
    /// Its layers in the store, base first.
    pub layers: Vec<StoredLayer>,
    /// When, milliseconds since 1970.
    pub pulled_ms: u64,
}

/// What prune must not remove, besides what containers of any process and pulls under way use.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Images by canonical name.
    pub images: Vec<ImageName>,
}

/// What containers use, asked for in the middle of a prune.
pub type InUse<'a> = &'a dyn Fn() -> Result<Vec<RootfsRecord>, Cause>;

/// What prune removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Images, by name.
    pub images: Vec<ImageName>,
    /// Layers.
    pub layers: Vec<DiffId>,
    /// Bytes of file content that those layers held.
    pub bytes: u64,
    /// Whether their disk space is free already; else their trees are being removed, or wait for it.
    pub freed: bool,
}

/// How large a layer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSize {
    /// Bytes of file content, holes and second names of a file not counted.
    pub bytes: u64,
    /// Entries of its tar.
    pub entries: u64,
}

/// Layers and image records on disk. All methods block on the disk.
pub trait Store: Send + Sync {
    /// The layer, if it is there whole.
    fn find(&self, key: &LayerKey) -> Result<Option<StoredLayer>, StoreError>;

    /// The layer, or the right to bring it.
    fn claim(&self, key: &LayerKey) -> Result<Claim, StoreError>;

    /// The right to bring a layer although it may be in the store: its bytes are to be seen and verified once more.
    fn claim_anew(&self, key: &LayerKey) -> Result<Claim, StoreError>;

    /// The blob that brought a layer, where its digest was known.
    fn blob_of(&self, layer: &StoredLayer) -> Result<Option<Digest>, StoreError>;

    /// Shows a layer as a directory.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there (pruned behind a record's back).
    fn show(&self, layer: &StoredLayer) -> Result<LayerDir, StoreError>;

    /// Keeps these layers from being pruned, by any process, until the guard drops or this process ends.
    fn pin(&self, layers: &[LayerKey]) -> Result<Box<dyn Send + Sync>, StoreError>;

    /// Sets disk space aside for those of these layers that are not in the store yet, against all processes on it, until
    /// the guard drops or this process ends. A layer that several ask for, or that is being brought, counts once.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when they do not fit, with the numbers.
    fn reserve(&self, layers: &[LayerSpec]) -> Result<Box<dyn Send + Sync>, StoreError>;

    /// The record of an image, if one by this canonical name was pulled. Its layers may be gone: see `find`.
    fn image(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError>;

    /// Remembers an image, in place of an earlier one of that name.
    fn record_image(&self, record: &ImageRecord) -> Result<(), StoreError>;

    /// All images, by name.
    fn images(&self) -> Result<Vec<ImageRecord>, StoreError>;

    /// How large a layer is, as counted when it was unpacked.
    fn layer_size(&self, layer: &StoredLayer) -> Result<LayerSize, StoreError>;

    /// Removes every image and layer that nobody uses and `keep` does not name. `in_use` answers with
    /// the records of all containers of all processes; it is asked once nobody can pin or claim any more, and after the
    /// pins were read: a container whose record is written before its pin is dropped is then seen by one or the other.
    /// Removed layers vanish by rename at once; their trees are removed then or later ([`Pruned::freed`]).
    fn prune(&self, keep: &Keep, in_use: InUse<'_>) -> Result<Pruned, StoreError>;

    /// Removes what pulls of dead processes left: staging directories, half-removed layers; their trees then or later.
    /// Called at start, which must not wait for large ones.
    fn recover(&self) -> Result<(), StoreError>;

    /// Shows no more those layers that stayed shown ([`Hold::keep`]), or were left so by dead processes, and that `in_use`,
    /// which answers as for [`Store::prune`], does not name. Asks it only if there are any.
    fn hide_idle(&self, in_use: InUse<'_>) -> Result<(), StoreError>;
}

// ---- root filesystems ---------------------------------------------------------------------------------------

/// Where one rootfs of a container lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsPlace {
    /// The container.
    pub container: ContainerId,
    /// Which of its rootfses.
    pub id: RootfsId,
    /// The root itself, absolute; made by the backend.
    pub rootfs: PathBuf,
    /// The backend's own, beside it, on the same filesystem; made by the backend if it needs it.
    pub scratch: PathBuf,
}

/// A root filesystem in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Which.
    pub id: RootfsId,
    /// By whom.
    pub backend: BackendName,
    /// Where, absolute.
    pub path: PathBuf,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// Makes root filesystems of layer stacks, and unmakes them. Calls for one place never overlap.
pub trait Backend: Send + Sync {
    /// Its name.
    fn name(&self) -> BackendName;

    /// Makes the rootfs. Nothing is left of it on an error.
    ///
    /// # Errors
    /// [`MountError`].
    ///
    /// # Blocking
    /// Overlay and bind for some system calls; copy for as long as the tree takes, looking at `stop`.
    fn mount(&self, stack: &[LayerDir], place: &RootfsPlace, stop: &Stop) -> Result<Rootfs, MountError>;

    /// Unmakes it, however far it got, also after a crash or a reboot: unmounts, removes rootfs and scratch.
    /// `false` when there was nothing.
    fn unmount(&self, place: &RootfsPlace) -> Result<bool, MountError>;
}

// ---- records ------------------------------------------------------------------------------------------------

/// Who has a container found on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This process.
    Us,
    /// A live process on the same work directory: hands off.
    Other,
    /// Nobody: it was provisioned to stay, or its process died.
    Nobody,
}

/// A container found on disk. Either record may be missing when its writer was killed early.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub id: ContainerId,
    /// See [`ContainerRecord`].
    pub container: Option<ContainerRecord>,
    /// See [`RootfsRecord`].
    pub rootfses: Option<RootfsRecord>,
    /// Who has it.
    pub owner: Owner,
}

/// Names of containers and what is remembered of them, shared by all processes on one work directory. All
/// methods block on the disk.
pub trait Records: Send + Sync {
    /// Takes a name for a new container: its directory and sandbox are made, its lock is held until the guard
    /// drops or this process dies.
    ///
    /// # Errors
    /// [`RecordError::Exists`] when any process has it or a record of it is left.
    fn create(&self, id: &ContainerId) -> Result<Box<dyn Send + Sync>, RecordError>;

    /// Takes over a container that nobody owns, to destroy it. `None` = there is none.
    ///
    /// # Errors
    /// [`RecordError::Elsewhere`] while a live process has it.
    fn adopt(&self, id: &ContainerId) -> Result<Option<Box<dyn Send + Sync>>, RecordError>;

    /// The sandbox of a container on the host.
    fn sandbox(&self, id: &ContainerId) -> PathBuf;

    /// Where a rootfs of a container lies.
    fn place(&self, id: &ContainerId, backend: BackendName, rootfs: RootfsId) -> RootfsPlace;

    /// Writes the container's record, whole or not at all.
    fn write_container(&self, record: &ContainerRecord) -> Result<(), RecordError>;

    /// Writes the record of its rootfses, whole or not at all.
    fn write_rootfses(&self, id: &ContainerId, record: &RootfsRecord) -> Result<(), RecordError>;

    /// One container.
    fn read(&self, id: &ContainerId) -> Result<Option<Found>, RecordError>;

    /// All containers on disk, by name.
    fn list(&self) -> Result<Vec<Found>, RecordError>;

    /// Asks the live process that has this container to destroy it.
    fn request_destroy(&self, id: &ContainerId) -> Result<(), RecordError>;

    /// Whether another process asked for that.
    fn destroy_requested(&self, id: &ContainerId) -> bool;

    /// Removes everything of a container but its lock, which the guard holds: its rootfses are gone already.
    fn remove(&self, id: &ContainerId) -> Result<(), RecordError>;

    /// This process.
    fn us(&self) -> ProcessIdentity;

    /// The time, milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

// ---- processes ------------------------------------------------------------------------------------------------

/// One aspect of a container: prepared before its process is made, applied to it, cleaned up after it.
/// Isolators are called in list order, for clean-up in reverse. All methods block.
pub trait Isolator: Send + Sync {
    /// Its Mesos name: `filesystem/linux`.
    fn name(&self) -> &'static str;

    /// Adds its part to the plan.
    fn prepare(&self, context: &LaunchContext, plan: &mut LaunchPlan) -> Result<(), IsolatorError>;

    /// Applies what can only be applied to a process; it exists and waits to be released.
    fn isolate(&self, container: &ContainerId, init: &ProcessIdentity) -> Result<(), IsolatorError> {
        let _ = (container, init);
        Ok(())
    }

    /// Undoes `prepare` and `isolate`, however far they got; also for containers of a dead process.
    fn cleanup(&self, container: &ContainerId) -> Result<(), IsolatorError> {
        let _ = container;
        Ok(())
    }
}

/// A process started by a launcher: its supervisor waits to be released.
pub trait Launched: Send + Sync {
    /// The supervisor.
    fn init(&self) -> ProcessIdentity;

    /// Lets it go on to exec. Returns when the command was executed, or failed to be; of one with pre-start hooks, when
    /// the first of them is about to be.
    ///
    /// # Blocking
    /// For the steps of the plan: milliseconds.
    fn release(&self) -> Result<(), LaunchError>;

    /// Whether the command was executed, once that is known: after the pre-start hooks. Answers again and again. A
    /// container whose command was not executed ends with the status that `wait` tells.
    fn started(&self) -> BoxFuture<'static, Result<(), Arc<LaunchError>>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// How the command ended; answers again and again. Everything it started is dead by then, if it had a pid
    /// namespace.
    fn wait(&self) -> BoxFuture<'static, ExitStatus>;

    /// Sends a signal to the command.
    fn signal(&self, signal: i32) -> Result<(), LaunchError>;

    /// Kills everything of it and returns when that is dead.
    ///
    /// # Blocking
    /// Until the kernel has taken the processes down.
    fn kill_all(&self) -> Result<(), LaunchError>;
}

/// Starts processes. All methods block briefly.
pub trait Launcher: Send + Sync {
    /// Makes the supervisor process, which waits to be released.
    fn start(&self, container: &ContainerId, plan: LaunchPlan) -> Result<Arc<dyn Launched>, LaunchError>;

    /// Starts one more command in a container that any process on this work directory launched; it runs at
    /// once. The command gets the container's namespaces, credentials, capabilities and environment.
    fn exec(&self, container: &ContainerId, exec: ExecSpec) -> Result<Arc<dyn Launched>, LaunchError>;

    /// Sends a signal to the command of a container that any process launched.
    fn signal(&self, container: &ContainerId, init: &ProcessIdentity, signal: i32)
    -> Result<(), LaunchError>;

    /// Waits for a container that any process launched. `None` = it was gone before.
    fn wait(
        &self,
        container: &ContainerId,
        init: &ProcessIdentity,
    ) -> BoxFuture<'static, Result<Option<ExitStatus>, LaunchError>>;

    /// Kills what a dead process's container left running; returns when it is dead.
    fn kill_orphan(&self, container: &ContainerId, init: &ProcessIdentity) -> Result<(), LaunchError>;

    /// Whether this process is alive.
    fn is_alive(&self, process: &ProcessIdentity) -> bool;
}

/// One more command in a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// The command.
    pub argv: Vec<String>,
    /// Set above the container's environment.
    pub environment: Vec<(String, String)>,
    /// `user[:group]` inside the container; `None` = the container's.
    pub user: Option<String>,
    /// `None` = the container's.
    pub working_directory: Option<PathBuf>,
    /// Whether it gets a terminal.
    pub tty: bool,
}

//! What crosses between actors when something fails, and how foreign text is quoted.
//!
//! One enum per port. A variant names the act and its subject; the adapter's own error is its `source` and
//! Display never repeats it: whoever reports prints the chain ([`chain`]).

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container::{BackendName, ContainerId, RootfsId};
use crate::image::appc::ImageId;
use crate::image::digest::{DiffId, Digest};
use crate::image::name::{ImageKind, ImageName};
use crate::image::plan::{Compression, LayerKey, SourceKind};

/// The adapter's own error below one of ours.
pub type Cause = Box<dyn Error + Send + Sync + 'static>;

/// Most bytes of foreign text (a registry's answer, a tar member's name) that a message repeats.
pub const QUOTE_BYTES_MAX: usize = 256;

/// Foreign text cut to [`QUOTE_BYTES_MAX`] bytes at a character boundary.
pub fn quote(text: &str) -> String {
    if text.len() <= QUOTE_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = QUOTE_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// An error and its causes on one line: `act: cause: cause`.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Transparent wrappers print as what they wrap: once is enough.
        if !line.ends_with(&text) {
            let _ = write!(line, ": {text}");
        }
        next = cause.source();
    }
    line
}

/// An actor is not there any more: the agent is shutting down, or a bug ended it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the {actor} is gone; the agent is stopping or has failed")]
pub struct Gone {
    /// Which.
    pub actor: &'static str,
}

/// A blocking job ended without an answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JobLost {
    /// It panicked; the text is the panic's.
    #[error("a {pool} job failed from inside: {panic}")]
    Panicked {
        /// The pool it ran in.
        pool: &'static str,
        /// What the panic said.
        panic: String,
    },
    /// The runtime went away under it.
    #[error("a {pool} job was cut off by shutdown")]
    Shutdown {
        /// The pool it ran in.
        pool: &'static str,
    },
}

/// A name did not resolve to an image.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No provider for this kind is switched on.
    #[error(
        "no provider for {kind} images is switched on, so {image} cannot be resolved; add it to --image_providers"
    )]
    NoProvider {
        /// The kind.
        kind: ImageKind,
        /// The image.
        image: ImageName,
    },
    /// The source has no such image.
    #[error("no image {image} in {place}")]
    NotFound {
        /// The image.
        image: ImageName,
        /// Where it was looked for.
        place: String,
        /// What the source said.
        #[source]
        source: Option<Cause>,
    },
    /// It is not whole in the store, and the source must not be asked.
    #[error(
        "image {image} is not whole in the store, or is there for another platform, and its source must not be asked (--image_pull_policy=never); pull it first, or use --image_pull_policy=missing"
    )]
    NotStored {
        /// The image.
        image: ImageName,
    },
    /// It is in the store, and its source does not say that whoever asks may have it.
    #[error(
        "image {image} is in the store, but its source does not give it to whoever asks (--authorize_stored_images)"
    )]
    NotAuthorized {
        /// The image.
        image: ImageName,
        /// What the source says.
        #[source]
        source: Cause,
    },
    /// The source has it and cannot be used.
    #[error("cannot resolve {image}")]
    Failed {
        /// The image.
        image: ImageName,
        /// Why.
        #[source]
        source: Cause,
    },
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
}

/// A blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source refuses these credentials, or has no such blob: another image's source may still have it.
    #[error("cannot fetch {blob} from {from}")]
    Refused {
        /// The blob.
        blob: String,
        /// Where from.
        from: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The connection or the disk failed.
    #[error("fetching {blob} from {from} broke off")]
    Broken {
        /// The blob.
        blob: String,
        /// Where from.
        from: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// A blob came and is not the layer it should be, or could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The blob is not what the manifest names.
    #[error(
        "layer {layer}: blob has digest {actual}, but its manifest names {expected}; the source is corrupt or lies"
    )]
    WrongDigest {
        /// The layer.
        layer: LayerKey,
        /// From the manifest.
        expected: Digest,
        /// Of the bytes.
        actual: Digest,
    },
    /// The blob is shorter or longer than the manifest says.
    #[error(
        "layer {layer}: blob has {actual} bytes, but its manifest says {expected}; the source is corrupt or lies"
    )]
    WrongSize {
        /// The layer.
        layer: LayerKey,
        /// From the manifest.
        expected: u64,
        /// Bytes that came, or that had come when it was clear that there are too many.
        actual: u64,
    },
    /// The tar is not what the image config names.
    #[error(
        "layer {layer} unpacks to {actual}; its blob or the image config is corrupt, pull the image again"
    )]
    WrongDiffId {
        /// The layer.
        layer: LayerKey,
        /// Of the tar.
        actual: DiffId,
    },
    /// The tar of an ACI is not that of the image.
    #[error(
        "layer {layer}: its archive is that of the image sha512-{}, not of {expected}; it was changed after it was resolved or is corrupt, pull the image again",
        actual.hex()
    )]
    WrongImageId {
        /// The layer.
        layer: LayerKey,
        /// From its view.
        expected: ImageId,
        /// Of the tar.
        actual: Digest,
    },
    /// A layer's key is not that of the view of an ACI that it comes with.
    #[error("layer {layer} is not what its plan says is shown of {}; pull the image again", match image {
        Some(image) => format!("image {image}"),
        None => "an ACI, for that says nothing".to_owned(),
    })]
    WrongView {
        /// The layer.
        layer: LayerKey,
        /// That of the view, if there is one.
        image: Option<ImageId>,
    },
    /// The content is compressed otherwise than the media type says.
    #[error("layer {layer}: its media type {media_type} says {declared}, but its content is {found}")]
    WrongCompression {
        /// The layer.
        layer: LayerKey,
        /// As in the manifest.
        media_type: String,
        /// What that means.
        declared: Compression,
        /// What the first bytes are.
        found: Compression,
    },
    /// The tar holds something that must not be unpacked or cannot be read.
    #[error("layer {layer}: entry {entry:?} cannot be unpacked")]
    BadEntry {
        /// The layer.
        layer: LayerKey,
        /// Its name, cut.
        entry: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The stream cannot be decompressed or is no tar.
    #[error("layer {layer} is no readable {what}")]
    BadStream {
        /// The layer.
        layer: LayerKey,
        /// What it should have been.
        what: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The layer passes a limit.
    #[error("layer {layer} passes the limit of {limit} {unit} (--{flag})")]
    Limit {
        /// The layer.
        layer: LayerKey,
        /// How many are allowed.
        limit: u64,
        /// Of what.
        unit: &'static str,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// The source broke off in the middle.
    #[error("layer {layer}: its bytes broke off")]
    Read {
        /// The layer.
        layer: LayerKey,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store's disk failed.
    #[error("layer {layer}: cannot write {path}")]
    Write {
        /// The layer.
        layer: LayerKey,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not fit on the store's disk.
    #[error("layer {layer} does not fit")]
    NoRoom {
        /// The layer.
        layer: LayerKey,
        /// The numbers.
        #[source]
        source: NoRoom,
    },
    /// Nobody wanted it any more.
    #[error("layer {layer} was given up")]
    Stopped {
        /// The layer.
        layer: LayerKey,
    },
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
}

/// What does not fit on the disk of the store, with all the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not enough room in {dir}: {need} {unit} are needed; of {free} that are free, {reserved} are reserved by other pulls \
     and {keep} stay free (--disk_free_min); remove images (keelblock prune), choose another --docker_store_dir, or lower \
     --disk_free_min"
)]
pub struct NoRoom {
    /// The store.
    pub dir: PathBuf,
    /// Of what: bytes or files.
    pub unit: &'static str,
    /// How many more are needed, besides what was reserved before.
    pub need: u64,
    /// How many the filesystem has.
    pub free: u64,
    /// How many of them other layers on their way will use, of this process and of others.
    pub reserved: u64,
    /// How many of them are to be left.
    pub keep: u64,
}

/// The store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is to come does not fit.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A file of the store cannot be read or written.
    #[error("cannot {act} {path}")]
    Io {
        /// read, write, lock, rename...
        act: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A record of the store is not what this version writes.
    #[error("{path} is damaged; remove it and pull the image again")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A layer that a record names is not there.
    #[error("layer {layer} is not in the store")]
    Missing {
        /// Which.
        layer: DiffId,
    },
    /// What containers use cannot be found out, so nothing can be pruned.
    #[error("cannot find out which layers are in use")]
    InUse(#[source] Cause),
    /// The disk did not take a layer, so that it may be gone after a power cut.
    #[error("layer {layer} cannot be forced to disk; check the disk, then prune the layer and pull again")]
    NotDurable {
        /// Which.
        layer: DiffId,
        /// Why, if that is known: an earlier process may have met it.
        #[source]
        source: Option<Cause>,
    },
    /// The store is busy with something that cannot be shared.
    #[error("{what} is in use by another keelblock process; try again when it is done")]
    Busy {
        /// What.
        what: String,
    },
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
}

/// A layer did not get into the store. Shared by all who waited.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// See [`FetchError`].
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// See [`UnpackError`].
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layers of the image, taken together, pass a limit.
    #[error("its layers together pass the limit of {limit} {unit} (--{flag})")]
    ImageLimit {
        /// How many are allowed.
        limit: u64,
        /// Of what.
        unit: &'static str,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// No puller for this kind of source.
    #[error("no puller for {0} sources is running")]
    NoPuller(SourceKind),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
    /// See [`Gone`].
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl PullError {
    /// Whether the failure is of this layer's source (its credentials, its manifest, its bytes) rather than
    /// of the layer or of this machine: then another source of the same layer may do better.
    pub fn is_of_the_source(&self) -> bool {
        match self {
            Self::Fetch(_) => true,
            Self::Unpack(error) => matches!(
                error,
                UnpackError::WrongDigest { .. }
                    | UnpackError::WrongSize { .. }
                    | UnpackError::WrongDiffId { .. }
                    | UnpackError::WrongCompression { .. }
                    | UnpackError::BadStream { .. }
                    | UnpackError::BadEntry { .. }
                    | UnpackError::Read { .. }
            ),
            _ => false,
        }
    }
}

/// A root filesystem could not be made or unmade.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The backend cannot do this.
    #[error("the {backend} backend cannot provide a root filesystem at {path}")]
    Failed {
        /// Which.
        backend: BackendName,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// An image without layers.
    #[error("no filesystem layers provided: the image has none")]
    NoLayers,
    /// The bind backend, told to be strict, and more than one layer.
    #[error(
        "multiple layers are not supported by the bind backend with --bind_strict: the image has {layers} layers; leave the flag out, or use --image_provisioner_backend=overlay or copy"
    )]
    ManyLayers {
        /// How many.
        layers: usize,
    },
    /// Nobody wanted it any more.
    #[error("rootfs at {path} was given up")]
    Stopped {
        /// Where.
        path: PathBuf,
    },
    /// No such backend is running.
    #[error("the {0} backend is not available here")]
    NoBackend(BackendName),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
    /// See [`Gone`].
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// A record of a container could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The name is taken in this process or another.
    #[error("container {id} exists already; destroy it first or choose another ID")]
    Exists {
        /// Which.
        id: ContainerId,
    },
    /// Another live process keeps it.
    #[error("container {id} is kept by another keelblock process")]
    Elsewhere {
        /// Which.
        id: ContainerId,
    },
    /// A file cannot be read or written.
    #[error("cannot {act} {path}")]
    Io {
        /// read, write, lock...
        act: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A record is not what this version writes.
    #[error("{path} is damaged")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
}

/// A container got no root filesystem.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// See [`ResolveError`].
    #[error(transparent)]
    Resolve(Arc<ResolveError>),
    /// See [`PullError`].
    #[error("cannot pull {image}")]
    Pull {
        /// The image.
        image: ImageName,
        /// The first layer's failure.
        #[source]
        source: Arc<PullError>,
    },
    /// See [`MountError`].
    #[error(transparent)]
    Mount(#[from] MountError),
    /// As told by the actor of the rootfs.
    #[error(transparent)]
    Mounting(Arc<MountError>),
    /// See [`RecordError`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It was destroyed meanwhile.
    #[error("container {container} was destroyed while its image was provisioned")]
    Destroyed {
        /// Which.
        container: ContainerId,
    },
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
    /// See [`Gone`].
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// A container's root filesystems could not all be removed. Everything was tried.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// Some rootfses are still there.
    #[error("container {container}: {} of its root filesystems could not be removed: {}", failures.len(), list(failures))]
    Rootfses {
        /// Which container.
        container: ContainerId,
        /// Which of its rootfses, and why.
        failures: Vec<(RootfsId, Arc<MountError>)>,
    },
    /// See [`RecordError`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
    /// See [`Gone`].
    #[error(transparent)]
    Gone(#[from] Gone),
}

fn list(failures: &[(RootfsId, Arc<MountError>)]) -> String {
    let each = failures.iter().map(|(rootfs, error)| format!("{rootfs}: {}", chain(&**error)));
    each.collect::<Vec<_>>().join("; ")
}

/// An isolator refused or failed.
#[derive(Debug, thiserror::Error)]
#[error("isolator {isolator} cannot {act} container {container}")]
pub struct IsolatorError {
    /// Which.
    pub isolator: &'static str,
    /// prepare, isolate, clean up.
    pub act: &'static str,
    /// Which container.
    pub container: ContainerId,
    /// Why.
    #[source]
    pub source: Cause,
}

/// The container's process could not be started, or its command could not be executed in it.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command is not in the container: exit status 127.
    #[error("command {command:?} was not found in the container")]
    CommandNotFound {
        /// As it would have been executed.
        command: String,
        /// What execve(2) said.
        #[source]
        source: std::io::Error,
    },
    /// The command is there and cannot be executed: exit status 126.
    #[error("command {command:?} cannot be executed in the container")]
    CommandNotExecutable {
        /// As it would have been executed.
        command: String,
        /// What execve(2) said.
        #[source]
        source: std::io::Error,
    },
    /// One of the steps between clone and exec failed.
    #[error("cannot start container {container}: {step}")]
    Step {
        /// Which container.
        container: ContainerId,
        /// The step, as `cannot ...`-less act: `mount proc at /proc`.
        step: String,
        /// What the system call said.
        #[source]
        source: std::io::Error,
    },
    /// A pre-start hook did not end well: exit status 125.
    #[error("the command of container {container} was not run: its pre-start hook {command:?} {ended}")]
    Hook {
        /// Which container.
        container: ContainerId,
        /// The hook.
        command: String,
        /// How: `exited with 3`.
        ended: String,
    },
    /// Anything else.
    #[error("cannot start container {container}")]
    Failed {
        /// Which container.
        container: ContainerId,
        /// Why.
        #[source]
        source: Cause,
    },
    /// No such container, or none with a process.
    #[error("container {container} has no running process")]
    NotRunning {
        /// Which container.
        container: ContainerId,
    },
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
}

/// What the containerizer answers when it could not.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Too many launches at once.
    #[error("busy: {limit} launches are under way, which is the limit (--launches_max); try again later")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// The name is taken.
    #[error("container {id} exists already; destroy it first or choose another ID")]
    Exists {
        /// Which.
        id: ContainerId,
    },
    /// No such container.
    #[error("no container {id}")]
    Unknown {
        /// Which.
        id: ContainerId,
    },
    /// It was destroyed while it was being launched.
    #[error("container {id} was destroyed while {phase}")]
    Destroyed {
        /// Which.
        id: ContainerId,
        /// Where it stood.
        phase: crate::container::PhaseName,
    },
    /// See [`ProvisionError`].
    #[error(transparent)]
    Provisioning(Arc<ProvisionError>),
    /// As another request for the same was answered.
    #[error(transparent)]
    Shared(Arc<ContainerError>),
    /// See [`IsolatorError`].
    #[error(transparent)]
    Isolator(#[from] IsolatorError),
    /// See [`LaunchError`].
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// See [`RecordError`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Parts of it are still there; destroy it again once the cause is gone.
    #[error("container {id} could not be taken down whole: {}", .failures.join("; "))]
    Teardown {
        /// Which.
        id: ContainerId,
        /// Every failure, as a line each.
        failures: Vec<String>,
    },
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
    /// See [`Gone`].
    #[error(transparent)]
    Gone(#[from] Gone),
}

//! What goes wrong in the backends.

use std::io;
use std::path::{Path, PathBuf};

use keelblock_actors::container::BackendName;
use keelblock_actors::error::{MountError, quote};
use keelblock_actors::ports::RootfsPlace;

use crate::sys::remove::RemoveError;

/// Why a root filesystem could not be made or unmade, or a backend not be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Something is at the place already.
    #[error("{path} exists already")]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// More layers than overlayfs stacks.
    #[error(
        "the image has {layers} layers and overlayfs stacks at most {limit}; use --image_provisioner_backend=copy"
    )]
    TooManyLayers {
        /// How many.
        layers: usize,
        /// How many it stacks.
        limit: usize,
    },
    /// More layers than the options of mount(2) have room for, on a kernel without fsconfig keys for them.
    #[error(
        "{layers} layers exceed one page of mount options, which is all that a kernel before 6.7 takes; use \
         --image_provisioner_backend=copy"
    )]
    OptionsTooLong {
        /// How many.
        layers: usize,
    },
    /// Some layers have their opaque marks in `trusted.`, some in `user.` attributes.
    #[error(
        "the layers were unpacked partly as root and partly not, which overlayfs cannot stack; use \
         --image_provisioner_backend=copy"
    )]
    MixedMarks,
    /// A bind mount hides nothing.
    #[error(
        "the layer has whiteouts, which would show as devices: leave --bind_strict out, or use \
         --image_provisioner_backend=overlay or copy"
    )]
    Whiteouts,
    /// overlayfs does not want to be mounted so.
    #[error("cannot mount overlay of {layers} layers{}", .complaint.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Overlay {
        /// How many layers.
        layers: usize,
        /// What the kernel said of it in words, if it did.
        complaint: Option<String>,
        /// What it said by number.
        #[source]
        source: io::Error,
    },
    /// A system call failed on a path of our own.
    #[error("cannot {act} {path}")]
    Io {
        /// make, mount, unmount...
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry of a layer could not be copied.
    #[error("cannot {act} {entry:?} of layer {layer}")]
    Entry {
        /// read, create, copy the content of...
        act: &'static str,
        /// The entry, relative to the root, cut to 256 bytes.
        entry: String,
        /// Where the layer lies.
        layer: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody wanted it any more.
    #[error("given up")]
    Stopped,
    /// See [`RemoveError`].
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// A backend asked for by name does not work here.
    #[error("the {backend} backend cannot work here: {reason}; use {remedy}")]
    Unsuitable {
        /// Which.
        backend: BackendName,
        /// Why.
        reason: String,
        /// What to do instead, as a flag.
        remedy: &'static str,
        /// What the kernel said, if that is the reason.
        #[source]
        source: Option<io::Error>,
    },
}

impl BackendError {
    /// For `map_err`: a failed act on one of our own paths.
    pub(super) fn io<E: Into<io::Error>>(act: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { act, path: path.to_owned(), source: source.into() }
    }

    /// For `map_err`: a failed act on an entry of a layer.
    pub(super) fn entry<E: Into<io::Error>>(
        act: &'static str,
        entry: &Path,
        layer: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Entry {
            act,
            entry: quote(&entry.to_string_lossy()),
            layer: layer.to_owned(),
            source: source.into(),
        }
    }

    /// As the port has it.
    pub(super) fn at(self, backend: BackendName, place: &RootfsPlace) -> MountError {
        match self {
            Self::Stopped => MountError::Stopped { path: place.rootfs.clone() },
            error => MountError::Failed { backend, path: place.rootfs.clone(), source: Box::new(error) },
        }
    }
}

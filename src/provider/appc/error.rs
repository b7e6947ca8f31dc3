//! Why an Appc image cannot be had.

use keelblock_actors::error::{Cause, JobLost, StoreError};
use keelblock_actors::image::appc::{AcIdentifier, AppcName, ImageId};

use super::manifest::ManifestError;
use super::ports::AciFetchError;
use crate::store::aci_scan::AciScanError;

/// Why an Appc image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AppcError {
    /// Something is wrong with an image that another one depends on.
    #[error("{name}, which {by} depends on, cannot be had")]
    Dependency {
        /// The dependency.
        name: AppcName,
        /// The image that names it.
        by: String,
        /// What is wrong.
        #[source]
        source: Box<AppcError>,
    },
    /// It did not come.
    #[error(transparent)]
    Fetch(#[from] AciFetchError),
    /// It is no archive that can be used.
    #[error("the image archive from {from} cannot be used")]
    Scan {
        /// Where it came from.
        from: String,
        /// Why.
        #[source]
        source: AciScanError,
    },
    /// Its manifest is not valid.
    #[error("the image archive from {from} cannot be used")]
    Manifest {
        /// Where it came from.
        from: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Its signature.
    #[error("the image archive from {from} must not be used as {name}")]
    Untrusted {
        /// Whose it would be.
        name: AcIdentifier,
        /// Where it came from.
        from: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Somebody wrote to it.
    #[error("{from} changed while it was verified; nobody may write to an image archive that is being used")]
    Changed {
        /// Where it is.
        from: String,
    },
    /// Its manifest has another name.
    #[error("{from} is the image {found}, but {asked} was asked for; its publisher must mend one of them")]
    OtherName {
        /// What was asked for.
        asked: AcIdentifier,
        /// What came.
        found: AcIdentifier,
        /// Where it came from.
        from: String,
    },
    /// Its manifest has another label.
    #[error(
        "{image} from {from} has {}, but {label}={asked:?} was asked for; ask for what it has, or for another version or --platform",
        .found.as_ref().map_or_else(|| format!("no label {label}"), |found| format!("the label {label}={found:?}"))
    )]
    OtherLabel {
        /// The image.
        image: AcIdentifier,
        /// The label.
        label: AcIdentifier,
        /// What was asked for.
        asked: String,
        /// What came, cut.
        found: Option<String>,
        /// Where it came from.
        from: String,
    },
    /// It is for another platform.
    #[error("{from} is for {found}, and not for {wanted}; see --platform")]
    OtherPlatform {
        /// What it says.
        found: String,
        /// What is wanted.
        wanted: String,
        /// Where it came from.
        from: String,
    },
    /// It is another image than its dependent knows.
    #[error(
        "the one from {from} has image ID {found}, but its dependent names {asked}: it was changed or replaced since that was built"
    )]
    OtherId {
        /// What the dependent says.
        asked: ImageId,
        /// What came.
        found: ImageId,
        /// Where it came from.
        from: String,
    },
    /// It has another size than its dependent knows.
    #[error(
        "the one from {from} has {found} bytes, but its dependent says {asked}: it was changed or replaced since that was built"
    )]
    OtherSize {
        /// What the dependent says.
        asked: u64,
        /// What came.
        found: u64,
        /// Where it came from.
        from: String,
    },
    /// An image that depends on itself.
    #[error("its dependencies lead in a circle, which no root filesystem can be made of: {circle}")]
    Circle {
        /// From an image to itself.
        circle: String,
    },
    /// Too deep.
    #[error("its dependencies go deeper than {limit} images (--appc_dependency_depth_max): {path}")]
    Depth {
        /// The limit.
        limit: usize,
        /// From the image down.
        path: String,
    },
    /// Too many.
    #[error("it has more than {limit} dependencies (--appc_dependencies_max)")]
    Count {
        /// The limit.
        limit: usize,
    },
    /// Too many together.
    #[error("it makes more than {limit} layers (--layers_max)")]
    Layers {
        /// The limit.
        limit: usize,
    },
    /// No source is asked.
    #[error(
        "it is not whole in the store, and its source must not be asked (--image_pull_policy=never); pull it first, or use --image_pull_policy=missing"
    )]
    NotStored,
    /// An image ID leads nowhere but into the store.
    #[error(
        "no image with this ID is whole in the store, and nothing can be fetched by an ID alone: pull it by its name (appc:NAME), or from its file (aci:PATH)"
    )]
    UnknownId,
    /// An image ID of what was brought without a signature.
    #[error(
        "the store has it, but brought it without a verified signature, and all must be signed (--appc_verify=required); pull it anew by its name (appc:NAME), or from its file (aci:PATH)"
    )]
    StoredUnsigned,
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`JobLost`].
    #[error(transparent)]
    Lost(#[from] JobLost),
}

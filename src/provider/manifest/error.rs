//! Why a manifest, index or config cannot be used.

use keelblock_actors::error::quote;

use super::{Platform, Schema1Error};

/// Why a manifest, index or config cannot be used. Foreign text in it is cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field of the wrong type, or one that is missing.
    #[error("the manifest cannot be read")]
    Manifest {
        /// What is wrong with it.
        #[source]
        source: BadJson,
    },
    /// The same for an image config.
    #[error("the image config cannot be read")]
    Config {
        /// What is wrong with it.
        #[source]
        source: BadJson,
    },
    /// Docker schema 1, and not as it should be.
    #[error("the manifest is of docker schema 1 and cannot be used")]
    Schema1 {
        /// What is wrong with it.
        #[from]
        source: Schema1Error,
    },
    /// Docker schema 1 where nobody puts it.
    #[error("the manifest is of docker schema 1, which is understood from registries only")]
    Schema1Here,
    /// Fields of an image manifest and of an index in one document (CVE-2021-41190).
    #[error("the manifest is ambiguous: it has fields of more than one format (CVE-2021-41190)")]
    Ambiguous,
    /// Fields of neither.
    #[error("the document is no manifest: it has neither config and layers nor manifests")]
    Neither,
    /// A version nobody has defined yet.
    #[error("the manifest is of schema version {0}; version 2 is understood")]
    SchemaVersion(u64),
    /// A media type that is no manifest's.
    #[error("media type {0:?} is that of no manifest or index")]
    MediaType(String),
    /// Two media types for one document.
    #[error("the manifest is given as {given}, but says itself it is {field}")]
    MediaTypes {
        /// By its source.
        given: String,
        /// By its own field.
        field: String,
    },
    /// A media type that the content belies.
    #[error("the manifest is given as {media_type}, but is {found}")]
    Content {
        /// What it is said to be.
        media_type: String,
        /// What it is.
        found: &'static str,
    },
    /// The manifest of a chart, a signature, a model: nothing that has a root filesystem.
    #[error("the manifest is no container image: its config has media type {media_type:?}")]
    NotAnImage {
        /// Of its config.
        media_type: String,
    },
    /// The same, where it says itself what it is.
    #[error("the manifest is no container image, but an artifact of type {artifact_type:?}")]
    Artifact {
        /// As written, cut.
        artifact_type: String,
    },
    /// An image without an index, for another machine.
    #[error("the image is for {found}, and not for {wanted}{hint}")]
    OtherPlatform {
        /// What the image says, cut.
        found: String,
        /// What was looked for.
        wanted: String,
        /// What to do, beginning with `; `, or nothing.
        hint: &'static str,
    },
    /// No entry of an index fits.
    #[error("the index has no image for {wanted}; it offers {offered}")]
    NoPlatform {
        /// What was looked for.
        wanted: Platform,
        /// What there is, cut.
        offered: String,
    },
    /// A string that no argument or variable can hold.
    #[error("the image config has a NUL byte in {field}")]
    Nul {
        /// Which field.
        field: &'static str,
    },
    /// `rootfs.type` is always `layers` on Linux.
    #[error("the image config has a root filesystem of type {0:?}; only \"layers\" is understood")]
    RootfsType(String),
    /// Manifest and config do not belong together.
    #[error("the manifest has {layers} layers, but the image config has {diff_ids} diff IDs")]
    LayerCount {
        /// Of the manifest.
        layers: usize,
        /// Of the config.
        diff_ids: usize,
    },
    /// See `Limits::layers_max`.
    #[error("the image has {layers} layers; the limit is {limit} (--layers_max)")]
    TooManyLayers {
        /// How many.
        layers: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A layer in a form that is not understood (encrypted, say).
    #[error(
        "layer {number} of the image has media type {media_type:?}; understood are tar layers, plain, gzip and zstd"
    )]
    LayerMediaType {
        /// Which, from 1, base first.
        number: usize,
        /// As written, cut.
        media_type: String,
    },
}

/// What a JSON reader says of a document, cut: it repeats foreign text at any length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadJson(String);

impl BadJson {
    pub(super) fn too_deep(limit: usize) -> Self {
        Self(format!("it is nested deeper than the limit of {limit} levels"))
    }
}

impl From<serde_json::Error> for BadJson {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let place = format!(" at line {line} column {column}");
        Self(format!("{}{place}", quote(text.strip_suffix(&place).unwrap_or(&text))))
    }
}

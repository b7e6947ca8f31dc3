//! Pure parsing of manifests, indexes and configs, and the plan they make together.
//!
//! Bytes come in that somebody else has fetched and verified; values go out. Nothing here reads a file, asks a
//! registry or recurses by what a document says: a hostile document costs its own length and no more. How many documents
//! are followed from one to the next is for whoever fetches them to bound (`Limits::index_depth_max`); a ring of indexes
//! there cannot be, for each names the next by its digest.
//!
//! - `mod.rs`: manifest or index, told apart as CVE-2021-41190 demands;
//! - `schema1`: manifests of before there were configs; `jws`: what is signed of them;
//! - `platform`: which entry of an index fits a machine; `host`: which machine this is, the one file that looks at it;
//! - `config`: the image config;
//! - `plan`: manifest and config joined into an [`ImagePlan`](keelblock_actors::image::plan::ImagePlan).

mod config;
mod depth;
mod error;
mod host;
mod jws;
mod plan;
mod platform;
mod schema1;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use keelblock_actors::error::quote;
use keelblock_actors::image::digest::Digest;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

pub use config::{ImageConfig, parse_config};
pub use error::{BadJson, ManifestError};
pub use plan::{layer_compression, plan};
pub use platform::{Platform, PlatformError};
pub use schema1::{Schema1, Schema1Error};

/// Longest list of descriptors or diff IDs that is read: twenty times the default `layers_max`, and more platforms
/// than any index has.
pub const LIST_MAX: usize = 10_000;
/// Largest size a descriptor may state: 1 PiB. The sizes of [`LIST_MAX`] descriptors then still add up in a `u64`.
pub const SIZE_MAX: u64 = 1 << 50;

/// Docker image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2, schema 1.
pub const SCHEMA1_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// The same with signatures: what registries send.
pub const SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// What servers send that know nothing of manifests: the content decides.
const GENERIC: [&str; 4] = ["", "application/json", "application/octet-stream", "text/plain"];
/// Media types of image configs. The last four are what old clients wrote by mistake and dockerd forgives
/// (moby `distribution/pull_v2.go`, issues 22378 and 28885).
const CONFIGS: [&str; 6] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "application/json",
    "text/html",
    "",
];

/// What points to a blob: OCI image-spec, descriptor.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What the blob is, as written.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes, at most [`SIZE_MAX`].
    pub size: u64,
    /// Entries of an index: for which machines.
    pub platform: Option<Platform>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Set when it points to something else than an image.
    pub artifact_type: Option<String>,
}

/// A manifest document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// One image.
    Image(ImageManifest),
    /// Several, by platform.
    Index(Index),
    /// One image, with what else would be its config.
    Schema1(Schema1),
}

/// A docker schema 2 or OCI image manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// The image config.
    pub config: Descriptor,
    /// The layer blobs, base first.
    pub layers: Vec<Descriptor>,
}

/// A docker manifest list or OCI image index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Its entries, as ordered.
    pub manifests: Vec<Descriptor>,
}

/// The bytes of a manifest that its digest is of, and that are to be parsed: its payload if it is a schema 1 manifest with
/// signatures, else all of them. To be called with what a registry sent, before its digest is compared with anything.
///
/// # Errors
/// [`ManifestError::Schema1`] when the signatures do not say what they sign, or there are none where the media type
/// promises some.
pub fn signed_part(bytes: Vec<u8>, media_type: Option<&str>) -> Result<Vec<u8>, ManifestError> {
    // What is stated to be of another format is read as that, or refused: nobody need look at its signatures.
    match Kind::of(media_type.unwrap_or_default()) {
        Ok(Some((Kind::Schema1, _)) | None) => {}
        Ok(Some(_)) | Err(_) => return Ok(bytes),
    }
    let must_be_signed = essence(media_type.unwrap_or_default()).eq_ignore_ascii_case(SCHEMA1_SIGNED);
    Ok(jws::payload(&bytes, must_be_signed)?.unwrap_or(bytes))
}

/// Reads a manifest or index; a signed one must have been through [`signed_part`].
///
/// `media_type` is what the source says it is (`Content-Type`, or the descriptor that led here); parameters such as
/// `; charset=utf-8` are ignored. It must agree with the `mediaType` field and with the content where each is there;
/// `application/json` and its like say nothing.
///
/// # Errors
/// What is wrong with the document.
pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Parsed, ManifestError> {
    let given = Kind::of(media_type.unwrap_or_default())?;
    depth::check(bytes).map_err(|source| ManifestError::Manifest { source })?;
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|error| ManifestError::Manifest { source: BadJson::from(error) })?;
    let field = Kind::of(document.media_type.as_deref().unwrap_or_default())?;
    if let (Some(given), Some(field)) = (given, field)
        && given.1 != field.1
    {
        return Err(ManifestError::MediaTypes { given: given.1.into(), field: field.1.into() });
    }
    let stated = given.or(field);
    let schema1 = document.fs_layers.is_some() || document.schema_version == Some(1);
    if document.manifests.is_some() && (document.layers.is_some() || document.config.is_some() || schema1)
        || document.fs_layers.is_some() && (document.layers.is_some() || document.config.is_some())
    {
        return Err(ManifestError::Ambiguous);
    }
    if schema1 {
        // With a version of its own, too: else it is something that nobody has defined.
        if let Some(version) = document.schema_version.filter(|&version| version != 1) {
            return Err(ManifestError::SchemaVersion(version));
        }
        return match stated {
            None | Some((Kind::Schema1, _)) => Ok(Parsed::Schema1(schema1::parse(bytes)?)),
            Some((_, media_type)) => {
                Err(ManifestError::Content { media_type: media_type.into(), found: SCHEMA1_FOUND })
            }
        };
    }
    if let Some(version) = document.schema_version.filter(|&version| version != 2) {
        return Err(ManifestError::SchemaVersion(version));
    }
    let found = match (document.manifests, document.config, document.layers) {
        (Some(manifests), ..) => Parsed::Index(Index { manifests: manifests.0 }),
        (None, Some(config), layers) => {
            // Not that of an image: an artifact may well have a config that looks like one.
            if let Some(artifact_type) = document.artifact_type.filter(|text| is_artifact(text)) {
                return Err(ManifestError::Artifact { artifact_type: quote(&artifact_type) });
            }
            if !CONFIGS.contains(&essence(&config.media_type)) {
                return Err(ManifestError::NotAnImage { media_type: quote(&config.media_type) });
            }
            Parsed::Image(ImageManifest { config, layers: layers.map_or_else(Vec::new, |list| list.0) })
        }
        (None, None, _) => return Err(ManifestError::Neither),
    };
    let (kind, name) = match found {
        Parsed::Image(_) => (Kind::Image, "an image manifest"),
        Parsed::Index(_) => (Kind::Index, "an index"),
        Parsed::Schema1(_) => (Kind::Schema1, SCHEMA1_FOUND),
    };
    match stated {
        Some((stated, media_type)) if stated != kind => {
            Err(ManifestError::Content { media_type: media_type.into(), found: name })
        }
        _ => Ok(found),
    }
}

const SCHEMA1_FOUND: &str = "a manifest of docker schema 1";

/// Whether this `artifactType` makes something else of an image. Where it is empty it is not there; and the type of an
/// image config says that it is an image (OCI image-spec, manifest.md: what stands in for a missing one).
fn is_artifact(artifact_type: &str) -> bool {
    let artifact_type = essence(artifact_type);
    !artifact_type.is_empty() && !CONFIGS[..2].contains(&artifact_type)
}

/// A media type without its parameters.
pub(crate) fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Whether an entry of this media type can lead to an image.
pub(crate) fn leads_to_an_image(media_type: &str) -> bool {
    let known = [DOCKER_MANIFEST, DOCKER_INDEX, OCI_MANIFEST, OCI_INDEX, SCHEMA1_MANIFEST, SCHEMA1_SIGNED];
    known.contains(&essence(media_type))
}

/// What a media type says a document is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Index,
    Schema1,
}

impl Kind {
    fn of(media_type: &str) -> Result<Option<(Self, &'static str)>, ManifestError> {
        let media_type = essence(media_type);
        let known = [
            (Self::Image, DOCKER_MANIFEST),
            (Self::Image, OCI_MANIFEST),
            (Self::Index, DOCKER_INDEX),
            (Self::Index, OCI_INDEX),
            (Self::Schema1, SCHEMA1_MANIFEST),
            (Self::Schema1, SCHEMA1_SIGNED),
        ];
        match known.into_iter().find(|(_, name)| name.eq_ignore_ascii_case(media_type)) {
            None if GENERIC.iter().any(|name| name.eq_ignore_ascii_case(media_type)) => Ok(None),
            None => Err(ManifestError::MediaType(quote(media_type))),
            known => Ok(known),
        }
    }
}

// ---- as written ---------------------------------------------------------------------------------------------

/// Every field that tells the formats apart. `null` counts as absent, as encoders of Go write empty lists.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<List<Descriptor>>,
    manifests: Option<List<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenDescriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<platform::WrittenPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    artifact_type: Option<String>,
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = WrittenDescriptor::deserialize(deserializer)?;
        if written.size > SIZE_MAX {
            let text = format!("size {} of {} is more than any blob has", written.size, written.digest);
            return Err(serde::de::Error::custom(text));
        }
        Ok(Self {
            media_type: written.media_type.unwrap_or_default(),
            digest: written.digest,
            size: written.size,
            platform: written.platform.map(Platform::from),
            annotations: written.annotations.unwrap_or_default(),
            artifact_type: written.artifact_type.filter(|text| is_artifact(text)),
        })
    }
}

/// A list of at most [`LIST_MAX`]; the rest of a longer one is not even read.
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {LIST_MAX} entries")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if list.len() == LIST_MAX {
                        return Err(serde::de::Error::invalid_length(LIST_MAX + 1, &self));
                    }
                    list.push(entry);
                }
                Ok(List(list))
            }
        }
        deserializer.deserialize_seq(Bounded(PhantomData))
    }
}

#[cfg(test)]
mod tests;

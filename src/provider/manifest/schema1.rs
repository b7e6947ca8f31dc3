//! Docker image manifests of version 2, schema 1: what registries gave before there were image configs.
//!
//! `fsLayers` and `history` are two lists of one length, newest entry first. A history entry is a JSON text in a string, the
//! config of an image of docker's first format: its `id`, that of its `parent`, and for the newest one all that a config
//! has. The checks are those of dockerd (moby `distribution/pull_v2.go` of version 20.10, `verifySchema1Manifest` and
//! `fixManifestLayers`): as many entries as layers and one at least, each entry the parent of the one before it, the base
//! without one, no ID twice; an entry repeated by the next one counts once.
//!
//! `name` and `tag` are not looked at, by us as by dockerd since 1.8: a manifest keeps them when a registry serves it under
//! another name, or when it is asked by digest. What came by tag is trusted as the connection is, whatever it calls itself.
//!
//! There are no diff IDs and no sizes here. Layers are known by their blobs ([`LayerKey::Blob`]), which is what the digest in the
//! manifest is checked against; the store finds out the rest as it unpacks them.

use std::collections::HashSet;

use keelblock_actors::error::quote;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{
    BlobSpec, ImageIdentity, ImagePlan, LayerKey, LayerSource, LayerSpec, RuntimeConfig,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::config::{Section, written_platform};
use super::{BadJson, List, ManifestError, Platform, depth};
use crate::limits::Limits;

/// An image as a schema 1 manifest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema1 {
    /// The layer blobs, base first, without those that are marked as empty.
    pub layers: Vec<Digest>,
    /// How the image wants to be run.
    pub runtime: RuntimeConfig,
    /// What it runs on, where it says so.
    pub platform: Option<Platform>,
    /// In place of an image ID: the SHA-256 of the newest history entry, as it is written. It is the same for the same
    /// manifest wherever it comes from. It is not the ID that docker gives to such an image, which is that of a config made up
    /// of the diff IDs, so not known before every layer is unpacked.
    pub config: Digest,
}

/// Why a schema 1 manifest cannot be used. Foreign text in it is cut. Entries are counted from 1, newest first, as they
/// are written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Schema1Error {
    /// Two lists that belong together do not, or are empty.
    #[error(
        "it has {layers} layers and {entries} history entries; there must be as many of both, and one at least"
    )]
    Counts {
        /// In `fsLayers`.
        layers: usize,
        /// In `history`.
        entries: usize,
    },
    /// A `v1Compatibility` that is no config of an image.
    #[error("history entry {number} cannot be read")]
    Entry {
        /// Which.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: BadJson,
    },
    /// An ID of another form.
    #[error("history entry {number} has ID {id:?}; an ID is 64 lower-case hex digits")]
    Id {
        /// Which.
        number: usize,
        /// As written.
        id: String,
    },
    /// An entry that does not build on the next one.
    #[error("history entry {number} has parent {parent:?}, but the entry after it is {next:?}")]
    Parent {
        /// Which.
        number: usize,
        /// As written.
        parent: String,
        /// The ID of the next entry.
        next: String,
    },
    /// The oldest entry builds on something that is not there.
    #[error("the base layer has parent {0:?}, which the manifest does not have")]
    Base(String),
    /// Two entries with one ID that are not one next to the other.
    #[error("ID {0:?} is there more than once in its history")]
    Twice(String),
    /// Two entries with one ID, next to each other, and two layers.
    #[error("history entries {number} and {} have one ID, but their layers are {} and {}", number + 1, layers[0], layers[1])]
    Torn {
        /// Which.
        number: usize,
        /// Of this entry, and of the one after it.
        layers: Box<[Digest; 2]>,
    },
    /// `signatures` is no list of signatures.
    #[error("its signatures cannot be read")]
    Signatures {
        /// What is wrong with them.
        #[source]
        source: BadJson,
    },
    /// A signature that does not say what it signs.
    #[error("signature {number} is not usable: {why}")]
    Signature {
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is said to be signed.
    #[error("its media type says that it is signed, but it has no signatures")]
    Unsigned,
    /// Signatures where the payload is read: a signed text in a signed text, or one that was not taken apart.
    #[error("what was signed has signatures itself")]
    SignedTwice,
}

/// Reads a manifest of schema 1: the payload alone of one that is signed.
pub(super) fn parse(bytes: &[u8]) -> Result<Schema1, ManifestError> {
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|error| ManifestError::Manifest { source: BadJson::from(error) })?;
    if document.signatures.is_some_and(|list| !list.0.is_empty()) {
        return Err(Schema1Error::SignedTwice.into());
    }
    let layers = document.fs_layers.map_or_else(Vec::new, |list| list.0);
    let history = document.history.map_or_else(Vec::new, |list| list.0);
    if layers.len() != history.len() || layers.is_empty() {
        return Err(Schema1Error::Counts { layers: layers.len(), entries: history.len() }.into());
    }
    let mut entries = Vec::with_capacity(layers.len());
    for (at, (layer, history)) in layers.into_iter().zip(&history).enumerate() {
        entries.push((layer.blob_sum, at, Entry::read(&history.v1_compatibility, at + 1)?));
    }
    check_ids(&entries)?;
    // Of entries that are one the oldest stays, as in docker. Where the texts differ it is the config that counts.
    let mut kept: Vec<(Digest, usize, Entry)> = Vec::with_capacity(entries.len());
    for entry in entries {
        match kept.last_mut() {
            Some(last) if last.2.id == entry.2.id => *last = entry,
            _ => kept.push(entry),
        }
    }
    // There is one: as many as layers, and not none.
    let newest = kept.first().map_or("", |(_, at, _)| history[*at].v1_compatibility.as_str());
    let config: Config = serde_json::from_str(newest)
        .map_err(|error| Schema1Error::Entry { number: 1, source: BadJson::from(error) })?;
    let architecture = config.architecture.or(document.architecture);
    // Those who left the system out had one to choose from.
    let os = config.os.filter(|os| !os.is_empty()).or(Some("linux".to_owned()));
    Ok(Schema1 {
        layers: kept
            .into_iter()
            .rev()
            .filter(|(_, _, entry)| !entry.throwaway)
            .map(|(layer, ..)| layer)
            .collect(),
        runtime: config.config.unwrap_or_default().runtime()?,
        platform: written_platform(os, architecture, config.variant),
        config: Digest::of(newest.as_bytes()),
    })
}

/// Whether every entry builds on the next one. No ID comes back, so this is a chain and no ring.
fn check_ids(entries: &[(Digest, usize, Entry)]) -> Result<(), Schema1Error> {
    let mut seen = HashSet::with_capacity(entries.len());
    for (at, (layer, _, entry)) in entries.iter().enumerate() {
        let number = at + 1;
        let valid = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if entry.id.len() != 64 || !entry.id.bytes().all(valid) {
            return Err(Schema1Error::Id { number, id: quote(&entry.id) });
        }
        let Some((next_layer, _, next)) = entries.get(at + 1) else {
            if !entry.parent.is_empty() {
                return Err(Schema1Error::Base(quote(&entry.parent)));
            }
            if !seen.insert(entry.id.as_str()) {
                return Err(Schema1Error::Twice(entry.id.clone()));
            }
            break;
        };
        if entry.id == next.id {
            // Old clients pushed a layer twice. Docker drops one whatever is in it; two layers of one ID are two images,
            // depending on who reads them.
            if layer != next_layer {
                let layers = Box::new([layer.clone(), next_layer.clone()]);
                return Err(Schema1Error::Torn { number, layers });
            }
            continue;
        }
        if !seen.insert(entry.id.as_str()) {
            return Err(Schema1Error::Twice(entry.id.clone()));
        }
        if entry.parent != next.id {
            let (parent, next) = (quote(&entry.parent), quote(&next.id));
            return Err(Schema1Error::Parent { number, parent, next });
        }
    }
    Ok(())
}

impl Schema1 {
    /// The plan of the image. `manifest` is the digest of its payload; `source` says where a blob is.
    ///
    /// # Errors
    /// [`ManifestError::TooManyLayers`].
    pub fn plan(
        self,
        name: ImageName,
        manifest: Digest,
        limits: &Limits,
        source: impl Fn(&Digest) -> LayerSource,
    ) -> Result<ImagePlan, ManifestError> {
        let (layers, limit) = (self.layers.len(), limits.layers_max);
        if layers > limit {
            return Err(ManifestError::TooManyLayers { layers, limit });
        }
        let spec = |blob: Digest| LayerSpec {
            source: source(&blob),
            aci: None,
            access: None,
            key: LayerKey::Blob(blob.clone()),
            // Gzip as a rule, but the manifest does not say: the first bytes will.
            blob: BlobSpec { digest: Some(blob), size: None, compression: None, media_type: None },
        };
        Ok(ImagePlan {
            identity: ImageIdentity { name, manifest, config: self.config },
            layers: self.layers.into_iter().map(spec).collect(),
            runtime: self.runtime,
            platform: self.platform.map(|platform| platform.to_string()),
            chosen_for: None,
            signed: false,
        })
    }
}

// ---- as written ---------------------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    architecture: Option<String>,
    fs_layers: Option<List<FsLayer>>,
    history: Option<List<History>>,
    signatures: Option<List<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    v1_compatibility: String,
}

/// What counts of every history entry.
struct Entry {
    id: String,
    /// Empty for the base.
    parent: String,
    /// There is nothing in its layer, which then need not be fetched.
    throwaway: bool,
}

impl Entry {
    fn read(text: &str, number: usize) -> Result<Self, Schema1Error> {
        #[derive(Deserialize)]
        struct Written {
            id: Option<String>,
            parent: Option<String>,
            throwaway: Option<bool>,
        }
        let unusable = |source| Schema1Error::Entry { number, source };
        // The brackets in it were none of the document's: they stood in a string.
        depth::check(text.as_bytes()).map_err(unusable)?;
        let written: Written = serde_json::from_str(text).map_err(|error| unusable(BadJson::from(error)))?;
        Ok(Self {
            id: written.id.unwrap_or_default(),
            parent: written.parent.unwrap_or_default(),
            throwaway: written.throwaway.unwrap_or_default(),
        })
    }
}

/// What counts of the newest entry beside that. A `rootfs` in it is not looked at: docker replaces it by what it unpacked.
#[derive(Deserialize)]
struct Config {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    config: Option<Section>,
}

#[cfg(test)]
pub(super) mod tests;

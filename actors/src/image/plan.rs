//! What a name resolves to: the layers to have, base first, and how the image wants to be run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::access::Access;
use super::appc::{AciView, AppcManifest};
use super::digest::{DiffId, Digest};
use super::name::{ImageKind, ImageName};
use super::reference::Reference;

/// An image resolved to bytes: from here on no tag can move under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePlan {
    /// Which image it is.
    pub identity: ImageIdentity,
    /// Its layers, base first.
    pub layers: Vec<LayerSpec>,
    /// What its config asks of whoever runs it.
    pub runtime: RuntimeConfig,
    /// What it says that it runs on (`linux/amd64`), if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// For which platform it was chosen, where its provider chooses by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_for: Option<String>,
    /// Whether a signature, by a key that is trusted for it, was verified of every archive that it is made of.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signed: bool,
}

impl ImagePlan {
    /// The same for whoever has these credentials: every layer that lies in a registry is asked for by them.
    pub fn with_access(mut self, access: Option<&Access>) -> Self {
        for layer in &mut self.layers {
            layer.access = access.filter(|_| layer.source.kind() == SourceKind::Registry).cloned();
        }
        self
    }
}

/// Who an image is, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// The name it was asked for by, canonical.
    pub name: ImageName,
    /// Digest of the manifest as its source has it (`docker save` archives of the old form, which have
    /// none: of the config; signed manifests of schema 1: of what is signed).
    pub manifest: Digest,
    /// Image ID: digest of the image config (manifests of schema 1, which have none: of the newest entry of
    /// their history).
    pub config: Digest,
}

impl ImageIdentity {
    /// The kind of the name.
    pub fn kind(&self) -> ImageKind {
        self.name.kind()
    }
}

/// How a layer is known before it is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKey {
    /// By the digest of its tar, from the image config: the rule.
    Diff(DiffId),
    /// The root filesystem of an ACI, by [`AciView::diff_id`]: what is brought is verified by the image ID that its view has.
    Aci(DiffId),
    /// By the digest of its blob: schema 1 manifests, whose diff IDs are unknown until unpacked.
    Blob(Digest),
}

impl LayerKey {
    /// What it is stored by, where that is known before it is there.
    pub fn diff_id(&self) -> Option<&DiffId> {
        match self {
            Self::Diff(diff) | Self::Aci(diff) => Some(diff),
            Self::Blob(_) => None,
        }
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diff(diff) => diff.fmt(f),
            Self::Aci(diff) => write!(f, "ACI {diff}"),
            Self::Blob(blob) => write!(f, "blob {blob}"),
        }
    }
}

/// One layer to have: what it must unpack to, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerSpec {
    /// What it is shared and stored by.
    pub key: LayerKey,
    /// Its bytes as its source has them.
    pub blob: BlobSpec,
    /// Where they are.
    pub source: LayerSource,
    /// What of them makes the layer, when its key is [`LayerKey::Aci`]; else all of their tar, by the rules of Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aci: Option<AciView>,
    /// Credentials of whoever wants it; those who want it with others are told apart by them. Never written down.
    #[serde(skip)]
    pub access: Option<Access>,
}

/// Bytes addressed by digest, as a manifest describes them. `None` = the source does not say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobSpec {
    /// Digest of the compressed bytes. `None` for members of `docker save` archives, which are
    /// verified by diff ID alone.
    pub digest: Option<Digest>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// What the manifest says of their form; checked against the content.
    pub compression: Option<Compression>,
    /// The media type as written, for messages.
    pub media_type: Option<String>,
}

/// How the tar of a layer is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Plain tar.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames, skippable ones among them.
    Zstd,
    /// Any number of streams. In ACIs alone.
    Bzip2,
    /// Any number of streams. In ACIs alone.
    Xz,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// Where the bytes of a layer are: chooses the puller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSource {
    /// `GET /v2/<repository>/blobs/<digest>` at the registry of this reference (canonical).
    Registry(Reference),
    /// A member of a tar archive, by the place of its bytes.
    Archive {
        /// The archive, absolute.
        path: PathBuf,
        /// Name of the member, for messages.
        member: String,
        /// First byte of the member's data in the archive as it lies on disk.
        offset: u64,
        /// Length of that data in bytes.
        size: u64,
    },
    /// A file of its own: a blob of an OCI layout directory, or one spooled from a compressed archive.
    File {
        /// The file, absolute.
        path: PathBuf,
    },
    /// An ACI that was brought, and verified, when its image was resolved.
    Aci {
        /// Where it came from: an address, or a path.
        from: String,
        /// Where it lies now, absolute.
        path: PathBuf,
    },
}

impl LayerSource {
    /// Which puller brings it.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::Registry(_) => SourceKind::Registry,
            Self::Archive { .. } | Self::File { .. } => SourceKind::Local,
            Self::Aci { .. } => SourceKind::Discovery,
        }
    }
}

impl fmt::Display for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => {
                write!(f, "{}/{}", reference.registry.as_deref().unwrap_or_default(), reference.repository)
            }
            Self::Archive { path, member, .. } => write!(f, "{member} in {}", path.display()),
            Self::File { path } => write!(f, "{}", path.display()),
            Self::Aci { from, .. } => f.write_str(from),
        }
    }
}

/// The kinds of source, one puller actor each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// Archives and layouts on this machine.
    Local,
    /// A registry over HTTP.
    Registry,
    /// Where ACIs are discovered.
    Discovery,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Registry => "registry",
            Self::Discovery => "discovery",
        })
    }
}

/// What an image config asks of whoever runs it (docker image-spec v1.2 and OCI config.md, `config`).
/// Empty lists count as unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, split at the first `=`; entries without one are left out.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`; empty counts as unset.
    pub working_dir: Option<PathBuf>,
    /// `User`: `user[:group]`, names or numbers; empty counts as unset.
    pub user: Option<String>,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// Of an Appc image its manifest, in which all of that stands; the other fields are empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appc: Option<Box<AppcManifest>>,
}

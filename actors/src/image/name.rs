//! The forms in which a user names an image, and what each means: the first table of the contract.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::access::Access;
use super::appc::{AppcNameError, AppcReference};
use super::reference::{Reference, ReferenceError};
use crate::error::quote;

/// The kinds of image, one provider each. The numbers are those of the protobuf API: 1 and 2 as in
/// Mesos, 3 is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// Application Container Images.
    Appc = 1,
    /// Docker images, from registries and `docker save` archives; OCI images that a registry serves too.
    Docker = 2,
    /// OCI image layouts.
    Oci = 3,
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Appc => "appc",
            Self::Docker => "docker",
            Self::Oci => "oci",
        })
    }
}

/// An image, as a user names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageName {
    /// `docker:NAME`, `docker://NAME`, `NAME`: from the configured registry or directory of archives.
    Docker(Reference),
    /// `docker-archive:PATH[:REF]`: one `docker save` archive.
    DockerArchive {
        /// The archive.
        path: PathBuf,
        /// Which of its images; needed only when there is more than one.
        reference: Option<Reference>,
    },
    /// `oci:PATH[:TAG]`: an image layout directory.
    OciLayout {
        /// The directory that holds `oci-layout` and `index.json`.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name` of the wanted manifest.
        tag: Option<String>,
    },
    /// `oci-archive:PATH[:TAG]`: the tar of an image layout.
    OciArchive {
        /// The archive.
        path: PathBuf,
        /// As in a layout.
        tag: Option<String>,
    },
    /// `appc:NAME[:VERSION][,label=value...]` or `appc:sha512-...`.
    Appc(AppcReference),
    /// `aci:PATH`: one ACI file.
    Aci(PathBuf),
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageNameError {
    /// A registry reference is malformed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// An Appc name is malformed.
    #[error("{text:?} names no image")]
    Appc {
        /// As written.
        text: String,
        /// Why.
        #[source]
        source: AppcNameError,
    },
    /// A form that needs a path has none.
    #[error("image {0:?} names no path after its colon")]
    NoPath(String),
    /// A transport keelblock does not have.
    #[error(
        "image {text:?} uses the transport {transport:?}; known are docker:, docker-archive:, oci:, oci-archive:, appc: and aci:"
    )]
    Transport {
        /// As written.
        text: String,
        /// What stands before the colon.
        transport: String,
    },
    /// A NUL byte or line break in the name.
    #[error("image {0:?} contains a control character")]
    Control(String),
}

/// Transports of other tools, refused by name rather than taken for a repository with a tag.
const FOREIGN: [&str; 5] = ["docker-daemon", "containers-storage", "dir", "sif", "ostree"];

impl ImageName {
    /// Which provider resolves it.
    pub fn kind(&self) -> ImageKind {
        match self {
            Self::Docker(_) | Self::DockerArchive { .. } => ImageKind::Docker,
            Self::OciLayout { .. } | Self::OciArchive { .. } => ImageKind::Oci,
            Self::Appc(_) | Self::Aci(_) => ImageKind::Appc,
        }
    }

    /// The name with defaults written out; equal for two names of the same image. Paths stay as written.
    pub fn canonical(&self) -> Self {
        match self {
            Self::Docker(reference) => Self::Docker(reference.canonical()),
            other => other.clone(),
        }
    }

    /// What is shown as the reference of the image: for registry images without the `docker:`.
    pub fn reference(&self) -> String {
        match self {
            Self::Docker(reference) => reference.to_string(),
            other => other.to_string(),
        }
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        if text.chars().any(char::is_control) {
            return Err(ImageNameError::Control(quote(text)));
        }
        let (transport, rest) = text.split_once(':').unwrap_or(("", text));
        let path = |rest: &str| match rest.split_once(':') {
            Some(("", _)) => Err(ImageNameError::NoPath(quote(text))),
            None if rest.is_empty() => Err(ImageNameError::NoPath(quote(text))),
            Some((path, after)) => {
                Ok((PathBuf::from(path), Some(after.to_owned()).filter(|a| !a.is_empty())))
            }
            None => Ok((PathBuf::from(rest), None)),
        };
        Ok(match transport {
            "docker" if rest.starts_with("//") => Self::Docker(rest[2..].parse()?),
            // `docker:24` is the image named "docker" to docker itself; here the transport wins, as in the contract.
            "docker" => Self::Docker(rest.parse()?),
            "docker-archive" => {
                let (path, reference) = path(rest)?;
                let reference = reference.map(|text| text.parse()).transpose()?;
                Self::DockerArchive { path, reference }
            }
            "oci" => {
                let (path, tag) = path(rest)?;
                Self::OciLayout { path, tag }
            }
            "oci-archive" => {
                let (path, tag) = path(rest)?;
                Self::OciArchive { path, tag }
            }
            "appc" if rest.is_empty() => return Err(ImageNameError::NoPath(quote(text))),
            "appc" => match rest.parse() {
                Ok(reference) => Self::Appc(reference),
                Err(source) => return Err(ImageNameError::Appc { text: quote(text), source }),
            },
            "aci" if rest.is_empty() => return Err(ImageNameError::NoPath(quote(text))),
            "aci" => Self::Aci(PathBuf::from(rest)),
            foreign if FOREIGN.contains(&foreign) || rest.starts_with("//") => {
                return Err(ImageNameError::Transport { text: quote(text), transport: quote(foreign) });
            }
            _ => Self::Docker(text.parse()?),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, transport: &str, path: &PathBuf, tag: &Option<String>| {
            write!(f, "{transport}:{}", path.display())?;
            tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
        };
        match self {
            Self::Docker(reference) => write!(f, "docker:{reference}"),
            Self::DockerArchive { path, reference } => {
                tagged(f, "docker-archive", path, &reference.as_ref().map(ToString::to_string))
            }
            Self::OciLayout { path, tag } => tagged(f, "oci", path, tag),
            Self::OciArchive { path, tag } => tagged(f, "oci-archive", path, tag),
            Self::Appc(name) => write!(f, "appc:{name}"),
            Self::Aci(path) => write!(f, "aci:{}", path.display()),
        }
    }
}

impl Serialize for ImageName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A wish for an image: its name, whether what the store has will do, and who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRequest {
    /// Which image.
    pub name: ImageName,
    /// Whether the store may answer, and whether the source may be asked; `None` = as the agent is told
    /// (`--image_pull_policy`), which is [`PullPolicy::Missing`] unless it is told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PullPolicy>,
    /// Credentials that came with the wish: they serve its pull alone, in place of those of the agent.
    #[serde(skip)]
    pub access: Option<Access>,
}

/// When the source of an image is asked. Layers in the store serve in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Every time: what does the name mean now? Mesos' `Image.cached` = false.
    Always,
    /// When the image is not whole in the store. Mesos' `Image.cached` = true.
    #[default]
    Missing,
    /// Never: an image that is not whole in the store is an error. Images in files of this machine are read all the same.
    Never,
}

/// A text is no pull policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("use always, missing or never")]
pub struct PullPolicyError;

impl FromStr for PullPolicy {
    type Err = PullPolicyError;

    /// The words of podman and Kubernetes.
    fn from_str(text: &str) -> Result<Self, PullPolicyError> {
        match text.to_ascii_lowercase().as_str() {
            "always" => Ok(Self::Always),
            "missing" | "ifnotpresent" => Ok(Self::Missing),
            "never" => Ok(Self::Never),
            _ => Err(PullPolicyError),
        }
    }
}

impl ImageRequest {
    /// A request that the store may answer, if the agent is not told otherwise.
    pub fn cached(name: ImageName) -> Self {
        Self { name, policy: None, access: None }
    }

    /// A request that its source must answer.
    pub fn fresh(name: ImageName) -> Self {
        Self { policy: Some(PullPolicy::Always), ..Self::cached(name) }
    }

    /// The same with these credentials.
    pub fn with_access(self, access: Option<Access>) -> Self {
        Self { access, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_contract_is_understood() {
        let name = |text: &str| text.parse::<ImageName>().unwrap_or_else(|error| panic!("{text}: {error}"));
        for text in ["alpine:3", "docker:alpine:3", "docker://alpine:3"] {
            assert_eq!(name(text).to_string(), "docker:alpine:3");
        }
        assert_eq!(name("127.0.0.1:5000/app:1").reference(), "127.0.0.1:5000/app:1");
        assert_eq!(
            name("docker-archive:/a/b.tar:app:1"),
            ImageName::DockerArchive { path: "/a/b.tar".into(), reference: Some("app:1".parse().unwrap()) }
        );
        assert_eq!(name("oci:dir"), ImageName::OciLayout { path: "dir".into(), tag: None });
        assert_eq!(
            name("oci-archive:x.tar:t"),
            ImageName::OciArchive { path: "x.tar".into(), tag: Some("t".into()) }
        );
        assert_eq!(name("appc:e.com/a:1,os=linux"), ImageName::Appc("e.com/a:1,os=linux".parse().unwrap()));
        assert_eq!(name("aci:/x.aci"), ImageName::Aci("/x.aci".into()));
    }

    #[test]
    fn a_name_reads_back_as_it_prints() {
        for text in
            ["docker:a", "docker-archive:/x:a:1", "oci:/x:t", "oci-archive:/x", "appc:n,a=b", "aci:/x"]
        {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn foreign_transports_and_missing_paths_are_named() {
        let error = |text: &str| text.parse::<ImageName>().unwrap_err();
        assert!(matches!(error("docker-daemon:x"), ImageNameError::Transport { .. }));
        assert!(matches!(error("https://x.io/a"), ImageNameError::Transport { .. }));
        for text in ["oci:", "oci::t", "docker-archive:", "aci:", "appc:"] {
            assert!(matches!(error(text), ImageNameError::NoPath(_)), "{text}");
        }
        assert!(matches!(error("a\nb"), ImageNameError::Control(_)));
    }
}

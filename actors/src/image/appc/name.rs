//! How an Appc image is named: `NAME[:VERSION][,label=value...]`, or by its image ID.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::identifier::{AcIdentifier, IdentifierError};
use super::{LABEL_VERSION, view};
use crate::error::quote;
use crate::image::digest::Digest;

/// Image ID of an Appc image: the SHA-512 of its uncompressed tar, written `sha512-<128 hex digits>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(Box<[u8; 64]>);

impl ImageId {
    /// The same as a digest.
    pub fn digest(&self) -> Digest {
        Digest::Sha512(self.0.clone())
    }

    /// The image ID that this digest is, if it is a SHA-512.
    pub fn of(digest: &Digest) -> Option<Self> {
        match digest {
            Digest::Sha512(bytes) => Some(Self(bytes.clone())),
            Digest::Sha256(_) => None,
        }
    }
}

impl FromStr for ImageId {
    type Err = AppcNameError;

    fn from_str(text: &str) -> Result<Self, AppcNameError> {
        let digest = text.strip_prefix("sha512-").and_then(|hex| format!("sha512:{hex}").parse().ok());
        digest
            .and_then(|digest| Self::of(&digest))
            .ok_or_else(|| AppcNameError::ImageId { text: quote(text) })
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha512-{}", self.digest().hex())
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ImageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What follows `appc:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppcReference {
    /// `sha512-...`: an image that is in the store.
    Id(ImageId),
    /// By name and labels.
    Named(AppcName),
}

/// Name and labels of an image. Equal when the name and all labels are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppcName {
    /// Its name: `example.com/app`.
    pub name: AcIdentifier,
    /// Its labels, the version among them.
    pub labels: BTreeMap<AcIdentifier, String>,
}

/// Why a text names no Appc image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppcNameError {
    /// The name, or that of a label.
    #[error(transparent)]
    Identifier(#[from] IdentifierError),
    /// After a comma.
    #[error("{text:?} is no label; write name=value, separated by commas")]
    Label {
        /// As written, cut.
        text: String,
    },
    /// Twice the same label.
    #[error("the label {name} is given twice")]
    Twice {
        /// Its name.
        name: AcIdentifier,
    },
    /// appc spec, aci.md: it would be taken for the image's name.
    #[error("a label cannot be called \"name\"")]
    LabelCalledName,
    /// A colon and nothing after it.
    #[error("the version after the colon of {text:?} is empty")]
    NoVersion {
        /// As written, cut.
        text: String,
    },
    /// `sha512-` and something that is none.
    #[error("{text:?} is no image ID: after sha512- come exactly 128 lower-case hex digits")]
    ImageId {
        /// As written, cut.
        text: String,
    },
}

impl AppcName {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The same with this label, unless it has one of that name.
    pub fn or_label(mut self, name: &str, value: &str) -> Self {
        if let Ok(name) = name.parse::<AcIdentifier>() {
            self.labels.entry(name).or_insert_with(|| value.to_owned());
        }
        self
    }
}

impl FromStr for AppcReference {
    type Err = AppcNameError;

    fn from_str(text: &str) -> Result<Self, AppcNameError> {
        match text.starts_with("sha512-") {
            true => text.parse().map(Self::Id),
            false => text.parse().map(Self::Named),
        }
    }
}

impl FromStr for AppcName {
    type Err = AppcNameError;

    fn from_str(text: &str) -> Result<Self, AppcNameError> {
        let (head, rest) = text.split_once(',').map_or((text, None), |(head, rest)| (head, Some(rest)));
        let (name, version) = head.split_once(':').map_or((head, None), |(name, tag)| (name, Some(tag)));
        let mut labels = BTreeMap::new();
        let mut add = |label: AcIdentifier, value: &str| {
            if label.as_str() == "name" {
                return Err(AppcNameError::LabelCalledName);
            }
            match labels.insert(label.clone(), view::unescape(value)) {
                None => Ok(()),
                Some(_) => Err(AppcNameError::Twice { name: label }),
            }
        };
        match version {
            Some("") => return Err(AppcNameError::NoVersion { text: quote(text) }),
            Some(version) => add(LABEL_VERSION.parse()?, version)?,
            None => {}
        }
        for label in rest.into_iter().flat_map(|rest| rest.split(',')) {
            let (label, value) =
                label.split_once('=').ok_or_else(|| AppcNameError::Label { text: quote(label) })?;
            add(label.parse()?, value)?;
        }
        Ok(Self { name: name.parse()?, labels })
    }
}

impl fmt::Display for AppcName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        let version = self.label(LABEL_VERSION).filter(|version| !version.is_empty());
        if let Some(version) = version {
            write!(f, ":{}", view::escape(version))?;
        }
        let others =
            self.labels.iter().filter(|(name, _)| version.is_none() || name.as_str() != LABEL_VERSION);
        others.into_iter().try_for_each(|(name, value)| write!(f, ",{name}={}", view::escape(value)))
    }
}

impl fmt::Display for AppcReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Named(name) => name.fmt(f),
        }
    }
}

impl Serialize for AppcName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AppcName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_it_prints() {
        let id = format!("sha512-{}", "0f".repeat(64));
        for text in [
            "a",
            "e.com/a:1.0",
            "e.com/a:1,arch=amd64,os=linux",
            "e.com/a,os=linux",
            "a,b=",
            "a,version=",
            "a:1%2C2,x=%25%3D",
            &id,
        ] {
            let reference: AppcReference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string().parse::<AppcReference>().unwrap(), reference, "{text}");
        }
        let name: AppcName = "a:1%2C2,x=y=z".parse().unwrap();
        assert_eq!((name.label("version"), name.label("x")), (Some("1,2"), Some("y=z")));
    }

    #[test]
    fn what_is_no_name_says_why() {
        let error = |text: &str| text.parse::<AppcReference>().unwrap_err();
        assert!(matches!(error("A"), AppcNameError::Identifier(_)));
        assert!(matches!(error("a:"), AppcNameError::NoVersion { .. }));
        assert!(matches!(error("a,os"), AppcNameError::Label { .. }));
        assert!(matches!(error("a:1,version=2"), AppcNameError::Twice { .. }));
        assert!(matches!(error("a,name=b"), AppcNameError::LabelCalledName));
        assert!(matches!(error("sha512-12"), AppcNameError::ImageId { .. }));
        assert!(matches!(error("../a"), AppcNameError::Identifier(_)));
    }
}

//! References to images in registries: `[registry/]repository[:tag][@digest]`, parsed and printed.
//!
//! Rules: distribution/reference's grammar, and docker's defaults (`docker.io`, `library/`, `latest`).
//! A reference keeps what was written; the defaults are filled in by [`Reference::canonical`] alone.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestError};

/// Registry assumed when a name has none, as users write it.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Tag assumed when a reference has neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Longest name (registry and repository) in bytes: distribution/reference, `NameTotalLengthMax`.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest tag in bytes: distribution/reference, grammar of `tag`.
pub const TAG_BYTES_MAX: usize = 128;

/// What names an image in a registry, or in a directory of archives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `host[:port]`, when the name was written with one.
    pub registry: Option<String>,
    /// Path of the repository, as written: `alpine`, `library/alpine`.
    pub repository: String,
    /// Tag, when written.
    pub tag: Option<String>,
    /// Digest of the manifest, when written; it wins over the tag.
    pub digest: Option<Digest>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing between the separators.
    #[error("image reference {0:?} is empty where a repository name must stand")]
    Empty(String),
    /// A repository may only be lower-case letters, digits and separators between them.
    #[error(
        "repository {part:?} in {text:?} is malformed: use lower-case letters and digits, with single '.', '_', '__' or '-' between them"
    )]
    Repository {
        /// The component at fault.
        part: String,
        /// The whole reference.
        text: String,
    },
    /// The registry is no `host[:port]`.
    #[error(
        "registry {registry:?} in {text:?} is not a host name or address with an optional port from 1 to 65535"
    )]
    Registry {
        /// What stands before the first `/`.
        registry: String,
        /// The whole reference.
        text: String,
    },
    /// A tag is a word of at most 128 bytes.
    #[error(
        "tag {tag:?} in {text:?} is malformed: use up to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
    )]
    Tag {
        /// The tag as written.
        tag: String,
        /// The whole reference.
        text: String,
    },
    /// More than one `@`.
    #[error("image reference {0:?} has more than one '@'; at most one digest can follow the name")]
    ManyDigests(String),
    /// What follows `@` is no digest.
    #[error("cannot read the digest of image reference {text:?}")]
    Digest {
        /// The whole reference.
        text: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
    /// Registry and repository are longer than registries accept, those that are left out included.
    #[error("the name in image reference {0:?} is longer than {NAME_BYTES_MAX} bytes with its registry")]
    TooLong(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let quoted = || crate::error::quote(text);
        let (name, digest) = match text.split_once('@') {
            Some((_, rest)) if rest.contains('@') => return Err(ReferenceError::ManyDigests(quoted())),
            Some((name, digest)) => {
                let digest =
                    digest.parse().map_err(|source| ReferenceError::Digest { text: quoted(), source })?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => (name, Some(tag.to_owned())),
            _ => (name, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, name),
        };
        if repository.is_empty() {
            return Err(ReferenceError::Empty(quoted()));
        }
        if let Some(registry) = registry.filter(|registry| !is_host_and_port(registry)) {
            return Err(ReferenceError::Registry { registry: crate::error::quote(registry), text: quoted() });
        }
        if let Some(part) = repository.split('/').find(|part| !is_path_component(part)) {
            return Err(ReferenceError::Repository { part: crate::error::quote(part), text: quoted() });
        }
        if let Some(tag) = tag.as_deref().filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { tag: crate::error::quote(tag), text: quoted() });
        }
        let reference =
            Self { registry: registry.map(str::to_owned), repository: repository.to_owned(), tag, digest };
        // With the defaults written out too: that is the form in which it is remembered and must be read again.
        if reference.name_bytes().max(reference.canonical().name_bytes()) > NAME_BYTES_MAX {
            return Err(ReferenceError::TooLong(quoted()));
        }
        Ok(reference)
    }
}

impl Reference {
    /// The same image with every default written out: `docker.io/library/alpine:latest`. Two references
    /// that mean the same image of the same default registry have equal canonical forms.
    pub fn canonical(&self) -> Self {
        let registry = match self.registry.as_deref() {
            None | Some("index.docker.io" | "registry-1.docker.io") => DEFAULT_REGISTRY,
            Some(registry) => registry,
        };
        let official = registry == DEFAULT_REGISTRY && !self.repository.contains('/');
        let repository =
            if official { format!("library/{}", self.repository) } else { self.repository.clone() };
        let tag = match (&self.tag, &self.digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.clone(),
        };
        Self { registry: Some(registry.to_owned()), repository, tag, digest: self.digest.clone() }
    }

    fn name_bytes(&self) -> usize {
        self.registry.as_ref().map_or(0, |registry| registry.len() + 1) + self.repository.len()
    }

    /// The tag in force: the one written, else `latest`.
    pub fn tag_or_default(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= TAG_BYTES_MAX
        && bytes.first().is_some_and(|&first| word(first))
        && bytes.iter().all(|&byte| word(byte) || byte == b'.' || byte == b'-')
}

/// `alpha-numeric (separator alpha-numeric)*`, separator = `.` | `_` | `__` | `-`+
fn is_path_component(part: &str) -> bool {
    let mut rest = part.as_bytes();
    loop {
        let word = rest.iter().take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        let dashes = rest.iter().take_while(|&&byte| byte == b'-').count();
        let separator = match rest {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            _ => dashes,
        };
        if separator == 0 {
            return false;
        }
        rest = &rest[separator..];
    }
}

fn is_host_and_port(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let digits = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    host.is_none_or(|host| host.split('.').all(label)) && port.is_none_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap_or_else(|error| panic!("{text}: {error}")).canonical().to_string()
    }

    /// Found by the fuzz target `reference`: the record of an image with such a name could not be read again.
    #[test]
    fn fuzz_a_name_is_not_too_long_once_its_defaults_are_written_out() {
        let longest = NAME_BYTES_MAX - "docker.io/library/".len();
        for (length, fits) in [(longest, true), (longest + 1, false), (NAME_BYTES_MAX, false)] {
            let parsed = "a".repeat(length).parse::<Reference>();
            assert_eq!(parsed.is_ok(), fits, "{length}");
            let canonical = parsed.map(|reference| reference.canonical());
            assert!(canonical.is_ok_and(|name| name.to_string().parse() == Ok(name)) == fits);
        }
        let own = format!("r.io/{}", "a".repeat(NAME_BYTES_MAX - 5));
        assert!(own.parse::<Reference>().is_ok() && format!("{own}a").parse::<Reference>().is_err());
    }

    #[test]
    fn defaults_are_filled_in_as_docker_does() {
        for (written, meant) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("library/alpine", "docker.io/library/alpine:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[::1]/x/y:t", "[::1]/x/y:t"),
            ("quay.io/a/b__c/d-e--f.g:T_1.-x", "quay.io/a/b__c/d-e--f.g:T_1.-x"),
        ] {
            assert_eq!(canonical(written), meant);
        }
    }

    #[test]
    fn a_digest_takes_the_place_of_the_default_tag_and_keeps_a_written_one() {
        let digest = Digest::of(b"x");
        assert_eq!(canonical(&format!("quay.io/x/y@{digest}")), format!("quay.io/x/y@{digest}"));
        assert_eq!(canonical(&format!("quay.io/x/y:1@{digest}")), format!("quay.io/x/y:1@{digest}"));
    }

    #[test]
    fn what_is_written_prints_as_it_was_written() {
        for text in ["alpine", "a/b:c", "h:1/a", "localhost/x:y"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_names_are_refused_each_for_its_reason() {
        use ReferenceError as E;
        let error = |text: &str| text.parse::<Reference>().unwrap_err();
        assert!(matches!(error(""), E::Empty(_)));
        assert!(matches!(error(":tag"), E::Empty(_)));
        assert!(matches!(error("host.io/"), E::Empty(_)));
        assert!(matches!(error("Alpine"), E::Repository { .. }));
        for text in ["a//b", "a/../b", "/etc/passwd", "a/", "a___b", "-a", "a.", "a b", "a\nb", "ä"] {
            assert!(matches!(error(text), E::Repository { .. }), "{text}");
        }
        for text in
            ["host:port/a", "h:0/a", "h:99999/a", "h:1:2/a", "[::g]:1/a", "[::1]x/a", "-h.io/a", "h..io/a"]
        {
            assert!(matches!(error(text), E::Registry { .. }), "{text}");
        }
        for text in ["a:", "a:.x", "a:-x", "a:b c", &format!("a:{}", "t".repeat(129))] {
            assert!(matches!(error(text), E::Tag { .. }), "{text}");
        }
        assert!(matches!(error("a@b@c"), E::ManyDigests(_)));
        assert!(matches!(error("a@sha256:12"), E::Digest { .. }));
        assert!(matches!(error(&"a".repeat(256)), E::TooLong(_)));
    }
}

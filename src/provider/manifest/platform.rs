//! Which entry of an index fits a machine.
//!
//! The rules are those of containerd's `platforms` package within one architecture (`compare.go`): variants of arm
//! downwards to v5, arm64 `v8` the same as none and `v8.N` and `v9.N` downwards, amd64 levels downwards to none. `os.version`
//! and `os.features` are not looked at: they mean something on Windows alone. Unlike there, a 64-bit machine is not given
//! 32-bit images: whether it can run them is not to be known from its name.

use std::fmt;
use std::str::FromStr;

use keelblock_actors::error::quote;
use serde::Deserialize;

use super::{Descriptor, Index, ManifestError, leads_to_an_image};

/// An operating system on a processor, in the words of Go: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, ...
    pub architecture: String,
    /// `v7`, ...
    pub variant: Option<String>,
}

/// A text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform; write os/architecture or os/architecture/variant, as in linux/arm/v7")]
pub struct PlatformError(String);

impl Platform {
    /// That of this machine: what this program was built for, in the best variant that the processor has.
    pub fn host() -> Self {
        super::host::platform()
    }

    /// Whether an image that says it is for `image` is one for this platform. Where that says `arm` and no more it may be
    /// for any, as configs of old images for v5 and v6 do.
    pub fn runs(&self, image: &Self) -> bool {
        self.os == image.os
            && self.architecture == image.architecture
            && (self.variants().contains(&image.variant)
                || self.architecture == "arm" && image.variant.as_deref() == Some("v7"))
    }

    /// Names as Go has them; the variant that is the architecture's default is left out.
    pub(super) fn normal(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let variant = variant.as_deref();
        let (architecture, variant) = match (architecture.as_str(), variant) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64" | "arm64", Some("9" | "v9.0")) => ("arm64", Some("v9")),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", None),
            // Rust has one name for both byte orders, Go two.
            ("powerpc64", variant) if cfg!(target_endian = "little") => ("ppc64le", variant),
            ("powerpc64", variant) => ("ppc64", variant),
            ("loongarch64", variant) => ("loong64", variant),
            (other, variant) => (other, variant),
        };
        Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// The variants that run on this platform, best first; `None` in it = an entry without one.
    fn variants(&self) -> Vec<Option<String>> {
        let some = |text: &str| Some(text.to_owned());
        let variant = self.variant.as_deref();
        let number =
            variant.and_then(|text| text.strip_prefix('v')).and_then(|text| text.parse::<u32>().ok());
        match (self.architecture.as_str(), number) {
            ("arm", Some(newest @ 5..=8)) => (5..=newest).rev().map(|n| some(&format!("v{n}"))).collect(),
            ("amd64", Some(newest @ 2..=9)) => {
                let levels = (2..=newest).rev().map(|n| some(&format!("v{n}")));
                levels.chain([None]).collect()
            }
            ("arm64", _) => self.arm64_variants(),
            _ => self.variant.iter().cloned().map(Some).chain([None]).collect(),
        }
    }

    /// The same for arm64: v9.N has what v8.(N+5) has, and `v8` is the name of none.
    fn arm64_variants(&self) -> Vec<Option<String>> {
        let variant = self.variant.as_deref().unwrap_or("v8");
        let name = |major: u32, minor: u32| match (major, minor) {
            (8, 0) => None,
            (_, 0) => Some(format!("v{major}")),
            _ => Some(format!("v{major}.{minor}")),
        };
        let number = variant.strip_prefix('v').map(|text| text.split_once('.').unwrap_or((text, "0")));
        match number.map(|(major, minor)| (major, minor.parse::<u32>())) {
            Some(("8", Ok(newest @ 0..=9))) => (0..=newest).rev().map(|n| name(8, n)).collect(),
            Some(("9", Ok(newest @ 0..=9))) => {
                let older = (0..=(newest + 5).min(9)).rev().map(|n| name(8, n));
                (0..=newest).rev().map(|n| name(9, n)).chain(older).collect()
            }
            _ => vec![self.variant.clone(), None],
        }
    }

    fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 64
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        match parts.as_slice() {
            [os, architecture] if parts.iter().all(word) => Ok(Self::normal(os, architecture, None)),
            [os, architecture, variant] if parts.iter().all(word) => {
                Ok(Self::normal(os, architecture, Some(variant)))
            }
            _ => Err(PlatformError(quote(text))),
        }
    }
}

/// A platform as documents have it; nothing in it is required, for attestations leave it out.
#[derive(Deserialize)]
pub(crate) struct WrittenPlatform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
}

impl From<WrittenPlatform> for Platform {
    fn from(written: WrittenPlatform) -> Self {
        let text = |text: Option<String>| text.unwrap_or_default();
        Self::normal(&text(written.os), &text(written.architecture), written.variant.as_deref())
    }
}

impl Descriptor {
    /// Whether it may point to an image: no attestation, no signature, no other artifact.
    pub fn is_of_an_image(&self) -> bool {
        leads_to_an_image(&self.media_type)
            && self.artifact_type.is_none()
            && !self.annotations.contains_key("vnd.docker.reference.type")
            && !self.platform.as_ref().is_some_and(Platform::is_unknown)
    }
}

impl Index {
    /// The entry for a platform: of those that run on it the one with the best variant, of equals the first.
    /// An entry that names no platform is taken when none fits that does and it is the only such one (an index within an
    /// index, or an image of a tool that does not say).
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`], with what there is.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        let wanted = Platform::normal(&platform.os, &platform.architecture, platform.variant.as_deref());
        let images = || self.manifests.iter().filter(|entry| entry.is_of_an_image());
        for variant in wanted.variants() {
            let fits = |offered: &Platform| {
                offered.os == wanted.os
                    && offered.architecture == wanted.architecture
                    && offered.variant == variant
            };
            if let Some(entry) = images().find(|entry| entry.platform.as_ref().is_some_and(fits)) {
                return Ok(entry);
            }
        }
        let mut nameless = images().filter(|entry| entry.platform.is_none());
        if let (Some(entry), None) = (nameless.next(), nameless.next()) {
            return Ok(entry);
        }
        Err(ManifestError::NoPlatform { wanted, offered: self.offered() })
    }

    /// The platforms of its images, cut.
    fn offered(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for entry in self.manifests.iter().filter(|entry| entry.is_of_an_image()) {
            let name = match &entry.platform {
                // Escaped: a platform is foreign text, and this goes to a terminal.
                Some(platform) => platform.to_string().escape_debug().to_string(),
                None => "an image without platform".to_owned(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
            // Enough for any message, and the search above stays short.
            if names.len() == 32 {
                break;
            }
        }
        if names.is_empty() { "no image at all".into() } else { quote(&names.join(", ")) }
    }
}

#[cfg(test)]
mod tests;

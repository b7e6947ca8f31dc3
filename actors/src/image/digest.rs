//! Digests, and the two kinds of name made of them: diff IDs and chain IDs.
//!
//! Digests arrive as text from manifests and leave as directory names, so parsing is strict: what is not
//! a digest in canonical form never becomes a `Digest`. Nothing here reads a file; [`Hasher`] is fed by others.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// `algorithm:hex` of exact bytes (OCI image-spec, descriptor.md, "Digests").
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// SHA-256, what nearly every image uses.
    Sha256([u8; 32]),
    /// SHA-512, also registered by OCI, and the image IDs of Appc.
    Sha512(Box<[u8; 64]>),
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `:` between algorithm and hex, or another algorithm than sha256 and sha512.
    #[error("{0:?} is not a digest: it must begin with sha256: or sha512:")]
    Algorithm(String),
    /// Hex part of the wrong length, or with anything but lower-case hex digits.
    #[error("{text:?} is not a digest: after {algorithm}: come exactly {digits} lower-case hex digits")]
    Hex {
        /// What was read, cut to 256 bytes.
        text: String,
        /// `sha256` or `sha512`.
        algorithm: &'static str,
        /// How many digits that algorithm has.
        digits: usize,
    },
}

impl Digest {
    /// The SHA-256 of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The lower-case hex part alone: safe as a file name.
    pub fn hex(&self) -> String {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => &bytes[..],
        };
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        text
    }

    /// A hasher of this digest's algorithm, to verify bytes against it.
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::sha256(),
            Self::Sha512(_) => Hasher::sha512(),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let cut = || crate::error::quote(text);
        if let Some(hex) = text.strip_prefix("sha256:") {
            let wrong = || DigestError::Hex { text: cut(), algorithm: "sha256", digits: 64 };
            return unhex::<32>(hex).map(Self::Sha256).ok_or_else(wrong);
        }
        if let Some(hex) = text.strip_prefix("sha512:") {
            let wrong = || DigestError::Hex { text: cut(), algorithm: "sha512", digits: 128 };
            return unhex::<64>(hex).map(|bytes| Self::Sha512(Box::new(bytes))).ok_or_else(wrong);
        }
        Err(DigestError::Algorithm(cut()))
    }
}

fn unhex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let hex = hex.as_bytes();
    if hex.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// A digest in the making.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// See [`Digest::Sha256`].
    Sha256(sha2::Sha256),
    /// See [`Digest::Sha512`].
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A fresh SHA-256.
    pub fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    /// A fresh SHA-512.
    pub fn sha512() -> Self {
        Self::Sha512(sha2::Sha512::new())
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all that was taken.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(Box::new(hasher.finalize().into())),
        }
    }
}

macro_rules! digest_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }
    };
}

digest_name! {
    /// Digest of the uncompressed tar of a layer: what a layer is known by in the store, whatever
    /// compression or image brought it (OCI image-spec, config.md, `rootfs.diff_ids`).
    DiffId
}
digest_name! {
    /// Digest of a stack of layers (OCI image-spec, config.md, "Layer ChainID").
    ChainId
}

impl ChainId {
    /// The chain ID of a stack, base first; `None` for no layers.
    pub fn of_stack<'a>(stack: impl IntoIterator<Item = &'a DiffId>) -> Option<Self> {
        let mut layers = stack.into_iter();
        let base = Self(layers.next()?.0.clone());
        Some(layers.fold(base, |chain, diff| Self(Digest::of(format!("{chain} {diff}").as_bytes()))))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_prints_as_it_was_read() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
    }

    #[test]
    fn what_is_not_canonical_is_no_digest() {
        let upper = EMPTY.to_uppercase();
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:00",
            &EMPTY[..70],
            &format!("{EMPTY}0"),
            &upper,
            "sha256:../../etc",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let upper_hex = format!("sha256:{}", EMPTY[7..].to_uppercase());
        assert!(matches!(upper_hex.parse::<Digest>(), Err(DigestError::Hex { digits: 64, .. })));
    }

    #[test]
    fn a_chain_id_is_built_from_the_base_up() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        assert_eq!(ChainId::of_stack([]), None);
        assert_eq!(ChainId::of_stack([&a]).unwrap().0, a.0);
        let both = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of_stack([&a, &b]).unwrap().0, both);
    }

    #[test]
    fn a_hasher_verifies_its_own_algorithm() {
        let digest = Digest::of(b"keel");
        let mut hasher = digest.hasher();
        hasher.update(b"ke");
        hasher.update(b"el");
        assert_eq!(hasher.finish(), digest);
    }
}

//! AC Identifiers and AC Names (appc spec, types.md): texts that are safe in addresses and file names by construction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::quote;

/// Why a text is no AC Identifier or AC Name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no {what}: it must be lower-case letters and digits, with single {between} between them"
)]
pub struct IdentifierError {
    /// As written, cut.
    pub text: String,
    what: &'static str,
    between: &'static str,
}

/// Whether it is `[a-z0-9]+` in groups with one of these bytes between any two.
fn is_grouped(text: &str, between: &[u8]) -> bool {
    let mut in_group = false;
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => in_group = true,
            _ if in_group && between.contains(&byte) => in_group = false,
            _ => return false,
        }
    }
    in_group
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $between:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdentifierError;

            fn from_str(text: &str) -> Result<Self, IdentifierError> {
                match is_grouped(text, $between.as_bytes()) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(IdentifierError { text: quote(text), what: $what, between: $between }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

identifier! {
    /// Names of images, labels, annotations and isolators: `^[a-z0-9]+([-._~/][a-z0-9]+)*$`.
    AcIdentifier, "AC Identifier", "-._~/"
}
identifier! {
    /// Names of mount points and ports: `^[a-z0-9]+([-][a-z0-9]+)*$`.
    AcName, "AC Name", "-"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_the_specification_are_identifiers_and_others_are_not() {
        for text in ["database", "example.com/~user/app_v1".replace("/~", "/").as_str(), "a.b-c/d_e~f", "0"] {
            assert!(text.parse::<AcIdentifier>().is_ok(), "{text}");
        }
        for text in ["", "A", "a/", "/a", "a//b", "a..b", "a b", "a:1", "../a", "a/../b", "é", "a\n"] {
            assert!(text.parse::<AcIdentifier>().is_err(), "{text}");
        }
        assert!("a-b".parse::<AcName>().is_ok());
        for text in ["a.b", "a/b", "a--b", "-a"] {
            assert!(text.parse::<AcName>().is_err(), "{text}");
        }
    }
}

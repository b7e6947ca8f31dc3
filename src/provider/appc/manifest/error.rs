//! Why a text is no image manifest.

use keelblock_actors::error::quote;
use serde_json::Value;

use crate::provider::manifest::BadJson;

/// Why a text is no image manifest. Foreign text in it is cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More than is read.
    #[error("the manifest is larger than the limit of {limit} bytes (--manifest_bytes_max)")]
    TooLarge {
        /// In bytes.
        limit: u64,
    },
    /// Not JSON, or with a key twice.
    #[error("the manifest is not JSON as it should be")]
    Json {
        /// What is wrong with it.
        #[from]
        source: BadJson,
    },
    /// A field that must be there.
    #[error("the manifest has no {field}: it must be there, and be {allowed}")]
    Missing {
        /// Which, as a path: `app.user`.
        field: String,
        /// What it may be.
        allowed: String,
    },
    /// A field with a value that it must not have.
    #[error("{field} of the manifest is {found}; it must be {allowed}")]
    Field {
        /// Which, as a path: `labels[1].name`.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What it may be.
        allowed: String,
    },
}

impl ManifestError {
    /// A field whose value is none.
    pub(super) fn field(field: impl Into<String>, found: &Value, allowed: impl Into<String>) -> Self {
        Self::Field { field: field.into(), found: quote(&found.to_string()), allowed: allowed.into() }
    }

    /// The same of a text.
    pub(super) fn text(field: impl Into<String>, found: &str, allowed: impl Into<String>) -> Self {
        Self::field(field, &Value::from(found), allowed)
    }
}

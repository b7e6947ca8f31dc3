//! The signature around a schema 1 manifest: which of its bytes are the manifest.
//!
//! A "pretty" signature (docker/libtrust) is a field `signatures` put into the document that is signed. What was signed, the
//! payload, are the first `formatLength` bytes of the whole and then `formatTail`: both stand in the protected header of
//! each signature. A registry names such a manifest by the digest of its payload, so that it keeps its name when somebody
//! signs it as well (distribution `manifest/schema1`, containerd `remotes/docker/schema1`); we do as they do, and read
//! nothing but the payload.
//!
//! The signatures themselves are not verified, by us as by docker, containerd and skopeo: their keys are made up on the
//! spot and vouch for nobody. What a signed manifest says is as good as the digest it was asked by, or as the connection.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::schema1::Schema1Error;
use super::{BadJson, List, depth};
use crate::base64;

/// Longest protected header that is read, in base64: ten times those that libtrust writes, which have 3 fields.
const HEADER_BYTES_MAX: usize = 4096;

/// Whether a document is of schema 1, and its signatures where it has some. `None` = no, or no JSON: for others to say.
fn signatures(document: &[u8]) -> Option<Option<&RawValue>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outer<'a> {
        schema_version: Option<u64>,
        #[serde(borrow)]
        signatures: Option<&'a RawValue>,
    }
    depth::check(document).ok()?;
    let outer: Outer<'_> = serde_json::from_slice(document).ok()?;
    (outer.schema_version == Some(1)).then_some(outer.signatures)
}

/// The payload of a signed schema 1 manifest; `None` = it is another document, or not signed.
///
/// # Errors
/// [`Schema1Error::Signature`] when the signatures do not say what was signed, or not the same;
/// [`Schema1Error::Unsigned`] when there are none, but must be.
pub(super) fn payload(document: &[u8], must_be_signed: bool) -> Result<Option<Vec<u8>>, Schema1Error> {
    #[derive(Deserialize)]
    struct Signature {
        protected: String,
    }
    let Some(written) = signatures(document) else { return Ok(None) };
    // `null` is read as none.
    let written = written.map_or("[]", RawValue::get);
    let list: List<Signature> = serde_json::from_str(written)
        .map_err(|error| Schema1Error::Signatures { source: BadJson::from(error) })?;
    if list.0.is_empty() && must_be_signed {
        return Err(Schema1Error::Unsigned);
    }
    let mut whole: Option<(usize, Vec<u8>)> = None;
    for (at, signature) in list.0.iter().enumerate() {
        let cut = header(&signature.protected, document.len())
            .map_err(|why| Schema1Error::Signature { number: at + 1, why })?;
        if whole.as_ref().is_some_and(|first| *first != cut) {
            let why = "it signs another text than the one before it";
            return Err(Schema1Error::Signature { number: at + 1, why });
        }
        whole = Some(cut);
    }
    Ok(whole.map(|(length, tail)| [&document[..length], &tail].concat()))
}

/// How many bytes of the document are signed, and what comes after them.
fn header(protected: &str, document_bytes: usize) -> Result<(usize, Vec<u8>), &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Header {
        format_length: u64,
        format_tail: String,
    }
    if protected.len() > HEADER_BYTES_MAX {
        return Err("its protected header is longer than 4096 bytes");
    }
    let bytes = base64::decode_url(protected).ok_or("its protected header is no base64url")?;
    depth::check(&bytes).map_err(|_| "its protected header is nested too deep")?;
    let header: Header = serde_json::from_slice(&bytes)
        .map_err(|_| "its protected header has no formatLength and formatTail")?;
    let length = usize::try_from(header.format_length).ok().filter(|&length| length <= document_bytes);
    let length = length.ok_or("its formatLength is more than the document has")?;
    let tail = base64::decode_url(&header.format_tail).ok_or("its formatTail is no base64url")?;
    Ok((length, tail))
}

#[cfg(test)]
pub(super) mod tests;

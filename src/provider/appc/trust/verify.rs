//! Whether an archive is what somebody who is trusted for its name has signed.
//!
//! The archive is read once, in pieces, whatever the number of signatures. All signatures that name a key which is trusted
//! for the image are looked at. One that is good is enough, unless another one by such a key is bad: then somebody whose
//! word counts has signed something else, and gpg ends with a failure, too. Signatures by keys that are not trusted, and
//! those that prove nothing any more, say nothing beside a good one.

use std::io::Read;

use keelblock_actors::image::appc::AcIdentifier;
use keelblock_actors::stop::Stop;
use pgp::packet::{Packet, PacketParser, Signature, SignatureConfig, SignatureType, SubpacketData};
use pgp::packet::{SignatureVersion, SignatureVersionSpecific};
use pgp::types::KeyVersion;

use super::armor::{self, Kind};
use super::certificate::{Component, guarded};
use super::error::{FormatError, TrustError, Unfit};
use super::store::StoredKey;
use super::{CLOCK_SKEW_SECONDS, date, weak_hash};
use crate::provider::appc::ports;

/// Bytes of a file of signatures that are read. 64 KiB: one takes less than 2 KiB in armour.
pub const SIGNATURE_BYTES_MAX: usize = 64 << 10;
/// Signatures in such a file that are read. 16: each of them costs as much time as the first.
pub const SIGNATURES_MAX: usize = 16;
/// Bytes of an archive that are hashed at a time. 256 KiB: in the cache, and few looks at whether to stop.
const BUFFER_BYTES: usize = 256 << 10;

/// What is to be verified.
pub(super) struct Claim<'a> {
    pub(super) name: &'a AcIdentifier,
    pub(super) signature: &'a ports::Signature,
    /// Seconds since 1970.
    pub(super) now: u64,
}

/// A signature that a trusted key may have made.
struct Candidate<'a> {
    signature: &'a Signature,
    config: &'a SignatureConfig,
    keys: Vec<Component<'a>>,
}

/// Fingerprint of the key that signed the archive.
pub(super) fn verify(
    claim: &Claim<'_>,
    aci: &mut dyn Read,
    keys: &[StoredKey],
    stop: &Stop,
) -> Result<String, TrustError> {
    // rPGP reads bytes that anybody may have made up: if it fails, that image is refused, and nothing else happens.
    guarded(|| unguarded(claim, aci, keys, stop))
        .unwrap_or_else(|panic| Err(super::panicked(&claim.signature.from, panic.as_ref())))
}

fn unguarded(
    claim: &Claim<'_>,
    aci: &mut dyn Read,
    keys: &[StoredKey],
    stop: &Stop,
) -> Result<String, TrustError> {
    let form = |source| TrustError::Signature {
        name: claim.name.clone(),
        from: claim.signature.from.clone(),
        source,
    };
    let signatures = read_signatures(&claim.signature.bytes).map_err(form)?;
    let (mut candidates, mut failures) = (Vec::new(), Vec::new());
    for signature in &signatures {
        match candidate(claim, signature, keys) {
            Ok(candidate) => candidates.push(candidate),
            Err(failure) => failures.push(failure),
        }
    }
    let hashes = hash(claim, &candidates, aci, stop)?;
    let mut good = None;
    for (candidate, hash) in candidates.iter().zip(hashes) {
        let by = candidate.keys.iter().find(|key| is_good(candidate, &hash, key));
        match by {
            Some(key) => good = Some(key.fingerprint.clone()),
            None => {
                let key = candidate.keys.first().map(|key| key.fingerprint.clone()).unwrap_or_default();
                return Err(TrustError::Bad {
                    name: claim.name.clone(),
                    from: claim.signature.from.clone(),
                    key,
                });
            }
        }
    }
    if let Some(key) = good {
        return Ok(key);
    }
    failures.sort_by_key(rank);
    Err(failures.pop().unwrap_or_else(|| form(FormatError::Malformed("there is no signature in it"))))
}

/// Which failure says most, when all signatures fail: the highest.
fn rank(failure: &TrustError) -> u8 {
    match failure {
        TrustError::Unfit { .. } | TrustError::Void { .. } => 3,
        TrustError::OtherPrefix { .. } => 2,
        TrustError::UnknownKey { .. } => 1,
        _ => 0,
    }
}

/// All signatures of a text in armour. Anything else among them is an error.
fn read_signatures(text: &[u8]) -> Result<Vec<Signature>, FormatError> {
    if text.len() > SIGNATURE_BYTES_MAX {
        return Err(FormatError::TooLong { bytes_max: SIGNATURE_BYTES_MAX });
    }
    let mut signatures = Vec::new();
    for block in armor::blocks(text, SIGNATURES_MAX)? {
        if block.kind != Kind::Signature {
            return Err(FormatError::Malformed("its armour holds something else than a signature"));
        }
        for packet in PacketParser::new(block.bytes.as_slice()) {
            match packet {
                Ok(Packet::Signature(signature)) if signatures.len() < SIGNATURES_MAX => {
                    signatures.push(signature);
                }
                Ok(Packet::Signature(_)) => {
                    return Err(FormatError::TooMany { what: "signatures", max: SIGNATURES_MAX });
                }
                Ok(Packet::Marker(_) | Packet::Padding(_)) => {}
                Ok(_) => {
                    return Err(FormatError::Malformed("its armour holds something else than a signature"));
                }
                Err(error) => return Err(FormatError::Packets(super::pgp_text(&error))),
            }
        }
    }
    Ok(signatures)
}

/// A signature with the trusted keys that may have made it, if it could prove anything.
fn candidate<'a>(
    claim: &Claim<'_>,
    signature: &'a Signature,
    keys: &'a [StoredKey],
) -> Result<Candidate<'a>, TrustError> {
    let name = || claim.name.clone();
    let issuer = issuer(signature);
    let void = |why: String| TrustError::Void {
        name: name(),
        from: claim.signature.from.clone(),
        key: issuer.clone().unwrap_or_else(|| "(none)".to_owned()),
        why,
    };
    let version = signature.version();
    let config =
        signature.config().filter(|_| matches!(version, SignatureVersion::V4 | SignatureVersion::V6));
    let config = config.ok_or_else(|| void(format!("is of version {}, not 4 or 6", u8::from(version))))?;
    let Some(issuer) = issuer.clone() else { return Err(void("does not say which key made it".to_owned())) };

    let mut matching: Vec<Component<'a>> = Vec::new();
    let mut elsewhere = Vec::new();
    for stored in keys {
        let components =
            stored.certificate.components(claim.now, |fingerprint, id| names(signature, fingerprint, id));
        if stored.scope.covers(claim.name) {
            matching.extend(components);
        } else {
            let scope = || stored.scope.to_string();
            elsewhere.extend(components.into_iter().map(|component| (component.fingerprint, scope())));
        }
    }
    if let Some((key, _)) = elsewhere.first().filter(|_| matching.is_empty()) {
        let mut prefixes: Vec<_> = elsewhere.iter().map(|(_, prefix)| prefix.as_str()).collect();
        prefixes.dedup();
        return Err(TrustError::OtherPrefix {
            name: name(),
            key: key.clone(),
            trusted_for: prefixes.join(", "),
        });
    }
    // Of several copies of a key, the one that knows that it was revoked is right.
    let unfit = |component: &Component<'_>| {
        component.fit.clone().err().map(|why| (component.fingerprint.clone(), why))
    };
    let revoked = matching.iter().filter_map(unfit).find(|(_, why)| *why == Unfit::Revoked);
    let none_fit = || match matching.iter().any(|component| component.fit.is_ok()) {
        true => None,
        false => matching.iter().find_map(unfit),
    };
    if let Some((key, why)) = revoked.or_else(none_fit) {
        return Err(TrustError::Unfit { name: name(), key, why });
    }
    matching.retain(|component| component.fit.is_ok());
    if matching.is_empty() {
        return Err(TrustError::UnknownKey { name: name(), key: issuer });
    }

    match config.typ {
        SignatureType::Binary => {}
        SignatureType::Text => {
            return Err(void("is over text, and an archive is none; sign it without --textmode".to_owned()));
        }
        other => return Err(void(format!("is of type {:#04x}, not over data", u8::from(other)))),
    }
    if let Some(weak) = weak_hash(config.hash_alg) {
        return Err(void(format!("proves nothing, since its hash is {weak}; sign with SHA-256 or better")));
    }
    let is_critical_notation = |packet: &pgp::packet::Subpacket| {
        packet.is_critical && matches!(packet.data, SubpacketData::Notation(_))
    };
    if config.hashed_subpackets().any(is_critical_notation) {
        return Err(void("has a critical notation, which nobody here understands".to_owned()));
    }
    let Some(created) = config.created().map(|created| u64::from(created.as_secs())) else {
        return Err(void("has no date".to_owned()));
    };
    if created > claim.now + CLOCK_SKEW_SECONDS {
        return Err(void(format!("is from the future, {}; is the clock right?", date(created))));
    }
    let end =
        signature.signature_expiration_time().map(|end| u64::from(end.as_secs())).filter(|end| *end > 0);
    if let Some(end) = end.map(|end| created + end).filter(|end| *end <= claim.now) {
        return Err(void(format!("has expired on {}", date(end))));
    }
    matching.retain(|key| (key.version == KeyVersion::V6) == (version == SignatureVersion::V6));
    if matching.is_empty() {
        return Err(void("is of another version than the key".to_owned()));
    }
    matching.retain(|key| key.created <= created);
    if matching.is_empty() {
        return Err(void("is older than the key".to_owned()));
    }
    Ok(Candidate { signature, config, keys: matching })
}

/// The key that a signature says it is by: its fingerprint, or else its ID.
fn issuer(signature: &Signature) -> Option<String> {
    let fingerprint = signature.issuer_fingerprint().first().map(|fingerprint| fingerprint.to_string());
    fingerprint.or_else(|| signature.issuer_key_id().first().map(|id| id.to_string()))
}

/// Whether a signature says that it is by this key.
fn names(signature: &Signature, fingerprint: &str, key_id: &str) -> bool {
    let fingerprints = signature.issuer_fingerprint();
    match fingerprints.is_empty() {
        false => fingerprints.iter().any(|named| named.to_string() == fingerprint),
        true => signature.issuer_key_id().iter().any(|id| id.to_string() == key_id),
    }
}

/// What each of the signatures was made over, were it over this archive.
fn hash(
    claim: &Claim<'_>,
    candidates: &[Candidate<'_>],
    aci: &mut dyn Read,
    stop: &Stop,
) -> Result<Vec<Vec<u8>>, TrustError> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let refused = |text: String| TrustError::Signature {
        name: claim.name.clone(),
        from: claim.signature.from.clone(),
        source: FormatError::Packets(text),
    };
    let mut hashers = Vec::new();
    for candidate in candidates {
        let hasher = candidate.config.hash_alg.new_hasher();
        let mut hasher = hasher.map_err(|error| refused(error.to_string()))?;
        if let SignatureVersionSpecific::V6 { salt } = &candidate.config.version_specific {
            hasher.update(salt);
        }
        hashers.push(hasher);
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if stop.is_raised() {
            return Err(TrustError::Stopped { name: claim.name.clone() });
        }
        match aci.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => hashers.iter_mut().for_each(|hasher| hasher.update(&buffer[..length])),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                let path = claim.name.as_str().into();
                return Err(TrustError::Io { act: "read the archive of", path, source });
            }
        }
    }
    let finished = candidates.iter().zip(hashers).map(|(candidate, mut hasher)| {
        let length = candidate.config.hash_signature_data(&mut hasher)?;
        hasher.update(&candidate.config.trailer(length)?);
        Ok(hasher.finalize().into_vec())
    });
    finished.collect::<Result<_, pgp::errors::Error>>().map_err(|error| refused(super::pgp_text(&error)))
}

fn is_good(candidate: &Candidate<'_>, hash: &[u8], key: &Component<'_>) -> bool {
    let Some(bytes) = candidate.signature.signature() else { return false };
    // RFC 9580, section 5.2.4: the first two bytes are there in clear, and must be right.
    candidate.signature.signed_hash_value().as_ref().map(<[u8; 2]>::as_slice) == hash.get(..2)
        && key.key.verify(candidate.config.hash_alg, hash, bytes).is_ok()
}

//! A public key and what it says of itself: who it is, until when it holds, and which of its parts may sign archives.
//!
//! rPGP reads packets and checks single signatures; what they mean together is decided here, as gpg does, but never
//! milder. A revocation counts whatever its reason and date, and also where its hash is weak. Of signatures that give
//! leave, the newest valid one counts; if the newest of a user ID and the newest of the key itself differ about the end
//! of the key, the earlier end does. Only signatures by the key itself count, so a designated revoker is not heard.
//!
//! SHA-1 is taken in what a key says of itself, and only there: keys from the time of Appc have nothing else, and to
//! forge such a statement one must find a second preimage, which nobody can; the fingerprint of such a key is SHA-1, too.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use keelblock_actors::error::quote;
use pgp::composed::{ArmorOptions, Deserializable, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{KeyDetails, KeyVersion, PublicParams, Tag, VerifyingKey};

use super::armor::{self, Kind};
use super::error::{FormatError, TrustError, Unfit};
use super::{CLOCK_SKEW_SECONDS, date};

/// Bytes of a file of keys that are read. 1 MiB: gpg's exports of keys with hundreds of signatures stay below 200 KiB;
/// of those with more, `gpg --export-options export-minimal` leaves what is read here.
pub const KEY_FILE_BYTES_MAX: usize = 1 << 20;
/// Keys in a file that are read. 64: a project has some signers.
pub const KEYS_MAX: usize = 64;
/// Bits that the modulus of an RSA key must have. 2048: NIST SP 800-131A.
pub const RSA_BITS_MIN: usize = 2048;

/// A public key with its subkeys and user IDs.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: SignedPublicKey,
    fingerprint: String,
}

/// A key that could have made a signature: the primary one, or a subkey.
pub(super) struct Component<'a> {
    pub(super) fingerprint: String,
    pub(super) key_id: String,
    pub(super) created: u64,
    pub(super) version: KeyVersion,
    pub(super) key: &'a dyn VerifyingKey,
    /// Whether it may sign.
    pub(super) fit: Result<(), Unfit>,
}

/// All keys of a text in armour.
///
/// # Errors
/// [`TrustError::Keys`] if there is none, or anything in it is something else.
pub fn read_keys(text: &[u8], from: &str) -> Result<Vec<Certificate>, TrustError> {
    let read = || {
        if text.len() > KEY_FILE_BYTES_MAX {
            return Err(FormatError::TooLong { bytes_max: KEY_FILE_BYTES_MAX });
        }
        let mut keys = Vec::new();
        for block in armor::blocks(text, KEYS_MAX)? {
            match block.kind {
                Kind::PublicKey => {}
                Kind::PrivateKey => {
                    return Err(FormatError::Malformed(
                        "it is a private key; give the public one (gpg --armor --export), and keep this one to yourself",
                    ));
                }
                Kind::Signature => {
                    return Err(FormatError::Malformed(
                        "it is a signature; give the public key of who made it",
                    ));
                }
                Kind::Other => return Err(FormatError::Malformed("it is something else in armour")),
            }
            let packets = |error: pgp::errors::Error| FormatError::Packets(super::pgp_text(&error));
            for key in SignedPublicKey::from_bytes_many(block.bytes.as_slice()).map_err(packets)? {
                if keys.len() == KEYS_MAX {
                    return Err(FormatError::TooMany { what: "keys", max: KEYS_MAX });
                }
                let key = key.map_err(packets)?;
                let fingerprint = key.fingerprint().to_string();
                keys.push(Certificate { key, fingerprint });
            }
        }
        if keys.is_empty() {
            return Err(FormatError::Malformed(
                "there is no key in it; of a revocation certificate, make it known to gpg and export the key again, or use \
                 keelblock appc untrust",
            ));
        }
        Ok(keys)
    };
    let keys = |source| TrustError::Keys { from: from.to_owned(), source };
    guarded(read).map_err(|panic| super::panicked(from, panic.as_ref()))?.map_err(keys)
}

/// Does something with what rPGP made of foreign bytes: if it fails, no more than that fails.
pub(super) fn guarded<T>(act: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(act))
}

/// What is said of a key that rPGP read and then failed on.
const FAILS: &str = "the reader of OpenPGP fails on it";

impl Certificate {
    /// The fingerprint of the primary key: hexadecimal, lower case.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// When the primary key says that it was made, in seconds since 1970.
    pub fn created(&self) -> u64 {
        u64::from(self.key.created_at().as_secs())
    }

    /// The user IDs that the key itself vouches for and has not revoked, cut: anybody may call themselves anything.
    pub fn user_ids(&self) -> Vec<String> {
        guarded(|| self.vouched()).unwrap_or_default()
    }

    fn vouched(&self) -> Vec<String> {
        let primary = &self.key.primary_key;
        let users = self.key.details.users.iter().filter(|user| {
            newest(&user.signatures, |signature| {
                signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
            })
            .is_some_and(|signature| signature.typ() != Some(SignatureType::CertRevocation))
        });
        users.map(|user| quote(&String::from_utf8_lossy(user.id.id()))).collect()
    }

    /// When the primary key ends, in seconds since 1970, if it does.
    pub fn expires(&self) -> Option<u64> {
        guarded(|| self.end(&self.statements())).unwrap_or_default()
    }

    fn end(&self, statements: &[&Signature]) -> Option<u64> {
        let ends = statements.iter().filter_map(|signature| signature.key_expiration_time());
        let seconds = ends.map(|end| u64::from(end.as_secs())).filter(|end| *end > 0).min()?;
        Some(self.created() + seconds)
    }

    /// Whether the primary key has taken itself back.
    pub fn is_revoked(&self) -> bool {
        let primary = &self.key.primary_key;
        let revocations = &self.key.details.revocation_signatures;
        guarded(|| revocations.iter().any(|signature| signature.verify_key(primary).is_ok())).unwrap_or(true)
    }

    /// Whether anything could be verified by it.
    ///
    /// # Errors
    /// Why nothing can.
    pub fn usable(&self, now: u64) -> Result<(), Unfit> {
        let components = guarded(|| self.components(now, |_, _| true));
        let components = components.map_err(|_| Unfit::Weak(FAILS.to_owned()))?;
        let mut why = Unfit::NotForSigning;
        for component in components {
            match component.fit {
                Ok(()) => return Ok(()),
                Err(Unfit::NotForSigning) => {}
                Err(unfit) => why = unfit,
            }
        }
        Err(why)
    }

    /// The key with all that belongs to it, in armour.
    pub(super) fn armored(&self) -> Result<Vec<u8>, FormatError> {
        let armored = guarded(|| self.key.to_armored_bytes(ArmorOptions::default()));
        let armored = armored.map_err(|_| FormatError::Malformed(FAILS))?;
        armored.map_err(|error| FormatError::Packets(super::pgp_text(&error)))
    }

    /// Those of its keys that are meant by fingerprint and ID, and whether they may have made a signature.
    pub(super) fn components(&self, now: u64, meant: impl Fn(&str, &str) -> bool) -> Vec<Component<'_>> {
        let is_meant = |component: &Component<'_>| meant(&component.fingerprint, &component.key_id);
        let primary = component(&self.key.primary_key);
        let subkeys = self.key.public_subkeys.iter().map(|subkey| (component(&subkey.key), Some(subkey)));
        let mut meant: Vec<_> = [(primary, None)]
            .into_iter()
            .chain(subkeys)
            .filter(|(component, _)| is_meant(component))
            .collect();
        if meant.is_empty() {
            // Nothing more need be known of it, and to know it takes time.
            return Vec::new();
        }
        let statements = self.statements();
        let standing = self.primary_standing(&statements, now);
        for (component, subkey) in &mut meant {
            component.fit = standing.clone().and_then(|()| match subkey {
                Some(subkey) => self.subkey_standing(subkey, now),
                None if signs(&statements) => Ok(()),
                None => Err(Unfit::NotForSigning),
            });
        }
        meant.into_iter().map(|(component, _)| component).collect()
    }

    /// The newest valid signatures by which the key speaks of itself as a whole.
    fn statements(&self) -> Vec<&Signature> {
        let primary = &self.key.primary_key;
        let direct = newest(&self.key.details.direct_signatures, |signature| {
            signature.typ() == Some(SignatureType::Key) && signature.verify_key(primary).is_ok()
        });
        let users = self.key.details.users.iter().filter_map(|user| {
            newest(&user.signatures, |signature| {
                signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
            })
            .filter(|signature| signature.typ() != Some(SignatureType::CertRevocation))
        });
        let user = users.max_by_key(|signature| signature.created());
        // RFC 9580, section 10.1.1: of a key of version 6, only the former counts, and must be there.
        let user = user.filter(|_| primary.version() != KeyVersion::V6);
        direct.into_iter().chain(user).collect()
    }

    fn primary_standing(&self, statements: &[&Signature], now: u64) -> Result<(), Unfit> {
        if self.is_revoked() {
            return Err(Unfit::Revoked);
        }
        strength(&self.key.primary_key)?;
        if self.created() > now + CLOCK_SKEW_SECONDS {
            return Err(Unfit::Future(date(self.created())));
        }
        if statements.is_empty() {
            return Err(Unfit::Unbound);
        }
        match self.end(statements) {
            Some(end) if end <= now => Err(Unfit::Expired(date(end))),
            _ => Ok(()),
        }
    }

    fn subkey_standing(&self, subkey: &SignedPublicSubKey, now: u64) -> Result<(), Unfit> {
        let primary = &self.key.primary_key;
        let of = |kind: SignatureType| {
            subkey.signatures.iter().filter(move |signature| {
                signature.typ() == Some(kind) && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
            })
        };
        if of(SignatureType::SubkeyRevocation).next().is_some() {
            return Err(Unfit::Revoked);
        }
        let bindings = of(SignatureType::SubkeyBinding).filter(|binding| holds(binding));
        let binding = bindings.max_by_key(|binding| binding.created()).ok_or(Unfit::Unbound)?;
        if !binding.key_flags().sign() {
            return Err(Unfit::NotForSigning);
        }
        // Else anybody could bind somebody else's key to their own.
        let back = binding.embedded_signature().filter(|back| holds(back));
        if back.is_none_or(|back| back.verify_primary_key_binding(&subkey.key, primary).is_err()) {
            return Err(Unfit::Unbound);
        }
        strength(&subkey.key)?;
        let created = u64::from(subkey.key.created_at().as_secs());
        if created > now + CLOCK_SKEW_SECONDS {
            return Err(Unfit::Future(date(created)));
        }
        match binding.key_expiration_time().map(|end| u64::from(end.as_secs())).filter(|end| *end > 0) {
            Some(end) if created + end <= now => Err(Unfit::Expired(date(created + end))),
            _ => Ok(()),
        }
    }
}

/// Whether a primary key is for signing data: as its newest statement with flags says, else yes.
fn signs(statements: &[&Signature]) -> bool {
    let flags = statements.iter().filter(|signature| has_key_flags(signature));
    flags.max_by_key(|signature| signature.created()).is_none_or(|signature| signature.key_flags().sign())
}

fn component<K: VerifyingKey>(key: &K) -> Component<'_> {
    Component {
        fingerprint: key.fingerprint().to_string(),
        key_id: key.legacy_key_id().to_string(),
        created: u64::from(key.created_at().as_secs()),
        version: key.version(),
        key,
        fit: Err(Unfit::Unbound),
    }
}

/// The newest signature that verifies and holds now.
fn newest(signatures: &[Signature], verifies: impl Fn(&Signature) -> bool) -> Option<&Signature> {
    let valid = signatures.iter().filter(|signature| holds(signature) && verifies(signature));
    valid.max_by_key(|signature| signature.created())
}

/// Whether a statement of a key about itself has a date that is past, no end that is, and a hash that proves something.
fn holds(signature: &Signature) -> bool {
    let now = super::now();
    let Some(created) = signature.created().map(|created| u64::from(created.as_secs())) else { return false };
    let end =
        signature.signature_expiration_time().map(|end| u64::from(end.as_secs())).filter(|end| *end > 0);
    let hash = signature.hash_alg();
    created <= now + CLOCK_SKEW_SECONDS
        && end.is_none_or(|end| created + end > now)
        && hash.is_some_and(|hash| hash == HashAlgorithm::Sha1 || super::weak_hash(hash).is_none())
}

fn has_key_flags(signature: &Signature) -> bool {
    signature.config().is_some_and(|config| {
        config.hashed_subpackets().any(|packet| matches!(packet.data, SubpacketData::KeyFlags(_)))
    })
}

/// Whether a key is of a kind, size and version with which nobody else can sign.
fn strength(key: &impl KeyDetails) -> Result<(), Unfit> {
    let weak = |why: String| Err(Unfit::Weak(why));
    if !matches!(key.version(), KeyVersion::V4 | KeyVersion::V6) {
        return weak(format!("it is of version {}", u8::from(key.version())));
    }
    match key.public_params() {
        params @ PublicParams::RSA(_) => {
            // It begins with the length of the modulus in bits.
            let mut bytes = Vec::new();
            let bits = match params.to_writer(&mut bytes) {
                Ok(()) => bytes.first_chunk::<2>().map_or(0, |bits| usize::from(u16::from_be_bytes(*bits))),
                Err(_) => 0,
            };
            if bits < RSA_BITS_MIN { weak(format!("it is RSA with {bits} bits")) } else { Ok(()) }
        }
        PublicParams::ECDSA(_)
        | PublicParams::EdDSALegacy(_)
        | PublicParams::Ed25519(_)
        | PublicParams::Ed448(_) => Ok(()),
        // FIPS 186-5 and RFC 9580 have both given it up.
        PublicParams::DSA(_) => weak("it is DSA".to_owned()),
        _ => Err(Unfit::NotForSigning),
    }
}

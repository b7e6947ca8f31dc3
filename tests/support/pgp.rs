//! OpenPGP keys and signatures made here, the same bytes every time: Ed25519, whose signatures need no randomness, of a
//! seed that the test gives.

#![allow(dead_code, reason = "each file of tests uses its part of this")]

use std::time::{SystemTime, UNIX_EPOCH};

use pgp::composed::{ArmorOptions, DetachedSignature, SignedKeyDetails, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::ed25519::{Mode, SecretKey as Ed25519};
use pgp::crypto::eddsa_legacy::SecretKey as Legacy;
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{
    KeyFlags, PubKeyInner, PublicKey, PublicSubkey, RevocationCode, SecretKey, SecretSubkey, Signature,
    SignatureConfig, SignatureType, Subpacket, SubpacketData, UserId,
};
use pgp::types::{
    Duration, KeyDetails, KeyVersion, Password, PlainSecretParams, PublicParams, SecretParams, SignedUser,
    SigningKey, Tag, Timestamp,
};

/// 2016-01-01, when there was Appc.
pub(crate) const BORN: u32 = 1_451_606_400;

/// Seconds since 1970, now.
pub(crate) fn now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// What is peculiar about a subkey.
#[derive(Clone)]
pub(crate) struct SubkeyShape {
    pub(crate) signs: bool,
    pub(crate) back_signature: bool,
    pub(crate) revoked: bool,
    pub(crate) expires: Option<u32>,
}

impl Default for SubkeyShape {
    fn default() -> Self {
        Self { signs: true, back_signature: true, revoked: false, expires: None }
    }
}

/// What is peculiar about a key.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) seed: u8,
    pub(crate) created: u32,
    /// Seconds after it was made.
    pub(crate) expires: Option<u32>,
    pub(crate) signs: bool,
    pub(crate) revoked: bool,
    pub(crate) user_id: String,
    pub(crate) self_signed: bool,
    pub(crate) subkey: Option<SubkeyShape>,
    /// Of version 6, as RFC 9580 has it.
    pub(crate) v6: bool,
}

impl Shape {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            seed,
            created: BORN,
            expires: None,
            signs: true,
            revoked: false,
            user_id: format!("Signer {seed} <signer{seed}@example.com>"),
            self_signed: true,
            subkey: None,
            v6: false,
        }
    }

    pub(crate) fn make(self) -> Key {
        let (public, params) = material(self.seed, self.created, self.v6);
        let primary = PublicKey::from_inner(public).unwrap();
        let secret = SecretKey::new(primary.clone(), params).unwrap();
        let mut more = vec![SubpacketData::KeyFlags(flags(self.signs))];
        more.extend(self.expires.map(|end| SubpacketData::KeyExpirationTime(Duration::from_secs(end))));
        let config = |kind, more| config(&secret, kind, HashAlgorithm::Sha256, self.created, more);
        let id = UserId::from_str(Default::default(), &self.user_id).unwrap();
        let certification = config(SignatureType::CertPositive, more.clone())
            .sign_certification(&secret, &primary, &Password::empty(), Tag::UserId, &id)
            .unwrap();
        let (mut users, mut direct) = (Vec::new(), Vec::new());
        if self.v6 && self.self_signed {
            let config = config(SignatureType::Key, more);
            direct.push(config.sign_key(&secret, &Password::empty(), &primary).unwrap());
        } else if self.self_signed {
            users.push(SignedUser::new(id, vec![certification]));
        }
        let mut revocations = Vec::new();
        if self.revoked {
            let reason = SubpacketData::RevocationReason(RevocationCode::KeyCompromised, "".into());
            let config = config(SignatureType::KeyRevocation, vec![reason]);
            revocations.push(config.sign_key(&secret, &Password::empty(), &primary).unwrap());
        }
        let subkey = self.subkey.as_ref().map(|shape| subkey(&self, shape, &secret, &primary));
        let (subsecret, subpublic) = subkey.unzip();
        let public = SignedPublicKey::new(
            primary,
            SignedKeyDetails::new(revocations, direct, users, vec![]),
            subpublic.into_iter().collect(),
        );
        Key { secret, subkey: subsecret, public }
    }
}

fn subkey(
    shape: &Shape,
    sub: &SubkeyShape,
    secret: &SecretKey,
    primary: &PublicKey,
) -> (SecretSubkey, SignedPublicSubKey) {
    let (public, params) = material(shape.seed ^ 0x80, shape.created, shape.v6);
    let public = PublicSubkey::from_inner(public).unwrap();
    let subsecret = SecretSubkey::new(public.clone(), params).unwrap();
    let nothing = Password::empty();
    let mut more = vec![SubpacketData::KeyFlags(flags(sub.signs))];
    more.extend(sub.expires.map(|end| SubpacketData::KeyExpirationTime(Duration::from_secs(end))));
    if sub.back_signature {
        let back =
            config(&subsecret, SignatureType::KeyBinding, HashAlgorithm::Sha256, shape.created, vec![]);
        let back = back.sign_primary_key_binding(&subsecret, &public, &nothing, primary).unwrap();
        more.push(SubpacketData::EmbeddedSignature(Box::new(back)));
    }
    let bind = |kind, more| {
        let config = config(secret, kind, HashAlgorithm::Sha256, shape.created, more);
        config.sign_subkey_binding(secret, primary, &nothing, &public).unwrap()
    };
    let mut signatures = vec![bind(SignatureType::SubkeyBinding, more)];
    if sub.revoked {
        let reason = SubpacketData::RevocationReason(RevocationCode::KeyRetired, "".into());
        signatures.push(bind(SignatureType::SubkeyRevocation, vec![reason]));
    }
    (subsecret, SignedPublicSubKey::new(public, signatures))
}

fn material(seed: u8, created: u32, v6: bool) -> (PubKeyInner, SecretParams) {
    if v6 {
        let secret = Ed25519::try_from_bytes([seed; 32], Mode::Ed25519).unwrap();
        let params = PublicParams::Ed25519((&secret).into());
        let (algorithm, created) = (PublicKeyAlgorithm::Ed25519, Timestamp::from_secs(created));
        let public = PubKeyInner::new(KeyVersion::V6, algorithm, created, None, params).unwrap();
        return (public, SecretParams::Plain(PlainSecretParams::Ed25519(secret)));
    }
    let secret = Ed25519::try_from_bytes([seed; 32], Mode::EdDSALegacy).unwrap();
    let params = PublicParams::EdDSALegacy((&secret).into());
    let algorithm = PublicKeyAlgorithm::EdDSALegacy;
    let created = Timestamp::from_secs(created);
    let public = PubKeyInner::new(KeyVersion::V4, algorithm, created, None, params).unwrap();
    (public, SecretParams::Plain(PlainSecretParams::EdDSALegacy(Legacy::Ed25519(secret))))
}

fn flags(signs: bool) -> KeyFlags {
    let mut flags = KeyFlags::default();
    flags.set_certify(true);
    flags.set_sign(signs);
    flags
}

fn config(
    key: &impl SigningKey,
    kind: SignatureType,
    hash: HashAlgorithm,
    created: u32,
    more: Vec<SubpacketData>,
) -> SignatureConfig {
    let v6 = key.version() == KeyVersion::V6;
    let mut config = match v6 {
        false => SignatureConfig::v4(kind, key.algorithm(), hash),
        true => SignatureConfig::v6_with_salt(kind, key.algorithm(), hash, vec![7; hash.salt_len().unwrap()]),
    };
    let always = [
        SubpacketData::IssuerFingerprint(key.fingerprint()),
        SubpacketData::SignatureCreationTime(Timestamp::from_secs(created)),
    ];
    config.hashed_subpackets =
        always.into_iter().chain(more).map(|data| Subpacket::regular(data).unwrap()).collect();
    if !v6 {
        config.unhashed_subpackets =
            vec![Subpacket::regular(SubpacketData::IssuerKeyId(key.legacy_key_id())).unwrap()];
    }
    config
}

/// A key with its secret.
pub(crate) struct Key {
    pub(crate) secret: SecretKey,
    pub(crate) subkey: Option<SecretSubkey>,
    pub(crate) public: SignedPublicKey,
}

/// How a signature is made.
#[derive(Clone)]
pub(crate) struct Manner {
    pub(crate) kind: SignatureType,
    pub(crate) hash: HashAlgorithm,
    pub(crate) created: u32,
    pub(crate) more: Vec<SubpacketData>,
    /// What must be understood.
    pub(crate) critical: Vec<SubpacketData>,
    pub(crate) by_subkey: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            kind: SignatureType::Binary,
            hash: HashAlgorithm::Sha512,
            created: BORN + 86_400,
            more: Vec::new(),
            critical: Vec::new(),
            by_subkey: false,
        }
    }
}

impl Key {
    pub(crate) fn fingerprint(&self) -> String {
        self.public.fingerprint().to_string()
    }

    pub(crate) fn armored(&self) -> String {
        self.public.to_armored_string(ArmorOptions::default()).unwrap()
    }

    /// A detached signature of today's manners, in armour.
    pub(crate) fn sign(&self, data: &[u8]) -> String {
        armored(self.signature(data, Manner::default()))
    }

    pub(crate) fn sign_as(&self, data: &[u8], manner: Manner) -> String {
        armored(self.signature(data, manner))
    }

    pub(crate) fn signature(&self, data: &[u8], manner: Manner) -> Signature {
        fn sign(key: &impl SigningKey, data: &[u8], manner: Manner) -> Signature {
            let mut config = config(key, manner.kind, manner.hash, manner.created, manner.more);
            let critical = manner.critical.into_iter().map(|data| Subpacket::critical(data).unwrap());
            config.hashed_subpackets.extend(critical);
            config.sign(key, &Password::empty(), data).unwrap()
        }
        match &self.subkey {
            Some(subkey) if manner.by_subkey => sign(subkey, data, manner),
            _ => sign(&self.secret, data, manner),
        }
    }
}

pub(crate) fn armored(signature: Signature) -> String {
    DetachedSignature::new(signature).to_armored_string(ArmorOptions::default()).unwrap()
}

//! The fuzz target `signature`.

use keelblock_actors::stop::Stop;

use super::store::{Scope, StoredKey};
use super::{Certificate, TrustError, now, read_keys, verify};
use crate::base64;
use crate::provider::appc::ports::Signature;

/// A key, an archive, and the signature of the former over the latter; tests make them.
pub const SIGNED: (&str, &[u8], &str) =
    (include_str!("fuzzing/key.asc"), b"an archive", include_str!("fuzzing/signature.asc"));

/// Signatures and keys that anybody may have made up, as text (`s`, `k`) or as what is in the armour (`S`, `K`).
///
/// A signature is never good for two archives. A key never verifies what another key of its fingerprint would not, and is
/// the same after it was stored.
pub(crate) fn signature(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let armored = |name: &str| {
        format!("-----BEGIN PGP {name}-----\n\n{}\n-----END PGP {name}-----\n", base64::encode(rest))
            .into_bytes()
    };
    match kind {
        b's' => signed(rest.to_vec()),
        b'k' => keys(rest),
        b'K' => keys(&armored("PUBLIC KEY BLOCK")),
        _ => signed(armored("SIGNATURE")),
    }
}

fn signed(signature: Vec<u8>) {
    let keys = read_keys(SIGNED.0.as_bytes(), "the target").expect("the key of the target");
    let (mut aci, stored) = (SIGNED.1.to_vec(), stored(keys));
    let good = verified(&signature, &aci, &stored);
    if let Ok(key) = &good {
        assert_eq!(key, stored[0].certificate.fingerprint());
    }
    aci.push(b'!');
    let longer = verified(&signature, &aci, &stored);
    aci.pop();
    aci[0] ^= 1;
    let changed = verified(&signature, &aci, &stored);
    let accepted = [&good, &longer, &changed].into_iter().filter(|verified| verified.is_ok()).count();
    assert!(accepted <= 1, "a signature of two archives");
    assert!(longer.is_err() && changed.is_err(), "a signature that the key did not make");
}

fn keys(text: &[u8]) {
    let Ok(keys) = read_keys(text, "the fuzzer") else { return };
    let now = now();
    for key in &keys {
        let again = key.armored().expect("what was read can be written");
        // What rPGP leaves out when it writes, it may not miss when it reads again.
        if let Ok(again) = read_keys(&again, "the store") {
            assert_eq!(again.len(), 1);
            assert_eq!(again[0].fingerprint(), key.fingerprint());
            assert_eq!(again[0].is_revoked(), key.is_revoked());
            assert_eq!(again[0].expires(), key.expires());
            assert_eq!(again[0].user_ids(), key.user_ids());
            assert_eq!(again[0].usable(now), key.usable(now));
        }
        assert!(key.fingerprint().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    let right = read_keys(SIGNED.0.as_bytes(), "the target").expect("the key of the target");
    if let Ok(by) = verified(SIGNED.2.as_bytes(), SIGNED.1, &stored(keys)) {
        assert_eq!(by, right[0].fingerprint(), "another key verifies it");
    }
}

fn stored(keys: Vec<Certificate>) -> Vec<StoredKey> {
    let stored = |certificate| StoredKey { scope: Scope::Root, certificate, path: "key".into() };
    keys.into_iter().map(stored).collect()
}

fn verified(signature: &[u8], mut aci: &[u8], keys: &[StoredKey]) -> Result<String, TrustError> {
    let name = "example.com/app".parse().expect("a name");
    let signature = Signature { bytes: signature.to_vec(), from: "the fuzzer".to_owned() };
    let claim = verify::Claim { name: &name, signature: &signature, now: now() };
    verify::verify(&claim, &mut aci, keys, &Stop::default())
}

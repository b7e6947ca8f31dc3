//! What a key is good for.

use keelblock::provider::appc::trust::{KEY_FILE_BYTES_MAX, KEYS_MAX, Unfit, read_keys};

use crate::support::pgp::{BORN, Manner, Shape, SubkeyShape, now};
use crate::{Bench, NAME, refused};

const ACI: &[u8] = b"an archive";

/// Whether what a key of this shape signs is accepted, and whether the key says so before.
#[track_caller]
fn check(shape: Shape, manner: Manner) -> Result<(), String> {
    let (bench, key) = (Bench::new(), shape.make());
    bench.trust(None, &key.armored());
    let checked = bench.check(ACI, &key.sign_as(ACI, manner));
    let usable = read_keys(key.armored().as_bytes(), "x").unwrap()[0].usable(now().into());
    if checked.is_ok() {
        usable.expect("what verifies something can be trusted");
    }
    checked
}

fn manner() -> Manner {
    Manner::default()
}

#[test]
fn keys_that_are_over_or_were_taken_back_verify_nothing() {
    check(Shape { expires: Some(4_000_000_000 - BORN), ..Shape::new(1) }, manner()).unwrap();
    // Also what they signed while they were good: nobody knows when a date was written.
    refused(
        check(Shape { expires: Some(86_400 * 365), ..Shape::new(1) }, manner()),
        "has expired on 2016-12-31",
    );
    refused(check(Shape { revoked: true, ..Shape::new(1) }, manner()), "has been revoked");
    let created = now() + 86_400;
    refused(check(Shape { created, ..Shape::new(1) }, manner()), "in the future");
    refused(check(Shape { signs: false, ..Shape::new(1) }, manner()), "not for signing data");
}

#[test]
fn what_a_key_says_of_itself_must_be_signed_by_itself() {
    // Nothing.
    let bare = Shape { self_signed: false, ..Shape::new(1) };
    refused(check(bare, manner()), "no valid self-signature");
    // By somebody else.
    let (mut key, other) = (Shape::new(1).make(), Shape::new(2).make());
    key.public.details.users = other.public.details.users.clone();
    let bench = Bench::new();
    bench.trust(None, &key.armored());
    refused(bench.check(ACI, &key.sign(ACI)), "no valid self-signature");
    let stored = &read_keys(key.armored().as_bytes(), "x").unwrap()[0];
    assert!(stored.user_ids().is_empty(), "nobody vouches for it");
}

#[test]
fn somebody_else_cannot_revoke_a_key() {
    let (mut key, other) = (Shape::new(1).make(), Shape { revoked: true, ..Shape::new(2) }.make());
    key.public.details.revocation_signatures = other.public.details.revocation_signatures.clone();
    let bench = Bench::new();
    bench.trust(None, &key.armored());
    bench.check(ACI, &key.sign(ACI)).unwrap();
}

#[test]
fn of_two_copies_of_a_key_the_revoked_one_counts() {
    let bench = Bench::new();
    let key = Shape::new(1).make();
    bench.trust(Some(NAME), &key.armored());
    bench.check(ACI, &key.sign(ACI)).unwrap();
    bench.trust(None, &Shape { revoked: true, ..Shape::new(1) }.make().armored());
    refused(bench.check(ACI, &key.sign(ACI)), "has been revoked");
}

#[test]
fn subkeys_sign_if_both_keys_say_so() {
    let by_subkey = || Manner { by_subkey: true, ..manner() };
    let shape = |subkey: SubkeyShape| Shape { signs: false, subkey: Some(subkey), ..Shape::new(1) };
    check(shape(SubkeyShape::default()), by_subkey()).unwrap();
    // The primary key of such a pair is not for signing.
    refused(check(shape(SubkeyShape::default()), manner()), "not for signing data");
    let signs = SubkeyShape { signs: false, ..SubkeyShape::default() };
    refused(check(shape(signs), by_subkey()), "not for signing data");
    let back_signature = SubkeyShape { back_signature: false, ..SubkeyShape::default() };
    refused(check(shape(back_signature), by_subkey()), "no valid self-signature");
    let revoked = SubkeyShape { revoked: true, ..SubkeyShape::default() };
    refused(check(shape(revoked), by_subkey()), "has been revoked");
    let expires = SubkeyShape { expires: Some(86_400), ..SubkeyShape::default() };
    refused(check(shape(expires), by_subkey()), "has expired on 2016-01-02");
    let dead = Shape { revoked: true, ..shape(SubkeyShape::default()) };
    refused(check(dead, by_subkey()), "has been revoked");
}

#[test]
fn keys_of_version_6_sign_as_those_of_version_4() {
    let shape = || Shape { v6: true, ..Shape::new(1) };
    check(shape(), manner()).unwrap();
    let subkey = || Shape { signs: false, subkey: Some(SubkeyShape::default()), ..shape() };
    check(subkey(), Manner { by_subkey: true, ..manner() }).unwrap();
    refused(check(subkey(), manner()), "not for signing data");
    refused(check(Shape { revoked: true, ..shape() }, manner()), "has been revoked");
    refused(check(Shape { expires: Some(86_400), ..shape() }, manner()), "has expired");
    refused(check(Shape { self_signed: false, ..shape() }, manner()), "no valid self-signature");
    let key = shape().make();
    assert_eq!(key.fingerprint().len(), 64);
    let bench = Bench::new();
    bench.trust(None, &key.armored());
    refused(bench.check(b"another", &key.sign(ACI)), "was changed");
}

#[test]
fn nobody_can_take_the_subkey_of_somebody_else() {
    let theirs = Shape { subkey: Some(SubkeyShape::default()), ..Shape::new(1) }.make();
    let mut thief = Shape::new(2).make();
    thief.public.public_subkeys = theirs.public.public_subkeys.clone();
    let bench = Bench::new();
    bench.trust(None, &thief.armored());
    let signature = theirs.sign_as(ACI, Manner { by_subkey: true, ..manner() });
    refused(bench.check(ACI, &signature), "no valid self-signature");
}

#[test]
fn files_of_keys_are_read_whole_or_not_at_all() {
    let (one, two) = (Shape::new(1).make(), Shape::new(2).make());
    let both = format!("{}{}", one.armored(), two.armored());
    let keys = read_keys(both.as_bytes(), "x").unwrap();
    assert_eq!(
        keys.iter().map(|key| key.fingerprint()).collect::<Vec<_>>(),
        [one.fingerprint(), two.fingerprint()]
    );
    assert_eq!(keys[0].user_ids(), ["Signer 1 <signer1@example.com>"]);
    assert_eq!((keys[0].created(), keys[0].expires()), (BORN.into(), None));
    let fails = |text: &str, says: &str| {
        let error = keelblock_actors::error::chain(&read_keys(text.as_bytes(), "the file").unwrap_err());
        assert!(error.contains(says) && error.contains("the file"), "{error}");
    };
    fails("", "not in ASCII armour");
    fails(&both[..both.len() - 40], "cut off");
    fails(&one.sign(ACI), "it is a signature");
    fails(&one.armored().replace("PUBLIC KEY", "PRIVATE KEY"), "private key");
    fails(&one.armored().repeat(KEYS_MAX + 1), "more than 64");
    fails(&"x".repeat(KEY_FILE_BYTES_MAX + 1), "longer than");
    let revocation = Shape { revoked: true, ..Shape::new(1) }.make().public.details.revocation_signatures;
    let only = crate::support::pgp::armored(revocation[0].clone()).replace("SIGNATURE", "PUBLIC KEY BLOCK");
    fails(&only, "keelblock appc untrust");
}

#[test]
fn keys_say_beforehand_that_they_verify_nothing() {
    let usable = |shape: Shape| {
        let key = shape.make();
        read_keys(key.armored().as_bytes(), "x").unwrap()[0].usable(now().into())
    };
    assert_eq!(usable(Shape { revoked: true, ..Shape::new(1) }), Err(Unfit::Revoked));
    assert_eq!(usable(Shape { signs: false, ..Shape::new(1) }), Err(Unfit::NotForSigning));
    assert!(matches!(usable(Shape { expires: Some(1), ..Shape::new(1) }), Err(Unfit::Expired(_))));
    let subkey = Some(SubkeyShape { revoked: true, ..SubkeyShape::default() });
    assert_eq!(usable(Shape { signs: false, subkey, ..Shape::new(1) }), Err(Unfit::Revoked));
}

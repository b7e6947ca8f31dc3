//! Signatures over archives, by keys that are right.

use keelblock::config::AppcVerify;
use keelblock::provider::appc::ports::{Signature, SignatureCheck};
use keelblock::provider::appc::trust::{SIGNATURE_BYTES_MAX, SIGNATURES_MAX, Signatures, TrustError};
use keelblock_actors::stop::Stop;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Notation, SignatureType, SubpacketData};
use pgp::types::Duration;

use crate::support::pgp::{BORN, Key, Manner, Shape, armored, now};
use crate::{Bench, NAME, refused};

const ACI: &[u8] = b"an archive of some bytes, which need not be one for this";

fn signer() -> (Bench, Key) {
    let (bench, key) = (Bench::new(), Shape::new(1).make());
    bench.trust(Some(NAME), &key.armored());
    (bench, key)
}

#[test]
fn a_good_signature_by_a_trusted_key_is_accepted() {
    let (bench, key) = signer();
    bench.check(ACI, &key.sign(ACI)).unwrap();
    // Whatever stands around it, and however its lines end.
    bench.check(ACI, &format!("mail\n{}bye\n", key.sign(ACI).replace('\n', "\r\n"))).unwrap();
    for hash in [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha3_256] {
        bench.check(ACI, &key.sign_as(ACI, Manner { hash, ..Manner::default() })).unwrap();
    }
    // Nothing, and more than one buffer.
    bench.check(b"", &key.sign(b"")).unwrap();
    let large = vec![7; (1 << 20) + 1];
    bench.check(&large, &key.sign(&large)).unwrap();
}

#[test]
fn an_archive_that_was_changed_anywhere_is_refused() {
    let (bench, key) = signer();
    let aci: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let signature = key.sign(&aci);
    for at in [0, aci.len() / 2, aci.len() - 1] {
        let mut changed = aci.clone();
        changed[at] ^= 1;
        refused(bench.check(&changed, &signature), "was changed");
    }
    let appended = [aci.as_slice(), b"\0"].concat();
    refused(bench.check(&appended, &signature), "was changed");
    refused(bench.check(&aci[..aci.len() - 1], &signature), "was changed");
    refused(bench.check(&aci[1..], &signature), "was changed");
    bench.check(&aci, &signature).unwrap();
}

#[test]
fn a_signature_that_was_changed_in_any_byte_is_refused_or_means_the_same() {
    let (bench, key) = signer();
    let signature = key.signature(ACI, Manner::default());
    let mut bytes = Vec::new();
    pgp::packet::PacketTrait::to_writer_with_header(&signature, &mut bytes).unwrap();
    let armor = |bytes: &[u8]| {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(bytes);
        format!("-----BEGIN PGP SIGNATURE-----\n\n{body}\n-----END PGP SIGNATURE-----\n")
    };
    bench.check(ACI, &armor(&bytes)).unwrap();
    // What no signature covers: the packet's own head, and the ID of the key in the unhashed part.
    let id = key.public.primary_key.legacy_key_id_bytes();
    // It ends the fingerprint in the hashed part, too.
    let unhashed = bytes.windows(8).collect::<Vec<_>>().iter().rposition(|window| **window == id).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let checked = bench.check(ACI, &armor(&changed));
        let covered = at > 2 && !(unhashed - 4..unhashed + 8).contains(&at);
        assert!(checked.is_err() || !covered, "byte {at} of {}", bytes.len());
    }
}

trait LegacyId {
    fn legacy_key_id_bytes(&self) -> [u8; 8];
}

impl<K: pgp::types::KeyDetails> LegacyId for K {
    fn legacy_key_id_bytes(&self) -> [u8; 8] {
        self.legacy_key_id().as_ref().try_into().unwrap()
    }
}

#[test]
fn what_is_no_signature_is_said_to_be_none() {
    let (bench, key) = signer();
    let good = key.sign(ACI);
    refused(bench.check(ACI, ""), "not in ASCII armour");
    refused(bench.check(ACI, "<html>404</html>"), "not in ASCII armour");
    let cut = &good[..good.len() / 2];
    refused(bench.check(ACI, cut), "cut off");
    let lines: Vec<_> = good.lines().collect();
    // The end is there, but not the middle.
    let hollow = format!("{}\n\n{}\n", lines[0], lines[lines.len() - 1]);
    refused(bench.check(ACI, &hollow), "no signature in it");
    refused(bench.check(ACI, &key.armored()), "something else than a signature");
    let long = format!("{}{good}", "x\n".repeat(SIGNATURE_BYTES_MAX / 2));
    refused(bench.check(ACI, &long), "longer than 65536 bytes");
    let many = good.repeat(SIGNATURES_MAX + 1);
    refused(bench.check(ACI, &many), "more than 16");
    bench.check(ACI, &good.repeat(SIGNATURES_MAX)).unwrap();
}

#[test]
fn signatures_that_prove_nothing_are_refused() {
    let (bench, key) = signer();
    let sign = |manner: Manner| key.sign_as(ACI, manner);
    let manner = Manner::default;
    refused(bench.check(ACI, &sign(Manner { kind: SignatureType::Text, ..manner() })), "over text");
    let more = vec![SubpacketData::SignatureExpirationTime(Duration::from_secs(60))];
    refused(bench.check(ACI, &sign(Manner { more, ..manner() })), "has expired on 2016-01-02");
    let created = now() + 86_400;
    refused(bench.check(ACI, &sign(Manner { created, ..manner() })), "from the future");
    refused(bench.check(ACI, &sign(Manner { created: BORN - 1, ..manner() })), "older than the key");
    let notation = Notation { readable: true, name: "a@b".into(), value: "c".into() };
    let notation = SubpacketData::Notation(notation);
    let critical = vec![notation.clone()];
    refused(bench.check(ACI, &sign(Manner { critical, ..manner() })), "critical notation");
    bench.check(ACI, &sign(Manner { more: vec![notation], ..manner() })).unwrap();
    // One that holds for a while yet, made by a clock that is a little ahead.
    let more = vec![SubpacketData::SignatureExpirationTime(Duration::from_secs(100_000_000))];
    bench.check(ACI, &sign(Manner { more, created: now() + 60, ..manner() })).unwrap();
}

#[test]
fn one_good_signature_is_enough_unless_another_trusted_one_is_bad() {
    let (bench, key) = signer();
    let (second, stranger) = (Shape::new(2).make(), Shape::new(3).make());
    bench.trust(Some(NAME), &second.armored());
    let good = key.sign(ACI);
    for beside in [
        stranger.sign(ACI),
        stranger.sign(b"other"),
        second.sign(ACI),
        key.sign_as(ACI, Manner { created: BORN - 1, ..Manner::default() }),
    ] {
        bench.check(ACI, &format!("{good}{beside}")).unwrap();
        bench.check(ACI, &format!("{beside}{good}")).unwrap();
    }
    let bad = second.sign(b"other");
    refused(bench.check(ACI, &format!("{good}{bad}")), &second.fingerprint());
    refused(bench.check(ACI, &format!("{bad}{good}")), "was changed");
    // Two in one block of armour.
    let mut both = Vec::new();
    for signature in [stranger.signature(ACI, Manner::default()), key.signature(ACI, Manner::default())] {
        pgp::packet::PacketTrait::to_writer_with_header(&signature, &mut both).unwrap();
    }
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(both);
    bench
        .check(ACI, &format!("-----BEGIN PGP SIGNATURE-----\n\n{body}\n-----END PGP SIGNATURE-----\n"))
        .unwrap();
}

#[test]
fn the_signature_of_another_key_does_not_pass_for_that_of_a_trusted_one() {
    let (bench, key) = signer();
    let stranger = Shape::new(3).make();
    refused(bench.check(ACI, &stranger.sign(ACI)), &stranger.fingerprint());
    refused(bench.check(ACI, &stranger.sign(ACI)), "keelblock appc trust --prefix example.com/app FILE");
    // It says that the trusted key made it.
    let mut config = stranger.signature(ACI, Manner::default()).config().unwrap().clone();
    let theirs = key.signature(ACI, Manner::default());
    config.hashed_subpackets = theirs.config().unwrap().hashed_subpackets.clone();
    config.unhashed_subpackets = theirs.config().unwrap().unhashed_subpackets.clone();
    let forged = config.sign(&stranger.secret, &pgp::types::Password::empty(), ACI).unwrap();
    refused(bench.check(ACI, &armored(forged)), "was changed");
}

#[test]
fn policies_say_what_a_missing_signature_means() {
    let (mut bench, key) = signer();
    let unsigned = |bench: &Bench| bench.check_as(NAME, ACI, None);
    unsigned(&bench).unwrap();
    bench.policy = AppcVerify::Required;
    refused(unsigned(&bench), "--appc_verify=required");
    bench.check(ACI, &key.sign(ACI)).unwrap();
    refused(bench.check(b"other", &key.sign(ACI)), "was changed");
    bench.policy = AppcVerify::None;
    unsigned(&bench).unwrap();
    bench.check(b"other", "whatever").unwrap();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let wants = |policy| Signatures::new(policy, bench.store(), log.clone()).wants_signature();
    assert!(wants(AppcVerify::Required) && wants(AppcVerify::IfPresent) && !wants(AppcVerify::None));
}

#[test]
fn whoever_does_not_want_it_any_more_stops_it() {
    let (bench, key) = signer();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let signatures = Signatures::new(AppcVerify::Required, bench.store(), log);
    let signature = Signature { bytes: key.sign(ACI).into_bytes(), from: "here".to_owned() };
    let stop = Stop::default();
    stop.raise();
    let error = signatures.check(&NAME.parse().unwrap(), &mut &ACI[..], Some(&signature), &stop).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(TrustError::Stopped { .. })), "{error}");
}

#[test]
fn the_fuzz_target_has_a_key_and_its_signature() {
    let key = Shape::new(1).make();
    let (armored, aci, signature) = keelblock::fuzzing::SIGNED;
    if std::env::var_os("KEELBLOCK_WRITE_SIGNED").is_some() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/provider/appc/trust/fuzzing");
        std::fs::write(dir.join("key.asc"), key.armored()).unwrap();
        std::fs::write(dir.join("signature.asc"), key.sign(aci)).unwrap();
        return;
    }
    assert_eq!((armored, signature), (key.armored().as_str(), key.sign(aci).as_str()));
}

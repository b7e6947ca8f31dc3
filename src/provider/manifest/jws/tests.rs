//! Signatures as registries make them, and as enemies do.

use ::base64::Engine as _;
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::schema1::tests::{blob, chain_of, manifest};
use super::super::{
    DOCKER_MANIFEST, LIST_MAX, ManifestError, Parsed, SCHEMA1_MANIFEST, SCHEMA1_SIGNED, parse as parse_any,
    signed_part,
};
use super::*;

fn base64url(bytes: &[u8]) -> String {
    ::base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn protected(length: usize, tail: &str) -> Value {
    let header = json!({"formatLength": length, "formatTail": base64url(tail.as_bytes()), "time": "2015"});
    json!({"header": {"alg": "ES256"}, "signature": "x", "protected": base64url(header.to_string().as_bytes())})
}

/// As libtrust does it: the signatures go in before the last bracket.
fn signed_with(payload: &str, signatures: &Value) -> Vec<u8> {
    let length = payload.rfind("\n}").unwrap();
    let (head, tail) = payload.split_at(length);
    format!("{head},\n   \"signatures\": {signatures}{tail}").into_bytes()
}

pub(in super::super) fn signed(document: &Value, signatures: usize) -> (String, Vec<u8>) {
    let payload = serde_json::to_string_pretty(document).unwrap();
    let one = protected(payload.rfind("\n}").unwrap(), "\n}");
    let whole = signed_with(&payload, &json!(vec![one; signatures]));
    (payload, whole)
}

fn bad_signature(document: Vec<u8>) -> &'static str {
    match signed_part(document, Some(SCHEMA1_SIGNED)) {
        Err(ManifestError::Schema1 { source: Schema1Error::Signature { why, .. } }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn base64url_is_that_of_the_rfc_with_and_without_padding() {
    for (coded, text) in
        [("", ""), ("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9vYmFy", "foobar")]
    {
        assert_eq!(base64::decode_url(coded).as_deref(), Some(text.as_bytes()));
        let padded = format!("{coded}{}", "=".repeat(coded.len().next_multiple_of(4) - coded.len()));
        assert_eq!(base64::decode_url(&padded).as_deref(), Some(text.as_bytes()), "{padded}");
    }
    assert_eq!(base64::decode_url("-_8"), Some(vec![0xfb, 0xff]));
    for wrong in ["Z", "Zm9vY", "+/8", "Zm 8", "Zg==Zg==", "=", "====", "Zm9\n", "é"] {
        assert_eq!(base64::decode_url(wrong), None, "{wrong}");
    }
}

#[test]
fn what_is_signed_is_the_payload_and_nothing_else_is_read() {
    let document = manifest(&chain_of(2));
    for signatures in [1, 3] {
        let (payload, whole) = signed(&document, signatures);
        assert_ne!(payload.as_bytes(), whole);
        for media_type in [SCHEMA1_SIGNED, SCHEMA1_MANIFEST, "application/json", "text/plain; charset=utf-8"]
        {
            let part = signed_part(whole.clone(), Some(media_type)).unwrap();
            assert_eq!(part, payload.as_bytes(), "{media_type}");
            let Parsed::Schema1(found) = parse_any(&part, Some(media_type)).unwrap() else { panic!() };
            assert_eq!(found.layers, [1, 2].map(blob));
        }
        // Whoever forgets to take it apart does not get far.
        let forgotten = parse_any(&whole, None).unwrap_err();
        assert!(chain(&forgotten).contains("has signatures itself"), "{}", chain(&forgotten));
    }
    // Other layers after the payload are nobody's.
    let (payload, _) = signed(&document, 1);
    let one = protected(payload.rfind("\n}").unwrap(), "\n}");
    let text = String::from_utf8(signed_with(&payload, &json!([one]))).unwrap();
    let spoilt = text.replacen(",\n   \"signatures\"", ",\n  \"x\": [1],\n   \"signatures\"", 1);
    assert_eq!(signed_part(spoilt.into_bytes(), Some(SCHEMA1_SIGNED)).unwrap(), payload.as_bytes());
}

/// As a registry sent it: in one line, so that the tail is a single bracket. The digest is the one it stated.
#[test]
fn a_manifest_signed_by_a_registry_has_the_digest_that_the_registry_states() {
    let whole = include_bytes!("../../../../fixtures/manifests/schema1-signed.json").to_vec();
    let part = signed_part(whole, Some(SCHEMA1_SIGNED)).unwrap();
    let stated = "sha256:38b84667e09d387cde0211662e2ebd8b16425e6f2b8033658aa7426536ab6c86";
    assert_eq!(Digest::of(&part).to_string(), stated);
    let Parsed::Schema1(found) = parse_any(&part, Some(SCHEMA1_SIGNED)).unwrap() else { panic!() };
    assert_eq!(found.layers.len(), 2, "the third is empty");
    assert!(found.layers[0].hex().starts_with("c8137fcd") && found.layers[1].hex().starts_with("2283e5ff"));
    assert_eq!(found.runtime.cmd, ["x"]);
}

#[test]
fn what_is_not_signed_stays_as_it_is() {
    let plain = serde_json::to_vec(&manifest(&chain_of(2))).unwrap();
    for media_type in [None, Some(SCHEMA1_MANIFEST), Some("application/json")] {
        assert_eq!(signed_part(plain.clone(), media_type).unwrap(), plain);
    }
    let promised = signed_part(plain.clone(), Some(SCHEMA1_SIGNED));
    assert_eq!(promised, Err(Schema1Error::Unsigned.into()));
    // Other formats are not taken apart, whatever fields they have.
    let (_, whole) = signed(&manifest(&chain_of(2)), 1);
    assert_eq!(signed_part(whole.clone(), Some(DOCKER_MANIFEST)).unwrap(), whole);
    let second = String::from_utf8(whole).unwrap().replace("\"schemaVersion\": 1", "\"schemaVersion\": 2");
    assert_eq!(signed_part(second.clone().into_bytes(), None).unwrap(), second.into_bytes());
    for text in ["", "{", "[]", "null", "{\"schemaVersion\": 1, \"schemaVersion\": 1}"] {
        assert_eq!(signed_part(text.into(), None).unwrap(), text.as_bytes());
    }
    let deep = format!("{{\"schemaVersion\": 1, \"signatures\": {}", "[".repeat(1_000_000));
    assert_eq!(signed_part(deep.clone().into_bytes(), None).unwrap(), deep.into_bytes());
}

#[test]
fn signatures_that_do_not_say_what_they_sign_are_refused() {
    let payload = serde_json::to_string_pretty(&manifest(&chain_of(2))).unwrap();
    let length = payload.rfind("\n}").unwrap();
    let with = |signatures: Value| signed_with(&payload, &signatures);
    let header = |header: &str| json!([{"protected": base64url(header.as_bytes())}]);
    let whole = with(json!([protected(length, "\n}")])).len();
    for length in [whole + 1, usize::MAX] {
        assert_eq!(
            bad_signature(with(json!([protected(length, "\n}")]))),
            "its formatLength is more than the document has"
        );
    }
    let tail = |tail: &str| header(&format!("{{\"formatLength\": {length}, \"formatTail\": {tail}}}"));
    for bad in ["\"+/==\"", "\"A\"", "\"Cn0===\"", "\"\u{fc}\""] {
        assert_eq!(bad_signature(with(tail(bad))), "its formatTail is no base64url", "{bad}");
    }
    for bad in [
        "{}",
        "[]",
        "",
        "{\"formatLength\": -1, \"formatTail\": \"\"}",
        "{\"formatLength\": 1.5, \"formatTail\": \"\"}",
        "{\"formatLength\": 18446744073709551616, \"formatTail\": \"\"}",
        "{\"formatLength\": 3}",
        "{\"formatTail\": \"\"}",
    ] {
        assert_eq!(
            bad_signature(with(header(bad))),
            "its protected header has no formatLength and formatTail",
            "{bad}"
        );
    }
    assert_eq!(bad_signature(with(tail("3"))), "its protected header has no formatLength and formatTail");
    assert_eq!(bad_signature(with(json!([{"protected": "{}"}]))), "its protected header is no base64url");
    assert_eq!(bad_signature(with(header(&"[".repeat(2000)))), "its protected header is nested too deep");
    assert_eq!(
        bad_signature(with(json!([{"protected": "A".repeat(4097)}]))),
        "its protected header is longer than 4096 bytes"
    );
    // Two that differ, in length or in tail.
    for other in [protected(length - 1, "\n}"), protected(length, "}"), protected(length, "")] {
        let why = bad_signature(with(json!([protected(length, "\n}"), other])));
        assert_eq!(why, "it signs another text than the one before it");
    }
    for nonsense in [json!({}), json!(3), json!("x"), json!([3]), json!([{}]), json!([{"protected": 3}])] {
        let error = signed_part(with(nonsense), Some(SCHEMA1_SIGNED)).unwrap_err();
        assert!(
            matches!(error, ManifestError::Schema1 { source: Schema1Error::Signatures { .. } }),
            "{error}"
        );
    }
    for none in [json!([]), Value::Null] {
        let error = signed_part(with(none), Some(SCHEMA1_SIGNED)).unwrap_err();
        assert_eq!(error, Schema1Error::Unsigned.into());
    }
    let many = json!(vec![protected(length, "\n}"); LIST_MAX + 1]);
    let error = signed_part(with(many), Some(SCHEMA1_SIGNED)).unwrap_err();
    assert!(matches!(error, ManifestError::Schema1 { source: Schema1Error::Signatures { .. } }), "{error}");
}

#[test]
fn a_payload_that_is_no_manifest_is_refused_like_any_other_document() {
    let document = manifest(&chain_of(2));
    let payload = serde_json::to_string_pretty(&document).unwrap();
    let length = payload.rfind("\n}").unwrap();
    let part = |length, tail| {
        signed_part(signed_with(&payload, &json!([protected(length, tail)])), Some(SCHEMA1_SIGNED)).unwrap()
    };
    assert!(parse_any(&part(0, ""), Some(SCHEMA1_SIGNED)).is_err());
    assert!(parse_any(&part(length, ""), Some(SCHEMA1_SIGNED)).is_err());
    assert!(parse_any(&part(length, "}}"), Some(SCHEMA1_SIGNED)).is_err());
    // Of another format than the whole: what is signed is what counts, and it must be what it is said to be.
    let second = part(0, "{\"schemaVersion\": 2, \"manifests\": []}");
    assert!(matches!(parse_any(&second, Some(SCHEMA1_SIGNED)), Err(ManifestError::Content { .. })));
    // A signed text in a signed text would be a second opinion.
    let inner = String::from_utf8(signed(&document, 1).1).unwrap();
    let error = parse_any(&part(0, &inner), Some(SCHEMA1_SIGNED)).unwrap_err();
    assert_eq!(error, Schema1Error::SignedTwice.into());
}

proptest! {
    /// Any protected header at all, and any document around it.
    #[test]
    fn any_signature_gets_an_answer(
        length in any::<u64>(), small in 0..400u64, huge in any::<bool>(), tail in ".{0,12}", noise in "[\\PC]{0,40}",
    ) {
        let length = if huge { length } else { small };
        let header = json!({"formatLength": length, "formatTail": tail});
        let protected = base64url(header.to_string().as_bytes());
        let document = json!({"schemaVersion": 1, "noise": noise, "signatures": [{"protected": protected}]}).to_string();
        if let Ok(part) = signed_part(document.clone().into_bytes(), Some(SCHEMA1_SIGNED)) {
            let head = usize::try_from(length).unwrap();
            prop_assert_eq!(&part[..head], &document.as_bytes()[..head]);
            let _ = parse_any(&part, Some(SCHEMA1_SIGNED));
        }
    }
}

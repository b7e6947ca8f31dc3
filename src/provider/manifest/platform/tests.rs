//! Indexes as found in the wild, and machines to choose for.

use serde_json::json;

use super::super::tests::{chosen, entry, index};
use super::*;
use keelblock_actors::image::digest::Digest;

#[test]
fn an_index_gives_the_best_variant_that_runs() {
    let arm = index(vec![
        entry(5, Some("linux/arm/v5")),
        entry(7, Some("linux/arm/v7")),
        entry(6, Some("linux/arm/v6")),
        entry(1, Some("windows/amd64")),
        entry(2, Some("linux/amd64")),
        entry(3, Some("linux/amd64/v3")),
        entry(8, Some("linux/arm64/v8")),
    ]);
    for (wanted, n) in [
        ("linux/arm", Some(7)),
        ("linux/arm/v8", Some(7)),
        ("linux/arm/v6", Some(6)),
        ("linux/arm/v5", Some(5)),
        ("linux/armhf", Some(7)),
        ("linux/arm64", Some(8)),
        ("linux/aarch64", Some(8)),
        ("linux/amd64", Some(2)),
        ("linux/amd64/v1", Some(2)),
        ("linux/amd64/v2", Some(2)),
        ("linux/amd64/v4", Some(3)),
        ("windows/amd64", Some(1)),
        ("linux/386", None),
        ("linux/riscv64", None),
    ] {
        assert_eq!(chosen(&arm, wanted), n.map(|n| Digest::of(&[n])), "{wanted}");
    }
    let plain = index(vec![entry(1, Some("linux/arm64")), entry(2, Some("linux/arm"))]);
    assert_eq!(chosen(&plain, "linux/arm64/v8"), Some(Digest::of(&[1])));
    assert_eq!(chosen(&plain, "linux/arm/v7"), Some(Digest::of(&[2])), "arm without a variant is v7");
    assert_eq!(chosen(&plain, "linux/arm/v6"), None);
    let twice = index(vec![entry(1, Some("linux/amd64")), entry(2, Some("linux/amd64"))]);
    assert_eq!(chosen(&twice, "linux/amd64"), Some(Digest::of(&[1])), "the first of equals");
}

#[test]
fn attestations_and_artifacts_are_never_chosen() {
    let mut attestation = entry(1, None);
    let mut with_platform = entry(1, Some("linux/amd64"));
    with_platform["annotations"] = json!({"vnd.docker.reference.type": "anything"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut artifact = entry(2, Some("linux/amd64"));
    artifact["artifactType"] = json!("application/vnd.example");
    let mut strange = entry(3, Some("linux/amd64"));
    strange["mediaType"] = json!("application/vnd.example+json");
    let mut entries = vec![attestation, with_platform, artifact, strange, entry(4, Some("unknown/unknown"))];
    let none = index(entries.clone());
    let error = none.choose(&"linux/amd64".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("no image at all"), "{error}");
    entries.push(entry(5, Some("linux/amd64")));
    assert_eq!(chosen(&index(entries), "linux/amd64"), Some(Digest::of(&[5])));
}

#[test]
fn an_entry_without_platform_is_taken_only_when_it_is_the_only_one() {
    let one = index(vec![entry(1, Some("linux/s390x")), entry(2, None)]);
    assert_eq!(chosen(&one, "linux/amd64"), Some(Digest::of(&[2])));
    let two = index(vec![entry(1, None), entry(2, None)]);
    let error = two.choose(&"linux/amd64".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("an image without platform"), "{error}");
}

#[test]
fn the_error_lists_what_is_on_offer() {
    let some = index(vec![entry(1, Some("linux/s390x")), entry(2, Some("linux/arm/v6"))]);
    let error = some.choose(&"linux/amd64".parse().unwrap()).unwrap_err().to_string();
    assert_eq!(error, "the index has no image for linux/amd64; it offers linux/s390x, linux/arm/v6");
    let colourful = index(vec![entry(1, Some("linux/\u{1b}[31m"))]);
    let error = colourful.choose(&Platform::host()).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn platforms_are_read_and_printed() {
    for (text, printed) in [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/amd64/v3", "linux/amd64/v3"),
    ] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), printed);
    }
    for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/amd64/"] {
        assert!(text.parse::<Platform>().is_err(), "{text}");
    }
    let host = Platform::host().to_string();
    assert_eq!(host.parse::<Platform>().unwrap(), Platform::host());
    if cfg!(target_arch = "x86_64") {
        assert!(host.starts_with("linux/amd64"), "{host}");
    }
}

#[test]
fn an_image_for_a_higher_level_than_the_machine_has_is_never_taken() {
    let all = index((1..=4).map(|n| entry(n, Some(&format!("linux/amd64/v{n}")))).collect());
    for n in 1..=4 {
        assert_eq!(chosen(&all, &format!("linux/amd64/v{n}")), Some(Digest::of(&[n])));
    }
    let high = index((3..=4).map(|n| entry(n, Some(&format!("linux/amd64/v{n}")))).collect());
    assert_eq!(chosen(&high, "linux/amd64/v2"), None);
    assert_eq!(chosen(&high, "linux/amd64"), None);
    // On this very machine: the level that it has, of all.
    let host = Platform::host();
    if host.architecture == "amd64" {
        let level = host.variant.as_deref().map_or(1, |variant| variant[1..].parse().unwrap());
        assert_eq!(all.choose(&host).unwrap().digest, Digest::of(&[level]));
    }
}

#[test]
fn versions_of_arm64_go_downwards_as_in_containerd() {
    let names = ["v8", "v8.1", "v8.5", "v8.6", "v9", "v9.1"];
    let all = |names: &[&str]| {
        index(names.iter().zip(1..).map(|(name, n)| entry(n, Some(&format!("linux/arm64/{name}")))).collect())
    };
    for (wanted, n) in [
        ("", 1),
        ("/v8", 1),
        ("/v8.1", 2),
        ("/v8.4", 2),
        ("/v8.9", 4),
        ("/v9", 5),
        ("/v9.0", 5),
        ("/v9.7", 6),
    ] {
        assert_eq!(chosen(&all(&names), &format!("linux/arm64{wanted}")), Some(Digest::of(&[n])), "{wanted}");
    }
    // Without any v9: that of v9.0 is v8.5, and of v9.1 v8.6.
    assert_eq!(chosen(&all(&names[..4]), "linux/arm64/v9"), Some(Digest::of(&[3])));
    assert_eq!(chosen(&all(&names[..4]), "linux/arm64/v9.1"), Some(Digest::of(&[4])));
    assert_eq!(chosen(&all(&names[1..]), "linux/arm64"), None);
    assert_eq!(chosen(&all(&["v8"]), "linux/arm64/v10"), Some(Digest::of(&[1])));
}

#[test]
fn what_a_platform_is_besides_does_not_matter_on_linux() {
    let mut strange = entry(1, Some("linux/amd64"));
    strange["platform"]["os.version"] = json!("10.0.14393");
    strange["platform"]["os.features"] = json!(["win32k"]);
    strange["platform"]["features"] = json!(["sse4"]);
    assert_eq!(chosen(&index(vec![strange]), "linux/amd64"), Some(Digest::of(&[1])));
}

#[test]
fn an_image_for_one_platform_is_told_from_one_for_another() {
    let runs = |machine: &str, image: &str| {
        machine.parse::<Platform>().unwrap().runs(&image.parse::<Platform>().unwrap())
    };
    assert!(runs("linux/amd64/v3", "linux/amd64") && runs("linux/amd64/v3", "linux/amd64/v2"));
    assert!(!runs("linux/amd64", "linux/amd64/v2") && !runs("linux/amd64", "linux/arm64"));
    assert!(!runs("linux/amd64", "windows/amd64") && !runs("linux/amd64", "linux/386"));
    assert!(runs("linux/arm/v6", "linux/arm") && runs("linux/arm/v6", "linux/arm/v5"));
    assert!(!runs("linux/arm/v6", "linux/arm/v8"));
}

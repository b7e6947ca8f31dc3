//! Labels and annotations.

use std::collections::BTreeMap;

use keelblock_actors::image::appc::{AcIdentifier, LABEL_ARCH, LABEL_OS};

use super::error::ManifestError;
use super::json::{AC_IDENTIFIER, Object, Once};
use super::values;

/// The pairs of operating system and processor that are known: `ValidOSArch` of the schema.
pub(in super::super) const KNOWN: [(&str, &[&str]); 3] = [
    (
        "linux",
        &[
            "amd64",
            "i386",
            "aarch64",
            "aarch64_be",
            "armv6l",
            "armv7l",
            "armv7b",
            "ppc64",
            "ppc64le",
            "s390x",
        ],
    ),
    ("freebsd", &["amd64", "i386", "arm"]),
    ("darwin", &["x86_64", "i386"]),
];

/// `labels` of an image or a dependency.
pub(super) fn labels(object: &Object<'_>) -> Result<BTreeMap<AcIdentifier, String>, ManifestError> {
    let labels = pairs(object, "labels")?;
    let path = object.path("labels");
    if labels.contains_key("name") {
        return Err(ManifestError::text(path, "name", "labels of other names: this one is the image's own"));
    }
    let (os, arch) = (labels.get(LABEL_OS), labels.get(LABEL_ARCH));
    let one_of = |names: &[&str]| format!("one of {}", names.join(", "));
    match (os, arch) {
        (None, None) => {}
        (None, Some(arch)) => {
            let allowed = "there only beside the label os, without which it means nothing";
            return Err(ManifestError::text(format!("{path} (arch)"), arch, allowed));
        }
        (Some(os), arch) => match (KNOWN.iter().find(|(known, _)| known == os), arch) {
            (None, _) => {
                let known: Vec<_> = KNOWN.iter().map(|(os, _)| *os).collect();
                return Err(ManifestError::text(format!("{path} (os)"), os, one_of(&known)));
            }
            (Some((_, known)), Some(arch)) if !known.contains(&arch.as_str()) => {
                let allowed = format!("{} where os is {os}", one_of(known));
                return Err(ManifestError::text(format!("{path} (arch)"), arch, allowed));
            }
            _ => {}
        },
    }
    Ok(labels)
}

/// The name of an annotation, whether a value of it is good, and what it must be.
type Check = (&'static str, fn(&str) -> bool, &'static str);

/// `annotations`.
pub(super) fn annotations(manifest: &Object<'_>) -> Result<BTreeMap<AcIdentifier, String>, ManifestError> {
    let annotations = pairs(manifest, "annotations")?;
    let checks: [Check; 3] = [
        ("created", values::is_date, "a time as in 2014-10-27T19:32:27Z (RFC 3339)"),
        ("homepage", values::is_web_address, "an address that begins with http:// or https://"),
        ("documentation", values::is_web_address, "an address that begins with http:// or https://"),
    ];
    for (name, is_good, allowed) in checks {
        if let Some(value) = annotations.get(name).filter(|value| !is_good(value)) {
            return Err(ManifestError::text(format!("annotations ({name})"), value, allowed));
        }
    }
    Ok(annotations)
}

/// A list of names and values, each name once.
fn pairs(object: &Object<'_>, key: &str) -> Result<BTreeMap<AcIdentifier, String>, ManifestError> {
    let (mut pairs, mut once) = (BTreeMap::new(), Once::default());
    for pair in object.objects(key)? {
        let name: AcIdentifier = pair.required_parsed("name", AC_IDENTIFIER)?;
        once.take(&pair, "name", name.as_str())?;
        pairs.insert(name, pair.required("value")?.to_owned());
    }
    Ok(pairs)
}

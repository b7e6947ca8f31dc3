//! Names and labels: what a name means here, and whether what came is what was asked for.

use keelblock_actors::image::appc::{
    AcIdentifier, AppcName, AppcReference, LABEL_ARCH, LABEL_OS, LABEL_VERSION,
};
use keelblock_actors::image::name::ImageName;

use super::error::AppcError;
use crate::provider::manifest::Platform;

/// The version of names that say none (appc spec, discovery.md). Whatever comes then is the latest: images say their own version.
pub const LATEST: &str = "latest";

/// Processors: in the words of Go, and in those of Appc.
const ARCHITECTURES: [(&str, Option<&str>, &str); 10] = [
    ("amd64", None, "amd64"),
    ("386", None, "i386"),
    ("arm64", None, "aarch64"),
    ("arm", Some("v6"), "armv6l"),
    ("arm", Some("v7"), "armv7l"),
    ("arm", Some("v5"), "armv6l"),
    ("arm", Some("v8"), "armv7l"),
    ("ppc64", None, "ppc64"),
    ("ppc64le", None, "ppc64le"),
    ("s390x", None, "s390x"),
];

/// The labels os and arch of images for a platform. A processor that Appc has no word for keeps its own.
pub fn labels_of(platform: &Platform) -> (String, String) {
    let (architecture, variant) = (platform.architecture.as_str(), platform.variant.as_deref());
    let exact = ARCHITECTURES.iter().find(|(name, of, _)| *name == architecture && *of == variant);
    let known =
        exact.or_else(|| ARCHITECTURES.iter().find(|(name, of, _)| *name == architecture && of.is_none()));
    let arch = match known {
        // The names of the other systems differ.
        Some((_, _, "amd64")) if platform.os == "darwin" => "x86_64",
        Some((_, _, arch)) if platform.os == "freebsd" && arch.starts_with("arm") => "arm",
        Some((_, _, arch)) => arch,
        None => architecture,
    };
    (platform.os.clone(), arch.to_owned())
}

/// The platform that an image says it is for, as those of other kinds say it.
pub(super) fn platform_of(name: &AppcName) -> Option<String> {
    let (os, arch) = (name.label(LABEL_OS)?, name.label(LABEL_ARCH)?);
    let known = ARCHITECTURES.iter().find(|(_, _, appc)| *appc == arch);
    Some(match known {
        Some((architecture, Some(variant), _)) => format!("{os}/{architecture}/{variant}"),
        Some((architecture, None, _)) => format!("{os}/{architecture}"),
        None if arch == "x86_64" => format!("{os}/amd64"),
        None => format!("{os}/{arch}"),
    })
}

/// The name under which an Appc image is looked for, looked up and remembered: with a version, an operating system and a
/// processor, so that each stands for one image. The same for its own result; other names stay as they are.
pub fn canonical(name: &ImageName, platform: &Platform) -> ImageName {
    let ImageName::Appc(AppcReference::Named(name)) = name else { return name.clone() };
    let (os, arch) = labels_of(platform);
    ImageName::Appc(AppcReference::Named(complete(name.clone(), &os, &arch)))
}

/// A name with every label that discovery wants.
fn complete(name: AppcName, os: &str, arch: &str) -> AppcName {
    name.or_label(LABEL_VERSION, LATEST).or_label(LABEL_OS, os).or_label(LABEL_ARCH, arch)
}

/// The name by which a dependency is looked for. Where it says neither operating system nor processor, it is one for that of the
/// image that names it: the specification leaves that open, and another one could not be used.
pub(super) fn of_dependency(asked: &AppcName, by: &AppcName) -> AppcName {
    let label = |name: &str| by.label(name).unwrap_or_default();
    complete(asked.clone(), label(LABEL_OS), label(LABEL_ARCH))
}

/// Whether the image that came is the one that was asked for, by name and labels (discovery.md, "Validation"): each label that was
/// asked for has the same value. Others may be there. An image without os or arch runs on all (aci.md); one of any version is
/// what was asked for by `latest`.
pub(super) fn check(asked: &AppcName, found: &AppcName, from: &str) -> Result<(), AppcError> {
    if asked.name != found.name {
        return Err(AppcError::OtherName {
            asked: asked.name.clone(),
            found: found.name.clone(),
            from: from.to_owned(),
        });
    }
    let matches = |label: &AcIdentifier, value: &str| match found.label(label.as_str()) {
        Some(found) if found == value => true,
        None if matches!(label.as_str(), LABEL_OS | LABEL_ARCH) => true,
        _ => label.as_str() == LABEL_VERSION && value == LATEST,
    };
    match asked.labels.iter().find(|(label, value)| !matches(label, value)) {
        None => Ok(()),
        Some((label, value)) => Err(AppcError::OtherLabel {
            image: asked.name.clone(),
            label: label.clone(),
            asked: value.clone(),
            found: found.label(label.as_str()).map(keelblock_actors::error::quote),
            from: from.to_owned(),
        }),
    }
}

/// Whether an image runs on a platform, by its labels.
pub(super) fn runs_on(name: &AppcName, platform: &Platform) -> bool {
    let (os, arch) = labels_of(platform);
    let is = |label: &str, value: &str| name.label(label).is_none_or(|found| found == value);
    is(LABEL_OS, &os) && is(LABEL_ARCH, &arch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    fn name(text: &str) -> AppcName {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_have_labels() {
        for (of, os, arch) in [
            ("linux/amd64", "linux", "amd64"),
            ("linux/amd64/v3", "linux", "amd64"),
            ("linux/386", "linux", "i386"),
            ("linux/arm64", "linux", "aarch64"),
            ("linux/arm/v6", "linux", "armv6l"),
            ("linux/arm/v7", "linux", "armv7l"),
            ("linux/arm", "linux", "armv7l"),
            ("linux/ppc64le", "linux", "ppc64le"),
            ("linux/s390x", "linux", "s390x"),
            ("linux/riscv64", "linux", "riscv64"),
            ("freebsd/arm/v7", "freebsd", "arm"),
            ("freebsd/amd64", "freebsd", "amd64"),
            ("darwin/amd64", "darwin", "x86_64"),
        ] {
            assert_eq!(labels_of(&platform(of)), (os.to_owned(), arch.to_owned()), "{of}");
        }
        for (labels, of) in [
            ("a,os=linux,arch=aarch64", Some("linux/arm64")),
            ("a,os=linux,arch=armv7l", Some("linux/arm/v7")),
            ("a,os=darwin,arch=x86_64", Some("darwin/amd64")),
            ("a,os=linux", None),
        ] {
            assert_eq!(platform_of(&name(labels)).as_deref(), of);
        }
    }

    #[test]
    fn a_canonical_name_has_what_discovery_wants_and_is_its_own() {
        let host = platform("linux/arm64");
        let canonical = |text: &str| {
            let name = canonical(&text.parse().unwrap(), &host);
            assert_eq!(super::canonical(&name, &host), name);
            assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
            name.to_string()
        };
        assert_eq!(canonical("appc:e.com/a"), "appc:e.com/a:latest,arch=aarch64,os=linux");
        assert_eq!(canonical("appc:e.com/a:1,arch=amd64,x=y"), "appc:e.com/a:1,arch=amd64,os=linux,x=y");
        let id = format!("appc:sha512-{}", "0f".repeat(64));
        for other in [id.as_str(), "aci:/x.aci", "docker:a"] {
            assert_eq!(canonical(other), other);
        }
    }

    #[test]
    fn what_comes_is_what_was_asked_for() {
        let check = |asked: &str, found: &str| check(&name(asked), &name(found), "here");
        for (asked, found) in [
            ("a:1,os=linux,arch=amd64", "a:1,os=linux,arch=amd64"),
            ("a:1,os=linux,arch=amd64", "a:1"),
            ("a:latest,os=linux", "a:7,os=linux,arch=i386,channel=beta"),
            ("a:latest", "a"),
            ("a,channel=beta", "a,channel=beta"),
        ] {
            check(asked, found).unwrap();
        }
        for (asked, found) in [
            ("a:1", "a:2"),
            ("a:1", "a"),
            ("a,os=linux", "a,os=freebsd"),
            ("a,os=linux,arch=amd64", "a,os=linux,arch=i386"),
            ("a,channel=beta", "a,channel=alpha"),
            ("a,channel=beta", "a"),
        ] {
            assert!(matches!(check(asked, found), Err(AppcError::OtherLabel { .. })), "{asked} {found}");
        }
        assert!(matches!(check("a", "b"), Err(AppcError::OtherName { .. })));
    }

    #[test]
    fn a_dependency_is_for_the_platform_of_the_image_that_names_it() {
        let of = |asked: &str, by: &str| of_dependency(&name(asked), &name(by)).to_string();
        assert_eq!(of("b", "a:1,os=linux,arch=i386"), "b:latest,arch=i386,os=linux");
        assert_eq!(of("b:2,os=linux,arch=amd64", "a,os=linux,arch=i386"), "b:2,arch=amd64,os=linux");
    }
}

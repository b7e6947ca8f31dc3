//! Addresses of archives: by the rule of simple discovery, and by templates (appc spec, discovery.md; RFC 6570, simple string
//! expansion).
//!
//! Pure. What fills a template comes out of a name that anybody may have written: everything but the name itself is escaped, so
//! that a version cannot end a path or begin a query, and one that means another directory is refused.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hyper::Uri;
use keelblock_actors::error::quote;
use keelblock_actors::image::appc::{AppcName, LABEL_ARCH, LABEL_OS, LABEL_VERSION};

use crate::puller::registry::{Scheme, location};

/// The version of an image whose name says none.
const LATEST: &str = "latest";
/// What `ext` is for an archive.
pub(super) const ARCHIVE: &str = "aci";
/// What `ext` is for its signature.
pub(super) const SIGNATURE: &str = "aci.asc";
/// Bytes of a template, and of what becomes of it. 8 KiB: what servers take as an address.
const ADDRESS_BYTES_MAX: usize = 8 << 10;

/// Why there is no address of this kind for an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A label that the address is made of.
    #[error("it needs the label {label}, which {name} has not; write NAME:VERSION,{label}=...")]
    NoLabel {
        /// Its name.
        label: String,
        /// The image's.
        name: String,
    },
    /// `.`, `..`, and what no file name can hold.
    #[error("the label {label}={value:?} cannot be part of an address")]
    Label {
        /// Its name.
        label: String,
        /// Its value, cut.
        value: String,
    },
    /// Then the version would be part of the host.
    #[error("simple discovery needs a name with a path after the host, which {name} has not")]
    NoPath {
        /// The image's.
        name: String,
    },
    /// An expression that is more than variables.
    #[error("{{{expression}}} is no simple expansion of RFC 6570")]
    Expression {
        /// As written, cut.
        expression: String,
    },
    /// A brace without its other one.
    #[error("it has a brace that does not close or open")]
    Brace,
    /// Archive and signature would be the same.
    #[error("it has no {{ext}}, so that archives and signatures would have one address")]
    NoExtension,
    /// Longer than addresses are read.
    #[error("it has more than {ADDRESS_BYTES_MAX} bytes")]
    TooLong,
    /// What came out is none.
    #[error("it makes no address that can be asked: {why}")]
    Address {
        /// What is wrong with it.
        why: &'static str,
    },
    /// `hdfs://`, `ftp://`.
    #[error("images cannot be fetched by {scheme:?}; known are https and http")]
    Scheme {
        /// As written, cut.
        scheme: String,
    },
    /// From a page that was asked for over TLS to plain http.
    #[error("it is plain http, while it was found over TLS, which is refused")]
    Downgrade,
}

/// `NAME-VERSION-OS-ARCH.EXT`, with the labels as `part` writes them.
fn simple(
    name: &AppcName,
    extension: &str,
    part: impl Fn(&str, &str) -> Result<String, AddressError>,
) -> Result<String, AddressError> {
    let mut text = name.name.to_string();
    for label in [LABEL_VERSION, LABEL_OS, LABEL_ARCH] {
        let value = value(name, label)?;
        text.push('-');
        text.push_str(&part(label, value)?);
    }
    text.push('.');
    text.push_str(extension);
    Ok(text)
}

/// The file of an image in a directory of simple discovery.
pub(super) fn simple_path(directory: &Path, name: &AppcName) -> Result<PathBuf, AddressError> {
    let file = simple(name, ARCHIVE, |label, value| match value.contains(['/', '\0']) {
        true => Err(AddressError::Label { label: label.to_owned(), value: quote(value) }),
        false => Ok(value.to_owned()),
    })?;
    Ok(directory.join(file))
}

/// The address of an image where a prefix has a host.
pub(super) fn simple_below(prefix: &str, name: &AppcName, extension: &str) -> Result<Uri, AddressError> {
    address(&format!("{prefix}{}", simple(name, extension, |_, value| Ok(escaped(value)))?))
}

/// The address of an image at the host of its name.
pub(super) fn simple_at_host(scheme: Scheme, name: &AppcName, extension: &str) -> Result<Uri, AddressError> {
    if !name.name.as_str().contains('/') {
        return Err(AddressError::NoPath { name: name.to_string() });
    }
    simple_below(&format!("{}://", scheme.text()), name, extension)
}

/// The address of an image's archive, or of its signature, by a template that was found on a page asked for by `scheme`.
pub(super) fn expand(
    template: &str,
    name: &AppcName,
    extension: &str,
    scheme: Scheme,
) -> Result<Uri, AddressError> {
    if template.len() > ADDRESS_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    // Fragments are not sent: an extension in one would tell nothing apart.
    let template = template.split('#').next().unwrap_or_default();
    let written = template.split("://").next().unwrap_or_default();
    if !written.contains('{') {
        match written.to_ascii_lowercase().as_str() {
            "http" | "https" => {}
            other => return Err(AddressError::Scheme { scheme: quote(other) }),
        }
    }
    let (mut text, mut rest, mut has_extension) = (String::new(), template, false);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let expression = rest[at..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (expression, after) = expression.ok_or(AddressError::Brace)?;
        let simple = |variable: &str| {
            !variable.is_empty() && variable.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        for (nth, variable) in expression.split(',').enumerate() {
            if !simple(variable) {
                return Err(AddressError::Expression { expression: quote(expression) });
            }
            if nth > 0 {
                text.push(',');
            }
            match variable {
                "ext" => {
                    has_extension = true;
                    text.push_str(extension);
                }
                // Its characters need no escape, but for the slashes, which the specification's example has as they are.
                "name" => text.push_str(name.name.as_str()),
                label => text.push_str(&part(label, value(name, label)?)?),
            }
        }
        rest = after;
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
    }
    text.push_str(rest);
    if !has_extension {
        return Err(AddressError::NoExtension);
    }
    found(&text, scheme)
}

/// An address as it stands on a page that was asked for by `scheme`: of public keys, for one.
pub(super) fn found(text: &str, scheme: Scheme) -> Result<Uri, AddressError> {
    let address = address(text)?;
    match (scheme, address.scheme_str()) {
        (Scheme::Https, Some("https")) | (Scheme::Http, _) => Ok(address),
        _ => Err(AddressError::Downgrade),
    }
}

fn value<'a>(name: &'a AppcName, label: &str) -> Result<&'a str, AddressError> {
    let value = name.label(label).filter(|value| !value.is_empty());
    let value = value.or((label == LABEL_VERSION).then_some(LATEST));
    value.ok_or_else(|| AddressError::NoLabel { label: quote(label), name: name.to_string() })
}

/// A label's value as a part of an address.
fn part(label: &str, value: &str) -> Result<String, AddressError> {
    match value {
        "." | ".." => Err(AddressError::Label { label: label.to_owned(), value: value.to_owned() }),
        value => Ok(escaped(value)),
    }
}

/// All that RFC 3986 does not call unreserved as `%XX`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte))
            }
            other => {
                let _ = write!(escaped, "%{other:02X}");
            }
        }
    }
    escaped
}

/// An address that may be asked.
pub(super) fn address(text: &str) -> Result<Uri, AddressError> {
    if text.len() > ADDRESS_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    // Fragments are not sent.
    let text = text.split('#').next().unwrap_or_default();
    let address = text.parse::<Uri>().map_err(|_| AddressError::Address { why: "it is malformed" })?;
    location::checked(address).map_err(|why| AddressError::Address { why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AppcName {
        text.parse().unwrap()
    }

    fn by(template: &str, text: &str) -> Result<String, AddressError> {
        expand(template, &name(text), ARCHIVE, Scheme::Https).map(|address| address.to_string())
    }

    const NAME: &str = "example.com/reduce-worker:1.0.0,os=linux,arch=amd64";

    #[test]
    fn the_examples_of_the_specification_come_out() {
        let template = "https://storage.example.com/{os}/{arch}/{name}-{version}.{ext}";
        let address =
            |extension| expand(template, &name(NAME), extension, Scheme::Https).unwrap().to_string();
        let expected = "https://storage.example.com/linux/amd64/example.com/reduce-worker-1.0.0.aci";
        assert_eq!((address(ARCHIVE), address(SIGNATURE)), (expected.to_owned(), format!("{expected}.asc")));
        let simple = simple_at_host(Scheme::Https, &name(NAME), ARCHIVE).unwrap();
        assert_eq!(simple, "https://example.com/reduce-worker-1.0.0-linux-amd64.aci");
        assert_eq!(by("https://{name}-{version}-{os}-{arch}.{ext}", NAME).unwrap(), simple.to_string());
    }

    #[test]
    fn simple_expansions_are_those_of_rfc_6570() {
        // Section 3.2.2: values are escaped but for the unreserved; the name is the specification's exception.
        assert_eq!(by("https://h/{version}.{ext}", "a:x+y%20z,b=1").unwrap(), "https://h/x%2By%20z.aci");
        assert_eq!(by("https://h/{os,arch}.{ext}", NAME).unwrap(), "https://h/linux,amd64.aci");
        assert_eq!(
            by("https://h/{flavour}.{ext}", "a,flavour=ü/?#").unwrap(),
            "https://h/%C3%BC%2F%3F%23.aci"
        );
        assert_eq!(
            by("https://h/{version}/{ext}?x={name}#frag", "a.b/c").unwrap(),
            "https://h/latest/aci?x=a.b/c"
        );
        assert_eq!(by("HTTPS://h/{ext}", "a").unwrap(), "https://h/aci");
        for expression in ["+name", "?os", "/os", "name:3", "name*", "", "os,", " os", "{os"] {
            let error = by(&format!("https://h/{{{expression}}}.{{ext}}"), NAME).unwrap_err();
            assert!(matches!(error, AddressError::Expression { .. }), "{expression}: {error}");
        }
    }

    #[test]
    fn what_makes_no_address_says_why() {
        for template in ["https://h/{name", "https://h/name}.{ext}"] {
            assert!(matches!(by(template, NAME), Err(AddressError::Brace)), "{template}");
        }
        assert_eq!(by("https://h/{name}.aci", NAME), Err(AddressError::NoExtension));
        assert_eq!(by("https://h/{name}#{ext}", NAME), Err(AddressError::NoExtension));
        assert!(matches!(by("https://h/{flavour}.{ext}", NAME), Err(AddressError::NoLabel { .. })));
        for value in [".", ".."] {
            let error = by("https://h/{version}/x.{ext}", &format!("a:{value}")).unwrap_err();
            assert!(matches!(error, AddressError::Label { .. }), "{error}");
        }
        for template in ["hdfs://h/{ext}", "ftp://h/{ext}", "{ext}", "h/{ext}"] {
            let error = by(template, NAME).unwrap_err();
            assert!(matches!(error, AddressError::Scheme { .. } | AddressError::Address { .. }), "{error}");
        }
        for template in ["https:///{ext}", "https://u@h/{ext}", "https://h /{ext}", "https://h:x/{ext}"] {
            assert!(matches!(by(template, NAME), Err(AddressError::Address { .. })), "{template}");
        }
        assert_eq!(by("http://h/{ext}", NAME), Err(AddressError::Downgrade));
        assert!(expand("http://h/{ext}", &name(NAME), ARCHIVE, Scheme::Http).is_ok());
        assert_eq!(by(&format!("https://h/{{ext}}{}", "x".repeat(9000)), NAME), Err(AddressError::TooLong));
        let long = "{name}".repeat(1000);
        assert_eq!(by(&format!("https://h/{{ext}}{long}"), NAME), Err(AddressError::TooLong));
    }

    #[test]
    fn simple_discovery_needs_all_labels_and_a_path() {
        let at_host = |text| simple_at_host(Scheme::Https, &name(text), ARCHIVE);
        assert!(
            matches!(at_host("e.com/a,os=linux"), Err(AddressError::NoLabel { label, .. }) if label == "arch")
        );
        assert!(matches!(at_host("a,os=linux,arch=x"), Err(AddressError::NoPath { .. })));
        let below = simple_below("http://h:81/x/", &name("a,os=linux,arch=x"), SIGNATURE).unwrap();
        assert_eq!(below, "http://h:81/x/a-latest-linux-x.aci.asc");
        let path = |text| simple_path(Path::new("/srv"), &name(text));
        assert_eq!(path(NAME).unwrap(), Path::new("/srv/example.com/reduce-worker-1.0.0-linux-amd64.aci"));
        assert!(matches!(path("a:1%2F2,os=x,arch=y"), Err(AddressError::Label { .. })));
    }
}

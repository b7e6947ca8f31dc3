//! What must hold of discovery pages, templates and prefixes: the body of the fuzz target `discovery`.

use std::path::{Component, Path};

use hyper::Uri;
use keelblock_actors::image::appc::AppcName;

use super::html::{Page, TAGS_MAX, Tag};
use super::prefix::AppcPrefix;
use super::template::{self, ARCHIVE, SIGNATURE};
use crate::puller::registry::Scheme;

/// A page; and, of the same bytes, a template, a name and a prefix, a line each.
///
/// What tags a page has can be written as a page and reads the same again; without a `<` there are none. An address is http or
/// https, after TLS https alone, to a host and without a user name; that of a signature is another than that of its archive; no
/// label adds a slash or a question mark to it. A file of a directory lies in it. A prefix prints back to itself, and no password
/// of it is in a text.
pub(crate) fn discovery(bytes: &[u8]) {
    let page = Page::parse(bytes);
    let tags = || page.templates.iter().chain(&page.keys);
    assert!(page.templates.len() <= TAGS_MAX && page.keys.len() <= TAGS_MAX);
    assert!(tags().all(|tag| [&tag.prefix, &tag.what].iter().all(|text| is_word(text))));
    let written =
        [write("ac-discovery", &page.templates), write("ac-discovery-pubkeys", &page.keys)].concat();
    let again = Page::parse(written.as_bytes());
    assert_eq!((&again.templates, &again.keys, again.malformed), (&page.templates, &page.keys, 0));
    let no_tags = String::from_utf8_lossy(bytes).replace('<', "&lt;");
    assert_eq!(Page::parse(no_tags.as_bytes()), Page::default());

    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.lines();
    let (template, name, prefix) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let given = name.parse::<AppcName>();
    let name = given.unwrap_or_else(|_| "e.com/a,os=linux,arch=amd64".parse().expect("a name"));
    for tag in tags() {
        let above = tag.prefix.trim_end_matches('/');
        let below = format!("{}/", name.name).starts_with(&format!("{above}/"));
        assert_eq!(tag.matches(name.name.as_str()), below && !above.is_empty(), "{tag:?} {name}");
    }
    for scheme in [Scheme::Http, Scheme::Https] {
        for template in tags().map(|tag| tag.what.as_str()).chain([template]) {
            expansions(template, &name, scheme);
        }
        let address = |extension| template::simple_at_host(scheme, &name, extension);
        if let (Ok(archive), Ok(signature)) = (address(ARCHIVE), address(SIGNATURE)) {
            safe(&archive, scheme);
            assert_eq!(format!("{archive}.asc"), signature.to_string());
        }
    }
    let directory = Path::new("/srv/acis");
    if let Ok(file) = template::simple_path(directory, &name) {
        assert!(file.starts_with(directory) && file != directory);
        assert!(file.components().all(|part| part != Component::ParentDir), "{}", file.display());
    }
    if let Ok(prefix) = prefix.parse::<AppcPrefix>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
    let shown = match format!("https://me:hushhush@{prefix}").parse::<AppcPrefix>() {
        Ok(prefix) => prefix.to_string(),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains("hushhush") || prefix.contains("hushhush"));
}

fn expansions(template: &str, name: &AppcName, scheme: Scheme) {
    let expand = |name: &AppcName, extension| template::expand(template, name, extension, scheme);
    let Ok(archive) = expand(name, ARCHIVE) else { return };
    safe(&archive, scheme);
    if let Ok(signature) = expand(name, SIGNATURE) {
        assert_ne!(archive, signature);
    }
    // The same with plain labels.
    let labels = name.labels.keys().map(|label| (label.clone(), "x".to_owned())).collect();
    let plain = AppcName { labels, ..name.clone() };
    let plain = expand(&plain, ARCHIVE).expect("an address with labels that are stranger was one");
    for mark in ['/', '?', '@', '#', '\\'] {
        assert_eq!(
            archive.to_string().matches(mark).count(),
            plain.to_string().matches(mark).count(),
            "{mark} in {archive} and {plain}"
        );
    }
}

fn safe(address: &Uri, found_by: Scheme) {
    match found_by {
        Scheme::Https => assert_eq!(address.scheme_str(), Some("https")),
        Scheme::Http => assert!(matches!(address.scheme_str(), Some("http" | "https"))),
    }
    let authority = address.authority().expect("a host").as_str();
    assert!(!authority.contains(['@', '/', '?', '#', '\\']), "{address}");
    assert!(address.host().is_some_and(|host| !host.is_empty()));
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

fn write(name: &str, tags: &[Tag]) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('"', "&quot;");
    let tags = tags.iter().map(|Tag { prefix, what }| {
        format!("<meta name=\"{name}\" content=\"{} {}\">", escaped(prefix), escaped(what))
    });
    tags.collect()
}

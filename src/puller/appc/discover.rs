//! From a name to its archive: simple discovery first, meta discovery second (appc spec, discovery.md).
//!
//! Every place that is asked is remembered with what it said, so that an error can tell all of it. The next place is asked
//! whatever the one before said, but for two cases: this machine failed, or there is nobody at the very host that meta discovery
//! would ask next.

use std::collections::HashSet;
use std::path::Path;

use hyper::Uri;
use keelblock_actors::error::quote;
use keelblock_actors::image::appc::{AcIdentifier, AppcName};
use slog::{debug, info};

use super::error::{PlaceError, Tried, nowhere};
use super::fetch::{self, Place, Wanted};
use super::files;
use super::html::{Page, Tag};
use super::prefix::AppcPrefix;
use super::template::{self, ARCHIVE, AddressError, SIGNATURE};
use super::web::{Small, Web, shown};
use crate::provider::appc::ports::{AciFetchError, FetchedAci};
use crate::puller::registry::Scheme;

/// Bytes of a discovery page that are looked at. 1 MiB: the tags stand at the beginning, and home pages have some 100 KiB.
const PAGE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a file of public keys. 1 MiB: some hundred keys with the signatures of others on them.
const KEYS_BYTES_MAX: u64 = 1 << 20;
/// Pages that are asked for one name, from its own path up. 16: deeper names are none that anybody has.
const PAGES_MAX: usize = 16;

/// Public keys that a discovery page names for a prefix of names: anybody's, until somebody trusts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlace {
    /// The names that the page says they are for: all that begin so.
    pub prefix: String,
    /// Where they came from: an address without its query.
    pub from: String,
    /// The keys, as they came.
    pub bytes: Vec<u8>,
}

/// Looks for archives and keys.
pub(super) struct Search<'a> {
    pub(super) web: &'a Web,
    pub(super) prefix: &'a AppcPrefix,
    pub(super) spool: &'a Path,
}

impl Search<'_> {
    /// The archive of this name.
    pub(super) async fn archive(&self, name: &AppcName, wanted: Wanted) -> Result<FetchedAci, AciFetchError> {
        let mut attempt = Attempt { search: self, name, wanted, seen: HashSet::new(), tried: Vec::new() };
        match self.prefix {
            AppcPrefix::Directory(directory) => attempt.directory(directory).await,
            AppcPrefix::Address(prefix) => {
                let place = both(|extension| template::simple_below(prefix, name, extension));
                match attempt.place(prefix, place).await {
                    Some(fetched) => Ok(fetched),
                    None => Err(nowhere(attempt.tried)),
                }
            }
            AppcPrefix::Scheme(written) => {
                let scheme = self.web.scheme(host(&name.name), *written);
                let mut fetched = attempt.at_host(scheme, *written).await;
                if fetched.is_none() && attempt.is_to_upgrade(scheme, *written) {
                    fetched = attempt.at_host(*written, *written).await;
                }
                fetched.ok_or_else(|| nowhere(attempt.tried))
            }
        }
    }

    /// The keys that the pages of this name, or of what is above it, name for it: those of the first page that names any.
    pub(super) async fn keys(&self, name: &AcIdentifier) -> Result<Vec<KeyPlace>, AciFetchError> {
        let written = match self.prefix {
            AppcPrefix::Scheme(written) => *written,
            AppcPrefix::Address(_) | AppcPrefix::Directory(_) => Scheme::Https,
        };
        let mut scheme = self.web.scheme(host(name), written);
        let mut tried = Vec::new();
        let kind = "ac-discovery-pubkeys";
        let mut tags = self.walk(name, scheme, |page| &page.keys, kind, &mut tried).await;
        if tags.is_none() && scheme != written && tried.iter().all(|tried| tried.error.wants_tls()) {
            scheme = written;
            tags = self.walk(name, scheme, |page| &page.keys, kind, &mut tried).await;
        }
        let Some(tags) = tags else { return Err(nowhere(tried)) };
        let mut found = Vec::new();
        for Tag { prefix, what } in tags {
            let address = match template::found(&what, scheme) {
                Ok(address) => address,
                Err(error) => {
                    tried.push(Tried { place: template_shown(&what), error: error.into() });
                    continue;
                }
            };
            match self.web.small(&address, KEYS_BYTES_MAX, false, None).await {
                Ok(Small::Whole { bytes, .. }) => {
                    found.push(KeyPlace { prefix: quote(&prefix), from: shown(&address), bytes });
                }
                // Not asked on a condition.
                Ok(Small::NotModified) => {}
                Err(error) => tried.push(Tried { place: shown(&address), error }),
            }
        }
        if found.is_empty() { Err(nowhere(tried)) } else { Ok(found) }
    }

    /// The tags for this name on the first page that has any, from its own path up.
    async fn walk(
        &self,
        name: &AcIdentifier,
        scheme: Scheme,
        tags: fn(&Page) -> &Vec<Tag>,
        kind: &str,
        tried: &mut Vec<Tried>,
    ) -> Option<Vec<Tag>> {
        for path in upwards(name.as_str()).take(PAGES_MAX) {
            // An address has a path.
            let slash = if path.contains('/') { "" } else { "/" };
            let text = format!("{}://{path}{slash}?ac-discovery=1", scheme.text());
            let asked = match template::address(&text) {
                Ok(address) => self.web.small(&address, PAGE_BYTES_MAX, true, None).await,
                Err(error) => Err(error.into()),
            };
            let error = match asked {
                Ok(Small::Whole { bytes, .. }) => {
                    let page = Page::parse(&bytes);
                    let matching = tags(&page).iter().filter(|tag| tag.matches(name.as_str()));
                    let matching: Vec<Tag> = matching.cloned().collect();
                    if !matching.is_empty() {
                        info!(self.web.log, "appc images are discovered"; "image" => %name, "from" => &text,
                            "tags" => matching.len());
                        return Some(matching);
                    }
                    no_tag(kind, tags(&page), page.malformed, bytes.len() as u64 >= PAGE_BYTES_MAX)
                }
                // Not asked on a condition.
                Ok(Small::NotModified) => continue,
                Err(error) => error,
            };
            debug!(self.web.log, "a page has no tag for an appc image"; "image" => %name, "from" => &text);
            let goes_up =
                matches!(error.last(), PlaceError::NoTag(_) | PlaceError::Status { status: 400..=499, .. });
            tried.push(Tried { place: text, error });
            if !goes_up {
                return None;
            }
        }
        None
    }
}

/// One search for one archive.
struct Attempt<'a> {
    search: &'a Search<'a>,
    name: &'a AppcName,
    wanted: Wanted,
    seen: HashSet<String>,
    tried: Vec<Tried>,
}

impl Attempt<'_> {
    async fn directory(mut self, directory: &Path) -> Result<FetchedAci, AciFetchError> {
        let path = match template::simple_path(directory, self.name) {
            Ok(path) => path,
            Err(error) => {
                self.tried.push(Tried { place: directory.display().to_string(), error: error.into() });
                return Err(nowhere(self.tried));
            }
        };
        files::fetch(path, self.wanted.size, self.wanted.signature).await
    }

    /// Whether a host that was spoken to in plain http because of where it is, or of a flag, wants TLS: as a registry there.
    fn is_to_upgrade(&self, scheme: Scheme, written: Scheme) -> bool {
        scheme != written && self.tried.last().is_some_and(|last| last.error.wants_tls())
    }

    async fn at_host(&mut self, scheme: Scheme, written: Scheme) -> Option<FetchedAci> {
        let host = host(&self.name.name);
        let simple = both(|extension| template::simple_at_host(scheme, self.name, extension));
        if let Some(fetched) = self.place(&format!("{}://{host}", scheme.text()), simple).await {
            return Some(fetched);
        }
        if self.tried.last().is_some_and(|last| last.error.ends_the_search() || last.error.is_of_host(host))
            || self.is_to_upgrade(scheme, written)
        {
            return None;
        }
        let tags = self
            .search
            .walk(&self.name.name, scheme, |page| &page.templates, "ac-discovery", &mut self.tried)
            .await?;
        for Tag { what, .. } in tags {
            let place = both(|extension| template::expand(&what, self.name, extension, scheme));
            if let Some(fetched) = self.place(&template_shown(&what), place).await {
                return Some(fetched);
            }
            if self.tried.last().is_some_and(|last| last.error.ends_the_search()) {
                return None;
            }
        }
        None
    }

    /// The archive at this place; `shown_as` stands for it when there is none to ask.
    async fn place(&mut self, shown_as: &str, place: Result<Place, AddressError>) -> Option<FetchedAci> {
        let place = match place {
            Ok(place) => place,
            Err(error) => {
                self.tried.push(Tried { place: shown_as.to_owned(), error: error.into() });
                return None;
            }
        };
        if !self.seen.insert(place.archive.to_string()) {
            return None;
        }
        let Search { web, spool, .. } = self.search;
        match fetch::fetch(web, spool, &place, self.wanted).await {
            Ok(fetched) => Some(fetched),
            Err(error) => {
                self.tried.push(Tried { place: shown(&place.archive), error });
                None
            }
        }
    }
}

/// The addresses of an archive and of its signature.
fn both(address: impl Fn(&str) -> Result<Uri, AddressError>) -> Result<Place, AddressError> {
    Ok(Place { archive: address(ARCHIVE)?, signature: address(SIGNATURE)? })
}

fn no_tag(kind: &str, others: &[Tag], malformed: usize, cut: bool) -> PlaceError {
    let mut text = match others.len() {
        0 => format!("it has no tag {kind}"),
        count => format!("none of its {count} tags {kind} is for the name"),
    };
    if malformed > 0 {
        text.push_str(&format!(", and {malformed} that are not PREFIX and ADDRESS"));
    }
    if cut {
        text.push_str(&format!(" in its first {PAGE_BYTES_MAX} bytes"));
    }
    PlaceError::NoTag(text)
}

/// A template for messages, without what may be a signature.
fn template_shown(template: &str) -> String {
    quote(template.split('?').next().unwrap_or_default())
}

/// The first part of a name.
fn host(name: &AcIdentifier) -> &str {
    name.as_str().split('/').next().unwrap_or_default()
}

/// A path and all above it, down to the host.
fn upwards(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(above, _)| above))
}

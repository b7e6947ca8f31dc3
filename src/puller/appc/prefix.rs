//! Where simple discovery looks: what `--appc_simple_discovery_uri_prefix` may be.
//!
//! Pure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::Uri;
use keelblock_actors::error::quote;

use crate::puller::registry::{Scheme, location, proxy};

/// What the messages about it begin with.
const KNOWN: &str = "known are https://, http://, either of them with HOST[:PORT]/PATH/, and a directory as /DIR/ or file:///DIR/";

/// Why a text is no prefix of simple discovery.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// `hdfs://`, `ftp://`, and what is no scheme at all.
    #[error("images cannot be fetched by {scheme:?}; {KNOWN}")]
    Scheme {
        /// As written, cut.
        scheme: String,
    },
    /// A path that means another place in each directory, or nothing.
    #[error("{text:?} is no absolute path; {KNOWN}")]
    Relative {
        /// As written, cut.
        text: String,
    },
    /// `file://host/...`: a file of another machine.
    #[error("{text:?} names a host, and files of other machines cannot be read; write file:///DIR/")]
    FileHost {
        /// As written, cut.
        text: String,
    },
    /// A file address with a wrong `%` in it, or one that stands for no text or for NUL.
    #[error("{text:?} has a % that stands for no character of a path")]
    Escape {
        /// As written, cut.
        text: String,
    },
    /// A host, port or path that is none.
    #[error("{text:?} is no address; {KNOWN}")]
    Address {
        /// As written, cut.
        text: String,
    },
    /// A user name, and perhaps a password, which is not repeated.
    #[error("the address of {host} has a user name in it; write it into the docker config instead")]
    UserName {
        /// What follows it, cut.
        host: String,
    },
    /// `?` or `#`: nothing can follow it.
    #[error("{text:?} has a ? or # in it, and the name of an image cannot follow that")]
    Query {
        /// As written, cut.
        text: String,
    },
}

/// A prefix of simple discovery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AppcPrefix {
    /// The scheme alone: images lie at the host that their name begins with, and meta discovery comes second.
    Scheme(Scheme),
    /// An address: images lie below it and nowhere else. It ends with a slash.
    Address(String),
    /// A directory, absolute.
    Directory(PathBuf),
}

impl Default for AppcPrefix {
    fn default() -> Self {
        Self::Scheme(Scheme::Https)
    }
}

impl FromStr for AppcPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let shown = || quote(text);
        if text.starts_with('/') {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match text.split_once(':') {
                Some((scheme, _)) => PrefixError::Scheme { scheme: quote(scheme) },
                None => PrefixError::Relative { text: shown() },
            });
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "file" => return directory(text, rest),
            other => return Err(PrefixError::Scheme { scheme: quote(other) }),
        };
        if rest.is_empty() {
            return Ok(Self::Scheme(scheme));
        }
        // A user name comes with a password, so it is looked for before anything is repeated.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if let Some((_, host)) = authority.rsplit_once('@') {
            return Err(PrefixError::UserName { host: quote(host) });
        }
        if rest.contains(['?', '#']) {
            return Err(PrefixError::Query { text: shown() });
        }
        let slash = if rest.ends_with('/') { "" } else { "/" };
        let address = format!("{}://{rest}{slash}", scheme.text());
        let parsed = address.parse::<Uri>().map_err(|_| PrefixError::Address { text: shown() })?;
        location::checked(parsed).map_err(|_| PrefixError::Address { text: shown() })?;
        Ok(Self::Address(address))
    }
}

fn directory(text: &str, rest: &str) -> Result<AppcPrefix, PrefixError> {
    let shown = || quote(text);
    match rest {
        "" => return Err(PrefixError::Relative { text: shown() }),
        rest if !rest.starts_with('/') => return Err(PrefixError::FileHost { text: shown() }),
        _ => {}
    }
    if rest.contains(['?', '#']) {
        return Err(PrefixError::Query { text: shown() });
    }
    let path = proxy::decoded(rest).filter(|path| !path.contains('\0'));
    path.map(|path| AppcPrefix::Directory(path.into())).ok_or_else(|| PrefixError::Escape { text: shown() })
}

impl fmt::Display for AppcPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(scheme) => write!(f, "{}://", scheme.text()),
            Self::Address(address) => f.write_str(address),
            Self::Directory(path) => write!(f, "{}", Path::display(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AppcPrefix, PrefixError> {
        text.parse()
    }

    #[test]
    fn every_form_of_prefix_is_understood() {
        for (text, meant) in [
            ("https://", AppcPrefix::Scheme(Scheme::Https)),
            ("HTTP://", AppcPrefix::Scheme(Scheme::Http)),
            ("https://h.io:8443/images/", AppcPrefix::Address("https://h.io:8443/images/".into())),
            ("http://h.io", AppcPrefix::Address("http://h.io/".into())),
            ("http://[::1]:80/x", AppcPrefix::Address("http://[::1]:80/x/".into())),
            ("/srv/acis/", AppcPrefix::Directory("/srv/acis/".into())),
            ("file:///srv/a%20b", AppcPrefix::Directory("/srv/a b".into())),
        ] {
            assert_eq!(parse(text), Ok(meant), "{text}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_told_what_is() {
        for text in ["hdfs://namenode/acis/", "ftp://h.io/", "mailto:me"] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, PrefixError::Scheme { .. }), "{text}: {error}");
            assert!(error.to_string().contains("https://"), "{error}");
        }
        for text in ["", "acis/", "./acis", "file://"] {
            assert!(matches!(parse(text), Err(PrefixError::Relative { .. })), "{text}");
        }
        assert!(matches!(parse("file://host/acis"), Err(PrefixError::FileHost { .. })));
        assert!(matches!(parse("file:///a%2"), Err(PrefixError::Escape { .. })));
        assert!(matches!(parse("file:///a%00"), Err(PrefixError::Escape { .. })));
        for text in ["http:///x", "https://h io/", "http://h.io:port/"] {
            assert!(matches!(parse(text), Err(PrefixError::Address { .. })), "{text}");
        }
        assert!(matches!(parse("https://h.io/?q="), Err(PrefixError::Query { .. })));
        let error = parse("https://me:hush@h.io/").unwrap_err();
        assert!(matches!(error, PrefixError::UserName { .. }) && !error.to_string().contains("hush"));
    }
}

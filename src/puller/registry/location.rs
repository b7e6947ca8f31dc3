//! Where a redirect leads: `Location` resolved against the address that sent it (RFC 9110 section 10.2.2, RFC 3986 section 5).
//!
//! Pure. Whether to go there is decided by `http`.

use hyper::Uri;
use hyper::http::uri::Authority;

const OTHER_SCHEME: &str = "it is neither http nor https";

/// The address a `Location` means; the reason when it means none. Fragments are dropped, `.` and `..` are left to the server,
/// as nothing here depends on the path.
pub(in crate::puller) fn resolve(base: &Uri, location: &str) -> Result<Uri, &'static str> {
    let location = location.split('#').next().unwrap_or_default();
    let (Some(scheme), Some(authority)) = (base.scheme_str(), base.authority()) else {
        return Err("the address it is relative to has no host");
    };
    let here = base.path();
    let absolute = match location {
        "" => return Err("it is empty"),
        // A scheme ends at the first colon, and has no slash, question mark or digit in front.
        text if has_scheme(text) => {
            let scheme = text.split(':').next().unwrap_or_default().to_ascii_lowercase();
            if scheme != "http" && scheme != "https" {
                return Err(OTHER_SCHEME);
            }
            text.to_owned()
        }
        text if text.starts_with("//") => format!("{scheme}:{text}"),
        text if text.starts_with('/') => format!("{scheme}://{authority}{text}"),
        text if text.starts_with('?') => format!("{scheme}://{authority}{here}{text}"),
        text => {
            let directory = here.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{scheme}://{authority}{directory}/{text}")
        }
    };
    let target: Uri = absolute.parse().map_err(|_| "it is no address")?;
    checked(target)
}

/// An address that may be asked: http or https, a host, no user name in it.
pub(in crate::puller) fn checked(address: Uri) -> Result<Uri, &'static str> {
    match address.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(OTHER_SCHEME),
    }
    match address.authority() {
        Some(authority) if authority.as_str().contains('@') => Err("it has a user name in it"),
        Some(authority) if authority.host().is_empty() => Err("it has no host"),
        Some(authority) if has_strange_port(authority) => Err("its port is no number"),
        Some(_) => Ok(address),
        None => Err("it has no host"),
    }
}

fn has_strange_port(authority: &Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    !matches!(rest, "" | ":") && authority.port_u16().is_none()
}

/// `host[:port]` of an address, for messages; never its query, which may be a signature.
pub(in crate::puller) fn authority(address: &Uri) -> String {
    address.authority().map_or_else(|| "nowhere".to_owned(), ToString::to_string)
}

fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(location: &str) -> Result<String, &'static str> {
        let base = "https://r.io:5000/v2/app/blobs/x?y=1".parse().unwrap();
        resolve(&base, location).map(|uri| uri.to_string())
    }

    #[test]
    fn every_form_of_location_is_understood() {
        for (location, meant) in [
            ("https://cdn.io/b?sig=1#top", "https://cdn.io/b?sig=1"),
            ("HTTP://cdn.io:80/b", "http://cdn.io:80/b"),
            ("//cdn.io/b", "https://cdn.io/b"),
            ("/storage/b", "https://r.io:5000/storage/b"),
            ("b2", "https://r.io:5000/v2/app/blobs/b2"),
            ("?again", "https://r.io:5000/v2/app/blobs/x?again"),
            ("/a:b/c", "https://r.io:5000/a:b/c"),
        ] {
            assert_eq!(target(location).as_deref(), Ok(meant), "{location}");
        }
    }

    #[test]
    fn what_leads_nowhere_or_into_other_protocols_is_refused() {
        for location in [
            "",
            "#x",
            "ftp://h/x",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https://u:p@h/x",
            "http://",
            "http://h:port/x",
            "http://h:70000/x",
            "https:///x",
            "http://h\\x/",
            "/with space",
            "/bell\u{7}",
            "data:,x",
        ] {
            let target = target(location);
            assert!(target.is_err(), "{location:?} -> {target:?}");
        }
    }
}

//! Which requests go through a proxy: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` as Go's programs read them
//! (golang.org/x/net/http/httpproxy), so that what is set for containerd or docker means the same here.
//!
//! Pure, but for [`Proxies::from_environment`]. What is no proxy is an error of the requests that would use it, not of the start:
//! those of hosts in `NO_PROXY` do not care. A user name and password go to the proxy and into no text.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper::header::HeaderValue;
use keelblock_actors::error::quote;

use super::credentials::{Login, Secret};
use super::endpoint::Scheme;

/// A proxy, and who to be there.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `http://host:port` or `https://host:port`, without a user name.
    pub(super) address: Uri,
    /// `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.address.authority().map_or("nowhere", |authority| authority.as_str());
        write!(f, "{}://{host}", self.address.scheme_str().unwrap_or("http"))
    }
}

/// Why a text is no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Another protocol.
    #[error("{set_by} names a {scheme} proxy, which is not supported; name an http:// or https:// one")]
    Scheme {
        /// The flag or variable.
        set_by: String,
        /// `socks5`.
        scheme: String,
    },
    /// No address. What stands there may be a password, so it is not repeated.
    #[error("{set_by} is no address of a proxy; write http://[USER:PASSWORD@]HOST:PORT")]
    Address {
        /// The flag or variable.
        set_by: String,
    },
}

impl Proxy {
    /// What a flag or variable means; a text without scheme is an http proxy.
    pub fn parse(text: &str, set_by: &str) -> Result<Self, ProxyError> {
        let wrong = || ProxyError::Address { set_by: set_by.to_owned() };
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => "http",
            "https" => "https",
            other if !other.is_empty() && other.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(ProxyError::Scheme { set_by: set_by.to_owned(), scheme: quote(other) });
            }
            _ => return Err(wrong()),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let port = if scheme == "http" { 80 } else { 443 };
        let host = if has_port(host) { host.to_owned() } else { format!("{host}:{port}") };
        let address = Uri::builder().scheme(scheme).authority(host).path_and_query("/").build();
        let address = address.map_err(|_| wrong())?;
        if address.host().is_none_or(str::is_empty) || address.port_u16().is_none_or(|port| port == 0) {
            return Err(wrong());
        }
        let authorization = user.map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            let (user, password) = (decoded(user).ok_or_else(wrong)?, decoded(password).ok_or_else(wrong)?);
            let login = Login {
                user,
                password: Some(Secret::new(password)),
                identity_token: None,
                registry_token: None,
                source: set_by.to_owned(),
            };
            login.basic().ok_or_else(wrong)?.map_err(|_| wrong())
        });
        Ok(Self { address, authorization: authorization.transpose()? })
    }
}

/// `host:port`, where an IPv6 address stands in brackets.
fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
}

/// Without its %-escapes; `None` where one is wrong or the result is no UTF-8.
pub(in crate::puller) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

/// The proxies in force. Empty: every connection is made directly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For hosts spoken to over TLS.
    pub https: Option<Result<Proxy, ProxyError>>,
    /// For hosts spoken to in plain http.
    pub http: Option<Result<Proxy, ProxyError>>,
    /// Who is spoken to directly.
    pub without: NoProxy,
}

impl Proxies {
    /// Those of the environment; `get` reads a variable. The flags of an agent come before them.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| {
                let text = get(name).filter(|text| !text.trim().is_empty())?;
                Some(Proxy::parse(&text, name))
            })
        };
        // Within a CGI program HTTP_PROXY is a header that its client chose (httpoxy).
        let in_cgi = get("REQUEST_METHOD").is_some();
        let http = if in_cgi { &["http_proxy"][..] } else { &["HTTP_PROXY", "http_proxy"] };
        let all = || first(&["ALL_PROXY", "all_proxy"]);
        let without =
            ["NO_PROXY", "no_proxy"].iter().find_map(|name| get(name).filter(|text| !text.is_empty()));
        Self {
            https: first(&["HTTPS_PROXY", "https_proxy"]).or_else(all),
            http: first(http).or_else(all),
            without: NoProxy::parse(&without.unwrap_or_default()),
        }
    }

    /// The proxy that a request to this address goes through.
    pub(super) fn of(&self, address: &Uri) -> Result<Option<&Proxy>, &ProxyError> {
        let over_tls = address.scheme_str() == Some("https");
        let proxy = if over_tls { &self.https } else { &self.http };
        let Some(proxy) = proxy else { return Ok(None) };
        let scheme = if over_tls { Scheme::Https } else { Scheme::Http };
        let port = address.port_u16().unwrap_or(if scheme == Scheme::Https { 443 } else { 80 });
        if address.host().is_none_or(|host| self.without.covers(host, port)) {
            return Ok(None);
        }
        proxy.as_ref().map(Some)
    }

    /// Whether TLS may be spoken to one of them.
    pub(super) fn over_tls(&self) -> bool {
        let over_tls = |proxy: &Proxy| proxy.address.scheme_str() == Some("https");
        [&self.https, &self.http].into_iter().flatten().flatten().any(over_tls)
    }
}

/// `NO_PROXY`: who is spoken to directly. Loopback always is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy {
    all: bool,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// An address, at this port or any.
    Address(IpAddr, Option<u16>),
    /// A network, by its first bits.
    Network(IpAddr, u8),
    /// Names that end so (`.example.com`), at this port or any; with the name itself, or without.
    Suffix { suffix: String, itself: bool, port: Option<u16> },
}

impl NoProxy {
    /// `host`, `.domain`, `*.domain`, an address, a network in CIDR form, each of the hosts with `:port` or without, separated
    /// by commas; `*` is everybody. What is none of these matches nobody.
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for entry in text.split(',').map(|entry| entry.trim().to_ascii_lowercase()) {
            match entry.as_str() {
                "" => {}
                "*" => parsed.all = true,
                entry => parsed.entries.extend(Entry::parse(entry)),
            }
        }
        parsed
    }

    /// Whether this host (a name, an address, an IPv6 one in brackets) is spoken to directly.
    pub(super) fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.all || self.entries.iter().any(|entry| entry.matches(host, address, port))
    }
}

impl Entry {
    fn parse(entry: &str) -> Option<Self> {
        if let Some((address, bits)) = entry.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            let widest = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= widest).then_some(Self::Network(address, bits));
        }
        let address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        if let Some(whole) = address(entry) {
            return Some(Self::Address(whole.to_canonical(), None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().ok()?)),
            None => (entry, None),
        };
        if let Some(address) = address(host) {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let host = if host.starts_with("*.") { &host[1..] } else { host };
        match host.strip_prefix('.') {
            Some("") => None,
            Some(_) => Some(Self::Suffix { suffix: host.to_owned(), itself: false, port }),
            None if host.is_empty() => None,
            None => Some(Self::Suffix { suffix: format!(".{host}"), itself: true, port }),
        }
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, at: u16) -> bool {
        let at_port = |port: &Option<u16>| port.is_none_or(|port| port == at);
        match self {
            Self::Address(own, port) => address == Some(*own) && at_port(port),
            Self::Network(network, bits) => address.is_some_and(|address| within(address, *network, *bits)),
            Self::Suffix { suffix, itself, port } => {
                let ends = host.ends_with(suffix.as_str()) || (*itself && host == &suffix[1..]);
                ends && at_port(port)
            }
        }
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let rest = width - u32::from(bits).min(width);
        a.checked_shr(rest).unwrap_or(0) == b.checked_shr(rest).unwrap_or(0)
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn direct(no_proxy: &str, host: &str, port: u16) -> bool {
        NoProxy::parse(no_proxy).covers(host, port)
    }

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        // Of its package httpproxy: what stands in the variable, and who is spoken to directly.
        let list = "foobar.com, .barbaz.net, *.star.org, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, \
            2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, only.com:5000";
        for (host, port, expected) in [
            ("localhost", 80, true),
            ("127.0.0.1", 5000, true),
            ("127.0.0.2", 80, true),
            ("[::1]", 80, true),
            ("[::ffff:127.0.0.1]", 80, true),
            ("[::2]", 80, false),
            ("192.168.1.1", 80, true),
            ("192.168.1.2", 80, false),
            ("192.168.1.2", 81, true),
            ("192.168.1.3", 80, true),
            ("192.168.1.4", 80, false),
            ("10.0.0.2", 80, true),
            ("10.0.0.4", 80, false),
            ("[2001:db8::52:0:1]", 80, true),
            ("[2001:db8::52:0:2]", 443, true),
            ("[2001:db8::52:0:2]", 80, false),
            ("[2001:db8::52:0:3]", 80, true),
            ("[2002:db8:a::123]", 80, true),
            ("[fe80::424b:c8be:1643:a1b6]", 80, false),
            ("barbaz.net", 80, false),
            ("www.barbaz.net", 80, true),
            ("foobar.com", 80, true),
            ("FooBar.com.", 80, true),
            ("www.foobar.com", 80, true),
            ("foofoobar.com", 80, false),
            ("baz.com", 80, false),
            ("x.star.org", 80, true),
            ("star.org", 80, false),
            ("only.com", 5000, true),
            ("only.com", 443, false),
            ("localhost.net", 80, false),
            ("local.localhost", 80, false),
        ] {
            assert_eq!(direct(list, host, port), expected, "{host}:{port}");
        }
        assert!(direct("a, *", "any.where", 1));
        assert!(direct("0.0.0.0/0", "8.8.8.8", 1) && !direct("0.0.0.0/0", "[2001::1]", 1));
        assert!(direct("::/0", "[2001::1]", 1) && !direct("::/0", "8.8.8.8", 1));
        for nobody in ["", ",,", ".", "*.", "10.0.0.0/33", "10.0.0.0/x", "h:port", ":80"] {
            assert!(!direct(nobody, "h", 80) && !direct(nobody, "10.0.0.1", 80), "{nobody}");
        }
    }

    #[test]
    fn proxies_are_addresses_with_or_without_scheme_and_user() {
        let proxy = |text: &str| Proxy::parse(text, "HTTPS_PROXY");
        for (text, shown, coded) in [
            ("http://p.io:3128", "http://p.io:3128", None),
            ("p.io:3128", "http://p.io:3128", None),
            ("p.io", "http://p.io:80", None),
            ("https://p.io/", "https://p.io:443", None),
            ("http://[::1]", "http://[::1]:80", None),
            // me:s%cret of the RFC's own digits.
            ("http://me:s%25cret@p.io:1", "http://p.io:1", Some("Basic bWU6cyVjcmV0")),
            ("http://me@p.io:1", "http://p.io:1", Some("Basic bWU6")),
            ("http://me:a@b@p.io:1", "http://p.io:1", Some("Basic bWU6YUBi")),
        ] {
            let proxy = proxy(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(proxy.authorization.as_ref().map(|value| value.to_str().unwrap()), coded);
            assert_eq!(format!("{proxy:?}"), shown);
        }
        let socks = proxy("socks5://me:secret@p.io:1080").unwrap_err().to_string();
        assert_eq!(
            socks,
            "HTTPS_PROXY names a socks5 proxy, which is not supported; name an http:// or https:// one"
        );
        for text in
            ["http://", "http://p io", "http://me:secret%@p.io", "http://me:secret@", "://secret", "p.io:0"]
        {
            let error = proxy(text).unwrap_err().to_string();
            assert!(error.contains("is no address") && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn the_environment_is_read_in_the_usual_order() {
        let of = |set: &[(&str, &str)], address: &str| {
            let set: Vec<_> = set.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
            let get = |name: &str| set.iter().find(|(own, _)| own == name).map(|(_, text)| text.clone());
            let proxies = Proxies::from_environment(get);
            proxies
                .of(&address.parse().unwrap())
                .map(|proxy| proxy.map(ToString::to_string))
                .map_err(Clone::clone)
        };
        let both = [("HTTPS_PROXY", "http://s:1"), ("http_proxy", "http://p:1"), ("NO_PROXY", "in.io")];
        assert_eq!(of(&both, "https://r.io/").unwrap().as_deref(), Some("http://s:1"));
        assert_eq!(of(&both, "http://r.io/").unwrap().as_deref(), Some("http://p:1"));
        assert_eq!(of(&both, "https://a.in.io/").unwrap(), None);
        assert_eq!(of(&both, "http://localhost:5000/").unwrap(), None);
        assert_eq!(of(&[], "https://r.io/").unwrap(), None);
        let all = [("ALL_PROXY", "a:1"), ("https_proxy", "s:1")];
        assert_eq!(of(&all, "https://r.io/").unwrap().as_deref(), Some("http://s:1"));
        assert_eq!(of(&all, "http://r.io/").unwrap().as_deref(), Some("http://a:1"));
        let cgi = [("HTTP_PROXY", "evil:1"), ("REQUEST_METHOD", "GET")];
        assert_eq!(of(&cgi, "http://r.io/").unwrap(), None);
        let socks = [("ALL_PROXY", "socks5://a:1"), ("NO_PROXY", "in.io")];
        assert!(of(&socks, "https://r.io/").is_err());
        assert_eq!(of(&socks, "https://in.io/").unwrap(), None, "it would not go there anyway");
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_and_covers_what_it_names(text in "\\PC{0,60}", name in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}") {
            let _ = NoProxy::parse(&text).covers(&name, 80);
            let list = format!("{},{name}", text.replace(['*'], ""));
            prop_assert!(direct(&list, &name, 80));
            let below = format!("sub.{name}");
            prop_assert!(direct(&list, &below, 443));
        }

        #[test]
        fn networks_hold_what_shares_their_first_bits(a: u32, b: u32, bits in 0u8..=32) {
            let within = direct(
                &format!("{}/{bits}", std::net::Ipv4Addr::from(a)), &std::net::Ipv4Addr::from(b).to_string(), 80);
            let same = bits == 0 || (a ^ b) >> (32 - u32::from(bits)) == 0;
            prop_assert_eq!(within, same || std::net::Ipv4Addr::from(b).is_loopback());
        }

        #[test]
        fn what_is_no_proxy_never_shows_its_password(text in "[a-z0-9:/@%#?.\\[\\] ]{0,30}") {
            let text = format!("http://me:hushhush@{text}");
            match Proxy::parse(&text, "P") {
                Ok(proxy) => prop_assert!(!proxy.to_string().contains("hushhush")),
                Err(error) => prop_assert!(!error.to_string().contains("hushhush")),
            }
        }
    }
}

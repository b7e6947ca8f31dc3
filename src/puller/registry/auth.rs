//! What answers a 401: anonymous tokens, tokens for credentials, Basic.
//!
//! A grant (the `Authorization` of one repository at one server) is shown to that server alone. Credentials are chosen by the
//! registry that was asked for, never by where its challenge points, and never travel over plain http to a registry that is
//! spoken to over TLS. Errors name credentials by where they come from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use keelblock_actors::error::{Cause, quote};
use serde::Deserialize;
use tokio::time::Instant;

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Login, named};
use super::endpoint::{Endpoint, Scheme};
use super::error::Said;
use super::failure::HttpError;
use super::http::{Answer, Http, Outgoing};
use super::location;
use super::retry;
use crate::limits::Limits;

/// Lifetime of a token whose server states none: the distribution spec's default.
const LIFETIME: Duration = Duration::from_secs(60);
/// A token this close to its end is not used for a new request.
const MARGIN: Duration = Duration::from_secs(5);
/// Grants kept before expired ones are looked for.
const GRANTS_BEFORE_SWEEP: usize = 1024;

/// Why there is nothing to show to a registry.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A 401 without a usable challenge.
    #[error("it asks for authentication without saying how (WWW-Authenticate: {0:?})")]
    NoChallenge(String),
    /// The address of the token server is none.
    #[error("it names {realm:?} as its token server, but {why}")]
    Realm {
        /// As written, without query, cut.
        realm: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The token server could not be asked.
    #[error("cannot get a token from {server}")]
    Http {
        /// `host:port` of the token server.
        server: String,
        /// Why.
        #[source]
        source: HttpError,
    },
    /// It gives no token.
    #[error("token server {server} answers HTTP {status}{said}; asked {credentials}")]
    Refused {
        /// `host:port` of the token server.
        server: String,
        /// The status.
        status: u16,
        /// What it said.
        said: Said,
        /// As whom it was asked.
        credentials: String,
    },
    /// Its answer holds no token.
    #[error("the answer of token server {server} holds no token")]
    NoToken {
        /// `host:port` of the token server.
        server: String,
    },
    /// It must be told who we are, and nobody told us.
    #[error("it wants a user name and password; give --docker_auth USER:PASSWORD")]
    NoLogin,
    /// See [`Credentials::login`].
    #[error("cannot read the credentials for it")]
    Credentials(#[source] Cause),
}

impl AuthError {
    /// Whether the same question may have another answer later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Http { source, .. } => retry::http_may_pass(source),
            Self::Refused { status, .. } => retry::status_may_pass(*status),
            _ => false,
        }
    }
}

/// What a request shows, and as whom.
#[derive(Clone)]
pub(super) struct Grant {
    header: Option<HeaderValue>,
    /// For messages: `without credentials`, `as USER of --docker_auth`.
    pub(super) credentials: String,
    until: Option<Instant>,
    /// Counts renewals, so that of many requests refused at once one renews.
    generation: u64,
}

impl Grant {
    fn nothing() -> Self {
        Self { header: None, credentials: named(None), until: None, generation: 0 }
    }

    /// The `Authorization` header, if there is one to show.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header.clone()
    }

    fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() + MARGIN < until)
    }
}

/// Server, scheme and repository: what a grant is good for.
type GrantKey = (String, Scheme, String);
type Slot = Arc<tokio::sync::Mutex<Grant>>;

/// The grants, and how to get them.
pub(super) struct Authorizer {
    credentials: Arc<dyn Credentials>,
    limits: Limits,
    grants: Mutex<HashMap<GrantKey, Slot>>,
}

impl Authorizer {
    pub(super) fn new(credentials: Arc<dyn Credentials>, limits: Limits) -> Self {
        Self { credentials, limits, grants: Mutex::default() }
    }

    /// What to show with a first request: the grant of an earlier one, or nothing.
    pub(super) async fn known(&self, endpoint: &Endpoint) -> Grant {
        let slot = self.slot(endpoint);
        let grant = slot.lock().await.clone();
        if grant.is_valid() { grant } else { Grant { header: None, ..grant } }
    }

    /// What to show after a 401 to `used`.
    pub(super) async fn renewed(
        &self,
        http: &Http,
        endpoint: &Endpoint,
        used: &Grant,
        refusal: &Answer,
    ) -> Result<Grant, AuthError> {
        let slot = self.slot(endpoint);
        // Held while the token is fetched: whoever waits here wants that very token.
        let mut grant = slot.lock().await;
        if grant.generation != used.generation && grant.header.is_some() && grant.is_valid() {
            return Ok(grant.clone());
        }
        let login = self.credentials.login(&endpoint.registry).await.map_err(AuthError::Credentials)?;
        let headers = refusal.headers.get_all(hyper::header::WWW_AUTHENTICATE);
        let texts: Vec<_> = headers.iter().map(|text| String::from_utf8_lossy(text.as_bytes())).collect();
        let challenges: Vec<Challenge> = texts.iter().flat_map(|text| challenge::parse(text)).collect();
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let mut fresh = if let Some(bearer) = of("bearer") {
            self.token(http, endpoint, bearer, login).await?
        } else if of("basic").is_some() {
            let login = login.ok_or(AuthError::NoLogin)?;
            Grant { header: Some(basic(&login)?), credentials: named(Some(&login)), ..Grant::nothing() }
        } else {
            return Err(AuthError::NoChallenge(quote(&texts.join(", "))));
        };
        fresh.generation = grant.generation + 1;
        *grant = fresh.clone();
        Ok(fresh)
    }

    async fn token(
        &self,
        http: &Http,
        endpoint: &Endpoint,
        challenge: &Challenge,
        login: Option<Login>,
    ) -> Result<Grant, AuthError> {
        let address = token_address(endpoint, challenge)?;
        let server = location::authority(&address);
        let authorization = login.as_ref().map(basic).transpose()?;
        let failed = |source| AuthError::Http { server: server.clone(), source };
        let answer = http.send(Outgoing { authorization, ..Outgoing::get(address) }).await.map_err(failed)?;
        let status = answer.status.as_u16();
        let limit = self.limits.answer_bytes_max;
        if status != 200 {
            let content_type = answer.header(hyper::header::CONTENT_TYPE).map(str::to_owned);
            let said = Said::in_body(&answer.body.beginning(limit).await, content_type.as_deref());
            return Err(AuthError::Refused { server, status, said, credentials: named(login.as_ref()) });
        }
        let body = answer.body.whole(limit, Some("answer_bytes_max")).await.map_err(failed)?;
        let no_token = || AuthError::NoToken { server: server.clone() };
        // What serde_json says of a body that holds a secret is not repeated.
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| no_token())?;
        let lifetime = answer.lifetime().min(self.limits.token_lifetime_max);
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or_else(no_token)?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| no_token())?;
        header.set_sensitive(true);
        Ok(Grant {
            header: Some(header),
            credentials: named(login.as_ref()),
            until: Some(Instant::now() + lifetime),
            generation: 0,
        })
    }

    fn slot(&self, endpoint: &Endpoint) -> Slot {
        let key = (endpoint.host.server.clone(), endpoint.host.scheme, endpoint.repository.clone());
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() > GRANTS_BEFORE_SWEEP && !grants.contains_key(&key) {
            grants.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|grant| grant.header.is_some() && grant.is_valid())
            });
        }
        grants.entry(key).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Grant::nothing()))).clone()
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

impl TokenAnswer {
    /// As stated, in seconds, number or text; else the default.
    fn lifetime(&self) -> Duration {
        let stated = self.expires_in.as_ref().and_then(|stated| match stated {
            serde_json::Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        });
        stated.filter(|&seconds| seconds > 0).map_or(LIFETIME, Duration::from_secs)
    }
}

/// `realm?service=...&scope=...`; the realm may have a query of its own. Without a scope the right to pull is asked for.
fn token_address(endpoint: &Endpoint, challenge: &Challenge) -> Result<Uri, AuthError> {
    let realm = challenge.parameter("realm").unwrap_or_default();
    let wrong = |why| {
        let shown = realm.split(['?', '#']).next().unwrap_or_default();
        let shown = shown.rsplit_once('@').map_or(shown, |(_, rest)| rest);
        AuthError::Realm { realm: quote(shown), why }
    };
    let mut address = realm.split('#').next().unwrap_or_default().to_owned();
    let mut separator = match address.contains('?') {
        true if address.ends_with(['?', '&']) => "",
        true => "&",
        false => "?",
    };
    let mut add = |name: &str, value: &str| {
        address.push_str(separator);
        address.push_str(name);
        address.push('=');
        encode(value, &mut address);
        separator = "&";
    };
    if let Some(service) = challenge.parameter("service") {
        add("service", service);
    }
    match challenge.parameter("scope") {
        Some(scopes) => scopes.split_ascii_whitespace().for_each(|scope| add("scope", scope)),
        None => add("scope", &format!("repository:{}:pull", endpoint.repository)),
    }
    let address = address.parse().map_err(|_| wrong("that is no address"))?;
    let address = location::checked(address).map_err(wrong)?;
    if endpoint.host.scheme == Scheme::Https && address.scheme_str() != Some("https") {
        return Err(wrong("that is plain http, and the registry itself is not"));
    }
    Ok(address)
}

/// A header cannot fail to be made of base64.
fn basic(login: &Login) -> Result<HeaderValue, AuthError> {
    login.basic().map_err(|_| AuthError::NoLogin)
}

/// Percent-encoding of a value in a query (RFC 3986 section 2.3); what token servers see often stays readable.
fn encode(value: &str, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.push(char::from(HEX[usize::from(byte >> 4)]));
            into.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hosts::Host;
    use super::*;

    fn address(scheme: Scheme, challenge: &str) -> Result<String, String> {
        let host = Arc::new(Host::own("r.io", scheme));
        let endpoint = Endpoint { registry: "r.io".into(), repository: "a/b".into(), host };
        let challenge = challenge::parse(challenge).remove(0);
        token_address(&endpoint, &challenge).map(|uri| uri.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_address_of_a_token_is_made_of_the_challenge() {
        let https = |challenge| address(Scheme::Https, challenge).unwrap();
        assert_eq!(
            https(r#"Bearer realm="https://auth.io/token",service="r.io",scope="repository:a/b:pull,push""#),
            "https://auth.io/token?service=r.io&scope=repository:a/b:pull,push"
        );
        assert_eq!(
            https(r#"Bearer realm="https://auth.io/t?x=1""#),
            "https://auth.io/t?x=1&scope=repository:a/b:pull"
        );
        assert_eq!(
            https(r#"Bearer realm="https://auth.io/t?",service="a b&c=d#é",scope="x  y""#),
            "https://auth.io/t?service=a%20b%26c%3Dd%23%C3%A9&scope=x&scope=y"
        );
        assert_eq!(
            address(Scheme::Http, r#"Bearer realm="http://127.0.0.1:1/t",scope=s"#).unwrap(),
            "http://127.0.0.1:1/t?scope=s"
        );
    }

    #[test]
    fn realms_that_are_no_token_server_are_refused() {
        for (realm, why) in [
            ("", "no address"),
            ("/token", "neither http nor https"),
            ("ftp://auth.io/t", "neither http nor https"),
            ("https://u:secret@auth.io/t", "user name"),
            ("https://a b/", "no address"),
            ("http://auth.io/t?sig=secret", "plain http"),
        ] {
            let error = address(Scheme::Https, &format!("Bearer realm=\"{realm}\"")).unwrap_err();
            assert!(error.contains(why), "{realm}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn lifetimes_are_read_in_every_form() {
        let lifetime = |text: &str| serde_json::from_str::<TokenAnswer>(text).unwrap().lifetime().as_secs();
        assert_eq!(lifetime(r#"{"expires_in":300}"#), 300);
        assert_eq!(lifetime(r#"{"expires_in":"300"}"#), 300);
        for text in [
            "{}",
            r#"{"expires_in":-1}"#,
            r#"{"expires_in":0}"#,
            r#"{"expires_in":1.5}"#,
            r#"{"expires_in":[]}"#,
        ] {
            assert_eq!(lifetime(text), 60, "{text}");
        }
        // Added to the clock only after the cap of token_lifetime_max.
        assert_eq!(lifetime(r#"{"expires_in":18446744073709551615}"#), u64::MAX);
    }
}

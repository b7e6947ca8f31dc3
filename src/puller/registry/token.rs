//! Tokens of a token server: for nobody or for a name and password by GET, for an identity token by POST.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Uri};
use keelblock_actors::error::quote;
use serde::Deserialize;

use super::auth::{AuthError, said};
use super::challenge::Challenge;
use super::credentials::{Login, sensitive};
use super::endpoint::{Endpoint, InsecureRegistries, Scheme};
use super::http::{Answer, Http, Outgoing};
use super::location;
use crate::limits::Limits;

/// Lifetime of a token whose server states none: the distribution spec's default.
const LIFETIME: Duration = Duration::from_secs(60);
/// What we are called at token servers.
const CLIENT: &str = "keelblock";

/// A token, as it is shown.
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) lifetime: Duration,
}

/// Who asks for a token, and for which registry.
pub(super) struct Asking<'a> {
    pub(super) http: &'a Http,
    pub(super) endpoint: &'a Endpoint,
    pub(super) login: Option<&'a Login>,
    /// Whose it is, for messages.
    pub(super) credentials: &'a str,
    pub(super) insecure: &'a InsecureRegistries,
    pub(super) limits: &'a Limits,
}

/// The token that a challenge asks for.
pub(super) async fn get(asking: &Asking<'_>, challenge: &Challenge) -> Result<Token, AuthError> {
    let realm = realm(asking.endpoint, challenge)?;
    let server = location::authority(&realm);
    let plain = realm.scheme_str() != Some("https");
    if plain && asking.login.is_some() && !asking.insecure.may_see_secrets(&server) {
        return Err(AuthError::PlainHttp { server, credentials: asking.credentials.to_owned() });
    }
    let identity = asking.login.and_then(|login| login.identity_token.as_ref());
    let password = asking.login.and_then(|login| login.password.as_ref());
    if let Some(token) = identity {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token.text())];
        let answer = asking.post(&realm, &server, challenge, &form).await?;
        // Servers that know no POST, or nothing of the token: as in containerd a password beside it counts then.
        let unknown = matches!(answer.status.as_u16(), 400 | 401 | 404 | 405);
        if !(unknown && password.is_some()) {
            return asking.token(answer, server).await;
        }
        answer.body.drain().await;
    }
    let answer = asking.get(&realm, &server, challenge).await?;
    if let (Some(login), Some(password), 404 | 405) = (asking.login, password, answer.status.as_u16()) {
        answer.body.drain().await;
        let form = [("grant_type", "password"), ("username", &login.user), ("password", password.text())];
        let answer = asking.post(&realm, &server, challenge, &form).await?;
        return asking.token(answer, server).await;
    }
    asking.token(answer, server).await
}

impl Asking<'_> {
    async fn get(&self, realm: &Uri, server: &str, challenge: &Challenge) -> Result<Answer, AuthError> {
        let authorization = self.login.and_then(Login::basic).transpose();
        // A header cannot fail to be made of base64.
        let authorization = authorization.map_err(|_| AuthError::NoLogin(self.credentials.to_owned()))?;
        let address = token_address(realm, &parameters(self.endpoint, challenge))?;
        self.send(server, Outgoing { authorization, ..Outgoing::get(address) }).await
    }

    async fn post(
        &self,
        realm: &Uri,
        server: &str,
        challenge: &Challenge,
        form: &[(&str, &str)],
    ) -> Result<Answer, AuthError> {
        let parameters = parameters(self.endpoint, challenge);
        let of = |wanted: &str| {
            let values =
                parameters.iter().filter(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
            values.collect::<Vec<_>>().join(" ")
        };
        let (service, scope) = (of("service"), of("scope"));
        let rest = [
            ("service", service.as_str()),
            ("scope", scope.as_str()),
            ("client_id", CLIENT),
            ("access_type", "online"),
        ];
        let mut body = String::new();
        for (name, value) in form.iter().chain(&rest) {
            if !body.is_empty() {
                body.push('&');
            }
            body.push_str(name);
            body.push('=');
            encode(value, &mut body);
        }
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let outgoing = Outgoing {
            method: Method::POST,
            headers: HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]),
            body: Bytes::from(body),
            ..Outgoing::get(realm.clone())
        };
        self.send(server, outgoing).await
    }

    async fn send(&self, server: &str, outgoing: Outgoing) -> Result<Answer, AuthError> {
        // Whoever is believed as a registry is believed as its own token server.
        let trust = match server == self.endpoint.host.server {
            true => Arc::clone(&self.endpoint.host.trust),
            false => self.endpoint.host.trust.elsewhere(),
        };
        let answer = self.http.send(Outgoing { trust, ..outgoing }).await;
        answer.map_err(|source| AuthError::Http { server: server.to_owned(), source })
    }

    async fn token(&self, answer: Answer, server: String) -> Result<Token, AuthError> {
        let status = answer.status.as_u16();
        let limit = self.limits.answer_bytes_max;
        if status != 200 {
            let content_type = answer.header(header::CONTENT_TYPE).map(str::to_owned);
            let body = answer.body.beginning(limit).await;
            let said = said(&body, content_type.as_deref(), self.login, "");
            return Err(AuthError::Refused {
                server,
                status,
                said,
                credentials: self.credentials.to_owned(),
            });
        }
        let body = answer.body.whole(limit, Some("answer_bytes_max")).await;
        let body = body.map_err(|source| AuthError::Http { server: server.clone(), source })?;
        let no_token = || AuthError::NoToken { server: server.clone() };
        // What serde_json says of a body that holds a secret is not repeated.
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| no_token())?;
        let lifetime = answer.lifetime().min(self.limits.token_lifetime_max);
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or_else(no_token)?;
        let header = sensitive(&format!("Bearer {token}")).map_err(|_| no_token())?;
        Ok(Token { header, lifetime })
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

fn wrong(realm: &str, why: &'static str) -> AuthError {
    let shown = realm.split(['?', '#']).next().unwrap_or_default();
    let shown = shown.rsplit_once('@').map_or(shown, |(_, rest)| rest);
    AuthError::Realm { realm: quote(shown), why }
}

/// The address of the token server.
fn realm(endpoint: &Endpoint, challenge: &Challenge) -> Result<Uri, AuthError> {
    let text = challenge.parameter("realm").unwrap_or_default();
    let address = text.split('#').next().unwrap_or_default().parse();
    let address = address.map_err(|_| wrong(text, "that is no address"))?;
    let address = location::checked(address).map_err(|why| wrong(text, why))?;
    if endpoint.host.scheme == Scheme::Https && address.scheme_str() != Some("https") {
        return Err(wrong(text, "that is plain http, and the registry itself is not"));
    }
    Ok(address)
}

/// `service` and `scope`. Without a scope the right to pull is asked for.
fn parameters(endpoint: &Endpoint, challenge: &Challenge) -> Vec<(&'static str, String)> {
    let service = challenge.parameter("service").map(|service| ("service", service.to_owned()));
    let mut parameters = Vec::from_iter(service);
    match challenge.parameter("scope") {
        Some(scopes) => {
            parameters.extend(scopes.split_ascii_whitespace().map(|scope| ("scope", scope.to_owned())));
        }
        None => parameters.push(("scope", format!("repository:{}:pull", endpoint.repository))),
    }
    parameters
}

/// `realm?service=...&scope=...`; the realm may have a query of its own.
fn token_address(realm: &Uri, parameters: &[(&'static str, String)]) -> Result<Uri, AuthError> {
    let mut address = realm.to_string();
    let mut separator = match address.contains('?') {
        true if address.ends_with(['?', '&']) => "",
        true => "&",
        false => "?",
    };
    for (name, value) in parameters {
        address.push_str(separator);
        address.push_str(name);
        address.push('=');
        encode(value, &mut address);
        separator = "&";
    }
    address.parse().map_err(|_| wrong(&realm.to_string(), "that is no address"))
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
    use super::super::challenge;
    use super::super::hosts::Host;
    use super::*;

    fn address(scheme: Scheme, challenge: &str) -> Result<String, String> {
        let host = Arc::new(Host::own("r.io", scheme));
        let endpoint = Endpoint { registry: "r.io".into(), repository: "a/b".into(), host };
        let challenge = challenge::parse(challenge).remove(0);
        let address = realm(&endpoint, &challenge)
            .and_then(|realm| token_address(&realm, &parameters(&endpoint, &challenge)));
        address.map(|uri| uri.to_string()).map_err(|error| error.to_string())
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

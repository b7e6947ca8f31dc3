//! Who to be, and at which registry. Secrets have no `Display`.
//!
//! - `docker_config`: what a `config.json` or `.dockercfg` says of a registry; pure;
//! - `file`: such a file, read when it is first needed and again when it changes;
//! - `places`: where such files lie when no flag names one;
//! - `helper`: programs that keep credentials (`docker-credential-NAME`);
//! - `sources`: all of these, in their order.

pub(super) mod docker_config;
mod file;
mod helper;
mod places;
mod sources;

use std::fmt;
use std::str::FromStr;

use futures_util::future::BoxFuture;
use hyper::header::{HeaderValue, InvalidHeaderValue};
use keelblock_actors::error::{Cause, quote};
use keelblock_actors::image::access::Access;

use crate::base64;

pub use docker_config::{DockerConfig, DockerConfigError};
pub use file::FileError;
pub use helper::HelperError;
pub use places::{UsualPlace, usual_places};
pub use sources::{AccessError, DockerConfigSource, Sources};

/// A text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides it.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whoever shows it to a server.
    pub(in crate::puller) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Who to be at a registry, and where that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name; empty where a token says it all.
    pub user: String,
    /// Password or access token.
    pub password: Option<Secret>,
    /// What a token server gives tokens for, in the place of a password.
    pub identity_token: Option<Secret>,
    /// What the registry itself takes as it is.
    pub registry_token: Option<Secret>,
    /// For messages: `--docker_auth`, the name of a file.
    pub source: String,
}

/// A text is no `USER:PASSWORD`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseLoginError {
    /// No colon: what was given might be a password, so it is not repeated.
    #[error("it must be USER:PASSWORD")]
    NoColon,
    /// Nothing before the colon.
    #[error("it has no user name before the colon")]
    NoUser,
}

impl FromStr for Login {
    type Err = ParseLoginError;

    /// Reads `USER:PASSWORD`; the password is what follows the first colon.
    fn from_str(text: &str) -> Result<Self, ParseLoginError> {
        let (user, password) = text.split_once(':').ok_or(ParseLoginError::NoColon)?;
        if user.is_empty() {
            return Err(ParseLoginError::NoUser);
        }
        Ok(Self::with_password(user.to_owned(), password.to_owned(), "--docker_auth".to_owned()))
    }
}

/// For what credentials are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The host they are for: the registry as names have it (`docker.io`, `host[:port]`), or the server of a mirror.
    pub host: &'a str,
    /// The repository that is asked for there.
    pub repository: &'a str,
    /// Whether the host is a mirror: what is meant for registries in general is not meant for it.
    pub mirror: bool,
    /// What came with the image: it counts alone.
    pub access: Option<&'a Access>,
    /// Whether what was found before was refused, so that nothing remembered may answer.
    pub anew: bool,
}

/// What was found, and where there was nothing.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// `None` to be nobody there.
    pub login: Option<Login>,
    /// For messages: the places that have nothing for the host.
    pub without: Vec<String>,
}

/// Who to be at a registry.
pub trait Credentials: Send + Sync {
    /// The login for a host. Called on a runtime with timers and blocking threads.
    ///
    /// # Errors
    /// When it cannot be told, because a file or helper fails: then the request fails, and nobody is asked as nobody.
    fn login(&self, wanted: Wanted<'_>) -> BoxFuture<'static, Result<Found, Cause>>;
}

/// Nobody, everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn login(&self, _: Wanted<'_>) -> BoxFuture<'static, Result<Found, Cause>> {
        Box::pin(async { Ok(Found::default()) })
    }
}

/// One login, of `--docker_auth`. Never for mirrors.
#[derive(Clone, Debug)]
pub struct LoginFor {
    /// The login.
    pub login: Login,
    /// For these registries only; `None`: for any that an image name names. The latter is for commands, whose images their
    /// user chooses; a program that takes names from others must not hand its password to every registry they think of.
    pub registries: Option<Vec<String>>,
}

impl LoginFor {
    /// The login, if it is for this host.
    fn of(&self, wanted: &Wanted<'_>) -> Option<Login> {
        let known = self.registries.as_ref();
        let here = known.is_none_or(|known| known.iter().any(|known| known == wanted.host));
        (here && !wanted.mirror).then(|| self.login.clone())
    }
}

impl Credentials for LoginFor {
    fn login(&self, wanted: Wanted<'_>) -> BoxFuture<'static, Result<Found, Cause>> {
        let login = self.of(&wanted);
        Box::pin(async { Ok(Found { login, without: Vec::new() }) })
    }
}

impl Login {
    /// A user name and password.
    pub fn with_password(user: String, password: String, source: String) -> Self {
        Self { user, password: Some(Secret(password)), identity_token: None, registry_token: None, source }
    }

    /// The header of Basic authentication (RFC 7617), if there is a password.
    pub(in crate::puller) fn basic(&self) -> Option<Result<HeaderValue, InvalidHeaderValue>> {
        let coded = self.coded()?;
        Some(sensitive(&format!("Basic {coded}")))
    }

    fn coded(&self) -> Option<String> {
        let password = self.password.as_ref()?;
        Some(base64::encode(format!("{}:{}", self.user, password.0).as_bytes()))
    }

    /// A text of a server that this was shown to, without what it may repeat of it.
    pub(in crate::puller) fn wiped(&self, text: &str) -> String {
        let own = [&self.password, &self.identity_token, &self.registry_token];
        let secrets = own.into_iter().flatten().map(|secret| secret.0.clone()).chain(self.coded());
        secrets.fold(text.to_owned(), |text, secret| wipe(&text, &secret))
    }
}

/// The value of a header that must not be printed.
pub(super) fn sensitive(text: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut header = HeaderValue::from_str(text)?;
    header.set_sensitive(true);
    Ok(header)
}

/// The text without the secret, also where JSON writes it with escapes.
pub(super) fn wipe(text: &str, secret: &str) -> String {
    if secret.is_empty() {
        return text.to_owned();
    }
    let text = text.replace(secret, "(secret)");
    let quoted = serde_json::Value::from(secret).to_string();
    let escaped = quoted.trim_matches('"');
    if escaped.is_empty() { text } else { text.replace(escaped, "(secret)") }
}

/// As whom, for messages: `as "USER" of --docker_auth`, `without credentials (none for r.io in FILE)`.
pub(super) fn named(host: &str, found: &Found) -> String {
    match &found.login {
        Some(Login { user, source, registry_token: Some(_), .. }) if user.is_empty() => {
            format!("with the registry token of {source}")
        }
        Some(Login { user, source, .. }) if user.is_empty() => {
            format!("with the identity token of {source}")
        }
        Some(Login { user, source, .. }) => format!("as {:?} of {source}", quote(user)),
        None if found.without.is_empty() => NOBODY.to_owned(),
        None => format!("{NOBODY} (none for {host} in {})", found.without.join(", ")),
    }
}

/// As whom, when nobody has looked yet.
pub(super) const NOBODY: &str = "without credentials";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_and_never_printed() {
        let login: Login = "user:keel:block".parse().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_ref().unwrap().text()), ("user", "keel:block"));
        assert!(!format!("{login:?}").contains("keel"));
        assert_eq!("secret".parse::<Login>(), Err(ParseLoginError::NoColon));
        assert_eq!(":secret".parse::<Login>(), Err(ParseLoginError::NoUser));
        assert!(!format!("{:?}", login.basic().unwrap().unwrap()).contains("Basic"));
    }

    #[test]
    fn what_a_server_repeats_of_a_secret_is_wiped() {
        let login = Login {
            identity_token: Some(Secret::new("id-token".into())),
            ..Login::with_password("user".into(), "p\"w".into(), "x".into())
        };
        let coded = login.coded().unwrap();
        let text = format!("user p\"w p\\\"w {coded} id-token end");
        assert_eq!(login.wiped(&text), "user (secret) (secret) (secret) (secret) end");
    }

    #[test]
    fn messages_name_sources_and_places() {
        let without = vec!["A".to_owned(), "B".to_owned()];
        let nobody = Found { login: None, without };
        assert_eq!(named("r.io", &nobody), "without credentials (none for r.io in A, B)");
        let mut login: Login = "u:p".parse().unwrap();
        let found = |login: &Login| Found { login: Some(login.clone()), without: Vec::new() };
        assert_eq!(named("r.io", &found(&login)), "as \"u\" of --docker_auth");
        login.user.clear();
        login.identity_token = Some(Secret::new("t".into()));
        assert_eq!(named("r.io", &found(&login)), "with the identity token of --docker_auth");
    }
}

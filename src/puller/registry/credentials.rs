//! Who to be, and at which registry. Secrets have no `Display`.

use std::fmt;
use std::str::FromStr;

use futures_util::future::BoxFuture;
use hyper::header::{HeaderValue, InvalidHeaderValue};
use keelblock_actors::error::{Cause, quote};

/// A text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides it.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A user name and password, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password or access token.
    pub password: Secret,
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
        let password = Secret(password.to_owned());
        Ok(Self { user: user.to_owned(), password, source: "--docker_auth".to_owned() })
    }
}

/// Who to be at a registry. Credential files and helpers implement this too.
pub trait Credentials: Send + Sync {
    /// The login for a registry (`docker.io`, `host[:port]`); `None` to be nobody there.
    ///
    /// # Errors
    /// When it cannot be told, because a file or helper fails: then nothing is asked at all.
    fn login(&self, registry: &str) -> BoxFuture<'static, Result<Option<Login>, Cause>>;
}

/// Nobody, everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn login(&self, _: &str) -> BoxFuture<'static, Result<Option<Login>, Cause>> {
        Box::pin(async { Ok(None) })
    }
}

/// One login, of `--docker_auth`.
#[derive(Clone, Debug)]
pub struct LoginFor {
    /// The login.
    pub login: Login,
    /// For these registries only; `None`: for any that an image name names. The latter is for commands, whose images their
    /// user chooses; a program that takes names from others must not hand its password to every registry they think of.
    pub registries: Option<Vec<String>>,
}

impl Credentials for LoginFor {
    fn login(&self, registry: &str) -> BoxFuture<'static, Result<Option<Login>, Cause>> {
        let here = self.registries.as_ref().is_none_or(|known| known.iter().any(|known| known == registry));
        let login = here.then(|| self.login.clone());
        Box::pin(async { Ok(login) })
    }
}

impl Login {
    /// The header of Basic authentication (RFC 7617).
    pub(super) fn basic(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        let mut header = HeaderValue::from_str(&format!("Basic {}", self.coded()))?;
        header.set_sensitive(true);
        Ok(header)
    }

    fn coded(&self) -> String {
        base64(format!("{}:{}", self.user, self.password.0).as_bytes())
    }
}

/// As whom, for messages: `without credentials`, `as "USER" of --docker_auth`.
pub(super) fn named(login: Option<&Login>) -> String {
    match login {
        Some(login) => format!("as {:?} of {}", quote(&login.user), login.source),
        None => "without credentials".to_owned(),
    }
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(text.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn logins_are_read_and_never_printed() {
        let login: Login = "user:keel:block".parse().unwrap();
        assert_eq!((login.user.as_str(), login.password.0.as_str()), ("user", "keel:block"));
        assert!(!format!("{login:?}").contains("keel"));
        assert_eq!("secret".parse::<Login>(), Err(ParseLoginError::NoColon));
        assert_eq!(":secret".parse::<Login>(), Err(ParseLoginError::NoUser));
        assert!(!format!("{:?}", login.basic().unwrap()).contains("Basic"));
    }
}

//! What a docker config says of a registry: `config.json` (also `auth.json` of containers) and the older `.dockercfg`.
//!
//! Pure. Members that are of no interest may be anything. Errors name the member, never what is in it.

use keelblock_actors::error::quote;
use serde_json::{Map, Value};

use super::{Login, Secret};
use crate::base64;

/// The names of Docker Hub. `docker login` writes the first, as an address.
const HUB: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];
/// What image names call it.
const HUB_NAME: &str = "docker.io";
/// What `docker login` calls it, in files and to helpers.
pub(super) const HUB_ADDRESS: &str = "https://index.docker.io/v1/";

/// Why a text is no docker config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// No JSON. What is there is not repeated.
    #[error("it is no JSON from line {line}, column {column} on")]
    NoJson {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// JSON of another form.
    #[error("its member {member} is no {expected}")]
    Form {
        /// Which: `auths`, `auths["r.io"].password`.
        member: String,
        /// What it should be.
        expected: &'static str,
    },
    /// `auth` is no base64 of `user:password`.
    #[error("its member auths[{key:?}].auth is no base64 of USER:PASSWORD")]
    Auth {
        /// Of which entry, cut.
        key: String,
    },
}

/// One entry of `auths`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// As written.
    key: String,
    /// `host` or `host/path`, without scheme; `docker.io` for all names of Docker Hub.
    place: String,
    user: String,
    password: Option<Secret>,
    identity_token: Option<Secret>,
    registry_token: Option<Secret>,
}

/// What a docker config says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    entries: Vec<Entry>,
    /// Helpers by host.
    helpers: Vec<(String, String)>,
    store: Option<String>,
}

impl DockerConfig {
    /// Reads one.
    ///
    /// # Errors
    /// [`DockerConfigError`]. A text of no interest whatever (`{}`) is a config that says nothing.
    pub fn parse(text: &str) -> Result<Self, DockerConfigError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| DockerConfigError::NoJson { line: error.line(), column: error.column() })?;
        let Value::Object(root) = value else {
            return Err(form("(the whole)", "object"));
        };
        let is_new = ["auths", "credHelpers", "credsStore"].iter().any(|name| root.contains_key(*name));
        if !is_new {
            // `.dockercfg`: entries alone. Other files of no entries at all look like it.
            let entries = root.iter().filter_map(|(key, value)| Some((key, value.as_object()?)));
            let entries: Result<Vec<_>, _> = entries.map(|(key, value)| entry(key, value)).collect();
            return Ok(Self { entries: entries?, ..Self::default() });
        }
        let mut config = Self::default();
        for (key, value) in object(&root, "auths")?.into_iter().flatten() {
            let Value::Object(value) = value else {
                return Err(form(&member(key, None), "object"));
            };
            config.entries.push(entry(key, value)?);
        }
        for (key, value) in object(&root, "credHelpers")?.into_iter().flatten() {
            let Value::String(helper) = value else {
                return Err(form(&format!("credHelpers[{:?}]", quote(key)), "text"));
            };
            config.helpers.push((place(key), helper.clone()));
        }
        config.store = text_of(&root, "credsStore", || "credsStore".to_owned())?;
        Ok(config)
    }

    /// The login for a repository of a registry: the entry of the longest part of its path, or of the host.
    pub(super) fn login(&self, host: &str, repository: &str, source: &str) -> Option<Login> {
        let host = host_name(host);
        let mut path = repository;
        loop {
            let wanted = if path.is_empty() { host.clone() } else { format!("{host}/{path}") };
            let of_place =
                self.entries.iter().filter(|entry| entry.place == wanted && entry.says_something());
            // Two ways to write one place: the plain one counts first, then that of `docker login`.
            let rank = |entry: &&Entry| match entry.key == wanted {
                true => 0,
                false if entry.key == HUB_ADDRESS => 1,
                false => 2,
            };
            if let Some(entry) = of_place.min_by_key(rank) {
                return Some(entry.login(source));
            }
            if path.is_empty() {
                return None;
            }
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }

    /// The helper that is named for this host.
    pub(super) fn helper(&self, host: &str) -> Option<&str> {
        let host = host_name(host);
        let found = self.helpers.iter().find(|(place, helper)| *place == host && !helper.is_empty());
        found.map(|(_, helper)| helper.as_str())
    }

    /// The helper for all hosts.
    pub(super) fn store(&self) -> Option<&str> {
        self.store.as_deref().filter(|store| !store.is_empty())
    }
}

impl Entry {
    /// Beside a `credsStore` docker writes entries that are empty.
    fn says_something(&self) -> bool {
        self.password.is_some() || self.identity_token.is_some() || self.registry_token.is_some()
    }

    fn login(&self, source: &str) -> Login {
        Login {
            user: self.user.clone(),
            password: self.password.clone(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
            source: source.to_owned(),
        }
    }
}

fn entry(key: &str, value: &Map<String, Value>) -> Result<Entry, DockerConfigError> {
    let text = |name: &str| text_of(value, name, || member(key, Some(name)));
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (mut user, mut password) = (text("username")?.unwrap_or_default(), filled(text("password")?));
    if let Some(coded) = filled(text("auth")?) {
        let wrong = || DockerConfigError::Auth { key: quote(key) };
        let decoded = String::from_utf8(base64::decode(&coded).ok_or_else(wrong)?).map_err(|_| wrong())?;
        let (name, secret) = decoded.split_once(':').ok_or_else(wrong)?;
        user = name.to_owned();
        // Old versions of docker filled it up.
        password = filled(Some(secret.trim_end_matches('\0').to_owned()));
    }
    let secret = |text: Option<String>| filled(text).map(Secret);
    Ok(Entry {
        key: key.to_owned(),
        place: place(key),
        user,
        password: password.map(Secret),
        identity_token: secret(text("identitytoken")?),
        registry_token: secret(text("registrytoken")?),
    })
}

/// The place that a key means. With a scheme it is an address, and `/v1/` and `/v2/` are that of the API.
fn place(key: &str) -> String {
    // Schemes are the same in any case (RFC 3986 section 3.1).
    let without = |scheme: &str| {
        let start = key.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| &key[scheme.len()..])
    };
    let rest = without("https://").or_else(|| without("http://")).unwrap_or(key);
    let rest = rest.trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host_name(host);
    match path {
        "" | "v1" | "v2" => host,
        path => format!("{host}/{path}"),
    }
}

fn host_name(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    if HUB.contains(&host.as_str()) { HUB_NAME.to_owned() } else { host }
}

fn object<'a>(
    root: &'a Map<String, Value>,
    name: &'static str,
) -> Result<Option<&'a Map<String, Value>>, DockerConfigError> {
    match root.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(form(name, "object")),
    }
}

fn text_of(
    object: &Map<String, Value>,
    name: &str,
    member: impl FnOnce() -> String,
) -> Result<Option<String>, DockerConfigError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(form(&member(), "text")),
    }
}

fn member(key: &str, name: Option<&str>) -> String {
    let of = format!("auths[{:?}]", quote(key));
    name.map_or_else(|| of.clone(), |name| format!("{of}.{name}"))
}

fn form(member: &str, expected: &'static str) -> DockerConfigError {
    DockerConfigError::Form { member: member.to_owned(), expected }
}

/// What must hold of any text: body of the fuzz target `docker_config`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn holds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let config = match DockerConfig::parse(text) {
        Ok(config) => config,
        Err(error) => {
            // A member's name may be repeated, cut; nothing else.
            assert!(error.to_string().len() < 2200, "{error}");
            return;
        }
    };
    for entry in &config.entries {
        let (host, path) = entry.place.split_once('/').unwrap_or((&entry.place, ""));
        // Whoever pulls from exactly there is given something, whatever stands beside it.
        if entry.says_something() && !path.starts_with('/') && !path.ends_with('/') {
            let login = config.login(host, path, "x").expect("a login");
            assert!(
                login.password.is_some() || login.identity_token.is_some() || login.registry_token.is_some()
            );
            assert!(config.login(host, format!("{path}/more").trim_start_matches('/'), "x").is_some());
        }
        assert!(!entry.place.starts_with("https://") || entry.key.matches("://").count() > 1);
    }
    let shown = format!("{config:?}");
    for entry in &config.entries {
        for secret in [&entry.password, &entry.identity_token, &entry.registry_token].into_iter().flatten() {
            // One that cannot be in the rest by chance.
            let alone = secret.0.len() > 12 && text.matches(secret.0.as_str()).count() == 1;
            assert!(!alone || !shown.contains(secret.0.as_str()), "a secret is printed");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn auth(text: &str) -> String {
        base64::encode(text.as_bytes())
    }

    fn who(config: &str, host: &str, repository: &str) -> Option<(String, String)> {
        let config = DockerConfig::parse(config).unwrap_or_else(|error| panic!("{config}: {error}"));
        let login = config.login(host, repository, "file")?;
        Some((login.user, login.password.map(|secret| secret.0).unwrap_or_default()))
    }

    fn is(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn a_scheme_is_one_in_any_case() {
        for key in ["https://r.io", "HTTPS://R.io/v2/", "httPs://r.io/v1/", "HTTP://r.io/"] {
            let config = serde_json::json!({"auths": {key: {"auth": auth("u:p")}}}).to_string();
            assert_eq!(who(&config, "r.io", "app"), is("u", "p"), "{key}");
        }
    }

    #[test]
    fn the_longest_path_wins_then_the_host() {
        let config = serde_json::json!({"auths": {
            "r.io": {"auth": auth("host:1")},
            "r.io/team": {"auth": auth("team:2")},
            "r.io/team/app": {"auth": auth("app:3")},
        }})
        .to_string();
        assert_eq!(who(&config, "r.io", "team/app"), is("app", "3"));
        assert_eq!(who(&config, "r.io", "team/app/deeper"), is("app", "3"));
        assert_eq!(who(&config, "r.io", "team/application"), is("team", "2"));
        assert_eq!(who(&config, "r.io", "teams"), is("host", "1"));
        assert_eq!(who(&config, "R.io", "x"), is("host", "1"));
        for other in ["r.io:5000", "xr.io", "docker.io"] {
            assert_eq!(who(&config, other, "team/app"), None, "{other}");
        }
    }

    #[test]
    fn every_spelling_of_a_place_is_understood() {
        for key in [
            "docker.io",
            "index.docker.io",
            "registry-1.docker.io",
            "https://index.docker.io/v1/",
            "https://registry-1.docker.io/v2/",
            "http://docker.io",
            "https://Docker.io/",
        ] {
            let config = serde_json::json!({"auths": {key: {"auth": auth("u:p")}}}).to_string();
            assert_eq!(who(&config, "docker.io", "library/alpine"), is("u", "p"), "{key}");
            assert_eq!(who(&config, "quay.io", "x"), None);
        }
        for key in ["r.io:5000", "https://r.io:5000", "http://r.io:5000/v1/", "r.io:5000/v2"] {
            let config = serde_json::json!({"auths": {key: {"auth": auth("u:p")}}}).to_string();
            assert_eq!(who(&config, "r.io:5000", "x"), is("u", "p"), "{key}");
            assert_eq!(who(&config, "r.io", "x"), None, "{key}");
        }
        // Docker Desktop's own tokens lie beside the entry of the Hub and are not for registries.
        let desktop = serde_json::json!({"auths": {
            "https://index.docker.io/v1/access-token": {"auth": auth("a:b")},
            "https://index.docker.io/v1/": {"auth": auth("u:p")},
        }})
        .to_string();
        assert_eq!(who(&desktop, "docker.io", "x"), is("u", "p"));
    }

    #[test]
    fn every_form_of_an_entry_is_understood() {
        let one = |entry: serde_json::Value| {
            let text = serde_json::json!({"auths": {"r.io": entry}}).to_string();
            DockerConfig::parse(&text).unwrap().login("r.io", "x", "f")
        };
        let password = |text: &str| Some(Secret(text.to_owned()));
        let plain = one(serde_json::json!({"username": "u", "password": "p:q", "email": "e"})).unwrap();
        assert_eq!((plain.user.as_str(), plain.password), ("u", password("p:q")));
        let coded = one(serde_json::json!({"auth": auth("u:p:q\0\0"), "username": "other"})).unwrap();
        assert_eq!((coded.user.as_str(), coded.password), ("u", password("p:q")));
        let identity = one(serde_json::json!({"auth": auth("0000:"), "identitytoken": "t"})).unwrap();
        assert_eq!((identity.password, identity.identity_token), (None, password("t")));
        let token = one(serde_json::json!({"registrytoken": "t"})).unwrap();
        assert_eq!(token.registry_token, password("t"));
        assert_eq!(one(serde_json::json!({})), None);
        assert_eq!(one(serde_json::json!({"auth": "", "password": null})), None);
    }

    #[test]
    fn dockercfg_is_entries_alone() {
        let old = serde_json::json!({
            "https://index.docker.io/v1/": {"auth": auth("u:p"), "email": "x@y"}, "r.io": {"auth": auth("v:q")},
        })
        .to_string();
        assert_eq!(who(&old, "docker.io", "a/b"), is("u", "p"));
        assert_eq!(who(&old, "r.io", "a/b"), is("v", "q"));
        for nothing in ["{}", r#"{"HttpHeaders":{"X":"y"},"psFormat":"x"}"#, r#"{"auths":null}"#] {
            assert_eq!(who(nothing, "r.io", "x"), None, "{nothing}");
        }
    }

    #[test]
    fn helpers_are_found_by_host() {
        let config = r#"{"credHelpers":{"https://index.docker.io/v1/":"hub","r.io":"ecr-login","e.io":""},"credsStore":"pass"}"#;
        let config = DockerConfig::parse(config).unwrap();
        assert_eq!(config.helper("docker.io"), Some("hub"));
        assert_eq!(config.helper("r.io"), Some("ecr-login"));
        assert_eq!((config.helper("e.io"), config.helper("x.io")), (None, None));
        assert_eq!(config.store(), Some("pass"));
    }

    #[test]
    fn what_is_wrong_is_named_and_never_shown() {
        for (text, expected) in [
            ("hush", "it is no JSON from line 1, column 1 on"),
            ("{\"auths\":\n{\"hush\"}}", "it is no JSON from line 2, column 8 on"),
            ("[\"hush\"]", "its member (the whole) is no object"),
            (r#"{"auths":"hush"}"#, "its member auths is no object"),
            (r#"{"auths":{"r.io":"hush"}}"#, "its member auths[\"r.io\"] is no object"),
            (r#"{"auths":{"r.io":{"auth":["hush"]}}}"#, "its member auths[\"r.io\"].auth is no text"),
            (
                r#"{"auths":{"r.io":{"auth":"hush!"}}}"#,
                "its member auths[\"r.io\"].auth is no base64 of USER:PASSWORD",
            ),
            (
                r#"{"auths":{"r.io":{"auth":"aHVzaA=="}}}"#,
                "its member auths[\"r.io\"].auth is no base64 of USER:PASSWORD",
            ),
            (r#"{"credHelpers":{"r.io":7}}"#, "its member credHelpers[\"r.io\"] is no text"),
            (r#"{"credsStore":{}}"#, "its member credsStore is no text"),
        ] {
            let error = DockerConfig::parse(text).unwrap_err().to_string();
            assert_eq!(error, expected);
            assert!(!error.contains("hush"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            holds(text.as_bytes());
        }

        #[test]
        fn what_docker_login_writes_is_found(
            host in "[a-z]{1,8}\\.io(:[1-9][0-9]{0,3})?",
            path in proptest::collection::vec("[a-z]{1,6}", 0..4),
            user in "[a-z]{1,8}",
            password in "[ -~]{1,20}",
            scheme in prop_oneof![Just(""), Just("https://"), Just("http://")],
        ) {
            let path = path.join("/");
            let key = if path.is_empty() { host.clone() } else { format!("{host}/{path}") };
            let entry = serde_json::json!({"auth": auth(&format!("{user}:{password}"))});
            let text = serde_json::json!({"auths": {format!("{scheme}{key}"): entry, "other.io": {}}}).to_string();
            holds(text.as_bytes());
            let found = who(&text, &host, &path);
            prop_assert_eq!(found, is(&user, &password));
        }
    }
}

//! What answers a 401: anonymous tokens, tokens for credentials, Basic.
//!
//! A grant (the `Authorization` of one repository at one server) is shown to that server alone. Credentials are chosen by the
//! host that is asked, never by where its challenge points; they never travel over plain http to where nobody allowed it
//! (`--docker_insecure_registries`), nor to a token server over plain http when the registry is spoken to over TLS. Errors name
//! credentials by where they come from, and what servers say is repeated without them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderValue};
use keelblock_actors::error::{Cause, quote};
use keelblock_actors::image::access::Access;
use tokio::time::Instant;

use super::RegistrySettings;
use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Found, Login, NOBODY, Wanted, named, sensitive, wipe};
use super::endpoint::{Endpoint, InsecureRegistries, Scheme};
use super::error::Said;
use super::failure::HttpError;
use super::http::{Http, Outgoing};
use super::retry;
use super::token::{self, Asking};
use crate::limits::Limits;

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
    #[error("asked {0}: it wants a user name and password; give --docker_auth USER:PASSWORD")]
    NoLogin(String),
    /// Secrets would travel for everybody to read.
    #[error(
        "credentials ({credentials}) are not sent to {server} over plain http, where anybody on the way can read them; let it speak TLS, or add it to --docker_insecure_registries"
    )]
    PlainHttp {
        /// `host:port`, of the registry or its token server.
        server: String,
        /// Whose.
        credentials: String,
    },
    /// See [`Credentials::login`].
    #[error("cannot find out who to be there")]
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
    /// What it was made of.
    login: Option<Arc<Login>>,
    until: Option<Instant>,
    /// Counts renewals, so that of many requests refused at once one renews.
    generation: u64,
}

impl Grant {
    fn nothing() -> Self {
        Self { header: None, credentials: NOBODY.to_owned(), login: None, until: None, generation: 0 }
    }

    /// The `Authorization` header, if there is one to show.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header.clone()
    }

    fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() + MARGIN < until)
    }

    /// The words in an answer to this, without what they may repeat of it.
    pub(super) fn said(&self, body: &[u8], content_type: Option<&str>) -> Said {
        let shown = self.header.as_ref().and_then(|header| header.to_str().ok());
        let secret = shown.and_then(|text| text.split_once(' ')).map_or("", |(_, secret)| secret);
        said(body, content_type, self.login.as_deref(), secret)
    }
}

/// The words in an answer of a server that these secrets were shown to, without them.
pub(super) fn said(body: &[u8], content_type: Option<&str>, login: Option<&Login>, secret: &str) -> Said {
    let wiped = |text: &str| {
        let text = wipe(text, secret);
        login.map_or(text.clone(), |login| login.wiped(&text))
    };
    // Before anything is cut, so that no half of a secret is left.
    let body = wiped(&String::from_utf8_lossy(body));
    let Said(text) = Said::in_body(body.as_bytes(), content_type);
    Said(text.map(|text| wiped(&text)))
}

/// What a grant is good for: server, scheme, repository, whether it is asked as a mirror, and who asks.
type GrantKey = (String, Scheme, String, bool, Option<Access>);
type Slot = Arc<tokio::sync::Mutex<Grant>>;

/// The grants, and how to get them.
pub(super) struct Authorizer {
    credentials: Arc<dyn Credentials>,
    insecure: InsecureRegistries,
    limits: Limits,
    grants: Mutex<HashMap<GrantKey, Slot>>,
}

impl Authorizer {
    pub(super) fn new(settings: &RegistrySettings) -> Self {
        Self {
            credentials: settings.credentials.clone(),
            insecure: settings.insecure.clone(),
            limits: settings.limits.clone(),
            grants: Mutex::default(),
        }
    }

    /// What to show with a first request: the grant of an earlier one, or nothing.
    pub(super) async fn known(&self, endpoint: &Endpoint, access: Option<&Access>) -> Grant {
        let slot = self.slot(endpoint, access);
        let grant = slot.lock().await.clone();
        if grant.is_valid() { grant } else { Grant { header: None, ..grant } }
    }

    /// What to show after a 401 to `used`, whose headers are `refusal`.
    pub(super) async fn renewed(
        &self,
        http: &Http,
        endpoint: &Endpoint,
        access: Option<&Access>,
        used: &Grant,
        refusal: &HeaderMap,
    ) -> Result<Grant, AuthError> {
        let slot = self.slot(endpoint, access);
        // Held while the token is fetched: whoever waits here wants that very token.
        let mut grant = slot.lock().await;
        if grant.generation != used.generation && grant.header.is_some() && grant.is_valid() {
            return Ok(grant.clone());
        }
        let challenges = Challenges::of(refusal);
        let anew = used.header.is_some();
        let found = self.find(endpoint, access, anew).await?;
        let login = found.login.clone();
        let mut fresh = match self.answer(http, endpoint, found, &challenges).await {
            // What was remembered of a helper may have ended.
            Err(refused @ AuthError::Refused { status: 401 | 403, .. }) if login.is_some() && !anew => {
                let newer = self.find(endpoint, access, true).await?;
                if newer.login == login {
                    return Err(refused);
                }
                self.answer(http, endpoint, newer, &challenges).await?
            }
            answer => answer?,
        };
        fresh.generation = grant.generation + 1;
        *grant = fresh.clone();
        Ok(fresh)
    }

    /// What to show after a 403 or 404 to a request that showed nothing: what the API itself asks for, if we have credentials.
    /// Without any the grant is empty, and names the places that have none.
    pub(super) async fn unasked(
        &self,
        http: &Http,
        endpoint: &Endpoint,
        access: Option<&Access>,
        used: &Grant,
    ) -> Result<Grant, AuthError> {
        let slot = self.slot(endpoint, access);
        let mut grant = slot.lock().await;
        if grant.generation != used.generation && grant.header.is_some() && grant.is_valid() {
            return Ok(grant.clone());
        }
        let found = self.find(endpoint, access, false).await?;
        let credentials = named(&endpoint.host.name, &found);
        let Some(login) = found.login.as_ref() else { return Ok(Grant { credentials, ..Grant::nothing() }) };
        let challenge = match endpoint.base() {
            Some(base) => {
                let ping = Outgoing {
                    private: endpoint.host.headers.clone(),
                    trust: Arc::clone(&endpoint.host.trust),
                    connect: endpoint.host.connect,
                    ..Outgoing::get(base)
                };
                http.send(ping).await.ok().filter(|answer| answer.status == 401 && !answer.redirected)
            }
            None => None,
        };
        let mut fresh = match challenge {
            Some(challenge) => {
                // Of its scope only the registry knows which repository it has in mind.
                let challenges = Challenges::of(&challenge.headers).without_scope();
                self.answer(http, endpoint, found, &challenges).await?
            }
            None => match shown_as_it_is(login)? {
                Some(header) => self.lasting(header, credentials, login.clone()),
                // An identity token is for a token server, and nobody named one.
                None => return Ok(Grant { credentials, ..Grant::nothing() }),
            },
        };
        fresh.generation = grant.generation + 1;
        *grant = fresh.clone();
        Ok(fresh)
    }

    async fn find(
        &self,
        endpoint: &Endpoint,
        access: Option<&Access>,
        anew: bool,
    ) -> Result<Found, AuthError> {
        let host = &endpoint.host;
        let wanted =
            Wanted { host: &host.name, repository: &endpoint.repository, mirror: host.mirror, access, anew };
        let found = self.credentials.login(wanted).await.map_err(AuthError::Credentials)?;
        if found.login.is_some()
            && host.scheme == Scheme::Http
            && !(self.insecure.may_see_secrets(&host.server) || self.insecure.may_see_secrets(&host.name))
        {
            let (server, credentials) = (host.server.clone(), named(&host.name, &found));
            return Err(AuthError::PlainHttp { server, credentials });
        }
        Ok(found)
    }

    /// The grant that a challenge asks for.
    async fn answer(
        &self,
        http: &Http,
        endpoint: &Endpoint,
        found: Found,
        challenges: &Challenges,
    ) -> Result<Grant, AuthError> {
        let credentials = named(&endpoint.host.name, &found);
        if let Some(login) = found.login.as_ref().filter(|login| login.registry_token.is_some())
            && let Some(header) = shown_as_it_is(login)?
        {
            return Ok(self.lasting(header, credentials, login.clone()));
        }
        if let Some(bearer) = challenges.by("bearer") {
            let asking = Asking {
                http,
                endpoint,
                login: found.login.as_ref(),
                credentials: &credentials,
                insecure: &self.insecure,
                limits: &self.limits,
            };
            let token = token::get(&asking, bearer).await?;
            let until = Some(Instant::now() + token.lifetime);
            let login = found.login.map(Arc::new);
            Ok(Grant { header: Some(token.header), credentials, login, until, generation: 0 })
        } else if challenges.by("basic").is_some() {
            let Some(login) = found.login else { return Err(AuthError::NoLogin(credentials)) };
            let header = login.basic().transpose().ok().flatten();
            let header = header.ok_or_else(|| AuthError::NoLogin(credentials.clone()))?;
            Ok(self.lasting(header, credentials, login))
        } else {
            Err(AuthError::NoChallenge(quote(&challenges.text)))
        }
    }

    /// A grant that has no end of its own. It is made anew now and then, so that what nobody asks for any more can go.
    fn lasting(&self, header: HeaderValue, credentials: String, login: Login) -> Grant {
        let until = Some(Instant::now() + self.limits.token_lifetime_max);
        Grant { header: Some(header), credentials, login: Some(Arc::new(login)), until, generation: 0 }
    }

    fn slot(&self, endpoint: &Endpoint, access: Option<&Access>) -> Slot {
        let Endpoint { host, repository, .. } = endpoint;
        let key = (host.server.clone(), host.scheme, repository.clone(), host.mirror, access.cloned());
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

/// In which ways an answer says that one may authenticate.
struct Challenges {
    parsed: Vec<Challenge>,
    text: String,
}

impl Challenges {
    fn of(headers: &HeaderMap) -> Self {
        let headers = headers.get_all(header::WWW_AUTHENTICATE);
        let texts: Vec<_> = headers.iter().map(|text| String::from_utf8_lossy(text.as_bytes())).collect();
        let parsed = texts.iter().flat_map(|text| challenge::parse(text)).collect();
        Self { parsed, text: texts.join(", ") }
    }

    fn without_scope(mut self) -> Self {
        self.parsed.iter_mut().for_each(|challenge| challenge.remove("scope"));
        self
    }

    fn by(&self, scheme: &str) -> Option<&Challenge> {
        self.parsed.iter().find(|challenge| challenge.scheme == scheme)
    }
}

/// What a registry takes without a token server in between.
fn shown_as_it_is(login: &Login) -> Result<Option<HeaderValue>, AuthError> {
    let header = match &login.registry_token {
        Some(token) => Some(sensitive(&format!("Bearer {}", token.text()))),
        None => login.basic(),
    };
    header.transpose().map_err(|_| {
        let why = format!("the token of {} has characters that no header may have", login.source);
        AuthError::Credentials(why.into())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::ask::Question;
    use super::super::error::{Asked, RegistryError};
    use super::super::test_registry::{Reply, TestRegistry};
    use super::super::{LoginFor, RegistryClient, RegistrySettings};
    use super::*;

    fn client() -> RegistryClient {
        let mut settings = RegistrySettings::new(Limits { retries_max: 0, ..Limits::default() });
        settings.credentials = Arc::new(LoginFor { login: "u:p".parse().unwrap(), registries: None });
        let log = slog::Logger::root(slog::Discard, slog::o!());
        RegistryClient::new(settings, tokio::runtime::Handle::current(), log)
    }

    /// The rest of a blob, as whoever resumes asks for it.
    fn rest(registry: &TestRegistry, from: usize) -> Question {
        let asked =
            Asked { what: "blob", name: "b".into(), repository: "app".into(), registry: registry.host() };
        let range = HeaderValue::from_str(&format!("bytes={from}-")).unwrap();
        Question::get(asked, "blobs/b".into()).header(header::RANGE, range)
    }

    #[tokio::test]
    async fn a_token_that_dies_in_the_middle_of_a_layer_is_renewed_once_for_all_who_resume() {
        let (registry, server) = (TestRegistry::start(), TestRegistry::start());
        let (valid, given) = (Arc::new(Mutex::new(Vec::new())), AtomicUsize::new(0));
        registry.demand_bearer(format!("{}/token", server.url()), valid.clone());
        registry.on("/v2/app/blobs/b", Reply::new(206, "rest"));
        let giving = valid.clone();
        server.script(move |_| {
            let token = format!("t{}", given.fetch_add(1, Ordering::SeqCst));
            giving.lock().unwrap().push(token.clone());
            Some(Reply::new(200, format!(r#"{{"token":"{token}","expires_in":3000}}"#)))
        });
        let client = client();
        let session = client.session(None);
        for round in 1..=5 {
            let all = (0..4).map(|part| {
                let (session, question) = (session.clone(), rest(&registry, part));
                async move { session.get(&question).await.map(|served| served.answer.status.as_u16()) }
            });
            for status in futures_util::future::join_all(all).await {
                assert_eq!(status.unwrap(), 206);
            }
            assert_eq!(server.seen().len(), round, "all who were refused at once share one new token");
            valid.lock().unwrap().clear();
        }
    }

    #[tokio::test]
    async fn a_renewed_token_that_is_refused_too_ends_the_question() {
        let (registry, server) = (TestRegistry::start(), TestRegistry::start());
        registry.demand_bearer(format!("{}/token", server.url()), Arc::default());
        let given = AtomicUsize::new(0);
        server.script(move |_| {
            let token = given.fetch_add(1, Ordering::SeqCst);
            Some(Reply::new(200, format!(r#"{{"token":"t{token}"}}"#)))
        });
        let session = client().session(None);
        for asked in [2, 4] {
            let error = session.get(&rest(&registry, 0)).await.err().unwrap();
            assert!(matches!(error, RegistryError::Denied { status: 401, .. }), "{error}");
            assert_eq!(registry.seen().len(), asked);
        }
        assert_eq!(server.seen().len(), 2);
    }
}

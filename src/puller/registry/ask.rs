//! One question to a registry: its servers in turn, each with patience, the right authorization, and every refusal in
//! words.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use futures_util::future::BoxFuture;
use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use keelblock_actors::error::{chain, quote};
use keelblock_actors::image::reference::Reference;
use keelblock_actors::transfer::Transfer;
use slog::{debug, info, warn};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Task;
use super::auth::Grant;
use super::client::Session;
use super::endpoint::{Endpoint, Scheme};
use super::error::{Asked, RegistryError, Tried};
use super::failure::HttpError;
use super::hosts_toml::HostsFile;
use super::http::{Answer, Outgoing};
use super::retry::{Pauses, retry_after};

const WANTS_TLS: &str = "; it wants TLS: name it as https://... in --docker_registry";

const WANTS_CERTIFICATE: &str =
    "; it wants a client certificate that it knows: name one as `client` in its hosts.toml";

/// What a server must be able to do to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Tell what a tag means.
    Resolve,
    /// Give what a digest names.
    Pull,
    /// Say whether we may have it: the registry itself, for a mirror gives it to anybody.
    Authorize,
}

/// One question about a repository.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// What is asked, and in which repository.
    pub(super) asked: Asked,
    /// Its path in the API, below the repository: `manifests/latest`.
    pub(super) what: String,
    pub(super) method: Method,
    pub(super) need: Need,
    /// Besides those that every request has. With a `Range` among them the answer may be a 206.
    pub(super) headers: HeaderMap,
    /// How many bytes it has, where that is known: a server that announces another number has something else.
    pub(super) size: Option<u64>,
    /// Whom it is asked for, and told of: of its servers those that this one avoids are left out while there are others.
    pub(super) transfer: Option<Arc<Transfer>>,
    /// Whether a failure that may pass is the caller's to wait out: he counts attempts himself.
    pub(super) at_once: bool,
}

impl Question {
    /// A GET of something that a digest names.
    pub(super) fn get(asked: Asked, what: String) -> Self {
        Self {
            asked,
            what,
            method: Method::GET,
            need: Need::Pull,
            headers: HeaderMap::new(),
            size: None,
            transfer: None,
            at_once: false,
        }
    }

    /// Of these servers those that may be asked.
    fn trusted(&self, endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
        let Some(transfer) = &self.transfer else { return endpoints };
        let trusted = endpoints.iter().filter(|endpoint| !transfer.avoids(&endpoint.host.server));
        match trusted.cloned().collect::<Vec<_>>() {
            none if none.is_empty() => endpoints,
            trusted => trusted,
        }
    }

    /// The same with a header.
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// Takes an answer whose head is fine, and finds out whether it is what was asked for.
pub(super) type Take<'a, T> = dyn Fn(Served) -> BoxFuture<'a, Result<T, RegistryError>> + Send + Sync + 'a;

/// An answer, and who gave it.
pub(super) struct Served {
    /// Its status is 200, or 206 to a `Range`.
    pub(super) answer: Answer,
    pub(super) endpoint: Endpoint,
}

impl Session {
    /// The answer of the first server that has one: mirrors in their order, then the registry itself. A server that fails
    /// is asked again after a pause if it is the last, and soon left for the next if not.
    ///
    /// # Errors
    /// What the last server said; [`RegistryError::Mirrors`] when others were tried before it.
    pub(super) async fn get(&self, question: &Question) -> Result<Served, RegistryError> {
        let take = |served| -> BoxFuture<'_, _> { Box::pin(std::future::ready(Ok(served))) };
        self.get_and(question, &take).await
    }

    /// The same for an answer that `take` reads to its end and verifies: a server whose answer is none, or another document
    /// than was asked for, is left for the next one too.
    pub(super) async fn get_and<T>(
        &self,
        question: &Question,
        take: &Take<'_, T>,
    ) -> Result<T, RegistryError> {
        let endpoints = question.trusted(self.endpoints(question).await?);
        let mut tried: Vec<Tried> = Vec::new();
        let count = endpoints.len();
        for (place, endpoint) in endpoints.into_iter().enumerate() {
            let last = place + 1 == count;
            let server = endpoint.host.server.clone();
            if !last && let Some(why) = self.health.is_out(&server) {
                debug!(self.log, "mirror is left out for now"; "host" => &server, "error" => &why);
                tried.push(Tried { server, why });
                continue;
            }
            let begun = Instant::now();
            let error = match self.ask_with_patience(question, &endpoint, last, take).await {
                Ok(taken) => {
                    self.health.is_well(&server);
                    let who = if endpoint.host.mirror { "mirror serves" } else { "registry serves" };
                    info!(self.log, "{}", who; "host" => &server, "what" => %question.asked,
                        "registry" => &endpoint.registry,
                        "elapsed_ms" => u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
                    return Ok(taken);
                }
                Err(error) => error,
            };
            if error.is_of_the_connection() {
                self.health.failed(&server, chain(&error));
            }
            if last {
                let at = endpoint.host.mirror.then_some(server);
                return Err(match tried.is_empty() && at.is_none() {
                    true => error,
                    false => RegistryError::Mirrors { last: Box::new(error), at, tried },
                });
            }
            if error.is_a_lie() {
                warn!(self.log, "mirror gives something else, the next host is asked"; "host" => &server,
                    "what" => %question.asked, "error" => chain(&error));
            } else {
                info!(self.log, "mirror failed, the next host is asked"; "host" => &server,
                    "what" => %question.asked, "error" => chain(&error));
            }
            tried.push(Tried { server, why: chain(&error) });
        }
        Err(RegistryError::NoHost { asked: question.asked.clone() })
    }

    /// The servers to ask, in order.
    async fn endpoints(&self, question: &Question) -> Result<Vec<Endpoint>, RegistryError> {
        let reference = Reference {
            registry: Some(question.asked.registry.clone()),
            repository: question.asked.repository.clone(),
            tag: None,
            digest: None,
        };
        let own = Endpoint::of(&reference, self.settings.default_registry.as_ref(), &self.settings.insecure);
        let mut all = match self.written(question).await? {
            Some(file) => file.endpoints(&own),
            None => vec![own],
        };
        let over_tls = self.over_tls.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |endpoint: Endpoint| match endpoint.host.may_upgrade
            && over_tls.contains(&endpoint.host.server)
        {
            true => endpoint.upgraded(),
            false => endpoint,
        };
        let able = |endpoint: &Endpoint| match question.need {
            Need::Resolve => endpoint.host.resolve,
            Need::Pull => endpoint.host.pull,
            Need::Authorize => !endpoint.host.mirror,
        };
        all.retain(able);
        // A server that stands in `server` and among the hosts is not asked twice.
        let mut seen = HashSet::new();
        all.retain(|endpoint| {
            let host = &endpoint.host;
            seen.insert((host.scheme, host.server.clone(), host.path.clone()))
        });
        Ok(all.into_iter().map(known).collect())
    }

    /// What `--registry_config_path` has on the registry of this question.
    async fn written(&self, question: &Question) -> Result<Option<HostsFile>, RegistryError> {
        if self.hosts.is_empty() {
            return Ok(None);
        }
        let asked = question.asked.clone();
        let (hosts, registry) = (Arc::clone(&self.hosts), asked.registry.clone());
        let read = Task::spawn_blocking(&Handle::current(), move || hosts.of(&registry)).await;
        match read {
            Ok(read) => read.map_err(|source| RegistryError::Hosts { asked, source: Box::new(source) }),
            Err(why) => Err(RegistryError::Lost { asked, why: quote(&why.to_string()) }),
        }
    }

    async fn ask_with_patience<T>(
        &self,
        question: &Question,
        endpoint: &Endpoint,
        last: bool,
        take: &Take<'_, T>,
    ) -> Result<T, RegistryError> {
        let retries = if last && !question.at_once { self.settings.limits.retries_max } else { 0 };
        let mut pauses = Pauses::new(&self.settings.limits, retries);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.get_in_any_scheme(question, endpoint).await {
                Ok(answer) => match take(Served { answer, endpoint: endpoint.clone() }).await {
                    Ok(taken) => return Ok(taken),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let Some(pause) = pauses.before_next(&error) else {
                return Err(match attempts {
                    1 => error,
                    _ => RegistryError::Retried { attempts, last: Box::new(error) },
                });
            };
            self.meter.retried(&endpoint.host.server);
            question.transfer.iter().for_each(|transfer| transfer.retried());
            // Whoever waits shall know for what.
            warn!(self.log, "registry is asked again after a pause"; "host" => &endpoint.host.server,
                "what" => %question.asked, "pause_ms" => u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "error" => chain(&error));
            tokio::time::sleep(pause).await;
        }
    }

    async fn get_in_any_scheme(
        &self,
        question: &Question,
        endpoint: &Endpoint,
    ) -> Result<Answer, RegistryError> {
        let first = self.get_authorized(question, endpoint).await;
        let wants_tls = endpoint.host.scheme == Scheme::Http && first.as_ref().is_err_and(wants_tls);
        if !(wants_tls && endpoint.host.may_upgrade) {
            return first;
        }
        let second = self.get_authorized(question, &endpoint.upgraded()).await;
        // Only a server that cannot do TLS either is better explained by its first answer.
        if let Err(RegistryError::Http { source, .. }) = &second {
            let spoke = !matches!(first, Err(RegistryError::Http { source: HttpError::NotHttp { .. }, .. }));
            if matches!(source, HttpError::NotTls { .. }) || (!spoke && source.is_of_the_connection()) {
                return first;
            }
        }
        let server = &endpoint.host.server;
        debug!(self.log, "registry speaks TLS where plain http was expected"; "host" => server);
        self.over_tls.lock().unwrap_or_else(PoisonError::into_inner).insert(server.clone());
        second
    }

    async fn get_authorized(
        &self,
        question: &Question,
        endpoint: &Endpoint,
    ) -> Result<Answer, RegistryError> {
        let asked = &question.asked;
        let address = endpoint
            .address(&question.what)
            .ok_or_else(|| RegistryError::Address { asked: asked.clone() })?;
        let server = &endpoint.host.server;
        let access = self.access.as_ref();
        let mut grant = self.authorizer.known(endpoint, access).await;
        let mut renewed = false;
        loop {
            debug!(self.log, "asking registry"; "host" => server, "what" => %asked);
            let outgoing = Outgoing {
                method: question.method.clone(),
                headers: question.headers.clone(),
                authorization: grant.header(),
                private: endpoint.host.headers.clone(),
                trust: Arc::clone(&endpoint.host.trust),
                connect: endpoint.host.connect,
                ..Outgoing::get(address.clone())
            };
            let begun = Instant::now();
            let answer = self.http.send(outgoing).await;
            self.meter.answered(server, begun.elapsed(), answer.as_ref().ok().map(|answer| answer.status));
            let mut answer = answer.map_err(|source| RegistryError::Http { asked: asked.clone(), source })?;
            match answer.status.as_u16() {
                200 => {
                    // That of an encoded body is another matter, for whoever decodes none.
                    let encoded = answer.headers.contains_key(header::CONTENT_ENCODING);
                    let length = answer.body.size().filter(|_| !encoded);
                    return match (question.size, length) {
                        (Some(expected), Some(actual)) if expected != actual => {
                            Err(RegistryError::WrongSize { asked: asked.clone(), expected, actual })
                        }
                        _ => Ok(answer),
                    };
                }
                206 if question.headers.contains_key(header::RANGE) => return Ok(answer),
                // A challenge from where a redirect led is not this registry's to make.
                401 if !renewed && !answer.redirected => {
                    // The token may lie at the same server, which may have no slot left but this one.
                    answer.body.release();
                    let fresh =
                        self.authorizer.renewed(&self.http, endpoint, access, &grant, &answer.headers).await;
                    let fresh =
                        fresh.map_err(|source| RegistryError::Auth { asked: asked.clone(), source })?;
                    // The same again would be refused again, and counted against whoever it is.
                    if fresh.header().is_some() && fresh.header() == grant.header() {
                        return Err(self.refusal(asked, endpoint, answer, &fresh).await);
                    }
                    grant = fresh;
                    renewed = true;
                    answer.body.drain().await;
                }
                // Some refuse strangers without asking who they are, or hide from them what there is.
                403 | 404 if !renewed && grant.header().is_none() && !answer.redirected => {
                    answer.body.release();
                    let fresh = self.authorizer.unasked(&self.http, endpoint, access, &grant).await;
                    grant = fresh.map_err(|source| RegistryError::Auth { asked: asked.clone(), source })?;
                    if grant.header().is_none() {
                        return Err(self.refusal(asked, endpoint, answer, &grant).await);
                    }
                    renewed = true;
                    answer.body.drain().await;
                }
                _ => return Err(self.refusal(asked, endpoint, answer, &grant).await),
            }
        }
    }

    async fn refusal(
        &self,
        asked: &Asked,
        endpoint: &Endpoint,
        answer: Answer,
        grant: &Grant,
    ) -> RegistryError {
        let status = answer.status.as_u16();
        let content_type = answer.header(header::CONTENT_TYPE).map(str::to_owned);
        let wait = retry_after(answer.header(header::RETRY_AFTER));
        let body = answer.body.beginning(self.settings.limits.answer_bytes_max).await;
        let said = grant.said(&body, content_type.as_deref());
        let (asked, credentials) = (asked.clone(), grant.credentials.clone());
        match status {
            401 | 403 => RegistryError::Denied { asked, status, said, credentials },
            404 => RegistryError::NotFound { asked, said },
            429 => RegistryError::TooMany { asked, said, credentials, wait },
            // What Go, nginx and Apache httpd say to plain http on a TLS port.
            400 if endpoint.host.scheme == Scheme::Http && mentions_https(&body) => {
                let hint = WANTS_TLS;
                RegistryError::Status { asked, status, said, hint, wait }
            }
            // What nginx says where a client certificate is demanded.
            400 | 495 | 496 if endpoint.host.scheme == Scheme::Https && mentions_certificate(&body) => {
                let hint = WANTS_CERTIFICATE;
                RegistryError::Status { asked, status, said, hint, wait }
            }
            _ => RegistryError::Status { asked, status, said, hint: "", wait },
        }
    }
}

fn wants_tls(error: &RegistryError) -> bool {
    match error {
        RegistryError::Status { hint, .. } => *hint == WANTS_TLS,
        // Others answer with the bytes of a TLS alert.
        RegistryError::Http { source: HttpError::NotHttp { .. }, .. } => true,
        _ => false,
    }
}

fn mentions_certificate(body: &[u8]) -> bool {
    String::from_utf8_lossy(body).to_ascii_lowercase().contains("ssl certificate")
}

fn mentions_https(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    text.contains("https") || text.contains("ssl-enabled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_avoided_is_left_out_while_there_are_others() {
        let endpoint = |server: &str| {
            let reference = Reference {
                registry: Some(server.to_owned()),
                repository: "r".to_owned(),
                tag: None,
                digest: None,
            };
            Endpoint::of(&reference, None, &Default::default())
        };
        let asked =
            Asked { what: "blob", name: "x".into(), repository: "r".into(), registry: "own.example".into() };
        let transfer = Arc::new(Transfer::default());
        let question =
            Question { transfer: Some(transfer.clone()), ..Question::get(asked, "blobs/x".into()) };
        let servers = || {
            let all = vec![endpoint("mirror.example"), endpoint("own.example")];
            question.trusted(all).into_iter().map(|endpoint| endpoint.host.server.clone()).collect::<Vec<_>>()
        };
        assert_eq!(servers(), ["mirror.example", "own.example"]);
        transfer.avoid("mirror.example");
        assert_eq!(servers(), ["own.example"]);
        // Nobody else is left.
        transfer.avoid("own.example");
        assert_eq!(servers(), ["mirror.example", "own.example"]);
    }
}

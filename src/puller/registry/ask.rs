//! One question to a registry: the right endpoint, the right authorization, and every refusal in words.

use std::sync::PoisonError;

use hyper::header::{self, HeaderValue};
use slog::debug;

use super::auth::Grant;
use super::client::State;
use super::endpoint::{Endpoint, Scheme};
use super::error::{Asked, RegistryError, Said};
use super::failure::HttpError;
use super::http::{Answer, Get};

const WANTS_TLS: &str = "; it wants TLS: name it as https://... in --docker_registry";

impl State {
    /// The 200 answer to a GET of something of the repository.
    pub(super) async fn get(
        &self,
        asked: &Asked,
        endpoint: &Endpoint,
        what: &str,
        accept: Option<HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let first = self.get_authorized(asked, endpoint, what, accept.clone()).await;
        let wants_tls = endpoint.scheme == Scheme::Http && first.as_ref().is_err_and(wants_tls);
        if !(wants_tls && endpoint.may_upgrade) {
            return first;
        }
        let second = self.get_authorized(asked, &endpoint.upgraded(), what, accept).await;
        // Only a server that cannot do TLS either is better explained by its first answer.
        if let Err(RegistryError::Http { source: HttpError::NotTls { .. }, .. }) = second {
            return first;
        }
        debug!(self.log, "registry speaks TLS where plain http was expected"; "registry" => &endpoint.server);
        self.over_tls.lock().unwrap_or_else(PoisonError::into_inner).insert(endpoint.server.clone());
        second
    }

    async fn get_authorized(
        &self,
        asked: &Asked,
        endpoint: &Endpoint,
        what: &str,
        accept: Option<HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let address =
            endpoint.address(what).ok_or_else(|| RegistryError::Address { asked: asked.clone() })?;
        let mut grant = self.authorizer.known(endpoint).await;
        let mut renewed = false;
        loop {
            debug!(self.log, "asking registry"; "registry" => &endpoint.server, "what" => %asked);
            let get = Get { address: address.clone(), accept: accept.clone(), authorization: grant.header() };
            let answer = self.http.get(get).await;
            let answer = answer.map_err(|source| RegistryError::Http { asked: asked.clone(), source })?;
            match answer.status.as_u16() {
                200 => return Ok(answer),
                // A challenge from where a redirect led is not this registry's to make.
                401 if !renewed && !answer.redirected => {
                    let fresh = self.authorizer.renewed(&self.http, endpoint, &grant, &answer).await;
                    grant = fresh.map_err(|source| RegistryError::Auth { asked: asked.clone(), source })?;
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
        let body = answer.body.beginning(self.settings.limits.answer_bytes_max).await;
        let said = Said::in_body(&body, content_type.as_deref());
        let (asked, credentials) = (asked.clone(), grant.credentials.clone());
        match status {
            401 | 403 => RegistryError::Denied { asked, status, said, credentials },
            404 => RegistryError::NotFound { asked, said },
            429 => RegistryError::TooMany { asked, said, credentials },
            // What Go, nginx and Apache httpd say to plain http on a TLS port.
            400 if endpoint.scheme == Scheme::Http && mentions_https(&body) => {
                let hint = WANTS_TLS;
                RegistryError::Status { asked, status, said, hint }
            }
            _ => RegistryError::Status { asked, status, said, hint: "" },
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

fn mentions_https(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    text.contains("https") || text.contains("ssl-enabled")
}

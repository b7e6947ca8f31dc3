//! One question to a web server: who to be, what was refused, whether it is asked again.

use std::sync::Arc;

use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderValue};
use keelblock_actors::error::{chain, quote};
use keelblock_actors::progress::Observer;
use slog::{Logger, debug, warn};
use tokio::time::Instant;

use super::error::PlaceError;
use crate::limits::Limits;
use crate::puller::registry::http::{Answer, Http, Outgoing};
use crate::puller::registry::location::authority;
use crate::puller::registry::retry::{Pauses, retry_after};
use crate::puller::registry::{Credentials, Meter, RegistrySettings, Scheme, Wanted};

/// Where archives, signatures and pages come from.
pub(super) struct Web {
    pub(super) http: Http,
    pub(super) limits: Limits,
    pub(super) settings: RegistrySettings,
    pub(super) meter: Meter,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) log: Logger,
}

/// Something small, whole.
pub(super) enum Small {
    Whole {
        bytes: Vec<u8>,
        validators: Validators,
    },
    /// What we have is what there is.
    NotModified,
}

/// By which a server tells whether something is still the same (RFC 9110 section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Validators {
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    /// `Date` of the same answer.
    #[serde(skip)]
    date: Option<String>,
}

/// How long before the answer a thing must have been changed last, for its date to tell it from all others (RFC 9110 section
/// 8.8.2.2 asks for one second; clocks of servers differ). 60 s.
const STRONG_AGE: std::time::Duration = std::time::Duration::from_secs(60);

impl Validators {
    pub(super) fn of(answer: &Answer) -> Self {
        let text = |name| answer.header(name).map(str::to_owned);
        Self {
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            date: text(header::DATE),
        }
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }

    /// Asks for it only if it is another by now.
    pub(super) fn if_changed(&self, headers: &mut HeaderMap) {
        insert(headers, header::IF_NONE_MATCH, self.etag.as_deref());
        // Who knows the other one must ignore it.
        insert(headers, header::IF_MODIFIED_SINCE, self.last_modified.as_deref());
    }

    /// What a range may be asked by: equal only where every byte is.
    pub(super) fn strong(&self) -> Option<&str> {
        let etag = self.etag.as_deref().filter(|etag| etag.starts_with('"'));
        let date = || {
            let changed = httpdate::parse_http_date(self.last_modified.as_deref()?).ok()?;
            let answered = httpdate::parse_http_date(self.date.as_deref()?).ok()?;
            let age = answered.duration_since(changed).ok()?;
            self.last_modified.as_deref().filter(|_| age >= STRONG_AGE)
        };
        etag.or_else(date)
    }

    /// Whether a server that was asked by these should have answered that nothing has changed.
    pub(super) fn are_of_the_same(&self, now: &Self) -> bool {
        match &self.etag {
            Some(etag) => now.etag.as_ref() == Some(etag),
            None => {
                now.etag.is_none() && self.last_modified.is_some() && self.last_modified == now.last_modified
            }
        }
    }

    /// Whether those of a part may be of the same thing as these.
    pub(super) fn agree(&self, part: &Self) -> bool {
        let same = |one: &Option<String>, other: &Option<String>| match (one, other) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        same(&self.etag, &part.etag)
            && (self.etag.is_some() || same(&self.last_modified, &part.last_modified))
    }
}

pub(super) fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: Option<&str>) {
    if let Some(value) = value.and_then(|text| HeaderValue::from_str(text).ok()) {
        headers.insert(name, value);
    }
}

/// An address for messages: without its query, which may be a signature.
pub(super) fn shown(address: &Uri) -> String {
    format!("{}://{}{}", address.scheme_str().unwrap_or_default(), authority(address), address.path())
}

impl Web {
    pub(super) fn new(settings: RegistrySettings, observer: Arc<dyn Observer>, log: Logger) -> Self {
        let (http, limits) = (Http::new(&settings), settings.limits.clone());
        Self { http, limits, settings, meter: Meter::default(), observer, log }
    }

    /// How this host is spoken to, where `written` stands before it for any host.
    pub(super) fn scheme(&self, host: &str, written: Scheme) -> Scheme {
        match written {
            Scheme::Https if self.settings.insecure.are_plain(host) => Scheme::Http,
            written => written,
        }
    }

    /// The head of the answer to one GET: 200; 206 where `headers` have a range; 304 where they have a condition.
    pub(super) async fn ask(&self, address: &Uri, headers: &HeaderMap) -> Result<Answer, PlaceError> {
        let server = authority(address);
        let mut authorization: Option<HeaderValue> = None;
        let mut asked_as = String::new();
        loop {
            debug!(self.log, "asking for a part of an appc image"; "host" => &server, "path" => address.path());
            let renewed = authorization.is_some();
            let outgoing = Outgoing {
                headers: headers.clone(),
                authorization: authorization.take(),
                ..Outgoing::get(address.clone())
            };
            let begun = Instant::now();
            let answer = self.http.send(outgoing).await;
            let status = answer.as_ref().ok().map(|answer| answer.status);
            self.meter.answered(&server, begun.elapsed(), status);
            let mut answer = answer?;
            let status = answer.status.as_u16();
            let wanted = match status {
                200 => true,
                206 => headers.contains_key(header::RANGE),
                304 => {
                    headers.contains_key(header::IF_NONE_MATCH)
                        || headers.contains_key(header::IF_MODIFIED_SINCE)
                }
                _ => false,
            };
            if wanted {
                return Ok(answer);
            }
            // Passwords travel over TLS, and to whom they are for: not to where a redirect led.
            let over_tls = address.scheme_str() == Some("https");
            if matches!(status, 401 | 403) && !renewed {
                asked_as = match (over_tls, answer.redirected) {
                    (false, _) => "; passwords are not sent over plain http".to_owned(),
                    (true, true) => String::new(),
                    (true, false) => {
                        answer.body.release();
                        match self.login(&server).await? {
                            Ok(header) => {
                                authorization = Some(header);
                                answer.body.drain().await;
                                continue;
                            }
                            Err(hint) => hint,
                        }
                    }
                };
            } else if matches!(status, 401 | 403) {
                asked_as = "; it does not accept the user name and password of the docker config".to_owned();
            }
            let wait = retry_after(answer.header(header::RETRY_AFTER));
            answer.body.drain().await;
            return Err(PlaceError::Status { status, hint: asked_as, wait });
        }
    }

    /// What to show to a server that wants to know who asks; else what to say of that.
    async fn login(&self, server: &str) -> Result<Result<HeaderValue, String>, PlaceError> {
        // What is meant for registries in general is not meant for whoever serves files: as for a mirror.
        let wanted = Wanted { host: server, repository: "", mirror: true, access: None, anew: false };
        let credentials: &Arc<dyn Credentials> = &self.settings.credentials;
        let found = credentials.login(wanted).await.map_err(PlaceError::Credentials)?;
        let basic = found.login.as_ref().and_then(|login| login.basic()).and_then(Result::ok);
        Ok(basic.ok_or_else(|| {
            format!("; it wants a user name and password: write them for {server} into the docker config")
        }))
    }

    /// Waits until the same may be asked again; the error as the last word when it may not.
    pub(super) async fn pause(
        &self,
        pauses: &mut Pauses,
        address: &Uri,
        error: PlaceError,
    ) -> Result<(), PlaceError> {
        let Some(pause) = pauses.before_next(&error) else { return Err(error) };
        let server = authority(address);
        self.meter.retried(&server);
        warn!(self.log, "a part of an appc image is asked for again after a pause"; "host" => &server,
            "path" => address.path(), "pause_ms" => u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "error" => chain(&error));
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Something small, whole: a signature, a page, keys. `cut`: of a longer one its beginning; else that is an error.
    pub(super) async fn small(
        &self,
        address: &Uri,
        limit: u64,
        cut: bool,
        known: Option<&Validators>,
    ) -> Result<Small, PlaceError> {
        let mut headers = HeaderMap::new();
        known.into_iter().for_each(|known| known.if_changed(&mut headers));
        let mut pauses = Pauses::new(&self.limits, self.limits.retries_max);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.small_once(address, limit, cut, &headers).await {
                Ok(small) => return Ok(small),
                Err(error) => error,
            };
            if let Err(last) = self.pause(&mut pauses, address, error).await {
                return Err(match attempts {
                    1 => last,
                    _ => PlaceError::Retried { attempts, last: Box::new(last) },
                });
            }
        }
    }

    async fn small_once(
        &self,
        address: &Uri,
        limit: u64,
        cut: bool,
        headers: &HeaderMap,
    ) -> Result<Small, PlaceError> {
        let mut answer = self.ask(address, headers).await?;
        if answer.status.as_u16() == 304 {
            answer.body.drain().await;
            return Ok(Small::NotModified);
        }
        plain(&answer)?;
        let too_large = || PlaceError::TooLarge { limit, flag: None };
        if !cut && answer.body.size().is_some_and(|size| size > limit) {
            return Err(too_large());
        }
        let validators = Validators::of(&answer);
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.body.chunk().await? {
            let room = usize::try_from(limit).unwrap_or(usize::MAX) - bytes.len();
            if chunk.len() > room && !cut {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room && cut {
                break;
            }
        }
        Ok(Small::Whole { bytes, validators })
    }
}

/// Refuses an answer in an encoding.
pub(super) fn plain(answer: &Answer) -> Result<(), PlaceError> {
    let encoding = answer.header(header::CONTENT_ENCODING);
    match encoding.filter(|text| !text.eq_ignore_ascii_case("identity") && !text.is_empty()) {
        Some(encoding) => Err(PlaceError::Encoded(quote(encoding))),
        None => Ok(()),
    }
}

//! Whether a question is asked again, and after which pause.
//!
//! Pure, but for the dice. Asked again is what may be otherwise next time: a connection that broke, a server that says it is
//! overloaded or broken for now. A refusal, a lie and a certificate stay what they are.

use std::time::{Duration, SystemTime};

use super::error::RegistryError;
use super::failure::HttpError;
use crate::limits::Limits;

/// What may be otherwise the next time it is asked.
pub(in crate::puller) trait Passing {
    /// Whether the same question may have another answer later.
    fn may_pass(&self) -> bool;

    /// The pause that the server asks for.
    fn wait(&self) -> Option<Duration>;
}

impl Passing for RegistryError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Http { source, .. } => http_may_pass(source),
            Self::Status { status, .. } => status_may_pass(*status),
            Self::TooMany { .. } => true,
            Self::Auth { source, .. } => source.may_pass(),
            _ => false,
        }
    }

    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Status { wait, .. } | Self::TooMany { wait, .. } => *wait,
            _ => None,
        }
    }
}

/// The pauses between the attempts of one question.
pub(in crate::puller) struct Pauses {
    left: usize,
    next: Duration,
    longest: Duration,
    asked_for_max: Duration,
}

impl Pauses {
    pub(in crate::puller) fn new(limits: &Limits, retries: usize) -> Self {
        Self {
            left: retries,
            next: limits.retry_pause,
            longest: limits.retry_pause_max,
            asked_for_max: limits.retry_after_max,
        }
    }

    /// How long to wait before the next attempt; `None` when there is none to make: because of the error, because there were
    /// enough, or because the server asks for a longer pause than `--retry_after_max`.
    pub(in crate::puller) fn before_next(&mut self, error: &impl Passing) -> Option<Duration> {
        if self.left == 0 || !error.may_pass() {
            return None;
        }
        self.left -= 1;
        let own = jittered(self.next, dice());
        self.next = (self.next * 2).min(self.longest);
        match error.wait() {
            Some(wanted) if wanted > self.asked_for_max => None,
            // Not earlier than it says, and not all at once.
            Some(wanted) => Some(wanted + jittered(self.next.min(wanted), dice()) / 4),
            None => Some(own),
        }
    }
}

/// 408, 425, 429 and what gateways and servers in trouble say. 501 and 505 are for ever.
pub(in crate::puller) fn status_may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

pub(in crate::puller) fn http_may_pass(error: &HttpError) -> bool {
    error.may_pass()
}

/// Between a half and all of it: many that failed at once do not come back at once.
fn jittered(pause: Duration, dice: f64) -> Duration {
    pause.mul_f64(0.5 + dice / 2.0)
}

/// From 0 to 1; good enough to spread requests.
fn dice() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}

/// `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).
pub(in crate::puller) fn retry_after(text: Option<&str>) -> Option<Duration> {
    let text = text?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::error::{Asked, Said};
    use super::*;

    fn asked() -> Asked {
        Asked { what: "blob", name: "x".into(), repository: "r".into(), registry: "h".into() }
    }

    fn status(status: u16, wait: Option<u64>) -> RegistryError {
        let wait = wait.map(Duration::from_secs);
        RegistryError::Status { asked: asked(), status, said: Said(None), hint: "", wait }
    }

    #[test]
    fn pauses_double_up_to_a_longest_and_end() {
        let limits = Limits {
            retry_pause: Duration::from_secs(1),
            retry_pause_max: Duration::from_secs(3),
            ..Limits::default()
        };
        let mut pauses = Pauses::new(&limits, 4);
        for longest in [1.0, 2.0, 3.0, 3.0] {
            let pause = pauses.before_next(&status(503, None)).unwrap().as_secs_f64();
            assert!((longest / 2.0..=longest).contains(&pause), "{pause} of {longest}");
        }
        assert_eq!(pauses.before_next(&status(503, None)), None);
    }

    #[test]
    fn what_a_server_asks_for_is_kept_unless_it_is_too_long() {
        let limits = Limits { retry_after_max: Duration::from_secs(30), ..Limits::default() };
        let pause = |wait| Pauses::new(&limits, 1).before_next(&status(429, Some(wait)));
        let given = pause(20).unwrap();
        assert!((20.0..26.0).contains(&given.as_secs_f64()), "{given:?}");
        assert_eq!(pause(31), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for code in [408, 425, 429, 500, 502, 503, 504] {
            assert!(status(code, None).may_pass(), "{code}");
        }
        for code in [400, 405, 416, 501, 505] {
            assert!(!status(code, None).may_pass(), "{code}");
        }
        assert!(!RegistryError::NotFound { asked: asked(), said: Said(None) }.may_pass());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(Some(" 7 ")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(Some("Thu, 01 Jan 1970 00:00:10 GMT")), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((90..=100).contains(&retry_after(Some(&later)).unwrap().as_secs()));
        for text in [None, Some(""), Some("-1"), Some("soon"), Some("1.5")] {
            assert_eq!(retry_after(text), None);
        }
    }
}

//! A blob, or a range of one, in order and to its end, in however many answers that takes.
//!
//! A body that breaks off, stalls or ends too early is asked for again from the first byte that was not handed on. Blobs are named
//! by digests, so what any server gives for such a name is the same blob: no `If-Range` is sent, which another host could only
//! answer with the whole. That it is the same is seen at the end, from the digest. A server that does not know ranges
//! sends all of it again, and what was handed on before is thrown away.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::header::{self, HeaderValue};
use keelblock_actors::error::{chain, quote};
use keelblock_actors::transfer::Transfer;
use slog::{info, warn};

use super::ask::{Question, Served};
use super::body::Body;
use super::client::Session;
use super::error::RegistryError;
use super::failure::{HttpError, Innermost};
use super::retry::Pauses;

/// Bytes after which a blob that breaks off again has earned all its retries anew. 1 MiB: a bad line is used to its end, one that
/// brings next to nothing is given up.
pub(in crate::puller) const PROGRESS_BYTES: u64 = 1 << 20;

/// What is fetched, whoever gives it.
pub(super) struct Source {
    pub(super) session: Session,
    /// Without a range.
    pub(super) question: Question,
    pub(super) transfer: Arc<Transfer>,
}

/// Why there are no more bytes.
#[derive(Debug)]
pub(super) enum Failure {
    /// A range was asked for and is not to be had, while the whole may be.
    NoRanges,
    Failed(Box<RegistryError>),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// The bytes from some place on. A failure is its last word.
pub(super) struct Stream {
    pub(super) source: Arc<Source>,
    /// Of the whole blob.
    size: Option<u64>,
    /// The next byte to hand on.
    at: u64,
    /// The byte before which it ends.
    end: Option<u64>,
    /// It ends before the blob does: nothing but a range will do.
    part: bool,
    current: Option<Current>,
    /// The server of `current` says, or has shown, that it knows ranges.
    knows_ranges: bool,
    /// A server answered a range with nonsense: none is asked for any more.
    refuses_ranges: bool,
    pauses: Pauses,
    /// Where the pauses began.
    paused_at: u64,
    /// Where it last began or broke off.
    began_at: u64,
}

struct Current {
    body: Body,
    server: String,
    /// Bytes at its beginning that were handed on already.
    skip: u64,
    /// Whether it gave anything of use.
    useful: bool,
}

impl Stream {
    /// All of a blob, its first answer here. `size` is what the manifest says.
    pub(super) async fn open(source: Source, size: Option<u64>) -> Result<Self, RegistryError> {
        let mut stream = Self::at(Arc::new(source), size, 0, size);
        match stream.reopen().await {
            Ok(()) => Ok(stream),
            Err(Failure::Failed(error)) => Err(*error),
            // Not asked for one.
            Err(Failure::NoRanges) => Err(RegistryError::NotAddressed),
        }
    }

    fn at(source: Arc<Source>, size: Option<u64>, at: u64, end: Option<u64>) -> Self {
        let limits = &source.session.settings.limits;
        let pauses = Pauses::new(limits, limits.retries_max);
        let refuses_ranges = source.transfer.is_anew();
        let (current, knows_ranges) = (None, false);
        Self {
            source,
            size,
            at,
            end,
            part: false,
            current,
            knows_ranges,
            refuses_ranges,
            pauses,
            paused_at: at,
            began_at: at,
        }
    }

    /// The range from `at` to before `end`, not asked for yet.
    pub(super) fn part(source: Arc<Source>, size: u64, at: u64, end: u64) -> Self {
        Self { part: true, ..Self::at(source, Some(size), at, Some(end)) }
    }

    /// All from `at` on, not asked for yet.
    pub(super) fn rest(source: Arc<Source>, size: u64, at: u64) -> Self {
        Self { refuses_ranges: true, ..Self::at(source, Some(size), at, Some(size)) }
    }

    /// This stream, ended before `end`.
    pub(super) fn until(self, end: u64) -> Self {
        Self { end: Some(end), part: Some(end) != self.size, ..self }
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next byte that will come.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Whether parts of it can be had from elsewhere at once.
    pub(super) fn can_be_split(&self) -> bool {
        self.knows_ranges && !self.refuses_ranges
    }

    /// The next bytes, never none; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.part && self.end == Some(self.at) {
                // A body that is read to its end gives its connection back. Whatever else would come is not wanted.
                if let Some(mut current) = self.current.take()
                    && current.body.size() == Some(0)
                {
                    let _ = current.body.chunk().await;
                }
                return Ok(None);
            }
            let whole = self.is_whole();
            let Some(current) = &mut self.current else {
                self.reopen().await?;
                continue;
            };
            let error = match current.body.chunk().await {
                Ok(Some(bytes)) => {
                    if let Some(bytes) = self.fresh(bytes)? {
                        return Ok(Some(bytes));
                    }
                    continue;
                }
                Ok(None) if whole => return Ok(None),
                Ok(None) => {
                    let text = "it ended too early";
                    let source = Innermost::of(&io::Error::new(io::ErrorKind::UnexpectedEof, text));
                    HttpError::Broken { authority: current.server.clone(), source }
                }
                // It lacks nothing but the end of its framing.
                Err(_) if self.end.is_some() && whole => return Ok(None),
                // Bytes that are no HTTP, in the middle of some that were: the line, not the server.
                Err(HttpError::NotHttp { authority, source }) => HttpError::Broken { authority, source },
                Err(error) => error,
            };
            self.broke_off(error).await?;
        }
    }

    fn is_whole(&self) -> bool {
        let skips = self.current.as_ref().is_some_and(|current| current.skip > 0);
        !skips && self.end.is_none_or(|end| end == self.at)
    }

    /// What of these bytes was not handed on before.
    fn fresh(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let Some(current) = &mut self.current else { return Ok(None) };
        let meter = &self.source.session.meter;
        let again = current.skip.min(bytes.len() as u64);
        if again > 0 {
            bytes.advance(usize::try_from(again).unwrap_or(usize::MAX));
            current.skip -= again;
            meter.count(&current.server, |host| host.bytes_again += again);
            self.source.transfer.again(again);
        }
        if let Some(end) = self.end
            && bytes.len() as u64 > end - self.at
        {
            if !self.part {
                let (asked, expected) = (self.source.question.asked.clone(), end);
                let actual = self.at + bytes.len() as u64;
                return Err(RegistryError::WrongSize { asked, expected, actual });
            }
            bytes.truncate(usize::try_from(end - self.at).unwrap_or(usize::MAX));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        current.useful = true;
        let count = bytes.len() as u64;
        meter.count(&current.server, |host| host.bytes += count);
        self.at += count;
        if self.at - self.paused_at >= PROGRESS_BYTES {
            let limits = &self.source.session.settings.limits;
            (self.pauses, self.paused_at) = (Pauses::new(limits, limits.retries_max), self.at);
        }
        Ok(Some(bytes))
    }

    /// Waits until it may go on.
    async fn broke_off(&mut self, error: HttpError) -> Result<(), RegistryError> {
        let source = self.source.clone();
        let asked = &source.question.asked;
        let error = RegistryError::Http { asked: asked.clone(), source: error };
        let Some(current) = self.current.take() else { return Err(error) };
        if !current.useful {
            // There may be another that does not let us down in the same way.
            source.transfer.avoid(&current.server);
        }
        let Some(pause) = self.pauses.before_next(&error) else { return Err(self.given_up(error)) };
        source.session.meter.retried(&current.server);
        self.wait(pause, &current.server, &error).await;
        Ok(())
    }

    /// Before it is asked for again.
    async fn wait(&self, pause: Duration, host: &str, error: &RegistryError) {
        let source = &self.source;
        source.transfer.retried();
        warn!(source.session.log, "blob broke off, and is asked for again after a pause"; "host" => host,
            "what" => %source.question.asked, "bytes" => self.at, "attempt" => source.transfer.counts().retries,
            "pause_ms" => u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), "error" => chain(error));
        tokio::time::sleep(pause).await;
    }

    fn given_up(&self, last: RegistryError) -> RegistryError {
        let retries = self.source.transfer.counts().retries;
        if retries == 0 {
            return last;
        }
        let asked = self.source.question.asked.clone();
        RegistryError::BrokeOff { asked, at: self.at, size: self.size, retries, last: Box::new(last) }
    }

    /// Asks for what is still to come.
    async fn reopen(&mut self) -> Result<(), Failure> {
        let source = self.source.clone();
        let begun = self.at > 0 && !self.part;
        let mut lied: Option<(String, RegistryError)> = None;
        loop {
            let ranged = self.part || (self.at > 0 && !self.refuses_ranges);
            // Once it has begun one count holds for all that goes wrong: attempts without progress.
            let mut question = Question { at_once: begun, ..source.question.clone() };
            if ranged {
                question = question.header(header::RANGE, range(self.at, self.end));
            }
            let served = match source.session.get(&question).await {
                Ok(served) => served,
                Err(error) if ranged && is_of_the_range(&error) => {
                    self.no_range()?;
                    continue;
                }
                Err(error) if begun => {
                    let Some(pause) = self.pauses.before_next(&error) else {
                        return Err(self.given_up(error).into());
                    };
                    self.wait(pause, &source.question.asked.registry, &error).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let server = served.endpoint.host.server.clone();
            // One that was given a chance to be another.
            if let Some((liar, error)) = lied.take()
                && liar == server
            {
                return Err(error.into());
            }
            match self.accept(served, ranged) {
                Ok(true) => return Ok(()),
                Ok(false) => self.no_range()?,
                Err(error) => {
                    source.transfer.avoid(&server);
                    lied = Some((server, error));
                }
            }
        }
    }

    /// A range was refused, or is none.
    fn no_range(&mut self) -> Result<(), Failure> {
        self.refuses_ranges = true;
        if self.part { Err(Failure::NoRanges) } else { Ok(()) }
    }

    /// Makes this answer the current one; `false` when it is of no use because it is not the range that was asked for.
    ///
    /// # Errors
    /// Its head says that it is not the blob that is wanted.
    fn accept(&mut self, served: Served, ranged: bool) -> Result<bool, RegistryError> {
        let Served { answer, endpoint } = served;
        let server = endpoint.host.server.clone();
        let source = self.source.clone();
        let asked = &source.question.asked;
        let length = answer.body.size();
        let partial = ranged && answer.status.as_u16() == 206;
        let total = if partial {
            match content_range(answer.header(header::CONTENT_RANGE)) {
                Some((start, total)) if start == self.at => total,
                _ => return Ok(false),
            }
        } else {
            length
        };
        let encoding = answer.header(header::CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|text| !text.eq_ignore_ascii_case("identity"))
            // Some say so of blobs that are compressed by themselves and sent as they are.
            && (total.is_none() || total != self.size)
        {
            return Err(RegistryError::Encoded { asked: asked.clone(), encoding: quote(encoding) });
        }
        if let (Some(expected), Some(actual)) = (self.size, total)
            && expected != actual
        {
            return Err(RegistryError::WrongSize { asked: asked.clone(), expected, actual });
        }
        if !partial && self.part {
            return Ok(false);
        }
        if self.size.is_none() && !self.part {
            (self.size, self.end) = (total, total);
        }
        let accepts = answer.header(header::ACCEPT_RANGES);
        let accepts = accepts.is_some_and(|units| units.split(',').any(|unit| unit.trim() == "bytes"));
        self.knows_ranges = partial || (accepts && !ranged);
        if partial && self.at > self.began_at {
            source.session.meter.count(&server, |host| host.resumed += 1);
            source.transfer.resumed(self.at, self.at - self.began_at);
            info!(source.session.log, "blob goes on where it broke off"; "host" => &server, "what" => %asked,
                "bytes" => self.at, "of" => self.size);
        }
        self.began_at = self.at;
        source.transfer.served_by(&server);
        let skip = if partial { 0 } else { self.at };
        self.current = Some(Current { body: answer.body, server, skip, useful: false });
        Ok(true)
    }
}

pub(in crate::puller) fn range(at: u64, end: Option<u64>) -> HeaderValue {
    let text = match end {
        Some(end) => format!("bytes={at}-{}", end.saturating_sub(1)),
        None => format!("bytes={at}-"),
    };
    // Digits and ASCII: it always is one.
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// Whether the range is refused, rather than the blob.
fn is_of_the_range(error: &RegistryError) -> bool {
    matches!(error.of_the_last(), RegistryError::Status { status: 416, .. })
}

/// Start and total of `bytes START-END/TOTAL` (RFC 9110 section 14.4); a total of `*` is none.
pub(in crate::puller) fn content_range(text: Option<&str>) -> Option<(u64, Option<u64>)> {
    let (unit, rest) = text?.trim().split_once(' ')?;
    let (span, total) = rest.trim().split_once('/')?;
    let (start, end) = span.split_once('-')?;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    let (start, end): (u64, u64) = (number(start)?, number(end)?);
    let total: Option<u64> = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    let fits = start <= end && total.is_none_or(|total| end < total);
    (unit.eq_ignore_ascii_case("bytes") && fits).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_range_that_makes_sense_is_one() {
        assert_eq!(content_range(Some("bytes 5-9/10")), Some((5, Some(10))));
        assert_eq!(content_range(Some(" Bytes 0-0/* ")), Some((0, None)));
        for text in [
            "",
            "bytes",
            "bytes 5",
            "bytes 5-9",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "lines 5-9/10",
            "bytes +5-9/10",
            "bytes 5-9/x",
            "bytes -9/10",
            "bytes 5-99999999999999999999/*",
        ] {
            assert_eq!(content_range(Some(text)), None, "{text}");
        }
        assert_eq!(content_range(None), None);
    }

    #[test]
    fn ranges_are_asked_for_as_first_and_last_byte() {
        assert_eq!(range(5, Some(10)), "bytes=5-9");
        assert_eq!(range(5, None), "bytes=5-");
    }
}

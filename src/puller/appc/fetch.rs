//! An archive of one address, into the spool: in however many answers it takes, and only if it is another than lies there.
//!
//! Nothing says what an archive must be (no digest, no length) but the server that gives it. So what broke off goes on only
//! where the server promises that it is still the same (`If-Range` with a strong validator); else it begins anew. And a
//! signature belongs to the archive that was there when it was made: see [`fetch`].

use std::io;
use std::path::Path;

use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderValue};
use keelblock_actors::error::quote;
use keelblock_actors::progress::{LayerEvent, Observer};
use slog::info;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::Instant;

use super::error::PlaceError;
use super::spool::{self, Claim, Known, KnownSignature};
use super::web::{Small, Validators, Web, insert, shown};
use crate::limits::stays_free;
use crate::provider::appc::ports::{FetchedAci, Signature};
use crate::puller::registry::http::Answer;
use crate::puller::registry::location::authority;
use crate::puller::registry::resume::{PROGRESS_BYTES, content_range, range};
use crate::puller::registry::retry::{Passing, Pauses};
use crate::puller::registry::{HttpError, Innermost};
use crate::sys::space;

/// Bytes of a signature. 64 KiB: one by a hundred keys, each with its notes.
pub(super) const SIGNATURE_BYTES_MAX: u64 = 64 << 10;
/// Bytes after which it is looked whether the disk fills. 4 MiB: as the store does.
const STEP_BYTES: u64 = 4 << 20;
/// The flag that bounds an archive as it comes: what it unpacks to is not less.
const BYTES_FLAG: &str = "layer_bytes_max";

/// Where an archive and its signature are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) archive: Uri,
    pub(super) signature: Uri,
}

/// What is wanted there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) size: Option<u64>,
    pub(super) signature: bool,
}

/// The archive of this place, and its signature.
///
/// The archive comes first, so that a place that has none is asked once. If the signature that comes then is not the one that
/// was known before, the archive is asked for once more, on condition that it is another by now: a pair that was replaced
/// between the two is so brought again, once. If it is replaced faster than that, the signature does not verify, and the
/// image is not used.
pub(super) async fn fetch(
    web: &Web,
    spool: &Path,
    place: &Place,
    wanted: Wanted,
) -> Result<FetchedAci, PlaceError> {
    let asked_ns = spool::now();
    let begun = Instant::now();
    let claim = Claim::take(spool, &place.archive.to_string()).await?;
    let mut transfer = Transfer::new(web, place, wanted, &claim)?;
    let known = claim.known();
    // Somebody else brought it while we waited for him.
    let fresh = known.as_ref().filter(|known| known.asked_ns >= asked_ns);
    let fresh = fresh.filter(|known| {
        !wanted.signature || known.signature.as_ref().is_some_and(|known| known.asked_ns >= asked_ns)
    });
    if let Some(known) = fresh {
        transfer.check_size(known.size)?;
        let signature = signature_in(known, place, wanted);
        let path = claim.archive(known);
        return Ok(FetchedAci { path, from: shown(&place.archive), bytes_fetched: 0, signature });
    }
    claim.sweep().await?;
    let old_signature = known.as_ref().and_then(|known| known.signature.clone());
    let (mut now, mut is_new) = match transfer.archive(known.as_ref().map(|known| &known.validators)).await? {
        Some(validators) => (claim.describe(validators)?, true),
        None => match known {
            Some(known) => (Known { asked_ns: spool::now(), ..known }, false),
            // It was not asked on a condition.
            None => return Err(PlaceError::Status { status: 304, hint: String::new(), wait: None }),
        },
    };
    if wanted.signature {
        let (signature, is_other) = transfer.signature(old_signature).await?;
        if is_other
            && now.validators.are_there()
            && let Some(validators) = transfer.archive(Some(&now.validators.clone())).await?
        {
            info!(web.log, "an archive was replaced while its signature was fetched, and is fetched again";
                "host" => authority(&place.archive), "path" => place.archive.path());
            (now, is_new) = (claim.describe(validators)?, true);
        }
        now.signature = Some(signature);
    }
    transfer.check_size(now.size)?;
    let bytes_fetched = transfer.fetched;
    transfer.told.end();
    drop(transfer);
    let signature = signature_in(&now, place, wanted);
    let path = if is_new { claim.finish(&now)? } else { claim.keep(&now)? };
    info!(web.log, "{}", if is_new { "appc image is fetched" } else { "appc image is still the same" };
        "host" => authority(&place.archive), "path" => place.archive.path(), "bytes" => bytes_fetched,
        "elapsed_ms" => u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
    Ok(FetchedAci { path, from: shown(&place.archive), bytes_fetched, signature })
}

fn signature_in(known: &Known, place: &Place, wanted: Wanted) -> Option<Signature> {
    let bytes = known.signature.as_ref().filter(|_| wanted.signature)?.bytes()?;
    Some(Signature { bytes, from: shown(&place.signature) })
}

/// One archive on its way into a file.
struct Transfer<'a> {
    web: &'a Web,
    place: &'a Place,
    wanted: Wanted,
    claim: &'a Claim,
    /// The same open file: the lock is on both.
    file: tokio::fs::File,
    /// Bytes of bodies so far.
    fetched: u64,
    told: Told<'a>,
}

/// Tells the observer of one archive; also that it ended, when it failed or was given up.
struct Told<'a> {
    observer: &'a dyn Observer,
    from: String,
    /// Something was told that wants an end.
    open: bool,
}

impl Told<'_> {
    fn tell(&mut self, event: LayerEvent) {
        self.open = event != LayerEvent::Committed;
        self.observer.archive(&self.from, event);
    }

    /// It is here.
    fn end(&mut self) {
        if self.open {
            self.tell(LayerEvent::Committed);
        }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if self.open {
            self.observer.archive(&self.from, LayerEvent::Ended);
        }
    }
}

/// How far an archive is.
#[derive(Default)]
struct Progress {
    at: u64,
    total: Option<u64>,
    validators: Validators,
    /// The furthest it ever was.
    furthest: u64,
}

impl<'a> Transfer<'a> {
    fn new(web: &'a Web, place: &'a Place, wanted: Wanted, claim: &'a Claim) -> Result<Self, PlaceError> {
        let file = claim.file().try_clone();
        let file = file.map_err(|source| PlaceError::Spool { path: claim.part().to_owned(), source })?;
        let told = Told { observer: &*web.observer, from: shown(&place.archive), open: false };
        Ok(Self { web, place, wanted, claim, file: tokio::fs::File::from_std(file), fetched: 0, told })
    }

    fn check_size(&self, actual: u64) -> Result<(), PlaceError> {
        match self.wanted.size.filter(|&expected| expected != actual) {
            Some(expected) => Err(PlaceError::WrongSize { expected, actual }),
            None => Ok(()),
        }
    }

    /// Writes the archive; `None` when it is the one that has these validators.
    async fn archive(&mut self, known: Option<&Validators>) -> Result<Option<Validators>, PlaceError> {
        let retries_max = self.web.limits.retries_max;
        let mut pauses = Pauses::new(&self.web.limits, retries_max);
        let mut progress = Progress::default();
        let mut attempts = 0;
        let mut paused_at = 0;
        loop {
            attempts += 1;
            let error = match self.attempt(known, &mut progress).await {
                Ok(false) => return Ok(None),
                Ok(true) => {
                    self.flush(&progress).await?;
                    return Ok(Some(progress.validators));
                }
                Err(error) => error,
            };
            progress.furthest = progress.furthest.max(progress.at);
            if progress.furthest - paused_at >= PROGRESS_BYTES {
                // A bad line is used to its end, one that brings next to nothing is given up.
                (pauses, paused_at) = (Pauses::new(&self.web.limits, retries_max), progress.furthest);
            }
            if let Err(last) = self.web.pause(&mut pauses, &self.place.archive, error).await {
                let last = Box::new(last);
                return Err(match attempts {
                    1 => *last,
                    _ if progress.at > 0 && last.may_pass() => {
                        PlaceError::BrokeOff { at: progress.at, attempts, last }
                    }
                    _ => PlaceError::Retried { attempts, last },
                });
            }
            self.told.tell(LayerEvent::Retrying { retries: attempts as u64 });
        }
    }

    /// Asks once, and writes what comes; `false` when nothing does, because nothing has changed.
    async fn attempt(
        &mut self,
        known: Option<&Validators>,
        progress: &mut Progress,
    ) -> Result<bool, PlaceError> {
        let mut headers = HeaderMap::new();
        let strong = progress.validators.strong().filter(|_| progress.at > 0).map(str::to_owned);
        match (&strong, known) {
            (Some(strong), _) => {
                headers.insert(header::RANGE, range(progress.at, None));
                insert(&mut headers, header::IF_RANGE, Some(strong));
            }
            (None, Some(known)) => known.if_changed(&mut headers),
            (None, None) => {}
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/octet-stream, */*;q=0.8"));
        let answer = match self.web.ask(&self.place.archive, &headers).await {
            // What there was is longer than what there is.
            Err(PlaceError::Status { status: 416, .. }) if strong.is_some() => {
                headers.remove(header::RANGE);
                headers.remove(header::IF_RANGE);
                self.web.ask(&self.place.archive, &headers).await?
            }
            answer => answer?,
        };
        if answer.status.as_u16() == 304 {
            answer.body.drain().await;
            return Ok(false);
        }
        // Some servers know no conditions, and send what we have.
        if progress.at == 0 && known.is_some_and(|known| known.are_of_the_same(&Validators::of(&answer))) {
            return Ok(false);
        }
        self.begin(&answer, progress).await?;
        self.body(answer, progress).await?;
        Ok(true)
    }

    /// Makes ready for the body of this answer, which begins at `progress.at` afterwards.
    async fn begin(&mut self, answer: &Answer, progress: &mut Progress) -> Result<(), PlaceError> {
        let encoding = answer.header(header::CONTENT_ENCODING).unwrap_or("identity").to_ascii_lowercase();
        // Compressed for the way or before: as an archive it is the same, for it may be compressed in these ways.
        if !matches!(encoding.as_str(), "identity" | "" | "gzip" | "x-gzip" | "zstd") {
            return Err(PlaceError::Encoded(quote(&encoding)));
        }
        let validators = Validators::of(answer);
        let server = authority(&self.place.archive);
        if answer.status.as_u16() == 206 {
            let found = content_range(answer.header(header::CONTENT_RANGE));
            let total = match found {
                Some((start, total)) if start == progress.at && progress.validators.agree(&validators) => {
                    total
                }
                // It is no part of what we have: all of it is asked for next.
                _ => {
                    progress.validators = Validators::default();
                    let text = "it answers with another range than was asked for";
                    return Err(broken(server, text).into());
                }
            };
            let unlike = |total: u64| progress.total.is_some_and(|before| before != total);
            if total.is_some_and(unlike) {
                progress.validators = Validators::default();
                return Err(broken(server, "its length has changed").into());
            }
            self.web.meter.count(&server, |host| host.resumed += 1);
            info!(self.web.log, "an archive goes on where it broke off"; "host" => server,
                "path" => self.place.archive.path(), "bytes" => progress.at, "of" => progress.total);
            return Ok(());
        }
        let again = progress.at;
        if again > 0 {
            self.web.meter.count(&server, |host| host.bytes_again += again);
        }
        progress.furthest = progress.furthest.max(progress.at);
        (progress.at, progress.total, progress.validators) = (0, answer.body.size(), validators);
        let emptied = async {
            self.file.flush().await?;
            self.file.rewind().await?;
            self.file.set_len(0).await
        };
        emptied.await.map_err(|source| self.write_failed(source, progress))?;
        self.told.tell(LayerEvent::Started { total: progress.total });
        let Some(total) = progress.total else { return Ok(()) };
        self.check_size(total)?;
        self.check_limit(total)?;
        self.check_room(total)
    }

    /// Refuses what does not fit any more.
    fn check_room(&self, needed: u64) -> Result<(), PlaceError> {
        let Ok(room) = space::room(self.claim.file()) else { return Ok(()) };
        let kept = stays_free(self.web.limits.disk_free_min, room.bytes_total);
        match needed.saturating_add(kept) > room.bytes {
            true => Err(self.no_room(needed, room.bytes, kept)),
            false => Ok(()),
        }
    }

    async fn body(&mut self, mut answer: Answer, progress: &mut Progress) -> Result<(), PlaceError> {
        let server = authority(&self.place.archive);
        loop {
            let chunk = match answer.body.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if progress.total.is_some_and(|total| total != progress.at) => {
                    return Err(broken(server, "it ended too early").into());
                }
                Ok(None) => return self.check_size(progress.at),
                // Bytes that are no HTTP, in the middle of some that were: the line, not the server.
                Err(HttpError::NotHttp { authority, source }) => {
                    return Err(HttpError::Broken { authority, source }.into());
                }
                Err(error) => return Err(error.into()),
            };
            if progress.at == 0 && is_page(&chunk) {
                let kind = answer.header(header::CONTENT_TYPE).map(quote);
                return Err(PlaceError::Page(kind.map_or_else(String::new, |kind| format!(" ({kind})"))));
            }
            let count = chunk.len() as u64;
            self.fetched += count;
            self.told.tell(LayerEvent::Fetched { bytes: count });
            self.web.meter.count(&server, |host| host.bytes += count);
            let at = progress.at + count;
            if let Some(expected) = self.wanted.size.filter(|&expected| at > expected) {
                return Err(PlaceError::WrongSize { expected, actual: at });
            }
            self.check_limit(at)?;
            let written = self.file.write_all(&chunk).await;
            written.map_err(|source| self.write_failed(source, progress))?;
            if at / STEP_BYTES > progress.at / STEP_BYTES {
                self.check_room(progress.total.map_or(0, |total| total.saturating_sub(at)))?;
            }
            progress.at = at;
        }
    }

    async fn flush(&mut self, progress: &Progress) -> Result<(), PlaceError> {
        self.file.flush().await.map_err(|source| self.write_failed(source, progress))
    }

    fn check_limit(&self, bytes: u64) -> Result<(), PlaceError> {
        let limit = self.web.limits.layer_bytes_max;
        match bytes > limit {
            true => Err(PlaceError::TooLarge { limit, flag: Some(BYTES_FLAG) }),
            false => Ok(()),
        }
    }

    fn write_failed(&self, source: io::Error, progress: &Progress) -> PlaceError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if !full {
            return PlaceError::Spool { path: self.claim.part().to_owned(), source };
        }
        let free = space::room(self.claim.file()).map_or(0, |room| room.bytes);
        let needed = progress.total.map_or(1, |total| total.saturating_sub(progress.at));
        self.no_room(needed, free, 0)
    }

    fn no_room(&self, needed: u64, free: u64, kept: u64) -> PlaceError {
        let spool = self.claim.part().parent().unwrap_or(Path::new("/")).to_owned();
        PlaceError::NoRoom { spool, needed, free, kept }
    }

    /// What there is of a signature, and whether it is another than is known.
    async fn signature(
        &mut self,
        known: Option<KnownSignature>,
    ) -> Result<(KnownSignature, bool), PlaceError> {
        let conditions =
            known.as_ref().filter(|known| known.bytes().is_some()).map(|known| &known.validators);
        let address = &self.place.signature;
        let found = match self.web.small(address, SIGNATURE_BYTES_MAX, false, conditions).await {
            Ok(Small::Whole { bytes, validators }) => {
                self.fetched += bytes.len() as u64;
                // A page in the place of a 404.
                Some((bytes, validators)).filter(|(bytes, _)| !is_page(bytes))
            }
            Ok(Small::NotModified) => {
                let same = known.map(|known| KnownSignature { asked_ns: spool::now(), ..known });
                return Ok((same.unwrap_or_else(|| KnownSignature::new(None, Validators::default())), false));
            }
            Err(error) if error.is_not_found() => None,
            // Object stores say so of what is not there to whoever may not list what is.
            Err(PlaceError::Status { status: 403, .. }) => {
                info!(self.web.log, "a signature is refused, and taken not to be there";
                    "host" => authority(address), "path" => address.path());
                None
            }
            Err(error) => return Err(error),
        };
        let Some((bytes, validators)) = found else {
            return Ok((KnownSignature::new(None, Validators::default()), false));
        };
        let is_other = known.and_then(|known| known.bytes()).is_none_or(|before| before != bytes);
        Ok((KnownSignature::new(Some(&bytes), validators), is_other))
    }
}

fn broken(authority: String, text: &'static str) -> HttpError {
    let source = Innermost::of(&io::Error::new(io::ErrorKind::UnexpectedEof, text));
    HttpError::Broken { authority, source }
}

/// Whether this is the beginning of an HTML or XML text. No archive begins so: a tar begins with a name, and those of an ACI
/// with `manifest` or `rootfs`.
pub(super) fn is_page(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    bytes.trim_ascii_start().first() == Some(&b'<')
}

//! Why an archive did not come: of one place, and of all that were asked.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keelblock_actors::error::{Cause, chain};

use super::template::AddressError;
use crate::provider::appc::ports::AciFetchError;
use crate::puller::registry::HttpError;
use crate::puller::registry::retry::{self, Passing};

/// Why a place gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An answer that is a refusal.
    #[error("it answers HTTP {status}{hint}")]
    Status {
        /// The status.
        status: u16,
        /// What to do.
        hint: String,
        /// The pause that the server asks for.
        wait: Option<Duration>,
    },
    /// It could not be found out who to be there.
    #[error("cannot find out who to be there")]
    Credentials(#[source] Cause),
    /// The archive has another length than its dependency says.
    #[error("it has {actual} bytes, where {expected} are wanted")]
    WrongSize {
        /// By the dependency.
        expected: u64,
        /// So far, or as announced.
        actual: u64,
    },
    /// More than is allowed.
    #[error("it has more than {limit} bytes{}", flag.map_or_else(String::new, |flag| format!(" (--{flag})")))]
    TooLarge {
        /// How many are allowed.
        limit: u64,
        /// The flag that sets it, if one does.
        flag: Option<&'static str>,
    },
    /// Sent in an encoding that nobody asked for.
    #[error("it is sent in the encoding {0:?}, which was not asked for")]
    Encoded(String),
    /// A page, where an archive should be.
    #[error("a page came, and no archive{0}")]
    Page(String),
    /// It broke off, and again.
    #[error("it broke off at byte {at}, and was asked for {attempts} times")]
    BrokeOff {
        /// How many bytes there were.
        at: u64,
        /// How often it was asked for.
        attempts: usize,
        /// What it broke off with last.
        #[source]
        last: Box<PlaceError>,
    },
    /// The same, asked for more than once.
    #[error("asked {attempts} times")]
    Retried {
        /// How often.
        attempts: usize,
        /// The last error.
        #[source]
        last: Box<PlaceError>,
    },
    /// There is no address to ask.
    #[error("there is no address to ask")]
    Address(#[from] AddressError),
    /// A discovery page without a tag for the name.
    #[error("{0}")]
    NoTag(String),
    /// A file of this machine that is not there.
    #[error("there is no such file")]
    NoFile,
    /// A directory, pipe or device.
    #[error("it is not a regular file")]
    NotAFile,
    /// A file of this machine that cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The spool is full.
    #[error(
        "there is no room for it in {spool}: {needed} bytes are needed, {free} are free, and {kept} are to stay so (--disk_free_min); remove what is not needed (keelblock prune), or put the work directory on a larger disk"
    )]
    NoRoom {
        /// The spool directory.
        spool: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are left.
        free: u64,
        /// Bytes that are to stay free.
        kept: u64,
    },
    /// The spool cannot be written.
    #[error("cannot write {path}")]
    Spool {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A task of ours ended before it was done.
    #[error("it was given up: {0}")]
    Lost(String),
}

impl PlaceError {
    /// What it comes down to, of however many attempts.
    pub(super) fn last(&self) -> &Self {
        match self {
            Self::Retried { last, .. } | Self::BrokeOff { last, .. } => last.last(),
            error => error,
        }
    }

    /// Whether the place has no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        match self.last() {
            Self::Status { status, .. } => matches!(status, 404 | 410),
            Self::NoTag(_) | Self::NoFile | Self::Address(AddressError::NoPath { .. }) => true,
            _ => false,
        }
    }

    /// Whether nobody can be spoken to at this host.
    pub(super) fn is_of_host(&self, host: &str) -> bool {
        let Self::Http(error) = self.last() else { return false };
        match error {
            HttpError::Connect { authority, .. }
            | HttpError::ConnectTimeout { authority, .. }
            | HttpError::Unreachable { authority, .. }
            | HttpError::ProxyDenied { authority, .. }
            | HttpError::UnknownAuthority { authority }
            | HttpError::Certificate { authority, .. }
            | HttpError::NotTls { authority }
            | HttpError::Handshake { authority, .. } => authority == host,
            HttpError::Tls(_) => true,
            _ => false,
        }
    }

    /// Whether this is what servers of TLS say to plain http: the bytes of an alert, or 400 (Go, nginx, Apache httpd).
    pub(super) fn wants_tls(&self) -> bool {
        matches!(self.last(), Self::Http(HttpError::NotHttp { .. }) | Self::Status { status: 400, .. })
    }

    /// Whether it is no use to ask another place: this machine failed.
    pub(super) fn ends_the_search(&self) -> bool {
        matches!(self.last(), Self::NoRoom { .. } | Self::Spool { .. } | Self::Lost(_))
    }
}

impl Passing for PlaceError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Http(source) => retry::http_may_pass(source),
            Self::Status { status, .. } => retry::status_may_pass(*status),
            _ => false,
        }
    }

    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Status { wait, .. } => *wait,
            _ => None,
        }
    }
}

/// A place, and what became of it there.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) place: String,
    pub(super) error: PlaceError,
}

/// All places, and what each of them said.
#[derive(Debug)]
struct All(Vec<Tried>);

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, Tried { place, error }) in self.0.iter().enumerate() {
            let between = if nth == 0 { "" } else { "; " };
            write!(f, "{between}{place}: {}", chain(error))?;
        }
        Ok(())
    }
}

impl std::error::Error for All {}

/// What is said of all these places together.
pub(super) fn nowhere(mut tried: Vec<Tried>) -> AciFetchError {
    let missing = tried.iter().all(|tried| tried.error.is_not_found());
    let place = match tried.as_slice() {
        [] => "any place".to_owned(),
        [only] => only.place.clone(),
        [first, rest @ ..] => format!("{}, nor in {} after it", first.place, counted(rest.len())),
    };
    let from = tried.last().map_or_else(String::new, |last| last.place.clone());
    let source: Cause = match tried.len() {
        1 => tried.remove(0).error.into(),
        _ => All(tried).into(),
    };
    match missing {
        true => AciFetchError::NotFound { place, source: Some(source) },
        false => AciFetchError::Failed { from, source },
    }
}

fn counted(places: usize) -> String {
    match places {
        1 => "the place asked".to_owned(),
        more => format!("the {more} places asked"),
    }
}

/// The failure of a fetch that several wait for.
#[derive(Clone, Debug)]
pub(super) struct Shared(pub(super) Arc<AciFetchError>);

impl Shared {
    /// For one of them.
    pub(super) fn take(self) -> AciFetchError {
        match Arc::try_unwrap(self.0) {
            Ok(error) => error,
            Err(shared) => match &*shared {
                AciFetchError::NotFound { place, source } => AciFetchError::NotFound {
                    place: place.clone(),
                    source: source.as_ref().map(|_| OfAll(Arc::clone(&shared)).into()),
                },
                AciFetchError::Failed { from, .. } => {
                    AciFetchError::Failed { from: from.clone(), source: OfAll(Arc::clone(&shared)).into() }
                }
            },
        }
    }
}

/// The source of a shared failure.
#[derive(Debug)]
struct OfAll(Arc<AciFetchError>);

impl OfAll {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)
    }
}

impl fmt::Display for OfAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source().map_or(Ok(()), |source| fmt::Display::fmt(source, f))
    }
}

impl std::error::Error for OfAll {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        OfAll::source(self)?.source()
    }
}

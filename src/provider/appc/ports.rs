//! What the provider needs to be told: archives of names, and whether their signatures hold.

use std::io::Read;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use keelblock_actors::error::Cause;
use keelblock_actors::image::appc::{AcIdentifier, AppcName};
use keelblock_actors::stop::Stop;

/// Which archive is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WantedAci {
    /// To be discovered.
    Named {
        /// Its name; its labels are complete (version, os and arch among them) as far as anything has them.
        name: AppcName,
        /// How many bytes it must have, where a dependency says so.
        size: Option<u64>,
        /// Whether its signature is wanted too, if there is one.
        signature: bool,
    },
    /// A file of this machine.
    File {
        /// Where.
        path: PathBuf,
        /// Whether its signature, `<path>.asc`, is wanted too, if there is one.
        signature: bool,
    },
}

/// An archive on this machine, as its source has it: nothing of it is verified yet.
#[derive(Clone, Debug)]
pub struct FetchedAci {
    /// Where it lies, absolute. It stays there for hours after it was last fetched, so that it can be unpacked.
    pub path: PathBuf,
    /// Where it came from, for messages: an address without credentials, or a path.
    pub from: String,
    /// Bytes that came over a wire for it; none when it lay here already.
    pub bytes_fetched: u64,
    /// Its signature, if one was wanted and is there.
    pub signature: Option<Signature>,
}

/// A detached signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// ASCII-armoured, as it came.
    pub bytes: Vec<u8>,
    /// Where from.
    pub from: String,
}

/// Why an archive did not come.
#[derive(Debug, thiserror::Error)]
pub enum AciFetchError {
    /// Every place that was asked says that it has no such image.
    #[error("it is not in {place}")]
    NotFound {
        /// The places.
        place: String,
        /// What the last one said.
        #[source]
        source: Option<Cause>,
    },
    /// It could not be asked, or what came is none.
    #[error("it cannot be fetched from {from}")]
    Failed {
        /// Where from.
        from: String,
        /// Why.
        #[source]
        source: Cause,
    },
}

/// Finds archives and brings them. Several who want the same one at once, in any process on one store, share its fetch.
pub trait AciSource: Send + Sync {
    /// The archive.
    ///
    /// # Errors
    /// [`AciFetchError`]; nothing is left then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the fetch, unless somebody else wants it.
    fn fetch(&self, wanted: WantedAci) -> BoxFuture<'static, Result<FetchedAci, AciFetchError>>;
}

/// Decides whether an archive may be used.
pub trait SignatureCheck: Send + Sync {
    /// Whether a signature is worth fetching.
    fn wants_signature(&self) -> bool;

    /// Whether nothing may be used that is not signed: also nothing that the store has unsigned.
    fn requires_signature(&self) -> bool;

    /// Verifies an archive that claims this name by its signature, by the policy in force. True: it is signed, by a key that is
    /// trusted for the name.
    ///
    /// # Errors
    /// The signature is not there and must be, is not good, or is not by a key that is trusted for the name.
    ///
    /// # Blocking
    /// Reads the archive to its end, if it looks at it at all. Looks at `stop` between buffers.
    fn check(
        &self,
        name: &AcIdentifier,
        aci: &mut dyn Read,
        signature: Option<&Signature>,
        stop: &Stop,
    ) -> Result<bool, Cause>;
}

//! Whether an Appc image is by whom it should be: detached OpenPGP signatures, and the keys that are trusted.
//!
//! [`Signatures`] is the check that the provider asks before an archive is unpacked. [`TrustStore`] keeps the keys
//! ([`store`] draws its directories); `keelblock appc trust` fills it. A key counts for the names it was trusted for, and for
//! nothing else. `certificate` says what a key is good for, `verify` reads signatures and archives, `armor` the text both
//! come in. Everything that is read here may be made up by somebody else: sizes and numbers are limited, and what rPGP cannot
//! bear is an error of that one image.

mod armor;
mod certificate;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod store;
mod verify;

use std::any::Any;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use keelblock_actors::error::{Cause, quote};
use keelblock_actors::image::appc::AcIdentifier;
use keelblock_actors::stop::Stop;
use pgp::crypto::hash::HashAlgorithm;
use slog::{Logger, debug, info, warn};

use super::ports::{Signature, SignatureCheck};
use crate::config::AppcVerify;

pub use certificate::{Certificate, KEY_FILE_BYTES_MAX, KEYS_MAX, RSA_BITS_MIN, read_keys};
pub use error::{FormatError, TrustError, Unfit};
pub use store::{Scope, StoredKey, TrustStore};
pub use verify::{SIGNATURE_BYTES_MAX, SIGNATURES_MAX};

/// By how much the clock of who made a signature or key may be ahead of ours. 300 seconds: clocks that nobody sets are off
/// by minutes, and an image may be fetched right after it was signed.
pub const CLOCK_SKEW_SECONDS: u64 = 300;

/// The check of signatures by a policy and the keys of a store.
#[derive(Debug)]
pub struct Signatures {
    policy: AppcVerify,
    store: TrustStore,
    log: Logger,
}

impl Signatures {
    /// By this policy, with these keys.
    pub fn new(policy: AppcVerify, store: TrustStore, log: Logger) -> Self {
        Self { policy, store, log }
    }

    fn verify(
        &self,
        name: &AcIdentifier,
        aci: &mut dyn Read,
        signature: &Signature,
        stop: &Stop,
    ) -> Result<(), TrustError> {
        // Read anew each time: a key that is trusted or no longer trusted counts from the next image on.
        let (keys, skipped) = self.store.keys()?;
        for damaged in skipped {
            warn!(self.log, "a trusted key is not used"; "file" => %damaged.path.display(), "why" => %damaged.why);
        }
        let claim = verify::Claim { name, signature, now: now() };
        let key = verify::verify(&claim, aci, &keys, stop)?;
        debug!(self.log, "the signature is good"; "image" => %name, "key" => key, "from" => &signature.from);
        Ok(())
    }
}

impl SignatureCheck for Signatures {
    fn wants_signature(&self) -> bool {
        self.policy != AppcVerify::None
    }

    fn requires_signature(&self) -> bool {
        self.policy == AppcVerify::Required
    }

    fn check(
        &self,
        name: &AcIdentifier,
        aci: &mut dyn Read,
        signature: Option<&Signature>,
        stop: &Stop,
    ) -> Result<bool, Cause> {
        match (self.policy, signature) {
            (AppcVerify::None, _) => Ok(false),
            (AppcVerify::Required, None) => Err(TrustError::Unsigned { name: name.clone() }.into()),
            (AppcVerify::IfPresent, None) => {
                info!(self.log, "image is not signed; it is taken all the same"; "image" => %name);
                Ok(false)
            }
            (AppcVerify::Required | AppcVerify::IfPresent, Some(signature)) => {
                self.verify(name, aci, signature, stop)?;
                Ok(true)
            }
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The day of a time in seconds since 1970.
pub(crate) fn date(seconds: u64) -> String {
    let text = crate::logging::rfc3339_of(seconds.saturating_mul(1000));
    text.split('T').next().unwrap_or_default().to_owned()
}

/// The name of a hash that proves nothing about data, or too little: RFC 9580 wants 256 bits for Ed25519, and nobody needs less.
fn weak_hash(hash: HashAlgorithm) -> Option<String> {
    match hash {
        HashAlgorithm::Sha256
        | HashAlgorithm::Sha384
        | HashAlgorithm::Sha512
        | HashAlgorithm::Sha3_256
        | HashAlgorithm::Sha3_512 => None,
        HashAlgorithm::Other(number) => Some(format!("the unknown one of number {number}")),
        weak => Some(weak.to_string()),
    }
}

/// What rPGP says, cut: it may quote what it read.
fn pgp_text(error: &pgp::errors::Error) -> String {
    quote(&error.to_string())
}

fn panicked(from: &str, panic: &(dyn Any + Send)) -> TrustError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    TrustError::Panicked { from: from.to_owned(), panic: quote(&text) }
}

//! Why a signature or a key is not taken.

use std::io;
use std::path::PathBuf;

use keelblock_actors::image::appc::AcIdentifier;

/// What is wrong with the form of a signature or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// There is no line that begins ASCII armour.
    #[error("it is not in ASCII armour (gpg --armor makes it)")]
    NotArmored,
    /// The end of the armour is not there.
    #[error("its armour is cut off")]
    CutOff,
    /// Something else.
    #[error("{0}")]
    Malformed(&'static str),
    /// The packets in the armour make no sense.
    #[error("its packets cannot be read ({0})")]
    Packets(String),
    /// More of something than is read.
    #[error("it has more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are read.
        max: usize,
    },
    /// It is longer than what is read.
    #[error("it is longer than {bytes_max} bytes")]
    TooLong {
        /// How many are read.
        bytes_max: usize,
    },
}

/// Why a key verifies nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has been revoked.
    #[error("has been revoked")]
    Revoked,
    /// It has expired.
    #[error("has expired on {0}")]
    Expired(String),
    /// It, or its hash, can be forged.
    #[error("is too weak: {0}")]
    Weak(String),
    /// It is not for signing data.
    #[error("is not for signing data")]
    NotForSigning,
    /// Nothing valid binds it to the key it comes with, or its user IDs to it.
    #[error("has no valid self-signature")]
    Unbound,
    /// It was made later than now.
    #[error("was made in the future, on {0}; is the clock right?")]
    Future(String),
}

/// Why an archive may not be used, or a key not be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// All must be signed.
    #[error(
        "image {name} is not signed, and all must be (--appc_verify=required); have its publisher sign it, or use \
         --appc_verify=if-present"
    )]
    Unsigned {
        /// Its name.
        name: AcIdentifier,
    },
    /// A signature that is none.
    #[error("the signature {from} of image {name} is none")]
    Signature {
        /// The image.
        name: AcIdentifier,
        /// Where the signature is from.
        from: String,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// What was signed was another archive, or with another key.
    #[error(
        "the signature {from} is not of this archive of {name}: it was changed, or key {key} did not sign it"
    )]
    Bad {
        /// The image.
        name: AcIdentifier,
        /// Where the signature is from.
        from: String,
        /// Fingerprint of the key it names.
        key: String,
    },
    /// Nobody knows the key.
    #[error(
        "image {name} is signed by key {key}, which is not trusted; look at the key, and if it is right: keelblock appc \
         trust --prefix {name} FILE"
    )]
    UnknownKey {
        /// The image.
        name: AcIdentifier,
        /// Fingerprint or ID of the key.
        key: String,
    },
    /// The key may sign other images.
    #[error(
        "image {name} is signed by key {key}, which is trusted for {trusted_for} only; if it is right here too: keelblock \
         appc trust --prefix {name} FILE"
    )]
    OtherPrefix {
        /// The image.
        name: AcIdentifier,
        /// Fingerprint of the key.
        key: String,
        /// Prefixes that it is trusted for.
        trusted_for: String,
    },
    /// The key verifies nothing.
    #[error("image {name} is signed by key {key}, which {why}")]
    Unfit {
        /// The image.
        name: AcIdentifier,
        /// Fingerprint of the key.
        key: String,
        /// Why.
        why: Unfit,
    },
    /// The signature itself proves nothing.
    #[error("the signature {from} of image {name} by key {key} {why}")]
    Void {
        /// The image.
        name: AcIdentifier,
        /// Where the signature is from.
        from: String,
        /// Fingerprint of the key.
        key: String,
        /// Why.
        why: String,
    },
    /// A file of keys that is none.
    #[error("{from} holds no public key that could be trusted")]
    Keys {
        /// Where from.
        from: String,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// A key that would verify nothing.
    #[error("key {key} cannot be trusted: it {why}")]
    UnfitKey {
        /// Fingerprint.
        key: String,
        /// Why.
        why: Unfit,
    },
    /// A file or directory.
    #[error("cannot {act} {path}")]
    Io {
        /// What was to be done.
        act: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Whoever wanted it left.
    #[error("verifying the signature of {name} was stopped")]
    Stopped {
        /// The image.
        name: AcIdentifier,
    },
    /// A bug in the reader of signatures, met by something that is hardly any.
    #[error("{from} makes the reader of OpenPGP fail ({panic}); it is not taken")]
    Panicked {
        /// Where it is from.
        from: String,
        /// What it said.
        panic: String,
    },
}

//! What can be wrong with a gzip stream.

use std::io;

/// Why a gzip stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum GzipError {
    /// The source of the compressed bytes failed; its own error, unchanged.
    #[error(transparent)]
    Source(io::Error),
    /// The source ended within a member.
    #[error("gzip stream is cut off after {offset} bytes")]
    Truncated {
        /// Compressed bytes that came.
        offset: u64,
    },
    /// The bytes are not gzip.
    #[error("gzip stream is broken at byte {offset}")]
    Broken {
        /// What is wrong.
        #[source]
        flaw: GzipFlaw,
        /// Compressed bytes before the place where it was noticed.
        offset: u64,
    },
    /// An earlier call failed; there is nothing to read after an error.
    #[error("gzip stream failed before and cannot be read on")]
    Failed,
}

/// What is wrong with a gzip stream; streams are refused exactly where zlib refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GzipFlaw {
    /// RFC 1952, section 2.3.1: ID1 and ID2.
    #[error("it does not begin with 1f 8b")]
    Magic,
    /// CM is not 8.
    #[error("compression method {0} is not deflate")]
    Method(u8),
    /// FLG has bits that must be zero.
    #[error("reserved header flags are set: {0:#04x}")]
    ReservedFlags(u8),
    /// The CRC16 of the header.
    #[error("header has checksum {actual:#06x} but names {expected:#06x}")]
    HeaderChecksum {
        /// What the header says.
        expected: u16,
        /// What its bytes come to.
        actual: u16,
    },
    /// RFC 1951, section 3.2.3: BTYPE is 3.
    #[error("block of the reserved type 3")]
    BlockType,
    /// NLEN is not the complement of LEN.
    #[error("stored block of length {length:#06x} with complement {complement:#06x}")]
    StoredLength {
        /// LEN
        length: u16,
        /// NLEN
        complement: u16,
    },
    /// HLIT is more than 286 or HDIST more than 30.
    #[error(
        "block with {literals} literal and length symbols (at most 286) and {distances} distance symbols (at most 30)"
    )]
    SymbolCounts {
        /// HLIT + 257
        literals: u16,
        /// HDIST + 1
        distances: u16,
    },
    /// The code in which the code lengths are written is over-subscribed or incomplete.
    #[error("code length code is over-subscribed or incomplete")]
    LengthCode,
    /// A repeat before any length, or past the last one.
    #[error("code lengths are repeated from nowhere or past their end")]
    LengthRepeat,
    /// A block that could not end.
    #[error("block without an end-of-block code")]
    NoEndOfBlock,
    /// Over-subscribed, or incomplete with more than one code of one bit.
    #[error("literal and length code is over-subscribed or incomplete")]
    LiteralCode,
    /// Over-subscribed, or incomplete with more than one code of one bit.
    #[error("distance code is over-subscribed or incomplete")]
    DistanceCode,
    /// Bits that mean no literal and no length.
    #[error("bits that are no literal or length code")]
    Literal,
    /// Bits that mean no distance.
    #[error("bits that are no distance code")]
    Distance,
    /// A match that begins before the member.
    #[error("match {distance} bytes back where there are only {available}")]
    TooFarBack {
        /// Bytes back.
        distance: u32,
        /// Bytes of the member so far.
        available: u32,
    },
    /// CRC32 of the trailer.
    #[error("content has checksum {actual:#010x}, but the trailer names {expected:#010x}")]
    Checksum {
        /// What the trailer says.
        expected: u32,
        /// What the content comes to.
        actual: u32,
    },
    /// ISIZE of the trailer, both modulo 2^32.
    #[error("content has {actual} bytes, but the trailer names {expected} (modulo 2^32)")]
    Size {
        /// What the trailer says.
        expected: u32,
        /// What came.
        actual: u32,
    },
    /// Something other than a member follows a member.
    #[error("what follows the last member is not another one")]
    AfterEnd,
}

impl From<GzipError> for io::Error {
    /// The source's own error comes out as it went in; a cut stream is `UnexpectedEof`, everything else `InvalidData`.
    fn from(error: GzipError) -> Self {
        let kind = match error {
            GzipError::Source(source) => return source,
            GzipError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            GzipError::Broken { .. } | GzipError::Failed => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// What the parts of the decoder fail with; only the decoder knows where in the stream they are.
#[derive(Debug)]
pub(super) enum Fault {
    Source(io::Error),
    Truncated,
    Flaw(GzipFlaw),
    Failed,
}

impl From<GzipFlaw> for Fault {
    fn from(flaw: GzipFlaw) -> Self {
        Self::Flaw(flaw)
    }
}

//! Why an archive or layout cannot be used. Names of members and tags are foreign text: cut, and printed escaped.

use std::io;
use std::path::PathBuf;

use keelblock_actors::image::digest::Digest;

use crate::provider::manifest::{BadJson, ManifestError};

/// Why an archive or layout cannot be used. `archive` is its path, also where that is a layout directory.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not there, or not ours to read.
    #[error("cannot open {archive}")]
    Open {
        /// Which.
        archive: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, device or pipe where a file must be.
    #[error("{archive} is not a regular file{hint}")]
    NotAFile {
        /// Which.
        archive: PathBuf,
        /// What to do, with its own punctuation.
        hint: &'static str,
    },
    /// No tar header where one must be.
    #[error("{archive} is no readable tar archive: there is no valid header at byte {offset}")]
    NotTar {
        /// Which.
        archive: PathBuf,
        /// Where.
        offset: u64,
    },
    /// The file ends before the data of its last member does.
    #[error("{archive} is cut off in the middle of its member {member:?}; copy or save it again")]
    Truncated {
        /// Which.
        archive: PathBuf,
        /// Which member.
        member: String,
    },
    /// Compressed in a way that is not understood.
    #[error("{archive} is compressed with {by}; decompress it first, or use gzip or zstd")]
    Compressed {
        /// Which.
        archive: PathBuf,
        /// By what.
        by: &'static str,
    },
    /// Reading failed, or decompressing.
    #[error("cannot read {archive}")]
    Read {
        /// Which.
        archive: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A compressed archive could not be laid out on disk.
    #[error("cannot write the decompressed archive to {path}")]
    Spool {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit is passed.
    #[error("{archive} passes the limit of {limit} {unit} (--{flag})")]
    Limit {
        /// Which.
        archive: PathBuf,
        /// How many are allowed.
        limit: u64,
        /// Of what.
        unit: &'static str,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// A member or blob is not there.
    #[error("{archive} has no {member:?}{hint}")]
    Missing {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// What that may mean, with its own punctuation.
        hint: &'static str,
    },
    /// A member that must be a file is none.
    #[error("{member:?} in {archive} is {found}, not a regular file")]
    NotRegular {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// What it is.
        found: &'static str,
    },
    /// A link that leads in a circle, or out of the archive.
    #[error("{member:?} in {archive} is a link that leads {wrong}")]
    Link {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// Where it must not.
        wrong: &'static str,
    },
    /// A document is larger than documents may be.
    #[error("{member:?} in {archive} has {size} bytes; the limit is {limit} (--{flag})")]
    TooLarge {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// Its size.
        size: u64,
        /// How much is allowed.
        limit: u64,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// A document that cannot be understood.
    #[error("cannot understand {member:?} in {archive}")]
    Json {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// What is wrong with it.
        #[source]
        source: BadJson,
    },
    /// A manifest, index or config that cannot be used.
    #[error("cannot use {member:?} in {archive}")]
    Manifest {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// Bytes that are not those their digest names.
    #[error(
        "{member:?} in {archive} has digest {actual} instead of {expected}; the archive is corrupt or lies"
    )]
    WrongDigest {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// As named.
        expected: Digest,
        /// Of the bytes.
        actual: Digest,
    },
    /// A blob of another length than its descriptor says.
    #[error(
        "{member:?} in {archive} has {actual} bytes, but its descriptor says {expected}; the archive is corrupt or lies"
    )]
    WrongSize {
        /// Which archive.
        archive: PathBuf,
        /// Which member.
        member: String,
        /// From the descriptor.
        expected: u64,
        /// Of the member.
        actual: u64,
    },
    /// No image by that name in it.
    #[error("{archive} has no image {wanted:?}; it has {offered}")]
    NoSuchImage {
        /// Which archive.
        archive: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is, cut.
        offered: String,
    },
    /// More than one image, and no word which.
    #[error("{archive} has more than one image; name one of {offered}")]
    Several {
        /// Which archive.
        archive: PathBuf,
        /// What there is, cut.
        offered: String,
    },
    /// No archive of any of the names that a reference stands for.
    #[error("there is no file {}", tried.join(", nor "))]
    NoFile {
        /// The names tried, relative to the directory.
        tried: Vec<String>,
    },
    /// A digest in a reference to an archive.
    #[error("archives are found by name and tag, not by digest {digest}; leave it out")]
    ByDigest {
        /// The digest.
        digest: Digest,
    },
    /// Layers of the old form that are each other's parents.
    #[error("layer {layer:?} in {archive} is its own ancestor")]
    Cycle {
        /// Which archive.
        archive: PathBuf,
        /// Which layer.
        layer: String,
    },
    /// A directory or archive that is no image layout, or of a version to come.
    #[error("{archive} is an OCI image layout of version {version:?}; versions 1.x are understood")]
    LayoutVersion {
        /// Which.
        archive: PathBuf,
        /// What it says.
        version: String,
    },
    /// Nobody wants the answer any more.
    #[error("reading {archive} was given up")]
    Stopped {
        /// Which.
        archive: PathBuf,
    },
}

//! A first look at an ACI: its image ID and the bytes of its manifest, before anything is made of it.
//!
//! The whole archive is decompressed and hashed, under the limits of a layer; of its entries only the manifest's content is kept.
//! What is told here already is an archive that is not laid out as the specification wants it (aci.md, "Image Archives"): the
//! store holds all of its rules again when it unpacks it, by the image ID that was found here.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use keelblock_actors::error::Cause;
use keelblock_actors::image::appc::ImageId;
use keelblock_actors::image::digest::{Digest, Hasher};
use keelblock_actors::image::plan::Compression;
use keelblock_actors::stop::Stop;
use rustix::fs::OFlags;

use super::decompress::{self, Accepted, Decompressed};
use super::flaw::{Flaw, text};
use super::pipeline::EXPANSION_FREE_BYTES;
use super::tar::{Bounds, Kind, Reader, Source};
use crate::inflate::Chunk;
use crate::limits::Limits;

/// What was found in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScannedAci {
    /// SHA-512 of its tar.
    pub(crate) image_id: ImageId,
    /// The content of its `manifest`, not looked into.
    pub(crate) manifest: Vec<u8>,
    /// How it is compressed.
    pub(crate) compression: Compression,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// SHA-256 of the file, compressed as it is.
    pub(crate) blob: Digest,
}

/// Why a file is no ACI that can be used.
#[derive(Debug, thiserror::Error)]
pub enum AciScanError {
    /// The file.
    #[error("{path} cannot be read")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe, ...
    #[error("{path} is not a regular file; an image archive (.aci) is one")]
    NotAFile {
        /// Where.
        path: PathBuf,
    },
    /// Its compression or its tar is broken.
    #[error("it has no good {what}: an image archive is a tar, plain or in gzip, bzip2, xz or zstd")]
    Stream {
        /// What is broken.
        what: String,
        /// How.
        #[source]
        source: Cause,
    },
    /// An entry that must not be there.
    #[error(
        "its entry {entry:?} is out of place: at the top are a file manifest and a directory rootfs, and nothing else"
    )]
    Layout {
        /// Cut.
        entry: String,
    },
    /// There must be one.
    #[error("it has no {what}: at the top of an image archive are a file manifest and a directory rootfs")]
    Without {
        /// `manifest` or `rootfs`.
        what: &'static str,
    },
    /// Two of them.
    #[error("it has more than one manifest")]
    Twice,
    /// A limit, by the name of its flag.
    #[error("it has more than {limit} {unit} (--{flag})")]
    Limit {
        /// The limit.
        limit: u64,
        /// Its unit.
        unit: &'static str,
        /// Its flag.
        flag: &'static str,
    },
    /// Nobody wants it any more.
    #[error("reading it was given up")]
    Stopped,
}

/// Opens an archive.
///
/// # Errors
/// [`AciScanError::Read`], [`AciScanError::NotAFile`].
pub(crate) fn open(path: &Path) -> Result<File, AciScanError> {
    let failed = |source| AciScanError::Read { path: path.to_owned(), source };
    // Opening a pipe would wait for its writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(AciScanError::NotAFile { path: path.to_owned() }),
    }
}

/// A reader with the SHA-256 of what was read.
pub(crate) struct Digested<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Digested<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::sha256() }
    }

    /// Of all that was read.
    pub(crate) fn digest(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Reads an archive to its end.
///
/// # Errors
/// [`AciScanError`].
///
/// # Blocking
/// For as long as decompressing takes. Looks at `stop` between buffers.
pub(crate) fn scan(path: &Path, limits: &Limits, stop: &Stop) -> Result<ScannedAci, AciScanError> {
    let file = open(path)?;
    let failed = |source| AciScanError::Read { path: path.to_owned(), source };
    let size = file.metadata().map_err(failed)?.len();
    let mut file = Digested::new(file);
    let (image_id, manifest, compression) =
        scan_bytes(&mut file, limits, stop).map_err(|error| match error {
            Scanning::Told(error) => error,
            Scanning::Flaw(flaw) => of_flaw(flaw, path),
        })?;
    // A decoder may know its end without having seen that of the file.
    io::copy(&mut file, &mut io::sink()).map_err(failed)?;
    Ok(ScannedAci { image_id, manifest, compression, size, blob: file.digest() })
}

/// Why it ended early.
enum Scanning {
    Told(AciScanError),
    Flaw(Flaw),
}

impl From<Flaw> for Scanning {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

fn scan_bytes(
    blob: impl Read,
    limits: &Limits,
    stop: &Stop,
) -> Result<(ImageId, Vec<u8>, Compression), Scanning> {
    let read = Rc::new(Cell::new(0));
    let counted = Counted { inner: blob, bytes: Rc::clone(&read) };
    let opened = decompress::open(counted, Accepted::Aci).map_err(Flaw::Read)?;
    let compression = opened.compression;
    let tar =
        Hashed { opened, chunk: Chunk::new(), at: 0, hasher: Hasher::sha512(), bytes: 0, read, limits, stop };
    let bounds = Bounds {
        entries_max: limits.layer_entries_max,
        path_bytes_max: limits.path_bytes_max,
        xattr_bytes_max: limits.xattr_bytes_max,
        pax_bytes_max: limits.pax_bytes_max,
    };
    let mut reader = Reader::new(tar, bounds);
    let (mut manifest, mut rootfs) = (None, false);
    while let Some(member) = reader.next()? {
        let name = clean(&member.path);
        match name {
            b"" if member.kind == Kind::Directory => {}
            b"manifest" if member.kind == Kind::File && member.sparse.is_none() => {
                if manifest.is_some() {
                    return Err(Scanning::Told(AciScanError::Twice));
                }
                manifest = Some(content(&mut reader, member.size, limits.manifest_bytes_max)?);
            }
            b"rootfs" if member.kind == Kind::Directory => rootfs = true,
            name if name.starts_with(b"rootfs/") => rootfs = true,
            _ => return Err(Scanning::Told(AciScanError::Layout { entry: text(&member.path) })),
        }
    }
    let tar = reader.finish()?;
    let image_id = ImageId::of(&tar.hasher.finish());
    let missing = |what| Scanning::Told(AciScanError::Without { what });
    let manifest = manifest.ok_or_else(|| missing("manifest"))?;
    if !rootfs {
        return Err(missing("rootfs"));
    }
    // A SHA-512 is one.
    let image_id = image_id.ok_or_else(|| missing("image ID"))?;
    Ok((image_id, manifest, compression))
}

/// A path without `./` before and `/` behind it. Others that lead to the same place are for the store to refuse.
fn clean(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    if path == b"." { b"" } else { path }
}

fn content<S: Source>(reader: &mut Reader<S>, size: u64, most: u64) -> Result<Vec<u8>, Scanning> {
    if size > most {
        let (unit, flag) = ("bytes in its manifest", "manifest_bytes_max");
        return Err(Scanning::Told(AciScanError::Limit { limit: most, unit, flag }));
    }
    let mut content = Vec::new();
    loop {
        let bytes = reader.payload(size)?;
        let length = bytes.len();
        if length == 0 {
            return Ok(content);
        }
        content.extend_from_slice(bytes);
        reader.advance(length);
    }
}

fn of_flaw(flaw: Flaw, path: &Path) -> AciScanError {
    let path = path.to_owned();
    match flaw {
        Flaw::Read(source) | Flaw::Write { source, .. } => AciScanError::Read { path, source },
        Flaw::Stream { what, source } => AciScanError::Stream { what: what.to_owned(), source },
        Flaw::Entry { path, source } => {
            AciScanError::Stream { what: format!("entry {:?}", text(&path)), source: source.into() }
        }
        Flaw::Limit { limit, unit, flag } => AciScanError::Limit { limit, unit, flag },
        Flaw::Stopped => AciScanError::Stopped,
        Flaw::Size { .. } | Flaw::Compression { .. } | Flaw::NoRoom(_) | Flaw::Cut => {
            AciScanError::Read { path, source: io::ErrorKind::UnexpectedEof.into() }
        }
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + bytes as u64);
        Ok(bytes)
    }
}

/// A tar that is hashed as it is decompressed.
struct Hashed<'a> {
    opened: Decompressed<'a>,
    chunk: Chunk,
    /// How much of the chunk was used.
    at: usize,
    hasher: Hasher,
    /// Of the tar.
    bytes: u64,
    /// Of the file.
    read: Rc<Cell<u64>>,
    limits: &'a Limits,
    stop: &'a Stop,
}

impl Source for Hashed<'_> {
    fn fill(&mut self) -> Result<&[u8], Flaw> {
        if self.at == self.chunk.len() {
            if self.stop.is_raised() {
                return Err(Flaw::Stopped);
            }
            self.at = 0;
            let what = match self.opened.compression {
                Compression::Gzip => "gzip stream",
                Compression::Zstd => "zstd stream",
                Compression::Bzip2 => "bzip2 stream",
                Compression::Xz => "xz stream",
                Compression::None => "tar",
            };
            self.opened.fill(&mut self.chunk).map_err(|error| Flaw::of_decoder(what, error))?;
            self.hasher.update(&self.chunk);
            self.bytes += self.chunk.len() as u64;
            let limit = self.limits.layer_bytes_max;
            if self.bytes > limit {
                return Err(Flaw::Limit { limit, unit: "bytes", flag: "layer_bytes_max" });
            }
            let limit = self.limits.layer_expansion_max;
            if self.bytes > EXPANSION_FREE_BYTES && self.bytes > self.read.get().saturating_mul(limit) {
                let unit = "times its size when decompressed";
                return Err(Flaw::Limit { limit, unit, flag: "layer_expansion_max" });
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn lend(&mut self, bytes: usize) -> Bytes {
        let lent = (&self.chunk[self.at..]).copy_to_bytes(bytes);
        self.at += bytes;
        lent
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MANIFEST: &[u8] = b"{\"acKind\":\"ImageManifest\"}";

    fn tar(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn good() -> Vec<u8> {
        use tar::EntryType::{Directory, Regular};
        tar(&[("manifest", Regular, MANIFEST), ("rootfs/", Directory, b""), ("rootfs/a", Regular, b"a")])
    }

    fn scan_of(bytes: &[u8]) -> Result<ScannedAci, AciScanError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        scan(file.path(), &Limits::default(), &Stop::default())
    }

    #[test]
    fn every_compression_gives_the_same_id_and_manifest() {
        let tar = good();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&tar).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&tar).unwrap();
        let mut hasher = Hasher::sha512();
        hasher.update(&tar);
        let id = ImageId::of(&hasher.finish()).unwrap().to_string();
        for (compression, bytes) in [
            (Compression::None, tar.clone()),
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Zstd, zstd::stream::encode_all(&tar[..], 1).unwrap()),
            (Compression::Bzip2, bzip2.finish().unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
        ] {
            let scanned = scan_of(&bytes).unwrap();
            assert_eq!((scanned.image_id.to_string(), scanned.manifest), (id.clone(), MANIFEST.to_vec()));
            assert_eq!((scanned.compression, scanned.size), (compression, bytes.len() as u64));
            assert!(scan_of(&bytes[..bytes.len() / 2]).is_err(), "{compression} cut");
        }
        // What follows the end of the tar is part of what is hashed.
        let padded = [&tar[..], &[0; 10240]].concat();
        assert_ne!(scan_of(&padded).unwrap().image_id.to_string(), id);
    }

    #[test]
    fn an_archive_has_a_manifest_and_a_rootfs_and_nothing_else() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let manifest = ("manifest", Regular, MANIFEST);
        let rootfs = ("rootfs", Directory, &b""[..]);
        scan_of(&tar(&[
            ("./", Directory, b""),
            ("./manifest", Regular, MANIFEST),
            ("./rootfs/a", Regular, b""),
        ]))
        .unwrap();
        let error = |entries: &[(&str, tar::EntryType, &[u8])]| scan_of(&tar(entries)).unwrap_err();
        assert!(matches!(error(&[rootfs]), AciScanError::Without { what: "manifest" }));
        assert!(matches!(error(&[manifest]), AciScanError::Without { what: "rootfs" }));
        assert!(matches!(error(&[manifest, manifest, rootfs]), AciScanError::Twice));
        for odd in [
            ("etc", Directory, &b""[..]),
            ("rootfs", Regular, b"x"),
            ("manifest", Directory, b""),
            ("manifest", Symlink, b""),
            ("/manifest", Regular, b""),
            ("rootfs2/a", Regular, b""),
            ("../rootfs", Directory, b""),
        ] {
            assert!(matches!(error(&[odd, manifest, rootfs]), AciScanError::Layout { .. }), "{}", odd.0);
        }
        assert!(matches!(scan_of(b"no tar"), Err(AciScanError::Stream { .. })));
        assert!(matches!(scan_of(b""), Err(AciScanError::Without { .. })));
    }

    #[test]
    fn limits_and_a_caller_who_leaves_end_it() {
        let with = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            scan_bytes(&good()[..], &limits, &Stop::default()).map(drop)
        };
        let flag = |result| match result {
            Err(
                Scanning::Told(AciScanError::Limit { flag, .. }) | Scanning::Flaw(Flaw::Limit { flag, .. }),
            ) => flag,
            _ => "none",
        };
        assert_eq!(flag(with(|limits| limits.manifest_bytes_max = 3)), "manifest_bytes_max");
        assert_eq!(flag(with(|limits| limits.layer_bytes_max = 3)), "layer_bytes_max");
        assert_eq!(flag(with(|limits| limits.layer_entries_max = 1)), "layer_entries_max");
        let stop = Stop::default();
        stop.raise();
        assert!(matches!(
            scan_bytes(&good()[..], &Limits::default(), &stop),
            Err(Scanning::Flaw(Flaw::Stopped))
        ));
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let stop = Stop::default();
        let limits = Limits::default();
        assert!(matches!(scan(Path::new("/"), &limits, &stop), Err(AciScanError::NotAFile { .. })));
        assert!(matches!(scan(Path::new("/dev/null"), &limits, &stop), Err(AciScanError::NotAFile { .. })));
        assert!(matches!(scan(Path::new("/nowhere.aci"), &limits, &stop), Err(AciScanError::Read { .. })));
    }
}

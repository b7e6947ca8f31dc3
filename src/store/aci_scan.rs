//! A first look at an ACI: its image ID and the bytes of its manifest, before anything is made of it.
//!
//! The whole archive is decompressed and hashed, under the limits of a layer; of its entries only the manifest's content is kept.
//! What is told here already is an archive that is not laid out as the specification wants it (aci.md, "Image Archives"): the
//! store holds all of its rules again when it unpacks it, by the image ID that was found here.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keelblock_actors::error::Cause;
use keelblock_actors::image::appc::ImageId;
use keelblock_actors::image::digest::{Digest, Hasher};
use keelblock_actors::image::plan::{BlobSpec, Compression};
use keelblock_actors::stop::Stop;
use rustix::fs::OFlags;

use super::flaw::{Flaw, text};
use super::intake::Intake;
use super::pipeline::Stages;
use super::tar::{Bounds, Kind, Reader, Source};
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
    scan_bytes(file, size, limits, stop).map_err(|error| match error {
        Scanning::Told(error) => error,
        Scanning::Flaw(flaw) => of_flaw(flaw, path),
    })
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

/// The stages of unpacking, with a look at the entries in the place of the last one.
fn scan_bytes(mut blob: impl Read, size: u64, limits: &Limits, stop: &Stop) -> Result<ScannedAci, Scanning> {
    // Its algorithm is what counts.
    let sha256 = Digest::of(b"");
    let mut intake = Intake::new(&mut blob, Some(size), Some(&sha256), u64::MAX, stop);
    let anything = BlobSpec { digest: None, size: Some(size), compression: None, media_type: None };
    let stages = Stages { blob: &anything, aci: true, limits, outlay: None, stop };
    let mut told = None;
    let ran = stages.run(&mut intake, Hasher::sha512(), |tar, _| {
        entries(tar, limits, stop).map_err(|error| match error {
            Scanning::Flaw(flaw) => flaw,
            Scanning::Told(error) => {
                told = Some(error);
                Flaw::Cut
            }
        })
    });
    if let Some(error) = told {
        return Err(Scanning::Told(error));
    }
    let ran = ran?;
    // A SHA-512 is an image ID, and there is a digest of what was read to its end.
    let image_id = ImageId::of(&ran.digest).ok_or(Flaw::Cut)?;
    let blob = intake.digest().ok_or(Flaw::Cut)?;
    Ok(ScannedAci { image_id, manifest: ran.made, compression: ran.compression, size, blob })
}

/// The content of the manifest of a tar, which is read to its end.
fn entries(tar: &mut dyn Source, limits: &Limits, stop: &Stop) -> Result<Vec<u8>, Scanning> {
    let bounds = Bounds {
        entries_max: limits.layer_entries_max,
        path_bytes_max: limits.path_bytes_max,
        xattr_bytes_max: limits.xattr_bytes_max,
        pax_bytes_max: limits.pax_bytes_max,
    };
    let mut reader = Reader::new(tar, bounds);
    let (mut manifest, mut rootfs) = (None, false);
    while let Some(member) = reader.next()? {
        if stop.is_raised() {
            return Err(Flaw::Stopped.into());
        }
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
    reader.finish()?;
    let missing = |what| Scanning::Told(AciScanError::Without { what });
    let manifest = manifest.ok_or_else(|| missing("manifest"))?;
    if rootfs { Ok(manifest) } else { Err(missing("rootfs")) }
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
            scan_bytes(&good()[..], good().len() as u64, &limits, &Stop::default()).map(drop)
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
            scan_bytes(&good()[..], good().len() as u64, &Limits::default(), &stop),
            Err(Scanning::Flaw(Flaw::Stopped))
        ));
    }

    #[test]
    fn of_a_large_archive_an_entry_that_is_out_of_place_is_told_too() {
        use tar::EntryType::Regular;
        // Larger than what is read on one thread; each stage is cut off by the last one.
        let zeros = vec![0; 4 << 20];
        for (last, what) in [("elsewhere", "elsewhere"), ("manifest", "more than one manifest")] {
            let all =
                [("manifest", Regular, MANIFEST), ("rootfs/a", Regular, &zeros[..]), (last, Regular, b"x")];
            let error = scan_of(&[tar(&all), zeros.clone()].concat()).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        let whole = tar(&[("manifest", Regular, MANIFEST), ("rootfs/a", Regular, &zeros)]);
        let scanned = scan_of(&whole).unwrap();
        assert_eq!((scanned.blob, scanned.size), (Digest::of(&whole), whole.len() as u64));
        assert!(scan_of(&whole[..whole.len() - (2 << 20)]).is_err());
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

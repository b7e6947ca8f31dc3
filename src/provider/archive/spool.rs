//! Archives opened for reading at any place: compressed ones are decompressed to a file first.
//!
//! A layer in the middle of a compressed archive cannot be read without all that stands before it, so the whole is laid
//! out once in the spool directory, under the digest of its compressed bytes: asked for again it is there. Two
//! processes that want the same one share the work, by a lock on the unfinished file; a dead one's leavings are
//! taken over or swept.
//!
//! What holds of all spooled files stands in [`crate::spool`]. The store keeps nothing in the spool.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use keelblock_actors::image::digest::{Digest, Hasher};
use keelblock_actors::stop::Stop;

use super::error::ArchiveError;
use super::index::TarIndex;
use crate::limits::Limits;
use crate::spool::{self, LOCK_POLL, SPOOL_IDLE};

const BUFFER: usize = 256 << 10;

/// Opens an archive, decompressed if need be, and walks its headers.
pub(super) fn open(
    archive: &Path,
    spool: &Path,
    limits: &Limits,
    stop: &Stop,
) -> Result<TarIndex, ArchiveError> {
    let failed = |source| ArchiveError::Open { archive: archive.to_owned(), source };
    let kind = fs::metadata(archive).map_err(failed)?;
    if !kind.is_file() {
        let hint = if kind.is_dir() && archive.join("oci-layout").exists() {
            ", but an OCI image layout; use oci: for it"
        } else {
            ""
        };
        return Err(ArchiveError::NotAFile { archive: archive.to_owned(), hint });
    }
    let file = File::open(archive).map_err(failed)?;
    match Wrapping::of(&file).map_err(|source| ArchiveError::Read { archive: archive.to_owned(), source })? {
        Wrapping::None => TarIndex::read(archive, archive, file, limits, stop),
        Wrapping::Unknown(by) => Err(ArchiveError::Compressed { archive: archive.to_owned(), by }),
        wrapping => {
            let job = Job { archive, compressed: &file, wrapping, spool, limits, stop };
            let (path, file) = job.run()?;
            TarIndex::read(archive, &path, file, limits, stop)
        }
    }
}

/// How a stream is wrapped, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapping {
    None,
    Gzip,
    Zstd,
    /// Known by name, not understood.
    Unknown(&'static str),
}

impl Wrapping {
    fn of(file: &File) -> io::Result<Self> {
        let mut first = [0; 8];
        let mut have = 0;
        while have < first.len() {
            match std::os::unix::fs::FileExt::read_at(file, &mut first[have..], have as u64)? {
                0 => break,
                count => have += count,
            }
        }
        Ok(Self::by_magic(&first[..have]))
    }

    /// By the first bytes; a tar begins with a file name, never with these.
    pub(super) fn by_magic(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Unknown("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Self::Unknown("bzip2"),
            _ => Self::None,
        }
    }

    /// The bytes inside.
    pub(super) fn decoder<'a>(self, compressed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(compressed),
            Self::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, compressed)))
            }
            Self::Zstd => Box::new(zstd::Decoder::new(compressed)?),
            Self::Unknown(by) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, format!("compressed with {by}")));
            }
        })
    }
}

/// Takes all of a reader, buffer by buffer.
pub(super) fn each_buffer(
    archive: &Path,
    mut reader: impl Read,
    stop: &Stop,
    mut take: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        if stop.is_raised() {
            return Err(ArchiveError::Stopped { archive: archive.to_owned() });
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ArchiveError::Read { archive: archive.to_owned(), source }),
        }
    }
}

struct Job<'a> {
    archive: &'a Path,
    compressed: &'a File,
    wrapping: Wrapping,
    spool: &'a Path,
    limits: &'a Limits,
    stop: &'a Stop,
}

impl Job<'_> {
    /// The decompressed file, made now or found.
    fn run(&self) -> Result<(PathBuf, File), ArchiveError> {
        let write = |path: &Path, source| ArchiveError::Spool { path: path.to_owned(), source };
        spool::make(self.spool).map_err(|source| write(self.spool, source))?;
        let digest = self.digest()?;
        let path = spool::finished(self.spool, &digest.hex(), "tar");
        let part = spool::unfinished(self.spool, &digest.hex());
        let lock = self.lock(&part)?;
        if let Ok(found) = spool::reuse(&path) {
            let _ = fs::remove_file(&part);
            return Ok((path, found));
        }
        spool::sweep(self.spool, SPOOL_IDLE);
        let done = self.decompress(&lock, &part, &digest).and_then(|()| {
            fs::rename(&part, &path).map_err(|source| write(&path, source))?;
            File::open(&path).map_err(|source| write(&path, source))
        });
        match done {
            Ok(file) => Ok((path, file)),
            Err(error) => {
                let _ = fs::remove_file(&part);
                Err(error)
            }
        }
    }

    fn digest(&self) -> Result<Digest, ArchiveError> {
        let mut hasher = Hasher::sha256();
        each_buffer(self.archive, self.whole(), self.stop, |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// The compressed bytes, from the start.
    fn whole(&self) -> impl Read + '_ {
        let length = self.compressed.metadata().map_or(0, |meta| meta.len());
        crate::puller::local::Extract::new(self.compressed, 0, length)
    }

    /// The unfinished file, with nobody else at it.
    fn lock(&self, part: &Path) -> Result<File, ArchiveError> {
        loop {
            let locked = spool::try_lock(part);
            let locked = locked.map_err(|source| ArchiveError::Spool { path: part.to_owned(), source })?;
            if let Some(file) = locked {
                return Ok(file);
            }
            if self.stop.is_raised() {
                return Err(ArchiveError::Stopped { archive: self.archive.to_owned() });
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    fn decompress(&self, mut to: &File, part: &Path, digest: &Digest) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Spool { path: part.to_owned(), source };
        to.set_len(0).map_err(failed)?;
        let mut hasher = Hasher::sha256();
        let limit = self.limits.archive_bytes_max;
        let mut written = 0;
        {
            let mut tee = Tee { from: self.whole(), hasher: &mut hasher };
            let decoder = self.wrapping.decoder(&mut tee);
            let decoder =
                decoder.map_err(|source| ArchiveError::Read { archive: self.archive.to_owned(), source })?;
            each_buffer(self.archive, decoder, self.stop, |bytes| {
                written += bytes.len() as u64;
                if written > limit {
                    let archive = self.archive.to_owned();
                    let (unit, flag) = ("decompressed bytes", "archive_bytes_max");
                    return Err(ArchiveError::Limit { archive, limit, unit, flag });
                }
                to.write_all(bytes).map_err(failed)
            })?;
            // Whatever follows the last frame belongs to the digest too.
            each_buffer(self.archive, tee, self.stop, |_| Ok(()))?;
        }
        let actual = hasher.finish();
        if actual != *digest {
            let text = format!("it changed while it was read (digest {digest}, then {actual})");
            return Err(ArchiveError::Read {
                archive: self.archive.to_owned(),
                source: io::Error::other(text),
            });
        }
        Ok(())
    }
}

/// A reader that hashes what passes.
struct Tee<'a, R> {
    from: R,
    hasher: &'a mut Hasher,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

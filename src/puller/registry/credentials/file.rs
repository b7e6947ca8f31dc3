//! A file of credentials: read when it is first needed, and again when it is another or was changed.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::docker_config::{DockerConfig, DockerConfigError};

/// Bytes of a file of credentials. 1 MiB: thousands of entries.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file of credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path} ({origin})")]
    Read {
        /// The file.
        path: PathBuf,
        /// What names it: a flag, a variable, a default.
        origin: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pipe, a directory in a directory.
    #[error("{path} ({origin}) is no regular file")]
    NoFile {
        /// The file.
        path: PathBuf,
        /// What names it.
        origin: &'static str,
    },
    /// It is longer than any such file.
    #[error("{path} ({origin}) has more than {limit} bytes, which no docker config needs")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What names it.
        origin: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// It is no docker config.
    #[error(
        "{path} ({origin}) cannot be used as a docker config; correct it, or name another by --docker_config"
    )]
    Config {
        /// The file.
        path: PathBuf,
        /// What names it.
        origin: &'static str,
        /// What is wrong with it.
        #[source]
        source: DockerConfigError,
    },
}

/// Which file it is, and in which state.
type Stamp = (u64, u64, i64, i64, i64, u64);

fn stamp(metadata: &Metadata) -> Stamp {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        // A file may be given back its old time of change, not its time of status.
        metadata.ctime().wrapping_mul(1_000_000_000).wrapping_add(metadata.ctime_nsec()),
        metadata.len(),
    )
}

/// A file, or a directory with a `config.json`, that may be there or not.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    origin: &'static str,
    /// Whether it must be there: somebody named it.
    required: bool,
    read: Mutex<Option<(Stamp, Arc<DockerConfig>)>>,
}

impl ConfigFile {
    pub(super) fn new(path: PathBuf, origin: &'static str, required: bool) -> Self {
        Self { path, origin, required, read: Mutex::default() }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        match self.required {
            true => format!("{} ({})", self.path.display(), self.origin),
            false => self.path.display().to_string(),
        }
    }

    /// What it says now; `None` when it is not there and need not be.
    ///
    /// # Blocking
    /// Reads the file if it has changed.
    pub(super) fn config(&self) -> Result<Option<Arc<DockerConfig>>, FileError> {
        let origin = self.origin;
        let unreadable = |path: &Path, source| FileError::Read { path: path.to_owned(), origin, source };
        let is_missing = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        };
        let (path, metadata) = match self.find() {
            Ok(found) => found,
            Err((_, error)) if !self.required && is_missing(&error) => {
                *self.read.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Ok(None);
            }
            Err((path, error)) => return Err(unreadable(&path, error)),
        };
        if !metadata.is_file() {
            return Err(FileError::NoFile { path, origin });
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = &*read
            && *of == stamp(&metadata)
        {
            return Ok(Some(Arc::clone(config)));
        }
        *read = None;
        // A pipe that took its place meanwhile must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty());
        let file = File::from(opened.map_err(|errno| unreadable(&path, errno.into()))?);
        // Of the file that is read, whatever its name means now.
        let of = stamp(&file.metadata().map_err(|error| unreadable(&path, error))?);
        let mut bytes = Vec::new();
        let taken = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
        taken.map_err(|error| unreadable(&path, error))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(FileError::TooLarge { path, origin, limit: FILE_BYTES_MAX });
        }
        // A BOM, and an empty file as some tools leave it.
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_start_matches('\u{feff}').trim();
        let parsed = if text.is_empty() { Ok(DockerConfig::default()) } else { DockerConfig::parse(text) };
        let config = Arc::new(parsed.map_err(|source| FileError::Config { path, origin, source })?);
        *read = Some((of, Arc::clone(&config)));
        Ok(Some(config))
    }

    fn find(&self) -> Result<(PathBuf, Metadata), (PathBuf, io::Error)> {
        let of = |path: PathBuf| match std::fs::metadata(&path) {
            Ok(metadata) => Ok((path, metadata)),
            Err(error) => Err((path, error)),
        };
        let (path, metadata) = of(self.path.clone())?;
        if metadata.is_dir() { of(path.join("config.json")) } else { Ok((path, metadata)) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use keelblock_actors::error::chain;

    use super::*;

    fn file(path: &Path, required: bool) -> ConfigFile {
        ConfigFile::new(path.to_owned(), "--docker_config", required)
    }

    fn user(file: &ConfigFile) -> Option<String> {
        Some(file.config().unwrap()?.login("r.io", "x", "f")?.user)
    }

    fn entry(user: &str) -> String {
        serde_json::json!({"auths": {"r.io": {"username": user, "password": "hush"}}}).to_string()
    }

    #[test]
    fn a_file_is_read_once_and_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        let file = file(&path, false);
        assert_eq!(user(&file), None);
        fs::write(&path, entry("one")).unwrap();
        let first = file.config().unwrap().unwrap();
        assert_eq!(user(&file).as_deref(), Some("one"));
        assert!(Arc::ptr_eq(&first, &file.config().unwrap().unwrap()), "it was read again");
        // As tools write it: another file under the name. Of the same length on purpose.
        fs::write(dir.path().join("new"), entry("two")).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(user(&file).as_deref(), Some("two"));
        fs::remove_file(&path).unwrap();
        assert_eq!(user(&file), None);
    }

    #[test]
    fn a_directory_means_its_config_json() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), entry("u")).unwrap();
        assert_eq!(user(&file(dir.path(), true)).as_deref(), Some("u"));
        fs::write(dir.path().join("config.json"), "").unwrap();
        assert_eq!(user(&file(dir.path(), true)), None);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| chain(&file(path, true).config().unwrap_err());
        let path = dir.path().join("missing");
        assert!(
            error(&path).starts_with(&format!("cannot read {} (--docker_config): No such", path.display()))
        );
        fs::write(&path, "hush hush").unwrap();
        let text = error(&path);
        assert!(text.ends_with("it is no JSON from line 1, column 1 on") && !text.contains("hush"), "{text}");
        fs::write(&path, vec![b' '; (FILE_BYTES_MAX + 1) as usize]).unwrap();
        assert!(error(&path).contains("more than 1048576 bytes"));
        assert!(error(Path::new("/dev/null")).contains("no regular file"));
        // Not there is nothing where nobody said that it is.
        assert_eq!(file(&dir.path().join("nosuch/x"), false).config().unwrap(), None);
        assert_eq!(file(&path.join("below-a-file"), false).config().unwrap(), None);
    }
}

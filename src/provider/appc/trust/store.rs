//! Where trusted keys lie, as rkt laid them out:
//!
//! ```text
//! <work_dir>/trustedkeys/
//!   root.d/<fingerprint>                 trusted for every name
//!   prefix.d/<prefix>/<fingerprint>      trusted for names that are the prefix, or go on behind it with a slash;
//!                                        slashes of the prefix are written as commas, which no name has
//! ```
//!
//! Each file is one public key in ASCII armour, named by the fingerprint of its primary key; it appears whole or not at all. A
//! file is used only if its name is right and nobody but root and this user can write it or its directory: whoever can, decides
//! what runs here.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use keelblock_actors::error::chain;
use keelblock_actors::image::appc::AcIdentifier;

use super::certificate::{Certificate, KEY_FILE_BYTES_MAX, read_keys};
use super::error::TrustError;

/// For which names a key is trusted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// For all.
    Root,
    /// For this one, and those that begin with it and a slash.
    Prefix(AcIdentifier),
}

impl Scope {
    /// Whether it is for this name.
    pub fn covers(&self, name: &AcIdentifier) -> bool {
        match self {
            Self::Root => true,
            Self::Prefix(prefix) => name
                .as_str()
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }

    /// The prefix, unless it is for all.
    pub fn prefix(&self) -> Option<&AcIdentifier> {
        match self {
            Self::Root => None,
            Self::Prefix(prefix) => Some(prefix),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("all names"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

/// A key that is trusted, and for what.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// For what.
    pub scope: Scope,
    /// The key.
    pub certificate: Certificate,
    /// Its file.
    pub path: PathBuf,
}

/// A file among the keys that is not used.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// The keys that are trusted, on disk, shared by all processes on the work directory.
#[derive(Clone, Debug)]
pub struct TrustStore {
    dir: PathBuf,
}

const ROOT: &str = "root.d";
const PREFIX: &str = "prefix.d";

impl TrustStore {
    /// That of a work directory. Nothing is made before the first key is added.
    pub fn at(work_dir: &Path) -> Self {
        Self { dir: work_dir.join("trustedkeys") }
    }

    /// All keys, ordered by scope and fingerprint, and the files that are none or cannot be relied on.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn keys(&self) -> Result<(Vec<StoredKey>, Vec<Skipped>), TrustError> {
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        self.read_dir(&self.dir.join(ROOT), &Scope::Root, &mut keys, &mut skipped)?;
        for path in entries(&self.dir.join(PREFIX))? {
            match scope_of(&path) {
                Some(scope) => self.read_dir(&path, &scope, &mut keys, &mut skipped)?,
                None => skipped.push(Skipped { path, why: "its name is no prefix of a name".to_owned() }),
            }
        }
        keys.sort_by(|a, b| {
            (&a.scope, a.certificate.fingerprint()).cmp(&(&b.scope, b.certificate.fingerprint()))
        });
        Ok((keys, skipped))
    }

    /// Trusts a key; a former copy of it, for the same names, is replaced. When this returns it is on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&self, scope: &Scope, certificate: &Certificate) -> Result<PathBuf, TrustError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let text = certificate.armored();
        let text =
            text.map_err(|source| TrustError::Keys { from: certificate.fingerprint().to_owned(), source })?;
        let dir = self.dir_of(scope);
        let path = dir.join(certificate.fingerprint());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // No fingerprint: those who read keys take no notice of it.
        let staged = dir.join(format!(".new-{}-{number}", std::process::id()));
        let write = || {
            make_dirs(&dir)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&staged)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&staged, &path)?;
            // The directories may be new as well.
            dir.ancestors().take(DEPTH).try_for_each(|dir| File::open(dir)?.sync_all())
        };
        write().map_err(|source| {
            let _ = std::fs::remove_file(&staged);
            TrustError::Io { act: "write the trusted key", path: path.clone(), source }
        })?;
        Ok(path)
    }

    /// Trusts a key no longer, by its fingerprint: for these names, or without them for any. Returns for which it was trusted.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, scope: Option<&Scope>, fingerprint: &str) -> Result<Vec<Scope>, TrustError> {
        let all = || -> Result<Vec<Scope>, TrustError> {
            let prefixes = entries(&self.dir.join(PREFIX))?.into_iter();
            Ok(prefixes.filter_map(|path| scope_of(&path)).chain([Scope::Root]).collect())
        };
        let scopes = scope.map_or_else(all, |scope| Ok(vec![scope.clone()]))?;
        let mut removed = Vec::new();
        for scope in scopes {
            let dir = self.dir_of(&scope);
            let path = dir.join(fingerprint);
            let gone = std::fs::remove_file(&path).and_then(|()| File::open(&dir)?.sync_all());
            match gone {
                Ok(()) => {
                    // With the last key of a prefix its directory goes; another may just have come.
                    if scope != Scope::Root {
                        let _ = std::fs::remove_dir(&dir);
                    }
                    removed.push(scope);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(TrustError::Io { act: "remove the trusted key", path, source });
                }
            }
        }
        removed.sort();
        Ok(removed)
    }

    fn dir_of(&self, scope: &Scope) -> PathBuf {
        match scope {
            Scope::Root => self.dir.join(ROOT),
            Scope::Prefix(prefix) => self.dir.join(PREFIX).join(prefix.as_str().replace('/', ",")),
        }
    }

    fn read_dir(
        &self,
        dir: &Path,
        scope: &Scope,
        keys: &mut Vec<StoredKey>,
        skipped: &mut Vec<Skipped>,
    ) -> Result<(), TrustError> {
        let paths = entries(dir)?;
        if paths.is_empty() {
            return Ok(());
        }
        let depth = if *scope == Scope::Root { DEPTH - 1 } else { DEPTH };
        for above in dir.ancestors().take(depth) {
            let reliable = above.metadata().and_then(|dir| reliable(&dir));
            if let Err(error) = reliable {
                skipped.push(Skipped { path: dir.to_owned(), why: format!("{}: {error}", above.display()) });
                return Ok(());
            }
        }
        for path in paths {
            match read_key(&path) {
                Ok(certificate) => keys.push(StoredKey { scope: scope.clone(), certificate, path }),
                Err(why) => skipped.push(Skipped { path, why }),
            }
        }
        Ok(())
    }
}

/// Directories of a prefix: its own, `prefix.d`, `trustedkeys`.
const DEPTH: usize = 3;

fn make_dirs(dir: &Path) -> io::Result<()> {
    // The work directory may be for others to pass; this is for root to write and anybody to read.
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// What is in a directory, without what is being written; nothing, if it is not there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, TrustError> {
    let failed = |source| TrustError::Io { act: "read the trusted keys in", path: dir.to_owned(), source };
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

fn scope_of(path: &Path) -> Option<Scope> {
    let name = path.file_name()?.to_str()?;
    name.replace(',', "/").parse().ok().map(Scope::Prefix)
}

fn read_key(path: &Path) -> Result<Certificate, String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let read = || {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        reliable(&metadata)?;
        let mut text = Vec::new();
        file.take(KEY_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| error.to_string())?;
    let mut keys = read_keys(&text, "it").map_err(|error| chain(&error))?;
    match (keys.pop(), keys.is_empty()) {
        (Some(key), true) if key.fingerprint() == name => Ok(key),
        (Some(key), true) => Err(format!("it is key {}, not that of its name", key.fingerprint())),
        _ => Err("there are several keys in it".to_owned()),
    }
}

/// Whether nobody else can change it.
fn reliable(metadata: &std::fs::Metadata) -> io::Result<()> {
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to user {owner}")));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others than its owner can write it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_a_part_of_a_name_ends() {
        let scope = Scope::Prefix("example.com/a".parse().unwrap());
        for (name, covered) in [
            ("example.com/a", true),
            ("example.com/a/b", true),
            ("example.com/ab", false),
            ("example.com/a-b", false),
            ("example.com", false),
            ("example.org/a", false),
        ] {
            let name: AcIdentifier = name.parse().unwrap();
            assert_eq!(scope.covers(&name), covered, "{name}");
            assert!(Scope::Root.covers(&name));
        }
    }

    #[test]
    fn prefixes_have_one_directory_each() {
        let store = TrustStore::at(Path::new("/w"));
        let scope = Scope::Prefix("example.com/a/b".parse().unwrap());
        let dir = store.dir_of(&scope);
        assert_eq!(dir, Path::new("/w/trustedkeys/prefix.d/example.com,a,b"));
        assert_eq!(scope_of(&dir), Some(scope));
        assert_eq!(scope_of(Path::new("/w/example.com,,a")), None);
    }
}

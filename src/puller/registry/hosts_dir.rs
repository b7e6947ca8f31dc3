//! `--registry_config_path`: where the servers of a registry are written down.
//!
//! Read for every question: the files are small, and an operator who changes one needs no restart. A directory for a
//! registry holds a `hosts.toml`, or certificates as Docker lays them out; `_default` is for registries without one.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use slog::{Logger, warn};

use super::hosts_toml::{HostsError, HostsFile, Written};
use super::tls::Trust;

/// Bytes of a `hosts.toml`. 1 MiB: thousands of mirrors.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Warnings remembered, to be given once.
const WARNED_MAX: usize = 1024;

/// The directories, in the order in which they are looked into.
pub(super) struct HostsDirs {
    roots: Vec<PathBuf>,
    warned: Mutex<HashSet<(PathBuf, String)>>,
    log: Logger,
}

impl HostsDirs {
    pub(super) fn new(roots: Vec<PathBuf>, log: Logger) -> Self {
        Self { roots, warned: Mutex::default(), log }
    }

    /// Whether nothing can be written anywhere.
    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// What is written of this registry; `None` when nothing is.
    ///
    /// # Blocking
    /// Reads a small file.
    pub(super) fn of(&self, registry: &str) -> Result<Option<HostsFile>, HostsError> {
        let Some(dir) = self.directory(registry)? else { return Ok(None) };
        let path = dir.join("hosts.toml");
        let text = match read(&path) {
            Ok(text) => text,
            Err(HostsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut file = match text.is_empty() {
            // So does containerd.
            true => HostsFile { server: certificates(&dir)?, ..HostsFile::default() },
            false => HostsFile::parse(&text, &dir).map_err(|error| error.of(&path))?,
        };
        self.warn(&path, &file);
        let all = file.hosts.iter_mut().chain([&mut file.server]);
        all.for_each(|written| written.trust.stamp = stamp(&written.trust));
        Ok(Some(file))
    }

    fn directory(&self, registry: &str) -> Result<Option<PathBuf>, HostsError> {
        let names = names(registry);
        for dir in self.roots.iter().flat_map(|root| names.iter().map(|name| root.join(name))) {
            match fs::metadata(&dir) {
                Ok(_) => return Ok(Some(dir)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(HostsError::Read { path: dir, source }),
            }
        }
        Ok(None)
    }

    fn warn(&self, path: &Path, file: &HostsFile) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &file.unknown {
            if warned.len() < WARNED_MAX && warned.insert((path.to_owned(), key.clone())) {
                warn!(self.log, "key in hosts.toml is not known and has no effect";
                    "path" => %path.display(), "key" => key);
            }
        }
    }
}

/// What the directory of a registry may be called: a colon is no character of file names everywhere.
fn names(registry: &str) -> Vec<String> {
    let with_port = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let underscored = with_port.map(|(host, port)| format!("{host}_{port}_"));
    underscored.into_iter().chain([registry.to_owned(), "_default".to_owned()]).collect()
}

fn read(path: &Path) -> Result<String, HostsError> {
    let failed = |source| HostsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(HostsError::TooLarge { path: path.to_owned(), limit: FILE_BYTES_MAX });
    }
    String::from_utf8(bytes)
        .map_err(|_| HostsError::Toml { path: path.to_owned(), why: "it is not UTF-8".to_owned() })
}

/// Docker's form: authorities in `*.crt`, who to be in `*.cert` with its key in `*.key` or in itself.
fn certificates(dir: &Path) -> Result<Written, HostsError> {
    let failed = |source| HostsError::Read { path: dir.to_owned(), source };
    let entries = fs::read_dir(dir).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    let with = |extension: &str| {
        let is = move |path: &&PathBuf| path.extension().is_some_and(|own| own == extension);
        paths.iter().filter(is).cloned().collect::<Vec<_>>()
    };
    let pair = |certificate: PathBuf| {
        let key = certificate.with_extension("key");
        let key = if paths.contains(&key) { key } else { certificate.clone() };
        (certificate, key)
    };
    Ok(Written::of_files(with("crt"), with("cert").into_iter().map(pair).collect()))
}

/// What the files of a trust are now: one that was replaced is read again.
fn stamp(trust: &Trust) -> u64 {
    let mut hasher = DefaultHasher::new();
    let clients = trust.client.iter().flat_map(|(certificate, key)| [certificate, key]);
    for path in trust.ca.iter().chain(clients) {
        let known = |file: Metadata| (file.ino(), file.size(), file.mtime(), file.mtime_nsec());
        fs::metadata(path).ok().map(known).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(roots: &[&Path]) -> HostsDirs {
        let roots = roots.iter().map(|root| root.to_path_buf()).collect();
        HostsDirs::new(roots, Logger::root(slog::Discard, slog::o!()))
    }

    #[test]
    fn directories_are_found_as_containerd_finds_them() {
        assert_eq!(names("r.io:5000"), ["r.io_5000_", "r.io:5000", "_default"]);
        assert_eq!(names("r.io"), ["r.io", "_default"]);
        assert_eq!(names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
        assert_eq!(names("[::1]"), ["[::1]", "_default"]);
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = dirs(&[first.path(), second.path()]);
        let found = || dirs.directory("r.io:5000").unwrap();
        assert_eq!(found(), None);
        for (root, name) in [
            (&second, "_default"),
            (&second, "r.io:5000"),
            (&second, "r.io_5000_"),
            (&first, "_default"),
            (&first, "r.io:5000"),
        ] {
            fs::create_dir(root.path().join(name)).unwrap();
            assert_eq!(found().unwrap(), root.path().join(name), "each goes before those made earlier");
        }
    }

    #[test]
    fn a_file_is_read_anew_and_wrong_ones_are_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("r.io");
        fs::create_dir(&dir).unwrap();
        let dirs = dirs(&[root.path()]);
        let path = dir.join("hosts.toml");
        fs::write(&path, "[host.\"http://a\"]\n").unwrap();
        assert_eq!(dirs.of("r.io").unwrap().unwrap().hosts.len(), 1);
        fs::write(&path, "[host.\"http://a\"]\n[host.\"http://b\"]\n").unwrap();
        assert_eq!(dirs.of("r.io").unwrap().unwrap().hosts.len(), 2);
        fs::write(&path, "[host.\"http://a\"]\nca = 1\n").unwrap();
        let error = dirs.of("r.io").unwrap_err().to_string();
        let expected =
            format!("{}: host.\"http://a\".ca must be a string or a list of strings", path.display());
        assert_eq!(error, expected);
        fs::write(&path, "server = \n").unwrap();
        assert!(matches!(dirs.of("r.io"), Err(HostsError::Toml { .. })));
        fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(matches!(dirs.of("r.io"), Err(HostsError::TooLarge { .. })));
        fs::write(&path, [0xff]).unwrap();
        assert!(matches!(dirs.of("r.io"), Err(HostsError::Toml { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(dirs.of("r.io"), Err(HostsError::Read { .. })));
        assert_eq!(dirs.of("q.io").unwrap(), None);
    }

    #[test]
    fn certificates_as_docker_lays_them_out_are_found() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("r.io");
        fs::create_dir(&dir).unwrap();
        for name in ["b.crt", "a.crt", "me.cert", "me.key", "one.cert", "notes.txt"] {
            fs::write(dir.join(name), "x").unwrap();
        }
        let dirs = dirs(&[root.path()]);
        let found = dirs.of("r.io").unwrap().unwrap();
        let at = |name: &str| dir.join(name);
        assert_eq!(found.server.trust.ca, [at("a.crt"), at("b.crt")]);
        let pairs = [(at("me.cert"), at("me.key")), (at("one.cert"), at("one.cert"))];
        assert_eq!(found.server.trust.client, pairs);
        fs::write(dir.join("a.crt"), "longer").unwrap();
        let again = dirs.of("r.io").unwrap().unwrap();
        assert_ne!(found.server.trust, again.server.trust, "what is in it is read again");
    }
}

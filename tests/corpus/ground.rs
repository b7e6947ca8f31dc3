//! Where cases are run: a store and rootfses amid things that nothing of an image may touch.
//!
//! ```text
//! <top>/canary, outside/...         beside and above the store; names that attacks aim at
//! <top>/cwd/...                     the working directory of this process
//! <top>/work/canary, store/, trees/, rootfses/, scratch/
//! /dev/shm/keelblock-canary-...     as far away as another program's files
//! ```
//!
//! All of it belongs to whoever runs the case, so that an attack that gets there can do harm.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keelblock_actors::container::RootfsId;
use keelblock_actors::ports::RootfsPlace;
use tempfile::TempDir;

/// See the module.
pub(crate) struct Ground {
    top: TempDir,
    far: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Ground {
    /// In a directory on the filesystem that the cases shall be tried on. This process then works in it.
    #[expect(clippy::disallowed_methods, reason = "the process is there for this alone")]
    pub(crate) fn new(within: &Path) -> Self {
        let top = tempfile::Builder::new().prefix("keelblock-corpus-").tempdir_in(within).unwrap();
        let memory = Path::new("/dev/shm");
        let elsewhere = if memory.is_dir() { memory } else { within };
        let far = tempfile::Builder::new().prefix("keelblock-canary-").tempdir_in(elsewhere).unwrap();
        for dir in [top.path().join("outside"), top.path().join("cwd"), far.path().to_owned()] {
            std::fs::create_dir_all(dir.join("sub")).unwrap();
            for name in ["canary", "sub/canary", "a", "b", "passwd"] {
                std::fs::write(dir.join(name), "alive").unwrap();
                std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o640)).unwrap();
            }
        }
        std::fs::write(top.path().join("canary"), "alive").unwrap();
        std::fs::create_dir(top.path().join("work")).unwrap();
        std::fs::write(top.path().join("work/canary"), "alive").unwrap();
        std::env::set_current_dir(top.path().join("cwd")).unwrap();
        let mut ground = Self { top, far, before: BTreeMap::new() };
        ground.before = ground.survey();
        ground
    }

    /// A directory full of canaries.
    pub(crate) fn outside(&self) -> PathBuf {
        self.top.path().join("outside")
    }

    /// Another one, away from all else.
    pub(crate) fn far(&self) -> &Path {
        self.far.path()
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.top.path().join("work")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.work().join("store")
    }

    /// Another store, where layers are kept as trees.
    pub(crate) fn trees(&self) -> PathBuf {
        self.work().join("trees")
    }

    pub(crate) fn place(&self, id: u32) -> RootfsPlace {
        RootfsPlace {
            container: "corpus".parse().unwrap(),
            id: RootfsId(id),
            rootfs: self.work().join(format!("rootfses/{id}")),
            scratch: self.work().join(format!("scratch/{id}")),
        }
    }

    /// What of the canaries is not as it was.
    pub(crate) fn touched(&self) -> Vec<String> {
        let after = self.survey();
        let paths = self.before.keys().chain(after.keys().filter(|path| !self.before.contains_key(*path)));
        paths
            .filter(|path| self.before.get(*path) != after.get(*path))
            .map(|path| {
                let text = |found: Option<&String>| found.cloned().unwrap_or_else(|| "nothing".to_owned());
                format!(
                    "{}: was {}, is {}",
                    path.display(),
                    text(self.before.get(path)),
                    text(after.get(path))
                )
            })
            .collect()
    }

    fn survey(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.top.path().to_owned(), self.far.path().to_owned()];
        while let Some(path) = todo.pop() {
            let at = path.symlink_metadata().unwrap();
            let work = path.starts_with(self.work());
            if at.is_dir() {
                for entry in std::fs::read_dir(&path).unwrap() {
                    let entry = entry.unwrap();
                    // These are what the cases work in.
                    if work
                        && ["store", "trees", "rootfses", "scratch"]
                            .iter()
                            .any(|ours| entry.file_name() == *ours)
                    {
                        continue;
                    }
                    todo.push(entry.path());
                }
            }
            let content = if at.is_file() { std::fs::read_to_string(&path).unwrap() } else { String::new() };
            // Its own directories come and go.
            let time = if work && at.is_dir() { (0, 0) } else { (at.mtime(), at.mtime_nsec()) };
            let line = format!(
                "{:o} {}:{} inode {} links {} time {time:?} {content:?}",
                at.mode(),
                at.uid(),
                at.gid(),
                at.ino(),
                if at.is_dir() { 0 } else { at.nlink() },
            );
            found.insert(path, line);
        }
        found
    }
}

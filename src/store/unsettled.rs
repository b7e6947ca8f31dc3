//! Marks of layers that are not known to be on disk: an empty file each in `unsettled/`, made before its layer is visible and
//! removed once the journal has it. They are a list of what is to be done, and no word on what is durable: after a power
//! cut all of them go.
//!
//! A layer that the disk refused keeps a mark of another name. It is as visible as before, since what the kernel holds of
//! it is right; but the kernel has forgotten what it could not write, so that no later sync means anything, and it is never
//! called durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::DiffId;

use super::images::names;
use super::journal::Commit;
use super::layout::Layout;

/// In the place of the commit of a layer that has none.
const NO_COMMIT: &str = "0";
/// Behind the mark of a layer that the disk refused.
const FAILED: &str = ".failed";

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Of which layer.
    pub(super) commit: Commit,
    /// Whether the disk refused it.
    pub(super) failed: bool,
}

impl Mark {
    /// That of a layer whose sync was not tried.
    pub(super) fn of(diff: &DiffId, commit: &str) -> Self {
        Self { commit: (diff.clone(), commit.to_owned()), failed: false }
    }

    fn path(&self, layout: &Layout) -> PathBuf {
        let (diff, commit) = &self.commit;
        let commit = if commit.is_empty() { NO_COMMIT } else { commit };
        let failed = if self.failed { FAILED } else { "" };
        layout.unsettled().join(format!("{}-{}-{commit}{failed}", diff.0.algorithm(), diff.0.hex()))
    }

    fn parse(name: &str) -> Option<Self> {
        let (name, failed) = name.strip_suffix(FAILED).map_or((name, false), |name| (name, true));
        let (algorithm, rest) = name.split_once('-')?;
        let (hex, commit) = rest.split_once('-')?;
        let diff = format!("{algorithm}:{hex}").parse().ok()?;
        let commit = if commit == NO_COMMIT { "" } else { commit };
        Some(Self { commit: (diff, commit.to_owned()), failed })
    }

    /// Makes it.
    pub(super) fn make(&self, layout: &Layout) -> Result<(), StoreError> {
        let path = self.path(layout);
        let made = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        made.map(drop).map_err(|source| StoreError::Io { act: "make", path, source })
    }

    /// Removes it. One that stays is looked at again.
    pub(super) fn remove(&self, layout: &Layout) {
        let _ = std::fs::remove_file(self.path(layout));
    }

    /// Remembers that the disk refused the layer.
    pub(super) fn fail(&self, layout: &Layout) -> Result<(), StoreError> {
        let path = self.path(layout);
        let failed = Self { failed: true, ..self.clone() };
        match std::fs::rename(&path, failed.path(layout)) {
            // Pruned meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.map_err(|source| StoreError::Io { act: "rename", path, source }),
        }
    }
}

/// All marks. What is no mark is passed over.
pub(super) fn marks(layout: &Layout) -> Result<Vec<Mark>, StoreError> {
    let names = names(&layout.unsettled())?;
    Ok(names.iter().filter_map(|name| Mark::parse(name.to_str()?)).collect())
}

/// Removes whatever is there: what an earlier boot left.
pub(super) fn clear(layout: &Layout) -> Result<(), StoreError> {
    for name in names(&layout.unsettled())? {
        let path = layout.unsettled().join(name);
        remove(&path).map_err(|source| StoreError::Io { act: "remove", path, source })?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use keelblock_actors::image::digest::Digest;

    use super::*;

    #[test]
    fn marks_come_back_from_their_names() {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout::new(home.path().to_owned());
        assert!(marks(&layout).unwrap().is_empty(), "without a directory there is none");
        std::fs::create_dir(layout.unsettled()).unwrap();
        let diff = DiffId(Digest::of(b"x"));
        let (new, old) = (Mark::of(&diff, "1a-0-ff00"), Mark::of(&diff, ""));
        new.make(&layout).unwrap();
        new.make(&layout).unwrap();
        old.make(&layout).unwrap();
        old.fail(&layout).unwrap();
        old.fail(&layout).unwrap();
        std::fs::write(layout.unsettled().join("README"), "").unwrap();
        let mut found = marks(&layout).unwrap();
        found.sort_by_key(|mark| mark.failed);
        assert_eq!(found, [new.clone(), Mark { failed: true, ..old }]);
        new.remove(&layout);
        clear(&layout).unwrap();
        assert!(marks(&layout).unwrap().is_empty());
    }
}

//! The spool: files that can be made again, kept while they are asked for.
//!
//! Nobody can say when the last layer has been read, for the pull happens after the resolve and perhaps in another process. So a
//! spooled file lives until it was not asked for during [`SPOOL_IDLE`]; whoever spools another one, and every prune,
//! removes such files ([`sweep`]). A pull that comes later finds its file gone and says so; resolving the image again brings it
//! back.
//!
//! Two processes that want the same file share the work, by a lock on the unfinished one (`.part`); a dead one's leavings are
//! taken over or swept. Spooled files are not synced, which would cost more than all the rest. Instead their names hold the
//! kernel's boot ID: what an earlier boot wrote, and a power cut may have emptied, is never used and swept at once.
//!
//! What is spooled, and under which name, is decided by those who spool: archives that were decompressed by
//! `provider/archive/spool.rs`, ACIs that were fetched by `puller/appc/spool.rs`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// How long a spooled file stays after it was last asked for. Six hours: longer than any pull takes after its resolve.
pub const SPOOL_IDLE: Duration = Duration::from_secs(6 * 60 * 60);

/// How often a lock is tried that somebody else has: polled, so that one who gives up need not wait for the other to finish.
pub(crate) const LOCK_POLL: Duration = Duration::from_millis(20);

/// How the names of unfinished files end.
const UNFINISHED: &str = "part";
/// How the names of finished files end, after the boot ID: archives, ACIs, what is known of these.
const FINISHED: [&str; 3] = ["tar", "aci", "json"];

/// Makes the directory, for its owner alone.
pub(crate) fn make(spool: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(spool)
}

/// Where a finished file of this kind (`tar`, `aci`, `json`) lies, if this boot made it.
pub(crate) fn finished(spool: &Path, name: &str, kind: &str) -> PathBuf {
    spool.join(format!("{name}{}", ending(kind)))
}

/// Where the unfinished file of this name lies.
pub(crate) fn unfinished(spool: &Path, name: &str) -> PathBuf {
    spool.join(format!("{name}.{UNFINISHED}"))
}

fn ending(kind: &str) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Without proc there is no telling boots apart, and one name for all is the best there is.
    format!(".{}.{kind}", boot.split('-').next().filter(|id| !id.is_empty()).unwrap_or("boot"))
}

/// An unfinished file, made if it was not there, with nobody else at it until it is closed; `None` while somebody else is.
pub(crate) fn try_lock(part: &Path) -> io::Result<Option<File>> {
    loop {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(part)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // Whoever had it may have renamed or removed it: then the lock is on a file of no name.
        let ours = file.metadata()?;
        if fs::metadata(part).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(Some(file));
        }
    }
}

/// A finished file, marked as asked for now.
pub(crate) fn reuse(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // Without the mark it may be swept early, which costs that it is made again and nothing else.
    let _ = file.set_modified(SystemTime::now());
    Ok(file)
}

/// Removes spooled files that were not asked for during `idle` or are of an earlier boot, and unfinished ones whose writer is
/// dead. Answers how many went. What cannot be removed stays for the next time.
pub fn sweep(spool: &Path, idle: Duration) -> usize {
    let Ok(entries) = fs::read_dir(spool) else { return 0 };
    let is_idle = |path: &Path, kind: &str| {
        if !path.to_string_lossy().ends_with(&ending(kind)) {
            return true;
        }
        let asked = fs::metadata(path).and_then(|meta| meta.modified());
        asked.is_ok_and(|asked| SystemTime::now().duration_since(asked).is_ok_and(|age| age >= idle))
    };
    let is_dead = |path: &Path| {
        let locked = File::open(path).map(|file| {
            // The lock dies with `file`; in between nobody else can begin to write.
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && fs::remove_file(path).is_ok()
        });
        locked.unwrap_or(false)
    };
    let gone = |path: PathBuf| match path.extension().and_then(|extension| extension.to_str()) {
        Some(UNFINISHED) => is_dead(&path),
        Some(kind) if FINISHED.contains(&kind) => is_idle(&path, kind) && fs::remove_file(&path).is_ok(),
        _ => false,
    };
    entries.flatten().filter(|entry| gone(entry.path())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idle_or_of_another_boot_or_of_the_dead_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path();
        let kept = finished(spool, "new", "aci");
        let idle = finished(spool, "idle", "json");
        let dead = unfinished(spool, "dead");
        let other = spool.join("x.00000000.tar");
        let strange = spool.join("README");
        for path in [&kept, &idle, &dead, &other, &strange] {
            fs::write(path, "x").unwrap();
        }
        let long_ago = SystemTime::now() - 2 * SPOOL_IDLE;
        File::options().append(true).open(&idle).unwrap().set_modified(long_ago).unwrap();
        let alive = unfinished(spool, "alive");
        let lock = try_lock(&alive).unwrap().unwrap();
        assert!(try_lock(&alive).unwrap().is_none(), "somebody has it");
        assert_eq!(sweep(spool, SPOOL_IDLE), 3);
        for (path, there) in
            [(&kept, true), (&idle, false), (&dead, false), (&other, false), (&strange, true), (&alive, true)]
        {
            assert_eq!(path.exists(), there, "{}", path.display());
        }
        drop(lock);
        assert!(try_lock(&alive).unwrap().is_some());
        File::options().append(true).open(&kept).unwrap().set_modified(long_ago).unwrap();
        reuse(&kept).unwrap();
        assert_eq!(sweep(spool, SPOOL_IDLE), 1);
        assert!(kept.exists() && !alive.exists());
    }
}

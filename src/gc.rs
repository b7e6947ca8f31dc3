//! Garbage: where things go that nobody wants any more, and who removes them.
//!
//! Removing a tree takes about as long as making it, and whoever asks for it need not wait. So a tree that is to go is
//! renamed into a *gc place*, a directory of ours on the same filesystem, and removed from there by a [`Collector`]: a
//! thread of this process, or nobody until a process is started for it. What waits there is on disk and nowhere else,
//! so that a process that dies loses nothing: the next one that looks collects it.
//!
//! Little trees are removed on the spot: a short container leaves some ten entries, and handing those on would cost
//! more than removing them.
//!
//! Whoever collects in a place has it locked; another waits for its turn and finds the place empty then. Nothing is
//! ever removed through a symlink or below a mount (see [`crate::sys::remove`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keelblock_actors::error::chain;
use keelblock_actors::stop::Stop;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use slog::{Logger, debug, warn};

use crate::store::fresh_name;
use crate::sys::lock::{self, LockKind};
use crate::sys::mount::mountinfo;
use crate::sys::priority;
use crate::sys::remove::{RemoveError, Removed, Until, make_removable, remove_tree, remove_tree_until};

/// What is removed on the spot. 100 entries and 16 MiB: a millisecond or two on a disk's filesystem.
const LITTLE: Until<'static> = Until::Spent { entries: 100, bytes: 16 << 20 };

/// How many of several trees are looked at for being little. 8, so that little things stay little together.
const LITTLE_TREES_MAX: usize = 8;

/// How long [`Collector::stop`] waits for the entry under way. 1 s: freeing one very large file may take longer, and
/// what is left is collected by the next process.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// Pause before a place that another collects in is tried again.
const TURN_PAUSE: Duration = Duration::from_millis(5);

/// A directory for what is to be removed, on the filesystem of what comes into it, and who collects there. The default
/// is none at all: everything is removed at once and in its place.
#[derive(Clone, Debug, Default)]
pub struct Gc {
    place: PathBuf,
    collector: Collector,
}

impl Gc {
    /// The gc place at this path, which is made when it is needed.
    pub fn new(place: PathBuf, collector: Collector) -> Self {
        Self { place, collector }
    }

    /// Lets a file or a tree vanish; `false` when there was nothing. A little one is removed before this returns, a
    /// larger one is moved away, unless it cannot be (the place is on another filesystem): then it is removed, too.
    ///
    /// # Errors
    /// [`RemoveError`] when something is mounted below, or an entry of what is removed on the spot cannot be.
    pub fn discard(&self, path: &Path) -> Result<bool, RemoveError> {
        if self.collector.is_at_once() {
            return remove_tree(path);
        }
        match remove_tree_until(path, LITTLE)? {
            Removed::All => return Ok(true),
            Removed::Nothing => return Ok(false),
            Removed::Part => {}
        }
        refuse_mounts_below(path)?;
        match self.move_away(path) {
            Ok(_) => {
                self.collect_soon();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => remove_tree(path),
            Err(source) => Err(RemoveError { path: path.to_owned(), source }),
        }
    }

    /// Lets something vanish by one rename; where it is then. `None` when there was nothing. To be followed by
    /// [`Self::collect`].
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn move_away(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let (mut made, mut permitted, mut flags) = (false, false, RenameFlags::NOREPLACE);
        loop {
            let to = self.place.join(fresh_name());
            match renameat_with(CWD, path, CWD, &to, flags) {
                Ok(()) => return Ok(Some(to)),
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) if made => return Ok(None),
                Err(Errno::NOENT) => {
                    made = true;
                    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.place);
                    made.or_else(|error| if self.place.is_dir() { Ok(()) } else { Err(error) })?;
                }
                // A filesystem without that flag. The name is fresh all the same.
                Err(Errno::INVAL) if !flags.is_empty() => flags = RenameFlags::empty(),
                // Its `..` changes, which wants the right to write in it.
                Err(Errno::ACCESS | Errno::PERM) if !permitted => {
                    permitted = true;
                    make_removable(path)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes what was moved away, or has it removed; whether it is gone now.
    ///
    /// # Errors
    /// [`RemoveError`] for the first entry that cannot be removed, when that is tried before this returns; the others
    /// are gone then.
    pub fn collect(&self, moved: &[PathBuf]) -> Result<bool, RemoveError> {
        if self.collector.is_at_once() {
            let mut first = Ok(true);
            for path in moved {
                if let Err(error) = remove_tree(path)
                    && first.is_ok()
                {
                    first = Err(error);
                }
            }
            return first;
        }
        let little = |path: &PathBuf| {
            // What cannot be removed is the collector's to complain about.
            remove_tree_until(path, LITTLE).is_ok_and(|removed| removed != Removed::Part)
        };
        if moved.len() <= LITTLE_TREES_MAX && moved.iter().all(little) {
            return Ok(true);
        }
        self.collect_soon();
        Ok(false)
    }

    /// Has everything collected that lies in the place, whoever left it.
    ///
    /// # Errors
    /// As [`Self::collect`].
    pub fn collect_all(&self) -> Result<(), RemoveError> {
        if !self.collector.is_at_once() {
            if !names(&self.place).is_empty() {
                self.collect_soon();
            }
            return Ok(());
        }
        sweep(&self.place, &Stop::default()).failures.into_iter().next().map_or(Ok(()), Err)
    }

    fn collect_soon(&self) {
        if let Who::Thread(background) = &self.collector.0 {
            background.nudge(&self.place);
        }
    }
}

/// An error when something is mounted below: moving would move the mount along.
fn refuse_mounts_below(path: &Path) -> Result<(), RemoveError> {
    let failed = |source| RemoveError { path: path.to_owned(), source };
    match mountinfo::read().map_err(failed)?.into_iter().find(|mount| mount.target.starts_with(path)) {
        None => Ok(()),
        Some(mount) => {
            let busy = "something is mounted there; unmount it first";
            let source = io::Error::new(io::ErrorKind::ResourceBusy, busy);
            Err(RemoveError { path: mount.target, source })
        }
    }
}

/// Who removes what was moved away. Clones are one collector.
#[derive(Clone, Debug, Default)]
pub struct Collector(Who);

#[derive(Clone, Debug, Default)]
enum Who {
    #[default]
    AtOnce,
    Later,
    Thread(Arc<Background>),
}

impl Collector {
    /// Whoever discards, before it returns. The default.
    pub fn at_once() -> Self {
        Self(Who::AtOnce)
    }

    /// Nobody of this process: it stays until somebody sweeps the place (see [`sweep`]).
    pub fn later() -> Self {
        Self(Who::Later)
    }

    /// A thread of low priority, there while there is something to remove.
    pub fn thread(log: Logger) -> Self {
        Self(Who::Thread(Arc::new(Background {
            state: Mutex::default(),
            ended: Condvar::new(),
            stop: Stop::default(),
            log,
        })))
    }

    fn is_at_once(&self) -> bool {
        matches!(self.0, Who::AtOnce)
    }

    /// Ends the thread, if there is one, after the entry under way. What is left stays on disk.
    ///
    /// # Blocking
    /// For one entry; a second at most.
    pub fn stop(&self) {
        if let Who::Thread(background) = &self.0 {
            background.stop.raise();
            let until = Instant::now() + STOP_WAIT;
            let mut state = background.state();
            while state.running {
                let rest = until.saturating_duration_since(Instant::now());
                if rest.is_zero() {
                    return;
                }
                state = background.ended.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// As [`Self::stop`], waiting for nothing.
    pub fn stop_soon(&self) {
        if let Who::Thread(background) = &self.0 {
            background.stop.raise();
        }
    }
}

/// The thread and what it has to do: names of places only, of which there are as many as stores and work directories.
#[derive(Debug)]
struct Background {
    state: Mutex<State>,
    ended: Condvar,
    stop: Stop,
    log: Logger,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeSet<PathBuf>,
    running: bool,
}

impl Background {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nudge(self: &Arc<Self>, place: &Path) {
        let mut state = self.state();
        state.places.insert(place.to_owned());
        if state.running || self.stop.is_raised() {
            return;
        }
        let this = self.clone();
        let thread = std::thread::Builder::new().name("keelblock-gc".to_owned()).spawn(move || this.run());
        match thread {
            Ok(_) => state.running = true,
            Err(error) => warn!(self.log, "what was moved away stays for now"; "error" => %error),
        }
    }

    fn run(&self) {
        /// Says that the thread is gone, also when it panics.
        struct Ended<'a>(&'a Background);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.state().running = false;
                self.0.ended.notify_all();
            }
        }
        let _ended = Ended(self);
        priority::lower();
        loop {
            let place = {
                let mut state = self.state();
                match state.places.pop_first() {
                    Some(place) if !self.stop.is_raised() => place,
                    _ => {
                        // Under the lock, or a nudge could come between.
                        state.running = false;
                        return;
                    }
                }
            };
            let swept = sweep(&place, &self.stop);
            debug!(self.log, "garbage removed"; "path" => %place.display(), "count" => swept.removed);
            for error in &swept.failures {
                warn!(self.log, "what was moved away cannot be removed"; "error" => chain(error));
            }
        }
    }
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Trees and files removed.
    pub removed: usize,
    /// What could not be; it stays.
    pub failures: Vec<RemoveError>,
}

/// Removes everything that lies in a gc place and comes into it meanwhile; waits first while another does. A place
/// that is not there, or goes, is an empty one.
///
/// # Blocking
/// For as long as that takes; looks at `stop` before each entry.
pub fn sweep(place: &Path, stop: &Stop) -> Swept {
    let mut swept = Swept::default();
    // Tried once each: what cannot be removed now cannot be a moment later.
    let mut failed: BTreeMap<OsString, RemoveError> = BTreeMap::new();
    while !stop.is_raised() && names(place).iter().any(|name| !failed.contains_key(name)) {
        let locked = match wait_for_turn(place, stop) {
            Ok(Some(locked)) => locked,
            Ok(None) => break,
            Err(source) => {
                swept.failures.push(RemoveError { path: place.to_owned(), source });
                break;
            }
        };
        for name in names(place) {
            if stop.is_raised() || failed.contains_key(&name) {
                continue;
            }
            match remove_tree_until(&place.join(&name), Until::Raised(stop)) {
                Ok(Removed::All) => swept.removed += 1,
                Ok(Removed::Nothing | Removed::Part) => {}
                Err(error) => drop(failed.insert(name, error)),
            }
        }
        // Looked at once more after this: who found the place locked counts on it.
        lock::unlock(&locked);
    }
    swept.failures.extend(failed.into_values());
    swept
}

/// The place, locked; `None` when it is gone, or the wait was stopped.
fn wait_for_turn(place: &Path, stop: &Stop) -> io::Result<Option<File>> {
    while !stop.is_raised() {
        let directory = match File::open(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            directory => directory?,
        };
        if lock::try_lock(&directory, LockKind::Exclusive)? {
            return Ok(Some(directory));
        }
        std::thread::sleep(TURN_PAUSE);
    }
    Ok(None)
}

/// Whether something lies in a gc place and nobody is at it.
pub fn is_waiting(place: &Path) -> bool {
    if names(place).is_empty() {
        return false;
    }
    let free = File::open(place).and_then(|place| lock::try_lock(&place, LockKind::Shared));
    // Gone, or not ours to read: then there is nothing to do about it.
    free.unwrap_or(false)
}

fn names(place: &Path) -> Vec<OsString> {
    std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    fn tree(path: &Path, files: usize) {
        std::fs::create_dir_all(path.join("sub")).unwrap();
        for number in 0..files {
            std::fs::write(path.join(format!("sub/{number}")), "x").unwrap();
        }
    }

    fn wait_until(what: &str, holds: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn little_things_go_on_the_spot_and_large_ones_by_a_rename() {
        let directory = tempfile::tempdir().unwrap();
        let (place, path) = (directory.path().join("gc"), directory.path().join("tree"));
        let gc = Gc::new(place.clone(), Collector::later());
        assert!(!gc.discard(&path).unwrap());
        tree(&path, 10);
        assert!(gc.discard(&path).unwrap());
        assert!(!path.exists() && !place.exists(), "nothing was left for later");
        tree(&path, 1000);
        assert!(gc.discard(&path).unwrap());
        assert!(!path.exists());
        assert_eq!(names(&place).len(), 1);
        assert!(is_waiting(&place));
        assert_eq!(sweep(&place, &Stop::default()).removed, 1);
        assert!(names(&place).is_empty() && !is_waiting(&place));
    }

    #[test]
    fn without_a_collector_everything_is_gone_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tree");
        tree(&path, 1000);
        assert!(Gc::default().discard(&path).unwrap());
        assert!(!path.exists());
        let gc = Gc::new(directory.path().join("gc"), Collector::at_once());
        tree(&path, 1000);
        let moved = gc.move_away(&path).unwrap().unwrap();
        assert!(gc.collect(&[moved]).unwrap());
        assert!(names(&directory.path().join("gc")).is_empty());
        assert_eq!(gc.move_away(&path).unwrap(), None);
    }

    #[test]
    fn the_thread_removes_what_comes_and_ends() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("gc");
        let collector = Collector::thread(quiet());
        let gc = Gc::new(place.clone(), collector.clone());
        for round in 0..3 {
            let path = directory.path().join("tree");
            tree(&path, 500);
            assert!(gc.discard(&path).unwrap(), "{round}");
            assert!(!path.exists());
            wait_until("it is not collected", || names(&place).is_empty());
        }
        let Who::Thread(background) = &collector.0 else { panic!() };
        wait_until("the thread stays", || !background.state().running);
        collector.stop();
        let path = directory.path().join("tree");
        tree(&path, 500);
        assert!(gc.discard(&path).unwrap());
        assert_eq!(names(&place).len(), 1, "after the end it is left to the next process");
        // Which is this one.
        let next = Collector::thread(quiet());
        Gc::new(place.clone(), next.clone()).collect_all().unwrap();
        wait_until("it is not collected", || names(&place).is_empty());
        next.stop();
    }

    #[test]
    fn stopping_leaves_the_rest_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("gc");
        tree(&place.join("first"), 100);
        let stop = Stop::default();
        stop.raise();
        assert_eq!(sweep(&place, &stop).removed, 0);
        assert!(place.join("first/sub/7").exists());
    }

    #[test]
    fn collectors_at_once_share_the_work_and_a_place_that_goes_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("gc");
        for number in 0..20 {
            tree(&place.join(number.to_string()), 20);
        }
        let swept = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| sweep(&place, &Stop::default()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(swept.iter().map(|one| one.removed).sum::<usize>(), 20, "each tree by one of them");
        assert!(swept.iter().all(|one| one.failures.is_empty()), "{swept:?}");
        assert!(names(&place).is_empty());
        std::fs::remove_dir(&place).unwrap();
        assert!(sweep(&place, &Stop::default()).failures.is_empty());
    }

    #[test]
    fn what_cannot_be_removed_is_told_once_and_the_rest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("gc");
        tree(&place.join("other"), 5);
        tree(&place.join("mounted"), 0);
        let at = place.join("mounted/sub");
        if let Err(error) =
            rustix::mount::mount("none", &at, "tmpfs", rustix::mount::MountFlags::empty(), None)
        {
            eprintln!("skipped: nothing can be mounted here: {error}");
            return;
        }
        // Moving it would move the mount: it is refused where it stands.
        let gc = Gc::new(directory.path().join("another"), Collector::later());
        for number in 0..200 {
            std::fs::write(place.join(format!("mounted/{number}")), "").unwrap();
        }
        let refused = gc.discard(&place.join("mounted"));
        let swept = sweep(&place, &Stop::default());
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(refused.unwrap_err().path, at);
        assert_eq!(swept.removed, 1);
        let failures: Vec<_> = swept.failures.iter().map(chain_of).collect();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(
            failures[0].contains("mounted/sub") && failures[0].contains("unmount it first"),
            "{failures:?}"
        );
        assert_eq!(sweep(&place, &Stop::default()).removed, 1);
    }

    fn chain_of(error: &RemoveError) -> String {
        chain(error)
    }
}

//! What is remembered of containers, on disk: port `Records`.
//!
//! Truth lies in files below the work directory ([`layout`] draws them), shared by all processes on it. Who has a
//! container is a lock that dies with its process (`claim`); records are small JSON files replaced by rename
//! (`file`). Nothing here mounts, unmounts or starts anything, and nothing is removed below a mount.

mod claim;
mod file;
pub mod layout;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use keelblock_actors::container::{
    BackendName, ContainerId, ContainerRecord, ProcessIdentity, RootfsId, RootfsRecord,
};
use keelblock_actors::error::RecordError;
use keelblock_actors::ports::{Found, Owner, Records, RootfsPlace};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use self::claim::{Claimed, Lock, Names};
use crate::gc::{Collector, Gc};
use crate::sys::mount::unmount::is_mount_root;
use crate::sys::process_identity::process_identity;

/// The records below one work directory. Cheap to open: a few system calls when the directories are there.
#[derive(Debug)]
pub struct DiskRecords {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    names: Names,
    /// `<work_dir>/provisioner/containers`, to read in, and its path.
    provisioned: OwnedFd,
    provisioned_path: PathBuf,
    /// Where sandboxes go.
    gc: Gc,
    /// What we have.
    ours: Mutex<HashMap<ContainerId, Ours>>,
    us: ProcessIdentity,
}

/// A container that we have.
#[derive(Debug)]
struct Ours {
    /// Which guard has it: the same name may be taken anew while the last guard is going.
    guard: u64,
    /// Whether it was removed, so that its directory goes with its guard.
    removed: bool,
}

impl DiskRecords {
    /// Opens the records of a work directory, which is made if need be. Paths answered later have no symlinks in
    /// them, so that they equal those of mountinfo.
    ///
    /// # Errors
    /// [`RecordError::Io`] when it cannot be made, or `/proc` cannot be read.
    pub fn open(work_dir: &Path) -> Result<Self, RecordError> {
        Self::open_with(work_dir, Collector::at_once())
    }

    /// As [`Self::open`], with somebody else to remove sandboxes: see [`crate::gc`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(work_dir: &Path, collector: Collector) -> Result<Self, RecordError> {
        let real = match std::fs::canonicalize(work_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                layout::make_dirs(work_dir, 0o755).map_err(failed("make", work_dir))?;
                std::fs::canonicalize(work_dir)
            }
            real => real,
        };
        let work_dir = real.map_err(failed("find", work_dir))?;
        let containers = layout::containers_dir(&work_dir);
        let names = Names::open(containers.clone()).map_err(failed("open", &containers))?;
        let gc = Gc::new(layout::gc_dir(&work_dir), collector);
        let provisioned_path = layout::provisioned_dir(&work_dir);
        let provisioned = open_or_make(&provisioned_path).map_err(failed("open", &provisioned_path))?;
        let us = process_identity(std::process::id())
            .and_then(|us| us.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
            .map_err(failed("read", Path::new("/proc/self/stat")))?;
        let ours = Mutex::new(HashMap::new());
        Ok(Self { inner: Arc::new(Inner { names, provisioned, provisioned_path, gc, ours, us }) })
    }

    fn provisioned(&self, id: &ContainerId) -> PathBuf {
        self.inner.provisioned_path.join(id.as_str())
    }

    fn held(&self, id: &ContainerId, lock: Lock) -> Box<dyn Send + Sync> {
        static GUARDS: AtomicU64 = AtomicU64::new(0);
        let guard = GUARDS.fetch_add(1, Ordering::Relaxed);
        self.inner.ours().insert(id.clone(), Ours { guard, removed: false });
        Box::new(Held { inner: Arc::clone(&self.inner), id: id.clone(), guard, lock: Some(lock) })
    }

    /// Whether a record of the container, or anything provisioned for it, is left.
    fn has_remains(&self, id: &ContainerId) -> bool {
        let record = format!("{id}/{}", layout::RECORD);
        exists(self.inner.names.as_fd(), &record) || exists(&self.inner.provisioned, id.as_str())
    }

    fn find(&self, id: &ContainerId) -> Result<Option<Found>, RecordError> {
        let inner = &self.inner;
        let claimed = if inner.ours().contains_key(id) {
            Some(None)
        } else {
            let claimed = inner.names.is_claimed(id.as_str());
            claimed.map_err(failed("look at the lock of", &inner.names.path_of(id.as_str())))?.map(Some)
        };
        let owner = match claimed {
            Some(None) => Owner::Us,
            Some(Some(true)) => Owner::Other,
            Some(Some(false)) => Owner::Nobody,
            // Only its rootfses are left.
            None if exists(&inner.provisioned, id.as_str()) => Owner::Nobody,
            None => return Ok(None),
        };
        let record = name_below(id, layout::RECORD);
        let container: Option<ContainerRecord> = file::read(inner.names.as_fd(), &record)
            .map_err(failed("read", &inner.names.path_of(id.as_str()).join(layout::RECORD)))?;
        let layers = name_below(id, layout::LAYERS);
        let rootfses = match file::read(&inner.provisioned, &layers)
            .map_err(failed("read", &self.provisioned(id).join(layout::LAYERS)))?
        {
            Some(record) => Some(record),
            None => self.rootfses_on_disk(id),
        };
        // A record under another's name is no record of this one.
        let container = container.filter(|record| record.id == *id);
        Ok(Some(Found { id: id.clone(), container, rootfses, owner }))
    }

    /// What the directories tell when the record does not: which rootfses there are to take away.
    fn rootfses_on_disk(&self, id: &ContainerId) -> Option<RootfsRecord> {
        let backends = self.provisioned(id).join(layout::BACKENDS);
        if !backends.is_dir() {
            return None;
        }
        let mut rootfses = BTreeSet::new();
        for backend in [BackendName::Overlay, BackendName::Copy, BackendName::Bind] {
            for kind in [layout::ROOTFSES, layout::SCRATCH] {
                let Ok(entries) = std::fs::read_dir(backends.join(backend.to_string()).join(kind)) else {
                    continue;
                };
                let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
                rootfses.extend(numbers.map(|number: u32| (RootfsId(number), backend)));
            }
        }
        Some(RootfsRecord { rootfses: rootfses.into_iter().collect(), ..RootfsRecord::default() })
    }

    /// An error when a rootfs of the container is still mounted: removing would remove the layers below.
    fn refuse_mounted(&self, id: &ContainerId) -> Result<(), RecordError> {
        let Some(on_disk) = self.rootfses_on_disk(id) else { return Ok(()) };
        for (rootfs, backend) in on_disk.rootfses {
            let place = layout::place(&self.provisioned(id), id, backend, rootfs);
            let mounted =
                is_mount_root(&place.rootfs).map_err(failed("look for a mount at", &place.rootfs))?;
            if mounted {
                let source = io::Error::new(io::ErrorKind::ResourceBusy, "it is still mounted");
                return Err(failed("remove", &place.rootfs)(source));
            }
        }
        Ok(())
    }
}

impl Records for DiskRecords {
    fn create(&self, id: &ContainerId) -> Result<Box<dyn Send + Sync>, RecordError> {
        let names = &self.inner.names;
        let path = names.path_of(id.as_str());
        let exists = || RecordError::Exists { id: id.clone() };
        loop {
            if let Some(lock) = names.make(id.as_str()).map_err(failed("make", &path))? {
                if self.has_remains(id) {
                    names.unmake(id.as_str(), lock);
                    return Err(exists());
                }
                return Ok(self.held(id, lock));
            }
            // The name is there. Unless its maker died before it could write a record, it is taken.
            match names.claim(id.as_str()).map_err(failed("lock", &path))? {
                Claimed::Ours(lock) if !self.has_remains(id) => names.unmake(id.as_str(), lock),
                Claimed::Nothing => {}
                Claimed::Ours(_) | Claimed::Elsewhere => return Err(exists()),
            }
        }
    }

    fn adopt(&self, id: &ContainerId) -> Result<Option<Box<dyn Send + Sync>>, RecordError> {
        let path = self.inner.names.path_of(id.as_str());
        loop {
            match self.inner.names.claim(id.as_str()).map_err(failed("lock", &path))? {
                Claimed::Ours(lock) => return Ok(Some(self.held(id, lock))),
                Claimed::Elsewhere => return Err(RecordError::Elsewhere { id: id.clone() }),
                Claimed::Nothing if !exists(&self.inner.provisioned, id.as_str()) => return Ok(None),
                // Only its rootfses are left: take the name, so that nobody else does.
                Claimed::Nothing => {
                    if let Some(lock) = self.inner.names.make(id.as_str()).map_err(failed("make", &path))? {
                        return Ok(Some(self.held(id, lock)));
                    }
                }
            }
        }
    }

    fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.inner.names.path_of(id.as_str()).join(layout::SANDBOX_DIR)
    }

    fn place(&self, id: &ContainerId, backend: BackendName, rootfs: RootfsId) -> RootfsPlace {
        layout::place(&self.provisioned(id), id, backend, rootfs)
    }

    fn write_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        let path = self.inner.names.path_of(record.id.as_str()).join(layout::RECORD);
        file::write(&path, record).map_err(failed("write", &path))
    }

    fn write_rootfses(&self, id: &ContainerId, record: &RootfsRecord) -> Result<(), RecordError> {
        let directory = self.provisioned(id);
        let path = directory.join(layout::LAYERS);
        match file::write(&path, record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                layout::make_dirs(&directory, layout::PRIVATE).map_err(failed("make", &directory))?;
                file::write(&path, record).map_err(failed("write", &path))
            }
            written => written.map_err(failed("write", &path)),
        }
    }

    fn read(&self, id: &ContainerId) -> Result<Option<Found>, RecordError> {
        self.find(id)
    }

    fn list(&self) -> Result<Vec<Found>, RecordError> {
        let mut ids = BTreeSet::new();
        let containers = self.inner.names.path_of("");
        for name in names_in(self.inner.names.as_fd()).map_err(failed("list", &containers))? {
            match name.parse::<ContainerId>() {
                Ok(id) => drop(ids.insert(id)),
                Err(_) if name.starts_with(".new-") || name.starts_with(".old-") => {
                    self.inner.names.tidy(&name)
                }
                // Not ours.
                Err(_) => {}
            }
        }
        let provisioned =
            names_in(&self.inner.provisioned).map_err(failed("list", &self.inner.provisioned_path))?;
        ids.extend(provisioned.iter().filter_map(|name| name.parse::<ContainerId>().ok()));
        // One that goes while we look is no error.
        ids.iter().filter_map(|id| self.find(id).transpose()).collect()
    }

    fn request_destroy(&self, id: &ContainerId) -> Result<(), RecordError> {
        let path = self.inner.names.path_of(id.as_str()).join(layout::DESTROY);
        File::create(&path).map(drop).map_err(failed("write", &path))
    }

    fn destroy_requested(&self, id: &ContainerId) -> bool {
        exists(self.inner.names.as_fd(), &format!("{id}/{}", layout::DESTROY))
    }

    fn remove(&self, id: &ContainerId) -> Result<(), RecordError> {
        self.refuse_mounted(id)?;
        let directory = self.inner.names.path_of(id.as_str());
        // The record last: who is killed on the way is found, and finished, by the next.
        for path in [
            self.provisioned(id),
            directory.join(layout::SANDBOX_DIR),
            directory.join(layout::DESTROY),
            directory.join(layout::RECORD),
        ] {
            let discarded = self.inner.gc.discard(&path);
            discarded.map_err(|error| failed("remove", &error.path)(error.source))?;
        }
        if let Some(ours) = self.inner.ours().get_mut(id) {
            ours.removed = true;
        }
        Ok(())
    }

    fn us(&self) -> ProcessIdentity {
        self.inner.us.clone()
    }

    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Inner {
    fn ours(&self) -> MutexGuard<'_, HashMap<ContainerId, Ours>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container that this process has.
struct Held {
    inner: Arc<Inner>,
    id: ContainerId,
    guard: u64,
    lock: Option<Lock>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let removed = self.inner.ours().get(&self.id).is_some_and(|ours| ours.removed);
        if let (Some(lock), true) = (self.lock.take(), removed) {
            self.inner.names.unmake(self.id.as_str(), lock);
        }
        self.lock = None;
        // Out of the table last: before the lock is gone, we would be told that somebody else has it.
        let mut ours = self.inner.ours();
        if ours.get(&self.id).is_some_and(|ours| ours.guard == self.guard) {
            ours.remove(&self.id);
        }
    }
}

fn failed<'a, E: Into<io::Error>>(
    act: &'static str,
    path: &'a Path,
) -> impl FnOnce(E) -> RecordError + use<'a, E> {
    move |source| RecordError::Io { act, path: path.to_owned(), source: source.into() }
}

fn open_or_make(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || openat(CWD, path, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            layout::make_dirs(path, layout::PRIVATE)?;
            Ok(open()?)
        }
        opened => Ok(opened?),
    }
}

fn exists(directory: impl AsFd, name: &str) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// `<id>/<name>`. An ID holds no NUL.
fn name_below(id: &ContainerId, name: &str) -> CString {
    CString::new(format!("{id}/{name}")).unwrap_or_default()
}

/// Names in a directory, those that are text: a container's always is.
fn names_in(directory: impl AsFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if let Ok(name) = CStr::to_str(entry.file_name())
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

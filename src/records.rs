//! temp
#![allow(missing_docs)]
use crate::sys::{process_identity, record_lock};
use keelblock_actors::container::*;
use keelblock_actors::error::*;
use keelblock_actors::ports::*;
use std::collections::HashMap;
use std::fs;
use std::path::*;
use std::sync::*;
pub struct DiskRecords {
    work: PathBuf,
    ours: Arc<Mutex<HashMap<ContainerId, ()>>>,
}
struct Hold(ContainerId, Arc<Mutex<HashMap<ContainerId, ()>>>, PathBuf, #[allow(dead_code)] fs::File);
impl Drop for Hold {
    fn drop(&mut self) {
        self.1.lock().unwrap().remove(&self.0);
        let _ = fs::remove_file(&self.2);
    }
}
fn io(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io { act, path, source }
}
impl DiskRecords {
    pub fn open(work: &Path) -> Result<Self, RecordError> {
        Ok(Self { work: work.to_owned(), ours: Arc::default() })
    }
    fn dir(&self, id: &ContainerId) -> PathBuf {
        self.work.join("containers").join(id.as_str())
    }
    fn prov(&self, id: &ContainerId) -> PathBuf {
        self.work.join("provisioner/containers").join(id.as_str())
    }
    fn lockp(&self, id: &ContainerId) -> PathBuf {
        self.work.join("locks").join(id.as_str())
    }
    fn take(&self, id: &ContainerId) -> Result<Option<Hold>, RecordError> {
        let p = self.lockp(id);
        fs::create_dir_all(p.parent().unwrap()).map_err(io("create", &p))?;
        let f =
            fs::File::options().create(true).truncate(false).write(true).open(&p).map_err(io("open", &p))?;
        if !record_lock::try_lock(&f).map_err(io("lock", &p))? {
            return Ok(None);
        }
        self.ours.lock().unwrap().insert(id.clone(), ());
        Ok(Some(Hold(id.clone(), self.ours.clone(), p, f)))
    }
    fn put(&self, p: PathBuf, v: &impl serde::Serialize) -> Result<(), RecordError> {
        fs::create_dir_all(p.parent().unwrap()).map_err(io("create", &p))?;
        let t = p.with_extension("tmp");
        fs::write(&t, serde_json::to_vec(v).unwrap()).map_err(io("write", &t))?;
        fs::rename(&t, &p).map_err(io("rename", &p))
    }
    fn found(&self, id: ContainerId) -> Found {
        let c =
            fs::read(self.dir(&id).join("record.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let r =
            fs::read(self.prov(&id).join("layers.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let owner = if self.ours.lock().unwrap().contains_key(&id) {
            Owner::Us
        } else {
            match fs::File::options().write(true).open(self.lockp(&id)) {
                Ok(f) if record_lock::is_locked(&f).unwrap_or(false) => Owner::Other,
                _ => Owner::Nobody,
            }
        };
        Found { id, container: c, rootfses: r, owner }
    }
}
impl Records for DiskRecords {
    fn create(&self, id: &ContainerId) -> Result<Box<dyn Send + Sync>, RecordError> {
        let Some(h) = self.take(id)? else { return Err(RecordError::Exists { id: id.clone() }) };
        if self.dir(id).exists() {
            return Err(RecordError::Exists { id: id.clone() });
        }
        let s = self.sandbox(id);
        fs::create_dir_all(&s).map_err(io("create", &s))?;
        Ok(Box::new(h))
    }
    fn adopt(&self, id: &ContainerId) -> Result<Option<Box<dyn Send + Sync>>, RecordError> {
        let Some(h) = self.take(id)? else { return Err(RecordError::Elsewhere { id: id.clone() }) };
        if !self.dir(id).exists() && !self.prov(id).exists() {
            return Ok(None);
        }
        Ok(Some(Box::new(h)))
    }
    fn sandbox(&self, id: &ContainerId) -> PathBuf {
        self.dir(id).join("sandbox")
    }
    fn place(&self, id: &ContainerId, backend: BackendName, rootfs: RootfsId) -> RootfsPlace {
        let b = self.prov(id).join("backends").join(backend.to_string());
        RootfsPlace {
            container: id.clone(),
            id: rootfs,
            rootfs: b.join("rootfses").join(rootfs.to_string()),
            scratch: b.join("scratch").join(rootfs.to_string()),
        }
    }
    fn write_container(&self, r: &ContainerRecord) -> Result<(), RecordError> {
        self.put(self.dir(&r.id).join("record.json"), r)
    }
    fn write_rootfses(&self, id: &ContainerId, r: &RootfsRecord) -> Result<(), RecordError> {
        self.put(self.prov(id).join("layers.json"), r)
    }
    fn read(&self, id: &ContainerId) -> Result<Option<Found>, RecordError> {
        if !self.dir(id).exists() && !self.prov(id).exists() {
            return Ok(None);
        }
        Ok(Some(self.found(id.clone())))
    }
    fn list(&self) -> Result<Vec<Found>, RecordError> {
        let mut ids = std::collections::BTreeSet::new();
        for d in ["containers", "provisioner/containers"] {
            for e in fs::read_dir(self.work.join(d)).into_iter().flatten().flatten() {
                if let Ok(id) = e.file_name().to_string_lossy().parse() {
                    ids.insert(id);
                }
            }
        }
        Ok(ids.into_iter().map(|id| self.found(id)).collect())
    }
    fn request_destroy(&self, id: &ContainerId) -> Result<(), RecordError> {
        let p = self.dir(id).join("destroy");
        fs::write(&p, "").map_err(io("write", &p))
    }
    fn destroy_requested(&self, id: &ContainerId) -> bool {
        self.dir(id).join("destroy").exists()
    }
    fn remove(&self, id: &ContainerId) -> Result<(), RecordError> {
        for p in [self.dir(id), self.prov(id)] {
            if p.exists() {
                fs::remove_dir_all(&p).map_err(io("remove", &p))?;
            }
        }
        Ok(())
    }
    fn us(&self) -> ProcessIdentity {
        process_identity::process_identity(std::process::id()).ok().flatten().unwrap_or(ProcessIdentity {
            pid: 0,
            start_ticks: 0,
            boot_id: String::new(),
        })
    }
    fn now_ms(&self) -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

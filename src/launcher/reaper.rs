//! Notices the ends of supervisors, ours and others', on one thread; whoever waits may do so on any runtime.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use keelblock_actors::container::ExitStatus;
use rustix::event::epoll;
use tokio::sync::watch;

use crate::sys::pidfd;

/// Tells how a command ended, once it has.
pub(super) type Ended = watch::Receiver<Option<ExitStatus>>;

struct Watched {
    process: Arc<OwnedFd>,
    status: File,
    tell: watch::Sender<Option<ExitStatus>>,
}

struct Reaper {
    epoll: OwnedFd,
    watched: Mutex<(u64, HashMap<u64, Watched>)>,
}

static REAPER: OnceLock<Option<Arc<Reaper>>> = OnceLock::new();

/// Watches a supervisor until it ends; its status file then says how the command did.
///
/// # Errors
/// When there can be no such thread or no more descriptors.
pub(super) fn watch(process: Arc<OwnedFd>, status: File) -> io::Result<Ended> {
    let reaper = REAPER.get_or_init(start).as_ref();
    let reaper = reaper.ok_or_else(|| io::Error::other("the reaping thread cannot be started"))?;
    let (tell, ended) = watch::channel(None);
    let mut watched = reaper.watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.0 += 1;
    let key = watched.0;
    let flags = epoll::EventFlags::IN;
    epoll::add(&reaper.epoll, &*process, epoll::EventData::new_u64(key), flags)?;
    watched.1.insert(key, Watched { process, status, tell });
    Ok(ended)
}

/// What a supervisor wrote of its command. `None` = nothing: it was killed before it could.
pub(super) fn read_status(file: &File) -> Option<ExitStatus> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(ExitStatus::from_wait_status(i32::from_le_bytes(bytes)))
}

/// `SIGKILL`: what became of a command whose supervisor left no status.
pub(super) const KILLED: ExitStatus = ExitStatus::Signaled(9);

fn start() -> Option<Arc<Reaper>> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
    let reaper = Arc::new(Reaper { epoll, watched: Mutex::default() });
    let for_thread = reaper.clone();
    let builder = std::thread::Builder::new().name("keelblock-reap".to_owned());
    builder.spawn(move || reap(&for_thread)).ok().map(|_| reaper)
}

fn reap(reaper: &Reaper) {
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        // Only an interruption can fail it.
        let _ = epoll::wait(&reaper.epoll, rustix::buffer::spare_capacity(&mut events), None);
        for event in &events {
            let key = event.data.u64();
            let mut watched = reaper.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(ended) = watched.1.remove(&key) else { continue };
            drop(watched);
            let _ = epoll::delete(&reaper.epoll, &*ended.process);
            // A child is taken from the process table; another's child is its parent's business.
            pidfd::reap(&*ended.process);
            let _ = ended.tell.send(Some(read_status(&ended.status).unwrap_or(KILLED)));
        }
    }
}

//! The one thread that clones.
//!
//! A supervisor dies with the thread that cloned it (PR_SET_PDEATHSIG goes by thread, not by process), so that a
//! killed agent leaves no container behind. Hence no pool thread, which may end early, but one that never does.
//! It has all signals blocked; its children start so.
//!
//! It belongs to the process that first launched: a process that forks and goes on in the child (a daemon) must
//! launch only after that.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use crate::sys::clone::block_all_signals;

type Job = Box<dyn FnOnce() + Send>;

static THREAD: OnceLock<Option<Sender<Job>>> = OnceLock::new();

/// Runs `work` there and waits for its answer.
///
/// # Errors
/// When the thread cannot be made.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let no_thread = || io::Error::other("the launching thread cannot be started or has failed");
    let thread = THREAD.get_or_init(start).as_ref().ok_or_else(no_thread)?;
    let (answer, answered) = channel();
    let job: Job = Box::new(move || {
        let _ = answer.send(work());
    });
    thread.send(job).map_err(|_| no_thread())?;
    answered.recv().map_err(|_| no_thread())
}

fn start() -> Option<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let work = move || {
        block_all_signals();
        for job in jobs {
            job();
        }
    };
    // The stack is what a supervisor keeps of this process: small, and far above the 40 KiB it needs.
    let builder = std::thread::Builder::new().name("keelblock-launch".to_owned()).stack_size(256 << 10);
    builder.spawn(work).ok().map(|_| sender)
}

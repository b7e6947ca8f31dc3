//! BOUND: blocking work behind named, sized pools, and launches behind an admission limit.
//!
//! The one place that decides on which thread blocking ports run: tokio's blocking threads of the runtime that
//! polls the caller, at most `size` of them at once for one kind of work, so that a long copy cannot starve an
//! unmount. The slot travels with the work: it is free when the thread is, not when the caller loses patience.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::error::JobLost;
use crate::stop::Stop;

/// Slots for one kind of blocking work. Clones share the slots.
#[derive(Clone, Debug)]
pub struct Pool {
    name: &'static str,
    slots: Arc<Semaphore>,
}

impl Pool {
    /// A pool that runs up to `size` jobs at once; at least one.
    pub fn new(name: &'static str, size: usize) -> Self {
        Self { name, slots: Arc::new(Semaphore::new(size.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// What the job answers, run on a thread that may block.
    ///
    /// # Errors
    /// The job's own; [`JobLost`] when it panicked or the runtime went away.
    ///
    /// # Cancel safety
    /// A caller that leaves while the job waits for a slot takes it with him. Later the job runs on with its
    /// [`Stop`] raised, keeps its slot until it ends, and its answer is dropped.
    pub async fn run<T, E>(&self, job: impl FnOnce(&Stop) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<JobLost> + Send + 'static,
    {
        let Ok(slot) = self.slots.clone().acquire_owned().await else {
            return Err(JobLost::Shutdown { pool: self.name }.into());
        };
        let stop = Stop::default();
        let _raise = stop.on_drop();
        let job = {
            let stop = stop.clone();
            move || {
                let _slot = slot;
                job(&stop)
            }
        };
        #[allow(clippy::disallowed_methods, reason = "the one place for it")]
        match tokio::task::spawn_blocking(job).await {
            Ok(answer) => answer,
            Err(lost) => Err(match lost.try_into_panic() {
                Ok(panic) => JobLost::Panicked { pool: self.name, panic: panic_text(&*panic) },
                Err(_) => JobLost::Shutdown { pool: self.name },
            }
            .into()),
        }
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    crate::error::quote(text.unwrap_or("a panic without a text"))
}

/// What an asynchronous port answers; its panic is an error of this request alone.
pub async fn guarded<T, E: From<JobLost>>(
    room: &'static str,
    port: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match futures_util::FutureExt::catch_unwind(AssertUnwindSafe(port)).await {
        Ok(answer) => answer,
        Err(panic) => Err(JobLost::Panicked { pool: room, panic: panic_text(&*panic) }.into()),
    }
}

/// The door: so many launches at once, one more is refused.
#[derive(Clone, Debug)]
pub struct Admission {
    limit: usize,
    slots: Arc<Semaphore>,
}

/// A launch that was admitted; its place is free when this drops.
#[derive(Debug)]
pub struct Admitted(#[allow(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// The door is closed: so many are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The limit.
    pub limit: usize,
}

impl Admission {
    /// A door for up to `limit` launches at once; at least one.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self { limit, slots: Arc::new(Semaphore::new(limit)) }
    }

    /// A place, if there is one now.
    ///
    /// # Errors
    /// [`Full`].
    pub fn admit(&self) -> Result<Admitted, Full> {
        match self.slots.clone().try_acquire_owned() {
            Ok(permit) => Ok(Admitted(permit)),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => Err(Full { limit: self.limit }),
        }
    }
}

//! BOUND: blocking work behind named, sized pools, and launches behind an admission limit.
//!
//! The one place that decides on which thread blocking ports run: tokio's blocking threads of the runtime that
//! polls the caller, at most `size` of them at once for one kind of work, so that a long copy cannot starve an
//! unmount. The slot travels with the work: it is free when the thread is, not when the caller loses patience.
//!
//! Callers are actors, so those threads belong to the runtime of the engine's own thread: they start when first needed
//! (a command that only lists containers pays for none but one), go when idle for some seconds, and are waited for when
//! the engine stops. A paused tokio clock stands still while a job runs. Jobs must not depend on their thread: no
//! thread-local state, no working directory, and no `PR_SET_PDEATHSIG` in a child, which fires when the *thread* ends
//! that made it.

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
        self.slot().await?.run(job).await
    }

    /// A slot, once one is free; first come, first served. For callers who must not begin something else before.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place in the queue up.
    pub async fn slot(&self) -> Result<Slot, JobLost> {
        match self.slots.clone().acquire_owned().await {
            Ok(permit) => Ok(Slot { pool: self.name, permit }),
            Err(_) => Err(JobLost::Shutdown { pool: self.name }),
        }
    }

    /// Slots that nobody holds.
    pub fn free(&self) -> usize {
        self.slots.available_permits()
    }
}

/// The right to run one job.
#[derive(Debug)]
pub struct Slot {
    pool: &'static str,
    permit: OwnedSemaphorePermit,
}

impl Slot {
    /// As [`Pool::run`], in this slot.
    pub async fn run<T, E>(self, job: impl FnOnce(&Stop) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<JobLost> + Send + 'static,
    {
        let Self { pool, permit } = self;
        let stop = Stop::default();
        let _raise = stop.on_drop();
        let job = {
            let stop = stop.clone();
            move || {
                let _permit = permit;
                job(&stop)
            }
        };
        #[allow(clippy::disallowed_methods, reason = "the one place for it")]
        match tokio::task::spawn_blocking(job).await {
            Ok(answer) => answer,
            Err(lost) => Err(match lost.try_into_panic() {
                Ok(panic) => JobLost::Panicked { pool, panic: panic_text(&*panic) },
                Err(_) => JobLost::Shutdown { pool },
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

/// What a port answers where no pool watches over it: a panic is an error.
pub fn caught<T>(room: &'static str, port: impl FnOnce() -> T) -> Result<T, JobLost> {
    std::panic::catch_unwind(AssertUnwindSafe(port))
        .map_err(|panic| JobLost::Panicked { pool: room, panic: panic_text(&*panic) })
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_job_and_frees_the_slot() {
        let pool = Pool::new("disk", 1);
        let lost: Result<(), JobLost> = pool.run(|_| panic!("the {} broke", "disk")).await;
        assert_eq!(lost.unwrap_err().to_string(), "a disk job failed from inside: the disk broke");
        assert_eq!(pool.free(), 1);
        assert_eq!(pool.run(|_| Ok::<_, JobLost>(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_caller_who_leaves_stops_the_job_and_the_slot_stays_with_the_work() {
        let pool = Pool::new("unpack", 1);
        let (began_tx, mut began) = tokio::sync::mpsc::unbounded_channel();
        let (go, going) = mpsc::channel::<()>();
        let (ended_tx, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let running = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move |stop| {
                    let _ = began_tx.send(());
                    let _ = going.recv();
                    let _ = ended_tx.send(stop.is_raised());
                    Ok::<_, JobLost>(())
                })
                .await
            }
        });
        began.recv().await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert_eq!(pool.free(), 0, "the thread still works");
        go.send(()).unwrap();
        assert_eq!(ended.recv().await, Some(true));
        pool.slot().await.unwrap();
    }

    #[tokio::test]
    async fn one_pool_full_of_work_does_not_hold_up_another() {
        let (copies, mounts) = (Pool::new("copy", 1), Pool::new("mount", 1));
        let (go, going) = mpsc::channel::<()>();
        let copy =
            tokio::spawn(async move { copies.run(move |_| Ok::<_, JobLost>(going.recv().is_ok())).await });
        assert_eq!(mounts.run(|_| Ok::<_, JobLost>(1)).await.unwrap(), 1);
        go.send(()).unwrap();
        assert!(copy.await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_stands_still_while_a_job_runs() {
        let before = tokio::time::Instant::now();
        let sleeper = tokio::spawn(tokio::time::sleep(Duration::from_secs(3600)));
        Pool::new("disk", 1).run(|_| Ok::<_, JobLost>(7)).await.unwrap();
        assert_eq!(before, tokio::time::Instant::now());
        sleeper.abort();
    }

    #[tokio::test]
    async fn a_panic_on_an_actors_thread_is_an_error_of_its_request() {
        let lost = guarded("pull", async {
            tokio::task::yield_now().await;
            if true {
                panic!("no such luck");
            }
            Ok::<(), JobLost>(())
        });
        assert!(matches!(lost.await, Err(JobLost::Panicked { pool: "pull", .. })));
    }

    #[test]
    fn one_past_the_limit_is_refused_until_one_leaves() {
        let door = Admission::new(2);
        let first = door.admit().unwrap();
        let _second = door.admit().unwrap();
        assert_eq!(door.admit().unwrap_err(), Full { limit: 2 });
        drop(first);
        assert!(door.admit().is_ok());
    }
}

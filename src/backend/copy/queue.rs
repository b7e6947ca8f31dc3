//! Work that makes more work, for a few threads: ends when all is done, or at the first failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs to do. The newest is done first: so a walk goes deep before it goes wide, and few jobs wait.
pub(super) struct Queue<J, E> {
    state: Mutex<State<J, E>>,
    changed: Condvar,
    failed: AtomicBool,
}

struct State<J, E> {
    waiting: Vec<J>,
    under_way: usize,
    failures: Vec<E>,
}

impl<J: Send, E: Send> Queue<J, E> {
    /// With its first job.
    pub(super) fn new(first: J) -> Self {
        let state = State { waiting: vec![first], under_way: 0, failures: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), failed: AtomicBool::new(false) }
    }

    /// Adds jobs; called from within a job.
    pub(super) fn extend(&self, jobs: impl IntoIterator<Item = J>) {
        self.lock().waiting.extend(jobs);
        self.changed.notify_all();
    }

    /// Whether a job failed: others should give up.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Does all jobs on this many threads, the caller's one of them. A failure ends
    /// it; all that failed before they noticed are returned.
    pub(super) fn run(
        self,
        threads: usize,
        job: impl Fn(&Self, J) -> Result<(), E> + Sync,
    ) -> Result<(), Vec<E>> {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let help = std::thread::Builder::new().name("copy".to_owned());
                // Fewer threads will do, too.
                if help.spawn_scoped(scope, || self.work(&job)).is_err() {
                    break;
                }
            }
            self.work(&job);
        });
        let failures = self.state.into_inner().unwrap_or_else(PoisonError::into_inner).failures;
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    fn work(&self, job: &(impl Fn(&Self, J) -> Result<(), E> + Sync)) {
        while let Some(next) = self.next() {
            // However the job ends, by a panic too, the others must not wait for it forever.
            let done = Done(self);
            if let Err(error) = job(self, next) {
                self.failed.store(true, Ordering::Relaxed);
                self.lock().failures.push(error);
            }
            drop(done);
        }
    }

    fn next(&self) -> Option<J> {
        let mut state = self.lock();
        loop {
            if !state.failures.is_empty() {
                return None;
            }
            if let Some(job) = state.waiting.pop() {
                state.under_way += 1;
                return Some(job);
            }
            if state.under_way == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Done<'queue, J: Send, E: Send>(&'queue Queue<J, E>);

impl<J: Send, E: Send> Drop for Done<'_, J, E> {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_and_every_job_of_a_job_is_done_once() {
        let done = AtomicUsize::new(0);
        let result: Result<(), Vec<()>> = Queue::new(10u32).run(3, |queue, depth| {
            done.fetch_add(1, Ordering::Relaxed);
            if depth > 0 {
                queue.extend([depth - 1, depth - 1]);
            }
            Ok(())
        });
        assert_eq!(result, Ok(()));
        assert_eq!(done.into_inner(), (1 << 11) - 1);
    }

    #[test]
    fn a_failure_ends_it() {
        let result = Queue::new(0u32).run(3, |queue, number| {
            queue.extend([number + 1]);
            if number == 100 { Err(number) } else { Ok(()) }
        });
        assert_eq!(result, Err(vec![100]));
    }
}

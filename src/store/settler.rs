//! Who settles layers ([`super::settle`]), and when: a thread of this process, a process that is started for it, or
//! whoever pulls, before the pull is called done.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keelblock_actors::error::chain;
use slog::{Logger, warn};

use super::Inner;
use crate::sys::priority;

/// How long the thread waits for more layers before it takes those there are. 200 ms: the layers of an image come within
/// that, and a pass costs several waits for the disk however many it takes.
const GATHER: Duration = Duration::from_millis(200);

/// Pause before layers that could not be looked at are tried again. 60 s.
const RETRY: Duration = Duration::from_secs(60);

/// How long [`Settler::stop`] waits for the pass under way. 1 s: the disk may take longer, and what is left is settled by
/// the next process.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// When a pull is done (`--sync`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// When its layers are whole and verified; they reach the disk afterwards.
    #[default]
    Background,
    /// When its layers and its record are on disk.
    Full,
}

/// Who settles. Clones are one settler.
#[derive(Clone, Debug, Default)]
pub struct Settler {
    /// When pulls are done.
    pub mode: SyncMode,
    background: Option<Arc<Background>>,
}

impl Settler {
    /// Nobody of this process, unless pulls do: what is left is on disk as marks, for whoever calls
    /// [`super::DiskStore::settle`]. The default.
    pub fn later() -> Self {
        Self::default()
    }

    /// A thread of low priority, there while there is something to settle.
    pub fn thread(log: Logger) -> Self {
        let background = Background { state: Mutex::default(), changed: Condvar::new(), log };
        Self { mode: SyncMode::default(), background: Some(Arc::new(background)) }
    }

    /// As this one, with pulls that are done then.
    pub fn with_mode(self, mode: SyncMode) -> Self {
        Self { mode, ..self }
    }

    /// Ends the thread, if there is one, after the pass under way. What is left stays marked.
    ///
    /// # Blocking
    /// For one pass; a second at most.
    pub fn stop(&self) {
        self.stop_soon();
        let Some(background) = &self.background else { return };
        let until = Instant::now() + STOP_WAIT;
        let mut state = background.state();
        while state.running {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            state = background.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Self::stop`], waiting for nothing.
    pub fn stop_soon(&self) {
        if let Some(background) = &self.background {
            background.state().stopped = true;
            background.changed.notify_all();
        }
    }

    /// Says that there is something to settle.
    pub(super) fn nudge(&self, store: &Arc<Inner>) {
        if let Some(background) = &self.background {
            background.nudge(store);
        }
    }
}

/// The thread and what it has to do.
#[derive(Debug)]
struct Background {
    state: Mutex<State>,
    changed: Condvar,
    log: Logger,
}

#[derive(Debug, Default)]
struct State {
    nudged: bool,
    running: bool,
    stopped: bool,
}

impl Background {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nudge(self: &Arc<Self>, store: &Arc<Inner>) {
        let mut state = self.state();
        state.nudged = true;
        if state.stopped {
            return;
        }
        if state.running {
            self.changed.notify_all();
            return;
        }
        let (this, store) = (self.clone(), store.clone());
        let thread =
            std::thread::Builder::new().name("keelblock-settle".to_owned()).spawn(move || this.run(&store));
        match thread {
            Ok(_) => state.running = true,
            Err(error) => warn!(self.log, "layers are not written to disk for now"; "error" => %error),
        }
    }

    fn run(&self, store: &Inner) {
        /// Says that the thread is gone, also when it panics.
        struct Ended<'a>(&'a Background);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.state().running = false;
                self.0.changed.notify_all();
            }
        }
        let _ended = Ended(self);
        priority::lower();
        loop {
            self.pause(GATHER, false);
            {
                let mut state = self.state();
                if state.stopped || !state.nudged {
                    // Under the lock, or a nudge could come between.
                    state.running = false;
                    return;
                }
                state.nudged = false;
            }
            let left = match store.settle() {
                Ok(settled) => !settled.left.is_empty(),
                Err(error) => {
                    warn!(self.log, "layers are not written to disk for now"; "error" => chain(&error));
                    true
                }
            };
            if left {
                self.pause(RETRY, true);
                self.state().nudged = true;
            }
        }
    }

    /// Waits so long, or until it is stopped, or until there is more to do.
    fn pause(&self, pause: Duration, or_nudged: bool) {
        let until = Instant::now() + pause;
        let mut state = self.state();
        while !(state.stopped || or_nudged && state.nudged) {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

//! Work on the network runtime, awaited from anywhere.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};

/// A spawned task that ends with whoever waits for it.
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    /// Starts it.
    pub(crate) fn spawn(handle: &Handle, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(handle.spawn(work))
    }

    /// Runs blocking work on a thread of the same runtime. Dropping the task does not end work that has begun.
    #[allow(clippy::disallowed_methods)] // The ports of providers are asynchronous, so no pool of the actors stands behind them.
    pub(crate) fn spawn_blocking(handle: &Handle, work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(handle.spawn_blocking(work))
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

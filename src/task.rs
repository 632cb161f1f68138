//! Named background tasks with an owner. Shell.

use std::future::Future;

use tokio::task::JoinHandle;

/// A task that is aborted when its owner drops it, so that none outlives its purpose.
#[derive(Debug)]
pub struct Task<T = ()> {
    name: &'static str,
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Task<T> {
    /// Starts `future` on the runtime.
    pub fn spawn(name: &'static str, future: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            name,
            handle: tokio::spawn(future),
        }
    }

    /// Waits for the end; `None` when the task panicked or was aborted, which is logged.
    pub async fn join(mut self) -> Option<T> {
        match (&mut self.handle).await {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(task = self.name, %error, "task failed");
                None
            }
        }
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

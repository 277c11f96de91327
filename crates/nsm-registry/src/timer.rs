//! Removes what has ended, when it has ended: one task per table that sleeps until the earliest deadline.

use std::sync::{Arc, OnceLock, Weak};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

/// A table whose entries end.
pub(crate) trait Expires: Send + Sync + 'static {
    /// Removes every entry whose deadline is not after `now`; answers the earliest deadline left.
    fn expire(&self, now: Instant) -> Option<Instant>;
}

/// The task of one table. Ends with the value.
#[derive(Default)]
pub(crate) struct Timer {
    wake: Arc<Notify>,
    task: OnceLock<AbortHandle>,
}

impl Timer {
    /// Tells the task that the earliest deadline may have moved. The first call starts it.
    pub(crate) fn wake<T: Expires>(&self, table: &Arc<T>) {
        self.task.get_or_init(|| tokio::spawn(run(Arc::downgrade(table), self.wake.clone())).abort_handle());
        self.wake.notify_one();
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Holds the table only while it works on it, so that the table can end.
async fn run<T: Expires>(table: Weak<T>, wake: Arc<Notify>) {
    loop {
        let Some(next) = table.upgrade().map(|table| table.expire(Instant::now())) else { return };
        match next {
            None => wake.notified().await,
            Some(deadline) => tokio::select! {
                biased; // a simulation repeats itself
                () = tokio::time::sleep_until(deadline) => {}
                () = wake.notified() => {}
            },
        }
    }
}

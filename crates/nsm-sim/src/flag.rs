//! Something that becomes true once or again, and those who wait for it: they are woken in the order in which they came,
//! which tokio's `watch` does not promise.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;

/// Clones are the same flag.
#[derive(Clone, Default)]
pub(crate) struct Flag(Arc<(AtomicBool, Notify)>);

impl Flag {
    pub(crate) fn is(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }
    pub(crate) fn set(&self, to: bool) {
        self.0.0.store(to, Ordering::Relaxed);
        self.0.1.notify_waiters();
    }
    /// Resolves when it is so.
    pub(crate) async fn until(&self, wanted: bool) {
        loop {
            let mut changed = pin!(self.0.1.notified());
            changed.as_mut().enable();
            if self.is() == wanted {
                return;
            }
            changed.await;
        }
    }
}

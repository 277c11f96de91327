//! The life of one process: it ends at any call to the outside, and then nothing of it ever acts again.
//!
//! Its tasks are not found and stopped. Whatever of them still runs comes to its next call to the outside, and ends there:
//! to others that is the same.

use crate::flag::Flag;
use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Shared by everything that acts for the process.
#[derive(Clone, Default)]
pub(crate) struct Life {
    dead: Flag,
    /// Calls until it ends; 0: it lasts.
    fuse: Arc<AtomicU64>,
}

impl Life {
    pub(crate) fn is_over(&self) -> bool {
        self.dead.is()
    }
    pub(crate) fn end(&self) {
        self.dead.set(true);
    }
    /// It ends by itself at the so-manieth point from now.
    pub(crate) fn ends_after(&self, points: u64) {
        self.fuse.store(points, Ordering::Relaxed);
    }
    pub(crate) async fn ended(&self) {
        self.dead.until(true).await;
    }
    /// A point between two effects on the outside, in a task of the process itself. Does not return to one that has ended.
    pub(crate) fn point(&self) {
        if self.passes() {
            return;
        }
        // Quiet: this is no defect, and the task that it ends has nobody who waits for it.
        resume_unwind(Box::new("the process has ended"));
    }
    /// The same where the task may be somebody else's, who waits for us: it waits no longer when it hears of our end.
    pub(crate) async fn point_for_others(&self) {
        if !self.passes() {
            std::future::pending::<()>().await;
        }
    }
    fn passes(&self) -> bool {
        let fuse = self.fuse.load(Ordering::Relaxed);
        if fuse > 0 {
            self.fuse.store(fuse - 1, Ordering::Relaxed);
            if fuse == 1 {
                self.end();
            }
        }
        !self.is_over()
    }
}

//! Those who watch a lab while something happens to it, and judge from outside: packets, kernels and `/proc`, never what the
//! processes believe of themselves.
//!
//! Each that watches all the time has a thread of its own, because the lab's own thread is often busy. Not here: what
//! happens meanwhile ([`crate::faults`]).

pub(crate) mod bounds;
pub(crate) mod descriptors;
pub(crate) mod folds;
pub(crate) mod holders;
pub(crate) mod oracle;
pub(crate) mod pulse;

use nsm_api::{Error, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// Namespace and interface.
pub(crate) type Spot = (String, String);

/// A thread that works until it is told to end. Dropping it ends it, too.
pub(crate) struct Service<T> {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Service<T> {
    /// Starts `work`, which ends soon after what it is given has become true.
    pub(crate) fn start(name: &str, work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Result<Service<T>> {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&seen));
        let thread = thread.map_err(|error| Error::internal(format!("thread {name:?}"), error.to_string()))?;
        Ok(Service { over, thread: Some(thread) })
    }
    /// Ends it and takes what it has found.
    pub(crate) fn end(mut self) -> Result<T> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only `end` and `drop` take it, and both are the last");
        thread.join().map_err(|_| Error::internal("a thread that watches", "panicked"))
    }
}

impl<T> Drop for Service<T> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! Fakes for tests: faults on demand, a kernel in memory, and the suite that the fake and the real kernel both pass.
//!
//! Not here: fakes of the next hop; they belong to the tests that need them and share the same [`FaultPlan`].

mod conformance;
mod fake;
mod journal;

pub use conformance::{World, conformance};
pub use fake::FakeKernel;
pub use journal::MemoryJournal;

use nsm_api::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// On which side of its effect a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// Refused: nothing has changed.
    Before,
    /// The answer is lost: the change has happened.
    After,
}

/// The `at`-th call fails. Calls count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Which call.
    pub at: usize,
    /// Before or after its effect.
    pub when: When,
}

/// Counts the calls to the outside and makes chosen ones fail, or stops at one as a process that is killed does. Clones
/// share the count.
#[derive(Clone)]
pub struct FaultPlan(Arc<Mutex<Plan>>, watch::Sender<bool>);

#[derive(Default)]
struct Plan {
    calls: usize,
    faults: Vec<Fault>,
    stop: Option<Fault>,
}

impl Default for FaultPlan {
    fn default() -> FaultPlan {
        FaultPlan(Arc::default(), watch::Sender::new(false))
    }
}

impl FaultPlan {
    /// A plan with these faults.
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> FaultPlan {
        let plan = FaultPlan::default();
        plan.set(faults);
        plan
    }
    /// Replaces the faults and counts from the beginning.
    pub fn set(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.lock() = Plan { calls: 0, faults: faults.into_iter().collect(), stop: None };
    }
    /// From this call on none returns, until [`FaultPlan::resume`].
    pub fn stop_at(&self, call: Fault) {
        self.lock().stop = Some(call);
    }
    /// Whether it has come to that call.
    pub fn stopped(&self) -> bool {
        *self.1.borrow()
    }
    /// Calls return again.
    pub fn resume(&self) {
        self.lock().stop = None;
        self.1.send_replace(false);
    }
    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.lock().calls
    }
    /// One call: yields, so that a caller can vanish before; takes effect unless it fails before; yields, so that a caller can vanish after.
    pub async fn act<T>(&self, effect: impl FnOnce() -> Result<T>) -> Result<T> {
        tokio::task::yield_now().await;
        self.running().await;
        let (fault, stop) = self.next();
        if stop == Some(When::Before) {
            self.1.send_replace(true);
            self.running().await;
        }
        if fault == Some(When::Before) {
            return Err(injected());
        }
        let done = effect();
        tokio::task::yield_now().await;
        if stop == Some(When::After) {
            self.1.send_replace(true);
        }
        self.running().await;
        if fault.is_some() { done.and(Err(injected())) } else { done }
    }
    async fn running(&self) {
        // The sender lives as long as the plan.
        let _ = self.1.subscribe().wait_for(|stopped| !stopped).await;
    }
    fn next(&self) -> (Option<When>, Option<When>) {
        let mut plan = self.lock();
        plan.calls += 1;
        let here = |fault: &&Fault| fault.at == plan.calls;
        (plan.faults.iter().find(here).map(|fault| fault.when), plan.stop.iter().find(here).map(|fault| fault.when))
    }
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn injected() -> Error {
    Error::new(Kind::Kernel, "a fault plan", "this call was told to fail", "none: it is a test")
}

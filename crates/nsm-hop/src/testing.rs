//! Fakes for tests: faults on demand, a kernel in memory, and the suite that the fake and the real kernel both pass.
//!
//! Not here: fakes of the next hop; they belong to the tests that need them and share the same [`FaultPlan`].

mod conformance;
mod fake;

pub use conformance::{World, conformance};
pub use fake::FakeKernel;

use nsm_api::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Counts the calls to the outside and makes chosen ones fail. Clones share the count.
#[derive(Clone, Default)]
pub struct FaultPlan(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    calls: usize,
    faults: Vec<Fault>,
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
        *self.lock() = Plan { calls: 0, faults: faults.into_iter().collect() };
    }
    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.lock().calls
    }
    /// One call: yields, so that a caller can vanish before; takes effect unless it fails before; yields, so that a caller can vanish after.
    pub async fn act<T>(&self, effect: impl FnOnce() -> Result<T>) -> Result<T> {
        tokio::task::yield_now().await;
        let fault = self.next();
        if fault == Some(When::Before) {
            return Err(injected());
        }
        let done = effect();
        tokio::task::yield_now().await;
        if fault.is_some() { done.and(Err(injected())) } else { done }
    }
    fn next(&self) -> Option<When> {
        let mut plan = self.lock();
        plan.calls += 1;
        plan.faults.iter().find(|fault| fault.at == plan.calls).map(|fault| fault.when)
    }
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn injected() -> Error {
    Error::new(Kind::Kernel, "a fault plan", "this call was told to fail", "none: it is a test")
}

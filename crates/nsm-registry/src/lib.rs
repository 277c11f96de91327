//! Services and endpoints: kept, found, watched, expired, and read from YAML.
//!
//! [`Registry`] is the registry process: it decides (who owns a name, how long an endpoint lives) over an
//! [`Engine`] that only stores, indexes and tells of changes. [`LocalBypass`] is the registry as a manager shows
//! it to its node: endpoints of this node are reached directly, those of others through their manager. [`Cache`] is
//! what a manager knows of the registry above.
//! [`manifest`] reads and writes the YAML form.
//!
//! Not here: any socket, file, environment variable or wall clock (it is passed in); the choice of an endpoint for
//! a client (selectors, templates, weights), which is in `nsm-hop`.

#![forbid(unsafe_code)]

mod bypass;
mod cache;
mod engine;
pub mod manifest;
mod memory;
mod query;
mod registry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod timer;

pub use bypass::{LocalBypass, MAX_CALLS_IN_FLIGHT, MAX_LOCAL_ENDPOINTS, MAX_LOOKED_UP, UPSTREAM_TIMEOUT};
pub use cache::{ASK_TIMEOUT, Cache, MAX_CACHED};
pub use engine::{Change, Changes, Engine, Record, Revision, Store, Stored, Term};
pub use memory::{MAX_ENTRIES, MAX_WATCHERS, MemoryEngine, WATCH_QUEUE};
pub use query::SlimEndpoint;
pub use registry::{DEFAULT_EXPIRE_PERIOD, MAX_RECORD_BYTES, MAX_WRITE_TRIES, Registry};

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Tells the time of day. Only what is shown or sent comes from it; deadlines are kept on tokio's clock.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Locks although another thread panicked inside: every section leaves its data whole at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

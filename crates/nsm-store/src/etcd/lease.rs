//! Leases that end records: one for all records of this process that end in the same second.
//!
//! A refresh moves its key to the lease of its new end in the same transaction, so the end of the old one never
//! touches it. Nothing is kept alive and nothing revoked: a lease ends by itself.

use super::{
    api::{LeaseGrantRequest, lease_client::LeaseClient},
    cluster::Cluster,
};
use nsm_api::Result;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Leases that this process remembers; past that the ones that end soonest are asked for again.
pub const MAX_LEASES: usize = 4096;

pub(super) struct Leases {
    start: Instant,
    /// By the second in which they end, counted from `start`.
    by_end: Mutex<BTreeMap<u64, i64>>,
}

impl Leases {
    pub(super) fn new() -> Leases {
        Leases { start: Instant::now(), by_end: Mutex::default() }
    }

    fn by_end(&self) -> MutexGuard<'_, BTreeMap<u64, i64>> {
        self.by_end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease that ends when `life` has passed, or up to a second later.
    pub(super) async fn ending(&self, cluster: &Cluster, life: Duration, deadline: Instant) -> Result<i64> {
        let now = self.start.elapsed();
        let end = whole(now.saturating_add(life));
        if let Some(lease) = self.known(end, now) {
            return Ok(lease);
        }
        let seconds = whole(Duration::from_secs(end).saturating_sub(now)).max(1);
        let ttl = i64::try_from(seconds).unwrap_or(i64::MAX);
        let granted =
            cluster.call(deadline, |line| async move { LeaseClient::new(line).lease_grant(LeaseGrantRequest { ttl }).await }).await?;
        self.by_end().insert(end, granted.id);
        Ok(granted.id)
    }

    fn known(&self, end: u64, now: Duration) -> Option<i64> {
        let mut by_end = self.by_end();
        while by_end.first_key_value().is_some_and(|(first, _)| *first <= now.as_secs()) || by_end.len() >= MAX_LEASES {
            by_end.pop_first();
        }
        by_end.get(&end).copied()
    }

    /// The cluster does not know it any more.
    pub(super) fn forget(&self, lease: i64) {
        self.by_end().retain(|_, known| *known != lease);
    }
}

/// Seconds, rounded up.
fn whole(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

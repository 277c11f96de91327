//! Whom a forwarder does not choose for a while, because the last Request to it failed on the way.
//!
//! The record of a process that died stays in the registry until it expires, and rules may prefer it. In memory only:
//! after a restart the first Request finds out again.

use nsm_api::{EndpointName, Error, Kind};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Endpoints that are avoided at the same time; beyond that a failure is not remembered.
pub const MAX_AVOIDED: usize = 4096;
/// How long after a failure: doubled from the first to the last with each that follows within as long again.
pub const AVOIDED_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));

/// Endpoints that could not be reached lately.
#[derive(Default)]
pub(super) struct Avoided(Mutex<BTreeMap<EndpointName, Pause>>);

#[derive(Clone, Copy)]
struct Pause {
    length: Duration,
    until: Instant,
}

impl Pause {
    /// A failure until then is one more of the same.
    fn remembered_until(&self) -> Instant {
        self.until + self.length
    }
}

impl Avoided {
    /// The last Request to `name` failed. What speaks of the client and not of the endpoint does not count.
    pub(super) fn failed(&self, name: &EndpointName, error: &Error) {
        if !matches!(error.kind, Kind::Unavailable | Kind::Timeout | Kind::NotFound) {
            return;
        }
        let (now, mut known) = (Instant::now(), self.lock());
        known.retain(|_, pause| pause.remembered_until() > now);
        if known.len() >= MAX_AVOIDED && !known.contains_key(name) {
            return;
        }
        let length = known.get(name).map_or(AVOIDED_FOR.0, |pause| (pause.length * 2).min(AVOIDED_FOR.1));
        known.insert(name.clone(), Pause { length, until: now + length });
    }

    /// It has agreed to something.
    pub(super) fn reached(&self, name: &EndpointName) {
        self.lock().remove(name);
    }

    /// Whether somebody else should be chosen.
    pub(super) fn avoids(&self, name: &EndpointName) -> bool {
        self.lock().get(name).is_some_and(|pause| pause.until > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EndpointName, Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_failures_in_a_row_and_is_bounded() {
        let (avoided, name) = (Avoided::default(), "e".parse::<EndpointName>().unwrap());
        avoided.failed(&name, &Error::new(Kind::Denied, "e", "r", "f"));
        assert!(!avoided.avoids(&name), "others may be allowed");
        for seconds in [1, 2, 4, 8, 16, 32, 32] {
            avoided.failed(&name, &Error::new(Kind::Unavailable, "e", "r", "f"));
            advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert!(avoided.avoids(&name), "{seconds} s");
            advance(Duration::from_millis(1)).await;
            assert!(!avoided.avoids(&name), "{seconds} s");
        }
        advance(AVOIDED_FOR.1).await;
        avoided.failed(&name, &Error::new(Kind::Timeout, "e", "r", "f"));
        advance(AVOIDED_FOR.0).await;
        assert!(!avoided.avoids(&name), "long ago is forgotten");
        avoided.failed(&name, &Error::new(Kind::Timeout, "e", "r", "f"));
        avoided.reached(&name);
        assert!(!avoided.avoids(&name), "it is well again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_names_is_bounded() {
        let (avoided, error) = (Avoided::default(), Error::new(Kind::Unavailable, "e", "r", "f"));
        for number in 0..=MAX_AVOIDED {
            avoided.failed(&format!("e{number}").parse().unwrap(), &error);
        }
        assert_eq!(avoided.lock().len(), MAX_AVOIDED);
    }
}

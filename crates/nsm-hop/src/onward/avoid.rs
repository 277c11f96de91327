//! Whom a forwarder does not choose for a while, because the last Request to it failed on the way.
//!
//! The record of a process that died stays in the registry until it expires, and rules may prefer it. Where another
//! node's manager is what cannot be reached, all endpoints behind it are alike. In memory only: after a restart the
//! first Request finds out again.

use crate::role::Candidate;
use nsm_api::{EndpointName, Error, Kind, NetworkServiceEndpoint};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Endpoints and managers that are avoided at the same time; beyond that a failure is not remembered.
pub const MAX_AVOIDED: usize = 4096;
/// How long after a failure: doubled from the first to the last with each that follows the pause within as long again.
pub const AVOIDED_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));

/// Who could not be reached lately.
#[derive(Default)]
pub(super) struct Avoided(Mutex<BTreeMap<Whom, Pause>>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whom {
    Endpoint(EndpointName),
    /// Another node's manager, by its URL.
    Manager(String),
}

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
    /// `candidate` was asked last. What a refusal says of the client and not of the way to the endpoint does not count; nor
    /// that it is not known there: after a restart of its manager that takes a moment.
    pub(super) fn asked(&self, candidate: &Candidate, agreed: Result<(), &Error>) {
        let Some(name) = &candidate.registered else { return };
        let (endpoint, manager) = (Whom::Endpoint(name.clone()), Whom::Manager(candidate.target.to_string()));
        match agreed {
            Ok(()) => {
                let mut known = self.lock();
                known.remove(&endpoint);
                known.remove(&manager);
            }
            Err(error) if !matches!(error.kind, Kind::Unavailable | Kind::Timeout) => {}
            // No hop behind has spoken.
            Err(error) if error.hop.is_empty() && !candidate.target.is_local() => self.failed(manager),
            Err(_) => self.failed(endpoint),
        }
    }

    fn failed(&self, whom: Whom) {
        let (now, mut known) = (Instant::now(), self.lock());
        known.retain(|_, pause| pause.remembered_until() > now);
        let length = match known.get(&whom) {
            Some(pause) if pause.until > now => return, // it was asked because there was nobody else
            Some(pause) => (pause.length * 2).min(AVOIDED_FOR.1),
            None if known.len() >= MAX_AVOIDED => return,
            None => AVOIDED_FOR.0,
        };
        known.insert(whom, Pause { length, until: now + length });
    }

    /// Whether somebody else should be chosen.
    pub(super) fn avoids(&self, endpoint: &NetworkServiceEndpoint) -> bool {
        let (now, known) = (Instant::now(), self.lock());
        let avoids = |whom: Whom| known.get(&whom).is_some_and(|pause| pause.until > now);
        !known.is_empty() && (avoids(Whom::Endpoint(endpoint.name.clone())) || avoids(Whom::Manager(endpoint.url.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Whom, Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::{Files, Payload};
    use tokio::time::advance;

    fn endpoint(name: &str, url: &str) -> (NetworkServiceEndpoint, Candidate) {
        let endpoint = NetworkServiceEndpoint::new(name.parse().unwrap(), vec![], url);
        let registered = Some(endpoint.name.clone());
        let candidate = Candidate { target: url.parse().unwrap(), socket: Files::default(), registered, payload: Payload::Unset };
        (endpoint, candidate)
    }

    fn error(kind: Kind) -> Error {
        Error::new(kind, "e", "r", "f")
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_failures_in_a_row_and_is_bounded() {
        let (avoided, (one, candidate)) = (Avoided::default(), endpoint("e", "unix:///e"));
        avoided.asked(&candidate, Err(&error(Kind::Denied)));
        avoided.asked(&candidate, Err(&error(Kind::NotFound)));
        assert!(!avoided.avoids(&one), "others may be allowed; and it may be known soon");
        for seconds in [1, 2, 4, 8, 16, 32, 32] {
            avoided.asked(&candidate, Err(&error(Kind::Unavailable)));
            advance(Duration::from_secs(seconds) / 2).await;
            avoided.asked(&candidate, Err(&error(Kind::Unavailable)));
            assert!(avoided.avoids(&one), "{seconds} s");
            advance(Duration::from_secs(seconds) / 2).await;
            assert!(!avoided.avoids(&one), "{seconds} s");
        }
        advance(AVOIDED_FOR.1).await;
        avoided.asked(&candidate, Err(&error(Kind::Timeout)));
        advance(AVOIDED_FOR.0).await;
        assert!(!avoided.avoids(&one), "long ago is forgotten");
        avoided.asked(&candidate, Err(&error(Kind::Timeout)));
        avoided.asked(&candidate, Ok(()));
        assert!(!avoided.avoids(&one), "it is well again");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_a_manager_that_is_away_all_are_alike() {
        let avoided = Avoided::default();
        let ((one, candidate), (other, _)) = (endpoint("one", "tcp://10.0.0.1:5001"), endpoint("other", "tcp://10.0.0.1:5001"));
        avoided.asked(&candidate, Err(&error(Kind::Unavailable).at(&"far-forwarder".parse().unwrap())));
        assert!(avoided.avoids(&one) && !avoided.avoids(&other), "somebody there says so of this one");
        avoided.asked(&candidate, Err(&error(Kind::Unavailable)));
        assert!(avoided.avoids(&one) && avoided.avoids(&other), "nobody speaks there");
        assert!(!avoided.avoids(&endpoint("third", "tcp://10.0.0.2:5001").0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_names_is_bounded() {
        let avoided = Avoided::default();
        for number in 0..=MAX_AVOIDED {
            avoided.asked(&endpoint(&format!("e{number}"), "unix:///e").1, Err(&error(Kind::Unavailable)));
        }
        assert_eq!(avoided.lock().len(), MAX_AVOIDED);
    }
}

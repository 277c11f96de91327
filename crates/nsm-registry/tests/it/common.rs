//! What the tests of this crate share: a clock that follows tokio's, names, callers, and reading a stream.

use futures::StreamExt;
use nsm_api::{Caller, EndpointName, EndpointUpdates, Labels, NetworkServiceEndpoint, ServiceName, SpiffeId};
use nsm_registry::{MemoryEngine, Registry, WallClock};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// Longer than anything here takes; with paused time it costs nothing.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// The time at which every test starts.
pub(crate) fn epoch() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

pub(crate) fn after(seconds: u64) -> SystemTime {
    epoch() + Duration::from_secs(seconds)
}

/// Starts at [`epoch`] now, and passes as tokio's time does.
pub(crate) fn clock() -> WallClock {
    let start = Instant::now();
    Arc::new(move || epoch() + start.elapsed())
}

pub(crate) fn registry() -> Registry {
    Registry::new(Arc::new(MemoryEngine::new()), clock())
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

pub(crate) fn name(name: &str) -> EndpointName {
    EndpointName::new(name).unwrap()
}

/// `spiffe://d/<who>`
pub(crate) fn caller(who: &str) -> Caller {
    Caller { identity: Some(SpiffeId::new(format!("spiffe://d/{who}")).unwrap()), ..Caller::default() }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// An endpoint of one service, with labels for it.
pub(crate) fn endpoint(called: &str, serves: &str, pairs: &[(&str, &str)]) -> NetworkServiceEndpoint {
    let mut endpoint = NetworkServiceEndpoint::new(name(called), vec![service(serves)], "tcp://10.0.0.1:5001");
    endpoint.network_service_labels = BTreeMap::from([(service(serves), labels(pairs))]);
    endpoint
}

/// Everything a one-shot Find answers, as `name url`.
pub(crate) async fn all(updates: EndpointUpdates) -> Vec<String> {
    updates.map(|update| update.unwrap().0.endpoint).map(|endpoint| format!("{} {}", endpoint.name, endpoint.url)).collect().await
}

/// The next message of a watch, as `+name url` or `-name url`.
pub(crate) async fn next(updates: &mut EndpointUpdates) -> String {
    let next = tokio::time::timeout(LONG, updates.next()).await.expect("the watch says nothing");
    let (update, _) = next.expect("a watch never ends by itself").unwrap();
    format!("{}{} {}", if update.deleted { "-" } else { "+" }, update.endpoint.name, update.endpoint.url)
}

//! Names, callers, clocks, and engines to test.

use crate::medium::FaultDisk;
use nsm_api::{Caller, EndpointName, EndpointQuery, Labels, NetworkServiceEndpoint, ServiceName, SpiffeId};
pub(crate) use nsm_registry::testing::Seeded;
use nsm_registry::{Engine, WallClock};
use nsm_store::{Clock, DurableEngine, Moment};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Follows tokio's clock, so that it can be paused; 1970 is when it was made.
#[derive(Clone, Copy)]
pub(crate) struct TestClock {
    pub(crate) start: Instant,
    pub(crate) boot: u64,
    pub(crate) step: i64,
}

impl TestClock {
    pub(crate) fn new() -> TestClock {
        TestClock { start: Instant::now(), boot: 1, step: 0 }
    }

    pub(crate) fn wall(self) -> WallClock {
        Arc::new(move || self.now().wall)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        let since_boot = self.start.elapsed();
        let step = Duration::from_secs(self.step.unsigned_abs());
        let wall = if self.step < 0 { (UNIX_EPOCH + since_boot).checked_sub(step).unwrap() } else { UNIX_EPOCH + since_boot + step };
        Moment { boot: self.boot, since_boot, wall }
    }
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

/// An endpoint of one service, with one label for it.
pub(crate) fn endpoint(called: &str, serves: &str, url: &str) -> NetworkServiceEndpoint {
    let mut endpoint = NetworkServiceEndpoint::new(name(called), vec![service(serves)], url);
    endpoint.network_service_labels = BTreeMap::from([(service(serves), Labels::from([("app".to_owned(), "a".to_owned())]))]);
    endpoint
}

pub(crate) fn of_service(serves: &str) -> EndpointQuery {
    EndpointQuery { services: vec![service(serves)], ..EndpointQuery::default() }
}

pub(crate) async fn open(disk: &FaultDisk, clock: TestClock) -> nsm_api::Result<DurableEngine> {
    DurableEngine::open_on(Arc::new(disk.clone()), Arc::new(clock)).await
}

/// What is there, as `name url`.
pub(crate) async fn all(engine: &dyn Engine) -> Vec<String> {
    let found = engine.endpoints().find(&EndpointQuery::default()).await.unwrap();
    found.iter().map(|endpoint| format!("{} {}", endpoint.name, endpoint.url)).collect()
}

/// Writes over whatever is there.
pub(crate) async fn put(engine: &dyn Engine, called: &str, url: &str, life: Option<Duration>) -> nsm_api::Result<()> {
    let store = engine.endpoints();
    let present = store.get(&name(called)).await?.map(|stored| stored.revision);
    let written = store.put(Arc::new(endpoint(called, "s", url)), present, life).await?;
    assert!(written.is_some(), "nobody else writes {called}");
    Ok(())
}

pub(crate) async fn remove(engine: &dyn Engine, called: &str) -> nsm_api::Result<()> {
    let store = engine.endpoints();
    if let Some(stored) = store.get(&name(called)).await? {
        assert!(store.remove(&name(called), stored.revision).await?, "nobody else writes {called}");
    }
    Ok(())
}

/// The wall clock of tests in real time.
pub(crate) fn real() -> WallClock {
    Arc::new(SystemTime::now)
}

//! What the tools share: their options, the way into the mesh, and answers read to their end.

use crate::{
    roles::process::{CONNECT_TO, WORKLOAD_API},
    settings::{Opt, Settings, Shape},
};
use futures::{Stream, StreamExt};
use nsm_api::{
    Caller, Connection, EndpointQuery, Error, EventKind, Events, Files, Kind, NetworkService, NetworkServiceApi, NetworkServiceEndpoint,
    RegistryApi, Result, Selector, ServiceName, ServiceQuery, Target,
};
use nsm_grpc::{DialOptions, Dialer};
use nsm_identity::Source;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

/// Where the registry is.
pub(crate) const REGISTRY_URL: Opt = Opt::new(
    "registry-url",
    "NSM_REGISTRY_URL",
    "",
    Shape::Target,
    "The registry; without it the manager of --connect-to is asked, which passes it on",
);
/// How long an answer may take.
pub(crate) const REQUEST_TIMEOUT: Opt =
    Opt::new("request-timeout", "NSM_REQUEST_TIMEOUT", "5s", Shape::Duration, "Longest wait for an answer");
/// Objects of one answer at most; more would not be read by anybody.
const MAX_OBJECTS: usize = 1_000_000;

/// How to reach the mesh, as the settings say.
pub(crate) struct Way {
    workload_api: Target,
    manager: Target,
    registry: Option<Target>,
    /// How long an answer may take.
    pub(crate) timeout: Duration,
}

impl Way {
    /// Reads the options; mistakes stay in `settings`.
    pub(crate) fn read(settings: &mut Settings) -> Way {
        Way {
            workload_api: settings.text(WORKLOAD_API.flag),
            manager: settings.text(CONNECT_TO.flag),
            registry: if settings.has(REGISTRY_URL.flag) { settings.optional(REGISTRY_URL.flag) } else { None },
            timeout: settings.duration(REQUEST_TIMEOUT.flag),
        }
    }
    /// Gets the identity of this process.
    async fn dialer(&self) -> Result<Dialer> {
        let source = identity(&self.workload_api, self.timeout).await?;
        // A user wants to hear at once that nobody is there.
        let options = DialOptions { dial_timeout: self.timeout, max_token_life: Duration::from_secs(600), wait_for_ready: Duration::ZERO };
        Ok(Dialer::new(source, options))
    }
    /// The registry.
    pub(crate) async fn registry(&self) -> Result<Arc<dyn RegistryApi>> {
        Ok(self.dialer().await?.registry(self.registry.as_ref().unwrap_or(&self.manager)))
    }
    /// The manager.
    pub(crate) async fn manager(&self) -> Result<Arc<dyn NetworkServiceApi>> {
        Ok(self.dialer().await?.network_service(&self.manager, &Files::default()))
    }
    /// A call that waits as long as the settings say.
    pub(crate) fn caller(&self) -> Caller {
        Caller::within(self.timeout)
    }
}

/// The identity of this process. A socket that does not exist is not waited for: nobody is starting it for us.
pub(crate) async fn identity(endpoint: &Target, patience: Duration) -> Result<Source> {
    let missing = matches!(endpoint, Target::Unix(path) if !path.exists());
    Source::connect(&endpoint.to_string(), if missing { Duration::from_millis(10) } else { patience }).await
}

/// The services that match, by name.
pub(crate) async fn find_services(registry: &dyn RegistryApi, query: ServiceQuery, way: &Way) -> Result<Vec<NetworkService>> {
    let updates = within(way.timeout, registry.find_services(query, way.caller())).await?;
    let mut found: Vec<_> = all(updates, way.timeout).await?.into_iter().map(|update| update.service).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The endpoints that match, by name.
pub(crate) async fn find_endpoints(registry: &dyn RegistryApi, query: EndpointQuery, way: &Way) -> Result<Vec<NetworkServiceEndpoint>> {
    let updates = within(way.timeout, registry.find_endpoints(query, way.caller())).await?;
    let mut found: Vec<_> = all(updates, way.timeout).await?.into_iter().map(|(update, _)| update.endpoint).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The connections of a manager now, by id.
pub(crate) async fn connections(manager: &dyn NetworkServiceApi, services: &[ServiceName], way: &Way) -> Result<Vec<Connection>> {
    let mut events = within(way.timeout, manager.monitor(selector(services), Caller::default())).await?;
    let first = within(way.timeout, first(&mut events)).await?;
    Ok(first)
}

/// Connections of these services, or of all.
pub(crate) fn selector(services: &[ServiceName]) -> Selector {
    Selector { segments: Vec::new(), services: services.iter().map(ToString::to_string).collect() }
}

async fn first(events: &mut Events) -> Result<Vec<Connection>> {
    while let Some(event) = events.next().await {
        let event = event?;
        if event.kind == EventKind::InitialStateTransfer {
            return Ok(event.connections.into_values().collect());
        }
    }
    Err(ended("the manager"))
}

/// The error for a stream that should not have ended.
pub(crate) fn ended(who: &str) -> Error {
    Error::new(Kind::Unavailable, who, "it ended its answer", "see its log, and ask again")
}

async fn all<T>(mut updates: impl Stream<Item = Result<T>> + Unpin, bound: Duration) -> Result<Vec<T>> {
    let mut found = Vec::new();
    while let Some(update) = within(bound, async { updates.next().await.transpose() }).await? {
        if found.len() == MAX_OBJECTS {
            return Err(Error::new(
                Kind::Exhausted,
                "the answer",
                format!("it holds more than {MAX_OBJECTS} objects"),
                "ask for one service",
            ));
        }
        found.push(update);
    }
    Ok(found)
}

async fn within<T>(bound: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(bound, work).await.unwrap_or_else(|_| {
        let fix = "check that it runs, or wait longer with --request-timeout";
        Err(Error::new(Kind::Timeout, "the answer", format!("it did not come within {bound:?}"), fix))
    })
}

/// Seconds from now, for instance `in 52s` or `3s ago`; empty when there is no such time.
pub(crate) fn relative(time: Option<SystemTime>, now: SystemTime) -> String {
    let Some(time) = time else { return String::new() };
    match time.duration_since(now) {
        Ok(left) => format!("in {}s", left.as_secs()),
        Err(past) => format!("{}s ago", past.duration().as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_relative() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(relative(None, now), "");
        assert_eq!(relative(Some(now + Duration::from_secs(52)), now), "in 52s");
        assert_eq!(relative(Some(now - Duration::from_secs(3)), now), "3s ago");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_a_timeout_and_not_for_ever() {
        let silent = futures::stream::pending::<Result<()>>();
        let error = all(Box::pin(silent), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Timeout);
    }
}

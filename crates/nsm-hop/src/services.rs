//! A manager follows the services of its connections: one whose rules no longer choose the endpoint in use is ended here,
//! and its client asks again (E-31).
//!
//! One watch for all services; a service counts only when its rules have changed, and only its own connections are looked at.

use crate::{hop::Hop, matching, onward::named};
use futures::TryStreamExt;
use nsm_api::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::sleep;
use tracing::{debug, info};

/// Services whose rules are remembered; of more, every news counts as a change.
pub const MAX_REMEMBERED: usize = 10_000;
/// Pauses before the watch is opened again, doubled from the first to the last.
pub const REOPEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Follows the registry for as long as it is polled.
pub async fn follow(hop: Hop, registry: Arc<dyn RegistryApi>) {
    let mut known = BTreeMap::new();
    let mut pause = REOPEN.0;
    loop {
        match watch(&hop, registry.as_ref(), &mut known).await {
            Ok(()) => pause = REOPEN.0,
            Err(error) => debug!(%error, "services are not watched"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(REOPEN.1);
    }
}

async fn watch(hop: &Hop, registry: &dyn RegistryApi, known: &mut BTreeMap<ServiceName, Vec<Match>>) -> Result<()> {
    let query = ServiceQuery { watch: true, ..ServiceQuery::default() };
    let mut updates = registry.find_services(query, Caller::default()).await?;
    while let Some(update) = updates.try_next().await? {
        // A service that is gone chooses nobody, but it takes nothing away from those who are connected.
        if !update.deleted && changed(known, &update.service) {
            review(hop, registry, &update.service).await;
        }
    }
    Ok(())
}

fn changed(known: &mut BTreeMap<ServiceName, Vec<Match>>, service: &NetworkService) -> bool {
    if known.get(&service.name) == Some(&service.matches) {
        return false;
    }
    if known.len() < MAX_REMEMBERED || known.contains_key(&service.name) {
        known.insert(service.name.clone(), service.matches.clone());
    }
    true
}

async fn review(hop: &Hop, registry: &dyn RegistryApi, service: &NetworkService) {
    for connection in hop.monitors().snapshot() {
        let Some(name) = connection.network_service_endpoint_name.as_ref().filter(|_| connection.network_service == service.name) else {
            continue;
        };
        // An endpoint that cannot be found now may be back soon: that is for others to judge.
        let Ok(Some((endpoint, _))) = named(registry, name).await else { continue };
        if matching::endpoints(service, &connection.labels, std::slice::from_ref(&endpoint)).candidates.is_empty() {
            info!(connection = %connection.id, endpoint = %name, "the service has changed and does not choose this endpoint any more");
            hop.end(&connection.id);
        }
    }
}

//! One-shot questions to the registry.

use crate::role::Candidate;
use futures::TryStreamExt;
use nsm_api::*;
use std::time::Duration;

/// Services or endpoints read for one question; more cannot be chosen among sensibly.
pub(super) const MAX_FOUND: usize = 10_000;
/// Longest wait for one answer of the registry.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service, or the reason why there is none.
pub(super) async fn service(registry: &dyn RegistryApi, connection: &Connection) -> Result<NetworkService> {
    let name = &connection.network_service;
    let object = || format!("network service {:?}", name.as_str());
    let query = ServiceQuery { name: Some(name.clone()), ..ServiceQuery::default() };
    let mut found = registry.find_services(query, Caller::within(PATIENCE)).await?;
    let mut other = None;
    while let Some(update) = found.try_next().await? {
        let (wanted, has) = (&connection.payload, &update.service.payload);
        if update.deleted || update.service.name != *name {
            continue;
        }
        if *wanted == Payload::Unset || wanted == has {
            return Ok(update.service);
        }
        other = Some(has.clone());
    }
    Err(match other {
        Some(has) => Error::new(
            Kind::NotFound,
            object(),
            format!("carries {}, the client asks for {}", has.as_str(), connection.payload.as_str()),
            "leave the payload to the service, or ask for the one it has",
        ),
        None => Error::new(
            Kind::NotFound,
            object(),
            "is not found in the registry",
            "register it with 'nsm apply -f FILE', or correct the name",
        ),
    })
}

/// The same process, by its registered name, at the socket where it listens now; `None` if it is where it was, or unknown.
/// What goes to another node has an address that lasts.
pub(super) async fn moved(registry: &dyn RegistryApi, candidate: &Candidate) -> Option<Candidate> {
    let name = candidate.registered.clone().filter(|_| matches!(candidate.target, Target::Inode(_)))?;
    let query = EndpointQuery { name: Some(name.clone()), ..EndpointQuery::default() };
    let found = endpoints(registry, query).await.ok()?;
    let (endpoint, socket) = found.into_iter().find(|(endpoint, _)| endpoint.name == name)?;
    let target = Target::parse(&endpoint.url).ok().filter(|target| *target != candidate.target)?;
    Some(Candidate { target, socket, ..candidate.clone() })
}

/// Both at the same time, for neither needs the other's answer. A missing service is the better reason.
pub(super) async fn service_and_endpoints(
    registry: &dyn RegistryApi,
    connection: &Connection,
    query: EndpointQuery,
) -> Result<(NetworkService, Vec<(NetworkServiceEndpoint, Files)>)> {
    let (service, endpoints) = futures::future::join(service(registry, connection), endpoints(registry, query)).await;
    Ok((service?, endpoints?))
}

/// Endpoints with the sockets of local ones.
pub(super) async fn endpoints(registry: &dyn RegistryApi, query: EndpointQuery) -> Result<Vec<(NetworkServiceEndpoint, Files)>> {
    let mut stream = registry.find_endpoints(query, Caller::within(PATIENCE)).await?;
    let mut found = Vec::new();
    while let Some((update, files)) = stream.try_next().await? {
        if !update.deleted && found.len() < MAX_FOUND {
            found.push((update.endpoint, files));
        }
    }
    Ok(found)
}

//! A manager's choice of a forwarder of its own node. The forwarder then chooses the endpoint.

use super::{lookup, pass_on, take_over};
use crate::{
    matching,
    role::{Candidate, Draft, Next, Onward, Sent},
};
use async_trait::async_trait;
use nsm_api::*;
use std::sync::Arc;
use tracing::debug;

/// Finds forwarders that registered through this manager.
pub struct Forwarders {
    /// The manager's own view of the registry, with local addresses.
    pub registry: Arc<dyn RegistryApi>,
    /// The service under which forwarders register.
    pub service: ServiceName,
    /// The manager's own address in the registry.
    pub own_url: String,
}

#[async_trait]
impl Onward for Forwarders {
    async fn next(&self, draft: &Draft, before: Option<&Sent>) -> Result<Next> {
        // The forwarder in use first, or the one that the path names after a restart of this process. Whoever wants to go
        // elsewhere may be running from it.
        let connection = &draft.connection;
        let in_use = before.map(|sent| &sent.candidate);
        let named = connection.path.next().map(|segment| segment.name.as_str());
        let mut candidates = match (self.able(connection).await, in_use) {
            (Ok(candidates), _) => candidates,
            // Losing the registry, or a registry that has lost its memory, freezes the choice; it does not undo it.
            (Err(error), Some(in_use)) => {
                debug!(%error, "the forwarder in use stays");
                Vec::from([in_use.clone()])
            }
            (Err(error), None) => return Err(error),
        };
        let preferred = in_use.and_then(|in_use| in_use.registered.as_ref()).map(EndpointName::as_str).or(named);
        let preferred = preferred.filter(|_| connection.state != State::ReselectRequested);
        let is_preferred =
            |candidate: &Candidate| preferred.is_some() && candidate.registered.as_ref().map(EndpointName::as_str) == preferred;
        if let Some(in_use) = in_use.filter(|_| !candidates.iter().any(is_preferred)) {
            candidates.insert(0, in_use.clone());
        }
        candidates.sort_by_key(|candidate| !is_preferred(candidate));
        Ok(Next::Hops(candidates))
    }

    fn request(&self, draft: &Draft, _: &Candidate, _: Option<&Sent>) -> Result<Request> {
        Ok(pass_on(draft))
    }

    fn accept(&self, draft: &mut Draft, answer: &Answer) {
        take_over(draft, answer);
    }

    async fn moved(&self, candidate: &Candidate) -> Option<Candidate> {
        lookup::moved(self.registry.as_ref(), candidate).await
    }
}

impl Forwarders {
    /// All forwarders of this node that may carry the connection, or why there is none.
    async fn able(&self, connection: &Connection) -> Result<Vec<Candidate>> {
        let query = EndpointQuery { services: vec![self.service.clone()], url: self.own_url.clone(), ..EndpointQuery::default() };
        // Both at the same time, for neither needs the other's answer. A missing service is the better reason.
        let registry = self.registry.as_ref();
        let (service, found) = futures::future::join(lookup::service(registry, connection), lookup::endpoints(registry, query)).await;
        let (service, found) = (service?, found?);
        let all: Vec<NetworkServiceEndpoint> = found.iter().map(|(endpoint, _)| endpoint.clone()).collect();
        let able = matching::forwarders(&service, &self.service, &connection.labels, &all);
        if able.is_empty() {
            let reason = format!("none of the {} forwarders of this node may carry it", all.len());
            let object = format!("network service {:?}", connection.network_service.as_str());
            return Err(Error::new(
                Kind::NotFound,
                object,
                reason,
                "start a forwarder on this node with the labels that the service's metadata wants (default p2p:true)",
            ));
        }
        let candidate = |endpoint: &NetworkServiceEndpoint| {
            let socket = found.iter().find(|(other, _)| other.name == endpoint.name).map(|(_, files)| files.clone()).unwrap_or_default();
            let target = Target::parse(&endpoint.url)?;
            Ok(Candidate { target, socket, registered: Some(endpoint.name.clone()), payload: service.payload.clone() })
        };
        able.into_iter().map(candidate).collect()
    }
}

//! One-shot questions to the registry.

use crate::{
    matching::{self, Selection, Want},
    role::Candidate,
};
use futures::TryStreamExt;
use nsm_api::*;
use std::time::Duration;

/// Services or endpoints read for one question; more cannot be chosen among sensibly.
pub(super) const MAX_FOUND: usize = 10_000;
/// Questions about labels that one Request may ask. Rules that would need more are answered from all endpoints of the service.
pub const MAX_QUESTIONS: usize = 32;
/// Longest wait for one answer of the registry.
const PATIENCE: Duration = Duration::from_secs(5);

/// An endpoint, with its socket if it is a local one.
pub(crate) type Found = (NetworkServiceEndpoint, Files);

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

/// The endpoint of this name.
pub(crate) async fn named(registry: &dyn RegistryApi, name: &EndpointName) -> Result<Option<Found>> {
    let query = EndpointQuery { name: Some(name.clone()), ..EndpointQuery::default() };
    let found = endpoints(registry, query).await?;
    Ok(found.into_iter().find(|(endpoint, _)| endpoint.name == *name))
}

/// The same process, by its registered name, at the socket where it listens now; `None` if it is where it was, or unknown.
/// What goes to another node has an address that lasts.
pub(super) async fn moved(registry: &dyn RegistryApi, candidate: &Candidate) -> Option<Candidate> {
    let name = candidate.registered.as_ref().filter(|_| matches!(candidate.target, Target::Inode(_)))?;
    let (endpoint, socket) = named(registry, name).await.ok()??;
    let target = Target::parse(&endpoint.url).ok().filter(|target| *target != candidate.target)?;
    Some(Candidate { target, socket, ..candidate.clone() })
}

/// Endpoints with the sockets of local ones, in the order of their names: whose turn it is must not depend on the registry.
pub(super) async fn endpoints(registry: &dyn RegistryApi, query: EndpointQuery) -> Result<Vec<Found>> {
    let mut stream = registry.find_endpoints(query, Caller::within(PATIENCE)).await?;
    let mut found: Vec<Found> = Vec::new();
    while let Some((update, files)) = stream.try_next().await? {
        if !update.deleted && found.len() < MAX_FOUND {
            found.push((update.endpoint, files));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    Ok(found)
}

/// The endpoints that `service` offers to a client with `labels`, of those that `present` lets pass. The registry is
/// asked only for what the rules want, so the cost does not depend on other endpoints.
pub(super) async fn matched(
    registry: &dyn RegistryApi,
    service: &NetworkService,
    labels: &Labels,
    present: impl Fn(&NetworkServiceEndpoint) -> bool,
) -> Result<Selection<Found>> {
    let mut questions = Questions { registry, service, present, left: MAX_QUESTIONS, all: None };
    let mut selection = Selection::default();
    for rule in matching::plan(service, labels) {
        let rule = match rule {
            Ok(rule) => rule,
            Err(reason) => {
                selection.reasons.push(reason);
                continue;
            }
        };
        for want in &rule.wants {
            let found = questions.ask(want).await?;
            selection.candidates.extend(found.into_iter().map(|found| want.candidate(found)));
        }
        selection.reasons.push(rule.reason(selection.candidates.len()));
        if !selection.candidates.is_empty() || !rule.goes_on {
            break;
        }
    }
    Ok(selection)
}

/// What one Request may still ask, and what it has been told.
struct Questions<'a, P> {
    registry: &'a dyn RegistryApi,
    service: &'a NetworkService,
    present: P,
    left: usize,
    all: Option<Vec<Found>>,
}

impl<P: Fn(&NetworkServiceEndpoint) -> bool> Questions<'_, P> {
    async fn ask(&mut self, want: &Want) -> Result<Vec<Found>> {
        for selector in &want.selectors {
            let found = self.selected(selector).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    async fn selected(&mut self, selector: &Labels) -> Result<Vec<Found>> {
        // An endpoint without a label equals one where it is empty, which no registry knows how to look for.
        let asked: Labels =
            selector.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.clone(), value.clone())).collect();
        let fits = |(endpoint, _): &Found| (self.present)(endpoint) && matching::selects(self.service, selector, endpoint);
        if self.left == 0 || asked.is_empty() {
            if self.all.is_none() {
                self.all = Some(endpoints(self.registry, self.query()).await?);
            }
            return Ok(self.all.iter().flatten().filter(|found| fits(found)).cloned().collect());
        }
        self.left -= 1;
        let query = EndpointQuery { labels: [(self.service.name.clone(), asked)].into(), ..self.query() };
        let mut found = endpoints(self.registry, query).await?;
        found.retain(fits);
        Ok(found)
    }

    fn query(&self) -> EndpointQuery {
        EndpointQuery { services: vec![self.service.name.clone()], ..EndpointQuery::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use nsm_registry::{MemoryEngine, Registry};
    use std::{
        sync::{Arc, Mutex},
        time::UNIX_EPOCH,
    };

    /// A registry that notes what it is asked, and how much it answers.
    struct Noting {
        registry: Registry,
        asked: Mutex<Vec<(EndpointQuery, usize)>>,
    }

    #[async_trait]
    impl RegistryApi for Noting {
        async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
            self.registry.register_service(service, caller).await
        }
        async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
            self.registry.find_services(query, caller).await
        }
        async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
            self.registry.unregister_service(service, caller).await
        }
        async fn register_endpoint(
            &self,
            endpoint: NetworkServiceEndpoint,
            files: Files,
            caller: Caller,
        ) -> Result<NetworkServiceEndpoint> {
            self.registry.register_endpoint(endpoint, files, caller).await
        }
        async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
            let found: Vec<_> = self.registry.find_endpoints(query.clone(), caller).await?.try_collect().await?;
            self.asked.lock().unwrap().push((query, found.len()));
            Ok(Box::pin(futures::stream::iter(found.into_iter().rev().map(Ok))))
        }
        async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
            self.registry.unregister_endpoint(endpoint, caller).await
        }
    }

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// One endpoint on each of so many nodes, and a supplier.
    async fn mesh(nodes: usize) -> Noting {
        let registry = Registry::new(Arc::new(MemoryEngine::new()), Arc::new(|| UNIX_EPOCH));
        let service: ServiceName = "svc".parse().unwrap();
        let on_nodes = (0..nodes).map(|node| (format!("e{node:05}"), format!("nodeName=n{node}")));
        for (name, text) in on_nodes.chain([("supplier".to_owned(), "supplier=true".to_owned())]) {
            let mut endpoint = NetworkServiceEndpoint::new(name.parse().unwrap(), vec![service.clone()], "tcp://10.0.0.1:1");
            endpoint.network_service_labels = [(service.clone(), labels(&text))].into();
            registry.register_endpoint(endpoint, Files::default(), Caller::default()).await.unwrap();
        }
        Noting { registry, asked: Mutex::default() }
    }

    fn service(rules: &[&str]) -> NetworkService {
        let mut service = NetworkService::new("svc".parse().unwrap(), Payload::Ip);
        let rule = |text: &&str| Match {
            routes: text.split('|').map(|route| Destination { destination_selector: labels(route), ..Destination::default() }).collect(),
            ..Match::default()
        };
        service.matches = rules.iter().map(rule).collect();
        service
    }

    async fn chosen(registry: &Noting, rules: &[&str], client: &str) -> Vec<String> {
        registry.asked.lock().unwrap().clear();
        let selection = matched(registry, &service(rules), &labels(client), |_| true).await.unwrap();
        selection.candidates.iter().map(|candidate| candidate.endpoint.0.name.to_string()).collect()
    }

    /// T-13, M-06: one question that one endpoint answers, whatever the number of nodes.
    #[tokio::test]
    async fn t13_a_choice_reads_only_what_matches() {
        let rules = ["nodeName={{ .nodeName }}", "supplier=true"];
        for nodes in [10, 5000] {
            let registry = mesh(nodes).await;
            assert_eq!(chosen(&registry, &rules, "nodeName=n7").await, ["e00007"]);
            assert_eq!(registry.asked.lock().unwrap().iter().map(|(_, found)| *found).collect::<Vec<_>>(), [1]);
            assert_eq!(chosen(&registry, &rules, "nodeName=elsewhere").await, ["supplier"]);
            assert_eq!(registry.asked.lock().unwrap().iter().map(|(_, found)| *found).sum::<usize>(), 1);
        }
    }

    /// M-03, M-07, M-08, and the order: by destination, then by name, whatever order the registry answers in.
    #[tokio::test]
    async fn what_is_asked_means_the_same_as_matching_all() {
        let registry = mesh(20).await;
        let all: Vec<_> = endpoints(&registry, EndpointQuery::default()).await.unwrap().into_iter().map(|(endpoint, _)| endpoint).collect();
        for rules in [
            &[][..],
            &[""],
            &["zone="],
            &["nodeName=n3|nodeName=n1"],
            &["nodeName={{ .nodeName }},zone={{index . \"zone\"}}"],
            &["nodeName={{ .nodeName }}|supplier=true"],
            &["app=none", "supplier=true"],
            &["nodeName={{"],
        ] {
            for client in ["", "nodeName=n4", "nodeName=n4,zone=z"] {
                let by_list = matching::endpoints(&service(rules), &labels(client), &all);
                let names: Vec<_> = by_list.candidates.iter().map(|candidate| candidate.endpoint.name.to_string()).collect();
                assert_eq!(chosen(&registry, rules, client).await, names, "{rules:?} for {client:?}");
            }
        }
    }

    /// A service whose rules ask for more than a Request may: the same answer from one list, in bounded work.
    #[tokio::test]
    async fn hostile_rules_are_answered_from_one_list() {
        let registry = mesh(50).await;
        let routes: Vec<_> = (0..1000).map(|node| format!("nodeName=n{node}")).collect();
        assert_eq!(chosen(&registry, &[&routes.join("|")], "").await.len(), 50);
        assert_eq!(registry.asked.lock().unwrap().len(), MAX_QUESTIONS + 1);
    }
}

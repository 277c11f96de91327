//! Which records answer which query: the rules of Find, as data.

use crate::engine::{Record, Term};
use nsm_api::{EndpointName, EndpointQuery, Labels, NetworkService, NetworkServiceEndpoint, Payload, ServiceName, ServiceQuery};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

impl Record for NetworkService {
    type Name = ServiceName;
    type Query = ServiceQuery;

    fn object(name: &ServiceName) -> String {
        format!("network service {name:?}")
    }
    fn name(&self) -> &ServiceName {
        &self.name
    }
    /// None: services are few beside endpoints, and are asked for by name.
    fn terms(&self) -> Vec<Term> {
        Vec::new()
    }
    fn matches(&self, query: &ServiceQuery) -> bool {
        query.name.as_ref().is_none_or(|name| *name == self.name)
            && (query.payload == Payload::Unset || query.payload == self.payload)
            && (query.matches.is_empty() || query.matches == self.matches)
    }
    fn name_in(query: &ServiceQuery) -> Option<&ServiceName> {
        query.name.as_ref()
    }
    fn terms_in(_: &ServiceQuery) -> Vec<Term> {
        Vec::new()
    }
}

impl Record for NetworkServiceEndpoint {
    type Name = EndpointName;
    type Query = EndpointQuery;

    fn object(name: &EndpointName) -> String {
        format!("network service endpoint {name:?}")
    }
    fn name(&self) -> &EndpointName {
        &self.name
    }
    fn terms(&self) -> Vec<Term> {
        terms(&self.network_service_names, &self.network_service_labels)
    }
    fn matches(&self, query: &EndpointQuery) -> bool {
        query.name.as_ref().is_none_or(|name| *name == self.name)
            && query.services.iter().all(|service| self.network_service_names.contains(service))
            && query.labels.iter().all(|(service, wanted)| contains(self.network_service_labels.get(service), wanted))
            && (query.expiration_time.is_none() || seconds(query.expiration_time) == seconds(self.expiration_time))
            && self.url.contains(&query.url)
    }
    fn name_in(query: &EndpointQuery) -> Option<&EndpointName> {
        query.name.as_ref()
    }
    fn terms_in(query: &EndpointQuery) -> Vec<Term> {
        terms(&query.services, &query.labels)
    }
}

fn terms(services: &[ServiceName], labels: &BTreeMap<ServiceName, Labels>) -> Vec<Term> {
    let provided = services.iter().cloned().map(Term::Service);
    let labelled = labels.keys().cloned().map(Term::Labelled);
    let each = labels
        .iter()
        .flat_map(|(service, labels)| labels.iter().map(|(key, value)| Term::Label(service.clone(), key.clone(), value.clone())));
    provided.chain(labelled).chain(each).collect()
}

/// Whether `present` is there and has every label of `wanted`. An absent label is not an empty one here.
fn contains(present: Option<&Labels>, wanted: &Labels) -> bool {
    present.is_some_and(|present| wanted.iter().all(|(key, value)| present.get(key) == Some(value)))
}

/// Whole seconds since 1970, rounded down, also before it.
fn seconds(time: Option<SystemTime>) -> Option<i128> {
    let floor = |before: Duration| -(before.as_secs() as i128) - i128::from(before.subsec_nanos() > 0);
    time.map(|time| time.duration_since(UNIX_EPOCH).map_or_else(|before| floor(before.duration()), |after| after.as_secs() as i128))
}

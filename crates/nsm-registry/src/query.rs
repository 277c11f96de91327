//! Which records answer which query: the rules of Find, as data. And how little of a record an index holds.

use crate::engine::{Record, Term};
use nsm_api::{EndpointName, EndpointQuery, Labels, NetworkService, NetworkServiceEndpoint, Payload, ServiceName, ServiceQuery, Unknown};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

impl Record for NetworkService {
    type Name = ServiceName;
    type Query = ServiceQuery;
    /// As it is: services are few.
    type Slim = NetworkService;

    fn object(name: &ServiceName) -> String {
        format!("network service {name:?}")
    }
    fn slim(&self) -> NetworkService {
        self.clone()
    }
    fn whole(slim: &NetworkService) -> NetworkService {
        slim.clone()
    }
    fn name_of(slim: &NetworkService) -> &ServiceName {
        &slim.name
    }
    fn answers(slim: &NetworkService, query: &ServiceQuery) -> bool {
        slim.matches(query)
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
    type Slim = SlimEndpoint;

    fn object(name: &EndpointName) -> String {
        format!("network service endpoint {name:?}")
    }
    fn slim(&self) -> SlimEndpoint {
        SlimEndpoint::of(self)
    }
    fn whole(slim: &SlimEndpoint) -> NetworkServiceEndpoint {
        slim.whole()
    }
    fn name_of(slim: &SlimEndpoint) -> &EndpointName {
        &slim.name
    }
    fn answers(slim: &SlimEndpoint, query: &EndpointQuery) -> bool {
        fits(query, (&slim.name, &slim.services, &slim.url, slim.expiration_time), |service, wanted| slim.has(service, wanted))
    }
    fn name(&self) -> &EndpointName {
        &self.name
    }
    fn terms(&self) -> Vec<Term> {
        terms(&self.network_service_names, &self.network_service_labels)
    }
    fn matches(&self, query: &EndpointQuery) -> bool {
        let has = |service: &ServiceName, wanted: &Labels| contains(self.network_service_labels.get(service), wanted);
        fits(query, (&self.name, &self.network_service_names, &self.url, self.expiration_time), has)
    }
    fn name_in(query: &EndpointQuery) -> Option<&EndpointName> {
        query.name.as_ref()
    }
    fn terms_in(query: &EndpointQuery) -> Vec<Term> {
        terms(&query.services, &query.labels)
    }
}

/// An endpoint without half-empty trees: a map of two labels takes a thousand bytes, their text a hundred.
pub struct SlimEndpoint {
    name: EndpointName,
    services: Box<[ServiceName]>,
    labels: Box<[(ServiceName, SlimLabels)]>,
    url: Box<str>,
    expiration_time: Option<SystemTime>,
    initial_registration_time: Option<SystemTime>,
    path_ids: Box<[Box<str>]>,
    unknown: Unknown,
}

type SlimLabels = Box<[(Box<str>, Box<str>)]>;

impl SlimEndpoint {
    fn of(endpoint: &NetworkServiceEndpoint) -> SlimEndpoint {
        let labels = |labels: &Labels| labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        // A name that is there already is not held twice.
        let services: Box<[ServiceName]> = endpoint.network_service_names.as_slice().into();
        let same = |name: &ServiceName| services.iter().find(|service| *service == name).unwrap_or(name).clone();
        SlimEndpoint {
            name: endpoint.name.clone(),
            labels: endpoint.network_service_labels.iter().map(|(service, set)| (same(service), labels(set))).collect(),
            services,
            url: endpoint.url.as_str().into(),
            expiration_time: endpoint.expiration_time,
            initial_registration_time: endpoint.initial_registration_time,
            path_ids: endpoint.path_ids.iter().map(|id| id.as_str().into()).collect(),
            unknown: endpoint.unknown.clone(),
        }
    }

    fn has(&self, service: &ServiceName, wanted: &Labels) -> bool {
        let labels = self.labels.iter().find(|(of, _)| of == service).map(|(_, labels)| labels);
        let holds = |key: &str, value: &str| labels.is_some_and(|labels| labels.iter().any(|(k, v)| **k == *key && **v == *value));
        labels.is_some() && wanted.iter().all(|(key, value)| holds(key, value))
    }

    fn whole(&self) -> NetworkServiceEndpoint {
        let labels = |labels: &SlimLabels| labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        NetworkServiceEndpoint {
            name: self.name.clone(),
            network_service_names: self.services.to_vec(),
            network_service_labels: self.labels.iter().map(|(service, set)| (service.clone(), labels(set))).collect(),
            url: self.url.to_string(),
            expiration_time: self.expiration_time,
            initial_registration_time: self.initial_registration_time,
            path_ids: self.path_ids.iter().map(ToString::to_string).collect(),
            unknown: self.unknown.clone(),
        }
    }
}

/// The rule for endpoints. `has` tells whether one has these labels for a service.
fn fits(
    query: &EndpointQuery,
    (name, services, url, end): (&EndpointName, &[ServiceName], &str, Option<SystemTime>),
    has: impl Fn(&ServiceName, &Labels) -> bool,
) -> bool {
    query.name.as_ref().is_none_or(|wanted| wanted == name)
        && query.services.iter().all(|service| services.contains(service))
        && query.labels.iter().all(|(service, wanted)| has(service, wanted))
        && (query.expiration_time.is_none() || seconds(query.expiration_time) == seconds(end))
        && url.contains(&query.url)
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

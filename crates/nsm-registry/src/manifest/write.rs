//! The present form of services and endpoints, as YAML.

use super::API_VERSION;
use nsm_api::{Destination, Labels, Match, NetworkService, NetworkServiceEndpoint, Payload};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Document<'a, S> {
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    kind: &'a str,
    metadata: Metadata,
    spec: S,
}

#[derive(Serialize)]
struct Metadata {
    name: String,
}

#[derive(Serialize)]
struct ServiceSpec<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "is_unset")]
    payload: &'a Payload,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    matches: Vec<Rule<'a>>,
}

#[derive(Serialize)]
struct Rule<'a> {
    source_selector: &'a Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route<'a>>,
    #[serde(skip_serializing_if = "is_default")]
    fallthrough: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Labelled<'a>>,
}

#[derive(Serialize)]
struct Route<'a> {
    destination_selector: &'a Labels,
    #[serde(skip_serializing_if = "is_default")]
    weight: u32,
}

#[derive(Serialize)]
struct Labelled<'a> {
    labels: &'a Labels,
}

#[derive(Serialize)]
struct EndpointSpec<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    network_service_names: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    network_service_labels: BTreeMap<&'a str, Labelled<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
}

fn is_unset(payload: &&Payload) -> bool {
    **payload == Payload::Unset
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A service in the present form, as one document.
pub fn service_to_yaml(service: &NetworkService) -> String {
    let name = service.name.as_str();
    let matches = service.matches.iter().map(Rule::from).collect();
    document("NetworkService", name, ServiceSpec { name: unlike_kubernetes(name), payload: &service.payload, matches })
}

/// An endpoint in the present form, as one document, without what the registry itself adds to it.
pub fn endpoint_to_yaml(endpoint: &NetworkServiceEndpoint) -> String {
    let name = endpoint.name.as_str();
    let labels = endpoint.network_service_labels.iter();
    let spec = EndpointSpec {
        name: unlike_kubernetes(name),
        network_service_names: endpoint.network_service_names.iter().map(|name| name.as_str()).collect(),
        network_service_labels: labels.map(|(service, labels)| (service.as_str(), Labelled { labels })).collect(),
        url: &endpoint.url,
    };
    document("NetworkServiceEndpoint", name, spec)
}

/// One match as the only entry of a list.
pub(super) fn match_to_yaml(rule: &Match) -> String {
    yaml(&[Rule::from(rule)])
}

/// A name that Kubernetes accepts for an object, as like `name` as can be.
pub(super) fn kubernetes_name(name: &str) -> String {
    let letter = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '.' | '-') => c,
        _ => '-',
    };
    let text: String = name.chars().map(letter).collect();
    let labels = text.split('.').map(|label| label.trim_matches('-')).filter(|label| !label.is_empty()).collect::<Vec<_>>();
    if labels.is_empty() { "x".to_owned() } else { labels.join(".") }
}

fn unlike_kubernetes(name: &str) -> Option<&str> {
    (kubernetes_name(name) != name).then_some(name)
}

fn document<S: Serialize>(kind: &str, name: &str, spec: S) -> String {
    yaml(&Document { api_version: API_VERSION, kind, metadata: Metadata { name: kubernetes_name(name) }, spec })
}

fn yaml<T: Serialize>(value: &T) -> String {
    serde_yaml_ng::to_string(value).expect("texts, numbers, lists and maps with text keys can always be written")
}

impl<'a> From<&'a Match> for Rule<'a> {
    fn from(rule: &'a Match) -> Rule<'a> {
        Rule {
            source_selector: &rule.source_selector,
            routes: rule.routes.iter().map(Route::from).collect(),
            fallthrough: rule.fallthrough,
            metadata: rule.metadata.as_ref().map(|labels| Labelled { labels }),
        }
    }
}

impl<'a> From<&'a Destination> for Route<'a> {
    fn from(route: &'a Destination) -> Route<'a> {
        Route { destination_selector: &route.destination_selector, weight: route.weight }
    }
}

//! Services and endpoints, and the questions about them.

use crate::{EndpointName, Labels, Payload, ServiceName, Unknown};
use serde::Serialize;
use std::{collections::BTreeMap, time::SystemTime};

/// Where a match sends a client: endpoints whose labels contain the selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// Labels the endpoint must advertise for the service; values may be templates over the client's labels.
    pub destination_selector: Labels,
    /// Share of the clients relative to the match's other destinations; 0 means unsaid.
    pub weight: u32,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// One rule of a service: which clients, to where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// Labels the client must have; empty matches every client.
    pub source_selector: Labels,
    /// Where they go; the union of all.
    pub routes: Vec<Destination>,
    /// Go on to the next match when this one yields nobody.
    pub fallthrough: bool,
    /// Labels the forwarder must have; `None` when the match does not speak of forwarders.
    pub metadata: Option<Labels>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// A network service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkService {
    /// Its name.
    pub name: ServiceName,
    /// What it carries.
    pub payload: Payload,
    /// Its rules, in order.
    pub matches: Vec<Match>,
    /// SPIFFE IDs along the registration path; the first is the owner.
    pub path_ids: Vec<String>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl NetworkService {
    /// A service without rules.
    pub fn new(name: ServiceName, payload: Payload) -> NetworkService {
        NetworkService { name, payload, matches: Vec::new(), path_ids: Vec::new(), unknown: Unknown::default() }
    }
}

/// An endpoint that provides services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkServiceEndpoint {
    /// Its name, unique in the registry.
    pub name: EndpointName,
    /// The services it provides.
    pub network_service_names: Vec<ServiceName>,
    /// Its labels for each service.
    pub network_service_labels: BTreeMap<ServiceName, Labels>,
    /// Where it is reached.
    pub url: String,
    /// When the record ends unless it is registered again.
    #[serde(serialize_with = "crate::convert::serialize_time")]
    pub expiration_time: Option<SystemTime>,
    /// When the name was first registered.
    #[serde(serialize_with = "crate::convert::serialize_time")]
    pub initial_registration_time: Option<SystemTime>,
    /// SPIFFE IDs along the registration path; the first is the owner.
    pub path_ids: Vec<String>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl NetworkServiceEndpoint {
    /// An endpoint without labels or times.
    pub fn new(name: EndpointName, services: Vec<ServiceName>, url: impl Into<String>) -> NetworkServiceEndpoint {
        NetworkServiceEndpoint {
            name,
            network_service_names: services,
            network_service_labels: BTreeMap::new(),
            url: url.into(),
            expiration_time: None,
            initial_registration_time: None,
            path_ids: Vec::new(),
            unknown: Unknown::default(),
        }
    }
}

/// Which services; every part that is absent matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceQuery {
    /// Exact name.
    pub name: Option<ServiceName>,
    /// Exact payload.
    pub payload: Payload,
    /// Exactly these rules, when not empty.
    pub matches: Vec<Match>,
    /// Keep the stream open and send changes.
    pub watch: bool,
}

/// Which endpoints; every part that is absent matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointQuery {
    /// Exact name.
    pub name: Option<EndpointName>,
    /// All of these services.
    pub services: Vec<ServiceName>,
    /// For each service, all of these labels.
    pub labels: BTreeMap<ServiceName, Labels>,
    /// A part of the URL, when not empty.
    pub url: String,
    /// Exactly this expiration, to the second.
    pub expiration_time: Option<SystemTime>,
    /// Keep the stream open and send changes.
    pub watch: bool,
}

/// One message of a service watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUpdate {
    /// The service as it is, or was when it ended.
    pub service: NetworkService,
    /// It ended.
    pub deleted: bool,
}

/// One message of an endpoint watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUpdate {
    /// The endpoint as it is, or was when it ended.
    pub endpoint: NetworkServiceEndpoint,
    /// It ended.
    pub deleted: bool,
}

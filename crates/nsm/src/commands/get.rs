//! `nsm get`: what is there now, as a table or as a JSON list of objects with the field names of the protocol.

use super::{
    mesh::{self, REGISTRY_URL, REQUEST_TIMEOUT, Way},
    table,
};
use crate::{
    context::Context,
    exit::Exit,
    roles::process::{CONNECT_TO, WORKLOAD_API},
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Connection, EndpointQuery, NetworkService, NetworkServiceEndpoint, Result, ServiceName, ServiceQuery, State};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

pub(crate) const SERVICE: Opt = Opt::new("service", "", "", Shape::List, "Only of these network services");
const FORWARDER: Opt = Opt::new(
    "forwarder-network-service-name",
    "NSM_FORWARDER_NETWORK_SERVICE_NAME",
    "forwarder",
    Shape::Text,
    "The service under which forwarders register",
);
pub(crate) const REGISTRY_OPTIONS: &[Opt] = &[REGISTRY_URL, CONNECT_TO, FORWARDER, REQUEST_TIMEOUT, WORKLOAD_API];
pub(crate) const ENDPOINT_OPTIONS: &[Opt] = &[SERVICE, REGISTRY_URL, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];
pub(crate) const CONNECTION_OPTIONS: &[Opt] = &[SERVICE, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];

pub(crate) async fn services(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    settings.finish()?;
    let found = mesh::find_services(&*way.registry().await?, ServiceQuery::default(), &way).await?;
    table::print(context.output, ["NAME", "PAYLOAD", "MATCHES"], &found, service_row)?;
    Ok(Exit::Ok)
}

pub(crate) async fn endpoints(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let query = EndpointQuery { services: settings.list(SERVICE.flag), ..EndpointQuery::default() };
    settings.finish()?;
    let found = mesh::find_endpoints(&*way.registry().await?, query, &way).await?;
    table::print(context.output, ENDPOINT_HEAD, &found, endpoint_row)?;
    Ok(Exit::Ok)
}

pub(crate) async fn connections(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let services: Vec<ServiceName> = settings.list(SERVICE.flag);
    settings.finish()?;
    let found = mesh::connections(&*way.manager().await?, &services, &way).await?;
    table::print(context.output, CONNECTION_HEAD, &found, connection_row)?;
    Ok(Exit::Ok)
}

pub(crate) async fn nodes(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let forwarder: ServiceName = settings.text(FORWARDER.flag);
    settings.finish()?;
    let found = mesh::find_endpoints(&*way.registry().await?, EndpointQuery::default(), &way).await?;
    let nodes = group(&found, &forwarder);
    table::print(context.output, ["MANAGER", "NODE", "FORWARDERS", "ENDPOINTS"], &nodes, |node| {
        [node.url.clone(), table::commas(&node.node_names), table::commas(&node.forwarders), table::commas(&node.endpoints)]
    })?;
    Ok(Exit::Ok)
}

/// Registrations behind one URL: those of one manager.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct NodeRow {
    url: String,
    node_names: BTreeSet<String>,
    forwarders: Vec<String>,
    endpoints: Vec<String>,
}

fn group(endpoints: &[NetworkServiceEndpoint], forwarder: &ServiceName) -> Vec<NodeRow> {
    let mut nodes: BTreeMap<&str, NodeRow> = BTreeMap::new();
    for endpoint in endpoints {
        let url = endpoint.url.as_str();
        let empty = || NodeRow { url: url.to_owned(), node_names: BTreeSet::new(), forwarders: Vec::new(), endpoints: Vec::new() };
        let node = nodes.entry(url).or_insert_with(empty);
        node.node_names.extend(endpoint.network_service_labels.values().filter_map(|labels| labels.get("nodeName")).cloned());
        let list = if endpoint.network_service_names.contains(forwarder) { &mut node.forwarders } else { &mut node.endpoints };
        list.push(endpoint.name.to_string());
    }
    nodes.into_values().collect()
}

pub(crate) fn service_row(service: &NetworkService) -> [String; 3] {
    [service.name.to_string(), service.payload.as_str().to_owned(), service.matches.len().to_string()]
}

pub(crate) const ENDPOINT_HEAD: [&str; 5] = ["NAME", "SERVICES", "LABELS", "URL", "EXPIRES"];

pub(crate) fn endpoint_row(endpoint: &NetworkServiceEndpoint) -> [String; 5] {
    let labels: BTreeSet<String> = endpoint.network_service_labels.values().map(table::labels).filter(|text| !text.is_empty()).collect();
    [
        endpoint.name.to_string(),
        table::commas(&endpoint.network_service_names),
        table::commas(labels),
        endpoint.url.clone(),
        mesh::relative(endpoint.expiration_time, SystemTime::now()),
    ]
}

pub(crate) const CONNECTION_HEAD: [&str; 7] = ["ID", "SERVICE", "STATE", "MECHANISM", "CLIENT", "ENDPOINT", "PATH"];

pub(crate) fn connection_row(connection: &Connection) -> [String; 7] {
    let ip = &connection.context.ip_context;
    let path = connection.path.segments.iter().map(|segment| segment.name.as_str()).collect::<Vec<_>>().join(" > ");
    [
        connection.id.to_string(),
        connection.network_service.to_string(),
        state(connection.state),
        connection.mechanism.as_ref().map(|mechanism| mechanism.kind.to_string()).unwrap_or_default(),
        table::commas(&ip.src_ip_addrs),
        table::commas(&ip.dst_ip_addrs),
        path,
    ]
}

fn state(state: State) -> String {
    match state {
        State::Up => "UP".into(),
        State::Down => "DOWN".into(),
        State::RefreshRequested => "REFRESH_REQUESTED".into(),
        State::ReselectRequested => "RESELECT_REQUESTED".into(),
        State::Other(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::{EndpointName, HopName, Labels, Segment};

    fn endpoint(name: &str, service: &str, url: &str, node: Option<&str>) -> NetworkServiceEndpoint {
        let service = ServiceName::new(service).unwrap();
        let mut endpoint = NetworkServiceEndpoint::new(EndpointName::new(name).unwrap(), vec![service.clone()], url);
        let labels = node.map(|node| Labels::from([("nodeName".to_owned(), node.to_owned())])).unwrap_or_default();
        endpoint.network_service_labels.insert(service, labels);
        endpoint
    }

    #[test]
    fn a_node_is_what_one_manager_registered() {
        let found = [
            endpoint("fwd-1", "forwarder", "tcp://10.0.0.1:5001", Some("n1")),
            endpoint("nse-1", "vpn", "tcp://10.0.0.1:5001", Some("n1")),
            endpoint("nse-2", "vpn", "tcp://10.0.0.2:5001", None),
        ];
        let nodes = group(&found, &ServiceName::new("forwarder").unwrap());
        assert_eq!(nodes.len(), 2);
        assert_eq!(
            (nodes[0].forwarders.as_slice(), nodes[0].endpoints.as_slice()),
            (["fwd-1".to_owned()].as_slice(), ["nse-1".to_owned()].as_slice())
        );
        assert!(nodes[0].node_names.contains("n1") && nodes[1].node_names.is_empty());
    }

    #[test]
    fn rows_show_what_a_person_asks_for() {
        let shown = endpoint_row(&endpoint("nse-1", "vpn", "tcp://10.0.0.1:5001", Some("n1")));
        assert_eq!(shown, ["nse-1", "vpn", "nodeName=n1", "tcp://10.0.0.1:5001", ""]);
        let mut connection = Connection::new("c-1".parse().unwrap(), ServiceName::new("vpn").unwrap());
        connection.path.segments = ["client", "manager"].map(|name| Segment::new(HopName::new(name).unwrap(), "i".parse().unwrap())).into();
        assert_eq!(connection_row(&connection), ["c-1", "vpn", "UP", "", "", "", "client > manager"]);
    }
}

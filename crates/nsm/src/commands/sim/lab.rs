//! From a lab file to the topology of a simulation.

use crate::nsurl::ServiceUrl;
use nsm_api::{Error, NetworkService, Payload, Result, ServiceName};
use nsm_lab::schema::{EndpointKind, Lab};
use nsm_registry::manifest::Documents;
use nsm_sim::{
    Topology,
    topology::{self, Client, Endpoint},
};
use std::{collections::BTreeSet, path::Path};

/// What is played when no topology is named: nodes, endpoints, clients.
const BUILT_IN: (usize, usize, usize) = (3, 3, 10);

/// The topology that the words of a command name: a lab file, or nothing.
pub(super) fn named(files: &[String]) -> Result<Topology> {
    let topology = match files.first() {
        Some(file) => of_lab(Path::new(file))?,
        None => Topology::built_in(BUILT_IN.0, BUILT_IN.1, BUILT_IN.2),
    };
    topology.check()?;
    Ok(topology)
}

/// The part of a lab that can be played.
fn of_lab(path: &Path) -> Result<Topology> {
    let file = nsm_lab::read_file(path)?;
    let lab = &file.lab;
    let nodes: Vec<String> = lab.nodes.iter().map(|node| node.name.clone()).collect();
    let place = |name: &str| nodes.iter().position(|node| node == name).unwrap_or(usize::MAX); // the check of the topology refuses it
    let mut clients = Vec::new();
    for client in &lab.clients {
        let urls = client.services.iter().map(|url| url.parse::<ServiceUrl>()).collect::<Result<Vec<_>>>()?;
        let services = urls.into_iter().map(|url| (url.service.to_string(), url.labels)).collect();
        clients.push(Client { name: client.name.clone(), node: place(&client.node), services });
    }
    let endpoints = lab.endpoints.iter().enumerate().map(|(i, endpoint)| Endpoint {
        name: endpoint.name.clone(),
        node: place(&endpoint.node),
        services: endpoint.services.clone(),
        labels: endpoint.labels.clone(),
        pools: vec![topology::pool(i)],
    });
    let endpoints = endpoints.collect();
    let services = services(path, &file.services, lab)?;
    refuse_what_is_missing(path, lab, &services)?;
    Ok(Topology { nodes, endpoints, clients, services })
}

/// Those of the file, and those that its endpoints bring along.
fn services(path: &Path, documents: &[String], lab: &Lab) -> Result<Vec<NetworkService>> {
    let mut services = Documents::read(&path.display().to_string(), &documents.join("\n---\n"))?.services;
    let mut known: BTreeSet<String> = services.iter().map(|service| service.name.to_string()).collect();
    for endpoint in &lab.endpoints {
        for name in endpoint.services.iter().filter(|name| known.insert((*name).clone())) {
            let payload = endpoint.payload.map_or(Payload::Ethernet, Payload::from);
            services.push(NetworkService::new(ServiceName::new(name)?, payload));
        }
    }
    Ok(services)
}

fn refuse_what_is_missing(path: &Path, lab: &Lab, services: &[NetworkService]) -> Result<()> {
    let refuse = |what: String, fix: &str| Err(Error::invalid(format!("lab file {:?}", path.display().to_string()), what, fix));
    if let Some(endpoint) = lab.endpoints.iter().find(|endpoint| endpoint.kind != EndpointKind::IcmpResponder) {
        return refuse(
            format!("has the {} endpoint {:?}, which the simulation cannot play", endpoint.kind.as_str(), endpoint.name),
            "leave it out",
        );
    }
    let packets = services.iter().find(|service| lab.nodes.len() > 1 && service.payload != Payload::Ethernet);
    match packets {
        Some(service) => refuse(
            format!("has service {:?} with packets between nodes, and the simulation has no encrypted tunnels", service.name.as_str()),
            "set payload ETHERNET, or place all on one node",
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_becomes_a_topology_or_is_refused_with_a_reason() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let hello = of_lab(&examples.join("hello.yaml")).unwrap();
        assert!(hello.check().is_ok() && !hello.clients.is_empty() && !hello.services.is_empty());
        let chain = of_lab(&examples.join("firewall-then-gateway.yaml")).unwrap_err();
        assert!(chain.to_string().contains("passthrough"), "{chain}");
    }
}

//! What is simulated: nodes, endpoints and clients. Every node has a manager and a forwarder; the first has the registry.

use ipnet::IpNet;
use nsm_api::{Error, Labels, NetworkService, Payload, Result};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// Nodes, endpoints, clients of one simulation.
pub const MAX_PLACES: usize = 200;

/// An endpoint that gives addresses.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name, and that of its pod.
    pub name: String,
    /// Index of its node.
    pub node: usize,
    /// Services it provides.
    pub services: Vec<String>,
    /// Labels it advertises.
    pub labels: Labels,
    /// Its pools; one pair of addresses from each.
    pub pools: Vec<IpNet>,
}

/// A client that wants one or more services.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name, and that of its pod.
    pub name: String,
    /// Index of its node.
    pub node: usize,
    /// Services it wants, each with the labels it shows for it.
    pub services: Vec<(String, Labels)>,
}

/// The whole.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Clients.
    pub clients: Vec<Client>,
    /// Services as registered.
    pub services: Vec<NetworkService>,
}

impl Topology {
    /// So many nodes, endpoints and clients, placed in turn, and one service that carries frames.
    pub fn built_in(nodes: usize, endpoints: usize, clients: usize) -> Topology {
        let service = "svc".parse().expect("a plain word is a name");
        Topology {
            nodes: (1..=nodes).map(|i| format!("n{i}")).collect(),
            endpoints: (0..endpoints)
                .map(|i| Endpoint {
                    name: format!("e{}", i + 1),
                    node: i % nodes.max(1),
                    services: vec!["svc".to_owned()],
                    labels: Labels::new(),
                    pools: vec![pool(i)],
                })
                .collect(),
            clients: (0..clients)
                .map(|i| Client { name: format!("c{}", i + 1), node: i % nodes.max(1), services: vec![("svc".to_owned(), Labels::new())] })
                .collect(),
            services: vec![NetworkService::new(service, Payload::Ethernet)],
        }
    }

    /// Whether it can be simulated; else what is wrong with it.
    pub fn check(&self) -> Result<()> {
        let bad = |reason: String, fix: &str| Err(Error::invalid("topology", reason, fix));
        let pods: Vec<(&String, usize)> =
            self.endpoints.iter().map(|e| (&e.name, e.node)).chain(self.clients.iter().map(|c| (&c.name, c.node))).collect();
        if self.nodes.is_empty() || self.endpoints.is_empty() || self.clients.is_empty() {
            return bad("has no node, no endpoint or no client".to_owned(), "name at least one of each");
        }
        if self.nodes.len() > MAX_PLACES || pods.len() > 2 * MAX_PLACES {
            return bad(format!("has more than {MAX_PLACES} nodes or {} pods", 2 * MAX_PLACES), "simulate a part of it");
        }
        if let Some((name, node)) = pods.iter().find(|(_, node)| *node >= self.nodes.len()) {
            return bad(format!("places {name:?} on node number {node}, which there is not"), "name one of its nodes");
        }
        let mut names = BTreeSet::from(["registry".to_owned()]);
        let of_nodes = self.nodes.iter().flat_map(|node| [manager(node), forwarder(node)]);
        match of_nodes.chain(pods.iter().map(|(name, _)| (*name).clone())).find(|name| !names.insert(name.clone())) {
            Some(name) => bad(format!("has two processes called {name:?}"), "give each a name of its own"),
            None => Ok(()),
        }
    }
}

/// Addresses of the `i`-th endpoint that names none. No two endpoints share any, so that an address says whose it is.
pub fn pool(i: usize) -> IpNet {
    let [.., high, low] = (i as u32).to_be_bytes();
    IpNet::new(IpAddr::V4(Ipv4Addr::new(172, 16 + high % 16, low, 0)), 24).expect("24 bits are fine")
}

pub(crate) fn manager(node: &str) -> String {
    format!("{node}-manager")
}
pub(crate) fn forwarder(node: &str) -> String {
    format!("{node}-forwarder")
}

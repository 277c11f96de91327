//! A picture of a lab: nodes, pods, who asks for what, and, while it runs, its vWires.

use crate::{checks::Listed, schema::Lab};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A node and what runs there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GraphNode {
    name: String,
    endpoints: Vec<String>,
    clients: Vec<String>,
}

/// A machine behind a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GraphHost {
    name: String,
    pod: String,
}

/// One end asks for, or provides, a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct GraphService {
    pod: String,
    service: String,
}

/// A stretch from one pod to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct GraphWire {
    from: String,
    to: String,
    service: String,
    connection: String,
    mechanisms: BTreeSet<String>,
}

/// The whole picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Graph {
    lab: String,
    running: bool,
    nodes: Vec<GraphNode>,
    hosts: Vec<GraphHost>,
    asks: Vec<GraphService>,
    provides: Vec<GraphService>,
    vwires: Vec<GraphWire>,
}

impl Graph {
    /// From the file, and from the connections that its managers list, when it runs.
    pub(crate) fn new(lab: &Lab, connections: Option<&[Listed]>) -> Graph {
        let on = |node: &str| {
            let endpoints = lab.endpoints.iter().filter(|endpoint| endpoint.node == node).map(|endpoint| endpoint.name.clone()).collect();
            let clients = lab.clients.iter().filter(|client| client.node == node).map(|client| client.name.clone()).collect();
            GraphNode { name: node.to_owned(), endpoints, clients }
        };
        let asks = lab.clients.iter().flat_map(|client| client.services.iter().map(|url| pair(&client.name, service_of(url))));
        let provides = lab.endpoints.iter().flat_map(|endpoint| endpoint.services.iter().map(|service| pair(&endpoint.name, service)));
        Graph {
            lab: lab.name.clone(),
            running: connections.is_some(),
            nodes: lab.nodes.iter().map(|node| on(&node.name)).collect(),
            hosts: lab.hosts.iter().map(|host| GraphHost { name: host.name.clone(), pod: host.pod.clone() }).collect(),
            asks: asks.collect(),
            provides: provides.collect(),
            vwires: wires(lab, connections.unwrap_or_default()),
        }
    }

    /// For people: paste it where Mermaid is drawn.
    pub(crate) fn mermaid(&self) -> String {
        let mut lines = vec!["graph LR".to_owned()];
        for node in &self.nodes {
            lines.push(format!("  subgraph {}", node.name));
            lines.extend(node.clients.iter().map(|name| format!("    {name}([{name}])")));
            lines.extend(node.endpoints.iter().map(|name| format!("    {name}[[{name}]]")));
            lines.push("  end".to_owned());
        }
        lines.extend(self.hosts.iter().map(|host| format!("  {} --- {}[/{}/]", host.pod, host.name, host.name)));
        if self.running {
            let label = |wire: &GraphWire| wire.mechanisms.iter().cloned().chain([wire.service.clone()]).collect::<Vec<_>>().join(" ");
            lines.extend(self.vwires.iter().map(|wire| format!("  {} ==\"{}\"==> {}", wire.from, label(wire), wire.to)));
        } else {
            lines.extend(self.asks.iter().map(|ask| format!("  {} -.-> service-{}{{{{{}}}}}", ask.pod, ask.service, ask.service)));
            lines.extend(self.provides.iter().map(|one| format!("  service-{}{{{{{}}}}} -.-> {}", one.service, one.service, one.pod)));
        }
        lines.join("\n")
    }
}

fn pair(pod: &str, service: &str) -> GraphService {
    GraphService { pod: pod.to_owned(), service: service.to_owned() }
}

/// The service in `mechanism://service[@domain]/interface?labels`.
fn service_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}

/// Cuts the path of each connection at the pods it visits.
fn wires(lab: &Lab, connections: &[Listed]) -> Vec<GraphWire> {
    let pods: BTreeSet<&str> = lab.pods().collect();
    let mut wires: BTreeMap<(String, String, String), GraphWire> = BTreeMap::new();
    for listed in connections {
        let connection = listed.path.path_segments.first().map(|first| first.id.clone()).unwrap_or_default();
        let visited: Vec<&str> = listed.names().into_iter().filter(|name| pods.contains(name)).collect();
        for ends in visited.windows(2) {
            let (from, to) = (ends[0].to_owned(), ends[1].to_owned());
            let service = listed.network_service.clone();
            let wire = wires.entry((connection.clone(), from.clone(), to.clone()));
            let wire = wire.or_insert(GraphWire { from, to, service, connection: connection.clone(), mechanisms: BTreeSet::new() });
            // Which stretch a mechanism belongs to is only certain when there is one.
            if visited.len() == 2 {
                wire.mechanisms.extend(listed.mechanism.iter().map(|mechanism| mechanism.kind.clone()));
            }
        }
    }
    wires.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAB: &str = "
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: pic}
spec:
  nodes: [{name: east}]
  endpoints:
  - {name: fw, node: east, kind: passthrough, services: [vpn]}
  - {name: gw, node: east, services: [vpn], cidr: [10.0.0.0/31]}
  clients:
  - {name: client, node: east, services: ['kernel://vpn@far/nsm-1?app=x']}
  hosts:
  - {name: server, pod: gw, address: 172.31.0.10/16, podInterface: corp}
";

    #[test]
    fn a_file_shows_who_asks_for_what() {
        let (lab, _) = crate::read(LAB).unwrap();
        let text = Graph::new(&lab, None).mermaid();
        for part in [
            "subgraph east",
            "client([client])",
            "client -.-> service-vpn@far{{vpn@far}}",
            "service-vpn{{vpn}} -.-> gw",
            "gw --- server[/server/]",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }

    #[test]
    fn a_running_lab_shows_each_stretch_once() {
        let (lab, _) = crate::read(LAB).unwrap();
        let one = r#"{"network_service":"vpn","mechanism":{"type":"KERNEL"},"path":{"path_segments":
            [{"name":"client","id":"client-0"},{"name":"east-manager","id":"1"},{"name":"fw","id":"2"},{"name":"east-manager","id":"3"},{"name":"gw","id":"4"}]}}"#;
        let listed: Vec<Listed> = serde_json::from_str(&format!("[{one},{one}]")).unwrap();
        let graph = Graph::new(&lab, Some(&listed));
        assert_eq!(graph.vwires.len(), 2);
        assert!(graph.mermaid().contains("fw ==\"vpn\"==> gw"), "{}", graph.mermaid());
    }
}

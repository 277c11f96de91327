//! What can be seen of a domain, in words: for scripts, and for the events of the kernels.

use crate::{
    process::REGISTRY,
    world::{World, address},
};
use futures::StreamExt;
use nsm_api::*;
use nsm_hop::kernel::{Iface, Link, Wire};
use std::net::IpAddr;

/// An interface by its pod's name.
fn at(world: &World, iface: &Iface) -> String {
    let state = world.state();
    let pod = state.pods.iter().find(|(_, netns)| **netns == iface.netns).map_or("a pod that has gone", |(name, _)| name);
    format!("{pod}:{}", iface.name)
}

fn node(world: &World, wanted: IpAddr) -> String {
    let nodes = &world.topology().nodes;
    (0..nodes.len()).find(|node| address(*node) == wanted).map_or_else(|| wanted.to_string(), |node| nodes[node].clone())
}

/// A link as one would say it.
pub(crate) fn link(world: &World, link: &Link) -> String {
    match link {
        Link::Veth { a, b } => format!("a cable from {} to {}", at(world, a), at(world, b)),
        Link::Vxlan { at: here, local, remote, vni, .. } => {
            format!("a tunnel at {} from {} to {} with identifier {vni}", at(world, here), node(world, *local), node(world, *remote))
        }
        Link::Wireguard { at: here, .. } => format!("an encrypted tunnel at {}", at(world, here)),
    }
}

fn list(addresses: &[ipnet::IpNet]) -> String {
    addresses.iter().map(|net| net.addr().to_string()).collect::<Vec<_>>().join(" and ")
}

/// Every connection of every client.
pub(crate) fn vwires(world: &World) -> Vec<String> {
    let clients = world.topology().clients.iter();
    clients
        .flat_map(|client| {
            let Some(hop) = world.process(&client.name).and_then(|process| process.hop) else {
                return vec![format!("{} does not run", client.name)];
            };
            let all = hop.monitors().snapshot();
            if all.is_empty() {
                return vec![format!("{} has no vWire", client.name)];
            }
            all.iter().map(|connection| vwire(world, &client.name, connection)).collect()
        })
        .collect()
}

fn vwire(world: &World, client: &str, connection: &Connection) -> String {
    let endpoint = connection.network_service_endpoint_name.as_ref().map_or("nobody", EndpointName::as_str);
    let ip = &connection.context.ip_context;
    let (src, dst) = (list(&ip.src_ip_addrs), list(&ip.dst_ip_addrs));
    let passes = world.packets().answers(world.pod(client).key.ino, connection) == Some(world.pod(endpoint).key.ino);
    let passes = if passes { "packets pass" } else { "no packets pass" };
    let heard = if connection.state == State::Up { "" } else { ", and nobody answers for it" };
    format!("{} to {endpoint}: {src} to {dst}, {passes}{heard}", connection.id)
}

/// Who carries a client's connections.
pub(crate) fn path(world: &World, client: &str) -> Vec<String> {
    let hop = world.process(client).and_then(|process| process.hop);
    let all = hop.map(|hop| hop.monitors().snapshot()).unwrap_or_default();
    let way = |connection: &Connection| connection.path.segments.iter().map(|segment| segment.name.to_string()).collect::<Vec<_>>();
    all.iter().map(|connection| way(connection).join(" > ")).collect()
}

/// All links of all nodes.
pub(crate) fn links(world: &World) -> Vec<String> {
    let nodes = world.topology().nodes.iter().enumerate();
    let wires = nodes.flat_map(|(i, name)| world.kernel(i).wires().into_iter().map(move |wire| (name, wire)));
    wires
        .filter_map(|(name, wire)| match wire {
            Wire::Link(found) => Some(format!("{name}: {}", without_number(&link(world, &found)))),
            _ => None,
        })
        .collect()
}

/// What is in the pod of a client or endpoint.
pub(crate) fn pod(world: &World, name: &str) -> Vec<String> {
    let pod = world.pod(name);
    let wires = (0..world.topology().nodes.len()).flat_map(|node| world.kernel(node).wires());
    wires
        .filter_map(|wire| match wire {
            Wire::Address { on, address } if on.netns == pod => Some(format!("{}: address {address}", on.name)),
            Wire::Route { on, prefix, .. } if on.netns == pod => Some(format!("{}: way to {prefix}", on.name)),
            _ => None,
        })
        .collect()
}

/// Who is registered, and where.
pub(crate) async fn registry(world: &World) -> Vec<String> {
    let Some(registry) = world.process(REGISTRY).and_then(|process| process.registry) else { return vec!["it does not run".to_owned()] };
    let Ok(found) = registry.find_endpoints(EndpointQuery::default(), Caller::default()).await else { return vec![] };
    let told = |endpoint: NetworkServiceEndpoint| {
        let services: Vec<&str> = endpoint.network_service_names.iter().map(ServiceName::as_str).collect();
        format!("{} provides {} at {}", endpoint.name, services.join(", "), endpoint.url)
    };
    found.filter_map(async |update| Some(told(update.ok()?.0.endpoint))).collect().await
}

/// What a process would find if it started anew.
pub(crate) fn journal(world: &World, name: &str) -> Vec<String> {
    let state = world.state();
    let records = state.journals.get(name).into_iter().flat_map(|records| records.values());
    records
        .map(|record| {
            let origin = record.up.as_ref().map_or("nothing", |up| up.connection.path.segments[0].id.as_str());
            format!("{origin} is up, {} closes are owed", record.owed.len())
        })
        .collect()
}

/// An event without its time, if it has one of these words; all events when none is named.
pub(crate) fn event(line: &str, wanted: &str) -> Option<String> {
    let text = line.trim_start().split_once(' ')?.1;
    let has = |word: &str| text.split_whitespace().any(|found| found == word);
    (wanted.is_empty() || wanted.split_whitespace().any(has)).then(|| without_number(text))
}

/// Identifiers of tunnels are drawn, and say nothing.
fn without_number(text: &str) -> String {
    match text.split_once(" with identifier ") {
        Some((before, _)) => before.to_owned(),
        None => text.to_owned(),
    }
}

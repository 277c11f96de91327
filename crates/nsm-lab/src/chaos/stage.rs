//! The mesh that meets with faults, and the facts of its vWires as pods show them.

use crate::{
    judges::{Spot, oracle::Allowed, pulse::Track},
    plan::FABRIC,
    world::World,
};
use nsm_api::{Error, Kind, Result};
use nsm_linux::net::Packet;
use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

/// vWires of one client.
const EACH: u32 = 10;
/// Which service the vWires of a client ask for, one after the other: within the node, to another node in plain text and
/// encrypted, and to one that is a single process.
const MIX: [&str; EACH as usize] = ["near", "far", "secret", "third", "near", "far", "near", "far", "third", "near"];
/// Clients at least: two of them may fall at the same time.
const MIN_CLIENTS: u32 = 2;
/// Descriptors of a process besides those of its connections.
pub(super) const SPARE_DESCRIPTORS: usize = 60;

const HEAD: &str = r#"
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: near}
spec: {payload: IP}
---
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: far}
spec: {payload: ETHERNET}
---
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: secret}
spec: {payload: IP}
---
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: third}
spec: {payload: ETHERNET}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: chaos}
spec:
  registry: {env: {NSM_STORE: "file:{files}/registry"}}
  nodes: [{name: node-1}, {name: node-2}, {name: node-3, combined: true}]
  endpoints:
  - {name: near, node: node-1, services: [near], payload: IP, cidr: [10.81.0.0/16]}
  - {name: far, node: node-2, services: [far], payload: ETHERNET, cidr: [10.82.0.0/16]}
  - {name: secret, node: node-2, services: [secret], payload: IP, cidr: [10.83.0.0/16]}
  - {name: third, node: node-3, services: [third], payload: ETHERNET, cidr: [10.86.0.0/16]}
  clients:
"#;

/// The lab with so many vWires.
pub(super) fn text(vwires: u32) -> String {
    let clients = vwires.div_ceil(EACH).max(MIN_CLIENTS);
    let mut text = HEAD.to_owned();
    for client in 0..clients {
        let own = vwires / clients + u32::from(client < vwires % clients);
        let urls: Vec<String> = (0..own).map(|i| format!("'kernel://{}/nsm-{i}'", MIX[i as usize % MIX.len()])).collect();
        let _ = writeln!(text, "  - {{name: client-{client}, node: node-1, services: [{}]}}", urls.join(", "));
    }
    text
}

/// One vWire.
pub(super) struct Wire {
    /// From where to where.
    pub(super) track: Track,
    /// Where its packets may be seen.
    pub(super) spots: BTreeSet<Spot>,
}

/// All vWires of all clients.
pub(super) fn wires(world: &World) -> Result<Vec<Wire>> {
    let lab = &world.file.lab;
    let mut all = Vec::new();
    for client in &lab.clients {
        for (i, url) in client.services.iter().enumerate() {
            let service = url.trim_start_matches("kernel://").split('/').next().unwrap_or_default();
            all.push(wire(world, (&lab.namespace(&client.name), &format!("nsm-{i}")), &lab.namespace(service))?);
        }
    }
    Ok(all)
}

/// The other end is who has the only host route through the interface; its way back tells the interface there.
fn wire(world: &World, (netns, dev): (&str, &str), far: &str) -> Result<Wire> {
    let missing = |what: &str| Error::new(Kind::NotFound, format!("vWire {dev} in {netns}"), what, "look at the log of its client");
    let place = world.places.get(netns)?;
    let route =
        place.net.routes()?.into_iter().find(|route| route.dev == dev && route.prefix.prefix_len() == route.prefix.max_prefix_len());
    let to: IpAddr = route.ok_or_else(|| missing("has no route to its other end"))?.prefix.addr();
    let own = place.net.addresses()?.into_iter().find(|info| info.dev == dev && info.address.addr().is_ipv4());
    let own = own.ok_or_else(|| missing("has no address"))?.address.addr();
    let back = world.places.get(far)?.net.route_get(&Packet { from: Some(to), ..Packet::to(own) })?;
    let spots = [(netns.to_owned(), dev.to_owned()), (far.to_owned(), back.dev)].into();
    Ok(Wire { track: Track { netns: place.netns.clone(), to: vec![to] }, spots })
}

/// Where packets may be seen: each vWire's at its two ends, all of them between the nodes.
pub(super) fn allowed(world: &World, wires: &[Wire]) -> Allowed {
    let fabric = world.file.lab.namespace(FABRIC);
    let at = crate::checks::links(&world.plan, |cable| cable.a.netns == fabric);
    Allowed { everywhere_in: BTreeSet::new(), at, own: wires.iter().map(|wire| wire.spots.clone()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_wires_as_asked_for_of_every_kind() {
        for vwires in [8, 9, 20, 200] {
            let (lab, services) = crate::read(&text(vwires)).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
            assert_eq!(lab.clients.iter().map(|client| client.services.len()).sum::<usize>(), vwires as usize);
            assert_eq!((services.len(), lab.clients.len()), (4, (vwires as usize).div_ceil(10).max(2)));
            for kind in ["//near/", "//far/", "//secret/", "//third/"] {
                assert!(lab.clients[0].services.iter().any(|url| url.contains(kind)), "{vwires}: {kind}");
            }
        }
    }
}

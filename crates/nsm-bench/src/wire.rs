//! `nsm bench wire`: a vWire beside a bare kernel device, in turns.

use crate::{
    bare::Bare,
    cli::WireArgs,
    meter::{Line, SMALL, Waiting},
    row::{Holds, Row},
    turns::{Comparison, Figure, Sides, Turns},
};
use nsm_api::{Error, Result};
use nsm_lab::{Inside, inside};
use nsm_linux::net::Net;
use std::net::IpAddr;

/// One client with a vWire on its node and one to the other node.
const LAB: &str = "
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: local}
spec: {payload: IP}
---
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: remote}
spec: {payload: ETHERNET}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: bench-wire}
spec:
  nodes: [{name: node-1}, {name: node-2}]
  endpoints:
  - {name: near, node: node-1, kind: icmp-responder, services: [local], payload: IP, cidr: [10.91.0.0/31]}
  - {name: far, node: node-2, kind: icmp-responder, services: [remote], payload: ETHERNET, cidr: [10.92.0.0/31]}
  clients:
  - {name: client, node: node-1, services: ['kernel://local/local', 'kernel://remote/remote']}
";
/// How far from its peer a vWire may be.
const MARGIN: f64 = 0.03;
const MORE: Holds = Holds::AtLeast(1.0 - MARGIN);
const LESS: Holds = Holds::AtMost(1.0 + MARGIN);

const COMPARISONS: [Comparison; 3] = [
    Comparison { figure: Figure::Tcp { streams: 1 }, columns: &[("TCP, one stream", "Gbit/s", MORE)] },
    Comparison { figure: Figure::Packets { payload: SMALL }, columns: &[("64-byte packets", "Mpps", MORE)] },
    Comparison { figure: Figure::RoundTrip(Waiting::Spinning), columns: &[("round trip p50", "us", LESS), ("round trip p99", "us", LESS)] },
];

/// Measures everything.
pub(crate) fn run(args: &WireArgs) -> Result<Vec<Row>> {
    inside(LAB, async |lab| {
        let mut rows = Vec::new();
        for (sides, _bare) in [local(lab)?, remote(lab)?] {
            rows.extend(sides.compare(lab, &COMPARISONS, Turns { rounds: args.rounds, seconds: args.seconds }).await?);
        }
        Ok(rows)
    })
}

fn local(lab: &Inside) -> Result<(Sides, Bare)> {
    let (ours, mtu) = vwire(lab, "local", ("near", [10, 91, 0, 0]))?;
    let bare = Bare::veth(mtu)?;
    Ok((Sides { name: "local vWire", ours, peers: vec![("bare veth pair".into(), bare.line())] }, bare))
}

fn remote(lab: &Inside) -> Result<(Sides, Bare)> {
    let (ours, mtu) = vwire(lab, "remote", ("far", [10, 92, 0, 0]))?;
    let (here, there) = (lab.netns("node-1")?, lab.netns("node-2")?);
    let bare = Bare::vxlan(mtu, [(&here, lab.address("node-1")?), (&there, lab.address("node-2")?)])?;
    Ok((Sides { name: "VXLAN vWire", ours, peers: vec![("bare VXLAN".into(), bare.line())] }, bare))
}

/// The vWire of the client that has this interface, and its largest packet.
pub(crate) fn vwire(lab: &Inside, interface: &str, (endpoint, address): (&str, [u8; 4])) -> Result<(Line, u32)> {
    let line = Line { near: lab.netns("client")?, far: lab.netns(endpoint)?, address: IpAddr::from(address) };
    let net = Net::new(&line.near)?;
    let missing = || Error::internal(format!("interface {interface:?} of the client"), "is not there");
    let mtu = net.link_named(interface)?.ok_or_else(missing)?.mtu;
    let way = net.route_get(&nsm_linux::net::Packet::to(line.address))?;
    if way.dev != interface {
        let reason = format!("packets to {} go through {:?}", line.address, way.dev);
        return Err(Error::internal(format!("vWire {interface:?}"), reason));
    }
    Ok((line, mtu))
}

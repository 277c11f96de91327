//! `nsm bench wire`: a vWire beside a bare kernel device, in turns.

use crate::{
    bare::Bare,
    cli::WireArgs,
    meter::{self, Line},
    row::{Holds, Row},
    stats::median,
};
use nsm_api::{Error, Kind, Result};
use nsm_lab::{Inside, inside};
use nsm_linux::net::Net;
use std::{net::IpAddr, time::Duration};

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
/// Turns of one second: other work on the machine comes and goes more slowly, and so disturbs both sides alike.
const TURNS: u64 = 5;
/// How long a line warms up (neighbours, caches, processor clocks) before it counts.
const WARM_UP: Duration = Duration::from_millis(100);

/// What is measured, with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Tcp,
    Packets,
    RoundTrip,
}

const FIGURES: [Figure; 3] = [Figure::Tcp, Figure::Packets, Figure::RoundTrip];

impl Figure {
    /// One measurement; two values when it has two.
    fn measure(self, line: &Line, span: Duration) -> Result<Vec<f64>> {
        Ok(match self {
            Figure::Tcp => vec![meter::tcp(line, span)?],
            Figure::Packets => vec![meter::packets(line, span)? / 1e6],
            Figure::RoundTrip => {
                let times = meter::round_trips(line, span)?;
                vec![times.p50, times.p99]
            }
        })
    }
    /// Name and unit of its values, and when they are good enough.
    fn columns(self) -> &'static [(&'static str, &'static str, Holds)] {
        const MORE: Holds = Holds::AtLeast(1.0 - MARGIN);
        const LESS: Holds = Holds::AtMost(1.0 + MARGIN);
        match self {
            Figure::Tcp => &[("TCP, one stream", "Gbit/s", MORE)],
            Figure::Packets => &[("64-byte packets", "Mpps", MORE)],
            Figure::RoundTrip => &[("round trip p50", "us", LESS), ("round trip p99", "us", LESS)],
        }
    }
}

/// A vWire and what it is compared with.
struct Pair {
    name: &'static str,
    peer: &'static str,
    ours: Line,
    bare: Bare,
}

/// Measures everything.
pub(crate) fn run(args: &WireArgs) -> Result<Vec<Row>> {
    inside(LAB, async |lab| {
        let mut rows = Vec::new();
        for pair in [local(lab)?, remote(lab)?] {
            rows.extend(compare(lab, &pair, args).await?);
        }
        Ok(rows)
    })
}

fn local(lab: &Inside) -> Result<Pair> {
    let (ours, mtu) = vwire(lab, "local", ("near", [10, 91, 0, 0]))?;
    Ok(Pair { name: "local vWire", peer: "bare veth pair", ours, bare: Bare::veth(mtu)? })
}

fn remote(lab: &Inside) -> Result<Pair> {
    let (ours, mtu) = vwire(lab, "remote", ("far", [10, 92, 0, 0]))?;
    let (here, there) = (lab.netns("node-1")?, lab.netns("node-2")?);
    let bare = Bare::vxlan(mtu, [(&here, lab.address("node-1")?), (&there, lab.address("node-2")?)])?;
    Ok(Pair { name: "VXLAN vWire", peer: "bare VXLAN", ours, bare })
}

/// The vWire of the client that has this interface, and its largest packet.
fn vwire(lab: &Inside, interface: &str, (endpoint, address): (&str, [u8; 4])) -> Result<(Line, u32)> {
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

async fn compare(lab: &Inside, pair: &Pair, args: &WireArgs) -> Result<Vec<Row>> {
    let (turns, bare) = (args.seconds * TURNS, pair.bare.line());
    let mut rows = Vec::new();
    for figure in FIGURES {
        let columns = figure.columns();
        let (mut ours, mut theirs) = (vec![vec![]; columns.len()], vec![vec![]; columns.len()]);
        measure(figure, &pair.ours, WARM_UP).await?;
        measure(figure, &bare, WARM_UP).await?;
        for round in 0..args.rounds {
            lab.step(&format!("{}: {}, {} of {}", pair.name, columns[0].0, round + 1, args.rounds));
            for turn in 0..turns {
                // A B, B A, ...: whatever grows or fades over time does not prefer one.
                let mut sides = [(&pair.ours, &mut ours), (&bare, &mut theirs)];
                if turn % 2 == 1 {
                    sides.reverse();
                }
                for (line, values) in sides {
                    let measured = measure(figure, line, Duration::from_secs(1) / TURNS as u32).await?;
                    values.iter_mut().zip(measured).for_each(|(column, value)| column.push(value));
                }
            }
        }
        for ((name, unit, holds), (ours, theirs)) in columns.iter().zip(ours.iter().zip(&theirs)) {
            rows.push(Row::alone(format!("{}: {name}", pair.name), unit, median(ours)).beside(pair.peer, median(theirs), *holds));
        }
    }
    Ok(rows)
}

/// On a thread of its own, so that the user's wish to stop is heard meanwhile.
async fn measure(figure: Figure, line: &Line, span: Duration) -> Result<Vec<f64>> {
    let line = line.clone();
    let measuring = tokio::task::spawn_blocking(move || figure.measure(&line, span)).await;
    measuring.unwrap_or_else(|problem| Err(Error::new(Kind::Internal, "a measurement", problem.to_string(), "report this")))
}

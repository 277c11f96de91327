//! `nsm bench wireguard`: an encrypted vWire between two nodes beside others in user space, in turns; and what
//! many encrypted vWires cost the process that carries them.
//!
//! Where the kernel has WireGuard, the vWire is the kernel's, and so is what is measured. Not here: the peers (`program`).

use crate::{
    cli::WireguardArgs,
    client::{Connected, Mesh},
    meter::{SMALL, Waiting},
    process::{processor, resident},
    program::{self, Peer, Tunnel},
    row::{Holds, Row},
    turns::{Comparison, Figure, Sides, Turns},
    wire::vwire,
};
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use nsm_api::{Error, Result};
use nsm_identity::Source;
use nsm_lab::{Inside, inside};
use std::time::{Duration, Instant};

/// Two nodes, and a client whose vWire for IP packets goes from one to the other.
const LAB: &str = "
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: tunnel}
spec: {payload: IP}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: bench-wireguard}
spec:
  nodes: [{name: node-1}, {name: node-2}]
  endpoints:
  - {name: far, node: node-2, kind: icmp-responder, services: [tunnel], payload: IP, cidr: [10.93.0.0/16]}
  clients:
  - {name: client, node: node-1, services: ['kernel://tunnel/tunnel']}
";
/// What the rows are about.
const VWIRE: &str = "WireGuard vWire";
/// Bytes of a payload that fills a packet nearly as far as the tunnel lets it.
const LARGE: usize = 1400;
/// Throughput and packet rate of ours and the peer's, and round trip.
const MORE: Holds = Holds::AtLeast(1.5);
const LESS: Holds = Holds::AtMost(0.5);

const COMPARISONS: [Comparison; 6] = [
    Comparison { figure: Figure::Tcp { streams: 1 }, columns: &[("TCP, one stream", "Gbit/s", MORE)] },
    Comparison { figure: Figure::Tcp { streams: 4 }, columns: &[("TCP, four streams", "Gbit/s", MORE)] },
    Comparison { figure: Figure::Packets { payload: SMALL }, columns: &[("18-byte packets", "Mpps", MORE)] },
    Comparison { figure: Figure::Packets { payload: LARGE }, columns: &[("1400-byte packets", "Mpps", MORE)] },
    Comparison {
        figure: Figure::RoundTrip(Waiting::Spinning),
        columns: &[("round trip p50", "us", LESS), ("round trip p99", "us", Holds::Always)],
    },
    // The same with the wake-ups of both ends, which no tunnel can spare: nothing is demanded.
    Comparison {
        figure: Figure::RoundTrip(Waiting::Sleeping),
        columns: &[("round trip, ends asleep, p50", "us", Holds::Always), ("round trip, ends asleep, p99", "us", Holds::Always)],
    },
];

/// The process that carries the encrypted packets of the clients' node.
const ENGINE: &str = "node-1-packet";
/// How long the first identity may take.
const IDENTITY_BOUND: Duration = Duration::from_secs(10);
/// Requests on their way at the same time while the node is filled.
const FILLING: usize = 32;
/// How long many devices rest while the processor's time is taken; it is counted in hundredths of a second.
const REST: Duration = Duration::from_secs(20);

/// Measures everything.
pub(crate) fn run(args: &WireguardArgs) -> Result<Vec<Row>> {
    // Before there is a lab: what they need is fetched once, over the network of the machine.
    let peers =
        if args.peer.is_empty() { program::known() } else { args.peer.iter().map(|peer| Peer::named(peer)).collect::<Result<_>>()? };
    nsm_identity::install_crypto_provider();
    inside(LAB, async |lab| {
        let mut rows = beside(lab, &peers, args).await?;
        if args.devices > 0 {
            rows.extend(many(lab, args.devices).await?);
        }
        Ok(rows)
    })
}

/// The vWire beside the programs that could be had, the sockets of all in the same two nodes.
async fn beside(lab: &Inside, peers: &[Peer], args: &WireguardArgs) -> Result<Vec<Row>> {
    let (ours, mtu) = vwire(lab, "tunnel", ("far", [10, 93, 0, 0]))?;
    let (here, there) = (lab.netns("node-1")?, lab.netns("node-2")?);
    let nodes = [(&here, lab.address("node-1")?), (&there, lab.address("node-2")?)];
    let (mut tunnels, mut missing) = (vec![], vec![]);
    for (Peer { name, program }, port) in peers.iter().zip(program::PORTS) {
        match program {
            Ok(program) => tunnels.push((name.clone(), Tunnel::start(program, mtu, (nodes, port)).await?)),
            Err(why) => missing.push(Row::missing(VWIRE, name.as_str(), why)),
        }
    }
    let sides = Sides { name: VWIRE, ours, peers: tunnels.iter().map(|(name, tunnel)| (name.clone(), tunnel.line())).collect() };
    let wanted = |comparison: &Comparison| comparison.columns.iter().any(|(name, ..)| name.contains(&args.only));
    let comparisons: Vec<Comparison> = COMPARISONS.into_iter().filter(wanted).collect();
    let turns = Turns { rounds: args.rounds, seconds: args.seconds };
    let mut rows = if tunnels.is_empty() { vec![] } else { sides.compare(lab, &comparisons, turns).await? };
    for (_, tunnel) in tunnels {
        tunnel.stop().await?;
    }
    rows.extend(missing);
    Ok(rows)
}

/// Fills the node with encrypted vWires of as many clients, lets them rest, and empties it again.
async fn many(lab: &mut Inside, count: u32) -> Result<Vec<Row>> {
    let mesh = Mesh { source: Source::connect(&lab.workload_api(), IDENTITY_BOUND).await?, manager: lab.manager("node-1") };
    let dialer = mesh.dialer();
    let clients = (0..count).map(|number| mesh.client_of(&dialer, format!("wire-{number}"))).collect::<Result<Vec<_>>>()?;
    let engine = lab.pid(ENGINE)?;
    lab.step(&format!("{count} encrypted vWires: setting up"));
    let (before, begun) = (resident(engine)?, Instant::now());
    let ups = clients.into_iter().map(|client| async {
        let connected = client.connect("tunnel").await?;
        connected.first_packet().await?;
        Ok::<_, Error>(connected)
    });
    let connected: Vec<Connected> = stream::iter(ups).buffer_unordered(FILLING).try_collect().await?;
    let rate = f64::from(count) / begun.elapsed().as_secs_f64();
    let each = (resident(engine)? - before) / f64::from(count);
    lab.step(&format!("{count} encrypted vWires: at rest for {} s", REST.as_secs()));
    let (spent, begun) = (processor(engine)?, Instant::now());
    tokio::time::sleep(REST).await;
    let busy = (processor(engine)? - spent) / begun.elapsed().as_secs_f64() * 100.0;
    lab.step(&format!("{count} encrypted vWires: tearing down"));
    try_join_all(connected.into_iter().map(Connected::close)).await?;
    Ok(vec![
        Row::alone(format!("{count} encrypted vWires: memory of the packet engine, each"), "KiB", each),
        Row::alone(format!("{count} encrypted vWires: set up and probed"), "1/s", rate),
        Row::alone(format!("{count} encrypted vWires: packet engine at rest"), "% of a processor", busy),
    ])
}

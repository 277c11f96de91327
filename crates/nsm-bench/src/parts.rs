//! Where the time of one setup goes: each part timed by itself, on the same mesh, with nothing else going on.

use crate::{
    client::{CALL_BOUND, Mesh},
    row::Row,
    stats::{median, ms},
};
use futures::TryStreamExt;
use ipnet::IpNet;
use nsm_api::*;
use nsm_hop::kernel::{IfName, Iface, Kernel, Link, Netns, Op, Owner, Wire, Wires};
use nsm_identity::Source;
use nsm_lab::Inside;
use nsm_linux::{LinuxKernel, netns};
use std::{net::IpAddr, time::Instant};

/// Network identifier and UDP port of the tunnel that is timed; no vWire has this port.
const TUNNEL: (u32, u16) = (98, 14_790);
/// Milliseconds that a start may take.
const START_BAR: f64 = 100.0;

/// All parts; the median of `samples` each.
pub(crate) async fn measure(lab: &Inside, mesh: &Mesh, samples: u32) -> Result<Vec<Row>> {
    let mut rows = vec![identity(&lab.workload_api(), samples).await?];
    rows.extend(edge(mesh, samples).await?);
    rows.extend(registry(lab, mesh, samples).await?);
    for service in ["local", "remote"] {
        rows.extend(hops(mesh, service, samples).await?);
    }
    rows.extend(kernel(lab, samples).await?);
    Ok(rows)
}

fn row(name: impl Into<String>, times: &[f64]) -> Row {
    Row::alone(format!("part: {}", name.into()), "ms", median(times))
}

async fn timed<T>(times: &mut Vec<f64>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let done = work.await?;
    times.push(ms(begun.elapsed()));
    Ok(done)
}

/// What a client process pays once, before its first Request.
async fn identity(workload_api: &str, samples: u32) -> Result<Row> {
    let mut times = vec![];
    for _ in 0..samples {
        timed(&mut times, Source::connect(workload_api, CALL_BOUND)).await?;
    }
    Ok(row("identity from the Workload API, once in a process", &times))
}

async fn edge(mesh: &Mesh, samples: u32) -> Result<[Row; 2]> {
    let (mut first, mut second) = (vec![], vec![]);
    for _ in 0..samples {
        let dialer = mesh.dialer();
        timed(&mut first, dialer.health(&mesh.manager, "", CALL_BOUND)).await?;
        timed(&mut second, dialer.health(&mesh.manager, "", CALL_BOUND)).await?;
    }
    let dial: Vec<f64> = first.iter().zip(&second).map(|(first, second)| first - second).collect();
    Ok([row("dial the manager, TLS included", &dial), row("a call to the manager that does nothing", &second)])
}

/// The questions that hops ask, from where they ask them.
async fn registry(lab: &Inside, mesh: &Mesh, samples: u32) -> Result<Vec<Row>> {
    let through = questions(mesh, &mesh.manager, "registry through the manager", samples).await?;
    let (mesh, target, fabric) = (mesh.clone(), lab.registry()?, lab.netns("fabric")?);
    let ask = move || -> Result<[Row; 2]> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::internal("async runtime", error.to_string()))?;
        runtime.block_on(questions(&mesh, &target, "registry", samples))
    };
    let direct = netns::run_in(&fabric, ask).await??;
    Ok(direct.into_iter().chain(through).collect())
}

async fn questions(mesh: &Mesh, target: &Target, whom: &str, samples: u32) -> Result<[Row; 2]> {
    let (registry, name) = (mesh.dialer().registry(target), ServiceName::new("local")?);
    let (mut services, mut endpoints) = (vec![], vec![]);
    for number in 0..=samples {
        let query = ServiceQuery { name: Some(name.clone()), ..ServiceQuery::default() };
        let find = async { registry.find_services(query, Caller::within(CALL_BOUND)).await?.try_collect::<Vec<_>>().await };
        timed(&mut services, find).await?;
        let query = EndpointQuery { services: vec![name.clone()], ..EndpointQuery::default() };
        let find = async { registry.find_endpoints(query, Caller::within(CALL_BOUND)).await?.try_collect::<Vec<_>>().await };
        timed(&mut endpoints, find).await?;
        if number == 0 {
            (services, endpoints) = (vec![], vec![]); // these dialled
        }
    }
    Ok([row(format!("{whom}: find a service"), &services), row(format!("{whom}: find its endpoints"), &endpoints)])
}

async fn hops(mesh: &Mesh, service: &str, samples: u32) -> Result<[Row; 3]> {
    let (dialer, mut first, mut again, mut close) = (mesh.dialer(), vec![], vec![], vec![]);
    dialer.health(&mesh.manager, "", CALL_BOUND).await?;
    for number in 0..samples {
        let connected = mesh.client_of(&dialer, format!("part-{number}"))?.connect(service).await?;
        first.push(ms(connected.answered));
        timed(&mut again, connected.refresh()).await?;
        timed(&mut close, connected.close()).await?;
    }
    Ok([
        row(format!("{service}: Request, the manager dialled before"), &first),
        row(format!("{service}: refresh, all hops, nothing to change"), &again),
        row(format!("{service}: Close"), &close),
    ])
}

/// What a forwarder does in the kernel, by the same calls.
async fn kernel(lab: &Inside, samples: u32) -> Result<Vec<Row>> {
    let node = lab.netns("node-1")?;
    let kernel = netns::run_in_blocking(&node, LinuxKernel::new)??;
    let (local, remote) = (lab.address("node-1")?, lab.address("node-2")?);
    let mut rows = vec![];
    for name in ["veth", "VXLAN"] {
        let (mut look, mut make, mut remove) = (vec![], vec![], vec![]);
        for number in 0..samples {
            let (a, b) = (netns::create()?, netns::create()?);
            let wires = if name == "veth" { veth(&a, &b)? } else { vxlan(&a, local, remote)? };
            let id = ConnectionId::new(format!("part-{number}"))?;
            let owner = Owner { hop: HopName::new("bench")?, connection: id, generation: 1 };
            timed(&mut look, kernel.observe(&owner, &wires)).await?;
            timed(&mut make, kernel.apply(&owner, &wires.iter().cloned().map(Op::Add).collect::<Vec<_>>())).await?;
            timed(&mut remove, kernel.apply(&owner, &wires.iter().rev().cloned().map(Op::Del).collect::<Vec<_>>())).await?;
        }
        rows.push(row(format!("kernel: look for a {name}"), &look));
        rows.push(row(format!("kernel: make a {name} with addresses and routes"), &make));
        rows.push(row(format!("kernel: remove a {name}"), &remove));
    }
    Ok(rows)
}

fn veth(a: &Netns, b: &Netns) -> Result<Wires> {
    let (a, b) = (iface(a)?, iface(b)?);
    let mut wires = Wires::from([Wire::Link(Link::Veth { a: a.clone(), b: b.clone() })]);
    wires.extend(end(&a, 1, 0));
    wires.extend(end(&b, 0, 1));
    Ok(wires)
}

fn vxlan(at: &Netns, local: IpAddr, remote: IpAddr) -> Result<Wires> {
    let (at, (vni, port)) = (iface(at)?, TUNNEL);
    let mut wires = Wires::from([Wire::Link(Link::Vxlan { at: at.clone(), local, remote, vni, port })]);
    wires.extend(end(&at, 1, 0));
    Ok(wires)
}

fn end(on: &Iface, own: u8, other: u8) -> [Wire; 2] {
    let address = |last| IpNet::from(IpAddr::from([10, 98, 0, last]));
    [Wire::Address { on: on.clone(), address: address(own) }, Wire::Route { on: on.clone(), prefix: address(other), via: None }]
}

fn iface(netns: &Netns) -> Result<Iface> {
    Ok(Iface { netns: netns.clone(), name: IfName::new("part")? })
}

/// The time until each role serves.
pub(crate) async fn starts(lab: &mut Inside, samples: u32) -> Result<Vec<Row>> {
    let roles: [(&str, &[&str]); 4] = [
        ("identity", &["identity", "--socket", "unix://{dir}/id.sock", "--trust-domain", "start.nsm"]),
        ("registry", &["registry", "--listen-on", "unix://{dir}/registry.sock"]),
        ("manager", &["manager", "--name", "start", "--listen-on", "unix://{dir}/manager.sock", "--registry-url", "tcp://10.231.0.1:5002"]),
        (
            "forwarder",
            &[
                "forwarder",
                "--name",
                "start",
                "--listen-on",
                "unix://{dir}/forwarder.sock",
                "--connect-to",
                "{manager}",
                "--tunnel-ip",
                "10.231.0.11",
            ],
        ),
    ];
    let manager = lab.manager("node-1").to_string();
    let mut rows = vec![];
    for (role, args) in roles {
        let args: Vec<&str> = args.iter().map(|arg| if *arg == "{manager}" { &*manager } else { arg }).collect();
        let mut times = vec![];
        for _ in 0..samples {
            times.push(ms(lab.time_start("node-1", &args).await?));
        }
        rows.push(Row::alone(format!("start to serving: {role}"), "ms", median(&times)).at_most(START_BAR));
    }
    Ok(rows)
}

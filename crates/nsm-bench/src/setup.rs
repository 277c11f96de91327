//! `nsm bench setup`: from Request to first packet, one at a time, many at once, many at the same time; memory, starts,
//! and the parts that a setup is made of.

use crate::{
    cli::SetupArgs,
    client::{Client, Connected, Mesh},
    parts,
    process::resident,
    row::Row,
    stats::{median, ms, percentile},
};
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use nsm_api::{Error, Result};
use nsm_identity::Source;
use nsm_lab::{Inside, inside};
use std::time::{Duration, Instant};

/// Two nodes with an endpoint each, and one client that does nothing but keep its vWire.
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
metadata: {name: bench-setup}
spec:
  nodes: [{name: node-1}, {name: node-2}]
  endpoints:
  - {name: near, node: node-1, kind: icmp-responder, services: [local], payload: IP, cidr: [10.91.0.0/16]}
  - {name: far, node: node-2, kind: icmp-responder, services: [remote], payload: ETHERNET, cidr: [10.92.0.0/16]}
  clients:
  - {name: idle, node: node-1, services: ['kernel://local/nsm-1']}
";
/// How long the first identity may take.
const IDENTITY_BOUND: Duration = Duration::from_secs(10);
/// Setups before any that counts: they dial what stays dialled between the hops.
const WARM_UPS: u32 = 5;
/// Requests on their way at the same time while one node is filled.
const FILLING: usize = 32;
/// Starts of each role.
const STARTS: u32 = 9;
/// Measurements of each part.
const PARTS: u32 = 50;

/// Milliseconds for p50 and p99 of one setup, on one node and on two.
const LOCAL_BARS: [f64; 2] = [25.0, 80.0];
const REMOTE_BARS: [f64; 2] = [60.0, 200.0];
/// So many clients at once have bars: all up, and 99 of 100 up, in seconds.
const AT_ONCE: u32 = 100;
const AT_ONCE_BARS: [f64; 2] = [3.0, 2.0];
/// vWires that one node must hold, how many of them it must set up each second, and the seconds to tear all down.
const WIRES_BAR: u32 = 500;
const RATE_BAR: f64 = 50.0;
const TEARDOWN_BAR: f64 = 2.0;
/// KiB of a process without connections, and for each connection.
const MANAGER_BARS: [f64; 2] = [20.0 * 1024.0, 16.0];
const FORWARDER_BARS: [f64; 2] = [25.0 * 1024.0, 24.0];
const CLIENT_BAR: f64 = 8.0 * 1024.0;

/// Measures everything.
pub(crate) fn run(args: &SetupArgs) -> Result<Vec<Row>> {
    nsm_identity::install_crypto_provider();
    inside(LAB, async |lab| {
        let source = Source::connect(&lab.workload_api(), IDENTITY_BOUND).await?;
        let mesh = Mesh { source, manager: lab.manager("node-1") };
        for service in ["local", "remote"] {
            one_at_a_time(lab, &mesh, service, WARM_UPS).await?;
        }
        // First, while no process has ever held more than one connection: memory that was once used is not given back.
        let mut rows = fill(lab, &mesh, args.wires).await?;
        let mut front = setups("one node", &one_at_a_time(lab, &mesh, "local", args.samples).await?, LOCAL_BARS);
        front.extend(setups("two nodes", &one_at_a_time(lab, &mesh, "remote", args.samples).await?, REMOTE_BARS));
        front.extend(at_once(lab, &mesh, args.clients).await?);
        rows.splice(0..0, front);
        rows.extend(parts::starts(lab, STARTS).await?);
        lab.step("parts of a setup");
        rows.extend(parts::measure(lab, &mesh, PARTS).await?);
        Ok(rows)
    })
}

/// Times of one setup: until the answer, until the first packet, and of the Close. Milliseconds.
struct Setup {
    answered: f64,
    up: f64,
    close: f64,
}

async fn one_at_a_time(lab: &Inside, mesh: &Mesh, service: &str, count: u32) -> Result<Vec<Setup>> {
    let mut setups = vec![];
    for number in 0..count {
        lab.step(&format!("one at a time, {service}: {} of {count}", number + 1));
        let client = mesh.client(format!("single-{number}"))?;
        let begun = Instant::now();
        let connected = client.connect(service).await?;
        connected.first_packet().await?;
        let (answered, up) = (ms(connected.answered), ms(begun.elapsed()));
        let closing = Instant::now();
        connected.close().await?;
        setups.push(Setup { answered, up, close: ms(closing.elapsed()) });
    }
    Ok(setups)
}

fn setups(place: &str, setups: &[Setup], [p50, p99]: [f64; 2]) -> Vec<Row> {
    let column = |value: fn(&Setup) -> f64| setups.iter().map(value).collect::<Vec<f64>>();
    let (up, answered, close) = (column(|setup| setup.up), column(|setup| setup.answered), column(|setup| setup.close));
    vec![
        Row::alone(format!("setup, {place}: Request to first packet p50"), "ms", median(&up)).at_most(p50),
        Row::alone(format!("setup, {place}: Request to first packet p99"), "ms", percentile(&up, 0.99)).at_most(p99),
        Row::alone(format!("setup, {place}: of it until the answer, p50"), "ms", median(&answered)),
        Row::alone(format!("setup, {place}: Close p50"), "ms", median(&close)),
    ]
}

/// All at the same moment, each with a dial of its own.
async fn at_once(lab: &Inside, mesh: &Mesh, count: u32) -> Result<Vec<Row>> {
    lab.step(&format!("{count} clients at once"));
    let clients = clients(mesh, "burst", count)?;
    let begun = Instant::now();
    let ups = clients.into_iter().map(|client| async {
        let connected = client.connect("local").await?;
        connected.first_packet().await?;
        Ok::<_, Error>((connected, begun.elapsed().as_secs_f64()))
    });
    let ups = try_join_all(ups).await?;
    let all = begun.elapsed().as_secs_f64();
    let (connected, times): (Vec<Connected>, Vec<f64>) = ups.into_iter().unzip();
    let closing = Instant::now();
    try_join_all(connected.into_iter().map(Connected::close)).await?;
    let closed = closing.elapsed().as_secs_f64();
    let barred = |row: Row, bar: f64| if count == AT_ONCE { row.at_most(bar) } else { row };
    Ok(vec![
        barred(Row::alone(format!("{count} clients at once: all up"), "s", all), AT_ONCE_BARS[0]),
        barred(Row::alone(format!("{count} clients at once: Request to first packet p99"), "s", percentile(&times, 0.99)), AT_ONCE_BARS[1]),
        Row::alone(format!("{count} clients at once: Request to first packet p50"), "s", median(&times)),
        Row::alone(format!("{count} clients at once: all closed"), "s", closed),
    ])
}

fn clients(mesh: &Mesh, name: &str, count: u32) -> Result<Vec<Client>> {
    (0..count).map(|number| mesh.client(format!("{name}-{number}"))).collect()
}

/// Fills one node, probes every vWire, and empties it again; with the memory that it takes.
async fn fill(lab: &mut Inside, mesh: &Mesh, count: u32) -> Result<Vec<Row>> {
    let before = Memory::of(lab)?;
    lab.step(&format!("{count} vWires on a node: namespaces"));
    let clients = clients(mesh, "wire", count)?;
    try_join_all(clients.iter().map(Client::dial)).await?;
    let dialled = Memory::of(lab)?;
    lab.step(&format!("{count} vWires on a node: setting up"));
    let begun = Instant::now();
    let connects = clients.into_iter().map(|client| client.connect("local"));
    let connected: Vec<Connected> = stream::iter(connects).buffer_unordered(FILLING).try_collect().await?;
    let up = begun.elapsed().as_secs_f64();
    lab.step(&format!("{count} vWires on a node: probing"));
    let begun = Instant::now();
    let probes = connected.iter().map(|connected| connected.first_packet());
    let answered = stream::iter(probes).buffer_unordered(FILLING).filter(|probe| std::future::ready(probe.is_ok())).count().await;
    let probed = begun.elapsed().as_secs_f64();
    let full = Memory::of(lab)?;
    lab.step(&format!("{count} vWires on a node: tearing down"));
    let begun = Instant::now();
    let repeats = try_join_all(connected.into_iter().map(Connected::close)).await?;
    let down = begun.elapsed().as_secs_f64();
    let after = Memory::of(lab)?;
    let holds = Row::alone("vWires on a node, all probed", "vWires", answered as f64);
    let closed = Row::alone(format!("{count} vWires: torn down"), "s", down);
    let mut rows = vec![
        if count >= WIRES_BAR { holds.at_least(f64::from(WIRES_BAR)) } else { holds },
        Row::alone(format!("{count} vWires: set up"), "s", up).at_most(f64::from(count) / RATE_BAR),
        Row::alone(format!("{count} vWires: each probed once"), "s", probed),
        if count == WIRES_BAR { closed.at_most(TEARDOWN_BAR) } else { closed },
        Row::alone(format!("{count} vWires: Closes asked for again"), "calls", f64::from(repeats.iter().sum::<u32>())),
    ];
    rows.extend(memory(count, [&before, &dialled, &full, &after]));
    Ok(rows)
}

/// Resident memory of processes, KiB.
struct Memory {
    manager: f64,
    forwarder: f64,
    client: f64,
}

impl Memory {
    fn of(lab: &mut Inside) -> Result<Memory> {
        Ok(Memory {
            manager: resident(lab.pid("node-1-manager")?)?,
            forwarder: resident(lab.pid("node-1-forwarder")?)?,
            client: resident(lab.pid("idle")?)?,
        })
    }
}

fn memory(count: u32, [before, dialled, full, after]: [&Memory; 4]) -> Vec<Row> {
    let column = |of: fn(&Memory) -> f64| [before, full, after].map(of);
    let mut rows = process("manager", count, column(|memory| memory.manager), MANAGER_BARS);
    let transport = (dialled.manager - before.manager) / f64::from(count);
    rows.push(Row::alone("memory: manager, of it the client's TLS connection", "KiB", transport));
    rows.extend(process("forwarder", count, column(|memory| memory.forwarder), FORWARDER_BARS));
    rows.push(Row::alone("memory: client with one connection", "KiB", before.client).at_most(CLIENT_BAR));
    rows
}

fn process(name: &str, count: u32, [before, full, after]: [f64; 3], [idle, each]: [f64; 2]) -> Vec<Row> {
    vec![
        Row::alone(format!("memory: {name} without connections"), "KiB", before).at_most(idle),
        Row::alone(format!("memory: {name}, each of {count} connections"), "KiB", (full - before) / f64::from(count)).at_most(each),
        Row::alone(format!("memory: {name} after all were closed"), "KiB", after),
    ]
}

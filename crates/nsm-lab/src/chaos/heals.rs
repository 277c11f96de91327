//! `nsm lab heals`: how long a client is without packets when its endpoint dies, or when the way there falls silent, and
//! another endpoint stands ready; over short and long ways. And that mere loss is no reason to go elsewhere.

use super::case::objects;
use crate::{
    checks::{client_pods, connections_of},
    cli::HealsArgs,
    inside::{Inside, inside},
    judges::{
        holders::Holders,
        pulse::{Pulse, Toll, Track},
    },
    progress::Progress,
    schema::{Direction, Fault, LinkFault, Only, Span},
    world::World,
};
use nsm_api::{Error, Kind, Result};
use serde::Serialize;
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Between two echoes.
const PACE: Duration = Duration::from_millis(2);
/// How long a heal may take at most before the run is given up.
const HEAL_BOUND: Duration = Duration::from_secs(15);
/// A client gives up a silent wire at most once in five seconds; between two runs it is longer.
const BETWEEN: Duration = Duration::from_millis(5500);
/// How long the last echoes may take, besides the round trip.
const PATIENCE: Duration = Duration::from_millis(700);
/// Between two looks; each starts processes.
const PAUSE: Duration = Duration::from_millis(50);
/// The bound is D + C x round trip + K: detection by the end of a stream, or by silence; round trips of a new way over five
/// hops; and everything that is no waiting. Milliseconds.
const DETECTION: [f64; 2] = [50.0, 1200.0];
const ROUND_TRIPS: f64 = 25.0;
const WORK: f64 = 300.0;
/// Round trips up to this come of the links themselves, milliseconds.
const NATURAL: f64 = 0.5;

const LAB: &str = r#"
apiVersion: networkservicemesh.io/v1
kind: NetworkService
metadata: {name: heals}
spec: {payload: ETHERNET}
---
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: heals}
spec:
  linkSeed: SEED
  registry: {env: {NSM_STORE: "file:{files}/registry"}}
  nodes: [{name: node-1}, {name: node-2}, {name: node-3}]
  endpoints:
  - {name: one, node: node-2, services: [heals], payload: ETHERNET, cidr: [10.84.0.0/29], ipam: strict}
  - {name: two, node: node-3, services: [heals], payload: ETHERNET, cidr: [10.85.0.0/29], ipam: strict}
  clients:
  - {name: client, node: node-1, services: ['kernel://heals/nsm-1']}
"#;
/// The addresses of an endpoint's side, of every pair in its pool.
const ENDS: [u8; 4] = [0, 2, 4, 6];

/// How the endpoint is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Loss {
    /// Its pod dies.
    Killed,
    /// Nothing on the way says that nothing passes any more.
    Silent,
}

/// What came of one kind at one round trip.
#[derive(Clone, Debug, Serialize)]
struct Row {
    loss: Loss,
    rtt_ms: f64,
    /// Each silence, milliseconds, sorted.
    silences_ms: Vec<f64>,
    p50_ms: f64,
    p99_ms: f64,
    bound_ms: f64,
    ok: bool,
}

/// Measures, or waits, and prints; `false` when a bound does not hold.
pub(crate) fn heals(args: &HealsArgs) -> Result<bool> {
    let text = LAB.replace("SEED", &args.seed.to_string());
    if let Some(minutes) = args.lossy {
        return lossy(&text, minutes, args.json);
    }
    let rows = inside(&text, async |lab: &mut Inside| {
        let mut rows = Vec::new();
        for rtt in &args.rtt {
            for loss in [Loss::Killed, Loss::Silent] {
                rows.push(measure(lab, (loss, *rtt), args.runs).await?);
            }
        }
        Ok(rows)
    })?;
    let ok = rows.iter().all(|row| row.ok);
    if args.json {
        println!("{}", serde_json::json!({ "ok": ok, "rows": rows }));
    } else {
        println!("  {:8}{:>10}{:>7}{:>12}{:>12}{:>12}", "endpoint", "rtt ms", "runs", "p50 ms", "p99 ms", "bound ms");
        for row in &rows {
            let (mark, word, runs) = (if row.ok { "✓" } else { "✗" }, format!("{:?}", row.loss).to_lowercase(), row.silences_ms.len());
            println!("{mark} {word:8}{:>10}{runs:>7}{:>12.0}{:>12.0}{:>12.0}", row.rtt_ms, row.p50_ms, row.p99_ms, row.bound_ms);
        }
    }
    Ok(ok)
}

async fn measure(lab: &mut Inside, (loss, rtt): (Loss, f64), runs: u32) -> Result<Row> {
    let (world, progress) = lab.parts();
    let mut silences = Vec::new();
    for run in 0..runs {
        progress.step(&format!("{loss:?}, {rtt} ms: {} of {runs}", run + 1));
        let toll = heal(world, (loss, rtt)).await?;
        silences.push(toll.silence.as_secs_f64() * 1e3);
    }
    for node in ["node-1", "node-2", "node-3"] {
        set(world, node, LinkFault::default()).await?;
    }
    silences.sort_by(f64::total_cmp);
    let at = |part: f64| silences[((silences.len() as f64 * part).ceil() as usize).clamp(1, silences.len()) - 1];
    let bound_ms = DETECTION[usize::from(loss == Loss::Silent)] + ROUND_TRIPS * rtt + WORK;
    let (p50_ms, p99_ms) = (at(0.5), at(0.99));
    Ok(Row { loss, rtt_ms: rtt, p50_ms, p99_ms, bound_ms, ok: p99_ms <= bound_ms, silences_ms: silences })
}

/// One heal: from the endpoint that the client has to the other one, and all well again afterwards.
async fn heal(world: &mut World, (loss, rtt): (Loss, f64)) -> Result<Toll> {
    for node in ["node-1", "node-2", "node-3"] {
        set(world, node, late(rtt)).await?;
    }
    let (from, node, to) = match endpoint(world).await?.as_str() {
        "one" => ("one", "node-2", "two"),
        _ => ("two", "node-3", "one"),
    };
    tokio::time::sleep(BETWEEN).await;
    let netns = world.places.get(&world.file.lab.namespace("client"))?.netns.clone();
    let ends = [84, 85].into_iter().flat_map(|net| ENDS.map(|last| IpAddr::from([10, net, 0, last]))).collect();
    let (pulse, holders) = (Pulse::start(&[Track { netns, to: ends }], PACE)?, Holders::start(client_pods(world)?)?);
    tokio::time::sleep(Duration::from_millis(200) + late_by(rtt)).await;
    let begun = pulse.now();
    match loss {
        Loss::Killed => world.fault(&Fault::Death { pod: from.to_owned() }).await?,
        Loss::Silent => set(world, node, LinkFault { loss: 100.0, only: Only::Udp, ..late(rtt) }).await?,
    }
    moved(world, to).await?;
    let end = pulse.now();
    tokio::time::sleep(PATIENCE + late_by(rtt)).await;
    let toll = pulse.all(begun.saturating_sub(Duration::from_millis(100)), end + Duration::from_millis(200));
    pulse.end()?;
    if let Some((address, pods)) = holders.end()?.into_iter().next() {
        return Err(Error::internal(format!("address {address}"), format!("was held by {pods:?} at once")));
    }
    match loss {
        Loss::Killed => world.begin(from).await?,
        Loss::Silent => set(world, node, late(rtt)).await?,
    }
    Ok(toll)
}

fn late_by(rtt: f64) -> Duration {
    Duration::from_secs_f64(rtt / 1e3)
}

/// A packet and its answer each pass the links of two nodes.
fn late(rtt: f64) -> LinkFault {
    let delay = (rtt > NATURAL).then(|| Span(late_by(rtt / 4.0)));
    LinkFault { delay, direction: Direction::Both, ..LinkFault::default() }
}

async fn set(world: &mut World, node: &str, fault: LinkFault) -> Result<()> {
    world.fault(&Fault::Link { node: node.to_owned(), fault }).await
}

/// The endpoint that the client has now.
async fn endpoint(world: &World) -> Result<String> {
    let all = connections_of(world, "client").await?;
    let whole = all.iter().max_by_key(|listed| listed.path.path_segments.len());
    let last = whole.and_then(|listed| listed.names().last().map(|name| (*name).to_owned()));
    last.ok_or_else(|| Error::new(Kind::NotFound, "connection of the client", "no manager lists it", "see the log of the client"))
}

async fn moved(world: &World, to: &str) -> Result<()> {
    let begun = Instant::now();
    while endpoint(world).await.ok().as_deref() != Some(to) {
        if begun.elapsed() > HEAL_BOUND {
            let reason = format!("is not with endpoint {to} within {} s", HEAL_BOUND.as_secs());
            return Err(Error::new(Kind::Timeout, "the client", reason, "see its log: keep it with nsm lab run --keep"));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Nothing is healed for so long though five of a hundred packets are lost each way, two arrive twice, and all are 20 to 80 ms late.
fn lossy(text: &str, minutes: f64, json: bool) -> Result<bool> {
    let (toll, changes) = inside(text, async |lab: &mut Inside| {
        let (world, progress) = lab.parts();
        let before = (endpoint(world).await?, objects(world)?);
        let node = if before.0 == "one" { "node-2" } else { "node-3" };
        let span = |ms| Some(Span(Duration::from_millis(ms)));
        set(world, node, LinkFault { loss: 5.0, duplicate: 2.0, delay: span(50), jitter: span(30), ..LinkFault::default() }).await?;
        let netns = world.places.get(&world.file.lab.namespace("client"))?.netns.clone();
        let net = if before.0 == "one" { 84 } else { 85 };
        let pulse = Pulse::start(&[Track { netns, to: vec![IpAddr::from([10, net, 0, 0])] }], Duration::from_millis(10))?;
        let changes = watch(world, progress, &before, Duration::from_secs_f64(minutes * 60.0)).await?;
        let end = pulse.now();
        tokio::time::sleep(PATIENCE).await;
        let toll = pulse.all(Duration::ZERO, end);
        pulse.end()?;
        set(world, node, LinkFault::default()).await?;
        Ok((toll, changes))
    })?;
    let ok = changes.is_empty() && toll.sent > toll.lost;
    let Toll { sent, lost, silence, .. } = toll;
    if json {
        println!("{}", serde_json::json!({ "ok": ok, "minutes": minutes, "sent": sent, "lost": lost, "changes": changes }));
    } else {
        let words = if changes.is_empty() { "nothing was healed".to_owned() } else { changes.join("; ") };
        let share = lost as f64 * 100.0 / sent.max(1) as f64;
        println!(
            "{} {minutes} minutes, {lost} of {sent} echoes lost ({share:.1} %), silent for {silence:?} at most: {words}",
            if ok { "✓" } else { "✗" }
        );
    }
    Ok(ok)
}

type State = (String, std::collections::BTreeSet<(String, String)>);

async fn watch(world: &World, progress: &Progress, before: &State, span: Duration) -> Result<Vec<String>> {
    let begun = Instant::now();
    let mut changes = Vec::new();
    while begun.elapsed() < span && changes.is_empty() {
        progress.step(&format!("five percent lost: {:.0} of {:.0} s", begun.elapsed().as_secs_f64(), span.as_secs_f64()));
        tokio::time::sleep(Duration::from_secs(1).min(span)).await;
        let now = endpoint(world).await?;
        changes.extend((now != before.0).then(|| format!("the client is with {now}")));
        let now = objects(world)?;
        changes.extend(before.1.symmetric_difference(&now).take(5).map(|(netns, line)| format!("changed in {netns}: {line}")));
    }
    Ok(changes)
}

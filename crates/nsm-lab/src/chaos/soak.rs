//! `nsm lab soak`: vWires come and go all the time while faults happen; nothing may grow, and nothing may stay.
//!
//! In the first third of the time processes die, too. In the rest they live, so that what they take can be compared: they are
//! stopped for a moment, and links between the nodes are bad. After each round everybody goes, and it is quiet: then no
//! kernel object and no connection is left, and every process is measured.

use super::case::objects;
use crate::{
    checks::connections_at,
    cli::SoakArgs,
    client::{Client, Mesh},
    inside::{Inside, inside},
    judges::bounds::Sample,
    plan::Role,
    progress::Progress,
    schema::{Ending, Fault, LinkFault, Span},
    world::World,
};
use nsm_api::{Error, Result};
use nsm_identity::Source;
use nsm_linux::net::Net;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const LAB: &str = r#"
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
kind: Lab
metadata: {name: soak}
spec:
  linkSeed: SEED
  registry: {env: {NSM_STORE: "file:{files}/registry"}}
  nodes: [{name: node-1}, {name: node-2}]
  endpoints:
  - {name: near, node: node-1, services: [near], payload: IP, cidr: [10.91.0.0/16]}
  - {name: far, node: node-2, services: [far], payload: ETHERNET, cidr: [10.92.0.0/16]}
"#;

/// Whom faults hit.
const VICTIMS: [&str; 8] =
    ["node-1-manager", "node-1-forwarder", "node-2-manager", "node-2-forwarder", "registry", "identity", "near", "far"];
/// Rounds at least, and the seconds of one at most.
const MIN_ROUNDS: u32 = 6;
const LONGEST_ROUND: f64 = 60.0;
/// Between two faults, milliseconds.
const BETWEEN: std::ops::RangeInclusive<u64> = 1500..=5000;
/// How long a process is away or stopped, or a link bad, milliseconds.
const AWAY: std::ops::RangeInclusive<u64> = 200..=1000;
/// How long a vWire lives, milliseconds.
const LIFE: std::ops::RangeInclusive<u64> = 300..=1500;
/// Seconds of coming that may be there at a time; more do not come.
const MAX_GUESTS: usize = 40;
/// How long the last guests may take to go, and everything they had.
const GONE_BOUND: Duration = Duration::from_secs(45);
/// How long the first identity may take.
const IDENTITY_BOUND: Duration = Duration::from_secs(10);
/// Between two looks; each starts processes.
const PAUSE: Duration = Duration::from_millis(200);
/// What may grow from the first quiet moment after the first third to the last, by the line through all of them: KiB once, and
/// in each hour; and descriptors and threads.
const GROWTH: [f64; 2] = [2048.0, 1024.0];
const MORE: usize = 4;
/// Sentences that are told of one kind.
const MAX_TOLD: usize = 10;

/// What the guests met with.
#[derive(Clone, Debug, Default, Serialize)]
struct Count {
    created: u64,
    closed: u64,
    /// Asked while a fault was going on, and got no vWire.
    refused: u64,
    /// Was given a vWire that carried nothing within five seconds.
    dead: u64,
    /// Did not come, because too many were there.
    held_back: u64,
    /// The last words of some that were refused.
    words: Vec<String>,
    /// What must not happen.
    violations: Vec<String>,
}

/// A quiet moment.
#[derive(Clone, Debug, Serialize)]
struct Quiet {
    seconds: f64,
    /// Links, addresses and all else in the kernels beyond what was there at first.
    objects: usize,
    processes: BTreeMap<String, Sample>,
}

/// How a process grew.
#[derive(Clone, Debug, Serialize)]
struct Growth {
    process: String,
    first: Sample,
    last: Sample,
    /// KiB in an hour, by the line through all quiet moments.
    slope: f64,
    ok: bool,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    ok: bool,
    seed: u64,
    minutes: f64,
    count: Count,
    faults: BTreeMap<String, u32>,
    growth: Vec<Growth>,
    quiet: Vec<Quiet>,
}

/// Runs it and prints what came of it; `false` when something grew, stayed or went wrong.
pub(crate) fn soak(args: &SoakArgs) -> Result<bool> {
    nsm_identity::install_crypto_provider();
    let text = LAB.replace("SEED", &args.seed.to_string());
    let outcome = inside(&text, async |lab: &mut Inside| {
        let source = Source::connect(&lab.workload_api(), IDENTITY_BOUND).await?;
        let mesh = Mesh { source, manager: lab.manager("node-1") };
        let (world, progress) = lab.parts();
        Soak::new(args, mesh).run(world, progress).await
    })?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome).expect("texts and numbers are always JSON"));
    } else {
        println!("{}", table(&outcome));
    }
    Ok(outcome.ok)
}

struct Soak {
    random: StdRng,
    rate: u32,
    minutes: f64,
    seed: u64,
    mesh: Mesh,
    count: Arc<Mutex<Count>>,
    guests: JoinSet<()>,
    came: u64,
    faults: BTreeMap<String, u32>,
}

impl Soak {
    fn new(args: &SoakArgs, mesh: Mesh) -> Soak {
        let random = StdRng::seed_from_u64(args.seed);
        let SoakArgs { rate, minutes, seed, .. } = *args;
        Soak { random, rate, minutes, seed, mesh, count: Arc::default(), guests: JoinSet::new(), came: 0, faults: BTreeMap::new() }
    }

    async fn run(mut self, world: &mut World, progress: &Progress) -> Result<Outcome> {
        let (begun, before) = (Instant::now(), objects(world)?);
        let seconds = self.minutes * 60.0;
        let rounds = ((seconds / LONGEST_ROUND).ceil() as u32).max(MIN_ROUNDS);
        let length = Duration::from_secs_f64(seconds / f64::from(rounds));
        let mut quiet = Vec::new();
        for round in 0..rounds {
            progress.step(&format!("round {} of {rounds}", round + 1));
            let until = Instant::now() + length;
            self.round(world, until, round < rounds / 3).await?;
            self.empty(world, &before).await?;
            quiet.push(Quiet {
                seconds: begun.elapsed().as_secs_f64(),
                objects: objects(world)?.difference(&before).count(),
                processes: samples(world)?,
            });
        }
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let growth = growth(&quiet[(rounds / 3) as usize..]);
        let ok = count.violations.is_empty() && growth.iter().all(|growth| growth.ok) && quiet.iter().all(|quiet| quiet.objects == 0);
        let ok = ok && count.created > 0 && count.created == count.closed;
        Ok(Outcome { ok, seed: self.seed, minutes: self.minutes, count, faults: self.faults, growth, quiet })
    }

    /// Guests come at a fixed rate, and one fault follows the other.
    async fn round(&mut self, world: &mut World, until: Instant, deadly: bool) -> Result<()> {
        let mut door = tokio::time::interval(Duration::from_secs(1) / self.rate);
        door.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        while Instant::now() < until {
            let (fault, pause) = (self.draw(deadly), Duration::from_millis(self.random.random_range(BETWEEN)));
            *self.faults.entry(fault.word().to_owned()).or_default() += 1;
            let happening = async {
                tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
                fault.happen(world).await
            };
            tokio::pin!(happening);
            loop {
                tokio::select! {
                    done = &mut happening => break done?,
                    _ = door.tick() => {
                        let guest = self.guest();
                        while self.guests.try_join_next().is_some() {}
                        if self.guests.len() < MAX_GUESTS * self.rate as usize {
                            self.guests.spawn(guest);
                        } else {
                            self.count.lock().unwrap_or_else(PoisonError::into_inner).held_back += 1;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// One who comes, looks whether packets pass, stays a while and goes.
    fn guest(&mut self) -> impl Future<Output = ()> + Send + use<> {
        self.came += 1;
        let (name, service) = (format!("guest-{}", self.came), if self.came.is_multiple_of(2) { "near" } else { "far" });
        let (life, count, mesh) = (Duration::from_millis(self.random.random_range(LIFE)), self.count.clone(), self.mesh.clone());
        async move {
            let met = match mesh.client(&name) {
                Ok(client) => visit(client, service, life, &count).await,
                Err(error) => Err(error),
            };
            if let Err(error) = met {
                let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
                if count.violations.len() < MAX_TOLD {
                    count.violations.push(format!("{name}: {error}"));
                }
            }
        }
    }

    fn draw(&mut self, deadly: bool) -> Blow {
        let victim = VICTIMS[self.random.random_range(0..VICTIMS.len())];
        let away = Duration::from_millis(self.random.random_range(AWAY));
        match self.random.random_range(0..if deadly { 5 } else { 3 }) {
            0 => Blow::Link(
                away,
                LinkFault { loss: 20.0, duplicate: 5.0, delay: Some(Span(Duration::from_millis(5))), ..LinkFault::default() },
            ),
            1 | 2 => Blow::Stop(victim, away),
            3 => Blow::Kill(victim, away),
            _ => Blow::Kill(victim, Duration::ZERO),
        }
    }

    /// Waits until all guests have gone and nothing is left of them. What stays is noted.
    async fn empty(&mut self, world: &World, before: &std::collections::BTreeSet<(String, String)>) -> Result<()> {
        let until = Instant::now() + GONE_BOUND;
        while let Ok(Some(_)) = tokio::time::timeout(until.saturating_duration_since(Instant::now()), self.guests.join_next()).await {}
        loop {
            let left = self.left(world, before).await?;
            if left.is_none() || Instant::now() > until {
                let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
                let staying = self.guests.len();
                count.violations.extend(left);
                count.violations.extend((staying > 0).then(|| format!("{staying} guests could not go")));
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn left(&self, world: &World, before: &std::collections::BTreeSet<(String, String)>) -> Result<Option<String>> {
        if let Some((netns, line)) = objects(world)?.difference(before).next() {
            return Ok(Some(format!("left in {netns}: {line}")));
        }
        for node in &world.file.lab.nodes {
            let listed = crate::judges::folds::believed(&connections_at(world, &node.name).await?)?;
            if !listed.is_empty() {
                return Ok(Some(format!("the manager of {} still lists {} connections", node.name, listed.len())));
            }
        }
        Ok(None)
    }
}

/// An error is what must not happen; to be refused while something is broken may happen.
async fn visit(client: Client, service: &str, life: Duration, count: &Mutex<Count>) -> Result<()> {
    let add = |what: fn(&mut Count)| what(&mut count.lock().unwrap_or_else(PoisonError::into_inner));
    let connected = match client.connect(service).await {
        Ok(connected) => connected,
        Err(error) => {
            add(|count| count.refused += 1);
            let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
            if count.words.len() < MAX_TOLD {
                count.words.push(error.to_string());
            }
            return Ok(());
        }
    };
    add(|count| count.created += 1);
    if connected.first_packet().await.is_err() {
        add(|count| count.dead += 1);
    }
    tokio::time::sleep(life).await;
    let netns = connected.netns();
    connected.close().await?;
    add(|count| count.closed += 1);
    let left = Net::new(&netns)?.links()?.into_iter().find(|link| link.name != "lo");
    left.map_or(Ok(()), |link| Err(Error::internal(format!("interface {}", link.name), "is there after its Close was answered")))
}

/// Something that happens.
enum Blow {
    Stop(&'static str, Duration),
    Kill(&'static str, Duration),
    Link(Duration, LinkFault),
}

impl Blow {
    fn word(&self) -> &'static str {
        match self {
            Blow::Stop(..) => "stop and continue",
            Blow::Kill(..) => "kill and start",
            Blow::Link(..) => "bad link",
        }
    }
    async fn happen(&self, world: &mut World) -> Result<()> {
        match self {
            Blow::Stop(victim, away) => {
                world.process(victim)?.signal_alive(Signal::STOP)?;
                tokio::time::sleep(*away).await;
                world.process(victim)?.signal_alive(Signal::CONT)
            }
            Blow::Kill(victim, away) => {
                world.end(victim, Ending::Kill).await?;
                tokio::time::sleep(*away).await;
                world.begin(victim).await
            }
            Blow::Link(away, fault) => {
                let node = "node-2".to_owned();
                world.fault(&Fault::Link { node: node.clone(), fault: fault.clone() }).await?;
                tokio::time::sleep(*away).await;
                world.fault(&Fault::Link { node, fault: LinkFault::default() }).await
            }
        }
    }
}

fn samples(world: &mut World) -> Result<BTreeMap<String, Sample>> {
    let mut all = BTreeMap::new();
    for (name, process) in &mut world.processes {
        if !process.has_ended() && process.spec.role != Role::App {
            all.insert(name.clone(), Sample::of(process.pid)?);
        }
    }
    Ok(all)
}

fn growth(quiet: &[Quiet]) -> Vec<Growth> {
    let (Some(first), Some(last)) = (quiet.first(), quiet.last()) else { return Vec::new() };
    let hours = (last.seconds - first.seconds) / 3600.0;
    let of = |(name, begin): (&String, &Sample)| {
        let end = last.processes.get(name)?;
        let points: Vec<(f64, f64)> =
            quiet.iter().filter_map(|quiet| Some((quiet.seconds / 3600.0, quiet.processes.get(name)?.resident as f64))).collect();
        let slope = slope(&points);
        let flat = end.descriptors <= begin.descriptors + MORE && end.threads <= begin.threads + MORE;
        let ok = flat && slope * hours <= GROWTH[0] + GROWTH[1] * hours;
        Some(Growth { process: name.clone(), first: *begin, last: *end, slope, ok })
    };
    first.processes.iter().filter_map(of).collect()
}

/// Of the straight line that fits best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let (x, y) = (points.iter().map(|(x, _)| x).sum::<f64>() / count, points.iter().map(|(_, y)| y).sum::<f64>() / count);
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), (px, py)| (above + (px - x) * (py - y), below + (px - x).powi(2)));
    if below > 0.0 { above / below } else { 0.0 }
}

fn table(outcome: &Outcome) -> String {
    let Outcome { minutes, seed, count, .. } = outcome;
    let mut lines = vec![format!("  {:20}{:>20}{:>14}{:>18}{:>14}", "process", "resident KiB", "in an hour", "descriptors", "threads")];
    for Growth { process, first, last, slope, ok } in &outcome.growth {
        let (mark, pair) = (if *ok { "✓" } else { "✗" }, |a: usize, b: usize| format!("{a} → {b}"));
        let (kib, descriptors) = (pair(first.resident, last.resident), pair(first.descriptors, last.descriptors));
        lines.push(format!("{mark} {process:20}{kib:>20}{slope:>14.0}{descriptors:>18}{:>14}", pair(first.threads, last.threads)));
    }
    let faults: Vec<String> = outcome.faults.iter().map(|(word, times)| format!("{times} × {word}")).collect();
    let Count { created, closed, refused, dead, held_back, words, violations } = count;
    lines.push(format!("\nfaults: {}", faults.join(", ")));
    lines.push(format!(
        "vWires: {created} created, {closed} closed; {refused} refused, {dead} without a packet in time, {held_back} held back"
    ));
    lines.extend(words.iter().take(3).map(|words| format!("  refused: {words}")));
    lines.extend(violations.iter().map(|what| format!("✗ {what}")));
    let objects: usize = outcome.quiet.iter().map(|quiet| quiet.objects).sum();
    lines.push(format!(
        "{} {minutes} minutes, {} quiet moments, {objects} objects left, seed {seed}",
        if outcome.ok { "✓" } else { "✗" },
        outcome.quiet.len()
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_the_line_through_all_moments() {
        assert_eq!(slope(&[(0.0, 10.0), (1.0, 20.0), (2.0, 30.0)]), 10.0);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
        let quiet = |seconds: f64, resident: usize, descriptors: usize| {
            let sample = Sample { resident, descriptors, threads: 3 };
            Quiet { seconds, objects: 0, processes: [("manager".to_owned(), sample)].into() }
        };
        assert!(growth(&[quiet(0.0, 9000, 30), quiet(1800.0, 9900, 31), quiet(3600.0, 9500, 30)])[0].ok);
        assert!(!growth(&[quiet(0.0, 9000, 30), quiet(1800.0, 11000, 30), quiet(3600.0, 13000, 30)])[0].ok, "memory");
        assert!(!growth(&[quiet(0.0, 9000, 30), quiet(1800.0, 9000, 35), quiet(3600.0, 9000, 40)])[0].ok, "descriptors");
    }
}

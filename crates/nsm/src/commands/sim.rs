//! `nsm sim run`: plays a topology under seeded time, faults and packets, and says what did not hold.

use super::table;
use crate::{
    context::{Context, Output},
    exit::Exit,
    nsurl::ServiceUrl,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Error, NetworkService, Payload, Result, ServiceName};
use nsm_lab::schema::{EndpointKind, Lab};
use nsm_registry::manifest::Documents;
use nsm_sim::{
    Options, Outcome, Topology,
    topology::{self, Client, Endpoint},
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const MAX_SEEDS: u32 = 1_000_000;
const MAX_MINUTES: u32 = 600;
/// Violations that are shown whole in text.
const SHOWN: usize = 3;
/// What is played when no topology is named: nodes, endpoints, clients.
const BUILT_IN: (usize, usize, usize) = (3, 3, 10);

pub(crate) const OPTIONS: &[Opt] = &[
    Opt::words(
        "topology",
        Shape::File,
        "A lab file: its nodes, endpoints and clients are played; without one, 3 nodes, 3 endpoints and 10 clients",
    ),
    Opt::new("seeds", "", "20", Shape::Number(MAX_SEEDS), "How many seeds to play, from 1 on"),
    Opt::new("seed", "", "", Shape::Text, "Play this seed only, and show its last events if something does not hold"),
    Opt::new("minutes", "", "10", Shape::Number(MAX_MINUTES), "Simulated minutes in which things go wrong"),
];

/// The whole series.
#[derive(Serialize)]
struct Report {
    ok: bool,
    seeds: u64,
    seeds_per_second: f64,
    events: u64,
    /// Longest time from the last fault until everything was up, milliseconds.
    longest_recovery_ms: u64,
    violations: Vec<Bad>,
}

#[derive(Serialize)]
struct Bad {
    replay: String,
    #[serde(flatten)]
    outcome: Outcome,
}

pub(crate) async fn run(mut settings: Settings, context: Context) -> Result<Exit> {
    let files = settings.words("topology");
    let (seeds, minutes): (u64, u64) = (settings.text("seeds"), settings.text("minutes"));
    let seed: Option<u64> = settings.optional("seed");
    if files.len() > 1 {
        settings.mistake("more than one topology is named");
    }
    settings.finish()?;
    let topology = match files.first() {
        Some(file) => of_lab(Path::new(file))?,
        None => Topology::built_in(BUILT_IN.0, BUILT_IN.1, BUILT_IN.2),
    };
    topology.check()?;
    let options = Options { faults: Duration::from_secs(60 * minutes), ..Options::default() };
    let all = seed.map_or(1..seeds + 1, |seed| seed..seed.saturating_add(1));
    let file = files.first().map_or(String::new(), |file| format!(" {file}"));
    let replay = move |seed: u64| format!("nsm sim run{file} --seed {seed} --minutes {minutes}");
    let report = tokio::task::spawn_blocking(move || series(&topology, &options, all, &replay)).await;
    let report = report.map_err(|failed| Error::internal("the simulation", failed.to_string()))??;
    match context.output {
        Output::Json => table::say(&table::json_line(&report)?)?,
        Output::Text => table::say(&text(&report))?,
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

/// Every core plays the next seed that nobody has.
fn series(topology: &Topology, options: &Options, seeds: std::ops::Range<u64>, replay: &dyn Fn(u64) -> String) -> Result<Report> {
    let (begin, next) = (Instant::now(), AtomicU64::new(seeds.start));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let play = || {
        let turns = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|seed| seeds.contains(seed));
        turns.map(|seed| nsm_sim::run(topology, options, seed)).collect::<Result<Vec<Outcome>>>()
    };
    let mut outcomes = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(play)).collect();
        let died = |_| Err(Error::internal("the simulation", "a thread of it ended by a panic"));
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(died)).collect::<Result<Vec<Vec<Outcome>>>>()
    })?
    .concat();
    outcomes.sort_by_key(|outcome| outcome.seed);
    let count = outcomes.len() as u64;
    let events = outcomes.iter().map(|outcome| outcome.events).sum();
    let longest_recovery_ms = outcomes.iter().map(|outcome| outcome.up_after_ms).max().unwrap_or_default();
    let bad = outcomes.into_iter().filter(|outcome| outcome.violation.is_some());
    let violations: Vec<Bad> = bad.map(|outcome| Bad { replay: replay(outcome.seed), outcome }).collect();
    let seeds_per_second = count as f64 / begin.elapsed().as_secs_f64();
    Ok(Report { ok: violations.is_empty(), seeds: count, seeds_per_second, events, longest_recovery_ms, violations })
}

fn text(report: &Report) -> String {
    let row = [
        report.seeds.to_string(),
        format!("{:.1}", report.seeds_per_second),
        report.events.to_string(),
        format!("{:.1} s", report.longest_recovery_ms as f64 / 1000.0),
        report.violations.len().to_string(),
    ];
    let mut text = table::render(["SEEDS", "SEEDS/S", "EVENTS", "LONGEST RECOVERY", "VIOLATIONS"], [row].into_iter());
    for (i, bad) in report.violations.iter().enumerate() {
        let Some(violation) = &bad.outcome.violation else { continue };
        text += &format!("\n\nat {:.3} s: {}\n  replay: {}", violation.at_ms as f64 / 1000.0, violation.sentence, bad.replay);
        if report.seeds == 1 && i < SHOWN {
            text += &violation.last.iter().map(|line| format!("\n  {line}")).collect::<String>();
        }
    }
    text
}

/// The part of a lab that can be played.
fn of_lab(path: &Path) -> Result<Topology> {
    let file = nsm_lab::read_file(path)?;
    let lab = &file.lab;
    let nodes: Vec<String> = lab.nodes.iter().map(|node| node.name.clone()).collect();
    let place = |name: &str| nodes.iter().position(|node| node == name).unwrap_or(usize::MAX); // the check of the topology refuses it
    let mut clients = Vec::new();
    for client in &lab.clients {
        let urls = client.services.iter().map(|url| url.parse::<ServiceUrl>()).collect::<Result<Vec<_>>>()?;
        let services = urls.into_iter().map(|url| (url.service.to_string(), url.labels)).collect();
        clients.push(Client { name: client.name.clone(), node: place(&client.node), services });
    }
    let endpoints = lab.endpoints.iter().enumerate().map(|(i, endpoint)| Endpoint {
        name: endpoint.name.clone(),
        node: place(&endpoint.node),
        services: endpoint.services.clone(),
        labels: endpoint.labels.clone(),
        pools: vec![topology::pool(i)],
    });
    let endpoints = endpoints.collect();
    let services = services(path, &file.services, lab)?;
    refuse_what_is_missing(path, lab, &services)?;
    Ok(Topology { nodes, endpoints, clients, services })
}

/// Those of the file, and those that its endpoints bring along.
fn services(path: &Path, documents: &[String], lab: &Lab) -> Result<Vec<NetworkService>> {
    let mut services = Documents::read(&path.display().to_string(), &documents.join("\n---\n"))?.services;
    let mut known: BTreeSet<String> = services.iter().map(|service| service.name.to_string()).collect();
    for endpoint in &lab.endpoints {
        for name in endpoint.services.iter().filter(|name| known.insert((*name).clone())) {
            let payload = endpoint.payload.map_or(Payload::Ethernet, Payload::from);
            services.push(NetworkService::new(ServiceName::new(name)?, payload));
        }
    }
    Ok(services)
}

fn refuse_what_is_missing(path: &Path, lab: &Lab, services: &[NetworkService]) -> Result<()> {
    let refuse = |what: String, fix: &str| Err(Error::invalid(format!("lab file {:?}", path.display().to_string()), what, fix));
    if let Some(endpoint) = lab.endpoints.iter().find(|endpoint| endpoint.kind != EndpointKind::IcmpResponder) {
        return refuse(
            format!("has the {} endpoint {:?}, which the simulation cannot play", endpoint.kind.as_str(), endpoint.name),
            "leave it out",
        );
    }
    let packets = services.iter().find(|service| lab.nodes.len() > 1 && service.payload != Payload::Ethernet);
    match packets {
        Some(service) => refuse(
            format!("has service {:?} with packets between nodes, and the simulation has no encrypted tunnels", service.name.as_str()),
            "set payload ETHERNET, or place all on one node",
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_becomes_a_topology_or_is_refused_with_a_reason() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let hello = of_lab(&examples.join("hello.yaml")).unwrap();
        assert!(hello.check().is_ok() && !hello.clients.is_empty() && !hello.services.is_empty());
        let chain = of_lab(&examples.join("firewall-then-gateway.yaml")).unwrap_err();
        assert!(chain.to_string().contains("passthrough"), "{chain}");
    }
}

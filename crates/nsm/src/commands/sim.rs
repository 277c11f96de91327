//! `nsm sim`: plays a topology under seeded time, faults and packets, and says what did not hold or what becomes of it.

mod lab;
mod questions;

pub(crate) use questions::{SCRIPT_OPTIONS, WHAT_IF_OPTIONS, script, what_if};

use super::table;
use crate::{
    context::{Context, Output},
    exit::Exit,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Error, Result};
use nsm_sim::{Options, Outcome, Topology, faults::Timed, shrink::shrink};
use serde::Serialize;
use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const MAX_SEEDS: u32 = 1_000_000;
const MAX_MINUTES: u32 = 600;
/// Violations that are shown whole in text.
const SHOWN: usize = 3;
const TOPOLOGY: Opt = Opt::words(
    "topology",
    Shape::File,
    "A lab file: its nodes, endpoints and clients are played; without one, 3 nodes, 3 endpoints and 10 clients",
);

pub(crate) const OPTIONS: &[Opt] = &[
    TOPOLOGY,
    Opt::new("seeds", "", "20", Shape::Number(MAX_SEEDS), "How many seeds to play, from --first on"),
    Opt::new("first", "", "1", Shape::Number(u32::MAX), "The first seed"),
    Opt::new("seed", "", "", Shape::Text, "Play this seed only, and show its last events if something does not hold"),
    Opt::new("minutes", "", "10", Shape::Number(MAX_MINUTES), "Simulated minutes in which things go wrong"),
    Opt::new("faults", "", "", Shape::File, "A file with the faults to play with --seed, instead of those that it brings"),
    Opt::new("shrink", "", "false", Shape::Bool, "With --seed: look for the fewest faults that still show it, and print them"),
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
    /// The faults that shrinking has left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<String>,
}

/// What is played.
struct Play {
    topology: Topology,
    options: Options,
    seeds: std::ops::Range<u64>,
    faults: Option<Vec<Timed>>,
    shrinks: bool,
    /// The command, without the seed.
    command: String,
}

pub(crate) async fn run(mut settings: Settings, context: Context) -> Result<Exit> {
    let files = settings.words("topology");
    let (seeds, first, minutes): (u64, u64, u64) = (settings.text("seeds"), settings.text("first"), settings.text("minutes"));
    let (seed, faults): (Option<u64>, Option<String>) = (settings.optional("seed"), settings.optional("faults"));
    let shrinks = settings.boolean("shrink");
    if files.len() > 1 {
        settings.mistake("more than one topology is named");
    }
    if seed.is_none() && (shrinks || faults.is_some()) {
        settings.mistake("--shrink and --faults are for one --seed");
    }
    settings.finish()?;
    let file = files.first().map_or(String::new(), |file| format!(" {file}"));
    let play = Play {
        topology: lab::named(&files)?,
        options: Options { faults: Duration::from_secs(60 * minutes), ..Options::default() },
        seeds: seed.map_or(first..first.saturating_add(seeds), |seed| seed..seed.saturating_add(1)),
        faults: faults.as_deref().map(read_faults).transpose()?,
        shrinks,
        command: format!("nsm sim run{file} --minutes {minutes}{}", faults.map_or(String::new(), |file| format!(" --faults {file}"))),
    };
    let report = played(move || series(&play)).await?;
    match context.output {
        Output::Json => table::say(&table::json_line(&report)?)?,
        Output::Text => table::say(&text(&report))?,
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

/// Runs `play` on a thread of its own, without a word of the hops: what they say is about faults that are wanted.
async fn played<T: Send + 'static>(play: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || quietly(play)).await;
    done.unwrap_or_else(|failed| Err(Error::internal("the simulation", failed.to_string())))
}

fn quietly<T>(work: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), work)
}

/// One fault a line; empty lines and what begins with `#` count for nothing.
fn read_faults(file: &str) -> Result<Vec<Timed>> {
    let text = fs::read_to_string(file)
        .map_err(|error| Error::invalid(format!("file {file:?}"), error.to_string(), "name a file that can be read"))?;
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::parse).collect()
}

/// Every core plays the next seed that nobody has.
fn series(play: &Play) -> Result<Report> {
    let (begin, next) = (Instant::now(), AtomicU64::new(play.seeds.start));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let turns = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|seed| play.seeds.contains(seed));
        quietly(|| turns.map(|seed| one(play, seed)).collect::<Result<Vec<Outcome>>>())
    };
    let mut outcomes = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let died = |_| Err(Error::internal("the simulation", "a thread of it ended by a panic"));
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(died)).collect::<Result<Vec<Vec<Outcome>>>>()
    })?
    .concat();
    outcomes.sort_by_key(|outcome| outcome.seed);
    let count = outcomes.len() as u64;
    let events = outcomes.iter().map(|outcome| outcome.events).sum();
    let longest_recovery_ms = outcomes.iter().map(|outcome| outcome.up_after_ms).max().unwrap_or_default();
    let bad = outcomes.into_iter().filter(|outcome| outcome.violation.is_some());
    let violations = bad.map(|outcome| describe(play, outcome)).collect::<Result<Vec<Bad>>>()?;
    let seeds_per_second = count as f64 / begin.elapsed().as_secs_f64();
    Ok(Report { ok: violations.is_empty(), seeds: count, seeds_per_second, events, longest_recovery_ms, violations })
}

fn one(play: &Play, seed: u64) -> Result<Outcome> {
    match &play.faults {
        Some(faults) => nsm_sim::run_with(&play.topology, &play.options, seed, faults),
        None => nsm_sim::run(&play.topology, &play.options, seed),
    }
}

fn describe(play: &Play, outcome: Outcome) -> Result<Bad> {
    let replay = format!("{} --seed {}", play.command, outcome.seed);
    let shrunk = if play.shrinks { shrink(&play.topology, &play.options, outcome.seed)? } else { None };
    Ok(match shrunk {
        Some(shrunk) => Bad { replay, outcome: shrunk.outcome, faults: shrunk.faults.iter().map(Timed::to_string).collect() },
        None => Bad { replay, outcome, faults: vec![] },
    })
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
        if !bad.faults.is_empty() {
            text += "\n  with these faults alone (put them into a file for --faults):";
            text += &bad.faults.iter().map(|line| format!("\n    {line}")).collect::<String>();
        }
        if report.seeds == 1 && i < SHOWN {
            text += &violation.last.iter().map(|line| format!("\n  {line}")).collect::<String>();
        }
    }
    text
}

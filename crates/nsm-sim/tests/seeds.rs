//! Whole domains under faults. I1 to I4, I6 to I9, I11 to I14.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use nsm_sim::{Options, Outcome, Topology, faults::drawn, run, run_with, shrink::shrink};
use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

fn short() -> Options {
    Options { faults: Duration::from_secs(60), ..Options::default() }
}

/// The same seed twice is the same run, event by event; another seed is another.
#[test]
fn a_seed_repeats_itself() {
    let topology = Topology::built_in(3, 3, 10);
    let first = run(&topology, &short(), 7).unwrap();
    assert_eq!(first, run(&topology, &short(), 7).unwrap());
    assert_ne!(first.hash, run(&topology, &short(), 8).unwrap().hash);
    assert!(first.events > 1000, "{} events", first.events);
}

/// Without faults everything comes up, stays and goes, and nobody notices anything.
#[test]
fn nothing_goes_wrong_by_itself() {
    for (nodes, endpoints, clients) in [(1, 1, 1), (1, 2, 5), (2, 1, 4), (5, 3, 20)] {
        let options = Options { faults: Duration::ZERO, ..Options::default() };
        let outcome = run(&Topology::built_in(nodes, endpoints, clients), &options, 1).unwrap();
        assert_eq!(outcome.violation, None, "{nodes} nodes");
        assert_eq!(outcome.up_after_ms, 0);
    }
}

/// Plays so many seeds on two threads; what did not hold, each with the command that plays it again.
fn violations(first: u64, count: u64) -> Vec<String> {
    let play = move |from: u64| {
        let seeds = (from..first + count).step_by(2);
        thread::spawn(move || seeds.map(|seed| run(&Topology::built_in(3, 3, 10), &short(), seed).unwrap()).collect::<Vec<_>>())
    };
    let [one, other] = [play(first), play(first + 1)];
    let outcomes = [one.join().unwrap(), other.join().unwrap()].concat();
    let said = |Outcome { seed, violation, .. }: &Outcome| {
        Some(format!("nsm sim run --minutes 1 --seed {seed} --shrink true: {}", violation.as_ref()?.sentence))
    };
    outcomes.iter().filter_map(said).collect()
}

/// Two hundred domains, always the same.
#[test]
fn what_must_hold_holds() {
    let bad = violations(1, 200);
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Domains that nobody has seen before; NSM_SEEDS says how many.
#[test]
fn what_must_hold_holds_for_fresh_seeds() {
    let count = std::env::var("NSM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let bad = violations(now.as_millis() as u64, count);
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Seeds that have shown what was wrong once, in the version that they were played with. What was wrong is in `mutations.txt`.
#[test]
fn what_was_found_is_not_found_again() {
    for (seed, minutes) in [(6, 2), (11, 1), (18, 10), (20, 2), (46, 2), (55, 1), (96, 1), (102, 2), (156, 2), (2227, 2)] {
        let options = Options { faults: Duration::from_secs(60 * minutes), ..Options::default() };
        let outcome = run(&Topology::built_in(3, 3, 10), &options, seed).unwrap();
        assert_eq!(outcome.violation, None, "seed {seed} of {minutes} minutes");
    }
}

/// Each violation can be shrunk to a few faults, which show it again. Here the violation is that time is too short.
#[test]
fn a_violation_shrinks() {
    let options = Options { token_life: Duration::from_secs(2), ..short() };
    let topology = Topology::built_in(2, 2, 3);
    let Some(shrunk) = shrink(&topology, &options, 1).unwrap() else { panic!("tokens of two seconds survive a minute of faults") };
    let all = drawn(&topology, 1, options.faults);
    assert!(shrunk.faults.len() < all.len(), "{:?}", shrunk.faults);
    let again = run_with(&topology, &options, 1, &shrunk.faults).unwrap();
    assert_eq!(again, shrunk.outcome);
}

/// Every deliberate mistake can be made: its lines are there, once.
#[test]
fn mutations_can_be_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("mutations.txt")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let blocks: Vec<&[&str]> = lines.split(|line| line.is_empty()).filter(|block| !block.is_empty()).collect();
    assert!(blocks.len() >= 20, "{} mutations", blocks.len());
    for block in blocks {
        let block: Vec<&str> = block.iter().copied().filter(|line| !line.starts_with('?')).collect();
        let old: String = block[2..].iter().filter_map(|line| line.strip_prefix("- ")).map(|line| format!("{line}\n")).collect();
        let file = fs::read_to_string(root.join("../..").join(block[1])).unwrap();
        assert_eq!(file.matches(&old).count(), 1, "{}: bring its lines up to date in mutations.txt", block[0]);
    }
}

/// A topology that makes no sense is refused with a reason.
#[test]
fn a_topology_is_checked() {
    let mut topology = Topology::built_in(2, 1, 1);
    topology.clients[0].name = "n1-manager".to_owned();
    assert!(run(&topology, &short(), 1).unwrap_err().to_string().contains("two processes"));
    topology.clients[0] = nsm_sim::topology::Client { name: "c".to_owned(), node: 9, services: vec![] };
    assert!(run(&topology, &short(), 1).unwrap_err().to_string().contains("node number 9"));
    assert!(run(&Topology::built_in(0, 0, 0), &short(), 1).is_err());
}

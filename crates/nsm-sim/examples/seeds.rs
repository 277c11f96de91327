//! Plays seeds of the built-in topology: `seeds FIRST COUNT [MINUTES [NODES ENDPOINTS CLIENTS]]`.

use nsm_sim::{Options, Topology, run};
use std::time::{Duration, Instant};

fn main() -> nsm_api::Result<()> {
    // What the hops say, with NSM_LOG=1; more than the last events before a violation, with NSM_EVENTS=number.
    if std::env::var_os("NSM_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG).without_time().with_ansi(false).init();
    }
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let of = |i: usize, default: u64| numbers.get(i).copied().unwrap_or(default);
    let topology = Topology::built_in(of(3, 3) as usize, of(4, 3) as usize, of(5, 10) as usize);
    let mut options = Options { faults: Duration::from_secs(60 * of(2, 10)), ..Options::default() };
    if let Some(shown) = std::env::var("NSM_EVENTS").ok().and_then(|text| text.parse().ok()) {
        options.shown = shown;
    }
    let (begin, mut events, mut bad) = (Instant::now(), 0, 0);
    for seed in of(0, 1)..of(0, 1) + of(1, 1) {
        let outcome = run(&topology, &options, seed)?;
        events += outcome.events;
        if of(1, 1) <= 3 {
            println!("seed {seed}: {} events, {}", outcome.events, outcome.hash);
        }
        if let Some(violation) = &outcome.violation {
            bad += 1;
            println!("seed {seed} at {} ms: {}", violation.at_ms, violation.sentence);
            if of(1, 1) == 1 {
                violation.last.iter().for_each(|line| println!("  {line}"));
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{} seeds, {bad} with a violation, {events} events, {:.1} seeds/s", of(1, 1), of(1, 1) as f64 / seconds);
    Ok(())
}

//! From many faults to the fewest that still show what does not hold.

use crate::{
    Options, Outcome, Topology,
    faults::{self, Timed},
    run::run_with,
};
use nsm_api::Result;
use std::time::Duration;

/// Runs that shrinking may take.
pub const MAX_RUNS: usize = 300;

/// What shrinking came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The faults that are left.
    pub faults: Vec<Timed>,
    /// What the seed does with them.
    pub outcome: Outcome,
}

/// The fewest faults of `seed` that lead to a violation of the same invariant; `None` when all of them lead to none.
/// Takes parts away, smaller and smaller, for as long as it helps.
pub fn shrink(topology: &Topology, options: &Options, seed: u64) -> Result<Option<Shrunk>> {
    let all = faults::drawn(topology, seed, options.faults);
    let outcome = run_with(topology, options, seed, &all)?;
    let Some(violation) = &outcome.violation else { return Ok(None) };
    let (wanted, before) = (invariant(&violation.sentence).to_owned(), Duration::from_millis(violation.at_ms));
    let mut best = Shrunk { faults: all.into_iter().filter(|timed| timed.at < before).collect(), outcome };
    let (mut runs, mut part) = (0, best.faults.len().div_ceil(2).max(1));
    while runs < MAX_RUNS {
        let mut helped = false;
        let mut from = 0;
        while from < best.faults.len() && runs < MAX_RUNS {
            let to = (from + part).min(best.faults.len());
            let fewer: Vec<Timed> = [&best.faults[..from], &best.faults[to..]].concat();
            let outcome = run_with(topology, options, seed, &fewer)?;
            runs += 1;
            if outcome.violation.as_ref().is_some_and(|violation| invariant(&violation.sentence) == wanted) {
                best = Shrunk { faults: fewer, outcome };
                helped = true;
            } else {
                from = to;
            }
        }
        if part == 1 && !helped {
            break;
        }
        part = (part / 2).max(1);
    }
    Ok(Some(best))
}

/// `I4` of `I4: ...`.
fn invariant(sentence: &str) -> &str {
    sentence.split(':').next().unwrap_or(sentence)
}

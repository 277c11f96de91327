//! A vWire and what it is compared with, measured in turns.

use crate::{
    meter::{self, Line, Waiting},
    row::{Holds, Row},
    stats::median,
};
use nsm_api::{Error, Kind, Result};
use nsm_lab::Inside;
use std::time::Duration;

/// Turns of one second: other work on the machine comes and goes more slowly, and so disturbs both sides alike.
const TURNS: u64 = 5;
/// How long a line warms up (neighbours, caches, processor clocks) before it counts.
const WARM_UP: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// So many streams at once, Gbit/s.
    Tcp { streams: usize },
    /// UDP packets with so many bytes of payload, millions each second.
    Packets { payload: usize },
    /// p50 and p99, microseconds.
    RoundTrip(Waiting),
}

impl Figure {
    /// One measurement; two values when it has two.
    fn measure(self, line: &Line, span: Duration) -> Result<Vec<f64>> {
        Ok(match self {
            Figure::Tcp { streams } => vec![meter::tcp(line, streams, span)?],
            Figure::Packets { payload } => vec![meter::packets(line, payload, span)? / 1e6],
            Figure::RoundTrip(waiting) => {
                let times = meter::round_trips(line, waiting, span)?;
                vec![times.p50, times.p99]
            }
        })
    }
}

/// A figure; name and unit of each of its values, and when they are good enough.
pub(crate) struct Comparison {
    pub(crate) figure: Figure,
    pub(crate) columns: &'static [(&'static str, &'static str, Holds)],
}

/// How long each figure is measured.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    pub(crate) rounds: u32,
    /// Of one round on each side.
    pub(crate) seconds: u64,
}

/// A vWire and what it is compared with.
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    pub(crate) ours: Line,
    pub(crate) peer: String,
    pub(crate) theirs: Line,
}

impl Pair {
    /// One row for each column.
    pub(crate) async fn compare(&self, lab: &Inside, comparisons: &[Comparison], turns: Turns) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for comparison in comparisons {
            let (ours, theirs) = self.alternate(lab, comparison, turns).await?;
            for ((name, unit, holds), (ours, theirs)) in comparison.columns.iter().zip(ours.iter().zip(&theirs)) {
                let row = Row::alone(format!("{}: {name}", self.name), unit, median(ours));
                rows.push(row.beside(self.peer.as_str(), median(theirs), *holds));
            }
        }
        Ok(rows)
    }
    /// The values of all turns, by column: ours and theirs.
    async fn alternate(&self, lab: &Inside, comparison: &Comparison, turns: Turns) -> Result<(Vec<Vec<f64>>, Vec<Vec<f64>>)> {
        let Comparison { figure, columns } = comparison;
        let (mut ours, mut theirs) = (vec![vec![]; columns.len()], vec![vec![]; columns.len()]);
        measure(*figure, &self.ours, WARM_UP).await?;
        measure(*figure, &self.theirs, WARM_UP).await?;
        for round in 0..turns.rounds {
            lab.step(&format!("{}: {}, {} of {}", self.name, columns[0].0, round + 1, turns.rounds));
            for turn in 0..turns.seconds * TURNS {
                // A B, B A, ...: whatever grows or fades over time does not prefer one.
                let mut sides = [(&self.ours, &mut ours), (&self.theirs, &mut theirs)];
                if turn % 2 == 1 {
                    sides.reverse();
                }
                for (line, values) in sides {
                    let measured = measure(*figure, line, Duration::from_secs(1) / TURNS as u32).await?;
                    values.iter_mut().zip(measured).for_each(|(column, value)| column.push(value));
                }
            }
        }
        Ok((ours, theirs))
    }
}

/// On a thread of its own, so that the user's wish to stop is heard meanwhile.
async fn measure(figure: Figure, line: &Line, span: Duration) -> Result<Vec<f64>> {
    let line = line.clone();
    let measuring = tokio::task::spawn_blocking(move || figure.measure(&line, span)).await;
    measuring.unwrap_or_else(|problem| Err(Error::new(Kind::Internal, "a measurement", problem.to_string(), "report this")))
}

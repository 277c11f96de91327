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
pub(crate) struct Sides {
    pub(crate) name: &'static str,
    pub(crate) ours: Line,
    /// By name; at least one.
    pub(crate) peers: Vec<(String, Line)>,
}

impl Sides {
    /// A row for each column and peer.
    pub(crate) async fn compare(&self, lab: &Inside, comparisons: &[Comparison], turns: Turns) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for comparison in comparisons {
            let measured = self.alternate(lab, comparison, turns).await?;
            let (ours, theirs) = measured.split_first().expect("our own side is the first");
            for (column, (name, unit, holds)) in comparison.columns.iter().enumerate() {
                for ((peer, _), theirs) in self.peers.iter().zip(theirs) {
                    let row = Row::alone(format!("{}: {name}", self.name), unit, median(&ours[column]));
                    rows.push(row.beside(peer.as_str(), median(&theirs[column]), *holds));
                }
            }
        }
        Ok(rows)
    }
    /// The values of all turns, by side and column; ours is the first side.
    async fn alternate(&self, lab: &Inside, comparison: &Comparison, turns: Turns) -> Result<Vec<Vec<Vec<f64>>>> {
        let Comparison { figure, columns } = comparison;
        let lines: Vec<&Line> = [&self.ours].into_iter().chain(self.peers.iter().map(|(_, line)| line)).collect();
        let mut values = vec![vec![vec![]; columns.len()]; lines.len()];
        for line in &lines {
            measure(*figure, line, WARM_UP).await?;
        }
        let mut order: Vec<usize> = (0..lines.len()).collect();
        for round in 0..turns.rounds {
            lab.step(&format!("{}: {}, {} of {}", self.name, columns[0].0, round + 1, turns.rounds));
            for _ in 0..turns.seconds * TURNS {
                for side in &order {
                    let measured = measure(*figure, lines[*side], Duration::from_secs(1) / TURNS as u32).await?;
                    values[*side].iter_mut().zip(measured).for_each(|(column, value)| column.push(value));
                }
                // A B, B A, ...: whatever grows or fades over time does not prefer one.
                order.rotate_left(1);
            }
        }
        Ok(values)
    }
}

/// On a thread of its own, so that the user's wish to stop is heard meanwhile.
async fn measure(figure: Figure, line: &Line, span: Duration) -> Result<Vec<f64>> {
    let line = line.clone();
    let measuring = tokio::task::spawn_blocking(move || figure.measure(&line, span)).await;
    measuring.unwrap_or_else(|problem| Err(Error::new(Kind::Internal, "a measurement", problem.to_string(), "report this")))
}

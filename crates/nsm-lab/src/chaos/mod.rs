//! `nsm lab chaos`: every role of the mesh meets with every fault, alone and together with every other role, while packets
//! pass over many vWires; a table of what was lost, how long it took, and what was left.
//!
//! `nsm lab heals` measures how long it takes to get to another endpoint, and `nsm lab soak` how much a mesh grows in half an
//! hour of coming and going. Not here: what the faults are ([`crate::faults`]) and who judges ([`crate::judges`]).

mod case;
pub(crate) mod heals;
mod matrix;
mod page;
pub(crate) mod soak;
mod stage;

use crate::{
    cli::{ChaosArgs, program},
    inside::{Inside, inside},
    world::World,
};
use case::Bench;
use matrix::Case;
use nsm_api::{Error, Result};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, time::Instant};

/// Characters of the columns of the table.
const WIDTHS: [usize; 4] = [34, 10, 18, 12];

/// What came of one case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What the case is.
    #[serde(flatten)]
    pub(crate) case: Case,
    /// Probes sent and lost over all vWires.
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    /// Longest time in which nothing was answered over some vWire, if anything was lost there, milliseconds.
    pub(crate) silent_ms: u64,
    /// From the first fault until every process served and every manager knew everything again, milliseconds.
    pub(crate) healed_ms: u64,
    /// How many kernel objects are there and were not before, or the other way round.
    pub(crate) objects: usize,
    /// Some of them, when that is not as it must be.
    pub(crate) changed: Vec<String>,
    /// Everything else that did not hold.
    pub(crate) violations: Vec<String>,
    /// All of it is as it must be.
    pub(crate) ok: bool,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) ok: bool,
    pub(crate) seed: u64,
    pub(crate) vwires: usize,
    pub(crate) seconds: f64,
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) cases: Vec<Row>,
    /// What held at the end, or not.
    pub(crate) left: Vec<String>,
}

/// Runs the whole matrix and prints it; `false` when something did not hold.
pub(crate) fn chaos(args: &ChaosArgs) -> Result<bool> {
    let begun = Instant::now();
    let fits = |case: &Case| args.filter.iter().all(|word| case.words().contains(word.as_str()));
    let cases: Vec<Case> = matrix::cases(args.seed, args.alone).into_iter().filter(fits).collect();
    if cases.is_empty() {
        return Err(Error::invalid("filter", "no case has all of these words", "use words of the table: identity, kill, node-1-manager"));
    }
    let outcome = inside(&stage::text(args.vwires), async |lab: &mut Inside| {
        let (rows, left) = play(lab, &cases).await?;
        let (sent, lost) = rows.iter().fold((0, 0), |(sent, lost), row| (sent + row.sent, lost + row.lost));
        let ok = left.is_empty() && rows.iter().all(|row| row.ok);
        Ok(Outcome { ok, seed: args.seed, vwires: args.vwires as usize, seconds: 0.0, sent, lost, cases: rows, left })
    })?;
    let outcome = Outcome { seconds: begun.elapsed().as_secs_f64(), ..outcome };
    let json = serde_json::to_string(&outcome).expect("texts and numbers are always JSON");
    if let Some(dir) = &args.write {
        write(dir, &outcome, &json)?;
    }
    println!("{}", if args.json { json } else { table(&outcome) });
    Ok(outcome.ok)
}

async fn play(lab: &mut Inside, cases: &[Case]) -> Result<(Vec<Row>, Vec<String>)> {
    let (world, progress) = lab.parts();
    let mut bench = Bench::new(world)?;
    bench.quiet(world).await?;
    let mut rows = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        progress.step(&format!("{} of {}: {}", number + 1, cases.len(), case.words()));
        let row = bench.case(world, case).await?;
        if !row.ok {
            progress.remark(&format!("✗ {}: {}", case.words(), verdict(&row)));
        }
        rows.push(row);
    }
    let left = bench.end(world).await?;
    Ok((rows, left))
}

fn write(dir: &Path, outcome: &Outcome, json: &str) -> Result<()> {
    let files = BTreeMap::from([
        ("chaos.md", page::text(outcome, &version()?)),
        ("chaos.svg", page::picture(outcome)),
        ("chaos.json", format!("{json}\n")),
    ]);
    for (name, text) in files {
        let path = dir.join(name);
        let failed = |error: std::io::Error| Error::internal(format!("file {}", path.display()), format!("cannot be written: {error}"));
        std::fs::write(&path, text).map_err(failed)?;
    }
    Ok(())
}

/// What `nsm version` says.
fn version() -> Result<String> {
    let output = std::process::Command::new(program()?).arg("version").output();
    let output = output.map_err(|error| Error::internal("nsm version", error.to_string()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("nsm").to_owned())
}

/// What is to be said of a row besides its numbers.
fn verdict(row: &Row) -> String {
    let mut words = vec![format!("{} of {} lost, silent for {} ms", row.lost, row.sent, row.silent_ms)];
    words.extend(row.changed.iter().cloned());
    words.extend(row.violations.iter().cloned());
    words.join("; ")
}

fn table(outcome: &Outcome) -> String {
    let [who, fault, lost, healed] = WIDTHS;
    let mut lines = vec![format!("  {:who$}{:fault$}{:>lost$}{:>healed$}{:>10}", "who", "fault", "lost of sent", "healed", "objects")];
    for row in &outcome.cases {
        let (mark, number) = (if row.ok { "✓" } else { "✗" }, format!("{} of {}", row.lost, row.sent));
        let (after, objects) = (format!("{} ms", row.healed_ms), row.objects);
        lines.push(format!("{mark} {:who$}{:fault$}{number:>lost$}{after:>healed$}{objects:>10}", row.case.who(), row.case.fault.word()));
        if !row.ok {
            lines.push(format!("    {}", verdict(row)));
        }
    }
    lines.extend(outcome.left.iter().map(|left| format!("✗ at the end: {left}")));
    let held = outcome.cases.iter().filter(|row| row.ok).count();
    let Outcome { seed, vwires, seconds, lost, sent, .. } = outcome;
    let count = outcome.cases.len();
    lines.push(format!("\n{held} of {count} cases held, {vwires} vWires, {lost} of {sent} packets lost, seed {seed}, {seconds:.0} s"));
    lines.join("\n")
}

/// Everything that a run of this kind asks of a world before it is taken down.
pub(crate) async fn descriptors(world: &mut World) -> Result<Vec<String>> {
    let seen = crate::checks::descriptors(world, stage::SPARE_DESCRIPTORS).await?;
    Ok(if seen.ok { Vec::new() } else { vec![seen.text] })
}

//! `nsm sim what-if` and `nsm sim script`.

use super::{TOPOLOGY, lab, played};
use crate::{
    commands::table,
    context::{Context, Output},
    exit::Exit,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Error, Result};
use nsm_sim::{
    Topology, script as scripts,
    what_if::{Answer, Growth, Question, ask, grow, picture},
};
use serde::Serialize;
use std::fs;

/// Sizes of the built-in topology that growth is shown with: nodes, endpoints, clients.
const SIZES: [(usize, usize, usize); 4] = [(3, 3, 10), (6, 6, 20), (12, 12, 40), (24, 24, 80)];

pub(crate) const WHAT_IF_OPTIONS: &[Opt] = &[
    TOPOLOGY,
    Opt::new("zone", "", "", Shape::List, "Nodes that die together; without it, each of them once"),
    Opt::new("seed", "", "1", Shape::Number(u32::MAX), "The seed of everything that is drawn"),
    Opt::new("svg", "", "", Shape::File, "Write a picture of the question that disturbs most: connections over time, silence in red"),
];

pub(crate) const SCRIPT_OPTIONS: &[Opt] = &[Opt::words("script", Shape::File, "A script, as in crates/nsm-sim/scripts")];

#[derive(Serialize)]
struct Report {
    answers: Vec<Answer>,
    growth: Vec<Growth>,
}

pub(crate) async fn what_if(mut settings: Settings, context: Context) -> Result<Exit> {
    let files = settings.words("topology");
    let (zone, seed): (Vec<String>, u64) = (settings.list("zone"), settings.text("seed"));
    let svg: Option<String> = settings.optional("svg");
    if files.len() > 1 {
        settings.mistake("more than one topology is named");
    }
    settings.finish()?;
    let topology = lab::named(&files)?;
    let report = played(move || answer(&topology, zone, seed)).await?;
    if let (Some(file), Some(worst)) = (svg, report.answers.iter().max_by_key(|answer| (answer.lost, answer.longest_silence_ms))) {
        fs::write(&file, picture(worst))
            .map_err(|error| Error::invalid(format!("file {file:?}"), error.to_string(), "name a file that can be written"))?;
    }
    match context.output {
        Output::Json => table::say(&table::json_line(&report)?)?,
        Output::Text => table::say(&text(&report))?,
    }
    Ok(Exit::Ok)
}

fn answer(topology: &Topology, zone: Vec<String>, seed: u64) -> Result<Report> {
    let zones = if zone.is_empty() { topology.nodes.iter().map(|node| vec![node.clone()]).collect() } else { vec![zone] };
    let questions = zones.into_iter().map(Question::Zone).chain([Question::Registry, Question::Upgrade]);
    let answers = questions.map(|question| ask(topology, &question, seed)).collect::<Result<_>>()?;
    let growth = SIZES.map(|(nodes, endpoints, clients)| grow(&Topology::built_in(nodes, endpoints, clients), seed));
    Ok(Report { answers, growth: growth.into_iter().collect::<Result<_>>()? })
}

fn text(report: &Report) -> String {
    let rows = report.answers.iter().map(|answer| {
        let seconds = format!("{:.1} s", answer.longest_silence_ms as f64 / 1000.0);
        let [all, disturbed, lost] = [answer.connections, answer.disturbed, answer.lost].map(|count| count.to_string());
        [answer.question.clone(), all, disturbed, seconds, lost]
    });
    let answers = table::render(["WHAT IF", "VWIRES", "DISTURBED", "LONGEST SILENCE", "LOST"], rows);
    let rows = report.growth.iter().map(|growth| {
        let up = format!("{:.2} s", growth.up_ms as f64 / 1000.0);
        [growth.nodes.to_string(), growth.connections.to_string(), up, growth.events.to_string()]
    });
    let growth = table::render(["NODES", "VWIRES", "ALL UP AFTER", "EVENTS"], rows);
    format!("{answers}\n\n{growth}")
}

pub(crate) async fn script(mut settings: Settings, _: Context) -> Result<Exit> {
    let files = settings.words("script");
    if files.len() != 1 {
        settings.mistake("name one script");
    }
    settings.finish()?;
    let read = |file: &String| {
        fs::read_to_string(file).map_err(|error| Error::invalid(format!("file {file:?}"), error.to_string(), "name a script"))
    };
    let before = files.first().map(read).transpose()?.unwrap_or_default();
    let script = before.clone();
    let after = played(move || scripts::play(&script)).await?;
    table::say(after.trim_end())?;
    // What a script says beside its commands is what it expects.
    let expects = before.lines().any(|line| !line.is_empty() && !line.starts_with(['#', '>']));
    Ok(if expects && after != before { Exit::Failed } else { Exit::Ok })
}

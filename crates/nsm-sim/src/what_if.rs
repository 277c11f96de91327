//! What becomes of a topology when something happens to it: who loses packets, and for how long.

use crate::{
    check,
    faults::{Fault, happen},
    process::REGISTRY,
    run::{Options, begin, runtime, until},
    topology::{self, Topology},
    world::World,
};
use nsm_api::{Error, Kind, Result};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Pause between two looks at the packets of all.
const LOOK: Duration = Duration::from_millis(50);
/// From nothing to everything.
const WARM_UP: Duration = Duration::from_secs(60);
/// How long is looked after the last thing that happens.
const AFTER: Duration = Duration::from_secs(60);
/// Between two processes that an upgrade replaces.
const STEP: Duration = Duration::from_secs(5);
/// How long a process is away that is replaced.
const REPLACED: Duration = Duration::from_secs(1);
/// How long the registry is away: longer than any record and any token lasts.
const REGISTRY_AWAY: Duration = Duration::from_secs(600);

/// A question about a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Nodes die with all that runs on them.
    Zone(Vec<String>),
    /// The registry is away for ten minutes.
    Registry,
    /// Every process is replaced by its successor, one after the other.
    Upgrade,
}

/// What became of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The connection, by the client's id.
    pub connection: String,
    /// When no packets passed: from and to, milliseconds since the first thing that happened.
    pub silent_ms: Vec<(u64, u64)>,
}

/// What became of the topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The question in words.
    pub question: String,
    /// Connections that were wanted all the time.
    pub connections: usize,
    /// Those that lost packets.
    pub disturbed: usize,
    /// The longest time that packets of one stayed away, milliseconds.
    pub longest_silence_ms: u64,
    /// Those whose packets do not pass at the end.
    pub lost: usize,
    /// How long was looked, milliseconds.
    pub looked_ms: u64,
    /// Each.
    pub lines: Vec<Line>,
}

/// How much it takes to bring a topology up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Nodes.
    pub nodes: usize,
    /// Connections.
    pub connections: usize,
    /// From nothing until everything is up, milliseconds.
    pub up_ms: u64,
    /// Calls, kernel objects made and so on, all told.
    pub events: u64,
}

impl Question {
    /// In words.
    pub fn text(&self) -> String {
        match self {
            Question::Zone(nodes) => format!("{} dies", nodes.join(" and ")),
            Question::Registry => "the registry is away for 600 s".to_owned(),
            Question::Upgrade => "every process is replaced, one each 5 s".to_owned(),
        }
    }

    /// What happens, and when.
    fn plan(&self, topology: &Topology) -> Vec<(Duration, Fault)> {
        match self {
            Question::Zone(nodes) => nodes.iter().map(|node| (Duration::ZERO, Fault::Node { node: node.clone() })).collect(),
            Question::Registry => vec![(Duration::ZERO, Fault::Kill { process: REGISTRY.to_owned(), calls: 0, away: REGISTRY_AWAY })],
            Question::Upgrade => {
                let nodes = topology.nodes.iter().flat_map(|node| [topology::manager(node), topology::forwarder(node)]);
                let pods = topology.endpoints.iter().map(|endpoint| endpoint.name.clone());
                let all = [REGISTRY.to_owned()].into_iter().chain(nodes).chain(pods);
                let kill = |process| Fault::Kill { process, calls: 0, away: REPLACED };
                (0..).zip(all).map(|(i, process)| (STEP * i, kill(process))).collect()
            }
        }
    }

    fn lasts(&self, topology: &Topology) -> Duration {
        let last = self.plan(topology).last().map_or(Duration::ZERO, |(at, _)| *at);
        last + if *self == Question::Registry { REGISTRY_AWAY } else { Duration::ZERO } + AFTER
    }
}

/// Plays the topology, lets it happen, and looks.
pub fn ask(topology: &Topology, question: &Question, seed: u64) -> Result<Answer> {
    topology.check()?;
    if let Question::Zone(nodes) = question
        && let Some(unknown) = nodes.iter().find(|node| !topology.nodes.contains(node))
    {
        return Err(Error::invalid(format!("node {unknown:?}"), "is not one of the topology's", "name one of its nodes"));
    }
    runtime()?.block_on(async {
        let world = World::new(topology, &Options::default(), seed)?;
        up(&world).await?;
        let start = Instant::now();
        for (at, fault) in question.plan(topology) {
            let world = world.clone();
            tokio::spawn(async move {
                sleep(at).await;
                happen(&world, &fault, Instant::now() + REGISTRY_AWAY * 2);
            });
        }
        let lasts = question.lasts(topology);
        let mut look = Look::default();
        while start.elapsed() < lasts {
            sleep(LOOK).await;
            look.at(&world, start.elapsed().as_millis() as u64);
        }
        Ok(look.answer(&world, question, lasts.as_millis() as u64))
    })
}

async fn up(world: &World) -> Result<()> {
    begin(world).await;
    until(world, WARM_UP, "not within a minute", check::missing).await;
    match world.events().violation() {
        Some(violation) => {
            let fix = "look whether every service has an endpoint, and room for its clients";
            Err(Error::new(Kind::Timeout, "topology", format!("does not come up: {}", violation.sentence), fix))
        }
        None => Ok(()),
    }
}

/// When packets of each connection stayed away.
#[derive(Default)]
struct Look {
    silent: BTreeMap<String, Vec<(u64, u64)>>,
    since: BTreeMap<String, u64>,
}

impl Look {
    fn at(&mut self, world: &World, now: u64) {
        let heard = check::heard(world);
        let wanted = check::wanted(world);
        let away: BTreeSet<String> = wanted.iter().filter(|id| !heard.contains(id)).map(ToString::to_string).collect();
        let back: Vec<String> = self.since.keys().filter(|id| !away.contains(*id)).cloned().collect();
        for id in back {
            if let Some(from) = self.since.remove(&id) {
                self.silent.entry(id).or_default().push((from, now));
            }
        }
        for id in away {
            self.since.entry(id).or_insert(now);
        }
    }

    fn answer(mut self, world: &World, question: &Question, looked_ms: u64) -> Answer {
        let lost = self.since.len();
        for (id, from) in std::mem::take(&mut self.since) {
            self.silent.entry(id).or_default().push((from, looked_ms));
        }
        let ids = check::wanted(world).into_iter().map(|id| id.to_string());
        let lines: Vec<Line> =
            ids.map(|id| Line { silent_ms: self.silent.get(&id).cloned().unwrap_or_default(), connection: id }).collect();
        let spans = lines.iter().flat_map(|line| &line.silent_ms);
        Answer {
            question: question.text(),
            connections: lines.len(),
            disturbed: lines.iter().filter(|line| !line.silent_ms.is_empty()).count(),
            longest_silence_ms: spans.map(|(from, to)| to - from).max().unwrap_or_default(),
            lost,
            looked_ms,
            lines,
        }
    }
}

/// Brings the topology up.
pub fn grow(topology: &Topology, seed: u64) -> Result<Growth> {
    topology.check()?;
    runtime()?.block_on(async {
        let world = World::new(topology, &Options::default(), seed)?;
        up(&world).await?;
        Ok(Growth {
            nodes: topology.nodes.len(),
            connections: check::wanted(&world).len(),
            up_ms: world.elapsed().as_millis() as u64,
            events: world.events().sum().0,
        })
    })
}

/// Width of the picture of time, and height of one connection in it.
const WIDTH: u64 = 900;
const ROW: u64 = 16;
/// Room for names on the left.
const NAMES: u64 = 140;

/// A picture: one row for each connection, time from left to right, silence in red.
pub fn picture(answer: &Answer) -> String {
    let height = ROW * (answer.lines.len() as u64 + 3);
    let (whole, mut rows) = (answer.looked_ms.max(1), String::new());
    for (i, line) in (2..).zip(&answer.lines) {
        let y = ROW * i;
        let name: String = line.connection.chars().filter(|c| !matches!(c, '<' | '>' | '&' | '"')).collect();
        rows += &format!("<text x=\"4\" y=\"{}\">{name}</text>\n", y + ROW - 4);
        rows += &format!("<rect x=\"{NAMES}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#9c9\"/>\n", ROW - 3);
        for (from, to) in &line.silent_ms {
            let (x, width) = (NAMES + from * WIDTH / whole, ((to - from) * WIDTH / whole).max(1));
            rows += &format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{}\" fill=\"#c33\"/>\n", ROW - 3);
        }
    }
    let (text, seconds) = (&answer.question, whole / 1000);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <text x=\"4\" y=\"14\">What if {text}: no packets in red</text>\n\
         <text x=\"{NAMES}\" y=\"28\">0 s</text><text x=\"{}\" y=\"28\">{seconds} s</text>\n{rows}</svg>\n",
        NAMES + WIDTH + 10,
        NAMES + WIDTH - 30,
    )
}

//! Plays: what happens in a small domain, command by command, with what can be seen of it. `scripts/` has one for each concept.
//!
//! A line that begins with `>` is a command, one that begins with `#` a remark, and everything else is what the command before it
//! has said. Playing a script gives the script again, with what was said this time.

use crate::{
    check, faults,
    faults::Fault,
    run::{self, Options, begin, runtime},
    sentence::Words,
    show,
    topology::{Client, Endpoint, MAX_PLACES, Topology, pool},
    world::World,
};
use nsm_api::{Destination, Error, Labels, Match, NetworkService, Payload, Result};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Faults of a script last as long as they say.
const FAR: Duration = Duration::from_secs(1_000_000);
/// What begins a sentence.
const KNOWN: &str = "seed, tokens, nodes, service, match, endpoint, client, start, stop, wait, until, calm, show, or a fault";

/// Plays a script. The answer is the script with what was said; a violation is said, and ends it.
pub fn play(text: &str) -> Result<String> {
    runtime()?.block_on(async {
        let (mut stage, mut transcript) = (Stage::default(), String::new());
        for (number, line) in text.lines().enumerate() {
            let Some(command) = line.strip_prefix('>') else {
                if line.is_empty() || line.starts_with('#') {
                    transcript += &format!("{line}\n");
                }
                continue;
            };
            let in_line = |error: Error| Error { object: format!("line {} of the script: {}", number + 1, error.object), ..error };
            let said = stage.obey(command.trim()).await.map_err(in_line)?;
            transcript += &format!("{line}\n");
            said.iter().for_each(|said| transcript += &format!("{said}\n"));
            if let Some(violation) = stage.world.as_ref().and_then(|world| world.events().violation()) {
                transcript += &format!("does not hold: {}\n", violation.sentence);
                break;
            }
        }
        Ok(transcript)
    })
}

/// Where a script plays.
struct Stage {
    topology: Topology,
    options: Options,
    seed: u64,
    world: Option<World>,
    /// Events that have been shown, or passed over.
    seen: usize,
}

impl Default for Stage {
    fn default() -> Stage {
        let topology = Topology { nodes: vec![], endpoints: vec![], clients: vec![], services: vec![] };
        let options = Options { shown: usize::MAX, ..Options::default() };
        Stage { topology, options, seed: 1, world: None, seen: 0 }
    }
}

impl Stage {
    async fn obey(&mut self, text: &str) -> Result<Vec<String>> {
        let mut words = Words::of(text);
        match (words.word()?, self.world.clone()) {
            ("start", None) => {
                self.topology.check()?;
                let world = World::new(&self.topology, &self.options, self.seed)?;
                begin(&world).await;
                tokio::spawn(run::watch(world.clone()));
                self.world = Some(world);
                words.end()?;
            }
            (_, None) => self.set_up(text)?,
            ("start", Some(world)) => world.start(&words.name()?),
            ("stop", Some(world)) => world.stop(&words.name()?),
            ("wait", Some(_)) => sleep(words.time()?).await,
            ("until", Some(world)) => return self.until_up(&world, words).await,
            ("calm", Some(world)) => faults::calm(&world),
            ("show", Some(world)) => return self.show(&world, words).await,
            (_, Some(world)) => faults::happen(&world, &text.parse::<Fault>()?, Instant::now() + FAR),
        }
        Ok(vec![])
    }

    fn set_up(&mut self, text: &str) -> Result<()> {
        let mut words = Words::of(text);
        match words.word()? {
            "seed" => self.seed = words.number()?,
            "tokens" => self.options.token_life = words.time()?,
            "nodes" => {
                while !words.is_over() && self.topology.nodes.len() < MAX_PLACES {
                    self.topology.nodes.push(words.name()?);
                }
            }
            "service" => self.topology.services.push(NetworkService::new(words.word()?.parse()?, Payload::Ethernet)),
            "match" => self.add_match(&mut words)?,
            "endpoint" => self.add_endpoint(&mut words)?,
            "client" => self.add_client(&mut words)?,
            _ => return Err(words.unknown(KNOWN)),
        }
        words.end()
    }

    fn node(&self, words: &mut Words<'_>) -> Result<usize> {
        words.expect("on")?;
        let name = words.word()?;
        let known = self.topology.nodes.iter().position(|node| node == name);
        known.ok_or_else(|| Error::invalid(format!("node {name:?}"), "is not one of this script's", "name it after 'nodes'"))
    }

    /// `match SERVICE from LABELS to LABELS`
    fn add_match(&mut self, words: &mut Words<'_>) -> Result<()> {
        let name = words.word()?;
        let service = self.topology.services.iter_mut().find(|service| service.name.as_str() == name);
        let service =
            service.ok_or_else(|| Error::invalid(format!("service {name:?}"), "is not one of this script's", "name it after 'service'"))?;
        words.expect("from")?;
        let source_selector = labels(words.word()?)?;
        words.expect("to")?;
        let destination_selector = labels(words.word()?)?;
        let routes = vec![Destination { destination_selector, ..Destination::default() }];
        service.matches.push(Match { source_selector, routes, ..Match::default() });
        Ok(())
    }

    /// `endpoint NAME on NODE provides SERVICE [as LABELS]`
    fn add_endpoint(&mut self, words: &mut Words<'_>) -> Result<()> {
        let (name, node) = (words.name()?, self.node(words)?);
        words.expect("provides")?;
        let services = vec![words.name()?];
        let labels = if words.take("as") { labels(words.word()?)? } else { Labels::new() };
        let pools = vec![pool(self.topology.endpoints.len())];
        self.topology.endpoints.push(Endpoint { name, node, services, labels, pools });
        Ok(())
    }

    /// `client NAME on NODE wants SERVICE [as LABELS]`
    fn add_client(&mut self, words: &mut Words<'_>) -> Result<()> {
        let (name, node) = (words.name()?, self.node(words)?);
        words.expect("wants")?;
        let service = words.name()?;
        let labels = if words.take("as") { labels(words.word()?)? } else { Labels::new() };
        self.topology.clients.push(Client { name, node, services: vec![(service, labels)] });
        Ok(())
    }

    /// `until up within TIME`
    async fn until_up(&self, world: &World, mut words: Words<'_>) -> Result<Vec<String>> {
        words.expect("up")?;
        words.expect("within")?;
        let bound = words.time()?;
        words.end()?;
        run::until(world, bound, "I14: not in time", check::missing).await;
        Ok(vec![])
    }

    async fn show(&mut self, world: &World, mut words: Words<'_>) -> Result<Vec<String>> {
        let said = match words.word()? {
            "vwires" => show::vwires(world),
            "path" => show::path(world, words.word()?),
            "links" => show::links(world),
            "pod" => show::pod(world, words.word()?),
            "registry" => show::registry(world).await,
            "journal" => show::journal(world, words.word()?),
            "events" => {
                let all = world.events().lines();
                let wanted = words.rest();
                let new = all.iter().skip(std::mem::replace(&mut self.seen, all.len())).filter(|_| wanted != "none");
                return Ok(new.filter_map(|line| show::event(line, wanted)).collect());
            }
            _ => return Err(words.unknown("vwires, path, links, pod, registry, journal, events")),
        };
        words.end()?;
        Ok(said)
    }
}

/// `a=b,c=d`, or `any`.
fn labels(text: &str) -> Result<Labels> {
    let pairs = text.split(',').filter(|pair| *pair != "any");
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Error::invalid(format!("labels {text:?}"), "have a part without '='", "write key=value,key=value or any")),
        })
        .collect()
}

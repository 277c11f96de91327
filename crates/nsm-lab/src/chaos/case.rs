//! One case: the fault, the wait until all is well, and what everybody who watched has to say.

use super::{
    Row,
    matrix::{Case, Kind},
    stage,
};
use crate::{
    checks::connections_at,
    judges::{
        folds::{Believed, Follower, believed},
        holders::Holders,
        oracle::Oracle,
        pulse::Pulse,
    },
    schema::Ending,
    world::World,
};
use nsm_api::{Error, Result};
use rustix::process::Signal;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Between two probes; over one vWire after the other.
const PACE: Duration = Duration::from_millis(1);
/// How long a mesh may take until all is well again.
const HEAL_BOUND: Duration = Duration::from_secs(15);
/// Packets pass for so long before and after.
const CALM: Duration = Duration::from_millis(500);
/// How long the last echoes may take.
const PATIENCE: Duration = Duration::from_millis(700);
/// Between two looks; each starts processes.
const PAUSE: Duration = Duration::from_millis(100);
/// Changes of one case that are told.
const MAX_TOLD: usize = 5;

/// Everything that stands around the mesh while one case after the other is played.
pub(super) struct Bench {
    wires: Vec<stage::Wire>,
    /// Kernel objects that the vWires are made of.
    objects: BTreeSet<(String, String)>,
    /// What every manager lists.
    listed: BTreeMap<String, Believed>,
    followers: BTreeMap<String, Follower>,
}

impl Bench {
    /// Notes how everything is while all is well.
    pub(super) fn new(world: &World) -> Result<Bench> {
        let wires = stage::wires(world)?;
        Ok(Bench { wires, objects: objects(world)?, listed: BTreeMap::new(), followers: BTreeMap::new() })
    }

    /// Waits for the first lists, from which on nothing may change.
    pub(super) async fn quiet(&mut self, world: &World) -> Result<()> {
        for node in &world.file.lab.nodes {
            let text = connections_at(world, &node.name).await?;
            self.listed.insert(node.name.clone(), believed(&text)?);
        }
        self.follow(world)
    }

    /// Follows every manager that is followed no more.
    fn follow(&mut self, world: &World) -> Result<()> {
        self.followers.retain(|_, follower| !follower.has_ended());
        for node in &world.file.lab.nodes {
            if !self.followers.contains_key(&node.name) {
                self.followers.insert(node.name.clone(), Follower::start(world.watch(&node.name))?);
            }
        }
        Ok(())
    }

    /// Plays one case.
    pub(super) async fn case(&mut self, world: &mut World, case: &Case) -> Result<Row> {
        let tracks: Vec<_> = self.wires.iter().map(|wire| wire.track.clone()).collect();
        let pulse = Pulse::start(&tracks, PACE)?;
        let oracle = Oracle::start(&world.places, pulse.mark(), stage::allowed(world, &self.wires))?;
        let holders = Holders::start(crate::checks::client_pods(world)?)?;
        tokio::time::sleep(CALM).await;
        let begun = Instant::now();
        let (mut violations, from) = (Vec::new(), Duration::ZERO);
        violations.extend(strike(world, case).await.err().map(|error| error.to_string()));
        let wrong = self.healed(world, begun).await?;
        let healed = begun.elapsed();
        tokio::time::sleep(CALM).await;
        let to = pulse.now();
        tokio::time::sleep(PATIENCE).await;
        let toll = pulse.all(from, to);
        let (sighted, shared) = (oracle.end()?, holders.end()?);
        pulse.end()?;
        violations.extend(wrong);
        violations.extend((sighted.packets == 0).then(|| "no packet was seen anywhere".to_owned()));
        violations.extend(sighted.strays.iter().take(MAX_TOLD).map(|(_, netns, dev)| format!("a packet was seen at {netns}/{dev}, too")));
        violations.extend(shared.iter().map(|(address, pods)| format!("{address} was held by {pods:?} at once")));
        violations.extend((toll.doubled > 0).then(|| format!("{} answers came twice", toll.doubled)));
        let mut changed = self.changed(world)?;
        // A way that was silent for more than a second is made anew, which is another interface; nothing more than there was.
        let [new, gone] = ["new", "gone"].map(|word| changed.iter().filter(|line| line.starts_with(word)).count());
        let unharmed = if case.carries() { new == gone } else { toll.lost == 0 && changed.is_empty() };
        let ok = violations.is_empty() && toll.sent > 0 && unharmed;
        let objects = changed.len();
        changed.truncate(if ok { 0 } else { MAX_TOLD });
        let (silent_ms, healed_ms) = (toll.silence.as_millis() as u64, healed.as_millis() as u64);
        Ok(Row { case: case.clone(), sent: toll.sent, lost: toll.lost, silent_ms, healed_ms, objects, changed, violations, ok })
    }

    /// Waits until everybody knows everything, and those who follow believe it. Says what is wrong when it takes too long.
    async fn healed(&mut self, world: &World, begun: Instant) -> Result<Option<String>> {
        loop {
            let wrong = self.wrong(world).await;
            if wrong.is_none() || begun.elapsed() > HEAL_BOUND {
                return Ok(wrong);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn wrong(&mut self, world: &World) -> Option<String> {
        if let Err(error) = self.follow(world) {
            return Some(error.to_string());
        }
        for (node, before) in &self.listed {
            let listed = match connections_at(world, node).await.and_then(|text| believed(&text)) {
                Ok(listed) => listed,
                Err(error) => return Some(error.to_string()),
            };
            if listed != *before {
                return Some(format!(
                    "the manager of {node} lists {} connections of {} and {}",
                    listed.len(),
                    before.len(),
                    difference(before, &listed)
                ));
            }
            if self.followers.get(node).is_some_and(|follower| follower.sum() != *before) {
                return Some(format!("who follows the manager of {node} believes something else than it lists"));
            }
        }
        None
    }

    /// Kernel objects that are new or gone since the last look.
    fn changed(&mut self, world: &World) -> Result<Vec<String>> {
        let now = objects(world)?;
        let new = now.difference(&self.objects).map(|(netns, line)| format!("new in {netns}: {line}"));
        let gone = self.objects.difference(&now).map(|(netns, line)| format!("gone in {netns}: {line}"));
        let changed = new.chain(gone).collect();
        self.objects = now;
        Ok(changed)
    }

    /// What is to be said at the end, when all is well.
    pub(super) async fn end(mut self, world: &mut World) -> Result<Vec<String>> {
        self.followers.clear();
        super::descriptors(world).await
    }
}

/// How many are not as they were, and one of them.
fn difference(before: &Believed, now: &Believed) -> String {
    let other: Vec<_> = before.iter().filter(|(id, what)| now.get(*id) != Some(*what)).collect();
    let one = other.first().map(|(id, what)| format!(", {id}: {what} is {}", now.get(*id).map_or("gone", String::as_str)));
    format!("{} not as they were{}", other.len(), one.unwrap_or_default())
}

/// All that the mesh has made in the kernels.
pub(super) fn objects(world: &World) -> Result<BTreeSet<(String, String)>> {
    Ok(world.places.additions()?.into_iter().map(|(netns, line)| (netns, lasting(&line))).collect())
}

/// A line without the generation of the process that made the link, `nsm:<hop>:<connection>:<generation>@<namespace>`: a link
/// that a later process has made anew in place of a lost one is as good, if all else is the same.
fn lasting(line: &str) -> String {
    let Some((begin, rest)) = line.split_once("alias \"nsm:") else { return line.to_owned() };
    match rest.split_once('"').and_then(|(tag, end)| Some((tag.rsplit_once(':')?.0, end))) {
        Some((owner, end)) => format!("{begin}alias \"nsm:{owner}\"{end}"),
        None => line.to_owned(),
    }
}

/// Does it, and waits until everybody serves again.
async fn strike(world: &mut World, case: &Case) -> Result<()> {
    for (number, victim) in case.victims.iter().enumerate() {
        if number > 0 {
            tokio::time::sleep(case.stagger()).await;
        }
        match case.fault {
            Kind::StopContinue => world.process(victim)?.signal_alive(Signal::STOP)?,
            Kind::Kill => world.end(victim, Ending::Kill).await?,
            Kind::Restart => world.end(victim, goodbye(world, victim)?).await?,
        }
    }
    tokio::time::sleep(case.away()).await;
    for (number, victim) in case.victims.iter().enumerate() {
        if number > 0 {
            tokio::time::sleep(case.stagger()).await;
        }
        match case.fault {
            Kind::StopContinue => world.process(victim)?.signal_alive(Signal::CONT)?,
            Kind::Kill | Kind::Restart => world.launch(victim)?,
        }
    }
    for victim in &case.victims {
        world.ready(victim).await?;
    }
    Ok(())
}

/// A client that is told to end closes its vWires, and an endpoint leaves; that is their wish and no fault.
fn goodbye(world: &World, victim: &str) -> Result<Ending> {
    use crate::plan::Role;
    let spec = world.plan.processes.iter().find(|spec| spec.name == victim);
    let role = spec.ok_or_else(|| Error::internal(format!("process {victim:?}"), "is not in the plan"))?.role;
    Ok(if matches!(role, Role::Client | Role::Endpoint) { Ending::Kill } else { Ending::Term })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_of_a_link_is_not_compared() {
        let line = |tag: &str| format!("link 4 nsm-2 kind \"tun\" alias \"{tag}\" mtu 1440");
        assert_eq!(lasting(&line("nsm:fwd:id:17@99")), line("nsm:fwd:id"));
        assert_eq!(lasting(&line("theirs:17")), line("theirs:17"));
        assert_eq!(lasting("route 10.0.0.0/8"), "route 10.0.0.0/8");
    }
}

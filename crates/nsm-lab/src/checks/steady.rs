//! A vWire while faults happen: echoes go on at a fixed rate, and others watch where they are seen and who has which address.

use super::{Seen, isolation};
use crate::{
    judges::{
        holders::{Holders, Shared},
        oracle::{Allowed, Oracle, Sighted},
        pulse::{Pulse, Toll, Track},
    },
    plan::FABRIC,
    schema::{Check, Fault, Span, Steady},
    world::World,
};
use nsm_api::{Error, Kind, Result};
use std::time::Duration;

/// Between two echoes.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long after the last fault the echoes go on: a process may do damage when it has come to its senses.
const AFTERMATH: Duration = Duration::from_millis(700);
/// How long the last echoes may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Does all faults while echoes pass.
pub(super) async fn steady(world: &mut World, asked: &Steady) -> Result<Seen> {
    let before = index(world, &asked.client, &asked.interface)?;
    let netns = world.places.get(&world.file.lab.namespace(&asked.client))?.netns.clone();
    let pulse = Pulse::start(&[Track { netns, to: asked.to.clone() }], INTERVAL)?;
    let oracle = Oracle::start(&world.places, pulse.mark(), allowed(world, asked)?)?;
    let holders = Holders::start(pods(world)?)?;
    let from = pulse.now();
    let done = all(world, asked).await;
    // What is broken may take as long as it is allowed to be.
    tokio::time::sleep(AFTERMATH.max(asked.silent.map_or(Duration::ZERO, |Span(silent)| silent))).await;
    let to = pulse.now();
    tokio::time::sleep(PATIENCE).await;
    let toll = pulse.all(from, to);
    let (sighted, shared) = (oracle.end()?, holders.end()?);
    pulse.end()?;
    done?;
    let same = index(world, &asked.client, &asked.interface)? == before;
    Ok(judge(asked, toll, same, (&sighted, &shared)))
}

async fn all(world: &mut World, asked: &Steady) -> Result<()> {
    for _ in 0..asked.repeat {
        for fault in &asked.faults {
            world.act(fault).await?;
            if !matches!(fault, Check::Do(Fault::Wait { .. })) && asked.faults.len() > 1 {
                tokio::time::sleep(pause(&asked.faults)).await;
            }
        }
    }
    Ok(())
}

/// An author who says when things happen is not helped.
fn pause(faults: &[Check]) -> Duration {
    if faults.iter().any(|fault| matches!(fault, Check::Do(Fault::Wait { .. }))) { Duration::ZERO } else { AFTERMATH }
}

/// Echoes of a client may be seen in its own pod, in those of endpoints, where the one who answers is, and between the nodes.
fn allowed(world: &World, asked: &Steady) -> Result<Allowed> {
    let lab = &world.file.lab;
    let pods = lab.endpoints.iter().map(|endpoint| endpoint.name.as_str()).chain([asked.client.as_str()]);
    let fabric = lab.namespace(FABRIC);
    let mut allowed = Allowed { everywhere_in: pods.map(|pod| lab.namespace(pod)).collect(), ..Allowed::default() };
    for (name, place) in world.places.iter() {
        if place.net.addresses()?.iter().any(|own| asked.to.contains(&own.address.addr())) {
            allowed.everywhere_in.insert(name.to_owned());
        }
    }
    allowed.at = isolation::links(&world.plan, |cable| cable.a.netns == fabric);
    Ok(allowed)
}

/// Those that ask for addresses.
pub(crate) fn pods(world: &World) -> Result<Vec<(String, std::sync::Arc<nsm_linux::net::Net>)>> {
    let lab = &world.file.lab;
    lab.clients.iter().map(|client| Ok((client.name.clone(), world.places.get(&lab.namespace(&client.name))?.net.clone()))).collect()
}

fn judge(asked: &Steady, toll: Toll, same: bool, (sighted, shared): (&Sighted, &Shared)) -> Seen {
    let enough = asked.lost.is_none_or(|most| toll.lost <= most as usize) && asked.silent.is_none_or(|Span(most)| toll.silence <= most);
    let mut words = vec![format!("{} of {} echoes lost", toll.lost, toll.sent)];
    words.extend((toll.lost > 0).then(|| format!("silent for {:.2} s", toll.silence.as_secs_f64())));
    words.push(if same { "same interface".to_owned() } else { "another interface".to_owned() });
    words.extend(sighted.strays.iter().map(|(_, netns, dev)| format!("seen at {netns}/{dev}, too")));
    let holders = |pods: &std::collections::BTreeSet<String>| pods.iter().cloned().collect::<Vec<_>>().join(" and ");
    words.extend(shared.iter().map(|(address, pods)| format!("{address} is held by {} at once", holders(pods))));
    let pure = sighted.strays.is_empty() && shared.is_empty();
    Seen::new(toll.sent > 0 && toll.lost < toll.sent && enough && (same || !asked.same) && pure, words.join(", "))
}

fn index(world: &World, client: &str, interface: &str) -> Result<u32> {
    let link = world.places.get(&world.file.lab.namespace(client))?.net.link_named(interface)?;
    let missing = || {
        let object = format!("interface {interface} of {client}");
        Error::new(Kind::NotFound, object, "is gone", "look at nsm get connections while the lab is up")
    };
    Ok(link.ok_or_else(missing)?.index)
}

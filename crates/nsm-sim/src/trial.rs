//! One thing that goes wrong where everything else is well: then the bounds are tight. Which one is drawn from the seed.

use crate::{
    check,
    faults::{Fault, happen},
    process::{REGISTRY, SILENCE},
    run::{TIDY, until},
    topology,
    world::World,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A wire that carries nothing is made anew elsewhere within this, beside the pause between two looks and the silence itself.
const HEAL: Duration = Duration::from_secs(3);
/// After everybody is back, everything is whole within this.
const WHOLE: Duration = Duration::from_secs(20);
/// How long a process of the control plane is away.
const AWAY: Duration = Duration::from_secs(5);
/// How long endpoints are away that start anew when others look for them, milliseconds.
const RESTART: (u64, u64) = (800, 2_500);
/// Who finds only the deaf endpoint, because all others start anew, looks again after this: the pause between two wires that are
/// given up because they are silent, the silence, and what it takes.
const SECOND_TRY: Duration = Duration::from_secs(8);
/// Clients that come while somebody on the way dies, and the last of its calls at which it does.
const BIRTHS: u64 = 4;
const LAST_CALL: u64 = 16;
/// How long nobody's packets may stay away after that.
const WATCHED: Duration = Duration::from_secs(15);
/// Pause between two looks at the packets of all.
const LOOK: Duration = Duration::from_millis(50);
/// Longest life of a record in the registry, and a little more.
const FORGOTTEN: Duration = Duration::from_secs(62);
/// What belongs to tokens that have ended is gone within this.
const EXPIRED: Duration = Duration::from_secs(15);

/// One trial.
pub(crate) async fn one(world: &World) -> Option<()> {
    let replaceable = replaceable(world);
    let endpoint = world.chance().pick(&replaceable).cloned();
    match (world.chance().below(5), endpoint) {
        (0, Some(endpoint)) => deaf(world, endpoint).await?,
        (1, Some(endpoint)) => gone(world, endpoint).await?,
        (2, _) => vanished(world).await?,
        (3, _) => births(world).await?,
        _ => away(world).await?,
    }
    until(world, WHOLE, "I14: 20 s after the trial", check::missing).await
}

/// Endpoints all of whose services somebody else has, too.
fn replaceable(world: &World) -> Vec<String> {
    let all = &world.topology().endpoints;
    let other = |service: &String, name: &String| all.iter().any(|other| other.name != *name && other.services.contains(service));
    let fits = |endpoint: &&topology::Endpoint| {
        let same = all.iter().filter(|other| other.services == endpoint.services && other.labels == endpoint.labels);
        same.count() > 1 && endpoint.services.iter().all(|service| other(service, &endpoint.name))
    };
    all.iter().filter(fits).map(|endpoint| endpoint.name.clone()).collect()
}

fn now(world: &World, fault: Fault, lasts: Duration) {
    world.note(format_args!("trial: {fault}"));
    happen(world, &fault, Instant::now() + lasts);
}

/// I5, I3: an endpoint takes no packets, and says that all is well. Those to whom its clients go start anew just then, and must not
/// give them what others have.
async fn deaf(world: &World, endpoint: String) -> Option<()> {
    now(world, Fault::Deaf { endpoint: endpoint.clone(), lasts: FORGOTTEN }, FORGOTTEN * 2);
    for other in world.topology().endpoints.iter().filter(|other| other.name != endpoint) {
        let away = world.chance().millis(RESTART.0, RESTART.1);
        now(world, Fault::Kill { process: other.name.clone(), calls: 0, away }, AWAY);
    }
    sleep(Duration::from_millis(RESTART.1) + SECOND_TRY).await;
    healed(world, "I5: an endpoint is deaf").await?;
    sleep(FORGOTTEN).await;
    Some(())
}

/// I5, I7: an endpoint dies with its pod, and nobody takes its place for a while.
async fn gone(world: &World, endpoint: String) -> Option<()> {
    now(world, Fault::Pod { endpoint: endpoint.clone(), away: FORGOTTEN + WATCHED }, FORGOTTEN * 2);
    healed(world, "I5: an endpoint has died").await?;
    sleep(FORGOTTEN).await;
    if check::find_all(world).await.contains(&endpoint) {
        world.violate(format!("I7: {endpoint} died a minute ago, and the registry still knows it"));
    }
    sleep(WATCHED).await;
    Some(())
}

async fn healed(world: &World, when: &str) -> Option<()> {
    let bound = world.options().look_every + SILENCE + HEAL;
    sleep(bound).await;
    until(world, Duration::ZERO, &format!("{when} for {bound:?}"), check::silent).await
}

/// I4: a process of the control plane is away, and nobody's packets stay away.
async fn away(world: &World) -> Option<()> {
    let topology = world.topology();
    let nodes = topology.nodes.iter().flat_map(|node| [topology::manager(node), topology::forwarder(node)]);
    let all: Vec<String> = nodes.chain([REGISTRY.to_owned()]).chain(topology.endpoints.iter().map(|e| e.name.clone())).collect();
    let process = world.chance().pick(&all).cloned()?;
    now(world, Fault::Kill { process: process.clone(), calls: 0, away: AWAY }, AWAY * 2);
    let begin = Instant::now();
    while begin.elapsed() < AWAY + WATCHED {
        until(world, Duration::ZERO, &format!("I4: only {process} was away"), check::silent).await?;
        sleep(LOOK).await;
    }
    Some(())
}

/// I11: a client is gone with its pod, and all that is left of it ends with its tokens.
async fn vanished(world: &World) -> Option<()> {
    let client = world.chance().pick(&world.topology().clients)?.name.clone();
    now(world, Fault::Vanish { client: client.clone() }, AWAY);
    sleep(world.options().token_life + EXPIRED).await;
    until(world, Duration::ZERO, "I11: a client has gone, and its tokens have ended", check::excess).await?;
    check::plant_in(world, &client);
    world.start(&client);
    Some(())
}

/// I2, I8: clients come, and somebody on the way dies while they ask. Nobody keeps what was begun and not brought to its end.
async fn births(world: &World) -> Option<()> {
    let topology = world.topology();
    for _ in 0..BIRTHS {
        let client = world.chance().pick(&topology.clients)?;
        world.stop(&client.name);
        sleep(AWAY).await;
        let node = &topology.nodes[client.node];
        let process = if world.chance().below(2) == 0 { topology::manager(node) } else { topology::forwarder(node) };
        let (calls, away) = (1 + world.chance().below(LAST_CALL), world.chance().millis(RESTART.0, RESTART.1));
        now(world, Fault::Kill { process, calls, away }, FORGOTTEN * 2); // if it is idle, it dies later
        world.crash(&client.name);
        world.start(&client.name);
        sleep(AWAY).await;
    }
    sleep(TIDY).await;
    until(world, Duration::ZERO, "I2: a minute after somebody died on the way", check::excess).await
}

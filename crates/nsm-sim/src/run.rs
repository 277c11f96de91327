//! One seed from its begin to its end: warm-up, faults, calm, drain.

use crate::{
    check::{self, Fold},
    events::{SHOWN_EVENTS, Violation},
    faults,
    process::{REGISTRY, REQUEST_TIMEOUT},
    topology::{self, Topology},
    world::World,
};
use nsm_api::{Caller, Error, Result};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

/// After the last fault everything that is wanted is up within this: a transport that is silently broken is noticed after
/// 10 s, the longest pause between tries is 5 s, and then a wire is made.
pub const CALM_BOUND: Duration = Duration::from_secs(25);
/// From nothing to everything.
const WARM_UP: Duration = Duration::from_secs(20);
/// Everything stays up for the life of a token and so long: then nothing is left of what went wrong.
const STEADY: Duration = Duration::from_secs(30);
/// After the clients have said goodbye nothing of them is left within this.
const GONE: Duration = Duration::from_secs(5);
/// Pause between two checks.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Longest life of a record in the registry.
const RECORD_LIFE: Duration = Duration::from_secs(60);

/// What every seed of a series has in common.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long things go wrong.
    pub faults: Duration,
    /// Life of the tokens.
    pub token_life: Duration,
    /// Pause between two looks of a client at its wire.
    pub look_every: Duration,
    /// Events that a violation shows.
    pub shown: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            faults: Duration::from_secs(600),
            token_life: Duration::from_secs(180),
            look_every: Duration::from_millis(1000),
            shown: SHOWN_EVENTS,
        }
    }
}

/// What became of one seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Events that happened.
    pub events: u64,
    /// Stands for all events: the same for the same seed.
    pub hash: String,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// How long after the last fault everything was up, milliseconds.
    pub up_after_ms: u64,
    /// What did not hold.
    pub violation: Option<Violation>,
}

/// Plays one seed. Takes a thread of its own for as long as it lasts, and must not be called on an async runtime.
pub fn run(topology: &Topology, options: &Options, seed: u64) -> Result<Outcome> {
    topology.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| Error::internal("async runtime", error.to_string()))?;
    runtime.block_on(async {
        let world = World::new(topology, options, seed)?;
        let up_after = play(&world).await;
        let (events, hash) = world.events().sum();
        Ok(Outcome {
            seed,
            events,
            hash: format!("{hash:016x}"),
            simulated_ms: world.elapsed().as_millis() as u64,
            up_after_ms: up_after.unwrap_or_default().as_millis() as u64,
            violation: world.events().violation(),
        })
    })
}

/// `None` when it was broken off by a violation.
async fn play(world: &World) -> Option<Duration> {
    begin(world).await;
    until(world, WARM_UP, "I14: 20 s after the start", check::missing).await?;
    let watching = tokio::spawn({
        let world = world.clone();
        async move {
            while !world.events().violated() {
                check::always(&world);
                sleep(CHECK_EVERY).await;
            }
        }
    });
    let end = Instant::now() + world.options().faults;
    faults::rage(world, end).await;
    let up_after = settle(world, end).await?;
    steady(world).await?;
    drain(world).await?;
    watching.abort();
    Some(up_after)
}

async fn begin(world: &World) {
    world.start(REGISTRY);
    if let Some(registry) = world.process(REGISTRY).and_then(|process| process.registry) {
        for service in &world.topology().services {
            if let Err(error) = registry.register_service(service.clone(), Caller::default()).await {
                world.violate(format!("I7: {error}"));
            }
        }
    }
    check::plant(world);
    faults::start_all(world);
}

/// Waits until nothing is wrong, for so long at most.
async fn until(world: &World, bound: Duration, when: &str, wrong: fn(&World) -> Option<String>) -> Option<()> {
    let end = Instant::now() + bound;
    loop {
        if world.events().violated() {
            return None;
        }
        let Some(reason) = wrong(world) else { return Some(()) };
        if Instant::now() >= end {
            world.violate(format!("{when}: {reason}"));
            return None;
        }
        sleep(CHECK_EVERY).await;
    }
}

/// Refreshes that began before the last fault was over may still fail: what counts is the last moment at which something was
/// missing.
async fn settle(world: &World, end: Instant) -> Option<Duration> {
    let mut up_after = Duration::ZERO;
    while end.elapsed() < CALM_BOUND && !world.events().violated() {
        if check::missing(world).is_some() {
            up_after = end.elapsed() + CHECK_EVERY;
        }
        sleep(CHECK_EVERY).await;
    }
    until(world, Duration::ZERO, "I14: 25 s after the last fault", check::missing).await?;
    Some(up_after)
}

/// Up is up, and stays so; and what everybody says agrees.
async fn steady(world: &World) -> Option<()> {
    let managers = world.topology().nodes.iter().map(|node| topology::manager(node));
    let watched = managers.chain(world.topology().endpoints.iter().map(|endpoint| endpoint.name.clone()));
    let folds: BTreeMap<String, Fold> = watched.filter_map(|name| Some((name.clone(), Fold::of(&world.process(&name)?.hop?)))).collect();
    let end = Instant::now() + world.options().token_life + STEADY;
    while Instant::now() < end {
        if let Some(reason) = check::missing(world) {
            world.violate(format!("I14: everything was up and nothing went wrong, but {reason}"));
        }
        if world.events().violated() {
            return None;
        }
        sleep(CHECK_EVERY).await;
    }
    check::when_calm(world, &folds).await;
    check::planted(world).await;
    (!world.events().violated()).then_some(())
}

/// Clients leave, and nothing of them remains; then everybody leaves.
async fn drain(world: &World) -> Option<()> {
    let topology = world.topology();
    world.note(format_args!("drain"));
    topology.clients.iter().for_each(|client| world.stop(&client.name));
    let here = |world: &World| {
        let clients = &world.topology().clients;
        clients.iter().find(|client| world.process(&client.name).is_some()).map(|client| format!("{} still runs", client.name))
    };
    until(world, REQUEST_TIMEOUT * 2, "I14: 30 s after they were told to stop", here).await?;
    until(world, GONE, "I2: 5 s after all clients have gone", check::left).await?;
    let forwarders = topology.nodes.iter().map(|node| topology::forwarder(node));
    forwarders.chain(topology.endpoints.iter().map(|endpoint| endpoint.name.clone())).for_each(|name| world.stop(&name));
    let end = Instant::now() + RECORD_LIFE + CHECK_EVERY;
    while let Some(reason) = check::still_registered(world).await {
        if Instant::now() >= end {
            world.violate(format!("I2: after everybody has gone, {reason}"));
            return None;
        }
        sleep(CHECK_EVERY).await;
    }
    check::planted(world).await;
    (!world.events().violated()).then_some(())
}

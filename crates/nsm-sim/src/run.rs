//! One seed from its begin to its end: warm-up, faults, calm, a trial, drain.

use crate::{
    check::{self, Folds},
    events::{SHOWN_EVENTS, Violation},
    faults::{self, Timed},
    ledger::Ledger,
    process::{REGISTRY, REQUEST_TIMEOUT},
    topology::{self, Topology},
    trial,
    world::World,
};
use nsm_api::{Caller, Error, Result};
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// After the last fault everything that is wanted is up within this: a transport that is silently broken is noticed after
/// 10 s, the longest pause between tries is 5 s, and then a wire is made.
pub const CALM_BOUND: Duration = Duration::from_secs(25);
/// From nothing to everything.
const WARM_UP: Duration = Duration::from_secs(20);
/// Everything stays up for the life of a token and so long: then nothing is left of what went wrong.
const STEADY: Duration = Duration::from_secs(30);
/// So long after that nobody has more than belongs to the clients: whatever was owed to anybody has been said.
pub(crate) const TIDY: Duration = Duration::from_secs(60);
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

/// Plays one seed with the faults that it brings. Takes a thread of its own for as long as it lasts, and must not be called on an
/// async runtime.
pub fn run(topology: &Topology, options: &Options, seed: u64) -> Result<Outcome> {
    topology.check()?;
    run_with(topology, options, seed, &faults::drawn(topology, seed, options.faults))
}

/// The same with other faults than the seed brings.
pub fn run_with(topology: &Topology, options: &Options, seed: u64, faults: &[Timed]) -> Result<Outcome> {
    topology.check()?;
    runtime()?.block_on(async {
        let world = World::new(topology, options, seed)?;
        let up_after = tokio::select! {
            biased;
            up_after = play(&world, faults) => up_after,
            () = world.events().broken() => None,
        };
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

/// On simulated time.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.map_err(|error| Error::internal("async runtime", error.to_string()))
}

/// `None` when it was broken off by a violation.
async fn play(world: &World, faults: &[Timed]) -> Option<Duration> {
    world.state().quiet = true;
    begin(world).await;
    until(world, WARM_UP, "I14: 20 s after the start", check::missing).await?;
    tokio::spawn(watch(world.clone()));
    let (ledger, mut folds) = (Ledger::begin(world), Folds::begin(world).await);
    world.state().quiet = faults.is_empty();
    let end = Instant::now() + world.options().faults;
    faults::rage(world, faults, end).await;
    let up_after = settle(world, end).await?;
    steady(world, &mut folds).await?;
    ledger.judge(world).await?;
    trial::one(world).await?;
    drain(world).await?;
    folds.compare_registry(world).await;
    Some(up_after)
}

/// Checks what must always hold, for as long as the run lasts.
pub(crate) async fn watch(world: World) {
    let mut version = None;
    loop {
        let now = world.version();
        check::always(&world, version.replace(now) != Some(now));
        sleep(CHECK_EVERY).await;
    }
}

/// A registry with the services, and everybody started.
pub(crate) async fn begin(world: &World) {
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
pub(crate) async fn until(world: &World, bound: Duration, when: &str, wrong: fn(&World) -> Option<String>) -> Option<()> {
    let end = Instant::now() + bound;
    loop {
        let Some(reason) = wrong(world) else { return Some(()) };
        if Instant::now() >= end {
            world.violate(format!("{when}: {reason}"));
            return None;
        }
        sleep(CHECK_EVERY.min(bound / 10)).await;
    }
}

/// Refreshes that began before the last fault was over may still fail: what counts is the last moment at which something was
/// missing.
async fn settle(world: &World, end: Instant) -> Option<Duration> {
    let mut up_after = Duration::ZERO;
    while end.elapsed() < CALM_BOUND {
        if check::missing(world).is_some() {
            up_after = end.elapsed() + CHECK_EVERY;
        }
        sleep(CHECK_EVERY).await;
    }
    until(world, Duration::ZERO, "I14: 25 s after the last fault", check::missing).await?;
    until(world, Duration::ZERO, "I8: 25 s after the last fault", check::neighbours).await?;
    Some(up_after)
}

/// Up is up, and stays so; and what everybody says agrees.
async fn steady(world: &World, folds: &mut Folds) -> Option<()> {
    folds.join(world);
    let (begin, mut tidy) = (Instant::now(), false);
    while begin.elapsed() < world.options().token_life + STEADY {
        if let Some(reason) = check::missing(world) {
            world.violate(format!("I14: everything was up and nothing went wrong, but {reason}"));
            return None;
        }
        if begin.elapsed() >= TIDY && !tidy {
            until(world, Duration::ZERO, "I2: 85 s after the last fault", check::excess).await?;
            (world.state().quiet, tidy) = (true, true);
        }
        sleep(CHECK_EVERY).await;
    }
    check::when_calm(world, folds).await;
    check::planted(world).await;
    world.state().quiet = false;
    Some(())
}

/// Clients leave, and nothing of them remains; then everybody leaves, every other without a word.
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
    let leaving = forwarders.chain(topology.endpoints.iter().map(|endpoint| endpoint.name.clone()));
    leaving.enumerate().for_each(|(i, name)| if i % 2 == 0 { world.stop(&name) } else { world.crash(&name) });
    let end = Instant::now() + RECORD_LIFE + CHECK_EVERY;
    while let Some(reason) = check::still_registered(world).await {
        if Instant::now() >= end {
            world.violate(format!("I2: after everybody has gone, {reason}"));
            return None;
        }
        sleep(CHECK_EVERY).await;
    }
    check::planted(world).await;
    Some(())
}

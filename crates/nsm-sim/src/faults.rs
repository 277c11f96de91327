//! What goes wrong, and when: drawn from the seed, one after the other and on top of each other.

use crate::{
    process::REGISTRY,
    topology,
    world::{Weather, World, pairs},
};
use nsm_hop::kernel::{IfName, Iface};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Pause between two faults, milliseconds.
const PAUSE: (u64, u64) = (500, 12_000);
/// How long a process stays away, milliseconds.
const AWAY: (u64, u64) = (0, 8_000);
/// How long nodes stay apart, and a weather lasts, milliseconds.
const APART: (u64, u64) = (500, 15_000);
/// Calls to the outside within which a process dies that is to die in the midst of work.
const MAX_POINTS: u64 = 60;
/// It dies after so long at the latest.
const FUSE: Duration = Duration::from_secs(20);

/// Lets things go wrong until `end`, then mends everything that does not mend itself.
pub(crate) async fn rage(world: &World, end: Instant) {
    loop {
        let pause = world.chance().millis(PAUSE.0, PAUSE.1);
        if Instant::now() + pause >= end || world.events().violated() {
            break;
        }
        sleep(pause).await;
        one(world, end);
    }
    tokio::time::sleep_until(end).await;
    calm(world);
}

/// Faults are over: everybody is there, reaches everybody, and the kernel works.
fn calm(world: &World) {
    world.note(format_args!("calm"));
    world.state().weather = Weather::default();
    pairs(world.topology().nodes.len()).for_each(|(a, b)| world.cut(a, b, false));
    world.state().processes.values().for_each(|process| process.life.ends_after(0));
    start_all(world);
}

/// Starts whatever does not run.
pub(crate) fn start_all(world: &World) {
    let topology = world.topology();
    world.start(REGISTRY);
    topology.nodes.iter().for_each(|node| world.start(&topology::manager(node)));
    topology.nodes.iter().for_each(|node| world.start(&topology::forwarder(node)));
    topology.endpoints.iter().for_each(|endpoint| world.start(&endpoint.name));
    topology.clients.iter().for_each(|client| world.start(&client.name));
}

fn one(world: &World, end: Instant) {
    let (topology, chance) = (world.topology(), world.chance());
    let node = || chance.below(topology.nodes.len() as u64) as usize;
    let endpoint = || chance.pick(&topology.endpoints).map(|endpoint| endpoint.name.clone()).unwrap_or_default();
    let client = || chance.pick(&topology.clients).map(|client| client.name.clone()).unwrap_or_default();
    match chance.below(14) {
        0..=1 => kill(world, topology::manager(&topology.nodes[node()]), end),
        2..=3 => kill(world, topology::forwarder(&topology.nodes[node()]), end),
        4 => kill(world, endpoint(), end),
        5 => kill(world, client(), end),
        6 => kill(world, REGISTRY.to_owned(), end),
        7 => pod_dies(world, endpoint(), end),
        8 => pause_client(world, client(), end),
        9..=10 => part(world, (node(), node()), end),
        11 => weather(world, end),
        12 => cut_by_hand(world, &client()),
        _ => kernel_fails(world, end),
    }
}

/// Later, unless it is calm by then: that has mended it.
fn later(world: &World, (delay, end): (Duration, Instant), what: impl FnOnce(&World) + Send + 'static) {
    let world = world.clone();
    tokio::spawn(async move {
        sleep(delay).await;
        if Instant::now() < end {
            what(&world);
        }
    });
}

/// A process dies, at once or in the midst of some work, and is started again.
fn kill(world: &World, name: String, end: Instant) {
    let Some(process) = world.process(&name) else { return };
    let (away, points) = (world.chance().millis(AWAY.0, AWAY.1), world.chance().below(2 * MAX_POINTS));
    let world = world.clone();
    tokio::spawn(async move {
        if points < MAX_POINTS {
            world.note(format_args!("{name} will die after {points} calls"));
            process.life.ends_after(points + 1);
            let _ = timeout(FUSE.min(end - Instant::now()), process.life.ended()).await; // else it is idle, and dies so
        }
        if Instant::now() >= end {
            return;
        }
        world.crash(&name);
        later(&world, (away, end), move |world| world.start(&name));
    });
}

/// An endpoint's pod is gone, and there is another one of the same name later.
fn pod_dies(world: &World, name: String, end: Instant) {
    let Some(process) = world.process(&name) else { return };
    world.note(format_args!("the pod of {name} dies"));
    world.crash(&name);
    world.kernel(process.node).remove_netns(&world.pod(&name));
    world.new_pod(&name);
    world.changed();
    later(world, (world.chance().millis(AWAY.0, AWAY.1), end), move |world| world.start(&name));
}

/// A client is not wanted for a while.
fn pause_client(world: &World, name: String, end: Instant) {
    world.stop(&name);
    let again = name.clone();
    // By then it has said goodbye, or it is taken to have.
    later(world, (world.chance().millis(1_000, 20_000), end), move |world| {
        world.crash(&again);
        world.start(&again);
    });
}

fn part(world: &World, (a, b): (usize, usize), end: Instant) {
    if a != b {
        world.note(format_args!("nodes {a} and {b} are apart"));
        world.cut(a, b, true);
        later(world, (world.chance().millis(APART.0, APART.1), end), move |world| {
            world.note(format_args!("nodes {a} and {b} are joined"));
            world.cut(a, b, false);
        });
    }
}

fn weather(world: &World, end: Instant) {
    let chance = world.chance();
    let (lost, unheard, twice, slow) = (chance.below(60), chance.below(60), chance.below(150), chance.below(300));
    let kernel = world.state().weather.kernel;
    let weather = Weather { lost, unheard, twice, slow, kernel };
    world.note(format_args!("{weather:?}"));
    world.state().weather = weather;
    later(world, (chance.millis(APART.0, APART.1), end), |world| {
        let kernel = world.state().weather.kernel;
        world.state().weather = Weather { kernel, ..Weather::default() };
    });
}

fn kernel_fails(world: &World, end: Instant) {
    let failing = 50 + world.chance().below(200);
    world.note(format_args!("{failing} of 1000 kernel calls fail"));
    world.state().weather.kernel = failing;
    later(world, (world.chance().millis(500, 8_000), end), |world| world.state().weather.kernel = 0);
}

/// Somebody with root rights removes the client's interface.
fn cut_by_hand(world: &World, name: &str) {
    let Some(process) = world.process(name) else { return };
    let Some(connection) = process.hop.as_ref().and_then(|hop| hop.monitors().snapshot().into_iter().next()) else { return };
    let interface = connection.mechanism.as_ref().and_then(|mechanism| mechanism.get(nsm_api::params::NAME));
    if let Some(Ok(interface)) = interface.map(IfName::new) {
        world.note(format_args!("somebody removes {interface} of {name}"));
        world.kernel(process.node).delete_link(&Iface { netns: world.pod(name), name: interface });
        world.changed();
    }
}

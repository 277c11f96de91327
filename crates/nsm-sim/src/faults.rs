//! What goes wrong: drawn from the seed before the run, or read from a file; each a sentence, one after the other and on top of
//! each other.

use crate::{
    chance::Chance,
    process::REGISTRY,
    sentence::Words,
    topology::{self, Topology},
    world::{Weather, World, pairs},
};
use nsm_api::{Error, Result};
use nsm_hop::kernel::{IfName, Iface};
use std::{fmt, str::FromStr, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout};

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
/// Makes the faults of a seed differ from the rest of what is drawn from it.
const OWN_STREAM: u64 = 0x6661_756c_7473;

/// One thing that goes wrong. Its text is what [`str::parse`] reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process dies, at once or at a later call to the outside, and is started again.
    Kill {
        /// Which.
        process: String,
        /// At which call from now; 0: at once.
        calls: u64,
        /// How long it is away.
        away: Duration,
    },
    /// The pod of an endpoint is gone, and there is another one of the same name later.
    Pod {
        /// Which.
        endpoint: String,
        /// How long it is away.
        away: Duration,
    },
    /// The pod of an endpoint is gone, and there is another one of the same name on another node later.
    Move {
        /// Which.
        endpoint: String,
        /// The other node.
        to: String,
        /// How long it is away.
        away: Duration,
    },
    /// A client says goodbye, and comes back.
    Leave {
        /// Which.
        client: String,
        /// How long it is away.
        away: Duration,
    },
    /// A client is gone for ever, and its pod with it.
    Vanish {
        /// Which.
        client: String,
    },
    /// A node is gone for ever, with all that ran on it.
    Node {
        /// Which.
        node: String,
    },
    /// Nothing passes between two nodes.
    Part {
        /// One.
        a: String,
        /// The other.
        b: String,
        /// For how long.
        lasts: Duration,
    },
    /// Of a thousand calls between nodes so many fail in this way.
    Weather {
        /// Calls that never arrive.
        lost: u64,
        /// Answers that never arrive.
        unheard: u64,
        /// Requests that arrive twice.
        twice: u64,
        /// Longest further delay of a message, milliseconds.
        slow: u64,
        /// For how long.
        lasts: Duration,
    },
    /// Of a thousand kernel calls so many fail.
    Kernel {
        /// So many.
        failing: u64,
        /// For how long.
        lasts: Duration,
    },
    /// Somebody with root rights removes a client's interface.
    Cut {
        /// Whose.
        client: String,
    },
    /// The pod of an endpoint takes no packets, and all its processes are well.
    Deaf {
        /// Which.
        endpoint: String,
        /// For how long.
        lasts: Duration,
    },
}

/// A fault and when it happens, from the end of the warm-up on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// A length of time as faults and scripts say it.
pub(crate) fn seconds(time: &Duration) -> String {
    format!("{:.3}s", time.as_secs_f64())
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} {}", seconds(&self.at), self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill { process, calls: 0, away } => write!(f, "kill {process} for {}", seconds(away)),
            Fault::Kill { process, calls, away } => write!(f, "kill {process} after {calls} calls for {}", seconds(away)),
            Fault::Pod { endpoint, away } => write!(f, "pod {endpoint} dies for {}", seconds(away)),
            Fault::Move { endpoint, to, away } => write!(f, "move {endpoint} to {to} for {}", seconds(away)),
            Fault::Leave { client, away } => write!(f, "leave {client} for {}", seconds(away)),
            Fault::Vanish { client } => write!(f, "vanish {client}"),
            Fault::Node { node } => write!(f, "node {node} dies"),
            Fault::Part { a, b, lasts } => write!(f, "part {a} {b} for {}", seconds(lasts)),
            Fault::Weather { lost, unheard, twice, slow, lasts } => {
                write!(f, "weather lost {lost} unheard {unheard} twice {twice} slow {slow} for {}", seconds(lasts))
            }
            Fault::Kernel { failing, lasts } => write!(f, "kernel fails {failing} for {}", seconds(lasts)),
            Fault::Cut { client } => write!(f, "cut {client}"),
            Fault::Deaf { endpoint, lasts } => write!(f, "deaf {endpoint} for {}", seconds(lasts)),
        }
    }
}

impl FromStr for Timed {
    type Err = Error;
    fn from_str(text: &str) -> Result<Timed> {
        let mut words = Words::of(text);
        words.expect("at")?;
        Ok(Timed { at: words.time()?, fault: words.rest().parse()? })
    }
}

impl FromStr for Fault {
    type Err = Error;
    fn from_str(text: &str) -> Result<Fault> {
        let mut words = Words::of(text);
        let fault = match words.word()? {
            "kill" => {
                let process = words.name()?;
                let calls = if words.take("after") { words.number()? } else { 0 };
                if calls > 0 {
                    words.expect("calls")?;
                }
                Fault::Kill { process, calls, away: words.lasting()? }
            }
            "pod" => {
                let endpoint = words.name()?;
                words.expect("dies")?;
                Fault::Pod { endpoint, away: words.lasting()? }
            }
            "move" => {
                let endpoint = words.name()?;
                words.expect("to")?;
                Fault::Move { endpoint, to: words.name()?, away: words.lasting()? }
            }
            "leave" => Fault::Leave { client: words.name()?, away: words.lasting()? },
            "vanish" => Fault::Vanish { client: words.name()? },
            "node" => {
                let node = words.name()?;
                words.expect("dies")?;
                Fault::Node { node }
            }
            "part" => Fault::Part { a: words.name()?, b: words.name()?, lasts: words.lasting()? },
            "weather" => {
                let mut part = |what: &str| if words.take(what) { words.number() } else { Ok(0) };
                let (lost, unheard, twice, slow) = (part("lost")?, part("unheard")?, part("twice")?, part("slow")?);
                Fault::Weather { lost, unheard, twice, slow, lasts: words.lasting()? }
            }
            "kernel" => {
                words.expect("fails")?;
                Fault::Kernel { failing: words.number()?, lasts: words.lasting()? }
            }
            "cut" => Fault::Cut { client: words.name()? },
            "deaf" => Fault::Deaf { endpoint: words.name()?, lasts: words.lasting()? },
            _ => return Err(words.unknown("kill, pod, move, leave, vanish, node, part, weather, kernel, cut, deaf")),
        };
        words.end()?;
        Ok(fault)
    }
}

/// The faults that `seed` brings within `lasts`.
pub fn drawn(topology: &Topology, seed: u64, lasts: Duration) -> Vec<Timed> {
    let (chance, mut at, mut all) = (Chance::new(seed ^ OWN_STREAM), Duration::ZERO, Vec::new());
    loop {
        at += chance.millis(PAUSE.0, PAUSE.1);
        if at >= lasts {
            return all;
        }
        all.extend(draw(topology, &chance).map(|fault| Timed { at, fault }));
    }
}

fn draw(topology: &Topology, chance: &Chance) -> Option<Fault> {
    let node = || chance.pick(&topology.nodes).cloned().unwrap_or_default();
    let endpoint = || chance.pick(&topology.endpoints).map(|endpoint| endpoint.name.clone()).unwrap_or_default();
    let client = || chance.pick(&topology.clients).map(|client| client.name.clone()).unwrap_or_default();
    let kill = |process: String| {
        let (points, away) = (chance.below(2 * MAX_POINTS), chance.millis(AWAY.0, AWAY.1));
        Fault::Kill { process, calls: if points < MAX_POINTS { points + 1 } else { 0 }, away }
    };
    let apart = || chance.millis(APART.0, APART.1);
    Some(match chance.below(14) {
        0..=1 => kill(topology::manager(&node())),
        2..=3 => kill(topology::forwarder(&node())),
        4 => kill(endpoint()),
        5 => kill(client()),
        6 => kill(REGISTRY.to_owned()),
        7 if chance.below(2) == 0 => Fault::Move { endpoint: endpoint(), to: node(), away: chance.millis(AWAY.0, AWAY.1) },
        7 => Fault::Pod { endpoint: endpoint(), away: chance.millis(AWAY.0, AWAY.1) },
        8 => Fault::Leave { client: client(), away: chance.millis(1_000, 20_000) },
        9..=10 => {
            let (a, b) = (node(), node());
            return (a != b).then(|| Fault::Part { a, b, lasts: apart() });
        }
        11 => {
            let (lost, unheard, twice, slow) = (chance.below(60), chance.below(60), chance.below(150), chance.below(300));
            Fault::Weather { lost, unheard, twice, slow, lasts: apart() }
        }
        12 => Fault::Cut { client: client() },
        _ => Fault::Kernel { failing: 50 + chance.below(200), lasts: chance.millis(500, 8_000) },
    })
}

/// Lets `faults` happen until `end`, then mends everything that does not mend itself.
pub(crate) async fn rage(world: &World, faults: &[Timed], end: Instant) {
    let start = Instant::now();
    for Timed { at, fault } in faults.iter().filter(|timed| start + timed.at < end) {
        sleep_until(start + *at).await;
        happen(world, fault, end);
    }
    sleep_until(end).await;
    calm(world);
}

/// Faults are over: everybody is there, reaches everybody, and the kernel works.
pub(crate) fn calm(world: &World) {
    world.note(format_args!("calm"));
    world.state().weather = Weather::default();
    world.state().deaf.clear();
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

/// One fault, now. What ends by itself does so before `end` or not at all: by then it is calm.
pub(crate) fn happen(world: &World, fault: &Fault, end: Instant) {
    match fault.clone() {
        Fault::Kill { process, calls, away } => kill(world, process, calls, (away, end)),
        Fault::Pod { endpoint, away } => pod_dies(world, endpoint, (away, end)),
        Fault::Move { endpoint, to, away } => moves(world, endpoint, &to, (away, end)),
        Fault::Leave { client, away } => leave(world, client, (away, end)),
        Fault::Vanish { client } => vanish(world, &client),
        Fault::Node { node } => node_dies(world, &node),
        Fault::Part { a, b, lasts } => part(world, (a, b), (lasts, end)),
        Fault::Weather { lost, unheard, twice, slow, lasts } => {
            let kernel = world.state().weather.kernel;
            weather(world, Weather { lost, unheard, twice, slow, kernel }, (lasts, end));
        }
        Fault::Kernel { failing, lasts } => {
            world.note(format_args!("{failing} of 1000 kernel calls fail"));
            world.state().weather.kernel = failing;
            later(world, (lasts, end), |world| world.state().weather.kernel = 0);
        }
        Fault::Cut { client } => cut_by_hand(world, &client),
        Fault::Deaf { endpoint, lasts } => deaf(world, endpoint, (lasts, end)),
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

fn kill(world: &World, name: String, calls: u64, (away, end): (Duration, Instant)) {
    let Some(process) = world.process(&name) else { return };
    if calls == 0 {
        world.crash(&name);
        return later(world, (away, end), move |world| world.start(&name));
    }
    world.note(format_args!("{name} will die after {calls} calls"));
    process.life.ends_after(calls);
    let world = world.clone();
    tokio::spawn(async move {
        let _ = timeout(FUSE.min(end - Instant::now()), process.life.ended()).await; // else it is idle, and dies so
        if Instant::now() < end {
            world.crash(&name);
            later(&world, (away, end), move |world| world.start(&name));
        }
    });
}

/// A pod ends with all that is in it, and another takes its name.
fn remove_pod(world: &World, name: &str) {
    let Some(process) = world.process(name) else { return };
    world.note(format_args!("the pod of {name} dies"));
    world.crash(name);
    world.kernel(process.node).remove_netns(&world.pod(name));
    world.new_pod(name);
    world.changed();
}

fn pod_dies(world: &World, name: String, when: (Duration, Instant)) {
    remove_pod(world, &name);
    later(world, when, move |world| world.start(&name));
}

fn moves(world: &World, name: String, to: &str, when: (Duration, Instant)) {
    let node = world.topology().nodes.iter().position(|node| node == to);
    let Some(node) = node.filter(|_| world.process(&name).is_some()) else { return };
    remove_pod(world, &name);
    world.note(format_args!("{name} goes to {to}"));
    world.state().homes.insert(name.clone(), node);
    // What it remembered is on the other node's disk.
    world.state().journals.remove(&name);
    later(world, when, move |world| world.start(&name));
}

fn vanish(world: &World, name: &str) {
    world.state().wanted.remove(name);
    world.state().vanished.insert(name.to_owned());
    remove_pod(world, name);
}

fn node_dies(world: &World, name: &str) {
    let topology = world.topology();
    let Some(node) = topology.nodes.iter().position(|node| node == name) else { return };
    world.note(format_args!("{name} dies with all that runs there"));
    topology.clients.iter().filter(|client| client.node == node).for_each(|client| vanish(world, &client.name));
    topology.endpoints.iter().filter(|endpoint| endpoint.node == node).for_each(|endpoint| remove_pod(world, &endpoint.name));
    for process in [topology::manager(name), topology::forwarder(name)] {
        world.crash(&process);
        world.state().journals.remove(&process);
    }
    if node == 0 {
        world.crash(REGISTRY);
    }
    (0..topology.nodes.len()).filter(|other| *other != node).for_each(|other| world.cut(node, other, true));
}

fn leave(world: &World, name: String, when: (Duration, Instant)) {
    world.stop(&name);
    // By then it has said goodbye, or it is taken to have.
    later(world, when, move |world| {
        world.crash(&name);
        world.start(&name);
    });
}

fn part(world: &World, (a, b): (String, String), when: (Duration, Instant)) {
    let at = |name: &String| world.topology().nodes.iter().position(|node| node == name);
    let (Some(a), Some(b)) = (at(&a), at(&b)) else { return };
    world.note(format_args!("nodes {a} and {b} are apart"));
    world.cut(a, b, true);
    later(world, when, move |world| {
        world.note(format_args!("nodes {a} and {b} are joined"));
        world.cut(a, b, false);
    });
}

fn weather(world: &World, weather: Weather, when: (Duration, Instant)) {
    world.note(format_args!("{weather:?}"));
    world.state().weather = weather;
    later(world, when, |world| {
        let kernel = world.state().weather.kernel;
        world.state().weather = Weather { kernel, ..Weather::default() };
    });
}

fn deaf(world: &World, name: String, when: (Duration, Instant)) {
    world.note(format_args!("{name} takes no packets"));
    let pod = world.pod(&name).key.ino;
    world.state().deaf.insert(pod);
    world.changed();
    later(world, when, move |world| {
        world.note(format_args!("{name} takes packets again"));
        world.state().deaf.remove(&pod);
        world.changed();
    });
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_fault_is_a_sentence_and_back() {
        let topology = Topology::built_in(3, 3, 10);
        let all: Vec<Timed> = (0..20).flat_map(|seed| drawn(&topology, seed, Duration::from_secs(600))).collect();
        assert!(all.len() > 1000);
        for timed in all {
            assert_eq!(timed.to_string().parse::<Timed>().unwrap(), timed, "{timed}");
        }
        for text in ["deaf e1 for 3.000s", "vanish c1", "node n1 dies"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for bad in ["", "kill", "kill a after x calls for 1s", "cut a b", "part a b for 3", "dance", "deaf e1 for -1s"] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }
}

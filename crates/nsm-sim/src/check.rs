//! What must hold, always or when it is calm. See reliability invariants I1 to I14.

use crate::{
    process::REGISTRY,
    topology::{self, Endpoint},
    world::{Process, World},
};
use futures::{FutureExt, StreamExt};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::{IfName, Iface, Wire},
    testing::World as _,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::task::unconstrained;

/// Connections of one hop for each connection that a client wants: the present one and those on their way to their end.
const MAX_SHARE: usize = 8;

/// All that must hold at any time. `changed`: something has changed on which the way of packets depends.
pub(crate) fn always(world: &World, changed: bool) {
    if changed {
        if let Some(leak) = world.packets().leak() {
            world.violate(format!("I1: {leak}"));
        }
        let clients = world.topology().clients.iter().map(|client| world.pod(&client.name).key.ino).collect();
        if let Some(shared) = world.packets().shared(&clients) {
            world.violate(format!("I3: {shared}"));
        }
        services(world);
    }
    bounds(world);
}

fn hops(world: &World) -> Vec<(String, Hop)> {
    let state = world.state();
    let living = state.processes.values().filter(|process| !process.life.is_over());
    living.filter_map(|process| Some((process.name.clone(), process.hop.clone()?))).collect()
}

/// Connections that clients have and over which packets pass: client, connection, the pod that answers.
fn passing(world: &World) -> Vec<(String, Arc<Connection>, u64)> {
    let packets = world.packets();
    let clients = world.topology().clients.iter().filter_map(|client| world.process(&client.name));
    let all = clients.flat_map(|Process { name, hop, .. }| {
        let connections = hop.map(|hop| hop.monitors().snapshot()).unwrap_or_default();
        connections.into_iter().map(move |connection| (name.clone(), connection))
    });
    all.filter_map(|(name, connection)| {
        let pod = packets.answers(world.pod(&name).key.ino, &connection)?;
        Some((name, connection, pod))
    })
    .collect()
}

/// I1: packets of a client come to an endpoint of its service.
fn services(world: &World) {
    for (name, connection, pod) in passing(world) {
        let serves = |endpoint: &Endpoint| {
            world.pod(&endpoint.name).key.ino == pod
                && endpoint.services.iter().any(|service| service == connection.network_service.as_str())
        };
        if !world.topology().endpoints.iter().any(serves) {
            world.violate(format!("I1: packets of {name} come to pod {pod}, where nobody provides {}", connection.network_service));
        }
    }
}

/// I9: nobody has more connections than there is reason for.
fn bounds(world: &World) {
    let wanted: usize = world.topology().clients.iter().map(|client| client.services.len()).sum();
    let too_many = |process: &&Process| !process.life.is_over() && process.hop.as_ref().is_some_and(|hop| hop.busy() > wanted * MAX_SHARE);
    let found = world.state().processes.values().find(too_many).map(|process| process.name.clone());
    if let Some(name) = found {
        world.violate(format!("I9: {name} has more than {} connections, {wanted} are wanted", wanted * MAX_SHARE));
    }
}

/// I14, I13: the first connection that is wanted and not whole, with the reason.
pub(crate) fn missing(world: &World) -> Option<String> {
    world.topology().clients.iter().find_map(|client| lacks(world, client))
}

/// What this client lacks, if it wants something.
pub(crate) fn lacks(world: &World, client: &topology::Client) -> Option<String> {
    if !world.state().wanted.contains(&client.name) {
        return None;
    }
    let packets = world.packets();
    let Some(hop) = world.process(&client.name).and_then(|process| process.hop) else {
        return Some(format!("{} does not run", client.name));
    };
    (0..client.services.len()).find_map(|i| {
        let id: ConnectionId = format!("{}-{i}", client.name).parse().expect("the topology was checked");
        let Some(connection) = hop.monitors().get(&id) else { return Some(format!("{id} is not there")) };
        if connection.state != State::Up {
            return Some(format!("{id} is {:?}", connection.state));
        }
        let endpoint = connection.network_service_endpoint_name.as_ref().map_or("", EndpointName::as_str);
        let passes = packets.answers(world.pod(&client.name).key.ino, &connection) == Some(world.pod(endpoint).key.ino);
        (!passes).then(|| format!("{id} is up, and no packets pass to {endpoint}"))
    })
}

/// The first wanted connection whose packets pass to nobody, whatever the hops say of it.
pub(crate) fn silent(world: &World) -> Option<String> {
    let passing = heard(world);
    wanted(world).into_iter().find(|id| !passing.contains(id)).map(|id| format!("no packets of {id} pass"))
}

/// Connections that clients want.
pub(crate) fn wanted(world: &World) -> Vec<ConnectionId> {
    let wanted = world.state().wanted.clone();
    let clients = world.topology().clients.iter().filter(|client| wanted.contains(&client.name));
    let ids = |client: &topology::Client| {
        let id = |i: usize| format!("{}-{i}", client.name).parse().expect("the topology was checked");
        (0..client.services.len()).map(id).collect::<Vec<ConnectionId>>()
    };
    clients.flat_map(ids).collect()
}

/// Connections whose packets pass to somebody.
pub(crate) fn heard(world: &World) -> BTreeSet<ConnectionId> {
    passing(world).into_iter().map(|(_, connection, _)| connection.id.clone()).collect()
}

/// What must hold when everything is up and quiet.
pub(crate) async fn when_calm(world: &World, folds: &mut Folds) {
    if let Some(excess) = excess(world) {
        world.violate(format!("I2: {excess}"));
    }
    for (name, hop) in hops(world) {
        paths(world, &name, &hop);
    }
    if let Some(difference) = neighbours(world) {
        world.violate(format!("I8: {difference}"));
    }
    folds.compare(world).await;
    registered(world).await;
}

/// I2, I11: somebody has more than belongs to the connections of the clients.
pub(crate) fn excess(world: &World) -> Option<String> {
    let clients: BTreeSet<&String> = world.topology().clients.iter().map(|client| &client.name).collect();
    let all = passing(world);
    let wanted: usize = all.iter().map(|(_, connection, _)| connection.path.segments.len() - 1).sum();
    let busy: usize = hops(world).iter().filter(|(name, _)| !clients.contains(name)).map(|(_, hop)| hop.busy()).sum();
    if busy != wanted {
        return Some(format!("hops look after {busy} connections, and {wanted} belong to clients"));
    }
    // A tunnel has a device at either end, a way within a node passes its one manager and forwarder.
    let needed: usize = all.iter().map(|(_, connection, _)| if connection.path.segments.len() > 4 { 2 } else { 1 }).sum();
    let wires = (0..world.topology().nodes.len()).flat_map(|node| world.kernel(node).wires());
    let links = wires.filter(|wire| matches!(wire, Wire::Link(_))).count();
    (links != needed).then(|| format!("there are {links} links, and {needed} belong to clients"))
}

/// A committed way makes sense: everybody once, an id at each, and tokens that have not ended.
fn paths(world: &World, name: &str, hop: &Hop) {
    for connection in hop.monitors().snapshot().iter().filter(|connection| connection.state == State::Up) {
        let path = &connection.path;
        let names: BTreeSet<&str> = path.segments.iter().map(|segment| segment.name.as_str()).collect();
        let own = path.current().map(|segment| (segment.name.as_str(), &segment.id));
        if names.len() != path.segments.len() || own != Some((name, &connection.id)) {
            let way: Vec<&str> = path.segments.iter().map(|segment| segment.name.as_str()).collect();
            world.violate(format!("I8: {name} has {} by the way {way:?}", connection.id));
        }
        let until = path.previous().and_then(|segment| segment.expires);
        if until.is_some_and(|end| end < world.wall()) {
            world.violate(format!("I11: {name} has {} although the token of its client has ended", connection.id));
        }
    }
}

/// I8: everybody on a client's way has it as the client has it: the same ids, the same endpoint, the same addresses.
pub(crate) fn neighbours(world: &World) -> Option<String> {
    let said = |connection: &Connection| {
        let context = &connection.context.ip_context;
        (context.src_ip_addrs.clone(), context.dst_ip_addrs.clone(), connection.network_service_endpoint_name.clone())
    };
    passing(world).into_iter().find_map(|(client, connection, _)| {
        connection.path.segments.iter().skip(1).find_map(|segment| {
            let hop = world.process(segment.name.as_str())?.hop?;
            match hop.monitors().get(&segment.id) {
                None => Some(format!("{client} comes by {} as {}, who does not know it", segment.name, segment.id)),
                Some(theirs) if said(&theirs) != said(&connection) => {
                    Some(format!("{client} has {:?}, and {} has {:?}", said(&connection), segment.name, said(&theirs)))
                }
                Some(_) => None,
            }
        })
    })
}

/// I7: whoever runs and is registered is found.
async fn registered(world: &World) {
    let found = find_all(world).await;
    let topology = world.topology();
    let forwarders = topology.nodes.iter().map(|node| topology::forwarder(node));
    for name in forwarders.chain(topology.endpoints.iter().map(|endpoint| endpoint.name.clone())) {
        if !found.contains(&name) {
            world.violate(format!("I7: {name} runs, and the registry does not know it"));
        }
    }
}

/// Everybody whom the registry knows.
pub(crate) async fn find_all(world: &World) -> BTreeSet<String> {
    let Some(registry) = world.process(REGISTRY).and_then(|process| process.registry) else { return BTreeSet::new() };
    let Ok(found) = registry.find_endpoints(EndpointQuery::default(), Caller::default()).await else { return BTreeSet::new() };
    found.filter_map(async |update| Some(update.ok()?.0.endpoint.name.to_string())).collect().await
}

/// I2: what is left of connections after all clients have gone.
pub(crate) fn left(world: &World) -> Option<String> {
    for node in 0..world.topology().nodes.len() {
        if let Some(wire) = world.kernel(node).wires().first() {
            return Some(format!("node {node} still has {wire:?}"));
        }
    }
    for (name, hop) in hops(world) {
        if hop.busy() > 0 || !hop.monitors().snapshot().is_empty() {
            return Some(format!("{name} still has {} connections", hop.busy()));
        }
    }
    let state = world.state();
    let journal = state.journals.iter().find(|(_, records)| !records.is_empty());
    journal.map(|(name, records)| format!("the journal of {name} still has {} connections", records.len()))
}

/// I2: records that are left after everybody has gone.
pub(crate) async fn still_registered(world: &World) -> Option<String> {
    find_all(world).await.into_iter().next().map(|name| format!("the registry still knows {name}"))
}

/// A link of somebody else in every pod.
pub(crate) fn plant(world: &World) {
    world.topology().clients.iter().for_each(|client| plant_in(world, &client.name));
}

/// A link of somebody else in this client's pod.
pub(crate) fn plant_in(world: &World, client: &str) {
    for found in world.topology().clients.iter().filter(|found| found.name == client) {
        world.kernel(found.node).add_foreign_link(&foreign(world, client));
    }
}

/// The pods of endpoints may die, and take along what is in them; so do those of clients that vanish.
fn pods(world: &World) -> Vec<(String, usize)> {
    let vanished = world.state().vanished.clone();
    let clients = world.topology().clients.iter().filter(|client| !vanished.contains(&client.name));
    clients.map(|client| (client.name.clone(), client.node)).collect()
}

fn foreign(world: &World, pod: &str) -> Iface {
    Iface { netns: world.pod(pod), name: IfName::new("foreign-0").expect("it is a good name") }
}

/// I12: what is somebody else's is still there.
pub(crate) async fn planted(world: &World) {
    for (pod, node) in pods(world) {
        let lines = world.kernel(node).ledger(&world.pod(&pod)).await;
        if !lines.iter().any(|line| line.contains("foreign-0")) {
            world.violate(format!("I12: somebody else's link in {pod} has gone"));
        }
    }
}

/// I6: subscribers of events, and what they make of them.
#[derive(Default)]
pub(crate) struct Folds {
    hops: BTreeMap<String, Fold>,
    registry: Option<EndpointUpdates>,
    registered: BTreeSet<String>,
}

impl Folds {
    /// One of the registry, from its first record on.
    pub(crate) async fn begin(world: &World) -> Folds {
        let query = EndpointQuery { watch: true, ..EndpointQuery::default() };
        let registry = match world.process(REGISTRY).and_then(|process| process.registry) {
            Some(registry) => registry.find_endpoints(query, Caller::default()).await.ok(),
            None => None,
        };
        Folds { registry, ..Folds::default() }
    }

    /// And one of each manager and endpoint, from now on: they stay.
    pub(crate) fn join(&mut self, world: &World) {
        let managers = world.topology().nodes.iter().map(|node| topology::manager(node));
        let watched = managers.chain(world.topology().endpoints.iter().map(|endpoint| endpoint.name.clone()));
        self.hops = watched.filter_map(|name| Some((name.clone(), Fold::of(&world.process(&name)?.hop?)))).collect();
    }

    /// Every stream, read to its present end.
    async fn compare(&mut self, world: &World) {
        for (name, fold) in &mut self.hops {
            let Some(hop) = world.process(name).and_then(|process| process.hop) else { continue };
            let snapshot = hop.monitors().snapshot().into_iter();
            let truth: BTreeMap<ConnectionId, Connection> =
                snapshot.map(|connection| (connection.id.clone(), Connection::clone(&connection))).collect();
            if *fold.read() != truth {
                world.violate(format!("I6: the events of {name} do not add up to its connections"));
            }
        }
        self.compare_registry(world).await;
    }

    /// That of the registry, read to its present end.
    pub(crate) async fn compare_registry(&mut self, world: &World) {
        let Some(stream) = &mut self.registry else { return };
        while let Some(Some(Ok((update, _)))) = unconstrained(stream.next()).now_or_never() {
            let name = update.endpoint.name.to_string();
            let _ = if update.deleted { self.registered.remove(&name) } else { self.registered.insert(name) };
        }
        let truth = find_all(world).await;
        if self.registered != truth {
            world.violate(format!("I6: the registry's watch adds up to {:?}, and it knows {truth:?}", self.registered));
        }
    }
}

/// One subscriber of a hop's events.
struct Fold {
    events: Events,
    state: BTreeMap<ConnectionId, Connection>,
}

impl Fold {
    fn of(hop: &Hop) -> Fold {
        Fold { events: hop.monitors().watch(Selector::default()), state: BTreeMap::new() }
    }
    fn read(&mut self) -> &BTreeMap<ConnectionId, Connection> {
        while let Some(Some(Ok(event))) = unconstrained(self.events.next()).now_or_never() {
            match event.kind {
                EventKind::InitialStateTransfer => self.state = event.connections,
                EventKind::Update => self.state.extend(event.connections),
                EventKind::Delete => event.connections.keys().for_each(|id| drop(self.state.remove(id))),
            }
        }
        &self.state
    }
}

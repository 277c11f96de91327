//! What must hold, always or when it is calm. See reliability invariants I1 to I14.

use crate::{
    process::REGISTRY,
    topology::{self, Endpoint},
    world::{Process, World},
};
use futures::{FutureExt, StreamExt};
use ipnet::IpNet;
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::{IfName, Iface, Wire},
    testing::World as _,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use tokio::task::unconstrained;

/// Connections of one hop for each connection that a client wants: the present one and those on their way to their end.
const MAX_SHARE: usize = 8;

/// All that must hold at any time.
pub(crate) fn always(world: &World) {
    if let Some(leak) = world.packets().leak() {
        world.violate(format!("I1: {leak}"));
    }
    addresses(world);
    bounds(world);
}

fn living(world: &World) -> Vec<Process> {
    world.state().processes.values().filter(|process| !process.life.is_over()).cloned().collect()
}

fn hops(world: &World) -> Vec<(String, Hop)> {
    living(world).into_iter().filter_map(|process| Some((process.name, process.hop?))).collect()
}

/// Connections that clients have and over which packets pass: client, connection, the pod that answers.
fn passing(world: &World) -> Vec<(String, std::sync::Arc<Connection>, u64)> {
    let packets = world.packets();
    let clients = world.topology().clients.iter().filter_map(|client| world.process(&client.name));
    let all = clients.flat_map(|client| {
        let connections = client.hop.as_ref().map(|hop| hop.monitors().snapshot()).unwrap_or_default();
        connections.into_iter().map(move |connection| (client.name.clone(), connection))
    });
    all.filter_map(|(name, connection)| {
        let pod = packets.answers(world.pod(&name).key.ino, &connection)?;
        Some((name, connection, pod))
    })
    .collect()
}

/// I3: no address of an endpoint is used by two of its clients. I1: packets of a client come to an endpoint of its service.
fn addresses(world: &World) {
    let mut held: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (name, connection, pod) in passing(world) {
        let mut endpoints = world.topology().endpoints.iter();
        let serves = |endpoint: &&Endpoint| {
            world.pod(&endpoint.name).key.ino == pod
                && endpoint.services.iter().any(|service| service == connection.network_service.as_str())
        };
        let Some(endpoint) = endpoints.find(serves) else {
            world.violate(format!("I1: packets of {name} come to pod {pod}, where nobody provides {}", connection.network_service));
            continue;
        };
        // Addresses of an endpoint that it had before are not its own any more, and are kept out of politeness.
        let own = |address: &&IpNet| endpoint.pools.iter().any(|pool| pool.contains(&address.addr()));
        for address in connection.context.ip_context.src_ip_addrs.iter().filter(own) {
            if let Some(other) = held.insert(address.addr(), name.clone()).filter(|other| *other != name) {
                world.violate(format!("I3: {address} is used by {other} and by {name}"));
            }
        }
    }
}

/// I9: nobody has more connections than there is reason for.
fn bounds(world: &World) {
    let wanted: usize = world.topology().clients.iter().map(|client| client.services.len()).sum();
    for (name, hop) in hops(world) {
        if hop.busy() > wanted * MAX_SHARE {
            world.violate(format!("I9: {name} has {} connections, {wanted} are wanted", hop.busy()));
        }
    }
}

/// I14, I13: the first connection that is wanted and not whole, with the reason.
pub(crate) fn missing(world: &World) -> Option<String> {
    let packets = world.packets();
    let wanted = world.state().wanted.clone();
    for client in world.topology().clients.iter().filter(|client| wanted.contains(&client.name)) {
        let Some(hop) = world.process(&client.name).and_then(|process| process.hop) else {
            return Some(format!("{} does not run", client.name));
        };
        for i in 0..client.services.len() {
            let id: ConnectionId = format!("{}-{i}", client.name).parse().expect("the topology was checked");
            let Some(connection) = hop.monitors().get(&id) else { return Some(format!("{id} is not there")) };
            if connection.state != State::Up {
                return Some(format!("{id} is {:?}", connection.state));
            }
            let endpoint = connection.network_service_endpoint_name.as_ref().map_or("", EndpointName::as_str);
            if packets.answers(world.pod(&client.name).key.ino, &connection) != Some(world.pod(endpoint).key.ino) {
                return Some(format!("{id} is up, and no packets pass to {endpoint}"));
            }
        }
    }
    None
}

/// What must hold when everything is up and quiet.
pub(crate) async fn when_calm(world: &World, folds: &BTreeMap<String, Fold>) {
    exact(world);
    for (name, hop) in hops(world) {
        paths(world, &name, &hop);
    }
    for (name, fold) in folds {
        let Some(hop) = world.process(name).and_then(|process| process.hop) else { continue };
        let truth: BTreeMap<ConnectionId, Connection> =
            hop.monitors().snapshot().into_iter().map(|connection| (connection.id.clone(), Connection::clone(&connection))).collect();
        if fold.state() != truth {
            world.violate(format!("I6: the events of {name} do not add up to its connections"));
        }
    }
    registered(world).await;
}

/// I2, I11: nobody has more than belongs to the connections of the clients. Long after anything went wrong.
fn exact(world: &World) {
    let clients: BTreeSet<&String> = world.topology().clients.iter().map(|client| &client.name).collect();
    let all = passing(world);
    let wanted: usize = all.iter().map(|(_, connection, _)| connection.path.segments.len() - 1).sum();
    let busy: usize = hops(world).iter().filter(|(name, _)| !clients.contains(name)).map(|(_, hop)| hop.busy()).sum();
    if busy != wanted {
        world.violate(format!("I2: hops look after {busy} connections, and {wanted} belong to clients"));
    }
    // A tunnel has a device at either end, a way within a node passes its one manager and forwarder.
    let needed: usize = all.iter().map(|(_, connection, _)| if connection.path.segments.len() > 4 { 2 } else { 1 }).sum();
    let wires = (0..world.topology().nodes.len()).flat_map(|node| world.kernel(node).wires());
    let links = wires.filter(|wire| matches!(wire, Wire::Link(_))).count();
    if links != needed {
        world.violate(format!("I2: there are {links} links, and {needed} belong to clients"));
    }
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

async fn find_all(world: &World) -> BTreeSet<String> {
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
    for (pod, node) in pods(world) {
        world.kernel(node).add_foreign_link(&foreign(world, &pod));
    }
}

fn pods(world: &World) -> Vec<(String, usize)> {
    let topology = world.topology();
    // The pods of endpoints may die, and take along what is in them.
    topology.clients.iter().map(|client| (client.name.clone(), client.node)).collect()
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

/// One subscriber of a hop's events, and what it makes of them.
pub(crate) struct Fold {
    events: futures::lock::Mutex<Events>,
    state: std::sync::Mutex<BTreeMap<ConnectionId, Connection>>,
}

impl Fold {
    pub(crate) fn of(hop: &Hop) -> Fold {
        Fold { events: futures::lock::Mutex::new(hop.monitors().watch(Selector::default())), state: std::sync::Mutex::default() }
    }
    /// Reads all that is there.
    fn state(&self) -> BTreeMap<ConnectionId, Connection> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(mut events) = self.events.try_lock() {
            while let Some(Some(Ok(event))) = unconstrained(events.next()).now_or_never() {
                match event.kind {
                    EventKind::InitialStateTransfer => *state = event.connections,
                    EventKind::Update => state.extend(event.connections),
                    EventKind::Delete => event.connections.keys().for_each(|id| drop(state.remove(id))),
                }
            }
        }
        state.clone()
    }
}

//! A kernel in memory. It keeps the rules on which callers rely: names clash, nothing outlives its link, and what
//! belongs to somebody else is neither shown nor touched.

use super::{FaultPlan, World};
use crate::kernel::*;
use async_trait::async_trait;
use ipnet::IpNet;
use nsm_api::{Error, InodeKey, Kind, MacAddr, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

const DEFAULT_MTU: u32 = 1500;
/// Device number of the invented namespaces that [`World::netns`] makes.
const FAKE_DEV: u64 = 0xFA4E;

/// The fake. Clones are the same kernel. Every namespace exists until it is removed.
#[derive(Clone)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
    faults: FaultPlan,
}

#[derive(Default)]
struct State {
    next: u64,
    devices: BTreeMap<u64, Device>,
    routes: BTreeMap<(Netns, IpNet, u64), Route>,
    splices: BTreeMap<(u64, u64), Owner>,
    policies: Vec<Policy>,
    gone: BTreeSet<InodeKey>,
    underlays: BTreeMap<IpAddr, u32>,
}

/// One interface. Both ends of a veth share the number of their cable.
struct Device {
    cable: u64,
    at: Iface,
    born: Iface,
    link: Option<(Link, Owner)>,
    mac: MacAddr,
    no_arp: bool,
    mtu: u32,
    addresses: BTreeSet<IpNet>,
    neighbors: BTreeMap<IpAddr, MacAddr>,
}

/// A policy route. It outlives its device, without its routes.
struct Policy {
    on: Iface,
    device: u64,
    rank: u16,
    traffic: Traffic,
    routes: BTreeSet<(IpNet, Option<IpAddr>)>,
}

impl Policy {
    fn with_rank(&self) -> Wire {
        Wire::Policy { on: self.on.clone(), rank: self.rank, traffic: self.traffic.clone(), routes: self.routes.clone() }
    }
    /// As a wire; a kernel does not know the rank, so it is that of the same policy in `about`.
    fn wire(&self, on: &Iface, about: &Wires) -> Wire {
        let with = |rank| Wire::Policy { on: on.clone(), rank, traffic: self.traffic.clone(), routes: self.routes.clone() };
        let known = about.iter().find(|wire| matches!(wire, Wire::Policy { rank, .. } if **wire == with(*rank)));
        known.cloned().unwrap_or_else(|| with(u16::MAX))
    }
}

struct Route {
    via: Option<IpAddr>,
    ours: bool,
}

impl Default for FakeKernel {
    fn default() -> FakeKernel {
        FakeKernel::new(FaultPlan::default())
    }
}

impl FakeKernel {
    /// An empty kernel whose calls follow a fault plan: each observe is a call, and each operation of an apply.
    pub fn new(faults: FaultPlan) -> FakeKernel {
        FakeKernel { state: Arc::default(), changes: watch::Sender::new(0), faults }
    }
    /// The same kernel as another process sees it, with faults of its own.
    pub fn seen_with(&self, faults: FaultPlan) -> FakeKernel {
        FakeKernel { faults, ..self.clone() }
    }
    /// The plan of its faults.
    pub fn faults(&self) -> &FaultPlan {
        &self.faults
    }
    /// Gives the underlay a device with this address and largest packet.
    pub fn set_underlay(&self, address: IpAddr, mtu: u32) {
        self.lock().underlays.insert(address, mtu);
    }
    /// A namespace ends, and all in it; veth pairs end with either side.
    pub fn remove_netns(&self, netns: &Netns) {
        self.change(|state| {
            let cables: Vec<u64> = state.devices.values().filter(|device| device.at.netns == *netns).map(|device| device.cable).collect();
            cables.into_iter().for_each(|cable| state.cut(cable));
            state.policies.retain(|policy| policy.on.netns != *netns);
            state.gone.insert(netns.key);
        });
    }
    /// A link of nobody we know.
    pub fn add_foreign_link(&self, at: &Iface) {
        self.change(|state| {
            let cable = state.number();
            state.plug(cable, at, None);
        });
    }
    /// Removes whatever link has this name, as somebody with root rights might.
    pub fn delete_link(&self, at: &Iface) {
        self.change(|state| {
            if let Some(cable) = state.named(at).and_then(|number| state.devices.get(&number)).map(|device| device.cable) {
                state.cut(cable);
            }
        });
    }
    /// All objects that have an owner, whoever it is.
    pub fn wires(&self) -> Wires {
        let state = self.lock();
        let owners: BTreeSet<Owner> =
            state.devices.values().filter_map(|device| device.link.as_ref()).map(|(_, owner)| owner.clone()).collect();
        let splicers = state.splices.values().cloned();
        let everywhere: BTreeSet<Iface> = state.devices.values().map(|device| device.born.clone()).collect();
        let policies = state.policies.iter().map(|policy| policy.with_rank());
        owners.into_iter().chain(splicers).flat_map(|owner| state.owned(&owner, &everywhere)).chain(policies).collect()
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn change<T>(&self, effect: impl FnOnce(&mut State) -> T) -> T {
        let result = effect(&mut self.lock());
        self.changes.send_modify(|version| *version += 1);
        result
    }
}

#[async_trait]
impl Kernel for FakeKernel {
    async fn observe(&self, owner: &Owner, about: &Wires) -> Result<Wires> {
        self.faults.act(|| self.lock().observe(owner, about)).await
    }
    async fn apply(&self, owner: &Owner, ops: &[Op]) -> Result<()> {
        for op in ops {
            self.faults.act(|| self.change(|state| state.apply(owner, op))).await?;
        }
        Ok(())
    }
    async fn appeared(&self, iface: &Iface) -> Result<()> {
        let mut changes = self.changes.subscribe();
        while self.lock().named(iface).is_none() {
            changes.changed().await.map_err(|_| Error::internal("the fake kernel", "it has ended"))?;
        }
        Ok(())
    }
    async fn counters(&self, owner: &Owner, on: &[Iface]) -> Result<Vec<Option<Counters>>> {
        let state = self.lock();
        on.iter().map(|iface| Ok(state.mine(owner, iface)?.map(|_| Counters::default()))).collect()
    }
    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32> {
        let missing =
            || Error::new(Kind::NotFound, format!("tunnel address {address}"), "no device carries it", "name an address of this node");
        self.lock().underlays.get(&address).copied().ok_or_else(missing)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    fn plug(&mut self, cable: u64, at: &Iface, link: Option<(Link, Owner)>) {
        let number = self.number();
        let [.., a, b] = number.to_be_bytes();
        let (mac, addresses, neighbors) = (MacAddr([2, 0, 0, 0, a, b]), BTreeSet::new(), BTreeMap::new());
        let device = Device { cable, at: at.clone(), born: at.clone(), link, mac, no_arp: false, mtu: DEFAULT_MTU, addresses, neighbors };
        self.devices.insert(number, device);
    }
    fn cut(&mut self, cable: u64) {
        self.devices.retain(|_, device| device.cable != cable);
        let devices = &self.devices;
        self.routes.retain(|(.., device), _| devices.contains_key(device));
        self.splices.retain(|(a, b), _| devices.contains_key(a) && devices.contains_key(b));
        self.policies.iter_mut().filter(|policy| !devices.contains_key(&policy.device)).for_each(|policy| policy.routes.clear());
    }
    fn named(&self, iface: &Iface) -> Option<u64> {
        self.devices.iter().find(|(_, device)| device.at == *iface).map(|(number, _)| *number)
    }
    /// The owner's interface of this name, or the one that once had it. Fails when a newer process has taken it over.
    fn mine(&self, owner: &Owner, iface: &Iface) -> Result<Option<u64>> {
        let ours = |device: &Device| match &device.link {
            Some((_, tag)) => (&tag.hop, &tag.connection) == (&owner.hop, &owner.connection),
            None => false,
        };
        let by_name = self.devices.iter().find(|(_, device)| device.at == *iface && ours(device));
        let found = by_name.or_else(|| self.devices.iter().find(|(_, device)| device.born == *iface && ours(device)));
        match found {
            Some((_, device)) if device.link.as_ref().is_some_and(|(_, tag)| tag.generation > owner.generation) => Err(fenced(iface)),
            found => Ok(found.map(|(number, _)| *number)),
        }
    }

    fn observe(&self, owner: &Owner, about: &Wires) -> Result<Wires> {
        let places = places(about);
        for place in &places {
            self.mine(owner, place)?;
        }
        let mut found = self.owned(owner, &places);
        for on in &places {
            let number = self.mine(owner, on)?;
            let here = self.policies.iter().filter(|policy| Some(policy.device) == number);
            found.extend(here.map(|policy| policy.wire(on, about)));
        }
        for wire in about {
            let device = |on| self.mine(owner, on).ok().flatten().and_then(|number| self.devices.get(&number));
            match wire {
                Wire::Mac { on, .. } => found.extend(device(on).map(|device| Wire::Mac { on: on.clone(), mac: device.mac })),
                Wire::Mtu { on, .. } => found.extend(device(on).map(|device| Wire::Mtu { on: on.clone(), mtu: device.mtu })),
                Wire::NoArp { on } => found.extend(device(on).filter(|device| device.no_arp).map(|_| wire.clone())),
                Wire::Policy { on, traffic, .. } => {
                    let orphan = |policy: &&Policy| policy.routes.is_empty() && policy.on.netns == on.netns && policy.traffic == *traffic;
                    found.extend(self.policies.iter().filter(orphan).map(|policy| policy.wire(on, about)));
                }
                Wire::Splice { a, b } if found.remove(&Wire::Splice { a: b.clone(), b: a.clone() }) => {
                    found.insert(wire.clone());
                }
                _ => {}
            }
        }
        Ok(found)
    }
    /// The owner's objects at these places, hardware addresses and sizes left out.
    fn owned(&self, owner: &Owner, places: &BTreeSet<Iface>) -> Wires {
        let mut found = Wires::new();
        for on in places {
            let Some(number) = self.mine(owner, on).ok().flatten() else { continue };
            let Some(device) = self.devices.get(&number) else { continue };
            found.extend(device.link.iter().map(|(link, _)| Wire::Link(link.clone())));
            found.extend(device.addresses.iter().map(|address| Wire::Address { on: on.clone(), address: *address }));
            found.extend(device.neighbors.iter().map(|(ip, mac)| Wire::Neighbor { on: on.clone(), ip: *ip, mac: *mac }));
            let routes = self.routes.iter().filter(|((.., device), route)| route.ours && *device == number);
            found.extend(routes.map(|((_, prefix, _), route)| Wire::Route { on: on.clone(), prefix: *prefix, via: route.via }));
        }
        let splices = self.splices.iter().filter(|(_, tag)| (&tag.hop, &tag.connection) == (&owner.hop, &owner.connection));
        for ((a, b), _) in splices {
            let at = |number| self.devices.get(number).map(|device: &Device| device.at.clone());
            if let (Some(a), Some(b)) = (at(a), at(b)) {
                let (a, b) = if a <= b { (a, b) } else { (b, a) };
                found.extend((places.contains(&a) && places.contains(&b)).then_some(Wire::Splice { a, b }));
            }
        }
        found
    }

    fn apply(&mut self, owner: &Owner, op: &Op) -> Result<()> {
        let (Op::Add(wire) | Op::Del(wire)) = op;
        let places = places(&Wires::from([wire.clone()]));
        for place in &places {
            self.adopt(owner, place)?;
        }
        match op {
            Op::Add(_) if places.iter().any(|place| self.gone.contains(&place.netns.key)) => {
                Err(Error::new(Kind::NotFound, "network namespace", "it is gone", "send the Request again with a living namespace"))
            }
            Op::Add(Wire::Link(link)) => self.add_link(owner, link),
            Op::Add(Wire::Splice { a, b }) => self.add_splice(owner, a, b),
            Op::Add(wire) => self.add_on(owner, wire),
            Op::Del(wire) => self.delete(owner, wire),
        }
    }
    /// An older generation of ours is ours; from now on it is of this one.
    fn adopt(&mut self, owner: &Owner, iface: &Iface) -> Result<()> {
        let device = self.mine(owner, iface)?.and_then(|number| self.devices.get_mut(&number));
        if let Some((_, tag)) = device.and_then(|device| device.link.as_mut()) {
            tag.generation = owner.generation;
        }
        Ok(())
    }
    fn add_link(&mut self, owner: &Owner, link: &Link) -> Result<()> {
        for iface in link.ifaces() {
            let Some(number) = self.mine(owner, iface)? else { continue };
            let Some(device) = self.devices.get(&number) else { continue };
            if device.link.as_ref().is_some_and(|(there, _)| there == link) {
                return Ok(());
            }
            self.cut(device.cable); // ours, but another one than is wanted
        }
        if let Some(taken) = link.ifaces().into_iter().find(|iface| self.named(iface).is_some()) {
            return Err(name_taken(taken));
        }
        if let Link::Vxlan { at, vni, port, .. } = link {
            let clash = |(there, _): &(Link, Owner)| matches!(there, Link::Vxlan { vni: v, port: p, .. } if v == vni && p == port);
            if self.devices.values().filter_map(|device| device.link.as_ref()).any(clash) {
                let object = format!("interface {:?} in {:?}", at.name.as_str(), at.netns);
                return Err(Error::new(Kind::Conflict, object, format!("VNI {vni} is in use on this node"), "choose another VNI"));
            }
        }
        let cable = self.number();
        link.ifaces().into_iter().for_each(|iface| self.plug(cable, iface, Some((link.clone(), owner.clone()))));
        Ok(())
    }
    fn add_splice(&mut self, owner: &Owner, a: &Iface, b: &Iface) -> Result<()> {
        let there = |iface| self.named(iface).or(self.mine(owner, iface).ok().flatten()).ok_or_else(|| no_link(iface));
        let (x, y) = (there(a)?, there(b)?);
        let same = |tag: &Owner| (&tag.hop, &tag.connection) == (&owner.hop, &owner.connection);
        let pair = |(p, q): &(u64, u64)| (*p, *q) == (x, y) || (*p, *q) == (y, x);
        let busy = self.splices.iter().find(|((p, q), _)| [p, q].into_iter().any(|end| *end == x || *end == y));
        match busy {
            Some((ends, tag)) if same(tag) && pair(ends) => Ok(()),
            Some(_) => {
                let object = format!("splice of {} and {}", a.name, b.name);
                Err(Error::new(Kind::Conflict, object, "an interface is spliced already", "close the other connection first"))
            }
            None => {
                self.splices.insert((x, y), owner.clone());
                Ok(())
            }
        }
    }
    fn add_on(&mut self, owner: &Owner, wire: &Wire) -> Result<()> {
        let [on] = wire.needs()[..] else { return Ok(()) }; // links and splices have their own functions
        let Some(number) = self.mine(owner, on)? else {
            return Err(if self.named(on).is_some() { name_taken(on) } else { no_link(on) });
        };
        if let Wire::Route { prefix, via, .. } = wire {
            return self.add_route(number, on, *prefix, *via);
        }
        if let Wire::Policy { on, rank, traffic, routes } = wire {
            self.remove_policy(&on.netns, Some(number), traffic);
            let (on, traffic, routes) = (on.clone(), traffic.clone(), routes.clone());
            self.policies.push(Policy { on, device: number, rank: *rank, traffic, routes });
            return Ok(());
        }
        let Some(device) = self.devices.get_mut(&number) else { return Ok(()) };
        match wire {
            Wire::Mac { mac, .. } => device.mac = *mac,
            Wire::NoArp { .. } => device.no_arp = true,
            Wire::Mtu { mtu, .. } => device.mtu = *mtu,
            Wire::Address { address, .. } => drop(device.addresses.insert(*address)),
            Wire::Neighbor { ip, mac, .. } => drop(device.neighbors.insert(*ip, *mac)),
            Wire::Link(_) | Wire::Route { .. } | Wire::Splice { .. } | Wire::Policy { .. } => {}
        }
        Ok(())
    }
    fn remove_policy(&mut self, netns: &Netns, device: Option<u64>, traffic: &Traffic) {
        let fits = |policy: &Policy| policy.on.netns == *netns && policy.traffic == *traffic;
        self.policies.retain(|policy| !(fits(policy) && (policy.routes.is_empty() || Some(policy.device) == device)));
    }
    fn add_route(&mut self, device: u64, on: &Iface, prefix: IpNet, via: Option<IpAddr>) -> Result<()> {
        let here = |(netns, there, _): &(Netns, IpNet, u64)| (netns, there) == (&on.netns, &prefix);
        let mut there = self.routes.iter().filter(|(key, _)| here(key));
        // Two wires may lead to the same one address: endpoints that know of each other share it.
        let beside = |route: &Route| route.ours && route.via.is_none() && via.is_none() && prefix.prefix_len() == prefix.max_prefix_len();
        if there.any(|((.., number), route)| (*number != device || route.via != via || !route.ours) && !beside(route)) {
            let object = format!("route {prefix} in {:?}", on.netns);
            return Err(Error::new(Kind::Conflict, object, "there is one of somebody else", "remove it or ask for another prefix"));
        }
        self.routes.insert((on.netns.clone(), prefix, device), Route { via, ours: true });
        Ok(())
    }
    fn delete(&mut self, owner: &Owner, wire: &Wire) -> Result<()> {
        let place = places(&Wires::from([wire.clone()])).into_iter().find_map(|iface| Some((self.mine(owner, &iface).ok()??, iface)));
        let ours = |tag: &Owner| (&tag.hop, &tag.connection) == (&owner.hop, &owner.connection);
        if let Wire::Splice { a, b } = wire {
            let ends: BTreeSet<u64> = [a, b].into_iter().filter_map(|iface| self.named(iface)).collect();
            self.splices.retain(|(x, y), tag| !(ours(tag) && ends.contains(x) && ends.contains(y)));
        }
        if let Wire::Policy { on, traffic, .. } = wire {
            self.remove_policy(&on.netns, place.as_ref().map(|(number, _)| *number), traffic);
        }
        let Some((number, on)) = place else { return Ok(()) };
        let Some(device) = self.devices.get_mut(&number) else { return Ok(()) };
        match wire {
            Wire::Link(_) => {
                let cable = device.cable;
                self.cut(cable);
            }
            Wire::Address { address, .. } => drop(device.addresses.remove(address)),
            Wire::Neighbor { ip, .. } => drop(device.neighbors.remove(ip)),
            Wire::Route { prefix, .. } => {
                self.routes
                    .retain(|(netns, there, device), route| (netns, there) != (&on.netns, prefix) || *device != number || !route.ours);
            }
            Wire::Mac { .. } | Wire::NoArp { .. } | Wire::Mtu { .. } | Wire::Splice { .. } | Wire::Policy { .. } => {}
        }
        Ok(())
    }
}

fn places(about: &Wires) -> BTreeSet<Iface> {
    let of = |wire: &Wire| match wire {
        Wire::Link(link) => link.ifaces().into_iter().cloned().collect::<Vec<_>>(),
        other => other.needs().into_iter().cloned().collect(),
    };
    about.iter().flat_map(of).collect()
}

fn fenced(iface: &Iface) -> Error {
    let object = format!("interface {:?} in {:?}", iface.name.as_str(), iface.netns);
    Error::new(Kind::Conflict, object, "fenced: a newer process owns it", "end this older process")
}
fn name_taken(iface: &Iface) -> Error {
    let object = format!("interface {:?} in {:?}", iface.name.as_str(), iface.netns);
    Error::new(Kind::Conflict, object, "the name is taken by a link of somebody else", "choose another name or remove that link")
}
fn no_link(iface: &Iface) -> Error {
    let object = format!("interface {:?} in {:?}", iface.name.as_str(), iface.netns);
    Error::new(Kind::NotFound, object, "there is none", "make the link first")
}

/// The fake is its own world.
#[async_trait]
impl World for FakeKernel {
    async fn netns(&self) -> Netns {
        let ino = self.lock().number();
        Netns { key: InodeKey { dev: FAKE_DEV, ino }, file: None }
    }
    async fn gone_netns(&self) -> Netns {
        let netns = World::netns(self).await;
        self.remove_netns(&netns);
        netns
    }
    async fn foreign_link(&self, at: &Iface) {
        self.add_foreign_link(at);
    }
    async fn foreign_route(&self, on: &Iface, prefix: IpNet) {
        self.change(|state| {
            let device = state.named(on).expect("the case made this link");
            state.routes.insert((on.netns.clone(), prefix, device), Route { via: None, ours: false });
        });
    }
    async fn rename(&self, from: &Iface, to: &IfName) {
        self.change(|state| {
            let number = state.named(from).expect("the case made this link");
            state.devices.get_mut(&number).expect("it was just found").at.name = to.clone();
        });
    }
    async fn delete(&self, at: &Iface) {
        self.delete_link(at);
    }
    async fn ledger(&self, netns: &Netns) -> Vec<String> {
        let state = self.lock();
        let here = state.devices.iter().filter(|(_, device)| device.at.netns == *netns);
        let device = |(number, device): (&u64, &Device)| {
            let Device { at, mac, mtu, addresses, neighbors, link, .. } = device;
            format!("link {number} {} {mac} {mtu} {addresses:?} {neighbors:?} {:?}", at.name, link.as_ref().map(|(_, owner)| owner))
        };
        let routes = state.routes.iter().filter(|((at, ..), _)| at == netns);
        let mut lines: Vec<String> = here.map(device).collect();
        lines.extend(routes.map(|((_, prefix, device), route)| format!("route {prefix} {:?} {device}", route.via)));
        let inside = |number| state.devices.get(number).is_some_and(|device| device.at.netns == *netns);
        lines.extend(state.splices.keys().filter(|(a, _)| inside(a)).map(|ends| format!("splice {ends:?}")));
        lines
    }
    async fn underlay(&self) -> (IpAddr, u32) {
        let address = IpAddr::from([192, 0, 2, 1]);
        self.set_underlay(address, 9000);
        (address, 9000)
    }
}

//! Addresses, point to point: for each pool one for the endpoint and one for the client, as host prefixes.

use crate::{
    journal::Agreed,
    role::{Draft, Reserve},
};
use ipnet::IpNet;
use nsm_api::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

/// Addresses of one family, as numbers.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
}

/// What one connection holds of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    dst: IpAddr,
    src: IpAddr,
}

/// One group of prefixes, tried in order for one pair of addresses. Same id, same pair, until released.
#[derive(Debug)]
pub struct PointToPoint {
    prefixes: Vec<IpNet>,
    used: BTreeMap<IpAddr, ConnectionId>,
    held: BTreeMap<ConnectionId, Pair>,
}

impl PointToPoint {
    /// An empty pool over `prefixes`.
    pub fn new(prefixes: Vec<IpNet>) -> PointToPoint {
        PointToPoint { prefixes: prefixes.iter().map(IpNet::trunc).collect(), used: BTreeMap::new(), held: BTreeMap::new() }
    }

    fn owns(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }
    fn free(&self, id: &ConnectionId, address: IpAddr) -> bool {
        self.owns(address) && self.used.get(&address).is_none_or(|holder| holder == id)
    }

    /// The lowest free address outside `excluded`, and not `besides`.
    fn lowest(&self, excluded: &[IpNet], besides: Option<IpAddr>) -> Option<IpAddr> {
        self.prefixes.iter().find_map(|prefix| {
            let ipv4 = prefix.addr().is_ipv4();
            let (mut next, last) = (number(prefix.network()), number(prefix.broadcast()));
            while next <= last {
                let candidate = address(next, ipv4);
                if let Some(hole) = excluded.iter().find(|hole| hole.contains(&candidate)) {
                    next = number(hole.broadcast()).checked_add(1)?;
                } else if self.used.contains_key(&candidate) || besides == Some(candidate) {
                    next = next.checked_add(1)?;
                } else {
                    return Some(candidate);
                }
            }
            None
        })
    }

    /// The pair of `id`: what it holds unless that is excluded now, else what it says it `had` if free, else the lowest free.
    fn reserve(&mut self, id: &ConnectionId, had: Option<Pair>, excluded: &[IpNet]) -> Option<Pair> {
        let allowed = |pair: &Pair| !excluded.iter().any(|hole| hole.contains(&pair.dst) || hole.contains(&pair.src));
        let held = self.held.get(id).copied();
        let recovered = had.filter(|pair| pair.dst != pair.src && self.free(id, pair.dst) && self.free(id, pair.src));
        let kept = held.into_iter().chain(recovered).find(allowed);
        let pair = match kept {
            Some(pair) => pair,
            None => {
                let dst = self.lowest(excluded, None)?;
                Pair { dst, src: self.lowest(excluded, Some(dst))? }
            }
        };
        if held != Some(pair) {
            self.used.insert(pair.dst, id.clone());
            self.used.insert(pair.src, id.clone());
            self.held.insert(id.clone(), pair);
        }
        Some(pair)
    }

    /// Holds for `id` what it had, besides what it holds already.
    fn restore(&mut self, id: &ConnectionId, dst: &[IpNet], src: &[IpNet]) {
        let free = |list: &[IpNet]| list.iter().map(IpNet::addr).find(|address| self.free(id, *address));
        let (dst, src) = (free(dst), free(src));
        self.used.extend(dst.into_iter().chain(src).map(|address| (address, id.clone())));
        if let Some((dst, src)) = dst.zip(src) {
            self.held.entry(id.clone()).or_insert(Pair { dst, src });
        }
    }

    /// Gives back what `id` has beyond what its committed addresses say.
    fn keep(&mut self, id: &ConnectionId, committed: &BTreeSet<IpAddr>) {
        self.used.retain(|address, holder| holder != id || committed.contains(address));
        if self.held.get(id).is_some_and(|pair| !committed.contains(&pair.dst) || !committed.contains(&pair.src)) {
            self.held.remove(id);
        }
    }

    fn release(&mut self, id: &ConnectionId) {
        self.used.retain(|_, holder| holder != id);
        self.held.remove(id);
    }
}

/// What an endpoint does with addresses and host routes that a client brings along from another endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpamPolicy {
    /// They stay beside those of this endpoint, unless another of its clients brought the same.
    Polite,
    /// They go: the client has addresses of this endpoint's pools only.
    Strict,
}

/// All pools of an endpoint: each adds one pair.
pub struct Ipam {
    policy: IpamPolicy,
    state: Mutex<State>,
}

struct State {
    pools: Vec<PointToPoint>,
    guests: Guests,
}

/// Addresses of other endpoints' pools that clients brought along. Whoever gave them out may have given them to somebody else
/// since, and two ways to one address would lead packets astray.
#[derive(Default)]
struct Guests(BTreeMap<IpAddr, Guest>);

#[derive(Default)]
struct Guest {
    /// Whose client has it.
    client: Option<ConnectionId>,
    /// On which wires it is the address of this end: on any number.
    far: BTreeSet<ConnectionId>,
}

impl Guests {
    fn may_be_client(&self, id: &ConnectionId, address: IpAddr) -> bool {
        self.may_be_far(id, address) && self.0.get(&address).is_none_or(|guest| guest.far.iter().all(|other| other == id))
    }
    fn may_be_far(&self, id: &ConnectionId, address: IpAddr) -> bool {
        self.0.get(&address).and_then(|guest| guest.client.as_ref()).is_none_or(|client| client == id)
    }
    fn add(&mut self, id: &ConnectionId, dst: impl Iterator<Item = IpAddr>, src: impl Iterator<Item = IpAddr>) {
        for address in src {
            self.0.entry(address).or_default().client.get_or_insert_with(|| id.clone());
        }
        for address in dst {
            self.0.entry(address).or_default().far.insert(id.clone());
        }
    }
    fn keep(&mut self, id: &ConnectionId, committed: &BTreeSet<IpAddr>) {
        self.0.retain(|address, guest| {
            if !committed.contains(address) {
                guest.client.take_if(|client| client == id);
                guest.far.remove(id);
            }
            guest.client.is_some() || !guest.far.is_empty()
        });
    }
}

impl Ipam {
    /// Pools from groups of prefixes.
    pub fn new(groups: Vec<Vec<IpNet>>, policy: IpamPolicy) -> Ipam {
        let pools = groups.into_iter().map(PointToPoint::new).collect();
        Ipam { policy, state: Mutex::new(State { pools, guests: Guests::default() }) }
    }
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_own(&self, net: &IpNet) -> bool {
        self.pools.iter().any(|pool| pool.owns(net.addr()))
    }
    /// Takes out of the context what may not stay of what belongs to no pool: addresses, and the host routes to them.
    fn strip(&self, context: &mut IpContext, policy: IpamPolicy, id: &ConnectionId) {
        let polite = policy == IpamPolicy::Polite;
        let client = |net: &IpNet| self.is_own(net) || polite && self.guests.may_be_client(id, net.addr());
        let far = |net: &IpNet| self.is_own(net) || polite && self.guests.may_be_far(id, net.addr());
        let (src, gone_src): (Vec<IpNet>, Vec<IpNet>) = context.src_ip_addrs.iter().copied().partition(client);
        let (dst, gone_dst): (Vec<IpNet>, Vec<IpNet>) = context.dst_ip_addrs.iter().copied().partition(far);
        for routes in [&mut context.src_routes, &mut context.dst_routes] {
            routes.retain(|route| !gone_src.iter().chain(&gone_dst).any(|net| IpNet::from(net.addr()) == route.prefix));
        }
        (context.src_ip_addrs, context.dst_ip_addrs) = (src, dst);
    }
    fn welcome(&mut self, context: &IpContext, id: &ConnectionId) {
        let foreign = |list: &[IpNet]| list.iter().filter(|net| !self.is_own(net)).map(IpNet::addr).collect::<Vec<_>>();
        let (dst, src) = (foreign(&context.dst_ip_addrs), foreign(&context.src_ip_addrs));
        self.guests.add(id, dst.into_iter(), src.into_iter());
    }
}

impl Reserve for Ipam {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let id = draft.connection.id.clone();
        let context = &mut draft.connection.context.ip_context;
        let mut state = self.state();
        state.strip(context, self.policy, &id);
        state.welcome(context, &id);
        for pool in &mut state.pools {
            let of_pool = |list: &[IpNet]| list.iter().map(IpNet::addr).find(|address| pool.owns(*address));
            let had = of_pool(&context.dst_ip_addrs).zip(of_pool(&context.src_ip_addrs)).map(|(dst, src)| Pair { dst, src });
            let Some(pair) = pool.reserve(&id, had, &context.excluded_prefixes) else {
                let shown: Vec<String> = pool.prefixes.iter().map(ToString::to_string).collect();
                let object = format!("address pool {}", shown.join(","));
                let reason = format!("has no free pair for connection {:?}: {} are in use", id.as_str(), pool.used.len());
                return Err(Error::new(Kind::Exhausted, object, reason, "enlarge --cidr-prefix or close a connection"));
            };
            let stale = |address: IpAddr| pool.owns(address) && address != pair.dst && address != pair.src;
            write(context, pair, stale);
        }
        Ok(())
    }
    fn keep(&self, connection: &Connection) {
        let context = &connection.context.ip_context;
        let committed = context.src_ip_addrs.iter().chain(&context.dst_ip_addrs).map(IpNet::addr).collect();
        let mut state = self.state();
        state.guests.keep(&connection.id, &committed);
        for pool in &mut state.pools {
            pool.keep(&connection.id, &committed);
        }
    }
    fn restore(&self, Agreed { connection, .. }: &Agreed) {
        let context = &connection.context.ip_context;
        let mut state = self.state();
        state.welcome(context, &connection.id);
        for pool in &mut state.pools {
            pool.restore(&connection.id, &context.dst_ip_addrs, &context.src_ip_addrs);
        }
    }
    fn release(&self, id: &ConnectionId) {
        let mut state = self.state();
        state.guests.keep(id, &BTreeSet::new());
        for pool in &mut state.pools {
            pool.release(id);
        }
    }
}

/// Puts the pair into the context once, and takes out what of this pool is no longer ours.
fn write(context: &mut IpContext, pair: Pair, stale: impl Fn(IpAddr) -> bool) {
    let host = |route: &Route| route.prefix.prefix_len() == route.prefix.max_prefix_len();
    for addresses in [&mut context.src_ip_addrs, &mut context.dst_ip_addrs] {
        addresses.retain(|address| !stale(address.addr()));
    }
    for routes in [&mut context.src_routes, &mut context.dst_routes] {
        routes.retain(|route| !(host(route) && stale(route.prefix.addr())));
    }
    let (dst, src) = (IpNet::from(pair.dst), IpNet::from(pair.src));
    for (addresses, address) in [(&mut context.dst_ip_addrs, dst), (&mut context.src_ip_addrs, src)] {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    for (routes, prefix) in [(&mut context.src_routes, dst), (&mut context.dst_routes, src)] {
        if !routes.iter().any(|route| route.prefix == prefix) {
            routes.push(Route::on_link(prefix));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ConnectionId {
        ConnectionId::new(text).unwrap()
    }
    fn ipam(groups: &[&str]) -> Ipam {
        with_policy(groups, IpamPolicy::Polite)
    }
    fn with_policy(groups: &[&str], policy: IpamPolicy) -> Ipam {
        Ipam::new(groups.iter().map(|group| group.split(',').map(|text| text.parse().unwrap()).collect()).collect(), policy)
    }
    fn draft(name: &str, excluded: &[&str]) -> Draft {
        let mut connection = Connection::new(id(name), "svc".parse().unwrap());
        connection.context.ip_context.excluded_prefixes = excluded.iter().map(|text| text.parse().unwrap()).collect();
        Draft { connection, preferences: vec![], files: Files::default() }
    }
    fn shown(draft: &Draft) -> String {
        let list = |list: &[IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        format!("{} {}", list(&draft.connection.context.ip_context.dst_ip_addrs), list(&draft.connection.context.ip_context.src_ip_addrs))
    }

    /// E-15
    #[test]
    fn the_endpoint_gets_the_lower_address_and_a_full_pool_says_so() {
        let ipam = ipam(&["172.16.1.100/31"]);
        let mut first = draft("a", &[]);
        ipam.reserve(&mut first).unwrap();
        assert_eq!(shown(&first), "172.16.1.100/32 172.16.1.101/32");
        ipam.reserve(&mut first).unwrap();
        assert_eq!(shown(&first), "172.16.1.100/32 172.16.1.101/32", "a refresh adds nothing");
        assert_eq!(first.connection.context.ip_context.src_routes.len(), 1);
        let error = ipam.reserve(&mut draft("b", &[])).unwrap_err();
        assert_eq!(error.kind, Kind::Exhausted);
        ipam.release(&id("a"));
        ipam.reserve(&mut draft("b", &[])).unwrap();
    }

    /// E-15, X-038
    #[test]
    fn excluded_prefixes_are_skipped_and_an_address_excluded_later_is_replaced() {
        let ipam = ipam(&["172.16.1.200/30"]);
        let mut first = draft("a", &["172.16.1.201/32", "172.16.1.202/32"]);
        ipam.reserve(&mut first).unwrap();
        assert_eq!(shown(&first), "172.16.1.200/32 172.16.1.203/32");
        first.connection.context.ip_context.excluded_prefixes = vec!["172.16.1.203/32".parse().unwrap()];
        ipam.reserve(&mut first).unwrap();
        assert_eq!(shown(&first), "172.16.1.201/32 172.16.1.202/32");
        assert!(ipam.reserve(&mut draft("b", &[])).is_err(), "until commit the old pair is held as well");
        ipam.keep(&first.connection);
        ipam.reserve(&mut draft("b", &[])).unwrap();
    }

    /// E-15 "polite"
    #[test]
    fn what_a_connection_had_is_given_again_when_it_is_free() {
        let ipam = ipam(&["10.0.0.0/24"]);
        let mut had = draft("a", &[]);
        had.connection.context.ip_context.dst_ip_addrs = vec!["10.0.0.8/32".parse().unwrap()];
        had.connection.context.ip_context.src_ip_addrs = vec!["10.0.0.9/32".parse().unwrap()];
        ipam.reserve(&mut had).unwrap();
        assert_eq!(shown(&had), "10.0.0.8/32 10.0.0.9/32");
        let mut thief = draft("b", &[]);
        thief.connection.context = had.connection.context.clone();
        ipam.reserve(&mut thief).unwrap();
        assert_eq!(shown(&thief), "10.0.0.0/32 10.0.0.1/32", "but never one that somebody holds");
    }

    /// I3, E-15: what a former endpoint gave to one client after the other comes to one wire of this endpoint only.
    #[test]
    fn two_guests_do_not_share_an_address() {
        let (former, here) = (ipam(&["172.16.1.0/31"]), ipam(&["172.16.2.0/29"]));
        let [mut first, mut second] = ["a", "b"].map(|name| {
            let mut moved = draft(name, &[]);
            former.reserve(&mut moved).unwrap();
            former.release(&id(name));
            moved
        });
        assert_eq!(shown(&first), shown(&second));
        here.reserve(&mut first).unwrap();
        here.reserve(&mut second).unwrap();
        assert_eq!(shown(&first), "172.16.1.0/32,172.16.2.0/32 172.16.1.1/32,172.16.2.1/32");
        assert_eq!(shown(&second), "172.16.1.0/32,172.16.2.2/32 172.16.2.3/32", "the far address does no harm");
        here.release(&id("a"));
        let mut third = draft("c", &[]);
        third.connection.context.ip_context.src_ip_addrs.push("172.16.1.0/32".parse().unwrap());
        here.reserve(&mut third).unwrap();
        assert_eq!(shown(&third), "172.16.2.0/32 172.16.2.1/32", "it is the far address of the second");
        here.release(&id("b"));
        here.release(&id("c"));
        assert!(here.state().guests.0.is_empty());
    }

    /// E-16, X-040
    #[test]
    fn a_strict_endpoint_leaves_nothing_of_a_former_one() {
        let shown_after = |policy| {
            let mut moved = draft("a", &[]);
            ipam(&["172.16.1.0/29"]).reserve(&mut moved).unwrap();
            with_policy(&["172.16.2.0/29"], policy).reserve(&mut moved).unwrap();
            let routes = &moved.connection.context.ip_context.src_routes;
            format!("{} {}", shown(&moved), routes.iter().map(|route| route.prefix.to_string()).collect::<Vec<_>>().join(","))
        };
        assert_eq!(shown_after(IpamPolicy::Strict), "172.16.2.0/32 172.16.2.1/32 172.16.2.0/32");
        assert_eq!(shown_after(IpamPolicy::Polite), "172.16.1.0/32,172.16.2.0/32 172.16.1.1/32,172.16.2.1/32 172.16.1.0/32,172.16.2.0/32");
    }

    /// E-17
    #[test]
    fn groups_add_one_pair_each_and_alternatives_only_one() {
        let ipam = ipam(&["10.0.0.0/31,10.0.1.0/24", "2001:db8::/116"]);
        let mut first = draft("a", &[]);
        ipam.reserve(&mut first).unwrap();
        assert_eq!(shown(&first), "10.0.0.0/32,2001:db8::/128 10.0.0.1/32,2001:db8::1/128");
        let mut second = draft("b", &[]);
        ipam.reserve(&mut second).unwrap();
        assert_eq!(shown(&second), "10.0.1.0/32,2001:db8::2/128 10.0.1.1/32,2001:db8::3/128");
    }

    /// I3: no address is held twice, and nothing is lost, whatever happens in whatever order.
    #[test]
    fn no_address_is_held_twice() {
        for seed in 0..200u64 {
            let ipam = ipam(&["10.0.0.0/27"]);
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut live: BTreeMap<String, Connection> = BTreeMap::new();
            for _ in 0..200 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let name = format!("c{}", (state >> 40) % 20);
                if (state >> 33).is_multiple_of(3) {
                    ipam.release(&id(&name));
                    live.remove(&name);
                } else {
                    let mut draft = draft(&name, &[]);
                    if let Some(connection) = live.get(&name) {
                        draft.connection = connection.clone();
                    }
                    if ipam.reserve(&mut draft).is_ok() {
                        ipam.keep(&draft.connection);
                        live.insert(name, draft.connection);
                    }
                }
                let addresses: Vec<IpNet> = live
                    .values()
                    .flat_map(|c| c.context.ip_context.src_ip_addrs.iter().chain(&c.context.ip_context.dst_ip_addrs))
                    .copied()
                    .collect();
                assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len(), "seed {seed}");
                assert_eq!(ipam.state().pools[0].used.len(), addresses.len(), "seed {seed}: pool size is conserved");
            }
        }
    }
}

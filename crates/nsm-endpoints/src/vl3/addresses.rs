//! Addresses and routes: what clients get from this endpoint, and what it brings along when it is a client itself.

use super::remembered;
use ipnet::IpNet;
use nsm_api::*;
use nsm_hop::{
    journal::Agreed,
    role::{Draft, Reserve},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Former prefixes of one server that are known, so that what clients have of them is taken back.
pub const MAX_FORMER: usize = 8;

/// Tells that connections must be asked for again. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Changes(watch::Sender<u64>);

impl Changes {
    /// Something changed.
    pub fn tell(&self) {
        self.0.send_modify(|count| *count += 1);
    }
    /// Changes from now on.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// What comes from one prefix server.
#[derive(Debug, Default)]
struct Net {
    current: Option<IpNet>,
    /// A former process of this endpoint had it.
    remembered: Option<IpNet>,
    former: VecDeque<IpNet>,
    used: BTreeMap<IpAddr, ConnectionId>,
}

/// The endpoint's prefixes, one from each server, and who has which address. Clones are the same.
#[derive(Clone)]
pub struct Addresses {
    nets: Arc<Mutex<Vec<Net>>>,
    changes: Changes,
    /// Keeps the prefixes over restarts.
    file: Option<Arc<PathBuf>>,
}

impl Addresses {
    /// Prefixes of so many servers, none known yet.
    pub fn new(servers: usize, changes: Changes) -> Addresses {
        Addresses { nets: Arc::new(Mutex::new((0..servers).map(|_| Net::default()).collect())), changes, file: None }
    }

    /// With a file that says what a former process of this endpoint had, and that keeps what this one has.
    pub fn remembering(mut self, file: PathBuf) -> Addresses {
        for (net, prefix) in self.nets().iter_mut().zip(remembered::read(&file)) {
            net.remembered = prefix;
        }
        self.file = Some(Arc::new(file));
        self
    }

    /// The prefix that the server of this number lends. A new one is told to [`Changes`].
    pub fn set(&self, server: usize, prefix: IpNet) {
        let mut nets = self.nets();
        let Some(net) = nets.get_mut(server).filter(|net| net.current != Some(prefix)) else { return };
        let had = net.current.replace(prefix).or(net.remembered);
        net.remembered = Some(prefix);
        net.former.retain(|former| *former != prefix);
        net.former.extend(had.filter(|had| *had != prefix));
        if net.former.len() > MAX_FORMER {
            net.former.pop_front();
        }
        net.used.clear();
        if let Some(file) = &self.file {
            remembered::write(file, nets.iter().map(|net| net.remembered));
        }
        drop(nets);
        self.changes.tell();
    }

    /// What the server of this number lends.
    pub fn current(&self, server: usize) -> Option<IpNet> {
        self.nets().get(server).and_then(|net| net.current)
    }

    /// What the server of this number is asked for: what it lends, or lent to a former process.
    pub fn wanted(&self, server: usize) -> Option<IpNet> {
        self.nets().get(server).and_then(|net| net.current.or(net.remembered))
    }

    /// Whether clients may still have addresses of a prefix that is not lent any more.
    pub fn moved(&self) -> bool {
        self.nets().iter().any(|net| !net.former.is_empty())
    }

    /// The endpoint's own addresses, one of each prefix.
    pub fn own(&self) -> Vec<IpAddr> {
        self.nets().iter().filter_map(|net| net.current).map(|prefix| prefix.network()).collect()
    }

    /// All are known.
    pub fn complete(&self) -> bool {
        self.nets().iter().all(|net| net.current.is_some())
    }

    fn nets(&self) -> MutexGuard<'_, Vec<Net>> {
        self.nets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The endpoint's own address of a prefix, as a host prefix.
fn own(prefix: &IpNet) -> IpNet {
    IpNet::from(prefix.network())
}

/// The whole network that a prefix is of: the first half of the address.
pub(super) fn whole(prefix: &IpNet) -> Option<IpNet> {
    let half = prefix.max_prefix_len() / 2;
    let whole = IpNet::new(prefix.network(), half).ok()?.trunc();
    (half < prefix.prefix_len()).then_some(whole)
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

fn add_address(list: &mut Vec<IpNet>, address: IpNet) {
    if !list.contains(&address) {
        list.push(address);
    }
}

fn add_route(list: &mut Vec<Route>, prefix: IpNet, next_hop: Option<IpAddr>) {
    if !list.iter().any(|route| route.prefix.trunc() == prefix.trunc()) {
        list.push(Route { next_hop, ..Route::on_link(prefix) });
    }
}

impl Net {
    /// Whether this is or was ours.
    fn knows(&self, address: IpAddr) -> bool {
        self.current.iter().chain(&self.former).any(|prefix| prefix.contains(&address))
    }

    /// Takes out what is of a former prefix.
    fn forget_former(&self, ip: &mut IpContext) {
        let current = |address: IpAddr| self.current.is_some_and(|prefix| prefix.contains(&address));
        let former = |address: IpAddr| !current(address) && self.former.iter().any(|prefix| prefix.contains(&address));
        for list in [&mut ip.src_ip_addrs, &mut ip.dst_ip_addrs] {
            list.retain(|address| !former(address.addr()));
        }
        for list in [&mut ip.src_routes, &mut ip.dst_routes] {
            list.retain(|route| !former(route.prefix.addr()) && !route.next_hop.is_some_and(former));
        }
    }

    /// The client's address: what it holds, else what it says it had if that is free, else the lowest free.
    fn address(&mut self, id: &ConnectionId, prefix: &IpNet, ip: &mut IpContext) -> Result<()> {
        let excluded = |address: &IpAddr| ip.excluded_prefixes.iter().any(|hole| hole.contains(address));
        let free = |address: &IpAddr| {
            *address != prefix.network()
                && prefix.contains(address)
                && !excluded(address)
                && self.used.get(address).is_none_or(|by| by == id)
        };
        let held = self.used.iter().filter(|(_, by)| *by == id).map(|(address, _)| *address).find(&free);
        let had = || ip.src_ip_addrs.iter().map(IpNet::addr).find(&free);
        let hosts = || addresses(prefix).find(|address| !self.used.contains_key(address) && !excluded(address));
        let Some(address) = held.or_else(had).or_else(hosts) else {
            let reason = format!("has no free address for connection {:?}: {} are in use", id.as_str(), self.used.len());
            let fix = "give the prefix server a shorter --client-prefix-len, or start another endpoint";
            return Err(Error::new(Kind::Exhausted, format!("prefix {prefix}"), reason, fix));
        };
        self.used.insert(address, id.clone());
        ip.src_ip_addrs.retain(|other| other.addr() == address || !prefix.contains(&other.addr()));
        ip.dst_routes.retain(|route| !is_host(&route.prefix) || route.prefix.addr() == address || !prefix.contains(&route.prefix.addr()));
        add_address(&mut ip.src_ip_addrs, address.into());
        Ok(())
    }
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// All addresses but the endpoint's own, in order.
fn addresses(prefix: &IpNet) -> impl Iterator<Item = IpAddr> {
    let hosts: Box<dyn Iterator<Item = IpAddr>> = match prefix {
        IpNet::V4(prefix) => {
            let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
            Box::new((first..=last).skip(1).map(|number| IpAddr::V4(number.into())))
        }
        IpNet::V6(prefix) => {
            let (first, last) = (u128::from(prefix.network()), u128::from(prefix.broadcast()));
            Box::new((first..=last).skip(1).map(|number| IpAddr::V6(number.into())))
        }
    };
    hosts
}

/// Whether the client is another endpoint of the network, which has addresses of its own. Its mark is that it names a
/// name server of its own: one at its own address, or one with a connection that knows no endpoint yet.
pub fn is_endpoint(context: &ConnectionContext) -> bool {
    let (ip, dns) = (&context.ip_context, context.dns_context.as_ref());
    let mut servers = dns.into_iter().flat_map(|dns| &dns.configs).flat_map(|config| &config.dns_server_ips).peekable();
    let marked = servers.peek().is_some() && ip.dst_ip_addrs.is_empty() && !ip.src_ip_addrs.is_empty();
    marked || servers.filter_map(|text| text.parse().ok()).any(|server: IpAddr| ip.src_ip_addrs.iter().any(|src| src.addr() == server))
}

impl Reserve for Addresses {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let id = draft.connection.id.clone();
        let endpoint = is_endpoint(&draft.connection.context);
        let ip = &mut draft.connection.context.ip_context;
        let mut nets = self.nets();
        let known = |address: &IpNet| nets.iter().any(|net| net.knows(address.addr()));
        if !ip.dst_ip_addrs.is_empty() && !ip.dst_ip_addrs.iter().any(known) {
            forget_other_endpoint(ip, endpoint);
        }
        for net in nets.iter_mut() {
            let initializing = || {
                Error::new(Kind::Unavailable, "the address pool", "prefix pool is initializing", "see whether the prefix server answers")
            };
            let prefix = net.current.ok_or_else(initializing)?;
            net.forget_former(ip);
            if !endpoint {
                net.address(&id, &prefix, ip)?;
            }
            let own = own(&prefix);
            for to in [Some(own), Some(prefix.trunc()), whole(&prefix).filter(|_| !endpoint)].into_iter().flatten() {
                add_route(&mut ip.src_routes, to, Some(own.addr()));
            }
            for src in ip.src_ip_addrs.clone().into_iter().filter(|src| same_family(src, &prefix)) {
                add_route(&mut ip.dst_routes, IpNet::from(src.addr()), None);
            }
            add_address(&mut ip.dst_ip_addrs, own);
        }
        Ok(())
    }

    fn keep(&self, connection: &Connection) {
        let src = &connection.context.ip_context.src_ip_addrs;
        let committed = |address: &IpAddr| src.iter().any(|src| src.addr() == *address);
        for net in self.nets().iter_mut() {
            net.used.retain(|address, by| *by != connection.id || committed(address));
        }
    }

    fn restore(&self, Agreed { connection, .. }: &Agreed) {
        if is_endpoint(&connection.context) {
            return; // it has addresses of its own
        }
        let had = || connection.context.ip_context.src_ip_addrs.iter().map(IpNet::addr);
        for net in self.nets().iter_mut() {
            let ours: Vec<IpAddr> = had().filter(|address| net.current.is_some_and(|prefix| prefix.contains(address))).collect();
            for address in ours {
                net.used.entry(address).or_insert_with(|| connection.id.clone());
            }
        }
    }

    fn release(&self, id: &ConnectionId) {
        self.nets().iter_mut().for_each(|net| net.used.retain(|_, by| by != id));
    }
}

/// The connection came from another endpoint: what that gave is void. What another endpoint brings itself stays.
fn forget_other_endpoint(ip: &mut IpContext, endpoint: bool) {
    ip.dst_ip_addrs.clear();
    ip.src_routes.clear();
    if !endpoint {
        ip.src_ip_addrs.clear();
        ip.dst_routes.clear();
    }
}

/// What this endpoint brings along to another: its own address, and the ways to its clients. And to whom: a wire that is
/// mended leads to the same endpoint, or nowhere. Clones are the same.
#[derive(Clone)]
pub struct Dialled {
    addresses: Addresses,
    names: Arc<Mutex<BTreeMap<ConnectionId, EndpointName>>>,
}

impl Dialled {
    /// Nobody dialled yet.
    pub fn new(addresses: Addresses) -> Dialled {
        Dialled { addresses, names: Arc::default() }
    }
    /// The connection `id` is one to `endpoint`, until that is forgotten.
    pub fn name(&self, id: ConnectionId, endpoint: EndpointName) {
        self.names().insert(id, endpoint);
    }
    /// There is no such connection any more.
    pub fn forget(&self, id: &ConnectionId) {
        self.names().remove(id);
    }
    fn names(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, EndpointName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserve for Dialled {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        if let Some(name) = self.names().get(&draft.connection.id) {
            draft.connection.network_service_endpoint_name = Some(name.clone());
        }
        let context = &mut draft.connection.context;
        let ip = &mut context.ip_context;
        if draft.connection.mechanism.is_none() {
            // It begins, or begins again with a successor, which may have another prefix.
            ip.dst_ip_addrs.clear();
            ip.src_routes.clear();
        }
        ip.src_ip_addrs.clear();
        ip.dst_routes.clear();
        let mut servers = Vec::new();
        for prefix in self.addresses.nets().iter().filter_map(|net| net.current) {
            let own = own(&prefix);
            ip.src_ip_addrs.push(own);
            add_route(&mut ip.dst_routes, own, Some(own.addr()));
            add_route(&mut ip.dst_routes, prefix.trunc(), Some(own.addr()));
            servers.push(own.addr().to_string());
        }
        let config = DnsConfig { dns_server_ips: servers, ..DnsConfig::default() };
        context.dns_context = Some(DnsContext { configs: vec![config], ..DnsContext::default() });
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}

#[cfg(test)]
mod tests;

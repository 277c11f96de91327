//! Addresses, routes and neighbours as netlink messages, both ways.

use crate::{
    net::Packet,
    nl::{Attributes, Message, Refusal, Socket, read_ip, read_u16, read_u32},
    uapi::*,
};
use ipnet::IpNet;
use nsm_api::MacAddr;
use std::net::IpAddr;

const ADDRESS_FIXED: usize = 8;
const ROUTE_FIXED: usize = 12;
const NEIGHBOR_FIXED: usize = 12;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) net: IpNet,
    pub(crate) scope: u8,
}

fn address_fixed(family: u8, prefix_len: u8, index: u32) -> [u8; ADDRESS_FIXED] {
    let mut fixed = [family, prefix_len, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed
}

/// Adds or removes an address. A new IPv6 address is usable at once: no search for duplicates on a point-to-point wire.
pub(crate) fn address_message(kind: u16, index: u32, net: IpNet) -> Message {
    let flags = if kind == RTM_NEWADDR { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
    let message = Message::new(kind, flags, &address_fixed(family(net.addr()), net.prefix_len(), index)).ip(IFA_LOCAL, net.addr());
    let message = message.ip(IFA_ADDRESS, net.addr());
    if kind == RTM_NEWADDR && net.addr().is_ipv6() { message.u32(IFA_FLAGS, IFA_F_NODAD) } else { message }
}

impl Address {
    fn parse(body: &[u8]) -> Option<Address> {
        let (prefix_len, scope, index) = (*body.get(1)?, *body.get(3)?, read_u32(body, 4)?);
        let local = Attributes::after(body, ADDRESS_FIXED).find(IFA_LOCAL);
        let ip = local.or_else(|| Attributes::after(body, ADDRESS_FIXED).find(IFA_ADDRESS)).and_then(read_ip)?;
        Some(Address { index, net: IpNet::new(ip, prefix_len).ok()?, scope })
    }
}

/// The addresses of one link, or of all with index 0; sorted.
pub(crate) fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<Address>, Refusal> {
    let replies = socket.dump(Message::new(RTM_GETADDR, 0, &address_fixed(AF_UNSPEC, 0, index)))?;
    let mut found: Vec<Address> =
        replies.iter().filter(|reply| reply.kind == RTM_NEWADDR).filter_map(|reply| Address::parse(&reply.body)).collect();
    found.sort();
    Ok(found)
}

/// A route with one next hop. One with several keeps them in `more`, undecoded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) table: u32,
    pub(crate) prefix: IpNet,
    pub(crate) via: Option<IpAddr>,
    pub(crate) index: u32,
    pub(crate) source: Option<IpAddr>,
    pub(crate) protocol: u8,
    pub(crate) scope: u8,
    pub(crate) kind: u8,
    pub(crate) metric: u32,
    pub(crate) more: Option<Vec<u8>>,
}

fn route_fixed(prefix: IpNet, protocol: u8, scope: u8, flags: u32) -> [u8; ROUTE_FIXED] {
    let mut fixed = [family(prefix.addr()), prefix.prefix_len(), 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, 0, 0, 0, 0];
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

/// Adds or removes a route of the main table through one link. Never replaces one that is there.
pub(crate) fn route_message(kind: u16, protocol: u8, prefix: IpNet, via: Option<IpAddr>, index: u32) -> Message {
    let prefix = prefix.trunc();
    let (create, remove) = (NLM_F_CREATE | NLM_F_EXCL, 0);
    // On the link: the destination answers for itself, so its scope is the link. A next hop need not be in a prefix of
    // the link (addresses here are mostly /32), so the kernel is told that it is reachable there.
    let (scope, flags) = if via.is_some() { (RT_SCOPE_UNIVERSE, RTNH_F_ONLINK) } else { (RT_SCOPE_LINK, 0) };
    let scope = if prefix.addr().is_ipv6() { RT_SCOPE_UNIVERSE } else { scope };
    let fixed = route_fixed(prefix, protocol, scope, flags);
    let message = Message::new(kind, if kind == RTM_NEWROUTE { create } else { remove }, &fixed).ip(RTA_DST, prefix.addr());
    let message = via.into_iter().fold(message, |message, via| message.ip(RTA_GATEWAY, via));
    message.u32(RTA_OIF, index)
}

/// As [`route_message`], for a route beside another one to the same prefix, which goes first as long as it is there.
pub(crate) fn route_beside(protocol: u8, prefix: IpNet, index: u32) -> Message {
    let (prefix, scope) = (prefix.trunc(), if prefix.addr().is_ipv6() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK });
    let fixed = route_fixed(prefix, protocol, scope, 0);
    Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, &fixed).ip(RTA_DST, prefix.addr()).u32(RTA_OIF, index)
}

impl Route {
    fn parse(body: &[u8]) -> Option<Route> {
        let (family, length, table) = (*body.first()?, *body.get(1)?, *body.get(4)?);
        let unspecified = if family == AF_INET { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let mut route = Route {
            table: u32::from(table),
            prefix: IpNet::new(unspecified, length).ok()?,
            via: None,
            index: 0,
            source: None,
            protocol: *body.get(5)?,
            scope: *body.get(6)?,
            kind: *body.get(7)?,
            metric: 0,
            more: None,
        };
        for (kind, content) in Attributes::after(body, ROUTE_FIXED) {
            match kind {
                RTA_DST => route.prefix = IpNet::new(read_ip(content)?, length).ok()?,
                RTA_GATEWAY => route.via = read_ip(content),
                RTA_OIF => route.index = read_u32(content, 0)?,
                RTA_PREFSRC => route.source = read_ip(content),
                RTA_PRIORITY => route.metric = read_u32(content, 0)?,
                RTA_TABLE => route.table = read_u32(content, 0)?,
                RTA_MULTIPATH => route.more = Some(content.to_vec()),
                _ => {}
            }
        }
        Some(route)
    }
    fn cached(body: &[u8]) -> bool {
        read_u32(body, 8).is_some_and(|flags| flags & RTM_F_CLONED != 0)
    }
}

/// Which routes to read.
#[derive(Clone, Copy, Default)]
pub(crate) struct RouteFilter {
    /// Through this link; 0 is any.
    pub(crate) index: u32,
    /// Of this protocol; 0 is any.
    pub(crate) protocol: u8,
    /// Of this table; 0 is any.
    pub(crate) table: u8,
}

/// The routes of both families that pass the filter; sorted.
pub(crate) fn routes(socket: &mut Socket, filter: RouteFilter) -> Result<Vec<Route>, Refusal> {
    let mut found = vec![];
    for family in [AF_INET, AF_INET6] {
        let fixed = [family, 0, 0, 0, filter.table, filter.protocol, 0, 0, 0, 0, 0, 0];
        let mut message = Message::new(RTM_GETROUTE, 0, &fixed);
        if filter.index != 0 {
            message = message.u32(RTA_OIF, filter.index);
        }
        let replies = match socket.dump(message) {
            Ok(replies) => replies,
            // No table of this family yet, or the family is not in this kernel.
            Err(refusal) if [rustix::io::Errno::NOENT, rustix::io::Errno::OPNOTSUPP].contains(&refusal.errno) => continue,
            Err(refusal) => return Err(refusal),
        };
        let kept = replies.iter().filter(|reply| reply.kind == RTM_NEWROUTE && !Route::cached(&reply.body));
        found.extend(kept.filter_map(|reply| Route::parse(&reply.body)));
    }
    found.sort();
    Ok(found)
}

/// Asks the kernel which way a packet would go.
pub(crate) fn route_get(socket: &mut Socket, packet: &Packet) -> Result<Option<Route>, Refusal> {
    let Packet { to, from, protocol, src_port, dst_port } = packet;
    let full = if to.is_ipv4() { 32 } else { 128 };
    let source_len = from.map_or(0, |_| full);
    let mut fixed = [family(*to), full, source_len, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    if to.is_ipv4() {
        fixed[8..].copy_from_slice(&RTM_F_LOOKUP_TABLE.to_ne_bytes()); // else every table is told to be the main one
    }
    let message = Message::new(RTM_GETROUTE, 0, &fixed).ip(RTA_DST, *to);
    let message = from.iter().fold(message, |message, from| message.ip(RTA_SRC, *from));
    let message = protocol.iter().fold(message, |message, protocol| message.bytes(RTA_IP_PROTO, &[*protocol]));
    let ports = [(RTA_SPORT, src_port), (RTA_DPORT, dst_port)];
    let ports = ports.into_iter().filter_map(|(kind, port)| Some((kind, (*port)?)));
    let message = ports.fold(message, |message, (kind, port)| message.bytes(kind, &port.to_be_bytes()));
    Ok(socket.ask(message)?.iter().find_map(|reply| Route::parse(&reply.body)))
}

/// A neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbor {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: MacAddr,
}

fn neighbor_fixed(family: u8, index: u32, state: u16) -> [u8; NEIGHBOR_FIXED] {
    let mut fixed = [0; NEIGHBOR_FIXED];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed
}

/// Adds (or makes permanent, or corrects) a neighbour.
pub(crate) fn neighbor_add(index: u32, ip: IpAddr, mac: MacAddr) -> Message {
    let fixed = neighbor_fixed(family(ip), index, NUD_PERMANENT);
    Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &fixed).ip(NDA_DST, ip).bytes(NDA_LLADDR, &mac.0)
}

/// Removes a neighbour.
pub(crate) fn neighbor_delete(index: u32, ip: IpAddr) -> Message {
    Message::new(RTM_DELNEIGH, 0, &neighbor_fixed(family(ip), index, 0)).ip(NDA_DST, ip)
}

/// The permanent neighbours on one link, or on all with index 0; sorted.
pub(crate) fn neighbors(socket: &mut Socket, index: u32) -> Result<Vec<Neighbor>, Refusal> {
    let mut found = vec![];
    for family in [AF_INET, AF_INET6] {
        let mut message = Message::new(RTM_GETNEIGH, 0, &neighbor_fixed(family, 0, 0));
        if index != 0 {
            message = message.u32(NDA_IFINDEX, index);
        }
        found.extend(socket.dump(message)?.iter().filter_map(|reply| parse_permanent(&reply.body)));
    }
    found.sort();
    Ok(found)
}

fn parse_permanent(body: &[u8]) -> Option<Neighbor> {
    let (index, state) = (read_u32(body, 4)?, read_u16(body, 8)?);
    let attribute = |kind| Attributes::after(body, NEIGHBOR_FIXED).find(kind);
    let (ip, mac) = (attribute(NDA_DST).and_then(read_ip)?, MacAddr(attribute(NDA_LLADDR)?.try_into().ok()?));
    (state & NUD_PERMANENT != 0).then_some(Neighbor { index, ip, mac })
}

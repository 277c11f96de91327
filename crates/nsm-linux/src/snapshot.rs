//! The ledger of a namespace: every object as one line, so that "nothing was left behind" is a comparison.

use crate::{
    inet::{self, RouteFilter},
    link::{self, Link},
    net::name_of,
    nl::{Attributes, Message, Refusal, Reply, Socket, read_ip, read_text, read_u32},
    rule::RULE_FIXED,
    uapi::*,
};
use ipnet::IpNet;
use rustix::io::Errno;

const TC_FIXED: usize = 20;

/// All objects of the socket's namespace; sorted.
pub(crate) fn take(socket: &mut Socket) -> Result<Vec<String>, Refusal> {
    let links = link::all(socket)?;
    let mut lines: Vec<String> = links.iter().map(link_line).collect();
    let addresses = inet::addresses(socket, 0)?;
    let addresses = addresses.iter().filter(|address| !(address.scope == RT_SCOPE_LINK && by_itself(&address.net)));
    lines
        .extend(addresses.map(|address| format!("address {} dev {} scope {}", address.net, name_of(&links, address.index), address.scope)));
    let routes = inet::routes(socket, RouteFilter::default())?;
    let routes = routes.iter().filter(|route| !(route.protocol == RTPROT_KERNEL && (by_itself(&route.prefix) || is_host6(&route.prefix))));
    lines.extend(routes.map(|route| route_line(&links, route)));
    lines.extend(
        inet::neighbors(socket, 0)?
            .iter()
            .map(|entry| format!("neighbour {} at {} dev {}", entry.ip, entry.mac, name_of(&links, entry.index))),
    );
    lines.extend(socket.dump(Message::new(RTM_GETRULE, 0, &[0; RULE_FIXED]))?.iter().filter_map(rule_line));
    lines.extend(traffic_control(socket, &links)?);
    lines.sort();
    Ok(lines)
}

/// What the kernel makes some time after an interface comes up, without being asked.
fn by_itself(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.addr().is_unicast_link_local() || v6.addr().is_multicast())
}

/// A host route that the kernel makes of an IPv6 address, when it gets to it.
fn is_host6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.prefix_len() == v6.max_prefix_len())
}

fn link_line(link: &Link) -> String {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let Link { index, name, kind, alias, mtu, group, .. } = link;
    let (up, master, vxlan) = (if link.up() { "up" } else { "down" }, link.master.unwrap_or(0), &link.vxlan);
    format!("link {index} {name} kind {kind:?} alias {alias:?} mtu {mtu} mac {mac} group {group} master {master} {up} {vxlan:?}")
}

fn route_line(links: &[Link], route: &inet::Route) -> String {
    let inet::Route { table, prefix, via, source, protocol, scope, kind, metric, more, .. } = route;
    let dev = name_of(links, route.index);
    format!(
        "route {prefix} via {via:?} dev {dev} table {table} src {source:?} protocol {protocol} scope {scope} type {kind} metric {metric} more {more:?}"
    )
}

fn rule_line(reply: &Reply) -> Option<String> {
    let (body, attribute) = (&reply.body, |kind| Attributes::after(&reply.body, RULE_FIXED).find(kind));
    let number = |kind| attribute(kind).and_then(|content| read_u32(content, 0)).unwrap_or(0);
    let net = |kind, length: u8| attribute(kind).and_then(read_ip).map(|ip| format!("{ip}/{length}"));
    let name = |kind| attribute(kind).map(read_text);
    let (family, to_len, from_len, action) = (*body.first()?, *body.get(1)?, *body.get(2)?, *body.get(7)?);
    Some(format!(
        "rule family {family} priority {} from {:?} to {:?} iif {:?} oif {:?} mark {} table {} action {action} protocol {:?} ip protocol {:?} ports {:?} to {:?}",
        number(FRA_PRIORITY),
        net(FRA_SRC, from_len),
        net(FRA_DST, to_len),
        name(FRA_IIFNAME),
        name(FRA_OIFNAME),
        number(FRA_FWMARK),
        number(FRA_TABLE),
        attribute(FRA_PROTOCOL),
        attribute(FRA_IP_PROTO),
        attribute(FRA_SPORT_RANGE),
        attribute(FRA_DPORT_RANGE),
    ))
}

/// Queueing disciplines that somebody set (the kernel's own have handle 0) and filters.
fn traffic_control(socket: &mut Socket, links: &[Link]) -> Result<Vec<String>, Refusal> {
    let mut lines = vec![];
    for reply in socket.dump(Message::new(RTM_GETQDISC, 0, &[0; TC_FIXED]))? {
        let (Some(index), Some(handle), Some(parent)) = (read_u32(&reply.body, 4), read_u32(&reply.body, 8), read_u32(&reply.body, 12))
        else {
            continue;
        };
        if handle == 0 {
            continue;
        }
        let kind = Attributes::after(&reply.body, TC_FIXED).find(TCA_KIND).map(read_text).unwrap_or_default();
        lines.push(format!("qdisc {kind} dev {} handle {handle:x} parent {parent:x}", name_of(links, index)));
        for parent in [handle, CLSACT_INGRESS, CLSACT_EGRESS] {
            lines.extend(filters(socket, index, parent)?.iter().filter_map(|reply| filter_line(links, parent, reply)));
        }
    }
    lines.dedup();
    Ok(lines)
}

/// The filters at one hook of one link; none when the hook is not there.
pub(crate) fn filters(socket: &mut Socket, index: u32, parent: u32) -> Result<Vec<Reply>, Refusal> {
    let mut fixed = [0; TC_FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    match socket.dump(Message::new(RTM_GETTFILTER, 0, &fixed)) {
        Err(refusal) if [Errno::INVAL, Errno::NOENT, Errno::OPNOTSUPP].contains(&refusal.errno) => Ok(vec![]),
        other => other,
    }
}

fn filter_line(links: &[Link], parent: u32, reply: &Reply) -> Option<String> {
    let (index, handle, info) = (read_u32(&reply.body, 4)?, read_u32(&reply.body, 8)?, read_u32(&reply.body, 16)?);
    let kind = Attributes::after(&reply.body, TC_FIXED).find(TCA_KIND).map(read_text).unwrap_or_default();
    Some(format!("filter {kind} dev {} parent {parent:x} handle {handle:x} info {info:x}", name_of(links, index)))
}

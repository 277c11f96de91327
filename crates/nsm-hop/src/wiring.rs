//! From an agreed connection to kernel objects. Pure.

use crate::{
    kernel::{IfName, Iface, Link, Netns, Traffic, TunnelKey, Wire, Wires},
    mechanism::{TunnelKeys, key_of},
    role::{Draft, Sent, WirePlan, Wiring},
};
use ipnet::IpNet;
use nsm_api::*;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// A forwarder: one link between what lies on its two sides, and what the connection's context puts on it.
pub struct ForwarderWiring {
    /// Keys of encrypted tunnels; `None` where this forwarder makes none.
    pub keys: Option<TunnelKeys>,
}

impl Wiring for ForwarderWiring {
    fn wires(&self, draft: &Draft, sent: Option<&Sent>) -> Result<WirePlan> {
        let object = format!("connection {:?}", draft.connection.id.as_str());
        let missing = || Error::internal(object.clone(), "it was agreed without a mechanism on both sides");
        let near = draft.connection.mechanism.as_ref().ok_or_else(missing)?;
        let sent = sent.ok_or_else(missing)?;
        let far = sent.connection.mechanism.as_ref().ok_or_else(missing)?;
        let context = &draft.connection.context;
        let mut wires = Wires::new();
        match (&near.kind, &far.kind) {
            (MechanismKind::Kernel, MechanismKind::Kernel) => {
                let (a, b) = (iface(near, &draft.files)?, iface(far, &sent.files)?);
                client_end(&mut wires, &a, context)?;
                endpoint_end(&mut wires, &b, context);
                if draft.connection.payload != Payload::Ethernet && context.ethernet_context.is_none() {
                    [&a, &b].into_iter().for_each(|on| ip_only(&mut wires, on));
                }
                wires.insert(Wire::Link(Link::Veth { a, b }));
            }
            (MechanismKind::Kernel, MechanismKind::Vxlan) => {
                let at = iface(near, &draft.files)?;
                client_end(&mut wires, &at, context)?;
                wires.insert(Wire::Link(vxlan(at, far, [params::SRC_IP, params::DST_IP, params::SRC_PORT])?));
            }
            (MechanismKind::Vxlan, MechanismKind::Kernel) => {
                let at = iface(far, &sent.files)?;
                endpoint_end(&mut wires, &at, context);
                wires.insert(Wire::Link(vxlan(at, near, [params::DST_IP, params::SRC_IP, params::DST_PORT])?));
            }
            (MechanismKind::Kernel, MechanismKind::Wireguard) => {
                let at = iface(near, &draft.files)?;
                client_end(&mut wires, &at, context)?;
                let key = self.key(&draft.connection.id)?;
                ip_only(&mut wires, &at);
                wires.insert(Wire::Link(wireguard(at, far, key, [SRC, DST])?));
            }
            (MechanismKind::Wireguard, MechanismKind::Kernel) => {
                let at = iface(far, &sent.files)?;
                endpoint_end(&mut wires, &at, context);
                let key = self.key(&draft.connection.id)?;
                ip_only(&mut wires, &at);
                wires.insert(Wire::Link(wireguard(at, near, key, [DST, SRC])?));
            }
            (near, far) => {
                let reason = format!("this forwarder cannot join {near} on the client's side to {far} on the endpoint's");
                return Err(Error::new(Kind::Unsupported, object, reason, "place one of the two on this node, or use another mechanism"));
            }
        }
        Ok(WirePlan { now: wires, later: Wires::new() })
    }
}

impl ForwarderWiring {
    fn key(&self, id: &ConnectionId) -> Result<TunnelKey> {
        let none =
            || Error::internal(format!("connection {:?}", id.as_str()), "an encrypted tunnel was agreed, and there are no keys here");
        self.keys.as_ref().map(|keys| keys(id)).ok_or_else(none)
    }
}

/// A passthrough endpoint: the interface towards the client and the one towards the next endpoint become one wire.
/// Both are made by forwarders; the first of them only after this endpoint has answered.
pub struct SpliceWiring;

impl Wiring for SpliceWiring {
    fn wires(&self, draft: &Draft, sent: Option<&Sent>) -> Result<WirePlan> {
        let near = draft.connection.mechanism.as_ref();
        let far = sent.and_then(|sent| Some((sent.connection.mechanism.as_ref()?, &sent.files)));
        let mut later = Wires::new();
        if let (Some(near), Some((far, files))) = (near.filter(|near| near.kind == MechanismKind::Kernel), far) {
            later.insert(Wire::Splice { a: iface(near, &draft.files)?, b: iface(far, files)? });
        }
        Ok(WirePlan { now: Wires::new(), later })
    }
}

fn iface(mechanism: &Mechanism, files: &Files) -> Result<Iface> {
    let absent = || {
        Error::invalid(
            "network namespace",
            "the peer named none, or its descriptor did not come along",
            "send inodeURL together with the descriptor",
        )
    };
    let key = mechanism.inode().ok_or_else(absent)?;
    let netns = Netns { key, file: Some(files.get(key).ok_or_else(absent)?.clone()) };
    Ok(Iface { netns, name: IfName::new(mechanism.get(params::NAME).unwrap_or_default())? })
}

/// The parameters of one side of an encrypted tunnel: address, port, key.
type Side = [&'static str; 3];
const SRC: Side = [params::SRC_IP, params::SRC_PORT, params::SRC_PUBLIC_KEY];
const DST: Side = [params::DST_IP, params::DST_PORT, params::DST_PUBLIC_KEY];

fn wireguard(at: Iface, mechanism: &Mechanism, key: TunnelKey, [ours, theirs]: [Side; 2]) -> Result<Link> {
    let bad = |parameter: &str| {
        Error::invalid("WireGuard mechanism", format!("parameter {parameter} is missing or unreadable"), "check the other node's forwarder")
    };
    let address = |[ip, port, _]: Side| {
        let ip = mechanism.parse::<IpAddr>(ip).ok_or_else(|| bad(ip))?;
        let port = mechanism.parse::<u16>(port).filter(|port| *port > 0).ok_or_else(|| bad(port))?;
        Ok::<_, Error>(SocketAddr::new(ip, port))
    };
    let peer = key_of(mechanism, theirs[2]).ok_or_else(|| bad(theirs[2]))?;
    if key_of(mechanism, ours[2]) != Some(key.public) {
        // It was agreed by a process with other keys: whoever asks again gets the new one.
        let reason = "it was agreed with a key that this forwarder does not have (any more)";
        return Err(Error::new(Kind::Unavailable, "WireGuard mechanism", reason, "send the Request again without a mechanism"));
    }
    Ok(Link::Wireguard { at, key, local: address(ours)?, peer, remote: address(theirs)? })
}

fn vxlan(at: Iface, mechanism: &Mechanism, [local, remote, port]: [&str; 3]) -> Result<Link> {
    let bad = |key: &str| {
        Error::invalid("VXLAN mechanism", format!("parameter {key} is missing or unreadable"), "check the other node's forwarder")
    };
    let address = |key: &str| mechanism.parse::<IpAddr>(key).ok_or_else(|| bad(key));
    let vni = mechanism.parse::<u32>(params::VNI).filter(|vni| (1..1 << 24).contains(vni)).ok_or_else(|| bad(params::VNI))?;
    let port = mechanism.parse::<u16>(port).filter(|port| *port > 0).ok_or_else(|| bad(port))?;
    Ok(Link::Vxlan { at, local: address(local)?, remote: address(remote)?, vni, port })
}

fn ip_only(wires: &mut Wires, on: &Iface) {
    wires.insert(Wire::Mac { on: on.clone(), mac: IP_WIRE_MAC });
    wires.insert(Wire::NoArp { on: on.clone() });
}

fn client_end(wires: &mut Wires, on: &Iface, context: &ConnectionContext) -> Result<()> {
    let ip = &context.ip_context;
    let mac = context.ethernet_context.as_ref().and_then(|ethernet| ethernet.src_mac);
    end(wires, on, mac, context.mtu, (&ip.src_ip_addrs, &ip.dst_ip_addrs, &ip.src_routes));
    let neighbors = ip.ip_neighbors.iter().filter(|neighbor| ip.dst_ip_addrs.iter().any(|dst| dst.contains(&neighbor.ip)));
    wires.extend(neighbors.map(|neighbor| Wire::Neighbor { on: on.clone(), ip: neighbor.ip, mac: neighbor.hardware_address }));
    for (rank, policy) in (0..).zip(&ip.policies) {
        wires.insert(policy_wire(on, rank, policy)?);
    }
    Ok(())
}

/// A policy of the context; without routes it is for all destinations.
fn policy_wire(on: &Iface, rank: u16, policy: &PolicyRoute) -> Result<Wire> {
    let bad = |field: &str, text: &str, fix: &str| {
        Error::invalid(
            format!("policy route {} of the connection's context", rank + 1),
            format!("its {field} {text:?} cannot be read"),
            fix,
        )
    };
    let from = match policy.from.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpNet>().map_err(|_| bad("from", text, "write an address with its prefix length, for instance 10.0.0.1/32"))?,
        ),
    };
    let protocol = match policy.proto.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| bad("proto", text, "write the number of an IP protocol, for instance 6 for TCP"))?),
    };
    let ports = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => port_range(text).map(Some).ok_or_else(|| bad(field, text, "write a port or a range, for instance 80 or 1000-2000")),
    };
    let ipv6 = from.or_else(|| policy.routes.first().map(|route| route.prefix)).is_some_and(|net| net.addr().is_ipv6());
    if policy.routes.iter().any(|route| route.prefix.addr().is_ipv6() != ipv6) {
        return Err(Error::invalid(
            format!("policy route {} of the connection's context", rank + 1),
            "mixes IPv4 and IPv6",
            "write one policy for each family",
        ));
    }
    let (dst_ports, src_ports) = (ports("destination port", &policy.dst_port)?, ports("source port", &policy.src_port)?);
    let traffic = Traffic { ipv6, from: from.as_ref().map(IpNet::trunc), protocol, dst_ports, src_ports };
    let all = || IpNet::new(if ipv6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) }, 0).expect("zero fits both families");
    let mut routes: BTreeSet<_> = policy.routes.iter().map(|route| (route.prefix.trunc(), route.next_hop)).collect();
    if routes.is_empty() {
        routes.insert((all(), None));
    }
    Ok(Wire::Policy { on: on.clone(), rank, traffic, routes })
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (0 < first && first <= last).then_some((first, last))
}

fn endpoint_end(wires: &mut Wires, on: &Iface, context: &ConnectionContext) {
    let ip = &context.ip_context;
    let mac = context.ethernet_context.as_ref().and_then(|ethernet| ethernet.dst_mac);
    end(wires, on, mac, context.mtu, (&ip.dst_ip_addrs, &ip.src_ip_addrs, &ip.dst_routes));
}

/// One end: its addresses, host routes to the other end's addresses that are not on its own networks, and the
/// context's routes, those without next hop through the other end's first address unless they are on the link.
fn end(wires: &mut Wires, on: &Iface, mac: Option<MacAddr>, mtu: u32, (own, other, routes): (&[IpNet], &[IpNet], &[Route])) {
    wires.extend(mac.map(|mac| Wire::Mac { on: on.clone(), mac }));
    wires.extend((mtu > 0).then(|| Wire::Mtu { on: on.clone(), mtu }));
    wires.extend(own.iter().map(|address| Wire::Address { on: on.clone(), address: *address }));
    let on_link = |networks: &[IpNet], ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
    let hosts = other.iter().filter(|address| !on_link(own, address.addr()));
    wires.extend(hosts.map(|address| Wire::Route { on: on.clone(), prefix: address.trunc(), via: None }));
    for route in routes {
        let same_family = |address: &&IpNet| address.addr().is_ipv4() == route.prefix.addr().is_ipv4();
        let implied = || other.iter().find(same_family).filter(|_| !on_link(other, route.prefix.addr())).map(IpNet::addr);
        let via = route
            .next_hop
            .or_else(implied)
            .filter(|via| *via != route.prefix.addr() || route.prefix.prefix_len() < route.prefix.max_prefix_len());
        wires.insert(Wire::Route { on: on.clone(), prefix: route.prefix.trunc(), via });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on() -> Iface {
        Iface { netns: Netns { key: InodeKey { dev: 4, ino: 1 }, file: None }, name: IfName::new("nsm-1").unwrap() }
    }
    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|text| text.parse().unwrap()).collect()
    }
    fn shown(own: &str, other: &str, routes: &str) -> String {
        let routes: Vec<Route> = nets(routes).into_iter().map(Route::on_link).collect();
        let mut wires = Wires::new();
        end(&mut wires, &on(), None, 0, (&nets(own), &nets(other), &routes));
        let line = |wire: &Wire| match wire {
            Wire::Address { address, .. } => format!("address {address}"),
            Wire::Route { prefix, via: Some(via), .. } => format!("{prefix} via {via}"),
            Wire::Route { prefix, .. } => format!("{prefix}"),
            other => format!("{other:?}"),
        };
        wires.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    /// E-21
    #[test]
    fn policies_are_read_or_refused_with_the_field_named() {
        let of = |from: &str, proto: &str, dst: &str, routes: &str| {
            let routes = nets(routes).into_iter().map(Route::on_link).collect();
            let policy = PolicyRoute {
                from: from.into(),
                proto: proto.into(),
                dst_port: dst.into(),
                src_port: String::new(),
                routes,
                unknown: Unknown::default(),
            };
            policy_wire(&on(), 0, &policy)
        };
        let shown = |wire: Wire| match wire {
            Wire::Policy { traffic: Traffic { ipv6, from, protocol, dst_ports, .. }, routes, .. } => {
                format!("{ipv6} {from:?} {protocol:?} {dst_ports:?} {:?}", routes.into_iter().map(|(prefix, _)| prefix).collect::<Vec<_>>())
            }
            other => format!("{other:?}"),
        };
        assert_eq!(
            shown(of("172.16.2.201/24", "6", "6666", "").unwrap()),
            "false Some(172.16.2.0/24) Some(6) Some((6666, 6666)) [0.0.0.0/0]"
        );
        assert_eq!(shown(of("2004::3/120", "", "1-9", "2004::5/120").unwrap()), "true Some(2004::/120) None Some((1, 9)) [2004::/120]");
        for (from, proto, dst, routes, word) in [
            ("nonsense", "", "", "", "from"),
            ("", "tcp", "", "", "proto"),
            ("", "256", "", "", "proto"),
            ("", "", "9-1", "", "destination port"),
            ("", "", "70000", "", "destination port"),
            ("", "", "0", "", "destination port"),
            ("10.0.0.1/32", "", "", "fd00::/64", "family"),
        ] {
            let error = of(from, proto, dst, routes).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    /// wire.md 1.4, V-10
    #[test]
    fn routes_go_through_the_other_end_unless_they_are_on_the_link() {
        assert_eq!(shown("10.0.0.1/32", "10.0.0.2/32", "10.0.0.2/32"), "address 10.0.0.1/32, 10.0.0.2/32");
        assert_eq!(shown("10.0.0.1/24", "10.0.0.2/24", ""), "address 10.0.0.1/24", "the other end is on our own network");
        assert_eq!(
            shown("10.0.0.1/32", "10.0.0.2/32 fd00::2/128", "172.31.0.0/16 fd01::/64"),
            "address 10.0.0.1/32, 10.0.0.2/32, 172.31.0.0/16 via 10.0.0.2, fd00::2/128, fd01::/64 via fd00::2"
        );
    }
}

//! The way of packets through the wires of all kernels, and through the network between them.
//!
//! A packet is sent in a pod to an address, takes the route with the longest prefix there, comes out at the other end of the
//! cable or tunnel, and is taken by the pod that has the address. Nothing of what hops believe is used.

use crate::world::{World, address};
use ipnet::IpNet;
use nsm_api::{Connection, params};
use nsm_hop::kernel::{IfName, Iface, Link, Wire};
use std::{collections::BTreeMap, net::IpAddr};

/// Where what enters an interface comes out.
enum Far {
    Cable(Iface),
    Tunnel { local: IpAddr, remote: IpAddr, vni: u32, port: u16 },
}

/// A moment of all wires.
pub(crate) struct Packets {
    ends: BTreeMap<Iface, Far>,
    /// Tunnels by who hears them: address, port and identifier; each with the address that it expects to hear.
    tunnels: BTreeMap<(IpAddr, u16, u32), Vec<(Iface, IpAddr)>>,
    addresses: BTreeMap<u64, Vec<(IpNet, IfName)>>,
    routes: BTreeMap<u64, Vec<(IpNet, IfName)>>,
    cut: Vec<(IpAddr, IpAddr)>,
}

impl Packets {
    pub(crate) fn of(world: &World) -> Packets {
        let mut packets =
            Packets { ends: BTreeMap::new(), tunnels: BTreeMap::new(), addresses: BTreeMap::new(), routes: BTreeMap::new(), cut: vec![] };
        let nodes = world.topology().nodes.len();
        for node in 0..nodes {
            world.kernel(node).wires().into_iter().for_each(|wire| packets.add(wire));
            packets.cut.extend((0..nodes).filter(|other| world.is_cut(node, *other)).map(|other| (address(node), address(other))));
        }
        packets
    }

    fn add(&mut self, wire: Wire) {
        match wire {
            Wire::Link(Link::Veth { a, b }) => {
                self.ends.insert(a.clone(), Far::Cable(b.clone()));
                self.ends.insert(b, Far::Cable(a));
            }
            Wire::Link(Link::Vxlan { at, local, remote, vni, port }) => {
                self.tunnels.entry((local, port, vni)).or_default().push((at.clone(), remote));
                self.ends.insert(at, Far::Tunnel { local, remote, vni, port });
            }
            Wire::Address { on, address } => self.addresses.entry(on.netns.key.ino).or_default().push((address, on.name)),
            Wire::Route { on, prefix, via: None } => self.routes.entry(on.netns.key.ino).or_default().push((prefix, on.name)),
            _ => {}
        }
    }

    /// By which interface a packet to `to` leaves the pod.
    fn leaves(&self, pod: u64, to: IpAddr) -> Option<&IfName> {
        let routes = self.routes.get(&pod).into_iter().flatten();
        let networks = self.addresses.get(&pod).into_iter().flatten();
        let fits = routes.chain(networks).filter(|(prefix, _)| prefix.contains(&to));
        fits.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, name)| name)
    }

    /// Where what enters `at` comes out: more than one place is a leak.
    fn comes_out(&self, at: &Iface) -> Vec<&Iface> {
        match self.ends.get(at) {
            None => vec![],
            Some(Far::Cable(other)) => vec![other],
            Some(Far::Tunnel { local, remote, vni, port }) => {
                if self.cut.contains(&(*local, *remote)) {
                    return vec![];
                }
                let hear = self.tunnels.get(&(*remote, *port, *vni)).into_iter().flatten();
                hear.filter(|(other, _)| other != at).map(|(other, _)| other).collect()
            }
        }
    }

    fn has(&self, pod: u64, wanted: IpAddr) -> bool {
        self.addresses.get(&pod).into_iter().flatten().any(|(address, _)| address.addr() == wanted)
    }

    /// The pod that answers a packet which the client sends over `connection` from its `pod`, when the answer comes back by the
    /// same interface. A client may still have addresses of an endpoint that it had before: one pair must do.
    pub(crate) fn answers(&self, pod: u64, connection: &Connection) -> Option<u64> {
        let name = connection.mechanism.as_ref()?.get(params::NAME)?;
        let near = self.ends.keys().find(|end| end.netns.key.ino == pod && end.name.as_str() == name)?;
        let [far] = self.comes_out(near)[..] else { return None };
        let [home] = self.comes_out(far)[..] else { return None };
        let there = far.netns.key.ino;
        let passes = |src: IpAddr, dst: IpAddr| {
            let (out, back) = (self.leaves(pod, dst), self.leaves(there, src));
            out == Some(&near.name) && back == Some(&far.name) && self.has(there, dst) && self.has(pod, src)
        };
        let context = &connection.context.ip_context;
        let mut pairs = context.src_ip_addrs.iter().flat_map(|src| context.dst_ip_addrs.iter().map(move |dst| (src.addr(), dst.addr())));
        (home == near && pairs.all(|(src, dst)| passes(src, dst))).then_some(there)
    }

    /// I1: a tunnel that is heard at two places, or by one that expects somebody else.
    pub(crate) fn leak(&self) -> Option<String> {
        self.ends.iter().find_map(|(at, far)| {
            let heard = self.comes_out(at);
            if heard.len() > 1 {
                return Some(format!("what enters {at:?} comes out at {heard:?}"));
            }
            let Far::Tunnel { local, .. } = far else { return None };
            let expects = self.tunnels.values().flatten().find(|(other, _)| heard.contains(&other)).map(|(_, remote)| remote)?;
            (expects != local).then(|| format!("what enters {at:?} at {local} comes out at {:?}, which is joined to {expects}", heard[0]))
        })
    }
}

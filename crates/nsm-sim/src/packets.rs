//! The way of packets through the wires of all kernels, and through the network between them.
//!
//! A packet is sent in a pod to an address, takes the route with the longest prefix there, comes out at the other end of the
//! cable or tunnel, and is taken by the pod that has the address. Nothing of what hops believe is used.

use crate::world::{World, address};
use ipnet::IpNet;
use nsm_api::{Connection, params};
use nsm_hop::kernel::{IfName, Iface, Link, Wire};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Where what enters an interface comes out.
enum Far {
    Cable(Iface),
    Tunnel { local: IpAddr, remote: IpAddr, vni: u32, port: u16 },
}

/// What one pod has.
#[derive(Default)]
struct Pod {
    ifaces: Vec<Iface>,
    /// Each with the interface that carries it.
    addresses: BTreeMap<IpAddr, Vec<IfName>>,
    /// Ways to one address only; most are.
    hosts: BTreeMap<IpAddr, Vec<IfName>>,
    networks: Vec<(IpNet, IfName)>,
}

/// A moment of all wires.
pub(crate) struct Packets {
    ends: BTreeMap<Iface, Far>,
    /// Tunnels by who hears them: address, port and identifier; each with the address that it expects to hear.
    tunnels: BTreeMap<(IpAddr, u16, u32), Vec<(Iface, IpAddr)>>,
    pods: BTreeMap<u64, Pod>,
    cut: Vec<(IpAddr, IpAddr)>,
    /// Pods that take nothing.
    deaf: BTreeSet<u64>,
}

impl Packets {
    pub(crate) fn of(world: &World) -> Packets {
        let deaf = world.state().deaf.clone();
        let mut packets = Packets { ends: BTreeMap::new(), tunnels: BTreeMap::new(), pods: BTreeMap::new(), cut: vec![], deaf };
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
                self.end(a.clone(), Far::Cable(b.clone()));
                self.end(b, Far::Cable(a));
            }
            Wire::Link(Link::Vxlan { at, local, remote, vni, port }) => {
                self.tunnels.entry((local, port, vni)).or_default().push((at.clone(), remote));
                self.end(at, Far::Tunnel { local, remote, vni, port });
            }
            Wire::Address { on, address } => {
                self.way(&on, address);
                self.pod(&on).addresses.entry(address.addr()).or_default().push(on.name);
            }
            Wire::Route { on, prefix, via: None } => self.way(&on, prefix),
            _ => {}
        }
    }
    fn pod(&mut self, on: &Iface) -> &mut Pod {
        self.pods.entry(on.netns.key.ino).or_default()
    }
    fn end(&mut self, at: Iface, far: Far) {
        self.pod(&at).ifaces.push(at.clone());
        self.ends.insert(at, far);
    }
    fn way(&mut self, on: &Iface, prefix: IpNet) {
        let pod = self.pod(on);
        if prefix.prefix_len() == prefix.max_prefix_len() {
            pod.hosts.entry(prefix.addr()).or_default().push(on.name.clone());
        } else {
            pod.networks.push((prefix, on.name.clone()));
        }
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

    /// The interface of the connection at the other end of its wire, when the wire is whole.
    fn far_end(&self, pod: u64, connection: &Connection) -> Option<(&Iface, &Iface)> {
        let name = connection.mechanism.as_ref()?.get(params::NAME)?;
        let near = self.pods.get(&pod)?.ifaces.iter().find(|end| end.name.as_str() == name)?;
        let [far] = self.comes_out(near)[..] else { return None };
        let [home] = self.comes_out(far)[..] else { return None };
        (home == near).then_some((near, far))
    }

    /// The pod that answers packets which the client sends over `connection` from its `pod`, when they go from each of its
    /// addresses to each of the other end's and back by the same interfaces.
    pub(crate) fn answers(&self, pod: u64, connection: &Connection) -> Option<u64> {
        let (near, far) = self.far_end(pod, connection)?;
        let (here, there) = (self.pods.get(&pod)?, self.pods.get(&far.netns.key.ino)?);
        if self.deaf.contains(&far.netns.key.ino) {
            return None;
        }
        let passes = |src: IpAddr, dst: IpAddr| {
            let (out, back) = (here.leaves(dst), there.leaves(src));
            out == Some(&near.name) && back == Some(&far.name) && there.addresses.contains_key(&dst) && here.addresses.contains_key(&src)
        };
        let context = &connection.context.ip_context;
        let mut pairs = context.src_ip_addrs.iter().flat_map(|src| context.dst_ip_addrs.iter().map(move |dst| (src.addr(), dst.addr())));
        pairs.all(|(src, dst)| passes(src, dst)).then_some(far.netns.key.ino)
    }

    /// I1: a tunnel that is heard at two places or by one that expects somebody else, or two that lead to one place.
    pub(crate) fn leak(&self) -> Option<String> {
        let mut targets: BTreeMap<(IpAddr, u16, u32), &Iface> = BTreeMap::new();
        self.ends.iter().find_map(|(at, far)| {
            let heard = self.comes_out(at);
            if heard.len() > 1 {
                return Some(format!("what enters {at:?} comes out at {heard:?}"));
            }
            let Far::Tunnel { local, remote, vni, port } = far else { return None };
            if let Some(other) = targets.insert((*remote, *port, *vni), at) {
                return Some(format!("what enters {at:?} and {other:?} goes to {remote} with identifier {vni}"));
            }
            let expects = self.tunnels.get(&(*remote, *port, *vni))?.iter().find(|(other, _)| heard.contains(&other)).map(|(_, to)| to)?;
            (expects != local).then(|| format!("what enters {at:?} at {local} comes out at {:?}, which is joined to {expects}", heard[0]))
        })
    }

    /// I3: an address that two pods have, whose wires lead to one and the same third pod. Pods of `clients` only.
    pub(crate) fn shared(&self, clients: &BTreeSet<u64>) -> Option<String> {
        let mut held: BTreeMap<(u64, IpAddr), u64> = BTreeMap::new();
        for (ino, pod) in self.pods.iter().filter(|(ino, _)| clients.contains(ino)) {
            for (address, names) in &pod.addresses {
                let ends = pod.ifaces.iter().filter(|end| names.contains(&end.name)).flat_map(|end| self.comes_out(end));
                for there in ends.map(|end| end.netns.key.ino) {
                    if let Some(other) = held.insert((there, *address), *ino).filter(|other| other != ino) {
                        return Some(format!("pods {other} and {ino} have {address}, and both have a wire to pod {there}"));
                    }
                }
            }
        }
        None
    }
}

impl Pod {
    /// By which interface a packet to `to` leaves.
    fn leaves(&self, to: IpAddr) -> Option<&IfName> {
        let host = self.hosts.get(&to).and_then(|names| names.last());
        host.or_else(|| {
            let fits = self.networks.iter().filter(|(prefix, _)| prefix.contains(&to));
            fits.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, name)| name)
        })
    }
}

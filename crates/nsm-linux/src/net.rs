//! A handle on one namespace for those who build topologies and check them: labs and tests.
//!
//! Every call is a few netlink messages and blocks for microseconds (deleting a link: up to some 20 ms, which the kernel
//! takes). Not here: the wires of connections; they are made by [`crate::LinuxKernel`], which knows whose they are.

use crate::{
    error::refused,
    inet::{self, RouteFilter},
    link::{self, Link, link_fixed},
    netns, nft,
    nl::{Message, Refusal, Socket},
    rule, snapshot,
    uapi::*,
};
use ipnet::IpNet;
use nsm_api::{Error, Kind, MacAddr, Result};
use nsm_hop::kernel::Netns;
use serde::Serialize;
use std::{
    net::IpAddr,
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard},
};

/// One namespace, open for building.
pub struct Net {
    netns: Netns,
    socket: Mutex<Socket>,
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkInfo {
    /// Interface index; with the namespace's inode the identity of the link.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alias; empty when none. Wires of a hop carry `nsm:<hop>:<connection>:<generation>`.
    pub alias: String,
    /// Kind: `veth`, `vxlan`, `bridge`, ...; empty for the loopback and physical devices.
    pub kind: String,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Hardware address, for devices that have one of six bytes.
    pub mac: Option<MacAddr>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Interface index of the other end of a veth, in its own namespace.
    pub peer: Option<u32>,
    /// Index of the bridge it belongs to.
    pub master: Option<u32>,
}

/// An address and the link that carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressInfo {
    /// Link name.
    pub dev: String,
    /// Address with its prefix length.
    pub address: IpNet,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteInfo {
    /// Destination.
    pub prefix: IpNet,
    /// Next hop; `None` is on the link.
    pub via: Option<IpAddr>,
    /// Link name; empty when the route has none or several.
    pub dev: String,
    /// Who made it: 2 is the kernel, 4 an administrator, [`crate::ROUTE_PROTOCOL`] a hop.
    pub protocol: u8,
}

/// A packet of which one asks which way it would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its destination.
    pub to: IpAddr,
    /// Its source; `None` is whatever the kernel chooses.
    pub from: Option<IpAddr>,
    /// Its IP protocol number.
    pub protocol: Option<u8>,
    /// Its source port.
    pub src_port: Option<u16>,
    /// Its destination port.
    pub dst_port: Option<u16>,
}

impl Packet {
    /// A packet of which only the destination is known.
    pub fn to(to: IpAddr) -> Packet {
        Packet { to, from: None, protocol: None, src_port: None, dst_port: None }
    }
}

/// Which way the kernel would send a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteHop {
    /// The routing table that decided; 254 is the main one.
    pub table: u32,
    /// Through this link.
    pub dev: String,
    /// Next hop; `None` when the destination is on the link.
    pub via: Option<IpAddr>,
    /// Source address that the kernel would choose.
    pub src: Option<IpAddr>,
}

/// Counters of a link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct LinkStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// A VXLAN tunnel between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Network identifier, 1 to 2^24-1.
    pub vni: u32,
    /// This node.
    pub local: IpAddr,
    /// The other node.
    pub remote: IpAddr,
    /// UDP port, the same on both.
    pub port: u16,
}

impl Net {
    /// Opens a namespace. The handle keeps it alive.
    pub fn new(netns: &Netns) -> Result<Net> {
        Ok(Net { netns: netns.clone(), socket: Mutex::new(Socket::open_in(netns)?) })
    }
    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    fn change(&self, object: &str, doing: &str, message: Message) -> Result<()> {
        self.socket().ask(message).map(|_| ()).map_err(self.explain(object, doing))
    }
    fn explain(&self, object: &str, doing: &str) -> impl FnOnce(Refusal) -> Error {
        let object = format!("{object} in network namespace {}", self.netns.key.ino);
        move |refusal| refused(object, doing, refusal)
    }
    fn link(&self, name: &str) -> Result<Link> {
        let found = link::by_name(&mut self.socket(), name).map_err(self.explain(name, "look it up"))?;
        found.ok_or_else(|| {
            let object = format!("interface {name:?} in network namespace {}", self.netns.key.ino);
            Error::new(Kind::NotFound, object, "there is none of that name", "check the name")
        })
    }

    /// Brings the loopback up.
    pub fn loopback_up(&self) -> Result<()> {
        self.up("lo")
    }
    /// Makes a veth pair: `name` here and `peer_name` in `peer`, both down, neither ever moved.
    pub fn veth(&self, name: &str, peer: &Netns, peer_name: &str) -> Result<()> {
        let peer = netns::file(peer)?;
        let peer_fd = peer.as_raw_fd() as u32;
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_fixed(0, 0, 0)).text(IFLA_IFNAME, name);
        let message = message.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |end| end.raw(&link_fixed(0, 0, 0)).text(IFLA_IFNAME, peer_name).u32(IFLA_NET_NS_FD, peer_fd))
            })
        });
        self.change(&format!("veth {name:?} with {peer_name:?}"), "make it", message)
    }
    /// Makes a VXLAN tunnel to one other node, down: the device is born in `at`, its UDP socket stays here. It learns nothing.
    pub fn vxlan(&self, name: &str, at: &Netns, tunnel: Tunnel) -> Result<()> {
        let at = netns::file(at)?;
        let end = |data: Message, ip: IpAddr, v4, v6| data.ip(if ip.is_ipv4() { v4 } else { v6 }, ip);
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_fixed(0, 0, 0)).text(IFLA_IFNAME, name);
        let message = message.u32(IFLA_NET_NS_FD, at.as_raw_fd() as u32).nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| {
                let data = data.u32(IFLA_VXLAN_ID, tunnel.vni);
                let data = end(data, tunnel.remote, IFLA_VXLAN_GROUP, IFLA_VXLAN_GROUP6);
                let data = end(data, tunnel.local, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6);
                data.bytes(IFLA_VXLAN_LEARNING, &[0]).bytes(IFLA_VXLAN_PORT, &tunnel.port.to_be_bytes())
            })
        });
        self.change(name, "make a VXLAN tunnel", message)
    }
    /// Makes a bridge, down.
    pub fn bridge(&self, name: &str) -> Result<()> {
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_fixed(0, 0, 0)).text(IFLA_IFNAME, name);
        self.change(name, "make a bridge", message.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge")))
    }
    /// Puts a link into a bridge, or takes it out with `None`.
    pub fn set_master(&self, name: &str, bridge: Option<&str>) -> Result<()> {
        let master = bridge.map(|bridge| self.link(bridge)).transpose()?.map_or(0, |bridge| bridge.index);
        self.set(name, "set its bridge", |message| message.u32(IFLA_MASTER, master))
    }
    /// Brings a link up.
    pub fn up(&self, name: &str) -> Result<()> {
        let fixed = link_fixed(self.link(name)?.index, IFF_UP, IFF_UP);
        self.change(name, "bring it up", Message::new(RTM_SETLINK, 0, &fixed))
    }
    /// Takes a link down; the kernel removes its routes.
    pub fn down(&self, name: &str) -> Result<()> {
        let fixed = link_fixed(self.link(name)?.index, 0, IFF_UP);
        self.change(name, "take it down", Message::new(RTM_SETLINK, 0, &fixed))
    }
    /// Renames a link. Kernels before 6.2 want it down.
    pub fn rename(&self, name: &str, to: &str) -> Result<()> {
        self.set(name, "rename it", |message| message.text(IFLA_IFNAME, to))
    }
    /// Sets the largest packet, bytes.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.set(name, "set its MTU", |message| message.u32(IFLA_MTU, mtu))
    }
    /// Sets the hardware address.
    pub fn set_mac(&self, name: &str, mac: MacAddr) -> Result<()> {
        self.set(name, "set its hardware address", |message| message.bytes(IFLA_ADDRESS, &mac.0))
    }
    /// Sets the alias; empty removes it.
    pub fn set_alias(&self, name: &str, alias: &str) -> Result<()> {
        self.set(name, "set its alias", |message| message.bytes(IFLA_IFALIAS, alias.as_bytes()))
    }
    fn set(&self, name: &str, doing: &str, fill: impl FnOnce(Message) -> Message) -> Result<()> {
        let message = Message::new(RTM_SETLINK, 0, &link_fixed(self.link(name)?.index, 0, 0));
        self.change(name, doing, fill(message))
    }
    /// Deletes a link; for a veth both ends go.
    pub fn delete(&self, name: &str) -> Result<()> {
        let fixed = link_fixed(self.link(name)?.index, 0, 0);
        self.change(name, "delete it", Message::new(RTM_DELLINK, 0, &fixed))
    }
    /// Adds an address; IPv6 is usable at once.
    pub fn address_add(&self, name: &str, address: IpNet) -> Result<()> {
        let message = inet::address_message(RTM_NEWADDR, self.link(name)?.index, address);
        self.change(&format!("address {address} on {name}"), "add it", message)
    }
    /// Removes an address.
    pub fn address_delete(&self, name: &str, address: IpNet) -> Result<()> {
        let message = inet::address_message(RTM_DELADDR, self.link(name)?.index, address);
        self.change(&format!("address {address} on {name}"), "remove it", message)
    }
    /// Adds a route of the main table, as an administrator would. Refuses to replace one.
    pub fn route_add(&self, prefix: IpNet, via: Option<IpAddr>, dev: &str) -> Result<()> {
        let message = inet::route_message(RTM_NEWROUTE, RTPROT_STATIC, prefix, via, self.link(dev)?.index);
        self.change(&format!("route {prefix} through {dev}"), "add it", message)
    }
    /// Removes a route that an administrator made.
    pub fn route_delete(&self, prefix: IpNet, via: Option<IpAddr>, dev: &str) -> Result<()> {
        let message = inet::route_message(RTM_DELROUTE, RTPROT_STATIC, prefix, via, self.link(dev)?.index);
        self.change(&format!("route {prefix} through {dev}"), "remove it", message)
    }
    /// Takes away every route of the main table to `prefix` through `dev`, whoever made it. Says how many there were.
    pub fn routes_remove(&self, prefix: IpNet, dev: &str) -> Result<usize> {
        let index = self.link(dev)?.index;
        let filter = RouteFilter { table: RT_TABLE_MAIN, ..RouteFilter::default() };
        let found = inet::routes(&mut self.socket(), filter).map_err(self.explain("routes", "list them"))?;
        let meant: Vec<_> = found.iter().filter(|route| route.index == index && route.prefix == prefix.trunc()).collect();
        for route in &meant {
            let message = inet::route_message(RTM_DELROUTE, route.protocol, prefix, route.via, index);
            self.change(&format!("route {prefix} through {dev}"), "remove it", message)?;
        }
        Ok(meant.len())
    }
    /// Takes away every rule that sends packets to this table, whoever made it. Says how many there were.
    pub fn rules_remove(&self, table: u32) -> Result<usize> {
        let found = rule::rules(&mut self.socket()).map_err(self.explain("rules", "list them"))?;
        let meant: Vec<_> = found.iter().filter(|rule| rule.table == table).collect();
        for rule in &meant {
            self.change(&format!("rule to table {table}"), "remove it", rule.message(RTM_DELRULE))?;
        }
        Ok(meant.len())
    }
    /// Adds a permanent neighbour, or corrects it.
    pub fn neighbor_add(&self, dev: &str, ip: IpAddr, mac: MacAddr) -> Result<()> {
        let message = inet::neighbor_add(self.link(dev)?.index, ip, mac);
        self.change(&format!("neighbour {ip} on {dev}"), "add it", message)
    }
    /// Removes a neighbour.
    pub fn neighbor_delete(&self, dev: &str, ip: IpAddr) -> Result<()> {
        let message = inet::neighbor_delete(self.link(dev)?.index, ip);
        self.change(&format!("neighbour {ip} on {dev}"), "remove it", message)
    }
    /// Which way a packet would go. No route is [`Kind::NotFound`].
    pub fn route_get(&self, packet: &Packet) -> Result<RouteHop> {
        let object = format!("route to {}", packet.to);
        let answer = inet::route_get(&mut self.socket(), packet);
        let route = answer.map_err(|refusal| no_route(self.explain(&object, "find it")(refusal)))?;
        let route = route.ok_or_else(|| Error::internal(object, "the kernel answered with nothing"))?;
        let dev = link::by_index(&mut self.socket(), route.index).map_err(self.explain("route", "find its link"))?;
        Ok(RouteHop { table: route.table, dev: dev.map(|dev| dev.name).unwrap_or_default(), via: route.via, src: route.source })
    }
    /// All links, by index.
    pub fn links(&self) -> Result<Vec<LinkInfo>> {
        Ok(self.all_links()?.into_iter().map(LinkInfo::from).collect())
    }
    /// The link of this name, if there is one.
    pub fn link_named(&self, name: &str) -> Result<Option<LinkInfo>> {
        let found = link::by_name(&mut self.socket(), name).map_err(self.explain(name, "look it up"))?;
        Ok(found.map(LinkInfo::from))
    }
    fn all_links(&self) -> Result<Vec<Link>> {
        link::all(&mut self.socket()).map_err(self.explain("links", "list them"))
    }
    /// All addresses, sorted, those that the kernel made included.
    pub fn addresses(&self) -> Result<Vec<AddressInfo>> {
        let links = self.all_links()?;
        let found = inet::addresses(&mut self.socket(), 0).map_err(self.explain("addresses", "list them"))?;
        Ok(found.into_iter().map(|address| AddressInfo { dev: name_of(&links, address.index), address: address.net }).collect())
    }
    /// All routes of the main table, sorted.
    pub fn routes(&self) -> Result<Vec<RouteInfo>> {
        let links = self.all_links()?;
        let filter = RouteFilter { table: RT_TABLE_MAIN, ..RouteFilter::default() };
        let found = inet::routes(&mut self.socket(), filter).map_err(self.explain("routes", "list them"))?;
        let info = |route: inet::Route| RouteInfo {
            prefix: route.prefix,
            via: route.via,
            dev: name_of(&links, route.index),
            protocol: route.protocol,
        };
        Ok(found.into_iter().map(info).collect())
    }
    /// Sets a kernel parameter of this namespace; `path` is relative to `/proc/sys`, for instance `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<()> {
        let full = format!("/proc/sys/{path}");
        let written = netns::run_in_blocking(&self.netns, || std::fs::write(&full, value))?;
        written.map_err(|error| refused(full, "write it", rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)))
    }
    /// Counters of a link.
    pub fn stats(&self, name: &str) -> Result<LinkStats> {
        let found = link::with_stats(&mut self.socket(), name).map_err(self.explain(name, "look it up"))?;
        let [rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped] = match found {
            Some(link) => link.stats.unwrap_or_default(),
            None => return self.link(name).map(|_| LinkStats::default()),
        };
        Ok(LinkStats { rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped })
    }
    /// The names of the packet filter tables in this namespace; none when the kernel has no such filters.
    pub fn filter_tables(&self) -> Result<Vec<String>> {
        let list = || nft::Filters::open()?.tables().map_err(|refusal| refused("packet filters", "list their tables", refusal));
        netns::run_in_blocking(&self.netns, list)?
    }
    /// Everything that exists in this namespace as canonical, sorted lines: links, addresses, routes of all tables,
    /// rules, permanent neighbours, queueing disciplines and filters. Without packet filters (see [`Net::filter_tables`]) and what comes and goes by itself (counters,
    /// learned neighbours, cached routes, IPv6 link-local addresses). Two snapshots are equal when nothing was left behind.
    pub fn snapshot(&self) -> Result<Vec<String>> {
        snapshot::take(&mut self.socket()).map_err(self.explain("a snapshot", "list its objects"))
    }
}

fn no_route(mut error: Error) -> Error {
    if error.reason.contains("unreachable") {
        error.kind = Kind::NotFound;
    }
    error
}

pub(crate) fn name_of(links: &[Link], index: u32) -> String {
    links.iter().find(|link| link.index == index).map(|link| link.name.clone()).unwrap_or_default()
}

impl From<Link> for LinkInfo {
    fn from(link: Link) -> LinkInfo {
        LinkInfo {
            index: link.index,
            up: link.up(),
            peer: if link.kind == "veth" { link.peer } else { None },
            name: link.name,
            alias: link.alias,
            kind: link.kind,
            mtu: link.mtu,
            mac: link.mac,
            master: link.master,
        }
    }
}

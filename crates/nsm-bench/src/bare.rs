//! The peers: bare kernel devices between two fresh namespaces, with the addresses and routes that a vWire has.

use crate::meter::Line;
use ipnet::IpNet;
use nsm_api::Result;
use nsm_hop::kernel::Netns;
use nsm_linux::{
    net::{Net, Tunnel},
    netns,
};
use std::net::{IpAddr, Ipv4Addr};

/// The name of the device in both namespaces.
const NAME: &str = "bare";
/// The far end's address. The namespaces are fresh, so it collides with nothing.
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 0));
/// The near end's address.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
/// Network identifier of the bare tunnel. No vWire has it: it is on a port of its own.
const VNI: u32 = 99;
/// Its UDP port.
const PORT: u16 = 14_789;

/// A line of bare devices; they go with it.
pub(crate) struct Bare {
    near: Net,
    far: Net,
}

impl Bare {
    fn new() -> Result<Bare> {
        let bare = Bare { near: Net::new(&netns::create()?)?, far: Net::new(&netns::create()?)? };
        bare.near.loopback_up()?;
        bare.far.loopback_up()?;
        Ok(bare)
    }
    /// A veth pair.
    pub(crate) fn veth(mtu: u32) -> Result<Bare> {
        let bare = Bare::new()?;
        bare.near.veth(NAME, bare.far.netns(), NAME)?;
        bare.furnish(mtu)
    }
    /// Two tunnel ends, their sockets in the two nodes: the underlay is the one of the vWire.
    pub(crate) fn vxlan(mtu: u32, nodes: [(&Netns, IpAddr); 2]) -> Result<Bare> {
        let bare = Bare::new()?;
        let [(here, local), (there, remote)] = nodes;
        Net::new(here)?.vxlan(NAME, bare.near.netns(), Tunnel { vni: VNI, local, remote, port: PORT })?;
        Net::new(there)?.vxlan(NAME, bare.far.netns(), Tunnel { vni: VNI, local: remote, remote: local, port: PORT })?;
        bare.furnish(mtu)
    }
    fn furnish(self, mtu: u32) -> Result<Bare> {
        furnish([&self.near, &self.far], NAME, mtu).map(|_| self)
    }
    /// To measure it.
    pub(crate) fn line(&self) -> Line {
        Line { near: self.near.netns().clone(), far: self.far.netns().clone(), address: FAR }
    }
}

/// Gives both ends of a device the addresses and routes that a vWire has, and brings them up.
pub(crate) fn furnish([near, far]: [&Net; 2], name: &str, mtu: u32) -> Result<Line> {
    for (net, own, other) in [(near, NEAR, FAR), (far, FAR, NEAR)] {
        net.set_mtu(name, mtu)?;
        net.up(name)?;
        net.address_add(name, IpNet::from(own))?;
        net.route_add(IpNet::from(other), None, name)?;
    }
    Ok(Line { near: near.netns().clone(), far: far.netns().clone(), address: FAR })
}

impl Drop for Bare {
    /// At once, not when the kernel gets to ending the namespaces: a tunnel's socket is in a node that others look at.
    fn drop(&mut self) {
        for net in [&self.near, &self.far] {
            if let Ok(Some(_)) = net.link_named(NAME) {
                let _ = net.delete(NAME); // what cannot be deleted goes with its namespace
            }
        }
    }
}

//! The real world of the conformance suite: a node with an underlay, and somebody else's hands.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use async_trait::async_trait;
use ipnet::IpNet;
use nsm_hop::{
    kernel::{IfName, Iface, Netns},
    testing::World,
};
use nsm_linux::{LinuxKernel, net::Net, netns};
use std::net::IpAddr;

/// Why a test cannot run at all.
pub(crate) const MUST: &str = "this test makes network namespaces: run it as root or under `unshare -Urnm`";
const UNDERLAY: (&str, u32) = ("192.0.2.1", 9000);

/// A node whose underlay is a veth with both ends in it.
pub(crate) struct Real {
    /// The node's namespace.
    pub(crate) node: Net,
}

impl Real {
    /// A node and a kernel that has it as its underlay.
    pub(crate) fn new() -> (Real, LinuxKernel) {
        let node = Net::new(&netns::create().expect(MUST)).unwrap();
        node.veth("uplink", node.netns(), "cable").unwrap();
        for end in ["uplink", "cable"] {
            node.set_mtu(end, UNDERLAY.1).unwrap();
            node.up(end).unwrap();
        }
        node.address_add("uplink", format!("{}/24", UNDERLAY.0).parse().unwrap()).unwrap();
        let kernel = netns::run_in_blocking(node.netns(), LinuxKernel::new).unwrap().unwrap();
        (Real { node }, kernel)
    }
}

fn net(netns: &Netns) -> Net {
    Net::new(netns).unwrap()
}

#[async_trait]
impl World for Real {
    async fn netns(&self) -> Netns {
        netns::create().unwrap()
    }
    async fn gone_netns(&self) -> Netns {
        Netns { file: None, ..netns::create().unwrap() }
    }
    async fn foreign_link(&self, at: &Iface) {
        net(&at.netns).bridge(at.name.as_str()).unwrap();
        net(&at.netns).up(at.name.as_str()).unwrap();
    }
    async fn foreign_route(&self, on: &Iface, prefix: IpNet) {
        net(&on.netns).route_add(prefix, None, on.name.as_str()).unwrap();
    }
    async fn rename(&self, from: &Iface, to: &IfName) {
        net(&from.netns).rename(from.name.as_str(), to.as_str()).unwrap();
    }
    async fn delete(&self, at: &Iface) {
        net(&at.netns).delete(at.name.as_str()).unwrap();
    }
    async fn ledger(&self, netns: &Netns) -> Vec<String> {
        net(netns).snapshot().unwrap()
    }
    async fn underlay(&self) -> (IpAddr, u32) {
        (UNDERLAY.0.parse().unwrap(), UNDERLAY.1)
    }
}

//! What a vWire carries besides the link: addresses, routes, neighbours, DNS, MTU.

use crate::{Error, Labels, Unknown};
use ipnet::IpNet;
use serde::Serialize;
use std::{fmt, net::IpAddr};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// The hardware address of every interface that carries IP packets and nothing else. Nothing is resolved on such a wire: a
/// packet goes to the sender's own address, which is the receiver's as well, also behind a passthrough endpoint.
pub const IP_WIRE_MAC: MacAddr = MacAddr([0x02, b'n', b's', b'm', 0, 1]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl std::str::FromStr for MacAddr {
    type Err = Error;
    fn from_str(text: &str) -> Result<MacAddr, Error> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        let well_formed = bytes.iter_mut().all(|byte| {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len()));
            part.and_then(|part| u8::from_str_radix(part, 16).ok()).map(|value| *byte = value).is_some()
        });
        if well_formed && parts.next().is_none() {
            return Ok(MacAddr(bytes));
        }
        Err(Error::invalid(format!("hardware address {text:?}"), "is not six hexadecimal bytes", "write it as 02:00:00:00:00:01"))
    }
}

/// A destination and, where it is not on the link, the next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Next hop; `None` means on the link.
    #[serde(rename = "nextHop")]
    pub next_hop: Option<IpAddr>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Route {
    /// A route on the link.
    pub fn on_link(prefix: IpNet) -> Route {
        Route { prefix, next_hop: None, unknown: Unknown::default() }
    }
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IpNeighbor {
    /// Address.
    pub ip: IpAddr,
    /// Where it lives.
    pub hardware_address: MacAddr,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// Asks the endpoint for whole prefixes besides the addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtraPrefixRequest {
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Length of each prefix.
    pub prefix_len: u32,
    /// How many are needed.
    pub required_number: u32,
    /// How many are welcome.
    pub requested_number: u32,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// Routes for a part of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRoute {
    /// Source prefix, empty for any.
    pub from: String,
    /// IP protocol number as text, empty for any.
    pub proto: String,
    /// `N`, `N-M` or empty.
    pub dst_port: String,
    /// `N`, `N-M` or empty.
    pub src_port: String,
    /// Where such traffic goes.
    pub routes: Vec<Route>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// Addresses and routes of both ends. `src` is the client's end, `dst` the endpoint's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IpContext {
    /// The client's addresses; the order matters (next hops are taken from the first).
    pub src_ip_addrs: Vec<IpNet>,
    /// The endpoint's addresses.
    pub dst_ip_addrs: Vec<IpNet>,
    /// The client insists on an address.
    pub src_ip_required: bool,
    /// The endpoint insists on an address.
    pub dst_ip_required: bool,
    /// Routes that the client gets.
    pub src_routes: Vec<Route>,
    /// Routes that the endpoint gets.
    pub dst_routes: Vec<Route>,
    /// Prefixes that must not be given out.
    pub excluded_prefixes: Vec<IpNet>,
    /// Permanent neighbours.
    pub ip_neighbors: Vec<IpNeighbor>,
    /// Whole prefixes asked for.
    pub extra_prefix_request: Vec<ExtraPrefixRequest>,
    /// Whole prefixes given.
    pub extra_prefixes: Vec<IpNet>,
    /// Policy routes of the client.
    pub policies: Vec<PolicyRoute>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// Servers and search domains of one resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DnsConfig {
    /// Server addresses.
    pub dns_server_ips: Vec<String>,
    /// Search domains.
    pub search_domains: Vec<String>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// All resolver configurations that the vWire brings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DnsContext {
    /// In order of preference.
    pub configs: Vec<DnsConfig>,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// Ethernet facts of both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EthernetContext {
    /// The client's hardware address.
    pub src_mac: Option<MacAddr>,
    /// The endpoint's hardware address.
    pub dst_mac: Option<MacAddr>,
    /// VLAN tag, 0 for none.
    pub vlan_tag: i32,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

/// Everything a vWire carries besides the link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConnectionContext {
    /// Addresses and routes. Always sent, even when empty: some peers need it present.
    pub ip_context: IpContext,
    /// DNS, when anybody spoke of it.
    pub dns_context: Option<DnsContext>,
    /// Ethernet, when anybody spoke of it.
    pub ethernet_context: Option<EthernetContext>,
    /// Free key-value pairs.
    pub extra_context: Labels,
    /// Largest inner packet in bytes, 0 while unknown.
    #[serde(rename = "MTU")]
    pub mtu: u32,
    /// Fields of newer versions.
    #[serde(skip)]
    pub unknown: Unknown,
}

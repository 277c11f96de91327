//! The kernel as a hop sees it: wires that exist or should, and the one seam through which they change.
//!
//! Plain data. Real devices are made in `nsm-linux`; the fake is in `testing`. Both pass one conformance suite.

use async_trait::async_trait;
use ipnet::IpNet;
use nsm_api::{ConnectionId, Error, HopName, InodeKey, MacAddr, Result};
use serde::Serialize;
use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicU32},
};
use zeroize::Zeroizing;

/// A network namespace. Two are the same when their inodes are, whatever descriptor or path led there.
#[derive(Clone)]
pub struct Netns {
    /// Device and inode of the namespace.
    pub key: InodeKey,
    /// The open namespace. Keeps it alive; `None` only in simulation.
    pub file: Option<Arc<OwnedFd>>,
}

impl PartialEq for Netns {
    fn eq(&self, other: &Netns) -> bool {
        self.key == other.key
    }
}
impl Eq for Netns {}
impl PartialOrd for Netns {
    fn partial_cmp(&self, other: &Netns) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Netns {
    fn cmp(&self, other: &Netns) -> Ordering {
        self.key.cmp(&other.key)
    }
}
impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netns:{}", self.key.ino)
    }
}

/// A kernel interface name that is safe to use: 1 to 15 bytes of `[A-Za-z0-9._-]`, no leading `-`, no reserved name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct IfName(Arc<str>);

/// Bytes of the longest interface name the kernel takes.
pub const MAX_IFNAME_BYTES: usize = 15;
const RESERVED_IFNAMES: [&str; 6] = [".", "..", "lo", "eth0", "all", "default"];

impl IfName {
    /// Checks a name. The kernel itself would accept far more, none of it wanted.
    pub fn new(text: &str) -> Result<IfName> {
        let reason = if text.is_empty() {
            "is empty".to_owned()
        } else if text.len() > MAX_IFNAME_BYTES {
            format!("has {} bytes, the kernel takes {MAX_IFNAME_BYTES}", text.len())
        } else if RESERVED_IFNAMES.contains(&text) {
            "is reserved".to_owned()
        } else if text.starts_with('-') || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            "holds a character outside A-Z a-z 0-9 . _ - or begins with -".to_owned()
        } else {
            return Ok(IfName(text.into()));
        };
        let shown: String = text.chars().filter(|c| !c.is_control()).take(32).collect();
        Err(Error::invalid(format!("interface name {shown:?}"), reason, "choose another name, for instance nsm-1"))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An interface by place and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iface {
    /// Where it lives.
    pub netns: Netns,
    /// Its name there.
    pub name: IfName,
}

/// A device of ours, or a pair of devices that live and die together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Two ends of one cable, each born in its namespace.
    Veth {
        /// One end (the client's, by convention).
        a: Iface,
        /// The other end.
        b: Iface,
    },
    /// An Ethernet tunnel born in `at`, its UDP socket in the namespace of this process.
    Vxlan {
        /// The inner end.
        at: Iface,
        /// Our tunnel address.
        local: IpAddr,
        /// The other node's tunnel address.
        remote: IpAddr,
        /// Network identifier, 1 to 2^24-1.
        vni: u32,
        /// UDP port, the same on both nodes.
        port: u16,
    },
    /// An encrypted IP tunnel born in `at`, its UDP socket in the namespace of this process.
    Wireguard {
        /// The inner end.
        at: Iface,
        /// Our key.
        key: TunnelKey,
        /// Our tunnel address and port.
        local: SocketAddr,
        /// The other side's key.
        peer: PublicKey,
        /// The other node's tunnel address and port.
        remote: SocketAddr,
    },
}

/// The largest packet that the underlay carries, bytes; what is found out about it lowers it for all who share it.
#[derive(Clone, Debug)]
pub struct UnderlayMtu(Arc<AtomicU32>);

impl UnderlayMtu {
    /// As the device says.
    pub fn new(bytes: u32) -> UnderlayMtu {
        UnderlayMtu(Arc::new(AtomicU32::new(bytes)))
    }
    /// As it is known now.
    pub fn get(&self) -> u32 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
    /// It is no more than this.
    pub fn lower(&self, bytes: u32) {
        self.0.fetch_min(bytes, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The public half of a tunnel's key, X25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A tunnel's key. Two are the same when their public halves are; the private one is never shown, and wiped at the end.
#[derive(Clone)]
pub struct TunnelKey {
    /// What the other side knows.
    pub public: PublicKey,
    /// What only this side knows; `None` for a tunnel that was found and not made by us.
    pub private: Option<Arc<Zeroizing<[u8; 32]>>>,
}

impl PartialEq for TunnelKey {
    fn eq(&self, other: &TunnelKey) -> bool {
        self.public == other.public
    }
}
impl Eq for TunnelKey {}
impl PartialOrd for TunnelKey {
    fn partial_cmp(&self, other: &TunnelKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for TunnelKey {
    fn cmp(&self, other: &TunnelKey) -> Ordering {
        self.public.cmp(&other.public)
    }
}
impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.public.fmt(f)
    }
}

/// Bytes that a VXLAN tunnel adds to an inner packet, over IPv4 and over IPv6.
pub const VXLAN_OVERHEAD: (u32, u32) = (54, 74);
/// Bytes that a WireGuard tunnel adds to an inner packet, over IPv4 and over IPv6.
pub const WIREGUARD_OVERHEAD: (u32, u32) = (60, 80);

impl Link {
    /// Bytes that it adds to a packet.
    pub fn overhead(&self) -> u32 {
        let of = |(v4, v6), remote: IpAddr| if remote.is_ipv4() { v4 } else { v6 };
        match self {
            Link::Veth { .. } => 0,
            Link::Vxlan { remote, .. } => of(VXLAN_OVERHEAD, *remote),
            Link::Wireguard { remote, .. } => of(WIREGUARD_OVERHEAD, remote.ip()),
        }
    }
    /// The interfaces this link consists of.
    pub fn ifaces(&self) -> Vec<&Iface> {
        match self {
            Link::Veth { a, b } => vec![a, b],
            Link::Vxlan { at, .. } | Link::Wireguard { at, .. } => vec![at],
        }
    }
}

/// The traffic that a policy route is for; everything that is not said is any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traffic {
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// From these addresses.
    pub from: Option<IpNet>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// To these ports, first and last.
    pub dst_ports: Option<(u16, u16)>,
    /// From these ports, first and last.
    pub src_ports: Option<(u16, u16)>,
}

/// One kernel object. The order of the variants is the order of creation; removal is the reverse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    /// A device, up, with its owner's tag.
    Link(Link),
    /// A hardware address other than the kernel's random one. Removing it does nothing.
    Mac {
        /// On this interface.
        on: Iface,
        /// The address.
        mac: MacAddr,
    },
    /// No resolution of neighbours: every packet goes to the interface's own hardware address, which the other end has
    /// as well. What a wire that carries IP packets is. Removing it does nothing.
    NoArp {
        /// On this interface.
        on: Iface,
    },
    /// A largest packet. Removing it does nothing.
    Mtu {
        /// On this interface.
        on: Iface,
        /// Bytes.
        mtu: u32,
    },
    /// An address.
    Address {
        /// On this interface.
        on: Iface,
        /// With its prefix length.
        address: IpNet,
    },
    /// A permanent neighbour.
    Neighbor {
        /// On this interface.
        on: Iface,
        /// Who.
        ip: IpAddr,
        /// Where.
        mac: MacAddr,
    },
    /// A route in the main table. Never replaces one of somebody else.
    Route {
        /// Through this interface.
        on: Iface,
        /// Destination.
        prefix: IpNet,
        /// Next hop; `None` is on the link.
        via: Option<IpAddr>,
    },
    /// Routes for a part of the traffic, in a table of their own. Unlike all else on an interface it does not go with it.
    Policy {
        /// Through this interface.
        on: Iface,
        /// Where several fit a packet, the lowest decides.
        rank: u16,
        /// Which traffic.
        traffic: Traffic,
        /// Destination and next hop (`None` is on the link).
        routes: BTreeSet<(IpNet, Option<IpAddr>)>,
    },
    /// Every frame that arrives at one interface leaves by the other, both ways, inside the kernel.
    Splice {
        /// One interface.
        a: Iface,
        /// The other, in the same namespace.
        b: Iface,
    },
}

impl Wire {
    /// The interfaces without which this object cannot be; a link has none.
    pub fn needs(&self) -> Vec<&Iface> {
        match self {
            Wire::Link(_) => vec![],
            Wire::Mac { on, .. }
            | Wire::NoArp { on }
            | Wire::Mtu { on, .. }
            | Wire::Address { on, .. }
            | Wire::Neighbor { on, .. }
            | Wire::Route { on, .. }
            | Wire::Policy { on, .. } => vec![on],
            Wire::Splice { a, b } => vec![a, b],
        }
    }
    /// Whether removing the links it needs removes it as well.
    pub fn goes_with_its_link(&self) -> bool {
        !matches!(self, Wire::Policy { .. })
    }
}

/// What has passed over an interface, as the pod sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets that came to the pod.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets that the pod sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets that were dropped on either way.
    pub drops: u64,
}

/// A set of kernel objects.
pub type Wires = BTreeSet<Wire>;

/// Whose an object is. Written into the kernel with the object, so that a restarted process knows its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The hop.
    pub hop: HopName,
    /// The connection, by that hop's id.
    pub connection: ConnectionId,
    /// Grows with every start of the process. An older one can change nothing of a newer one's.
    pub generation: u64,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make it. Making what is already there and ours is a success.
    Add(Wire),
    /// Remove it. Removing what is not there is a success; removing a link takes everything on it along.
    Del(Wire),
}

/// What somebody else has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Something may be gone or different. It is a hint.
    Changed,
    /// A network namespace has ended, and everything in it is of no use any more.
    Ended,
}

/// Is on watch until it is dropped.
#[async_trait]
pub trait Sentry: Send + Sync {
    /// Waits for the next disturbance, or tells of one since the last call. Cancel-safe.
    async fn disturbed(&self) -> Disturbance;
}

/// The outside that is the kernel. One real implementation, one fake.
#[async_trait]
pub trait Kernel: Send + Sync {
    /// What of `owner` exists at the places that `about` names. Never reports an object of somebody else.
    async fn observe(&self, owner: &Owner, about: &Wires) -> Result<Wires>;
    /// Applies changes in order and stops at the first that fails.
    async fn apply(&self, owner: &Owner, ops: &[Op]) -> Result<()>;
    /// Waits until the interface exists. Cancel-safe.
    async fn appeared(&self, iface: &Iface) -> Result<()>;
    /// A sentry at everything that `about` names. `None`: this kernel does not tell what others do.
    async fn watch(&self, _about: &Wires) -> Result<Option<Box<dyn Sentry>>> {
        Ok(None)
    }
    /// What has passed over these interfaces of `owner` since they were made; `None` for one that is not there.
    async fn counters(&self, owner: &Owner, on: &[Iface]) -> Result<Vec<Option<Counters>>>;
    /// The largest packet of the device that carries `address` in the namespace of this process.
    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32>;
}

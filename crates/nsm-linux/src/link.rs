//! Links as netlink tells them, and the requests that find them.

use crate::{
    nl::{Attributes, Message, Refusal, Reply, Socket, read_ip, read_text, read_u16, read_u32, read_u64},
    uapi::*,
};
use nsm_api::MacAddr;
use rustix::io::Errno;
use std::net::IpAddr;

/// Bytes of the fixed part of a link message.
pub(crate) const LINK_FIXED: usize = 16;

/// The kind of a device whose packets a process carries.
pub(crate) const TUN: &str = "tun";

/// The kind of the kernel's own encrypted tunnels.
pub(crate) const WIREGUARD: &str = "wireguard";

const NSID_FIXED: usize = 4;

/// What one link message says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) kind: String,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) group: u32,
    pub(crate) master: Option<u32>,
    /// Interface index of the other end of a veth, in its namespace.
    pub(crate) peer: Option<u32>,
    /// The local number of the namespace of the other end, when it is another one.
    pub(crate) peer_netns: Option<u32>,
    pub(crate) vxlan: Option<Vxlan>,
    /// It has a carrier, and the kernel has begun to use it.
    pub(crate) carries: bool,
    pub(crate) ipv6_disabled: bool,
    pub(crate) stats: Option<[u64; 8]>,
}

/// The settings of a VXLAN device that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) local: Option<IpAddr>,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) port: u16,
}

/// The fixed part of a link message: which link, and the flags to set among those in `change`.
pub(crate) fn link_fixed(index: u32, flags: u32, change: u32) -> [u8; LINK_FIXED] {
    let mut fixed = [0; LINK_FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

impl Link {
    /// Whether it is an encrypted tunnel, whoever makes it.
    pub(crate) fn is_encrypted(&self) -> bool {
        [TUN, WIREGUARD].contains(&self.kind.as_str())
    }
    pub(crate) fn parse(body: &[u8]) -> Option<Link> {
        let mut link = Link { index: read_u32(body, 4)?, flags: read_u32(body, 8)?, ..Link::default() };
        for (kind, content) in Attributes::after(body, LINK_FIXED) {
            match kind {
                IFLA_IFNAME => link.name = read_text(content),
                IFLA_IFALIAS => link.alias = read_text(content),
                IFLA_MTU => link.mtu = read_u32(content, 0)?,
                IFLA_ADDRESS => link.mac = content.try_into().ok().map(MacAddr),
                IFLA_OPERSTATE => link.carries = content.first() == Some(&IF_OPER_UP),
                IFLA_GROUP => link.group = read_u32(content, 0)?,
                IFLA_MASTER => link.master = read_u32(content, 0),
                IFLA_LINK => link.peer = read_u32(content, 0).filter(|index| *index != 0),
                IFLA_LINK_NETNSID => link.peer_netns = read_u32(content, 0),
                IFLA_LINKINFO => link.read_info(content),
                IFLA_AF_SPEC => link.ipv6_disabled = ipv6_disabled(content).unwrap_or(false),
                IFLA_STATS64 => link.stats = read_stats(content),
                _ => {}
            }
        }
        Some(link)
    }
    fn read_info(&mut self, info: &[u8]) {
        self.kind = Attributes(info).find(IFLA_INFO_KIND).map(read_text).unwrap_or_default();
        if self.kind == "vxlan" {
            self.vxlan = Attributes(info).find(IFLA_INFO_DATA).and_then(Vxlan::parse);
        }
    }
    pub(crate) fn up(&self) -> bool {
        self.flags & IFF_UP != 0
    }
}

impl Vxlan {
    fn parse(data: &[u8]) -> Option<Vxlan> {
        let mut found = Vxlan { vni: 0, local: None, remote: None, port: 0 };
        for (kind, content) in Attributes(data) {
            match kind {
                IFLA_VXLAN_ID => found.vni = read_u32(content, 0)?,
                IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => found.remote = read_ip(content),
                IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => found.local = read_ip(content),
                IFLA_VXLAN_PORT => found.port = u16::from_be(read_u16(content, 0)?),
                _ => {}
            }
        }
        Some(found)
    }
}

fn ipv6_disabled(spec: &[u8]) -> Option<bool> {
    let inet6 = Attributes(spec).find(u16::from(AF_INET6))?;
    let conf = Attributes(inet6).find(IFLA_INET6_CONF)?;
    Some(read_u32(conf, DEVCONF_DISABLE_IPV6 * 4)? != 0)
}

fn read_stats(content: &[u8]) -> Option<[u64; 8]> {
    let mut stats = [0; 8];
    for (place, value) in stats.iter_mut().enumerate() {
        *value = read_u64(content, place * 8)?;
    }
    Some(stats)
}

/// Asks for links without their counters, which cost more than all the rest.
fn lean(message: Message) -> Message {
    message.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
}

fn one(socket: &mut Socket, message: Message) -> Result<Option<Link>, Refusal> {
    match socket.ask(message) {
        Ok(replies) => Ok(replies.iter().find_map(parse_new)),
        Err(refusal) if refusal.errno == Errno::NODEV => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

fn parse_new(reply: &Reply) -> Option<Link> {
    (reply.kind == RTM_NEWLINK).then(|| Link::parse(&reply.body))?
}

/// The link of this name; costs the same however many there are.
pub(crate) fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    one(socket, lean(Message::new(RTM_GETLINK, 0, &link_fixed(0, 0, 0))).text(IFLA_IFNAME, name))
}

/// The link of this alternative name; costs the same however many there are.
pub(crate) fn by_alternative_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    one(socket, lean(Message::new(RTM_GETLINK, 0, &link_fixed(0, 0, 0))).text(IFLA_ALT_IFNAME, name))
}

/// The link of this index.
pub(crate) fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, Refusal> {
    one(socket, lean(Message::new(RTM_GETLINK, 0, &link_fixed(index, 0, 0))))
}

/// The link of this name with its counters.
pub(crate) fn with_stats(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    one(socket, Message::new(RTM_GETLINK, 0, &link_fixed(0, 0, 0)).text(IFLA_IFNAME, name))
}

/// All links, by index.
pub(crate) fn all(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let replies = socket.dump(lean(Message::new(RTM_GETLINK, 0, &link_fixed(0, 0, 0))))?;
    let mut links: Vec<Link> = replies.iter().filter_map(parse_new).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// The local number by which the socket's namespace knows another one; `None` when it has none.
pub(crate) fn number_of(socket: &mut Socket, netns_fd: u32) -> Result<Option<u32>, Refusal> {
    let replies = socket.ask(Message::new(RTM_GETNSID, 0, &[0; NSID_FIXED]).u32(NETNSA_FD, netns_fd))?;
    Ok(replies.iter().find_map(|reply| read_u32(Attributes::after(&reply.body, NSID_FIXED).find(NETNSA_NSID)?, 0)))
}

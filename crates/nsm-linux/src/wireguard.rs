//! WireGuard devices of the kernel, where it has the module: made like every tunnel, configured by generic netlink.
//!
//! The device lives in the pod; its UDP socket stays in the namespace of the process that made it. A device has a port of
//! its own: the kernel does not share one between devices.

use crate::{
    error::refused,
    link,
    netns::{self, Visitor},
    nl::{Attributes, Message, Part, Refusal, Socket, read_u16, read_u32},
    tunnels::{EncryptedTunnel, TunnelSettings, Tunnels},
    uapi::*,
};
use nsm_api::{Error, InodeKey, Kind, Result};
use nsm_hop::kernel::{Iface, Netns, PublicKey, TunnelKey};
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Seconds between packets of a tunnel at rest, so that both nodes' firewalls keep it open.
const KEEPALIVE: u16 = 10;
const GENL_FIXED: usize = 4;
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;

/// The kernel as a maker of encrypted tunnels. Its underlay is the namespace of the thread that opened it.
pub struct KernelWireguard {
    underlay: Mutex<Socket>,
    family: u16,
    /// The namespaces of its devices, as a name alone does not lead there, and the node's address of each.
    places: Mutex<BTreeMap<(InodeKey, String), (Netns, SocketAddr)>>,
}

impl KernelWireguard {
    /// `None` where the kernel has no such devices.
    pub fn open() -> Result<Option<KernelWireguard>> {
        let Some(family) = family()? else { return Ok(None) };
        Ok(Some(KernelWireguard { underlay: Mutex::new(Socket::open()?), family, places: Mutex::default() }))
    }
    fn places(&self) -> MutexGuard<'_, BTreeMap<(InodeKey, String), (Netns, SocketAddr)>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bear(&self, at: &Iface, group: u32) -> std::result::Result<(), Refusal> {
        let netns = netns::file(&at.netns).map_err(|_| Errno::BADF)?;
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link::link_fixed(0, 0, 0))
            .text(IFLA_IFNAME, at.name.as_str())
            .u32(IFLA_GROUP, group)
            .u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32)
            .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, link::WIREGUARD));
        let mut underlay = self.underlay.lock().unwrap_or_else(PoisonError::into_inner);
        match underlay.ask(message) {
            Err(refusal) if refusal.errno == Errno::EXIST => Ok(()), // the caller has looked whose it is
            other => other.map(|_| ()),
        }
    }
    fn configure(&self, tunnel: &EncryptedTunnel) -> Result<()> {
        let (at, settings) = (&tunnel.at, &tunnel.settings);
        let object = || format!("encrypted tunnel {:?}", at.name.as_str());
        let private = settings.key.private.as_ref().ok_or_else(|| Error::internal(object(), "its private key is not known here"))?;
        let message = genl(self.family, WG_CMD_SET_DEVICE)
            .text(WGDEVICE_A_IFNAME, at.name.as_str())
            .bytes(WGDEVICE_A_PRIVATE_KEY, private.as_slice())
            .u32(WGDEVICE_A_FLAGS, WGDEVICE_F_REPLACE_PEERS)
            .bytes(WGDEVICE_A_LISTEN_PORT, &settings.local.port().to_ne_bytes());
        let message = message.nest(WGDEVICE_A_PEERS | NLA_F_NESTED, |peers| peers.nest(NLA_F_NESTED, |message| peer(message, settings)));
        in_namespace(&at.netns, |socket| socket.ask(message).map(drop))?.map_err(|refusal| refused(object(), "configure it", refusal))
    }
}

fn peer(message: Message, settings: &TunnelSettings) -> Message {
    let all = |allowed: Message, family: u8, zero: IpAddr| {
        allowed.nest(NLA_F_NESTED, |one| {
            let one = one.bytes(WGALLOWEDIP_A_FAMILY, &u16::from(family).to_ne_bytes());
            one.ip(WGALLOWEDIP_A_IPADDR, zero).bytes(WGALLOWEDIP_A_CIDR_MASK, &[0])
        })
    };
    message
        .bytes(WGPEER_A_PUBLIC_KEY, &settings.peer.0)
        .u32(WGPEER_A_FLAGS, WGPEER_F_REPLACE_ALLOWEDIPS)
        .bytes(WGPEER_A_ENDPOINT, &sockaddr(settings.remote))
        .bytes(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &KEEPALIVE.to_ne_bytes())
        .nest(WGPEER_A_ALLOWEDIPS | NLA_F_NESTED, |allowed| {
            let allowed = all(allowed, AF_INET, Ipv4Addr::UNSPECIFIED.into());
            all(allowed, AF_INET6, Ipv6Addr::UNSPECIFIED.into())
        })
}

impl Tunnels for KernelWireguard {
    fn add(&self, tunnel: &EncryptedTunnel) -> Result<()> {
        let object = format!("encrypted tunnel {:?}", tunnel.at.name.as_str());
        self.bear(&tunnel.at, tunnel.mark.1).map_err(|refusal| refused(object, "make it", refusal))?;
        self.configure(tunnel)?;
        let key = (tunnel.at.netns.key, tunnel.at.name.as_str().to_owned());
        self.places().insert(key, (tunnel.at.netns.clone(), tunnel.settings.local));
        Ok(())
    }
    fn find(&self, at: &Iface) -> Result<Option<TunnelSettings>> {
        let message = genl(self.family, WG_CMD_GET_DEVICE).text(WGDEVICE_A_IFNAME, at.name.as_str());
        let replies = match in_namespace(&at.netns, |socket| socket.dump(message))? {
            Ok(replies) => replies,
            Err(refusal) if [Errno::NODEV, Errno::OPNOTSUPP].contains(&refusal.errno) => {
                self.places().remove(&(at.netns.key, at.name.as_str().to_owned())); // no namespace is kept for it
                return Ok(None);
            }
            Err(refusal) => return Err(refused(format!("encrypted tunnel {:?}", at.name.as_str()), "look at it", refusal)),
        };
        // The kernel listens on all addresses: which one was asked for only we remember.
        let known = self.places().get(&(at.netns.key, at.name.as_str().to_owned())).map(|(_, local)| *local);
        Ok(replies.iter().find_map(|reply| parse(&reply.body, known)))
    }
    fn remove(&self, netns: InodeKey, name: &str) -> Result<()> {
        self.places().remove(&(netns, name.to_owned())); // the device has gone with its group
        Ok(())
    }
}

fn genl(family: u16, command: u8) -> Message {
    Message::new(family, 0, &[command, 1, 0, 0])
}

fn in_namespace<T: Send>(netns: &Netns, ask: impl FnOnce(&mut Socket) -> T + Send) -> Result<T> {
    netns::visit_blocking(|visitor: &Visitor| {
        visitor.enter(netns)?;
        Ok(ask(&mut Socket::open_to(Part::Generic)?))
    })?
}

/// The number of the kernel's WireGuard interface; `None` when it has none.
fn family() -> Result<Option<u16>> {
    let message = Message::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]).text(CTRL_ATTR_FAMILY_NAME, link::WIREGUARD);
    match Socket::open_to(Part::Generic)?.ask(message) {
        Ok(replies) => {
            let id = |body: &[u8]| Attributes::after(body, GENL_FIXED).find(CTRL_ATTR_FAMILY_ID).and_then(|id| read_u16(id, 0));
            Ok(replies.iter().find_map(|reply| id(&reply.body)))
        }
        Err(refusal) if refusal.errno == Errno::NOENT => Ok(None),
        Err(refusal) => Err(refused("generic netlink", "ask for WireGuard", refusal)),
    }
}

fn parse(body: &[u8], known: Option<SocketAddr>) -> Option<TunnelSettings> {
    let attribute = |kind| Attributes::after(body, GENL_FIXED).find(kind);
    let public = PublicKey(attribute(WGDEVICE_A_PUBLIC_KEY)?.try_into().ok()?);
    let port = attribute(WGDEVICE_A_LISTEN_PORT).and_then(|port| read_u16(port, 0))?;
    let (_, peer) = Attributes(attribute(WGDEVICE_A_PEERS)?).next()?;
    let remote = Attributes(peer).find(WGPEER_A_ENDPOINT).and_then(read_sockaddr)?;
    let peer = PublicKey(Attributes(peer).find(WGPEER_A_PUBLIC_KEY)?.try_into().ok()?);
    let any = if remote.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let local = SocketAddr::new(known.map_or(any, |known| known.ip()), port);
    Some(TunnelSettings { key: TunnelKey { public, private: None }, local, peer, remote })
}

fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let family = u16::from(if address.is_ipv4() { AF_INET } else { AF_INET6 });
    let mut bytes = [family.to_ne_bytes(), address.port().to_be_bytes()].concat();
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.resize(SOCKADDR_IN, 0);
        }
        SocketAddr::V6(v6) => {
            bytes.extend([0; 4]);
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn read_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match (read_u16(bytes, 0)?, bytes.len()) {
        (family, SOCKADDR_IN..) if family == u16::from(AF_INET) => {
            Some(SocketAddr::from((<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?, port)))
        }
        (family, SOCKADDR_IN6..) if family == u16::from(AF_INET6) => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?);
            Some(std::net::SocketAddrV6::new(ip, port, 0, read_u32(bytes, 24)?).into())
        }
        _ => None,
    }
}

/// Why a device of the kernel cannot be joined to others inside the kernel.
pub(crate) fn no_splice(object: String) -> Error {
    let reason = "it is a WireGuard device of the kernel, which carries packets without a link header";
    Error::new(Kind::Unsupported, object, reason, "start the forwarder with --packet-engine unix://... and run `nsm packet`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_kernel() {
        for text in ["192.0.2.1:51820", "[2001:db8::7]:4500"] {
            let address: SocketAddr = text.parse().unwrap();
            let bytes = sockaddr(address);
            assert_eq!(bytes.len(), if address.is_ipv4() { SOCKADDR_IN } else { SOCKADDR_IN6 });
            assert_eq!(read_sockaddr(&bytes), Some(address));
            assert_eq!(read_sockaddr(&bytes[..bytes.len() - 1]), None);
        }
    }

    /// What the kernel answers, message by message as its documentation has it.
    #[test]
    fn a_device_is_read_as_it_was_asked_for() {
        let settings = TunnelSettings {
            key: TunnelKey { public: PublicKey([3; 32]), private: None },
            local: "192.0.2.1:51821".parse().unwrap(),
            peer: PublicKey([4; 32]),
            remote: "192.0.2.2:51820".parse().unwrap(),
        };
        let message = Message::new(0, 0, &[0, 1, 0, 0])
            .bytes(WGDEVICE_A_PUBLIC_KEY, &[3; 32])
            .bytes(WGDEVICE_A_LISTEN_PORT, &51821u16.to_ne_bytes())
            .nest(WGDEVICE_A_PEERS | NLA_F_NESTED, |peers| peers.nest(NLA_F_NESTED, |message| peer(message, &settings)));
        assert_eq!(parse(message.body(), Some(settings.local)), Some(settings));
    }
}

//! The few messages to the kernel that a device needs beside its own calls: its alias, its group, its size, its end.

use crate::error::refused;
use nsm_api::{Error, IP_WIRE_MAC, Result};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt},
};
use std::{os::fd::OwnedFd, time::Duration};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// The kernel makes no link-local address.
const ADDR_GEN_NONE: u8 = 1;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const HEADER: usize = 16;
const IFINFO: usize = 16;
const ATTRIBUTE: usize = 4;
/// The answer about one link is shorter than this.
const ANSWER: usize = 16 << 10;
/// An answer is queued before the send returns; waiting longer means that it was lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the kernel of the namespace of the calling thread.
pub(crate) struct Rtnl {
    socket: OwnedFd,
}

/// What a device is made to be.
#[derive(Clone, Copy)]
pub(crate) struct Looks<'a> {
    pub(crate) alias: &'a str,
    pub(crate) group: u32,
    pub(crate) mtu: u32,
    /// Most segments of one large packet.
    pub(crate) segments: u32,
}

impl Rtnl {
    pub(crate) fn new() -> Result<Rtnl> {
        let failed = |errno| refused("routing netlink", "open it", errno);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).map_err(failed)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).map_err(failed)?;
        Ok(Rtnl { socket })
    }
    /// Index of the link of this name.
    pub(crate) fn index(&self, name: &str) -> Result<Option<u32>> {
        match rustix::net::netdevice::name_to_index(&self.socket, name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(refused(format!("link {name:?}"), "find it", errno)),
        }
    }
    /// The alias of a link; empty when it has none.
    pub(crate) fn alias(&self, index: u32) -> Result<String> {
        let answer = self.ask(RTM_GETLINK, index, 0, &[]).map_err(|errno| refused(format!("link {index}"), "read it", errno))?;
        let mut rest = answer.get(HEADER + IFINFO..).unwrap_or(&[]);
        while let Some(head) = rest.first_chunk::<ATTRIBUTE>() {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let Some(content) = rest.get(ATTRIBUTE..length) else { break };
            if u16::from_ne_bytes([head[2], head[3]]) == IFLA_IFALIAS {
                let text = content.strip_suffix(&[0]).unwrap_or(content);
                return String::from_utf8(text.to_vec()).map_err(|_| Error::internal(format!("link {index}"), "its alias is no text"));
            }
            rest = rest.get(length.next_multiple_of(ATTRIBUTE)..).unwrap_or(&[]);
        }
        Ok(String::new())
    }
    /// Gives a link its looks, among them the address that both ends have and do not ask for, and switches it on.
    pub(crate) fn dress(&self, index: u32, looks: Looks<'_>) -> Result<()> {
        let (mtu, group, segments) = (looks.mtu.to_ne_bytes(), looks.group.to_ne_bytes(), looks.segments.to_ne_bytes());
        let attributes: [(u16, &[u8]); 5] = [
            (IFLA_ADDRESS, &IP_WIRE_MAC.0),
            (IFLA_MTU, &mtu),
            (IFLA_GROUP, &group),
            (IFLA_IFALIAS, looks.alias.as_bytes()),
            (IFLA_GSO_MAX_SEGS, &segments),
        ];
        let object = || format!("link {index} of {:?}", looks.alias);
        // As with the kernel's own WireGuard, nothing is said on the wire that nobody asked for. No IPv6, no need.
        let _ = self.ask(RTM_NEWLINK, index, 0, &[(IFLA_AF_SPEC, &nest(AF_INET6, &nest(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE])))]);
        self.ask(RTM_NEWLINK, index, IFF_UP | IFF_NOARP, &attributes).map(|_| ()).map_err(|errno| refused(object(), "set it up", errno))
    }
    /// Removes a link; one that is not there is a success.
    pub(crate) fn delete(&self, index: u32) -> Result<()> {
        match self.ask(RTM_DELLINK, index, 0, &[]) {
            Ok(_) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(refused(format!("link {index}"), "remove it", errno)),
        }
    }
    /// One message about one link and the answer to it.
    fn ask(&self, kind: u16, index: u32, flags: u32, attributes: &[(u16, &[u8])]) -> std::result::Result<Vec<u8>, Errno> {
        let mut message = vec![0; HEADER + IFINFO];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        let acknowledge = if kind == RTM_GETLINK { 0 } else { ACKNOWLEDGE };
        message[6..8].copy_from_slice(&(REQUEST | acknowledge).to_ne_bytes());
        message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
        message[HEADER + 8..HEADER + 12].copy_from_slice(&flags.to_ne_bytes());
        message[HEADER + 12..HEADER + 16].copy_from_slice(&flags.to_ne_bytes());
        for (kind, content) in attributes {
            message.extend(nest(*kind, content));
        }
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER];
        let (read, _) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(read);
        let errno = match answer.get(4..6) == Some(&ERROR.to_ne_bytes()) {
            true => {
                answer.get(HEADER..HEADER + 4).and_then(|code| code.try_into().ok()).map_or(libc::EIO, |code| -i32::from_ne_bytes(code))
            }
            false => 0,
        };
        if errno == 0 { Ok(answer) } else { Err(Errno::from_raw_os_error(errno)) }
    }
}

/// An attribute.
fn nest(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ATTRIBUTE + content.len().next_multiple_of(ATTRIBUTE));
    bytes.extend((content.len() as u16 + ATTRIBUTE as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(ATTRIBUTE), 0);
    bytes
}

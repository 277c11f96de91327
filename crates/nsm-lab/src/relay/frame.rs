//! What of an Ethernet frame decides whether a fault is for it.

use crate::schema::Only;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The protocol, the sender and the receiver of the packet in a frame, if it is IP.
fn packet(frame: &[u8]) -> Option<(u8, IpAddr, IpAddr)> {
    let kind: [u8; 2] = frame.get(12..14)?.try_into().ok()?;
    let body = &frame[14..];
    match kind {
        IPV4 => {
            let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?)));
            Some((*body.get(9)?, address(12)?, address(16)?))
        }
        IPV6 => {
            let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(at..at + 16)?).ok()?)));
            Some((*body.get(6)?, address(8)?, address(24)?))
        }
        _ => None,
    }
}

/// It carries IP.
pub(super) fn is_ip(frame: &[u8]) -> bool {
    packet(frame).is_some()
}

/// It carries what `only` says, to or from `peer` if that is said.
pub(super) fn is_meant(frame: &[u8], only: Only, peer: Option<IpAddr>) -> bool {
    let packet = packet(frame);
    let protocol = match only {
        Only::Everything => true,
        Only::Tcp => packet.is_some_and(|(protocol, ..)| protocol == TCP),
        Only::Udp => packet.is_some_and(|(protocol, ..)| protocol == UDP),
    };
    protocol && peer.is_none_or(|peer| packet.is_some_and(|(_, from, to)| from == peer || to == peer))
}

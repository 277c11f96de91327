//! What stands before each IP packet of an interface: the offload header, ten bytes in native order, and the link header.
//!
//! The interface carries frames, so that it can be joined to others inside the kernel; but both its ends have one address
//! and resolve none, so a link header says nothing but whether IPv4 or IPv6 follows.

use nsm_api::IP_WIRE_MAC;

/// Bytes of the offload header.
pub(crate) const VNET_BYTES: usize = 10;
/// Bytes of the link header.
const LINK_BYTES: usize = 14;
/// Bytes of both.
pub(crate) const HEAD_BYTES: usize = VNET_BYTES + LINK_BYTES;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// The packet's code is not complete: sum from `checksum_start`, store at `checksum_offset`.
const NEEDS_CHECKSUM: u8 = 1;
/// The codes of the packet have been verified.
const VERIFIED: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The first segment has the flag "congestion window reduced".
const GSO_ECN: u8 = 0x80;

/// What a packet stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gso {
    None,
    Tcp,
    Udp,
}

/// What stands before a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vnet {
    pub(crate) gso: Gso,
    /// Payload bytes of each segment but the last.
    pub(crate) segment: usize,
    /// Where the header after the IP header begins and where, from there, its code is; `None` when the code is complete.
    pub(crate) checksum: Option<(usize, usize)>,
}

impl Vnet {
    /// Reads both headers; nothing for a kind that was not asked for, or for a frame without an IP packet.
    pub(crate) fn parse(bytes: &[u8; HEAD_BYTES]) -> Option<Vnet> {
        if ![IPV4, IPV6].iter().any(|kind| bytes.ends_with(kind)) {
            return None;
        }
        let u16_at = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 | GSO_TCP6 => Gso::Tcp,
            GSO_UDP => Gso::Udp,
            _ => return None,
        };
        // Places are counted from the start of the frame.
        let checksum = match bytes[0] & NEEDS_CHECKSUM {
            0 => None,
            _ => Some((u16_at(6).checked_sub(LINK_BYTES)?, u16_at(8))),
        };
        Some(Vnet { gso, segment: u16_at(4), checksum })
    }
    /// A packet as it is.
    pub(crate) fn plain(verified: bool, ipv6: bool) -> [u8; HEAD_BYTES] {
        let mut bytes = linked(ipv6);
        bytes[0] = if verified { VERIFIED } else { 0 };
        bytes
    }
    /// Several segments in one packet, whose headers have `header` bytes together.
    pub(crate) fn bytes(&self, ipv6: bool, header: usize) -> [u8; HEAD_BYTES] {
        let mut bytes = linked(ipv6);
        bytes[1] = match (self.gso, ipv6) {
            (Gso::None, _) => GSO_NONE,
            (Gso::Tcp, false) => GSO_TCP4,
            (Gso::Tcp, true) => GSO_TCP6,
            (Gso::Udp, _) => GSO_UDP,
        };
        let mut put = |at: usize, value: usize| bytes[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        put(2, LINK_BYTES + header);
        put(4, self.segment);
        if let Some((start, offset)) = self.checksum {
            put(6, LINK_BYTES + start);
            put(8, offset);
            bytes[0] = NEEDS_CHECKSUM;
        }
        bytes
    }
}

/// An empty offload header and the link header.
fn linked(ipv6: bool) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[VNET_BYTES..VNET_BYTES + 6].copy_from_slice(&IP_WIRE_MAC.0);
    bytes[VNET_BYTES + 6..VNET_BYTES + 12].copy_from_slice(&IP_WIRE_MAC.0);
    bytes[VNET_BYTES + 12..].copy_from_slice(if ipv6 { &IPV6 } else { &IPV4 });
    bytes
}

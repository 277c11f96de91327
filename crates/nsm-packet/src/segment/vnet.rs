//! The offload header before each packet of a TUN device: ten bytes, native order.

/// Bytes of the header.
pub(crate) const VNET_BYTES: usize = 10;
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
    /// Reads the header; nothing for a kind that was not asked for.
    pub(crate) fn parse(bytes: &[u8; VNET_BYTES]) -> Option<Vnet> {
        let u16_at = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 | GSO_TCP6 => Gso::Tcp,
            GSO_UDP => Gso::Udp,
            _ => return None,
        };
        let checksum = (bytes[0] & NEEDS_CHECKSUM != 0).then(|| (u16_at(6), u16_at(8)));
        Some(Vnet { gso, segment: u16_at(4), checksum })
    }
    /// A packet as it is.
    pub(crate) fn plain(verified: bool) -> [u8; VNET_BYTES] {
        let mut bytes = [0; VNET_BYTES];
        bytes[0] = if verified { VERIFIED } else { 0 };
        bytes
    }
    /// Several segments in one packet, whose headers have `header` bytes together.
    pub(crate) fn bytes(&self, ipv6: bool, header: usize) -> [u8; VNET_BYTES] {
        let mut bytes = [0; VNET_BYTES];
        bytes[1] = match (self.gso, ipv6) {
            (Gso::None, _) => GSO_NONE,
            (Gso::Tcp, false) => GSO_TCP4,
            (Gso::Tcp, true) => GSO_TCP6,
            (Gso::Udp, _) => GSO_UDP,
        };
        let mut put = |at: usize, value: usize| bytes[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        put(2, header);
        put(4, self.segment);
        if let Some((start, offset)) = self.checksum {
            put(6, start);
            put(8, offset);
            bytes[0] = NEEDS_CHECKSUM;
        }
        bytes
    }
}

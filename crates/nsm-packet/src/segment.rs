//! Large packets with an offload header: cut into the packets that they stand for, and put together again.
//!
//! Plain functions over bytes. The offload header is that of virtio, as the TUN driver speaks it.

pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod split;
pub(crate) mod vnet;

#[cfg(test)]
mod tests;

/// IP protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Bytes of a UDP header.
pub(crate) const UDP_HEADER: usize = 8;
/// Bytes of an IPv6 header.
pub(crate) const IPV6_HEADER: usize = 40;
/// Bytes of the shortest IPv4 or TCP header.
pub(crate) const SHORTEST_HEADER: usize = 20;
/// Bytes of the longest IP packet without a jumbo header.
pub(crate) const MAX_PACKET: usize = 65_535;

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Bytes of the IP packet at the start of `bytes`, which may have padding after it; nothing if there is no sound one.
pub(crate) fn ip_length(bytes: &[u8]) -> Option<usize> {
    let length = match bytes.first()? >> 4 {
        4 if bytes.len() >= SHORTEST_HEADER => usize::from(be16(bytes, 2)),
        6 if bytes.len() >= IPV6_HEADER => usize::from(be16(bytes, 4)) + IPV6_HEADER,
        _ => return None,
    };
    (length >= SHORTEST_HEADER && length <= bytes.len()).then_some(length)
}

/// Writes the length of the whole packet, and for IPv4 the code over its header.
pub(crate) fn put_ip_length(packet: &mut [u8], header: usize, length: usize) {
    if packet[0] >> 4 == 6 {
        put16(packet, 4, (length - IPV6_HEADER) as u16);
        return;
    }
    put16(packet, 2, length as u16);
    packet[10..12].fill(0);
    let code = !checksum::fold(checksum::sum(&packet[..header], 0));
    packet[10..12].copy_from_slice(&code.to_ne_bytes());
}

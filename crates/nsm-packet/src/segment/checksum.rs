//! The Internet checksum, over native-order words: the sum is the same in any order of bytes (RFC 1071).

use super::IPV6_HEADER;

/// Adds `bytes` to a sum. Only the last part of what is summed may have an odd length.
pub(crate) fn sum(bytes: &[u8], start: u64) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<64>();
    // Sixteen sums side by side, so that the compiler uses wide registers. None overflows: a packet has 65535 bytes.
    let mut lanes = [0u64; 16];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<4>();
    let middle: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    start + lanes.iter().sum::<u64>() + middle + u64::from(u32::from_ne_bytes(last))
}

/// Folds a sum to 16 bits, native order.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over the pseudo header of a packet: addresses, protocol, and the length after the IP header.
pub(crate) fn pseudo(packet: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 6 { &packet[8..IPV6_HEADER] } else { &packet[12..20] };
    sum(addresses, u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be()))
}

/// The code for the part after the IP header, whose own field is zero. UDP writes a code of zero as all ones.
pub(crate) fn finish(sum: u64, udp: bool) -> [u8; 2] {
    match !fold(sum) {
        0 if udp => [0xff; 2],
        code => code.to_ne_bytes(),
    }
}

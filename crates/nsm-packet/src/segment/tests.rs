//! What is cut and joined again is the same, and everything on the way is what a plain sender would have sent, as seen by
//! a reader of packets that shares no code with the rest.

use super::{
    coalesce::{Coalescer, MAX_JOINED},
    ip_length,
    split::Split,
    vnet::{Gso, HEAD_BYTES, Vnet},
};
use proptest::prelude::*;

/// The plainest checksum: words in network order, one by one.
fn code(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header(packet: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = if packet[0] >> 4 == 4 { packet[12..20].to_vec() } else { packet[8..40].to_vec() };
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    v6: bool,
    tcp: bool,
    port: u16,
    options: bool,
}

fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A packet of this flow with complete codes.
fn packet(flow: Flow, sequence: u32, id: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let inner = if flow.v6 { 40 } else { 20 };
    let header = inner
        + if !flow.tcp {
            8
        } else if flow.options {
            32
        } else {
            20
        };
    let mut bytes = vec![0; header];
    let protocol = if flow.tcp { 6 } else { 17 };
    let length = (header + payload.len()) as u16;
    if flow.v6 {
        put(&mut bytes, 0, &[0x60, 0x0a, 0xbc, 0xde]);
        put(&mut bytes, 4, &(length - 40).to_be_bytes());
        put(&mut bytes, 6, &[protocol, 64]);
        put(&mut bytes, 8, &[0xfd; 32]);
    } else {
        put(&mut bytes, 0, &[0x45, 0]);
        put(&mut bytes, 2, &length.to_be_bytes());
        put(&mut bytes, 4, &id.to_be_bytes());
        put(&mut bytes, 8, &[64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !code(&[&bytes[..20]]);
        put(&mut bytes, 10, &sum.to_be_bytes());
    }
    put(&mut bytes, inner, &[flow.port.to_be_bytes(), 80u16.to_be_bytes()].concat());
    if flow.tcp {
        put(&mut bytes, inner + 4, &sequence.to_be_bytes());
        put(&mut bytes, inner + 8, &[9, 9, 9, 9, ((header - inner) as u8 / 4) << 4, flags, 1, 0]);
        bytes[inner + 20..].fill(1);
    } else {
        put(&mut bytes, inner + 4, &(length - inner as u16).to_be_bytes());
    }
    bytes.extend(payload);
    let place = inner + if flow.tcp { 16 } else { 6 };
    let sum = !code(&[&pseudo_header(&bytes, protocol, bytes.len() - inner), &bytes[inner..]]);
    let sum = if sum == 0 && !flow.tcp { 0xffff } else { sum };
    put(&mut bytes, place, &sum.to_be_bytes());
    bytes
}

/// What the kernel hands over for a large packet: lengths of the whole, and the sum of the pseudo header as code.
fn large(flow: Flow, sequence: u32, flags: u8, payload: &[u8], segment: usize) -> (Vnet, Vec<u8>) {
    let inner = if flow.v6 { 40 } else { 20 };
    let (offset, protocol, gso) = if flow.tcp { (16, 6, Gso::Tcp) } else { (6, 17, Gso::Udp) };
    let mut bytes = packet(flow, sequence, 7, flags, payload);
    let partial = code(&[&pseudo_header(&bytes, protocol, bytes.len() - inner)]);
    put(&mut bytes, inner + offset, &partial.to_be_bytes());
    (Vnet { gso, segment, checksum: Some((inner, offset)) }, bytes)
}

fn cut(vnet: Vnet, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut split = Split::new(vnet, bytes).expect("sound");
    let mut out = vec![0; split.largest()];
    std::iter::from_fn(|| split.write_next(&mut out).map(|length| out[..length].to_vec())).collect()
}

/// What leaves, as offload header and packet.
fn join(packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>, bool)> {
    let (mut coalescer, buffer) = (Coalescer::new(true), packets.concat());
    let mut at = 0;
    for packet in packets {
        coalescer.push(&buffer, at..at + packet.len());
        at += packet.len();
    }
    let mut left = Vec::new();
    coalescer.drain(&buffer, |parts| {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (head, packet) = bytes.split_first_chunk::<HEAD_BYTES>().unwrap();
        left.push((Vnet::parse(head).unwrap(), packet.to_vec(), head[0] & 2 != 0));
    });
    left
}

fn any_flow() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 1..4u16, any::<bool>()).prop_map(|(v6, tcp, port, options)| Flow { v6, tcp, port, options })
}

proptest! {
    /// Cutting gives exactly what a sender without offloads would have sent.
    #[test]
    fn cutting_gives_plain_packets(flow in any_flow(), payload in proptest::collection::vec(any::<u8>(), 1..20_000), segment in 200..1460usize, flags in prop::sample::select(vec![0x10u8, 0x18, 0x19, 0x90])) {
        let sequence = 0xffff_f000;
        let (vnet, bytes) = large(flow, sequence, flags, &payload, segment);
        let chunks: Vec<&[u8]> = payload.chunks(segment).collect();
        let expected: Vec<Vec<u8>> = chunks.iter().enumerate().map(|(number, chunk)| {
            let first = if number == 0 { flags } else { flags & !0x80 };
            let flags = if number + 1 == chunks.len() { first } else { first & !0x09 };
            packet(flow, sequence.wrapping_add((number * segment) as u32), 7 + number as u16, flags, chunk)
        }).collect();
        prop_assert_eq!(cut(vnet, &bytes), expected);
    }

    /// Joining what was cut gives the same large packet back, in as few parts as may be.
    #[test]
    fn joining_is_the_reverse_of_cutting(flow in any_flow(), payload in proptest::collection::vec(any::<u8>(), 1..60_000), segment in 1000..1460usize) {
        let (vnet, bytes) = large(flow, 0xffff_0000, 0x18, &payload, segment);
        let pieces = cut(vnet, &bytes);
        let left = join(&pieces);
        prop_assert_eq!(left.len(), pieces.len().div_ceil(MAX_JOINED));
        if pieces.len() == 1 {
            prop_assert_eq!(&left[0].1, &pieces[0]);
            prop_assert!(left[0].2, "its codes were verified");
        } else {
            prop_assert_eq!((left[0].0, &left[0].1), (vnet, &bytes));
        }
    }

    /// Whatever comes in whatever order: each flow's packets leave in their order and unchanged.
    #[test]
    fn no_flow_is_reordered_or_changed(steps in proptest::collection::vec((any_flow(), 0..3u8, 1..600usize, any::<bool>()), 1..120)) {
        let (mut sequences, mut packets) = (std::collections::BTreeMap::new(), Vec::new());
        for (number, (flow, what, length, push)) in steps.into_iter().enumerate() {
            let key = (flow.v6, flow.tcp, flow.port);
            let sequence = sequences.entry(key).or_insert(1000u32);
            let flags = if push { 0x18 } else { 0x10 };
            let length = if what == 2 { length } else { 500 };
            let mut bytes = packet(flow, *sequence, number as u16, flags, &vec![number as u8; length]);
            if what == 1 && length % 7 == 0 {
                let last = bytes.len() - 1;
                bytes[last] ^= 0xff; // a wrong code must stay wrong
            }
            *sequence = sequence.wrapping_add(length as u32);
            packets.push((key, bytes));
        }
        let bytes: Vec<Vec<u8>> = packets.iter().map(|(_, bytes)| bytes.clone()).collect();
        let flow_of = |packet: &[u8]| {
            let v6 = packet[0] >> 4 == 6;
            let inner = if v6 { 40 } else { 20 };
            (v6, packet[if v6 { 6 } else { 9 }] == 6, u16::from_be_bytes([packet[inner], packet[inner + 1]]))
        };
        // Without an identity in sequence, IPv4 headers after cutting count on from the first.
        let plain = |mut packet: Vec<u8>| { if packet[0] >> 4 == 4 { packet[4..6].fill(0); packet[10..12].fill(0); } packet };
        let left: Vec<Vec<u8>> = join(&bytes).into_iter().flat_map(|(vnet, bytes, _)| cut(vnet, &bytes)).map(plain).collect();
        let expected: Vec<Vec<u8>> = bytes.into_iter().map(plain).collect();
        prop_assert_eq!(left.len(), expected.len());
        for key in sequences.keys() {
            let of_flow = |all: &[Vec<u8>]| all.iter().filter(|packet| flow_of(packet) == *key).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of_flow(&left), of_flow(&expected));
        }
    }

    /// Bytes of a stranger: no panic, and whatever leaves is what came.
    #[test]
    fn strange_bytes_pass_unchanged(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in prop::sample::select(vec![4u8, 6, 0]), protocol in prop::sample::select(vec![6u8, 17, 1])) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | (*first & 15);
        }
        let length = bytes.len();
        if length >= 40 {
            bytes[if version == 4 { 9 } else { 6 }] = protocol;
            let total = if version == 4 { length } else { length - 40 } as u16;
            put(&mut bytes, if version == 4 { 2 } else { 4 }, &total.to_be_bytes());
        }
        if let Some(length) = ip_length(&bytes) {
            let left = join(&[bytes[..length].to_vec()]);
            prop_assert_eq!((left.len(), &left[0].1[..]), (1, &bytes[..length]));
        }
    }

    /// An offload header that does not fit its packet is refused or cut without a panic.
    #[test]
    fn strange_offloads_do_no_harm(head in any::<[u8; HEAD_BYTES]>(), kind in prop::sample::select(vec![0u8, 1, 4, 5]), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let head = { let mut head = head; head[1] = kind; head[4] %= 200; head[5] = 0; head[6] %= 100; head[7] = 0; head[8] %= 30; head[9] = 0; head };
        if let Some(mut split) = Vnet::parse(&head).and_then(|vnet| Split::new(vnet, &bytes)) {
            let mut out = vec![0; split.largest()];
            while split.write_next(&mut out).is_some() {}
        }
    }
}

#[test]
fn packets_that_differ_are_not_joined() {
    let flow = Flow { v6: false, tcp: true, port: 1, options: true };
    let first = packet(flow, 1000, 1, 0x10, &[1; 100]);
    let next = |sequence, id, flags| packet(flow, sequence, id, flags, &[2; 100]);
    assert_eq!(join(&[first.clone(), next(1100, 2, 0x10)]).len(), 1);
    for (what, other) in [
        ("a gap", next(1101, 2, 0x10)),
        ("a copy", first.clone()),
        ("an identity out of order", next(1100, 3, 0x10)),
        ("the end of the stream", next(1100, 2, 0x11)),
        ("a reset", next(1100, 2, 0x14)),
        ("an urgent one", next(1100, 2, 0x30)),
        ("a longer one", packet(flow, 1100, 2, 0x10, &[2; 101])),
        ("another flow", packet(Flow { port: 2, ..flow }, 1100, 2, 0x10, &[2; 100])),
    ] {
        assert_eq!(join(&[first.clone(), other]).len(), 2, "{what}");
    }
    for (what, place) in [("service class", 1), ("hop limit", 8), ("window", 34), ("acknowledgement", 28), ("option", 45)] {
        let mut other = next(1100, 2, 0x10);
        other[place] ^= 4;
        for (start, end, field) in [(0, 20, 10), (20, 152, 36)] {
            put(&mut other, field, &[0, 0]);
            let pseudo = if start == 0 { vec![] } else { pseudo_header(&other, 6, 132) };
            let sum = !code(&[&pseudo, &other[start..end]]);
            put(&mut other, field, &sum.to_be_bytes());
        }
        assert_eq!(join(&[first.clone(), other]).len(), 2, "{what}");
    }
}

#[test]
fn an_empty_acknowledgement_does_not_overtake() {
    let flow = Flow { v6: true, tcp: true, port: 1, options: false };
    let packets = [packet(flow, 1000, 0, 0x10, &[1; 100]), packet(flow, 1100, 0, 0x10, &[]), packet(flow, 1100, 0, 0x10, &[1; 100])];
    let left = join(&packets);
    let lengths: Vec<usize> = left.iter().map(|(_, bytes, _)| bytes.len()).collect();
    assert_eq!(lengths, [160, 60, 160]);
}

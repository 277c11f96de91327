//! Packets that follow each other in one flow to one large packet, which the kernel handles in one go.
//!
//! Only packets whose codes are right and that a receiver could not tell from a cut-up large one are joined; all leave in
//! an order in which no flow is reordered. Payload is not copied: a group remembers where it is.

use super::{
    IPV6_HEADER, MAX_PACKET, SHORTEST_HEADER, TCP, UDP, UDP_HEADER, be16, be32,
    checksum::{fold, pseudo, sum},
    put_ip_length, put16,
    vnet::{Gso, HEAD_BYTES, Vnet},
};
use std::{io::IoSlice, ops::Range};

/// Most packets in one group, below what the kernel takes for UDP.
pub(crate) const MAX_JOINED: usize = 64;
/// How many of the newest groups are compared with a packet.
const MAX_OPEN: usize = 8;
/// Bytes of the longest headers that are joined: IPv4 with options, TCP with options.
const MAX_HEADERS: usize = 120;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// IPv4: more fragments, or a place in a fragmented packet.
const FRAGMENT: u16 = 0x3fff;
const DONT_FRAGMENT: u16 = 0x4000;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// One packet that will be written: some bytes of headers, then pieces of the buffer.
struct Group {
    head: [u8; HEAD_BYTES + MAX_HEADERS],
    /// Bytes of headers; 0 for a packet that is not joined with any.
    header: usize,
    ipv6: bool,
    /// Where the header after the IP header begins.
    inner: usize,
    pieces: Vec<Range<usize>>,
    protocol: u8,
    /// Payload bytes of each packet but the last.
    segment: usize,
    payload: usize,
    next_sequence: u32,
    next_id: u16,
    /// Nothing may follow in this group.
    closed: bool,
}

/// A packet of a flow.
struct Candidate {
    inner: usize,
    header: usize,
    protocol: u8,
    payload: usize,
    /// Whether it might be joined with others.
    joinable: bool,
}

/// The packets of one device that arrived together.
pub(crate) struct Coalescer {
    groups: Vec<Group>,
    used: usize,
    udp: bool,
}

impl Group {
    fn new() -> Group {
        Group {
            head: [0; HEAD_BYTES + MAX_HEADERS],
            header: 0,
            ipv6: false,
            inner: 0,
            pieces: Vec::with_capacity(MAX_JOINED),
            protocol: 0,
            segment: 0,
            payload: 0,
            next_sequence: 0,
            next_id: 0,
            closed: true,
        }
    }
    fn headers(&self) -> &[u8] {
        &self.head[HEAD_BYTES..HEAD_BYTES + self.header]
    }
    /// Becomes one packet that is not looked into.
    fn take_whole(&mut self, packet: &[u8], place: Range<usize>) {
        (self.header, self.closed, self.ipv6) = (0, true, packet[0] >> 4 == 6);
        self.pieces.clear();
        self.pieces.push(place);
    }
    /// Becomes a packet that others may follow.
    fn open(&mut self, packet: &[u8], candidate: &Candidate, place: Range<usize>) {
        let Candidate { inner, header, protocol, payload, .. } = *candidate;
        (self.inner, self.header, self.protocol) = (inner, header, protocol);
        (self.segment, self.payload, self.ipv6) = (payload, 0, packet[0] >> 4 == 6);
        self.head[HEAD_BYTES..HEAD_BYTES + header].copy_from_slice(&packet[..header]);
        self.pieces.clear();
        self.closed = false;
        self.follow(packet, candidate, place);
    }
    fn follow(&mut self, packet: &[u8], candidate: &Candidate, place: Range<usize>) {
        let Candidate { inner, header, protocol, payload, .. } = *candidate;
        self.pieces.push(place.start + header..place.end);
        self.payload += payload;
        self.closed = payload < self.segment || self.pieces.len() == MAX_JOINED;
        if packet[0] >> 4 == 4 {
            self.next_id = be16(packet, 4).wrapping_add(1);
        }
        if protocol == TCP {
            self.next_sequence = be32(packet, inner + 4).wrapping_add(payload as u32);
            let push = packet[inner + 13] & PSH;
            self.head[HEAD_BYTES + inner + 13] |= push;
            self.closed |= push != 0;
        }
    }
    /// Whether the packet is of the flow of this group.
    fn same_flow(&self, packet: &[u8], candidate: &Candidate) -> bool {
        let (own, inner) = (self.headers(), candidate.inner);
        let addresses = if packet[0] >> 4 == 6 { 8..IPV6_HEADER } else { 12..20 };
        self.header > 0
            && own[0] >> 4 == packet[0] >> 4
            && self.protocol == candidate.protocol
            && own[addresses.clone()] == packet[addresses]
            && own[self.inner..self.inner + 4] == packet[inner..inner + 4]
    }
    /// Whether the packet, which is of this flow, is what a cut-up large packet would have next.
    fn is_next(&self, packet: &[u8], candidate: &Candidate) -> bool {
        let Candidate { inner, header, protocol, payload, .. } = *candidate;
        !self.closed
            && (inner, header) == (self.inner, self.header)
            && payload <= self.segment
            && header + self.payload + payload <= MAX_PACKET
            && self.same_ip_fields(packet)
            && (protocol == UDP || self.is_next_in_stream(packet))
    }
    fn same_ip_fields(&self, packet: &[u8]) -> bool {
        let own = self.headers();
        if packet[0] >> 4 == 6 {
            return own[..4] == packet[..4] && own[6..8] == packet[6..8];
        }
        let identified = be16(packet, 6) & DONT_FRAGMENT != 0 || be16(packet, 4) == self.next_id;
        identified && own[..2] == packet[..2] && own[6..10] == packet[6..10] && own[20..self.inner] == packet[20..self.inner]
    }
    fn is_next_in_stream(&self, packet: &[u8]) -> bool {
        let (own, tcp) = (self.headers(), self.inner);
        be32(packet, tcp + 4) == self.next_sequence
            && own[tcp + 8..tcp + 13] == packet[tcp + 8..tcp + 13]
            && own[tcp + 14..tcp + 16] == packet[tcp + 14..tcp + 16]
            && own[tcp + 18..self.header] == packet[tcp + 18..self.header]
    }
    /// Completes the headers for the number of packets that were joined.
    fn finish(&mut self) {
        if self.pieces.len() == 1 {
            self.head[..HEAD_BYTES].copy_from_slice(&Vnet::plain(self.header > 0, self.ipv6));
            return;
        }
        let (gso, offset) = if self.protocol == TCP { (Gso::Tcp, TCP_CHECKSUM) } else { (Gso::Udp, UDP_CHECKSUM) };
        let vnet = Vnet { gso, segment: self.segment, checksum: Some((self.inner, offset)) };
        let (before, headers) = self.head.split_at_mut(HEAD_BYTES);
        before.copy_from_slice(&vnet.bytes(self.ipv6, self.header));
        put_ip_length(headers, self.inner, self.header + self.payload);
        let length = self.header + self.payload - self.inner;
        if self.protocol == UDP {
            put16(headers, self.inner + 4, length as u16);
        }
        let partial = fold(pseudo(headers, self.protocol, length));
        headers[self.inner + offset..self.inner + offset + 2].copy_from_slice(&partial.to_ne_bytes());
    }
}

impl Candidate {
    /// Nothing for a packet of which the flow is not known.
    fn of(packet: &[u8]) -> Option<Candidate> {
        let (inner, protocol) = match packet[0] >> 4 {
            6 => (IPV6_HEADER, packet[6]),
            _ if be16(packet, 6) & FRAGMENT != 0 => return None,
            _ => (usize::from(packet[0] & 15) * 4, packet[9]),
        };
        let header = match protocol {
            TCP if packet.len() >= inner + SHORTEST_HEADER => inner + usize::from(packet[inner + 12] >> 4) * 4,
            UDP if packet.len() >= inner + UDP_HEADER => inner + UDP_HEADER,
            _ => return None,
        };
        if inner < SHORTEST_HEADER {
            return None;
        }
        let payload = packet.len().saturating_sub(header);
        let mut candidate = Candidate { inner, header, protocol, payload, joinable: false };
        candidate.joinable = payload > 0 && candidate.sound(packet) && candidate.codes_fit(packet);
        Some(candidate)
    }
    fn sound(&self, packet: &[u8]) -> bool {
        let inner = self.inner;
        match self.protocol {
            TCP => self.header >= inner + SHORTEST_HEADER && packet[inner + 13] & !PSH == ACK,
            // Without a code it must arrive without one.
            _ => be16(packet, inner + UDP_CHECKSUM) != 0 && usize::from(be16(packet, inner + 4)) == packet.len() - inner,
        }
    }
    fn codes_fit(&self, packet: &[u8]) -> bool {
        let start = pseudo(packet, self.protocol, packet.len() - self.inner);
        let inner = fold(sum(&packet[self.inner..], start)) == 0xffff;
        inner && (packet[0] >> 4 == 6 || fold(sum(&packet[..self.inner], 0)) == 0xffff)
    }
}

impl Coalescer {
    /// `udp`: whether the kernel takes large UDP packets.
    pub(crate) fn new(udp: bool) -> Coalescer {
        Coalescer { groups: Vec::new(), used: 0, udp }
    }
    /// Whether the kernel of the next packets takes large UDP packets.
    pub(crate) fn set_udp(&mut self, udp: bool) {
        self.udp = udp;
    }
    /// Takes the packet at `place` of `buffer`, of which [`super::ip_length`] has said that it is sound.
    pub(crate) fn push(&mut self, buffer: &[u8], place: Range<usize>) {
        let packet = &buffer[place.clone()];
        let open = &mut self.groups[self.used.saturating_sub(MAX_OPEN)..self.used];
        let Some(candidate) = Candidate::of(packet) else {
            // It might belong to any of them.
            open.iter_mut().for_each(|group| group.closed = true);
            return self.next_group().take_whole(packet, place);
        };
        let joinable = candidate.joinable && (self.udp || candidate.protocol == TCP);
        // A packet may pass packets of other flows, but never those of its own: the newest group of the flow decides.
        if let Some(group) = open.iter_mut().rev().find(|group| group.same_flow(packet, &candidate)) {
            if joinable && group.is_next(packet, &candidate) {
                return group.follow(packet, &candidate, place);
            }
            group.closed = true;
        }
        match joinable {
            true => self.next_group().open(packet, &candidate, place),
            false => self.next_group().take_whole(packet, place),
        }
    }
    fn next_group(&mut self) -> &mut Group {
        if self.used == self.groups.len() {
            self.groups.push(Group::new());
        }
        self.used += 1;
        &mut self.groups[self.used - 1]
    }
    /// Hands all packets to `write`, each as the parts that make it up, and is empty again.
    pub(crate) fn drain(&mut self, buffer: &[u8], mut write: impl FnMut(&[IoSlice<'_>])) {
        for group in &mut self.groups[..self.used] {
            let mut parts = [IoSlice::new(&[]); 1 + MAX_JOINED];
            group.finish();
            let head = HEAD_BYTES + group.header;
            parts[0] = IoSlice::new(&group.head[..head]);
            for (part, piece) in parts[1..].iter_mut().zip(&group.pieces) {
                *part = IoSlice::new(&buffer[piece.clone()]);
            }
            write(&parts[..1 + group.pieces.len()]);
        }
        self.used = 0;
    }
}

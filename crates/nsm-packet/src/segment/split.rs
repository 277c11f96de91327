//! One large packet to the packets that it stands for, each written where it is wanted, with all codes complete.

use super::{
    SHORTEST_HEADER, TCP, UDP, UDP_HEADER, be16, be32,
    checksum::{finish, pseudo, sum},
    put_ip_length, put16,
    vnet::{Gso, Vnet},
};

/// TCP flags that only the last segment keeps: FIN and PSH.
const LAST_ONLY: u8 = 0x01 | 0x08;
/// TCP flag that only the first segment keeps: CWR.
const FIRST_ONLY: u8 = 0x80;
const TCP_SEQUENCE: usize = 4;
const TCP_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;

/// A packet being cut.
pub(crate) struct Split<'a> {
    packet: &'a [u8],
    vnet: Vnet,
    /// Where the header after the IP header begins.
    inner: usize,
    /// Bytes of all headers.
    header: usize,
    /// Where the payload of the next segment begins.
    at: usize,
    /// Number of the next segment.
    number: u16,
}

impl<'a> Split<'a> {
    /// Nothing when the packet and its offload header do not fit together.
    pub(crate) fn new(vnet: Vnet, packet: &'a [u8]) -> Option<Split<'a>> {
        let whole = Split { packet, vnet, inner: 0, header: 0, at: 0, number: 0 };
        if vnet.gso == Gso::None {
            let fits = vnet.checksum.is_none_or(|(start, offset)| start + offset + 2 <= packet.len());
            return (fits && !packet.is_empty()).then_some(whole);
        }
        let (inner, _) = vnet.checksum?;
        let shortest = if packet.first()? >> 4 == 6 { super::IPV6_HEADER } else { SHORTEST_HEADER };
        let header = match vnet.gso {
            Gso::Tcp => inner + usize::from(packet.get(inner + TCP_OFFSET)? >> 4) * 4,
            _ => inner + UDP_HEADER,
        };
        let enough = if vnet.gso == Gso::Tcp { SHORTEST_HEADER } else { UDP_HEADER };
        let sound = inner >= shortest && header >= inner + enough && header < packet.len() && vnet.segment > 0;
        sound.then_some(Split { inner, header, at: header, ..whole })
    }
    /// Bytes of the largest packet that will come.
    pub(crate) fn largest(&self) -> usize {
        match self.vnet.gso {
            Gso::None => self.packet.len(),
            _ => self.packet.len().min(self.header + self.vnet.segment),
        }
    }
    /// Writes the next packet to the start of `out`, which has room for [`Split::largest`]; its length.
    pub(crate) fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.at >= self.packet.len() {
            return None;
        }
        let length = match self.vnet.gso {
            Gso::None => self.whole(out),
            _ => self.segment(out),
        };
        self.number = self.number.wrapping_add(1);
        Some(length)
    }
    fn whole(&mut self, out: &mut [u8]) -> usize {
        let length = self.packet.len();
        let out = &mut out[..length];
        out.copy_from_slice(self.packet);
        if let Some((start, offset)) = self.vnet.checksum {
            // The field holds the sum over the pseudo header.
            let code = finish(sum(&out[start..], 0), offset == UDP_CHECKSUM);
            out[start + offset..start + offset + 2].copy_from_slice(&code);
        }
        self.at = length;
        length
    }
    fn segment(&mut self, out: &mut [u8]) -> usize {
        let end = self.packet.len().min(self.at + self.vnet.segment);
        let (header, payload) = (&self.packet[..self.header], &self.packet[self.at..end]);
        let length = header.len() + payload.len();
        let out = &mut out[..length];
        out[..header.len()].copy_from_slice(header);
        out[header.len()..].copy_from_slice(payload);
        if out[0] >> 4 == 4 {
            let id = be16(header, 4).wrapping_add(self.number);
            put16(out, 4, id);
        }
        put_ip_length(out, self.inner, length);
        match self.vnet.gso {
            Gso::Tcp => self.finish_tcp(out, end == self.packet.len()),
            _ => self.finish_udp(out),
        }
        self.at = end;
        length
    }
    fn finish_tcp(&self, out: &mut [u8], last: bool) {
        let tcp = self.inner;
        let sequence = be32(self.packet, tcp + TCP_SEQUENCE).wrapping_add((self.at - self.header) as u32);
        out[tcp + TCP_SEQUENCE..tcp + TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            out[tcp + TCP_FLAGS] &= !LAST_ONLY;
        }
        if self.number > 0 {
            out[tcp + TCP_FLAGS] &= !FIRST_ONLY;
        }
        put_code(out, tcp, TCP, TCP_CHECKSUM);
    }
    fn finish_udp(&self, out: &mut [u8]) {
        let length = (out.len() - self.inner) as u16;
        put16(out, self.inner + UDP_LENGTH, length);
        put_code(out, self.inner, UDP, UDP_CHECKSUM);
    }
}

/// Writes the code of the part that begins at `inner`.
fn put_code(packet: &mut [u8], inner: usize, protocol: u8, offset: usize) {
    let place = inner + offset..inner + offset + 2;
    packet[place.clone()].fill(0);
    let start = pseudo(packet, protocol, packet.len() - inner);
    let code = finish(sum(&packet[inner..], start), protocol == UDP);
    packet[place].copy_from_slice(&code);
}

//! Echo requests that wait for nothing: one is sent whenever the caller says so, and answers are taken whenever they come.
//!
//! For measuring loss: an answer that is late or lost delays no later request. Not here: the clock, and which answer belongs
//! to which request; the caller's payload says that.

use crate::{
    error::refused,
    netns,
    probe::{PingOptions, checksum, open_icmp},
};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::Netns;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Bytes of an ICMP header.
const HEADER: usize = 8;
/// Kinds of ICMP messages, for IPv4 and for IPv6.
const REQUEST: [u8; 2] = [8, 128];
const ANSWER: [u8; 2] = [0, 129];

/// An open ICMP socket in a namespace, for one family of addresses.
pub struct Echoes {
    fd: OwnedFd,
    v4: bool,
}

impl AsFd for Echoes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Echoes {
    /// For echoes to addresses of the family of `to`. Needs CAP_NET_RAW over the namespace.
    pub fn open(netns: &Netns, to: IpAddr) -> Result<Echoes> {
        let (fd, raw) = netns::run_in_blocking(netns, || open_icmp(&PingOptions::once(to)))??;
        if !raw {
            let reason = "the kernel gives no raw ICMP socket";
            return Err(Error::new(Kind::Denied, format!("network namespace {}", netns.key), reason, "run as root"));
        }
        Ok(Echoes { fd, v4: to.is_ipv4() })
    }

    /// Sends one request with this payload. An error says why the kernel did not take it, for instance that there is no route.
    pub fn send(&self, to: IpAddr, payload: &[u8]) -> io::Result<()> {
        let mut packet = vec![0; HEADER];
        packet[0] = REQUEST[usize::from(!self.v4)];
        packet.extend_from_slice(payload);
        if self.v4 {
            let sum = checksum(&packet); // for IPv6 the kernel does it, as only it knows the addresses
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        rustix::net::sendto(&self.fd, &packet, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        Ok(())
    }

    /// The payload of the next answer that has come, and nothing when none has. Other packets are passed over.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        loop {
            let length = match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((length, _)) => length.min(buffer.len()),
                Err(Errno::AGAIN) => return Ok(None),
                // News of an error on the way of an earlier request, which then is lost.
                Err(Errno::INTR | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::CONNREFUSED | Errno::NETDOWN) => continue,
                Err(errno) => return Err(refused("an ICMP socket", "hand out answers", errno)),
            };
            let header = if self.v4 { buffer.first().map_or(0, |first| usize::from(first & 0x0f) * 4) } else { 0 };
            if buffer[..length].get(header) == Some(&ANSWER[usize::from(!self.v4)]) && length >= header + HEADER {
                return Ok(Some(&buffer[header + HEADER..length]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Net;
    use std::time::{Duration, Instant};

    /// Needs the right to make namespaces; without it this test fails.
    #[test]
    fn answers_carry_the_payload_of_their_requests() {
        let netns = netns::create().expect("this test makes a network namespace: run it as root or under `unshare -Urnm`");
        Net::new(&netns).unwrap().loopback_up().unwrap();
        for to in ["127.0.0.1", "::1"] {
            let to: IpAddr = to.parse().unwrap();
            let echoes = Echoes::open(&netns, to).unwrap();
            echoes.send(to, b"first").unwrap();
            echoes.send(to, b"second").unwrap();
            let (mut heard, mut buffer, until) = (vec![], [0; 256], Instant::now() + Duration::from_secs(5));
            while heard.len() < 2 && Instant::now() < until {
                heard.extend(echoes.receive(&mut buffer).unwrap().map(<[u8]>::to_vec));
            }
            assert_eq!(heard, [b"first".to_vec(), b"second".to_vec()], "{to}");
            assert!(echoes.receive(&mut buffer).unwrap().is_none());
        }
        let nowhere = Echoes::open(&netns, "192.0.2.1".parse().unwrap()).unwrap();
        assert!(nowhere.send("192.0.2.1".parse().unwrap(), b"x").is_err(), "no route");
    }
}

//! Sees marked frames on every interface of a namespace, whoever sent them and wherever they go.
//!
//! For checks that something is carried here and nowhere else, so a frame that was missed is an error, never silence.
//! Not here: sending the marked frames, and what their being seen means.

use crate::{error::refused, netns, sys};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::Netns;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, eth, sockopt},
};
use std::os::fd::OwnedFd;

/// Bytes of a mark.
pub const MARK_BYTES: usize = 16;
/// Bytes of the kernel's queue of frames that were not looked at yet.
const QUEUE_BYTES: usize = 4 << 20;
/// Bytes of a frame that are searched; a marked frame is a short one, with a tunnel's headers before it at most.
const FRAME_BYTES: usize = 512;
/// Frames that are looked at in one go; in a namespace with more traffic nothing can be said.
const MAX_FRAMES: usize = 1 << 18;

/// A marked frame on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Index of the interface.
    pub interface: u32,
    /// The number in the frame.
    pub number: u32,
}

/// What a marked frame carries: the mark and a number.
pub fn payload(mark: &[u8; MARK_BYTES], number: u32) -> Vec<u8> {
    [mark.as_slice(), &number.to_be_bytes()].concat()
}

/// Watches all interfaces of one namespace from its opening on.
pub struct Sniffer {
    socket: OwnedFd,
    mark: [u8; MARK_BYTES],
}

impl Sniffer {
    /// Starts to watch for frames with this mark. Needs CAP_NET_RAW over the namespace.
    pub fn open(netns: &Netns, mark: [u8; MARK_BYTES]) -> Result<Sniffer> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let opened = netns::run_in_blocking(netns, || {
            let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL))?;
            // Root of a user namespace only has the system's usual limit, up to which the kernel cuts it without a word.
            sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES)
                .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, QUEUE_BYTES))
                .map(|()| socket)
        })?;
        let socket = opened.map_err(|errno| refused(format!("network namespace {}", netns.key), "watch its frames", errno))?;
        Ok(Sniffer { socket, mark })
    }

    /// All marked frames since the last call, in the order in which they passed.
    pub fn sightings(&self) -> Result<Vec<Sighting>> {
        let failed = |errno| refused("a packet socket", "hand out frames", errno);
        let (mut seen, mut buffer) = (vec![], [0; FRAME_BYTES]);
        for _ in 0..MAX_FRAMES {
            match sys::receive_frame(&self.socket, &mut buffer) {
                Ok((length, interface)) => {
                    seen.extend(number_in(&buffer[..length], &self.mark).map(|number| Sighting { interface, number }));
                }
                Err(Errno::AGAIN) => {
                    return match sys::frames_missed(&self.socket).map_err(failed)? {
                        0 => Ok(seen),
                        missed => Err(too_busy(&format!("{missed} frames did not fit into the queue"))),
                    };
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(too_busy(&format!("{MAX_FRAMES} frames passed, and still more come")))
    }
}

fn too_busy(reason: &str) -> Error {
    Error::new(Kind::Exhausted, "a packet socket", reason, "look again while less traffic passes")
}

/// The number behind the mark, if the frame holds both.
fn number_in(frame: &[u8], mark: &[u8; MARK_BYTES]) -> Option<u32> {
    let at = frame.windows(MARK_BYTES).position(|window| window == mark)?;
    let number = frame.get(at + MARK_BYTES..at + MARK_BYTES + size_of::<u32>())?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_behind_the_mark_and_only_there() {
        let mark = [7; MARK_BYTES];
        let frame = [b"headers".as_slice(), &payload(&mark, 42), b"padding"].concat();
        assert_eq!(number_in(&frame, &mark), Some(42));
        assert_eq!(number_in(&frame[..7 + MARK_BYTES + 3], &mark), None, "cut off");
        assert_eq!(number_in(&frame, &[8; MARK_BYTES]), None);
        assert_eq!(number_in(b"", &mark), None);
    }
}

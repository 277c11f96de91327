//! From the interface to the socket: read, cut, encrypt in place, send in runs.

use super::{shared::Shared, tunnel::Tunnel, worker::Progress};
use crate::{
    segment::{
        MAX_PACKET,
        split::Split,
        vnet::{HEAD_BYTES, Vnet},
    },
    sys::{BATCH, Run},
    wireguard::{keypair::Keypair, message::TRANSPORT_HEADER_BYTES, peer::Outbox},
};
use rustix::io::Errno;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// Bytes of ciphertext that are collected before they are sent.
const ENOUGH: usize = 64 << 10;
/// A large packet whose segments carry one byte each becomes so much longer; more than that is not cut.
const ROOM: usize = 4 * ENOUGH;
/// Most datagrams of one run.
const MAX_RUN: usize = 64;
/// Bytes of the longest run: what one UDP datagram could carry over IPv4.
const MAX_RUN_BYTES: usize = 65_507;
/// Most packets that are read before others have their turn.
const TURN: usize = 128;

/// The buffers of one thread.
pub(super) struct Encap {
    packet: Vec<u8>,
    sealed: Vec<u8>,
    end: usize,
    runs: Vec<Run>,
    /// Packets come one at a time: each is sent before the next is looked for.
    single: bool,
}

/// What one turn moved.
#[derive(Default)]
struct Moved {
    packets: u64,
    bytes: u64,
    dropped: u64,
}

impl Encap {
    pub(super) fn new() -> Encap {
        Encap { packet: vec![0; HEAD_BYTES + MAX_PACKET], sealed: vec![0; ROOM], end: 0, runs: Vec::with_capacity(BATCH), single: false }
    }
    /// Carries what waits in the interface.
    pub(super) fn serve(&mut self, shared: &Shared, tunnel: &Arc<Tunnel>) -> Progress {
        let Some(keypair) = session(shared, tunnel) else { return Progress::Gone };
        let (mut moved, mut progress) = (Moved::default(), Progress::More);
        for _ in 0..TURN {
            match rustix::io::read(&tunnel.tun().file, self.packet.as_mut_slice()) {
                Ok(read) => {
                    self.take(tunnel, &keypair, read, &mut moved);
                    if self.single {
                        self.flush(tunnel, &mut moved);
                        self.single = false;
                    }
                }
                Err(Errno::AGAIN) => {
                    progress = Progress::Drained;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    tunnel.set_gone();
                    progress = Progress::Gone;
                    break;
                }
            }
        }
        self.flush(tunnel, &mut moved);
        self.single = moved.packets == 1;
        if moved.packets == 0 && matches!(progress, Progress::Drained) {
            return Progress::Nothing;
        }
        account(shared, tunnel, &moved);
        progress
    }
    fn take(&mut self, tunnel: &Tunnel, keypair: &Keypair, read: usize, moved: &mut Moved) {
        let Some((head, packet)) = self.packet[..read].split_first_chunk::<HEAD_BYTES>() else { return };
        let Some(mut split) = Vnet::parse(head).and_then(|vnet| Split::new(vnet, packet)) else {
            moved.dropped += 1;
            return;
        };
        let (mtu, largest) = (tunnel.mtu(), Keypair::sealed_length(split.largest(), usize::MAX));
        loop {
            if self.end + largest > self.sealed.len() || self.runs.len() == BATCH {
                send(tunnel, &self.sealed, &mut self.runs, &mut self.end, moved);
            }
            let room = &mut self.sealed[self.end..];
            let Some(length) = split.write_next(&mut room[TRANSPORT_HEADER_BYTES..]) else { break };
            let Some(sealed) = keypair.seal(room, length, mtu) else {
                moved.dropped += 1;
                break;
            };
            append(&mut self.runs, self.end, sealed);
            self.end += sealed;
            moved.packets += 1;
            moved.bytes += length as u64;
        }
        if self.end >= ENOUGH {
            self.flush(tunnel, moved);
        }
    }
    fn flush(&mut self, tunnel: &Tunnel, moved: &mut Moved) {
        send(tunnel, &self.sealed, &mut self.runs, &mut self.end, moved);
    }
}

/// The session to send with; without one the interface waits and the handshake is on its way.
fn session(shared: &Shared, tunnel: &Arc<Tunnel>) -> Option<Arc<Keypair>> {
    let (now, mut out) = (Instant::now(), Outbox::default());
    let keypair = {
        let mut peer = tunnel.peer();
        let keypair = peer.sending(now, &mut out);
        if keypair.is_none() {
            tunnel.parked.store(true, std::sync::atomic::Ordering::Release);
        }
        keypair
    };
    if out.handshake.is_some() || keypair.is_none() {
        shared.settle(tunnel, now, out);
    }
    keypair
}

/// Adds a datagram to the last run, or begins one.
fn append(runs: &mut Vec<Run>, start: usize, length: usize) {
    if let Some(run) = runs.last_mut() {
        let full = run.length + length > MAX_RUN_BYTES || run.length >= run.segment * MAX_RUN;
        let ended = run.length % run.segment != 0;
        if !full && !ended && length <= run.segment {
            run.length += length;
            return;
        }
    }
    runs.push(Run { start, length, segment: length });
}

fn send(tunnel: &Tunnel, sealed: &[u8], runs: &mut Vec<Run>, end: &mut usize, moved: &mut Moved) {
    moved.dropped += tunnel.path.send_runs(sealed, runs);
    runs.clear();
    *end = 0;
}

fn account(shared: &Shared, tunnel: &Arc<Tunnel>, moved: &Moved) {
    tunnel.tally.tx_packets.fetch_add(moved.packets, Relaxed);
    tunnel.tally.tx_bytes.fetch_add(moved.bytes, Relaxed);
    tunnel.tally.tx_dropped.fetch_add(moved.dropped, Relaxed);
    let deadline = {
        let mut peer = tunnel.peer();
        peer.sent(Instant::now(), true);
        peer.deadline()
    };
    shared.timers.at_latest(tunnel, deadline);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_one_size_but_for_the_last() {
        let (mut runs, mut at) = (Vec::new(), 0);
        for length in [100, 100, 60, 60, 60, 80, 80] {
            append(&mut runs, at, length);
            at += length;
        }
        let shape: Vec<(usize, usize, usize)> = runs.iter().map(|run| (run.start, run.length, run.segment)).collect();
        assert_eq!(shape, [(0, 260, 100), (260, 120, 60), (380, 160, 80)]);
        let mut runs = Vec::new();
        (0..130).for_each(|number| append(&mut runs, number * 48, 48));
        assert_eq!(runs.iter().map(|run| run.length / 48).collect::<Vec<_>>(), [64, 64, 2]);
        let mut runs = Vec::new();
        (0..50).for_each(|number| append(&mut runs, number * 1452, 1452));
        assert_eq!(runs.iter().map(|run| run.length / 1452).collect::<Vec<_>>(), [45, 5]);
        const { assert!(TRANSPORT_HEADER_BYTES + MAX_PACKET < ROOM - ENOUGH) };
    }
}

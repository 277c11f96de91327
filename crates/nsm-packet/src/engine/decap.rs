//! From the socket to the interface: receive runs, decrypt in place, join, write. And handshake messages.

use super::{path::Path, shared::Shared, tunnel::Tunnel, worker::Progress};
use crate::{
    segment::{coalesce::Coalescer, ip_length},
    sys::{self, BATCH, Run, SLOT},
    wireguard::{
        indices::Owner,
        keypair::Keypair,
        macs::mac2_fits,
        message::{self, Kind, TRANSPORT_HEADER_BYTES, u32_at},
        peer::Outbox,
    },
};
use rustix::io::Errno;
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// Runs that are received at a time when they are long, so that they stay in the processor's cache.
const FEW: usize = 2;
/// Bytes of a run from which on it is long.
const LONG: usize = 16 << 10;

/// The buffers of one thread.
pub(super) struct Decap {
    buffer: Vec<u8>,
    runs: [Run; BATCH],
    /// How many runs are asked for.
    wanted: usize,
    coalescer: Coalescer,
    now: Instant,
    session: Option<Session>,
}

/// The session whose datagrams are being looked at, and what they brought.
struct Session {
    tunnel: Arc<Tunnel>,
    keypair: Arc<Keypair>,
    usable: bool,
    heard: bool,
    packets: u64,
    bytes: u64,
    dropped: u64,
}

impl Decap {
    pub(super) fn new() -> Decap {
        Decap {
            buffer: vec![0; BATCH * SLOT],
            runs: [Run::default(); BATCH],
            wanted: BATCH,
            coalescer: Coalescer::new(true),
            now: Instant::now(),
            session: None,
        }
    }
    /// Carries what waits in the socket.
    pub(super) fn serve(&mut self, shared: &Shared, path: &Path) -> Progress {
        let came = match sys::receive_into(&path.socket, &mut self.buffer, &mut self.runs[..self.wanted]) {
            Ok(came) => came,
            Err(Errno::AGAIN) => return Progress::Nothing,
            // Interrupted, or the error of an earlier datagram for which nobody listened.
            Err(_) => return Progress::More,
        };
        self.now = Instant::now();
        for number in 0..came {
            self.take_run(shared, path, self.runs[number]);
        }
        self.finish(shared);
        let more = came == self.wanted;
        let bytes: usize = self.runs[..came].iter().map(|run| run.length).sum();
        self.wanted = if bytes >= came * LONG { FEW } else { BATCH };
        if more { Progress::More } else { Progress::Drained }
    }
    fn take_run(&mut self, shared: &Shared, path: &Path, run: Run) {
        let end = run.start + run.length;
        for start in (run.start..end).step_by(run.segment.max(1)) {
            let place = start..end.min(start + run.segment);
            match message::kind(&self.buffer[place.clone()]) {
                Some(Kind::Transport) => self.take_packet(shared, path, place),
                Some(kind) => handshake(shared, path, kind, &self.buffer[place], self.now),
                None => {}
            }
        }
    }
    fn take_packet(&mut self, shared: &Shared, path: &Path, place: Range<usize>) {
        let index = u32_at(&self.buffer[place.clone()], 4);
        if self.session.as_ref().is_none_or(|session| session.keypair.local != index) {
            self.finish(shared);
            self.session = find(shared, path, index, self.now);
            self.coalescer.set_udp(self.session.as_ref().is_some_and(|session| session.tunnel.tun().udp));
        }
        let Some(session) = self.session.as_mut().filter(|session| session.usable) else { return };
        let Some(length) = session.keypair.open(&mut self.buffer[place.clone()]) else {
            session.dropped += 1;
            return;
        };
        session.heard = true;
        if length == 0 {
            return; // only to be heard
        }
        let start = place.start + TRANSPORT_HEADER_BYTES;
        match ip_length(&self.buffer[start..start + length]) {
            Some(length) => {
                session.packets += 1;
                session.bytes += length as u64;
                self.coalescer.push(&self.buffer, start..start + length);
            }
            None => session.dropped += 1,
        }
    }
    /// Writes the packets of the session, and tells its peer.
    fn finish(&mut self, shared: &Shared) {
        let Some(session) = self.session.take() else { return };
        let Session { tunnel, keypair, heard, packets, bytes, mut dropped, .. } = session;
        let file = &tunnel.tun().file;
        self.coalescer.drain(&self.buffer, |parts| {
            if rustix::io::writev(file, parts).is_err() {
                dropped += 1;
            }
        });
        tunnel.tally.rx_packets.fetch_add(packets, Relaxed);
        tunnel.tally.rx_bytes.fetch_add(bytes, Relaxed);
        tunnel.tally.rx_dropped.fetch_add(dropped, Relaxed);
        if heard {
            let mut out = Outbox::default();
            tunnel.peer().received(self.now, &keypair, packets > 0, &mut out);
            shared.settle(&tunnel, self.now, out);
        }
    }
}

/// The session of an index, if it is of a device that uses this path.
fn find(shared: &Shared, path: &Path, index: u32, now: Instant) -> Option<Session> {
    let Owner { device, keypair } = shared.indices.find(index)?;
    let (tunnel, keypair) = (shared.tunnel(device)?, keypair?);
    let usable = keypair.usable(now);
    let here = tunnel.path.number == path.number;
    here.then_some(Session { tunnel, keypair, usable, heard: false, packets: 0, bytes: 0, dropped: 0 })
}

fn handshake(shared: &Shared, path: &Path, kind: Kind, datagram: &[u8], now: Instant) {
    let Some(tunnel) = addressee(shared, path, kind, datagram) else { return };
    let mut out = Outbox::default();
    if kind == Kind::CookieReply {
        tunnel.peer().cookie(datagram, now);
        return;
    }
    if let Some(cookie) = shared.cookie_wanted(path, now)
        && !mac2_fits(datagram, &cookie)
    {
        if let Ok(reply) = tunnel.gate.cookie_reply(datagram, &cookie) {
            path.send(&reply);
        }
        return;
    }
    let accepted = match kind {
        Kind::Initiation => tunnel.peer().initiation(datagram, now, &mut out),
        _ => tunnel.peer().response(datagram, now, &mut out),
    };
    if accepted {
        shared.settle(&tunnel, now, out);
    }
}

/// The device that a handshake message is for, if its sender knows the device's key.
fn addressee(shared: &Shared, path: &Path, kind: Kind, datagram: &[u8]) -> Option<Arc<Tunnel>> {
    let of_index = |index: u32| {
        let tunnel = shared.tunnel(shared.indices.find(index)?.device)?;
        (tunnel.path.number == path.number).then_some(tunnel)
    };
    match kind {
        Kind::Initiation => path.addressee(datagram),
        Kind::Response => of_index(u32_at(datagram, 8)).filter(|tunnel| tunnel.gate.mac1_fits(datagram)),
        Kind::CookieReply => of_index(u32_at(datagram, 4)),
        Kind::Transport => None,
    }
}

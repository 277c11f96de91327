//! The UDP socket in the node, one for each pair of our and another node's address: the kernel then sorts datagrams, and
//! drops those of strangers, before we see them.

use super::tunnel::Tunnel;
use crate::{
    PublicKey,
    error::refused,
    sys::{self, BATCH, Run},
};
use nsm_api::Result;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// Bytes that may wait in each direction.
const BUFFER: usize = 7 << 20;

/// A socket and the devices that use it.
pub(super) struct Path {
    pub(super) number: u32,
    pub(super) socket: OwnedFd,
    /// To which worker it belongs now; at rest to that of its own number.
    worker: AtomicU32,
    pub(super) endpoint: SocketAddr,
    /// By number: the devices that a first handshake message may be for.
    tunnels: RwLock<BTreeMap<u32, Arc<Tunnel>>>,
}

impl Path {
    /// Opens the socket in the namespace of the calling thread.
    pub(super) fn open(number: u32, listen: SocketAddr, endpoint: SocketAddr) -> Result<Path> {
        let failed = |doing: &'static str| move |errno: Errno| refused(format!("UDP socket {listen}"), doing, errno);
        let family = if listen.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::DGRAM, flags, None).map_err(failed("open it"))?;
        // Sockets towards different nodes share our address.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed("share its address"))?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, BUFFER).map_err(failed("give it room"))?;
        }
        sockopt::set_socket_send_buffer_size(&socket, BUFFER).map_err(failed("give it room"))?;
        sys::allow_fragments(&socket, listen.is_ipv6()).map_err(failed("let it send fragments"))?;
        sys::receive_runs(&socket).map_err(failed("let it receive runs"))?;
        bind(&socket, &listen).map_err(failed("bind it"))?;
        connect(&socket, &endpoint).map_err(failed("connect it"))?;
        Ok(Path { number, worker: AtomicU32::new(number), socket, endpoint, tunnels: RwLock::default() })
    }
    /// Whether a first handshake message for this key would find another device than the one that is being replaced.
    pub(super) fn has_other(&self, public: &PublicKey, replaced: Option<u32>) -> bool {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        tunnels.values().any(|tunnel| Some(tunnel.number) != replaced && tunnel.public() == public)
    }
    pub(super) fn worker(&self) -> u32 {
        self.worker.load(Ordering::Relaxed)
    }
    pub(super) fn set_worker(&self, worker: u32) {
        self.worker.store(worker, Ordering::Relaxed);
    }
    pub(super) fn join(&self, tunnel: &Arc<Tunnel>) {
        self.tunnels.write().unwrap_or_else(PoisonError::into_inner).insert(tunnel.number, tunnel.clone());
    }
    pub(super) fn leave(&self, tunnel: &Tunnel) {
        self.tunnels.write().unwrap_or_else(PoisonError::into_inner).remove(&tunnel.number);
    }
    pub(super) fn is_used(&self) -> bool {
        !self.tunnels.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
    /// The device that a first handshake message is for.
    pub(super) fn addressee(&self, message: &[u8]) -> Option<Arc<Tunnel>> {
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        tunnels.values().find(|tunnel| tunnel.gate.mac1_fits(message)).cloned()
    }
    /// Sends one datagram; what does not fit into the kernel's buffer is lost, as on any way.
    pub(super) fn send(&self, datagram: &[u8]) {
        let run = Run { start: 0, length: datagram.len(), segment: datagram.len() };
        self.send_runs(datagram, &[run]);
    }
    /// Sends runs of `buffer`. How many datagrams were lost.
    pub(super) fn send_runs(&self, buffer: &[u8], mut runs: &[Run]) -> u64 {
        let mut lost = 0;
        while let Some(first) = runs.first() {
            match sys::send_runs(&self.socket, buffer, runs) {
                Ok(sent) => runs = &runs[sent.max(1)..],
                // Interrupted, or the error of an earlier datagram, for which nobody listened.
                Err(Errno::INTR | Errno::CONNREFUSED) => {}
                // The kernel cannot cut this one: its datagrams are longer than the way is wide, or the device is too plain.
                Err(Errno::INVAL | Errno::MSGSIZE | Errno::IO) if first.length > first.segment => {
                    lost += self.send_singly(buffer, *first);
                    runs = &runs[1..];
                }
                Err(_) => {
                    lost += first.length.div_ceil(first.segment.max(1)) as u64;
                    runs = &runs[1..];
                }
            }
        }
        lost
    }
    /// Sends the datagrams of a run one by one.
    fn send_singly(&self, buffer: &[u8], run: Run) -> u64 {
        let mut lost = 0;
        let end = run.start + run.length;
        let starts: Vec<usize> = (run.start..end).step_by(run.segment).collect();
        for batch in starts.chunks(BATCH) {
            let single = |start: &usize| {
                let length = run.segment.min(end - start);
                Run { start: *start, length, segment: length }
            };
            let mut left: &[Run] = &batch.iter().map(single).collect::<Vec<_>>();
            while !left.is_empty() {
                match sys::send_runs(&self.socket, buffer, left) {
                    Ok(sent) => left = &left[sent.max(1)..],
                    Err(Errno::INTR | Errno::CONNREFUSED) => {}
                    Err(_) => {
                        lost += 1;
                        left = &left[1..];
                    }
                }
            }
        }
        lost
    }
}

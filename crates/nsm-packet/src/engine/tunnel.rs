//! One device: its interface, its socket, its peer, and what went through.

use super::{Counters, Device, DeviceId, DeviceState, age, path::Path, shared::Parts, tun::Tun};
use crate::{
    PublicKey,
    wireguard::{
        keypair::Keypair,
        macs::Gate,
        message::TRANSPORT_OVERHEAD,
        noise::Identity,
        peer::{Outbox, Peer},
    },
};
use nsm_api::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// Numbers that only grow.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) rx_packets: AtomicU64,
    pub(super) rx_bytes: AtomicU64,
    pub(super) rx_dropped: AtomicU64,
    pub(super) tx_packets: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    pub(super) tx_dropped: AtomicU64,
}

/// A device at work.
pub(super) struct Tunnel {
    pub(super) number: u32,
    /// To which worker the interface belongs.
    pub(super) home: u32,
    pub(super) tally: Tally,
    pub(super) path: Arc<Path>,
    /// Lets first handshake messages in without the lock of the peer.
    pub(super) gate: Gate,
    /// Packets wait in the interface until there is a session. Set under the lock of the peer.
    pub(super) parked: AtomicBool,
    /// When the timers will look at it next; written under their lock.
    pub(super) scheduled: Mutex<Option<Instant>>,
    tun: Tun,
    peer: Mutex<Peer>,
    gone: AtomicBool,
    identity: Identity,
    listen: SocketAddr,
    tag: String,
    group: u32,
    mtu: u32,
}

impl Tunnel {
    pub(super) fn new((number, home): (u32, u32), device: Device, tun: Tun, path: Arc<Path>, parts: Parts) -> Result<Tunnel> {
        let identity = Identity::new(device.private, device.peer, device.preshared)?;
        Ok(Tunnel {
            number,
            home,
            tally: Tally::default(),
            path,
            gate: Gate::new(&identity.public),
            parked: AtomicBool::new(false),
            scheduled: Mutex::new(None),
            tun,
            peer: Mutex::new(Peer::new(number, parts.indices, identity.clone(), parts.timing)),
            gone: AtomicBool::new(false),
            identity,
            listen: device.listen,
            tag: device.tag,
            group: device.group,
            mtu: device.mtu,
        })
    }
    pub(super) fn tun(&self) -> &Tun {
        &self.tun
    }
    pub(super) fn public(&self) -> &PublicKey {
        &self.identity.public
    }
    /// Largest packet, bytes.
    pub(super) fn mtu(&self) -> usize {
        self.mtu as usize
    }
    pub(super) fn tag(&self) -> &str {
        &self.tag
    }
    pub(super) fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Whether the interface has vanished.
    pub(super) fn gone(&self) -> bool {
        self.gone.load(Relaxed)
    }
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Relaxed);
    }
    /// Whether this is the device that is asked for, in everything that matters.
    pub(super) fn is(&self, device: &Device) -> bool {
        let own = &self.identity;
        own.private == device.private
            && own.peer == device.peer
            && own.psk == device.preshared
            && (self.listen, self.path.endpoint) == (device.listen, device.endpoint)
            && (self.group, self.mtu) == (device.group, device.mtu)
    }
    /// Sends what the peer's state asks for. Whether packets that waited may go, and whether they are lost.
    pub(super) fn deliver(&self, now: Instant, out: &Outbox) {
        if let Some(handshake) = &out.handshake {
            self.path.send(handshake.bytes());
        }
        if let Some(keypair) = &out.keepalive {
            self.send_empty(now, keypair);
        }
    }
    fn send_empty(&self, now: Instant, keypair: &Keypair) {
        let mut datagram = [0; TRANSPORT_OVERHEAD];
        if keypair.seal(&mut datagram, 0, 0).is_some() {
            self.path.send(&datagram);
            self.peer().sent(now, false);
        }
    }
    pub(super) fn state(&self, id: DeviceId) -> DeviceState {
        let Tally { rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped } = &self.tally;
        let counters = Counters {
            rx_packets: rx_packets.load(Relaxed),
            rx_bytes: rx_bytes.load(Relaxed),
            rx_dropped: rx_dropped.load(Relaxed),
            tx_packets: tx_packets.load(Relaxed),
            tx_bytes: tx_bytes.load(Relaxed),
            tx_dropped: tx_dropped.load(Relaxed),
        };
        DeviceState {
            id,
            index: self.tun.index,
            tag: self.tag.clone(),
            group: self.group,
            mtu: self.mtu,
            public: self.identity.public,
            peer: self.identity.peer,
            listen: self.listen,
            endpoint: self.path.endpoint,
            counters,
            handshake_age: age(self.peer().last_handshake()),
            gone: self.gone(),
        }
    }
}

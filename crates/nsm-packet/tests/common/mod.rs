//! Two nodes with an underlay between them, a pod on each, and an engine on each.
#![allow(clippy::unwrap_used, dead_code)] // a test's helpers fail like its body; not every test uses all of them

use nsm_linux::{net::Net, netns};
use nsm_packet::{Device, DeviceState, Engine, Options, PrivateKey, PublicKey, Timing};
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// Why a test cannot run at all.
pub(crate) const MUST: &str = "this test makes network namespaces and TUN devices: run it as root";
/// How long anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const MTU: u32 = 1420;
pub(crate) const PORT: u16 = 51820;

/// One node with its pod.
pub(crate) struct Side {
    pub(crate) node: Net,
    pub(crate) pod: Net,
    pub(crate) secret: [u8; 32],
    pub(crate) underlay: IpAddr,
}

/// Both nodes; the interface in both pods is `wg`, with 10.7.0.x/24 and fd07::x/64.
pub(crate) struct World {
    pub(crate) a: Side,
    pub(crate) b: Side,
}

pub(crate) fn descriptor(net: &Net) -> OwnedFd {
    net.netns().file.as_ref().expect("a real namespace").try_clone().unwrap()
}

pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}

impl Side {
    fn new(underlay: &str) -> Side {
        let net = || Net::new(&netns::create().expect(MUST)).unwrap();
        Side { node: net(), pod: net(), secret: random(), underlay: underlay.parse().unwrap() }
    }
    pub(crate) fn private(&self) -> PrivateKey {
        PrivateKey::new(self.secret).unwrap()
    }
    pub(crate) fn public(&self) -> PublicKey {
        self.private().public().unwrap()
    }
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.underlay, PORT)
    }
    pub(crate) fn engine(&self, timing: Timing) -> Engine {
        Engine::start(Options { node: Some(descriptor(&self.node)), timing, ..Options::default() }).unwrap()
    }
    pub(crate) fn device(&self, other: &Side) -> Device {
        Device {
            netns: descriptor(&self.pod),
            name: "wg".into(),
            tag: "nsm:test:1".into(),
            group: 7,
            mtu: MTU,
            private: self.private(),
            peer: other.public(),
            preshared: None,
            listen: self.address(),
            endpoint: other.address(),
        }
    }
    /// One of several devices between the same nodes, with keys of its own.
    pub(crate) fn numbered(&self, other: &Side, number: u16, port: u16) -> Device {
        let key = |side: &Side| {
            let mut secret = side.secret;
            secret[8..10].copy_from_slice(&number.to_le_bytes());
            PrivateKey::new(secret).unwrap()
        };
        let mut device = self.device(other);
        (device.private, device.peer) = (key(self), key(other).public().unwrap());
        device.name = format!("wg{number}");
        device.listen.set_port(port);
        device.endpoint.set_port(port);
        device
    }
    pub(crate) fn udp(&self, at: &str) -> UdpSocket {
        let socket = netns::run_in_blocking(self.pod.netns(), || UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    }
}

impl World {
    pub(crate) fn new(v6: bool) -> World {
        let (one, two) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
        let world = World { a: Side::new(one), b: Side::new(two) };
        world.a.node.veth("cable", world.b.node.netns(), "cable").unwrap();
        for (side, prefix) in [(&world.a, if v6 { 64 } else { 24 }), (&world.b, if v6 { 64 } else { 24 })] {
            // No waiting for duplicates of addresses that the test chose.
            side.node.set_sysctl("net/ipv6/conf/cable/accept_dad", "0").unwrap();
            side.node.up("cable").unwrap();
            side.node.address_add("cable", format!("{}/{prefix}", side.underlay).parse().unwrap()).unwrap();
            side.pod.loopback_up().unwrap();
        }
        world
    }
    /// Adds the device on both nodes and gives the interfaces addresses.
    pub(crate) fn connect(&self, a: &Engine, b: &Engine) -> (DeviceState, DeviceState) {
        let states = (a.add(self.a.device(&self.b)).unwrap(), b.add(self.b.device(&self.a)).unwrap());
        self.dress();
        states
    }
    pub(crate) fn dress(&self) {
        for (side, number) in [(&self.a, 1), (&self.b, 2)] {
            side.pod.set_sysctl("net/ipv6/conf/wg/accept_dad", "0").unwrap();
            side.pod.address_add("wg", format!("10.7.0.{number}/24").parse().unwrap()).unwrap();
            side.pod.address_add("wg", format!("fd07::{number}/64").parse().unwrap()).unwrap();
        }
    }
}

/// Asks again and again until it is so.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One question and its answer. What an earlier question left behind is passed over.
pub(crate) fn echoes(asker: &UdpSocket, to: &UdpSocket, payload: &[u8]) -> bool {
    let mut buffer = vec![0; 70_000];
    let mut hears = |socket: &UdpSocket| loop {
        match socket.recv_from(&mut buffer) {
            Ok((read, from)) if buffer[..read] == *payload => return Some(from),
            Ok(_) => {}
            Err(_) => return None,
        }
    };
    if asker.send_to(payload, to.local_addr().unwrap()).is_err() {
        return false;
    }
    let Some(from) = hears(to) else { return false };
    to.send_to(payload, from).is_ok() && hears(asker).is_some()
}

/// Reads until the end or an error.
pub(crate) fn drain(mut from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).map(|_| all)
}

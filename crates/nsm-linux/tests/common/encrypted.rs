//! What encrypted tunnels do, whoever makes them: the kernel where it has WireGuard, and the packet engine, whose tests
//! include this file.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use nsm_api::{ConnectionId, HopName};
use nsm_hop::{
    diff::diff,
    kernel::{IfName, Iface, Kernel, Link, Owner, PublicKey, TunnelKey, Wire, Wires},
};
use nsm_linux::{
    LinuxKernel, Tunnels,
    net::Net,
    netns,
    probe::{self, PingOptions},
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a handshake may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod, what it calls its end, and its key.
struct End {
    at: Iface,
    key: TunnelKey,
    number: usize,
}

impl End {
    fn new(number: usize, secret: [u8; 32]) -> End {
        let at = Iface { netns: netns::create().unwrap(), name: IfName::new(&format!("nsm-{number}")).unwrap() };
        let public = nsm_packet::PrivateKey::new(secret).unwrap().public().unwrap();
        End { at, key: TunnelKey { public: PublicKey(*public.bytes()), private: Some(Arc::new(secret.into())) }, number }
    }
    fn owner(&self) -> Owner {
        let connection = ConnectionId::new(format!("wg-{}", self.number)).unwrap();
        Owner { hop: HopName::new("fwd").unwrap(), connection, generation: 1 }
    }
    fn socket(&self) -> SocketAddr {
        format!("192.0.2.1:{}", 51820 + self.number).parse().unwrap()
    }
    fn pod(&self) -> Net {
        Net::new(&self.at.netns).unwrap()
    }
    /// A tunnel to the other end, with addresses and routes of both families.
    fn wires(&self, other: &End) -> Wires {
        let (at, key) = (self.at.clone(), self.key.clone());
        let link = Link::Wireguard { at, key, local: self.socket(), peer: other.key.public, remote: other.socket() };
        let address = |text: String| Wire::Address { on: self.at.clone(), address: text.parse().unwrap() };
        let route = |text: String| Wire::Route { on: self.at.clone(), prefix: text.parse().unwrap(), via: None };
        let texts = |end: &End| (format!("10.9.0.{}/32", end.number), format!("fd09::{}/128", end.number));
        let ((own, own6), (far, far6)) = (texts(self), texts(other));
        Wires::from([Wire::Link(link), address(own), address(own6), route(far), route(far6)])
    }
}

/// Leads the end from what it has to a tunnel to the other end.
async fn lead(kernel: &LinuxKernel, end: &End, had: &Wires, other: &End) {
    let (owner, wires) = (end.owner(), end.wires(other));
    kernel.apply(&owner, &diff(&wires, had)).await.unwrap();
    assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires);
}
async fn make(kernel: &LinuxKernel, end: &End, other: &End) {
    lead(kernel, end, &Wires::new(), other).await;
}

async fn answers(from: &End, address: &str) {
    let begun = Instant::now();
    let options = || PingOptions { timeout: Duration::from_secs(1), ..PingOptions::once(address.parse().unwrap()) };
    while probe::ping(&from.at.netns, options()).await.unwrap().received == 0 {
        assert!(begun.elapsed() < PATIENCE, "no answer from {address}");
    }
}

async fn both_ways(a: &End, b: &End) {
    for (from, to) in [(a, b), (b, a)] {
        answers(from, &format!("10.9.0.{}", to.number)).await;
        answers(from, &format!("fd09::{}", to.number)).await;
    }
}

/// Runs every case in a node with the address 192.0.2.1.
pub(crate) async fn conforms(node: &Net, tunnels: Arc<dyn Tunnels>) {
    let kernel = netns::run_in_blocking(node.netns(), || LinuxKernel::with_tunnels(tunnels.clone())).unwrap().unwrap();
    let (a, b) = (End::new(0, [0x77; 32]), End::new(1, [0x5d; 32]));
    for (own, other) in [(&a, &b), (&b, &a)] {
        make(&kernel, own, other).await;
        let found = tunnels.find(&own.at).unwrap().expect("it was made");
        assert_eq!((found.key.public, found.peer, found.remote), (own.key.public, other.key.public, other.socket()));
    }
    both_ways(&a, &b).await;

    let index = a.pod().link_named("nsm-0").unwrap().unwrap().index;
    make(&kernel, &a, &b).await;
    assert_eq!(a.pod().link_named("nsm-0").unwrap().unwrap().index, index, "twice is once");
    both_ways(&a, &b).await;

    // The far side moves to another pod, with another key and at another port.
    let c = End::new(2, [0x3b; 32]);
    make(&kernel, &c, &a).await;
    lead(&kernel, &a, &a.wires(&b), &c).await;
    answers(&a, "10.9.0.2").await;

    for (own, other) in [(&a, &c), (&b, &a), (&c, &a)] {
        for _ in 0..2 {
            kernel.apply(&own.owner(), &diff(&Wires::new(), &own.wires(other))).await.unwrap();
        }
        assert!(tunnels.find(&own.at).unwrap().is_none());
        assert_eq!(own.pod().links().unwrap().len(), 1, "its loopback");
    }
}

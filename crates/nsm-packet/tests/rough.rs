//! An underlay that loses, doubles, reorders, replays and forges.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;

use common::{PATIENCE, PORT, Side, World, drain, echoes, until};
use nsm_linux::{net::Net, netns};
use nsm_packet::{Device, Engine, Timing};
use std::{
    collections::BTreeSet,
    io::Write,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// What happens to each datagram, of a thousand.
#[derive(Default)]
struct Weather {
    lost: AtomicU32,
    doubled: AtomicU32,
    late: AtomicU32,
}

/// Somebody between the two nodes: each believes that this is the other.
struct Between {
    net: Net,
    a: UdpSocket,
    b: UdpSocket,
    weather: Weather,
    over: AtomicBool,
    seen: Mutex<Vec<(bool, Vec<u8>)>>,
}

const NODE_A: &str = "198.18.1.1";
const NODE_B: &str = "198.18.2.1";
const TO_A: &str = "198.18.1.9";
const TO_B: &str = "198.18.2.9";

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), PORT)
}

impl Between {
    fn new(world: &World) -> Between {
        let net = Net::new(&netns::create().expect(common::MUST)).unwrap();
        for (side, name, own, other) in [(&world.a, "a", TO_A, NODE_A), (&world.b, "b", TO_B, NODE_B)] {
            side.node.veth("rough", net.netns(), name).unwrap();
            side.node.up("rough").unwrap();
            side.node.address_add("rough", format!("{other}/24").parse().unwrap()).unwrap();
            net.up(name).unwrap();
            net.address_add(name, format!("{own}/24").parse().unwrap()).unwrap();
        }
        let open = |own: &str, other: &str| {
            let socket = netns::run_in_blocking(net.netns(), || UdpSocket::bind(at(own))).unwrap().unwrap();
            socket.connect(at(other)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            // Room for bursts; without rights over the machine as much of it as there is.
            let forced = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20);
            forced.or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 8 << 20)).unwrap();
            socket
        };
        let (a, b) = (open(TO_A, NODE_A), open(TO_B, NODE_B));
        Between { net, a, b, weather: Weather::default(), over: AtomicBool::new(false), seen: Mutex::default() }
    }
    /// Passes datagrams on in one direction until it is over. The seed decides what becomes of each.
    fn carry(&self, from_a: bool, mut seed: u64) {
        let (from, to) = if from_a { (&self.a, &self.b) } else { (&self.b, &self.a) };
        let (mut buffer, mut kept) = (vec![0; 70_000], None::<Vec<u8>>);
        let mut chance = |of_thousand: &AtomicU32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 33) % 1000) < u64::from(of_thousand.load(Ordering::Relaxed))
        };
        while !self.over.load(Ordering::Relaxed) {
            let Ok(read) = from.recv(&mut buffer) else {
                if let Some(late) = kept.take() {
                    let _ = to.send(&late);
                }
                continue;
            };
            self.seen.lock().unwrap().push((from_a, buffer[..read].to_vec()));
            if chance(&self.weather.lost) {
                continue;
            }
            if chance(&self.weather.late) && kept.is_none() {
                kept = Some(buffer[..read].to_vec());
                continue;
            }
            let _ = to.send(&buffer[..read]); // nobody may be there yet
            if chance(&self.weather.doubled) {
                let _ = to.send(&buffer[..read]);
            }
            if let Some(late) = kept.take_if(|_| read % 3 == 0) {
                let _ = to.send(&late);
            }
        }
    }
}

fn device(side: &Side, other: &Side, own: &str, seen: &str) -> Device {
    Device { listen: at(own), endpoint: at(seen), ..side.device(other) }
}

/// Two connected devices with somebody between them.
fn between(timing: Timing, test: impl FnOnce(&World, &Between, &Engine, &Engine)) {
    let world = World::new(false);
    let middle = Between::new(&world);
    let (a, b) = (world.a.engine(timing), world.b.engine(timing));
    std::thread::scope(|scope| {
        scope.spawn(|| middle.carry(true, 1));
        scope.spawn(|| middle.carry(false, 2));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            a.add(device(&world.a, &world.b, NODE_A, TO_A)).unwrap();
            b.add(device(&world.b, &world.a, NODE_B, TO_B)).unwrap();
            world.dress();
            let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
            until("packets pass", || echoes(&near, &far, b"x"));
            test(&world, &middle, &a, &b);
        }));
        middle.over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Numbered datagrams from A to B; which of them came.
fn numbers(world: &World, count: u32, pause: Duration) -> Vec<u32> {
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    far.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let to = far.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..count {
                near.send_to(&number.to_le_bytes().repeat(50), to).unwrap();
                if number % 16 == 15 || pause > Duration::from_millis(1) {
                    std::thread::sleep(pause);
                }
            }
        });
        let (mut buffer, mut came) = ([0; 300], Vec::new());
        while let Ok(read) = far.recv(&mut buffer) {
            let number = u32::from_le_bytes(buffer[..4].try_into().unwrap());
            assert_eq!(buffer[..read], *number.to_le_bytes().repeat(50), "a packet has changed");
            came.push(number);
        }
        came
    })
}

#[test]
fn loss_copies_and_disorder_do_no_more_harm_than_on_any_way() {
    between(Timing::default(), |world, middle, _, _| {
        middle.weather.lost.store(10, Ordering::Relaxed);
        middle.weather.doubled.store(100, Ordering::Relaxed);
        middle.weather.late.store(50, Ordering::Relaxed);
        let came = numbers(world, 2000, Duration::from_micros(1100));
        let different: BTreeSet<u32> = came.iter().copied().collect();
        assert_eq!(different.len(), came.len(), "no packet arrives twice");
        assert!(came.len() > 1900, "{}", came.len());
        let listener = netns::run_in_blocking(world.b.pod.netns(), || TcpListener::bind("10.7.0.2:0")).unwrap().unwrap();
        let to = listener.local_addr().unwrap();
        let mut near = netns::run_in_blocking(world.a.pod.netns(), || TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let content: Vec<u8> = (0..1 << 18u32).flat_map(u32::to_le_bytes).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| near.write_all(&content).and_then(|()| near.shutdown(Shutdown::Write)).unwrap());
            assert!(drain(&far).unwrap() == content, "the stream has changed");
        });
    });
}

/// The threat model's row: of recorded packets that are sent again none is delivered.
#[test]
fn replayed_packets_are_dropped() {
    between(Timing::default(), |world, middle, _, b| {
        numbers(world, 1000, Duration::from_micros(200));
        let (before, recorded) = (b.list()[0].counters, middle.seen.lock().unwrap().clone());
        let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
        for (_, datagram) in recorded.iter().filter(|(from_a, _)| *from_a) {
            middle.b.send(datagram).unwrap();
        }
        let transport = recorded.iter().filter(|(from_a, datagram)| *from_a && datagram[0] == 4).count() as u64;
        assert!(transport >= 1000);
        until("all were looked at", || b.list()[0].counters.rx_dropped >= before.rx_dropped + transport);
        assert_eq!(b.list()[0].counters.rx_packets, before.rx_packets, "none was delivered");
        until("packets still pass", || echoes(&near, &far, b"x"));
    });
}

/// Rekeying is not seen by traffic: no packet is lost over many sessions.
#[test]
fn sessions_change_under_traffic() {
    let timing = Timing {
        rekey_after: Duration::from_millis(300),
        reject_after: Duration::from_millis(1500),
        rekey_timeout: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(200),
        ..Timing::default()
    };
    between(timing, |world, middle, a, _| {
        let begun = Instant::now();
        let came = numbers(world, 1200, Duration::from_micros(1500));
        assert!(begun.elapsed() > Duration::from_millis(1800));
        assert_eq!(came, (0..1200).collect::<Vec<_>>(), "all of them, in order");
        let seen = middle.seen.lock().unwrap();
        let sessions: BTreeSet<&[u8]> =
            seen.iter().filter(|(from_a, datagram)| *from_a && datagram[0] == 4).map(|(_, datagram)| &datagram[4..8]).collect();
        assert!(sessions.len() >= 4, "{} sessions", sessions.len());
        assert!(a.list()[0].handshake_age.unwrap() < Duration::from_secs(2));
    });
}

/// Whatever strangers send: nothing is delivered, nothing breaks, nothing is answered but what a cookie is for.
#[test]
fn forged_datagrams_change_nothing() {
    between(Timing::default(), |world, middle, a, b| {
        let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
        numbers(world, 50, Duration::ZERO);
        let recorded: Vec<Vec<u8>> = middle.seen.lock().unwrap().iter().map(|(_, datagram)| datagram.clone()).collect();
        let (before, answers) = (b.list()[0].counters, middle.seen.lock().unwrap().len());
        let mut seed = 7u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        for round in 0..4000 {
            let mut datagram = recorded[next() % recorded.len()].clone();
            match round % 4 {
                0 => datagram = (0..next() % 300).map(|_| next() as u8).collect(),
                1 => datagram.truncate(next() % datagram.len()),
                2 => datagram.extend([0; 20]),
                _ => {
                    let place = next() % datagram.len();
                    datagram[place] ^= 1 << (next() % 8);
                }
            }
            let _ = middle.b.send(&datagram);
        }
        // And from an address that is nobody's peer, a true one.
        let stranger = netns::run_in_blocking(middle.net.netns(), || UdpSocket::bind((TO_B, 0))).unwrap().unwrap();
        for datagram in &recorded {
            let _ = stranger.send_to(datagram, at(NODE_B));
        }
        until("packets still pass", || echoes(&near, &far, b"x"));
        let after = b.list()[0].counters;
        assert!(after.rx_packets - before.rx_packets < 20, "only the true ones were delivered: {before:?} {after:?}");
        assert!(after.rx_dropped > before.rx_dropped);
        let answered = middle.seen.lock().unwrap()[answers..].iter().filter(|(from_a, datagram)| !from_a && datagram[0] != 4).count();
        // Both sides begin; one first message may have been too early then, and arrives only now.
        assert!(answered <= 1, "{answered} handshake messages were answered");
        assert!(!a.list()[0].gone && !b.list()[0].gone);
    });
}

/// A peer under load wants the sender's address proven first.
#[test]
fn cookies_are_asked_for_and_given() {
    let timing = Timing { load_threshold: 0, rekey_timeout: Duration::from_millis(200), ..Timing::default() };
    between(timing, |_, middle, a, b| {
        let seen = middle.seen.lock().unwrap();
        assert!(seen.iter().any(|(_, datagram)| datagram[0] == 3 && datagram.len() == 64), "a cookie was sent");
        assert!(a.list()[0].handshake_age.is_some() && b.list()[0].handshake_age.is_some());
    });
}

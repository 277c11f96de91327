//! Two engines with real interfaces and a real underlay.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;

use common::{MTU, PATIENCE, World, drain, echoes, until};
use nsm_linux::netns;
use nsm_packet::{Engine, Timing};
use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

/// A stream of numbers through the tunnel, in both directions at once.
fn stream(world: &World, address: &str, bytes: usize) {
    let listener = netns::run_in_blocking(world.b.pod.netns(), || TcpListener::bind((address, 0))).unwrap().unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let near = netns::run_in_blocking(world.a.pod.netns(), || TcpStream::connect_timeout(&at, PATIENCE)).unwrap().unwrap();
    let (far, _) = listener.accept().unwrap();
    let content: Vec<u8> = (0..bytes as u32 / 4).flat_map(|number| number.to_le_bytes()).collect();
    std::thread::scope(|scope| {
        for (from, to) in [(&near, &far), (&far, &near)] {
            from.set_write_timeout(Some(PATIENCE)).unwrap();
            to.set_read_timeout(Some(PATIENCE)).unwrap();
            let content = &content;
            scope.spawn(move || {
                let mut from: &TcpStream = from;
                from.write_all(content).unwrap();
                from.shutdown(std::net::Shutdown::Write).unwrap();
            });
            scope.spawn(move || assert!(drain(to).unwrap() == *content, "the stream has changed"));
        }
    });
}

/// Small, large and largest packets, and those that the pod must fragment.
fn datagrams(world: &World, near: &str, far: &str, header: usize) {
    let (asker, echo) = (world.a.udp(near), world.b.udp(far));
    let largest = MTU as usize - header - 8;
    for length in [0, 1, 18, 500, largest, largest + 1, 9000, 65_000] {
        until(&format!("{length} bytes from {near} to {far}"), || echoes(&asker, &echo, &vec![7; length]));
    }
}

/// How many fragments the node has sent.
fn fragments(side: &common::Side) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp6");
    let counters = netns::run_in_blocking(side.node.netns(), read).unwrap().unwrap();
    let line = counters.lines().find(|line| line.starts_with("Ip6FragCreates")).expect("the kernel counts them");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn all_traffic(v6: bool) {
    let world = World::new(v6);
    let engines = (world.a.engine(Timing::default()), world.b.engine(Timing::default()));
    let (a, _) = world.connect(&engines.0, &engines.1);
    assert_eq!((a.public, a.peer, a.mtu, a.group), (world.a.public(), world.b.public(), MTU, 7));
    datagrams(&world, "10.7.0.1:0", "10.7.0.2:0", 20);
    datagrams(&world, "[fd07::1]:0", "[fd07::2]:0", 40);
    stream(&world, "10.7.0.2", 8 << 20);
    stream(&world, "fd07::2", 8 << 20);
    let (a, b) = (&engines.0.list()[0], &engines.1.list()[0]);
    assert!(a.counters.tx_bytes > 16 << 20 && a.counters.rx_bytes > 16 << 20, "{:?}", a.counters);
    assert!(b.counters.rx_packets >= a.counters.tx_packets / 2 && a.handshake_age.is_some());
    assert_eq!(a.counters.tx_dropped, 0);
    if v6 {
        assert_eq!(fragments(&world.a), 0, "the largest packets fit into the underlay");
    }
    let stats = world.b.pod.stats("wg").unwrap();
    assert_eq!((stats.rx_errors, stats.tx_errors, stats.tx_dropped), (0, 0, 0), "{stats:?}");
    for (engine, side) in [(&engines.0, &world.a), (&engines.1, &world.b)] {
        engine.remove(&engine.list()[0].id).unwrap();
        assert!(side.pod.link_named("wg").unwrap().is_none());
        assert!(engine.list().is_empty());
    }
}

/// E-38: the first packet after the device is there is not lost, whoever sends it.
#[test]
fn the_first_packet_arrives() {
    let world = World::new(false);
    let engines = (world.a.engine(Timing::default()), world.b.engine(Timing::default()));
    world.connect(&engines.0, &engines.1);
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    near.send_to(b"first", far.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(far.recv(&mut buffer).unwrap(), 5);
}

#[test]
fn everything_passes_over_ipv4() {
    all_traffic(false);
}

#[test]
fn everything_passes_over_ipv6() {
    all_traffic(true);
}

/// A11 for the engine: the interface, its index and its addresses outlive it.
#[test]
fn a_restart_keeps_the_interface() {
    let world = World::new(false);
    let b = world.b.engine(Timing::default());
    let a = world.a.engine(Timing::default());
    let before = world.connect(&a, &b).0;
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    until("packets pass", || echoes(&near, &far, b"before"));
    drop(a);
    let addresses = world.a.pod.addresses().unwrap();
    assert_eq!(world.a.pod.link_named("wg").unwrap().unwrap().index, before.index, "it is there without an engine");
    let a = world.a.engine(Timing::default());
    assert!(a.list().is_empty());
    let after = a.add(world.a.device(&world.b)).unwrap();
    assert_eq!((after.index, &after.id), (before.index, &before.id));
    until("packets pass again, on sockets that were open all the time", || echoes(&near, &far, b"after"));
    assert_eq!(world.a.pod.addresses().unwrap(), addresses);
    assert_eq!(a.add(world.a.device(&world.b)).unwrap().index, before.index, "twice is once");
    assert_eq!(a.list().len(), 1);
}

#[test]
fn other_keys_change_the_device_and_leave_the_interface() {
    let mut world = World::new(false);
    let engines = (world.a.engine(Timing::default()), world.b.engine(Timing::default()));
    let before = world.connect(&engines.0, &engines.1).0;
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    until("packets pass", || echoes(&near, &far, b"before"));
    world.a.secret = common::random();
    let after = engines.0.add(world.a.device(&world.b)).unwrap();
    assert_eq!(after.index, before.index);
    assert_ne!(after.public, before.public);
    engines.1.add(world.b.device(&world.a)).unwrap();
    until("packets pass with other keys", || echoes(&near, &far, b"after"));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let world = World::new(false);
    let engine = world.a.engine(Timing::default());
    world.a.pod.bridge("wg").unwrap();
    let refused = engine.add(world.a.device(&world.b)).unwrap_err();
    assert_eq!(refused.kind, nsm_api::Kind::Conflict, "{refused}");
    world.a.pod.delete("wg").unwrap();
    engine.add(world.a.device(&world.b)).unwrap();
    let other = nsm_packet::Device { tag: "nsm:other:1".into(), ..world.a.device(&world.b) };
    assert_eq!(engine.add(other).unwrap_err().kind, nsm_api::Kind::Conflict);
    let twin = nsm_packet::Device { name: "wg2".into(), ..world.a.device(&world.b) };
    assert_eq!(engine.add(twin).unwrap_err().kind, nsm_api::Kind::Conflict, "nobody could tell the two apart");
    drop(engine);
    let other = nsm_packet::Device { tag: "nsm:other:1".into(), ..world.a.device(&world.b) };
    let engine = world.a.engine(Timing::default());
    assert_eq!(engine.add(other).unwrap_err().kind, nsm_api::Kind::Conflict, "nor after a restart");
    assert!(world.a.pod.link_named("wg").unwrap().is_some());
}

#[test]
fn devices_that_cannot_be_are_refused() {
    let world = World::new(false);
    let engine = world.a.engine(Timing::default());
    let device = || world.a.device(&world.b);
    let wrong = [
        nsm_packet::Device { name: String::new(), ..device() },
        nsm_packet::Device { name: "a/b".into(), ..device() },
        nsm_packet::Device { name: "x".repeat(16), ..device() },
        nsm_packet::Device { tag: String::new(), ..device() },
        nsm_packet::Device { tag: "x".repeat(256), ..device() },
        nsm_packet::Device { mtu: 500, ..device() },
        nsm_packet::Device { mtu: 65_500, ..device() },
        nsm_packet::Device { endpoint: "[::1]:1".parse().unwrap(), ..device() },
        nsm_packet::Device { endpoint: "192.0.2.2:0".parse().unwrap(), ..device() },
        nsm_packet::Device { listen: "192.0.2.1:0".parse().unwrap(), ..device() },
    ];
    for device in wrong {
        let shown = format!("{device:?}");
        assert!(shown.contains("PrivateKey(hidden)"));
        assert_eq!(engine.add(device).unwrap_err().kind, nsm_api::Kind::Invalid, "{shown}");
    }
    let elsewhere = nsm_packet::Device { listen: "198.51.100.1:1".parse().unwrap(), ..device() };
    assert!(engine.add(elsewhere).unwrap_err().to_string().contains("198.51.100.1"));
    assert!(engine.list().is_empty() && world.a.pod.link_named("wg").unwrap().is_none());
}

/// Removing an interface behind the engine's back costs nothing but the device.
#[test]
fn an_interface_that_vanishes_is_reported() {
    let world = World::new(false);
    let engines = (world.a.engine(Timing::default()), world.b.engine(Timing::default()));
    world.connect(&engines.0, &engines.1);
    world.a.pod.delete("wg").unwrap();
    until("it is noticed", || engines.0.list()[0].gone);
    assert!(!engines.1.list()[0].gone);
    let id = engines.0.list()[0].id.clone();
    engines.0.remove(&id).unwrap();
    engines.0.remove(&id).unwrap();
    engines.0.add(world.a.device(&world.b)).unwrap();
    assert!(world.a.pod.link_named("wg").unwrap().is_some());
}

/// Somebody sets the interface aside, as one does before deleting many: the same device is then a new interface.
#[test]
fn an_interface_that_was_renamed_is_not_the_device_any_more() {
    let world = World::new(false);
    let engines = (world.a.engine(Timing::default()), world.b.engine(Timing::default()));
    let before = world.connect(&engines.0, &engines.1).0;
    world.a.pod.down("wg").unwrap();
    world.a.pod.rename("wg", "doomed").unwrap();
    let after = engines.0.add(world.a.device(&world.b)).unwrap();
    assert_ne!(after.index, before.index);
    world.a.pod.address_add("wg", "10.7.0.1/24".parse().unwrap()).unwrap();
    world.a.pod.delete("doomed").unwrap();
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    until("packets pass", || echoes(&near, &far, b"x"));
}

/// A node with many devices: they share sockets where they share addresses, and cost nothing while they rest.
#[test]
fn a_hundred_devices_at_rest() {
    let world = World::new(false);
    let timing = Timing { persistent_keepalive: None, ..Timing::default() };
    let engines = (world.a.engine(timing), world.b.engine(timing));
    let count = 100;
    let add = |engine: &Engine, side: &common::Side, other: &common::Side| {
        for number in 0..count {
            // Every second pair of them shares a socket.
            let device = side.numbered(other, number, common::PORT + number / 2);
            engine.add(device).unwrap();
        }
    };
    add(&engines.0, &world.a, &world.b);
    add(&engines.1, &world.b, &world.a);
    let last = count - 1;
    for (side, number) in [(&world.a, 1), (&world.b, 2)] {
        side.pod.address_add(&format!("wg{last}"), format!("10.9.0.{number}/24").parse().unwrap()).unwrap();
    }
    let (near, far) = (world.a.udp("10.9.0.1:0"), world.b.udp("10.9.0.2:0"));
    until("the last of them works", || echoes(&near, &far, b"x"));
    let spent = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let nanos = |time: rustix::time::Timespec| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    until("the process rests", || {
        let before = nanos(spent());
        std::thread::sleep(Duration::from_millis(300));
        nanos(spent()) - before < 3_000_000
    });
    let state = &engines.0.list()[1];
    assert_eq!((state.counters.tx_packets, state.handshake_age), (0, None));
}

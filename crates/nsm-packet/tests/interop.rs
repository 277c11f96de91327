//! Against wireguard-go, in both directions, whoever begins.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;
#[path = "common/peer.rs"]
mod peer;

use common::{PATIENCE, World, drain, echoes, until};
use nsm_linux::netns;
use nsm_packet::Timing;
use peer::Peer;
use std::{
    io::Write,
    net::{Shutdown, TcpListener, TcpStream},
};

/// A stream to the other side and back.
fn streams(world: &World, address: &str) {
    for (from, to) in [(&world.a, &world.b), (&world.b, &world.a)] {
        let address = if std::ptr::eq(to, &world.b) { format!("{address}2") } else { format!("{address}1") };
        let listener = netns::run_in_blocking(to.pod.netns(), || TcpListener::bind((address.as_str(), 0))).unwrap().unwrap();
        let at = listener.local_addr().unwrap();
        let mut near = netns::run_in_blocking(from.pod.netns(), || TcpStream::connect_timeout(&at, PATIENCE)).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let content: Vec<u8> = (0..1 << 20u32).flat_map(u32::to_le_bytes).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| near.write_all(&content).and_then(|()| near.shutdown(Shutdown::Write)).unwrap());
            assert!(drain(&far).unwrap() == content, "the stream has changed");
        });
    }
}

fn with_the_other(v6: bool, theirs_first: bool) {
    let world = World::new(v6);
    // Only who sends first begins: the other side has no keepalive that would do so.
    let timing = Timing { persistent_keepalive: (!theirs_first).then_some(std::time::Duration::from_secs(10)), ..Timing::default() };
    let engine = world.a.engine(timing);
    let go = || Peer::start(&world.b, &world.a);
    let early = theirs_first.then(go);
    engine.add(world.a.device(&world.b)).unwrap();
    let late = (!theirs_first).then(go);
    world.dress();
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    let (first, second) = if theirs_first { (&far, &near) } else { (&near, &far) };
    until("the first packets pass", || echoes(first, second, b"first"));
    assert!(engine.list()[0].handshake_age.is_some());
    for length in [0, 1, 18, 1392, 1393, 9000, 60_000] {
        until(&format!("{length} bytes"), || echoes(&near, &far, &vec![3; length]) && echoes(&far, &near, &vec![4; length]));
    }
    let (near, far) = (world.a.udp("[fd07::1]:0"), world.b.udp("[fd07::2]:0"));
    until("IPv6 passes", || echoes(&near, &far, b"six"));
    streams(&world, "10.7.0.");
    streams(&world, "fd07::");
    assert_eq!(engine.list()[0].counters.tx_dropped, 0);
    drop((early, late));
}

#[test]
fn we_begin() {
    with_the_other(false, false);
}

#[test]
fn they_begin() {
    with_the_other(false, true);
}

#[test]
fn over_ipv6() {
    with_the_other(true, false);
    with_the_other(true, true);
}

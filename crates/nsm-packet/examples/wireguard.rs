//! Measures a WireGuard tunnel between two pods on two nodes: ours and others, in turns, in the same namespaces.
//!
//! `cargo run --release -p nsm-packet --example wireguard [milliseconds] [turns]`, as root, on an otherwise idle machine. The
//! other side is wireguard-go, built from `tests/wireguard-go` (needs Go), and gotatun where the variable `GOTATUN` names it. `wireguard many
//! [devices]` tells what many devices cost. `ONLY=ours`, `TCP=1` and `WORKERS=n` narrow it down for a profiler.
#![allow(clippy::unwrap_used)] // a measurement that fails ends

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/peer.rs"]
mod peer;

use common::{Side, World, until};
use nsm_linux::netns;
use nsm_packet::{Engine, Options, PrivateKey, PublicKey, Timing};
use peer::{Kind, Peer};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg, sockopt};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::{
    io::{IoSlice, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const BATCH: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("engine") {
        return engine(&arguments[1..]);
    }
    if arguments.first().map(String::as_str) == Some("many") {
        return many(arguments.get(1).map_or(1000, |text| text.parse().unwrap()));
    }
    let number = |place: usize, default: u64| arguments.get(place).map_or(default, |text| text.parse().unwrap());
    let (span, turns) = (Duration::from_millis(number(0, 400)), number(1, 9));
    let mut kinds = vec![("ours", Kind::Ours), ("wireguard-go", Kind::Go)];
    if std::env::var_os("GOTATUN").is_some() {
        kinds.push(("gotatun", Kind::Gotatun));
    }
    if let Ok(only) = std::env::var("ONLY") {
        kinds.retain(|(name, _)| *name == only);
    }
    let mut rows: Vec<(&str, Vec<Vec<f64>>)> = kinds.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let lines: Vec<(World, [Peer; 2])> = kinds.iter().map(|(_, kind)| line(*kind)).collect();
    for _ in 0..turns {
        for ((world, _), (_, values)) in lines.iter().zip(&mut rows) {
            values.push(measure(world, span));
        }
    }
    let names = ["TCP 1", "TCP 4", "UDP18 Mpps", "UDP1400 Mpps", "RTT p50 us", "p99", "spin p50", "p99"];
    println!("{:14} {}", "", names.map(|name| format!("{name:>12}")).join(" "));
    for (name, values) in rows {
        let medians = (0..names.len()).map(|place| {
            let mut column: Vec<f64> = values.iter().map(|row| row[place]).collect();
            column.sort_by(f64::total_cmp);
            format!("{:>12.3}", column[column.len() / 2])
        });
        println!("{name:14} {}", medians.collect::<Vec<_>>().join(" "));
    }
}

/// One node's engine with one device: interface, MTU and namespace as arguments, keys and addresses on standard input.
fn engine(arguments: &[String]) {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let [private, public, listen, endpoint] = std::array::from_fn(|_| lines.next().unwrap());
    let workers = std::env::var("WORKERS").map_or(0, |text| text.parse().unwrap());
    let engine = Engine::start(Options { node: None, workers, timing: Timing::default() }).unwrap();
    let device = nsm_packet::Device {
        netns: std::fs::File::open(&arguments[2]).unwrap().into(),
        name: arguments[0].clone(),
        tag: "nsm:bench:1".into(),
        group: 0,
        mtu: arguments[1].parse().unwrap(),
        private: PrivateKey::new(peer::unhex(&private)).unwrap(),
        peer: PublicKey::new(peer::unhex(&public)).unwrap(),
        preshared: None,
        listen: listen.parse().unwrap(),
        endpoint: endpoint.parse().unwrap(),
    };
    engine.add(device).unwrap();
    println!("ready");
    while lines.next().is_some() {}
}

/// So many devices on each of two nodes: what they take to make, to keep and to remove.
fn many(count: u32) {
    let world = World::new(false);
    let memory = || -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    };
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: files.maximum, ..files }).unwrap();
    for (name, spread) in [("one socket", 0), ("a socket each", 1)] {
        let engines = (world.a.engine(Timing::default()), world.b.engine(Timing::default()));
        let (before, begun) = (memory(), Instant::now());
        for number in 0..count {
            for (engine, side, other) in [(&engines.0, &world.a, &world.b), (&engines.1, &world.b, &world.a)] {
                let device = side.numbered(other, number as u16, 20_000 + spread * number as u16);
                engine.add(device).unwrap();
            }
        }
        let made = begun.elapsed().as_secs_f64();
        until("all have a session", || engines.0.list().iter().chain(&engines.1.list()).all(|state| state.handshake_age.is_some()));
        let ready = begun.elapsed().as_secs_f64();
        let (each, spent, rest) = ((memory() - before) as f64 / f64::from(2 * count), cpu(), Instant::now());
        thread::sleep(Duration::from_secs(20));
        let idle = (cpu() - spent) / rest.elapsed().as_secs_f64() * 100.0;
        let begun = Instant::now();
        for engine in [&engines.0, &engines.1] {
            engine.list().iter().for_each(|state| engine.remove(&state.id).unwrap());
        }
        let (rate, gone) = (f64::from(2 * count) / made, begun.elapsed().as_secs_f64() * 1e3 / f64::from(2 * count));
        println!(
            "{name}: 2 x {count} devices: {rate:.0}/s made, all ready after {ready:.2} s, {each:.1} kB each, {idle:.2} % of a processor at rest, {gone:.2} ms each to remove"
        );
    }
}

/// Two nodes with this implementation between them.
fn line(kind: Kind) -> (World, [Peer; 2]) {
    let world = World::new(false);
    let peers = [Peer::start(kind, &world.a, &world.b), Peer::start(kind, &world.b, &world.a)];
    world.dress();
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    until("packets pass", || common::echoes(&near, &far, b"x"));
    (world, peers)
}

/// One turn of everything.
fn measure(world: &World, span: Duration) -> Vec<f64> {
    if std::env::var_os("TCP").is_some() {
        return vec![tcp(world, 1, span); 8];
    }
    let (small, large) = (packets(world, 18, span), packets(world, 1392, span));
    let (blocking, spinning) = (round_trips(world, false, span), round_trips(world, true, span));
    vec![tcp(world, 1, span), tcp(world, 4, span), small, large, blocking.0, blocking.1, spinning.0, spinning.1]
}

fn inside<T: Send>(side: &Side, work: impl FnOnce() -> std::io::Result<T> + Send) -> T {
    netns::run_in_blocking(side.pod.netns(), work).unwrap().unwrap()
}

fn pinned<T>(processor: usize, work: impl FnOnce() -> T) -> T {
    let mut only = CpuSet::new();
    only.set(processor);
    if std::env::var_os("UNPINNED").is_none() {
        let _ = sched_setaffinity(None, &only);
    }
    work()
}

/// Gbit/s of that many streams.
fn tcp(world: &World, streams: usize, span: Duration) -> f64 {
    let listener = inside(&world.b, || TcpListener::bind("10.7.0.2:0"));
    let at = listener.local_addr().unwrap();
    let pairs: Vec<(TcpStream, TcpStream)> = (0..streams)
        .map(|_| {
            let near = inside(&world.a, || TcpStream::connect(at));
            (near, listener.accept().unwrap().0)
        })
        .collect();
    let begun = Instant::now();
    let bytes: u64 = thread::scope(|scope| {
        let mut readers = Vec::new();
        for (mut near, mut far) in pairs {
            scope.spawn(move || {
                let buffer = vec![0x5a; 256 << 10];
                while begun.elapsed() < span {
                    near.write_all(&buffer).unwrap();
                }
            });
            readers.push(scope.spawn(move || {
                let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0);
                loop {
                    match far.read(&mut buffer).unwrap() {
                        0 => return bytes,
                        read => bytes += read as u64,
                    }
                }
            }));
        }
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
}

fn sockets(world: &World) -> (UdpSocket, UdpSocket) {
    let far = inside(&world.b, || UdpSocket::bind("10.7.0.2:0"));
    let near = inside(&world.a, || UdpSocket::bind("10.7.0.1:0"));
    near.connect(far.local_addr().unwrap()).unwrap();
    sockopt::set_socket_recv_buffer_size_force(&far, 8 << 20).unwrap();
    (near, far)
}

/// Millions of packets per second that arrive.
fn packets(world: &World, size: usize, span: Duration) -> f64 {
    let (near, far) = sockets(world);
    far.set_nonblocking(true).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            pinned(1, || {
                let (mut buffer, mut count, mut first, mut last) = ([0; 2048], 0u64, None, Instant::now());
                while !done.load(Ordering::Relaxed) {
                    if far.recv(&mut buffer).is_ok() {
                        count += 1;
                        if count % 64 == 1 {
                            last = Instant::now();
                            first.get_or_insert(last);
                        }
                    }
                }
                count as f64 / (last - first.unwrap()).as_secs_f64() / 1e6
            })
        });
        scope.spawn(|| {
            pinned(0, || {
                let payload = vec![0x5a; size];
                let slices = [IoSlice::new(&payload)];
                let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
                let mut batch: Vec<MMsgHdr<'_>> = controls.iter_mut().map(|control| MMsgHdr::new(&slices, control)).collect();
                let begun = Instant::now();
                while begun.elapsed() < span {
                    let _ = sendmmsg(&near, &mut batch, SendFlags::empty());
                }
                done.store(true, Ordering::Relaxed);
            })
        });
        counting.join().unwrap()
    })
}

/// Microseconds: median and the 99th of a hundred.
fn round_trips(world: &World, spin: bool, span: Duration) -> (f64, f64) {
    let (near, far) = sockets(world);
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.set_nonblocking(spin).unwrap();
    }
    let done = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        scope.spawn(|| {
            pinned(1, || {
                let mut buffer = [0; 2048];
                while !done.load(Ordering::Relaxed) {
                    if let Ok((read, from)) = far.recv_from(&mut buffer) {
                        let _ = far.send_to(&buffer[..read], from);
                    }
                }
            })
        });
        let asking = scope.spawn(|| {
            pinned(0, || {
                let (mut buffer, mut times, begun, mut question) = ([0; 2048], Vec::new(), Instant::now(), [0; 64]);
                while begun.elapsed() < span || times.is_empty() {
                    let asked = Instant::now();
                    question[..8].copy_from_slice(&begun.elapsed().as_nanos().to_le_bytes()[..8]);
                    near.send(&question).unwrap();
                    while asked.elapsed() < Duration::from_millis(50) {
                        if near.recv(&mut buffer).is_ok() && buffer[..64] == question {
                            times.push(asked.elapsed().as_nanos() as f64 / 1e3);
                            break;
                        }
                    }
                }
                done.store(true, Ordering::Relaxed);
                times
            })
        });
        asking.join().unwrap()
    });
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    (at(0.5), at(0.99))
}

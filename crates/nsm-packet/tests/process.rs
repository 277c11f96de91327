//! The engine in a process of its own, which clients come to and leave, and which dies.
//!
//! Called as `process engine SOCKET` this program is that process.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;

use common::{World, descriptor, echoes, until};
use nsm_linux::{net::Net, netns};
use nsm_packet::{Client, Options, RunOptions, Timing, run};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, socket] = &arguments[..]
        && role == "engine"
    {
        let options = RunOptions {
            socket: PathBuf::from(socket),
            engine: Options { timing: Timing::default(), ..Options::default() },
            idle_exit: None,
        };
        panic!("the engine ended: {}", run(options, || ()).unwrap_err());
    }
    let tests: [(&str, fn()); 4] = [
        ("clients come and go", clients_come_and_go),
        ("a killed engine finds its interfaces again", a_killed_engine),
        ("many devices fit into a list", many_devices),
        ("one engine for one socket", one_engine),
    ];
    for (name, test) in tests {
        if arguments.is_empty() || arguments.iter().any(|wanted| wanted.starts_with("--") || name.contains(wanted.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

/// The process on one node; killed with this.
struct Process(Child);

impl Process {
    fn start(node: &Net, socket: &Path) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("engine").arg(socket);
        Process(netns::run_in_blocking(node.netns(), || command.spawn()).unwrap().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn clients_come_and_go() {
    let (world, dir) = (World::new(false), tempfile::tempdir().unwrap());
    let (at_a, at_b) = (dir.path().join("a"), dir.path().join("b"));
    let _processes = (Process::start(&world.a.node, &at_a), Process::start(&world.b.node, &at_b));
    let (a, b) = (Client::new(&at_a), Client::new(&at_b));
    until("they serve", || a.list().is_ok() && b.list().is_ok());
    let added = a.add(&world.a.device(&world.b)).unwrap();
    b.add(&world.b.device(&world.a)).unwrap();
    world.dress();
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    until("packets pass", || echoes(&near, &far, b"x"));
    drop((a, b)); // the forwarder ends; its packets do not
    for number in 0..100u32 {
        assert!(echoes(&near, &far, &number.to_le_bytes()), "packet {number} is lost");
    }
    let other = Client::new(&at_a);
    let listed = other.list().unwrap();
    assert_eq!((listed.len(), listed[0].index, listed[0].public), (1, added.index, world.a.public()));
    assert!(listed[0].counters.tx_packets >= 100);
    let refused = other.add(&nsm_packet::Device { tag: "nsm:other:1".into(), ..world.a.device(&world.b) }).unwrap_err();
    assert_eq!(refused.kind, nsm_api::Kind::Conflict, "{refused}");
    other.remove(&listed[0].id).unwrap();
    assert!(other.list().unwrap().is_empty() && world.a.pod.link_named("wg").unwrap().is_none());
}

/// A11: killed with its devices; they are there, and work again when they are added again.
fn a_killed_engine() {
    let (world, dir) = (World::new(false), tempfile::tempdir().unwrap());
    let socket = dir.path().join("engine");
    let first = Process::start(&world.a.node, &socket);
    let (client, b) = (Client::new(&socket), world.b.engine(Timing::default()));
    until("it serves", || client.list().is_ok());
    let before = client.add(&world.a.device(&world.b)).unwrap();
    b.add(world.b.device(&world.a)).unwrap();
    world.dress();
    let (near, far) = (world.a.udp("10.7.0.1:0"), world.b.udp("10.7.0.2:0"));
    until("packets pass", || echoes(&near, &far, b"x"));
    drop(first);
    assert!(client.list().is_err());
    assert_eq!(world.a.pod.link_named("wg").unwrap().unwrap().index, before.index);
    let _second = Process::start(&world.a.node, &socket);
    until("it serves again, for the same client", || client.list().is_ok());
    let after = client.add(&world.a.device(&world.b)).unwrap();
    assert_eq!(after.index, before.index);
    until("packets pass again", || echoes(&near, &far, b"x"));
}

fn many_devices() {
    let (world, dir) = (World::new(false), tempfile::tempdir().unwrap());
    let socket = dir.path().join("engine");
    let _process = Process::start(&world.a.node, &socket);
    let client = Client::new(&socket);
    until("it serves", || client.list().is_ok());
    let count = 150u16;
    for number in 0..count {
        let device = nsm_packet::Device { tag: format!("{number:0>255}"), ..world.a.numbered(&world.b, number, common::PORT) };
        client.add(&device).unwrap();
    }
    let listed = client.list().unwrap();
    assert_eq!(listed.len(), usize::from(count));
    assert!(listed.is_sorted_by(|a, b| a.id < b.id), "in the order of their ids, each once");
}

fn one_engine() {
    let (world, dir) = (World::new(false), tempfile::tempdir().unwrap());
    let socket = dir.path().join("engine");
    let _process = Process::start(&world.a.node, &socket);
    let client = Client::new(&socket);
    until("it serves", || client.list().is_ok());
    let engine = Options { node: Some(descriptor(&world.b.node)), ..Options::default() };
    let second = run(RunOptions { socket: socket.clone(), engine, idle_exit: None }, || ()).unwrap_err();
    assert_eq!(second.kind, nsm_api::Kind::Conflict, "{second}");
    assert!(client.list().is_ok(), "the first still serves");
}

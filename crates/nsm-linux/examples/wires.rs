//! How long wires take: made, looked at and removed one at a time and many at once, with few and many others present.
//!
//! `cargo run -p nsm-linux --release --example wires [OTHERS]` as root, or inside `unshare -Urnm`.
#![allow(clippy::unwrap_used)] // a measurement that cannot be made ends

use nsm_api::{ConnectionId, HopName};
use nsm_hop::{
    diff::diff,
    kernel::{IfName, Iface, Kernel, Link, Netns, Op, Owner, Wire, Wires},
};
use nsm_linux::{LinuxKernel, netns};
use std::{future::Future, time::Instant};
use tokio::task::JoinSet;

const SAMPLES: usize = 50;
const AT_ONCE: usize = 100;

fn owner(number: usize) -> Owner {
    Owner { hop: HopName::new("bench").unwrap(), connection: ConnectionId::new(format!("conn-{number}")).unwrap(), generation: 1 }
}

/// What a client and an endpoint get: a pair, two addresses, two routes.
fn wires(pod: &Netns, shared: &Netns, number: usize) -> Wires {
    let iface = |netns: &Netns, name: &str| Iface { netns: netns.clone(), name: IfName::new(name).unwrap() };
    let (a, b) = (iface(pod, &format!("n{number}")), iface(shared, &format!("e{number}")));
    let (x, y) = (format!("10.{}.{}.0/32", number / 250, number % 250), format!("10.{}.{}.1/32", number / 250, number % 250));
    let address = |on: &Iface, net: &str| Wire::Address { on: on.clone(), address: net.parse().unwrap() };
    let route = |on: &Iface, net: &str| Wire::Route { on: on.clone(), prefix: net.parse().unwrap(), via: None };
    let link = Wire::Link(Link::Veth { a: a.clone(), b: b.clone() });
    Wires::from([link, address(&a, &x), address(&b, &y), route(&a, &y), route(&b, &x)])
}
fn adds(wires: &Wires) -> Vec<Op> {
    wires.iter().cloned().map(Op::Add).collect()
}
fn dels(wires: &Wires) -> Vec<Op> {
    diff(&Wires::new(), wires)
}

async fn timed(times: &mut Vec<f64>, work: impl Future) {
    let begun = Instant::now();
    work.await;
    times.push(begun.elapsed().as_secs_f64() * 1e3);
}
fn report(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("{what:<44} p50 {:7.3} ms   p99 {:7.3} ms", at(0.5), at(0.99));
}

async fn one_at_a_time(kernel: &LinuxKernel, pods: &[Netns], shared: &Netns, present: usize) {
    let [mut first, mut made, mut seen, mut removed] = [const { vec![] }; 4];
    for number in 0..SAMPLES {
        let (owner, wires) = (owner(10_000 + number), wires(&pods[number % pods.len()], shared, 10_000 + number));
        timed(&mut first, async { kernel.observe(&owner, &wires).await.unwrap() }).await;
        timed(&mut made, async { kernel.apply(&owner, &adds(&wires)).await.unwrap() }).await;
        timed(&mut seen, async { assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires) }).await;
        timed(&mut removed, async { kernel.apply(&owner, &dels(&wires)).await.unwrap() }).await;
    }
    for (what, times) in [("observe, nothing there", first), ("make", made), ("observe, all there", seen), ("remove", removed)] {
        report(&format!("{what}, {present} others present"), times);
    }
}

async fn at_once(kernel: &LinuxKernel, pods: &[Netns], shared: &Netns, numbers: std::ops::Range<usize>, remove: bool) {
    let (begun, count) = (Instant::now(), numbers.len());
    let mut all = JoinSet::new();
    for number in numbers {
        let (kernel, owner, wires) = (kernel.clone(), owner(number), wires(&pods[number % pods.len()], shared, number));
        all.spawn(async move { kernel.apply(&owner, &if remove { dels(&wires) } else { adds(&wires) }).await.unwrap() });
    }
    while all.join_next().await.is_some() {}
    let (what, all) = (if remove { "remove" } else { "make" }, begun.elapsed().as_secs_f64() * 1e3);
    println!("{:<44} all {all:7.1} ms   each {:7.3} ms", format!("{what}, {count} at once"), all / count as f64);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let others: usize = std::env::args().nth(1).map_or(500, |text| text.parse().unwrap());
    let node = netns::create().expect("run as root or under `unshare -Urnm`");
    let kernel = netns::run_in_blocking(&node, LinuxKernel::new).unwrap().unwrap();
    let pods: Vec<Netns> = (0..20).map(|_| netns::create().unwrap()).collect();
    let shared = netns::create().unwrap();
    one_at_a_time(&kernel, &pods, &shared, 0).await;
    at_once(&kernel, &pods, &shared, 0..AT_ONCE, false).await;
    at_once(&kernel, &pods, &shared, 0..AT_ONCE, true).await;
    at_once(&kernel, &pods, &shared, 0..others, false).await;
    one_at_a_time(&kernel, &pods, &shared, others).await;
    at_once(&kernel, &pods, &shared, 0..others, true).await;
}

//! What only the real kernel can show: many at once, a process that ends half-way, packets. Needs root or a user namespace of its own.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;
#[path = "common/encrypted.rs"]
mod encrypted;

use common::{MUST, Real};
use nsm_api::{ConnectionId, HopName, Kind, MacAddr};
use nsm_hop::{
    diff::diff,
    kernel::{Disturbance, IfName, Iface, Kernel, Link, Netns, Op, Owner, Sentry, Traffic, UnderlayMtu, Wire, Wires},
};
use nsm_linux::{
    Forgotten, LinuxKernel,
    net::Net,
    netns,
    probe::{self, PingOptions},
};
use std::{io::Write, os::fd::AsRawFd, sync::Arc, time::Duration};
use tokio::task::JoinSet;

fn owner(connection: &str) -> Owner {
    Owner { hop: HopName::new("fwd").unwrap(), connection: ConnectionId::new(connection).unwrap(), generation: 1 }
}
fn iface(netns: &Netns, name: &str) -> Iface {
    Iface { netns: netns.clone(), name: IfName::new(name).unwrap() }
}
fn address(on: &Iface, text: &str) -> Wire {
    Wire::Address { on: on.clone(), address: text.parse().unwrap() }
}
fn route(on: &Iface, prefix: &str) -> Wire {
    Wire::Route { on: on.clone(), prefix: prefix.parse().unwrap(), via: None }
}
fn adds(wires: &Wires) -> Vec<Op> {
    wires.iter().cloned().map(Op::Add).collect()
}
/// A pair with an address at each end and the routes between them.
fn wire(a: &Iface, b: &Iface, number: usize) -> Wires {
    let (x, y) = (format!("10.{}.{}.0/32", number / 250, number % 250), format!("10.{}.{}.1/32", number / 250, number % 250));
    let link = Wire::Link(Link::Veth { a: a.clone(), b: b.clone() });
    Wires::from([link, address(a, &x), address(b, &y), route(a, &y), route(b, &x)])
}

/// As some peers send it: it names the namespace, and nothing more can be done with it.
fn named_only(netns: &Netns) -> Netns {
    use rustix::fs::{Mode, OFlags, open};
    let path = format!("/proc/self/fd/{}", netns.file.as_ref().unwrap().as_raw_fd());
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    Netns { key: netns.key, file: Some(Arc::new(file)) }
}

#[tokio::test]
async fn descriptors_that_only_name_their_namespaces_will_do() {
    let (world, kernel) = Real::new();
    let (a, b) = (named_only(&netns::create().expect(MUST)), named_only(&netns::create().unwrap()));
    let (local, remote) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    let tunnel = Link::Vxlan { at: iface(&a, "tunnel"), local, remote, vni: 7, port: 4789 };
    let mut wires = wire(&iface(&a, "nsm-1"), &iface(&b, "nse-1"), 1);
    wires.insert(Wire::Link(tunnel));
    let owner = owner("named");
    kernel.apply(&owner, &adds(&wires)).await.unwrap();
    assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires);
    kernel.appeared(&iface(&a, "nsm-1")).await.unwrap();
    kernel.apply(&owner, &diff(&Wires::new(), &wires)).await.unwrap();
    assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), Wires::new());
    drop(world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_at_once_leave_nothing_and_no_thread_astray() {
    let home = netns::current().unwrap();
    let (world, kernel) = Real::new();
    let node = world.node.snapshot().unwrap();
    let shared = netns::create().expect(MUST);
    let before = Net::new(&shared).unwrap().snapshot().unwrap();
    let mut all = JoinSet::new();
    for number in 0..100 {
        let (kernel, shared) = (kernel.clone(), shared.clone());
        all.spawn(async move {
            let pod = netns::create().unwrap();
            let wires = wire(&iface(&pod, "nsm-1"), &iface(&shared, &format!("c{number}")), number);
            let owner = owner(&format!("conn-{number}"));
            kernel.apply(&owner, &adds(&wires)).await.unwrap();
            assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires);
            kernel.apply(&owner, &diff(&Wires::new(), &wires)).await.unwrap();
            assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), Wires::new());
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    assert_eq!(Net::new(&shared).unwrap().snapshot().unwrap(), before);
    assert_eq!(world.node.snapshot().unwrap(), node);
    for _ in 0..20 {
        let (here, there) = (tokio::spawn(async { netns::current().unwrap() }), tokio::task::spawn_blocking(|| netns::current().unwrap()));
        assert_eq!((here.await.unwrap(), there.await.unwrap()), (home.clone(), home.clone()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_vanishes_leaves_order() {
    let (_world, kernel) = Real::new();
    let (a, b) = (iface(&netns::create().expect(MUST), "nsm-1"), iface(&netns::create().unwrap(), "nse-1"));
    let (owner, wires) = (owner("vanish"), wire(&a, &b, 1));
    for patience in 0..12 {
        // Given up after ever longer; whatever was begun ends before the next call looks.
        let _ = tokio::time::timeout(Duration::from_micros(patience * 100), kernel.apply(&owner, &adds(&wires))).await;
        let observed = kernel.observe(&owner, &wires).await.unwrap();
        kernel.apply(&owner, &diff(&wires, &observed)).await.unwrap();
        assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires);
        let _ = tokio::time::timeout(Duration::from_micros(patience * 100), kernel.apply(&owner, &diff(&Wires::new(), &wires))).await;
        let observed = kernel.observe(&owner, &wires).await.unwrap();
        kernel.apply(&owner, &diff(&Wires::new(), &observed)).await.unwrap();
    }
    assert_eq!(Net::new(&a.netns).unwrap().links().unwrap().len(), 1);
}

#[tokio::test]
async fn a_link_whose_maker_ended_before_the_tag_is_known_by_its_group() {
    let (_world, kernel) = Real::new();
    let (a, b) = (iface(&netns::create().expect(MUST), "nsm-1"), iface(&netns::create().unwrap(), "nse-1"));
    let (owner, wires) = (owner("untagged"), Wires::from([Wire::Link(Link::Veth { a: a.clone(), b: b.clone() })]));
    kernel.apply(&owner, &adds(&wires)).await.unwrap();
    let net = Net::new(&a.netns).unwrap();
    net.set_alias("nsm-1", "").unwrap();
    net.down("nsm-1").unwrap();
    assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires);
    kernel.apply(&owner, &adds(&wires)).await.unwrap();
    let link = net.link_named("nsm-1").unwrap().unwrap();
    assert!(link.up && link.alias.starts_with("nsm:fwd:untagged:1@"), "{link:?}");
}

#[tokio::test]
async fn ipv6_is_allowed_on_a_wire_where_the_namespace_forbids_it() {
    let (_world, kernel) = Real::new();
    let (a, b) = (iface(&netns::create().expect(MUST), "nsm-1"), iface(&netns::create().unwrap(), "nse-1"));
    for end in [&a, &b] {
        let net = Net::new(&end.netns).unwrap();
        net.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        net.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    }
    let link = Wire::Link(Link::Veth { a: a.clone(), b: b.clone() });
    let v4 = [address(&a, "10.0.0.1/32"), route(&a, "10.0.0.2/32")];
    let v6 = [address(&a, "fd00::1/128"), route(&a, "fd00::2/128"), address(&b, "fd00::2/128"), route(&b, "fd00::1/128")];
    let wires: Wires = [link].into_iter().chain(v4).chain(v6).collect();
    let owner = owner("v6");
    kernel.apply(&owner, &adds(&wires)).await.unwrap();
    assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires);
    // The first may be lost: the kernel joins the multicast group of neighbour discovery in its own time.
    let options = PingOptions { count: 3, ..PingOptions::once("fd00::2".parse().unwrap()) };
    let report = probe::ping(&a.netns, options).await.unwrap();
    assert!(report.received > 0, "{report:?}");
}

/// Two nodes on one cable, a pod on each.
fn two_nodes() -> [(Net, LinuxKernel, Netns); 2] {
    let nodes = [(); 2].map(|()| Net::new(&netns::create().expect(MUST)).unwrap());
    nodes[0].veth("eth", nodes[1].netns(), "eth").unwrap();
    let mut number = 0;
    nodes.map(|node| {
        number += 1;
        node.up("eth").unwrap();
        node.address_add("eth", format!("192.0.2.{number}/24").parse().unwrap()).unwrap();
        let kernel = netns::run_in_blocking(node.netns(), LinuxKernel::new).unwrap().unwrap();
        (node, kernel, netns::create().unwrap())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_packets_between_pods_of_two_nodes() {
    let nodes = two_nodes();
    for (number, (_, kernel, pod)) in nodes.iter().enumerate() {
        let at = iface(pod, "nsm-1");
        let ip = |last: usize| format!("192.0.2.{}", last + 1).parse().unwrap();
        let link = Wire::Link(Link::Vxlan { at: at.clone(), local: ip(number), remote: ip(1 - number), vni: 77, port: 4789 });
        let inner = |last: usize| format!("10.0.0.{}/32", last + 1);
        let wires =
            Wires::from([link, Wire::Mtu { on: at.clone(), mtu: 1446 }, address(&at, &inner(number)), route(&at, &inner(1 - number))]);
        kernel.apply(&owner("tunnel"), &adds(&wires)).await.unwrap();
        assert_eq!(kernel.observe(&owner("tunnel"), &wires).await.unwrap(), wires);
    }
    let [(node, ..), _] = &nodes;
    let options = PingOptions { count: 3, interval: Duration::from_millis(1), ..PingOptions::once("10.0.0.2".parse().unwrap()) };
    let report = probe::ping(&nodes[0].2, options).await.unwrap();
    assert!(report.complete(), "{report:?}");
    assert!(node.links().unwrap().iter().all(|link| link.kind != "vxlan"), "the device is in the pod alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_splice_passes_frames_through() {
    let (_world, kernel) = Real::new();
    let [client, middle, server] = [(); 3].map(|()| netns::create().expect(MUST));
    let (inward, outward) =
        (wire(&iface(&client, "nsm-1"), &iface(&middle, "in"), 1), wire(&iface(&middle, "out"), &iface(&server, "nse-1"), 2));
    let links = |wires: &Wires| wires.iter().filter(|wire| matches!(wire, Wire::Link(_))).cloned().collect::<Wires>();
    kernel.apply(&owner("in"), &adds(&links(&inward))).await.unwrap();
    kernel.apply(&owner("out"), &adds(&links(&outward))).await.unwrap();
    let ends = [(&client, "nsm-1", "10.9.0.1/24"), (&server, "nse-1", "10.9.0.2/24")];
    for (netns, dev, address) in ends {
        Net::new(netns).unwrap().address_add(dev, address.parse().unwrap()).unwrap();
    }
    // Long enough for the kernel to ask a second time who the other is, after a first try in vain.
    let once = || PingOptions { timeout: Duration::from_secs(5), ..PingOptions::once("10.9.0.2".parse().unwrap()) };
    let brief = || PingOptions { timeout: Duration::from_millis(100), ..once() };
    assert_eq!(probe::ping(&client, brief()).await.unwrap().received, 0);
    let splice = Wires::from([Wire::Splice { a: iface(&middle, "in"), b: iface(&middle, "out") }]);
    let passthrough = owner("passthrough");
    kernel.apply(&passthrough, &adds(&splice)).await.unwrap();
    assert!(probe::ping(&client, once()).await.unwrap().complete());
    kernel.apply(&passthrough, &diff(&Wires::new(), &splice)).await.unwrap();
    assert_eq!(probe::ping(&client, brief()).await.unwrap().received, 0);
}

#[tokio::test]
async fn refusals_are_sentences() {
    let (_world, kernel) = Real::new();
    let pod = netns::create().expect(MUST);
    let no_route = Link::Vxlan {
        at: iface(&pod, "t"),
        local: "198.51.100.1".parse().unwrap(),
        remote: "fd00::1".parse().unwrap(),
        vni: 5,
        port: 4789,
    };
    let error = kernel.apply(&owner("x"), &[Op::Add(Wire::Link(no_route))]).await.unwrap_err();
    assert!(error.kind == Kind::Kernel && error.to_string().contains("VXLAN"), "{error}");
    let error = kernel.underlay_mtu("203.0.113.1".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert_eq!(Net::new(&pod).unwrap().links().unwrap().len(), 1, "a refused link leaves nothing");
}

/// Of many that are made at once each carries its first packet: a lost one would cost its sender a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_was_made_carries_its_first_packet() {
    const WIRES: usize = 100;
    let (_world, kernel) = Real::new();
    let shared = netns::create().expect(MUST);
    let mut made = JoinSet::new();
    for number in 0..WIRES {
        let (kernel, near) = (kernel.clone(), netns::create().unwrap());
        let (a, b) = (iface(&near, "nsm-1"), iface(&shared, &format!("nse-{number}")));
        made.spawn(async move {
            kernel.apply(&owner(&format!("first-{number}")), &adds(&wire(&a, &b, number))).await.unwrap();
            let to = format!("10.{}.{}.1", number / 250, number % 250).parse().unwrap();
            let patience = Duration::from_millis(900);
            probe::ping(&near, PingOptions { timeout: patience, ..PingOptions::once(to) }).await.unwrap().received
        });
    }
    assert_eq!(made.join_all().await.into_iter().sum::<u32>() as usize, WIRES, "every first packet was answered");
}

/// A VXLAN packet with one broadcast frame in it.
fn vxlan_packet(vni: u32) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let frame = [[0xff; 6].as_slice(), &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5], &[0; 46]].concat();
    [[8, 0, 0, 0, a, b, c, 0].as_slice(), &frame].concat()
}

/// E-39, T4: a third host that knows address, port and network identifier of a tunnel gets nothing into it.
#[tokio::test]
async fn only_the_other_node_gets_packets_into_a_tunnel() {
    let (world, kernel) = Real::new();
    let node = world.node.netns();
    let hosts: Vec<Net> = ["192.0.2.2", "192.0.2.3"].iter().map(|address| neighbour(&world.node, address)).collect();
    let at = iface(&netns::create().expect(MUST), "nsm-1");
    let tunnel = |vni| {
        let (local, remote) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        Wire::Link(Link::Vxlan { at: iface(&at.netns, &format!("nsm-{vni}")), local, remote, vni, port: 4789 })
    };
    let before = world.node.snapshot().unwrap();
    kernel.apply(&owner("one"), &[Op::Add(tunnel(1))]).await.unwrap();
    kernel.apply(&owner("two"), &[Op::Add(tunnel(2))]).await.unwrap();
    let pod = Net::new(&at.netns).unwrap();
    for host in hosts.iter().rev() {
        // The stranger first: when the other node's packets have arrived, its own would have, too.
        let socket = netns::run_in_blocking(host.netns(), || std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        for vni in [1, 2] {
            socket.send_to(&vxlan_packet(vni), "192.0.2.1:4789").unwrap();
        }
    }
    let received = |name: &str| pod.stats(name).unwrap().rx_packets;
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while received("nsm-1") + received("nsm-2") < 2 && std::time::Instant::now() < until {
        tokio::task::yield_now().await;
    }
    assert_eq!((received("nsm-1"), received("nsm-2")), (1, 1));
    kernel.apply(&owner("one"), &[Op::Del(tunnel(1))]).await.unwrap();
    kernel.apply(&owner("two"), &[Op::Del(tunnel(2))]).await.unwrap();
    assert_eq!(world.node.snapshot().unwrap(), before);
    assert_eq!(filters(node), Vec::<String>::new(), "the filter goes with the last tunnel");
}

/// A host with one cable to the node.
fn neighbour(node: &Net, address: &str) -> Net {
    let host = Net::new(&netns::create().expect(MUST)).unwrap();
    let name = format!("to-{}", address.rsplit('.').next().unwrap());
    node.veth(&name, host.netns(), "up").unwrap();
    host.address_add("up", format!("{address}/32").parse().unwrap()).unwrap();
    node.up(&name).unwrap();
    host.up("up").unwrap();
    node.route_add(format!("{address}/32").parse().unwrap(), None, &name).unwrap();
    host.route_add("192.0.2.1/32".parse().unwrap(), None, "up").unwrap();
    host
}

/// The names of the packet filter tables in a namespace.
fn filters(netns: &Netns) -> Vec<String> {
    Net::new(netns).unwrap().filter_tables().unwrap()
}

/// The kernel's own WireGuard, where there is one; elsewhere this says so, and that nobody pretends there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernels_wireguard_conforms() {
    let (world, _) = Real::new();
    let made = netns::run_in_blocking(world.node.netns(), nsm_linux::KernelWireguard::open).unwrap().unwrap();
    let told = nsm_linux::features().into_iter().any(|feature| feature.name == "WireGuard" && feature.present);
    assert_eq!(made.is_some(), told);
    match made {
        Some(tunnels) => encrypted::conforms(&world.node, Arc::new(tunnels)).await,
        // Not with println!, which is shown for tests that fail only: `./test` counts this line.
        None => writeln!(std::io::stderr(), "not run: the_kernels_wireguard_conforms: this kernel has no WireGuard").unwrap(),
    }
}

/// E-22: a device on the way is smaller than ours, and nobody says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_swallows_large_packets_is_found_out() {
    let (world, _) = Real::new();
    let host = neighbour(&world.node, "192.0.2.2");
    host.set_mtu("up", 1400).unwrap();
    let limit = UnderlayMtu::new(1500);
    let made = netns::run_in_blocking(world.node.netns(), || LinuxKernel::new()?.proving(limit.clone()));
    let (kernel, at) = (made.unwrap().unwrap(), iface(&netns::create().expect(MUST), "nsm-1"));
    let wires = |mtu: u32| {
        let (local, remote) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        Wires::from([Wire::Link(Link::Vxlan { at: at.clone(), local, remote, vni: 7, port: 4789 }), Wire::Mtu { on: at.clone(), mtu }])
    };
    let error = kernel.apply(&owner("large"), &adds(&wires(1446))).await.unwrap_err();
    assert!(error.retryable() && error.object.contains("192.0.2.2") && error.reason.contains("1500 bytes"), "{error}");
    // A device lets room for one VLAN tag pass.
    let small = limit.get();
    assert!((1400..=1404).contains(&small), "{error}");
    kernel.apply(&owner("large"), &diff(&Wires::new(), &wires(1446))).await.unwrap();
    kernel.apply(&owner("large"), &adds(&wires(small - 54))).await.unwrap();
    kernel.apply(&owner("large"), &diff(&Wires::new(), &wires(small - 54))).await.unwrap();
    // A node that answers nothing keeps nobody from making tunnels to it.
    let silent = Wires::from([Wire::Link(Link::Vxlan {
        at: at.clone(),
        local: "192.0.2.1".parse().unwrap(),
        remote: "203.0.113.9".parse().unwrap(),
        vni: 8,
        port: 4789,
    })]);
    kernel.apply(&owner("silent"), &adds(&silent)).await.unwrap();
    kernel.apply(&owner("silent"), &diff(&Wires::new(), &silent)).await.unwrap();
}

/// A lost journal (A11, I2, I12): what a former process made goes when nobody can have a token for it any more, with its policy
/// routes. What a connection knows, what was taken up again, what is this process's own, another hop's, another node's or
/// nobody's, stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_links_go_and_all_others_stay() {
    let (world, kernel) = Real::new();
    let (_other_node, other_kernel) = Real::new();
    let [a, b] = [(); 2].map(|()| netns::create().expect(MUST));
    let before = Net::new(&b).unwrap().snapshot().unwrap();
    let ends = |name: &str| (iface(&a, &format!("a-{name}")), iface(&b, &format!("b-{name}")));
    let of = |connection: &str, hop: &str, generation| Owner { hop: HopName::new(hop).unwrap(), generation, ..owner(connection) };
    let mut wires = std::collections::BTreeMap::new();
    for (number, (connection, hop, generation, kernel)) in [
        ("forgotten", "fwd", 1, &kernel),
        ("known", "fwd", 1, &kernel),
        ("taken-up", "fwd", 1, &kernel),
        ("new", "fwd", 2, &kernel),
        ("others", "fwd-2", 1, &kernel),
        ("elsewhere", "fwd", 1, &other_kernel),
    ]
    .into_iter()
    .enumerate()
    {
        let (x, y) = ends(connection);
        let mut all = wire(&x, &y, number);
        let from = Some(format!("10.0.{number}.0/32").parse().unwrap());
        let traffic = Traffic { ipv6: false, from, protocol: None, dst_ports: None, src_ports: None };
        let routes = [("198.51.100.0/24".parse().unwrap(), None)].into();
        all.insert(Wire::Policy { on: x, rank: 0, traffic, routes });
        kernel.apply(&of(connection, hop, generation), &adds(&all)).await.unwrap();
        wires.insert(connection, all);
    }
    let tunnel = Link::Vxlan {
        at: iface(&a, "tunnel"),
        local: "192.0.2.1".parse().unwrap(),
        remote: "192.0.2.2".parse().unwrap(),
        vni: 9,
        port: 4789,
    };
    let node = world.node.snapshot().unwrap();
    kernel.apply(&of("tunnel", "fwd", 1), &adds(&Wires::from([Wire::Link(tunnel)]))).await.unwrap();
    Net::new(&a).unwrap().bridge("mine").unwrap();
    Net::new(&a).unwrap().set_alias("mine", "nsm:").unwrap();
    kernel.apply(&of("taken-up", "fwd", 2), &adds(&wires["taken-up"])).await.unwrap();
    // The namespaces are those that a process shows; here there is one in each.
    let [x, y] = [&a, &b].map(Sleeper::in_netns);
    let known = Arc::new(|| [ConnectionId::new("known").unwrap()].into());
    let what = Forgotten { hop: (HopName::new("fwd").unwrap(), 2), after: Duration::ZERO, known };
    // Both ends of the pair are links; one takes the other along.
    assert!(kernel.sweep_now(&what).await.unwrap() >= 2);
    let names: Vec<String> = Net::new(&a).unwrap().links().unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "a-known", "a-taken-up", "a-new", "a-others", "a-elsewhere", "mine"]);
    for (connection, all) in wires.iter().filter(|(connection, _)| **connection != "forgotten") {
        let (hop, generation) = (if *connection == "others" { "fwd-2" } else { "fwd" }, 2);
        assert_eq!(kernel.observe(&of(connection, hop, generation), all).await.unwrap(), *all, "{connection}");
    }
    let ledger = Net::new(&a).unwrap().snapshot().unwrap();
    assert!(
        ledger.iter().any(|line| line.contains("10.0.1.0/32")) && !ledger.iter().any(|line| line.contains("10.0.0.0/32")),
        "{ledger:?}"
    );
    assert_eq!(world.node.snapshot().unwrap(), node);
    assert_eq!(kernel.sweep_now(&what).await.unwrap(), 0, "once is enough");
    drop((x, y));
    for (connection, all) in &wires {
        let (hop, generation) = (if *connection == "others" { "fwd-2" } else { "fwd" }, 2);
        kernel.apply(&of(connection, hop, generation), &diff(&Wires::new(), all)).await.unwrap();
    }
    assert_eq!(Net::new(&b).unwrap().snapshot().unwrap(), before);
}

/// The same by the clock, and only one of two processes that both are the hop does it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_process_of_a_name_looks_for_forgotten_links() {
    let (world, kernel) = Real::new();
    let (a, b) = (iface(&netns::create().expect(MUST), "nsm-1"), iface(&netns::create().unwrap(), "nse-1"));
    let _sleeper = Sleeper::in_netns(&a.netns);
    let hop = HopName::new("fwd").unwrap();
    let what = |generation| Forgotten { hop: (hop.clone(), generation), after: Duration::from_secs(1), known: Arc::new(Default::default) };
    // Its sockets are made where its tasks run: in the underlay.
    let in_node = |what: Forgotten| {
        let (kernel, node) = (kernel.clone(), world.node.netns().clone());
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            netns::run_in_blocking(&node, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    tokio::select! { () = kernel.sweep(what) => {}, _ = ended => {} }
                });
            })
            .unwrap();
        });
        (end, thread)
    };
    let (end_elder, elder) = in_node(what(1));
    kernel.apply(&owner("theirs"), &adds(&wire(&a, &b, 1))).await.unwrap();
    let there = || Net::new(&a.netns).unwrap().link_named("nsm-1").unwrap().is_some();
    let marked = || std::fs::read_to_string("/proc/thread-self/net/unix").unwrap().contains("@nsm-hop-");
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !netns::run_in_blocking(world.node.netns(), marked).unwrap() {
        assert!(std::time::Instant::now() < until, "the elder does not mark its place");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (end_younger, younger) = in_node(what(2));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(there(), "its maker lives");
    drop(end_elder);
    elder.join().unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while there() {
        assert!(std::time::Instant::now() < until, "nobody removed it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(end_younger);
    younger.join().unwrap();
}

/// A process that does nothing but be in a namespace.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn in_netns(netns: &Netns) -> Sleeper {
        Sleeper(netns::run_in_blocking(netns, || std::process::Command::new("sleep").arg("60").spawn()).unwrap().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for one disturbance.
async fn told(sentry: &dyn Sentry) -> Disturbance {
    tokio::time::timeout(Duration::from_secs(10), sentry.disturbed()).await.expect("nobody says what has happened")
}

async fn quiet(sentry: &dyn Sentry) {
    while tokio::time::timeout(Duration::from_millis(200), sentry.disturbed()).await.is_ok() {}
}

/// F1, F2, F7: whatever somebody removes from a wire is told, at either end, and made again as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_to_a_wire_is_told_and_mended() {
    let (_world, kernel) = Real::new();
    let (a, b) = (iface(&netns::create().expect(MUST), "nsm-1"), iface(&netns::create().unwrap(), "nse-1"));
    let (client, server) = (Net::new(&a.netns).unwrap(), Net::new(&b.netns).unwrap());
    let mut wires = wire(&a, &b, 1);
    wires.insert(route(&a, "198.51.100.0/24"));
    wires.insert(Wire::Mtu { on: a.clone(), mtu: 1400 });
    wires.insert(Wire::Neighbor { on: a.clone(), ip: "10.0.1.7".parse().unwrap(), mac: MacAddr([2, 0, 0, 0, 0, 7]) });
    let traffic = Traffic { ipv6: false, from: None, protocol: Some(17), dst_ports: None, src_ports: None };
    wires.insert(Wire::Policy { on: a.clone(), rank: 0, traffic, routes: [("203.0.113.0/24".parse().unwrap(), None)].into() });
    wires.insert(address(&a, "fd00::1/128"));
    let owner = owner("guarded");
    kernel.apply(&owner, &adds(&wires)).await.unwrap();
    let sentry = kernel.watch(&wires).await.unwrap().unwrap();
    quiet(sentry.as_ref()).await;
    type Hand<'a> = Box<dyn Fn() + 'a>;
    let hands: [(&str, Hand); 9] = [
        ("address", Box::new(|| client.address_delete("nsm-1", "10.0.1.0/32".parse().unwrap()).unwrap())),
        ("route", Box::new(|| assert_eq!(client.routes_remove("198.51.100.0/24".parse().unwrap(), "nsm-1").unwrap(), 1))),
        ("rules", Box::new(|| assert!(client.rules_remove(1).unwrap() > 0))),
        ("neighbour", Box::new(|| client.neighbor_delete("nsm-1", "10.0.1.7".parse().unwrap()).unwrap())),
        ("down", Box::new(|| client.down("nsm-1").unwrap())),
        ("down at the other end", Box::new(|| server.down("nse-1").unwrap())),
        ("renamed", Box::new(|| client.rename("nsm-1", "mine").unwrap())),
        ("IPv6 off", Box::new(|| client.set_sysctl("net/ipv6/conf/nsm-1/disable_ipv6", "1").unwrap())),
        ("deleted", Box::new(|| client.delete("nsm-1").unwrap())),
    ];
    for (what, hand) in hands {
        hand();
        assert_eq!(told(sentry.as_ref()).await, Disturbance::Changed, "{what}");
        if what == "renamed" {
            let found = kernel.observe(&owner, &wires).await.unwrap();
            assert!(found.iter().any(|wire| matches!(wire, Wire::Link(_))), "found by its second name");
            client.rename("mine", "nsm-1").unwrap();
        }
        quiet(sentry.as_ref()).await;
        let observed = kernel.observe(&owner, &wires).await.unwrap();
        assert!(what == "renamed" || observed != wires, "{what}: nothing is missing");
        kernel.apply(&owner, &diff(&wires, &observed)).await.unwrap();
        assert_eq!(kernel.observe(&owner, &wires).await.unwrap(), wires, "{what}");
        assert!(client.link_named("nsm-1").unwrap().unwrap().up && server.link_named("nse-1").unwrap().unwrap().up, "{what}");
        quiet(sentry.as_ref()).await;
    }
    let report = probe::ping(&a.netns, PingOptions::once("10.0.1.1".parse().unwrap())).await.unwrap();
    assert!(report.complete(), "{report:?}");
}

/// F8: when so much happens that news are lost, that is told.
#[tokio::test]
async fn lost_news_are_a_reason_to_look() {
    let (_world, kernel) = Real::new();
    let (a, b) = (iface(&netns::create().expect(MUST), "nsm-1"), iface(&netns::create().unwrap(), "nse-1"));
    let wires = wire(&a, &b, 1);
    kernel.apply(&owner("loud"), &adds(&wires)).await.unwrap();
    let sentry = kernel.watch(&wires).await.unwrap().unwrap();
    quiet(sentry.as_ref()).await;
    // Nobody reads meanwhile: there is one thread, and it is busy.
    let net = Net::new(&a.netns).unwrap();
    net.bridge("noise").unwrap();
    for number in 0..3000 {
        net.address_add("noise", format!("172.16.{}.{}/32", number / 250, number % 250).parse().unwrap()).unwrap();
    }
    net.address_delete("nsm-1", "10.0.1.0/32".parse().unwrap()).unwrap();
    assert_eq!(told(sentry.as_ref()).await, Disturbance::Changed);
    assert_ne!(kernel.observe(&owner("loud"), &wires).await.unwrap(), wires);
}

/// E-36: a namespace has ended when nobody is in it and no name leads to it, although we have it open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_namespace_is_told() {
    let (_world, kernel) = Real::new();
    let [a, b, nobodys] = [(); 3].map(|()| netns::create().expect(MUST));
    let (x, y) = (iface(&a, "nsm-1"), iface(&b, "nse-1"));
    let wires = wire(&x, &y, 1);
    kernel.apply(&owner("mortal"), &adds(&wires)).await.unwrap();
    let (client, server) = (Sleeper::in_netns(&a), Sleeper::in_netns(&b));
    let sentry = kernel.watch(&wires).await.unwrap().unwrap();
    let other = kernel.watch(&Wires::from([Wire::NoArp { on: iface(&nobodys, "nsm-1") }])).await.unwrap().unwrap();
    let early = tokio::time::timeout(Duration::from_millis(3500), sentry.disturbed()).await;
    assert!(early.is_err(), "both live: {early:?}");
    drop(server);
    assert_eq!(told(sentry.as_ref()).await, Disturbance::Ended);
    let early = tokio::time::timeout(Duration::from_millis(100), other.disturbed()).await;
    assert!(early.is_err(), "who was never seen alive is not told to be dead: {early:?}");
    drop(client);
}

/// F6: namespaces go while wires are made into them, by callers who do not wait. Nothing stays at the other end, and nobody
/// finds himself elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_may_go_at_any_moment() {
    let home = netns::current().unwrap();
    let (world, kernel) = Real::new();
    let shared = netns::create().expect(MUST);
    let (server, node) = (Net::new(&shared).unwrap(), world.node.snapshot().unwrap());
    for number in 0..200 {
        let pod = netns::create().unwrap();
        let wires = wire(&iface(&pod, "nsm-1"), &iface(&shared, &format!("c{number}")), number);
        let patience = Duration::from_micros(number as u64 * 20);
        let _ = tokio::time::timeout(patience, kernel.apply(&owner(&format!("brief-{number}")), &adds(&wires))).await;
        // Nobody holds the pod now but the job, if it is still at work.
    }
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while server.links().unwrap().len() > 1 {
        assert!(std::time::Instant::now() < until, "{:?}", server.links().unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.node.snapshot().unwrap(), node);
    for _ in 0..8 {
        let here = tokio::task::spawn_blocking(|| netns::current().unwrap());
        assert_eq!(here.await.unwrap(), home);
    }
}

//! Namespaces, the topology handle and the probes, against the real kernel. Needs root or a user namespace of its own.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use nsm_linux::{
    net::{Net, Packet},
    netns,
    probe::{self, Fragments, PingOptions},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

const MUST: &str = "this test makes network namespaces: run it as root or under `unshare -Urnm`";

fn two_pods() -> (Net, Net) {
    let (a, b) = (netns::create().expect(MUST), netns::create().expect(MUST));
    let (a, b) = (Net::new(&a).unwrap(), Net::new(&b).unwrap());
    a.veth("left", b.netns(), "right").unwrap();
    for (net, dev, addresses) in [(&a, "left", ["10.0.0.1/24", "fd00::1/64"]), (&b, "right", ["10.0.0.2/24", "fd00::2/64"])] {
        net.loopback_up().unwrap();
        net.up(dev).unwrap();
        for address in addresses {
            net.address_add(dev, address.parse().unwrap()).unwrap();
        }
    }
    (a, b)
}

/// The same, once packets pass: the kernel takes note of a carrier and joins its groups in its own time.
async fn talking_pods() -> (Net, Net) {
    let (a, b) = two_pods();
    for to in ["10.0.0.2", "fd00::2"] {
        let mut tries = 0..50;
        let options = PingOptions { timeout: Duration::from_millis(100), ..PingOptions::once(to.parse().unwrap()) };
        while probe::ping(a.netns(), options.clone()).await.unwrap().received == 0 {
            assert!(tries.next().is_some(), "{to} never answers");
        }
    }
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_over_a_pair_both_families() {
    let (a, _b) = talking_pods().await;
    for to in ["10.0.0.2", "fd00::2"] {
        let options = PingOptions { count: 3, interval: Duration::from_millis(1), ..PingOptions::once(to.parse().unwrap()) };
        let report = probe::ping(a.netns(), options).await.unwrap();
        assert!(report.complete(), "{to}: {report:?}");
        assert!(report.rtt_median.unwrap() <= report.rtt_max.unwrap());
    }
    let lost = PingOptions { timeout: Duration::from_millis(30), ..PingOptions::once("10.0.0.9".parse().unwrap()) };
    assert_eq!(probe::ping(a.netns(), lost).await.unwrap().received, 0);
    let unreachable = probe::ping(a.netns(), PingOptions::once("192.0.2.1".parse().unwrap())).await.unwrap();
    assert!(unreachable.send_error.unwrap().contains("unreachable"));
}

/// E-09: a look at a wire. The answer to any echo of the look counts; what came before the look does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinger_knows_a_live_wire_from_a_dead_one() {
    let (a, b) = talking_pods().await;
    let (pause, patience) = (Duration::from_millis(20), Duration::from_millis(400));
    for (from, to) in [("fd00::1", "fd00::2"), ("10.0.0.1", "10.0.0.2")] {
        let to = to.parse().unwrap();
        let mut pinger = probe::Pinger::open(a.netns(), from.parse().unwrap(), to).await.unwrap();
        // Others ping, too, and their answers come to the same socket.
        let noise = PingOptions { count: 20, interval: pause / 4, timeout: pause, size: 1000, ..PingOptions::once(to) };
        assert!(probe::ping(a.netns(), noise).await.unwrap().received > 0);
        for _ in 0..3 {
            assert!(pinger.answered(pause, patience).await, "{to}");
        }
        b.down("right").unwrap();
        let begun = std::time::Instant::now();
        assert!(!pinger.answered(pause, patience).await, "{to}");
        assert!(begun.elapsed() >= patience && begun.elapsed() < 3 * patience, "{:?}", begun.elapsed());
        b.up("right").unwrap();
        if to.is_ipv6() {
            b.address_add("right", "fd00::2/64".parse().unwrap()).unwrap(); // the kernel took it away with the link
        }
        let mut tries = 0..50;
        while !pinger.answered(pause, patience).await {
            assert!(tries.next().is_some(), "{to} never answers again");
        }
    }
    let nowhere = probe::Pinger::open(a.netns(), "10.9.9.9".parse().unwrap(), "10.0.0.2".parse().unwrap()).await;
    assert!(nowhere.is_err(), "an address that is not there cannot be asked from");
}

#[tokio::test]
async fn a_long_packet_that_may_not_be_split_is_refused() {
    let (a, _b) = talking_pods().await;
    let long = PingOptions { size: 3000, fragments: Fragments::Forbidden, ..PingOptions::once("10.0.0.2".parse().unwrap()) };
    let report = probe::ping(a.netns(), long.clone()).await.unwrap();
    assert!(report.received == 0 && report.send_error.is_some(), "{report:?}");
    let split = probe::ping(a.netns(), PingOptions { fragments: Fragments::Allowed, ..long }).await.unwrap();
    assert!(split.complete(), "{split:?}");
}

#[tokio::test]
async fn udp_and_tcp_reach_their_servers_only_through_the_pair() {
    let (a, b) = talking_pods().await;
    let patience = Duration::from_secs(2);
    let any: SocketAddr = "10.0.0.2:0".parse().unwrap();
    let (udp, tcp) = (probe::udp_echo_server(b.netns(), any).await.unwrap(), probe::tcp_echo_server(b.netns(), any).await.unwrap());
    assert_eq!(probe::udp_exchange(a.netns(), udp.address, b"hello", patience).await.unwrap().unwrap(), b"hello");
    assert_eq!(probe::tcp_get(a.netns(), tcp.address, b"hello", patience).await.unwrap(), b"hello");
    let elsewhere = netns::create().unwrap();
    assert!(probe::tcp_connect(&elsewhere, tcp.address, patience).await.is_err());
}

#[tokio::test]
async fn snapshot_is_a_ledger() {
    let (a, b) = talking_pods().await;
    let before = a.snapshot().unwrap();
    assert_eq!(before, a.snapshot().unwrap());
    a.route_add("192.0.2.0/24".parse().unwrap(), Some("10.0.0.2".parse().unwrap()), "left").unwrap();
    let hop = a.route_get(&Packet::to("192.0.2.7".parse().unwrap())).unwrap();
    assert_eq!((hop.dev.as_str(), hop.via, hop.src), ("left", Some("10.0.0.2".parse().unwrap()), Some("10.0.0.1".parse().unwrap())));
    assert_eq!(a.snapshot().unwrap().len(), before.len() + 1);
    a.route_delete("192.0.2.0/24".parse().unwrap(), Some("10.0.0.2".parse().unwrap()), "left").unwrap();
    assert_eq!(a.snapshot().unwrap(), before);
    assert_eq!(a.route_get(&Packet::to("192.0.2.7".parse().unwrap())).unwrap_err().kind, nsm_api::Kind::NotFound);
    a.delete("left").unwrap();
    assert!(b.links().unwrap().iter().all(|link| link.name == "lo"));
}

#[test]
fn links_tell_what_they_are() {
    let (a, _b) = two_pods();
    a.bridge("br").unwrap();
    a.set_master("left", Some("br")).unwrap();
    a.set_alias("left", "mine").unwrap();
    a.set_mtu("left", 1400).unwrap();
    let links = a.links().unwrap();
    let (left, bridge) = (links.iter().find(|l| l.name == "left").unwrap(), links.iter().find(|l| l.name == "br").unwrap());
    assert_eq!((left.kind.as_str(), left.alias.as_str(), left.mtu, left.up), ("veth", "mine", 1400, true));
    assert!(left.peer.is_some() && left.master == Some(bridge.index) && bridge.kind == "bridge");
    a.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    let read = netns::run_in_blocking(a.netns(), || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).unwrap().unwrap();
    assert_eq!(read.trim(), "1");
    assert!(a.up("missing").unwrap_err().to_string().contains("missing"));
    assert!(a.stats("left").unwrap().tx_packets < 1000);
}

#[test]
fn a_received_descriptor_must_be_a_network_namespace() {
    let open = |path: &str, flags| Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap());
    use rustix::fs::OFlags;
    assert!(netns::from_fd(open("/dev/null", OFlags::RDONLY)).unwrap_err().reason.contains("not a namespace"));
    assert!(netns::from_fd(open("/proc/self/ns/mnt", OFlags::RDONLY)).unwrap_err().reason.contains("another kind"));
    let here = netns::current().unwrap();
    assert_eq!(netns::from_fd(open("/proc/thread-self/ns/net", OFlags::RDONLY)).unwrap(), here);
    let by_path = netns::from_fd(open("/proc/thread-self/ns/net", OFlags::PATH)).unwrap();
    assert_eq!(netns::run_in_blocking(&by_path, || netns::current().unwrap()).unwrap(), here);
}

#[test]
fn named_namespaces_are_those_of_ip_netns() {
    let name = format!("nsm-test-{}", std::process::id());
    let made = netns::create_named(&name).expect(MUST);
    let taken = netns::create_named(&name).unwrap_err();
    let (listed, opened) = (netns::list_named().unwrap().contains(&name), netns::open_named(&name));
    netns::delete_named(&name).unwrap();
    assert_eq!(taken.kind, nsm_api::Kind::Conflict);
    assert!(listed);
    assert_eq!(opened.unwrap(), made);
    netns::delete_named(&name).unwrap();
    assert!(!netns::list_named().unwrap().contains(&name));
    assert!(netns::create_named("../etc").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_stay_at_home() {
    let home = netns::current().unwrap();
    let mut visits = tokio::task::JoinSet::new();
    for _ in 0..50 {
        visits.spawn(async {
            let pod = netns::create().expect(MUST);
            assert_eq!(netns::run_in(&pod, || netns::current().unwrap()).await.unwrap(), pod);
        });
    }
    while let Some(visit) = visits.join_next().await {
        visit.unwrap();
    }
    let mut workers = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        // Visiting threads of other tests come and go; those of the runtimes have a name.
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("tokio-rt")) {
            workers += 1;
            if let Ok(found) = netns::open(path.join("ns/net")) {
                assert_eq!(found, home);
            }
        }
    }
    assert!(workers >= 4, "the runtime has {workers} threads");
}

#[test]
fn features_are_tried_and_told() {
    let found = nsm_linux::features();
    let present = |name: &str| found.iter().find(|feature| feature.name == name).unwrap_or_else(|| panic!("{name} is not told")).present;
    for needed in ["network namespace", "veth", "VXLAN", "bridge", "traffic redirection", "CAP_NET_ADMIN"] {
        assert!(present(needed), "{needed}: {found:#?}");
    }
    assert!(found.iter().all(|feature| feature.present == feature.fix.is_empty()), "{found:#?}");
    println!("{found:#?}");
}

#[tokio::test]
async fn marked_frames_are_seen_where_they_pass_and_nowhere_else() {
    use nsm_linux::sniff::{Sniffer, payload};
    let (a, b) = talking_pods().await;
    a.veth("beside", b.netns(), "beside").unwrap();
    let mark = [0x5a; 16];
    let sniffers = [&a, &b].map(|net| Sniffer::open(net.netns(), mark).unwrap());
    let sender = probe::udp_socket(a.netns(), "10.0.0.1:0".parse().unwrap()).await.unwrap();
    let receiver = probe::udp_socket(b.netns(), "10.0.0.2:0".parse().unwrap()).await.unwrap();
    let mut buffer = [0; 64];
    for number in 0..3 {
        sender.send_to(&payload(&mark, number), receiver.local_addr().unwrap()).await.unwrap();
        let got = tokio::time::timeout(Duration::from_secs(2), receiver.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..got], payload(&mark, number));
    }
    for (net, sniffer, dev) in [(&a, &sniffers[0], "left"), (&b, &sniffers[1], "right")] {
        let index = net.link_named(dev).unwrap().unwrap().index;
        let seen: Vec<_> = sniffer.sightings().unwrap().into_iter().map(|sighting| (sighting.interface, sighting.number)).collect();
        assert_eq!(seen, [(index, 0), (index, 1), (index, 2)], "{dev}");
        assert!(sniffer.sightings().unwrap().is_empty(), "each is told once");
    }
}

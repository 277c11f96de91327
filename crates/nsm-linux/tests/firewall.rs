//! The stateful filter on a passthrough wire, with real packets (T-12, N-26, X-050).
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use nsm_hop::kernel::{IfName, Iface, Kernel, Netns, Op, Owner, Wire, Wires};
use nsm_linux::{
    LinuxKernel,
    firewall::{Count, Direction, Firewall, Guarded, Rule, Rules, Verdict},
    net::Net,
    netns,
    probe::{self, EchoServer, PingOptions},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// Why a test cannot run at all.
const MUST: &str = "this test makes network namespaces: run it as root or under `unshare -Urnm`";
const PATIENCE: Duration = Duration::from_secs(5);
const BRIEF: Duration = Duration::from_millis(300);
const CLIENT: &str = "10.7.0.1";
const SERVICE: &str = "10.7.0.2";

/// A client, a pod with the filter, and a service behind it.
struct Path {
    client: Netns,
    service: Netns,
    middle: Netns,
    kernel: Guarded<LinuxKernel>,
    firewall: Arc<Firewall>,
}

fn iface(netns: &Netns, name: &str) -> Iface {
    Iface { netns: netns.clone(), name: IfName::new(name).unwrap() }
}
fn owner() -> Owner {
    Owner { hop: "firewall".parse().unwrap(), connection: "c".parse().unwrap(), generation: 1 }
}
fn rule(name: &str, verdict: Verdict, protocol: u8, port: u16) -> Rule {
    let to_ports = if port == 0 { vec![] } else { vec![(port, port)] };
    Rule {
        name: name.into(),
        verdict,
        direction: Direction::Out,
        protocols: vec![protocol],
        from: vec![],
        to: vec![],
        from_ports: vec![],
        to_ports,
        icmp_type: None,
        begins: vec![],
    }
}
fn rules(list: &[Rule], otherwise: Verdict) -> Rules {
    Rules { list: list.to_vec(), otherwise }
}

impl Path {
    async fn new(rules: &Rules) -> Path {
        let [client, middle, service] = [(); 3].map(|()| netns::create().expect(MUST));
        let ends = [(&client, "nsm-1", "near", "10.7.0.1/24", "fd07::1/64"), (&service, "nse-1", "far", "10.7.0.2/24", "fd07::2/64")];
        for (end, name, inside, v4, v6) in ends {
            let (end, pod) = (Net::new(end).unwrap(), Net::new(&middle).unwrap());
            end.veth(name, &middle, inside).unwrap();
            end.address_add(name, v4.parse().unwrap()).unwrap();
            end.address_add(name, v6.parse().unwrap()).unwrap();
            end.loopback_up().unwrap();
            end.up(name).unwrap();
            pod.up(inside).unwrap();
        }
        let firewall = Arc::new(Firewall::open(&middle, "test", rules).unwrap());
        let kernel = netns::run_in_blocking(&middle, LinuxKernel::new).unwrap().unwrap();
        let kernel = Guarded::new(kernel, firewall.clone());
        let path = Path { client, service, middle, kernel, firewall };
        path.kernel.apply(&owner(), &[Op::Add(path.splice())]).await.unwrap();
        path
    }
    fn splice(&self) -> Wire {
        Wire::Splice { a: iface(&self.middle, "near"), b: iface(&self.middle, "far") }
    }
    async fn serve(&self, port: u16) -> EchoServer {
        probe::tcp_echo_server(&self.service, SocketAddr::new([0; 4].into(), port)).await.unwrap()
    }
    async fn tcp(&self, port: u16, patience: Duration) -> bool {
        let to = SocketAddr::new(SERVICE.parse().unwrap(), port);
        probe::tcp_get(&self.client, to, b"hello", patience).await.is_ok_and(|answer| answer == b"hello")
    }
    async fn ping(&self, to: &str, patience: Duration) -> bool {
        let options = PingOptions { timeout: patience, ..PingOptions::once(to.parse().unwrap()) };
        probe::ping(&self.client, options).await.unwrap().complete()
    }
    fn count(&self, rule: &str) -> u64 {
        self.firewall.counts().unwrap().into_iter().find(|Count { rule: name, .. }| name == rule).map_or(0, |count| count.packets)
    }
}

#[tokio::test]
async fn what_is_permitted_passes_with_its_answers_and_nothing_else() {
    use Verdict::{Deny, Permit};
    let path = Path::new(&rules(&[rule("web", Permit, 6, 8080), rule("ping", Permit, 1, 0), rule("no http", Deny, 6, 80)], Deny)).await;
    let (_open, _closed) = (path.serve(8080).await, path.serve(80).await);
    assert!(path.ping(SERVICE, PATIENCE).await, "and ARP before it");
    assert!(path.tcp(8080, PATIENCE).await);
    assert!(!path.tcp(80, BRIEF).await);
    assert_eq!((path.count("web"), path.count("ping")), (1, 1), "what begins a flow is counted at its rule");
    assert!(path.count("no http") > 0 && path.count("established") > 4);
    assert!(!path.ping("fd07::2", BRIEF).await, "ICMP is not ICMPv6");
    // What the service begins is not an answer.
    let back = PingOptions { timeout: BRIEF, ..PingOptions::once(CLIENT.parse().unwrap()) };
    assert_eq!(probe::ping(&path.service, back).await.unwrap().received, 0);
    assert!(path.count("default") > 0);
}

/// A fragmented answer, an ICMP error about a flow, and IPv6.
#[tokio::test]
async fn fragments_errors_and_both_families() {
    use Verdict::{Deny, Permit};
    let mut ports = rule("udp", Permit, 17, 0);
    ports.to = vec!["10.7.0.0/30".parse().unwrap(), "fd07::2/128".parse().unwrap()];
    ports.to_ports = vec![(7000, 7009), (9000, 9000)];
    let path = Path::new(&rules(&[ports, rule("ping6", Permit, 58, 0)], Deny)).await;
    let _echo = probe::udp_echo_server(&path.service, SocketAddr::new([0; 16].into(), 7005)).await.unwrap();
    for to in [SERVICE, "fd07::2"] {
        let to = SocketAddr::new(to.parse().unwrap(), 7005);
        let sent = vec![7; 4000];
        assert_eq!(probe::udp_exchange(&path.client, to, &sent, PATIENCE).await.unwrap(), Some(sent), "{to}");
        // Nobody listens there: the refusal is about a flow that was permitted.
        let refused = probe::udp_exchange(&path.client, SocketAddr::new(to.ip(), 9000), b"x", PATIENCE).await;
        assert!(refused.is_err() || refused.unwrap().is_none());
        assert_eq!(probe::udp_exchange(&path.client, SocketAddr::new(to.ip(), 7010), b"x", BRIEF).await.unwrap(), None);
    }
    assert!(path.ping("fd07::2", PATIENCE).await && !path.ping(SERVICE, BRIEF).await);
}

/// Reload under traffic loses nothing, and keeps counters of the rules that stay.
#[tokio::test]
async fn rules_are_replaced_in_one_step() {
    use Verdict::{Deny, Permit};
    let path = Path::new(&rules(&[rule("ping", Permit, 1, 0), rule("web", Permit, 6, 8080)], Deny)).await;
    let _open = path.serve(8080).await;
    assert!(path.tcp(8080, PATIENCE).await);
    let options =
        PingOptions { count: 400, interval: Duration::from_millis(1), timeout: PATIENCE, ..PingOptions::once(SERVICE.parse().unwrap()) };
    let reload = async {
        for turn in 0..40 {
            let mut list = vec![rule("ping", Permit, 1, 0), rule("web", if turn % 2 == 0 { Deny } else { Permit }, 6, 8080)];
            list.extend((0..100).map(|n| rule(&format!("r{turn}-{n}"), Deny, 17, 1000 + n)));
            path.firewall.replace(&rules(&list, Deny)).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (report, ()) = tokio::join!(probe::ping(&path.client, options.clone()), reload);
    assert_eq!(report.unwrap().received, 400);
    // A successor opens the same table, and makes sure of the wire.
    let reopen = async {
        for _ in 0..20 {
            let successor = Arc::new(Firewall::open(&path.middle, "test", &rules(&[rule("ping", Permit, 1, 0)], Deny)).unwrap());
            let kernel = Guarded::new(netns::run_in_blocking(&path.middle, LinuxKernel::new).unwrap().unwrap(), successor);
            let about = Wires::from([path.splice()]);
            assert_eq!(kernel.observe(&owner(), &about).await.unwrap(), about);
            kernel.apply(&owner(), &[Op::Add(path.splice())]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (report, ()) = tokio::join!(probe::ping(&path.client, options), reopen);
    assert_eq!(report.unwrap().received, 400);
    assert_eq!(path.firewall.counts().unwrap().len(), 2 + 1, "former rules are not counted any more");
    path.firewall.replace(&rules(&[rule("web", Deny, 6, 8080)], Permit)).unwrap();
    assert!(!path.tcp(8080, BRIEF).await && path.ping("fd07::2", PATIENCE).await);
}

/// C-10, T-04: a payload is looked at also on flows that have begun.
#[tokio::test]
async fn a_known_attack_does_not_pass() {
    let mut attack = rule("attack", Verdict::Deny, 6, 8080);
    attack.begins = b"GET /evil".to_vec();
    let path = Path::new(&rules(&[attack], Verdict::Permit)).await;
    let _open = path.serve(8080).await;
    let to = SocketAddr::new(SERVICE.parse().unwrap(), 8080);
    assert_eq!(probe::tcp_get(&path.client, to, b"GET /fine", PATIENCE).await.unwrap(), b"GET /fine");
    assert!(probe::tcp_get(&path.client, to, b"GET /evil?x", BRIEF).await.is_err());
    assert!(path.count("attack") > 0);
}

/// The filter outlives the process, comes back with a wire that is made anew, and goes with the last wire.
#[tokio::test]
async fn a_wire_is_never_without_its_filter() {
    let deny = rules(&[rule("none", Verdict::Deny, 6, 1)], Verdict::Deny);
    let path = Path::new(&deny).await;
    let about = Wires::from([path.splice()]);
    assert_eq!(path.kernel.observe(&owner(), &about).await.unwrap(), about);
    assert!(!path.ping(SERVICE, BRIEF).await);
    let successor = Arc::new(Firewall::open(&path.middle, "test", &deny).unwrap());
    let kernel = Guarded::new(netns::run_in_blocking(&path.middle, LinuxKernel::new).unwrap().unwrap(), successor.clone());
    assert_eq!(kernel.observe(&owner(), &about).await.unwrap(), about, "found by a successor");
    // The client's interface goes and comes: what joins it anew is filtered anew.
    Net::new(&path.client).unwrap().delete("nsm-1").unwrap();
    assert_eq!(kernel.observe(&owner(), &about).await.unwrap(), Wires::new());
    let client = Net::new(&path.client).unwrap();
    client.veth("nsm-1", &path.middle, "near").unwrap();
    client.address_add("nsm-1", "10.7.0.1/24".parse().unwrap()).unwrap();
    client.up("nsm-1").unwrap();
    Net::new(&path.middle).unwrap().up("near").unwrap();
    kernel.apply(&owner(), &[Op::Add(path.splice())]).await.unwrap();
    assert!(!path.ping(SERVICE, BRIEF).await);
    successor.replace(&rules(&[], Verdict::Permit)).unwrap();
    assert!(path.ping(SERVICE, PATIENCE).await);
    kernel.apply(&owner(), &[Op::Del(path.splice())]).await.unwrap();
    drop(kernel);
    assert_eq!(Firewall::all_counts(&path.middle).unwrap().into_keys().collect::<Vec<_>>(), ["test"]);
    successor.close_if_unused().unwrap();
    assert_eq!(Net::new(&path.middle).unwrap().filter_tables().unwrap(), Vec::<String>::new());
}

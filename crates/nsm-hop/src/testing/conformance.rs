//! What every [`Kernel`] does. One suite for the fake and the real one, so that a test with the fake means something.
//!
//! Each case makes namespaces of its own. A failure panics with the case's name.

use crate::{diff::diff, kernel::*};
use async_trait::async_trait;
use ipnet::IpNet;
use nsm_api::{ConnectionId, HopName, Kind};
use std::{future::Future, net::IpAddr, time::Duration};

/// How long a case waits for an interface to be noticed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a case needs beside the kernel: namespaces, and somebody else's hands.
#[async_trait]
pub trait World: Send + Sync {
    /// A new, empty namespace that lives until the end of the test.
    async fn netns(&self) -> Netns;
    /// A namespace that has ended.
    async fn gone_netns(&self) -> Netns;
    /// Somebody else makes a link, up.
    async fn foreign_link(&self, at: &Iface);
    /// Somebody else makes a route on the link.
    async fn foreign_route(&self, on: &Iface, prefix: IpNet);
    /// Somebody else renames a link.
    async fn rename(&self, from: &Iface, to: &IfName);
    /// Somebody else deletes a link.
    async fn delete(&self, at: &Iface);
    /// All that exists in a namespace, one line each, in a fixed order.
    async fn ledger(&self, netns: &Netns) -> Vec<String>;
    /// An address of the underlay and the largest packet of the device that carries it.
    async fn underlay(&self) -> (IpAddr, u32);
}

/// Runs every case.
pub async fn conformance(kernel: &dyn Kernel, world: &dyn World) {
    let bench = Bench { kernel, world };
    case("every kind of wire comes and goes", bench.every_kind()).await;
    case("making twice and removing twice is making and removing once", bench.idempotent()).await;
    case("a difference leads to the wanted set", bench.differences()).await;
    case("a tunnel with other settings replaces the old one", bench.tunnel_replaced()).await;
    case("what is ours but different gives way", bench.gives_way()).await;
    case("a name in use is a conflict and stays untouched", bench.name_clash()).await;
    case("a route of somebody else stays", bench.foreign_route()).await;
    case("another owner's objects are invisible and safe", bench.other_owner()).await;
    case("two wires may lead to one address", bench.shared_peer()).await;
    case("policies of two owners do not mix, and go when asked even after their link", bench.policies()).await;
    case("an older generation is adopted, a newer one fences", bench.generations()).await;
    case("a link takes along what is on it", bench.link_takes_all()).await;
    case("a renamed link is still ours", bench.renamed()).await;
    case("a link deleted by hand can be made again", bench.deleted_by_hand()).await;
    case("what needs a link fails without it", bench.needs_link()).await;
    case("splices join the links of others", bench.splice_of_foreign_links()).await;
    case("a namespace that is gone holds nothing", bench.gone_namespace()).await;
    case("what passed over a wire is told to its owner", bench.counters()).await;
    case("an interface is noticed when it appears", bench.appears()).await;
    case("the underlay's size is known", bench.underlay()).await;
}

async fn case(name: &str, work: impl Future<Output = ()>) {
    println!("conformance: {name}");
    work.await;
}

struct Bench<'a> {
    kernel: &'a dyn Kernel,
    world: &'a dyn World,
}

fn owner(connection: &str, generation: u64) -> Owner {
    let hop = HopName::new("forwarder-1").expect("a constant that fits");
    Owner { hop, connection: ConnectionId::new(connection).expect("a constant that fits"), generation }
}
fn iface(netns: &Netns, name: &str) -> Iface {
    Iface { netns: netns.clone(), name: IfName::new(name).expect("a constant that fits") }
}
fn net(text: &str) -> IpNet {
    text.parse().expect("a constant that fits")
}
fn ip(text: &str) -> IpAddr {
    text.parse().expect("a constant that fits")
}
fn veth(a: &Iface, b: &Iface) -> Wire {
    Wire::Link(Link::Veth { a: a.clone(), b: b.clone() })
}
fn address(on: &Iface, text: &str) -> Wire {
    Wire::Address { on: on.clone(), address: net(text) }
}
fn route(on: &Iface, prefix: &str, via: Option<&str>) -> Wire {
    Wire::Route { on: on.clone(), prefix: net(prefix), via: via.map(ip) }
}
fn traffic(protocol: u8, from: Option<&str>) -> Traffic {
    Traffic { ipv6: false, from: from.map(net), protocol: Some(protocol), dst_ports: None, src_ports: None }
}
fn policy(on: &Iface, rank: u16, traffic: Traffic, routes: &[(&str, Option<&str>)]) -> Wire {
    let routes = routes.iter().map(|(prefix, via)| (net(prefix), via.map(ip))).collect();
    Wire::Policy { on: on.clone(), rank, traffic, routes }
}
fn adds(wires: &Wires) -> Vec<Op> {
    wires.iter().cloned().map(Op::Add).collect()
}

impl Bench<'_> {
    async fn observe(&self, owner: &Owner, about: &Wires) -> Wires {
        self.kernel.observe(owner, about).await.expect("observe")
    }
    async fn apply(&self, owner: &Owner, ops: &[Op]) {
        self.kernel.apply(owner, ops).await.expect("apply");
    }
    async fn refused(&self, owner: &Owner, op: Op) -> Kind {
        let error = self.kernel.apply(owner, std::slice::from_ref(&op)).await.expect_err("this must be refused");
        assert!(!error.object.is_empty() && !error.reason.is_empty() && !error.fix.is_empty(), "{error}");
        error.kind
    }
    async fn pair(&self) -> (Iface, Iface) {
        (iface(&self.world.netns().await, "nsm-1"), iface(&self.world.netns().await, "nse-1"))
    }
    async fn both_ledgers(&self, a: &Iface, b: &Iface) -> (Vec<String>, Vec<String>) {
        (self.world.ledger(&a.netns).await, self.world.ledger(&b.netns).await)
    }
    /// Makes all, sees all, removes link by link, sees nothing, leaves nothing.
    async fn whole_life(&self, wires: &Wires, places: [&Netns; 2]) {
        let owner = owner("life", 1);
        let before = (self.world.ledger(places[0]).await, self.world.ledger(places[1]).await);
        assert_eq!(self.observe(&owner, wires).await, Wires::new());
        self.apply(&owner, &adds(wires)).await;
        assert_eq!(self.observe(&owner, wires).await, *wires);
        self.apply(&owner, &diff(&Wires::new(), wires)).await;
        assert_eq!(self.observe(&owner, wires).await, Wires::new());
        assert_eq!((self.world.ledger(places[0]).await, self.world.ledger(places[1]).await), before);
    }

    async fn every_kind(&self) {
        let (a, b) = self.pair().await;
        let mac = "02:00:5e:10:00:01".parse().expect("a constant that fits");
        let wires = Wires::from([
            veth(&a, &b),
            Wire::Mac { on: a.clone(), mac },
            Wire::NoArp { on: b.clone() },
            Wire::Mtu { on: a.clone(), mtu: 1400 },
            Wire::Mtu { on: b.clone(), mtu: 1400 },
            address(&a, "172.16.1.101/32"),
            address(&a, "fd00:1::1/128"),
            address(&b, "172.16.1.100/32"),
            address(&b, "fd00:1::2/128"),
            Wire::Neighbor { on: b.clone(), ip: ip("172.16.1.101"), mac },
            Wire::Neighbor { on: b.clone(), ip: ip("fd00:1::1"), mac },
            route(&a, "172.16.1.100/32", None),
            route(&a, "10.1.0.0/16", Some("172.16.1.100")),
            route(&a, "fd00:1::2/128", None),
            route(&a, "fd00:2::/64", Some("fd00:1::2")),
            route(&b, "172.16.1.101/32", None),
            route(&b, "fd00:1::1/128", None),
            policy(&a, 0, traffic(6, Some("172.16.2.0/24")), &[("172.16.3.0/24", Some("172.16.1.100"))]),
            policy(&a, 1, Traffic { src_ports: Some((5555, 5555)), ..traffic(17, None) }, &[("0.0.0.0/0", None)]),
            policy(&a, 2, Traffic { ipv6: true, dst_ports: Some((6, 7)), ..traffic(17, Some("fd00:2::/64")) }, &[("::/0", None)]),
        ]);
        self.whole_life(&wires, [&a.netns, &b.netns]).await;
        let at = iface(&a.netns, "tunnel");
        let (local, _) = self.world.underlay().await;
        let vxlan = Link::Vxlan { at: at.clone(), local, remote: ip("192.0.2.77"), vni: 0x4e01, port: 4789 };
        let wires = Wires::from([Wire::Link(vxlan), Wire::Mtu { on: at.clone(), mtu: 1300 }, address(&at, "172.16.2.1/32")]);
        self.whole_life(&wires, [&a.netns, &b.netns]).await;
        let (c, d) = (iface(&b.netns, "in"), iface(&b.netns, "out"));
        let (x, y) = (iface(&a.netns, "x"), iface(&a.netns, "y"));
        let wires = Wires::from([veth(&x, &c), veth(&y, &d), Wire::Splice { a: d, b: c }]);
        self.whole_life(&wires, [&a.netns, &b.netns]).await;
    }

    async fn idempotent(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("twice", 1);
        let neighbor = Wire::Neighbor { on: a.clone(), ip: ip("10.0.0.2"), mac: nsm_api::MacAddr([2, 0, 0, 0, 0, 9]) };
        let wires = Wires::from([veth(&a, &b), address(&a, "10.0.0.1/32"), route(&a, "10.0.0.2/32", None), neighbor]);
        self.apply(&owner, &adds(&wires)).await;
        let once = self.both_ledgers(&a, &b).await;
        self.apply(&owner, &adds(&wires)).await;
        assert_eq!(self.both_ledgers(&a, &b).await, once);
        let dels: Vec<Op> = wires.iter().rev().cloned().map(Op::Del).collect();
        self.apply(&owner, &dels).await;
        self.apply(&owner, &dels).await;
        assert_eq!(self.observe(&owner, &wires).await, Wires::new());
    }

    async fn differences(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("diff", 1);
        let mac = |last| Wire::Mac { on: a.clone(), mac: nsm_api::MacAddr([2, 0, 0, 0, 1, last]) };
        let first =
            Wires::from([veth(&a, &b), mac(1), address(&a, "10.0.0.1/32"), route(&a, "10.0.0.2/32", None), route(&a, "10.9.0.0/16", None)]);
        let changed = Wires::from([veth(&a, &b), mac(2), address(&a, "10.0.0.5/32"), route(&a, "10.9.0.0/16", Some("10.0.0.2"))]);
        let other = Wires::from([veth(&a, &iface(&b.netns, "other")), address(&a, "10.0.0.5/32")]);
        for desired in [&first, &changed, &first, &other, &Wires::new()] {
            let about: Wires = first.iter().chain(&changed).chain(&other).cloned().collect();
            let observed = self.observe(&owner, &about).await;
            self.apply(&owner, &diff(desired, &observed)).await;
            let known = |wire: &Wire| !matches!(wire, Wire::Mac { .. }) || desired.contains(wire);
            let observed: Wires = self.observe(&owner, &about).await.into_iter().filter(known).collect();
            assert_eq!(observed, *desired);
        }
    }

    async fn tunnel_replaced(&self) {
        let at = iface(&self.world.netns().await, "tunnel");
        let (owner, (local, _)) = (owner("tunnel", 1), self.world.underlay().await);
        let to = |remote| Wire::Link(Link::Vxlan { at: at.clone(), local, remote: ip(remote), vni: 0x4e02, port: 4789 });
        let (before, after) = (Wires::from([to("192.0.2.7")]), Wires::from([to("192.0.2.8")]));
        self.apply(&owner, &adds(&before)).await;
        let observed = self.observe(&owner, &after).await;
        assert_eq!(observed, before);
        self.apply(&owner, &diff(&after, &observed)).await;
        assert_eq!(self.observe(&owner, &after).await, after);
        let twin = Link::Vxlan { at: iface(&at.netns, "twin"), local, remote: ip("192.0.2.9"), vni: 0x4e02, port: 4789 };
        assert_eq!(self.refused(&owner, Op::Add(Wire::Link(twin))).await, Kind::Conflict);
        self.apply(&owner, &diff(&Wires::new(), &after)).await;
    }

    async fn gives_way(&self) {
        let (a, b) = self.pair().await;
        let (owner, (local, _)) = (owner("way", 1), self.world.underlay().await);
        let at = iface(&a.netns, "tunnel");
        let to = |remote| Wire::Link(Link::Vxlan { at: at.clone(), local, remote: ip(remote), vni: 0x4e03, port: 4789 });
        let other = veth(&a, &iface(&b.netns, "other"));
        let before = self.both_ledgers(&a, &b).await;
        self.apply(&owner, &[Op::Add(veth(&a, &b)), Op::Add(to("192.0.2.7"))]).await;
        self.apply(&owner, &[Op::Add(other.clone()), Op::Add(to("192.0.2.8"))]).await;
        let about = Wires::from([veth(&a, &b), other.clone(), to("192.0.2.7")]);
        assert_eq!(self.observe(&owner, &about).await, Wires::from([other.clone(), to("192.0.2.8")]));
        self.apply(&owner, &[Op::Del(other), Op::Del(to("192.0.2.8"))]).await;
        assert_eq!(self.both_ledgers(&a, &b).await, before);
    }

    async fn name_clash(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("clash", 1);
        for taken in [&a, &b] {
            self.world.foreign_link(taken).await;
            let before = self.both_ledgers(&a, &b).await;
            let error = self.kernel.apply(&owner, &[Op::Add(veth(&a, &b))]).await.expect_err("the name is taken");
            assert_eq!(error.kind, Kind::Conflict);
            assert!(error.object.contains(taken.name.as_str()) && error.fix.contains("another name"), "{error}");
            let about = Wires::from([veth(&a, &b)]);
            assert_eq!(self.observe(&owner, &about).await, Wires::new());
            self.apply(&owner, &[Op::Del(veth(&a, &b))]).await;
            assert_eq!(self.refused(&owner, Op::Add(address(taken, "10.0.0.1/32"))).await, Kind::Conflict);
            assert_eq!(self.both_ledgers(&a, &b).await, before);
            self.world.delete(taken).await;
        }
    }

    async fn foreign_route(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("route", 1);
        self.apply(&owner, &[Op::Add(veth(&a, &b)), Op::Add(address(&a, "10.0.0.1/32"))]).await;
        self.world.foreign_route(&a, net("10.7.0.0/16")).await;
        let before = self.both_ledgers(&a, &b).await;
        let wanted = route(&a, "10.7.0.0/16", Some("10.0.0.2"));
        assert_eq!(self.refused(&owner, Op::Add(wanted.clone())).await, Kind::Conflict);
        assert!(!self.observe(&owner, &Wires::from([wanted.clone()])).await.iter().any(|wire| matches!(wire, Wire::Route { .. })));
        self.apply(&owner, &[Op::Del(wanted), Op::Del(route(&a, "10.7.0.0/16", None))]).await;
        assert_eq!(self.both_ledgers(&a, &b).await, before);
    }

    async fn other_owner(&self) {
        let (a, b) = self.pair().await;
        let (mine, theirs) = (owner("mine", 1), owner("theirs", 1));
        let wires = Wires::from([veth(&a, &b), address(&a, "10.0.0.1/32"), route(&a, "10.0.0.2/32", None)]);
        self.apply(&theirs, &adds(&wires)).await;
        let before = self.both_ledgers(&a, &b).await;
        assert_eq!(self.observe(&mine, &wires).await, Wires::new());
        assert_eq!(self.refused(&mine, Op::Add(veth(&a, &b))).await, Kind::Conflict);
        for wire in &wires {
            self.apply(&mine, &[Op::Del(wire.clone())]).await;
        }
        let second = (iface(&a.netns, "second"), iface(&b.netns, "second"));
        self.apply(&mine, &[Op::Add(veth(&second.0, &second.1))]).await;
        self.apply(&theirs, &[Op::Add(route(&a, "10.8.0.0/16", None))]).await;
        assert_eq!(self.refused(&mine, Op::Add(route(&second.0, "10.8.0.0/16", None))).await, Kind::Conflict);
        self.apply(&theirs, &[Op::Del(route(&a, "10.8.0.0/16", None))]).await;
        self.apply(&mine, &[Op::Del(veth(&second.0, &second.1))]).await;
        assert_eq!(self.both_ledgers(&a, &b).await, before);
        assert_eq!(self.observe(&theirs, &wires).await, wires);
    }

    /// endpoints that know of each other have one address, and their clients a wire to each.
    async fn shared_peer(&self) {
        let (a, b) = self.pair().await;
        let (x, y) = (iface(&a.netns, "x"), iface(&b.netns, "y"));
        let (first, second) = (owner("first", 1), owner("second", 1));
        let before = self.both_ledgers(&a, &b).await;
        let wires = |a: &Iface, b: &Iface| {
            let addresses = [address(a, "10.0.0.1/32"), address(a, "fd00::1/128")];
            let routes = [route(a, "10.0.0.2/32", None), route(a, "fd00::2/128", None)];
            addresses.into_iter().chain(routes).chain([veth(a, b)]).collect::<Wires>()
        };
        let (one, two) = (wires(&a, &b), wires(&x, &y));
        self.apply(&first, &adds(&one)).await;
        let alone = self.both_ledgers(&a, &b).await;
        for _ in 0..2 {
            self.apply(&second, &adds(&two)).await;
        }
        assert_eq!((self.observe(&first, &one).await, self.observe(&second, &two).await), (one.clone(), two.clone()));
        self.apply(&second, &diff(&Wires::new(), &two)).await;
        assert_eq!(self.both_ledgers(&a, &b).await, alone, "the other one keeps what it has");
        self.apply(&second, &adds(&two)).await;
        self.apply(&first, &diff(&Wires::new(), &one)).await;
        assert_eq!(self.observe(&second, &two).await, two, "also when the first one goes");
        self.apply(&second, &diff(&Wires::new(), &two)).await;
        assert_eq!(self.both_ledgers(&a, &b).await, before);
    }

    async fn policies(&self) {
        let (a, b) = self.pair().await;
        let (x, y) = (iface(&a.netns, "x"), iface(&b.netns, "y"));
        let (mine, theirs) = (owner("mine", 1), owner("theirs", 1));
        let before = self.both_ledgers(&a, &b).await;
        let same = |on, to| policy(on, 3, traffic(17, None), &[(to, None)]);
        let (ours, others) = (Wires::from([veth(&a, &b), same(&a, "10.1.0.0/16")]), Wires::from([veth(&x, &y), same(&x, "10.1.0.0/16")]));
        self.apply(&mine, &adds(&ours)).await;
        self.apply(&theirs, &adds(&others)).await;
        let all: Wires = ours.union(&others).cloned().collect();
        assert_eq!(self.observe(&mine, &all).await, ours);
        let changed = Wires::from([veth(&a, &b), same(&a, "10.2.0.0/16")]);
        let observed = self.observe(&mine, &changed).await;
        self.apply(&mine, &diff(&changed, &observed)).await;
        assert_eq!(self.observe(&mine, &changed).await, changed);
        assert_eq!(self.observe(&theirs, &all).await, others);
        // Somebody removes the link: the policy has lost its routes and still goes.
        self.world.delete(&a).await;
        let orphan = self.observe(&mine, &changed).await;
        assert_eq!(orphan.len(), 1, "{orphan:?}");
        self.apply(&mine, &diff(&Wires::new(), &orphan)).await;
        self.apply(&theirs, &diff(&Wires::new(), &others)).await;
        assert_eq!(self.both_ledgers(&a, &b).await, before);
    }

    async fn generations(&self) {
        let (a, b) = self.pair().await;
        let (old, new) = (owner("heir", 1), owner("heir", 2));
        let wires = Wires::from([veth(&a, &b), address(&a, "10.0.0.1/32")]);
        self.apply(&old, &adds(&wires)).await;
        assert_eq!(self.observe(&new, &wires).await, wires);
        // Any change adopts: one on the link as well as one of the link itself.
        self.apply(&new, &adds(&Wires::from([address(&a, "10.0.0.1/32"), address(&b, "10.0.0.2/32")]))).await;
        self.apply(&new, &[Op::Del(address(&b, "10.0.0.2/32"))]).await;
        let before = self.both_ledgers(&a, &b).await;
        let fenced = self.kernel.observe(&old, &wires).await.expect_err("a newer process owns it");
        assert!(fenced.kind == Kind::Conflict && fenced.reason.contains("fenced"), "{fenced}");
        for op in [Op::Del(veth(&a, &b)), Op::Add(veth(&a, &b)), Op::Add(address(&a, "10.0.0.3/32")), Op::Del(address(&a, "10.0.0.1/32"))] {
            assert_eq!(self.refused(&old, op).await, Kind::Conflict);
        }
        assert_eq!(self.both_ledgers(&a, &b).await, before);
        assert_eq!(self.observe(&new, &wires).await, wires);
    }

    async fn link_takes_all(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("all", 1);
        let before = self.both_ledgers(&a, &b).await;
        let on = |on: &Iface, host: &str| [address(on, host), route(on, "10.3.0.0/16", None)];
        let wires: Wires = [veth(&a, &b)].into_iter().chain(on(&a, "10.0.0.1/32")).chain(on(&b, "10.0.0.2/32")).collect();
        self.apply(&owner, &adds(&wires)).await;
        self.apply(&owner, &[Op::Del(veth(&a, &b))]).await;
        assert_eq!(self.observe(&owner, &wires).await, Wires::new());
        assert_eq!(self.both_ledgers(&a, &b).await, before);
    }

    async fn renamed(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("renamed", 1);
        let wires = Wires::from([veth(&a, &b), address(&a, "10.0.0.1/32")]);
        let before = self.both_ledgers(&a, &b).await;
        self.apply(&owner, &adds(&wires)).await;
        self.world.rename(&a, &IfName::new("by-hand").expect("a constant that fits")).await;
        self.world.foreign_link(&a).await;
        assert_eq!(self.observe(&owner, &wires).await, wires);
        self.apply(&owner, &[Op::Add(address(&a, "10.0.0.9/32"))]).await;
        let more: Wires = wires.iter().cloned().chain([address(&a, "10.0.0.9/32")]).collect();
        assert_eq!(self.observe(&owner, &wires).await, more);
        self.apply(&owner, &[Op::Del(veth(&a, &b))]).await;
        self.world.delete(&a).await;
        assert_eq!(self.both_ledgers(&a, &b).await, before);
    }

    async fn deleted_by_hand(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("hand", 1);
        let wires = Wires::from([veth(&a, &b), address(&a, "10.0.0.1/32")]);
        self.apply(&owner, &adds(&wires)).await;
        self.world.delete(&b).await;
        assert_eq!(self.observe(&owner, &wires).await, Wires::new());
        self.apply(&owner, &diff(&wires, &Wires::new())).await;
        assert_eq!(self.observe(&owner, &wires).await, wires);
    }

    async fn needs_link(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("needs", 1);
        for wire in [address(&a, "10.0.0.1/32"), route(&a, "10.0.0.2/32", None), Wire::Splice { a: a.clone(), b: iface(&a.netns, "b") }] {
            assert_eq!(self.refused(&owner, Op::Add(wire.clone())).await, Kind::NotFound);
            self.apply(&owner, &[Op::Del(wire)]).await;
        }
        let order = [Op::Add(veth(&a, &b)), Op::Add(address(&iface(&a.netns, "missing"), "10.0.0.1/32")), Op::Del(veth(&a, &b))];
        assert!(self.kernel.apply(&owner, &order).await.is_err());
        assert_eq!(self.observe(&owner, &Wires::from([veth(&a, &b)])).await, Wires::from([veth(&a, &b)]), "nothing after a failure");
    }

    async fn splice_of_foreign_links(&self) {
        let netns = self.world.netns().await;
        let (a, b) = (iface(&netns, "in"), iface(&netns, "out"));
        self.world.foreign_link(&a).await;
        self.world.foreign_link(&b).await;
        let before = self.world.ledger(&netns).await;
        let (mine, theirs) = (owner("splice", 1), owner("other", 1));
        let wires = Wires::from([Wire::Splice { a: b.clone(), b: a.clone() }]);
        self.apply(&mine, &adds(&wires)).await;
        let there = self.world.ledger(&netns).await;
        self.apply(&mine, &adds(&wires)).await;
        assert_eq!(self.world.ledger(&netns).await, there);
        assert_eq!(self.observe(&mine, &wires).await, wires);
        assert_eq!(self.observe(&theirs, &wires).await, Wires::new());
        assert_eq!(self.refused(&theirs, Op::Add(Wire::Splice { a: a.clone(), b: b.clone() })).await, Kind::Conflict);
        let dels = diff(&Wires::new(), &wires);
        self.apply(&theirs, &dels).await;
        assert_eq!(self.observe(&mine, &wires).await, wires);
        self.apply(&mine, &dels).await;
        self.apply(&mine, &dels).await;
        assert_eq!(self.world.ledger(&netns).await, before);
    }

    async fn gone_namespace(&self) {
        let (gone, here) = (self.world.gone_netns().await, self.world.netns().await);
        let (a, b) = (iface(&gone, "nsm-1"), iface(&here, "nse-1"));
        let owner = owner("gone", 1);
        let wires = Wires::from([veth(&a, &b), address(&a, "10.0.0.1/32")]);
        let before = self.world.ledger(&here).await;
        assert_eq!(self.observe(&owner, &wires).await, Wires::new());
        assert_eq!(self.refused(&owner, Op::Add(veth(&a, &b))).await, Kind::NotFound);
        assert_eq!(self.refused(&owner, Op::Add(veth(&b, &a))).await, Kind::NotFound);
        let dels: Vec<Op> = wires.iter().rev().cloned().map(Op::Del).collect();
        self.apply(&owner, &dels).await;
        assert_eq!(self.world.ledger(&here).await, before);
    }

    async fn counters(&self) {
        let (a, b) = self.pair().await;
        let (owner, stranger) = (owner("count", 1), owner("other", 1));
        self.apply(&owner, &[Op::Add(veth(&a, &b))]).await;
        let read = self.kernel.counters(&owner, &[a.clone(), iface(&a.netns, "missing"), b.clone()]).await.expect("counters");
        assert!(matches!(read[..], [Some(_), None, Some(_)]), "{read:?}");
        let foreign = self.kernel.counters(&stranger, std::slice::from_ref(&a)).await.expect("counters");
        assert_eq!(foreign, [None]);
        self.apply(&owner, &[Op::Del(veth(&a, &b))]).await;
    }

    async fn appears(&self) {
        let (a, b) = self.pair().await;
        let owner = owner("appears", 1);
        let waited = tokio::time::timeout(PATIENCE, async {
            let make = async {
                tokio::task::yield_now().await;
                self.apply(&owner, &[Op::Add(veth(&a, &b))]).await;
            };
            tokio::join!(self.kernel.appeared(&b), make).0
        });
        waited.await.expect("it was noticed in time").expect("it was noticed");
        tokio::time::timeout(PATIENCE, self.kernel.appeared(&a)).await.expect("it is there").expect("it is there");
        let never = iface(&a.netns, "never");
        assert!(tokio::time::timeout(Duration::from_millis(20), self.kernel.appeared(&never)).await.is_err());
    }

    async fn underlay(&self) {
        let (address, mtu) = self.world.underlay().await;
        assert_eq!(self.kernel.underlay_mtu(address).await.expect("it is there"), mtu);
        let missing = self.kernel.underlay_mtu(ip("203.0.113.250")).await.expect_err("no device carries it");
        assert!(missing.kind == Kind::NotFound && missing.object.contains("203.0.113.250"), "{missing}");
    }
}

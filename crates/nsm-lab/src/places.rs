//! The namespaces of a lab: made, joined by cables, and each with a ledger of what it held before any process ran.

use crate::names::NameServer;
use crate::plan::{BRIDGE, CableEnd, FABRIC, Plan};
use crate::relay::{Link, Relay};
use crate::schema::Lab;
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::Netns;
use nsm_linux::{net::Net, netns, probe, tap};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
/// Every object of a namespace, one line each.
pub(crate) type Ledger = BTreeSet<String>;

/// One namespace of a lab.
pub(crate) struct Place {
    /// To enter it.
    pub(crate) netns: Netns,
    /// To look at it.
    pub(crate) net: Arc<Net>,
    /// What it held when it was built.
    pub(crate) before: Ledger,
}

/// All namespaces of a lab by their full names. Dropping them deletes nothing; [`Places::delete`] does.
#[derive(Default)]
pub(crate) struct Places {
    all: BTreeMap<String, Place>,
    /// Carries what passes between the nodes, where their links can be faulty.
    pub(crate) relay: Option<Relay>,
    servers: Vec<probe::EchoServer>,
    name_servers: Vec<NameServer>,
}

impl Places {
    /// Makes one namespace.
    pub(crate) fn make(&mut self, name: &str) -> Result<()> {
        let netns = netns::create_named(name).map_err(|error| {
            let fix = if error.kind == Kind::Conflict { format!("remove it: ip netns del {name}") } else { error.fix.clone() };
            Error { fix, ..error }
        })?;
        let net = Net::new(&netns).inspect_err(|_| drop(netns::delete_named(name)))?;
        net.loopback_up().inspect_err(|_| drop(netns::delete_named(name)))?;
        self.all.insert(name.to_owned(), Place { netns, net: Arc::new(net), before: Ledger::new() });
        Ok(())
    }
    /// Another namespace in the place of one whose pod has died.
    pub(crate) fn renew(&mut self, name: &str) -> Result<()> {
        self.make(name)?;
        let place = self.all.get_mut(name).ok_or_else(|| Error::internal(format!("namespace {name:?}"), "was just made and is gone"))?;
        place.before = ledger(&place.net)?;
        Ok(())
    }
    /// The namespace of this full name.
    pub(crate) fn get(&self, name: &str) -> Result<&Place> {
        self.all.get(name).ok_or_else(|| Error::internal(format!("namespace {name:?}"), "does not exist in this lab"))
    }
    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.all.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// Joins the namespaces as the plan says and notes what they hold then.
    pub(crate) async fn furnish(&mut self, lab: &Lab, plan: &Plan) -> Result<()> {
        self.bridge(lab, plan)?;
        let mut links = Vec::new();
        for cable in &plan.cables {
            match &cable.faulty {
                None => {
                    let far = &self.get(&cable.b.netns)?.netns;
                    self.get(&cable.a.netns)?.net.veth(&cable.a.interface, far, &cable.b.interface)?;
                }
                Some(node) => {
                    let open = |end: &CableEnd| tap::open(&self.get(&end.netns)?.netns, &end.interface);
                    links.push(Link { node: node.clone(), near: open(&cable.b)?, far: open(&cable.a)? });
                }
            }
            if cable.a.address.is_none() {
                self.get(&cable.a.netns)?.net.set_master(&cable.a.interface, Some(BRIDGE))?;
            }
            self.end(&cable.a, cable.mtu)?;
            self.end(&cable.b, cable.mtu)?;
        }
        self.relay = lab.link_seed.map(|seed| Relay::start(seed, links)).transpose()?;
        self.hosts(lab).await?;
        for (pod, names) in lab.name_servers() {
            let server = NameServer::start(&self.get(&lab.namespace(pod))?.netns, names).await?;
            self.name_servers.push(server);
        }
        for place in self.all.values_mut() {
            place.before = ledger(&place.net)?;
        }
        Ok(())
    }
    fn bridge(&self, lab: &Lab, plan: &Plan) -> Result<()> {
        let fabric = &self.get(&lab.namespace(FABRIC))?.net;
        fabric.bridge(BRIDGE)?;
        fabric.up(BRIDGE)?;
        fabric.address_add(BRIDGE, plan.bridge)
    }
    fn end(&self, end: &CableEnd, mtu: Option<u32>) -> Result<()> {
        let net = &self.get(&end.netns)?.net;
        mtu.map_or(Ok(()), |mtu| net.set_mtu(&end.interface, mtu))?;
        net.up(&end.interface)?;
        end.address.map_or(Ok(()), |address| net.address_add(&end.interface, address))
    }
    /// Routes and servers of the hosts; the pods before them forward.
    async fn hosts(&mut self, lab: &Lab) -> Result<()> {
        for host in &lab.hosts {
            let net = &self.get(&lab.namespace(&host.name))?.net;
            for route in &host.routes {
                net.route_add(route.to, Some(route.via), &host.interface)?;
            }
            if let Some(address) = host.pod_address {
                let switch = if address.addr().is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
                self.get(&lab.namespace(&host.pod))?.net.set_sysctl(switch, "1")?;
            }
            for port in &host.listen {
                let at = SocketAddr::new(host.address.addr(), *port);
                let server = probe::tcp_echo_server(&self.get(&lab.namespace(&host.name))?.netns, at).await?;
                self.servers.push(server);
            }
        }
        Ok(())
    }

    /// What is there now and was not before, or the other way round, in any namespace.
    pub(crate) fn changes(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (name, place) in self.iter() {
            match ledger(&place.net) {
                Ok(now) => all.extend(difference(&place.before, &now).into_iter().map(|line| format!("{name}: {line}"))),
                Err(error) => all.push(format!("{name}: {error}")),
            }
        }
        all
    }

    /// What every namespace holds beyond its beginnings.
    pub(crate) fn additions(&self) -> Result<BTreeSet<(String, String)>> {
        let mut all = BTreeSet::new();
        for (name, place) in self.iter() {
            let now = ledger(&place.net)?;
            all.extend(now.difference(&place.before).map(|line| (name.to_owned(), line.clone())));
        }
        Ok(all)
    }

    /// Ends the servers and deletes every namespace. Says what could not be deleted.
    pub(crate) fn delete(&mut self) -> Vec<String> {
        self.servers.clear();
        self.name_servers.clear();
        self.relay = None;
        let mut problems = Vec::new();
        for name in std::mem::take(&mut self.all).into_keys() {
            if let Err(error) = netns::delete_named(&name) {
                problems.push(format!("namespace {name}: {error}"));
            }
        }
        problems
    }
}

/// Everything in a namespace, without what the kernel makes by itself at its own time: IPv6 link-local addresses and
/// multicast routes.
pub(crate) fn ledger(net: &Net) -> Result<Ledger> {
    let own = |line: &String| line.contains(" fe80:") || line.contains(" ff00::/8");
    Ok(net.snapshot()?.into_iter().filter(|line| !own(line)).collect())
}

/// Lines of only one of two ledgers, in words.
pub(crate) fn difference(before: &Ledger, now: &Ledger) -> Vec<String> {
    let gone = before.difference(now).map(|line| format!("gone: {line}"));
    let new = now.difference(before).map(|line| format!("new: {line}"));
    gone.chain(new).collect()
}

/// Addresses that are not the kernel's own doing.
pub(crate) fn is_own_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_both_ways() {
        let before = Ledger::from(["a".to_owned(), "b".to_owned()]);
        let now = Ledger::from(["b".to_owned(), "c".to_owned()]);
        assert_eq!(difference(&before, &now), ["gone: a", "new: c"]);
        assert!(difference(&now, &now).is_empty());
    }

    #[test]
    fn link_local_addresses_are_the_kernels_own() {
        assert!(!is_own_address("fe80::1".parse().unwrap()));
        assert!(is_own_address("172.16.1.100".parse().unwrap()));
        assert!(is_own_address("2001:db8::1".parse().unwrap()));
    }

    const LAB: &str = "
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: NAME}
spec:
  nodes: [{name: a}, {name: b}]
  endpoints: [{name: gateway, node: a, services: [x], cidr: [10.9.0.0/31]}]
  hosts:
  - {name: server, pod: gateway, address: 172.31.0.10/16, podInterface: corp, podAddress: 172.31.0.1/16, listen: [8080],
     routes: [{to: 10.9.0.0/16, via: 172.31.0.1}]}
";

    /// Tries of a second.
    const MAX_TRIES: u32 = 10;

    /// Needs the right to make namespaces; without it this test fails.
    #[tokio::test]
    async fn places_are_made_joined_remembered_and_deleted() {
        let text = LAB.replace("NAME", &format!("unit-{}", std::process::id()));
        let (lab, _) = crate::read(&text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let plan = crate::plan::plan(&lab, &crate::plan::Files::new("/nowhere"));
        let mut places = Places::default();
        for name in &plan.namespaces {
            places.make(name).expect("this test needs root, to make network namespaces");
        }
        assert_eq!(places.make(&plan.namespaces[0]).unwrap_err().kind, Kind::Conflict, "a name that is taken is refused");
        places.furnish(&lab, &plan).await.unwrap();
        assert!(places.changes().is_empty());

        let answered = |from: &str, to: &str| {
            let (netns, to) = (places.get(&lab.namespace(from)).unwrap().netns.clone(), to.parse().unwrap());
            // The kernel takes a moment to let a bridge's new port carry packets.
            async move {
                for _ in 0..MAX_TRIES {
                    if probe::ping(&netns, probe::PingOptions::once(to)).await.unwrap().complete() {
                        return true;
                    }
                }
                false
            }
        };
        assert!(answered("a", "10.231.0.12").await, "nodes reach each other over the fabric");
        assert!(answered("gateway", "172.31.0.10").await, "a pod reaches its host");
        let gateway = places.get(&lab.namespace("gateway")).unwrap();
        let greeting = probe::tcp_get(&gateway.netns, "172.31.0.10:8080".parse().unwrap(), b"hi", std::time::Duration::from_secs(1)).await;
        assert_eq!(greeting.unwrap(), b"hi");

        gateway.net.address_add("corp", "10.9.9.9/32".parse().unwrap()).unwrap();
        assert!(places.changes().iter().any(|line| line.contains("new: address 10.9.9.9/32")), "{:?}", places.changes());
        assert!(!places.additions().unwrap().is_empty());
        assert!(places.delete().is_empty());
        let left = netns::list_named().unwrap();
        assert!(plan.namespaces.iter().all(|name| !left.contains(name)), "{left:?}");
    }
}

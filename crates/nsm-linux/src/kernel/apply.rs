//! Changes in order. What concerns one namespace travels in one send, as far as order allows.
//!
//! When one of several changes in one send is refused, those behind it in the same send may have happened; the caller
//! compares with what is there before the next attempt anyway.

use super::{
    Inner, ROUTE_PROTOCOL,
    job::{Job, describe, living, name_taken},
    links, policy, splice,
};
use crate::{
    error::refused,
    inet::{self, RouteFilter},
    link::{self, Link, link_fixed},
    nl::{Message, Refusal},
    uapi::*,
};
use ipnet::IpNet;
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::{Iface, Netns, Op, Wire};
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Applies changes in order; the error is that of the first which failed.
pub(super) fn apply(inner: &Inner, job: Job, ops: &[Op]) -> Result<()> {
    let mut apply = Apply { inner, job, known: BTreeMap::new(), waiting: BTreeMap::new(), doomed: BTreeSet::new(), ended: vec![] };
    for op in ops {
        if let Err(error) = apply.one(op) {
            apply.flush()?; // what waits comes before this one
            return Err(error);
        }
    }
    apply.flush()
}

struct Apply<'a, 'b> {
    inner: &'a Inner,
    job: Job<'b>,
    /// The owner's interfaces that were made or looked up.
    known: BTreeMap<Iface, Link>,
    /// Changes not yet sent, by namespace.
    waiting: BTreeMap<Netns, Vec<(Change, Message)>>,
    /// Namespaces with links that are out of use and not yet deleted.
    doomed: BTreeSet<Netns>,
    /// Tunnels whose makers have not yet heard of their end.
    ended: Vec<nsm_hop::kernel::Link>,
}

/// One change on a link, kept beside its message to make sense of a refusal.
struct Change {
    op: Op,
    index: u32,
}

impl Apply<'_, '_> {
    fn one(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Del(Wire::Link(link)) => {
                self.send()?;
                self.forget(&link.ifaces());
                let places = links::remove(self.inner, &mut self.job, link)?;
                self.doomed.extend(places);
                self.ended.push(link.clone());
                Ok(())
            }
            Op::Add(Wire::Link(link)) => {
                self.flush()?;
                self.forget(&link.ifaces());
                let ends = links::add(self.inner, &mut self.job, link)?;
                self.known.extend(ends);
                Ok(())
            }
            Op::Add(Wire::Splice { a, b }) => {
                self.flush()?;
                splice::add(&mut self.job, a, b)
            }
            Op::Del(Wire::Splice { a, b }) => {
                self.flush()?;
                splice::remove(&mut self.job, a, b)
            }
            Op::Add(Wire::Policy { on, traffic, routes, .. }) => {
                self.flush()?; // its routes may need addresses that wait
                let index = self.index(on, None)?;
                let Some(index) = index else { return Err(self.why_not(on)) };
                policy::add(self.inner, &mut self.job, index, &policy::Policy { on, traffic, routes })
            }
            Op::Del(Wire::Policy { on, traffic, routes, .. }) => {
                self.send()?;
                let index = self.index(on, None)?;
                policy::remove(&mut self.job, index, &policy::Policy { on, traffic, routes })
            }
            Op::Add(wire) | Op::Del(wire) => wire.needs().into_iter().try_for_each(|on| self.on_link(op, wire, on)),
        }
    }
    fn forget(&mut self, ifaces: &[&Iface]) {
        self.known.retain(|iface, _| !ifaces.contains(&iface));
    }
    fn on_link(&mut self, op: &Op, wire: &Wire, on: &Iface) -> Result<()> {
        let adding = matches!(op, Op::Add(_));
        let Some(index) = self.index(on, Some(wire))? else {
            return if adding { Err(self.why_not(on)) } else { Ok(()) };
        };
        // A device without link header has no address, and needs none.
        let linked = !matches!(wire, Wire::Mac { .. }) || self.known.get(on).is_none_or(|link| link.kind != link::WIREGUARD);
        if let Some(message) = message(wire, index, adding).filter(|_| linked) {
            self.waiting.entry(on.netns.clone()).or_default().push((Change { op: op.clone(), index }, message));
        }
        Ok(())
    }
    /// The index of the owner's interface, made ready for the object.
    fn index(&mut self, on: &Iface, wire: Option<&Wire>) -> Result<Option<u32>> {
        if !self.known.contains_key(on) {
            let Some(found) = self.job.find(on)? else { return Ok(None) };
            links::adopt(&mut self.job, on, &found)?;
            self.known.insert(on.clone(), found.link);
        }
        let Some(link) = self.known.get_mut(on) else { return Ok(None) };
        let wants_ipv6 = matches!(wire, Some(Wire::Address { address: IpNet::V6(_), .. }));
        if wants_ipv6 && std::mem::take(&mut link.ipv6_disabled) {
            enable_ipv6(&self.job, on, &link.name)?;
        }
        Ok(Some(link.index))
    }
    fn why_not(&mut self, on: &Iface) -> Error {
        let there = living(&on.netns).map(|_| ()).and_then(|()| self.job.named(on));
        match there {
            Err(error) => error,
            Ok(Some(_)) => name_taken(on),
            Ok(None) => Error::new(Kind::NotFound, describe(on), "there is none", "make the link first"),
        }
    }

    /// Sends what waits and deletes what is doomed.
    fn flush(&mut self) -> Result<()> {
        self.send()?;
        let doomed = std::mem::take(&mut self.doomed);
        links::reap(self.inner, &mut self.job, &doomed)?;
        self.ended.drain(..).for_each(|link| links::forget(self.inner, &link));
        Ok(())
    }
    fn send(&mut self) -> Result<()> {
        for (netns, waiting) in std::mem::take(&mut self.waiting) {
            let (changes, messages): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            let answers = self.job.socket(&netns)?.change(messages);
            for (change, answer) in changes.iter().zip(answers) {
                answer.or_else(|refusal| self.excuse(&netns, change, refusal))?;
            }
        }
        Ok(())
    }
    /// Making what is there and removing what is not are successes.
    fn excuse(&mut self, netns: &Netns, change: &Change, refusal: Refusal) -> Result<()> {
        const ABSENT: [Errno; 5] = [Errno::SRCH, Errno::NOENT, Errno::NODEV, Errno::ADDRNOTAVAIL, Errno::NXIO];
        match &change.op {
            Op::Del(_) if ABSENT.contains(&refusal.errno) => Ok(()),
            Op::Add(Wire::Address { .. }) if refusal.errno == Errno::EXIST => Ok(()),
            Op::Add(Wire::Route { on, prefix, via }) if refusal.errno == Errno::EXIST => {
                if self.route_is_there(netns, change.index, prefix, *via)? {
                    Ok(())
                } else if via.is_none() && self.is_peer_elsewhere(netns, prefix)? {
                    let beside = inet::route_beside(ROUTE_PROTOCOL, *prefix, change.index);
                    let made = self.job.socket(netns)?.ask(beside).map(|_| ());
                    made.map_err(|refusal| refused(format!("route {prefix}"), "make it beside another", refusal))
                } else {
                    Err(route_taken(on, prefix))
                }
            }
            Op::Add(wire) => Err(refused(object(wire), "make it", refusal)),
            Op::Del(wire) => Err(refused(object(wire), "remove it", refusal)),
        }
    }
    /// The prefix is one address, and all that lead there are wires of the mesh: their endpoints share it knowingly.
    fn is_peer_elsewhere(&mut self, netns: &Netns, prefix: &IpNet) -> Result<bool> {
        let failed = |refusal: Refusal| refused(format!("route {prefix}"), "look for it", refusal);
        let all = inet::routes(self.job.socket(netns)?, RouteFilter { table: RT_TABLE_MAIN, ..RouteFilter::default() }).map_err(failed)?;
        let mut there = all.iter().filter(|route| route.prefix == prefix.trunc());
        Ok(prefix.prefix_len() == prefix.max_prefix_len() && there.all(|route| route.protocol == ROUTE_PROTOCOL && route.via.is_none()))
    }
    fn route_is_there(&mut self, netns: &Netns, index: u32, prefix: &IpNet, via: Option<IpAddr>) -> Result<bool> {
        let failed = |refusal: Refusal| refused(format!("route {prefix}"), "look for it", refusal);
        let there = inet::routes(self.job.socket(netns)?, RouteFilter { index, table: RT_TABLE_MAIN, protocol: 0 }).map_err(failed)?;
        let same = |route: &inet::Route| {
            (route.prefix, route.via) == (prefix.trunc(), via) && [ROUTE_PROTOCOL, RTPROT_KERNEL].contains(&route.protocol)
        };
        Ok(there.iter().any(same))
    }
}

/// Through the parameter file, as netlink has no word for it; `name` is the present one.
fn enable_ipv6(job: &Job, on: &Iface, name: &str) -> Result<()> {
    job.enter(&on.netns)?;
    let written = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
    written.map_err(|error| refused(describe(on), "allow IPv6 on it", Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// The netlink of one object on a link; nothing where removing means nothing.
fn message(wire: &Wire, index: u32, adding: bool) -> Option<Message> {
    let pick = |add, remove| if adding { add } else { remove };
    match wire {
        Wire::Mac { mac, .. } => adding.then(|| Message::new(RTM_SETLINK, 0, &link_fixed(index, 0, 0)).bytes(IFLA_ADDRESS, &mac.0)),
        Wire::NoArp { .. } => adding.then(|| Message::new(RTM_SETLINK, 0, &link_fixed(index, IFF_NOARP, IFF_NOARP))),
        Wire::Mtu { mtu, .. } => adding.then(|| Message::new(RTM_SETLINK, 0, &link_fixed(index, 0, 0)).u32(IFLA_MTU, *mtu)),
        Wire::Address { address, .. } => Some(inet::address_message(pick(RTM_NEWADDR, RTM_DELADDR), index, *address)),
        Wire::Neighbor { ip, mac, .. } => {
            Some(if adding { inet::neighbor_add(index, *ip, *mac) } else { inet::neighbor_delete(index, *ip) })
        }
        Wire::Route { prefix, via, .. } => {
            Some(inet::route_message(pick(RTM_NEWROUTE, RTM_DELROUTE), ROUTE_PROTOCOL, *prefix, *via, index))
        }
        Wire::Link(_) | Wire::Splice { .. } | Wire::Policy { .. } => None,
    }
}

fn route_taken(on: &Iface, prefix: &IpNet) -> Error {
    let object = format!("route {prefix} in network namespace {}", on.netns.key);
    Error::new(Kind::Conflict, object, "there is one of somebody else", "remove it or ask for another prefix")
}

fn object(wire: &Wire) -> String {
    match wire {
        Wire::Mac { on, mac } => format!("hardware address {mac} on {}", describe(on)),
        Wire::NoArp { on } => format!("resolution of neighbours on {}", describe(on)),
        Wire::Mtu { on, mtu } => format!("MTU {mtu} on {}", describe(on)),
        Wire::Address { on, address } => format!("address {address} on {}", describe(on)),
        Wire::Neighbor { on, ip, .. } => format!("neighbour {ip} on {}", describe(on)),
        Wire::Route { on, prefix, .. } => format!("route {prefix} on {}", describe(on)),
        Wire::Link(link) => link.ifaces().into_iter().map(describe).collect::<Vec<_>>().join(" and "),
        Wire::Policy { on, traffic, routes, .. } => policy::object(&policy::Policy { on, traffic, routes }),
        Wire::Splice { a, b } => format!("splice of {} and {}", describe(a), describe(b)),
    }
}

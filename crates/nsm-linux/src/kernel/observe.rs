//! What of an owner exists. Costs a few requests per interface, however much else the namespace holds.

use super::{
    Inner, ROUTE_PROTOCOL,
    job::{Found, Job, describe},
    policy, splice,
};
use crate::{
    error::refused,
    inet::{self, RouteFilter},
    link,
    nl::Refusal,
    tunnels::TunnelSettings,
    uapi::*,
};
use nsm_api::Result;
use nsm_hop::kernel::{Counters, Iface, Link, PublicKey, Wire, Wires};
use std::collections::{BTreeMap, BTreeSet};

/// Everything of the job's owner at the places that `about` names.
pub(super) fn observe(inner: &Inner, job: &mut Job, about: &Wires) -> Result<Wires> {
    let places = places(about);
    let mut found = BTreeMap::new();
    for place in &places {
        if let Some(ours) = job.find(place)? {
            found.insert(place.clone(), ours);
        }
    }
    let mut wires = splice::observe(job, &places, about)?;
    for (on, ours) in found.iter().filter(|(_, ours)| !ours.doomed) {
        // On a link that is down nothing works, and some of it the kernel has removed without a word.
        if ours.link.up() {
            wires.extend(on_link(job, on, ours, about)?);
        }
        wires.extend(tunnel(on, ours));
        wires.extend(encrypted(inner, on, ours)?);
    }
    for wire in about {
        wires.extend(without_device(inner, wire, &found)?);
    }
    let indexes = found.iter().map(|(on, ours)| (on.clone(), ours.link.index)).collect();
    wires.extend(policy::observe(job, &indexes, about)?);
    let pairs = pairs(job, &found, about)?;
    wires.extend(remnants(&found, &pairs, about));
    wires.extend(pairs);
    wires.extend(about.iter().filter_map(|wire| as_it_is(wire, &found)));
    Ok(wires)
}

/// What has passed over one interface of the job's owner.
pub(super) fn counters(job: &mut Job, iface: &Iface) -> Result<Option<Counters>> {
    let Some(found) = job.find(iface)? else { return Ok(None) };
    let failed = |refusal: Refusal| refused(describe(iface), "read its counters", refusal);
    let link = link::with_stats(job.socket(&iface.netns)?, &found.link.name).map_err(failed)?;
    let counters = |[rx_packets, tx_packets, rx_bytes, tx_bytes, _, _, rx_dropped, tx_dropped]: [u64; 8]| Counters {
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        drops: rx_dropped.saturating_add(tx_dropped),
    };
    Ok(link.and_then(|link| link.stats).map(counters))
}

/// Every interface that these objects are or need.
pub(super) fn places(about: &Wires) -> BTreeSet<Iface> {
    let of = |wire: &Wire| match wire {
        Wire::Link(link) => link.ifaces().into_iter().cloned().collect::<Vec<_>>(),
        other => other.needs().into_iter().cloned().collect(),
    };
    about.iter().flat_map(of).collect()
}

/// The present value of what every link has and `about` asks for; a link that is down has none of it.
fn as_it_is(wire: &Wire, found: &BTreeMap<Iface, Found>) -> Option<Wire> {
    let found = |on: &Iface| found.get(on).filter(|found| found.link.up());
    match wire {
        // A device without link header has no address, and needs none.
        Wire::Mac { on, .. } if found(on)?.link.kind == link::WIREGUARD => Some(wire.clone()),
        Wire::Mac { on, .. } => Some(Wire::Mac { on: on.clone(), mac: found(on)?.link.mac? }),
        Wire::NoArp { on } => found(on).filter(|found| found.link.flags & IFF_NOARP != 0).map(|_| wire.clone()),
        Wire::Mtu { on, .. } => Some(Wire::Mtu { on: on.clone(), mtu: found(on)?.link.mtu }),
        _ => None,
    }
}

fn tunnel(at: &Iface, found: &Found) -> Option<Wire> {
    let vxlan = found.link.vxlan.as_ref()?;
    let (local, remote, vni, port) = (vxlan.local?, vxlan.remote?, vxlan.vni, vxlan.port);
    Some(Wire::Link(Link::Vxlan { at: at.clone(), local, remote, vni, port }))
}

fn encrypted(inner: &Inner, at: &Iface, found: &Found) -> Result<Option<Wire>> {
    if !found.link.is_encrypted() || inner.tunnels.is_none() {
        return Ok(None);
    }
    let settings = inner.tunnels()?.find(at)?;
    let link = |TunnelSettings { key, local, peer, remote }| Link::Wireguard { at: at.clone(), key, local, peer, remote };
    Ok(settings.map(|settings| Wire::Link(link(settings))))
}

/// A tunnel whose device somebody has deleted, and whose maker still has it: it leads nowhere, and gives way to the one that
/// is wanted, or goes.
fn without_device(inner: &Inner, wire: &Wire, found: &BTreeMap<Iface, Found>) -> Result<Option<Wire>> {
    let Wire::Link(Link::Wireguard { at, key, local, remote, .. }) = wire else { return Ok(None) };
    if found.contains_key(at) || at.netns.file.is_none() || inner.tunnels.is_none() || inner.tunnels()?.find(at)?.is_none() {
        return Ok(None);
    }
    let nowhere = PublicKey([0; 32]);
    Ok(Some(Wire::Link(Link::Wireguard { at: at.clone(), key: key.clone(), local: *local, peer: nowhere, remote: *remote })))
}

/// The veth pairs of which both ends were found.
fn pairs(job: &mut Job, found: &BTreeMap<Iface, Found>, about: &Wires) -> Result<Wires> {
    let mut wires = Wires::new();
    for (a, here) in found {
        for (b, there) in found.range(a..).skip(1) {
            if !here.doomed && !there.doomed && job.paired((&here.link, &a.netns), (&there.link, &b.netns))? {
                wires.insert(Wire::Link(oriented(a, b, about)));
            }
        }
    }
    Ok(wires)
}

/// What is left of a link that somebody was about to remove, or that lost its other end: a cable from an interface to
/// itself, which nobody wants.
fn remnants(found: &BTreeMap<Iface, Found>, pairs: &Wires, about: &Wires) -> Wires {
    let ends = |wires: &Wires| -> BTreeSet<Iface> {
        let of = |wire: &Wire| if let Wire::Link(link) = wire { link.ifaces().into_iter().cloned().collect() } else { vec![] };
        wires.iter().flat_map(of).collect()
    };
    let (whole, asked) = (ends(pairs), ends(about));
    let is_remnant = |(on, ours): &(&Iface, &Found)| {
        let lost = ours.link.kind == "veth" && !whole.contains(on);
        asked.contains(*on) && (ours.doomed || lost)
    };
    found.iter().filter(is_remnant).map(|(on, _)| Wire::Link(Link::Veth { a: on.clone(), b: on.clone() })).collect()
}

/// A pair the way round in which `about` names it, or one of its ends.
fn oriented(a: &Iface, b: &Iface, about: &Wires) -> Link {
    let (straight, turned) = (Link::Veth { a: a.clone(), b: b.clone() }, Link::Veth { a: b.clone(), b: a.clone() });
    let names = |link: &Link| about.contains(&Wire::Link(link.clone()));
    let begins = |iface: &Iface| about.iter().any(|wire| matches!(wire, Wire::Link(Link::Veth { a, .. }) if a == iface));
    if names(&straight) || (!names(&turned) && !begins(b)) { straight } else { turned }
}

/// Addresses, neighbours and routes on one link.
fn on_link(job: &mut Job, on: &Iface, found: &Found, about: &Wires) -> Result<Wires> {
    let failed = |refusal: Refusal| refused(describe(on), "list what is on it", refusal);
    let (socket, index) = (job.socket(&on.netns)?, found.link.index);
    let addresses = inet::addresses(socket, index).map_err(failed)?;
    let neighbors = inet::neighbors(socket, index).map_err(failed)?;
    let routes = inet::routes(socket, RouteFilter { index, table: RT_TABLE_MAIN, protocol: 0 }).map_err(failed)?;
    let global = addresses.into_iter().filter(|address| address.scope == RT_SCOPE_UNIVERSE);
    let wires = global.map(|address| Wire::Address { on: on.clone(), address: address.net });
    let wires = wires.chain(neighbors.into_iter().map(|entry| Wire::Neighbor { on: on.clone(), ip: entry.ip, mac: entry.mac }));
    let mut wires: Wires = wires.collect();
    for route in routes {
        let wire = Wire::Route { on: on.clone(), prefix: route.prefix, via: route.via };
        // The kernel itself makes the route to an address's network; where a wire asks for the same, it is there.
        let counts = route.protocol == ROUTE_PROTOCOL || (route.protocol == RTPROT_KERNEL && about.contains(&wire));
        wires.extend(counts.then_some(wire));
    }
    Ok(wires)
}

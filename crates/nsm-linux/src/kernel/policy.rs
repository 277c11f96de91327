//! Policy routes: a rule for some traffic, and a table of its own with routes through one interface.
//!
//! A rule carries our protocol number but no owner. The owner is that of the interface through which its table's routes
//! go; a rule of ours whose table is empty lost its interface, and belongs to whoever asks for the same traffic.

use super::{Inner, ROUTE_PROTOCOL, job::Job, job::describe};
use crate::{
    error::refused,
    inet::{self, RouteFilter},
    nl::{Refusal, Socket},
    rule::{Rule, rules},
    uapi::*,
};
use ipnet::IpNet;
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::{Iface, Traffic, Wire, Wires};
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::PoisonError,
};

/// Tables are taken from here, lowest first. The kernel's own begin at 253.
const TABLES: std::ops::RangeInclusive<u32> = 1..=252;
/// Rules are looked at in the order of their tables, before the kernel's look at the main table (32766) and before rules
/// that others make without saying where.
const FIRST_PRIORITY: u32 = 32_000;
/// The rank of a policy that is there and that nobody asked about.
const UNKNOWN_RANK: u16 = u16::MAX;

type Routes = BTreeSet<(IpNet, Option<IpAddr>)>;

/// What a policy wire says, without its place.
pub(super) struct Policy<'a> {
    pub(super) on: &'a Iface,
    pub(super) traffic: &'a Traffic,
    pub(super) routes: &'a Routes,
}

/// Rules and routes of one namespace, read together.
struct Present {
    rules: Vec<Rule>,
    routes: Vec<inet::Route>,
}

impl Present {
    fn read(socket: &mut Socket) -> std::result::Result<Present, Refusal> {
        Ok(Present { rules: rules(socket)?, routes: inet::routes(socket, RouteFilter::default())? })
    }
    fn ours(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.protocol == ROUTE_PROTOCOL && TABLES.contains(&rule.table))
    }
    fn table(&self, table: u32) -> impl Iterator<Item = &inet::Route> {
        self.routes.iter().filter(move |route| route.table == table)
    }
    fn is_empty(&self, table: u32) -> bool {
        self.table(table).next().is_none()
    }
    /// The rules whose tables lead through this link, each with those routes.
    fn through(&self, index: u32) -> impl Iterator<Item = (&Rule, Routes)> {
        let ours = move |route: &&inet::Route| route.index == index && route.protocol == ROUTE_PROTOCOL;
        let routes = move |rule: &Rule| self.table(rule.table).filter(ours).map(|route| (route.prefix, route.via)).collect::<Routes>();
        self.ours().map(move |rule| (rule, routes(rule))).filter(|(_, routes)| !routes.is_empty())
    }
    /// The lowest table of which no rule speaks and in which no route is.
    fn free(&self) -> Option<u32> {
        let spoken: BTreeSet<u32> = self.rules.iter().map(|rule| rule.table).collect();
        TABLES.into_iter().find(|table| !spoken.contains(table) && self.is_empty(*table))
    }
}

/// The policies through the owner's interfaces, and those that `about` names and that lost theirs.
pub(super) fn observe(job: &mut Job, indexes: &BTreeMap<Iface, u32>, about: &Wires) -> Result<Wires> {
    let mut wires = Wires::new();
    let asked: BTreeSet<&Iface> =
        about.iter().filter_map(|wire| if let Wire::Policy { on, .. } = wire { Some(on) } else { None }).collect();
    let places: BTreeSet<&Iface> = indexes.keys().chain(asked).collect();
    for on in places.into_iter().filter(|on| on.netns.file.is_some()) {
        let failed = |refusal: Refusal| refused(describe(on), "list the policy routes through it", refusal);
        let socket = job.socket(&on.netns)?;
        // Nearly no interface has any: one look at the rules decides.
        if !rules(socket).map_err(failed)?.iter().any(|rule| rule.protocol == ROUTE_PROTOCOL) {
            continue;
        }
        let present = Present::read(socket).map_err(failed)?;
        let through = indexes.get(on).into_iter().flat_map(|index| present.through(*index));
        wires.extend(through.map(|(rule, routes)| as_asked(on, &rule.traffic, routes, about)));
        let orphans = present.ours().filter(|rule| present.is_empty(rule.table) && asks_for(about, on, &rule.traffic));
        wires.extend(orphans.map(|rule| as_asked(on, &rule.traffic, Routes::new(), about)));
    }
    Ok(wires)
}

fn asks_for(about: &Wires, place: &Iface, wanted: &Traffic) -> bool {
    about.iter().any(|wire| matches!(wire, Wire::Policy { on, traffic, .. } if on == place && traffic == wanted))
}

/// The rank is not in the kernel: it is that of the same policy in `about`.
fn as_asked(place: &Iface, traffic: &Traffic, routes: Routes, about: &Wires) -> Wire {
    let unknown = Wire::Policy { on: place.clone(), rank: UNKNOWN_RANK, traffic: traffic.clone(), routes };
    let same = |wire: &&Wire| match (wire, &unknown) {
        (Wire::Policy { on: a, traffic: b, routes: c, .. }, Wire::Policy { on, traffic, routes, .. }) => (a, b, c) == (on, traffic, routes),
        _ => false,
    };
    about.iter().find(same).cloned().unwrap_or(unknown)
}

/// Makes it unless it is there; the same traffic with other routes through the same link gives way.
pub(super) fn add(inner: &Inner, job: &mut Job, index: u32, policy: &Policy) -> Result<()> {
    let _alone = inner.tables.lock().unwrap_or_else(PoisonError::into_inner); // from reading which is free to taking it
    let failed = |refusal: Refusal| refused(object(policy), "make it", refusal);
    let socket = job.socket(&policy.on.netns)?;
    let present = Present::read(socket).map_err(failed)?;
    if present.through(index).any(|(rule, routes)| rule.traffic == *policy.traffic && routes == *policy.routes) {
        return Ok(());
    }
    drop_all(socket, &present, Some(index), policy.traffic).map_err(failed)?;
    drop_unruled(socket, &present, index);
    let full = || {
        let reason = format!("tables {} to {} are all in use there", TABLES.start(), TABLES.end());
        Error::new(Kind::Exhausted, object(policy), reason, "close connections with policy routes, or remove foreign rules")
    };
    let table = Present::read(socket).map_err(failed)?.free().ok_or_else(full)?;
    let rule = Rule { traffic: policy.traffic.clone(), table, priority: FIRST_PRIORITY + table, protocol: ROUTE_PROTOCOL };
    let routes = policy.routes.iter();
    let mut messages: Vec<_> =
        routes.map(|(prefix, via)| inet::route_message(RTM_NEWROUTE, ROUTE_PROTOCOL, *prefix, *via, index).u32(RTA_TABLE, table)).collect();
    messages.push(rule.message(RTM_NEWRULE));
    let made: std::result::Result<Vec<()>, Refusal> = socket.change(messages).into_iter().collect();
    if let Err(refusal) = made {
        // Nothing half made stays: neither a table without its rule nor a rule to a table that lacks routes.
        let present = Present::read(socket).map_err(failed)?;
        let ours = present.table(table).filter(|route| route.protocol == ROUTE_PROTOCOL);
        let mut undo: Vec<_> = ours.map(delete_route).collect();
        undo.push(rule.message(RTM_DELRULE));
        socket.change(undo);
        return Err(failed(refusal));
    }
    Ok(())
}

/// Removes it and its table; what lost its interface goes as well.
pub(super) fn remove(job: &mut Job, index: Option<u32>, policy: &Policy) -> Result<()> {
    if policy.on.netns.file.is_none() {
        return Ok(());
    }
    let failed = |refusal: Refusal| refused(object(policy), "remove it", refusal);
    let socket = job.socket(&policy.on.netns)?;
    let present = Present::read(socket).map_err(failed)?;
    drop_all(socket, &present, index, policy.traffic).map_err(failed)
}

/// Removes all rules of ours for this traffic whose tables lead through this link, or nowhere any more.
fn drop_all(socket: &mut Socket, present: &Present, index: Option<u32>, traffic: &Traffic) -> std::result::Result<(), Refusal> {
    let leads_here = |rule: &&Rule| {
        let mut routes = present.table(rule.table);
        rule.traffic == *traffic && routes.all(|route| Some(route.index) == index && route.protocol == ROUTE_PROTOCOL)
    };
    let mut messages = vec![];
    for rule in present.ours().filter(leads_here) {
        messages.push(rule.message(RTM_DELRULE));
        messages.extend(present.table(rule.table).map(delete_route));
    }
    let gone = |refusal: &Refusal| [Errno::NOENT, Errno::SRCH].contains(&refusal.errno);
    socket.change(messages).into_iter().try_for_each(|answer| answer.or_else(|refusal| if gone(&refusal) { Ok(()) } else { Err(refusal) }))
}

/// Removes our routes through this link from tables of which no rule speaks: somebody took the rule away.
fn drop_unruled(socket: &mut Socket, present: &Present, index: u32) {
    let ruled = |table: u32| present.rules.iter().any(|rule| rule.table == table);
    let ours = |route: &&inet::Route| route.index == index && route.protocol == ROUTE_PROTOCOL && TABLES.contains(&route.table);
    let unruled = present.routes.iter().filter(|route| ours(route) && !ruled(route.table));
    socket.change(unruled.map(delete_route).collect()); // what stays does nothing, and goes with the link
}

/// Removes all policies of ours whose tables lead through this link, and no others.
pub(super) fn drop_through(socket: &mut Socket, index: u32) -> std::result::Result<(), Refusal> {
    let present = Present::read(socket)?;
    for (rule, _) in present.through(index) {
        drop_all(socket, &present, Some(index), &rule.traffic)?;
    }
    Ok(())
}

fn delete_route(route: &inet::Route) -> crate::nl::Message {
    inet::route_message(RTM_DELROUTE, ROUTE_PROTOCOL, route.prefix, route.via, route.index).u32(RTA_TABLE, route.table)
}

pub(super) fn object(policy: &Policy) -> String {
    let Traffic { ipv6, from, protocol, dst_ports, src_ports } = policy.traffic;
    let mut text = format!("policy route on {} for {} traffic", describe(policy.on), if *ipv6 { "IPv6" } else { "IPv4" });
    for part in [
        from.map(|from| format!(" from {from}")),
        protocol.map(|number| format!(" of protocol {number}")),
        src_ports.map(|(first, last)| format!(" from ports {first}-{last}")),
        dst_ports.map(|(first, last)| format!(" to ports {first}-{last}")),
    ] {
        text.extend(part);
    }
    text
}

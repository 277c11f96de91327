//! Checks of what is in a namespace, and of what an application saw there.

use super::Seen;
use crate::{
    look::routes,
    places::{difference, is_own_address, ledger},
    schema::Sought,
    world::World,
};
use ipnet::IpNet;
use nsm_api::{Error, Result};
use nsm_linux::net::{Net, Packet};
use std::{collections::BTreeSet, net::IpAddr};

fn net<'a>(world: &'a World, pod: &str) -> Result<&'a Net> {
    Ok(&*world.places.get(&world.file.lab.namespace(pod))?.net)
}

/// An interface is there, or not.
pub(super) fn interface(world: &World, pod: &str, name: &str, (present, mtu): (bool, Option<u32>)) -> Result<Seen> {
    Ok(match net(world, pod)?.link_named(name)? {
        None => Seen::new(!present, "absent"),
        Some(link) => {
            let fits = mtu.is_none_or(|mtu| mtu == link.mtu) && link.up;
            Seen::new(present && fits, format!("present, {}, MTU {}", if link.up { "up" } else { "down" }, link.mtu))
        }
    })
}

/// An interface has exactly these addresses, or only such inside a prefix.
pub(super) fn addresses(world: &World, pod: &str, interface: &str, (equal, inside): (&[IpNet], Option<IpNet>)) -> Result<Seen> {
    let all = net(world, pod)?.addresses()?.into_iter();
    let found: BTreeSet<IpNet> = all.filter(|a| a.dev == interface && is_own_address(a.address.addr())).map(|a| a.address).collect();
    let text = if found.is_empty() { "none".to_owned() } else { found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ") };
    let fits = match inside {
        Some(prefix) => !found.is_empty() && found.iter().all(|address| prefix.contains(address)),
        None => found == equal.iter().copied().collect(),
    };
    Ok(Seen::new(fits, text))
}

/// How a route should go.
pub(super) struct Way<'a> {
    pub(super) via: Option<IpAddr>,
    pub(super) dev: Option<&'a str>,
    pub(super) present: bool,
}

/// The main table has a route, or not.
pub(super) fn route(world: &World, pod: &str, to: IpNet, way: &Way<'_>) -> Result<Seen> {
    let found: Vec<_> = routes(net(world, pod)?)?.into_iter().filter(|route| route.to == to).collect();
    let Some(first) = found.first() else { return Ok(Seen::new(!way.present, "absent")) };
    let fits = found.iter().any(|route| way.via.is_none_or(|via| route.via == Some(via)) && way.dev.is_none_or(|dev| route.dev == dev));
    let via = first.via.map(|via| format!("via {via} ")).unwrap_or_default();
    Ok(Seen::new(way.present && fits, format!("{via}dev {}", first.dev)))
}

/// The kernel would send such a packet this way.
pub(super) fn way(world: &World, pod: &str, packet: &Packet, sought: &Sought) -> Result<Seen> {
    let hop = net(world, pod)?.route_get(packet)?;
    let fits = sought.via.is_none_or(|via| via == hop.via)
        && sought.dev.as_ref().is_none_or(|dev| *dev == hop.dev)
        && sought.table.is_none_or(|table| table == hop.table)
        && sought.src.is_none_or(|src| Some(src) == hop.src);
    let seen = Sought { via: Some(hop.via), dev: Some(hop.dev), table: Some(hop.table), src: hop.src };
    Ok(Seen::new(fits, seen.to_string()))
}

/// The objects of these pods are those from before any process ran.
pub(super) fn unchanged(world: &World, pods: &[String]) -> Result<Seen> {
    let mut changes = Vec::new();
    for pod in pods {
        let place = world.places.get(&world.file.lab.namespace(pod))?;
        changes.extend(difference(&place.before, &ledger(&place.net)?).into_iter().map(|line| format!("{pod}: {line}")));
    }
    let text = if changes.is_empty() { "as before the start".to_owned() } else { changes.join("; ") };
    Ok(Seen::new(changes.is_empty(), text))
}

/// What the application saw at its first look.
pub(super) fn app(world: &World, client: &str, (interface, route, reaches): (Option<&str>, Option<IpNet>, bool)) -> Result<Seen> {
    let missing = || Error::internal(format!("application of {client:?}"), "was never started");
    let look = world.apps.get(client).ok_or_else(missing)?;
    let has_interface = interface.is_none_or(|name| look.interfaces.iter().any(|seen| seen.name == name && seen.up));
    let has_route = route.is_none_or(|to| look.routes.iter().any(|seen| seen.to == to));
    let answered = look.ping.is_none_or(|ok| ok) && look.tcp.is_none_or(|ok| ok) && (look.ping.is_some() || look.tcp.is_some());
    let names: Vec<&str> = look.interfaces.iter().map(|seen| seen.name.as_str()).collect();
    let routes: Vec<String> = look.routes.iter().map(|seen| seen.to.to_string()).collect();
    let answer = if answered { "its peer answers" } else { "no answer" };
    let text = format!("{}; routes {}; {answer}", names.join(" "), routes.join(" "));
    Ok(Seen::new(has_interface && has_route && (answered || !reaches), text))
}

//! Making and deleting links. A link is born where it lives, marked from its first moment, and never moved.

use super::{
    Inner,
    job::{Found, Job, describe, living, name_taken},
    pinhole::Pinhole,
    tag::{DOOMED, Tag},
};
use crate::{
    error::refused,
    link::{self, link_fixed},
    nl::{Message, Refusal, Socket},
    tunnels::{EncryptedTunnel, TunnelSettings},
    uapi::*,
};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::{IfName, Iface, Link, Netns};
use rustix::io::Errno;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// How long a cable may take until it carries packets.
const CARRIER_BOUND: Duration = Duration::from_secs(2);
/// Pause between two looks at it.
const CARRIER_PAUSE: Duration = Duration::from_millis(1);

/// Makes a link unless it is there; what is ours under these names but different gives way. Returns its ends.
pub(super) fn add(inner: &Inner, job: &mut Job, wanted: &Link) -> Result<Vec<(Iface, link::Link)>> {
    for iface in wanted.ifaces() {
        living(&iface.netns)?;
    }
    let found = wanted.ifaces().into_iter().map(|iface| Ok((iface, job.find(iface)?))).collect::<Result<Vec<_>>>()?;
    if let Some(pinhole) = pinhole(wanted) {
        inner.pinholes.open(&pinhole);
    }
    if is_whole(inner, job, wanted, &found)? {
        let whole = found.into_iter().filter_map(|(iface, ours)| Some((iface, ours?)));
        return whole.map(|(iface, ours)| adopt(job, iface, &ours).map(|()| (iface.clone(), ours.link))).collect();
    }
    let mut places = BTreeSet::new();
    for (iface, ours) in &found {
        // A tunnel whose maker has lost it, or that is to lead elsewhere, keeps its device and all that is on it.
        let kept = |ours: &Found| matches!(wanted, Link::Wireguard { .. }) && ours.link.is_encrypted() && !ours.doomed;
        match ours {
            Some(ours) if kept(ours) => adopt(job, iface, ours)?,
            Some(ours) => {
                doom(job, iface, ours)?;
                places.insert(iface.netns.clone());
            }
            None => {}
        }
    }
    reap(inner, job, &places)?;
    for iface in wanted.ifaces() {
        let ours = |job: &mut Job| Ok::<_, Error>(matches!(wanted, Link::Wireguard { .. }) && job.find(iface)?.is_some());
        if job.named(iface)?.is_some() && !ours(job)? {
            return Err(name_taken(iface));
        }
    }
    let born = match wanted {
        Link::Veth { a, b } => bear_veth(job, a, b),
        Link::Vxlan { at, local, remote, vni, port } => {
            let settings = link::Vxlan { vni: *vni, local: Some(*local), remote: Some(*remote), port: *port };
            bear_vxlan(inner, job, at, &settings)
        }
        Link::Wireguard { .. } => tunnel(job, wanted).map_or(Ok(()), |tunnel| inner.tunnels()?.add(&tunnel)),
    };
    let raised = born.and_then(|()| wanted.ifaces().into_iter().map(|iface| raise(job, iface)).collect::<Result<_>>());
    raised.and_then(|ends| carries(job, wanted).map(|()| ends)).inspect_err(|_| abandon(inner, job, wanted))
}

/// An encrypted tunnel as its maker is asked for it.
fn tunnel(job: &Job, link: &Link) -> Option<EncryptedTunnel> {
    let Link::Wireguard { at, key, local, peer, remote } = link else { return None };
    let settings = TunnelSettings { key: key.clone(), local: *local, peer: *peer, remote: *remote };
    Some(EncryptedTunnel { at: at.clone(), mark: (job.tag.to_string(), job.tag.group()), settings })
}

/// Tells the maker of a tunnel that its device is gone: the kernel removes devices faster together.
pub(super) fn forget(inner: &Inner, link: &Link) {
    let (Link::Wireguard { at, .. }, Ok(tunnels)) = (link, inner.tunnels()) else { return };
    if let Err(error) = tunnels.remove(at.netns.key, at.name.as_str()) {
        tracing::debug!(%error, "the packet engine was not told of the end of a tunnel; it sees that the device is gone");
    }
}

/// What lets a tunnel's other node in.
fn pinhole(link: &Link) -> Option<Pinhole> {
    match link {
        Link::Vxlan { remote, vni, port, .. } => Some(Pinhole { remote: *remote, vni: *vni, port: *port }),
        Link::Veth { .. } | Link::Wireguard { .. } => None,
    }
}

fn is_whole(inner: &Inner, job: &mut Job, wanted: &Link, found: &[(&Iface, Option<Found>)]) -> Result<bool> {
    if found.iter().any(|(_, ours)| ours.as_ref().is_some_and(|ours| ours.doomed)) {
        return Ok(false);
    }
    match (wanted, found) {
        (Link::Veth { .. }, [(a, Some(here)), (b, Some(there))]) => job.paired((&here.link, &a.netns), (&there.link, &b.netns)),
        (Link::Vxlan { local, remote, vni, port, .. }, [(_, Some(found))]) => {
            let settings = link::Vxlan { vni: *vni, local: Some(*local), remote: Some(*remote), port: *port };
            Ok(found.link.vxlan.as_ref() == Some(&settings))
        }
        (Link::Wireguard { at, .. }, [(_, Some(found))]) if found.link.is_encrypted() => {
            let there = inner.tunnels()?.find(at)?;
            Ok(there.is_some() && there == tunnel(job, wanted).map(|tunnel| tunnel.settings))
        }
        _ => Ok(false),
    }
}

/// Both ends in one message, sent from one end's namespace: older kernels look for the name there.
fn bear_veth(job: &mut Job, a: &Iface, b: &Iface) -> Result<()> {
    let (group, peer_netns) = (job.tag.group(), living(&b.netns)?);
    let end = |end: Message| {
        let end = end.raw(&link_fixed(0, 0, 0)).text(IFLA_IFNAME, b.name.as_str());
        end.u32(IFLA_GROUP, group).u32(IFLA_NET_NS_FD, peer_netns.as_raw_fd() as u32)
    };
    let info = |info: Message| info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| data.nest(VETH_INFO_PEER, end));
    let message = birth(&a.name, group).nest(IFLA_LINKINFO, info);
    let failed = |refusal: Refusal| refused(format!("veth from {} to {}", describe(a), describe(b)), "make it", refusal);
    job.socket(&a.netns)?.ask(message).map(|_| ()).map_err(failed)
}

/// In one message, sent from the underlay's namespace, which keeps the tunnel's UDP socket.
fn bear_vxlan(inner: &Inner, job: &mut Job, at: &Iface, settings: &link::Vxlan) -> Result<()> {
    let netns = living(&at.netns)?;
    let address = |message: Message, address: Option<IpAddr>, v4, v6| match address {
        Some(ip) => message.ip(if ip.is_ipv4() { v4 } else { v6 }, ip),
        None => message,
    };
    let data = |data: Message| {
        let data = data.u32(IFLA_VXLAN_ID, settings.vni);
        let data = address(data, settings.remote, IFLA_VXLAN_GROUP, IFLA_VXLAN_GROUP6);
        let data = address(data, settings.local, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6);
        data.bytes(IFLA_VXLAN_LEARNING, &[0]).bytes(IFLA_VXLAN_PORT, &settings.port.to_be_bytes())
    };
    let message = birth(&at.name, job.tag.group()).u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    let message = message.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, data));
    match inner.underlay().ask(message) {
        Ok(_) => Ok(()),
        // The name was free a moment ago, so it is the tunnel that exists.
        Err(refusal) if refusal.errno == Errno::EXIST => {
            let reason = format!("VNI {} on UDP port {} is in use on this node", settings.vni, settings.port);
            Err(Error::new(Kind::Conflict, describe(at), reason, "choose another VNI"))
        }
        Err(refusal) => Err(refused(describe(at), "make a VXLAN tunnel", refusal)),
    }
}

fn birth(name: &IfName, group: u32) -> Message {
    Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_fixed(0, 0, 0)).text(IFLA_IFNAME, name.as_str()).u32(IFLA_GROUP, group)
}

/// Lets everybody in the namespace send pings, as the clients of other implementations do to see whether their wire lives.
fn allow_ping(job: &Job, iface: &Iface) {
    const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";
    let written = job.enter(&iface.netns).and_then(|()| {
        let everybody = std::fs::write(PING_GROUPS, "0 2147483647");
        everybody.map_err(|error| refused(PING_GROUPS, "write it", Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    });
    if let Err(error) = written {
        tracing::debug!(%error, "pings of processes without rights may not work there");
    }
}

/// Tags a link that was just born and brings it up, in one send.
fn raise(job: &mut Job, iface: &Iface) -> Result<(Iface, link::Link)> {
    let born = job.named(iface)?.filter(|link| link.group == job.tag.group());
    let lost = || Error::new(Kind::Kernel, describe(iface), "it vanished right after it was made", "see who else changes links there");
    let born = born.ok_or_else(lost)?;
    mark(job, iface, born.index)?;
    allow_ping(job, iface);
    Ok((iface.clone(), born))
}

/// Waits until both ends of a cable carry packets. The kernel takes note of a carrier that came up when it gets to it,
/// which takes long when many links are made; until then it drops what is sent, and who resolves an address tries again
/// only after a second. Since Linux 6.8 the question itself makes it take note.
fn carries(job: &mut Job, wanted: &Link) -> Result<()> {
    let Link::Veth { a, b } = wanted else { return Ok(()) }; // a tunnel has no carrier to wait for
    let until = Instant::now() + CARRIER_BOUND;
    for iface in [a, b] {
        while job.named(iface)?.is_some_and(|link| !link.carries) {
            if Instant::now() > until {
                let reason = format!("it has no carrier {CARRIER_BOUND:?} after it was brought up");
                return Err(Error::new(Kind::Kernel, describe(iface), reason, "see who else takes links down there"));
            }
            std::thread::sleep(CARRIER_PAUSE);
        }
    }
    Ok(())
}

/// Writes the tag of this generation onto a link of an older one.
pub(super) fn adopt(job: &mut Job, iface: &Iface, found: &Found) -> Result<()> {
    if found.stale { mark(job, iface, found.link.index) } else { Ok(()) }
}

fn mark(job: &mut Job, iface: &Iface, index: u32) -> Result<()> {
    let alias = job.tag.to_string();
    let up = Message::new(RTM_SETLINK, 0, &link_fixed(index, IFF_UP, IFF_UP)).bytes(IFLA_IFALIAS, alias.as_bytes());
    let messages = vec![up, second_name(index, &job.tag, &iface.name)];
    let mut answers = job.socket(&iface.netns)?.change(messages).into_iter();
    let failed = |refusal: Refusal| refused(describe(iface), "tag it and bring it up", refusal);
    answers.next().unwrap_or(Ok(())).map_err(failed)?;
    match answers.next() {
        Some(Err(refusal)) if refusal.errno != Errno::EXIST => Err(failed(refusal)),
        _ => Ok(()),
    }
}

fn second_name(index: u32, tag: &Tag, name: &IfName) -> Message {
    let message = Message::new(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, &link_fixed(index, 0, 0));
    message.nest(IFLA_PROP_LIST | NLA_F_NESTED, |list| list.text(IFLA_ALT_IFNAME, &tag.second_name(name)))
}

/// Removes what a failed birth left, as far as it is ours.
fn abandon(inner: &Inner, job: &mut Job, wanted: &Link) {
    let cleaned = remove(inner, job, wanted).and_then(|places| reap(inner, job, &places));
    forget(inner, wanted);
    if let Err(error) = cleaned {
        tracing::warn!(%error, "a half-made link stays; the next attempt removes it");
    }
}

/// Dooms a link; returns the namespaces in which [`reap`] must follow.
pub(super) fn remove(inner: &Inner, job: &mut Job, link: &Link) -> Result<BTreeSet<Netns>> {
    if let Some(pinhole) = pinhole(link) {
        inner.pinholes.close(&pinhole);
    }
    let mut places = BTreeSet::new();
    // From the endpoint's side: it is the one that many wires share, so that more of them go together.
    let mut gone: Option<(Found, &Netns)> = None;
    for iface in link.ifaces().into_iter().rev() {
        let Some(found) = job.find(iface)? else { continue };
        let falls = match &gone {
            Some((other, at)) => job.paired((&found.link, &iface.netns), (&other.link, at))?,
            None => false,
        };
        if !falls {
            doom(job, iface, &found)?;
            places.insert(iface.netns.clone());
            gone = Some((found, &iface.netns));
        }
    }
    Ok(places)
}

/// Takes a link out of use at once: down, nameless, and in the group that goes together. By its second name it is still
/// found, should we end before it is deleted.
fn doom(job: &mut Job, iface: &Iface, found: &Found) -> Result<()> {
    let index = found.link.index;
    take_out(job.socket(&iface.netns)?, index).map_err(|refusal| refused(describe(iface), "take it out of use", refusal))
}

/// The same for any link of this index.
pub(super) fn take_out(socket: &mut Socket, index: u32) -> std::result::Result<(), Refusal> {
    let down = Message::new(RTM_SETLINK, 0, &link_fixed(index, 0, IFF_UP));
    let doomed = Message::new(RTM_SETLINK, 0, &link_fixed(index, 0, 0)).text(IFLA_IFNAME, &format!("nsm~{index}")).u32(IFLA_GROUP, DOOMED);
    let answers = socket.change(vec![down, doomed]);
    match answers.into_iter().next_back() {
        Some(Err(refusal)) if refusal.errno != Errno::NODEV => Err(refusal),
        _ => Ok(()),
    }
}

/// Deletes the doomed links of these namespaces; returns when they are gone.
pub(super) fn reap(inner: &Inner, job: &mut Job, places: &BTreeSet<Netns>) -> Result<()> {
    for netns in places {
        let socket: &mut Socket = job.socket(netns)?;
        let failed = |refusal: Refusal| refused(format!("links in network namespace {}", netns.key), "delete them", refusal);
        inner.reaper.reap(netns.key, socket).map_err(failed)?;
    }
    Ok(())
}

//! Two interfaces of one namespace joined inside the kernel: a filter on each that sends every arriving frame out of the other.
//!
//! The filter's action carries the owner's mark, so a splice may join links that other hops made.

use super::job::{Job, describe, living};
use crate::{
    error::refused,
    link,
    nl::{Attributes, Message, Refusal, Socket, read_u32},
    snapshot::filters,
    uapi::*,
    wireguard,
};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::{Iface, Wire, Wires};
use rustix::io::Errno;
use std::collections::BTreeSet;

/// Our filters' place among others on the same interface.
const PRIORITY: u32 = 0xB4;
/// Bytes of the action's parameters: five general numbers, what to do, and where to.
const MIRRED_BYTES: usize = 28;

/// One half of a splice: whose it is and where it leads.
struct Half {
    to: u32,
    cookie: Vec<u8>,
}

fn tc_fixed(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut fixed = [0; 20];
    for (place, value) in [(4, index), (8, handle), (12, parent), (16, info)] {
        fixed[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fixed
}
fn filter_fixed(index: u32) -> [u8; 20] {
    tc_fixed(index, 0, CLSACT_INGRESS, PRIORITY << 16 | u32::from(ETH_P_ALL.to_be()))
}

fn half(socket: &mut Socket, index: u32) -> std::result::Result<Option<Half>, Refusal> {
    let ours = |body: &[u8]| read_u32(body, 16).is_some_and(|info| info >> 16 == PRIORITY);
    Ok(filters(socket, index, CLSACT_INGRESS)?.iter().filter(|reply| ours(&reply.body)).find_map(|reply| parse(&reply.body)))
}

fn parse(body: &[u8]) -> Option<Half> {
    let options = Attributes::after(body, 20).find(TCA_OPTIONS)?;
    let (_, action) = Attributes(Attributes(options).find(TCA_U32_ACT)?).next()?;
    let parameters = Attributes(Attributes(action).find(TCA_ACT_OPTIONS)?).find(TCA_MIRRED_PARMS)?;
    let cookie = Attributes(action).find(TCA_ACT_COOKIE).unwrap_or_default().to_vec();
    Some(Half { to: read_u32(parameters, MIRRED_BYTES - 4)?, cookie })
}

/// The splices of the job's owner between interfaces of one namespace among `places`.
pub(super) fn observe(job: &mut Job, places: &BTreeSet<Iface>, about: &Wires) -> Result<Wires> {
    let mut wires = Wires::new();
    for a in places {
        for b in places.range(a..).skip(1).take_while(|b| b.netns == a.netns) {
            let (Some(x), Some(y)) = (index_of(job, a)?, index_of(job, b)?) else { continue };
            let whole = leads(job, a, x)? == Some(y) && leads(job, b, y)? == Some(x);
            let turned = Wire::Splice { a: b.clone(), b: a.clone() };
            let straight = Wire::Splice { a: a.clone(), b: b.clone() };
            wires.extend(whole.then_some(if about.contains(&turned) { turned } else { straight }));
        }
    }
    Ok(wires)
}

/// Where this owner's half on an interface leads.
fn leads(job: &mut Job, iface: &Iface, index: u32) -> Result<Option<u32>> {
    let cookie = job.tag.cookie();
    let half = half(job.socket(&iface.netns)?, index).map_err(|refusal| refused(describe(iface), "list its filters", refusal))?;
    Ok(half.filter(|half| half.cookie == cookie).map(|half| half.to))
}

/// A link of the owner first, else whosever has the name.
fn index_of(job: &mut Job, iface: &Iface) -> Result<Option<u32>> {
    if let Some(ours) = job.find(iface)? {
        return Ok(Some(ours.link.index));
    }
    Ok(job.named(iface)?.map(|link| link.index))
}

/// Joins two interfaces.
pub(super) fn add(job: &mut Job, a: &Iface, b: &Iface) -> Result<()> {
    if a.netns != b.netns {
        return Err(Error::invalid(
            describe(a),
            format!("{} is in another namespace", describe(b)),
            "splice two interfaces of one namespace",
        ));
    }
    living(&a.netns)?;
    for iface in [a, b] {
        if job.named(iface)?.is_some_and(|link| link.kind == link::WIREGUARD) {
            return Err(wireguard::no_splice(describe(iface)));
        }
    }
    let missing = |iface| Error::new(Kind::NotFound, describe(iface), "there is none to splice", "make the link first");
    let x = index_of(job, a)?.ok_or_else(|| missing(a))?;
    let y = index_of(job, b)?.ok_or_else(|| missing(b))?;
    let cookie = job.tag.cookie();
    for (iface, from, to) in [(a, x, y), (b, y, x)] {
        let failed = |refusal: Refusal| refused(describe(iface), "splice it", refusal);
        let socket = job.socket(&iface.netns)?;
        match half(socket, from).map_err(failed)? {
            Some(there) if there.cookie != cookie => {
                return Err(Error::new(Kind::Conflict, describe(iface), "it is spliced already", "close the other connection first"));
            }
            Some(there) if there.to == to => continue,
            // Ours, but to an interface that is no longer the one wanted.
            Some(_) => remove_half(socket, from).map_err(failed)?,
            None => {}
        }
        add_half(socket, from, to, &cookie).map_err(failed)?;
    }
    Ok(())
}

fn add_half(socket: &mut Socket, from: u32, to: u32, cookie: &[u8]) -> std::result::Result<(), Refusal> {
    let hook =
        Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &tc_fixed(from, CLSACT_HANDLE, TC_H_CLSACT, 0)).text(TCA_KIND, "clsact");
    let mut answers = socket.change(vec![hook, redirect(from, to, cookie)]).into_iter();
    match answers.next() {
        Some(Err(refusal)) if refusal.errno != Errno::EXIST => return Err(refusal),
        _ => {}
    }
    answers.next().unwrap_or(Ok(()))
}

/// A filter that matches everything: a 32-bit key under an empty mask, as the filter made for that is not in every kernel.
fn redirect(from: u32, to: u32, cookie: &[u8]) -> Message {
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1; // one key, all of it zero
    let mut parameters = [0; MIRRED_BYTES];
    for (place, value) in [(8, TC_ACT_STOLEN as u32), (20, TCA_EGRESS_REDIR as u32), (24, to)] {
        parameters[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let action = |action: Message| {
        let named = action.text(TCA_ACT_KIND, "mirred").bytes(TCA_ACT_COOKIE, cookie);
        named.nest(TCA_ACT_OPTIONS, |options| options.bytes(TCA_MIRRED_PARMS, &parameters))
    };
    let options = |options: Message| options.bytes(TCA_U32_SEL, &selector).nest(TCA_U32_ACT, |actions| actions.nest(1, action));
    Message::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &filter_fixed(from)).text(TCA_KIND, "u32").nest(TCA_OPTIONS, options)
}

/// Parts two interfaces that the job's owner has joined; nothing else is touched.
pub(super) fn remove(job: &mut Job, a: &Iface, b: &Iface) -> Result<()> {
    let cookie = job.tag.cookie();
    for iface in [a, b] {
        let Some(index) = index_of(job, iface)? else { continue };
        let failed = |refusal: Refusal| refused(describe(iface), "part it from the other", refusal);
        let socket = job.socket(&iface.netns)?;
        if half(socket, index).map_err(failed)?.is_some_and(|half| half.cookie == cookie) {
            remove_half(socket, index).map_err(failed)?;
        }
    }
    Ok(())
}

/// Removes our filter, and the hook too when nobody else uses it.
fn remove_half(socket: &mut Socket, index: u32) -> std::result::Result<(), Refusal> {
    socket.ask(Message::new(RTM_DELTFILTER, 0, &filter_fixed(index)).text(TCA_KIND, "u32"))?;
    if filters(socket, index, CLSACT_INGRESS)?.is_empty() && filters(socket, index, CLSACT_EGRESS)?.is_empty() {
        socket.ask(Message::new(RTM_DELQDISC, 0, &tc_fixed(index, CLSACT_HANDLE, TC_H_CLSACT, 0)))?;
    }
    Ok(())
}

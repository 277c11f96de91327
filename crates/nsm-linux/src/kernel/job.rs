//! One visit to the kernel on behalf of one owner: a socket per namespace, and finding that owner's interfaces.

use super::tag::{Tag, Whose};
use crate::{
    error::refused,
    link::{self, Link},
    netns::{self, Visitor},
    nl::{Refusal, Socket},
};
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::{Iface, Netns};
use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

/// What a job has at hand. Lives on the visiting thread.
pub(super) struct Job<'a> {
    visitor: &'a Visitor,
    pub(super) tag: Tag,
    sockets: BTreeMap<Netns, Socket>,
}

/// An interface of the owner.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) link: Link,
    /// Its tag is missing or of an older generation and has to be written, or somebody has taken it down.
    pub(super) stale: bool,
    /// It is out of use and only waits to be deleted.
    pub(super) doomed: bool,
}

impl<'a> Job<'a> {
    pub(super) fn new(visitor: &'a Visitor, tag: Tag) -> Job<'a> {
        Job { visitor, tag, sockets: BTreeMap::new() }
    }
    /// Moves the job's thread into a namespace.
    pub(super) fn enter(&self, netns: &Netns) -> Result<()> {
        self.visitor.enter(netns)
    }
    /// The socket in a namespace; opened at its first use.
    pub(super) fn socket(&mut self, netns: &Netns) -> Result<&mut Socket> {
        if !self.sockets.contains_key(netns) {
            self.visitor.enter(netns)?;
            self.sockets.insert(netns.clone(), Socket::open()?);
        }
        self.sockets.get_mut(netns).ok_or_else(|| Error::internal("a netlink socket", "it was just opened and is gone"))
    }
    /// Nothing more is to be done there.
    pub(super) fn leave(&mut self, netns: &Netns) {
        self.sockets.remove(netns);
    }
    /// The link of this name, whosever it is; none in a namespace that has gone.
    pub(super) fn named(&mut self, iface: &Iface) -> Result<Option<Link>> {
        if iface.netns.file.is_none() {
            return Ok(None);
        }
        let failed = |refusal: Refusal| refused(describe(iface), "look it up", refusal);
        link::by_name(self.socket(&iface.netns)?, iface.name.as_str()).map_err(failed)
    }
    /// The owner's link of this name, or the one that was made with it and renamed since. Fails when a newer process owns it.
    pub(super) fn find(&mut self, iface: &Iface) -> Result<Option<Found>> {
        match self.named(iface)? {
            Some(link) if self.tag.whose(&link) != Whose::Foreign => self.judge(iface, link),
            _ if iface.netns.file.is_none() => Ok(None),
            _ => self.find_renamed(iface),
        }
    }
    fn find_renamed(&mut self, iface: &Iface) -> Result<Option<Found>> {
        let second = self.tag.second_name(&iface.name);
        let failed = |refusal: Refusal| refused(describe(iface), "look for its second name", refusal);
        let found = link::by_alternative_name(self.socket(&iface.netns)?, &second).map_err(failed)?;
        found.map_or(Ok(None), |link| self.judge(iface, link))
    }
    fn judge(&self, iface: &Iface, link: Link) -> Result<Option<Found>> {
        match self.tag.whose(&link) {
            // Whoever took it down did not ask us.
            Whose::Ours => Ok(Some(Found { stale: !link.up(), doomed: false, link })),
            Whose::Older => Ok(Some(Found { link, stale: true, doomed: false })),
            Whose::Doomed => Ok(Some(Found { link, stale: false, doomed: true })),
            Whose::Foreign => Ok(None),
            Whose::Newer => {
                let reason = format!("fenced: a newer process owns it ({})", link.alias);
                Err(Error::new(Kind::Conflict, describe(iface), reason, "end this older process"))
            }
        }
    }
    /// Whether these two ends belong to one veth.
    pub(super) fn paired(&mut self, (a, at_a): (&Link, &Netns), (b, at_b): (&Link, &Netns)) -> Result<bool> {
        let mutual = a.kind == "veth" && b.kind == "veth" && a.peer == Some(b.index) && b.peer == Some(a.index);
        if !mutual || at_a == at_b {
            return Ok(mutual && a.peer_netns.is_none() && a.index != b.index);
        }
        // Interface indexes repeat from namespace to namespace, so the namespace of the other end must match as well.
        let there = living(at_b)?;
        let fd = there.as_raw_fd() as u32;
        let number = link::number_of(self.socket(at_a)?, fd).map_err(|refusal| refused("a veth pair", "find its namespaces", refusal))?;
        Ok(number.is_some() && number == a.peer_netns)
    }
}

/// The open file of a namespace in which something is to be made.
pub(super) fn living(netns: &Netns) -> Result<Arc<OwnedFd>> {
    if netns.file.is_some() {
        return netns::file(netns);
    }
    let object = format!("network namespace {}", netns.key);
    Err(Error::new(Kind::NotFound, object, "it is gone: nobody holds it open", "send the Request again with a living namespace"))
}

/// An interface in an error message.
pub(super) fn describe(iface: &Iface) -> String {
    format!("interface {:?} in network namespace {}", iface.name.as_str(), iface.netns.key)
}

/// The error for a name that is in use.
pub(super) fn name_taken(iface: &Iface) -> Error {
    let reason = "the name is taken by a link of somebody else";
    Error::new(Kind::Conflict, describe(iface), reason, "choose another name or remove that link")
}

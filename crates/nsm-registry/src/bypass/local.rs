//! What a manager knows of the endpoints of its own node.

use crate::{engine::Record, lock, registry::denied, timer::Expires};
use nsm_api::{EndpointName, EndpointQuery, Error, Files, InodeKey, Kind, NetworkServiceEndpoint, Result, ServiceName, Target};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, Weak},
};
use tokio::{sync::OwnedMutexGuard, time::Instant};

/// Who says where an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Another process: its addresses must be files it sent, or reached over the network.
    Peer,
    /// This process.
    OwnProcess,
}

/// Where an endpoint of this node is reached. The file, if any, stays open as long as this lives.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) url: String,
    pub(super) file: Option<(InodeKey, Arc<OwnedFd>)>,
}

impl Address {
    /// The address that `endpoint` gives, if the caller may give it.
    pub(super) fn read(endpoint: &NetworkServiceEndpoint, files: &Files, trust: Trust) -> Result<Address> {
        let object = || NetworkServiceEndpoint::object(&endpoint.name);
        let refuse = |reason: String, fix: &str| Err(Error::invalid(object(), reason, fix));
        let url = endpoint.url.clone();
        if url.is_empty() {
            return refuse("has no URL".to_owned(), "register it with the address it listens at");
        }
        let over_socket = "register over the manager's unix socket, so that the endpoint's own socket is sent along as a file";
        let target = Target::parse(&url).map_err(|error| Error { object: object(), ..error })?;
        match target {
            Target::Inode(key) => match files.get(key) {
                Some(file) => Ok(Address { url, file: Some((key, file.clone())) }),
                None => refuse(format!("is said to be at {url}, but no such file came along"), over_socket),
            },
            Target::Unix(_) | Target::InProcess(_) if trust == Trust::Peer => {
                refuse(format!("is said to be at {url}, which only the manager's own process may say"), over_socket)
            }
            Target::Unix(_) | Target::InProcess(_) | Target::Tcp { .. } => Ok(Address { url, file: None }),
        }
    }
}

/// One endpoint of this node.
#[derive(Clone)]
pub(super) struct Local {
    pub(super) address: Address,
    /// Who registered it, where the caller had an identity.
    pub(super) owner: Option<String>,
    /// What it provides.
    pub(super) services: Vec<ServiceName>,
    /// When it is forgotten unless it is registered again.
    pub(super) deadline: Instant,
}

/// The endpoints of this node, by name, each for as long as it is registered.
#[derive(Default)]
pub(super) struct Locals(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_name: BTreeMap<EndpointName, Local>,
    deadlines: BTreeSet<(Instant, EndpointName)>,
}

impl Table {
    fn replace(&mut self, name: &EndpointName, local: Option<Local>) -> Option<Local> {
        let new = local.as_ref().map(|local| local.deadline);
        let old = match local {
            Some(local) => self.by_name.insert(name.clone(), local),
            None => self.by_name.remove(name),
        };
        if let Some(old) = &old {
            self.deadlines.remove(&(old.deadline, name.clone()));
        }
        self.deadlines.extend(new.map(|deadline| (deadline, name.clone())));
        old
    }

    fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.deadlines.first() {
            if first.0 > now {
                return Some(first.0);
            }
            let (_, name) = self.deadlines.pop_first()?;
            self.replace(&name, None);
        }
        None
    }
}

impl Locals {
    fn now(&self) -> MutexGuard<'_, Table> {
        let mut table = lock(&self.0);
        table.expire(Instant::now());
        table
    }

    /// Adds or replaces one, and answers what was there. A name of another owner stays theirs.
    pub(super) fn remember(&self, name: &EndpointName, local: Local) -> Result<Option<Local>> {
        let mut table = self.now();
        match table.by_name.get(name) {
            Some(Local { owner: Some(owner), .. }) if local.owner.as_ref() != Some(owner) => {
                return Err(denied(NetworkServiceEndpoint::object(name), owner, local.owner.as_ref()));
            }
            None if table.by_name.len() >= super::MAX_LOCAL_ENDPOINTS => {
                let reason = format!("this node has {} endpoints already", super::MAX_LOCAL_ENDPOINTS);
                return Err(Error::new(Kind::Exhausted, NetworkServiceEndpoint::object(name), reason, "register it on another node"));
            }
            Some(_) | None => {}
        }
        Ok(table.replace(name, Some(local)))
    }

    /// Puts back what was there, or nothing.
    pub(super) fn restore(&self, name: &EndpointName, before: Option<Local>) {
        self.now().replace(name, before);
    }

    /// Where `name` is reached, if it was registered here by `owner`. That keeps a name which the registry above has
    /// for one owner from leading to the socket of another who asks for it and has no answer yet.
    pub(super) fn get(&self, name: &EndpointName, owner: Option<&String>) -> Option<Address> {
        let table = self.now();
        let local = table.by_name.get(name)?;
        let same = owner.is_none() || local.owner.is_none() || owner == local.owner.as_ref();
        same.then(|| local.address.clone())
    }

    /// The endpoints of this node that may answer `query`, by name and services.
    pub(super) fn serving(&self, query: &EndpointQuery) -> Vec<EndpointName> {
        let named = |name: &EndpointName| query.name.as_ref().is_none_or(|wanted| wanted == name);
        let serves = |local: &Local| query.services.iter().all(|service| local.services.contains(service));
        let table = self.now();
        table.by_name.iter().filter(|(name, local)| named(name) && serves(local)).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn knows(&self, name: &EndpointName) -> bool {
        self.now().by_name.contains_key(name)
    }
}

impl Expires for Locals {
    fn expire(&self, now: Instant) -> Option<Instant> {
        lock(&self.0).expire(now)
    }
}

/// Calls about one name, one after the other: the registry above must see them in the order we remember them.
#[derive(Default)]
pub(super) struct Turns(Mutex<BTreeMap<EndpointName, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the turn of this name. Bounded by the calls in flight, and each of those by its time limit.
    pub(super) async fn take(&self, name: &EndpointName) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.0);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(name).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(name.clone(), Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

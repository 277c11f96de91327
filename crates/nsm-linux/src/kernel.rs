//! The real kernel behind the seam of `nsm-hop`: what of an owner exists, and changes to it.
//!
//! A call is one job on a thread of its own, which visits the namespaces it needs, keeps a netlink socket in each for as
//! long as the job lasts, and ends. Nothing is cached between jobs: a socket kept open would keep its namespace alive.
//! Jobs of one connection follow each other even when a caller goes away in the middle.

mod apply;
mod job;
mod links;
mod observe;
mod path;
mod pinhole;
mod policy;
mod reap;
mod splice;
mod sweep;
mod tag;
mod watch;

use crate::{
    error::refused,
    inet, link,
    netns::{self, Visitor},
    nl::{self, Attributes, Socket, messages, read_text},
    sys,
    tunnels::Tunnels,
    uapi::*,
};
use async_trait::async_trait;
use job::Job;
use nsm_api::{ConnectionId, Error, HopName, Kind, Result};
use nsm_hop::kernel::{Counters, IfName, Iface, Kernel, Netns, Op, Owner, Sentry, UnderlayMtu, Wires};
use path::Paths;
use pinhole::Pinholes;
use reap::Reaper;
use rustix::{io::Errno, net::RecvFlags};
use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
pub use sweep::Forgotten;
use tag::Tag;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

/// Routes made for a wire carry this protocol number, by which they are told from all others.
pub const ROUTE_PROTOCOL: u8 = 0xB4;
/// Jobs at work at once; more wait. Each is a thread with a few sockets.
const MAX_JOBS: usize = 64;
/// Connections share this many turnstiles; two that meet at one wait for each other, no more.
const TURNSTILES: usize = 256;
/// Bytes of the longest event about a link.
const EVENT_BYTES: usize = 32 * 1024;

/// The kernel of this machine, seen from the namespace in which it was created: the underlay.
#[derive(Clone)]
pub struct LinuxKernel(Arc<Inner>, Option<Arc<Paths>>);

struct Inner {
    underlay: Mutex<Socket>,
    /// Inode of the underlay.
    home: u64,
    pinholes: Pinholes,
    tunnels: Option<Arc<dyn Tunnels>>,
    /// Held while a routing table is chosen and filled.
    tables: Mutex<()>,
    reaper: Reaper,
    watches: Arc<watch::Watches>,
    turnstiles: Vec<Arc<AsyncMutex<()>>>,
    jobs: Arc<Semaphore>,
}

impl Inner {
    fn tunnels(&self) -> Result<&dyn Tunnels> {
        let none = || Error::new(Kind::Unsupported, "an encrypted tunnel", "nobody here makes them", "run `nsm packet` on this node");
        self.tunnels.as_deref().ok_or_else(none)
    }
    fn underlay(&self) -> MutexGuard<'_, Socket> {
        self.underlay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinuxKernel {
    /// Takes the namespace of the calling thread as the underlay: tunnels have their sockets there.
    pub fn new() -> Result<LinuxKernel> {
        LinuxKernel::make(None)
    }
    /// The same, with somebody who makes encrypted tunnels.
    pub fn with_tunnels(tunnels: Arc<dyn Tunnels>) -> Result<LinuxKernel> {
        LinuxKernel::make(Some(tunnels))
    }
    fn make(tunnels: Option<Arc<dyn Tunnels>>) -> Result<LinuxKernel> {
        Ok(LinuxKernel(
            Arc::new(Inner {
                underlay: Mutex::new(Socket::open()?),
                home: netns::current()?.key.ino,
                pinholes: Pinholes::new(),
                tables: Mutex::default(),
                tunnels,
                reaper: Reaper::default(),
                watches: Arc::default(),
                turnstiles: (0..TURNSTILES).map(|_| Arc::default()).collect(),
                jobs: Arc::new(Semaphore::new(MAX_JOBS)),
            }),
            None,
        ))
    }
    /// The same, which proves that the ways to other nodes carry what tunnels need; what it finds out lowers `limit`. To be
    /// called in the namespace of the underlay.
    pub fn proving(mut self, limit: UnderlayMtu) -> Result<LinuxKernel> {
        self.1 = Some(Arc::new(Paths::new(netns::current()?, limit)));
        Ok(self)
    }

    /// One job for one connection, after all earlier ones for it. It ends even when the caller does not wait.
    async fn job<T: Send + 'static>(&self, owner: &Owner, work: impl FnOnce(&Inner, Job) -> Result<T> + Send + 'static) -> Result<T> {
        self.tagged_job(Tag::of(owner, Some(self.0.home)), work).await
    }
    async fn tagged_job<T: Send + 'static>(&self, tag: Tag, work: impl FnOnce(&Inner, Job) -> Result<T> + Send + 'static) -> Result<T> {
        let turn = self.0.turnstiles[tag.place() % TURNSTILES].clone().lock_owned().await;
        let closed = |_| Error::internal("the kernel's jobs", "they were closed");
        let permit = self.0.jobs.clone().acquire_owned().await.map_err(closed)?;
        let inner = self.0.clone();
        let visit = move |visitor: &Visitor| {
            let result = work(&inner, Job::new(visitor, tag));
            drop((turn, permit));
            result
        };
        netns::visit(visit).await?
    }
}

#[async_trait]
impl Kernel for LinuxKernel {
    async fn observe(&self, owner: &Owner, about: &Wires) -> Result<Wires> {
        let about = about.clone();
        self.job(owner, move |inner, mut job| observe::observe(inner, &mut job, &about)).await
    }
    async fn apply(&self, owner: &Owner, ops: &[Op]) -> Result<()> {
        let all = ops.to_vec();
        self.job(owner, move |inner, job| apply::apply(inner, job, &all)).await?;
        match &self.1 {
            Some(paths) => paths.prove(ops).await,
            None => Ok(()),
        }
    }
    async fn appeared(&self, iface: &Iface) -> Result<()> {
        loop {
            let Some(events) = listen(iface).await? else { return Ok(()) };
            if heard(events, iface).await? {
                return Ok(());
            }
        }
    }
    async fn watch(&self, about: &Wires) -> Result<Option<Box<dyn Sentry>>> {
        Ok(Some(Box::new(self.0.watches.post(about).await?)))
    }
    async fn counters(&self, owner: &Owner, on: &[Iface]) -> Result<Vec<Option<Counters>>> {
        let on = on.to_vec();
        self.job(owner, move |_, mut job| on.iter().map(|iface| observe::counters(&mut job, iface)).collect()).await
    }
    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32> {
        let inner = self.0.clone();
        netns::visit(move |_| underlay_mtu(&mut inner.underlay(), address)).await?
    }
}

/// Subscribes to the namespace's links, then looks: `None` when the interface is there already.
async fn listen(iface: &Iface) -> Result<Option<OwnedFd>> {
    let wanted = iface.clone();
    let look = move |visitor: &Visitor| {
        visitor.enter(&wanted.netns)?;
        let events = nl::events(RTMGRP_LINK).map_err(|errno| refused("link events", "subscribe to them", errno))?;
        let found = link::by_name(&mut Socket::open()?, wanted.name.as_str());
        let found = found.map_err(|refusal| refused(job::describe(&wanted), "look it up", refusal))?;
        Ok(found.is_none().then_some(events))
    };
    netns::visit(look).await?
}

/// Waits for news of the interface; `false` when news were lost and one must look again.
async fn heard(events: OwnedFd, iface: &Iface) -> Result<bool> {
    let failed = |errno: Errno| refused("link events", "read them", errno);
    let events = sys::watch(events).map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let mut buffer = vec![0; EVENT_BYTES];
    loop {
        let mut ready = events.readable().await.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        match rustix::net::recv(&events, &mut buffer[..], RecvFlags::empty()) {
            Ok((read, _)) if names(&buffer[..read], iface.name.as_str()) => return Ok(true),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::NOBUFS) => return Ok(false),
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn names(bytes: &[u8], name: &str) -> bool {
    let named = |body| Attributes::after(body, link::LINK_FIXED).find(IFLA_IFNAME).is_some_and(|found| read_text(found) == name);
    messages(bytes).any(|(header, body)| header.kind == RTM_NEWLINK && named(body))
}

fn underlay_mtu(socket: &mut Socket, address: IpAddr) -> Result<u32> {
    let object = format!("tunnel address {address}");
    let failed = |refusal| refused(&object, "find the device that carries it", refusal);
    let carrier = inet::addresses(socket, 0).map_err(failed)?.into_iter().find(|found| found.net.addr() == address);
    let device = carrier.map(|carrier| link::by_index(socket, carrier.index)).transpose().map_err(failed)?.flatten();
    let missing = || Error::new(Kind::NotFound, &object, "no device of this node carries it", "name an address that `ip address` shows");
    device.map(|device| device.mtu).ok_or_else(missing)
}

/// Joins two interfaces of a namespace, to see whether this kernel can.
pub(crate) fn try_splice(netns: &Netns, a: &str, b: &str) -> Result<()> {
    let iface = |name: &str| Ok::<_, Error>(Iface { netns: netns.clone(), name: IfName::new(name)? });
    let (a, b) = (iface(a)?, iface(b)?);
    let owner = Owner { hop: HopName::new("doctor")?, connection: ConnectionId::new("probe")?, generation: 0 };
    netns::visit_blocking(|visitor| splice::add(&mut Job::new(visitor, Tag::of(&owner, None)), &a, &b))?
}

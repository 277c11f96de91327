//! What the threads of an engine have in common.

use super::{path::Path, timers::Timers, tunnel::Tunnel};
use crate::{
    error::refused,
    keys::random,
    segment::MAX_PACKET,
    wireguard::{indices::Indices, macs::Cookies, peer::Outbox, timing::Timing},
};
use nsm_api::Result;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Most packets that are dropped at a time when a peer does not answer: what an interface holds.
const MAX_PURGED: usize = 1000;
/// The number under which the bell is watched; devices and paths begin at one.
const BELL: u64 = 0;
/// Marks the number of a path.
const PATH: u64 = 1 << 32;

/// What has something to be read.
pub(super) enum Ready {
    Interface(Arc<Tunnel>),
    Path(Arc<Path>),
    /// It is over, or what was ready has gone.
    Nothing,
}

impl PartialEq for Ready {
    fn eq(&self, other: &Ready) -> bool {
        match (self, other) {
            (Ready::Interface(one), Ready::Interface(two)) => one.number == two.number,
            (Ready::Path(one), Ready::Path(two)) => one.number == two.number,
            (Ready::Nothing, Ready::Nothing) => true,
            _ => false,
        }
    }
}

/// What a device gets to know of its engine.
pub(super) struct Parts {
    pub(super) indices: Arc<Indices>,
    pub(super) timing: Timing,
}

/// The common state.
pub(super) struct Shared {
    /// One for each worker: what is watched there belongs to it alone.
    polls: Vec<OwnedFd>,
    pub(super) indices: Arc<Indices>,
    pub(super) timers: Timers,
    timing: Timing,
    bell: OwnedFd,
    stopped: AtomicBool,
    tunnels: RwLock<BTreeMap<u32, Arc<Tunnel>>>,
    paths: RwLock<BTreeMap<u32, Arc<Path>>>,
    guard: Mutex<Guard>,
}

/// How many handshake messages came lately, and the cookies for their senders.
struct Guard {
    cookies: Cookies,
    since: Instant,
    count: u32,
}

impl Shared {
    pub(super) fn new(workers: usize, timing: Timing) -> Result<Shared> {
        let failed = |errno| refused("the packet engine", "open what it waits with", errno);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let poll = || {
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            epoll::add(&poll, &bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN).map(|()| poll)
        };
        let polls = (0..workers).map(|_| poll()).collect::<std::result::Result<_, Errno>>().map_err(failed)?;
        let now = Instant::now();
        Ok(Shared {
            polls,
            indices: Arc::default(),
            timers: Timers::default(),
            timing,
            bell,
            stopped: AtomicBool::new(false),
            tunnels: RwLock::default(),
            paths: RwLock::default(),
            guard: Mutex::new(Guard { cookies: Cookies::new(now)?, since: now, count: 0 }),
        })
    }
    pub(super) fn parts(&self) -> Parts {
        Parts { indices: self.indices.clone(), timing: self.timing }
    }
    /// Where the worker of this number waits; numbers go round.
    pub(super) fn poll(&self, worker: u32) -> &OwnedFd {
        &self.polls[worker as usize % self.polls.len()]
    }
    /// Whether both numbers are of one worker.
    pub(super) fn same_worker(&self, one: u32, two: u32) -> bool {
        std::ptr::eq(self.poll(one), self.poll(two))
    }
    /// From now on the socket belongs to that worker. Only called by the worker to which it belongs.
    pub(super) fn hand_over(&self, path: &Path, worker: u32) {
        // A socket that is being closed is watched nowhere.
        let _ = epoll::delete(self.poll(path.worker()), &path.socket);
        path.set_worker(worker);
        let _ = epoll::add(self.poll(worker), &path.socket, epoll::EventData::new_u64(PATH | u64::from(path.number)), edges());
    }
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // The counter of the bell is far from full.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        self.timers.wake();
    }
    pub(super) fn tunnel(&self, number: u32) -> Option<Arc<Tunnel>> {
        self.tunnels.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
    /// What an event is about.
    pub(super) fn ready(&self, data: u64) -> Ready {
        let number = data as u32;
        match data & PATH {
            0 => self.tunnel(number).map_or(Ready::Nothing, Ready::Interface),
            _ => {
                let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
                paths.get(&number).cloned().map_or(Ready::Nothing, Ready::Path)
            }
        }
    }

    /// The device takes part: its packets are carried and its timers run.
    pub(super) fn attach(&self, tunnel: &Arc<Tunnel>) -> Result<()> {
        self.tunnels.write().unwrap_or_else(PoisonError::into_inner).insert(tunnel.number, tunnel.clone());
        tunnel.path.join(tunnel);
        let failed = |errno| refused(format!("interface {}", tunnel.tun().index), "watch it", errno);
        let (file, data, flags) = (tunnel.tun().file.as_fd(), epoll::EventData::new_u64(tunnel.number.into()), edges());
        epoll::add(self.poll(tunnel.home), file, data, flags).map_err(failed)?;
        let (now, mut out) = (Instant::now(), Outbox::default());
        tunnel.peer().start(now, &mut out)?;
        self.settle(tunnel, now, out);
        Ok(())
    }
    /// The device takes no part any more; its interface stays.
    pub(super) fn detach(&self, tunnel: &Arc<Tunnel>) {
        self.tunnels.write().unwrap_or_else(PoisonError::into_inner).remove(&tunnel.number);
        tunnel.path.leave(tunnel);
        self.timers.cancel(tunnel);
        tunnel.peer().end();
        // One that has gone is not watched.
        let _ = epoll::delete(self.poll(tunnel.home), tunnel.tun().file.as_fd());
    }
    pub(super) fn watch(&self, path: &Arc<Path>) -> Result<()> {
        self.paths.write().unwrap_or_else(PoisonError::into_inner).insert(path.number, path.clone());
        let data = epoll::EventData::new_u64(PATH | u64::from(path.number));
        epoll::add(self.poll(path.worker()), &path.socket, data, edges()).map_err(|errno| refused("a UDP socket", "watch it", errno))
    }
    pub(super) fn unwatch(&self, path: &Path) {
        self.paths.write().unwrap_or_else(PoisonError::into_inner).remove(&path.number);
        // Closing the socket would do the same, a little later.
        let _ = epoll::delete(self.poll(path.worker()), &path.socket);
    }
    /// Tells again of something that has been told of already. One that has gone is not watched any more.
    fn tell_again(&self, ready: &Ready) {
        let (poll, fd, data) = match ready {
            Ready::Interface(tunnel) => (self.poll(tunnel.home), tunnel.tun().file.as_fd(), u64::from(tunnel.number)),
            Ready::Path(path) => (self.poll(path.worker()), path.socket.as_fd(), PATH | u64::from(path.number)),
            Ready::Nothing => return,
        };
        let _ = epoll::modify(poll, fd, epoll::EventData::new_u64(data), edges());
    }
    /// Tells again of everything: a worker has forgotten what it knew.
    pub(super) fn tell_all_again(&self) {
        let tunnels: Vec<_> = self.tunnels.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let paths: Vec<_> = self.paths.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        tunnels.into_iter().map(Ready::Interface).chain(paths.into_iter().map(Ready::Path)).for_each(|ready| self.tell_again(&ready));
    }

    /// Does what a call of the peer's state left to do, and sees to its timers.
    pub(super) fn settle(&self, tunnel: &Arc<Tunnel>, now: Instant, out: Outbox) {
        tunnel.deliver(now, &out);
        if (out.established || out.gave_up) && tunnel.parked.swap(false, Ordering::AcqRel) {
            if out.gave_up {
                purge(tunnel);
            }
            self.tell_again(&Ready::Interface(tunnel.clone()));
        }
        let deadline = tunnel.peer().deadline();
        self.timers.at_latest(tunnel, deadline);
    }
    /// Counts a handshake message that passed its gate; the sender's cookie if it must prove its address.
    pub(super) fn cookie_wanted(&self, path: &Path, now: Instant) -> Option<[u8; 16]> {
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(guard.since) >= Duration::from_secs(1) {
            (guard.since, guard.count) = (now, 0);
        }
        guard.count = guard.count.saturating_add(1);
        if guard.count <= self.timing.load_threshold {
            return None;
        }
        let cookie = guard.cookies.of(path.endpoint, now);
        // Without randomness nobody could prove anything: then nobody is heard.
        Some(cookie.unwrap_or_else(|_| {
            let mut never = [0; 16];
            let _ = random(&mut never);
            never
        }))
    }
}

/// Only what is new is told: whoever hears of it reads until nothing is left.
fn edges() -> epoll::EventFlags {
    epoll::EventFlags::IN | epoll::EventFlags::ET
}

/// Drops the packets that waited for a session which never came.
fn purge(tunnel: &Tunnel) {
    let mut packet = vec![0; MAX_PACKET];
    for _ in 0..MAX_PURGED {
        match rustix::io::read(&tunnel.tun().file, packet.as_mut_slice()) {
            Ok(_) => tunnel.tally.tx_dropped.fetch_add(1, Ordering::Relaxed),
            Err(_) => return,
        };
    }
}

//! Links that can be bad: between two TAP devices a thread of ours carries every frame, or loses, doubles, delays it and lets
//! it overtake others, by a chance that a seed decides.
//!
//! Not here: which links there are ([`crate::places`]), and when they turn bad ([`crate::faults`]).

mod frame;

use crate::{
    judges::Service,
    schema::{Direction, LinkFault, Span},
};
use nsm_api::{Error, Result};
use nsm_linux::tap::ETHERNET_BYTES;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes of the longest frame.
const MAX_FRAME: usize = 10_000;
/// Frames under way at a time; more are lost, as in a full queue.
const MAX_QUEUED: usize = 1 << 16;
/// Frames that are taken from one end before the others have their turn.
const MAX_ROW: usize = 64;
/// How long the thread sleeps at most, so that its end is noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// One link: its name, and its ends. What comes out of the first is what its node sends.
pub(crate) struct Link {
    /// The node that it belongs to.
    pub(crate) node: String,
    /// At the node.
    pub(crate) near: OwnedFd,
    /// At the other end.
    pub(crate) far: OwnedFd,
}

/// How a link is now.
#[derive(Clone, Debug, Default)]
struct State {
    fault: LinkFault,
    peer: Option<IpAddr>,
}

type States = Arc<Mutex<BTreeMap<String, State>>>;

/// Carries frames until it is dropped.
pub(crate) struct Relay {
    states: States,
    _thread: Service<Result<()>>,
}

impl Relay {
    /// Starts to carry frames over good links.
    pub(crate) fn start(seed: u64, links: Vec<Link>) -> Result<Relay> {
        let states = States::default();
        let run = Run { states: states.clone(), links, random: StdRng::seed_from_u64(seed), queue: BinaryHeap::new(), count: 0 };
        Ok(Relay { states, _thread: Service::start("relay", move |over| run.go(over))? })
    }
    /// From now on the link of this node is so. `peer` is the address of the node that the fault is about, if not all.
    pub(crate) fn set(&self, node: &str, fault: LinkFault, peer: Option<IpAddr>) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), State { fault, peer });
    }
}

/// A frame under way: when it arrives, its number, to which link and which of its ends, and itself. The first comes first.
type Queued = Reverse<(Instant, u64, usize, bool, Vec<u8>)>;

struct Run {
    states: States,
    links: Vec<Link>,
    random: StdRng,
    queue: BinaryHeap<Queued>,
    count: u64,
}

impl Run {
    fn go(mut self, over: &AtomicBool) -> Result<()> {
        let failed = |errno: Errno| Error::internal("the links of a lab", errno.to_string());
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        for (number, link) in self.links.iter().enumerate() {
            for (fd, end) in [(&link.near, 0), (&link.far, 1)] {
                epoll::add(&poll, fd, epoll::EventData::new_u64(2 * number as u64 + end), epoll::EventFlags::IN).map_err(failed)?;
            }
        }
        let mut events = Vec::with_capacity(2 * self.links.len().max(1));
        while !over.load(Ordering::Relaxed) {
            let now = Instant::now();
            let next = self.queue.peek().map(|Reverse((due, ..))| due.saturating_duration_since(now));
            let timeout = Timespec { tv_sec: 0, tv_nsec: next.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP).as_nanos() as i64 };
            match epoll::wait(&poll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            for event in events.drain(..) {
                let end = event.data.u64() as usize;
                self.take(end / 2, end.is_multiple_of(2));
            }
            self.deliver();
        }
        Ok(())
    }

    /// Frames that a link's near (or else far) end hands over.
    fn take(&mut self, link: usize, near: bool) {
        let state = self.states.lock().unwrap_or_else(PoisonError::into_inner).get(&self.links[link].node).cloned().unwrap_or_default();
        let mut buffer = [0; MAX_FRAME];
        for _ in 0..MAX_ROW {
            let end = &self.links[link];
            // What cannot be read is over: the device was taken down, or there is nothing more.
            let Ok(length) = rustix::io::read(if near { &end.near } else { &end.far }, &mut buffer) else { return };
            let way = if near { Direction::Out } else { Direction::In };
            for late in fates(&mut self.random, &state, way, &buffer[..length]) {
                self.count += 1;
                if self.queue.len() < MAX_QUEUED {
                    self.queue.push(Reverse((Instant::now() + late, self.count, link, !near, buffer[..length].to_vec())));
                }
            }
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.queue.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((_, _, link, near, frame))) = self.queue.pop() else { return };
            let end = &self.links[link];
            // A full or closed device loses it, as hardware would.
            let _ = rustix::io::write(if near { &end.near } else { &end.far }, &frame);
        }
    }
}

/// How late each copy of a frame arrives; empty when it is lost.
fn fates(random: &mut StdRng, state: &State, way: Direction, frame: &[u8]) -> Vec<Duration> {
    let State { fault, peer } = state;
    let meant = (fault.direction == Direction::Both || fault.direction == way) && frame::is_meant(frame, fault.only, *peer);
    if !meant {
        return vec![Duration::ZERO];
    }
    let too_long = fault.mtu.is_some_and(|mtu| frame::is_ip(frame) && frame.len() > mtu + ETHERNET_BYTES);
    let mut chance = |percent: f64| percent > 0.0 && random.random_bool((percent / 100.0).min(1.0));
    if too_long || chance(fault.loss) {
        return vec![];
    }
    let copies = if chance(fault.duplicate) { 2 } else { 1 };
    let overtakes = chance(fault.reorder);
    let late = |random: &mut StdRng| {
        let [delay, jitter] = [fault.delay, fault.jitter].map(|span| span.map_or(0.0, |Span(span)| span.as_secs_f64()));
        let moved = if jitter > 0.0 { random.random_range(-jitter..=jitter) } else { 0.0 };
        Duration::from_secs_f64((delay + moved).max(0.0))
    };
    (0..copies).map(|_| if overtakes { Duration::ZERO } else { late(random) }).collect()
}

#[cfg(test)]
mod tests;

//! A thread that carries packets: it waits while nothing moves, and polls what just moved while that has been worth it.
//!
//! Each interface and each socket belongs to one worker at a time, so that no other is woken for it, nothing is reordered, and a
//! sender finds its receiver awake while packets move: for a busy flow waking is most of the cost.

use super::{
    decap::Decap,
    encap::Encap,
    shared::{Ready, Shared},
};
use crate::sys;
use rustix::event::{Timespec, epoll};
use std::{
    mem::MaybeUninit,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

/// Most interfaces and sockets that one worker polls.
const MAX_HOT: usize = 16;
/// Longest time that a worker polls without a packet.
const SPIN: Duration = Duration::from_micros(50);
/// Polling that was in vain so many times in a row is tried again only once in two to the power of that many times.
const MAX_FAILURES: u32 = 10;
/// How long the scheduler lets a worker run at a time. A worker has little to do at once, and others wait for it: it runs no
/// more than its share, but sooner.
const TURN: Duration = Duration::from_micros(100);
/// Being busy for so long is too much for one worker.
const OVERLOAD: Duration = Duration::from_millis(2);
/// While packets move, others are looked for once in so many rounds.
const ROUNDS: u32 = 8;

/// What serving something came to, from nothing to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// It is not to be served any more, until somebody says so.
    Gone,
    /// There was nothing.
    Nothing,
    /// Packets moved, and there are no more.
    Drained,
    /// Packets moved, and there may be more.
    More,
}

/// The thread. A defect that a packet brings to light costs what was on its way, not the devices of this worker.
pub(super) fn run(number: u32, shared: &Arc<Shared>) {
    // Kernels before 6.12 take no notice; where it is not allowed, the scheduler's own choice has to do.
    let _ = sys::take_turns(TURN);
    while !shared.stopped() {
        let working = AssertUnwindSafe(|| Worker::new(number, shared.clone()).run());
        if std::panic::catch_unwind(working).is_err() {
            tracing::error!("a worker of the packet engine broke and begins anew: report this as a defect");
            shared.tell_all_again();
        }
    }
}

/// How much of its time a worker was busy lately.
struct Load {
    since: Instant,
    busy: u32,
    idle: u32,
}

impl Load {
    fn new(now: Instant) -> Load {
        Load { since: now, busy: 0, idle: 0 }
    }
    /// Counts a round. Whether, over a while, nearly all of them moved something.
    fn is_too_much(&mut self, moved: bool, now: Instant) -> bool {
        let count = if moved { &mut self.busy } else { &mut self.idle };
        *count = count.saturating_add(1);
        if now.saturating_duration_since(self.since) < OVERLOAD {
            return false;
        }
        let too_much = self.busy > 3 * self.idle;
        *self = Load::new(now);
        too_much
    }
}

/// The way that packets went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// Whether polling after packets that went one way is worth it, learned from how it went. It never is where the next packet can
/// come only after somebody else got this processor: where the receiver in the pod runs on it, or the other node's engine.
#[derive(Debug, Default)]
struct Habit {
    failures: u32,
    skip: u32,
}

impl Habit {
    /// Whether to poll this time.
    fn wants(&mut self) -> bool {
        let wants = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        wants
    }
    fn learn(&mut self, success: bool) {
        *self = match success {
            true => Habit::default(),
            false => {
                let failures = (self.failures + 1).min(MAX_FAILURES);
                Habit { failures, skip: 1 << failures }
            }
        };
    }
}

/// The state of one thread.
struct Worker {
    number: u32,
    shared: Arc<Shared>,
    encap: Encap,
    decap: Decap,
    hot: Vec<Ready>,
    /// Of packets out and in.
    habits: [Habit; 2],
}

impl Worker {
    fn new(number: u32, shared: Arc<Shared>) -> Worker {
        Worker { number, shared, encap: Encap::new(), decap: Decap::new(), hot: Vec::with_capacity(MAX_HOT), habits: Default::default() }
    }
    /// Works until the engine stops.
    fn run(mut self) {
        while !self.shared.stopped() {
            self.look(None);
            self.busy();
        }
    }
    /// Serves what is hot until it has been read empty and then, where that is worth it, quiet for a while.
    fn busy(&mut self) {
        let (mut round, mut moved_at, mut polling) = (0u32, Instant::now(), None);
        let mut load = Load::new(moved_at);
        while !self.hot.is_empty() && !self.shared.stopped() {
            let (most, way) = self.serve_all();
            round = round.wrapping_add(1);
            let moved = most >= Progress::Drained;
            if moved {
                let before = std::mem::replace(&mut moved_at, Instant::now());
                if let Some(after) = polling.take() {
                    // Late: somebody else had the processor meanwhile.
                    self.habit(after).learn(moved_at - before < SPIN);
                }
            }
            if most == Progress::Drained {
                if !self.habit(way).wants() {
                    break; // what came meanwhile is told
                }
                polling = Some(way);
            }
            if load.is_too_much(moved, moved_at) {
                self.share();
            }
            // What was told of is not told again: it must be served before the end.
            let told = (!moved || round.is_multiple_of(ROUNDS)) && self.look(Some(Duration::ZERO));
            if !moved && !told && moved_at.elapsed() >= SPIN {
                polling.into_iter().for_each(|after| self.habit(after).learn(false));
                break;
            }
        }
        self.rest();
    }
    fn habit(&mut self, after: Way) -> &mut Habit {
        &mut self.habits[after as usize]
    }
    /// Nothing is hot any more, and sockets that others had handed over go back.
    fn rest(&mut self) {
        for ready in self.hot.drain(..) {
            if let Ready::Path(path) = ready
                && !self.shared.same_worker(path.number, self.number)
            {
                self.shared.hand_over(&path, path.number);
            }
        }
    }
    /// Both ways of a device are more than this worker can carry: the next one takes the socket.
    fn share(&mut self) {
        let next = self.number + 1;
        let interface = self.hot.iter().any(|ready| matches!(ready, Ready::Interface(_)));
        let own = |ready: &Ready| matches!(ready, Ready::Path(path) if self.shared.same_worker(path.number, self.number));
        if let Some(place) = self.hot.iter().position(own)
            && interface
            && !self.shared.same_worker(next, self.number)
            && let Ready::Path(path) = self.hot.swap_remove(place)
        {
            self.shared.hand_over(&path, next);
        }
    }
    /// One turn for each. The most that any of them came to, and which way the last packets went.
    fn serve_all(&mut self) -> (Progress, Way) {
        let (mut most, mut way, mut number) = (Progress::Gone, Way::Out, 0);
        while number < self.hot.len() {
            let (progress, its) = match &self.hot[number] {
                Ready::Interface(tunnel) => (self.encap.serve(&self.shared, tunnel), Way::Out),
                Ready::Path(path) => (self.decap.serve(&self.shared, path), Way::In),
                Ready::Nothing => (Progress::Gone, Way::Out),
            };
            if progress >= Progress::Drained {
                way = its;
            }
            most = most.max(progress);
            if progress == Progress::Gone {
                self.hot.swap_remove(number);
            } else {
                number += 1;
            }
        }
        (most, way)
    }
    /// Takes over what has something to be read; with `None` waits until there is something. Whether there was.
    fn look(&mut self, timeout: Option<Duration>) -> bool {
        let room = MAX_HOT - self.hot.len();
        if room == 0 {
            return false;
        }
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; MAX_HOT];
        let timeout = timeout.map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: 0 });
        // Interrupted: the caller looks again.
        let Ok((ready, _)) = epoll::wait(self.shared.poll(self.number), &mut events[..room], timeout.as_ref()) else { return false };
        let any = !ready.is_empty();
        for event in ready.iter() {
            match self.shared.ready(event.data.u64()) {
                Ready::Nothing => {}
                // Told of what came while it is being served.
                ready if self.hot.contains(&ready) => {}
                ready => self.hot.push(ready),
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_in_vain_is_tried_ever_more_rarely_until_it_helps() {
        let (mut habit, mut tries) = (Habit::default(), 0);
        for _ in 0..100_000 {
            if habit.wants() {
                tries += 1;
                habit.learn(false);
            }
        }
        assert!((90..120).contains(&tries), "{tries} of 100000: about one in a thousand");
        habit.learn(true);
        assert!(habit.wants() && habit.wants());
    }
}

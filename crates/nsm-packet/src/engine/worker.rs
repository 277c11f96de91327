//! A thread that carries packets: it waits while nothing moves, and polls what just moved while more is likely.
//!
//! Each interface and each socket belongs to one worker at a time, so that no other is woken for it, nothing is reordered, and a
//! sender finds its receiver awake while packets move: for a busy flow waking is most of the cost.

use super::{
    decap::Decap,
    encap::Encap,
    shared::{Ready, Shared},
};
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
const MAX_SPIN: Duration = Duration::from_micros(50);
/// Shortest such time that is worth the effort.
const MIN_SPIN: Duration = Duration::from_micros(5);
/// Giving way for longer than this means that the processor is not ours alone.
const CONTENDED: Duration = Duration::from_micros(20);
/// For so long nothing is polled then.
const RESPITE: Duration = Duration::from_millis(20);
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

/// The state of one thread.
struct Worker {
    number: u32,
    shared: Arc<Shared>,
    encap: Encap,
    decap: Decap,
    hot: Vec<Ready>,
    /// How long to poll without a packet: learned from how soon the next came.
    spin: Duration,
    no_spin_before: Instant,
}

impl Worker {
    fn new(number: u32, shared: Arc<Shared>) -> Worker {
        Worker {
            number,
            shared,
            encap: Encap::new(),
            decap: Decap::new(),
            hot: Vec::with_capacity(MAX_HOT),
            spin: Duration::ZERO,
            no_spin_before: Instant::now(),
        }
    }
    /// Works until the engine stops.
    fn run(mut self) {
        while !self.shared.stopped() {
            self.sleep();
            self.busy();
        }
    }
    /// Waits for something to be read, and learns from how long it took.
    fn sleep(&mut self) {
        let begun = Instant::now();
        self.look(None);
        let slept = begun.elapsed();
        if begun < self.no_spin_before {
            return;
        }
        if slept <= MAX_SPIN {
            self.spin = (self.spin * 2).clamp(MIN_SPIN, MAX_SPIN);
        } else if slept > MAX_SPIN * 4 {
            self.spin = if self.spin <= MIN_SPIN { Duration::ZERO } else { self.spin / 2 };
        }
    }
    /// Serves what is hot until it has been read empty and then quiet for a while.
    fn busy(&mut self) {
        let (mut round, mut moved_at) = (0u32, Instant::now());
        let mut load = Load::new(moved_at);
        while !self.hot.is_empty() && !self.shared.stopped() {
            let most = self.serve_all();
            round = round.wrapping_add(1);
            if most == Progress::Drained && self.spin.is_zero() {
                break; // what came meanwhile is told
            }
            let moved = most >= Progress::Drained;
            if moved {
                moved_at = Instant::now();
            }
            if load.is_too_much(moved, moved_at) {
                self.share();
            }
            // What was told of is not told again: it must be served before the end.
            let told = (!moved || round.is_multiple_of(ROUNDS)) && self.look(Some(Duration::ZERO));
            if !moved && !told && (moved_at.elapsed() >= self.spin || !self.offer_processor()) {
                break;
            }
        }
        self.rest();
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
    /// Lets others run. Whether polling goes on: it does not where somebody else needs the processor, because a thread that
    /// gives way waits for its turn, while one that sleeps is woken at once.
    fn offer_processor(&mut self) -> bool {
        let begun = Instant::now();
        std::thread::yield_now();
        let alone = begun.elapsed() < CONTENDED;
        if !alone {
            self.spin = Duration::ZERO;
            self.no_spin_before = begun + RESPITE;
        }
        alone
    }
    /// One turn for each. The most that any of them came to.
    fn serve_all(&mut self) -> Progress {
        let (mut most, mut number) = (Progress::Gone, 0);
        while number < self.hot.len() {
            let progress = match &self.hot[number] {
                Ready::Interface(tunnel) => self.encap.serve(&self.shared, tunnel),
                Ready::Path(path) => self.decap.serve(&self.shared, path),
                Ready::Nothing => Progress::Gone,
            };
            most = most.max(progress);
            if progress == Progress::Gone {
                self.hot.swap_remove(number);
            } else {
                number += 1;
            }
        }
        most
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

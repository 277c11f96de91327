//! Echoes over many vWires all the time, at a fixed rate that nothing slows down: what is lost, and for how long.
//!
//! The kernels at the far ends answer, so no process of ours is asked. A request is lost when its answer has not come by
//! the time somebody looks.

use super::Service;
use nsm_api::{Error, Result};
use nsm_hop::kernel::Netns;
use nsm_linux::{echoes::Echoes, sniff::MARK_BYTES};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes of the payload: mark, number of the track, number of the probe.
const PAYLOAD: usize = MARK_BYTES + 8;
/// Probes of one track that are kept; an hour at a thousand in a second.
const MAX_PROBES: usize = 3_600_000;
/// Probes that are sent in one go after the thread was kept from its work.
const MAX_BURST: u32 = 64;
/// How long the thread sleeps at most, so that its end is noticed.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);

/// Who asks whom.
#[derive(Clone)]
pub(crate) struct Track {
    /// Where the echoes come from.
    pub(crate) netns: Netns,
    /// Who may answer; one answer to a probe is enough. Not empty, all of one family.
    pub(crate) to: Vec<IpAddr>,
}

/// One probe: when it was sent, when the first answer came, how many came. Times from the start of the pulse.
#[derive(Clone, Copy, Debug, Default)]
struct Probe {
    sent: Duration,
    answered: Option<Duration>,
    answers: u32,
}

/// What one track, or several, saw in some span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Toll {
    /// Probes sent, or tried to send.
    pub(crate) sent: usize,
    /// Those nobody answered.
    pub(crate) lost: usize,
    /// Answers beyond the first from each of those who may answer.
    pub(crate) doubled: usize,
    /// The longest time from an answered probe to the next answered one, if any was lost between.
    pub(crate) silence: Duration,
}

impl Toll {
    /// Both together: the sums, and the longer silence.
    pub(crate) fn and(self, other: Toll) -> Toll {
        Toll {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            silence: self.silence.max(other.silence),
        }
    }
}

/// Echoes over some vWires, until it is dropped.
pub(crate) struct Pulse {
    begun: Instant,
    mark: [u8; MARK_BYTES],
    tracks: Arc<Vec<Mutex<Vec<Probe>>>>,
    wanted: Vec<usize>,
    thread: Service<Result<()>>,
}

impl Pulse {
    /// Sends a probe every `pace`, over one track after the other.
    pub(crate) fn start(tracks: &[Track], pace: Duration) -> Result<Pulse> {
        let mark: [u8; MARK_BYTES] = rand::random();
        let mut sockets = Vec::new();
        for track in tracks {
            let first = track.to.first().ok_or_else(|| Error::internal("a track of echoes", "leads nowhere"))?;
            sockets.push((Echoes::open(&track.netns, *first)?, track.to.clone()));
        }
        let (begun, wanted) = (Instant::now(), tracks.iter().map(|track| track.to.len()).collect());
        let records: Arc<Vec<_>> = Arc::new(tracks.iter().map(|_| Mutex::new(Vec::new())).collect());
        let run = Run { sockets, mark, begun, pace, tracks: records.clone(), next: 0 };
        let thread = Service::start("pulse", move |over| run.go(over))?;
        Ok(Pulse { begun, mark, tracks: records, wanted, thread })
    }
    /// What its packets carry, for those who watch.
    pub(crate) fn mark(&self) -> [u8; MARK_BYTES] {
        self.mark
    }
    /// Now, on its clock.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }
    /// What a track saw of the probes sent from `from` to before `to`.
    pub(crate) fn toll(&self, track: usize, from: Duration, to: Duration) -> Toll {
        let probes = self.tracks[track].lock().unwrap_or_else(PoisonError::into_inner);
        toll(probes.iter().filter(|probe| probe.sent >= from && probe.sent < to), self.wanted[track])
    }
    /// The same of all tracks together.
    pub(crate) fn all(&self, from: Duration, to: Duration) -> Toll {
        (0..self.tracks.len()).map(|track| self.toll(track, from, to)).fold(Toll::default(), Toll::and)
    }
    /// Ends it. An error is one of the probing, not of what was probed.
    pub(crate) fn end(self) -> Result<()> {
        self.thread.end()?
    }
}

fn toll<'a>(probes: impl Iterator<Item = &'a Probe>, wanted: usize) -> Toll {
    let mut toll = Toll::default();
    let (mut good, mut losing, mut last) = (None, false, Duration::ZERO);
    for probe in probes {
        toll.sent += 1;
        toll.doubled += (probe.answers as usize).saturating_sub(wanted);
        last = probe.sent;
        let since = *good.get_or_insert(probe.sent);
        if probe.answered.is_none() {
            (toll.lost, losing) = (toll.lost + 1, true);
            continue;
        }
        if losing {
            toll.silence = toll.silence.max(probe.sent - since);
        }
        (good, losing) = (Some(probe.sent), false);
    }
    if losing {
        toll.silence = toll.silence.max(last - good.unwrap_or(last));
    }
    toll
}

/// What the thread has.
struct Run {
    sockets: Vec<(Echoes, Vec<IpAddr>)>,
    mark: [u8; MARK_BYTES],
    begun: Instant,
    pace: Duration,
    tracks: Arc<Vec<Mutex<Vec<Probe>>>>,
    next: u32,
}

impl Run {
    fn go(mut self, over: &AtomicBool) -> Result<()> {
        let failed = |errno: rustix::io::Errno| Error::internal("waiting for echoes", errno.to_string());
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        for (number, (echoes, _)) in self.sockets.iter().enumerate() {
            epoll::add(&poll, echoes, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN).map_err(failed)?;
        }
        let mut events = Vec::with_capacity(self.sockets.len().max(1));
        while !over.load(Ordering::Relaxed) {
            self.send_due();
            let sleep = (self.pace * self.next).saturating_sub(self.begun.elapsed()).min(LONGEST_SLEEP);
            let timeout = Timespec { tv_sec: 0, tv_nsec: sleep.as_nanos() as i64 };
            match epoll::wait(&poll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            for event in std::mem::take(&mut events) {
                self.take(event.data.u64() as usize)?;
            }
            events.reserve(self.sockets.len());
        }
        Ok(())
    }

    /// All that should have been sent by now. Those that could not be sent in time are not made up for: they were not sent.
    fn send_due(&mut self) {
        let due = (self.begun.elapsed().as_nanos() / self.pace.as_nanos()) as u32;
        self.next = self.next.max(due.saturating_sub(MAX_BURST));
        while self.next <= due {
            self.send(self.next as usize % self.sockets.len());
            self.next += 1;
        }
    }

    fn send(&self, track: usize) {
        let (echoes, to) = &self.sockets[track];
        let mut probes = self.tracks[track].lock().unwrap_or_else(PoisonError::into_inner);
        if probes.len() >= MAX_PROBES {
            return;
        }
        let number = probes.len() as u32;
        probes.push(Probe { sent: self.begun.elapsed(), ..Probe::default() });
        drop(probes);
        let payload = [&self.mark[..], &(track as u32).to_be_bytes(), &number.to_be_bytes()].concat();
        for to in to {
            // One that cannot be sent is one that nobody answers.
            let _ = echoes.send(*to, &payload);
        }
    }

    fn take(&self, track: usize) -> Result<()> {
        let mut buffer = [0; 256];
        while let Some(answer) = self.sockets[track].0.receive(&mut buffer)? {
            if answer.len() != PAYLOAD
                || answer[..MARK_BYTES] != self.mark
                || answer[MARK_BYTES..MARK_BYTES + 4] != (track as u32).to_be_bytes()
            {
                continue; // somebody else's, or of another track in this namespace
            }
            let number = u32::from_be_bytes([answer[PAYLOAD - 4], answer[PAYLOAD - 3], answer[PAYLOAD - 2], answer[PAYLOAD - 1]]);
            let mut probes = self.tracks[track].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(probe) = probes.get_mut(number as usize) {
                probe.answers += 1;
                probe.answered.get_or_insert(self.begun.elapsed());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_linux::{net::Net, netns};

    fn probe(ms: u64, answers: u32) -> Probe {
        let sent = Duration::from_millis(ms);
        Probe { sent, answered: (answers > 0).then_some(sent), answers }
    }

    #[test]
    fn silence_is_from_answer_to_answer_and_only_where_one_was_lost() {
        let of = |probes: &[Probe]| toll(probes.iter(), 1);
        let calm = of(&[probe(0, 1), probe(10, 1), probe(20, 2)]);
        assert_eq!(calm, Toll { sent: 3, lost: 0, doubled: 1, silence: Duration::ZERO });
        let broken = of(&[probe(0, 1), probe(10, 0), probe(20, 0), probe(30, 1), probe(40, 0), probe(50, 1)]);
        assert_eq!(broken, Toll { sent: 6, lost: 3, doubled: 0, silence: Duration::from_millis(30) });
        assert_eq!(of(&[probe(5, 1), probe(10, 0), probe(25, 0)]).silence, Duration::from_millis(20), "still silent");
        assert_eq!(of(&[probe(5, 0), probe(10, 0), probe(25, 1)]).silence, Duration::from_millis(20), "silent from the start");
        assert_eq!(of(&[]), Toll::default());
    }

    /// Needs the right to make namespaces; without it this test fails.
    #[test]
    fn a_pulse_counts_what_is_answered_and_what_is_not() {
        let netns = netns::create().expect("this test makes a network namespace: run it as root or under `unshare -Urnm`");
        let net = Net::new(&netns).unwrap();
        net.loopback_up().unwrap();
        let to = |text: &str| vec![text.parse().unwrap()];
        let tracks = [Track { netns: netns.clone(), to: to("127.0.0.1") }, Track { netns, to: to("192.0.2.1") }];
        let pulse = Pulse::start(&tracks, Duration::from_millis(1)).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while pulse.all(Duration::ZERO, pulse.now()).sent < 40 && Instant::now() < until {
            std::thread::yield_now();
        }
        let end = pulse.now();
        while pulse.toll(0, Duration::ZERO, end).lost > 0 && Instant::now() < until {
            std::thread::yield_now();
        }
        let (good, bad) = (pulse.toll(0, Duration::ZERO, end), pulse.toll(1, Duration::ZERO, end));
        assert!(good.sent >= 20 && good.lost == 0 && good.doubled == 0, "{good:?}");
        assert!(bad.sent >= 19 && bad.lost == bad.sent, "{bad:?}");
        pulse.end().unwrap();
    }
}

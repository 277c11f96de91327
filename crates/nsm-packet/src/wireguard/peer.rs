//! The state of a device towards its one peer: handshakes, up to three sessions, and what is due when.
//!
//! Every call is told the time and fills an [`Outbox`] with what must be sent. Not here: sockets and the encryption of
//! packets, which uses the [`Keypair`] that this hands out.

use super::{
    indices::Indices,
    keypair::{Between, Keypair},
    macs::Stamp,
    message::{INITIATION_BYTES, u32_at},
    noise::{Identity, Initiating, Secrets, TIMESTAMP_BYTES, Timestamp},
    timing::{FORGET_AFTER_LIVES, INITIATION_SPACING, MAX_JITTER, REKEY_AFTER_MESSAGES, Timing},
};
use crate::keys::random;
use nsm_api::Result;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Seconds between the epoch of TAI64 labels and that of Unix, by the convention of WireGuard.
const TAI64_BASE: u64 = 0x4000_0000_0000_000a;
/// Time stamps are cut to this many nanoseconds, so that they tell little about the clock.
const TIMESTAMP_STEP: u32 = 1 << 24;

/// A handshake message ready to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Handshake {
    bytes: [u8; INITIATION_BYTES],
    length: usize,
}

impl Handshake {
    fn new(message: &[u8]) -> Handshake {
        let mut bytes = [0; INITIATION_BYTES];
        bytes[..message.len()].copy_from_slice(message);
        Handshake { bytes, length: message.len() }
    }
    /// The datagram.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What a call asks its caller to do.
#[derive(Default)]
pub(crate) struct Outbox {
    /// Send this.
    pub(crate) handshake: Option<Handshake>,
    /// Send an empty packet with this session.
    pub(crate) keepalive: Option<Arc<Keypair>>,
    /// Packets that waited for a session can go now.
    pub(crate) established: bool,
    /// Packets that waited are lost: the peer did not answer for too long.
    pub(crate) gave_up: bool,
}

struct Pending {
    state: Initiating,
    index: u32,
    first: Instant,
    retry: Instant,
}

/// When what is due.
#[derive(Default)]
struct Due {
    /// A handshake that was asked for too soon after the one before.
    begin: Option<Instant>,
    /// An answer to what we sent is overdue.
    silence: Option<Instant>,
    /// What we received must be answered, if only by an empty packet.
    answer: Option<Instant>,
    /// The next empty packet in any case.
    persistent: Option<Instant>,
    /// No handshake for so long that all keys are forgotten.
    forget: Option<Instant>,
}

/// One device's view of its peer.
pub(crate) struct Peer {
    device: u32,
    indices: Arc<Indices>,
    timing: Timing,
    identity: Identity,
    stamp: Stamp,
    sent_timestamp: Timestamp,
    seen_timestamp: Timestamp,
    last_begun: Option<Instant>,
    last_heard: Option<Instant>,
    last_handshake: Option<Instant>,
    pending: Option<Pending>,
    previous: Option<Arc<Keypair>>,
    current: Option<Arc<Keypair>>,
    /// Offered to the peer as responder, not yet used by it.
    next: Option<Arc<Keypair>>,
    due: Due,
    /// The device ended; what still comes changes nothing.
    ended: bool,
}

impl Peer {
    pub(crate) fn new(device: u32, indices: Arc<Indices>, identity: Identity, timing: Timing) -> Peer {
        let stamp = Stamp::new(&identity.peer);
        Peer {
            device,
            indices,
            timing,
            identity,
            stamp,
            sent_timestamp: [0; TIMESTAMP_BYTES],
            seen_timestamp: [0; TIMESTAMP_BYTES],
            last_begun: None,
            last_heard: None,
            last_handshake: None,
            pending: None,
            previous: None,
            current: None,
            next: None,
            due: Due::default(),
            ended: false,
        }
    }
    /// When the last handshake was completed.
    pub(crate) fn last_handshake(&self) -> Option<Instant> {
        self.last_handshake
    }
    /// When [`Peer::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let due = &self.due;
        let retry = self.pending.as_ref().map(|pending| pending.retry);
        [due.begin, due.silence, due.answer, due.persistent, due.forget, retry].into_iter().flatten().min()
    }

    /// The device is there: with a persistent keepalive, the tunnel is made ready before the first packet.
    pub(crate) fn start(&mut self, now: Instant, out: &mut Outbox) -> Result<()> {
        if self.timing.persistent_keepalive.is_none() {
            return Ok(());
        }
        self.arm_persistent(now);
        self.begin(now, out)
    }
    /// The device ends: nothing is due, and no datagram finds it any more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.forget();
        self.due = Due::default();
        self.abandon();
    }
    /// The session for packets to send now; begins a handshake when there is none or the one there is grows old.
    pub(crate) fn sending(&mut self, now: Instant, out: &mut Outbox) -> Option<Arc<Keypair>> {
        let current = self.current.clone().filter(|current| current.usable(now));
        let fresh = current.as_ref().is_some_and(|current| {
            let old = current.initiator && now.saturating_duration_since(current.created) >= self.timing.rekey_after;
            !old && current.sent() < REKEY_AFTER_MESSAGES
        });
        if !fresh {
            self.begin_or_log(now, out);
        }
        current
    }
    /// Packets were sent; `data` when they were not all empty.
    pub(crate) fn sent(&mut self, now: Instant, data: bool) {
        self.due.answer = None;
        self.arm_persistent(now);
        if data && self.due.silence.is_none() {
            self.due.silence = Some(now + self.timing.keepalive_timeout + self.timing.rekey_timeout + jitter());
        }
    }
    /// Authentic packets came in this session; `data` when they were not all empty.
    pub(crate) fn received(&mut self, now: Instant, keypair: &Arc<Keypair>, data: bool, out: &mut Outbox) {
        if self.next.as_ref().is_some_and(|next| next.local == keypair.local) {
            self.retire_previous();
            self.previous = self.current.take();
            self.current = self.next.take();
            self.last_handshake = Some(now);
            // A handshake of our own, which the peer most likely never saw, is not needed any more.
            self.abandon();
            self.due.begin = None;
            out.established = true;
        }
        self.heard(now);
        if data && self.due.answer.is_none() {
            self.due.answer = Some(now + self.timing.keepalive_timeout);
        }
        let margin = self.timing.keepalive_timeout + self.timing.rekey_timeout;
        let old = self.timing.reject_after.saturating_sub(margin);
        if keypair.initiator && now.saturating_duration_since(keypair.created) >= old && self.is_current(keypair) {
            self.begin_or_log(now, out);
        }
    }
    /// A first handshake message that passed the gate. Whether it was accepted.
    pub(crate) fn initiation(&mut self, message: &[u8], now: Instant, out: &mut Outbox) -> bool {
        if self.ended || self.last_heard.is_some_and(|last| now.saturating_duration_since(last) < INITIATION_SPACING) {
            return false;
        }
        let Some(incoming) = self.identity.read_initiation(message) else { return false };
        if incoming.timestamp <= self.seen_timestamp {
            return false;
        }
        let (timestamp, remote) = (incoming.timestamp, incoming.index);
        let Ok(local) = self.indices.take(self.device) else { return false };
        let made = incoming.respond(local).and_then(|(secrets, response)| {
            let keypair = self.keypair(&secrets, Between { local, remote, initiator: false }, now).ok()?;
            Some((keypair, response))
        });
        let Some((keypair, mut response)) = made else {
            self.indices.free(local);
            return false;
        };
        self.seen_timestamp = timestamp;
        self.last_heard = Some(now);
        if let Some(unused) = self.next.replace(keypair) {
            self.indices.free(unused.local);
        }
        self.heard(now);
        self.stamp.put(&mut response, now);
        out.handshake = Some(Handshake::new(&response));
        self.due.forget = Some(now + self.timing.reject_after * FORGET_AFTER_LIVES);
        true
    }
    /// A second handshake message that passed the gate. Whether it was accepted.
    pub(crate) fn response(&mut self, message: &[u8], now: Instant, out: &mut Outbox) -> bool {
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.index == u32_at(message, 8)) else { return false };
        let Some((secrets, remote)) = pending.state.finish(message) else { return false };
        let local = pending.index;
        let Ok(keypair) = self.keypair(&secrets, Between { local, remote, initiator: true }, now) else { return false };
        self.pending = None;
        self.retire_previous();
        // A session that the peer has not used yet is older than this one, but it may still come.
        self.previous = match self.next.take() {
            Some(next) => {
                self.retire_current();
                Some(next)
            }
            None => self.current.take(),
        };
        self.current = Some(keypair.clone());
        self.last_handshake = Some(now);
        self.due.begin = None;
        self.due.forget = Some(now + self.timing.reject_after * FORGET_AFTER_LIVES);
        self.heard(now);
        out.established = true;
        out.keepalive = Some(keypair); // the peer may send only after it has received something
        true
    }
    /// A cookie reply. Whether it was authentic.
    pub(crate) fn cookie(&mut self, message: &[u8], now: Instant) -> bool {
        let ours = self.pending.as_ref().map(|pending| pending.index) == Some(Stamp::receiver(message))
            || self.next.as_ref().map(|next| next.local) == Some(Stamp::receiver(message));
        ours && self.stamp.take(message, now)
    }
    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut Outbox) {
        let passed = |due: &mut Option<Instant>| due.take_if(|due| *due <= now).is_some();
        if passed(&mut self.due.forget) {
            self.forget();
        }
        let silence = passed(&mut self.due.silence);
        if passed(&mut self.due.begin) | silence {
            self.begin_or_log(now, out);
        }
        if self.pending.as_ref().is_some_and(|pending| pending.retry <= now) {
            self.retry(now, out);
        }
        let answer = passed(&mut self.due.answer);
        if passed(&mut self.due.persistent) | answer {
            self.arm_persistent(now);
            out.keepalive = self.sending(now, out).or(out.keepalive.take());
        }
    }

    fn is_current(&self, keypair: &Keypair) -> bool {
        self.current.as_ref().is_some_and(|current| current.local == keypair.local)
    }
    fn heard(&mut self, now: Instant) {
        self.due.silence = None;
        self.arm_persistent(now);
    }
    fn arm_persistent(&mut self, now: Instant) {
        self.due.persistent = self.timing.persistent_keepalive.map(|every| now + every);
    }
    fn keypair(&self, secrets: &Secrets, between: Between, now: Instant) -> Result<Arc<Keypair>> {
        let keypair = Arc::new(Keypair::new(secrets, between, now, self.timing.reject_after)?);
        self.indices.establish(&keypair);
        Ok(keypair)
    }
    fn begin_or_log(&mut self, now: Instant, out: &mut Outbox) {
        if let Err(error) = self.begin(now, out) {
            tracing::warn!(device = self.device, %error, "no handshake");
        }
    }
    /// Begins a handshake, unless one is under way or the last is too recent; then later.
    fn begin(&mut self, now: Instant, out: &mut Outbox) -> Result<()> {
        if self.ended || self.pending.is_some() {
            return Ok(());
        }
        let earliest = self.last_begun.map(|last| last + self.timing.rekey_timeout).filter(|earliest| *earliest > now);
        if earliest.is_some() {
            self.due.begin = earliest;
            return Ok(());
        }
        self.initiate(now, now, out)
    }
    fn initiate(&mut self, first: Instant, now: Instant, out: &mut Outbox) -> Result<()> {
        let (index, timestamp) = (self.indices.take(self.device)?, self.next_timestamp());
        let begun = self.identity.initiate(&timestamp, index);
        let (state, mut message) = begun.inspect_err(|_| self.indices.free(index))?;
        self.stamp.put(&mut message, now);
        out.handshake = Some(Handshake::new(&message));
        self.last_begun = Some(now);
        self.arm_persistent(now);
        self.pending = Some(Pending { state, index, first, retry: now + self.timing.rekey_timeout + jitter() });
        Ok(())
    }
    fn retry(&mut self, now: Instant, out: &mut Outbox) {
        let Some(pending) = self.pending.take() else { return };
        self.indices.free(pending.index);
        if now.saturating_duration_since(pending.first) >= self.timing.rekey_attempt {
            out.gave_up = true;
            self.due.silence = None;
        } else if let Err(error) = self.initiate(pending.first, now, out) {
            tracing::warn!(device = self.device, %error, "handshake not repeated");
        }
    }
    fn abandon(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.indices.free(pending.index);
        }
    }
    fn retire_previous(&mut self) {
        if let Some(keypair) = self.previous.take() {
            self.indices.free(keypair.local);
        }
    }
    fn retire_current(&mut self) {
        if let Some(keypair) = self.current.take() {
            self.indices.free(keypair.local);
        }
    }
    fn forget(&mut self) {
        self.retire_previous();
        self.retire_current();
        if let Some(keypair) = self.next.take() {
            self.indices.free(keypair.local);
        }
    }
    /// Later than all before, whatever the clock does.
    fn next_timestamp(&mut self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = since.subsec_nanos() / TIMESTAMP_STEP * TIMESTAMP_STEP;
        let mut timestamp = label(TAI64_BASE + since.as_secs(), nanos);
        if timestamp <= self.sent_timestamp {
            let (seconds, nanos) = self.sent_timestamp.split_at(8);
            let seconds = u64::from_be_bytes(seconds.try_into().expect("split at eight"));
            let nanos = u32::from_be_bytes(nanos.try_into().expect("four are left")) + TIMESTAMP_STEP;
            timestamp = if nanos < 1_000_000_000 { label(seconds, nanos) } else { label(seconds + 1, 0) };
        }
        self.sent_timestamp = timestamp;
        timestamp
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

fn label(seconds: u64, nanos: u32) -> Timestamp {
    let mut label = [0; TIMESTAMP_BYTES];
    label[..8].copy_from_slice(&seconds.to_be_bytes());
    label[8..].copy_from_slice(&nanos.to_be_bytes());
    label
}

fn jitter() -> Duration {
    let mut bytes = [0; 4];
    // Without randomness repetitions are merely not spread.
    let _ = random(&mut bytes);
    MAX_JITTER * (u32::from_ne_bytes(bytes) >> 16) / (1 << 16)
}

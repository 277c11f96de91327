//! Two peers on a clock of their own, with a wire between them that the test is.

use super::{
    indices::Indices,
    keypair::Keypair,
    noise::Identity,
    peer::{Outbox, Peer},
    timing::Timing,
};
use crate::keys::PrivateKey;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

struct Side {
    peer: Peer,
    indices: Arc<Indices>,
    out: Outbox,
}

/// Two sides and the time.
struct World {
    a: Side,
    b: Side,
    now: Instant,
}

fn quiet() -> Timing {
    Timing { persistent_keepalive: None, ..Timing::default() }
}

fn side(device: u32, own: &PrivateKey, other: &PrivateKey, timing: Timing) -> Side {
    let indices = Arc::new(Indices::default());
    let identity = Identity::new(own.clone(), other.public().unwrap(), None).unwrap();
    Side { peer: Peer::new(device, indices.clone(), identity, timing), indices, out: Outbox::default() }
}

fn world(timing: Timing) -> World {
    let (a, b) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    World { a: side(1, &a, &b, timing), b: side(2, &b, &a, timing), now: Instant::now() }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl World {
    /// A sends something; what it takes to get a session happens without loss. The session of A.
    fn connect(&mut self) -> Arc<Keypair> {
        self.a.peer.sending(self.now, &mut self.a.out);
        let first = self.a.out.handshake.take().expect("A begins");
        assert!(self.b.peer.initiation(first.bytes(), self.now, &mut self.b.out));
        let second = self.b.out.handshake.take().expect("B answers");
        assert!(self.a.peer.response(second.bytes(), self.now, &mut self.a.out));
        assert!(std::mem::take(&mut self.a.out.established));
        let session = self.a.out.keepalive.take().expect("A confirms");
        self.empty_to_b(&session);
        assert!(std::mem::take(&mut self.b.out.established));
        session
    }
    /// An empty packet from A to B.
    fn empty_to_b(&mut self, session: &Keypair) {
        let mut datagram = [0; 32];
        session.seal(&mut datagram, 0, 0).unwrap();
        self.a.peer.sent(self.now, false);
        let owner = self.b.indices.find(u32::from_le_bytes(datagram[4..8].try_into().unwrap())).unwrap().keypair.unwrap();
        assert_eq!(owner.open(&mut datagram), Some(0));
        self.b.peer.received(self.now, &owner, false, &mut self.b.out);
    }
    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn a_session_works_both_ways_and_the_responder_waits_for_its_confirmation() {
    let mut world = world(quiet());
    assert!(world.a.peer.sending(world.now, &mut world.a.out).is_none());
    let first = world.a.out.handshake.take().unwrap();
    assert!(world.b.peer.initiation(first.bytes(), world.now, &mut world.b.out));
    assert!(world.b.peer.sending(world.now, &mut world.b.out).is_none(), "not yet confirmed");
    world.b.out = Outbox::default();
    let mut world = World { now: world.now, ..self::world(quiet()) };
    let session = world.connect();
    assert!(session.initiator);
    let back = world.b.peer.sending(world.now, &mut world.b.out).expect("B may send now");
    assert!(!back.initiator && world.b.out.handshake.is_none());
    assert!(world.a.peer.last_handshake().is_some() && world.b.peer.last_handshake().is_some());
}

#[test]
fn replayed_and_early_initiations_change_nothing() {
    let mut world = world(quiet());
    world.a.peer.sending(world.now, &mut world.a.out);
    let first = world.a.out.handshake.take().unwrap();
    assert!(world.b.peer.initiation(first.bytes(), world.now, &mut world.b.out));
    world.b.out.handshake = None;
    world.pass(secs(1));
    assert!(!world.b.peer.initiation(first.bytes(), world.now, &mut world.b.out), "its time stamp was seen");
    assert!(world.b.out.handshake.is_none());
    assert_eq!(world.b.indices.count(), 1);
}

#[test]
fn a_handshake_is_repeated_for_ninety_seconds_and_then_given_up() {
    let mut world = world(quiet());
    world.a.peer.sending(world.now, &mut world.a.out);
    let (mut messages, start) = (vec![world.a.out.handshake.take().unwrap()], world.now);
    while let Some(deadline) = world.a.peer.deadline() {
        let waited = deadline - world.now;
        assert!(waited >= secs(5) && waited < secs(6), "{waited:?}");
        world.now = deadline;
        world.a.peer.tick(world.now, &mut world.a.out);
        messages.extend(world.a.out.handshake.take());
    }
    assert!(world.a.out.gave_up && world.now - start >= secs(90) && world.now - start < secs(96));
    assert!((16..=18).contains(&messages.len()), "{}", messages.len());
    assert_eq!(world.a.indices.count(), 0, "nothing is kept of it");
    let later = messages.last().unwrap();
    assert!(world.b.peer.initiation(later.bytes(), world.now, &mut world.b.out));
    assert!(!world.b.peer.initiation(messages[0].bytes(), world.now + secs(1), &mut world.b.out), "an older one");
}

#[test]
fn the_initiator_renews_after_two_minutes_the_responder_does_not() {
    let mut world = world(quiet());
    let session = world.connect();
    world.pass(secs(119));
    assert!(world.a.peer.sending(world.now, &mut world.a.out).is_some());
    assert!(world.a.out.handshake.is_none());
    world.pass(secs(1));
    assert!(world.b.peer.sending(world.now, &mut world.b.out).is_some() && world.b.out.handshake.is_none());
    let renewed = world.connect();
    assert_ne!(renewed.local, session.local);
    assert!(world.a.indices.find(session.local).is_some(), "packets on their way in the old session still count");
    world.pass(secs(120));
    world.connect();
    assert!(world.a.indices.find(session.local).is_none());
    assert_eq!((world.a.indices.count(), world.b.indices.count()), (2, 2));
}

#[test]
fn an_old_session_carries_nothing() {
    let mut world = world(quiet());
    let session = world.connect();
    world.pass(secs(179));
    assert!(session.usable(world.now));
    world.pass(secs(1));
    assert!(!session.usable(world.now));
    assert!(world.b.peer.sending(world.now, &mut world.b.out).is_none());
    assert!(world.b.out.handshake.is_some(), "either side may begin now");
    world.pass(secs(360));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert_eq!(world.a.indices.count(), 0, "all keys are forgotten");
}

#[test]
fn what_was_received_is_answered_within_ten_seconds() {
    let mut world = world(quiet());
    let session = world.connect();
    world.a.peer.received(world.now, &session, true, &mut world.a.out);
    world.pass(secs(9));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert!(world.a.out.keepalive.is_none());
    world.pass(secs(1));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert!(world.a.out.keepalive.take().is_some());
    world.a.peer.received(world.now, &session, true, &mut world.a.out);
    world.a.peer.sent(world.now, true);
    world.pass(secs(10));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert!(world.a.out.keepalive.is_none(), "a packet was answer enough");
}

#[test]
fn a_peer_that_never_answers_gets_a_new_handshake() {
    let mut world = world(quiet());
    world.connect();
    world.a.peer.sent(world.now, true);
    world.pass(secs(14));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert!(world.a.out.handshake.is_none());
    world.pass(secs(2));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert!(world.a.out.handshake.is_some());
}

#[test]
fn a_persistent_keepalive_makes_the_tunnel_ready_and_keeps_trying() {
    let mut world = world(Timing::default());
    world.a.peer.start(world.now, &mut world.a.out).unwrap();
    assert!(world.a.out.handshake.take().is_some(), "before the first packet");
    let mut tried = 0;
    let end = world.now + secs(300);
    while world.now < end {
        world.now = world.a.peer.deadline().expect("always something is due");
        world.a.peer.tick(world.now, &mut world.a.out);
        tried += usize::from(world.a.out.handshake.take().is_some());
    }
    assert!(tried > 40, "{tried}: it goes on after it gave up once");
    while world.a.out.handshake.is_none() {
        world.now = world.a.peer.deadline().unwrap();
        world.a.peer.tick(world.now, &mut world.a.out);
    }
    world.connect();
    world.pass(secs(10));
    world.a.peer.tick(world.now, &mut world.a.out);
    assert!(world.a.out.keepalive.is_some());
}

#[test]
fn both_may_begin_at_once() {
    let mut world = world(quiet());
    for side in [&mut world.a, &mut world.b] {
        side.peer.sending(world.now, &mut side.out);
    }
    let (from_a, from_b) = (world.a.out.handshake.take().unwrap(), world.b.out.handshake.take().unwrap());
    assert!(world.a.peer.initiation(from_b.bytes(), world.now, &mut world.a.out));
    assert!(world.b.peer.initiation(from_a.bytes(), world.now, &mut world.b.out));
    let (to_b, to_a) = (world.a.out.handshake.take().unwrap(), world.b.out.handshake.take().unwrap());
    assert!(world.a.peer.response(to_a.bytes(), world.now, &mut world.a.out));
    assert!(world.b.peer.response(to_b.bytes(), world.now, &mut world.b.out));
    let World { mut a, mut b, now } = world;
    for _ in 0..2 {
        let (from, to) = (&mut a, &mut b);
        let session = from.peer.sending(now, &mut from.out).unwrap();
        let mut datagram = [0; 48];
        session.seal(&mut datagram, 16, 1420).unwrap();
        let named = to.indices.find(u32::from_le_bytes(datagram[4..8].try_into().unwrap())).unwrap().keypair.unwrap();
        assert_eq!(named.open(&mut datagram), Some(16));
        to.peer.received(now, &named, true, &mut to.out);
        std::mem::swap(&mut a, &mut b);
    }
}

/// The side that is made first begins while nobody is there yet.
#[test]
fn a_session_that_the_other_side_began_ends_our_own_attempt() {
    let mut world = world(quiet());
    world.b.peer.sending(world.now, &mut world.b.out);
    assert!(world.b.out.handshake.take().is_some(), "which is lost");
    world.connect();
    assert_eq!(world.b.indices.count(), 1, "of the session");
    world.pass(secs(6));
    world.b.peer.tick(world.now, &mut world.b.out);
    assert!(world.b.out.handshake.is_none() && world.b.peer.sending(world.now, &mut world.b.out).is_some());
}

#[test]
fn a_dropped_peer_leaves_no_index() {
    let mut world = world(quiet());
    world.connect();
    world.pass(secs(125));
    world.a.peer.sending(world.now, &mut world.a.out);
    let indices = world.a.indices.clone();
    assert_eq!(indices.count(), 2);
    drop(world);
    assert_eq!(indices.count(), 0);
}

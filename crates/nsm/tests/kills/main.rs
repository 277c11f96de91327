//! A forwarder is killed between any two changes of the real kernel, of a Request and of a Close, and another one takes its
//! place: within two seconds there is the whole wire or nothing of it, whether the client is still there or not. Fault A21;
//! invariants I2, I8, I13. The same with a fake kernel, and with every other call to the outside: `nsm-hop/tests/faults`.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod world;

use rustix::process::Signal;
use std::time::Duration;
use world::{Role, World, wait};

/// From the moment at which the successor is ready.
const WHOLE_AGAIN: Duration = Duration::from_secs(2);
/// More changes than a Request or a Close makes.
const MOST_CHANGES: u64 = 60;

fn ready(mut role: Role) -> Role {
    assert!(role.is_ready(), "it ends:\n{}", role.log());
    role
}

/// What is there when all is well.
fn whole(world: &World) -> Vec<String> {
    let (forwarder, client) = (ready(world.forwarder(None)), ready(world.client()));
    let whole = world.wires();
    assert!(whole.len() > 8 && world.links() == 2, "{whole:#?}");
    client.end(Signal::TERM);
    assert_nothing(world);
    forwarder.end(Signal::KILL);
    whole
}

fn assert_nothing(world: &World) {
    assert!(wait(|| world.links() == 0 && world.wires().is_empty()).is_some(), "something is left: {:#?}", world.wires());
}

/// Within the bound there is all of it, or nothing.
fn assert_either(world: &World, whole: &[String], why: &str) {
    let took = wait(|| world.wires() == whole || world.links() == 0 && world.wires().is_empty());
    assert!(took.is_some_and(|took| took <= WHOLE_AGAIN), "{why}: {took:?}: {:#?}", world.wires());
}

#[test]
fn a_kill_between_two_changes_of_a_request_leaves_all_or_nothing() {
    let world = World::new();
    let whole = whole(&world);
    let mut kills = 0;
    for (change, client_dies) in (1..=MOST_CHANGES).flat_map(|change| [(change, false), (change, true)]) {
        let why = format!("after change {change}, client dies: {client_dies}");
        let mut forwarder = world.forwarder(Some(change));
        if forwarder.is_ready() {
            let mut client = world.client();
            if client.is_ready_before(&mut forwarder) {
                client.end(Signal::TERM);
                forwarder.end(Signal::KILL);
                ready(world.forwarder(None)).end(Signal::KILL);
                break;
            }
            kills += 1;
            if client_dies {
                client.signal(Signal::KILL);
                client.ends();
            }
            let successor = ready(world.forwarder(None));
            if client_dies {
                assert_either(&world, &whole, &why);
                client = ready(world.client());
            }
            assert!(wait(|| world.wires() == whole).is_some(), "{why}: {:#?}", world.wires());
            client.end(Signal::TERM);
            assert_nothing(&world);
            successor.end(Signal::KILL);
        }
    }
    assert!(kills >= 8, "a Request makes more changes than {kills}");
}

#[test]
fn a_kill_between_two_changes_of_a_close_leaves_all_or_nothing() {
    let world = World::new();
    let whole = whole(&world);
    let mut kills = 0;
    for change in 1..=MOST_CHANGES {
        let why = format!("after change {change}");
        let maker = ready(world.forwarder(None));
        let client = ready(world.client());
        maker.end(Signal::KILL);
        let mut closer = world.forwarder(Some(change));
        assert!(closer.is_ready(), "{why}: adoption changes nothing:\n{}", closer.log());
        assert_eq!(world.wires(), whole, "{why}");
        client.end(Signal::TERM);
        if wait(|| closer.has_ended() || world.links() == 0).is_none() {
            panic!("{why}: neither closed nor killed: {:#?}", world.wires());
        }
        if !closer.has_ended() && kills > 0 && world.links() == 0 {
            assert_nothing(&world);
            closer.end(Signal::KILL);
            break;
        }
        kills += 1;
        closer.end(Signal::KILL);
        let successor = ready(world.forwarder(None));
        assert_either(&world, &whole, &why);
        assert_nothing(&world); // the manager repeats the Close until it is heard
        successor.end(Signal::KILL);
    }
    assert!(kills >= 2, "a Close makes more changes than {kills}");
}

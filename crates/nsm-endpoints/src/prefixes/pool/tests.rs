use super::*;
use proptest::prelude::*;

const TIMES: Times = Times { grace: Duration::from_secs(60), settling: Duration::from_secs(3) };

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
fn pool(all: &str, length: u8) -> Pool {
    Pool::new(net(all), length, TIMES).unwrap()
}
fn ask(pool: &mut Pool, now: u64, who: (StreamId, &str), wanted: &str) -> String {
    let wanted = (!wanted.is_empty()).then(|| net(wanted));
    match pool.ask(at(now), who, wanted, &[]) {
        Ok(Outcome::Lent(prefix)) => prefix.to_string(),
        Ok(Outcome::Later) => "later".to_owned(),
        Err(error) => format!("{:?}", error.kind),
    }
}

/// A-09, wire.md 10.1
#[test]
fn the_lowest_is_lent_and_a_wish_is_granted_if_free() {
    let mut pool = pool("172.16.0.0/16", 24);
    assert_eq!(ask(&mut pool, 10, (1, "a"), ""), "172.16.0.0/24");
    assert_eq!(ask(&mut pool, 10, (2, "b"), ""), "172.16.1.0/24");
    assert_eq!(ask(&mut pool, 10, (3, "c"), "172.16.2.0/25"), "172.16.2.0/25", "of any length");
    assert_eq!(ask(&mut pool, 10, (4, "d"), "172.16.0.0/23"), "172.16.3.0/24", "not when a part of it is lent");
    assert_eq!(ask(&mut pool, 10, (5, "e"), "10.0.0.0/24"), "172.16.4.0/24", "not from elsewhere");
    let excluded = [net("172.16.5.0/24"), net("172.16.6.128/25")];
    assert_eq!(pool.ask(at(10), (6, "f"), Some(net("172.16.5.0/24")), &excluded).unwrap(), Outcome::Lent(net("172.16.7.0/24")));
}

#[test]
fn all_of_a_pool_can_be_lent_and_no_more() {
    for (all, length) in [("172.16.0.0/22", 24), ("2001:db8::/110", 112), ("0.0.0.0/0", 2), ("::/0", 2)] {
        let mut pool = pool(all, length);
        for i in 0..4 {
            assert!(ask(&mut pool, 10, (i, "x"), "").contains('/'), "{all} {i}");
        }
        assert_eq!(ask(&mut pool, 10, (9, "x"), ""), "Exhausted", "{all}");
    }
    let mut whole = pool("::/0", 0);
    assert_eq!(ask(&mut whole, 10, (1, "x"), ""), "::/0");
    assert_eq!(ask(&mut whole, 10, (1, "x"), ""), "Exhausted");
    assert!(Pool::new(net("10.0.0.0/16"), 8, TIMES).is_err() && Pool::new(net("10.0.0.0/16"), 33, TIMES).is_err());
}

/// G-28: what a lost stream had waits for its holder, and is then the last to be lent.
#[test]
fn a_lost_prefix_waits_for_its_holder_and_then_for_hard_times() {
    let mut pool = pool("172.16.0.0/23", 24);
    assert_eq!(ask(&mut pool, 10, (1, "a"), ""), "172.16.0.0/24");
    pool.end(at(10), 1);
    assert_eq!(ask(&mut pool, 11, (2, "b"), "172.16.0.0/24"), "172.16.1.0/24", "somebody else cannot have it");
    assert_eq!(ask(&mut pool, 11, (3, "a"), "172.16.0.0/24"), "172.16.0.0/24");
    assert_eq!(ask(&mut pool, 11, (4, "a"), "172.16.0.0/24"), "later", "its own other stream still has it");
    pool.end(at(20), 3);
    assert_eq!(ask(&mut pool, 21, (4, "a"), ""), "Exhausted", "one that does not name it may be another process");
    assert_eq!(ask(&mut pool, 80, (5, "c"), ""), "172.16.0.0/24", "nobody came for it");
    assert_eq!(ask(&mut pool, 81, (6, "a"), "172.16.0.0/24"), "Exhausted");
    pool.release(5, &net("172.16.0.0/24")).unwrap();
    assert!(pool.release(5, &net("172.16.0.0/24")).is_err() && pool.release(9, &net("172.16.1.0/24")).is_err());
    assert_eq!(ask(&mut pool, 81, (6, "a"), "172.16.0.0/24"), "172.16.0.0/24");
}

/// G-28
#[test]
fn after_a_start_without_memory_only_wishes_are_granted_at_first() {
    let mut fresh = pool("172.16.0.0/16", 24);
    assert_eq!(ask(&mut fresh, 1, (1, "new"), ""), "later");
    assert_eq!(ask(&mut fresh, 1, (2, "old"), "172.16.0.0/24"), "172.16.0.0/24");
    assert_eq!(ask(&mut fresh, 3, (1, "new"), ""), "172.16.1.0/24");
    let mut known = pool("172.16.0.0/16", 24);
    known.restore([(net("172.16.0.0/24"), "old".to_owned())]);
    assert_eq!(ask(&mut known, 0, (1, "new"), ""), "172.16.1.0/24", "who remembers need not wait");
}

/// What a client believes to have.
#[derive(Clone, Debug, Default)]
struct Client {
    stream: Option<StreamId>,
    prefix: Option<IpNet>,
    /// When it heard the server last.
    heard: u64,
}

#[derive(Clone, Debug)]
enum Step {
    /// Comes (back) and names what it has.
    Ask(usize),
    /// Its stream breaks; it goes on to use its prefix.
    Lose(usize),
    /// The stream breaks, and only the client notices.
    Hang(usize),
    /// It gives back and leaves.
    Leave(usize),
    /// The server starts again with what is in its file.
    Restart,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_usize).prop_map(Step::Ask),
        2 => (0..6_usize).prop_map(Step::Lose),
        1 => (0..6_usize).prop_map(Step::Hang),
        1 => (0..6_usize).prop_map(Step::Leave),
        1 => Just(Step::Restart),
        2 => (1..40_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A-09, G-28: whatever is allocated, given back, lost and restarted in whatever order, no two clients that have heard of
    /// the server within the grace time hold overlapping prefixes. Two of the clients share an identity.
    #[test]
    fn never_two_holders_of_overlapping_prefixes(steps in prop::collection::vec(step(), 1..120)) {
        let names = ["a", "b", "c", "d", "twin", "twin"];
        let mut clients = vec![Client::default(); names.len()];
        let (mut pool, mut clock, mut since, mut streams) = (pool("10.0.0.0/21", 24), 100, 0, 0);
        for step in steps {
            match step {
                Step::Ask(i) if clients[i].stream.is_none() => {
                    streams += 1;
                    // Of those who share an identity none may come back with a claim that is too old.
                    let in_time = clock < clients[i].heard + TIMES.grace.as_secs();
                    let wanted = clients[i].prefix.filter(|_| in_time || names[i] != "twin");
                    match pool.ask(at(clock - since), (streams, names[i]), wanted, &[]) {
                        Ok(Outcome::Lent(prefix)) => clients[i] = Client { stream: Some(streams), prefix: Some(prefix), heard: clock },
                        Ok(Outcome::Later) => {}
                        Err(error) => prop_assert_eq!(error.kind, Kind::Exhausted),
                    }
                }
                Step::Lose(i) => {
                    if let Some(stream) = clients[i].stream.take() {
                        pool.end(at(clock - since), stream);
                        clients[i].heard = clock;
                    }
                }
                Step::Hang(i) => {
                    if clients[i].stream.take().is_some() {
                        clients[i].heard = clock;
                    }
                }
                Step::Leave(i) => {
                    if let (Some(stream), Some(prefix)) = (clients[i].stream.take(), clients[i].prefix.take()) {
                        pool.release(stream, &prefix).unwrap();
                        pool.end(at(clock - since), stream);
                    }
                }
                Step::Restart => {
                    let known: Vec<(IpNet, String)> = pool.loans().map(|(prefix, holder)| (prefix, holder.to_owned())).collect();
                    pool = Pool::new(net("10.0.0.0/21"), 24, TIMES).unwrap();
                    pool.restore(known);
                    since = clock;
                    for client in &mut clients {
                        client.heard = if client.stream.take().is_some() { clock } else { client.heard };
                    }
                }
                Step::Wait(seconds) => clock += seconds,
                Step::Ask(_) => {}
            }
            let sure = |client: &&Client| client.stream.is_some() || clock < client.heard + TIMES.grace.as_secs();
            let held: Vec<IpNet> = clients.iter().filter(sure).filter_map(|client| client.prefix).collect();
            for (i, one) in held.iter().enumerate() {
                prop_assert!(held[i + 1..].iter().all(|other| !meet(one, other)), "{:?}", held);
            }
        }
    }
}

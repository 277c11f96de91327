//! Every single fault and every pair of faults on Request, refresh and Close, and the caller vanishing at every
//! await: the end is one whole connection or nothing, here and at the next hop.
//!
//! The fault points are counted, not listed: each call to the outside (discovery, Request, Close, opening a monitor
//! stream, observe, every single kernel change) is one, before its effect and after it. Invariants I2, I3, I8, I13; faults B9, G1..G3, G6.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod restart;
mod world;

use nsm_api::*;
use nsm_hop::{
    kernel::*,
    role::*,
    testing::{Fault, When},
};
use std::time::Duration;
use world::*;

fn faults(calls: usize) -> impl Iterator<Item = Fault> + Clone {
    (1..=calls).flat_map(|at| [When::Before, When::After].map(|when| Fault { at, when }))
}

/// No fault, each fault, each pair of faults.
fn fault_sets(calls: usize) -> Vec<Vec<Fault>> {
    let mut sets = vec![vec![]];
    sets.extend(faults(calls).map(|fault| vec![fault]));
    sets.extend(faults(calls).flat_map(|a| faults(calls).filter(move |b| a.at < b.at).map(move |b| vec![a, b])));
    sets
}

/// Calls to the outside of the longest run: a failing Request has more than a smooth one.
const MOST_CALLS: usize = 18;

#[tokio::test(start_paused = true)]
async fn a_first_request_under_faults_is_whole_or_nothing() {
    let mut refused = 0;
    for set in fault_sets(MOST_CALLS) {
        let bench = Bench::new();
        bench.world.faults.set(set.clone());
        let result = bench.request("c").await;
        bench.calm().await;
        match result {
            Ok(answer) => {
                bench.assert_whole("c", &format!("{set:?}"));
                bench.close(answer.connection).await.unwrap();
            }
            Err(_) => refused += 1,
        }
        bench.assert_nothing(&format!("{set:?}")).await;
    }
    assert!(refused > 50, "the faults must matter: {refused}");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_under_faults_keeps_the_connection_whole() {
    for set in fault_sets(MOST_CALLS) {
        let bench = Bench::new();
        let answer = bench.request("c").await.unwrap();
        // The refresh changes something, so that a half-done one shows.
        let mut changed = answer.connection.clone();
        changed.context.extra_context.insert("refresh".into(), "1".into());
        bench.world.faults.set(set.clone());
        let result = bench.again(changed).await;
        bench.calm().await;
        bench.assert_whole("c", &format!("{set:?} {:?}", result.is_ok()));
        bench.close(answer.connection).await.unwrap();
        bench.assert_nothing(&format!("{set:?}")).await;
    }
}

/// Whatever fails of hearing the next hop, what it says is known in the end, and nothing happens because of it.
#[tokio::test(start_paused = true)]
async fn a_next_hop_is_heard_in_spite_of_faults() {
    for fault in faults(MOST_CALLS) {
        let bench = Bench::new();
        let answer = bench.request("c").await.unwrap();
        bench.world.faults.set([fault]);
        // Its stream breaks, because it is another one from now on.
        bench.world.monitors.lock().unwrap().clear();
        let seen = Connection { state: State::RefreshRequested, ..bench.seen_at_next_hop(&answer.connection) };
        bench.world.monitors("inproc://one").update(seen);
        bench.calm().await;
        assert_eq!(bench.hop.monitors().snapshot()[0].state, State::RefreshRequested, "{fault:?}");
        bench.assert_whole("c", &format!("{fault:?}"));
        bench.close(answer.connection).await.unwrap();
        bench.assert_nothing(&format!("{fault:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_under_faults_leaves_nothing() {
    for set in fault_sets(8) {
        let bench = Bench::new();
        let answer = bench.request("c").await.unwrap();
        bench.world.faults.set(set.clone());
        let _ = bench.close(answer.connection).await;
        bench.calm().await;
        bench.assert_nothing(&format!("{set:?}")).await;
    }
}

/// Polls a call `polls` times and then lets it go, as a server does when its caller leaves.
async fn vanish<T>(call: impl Future<Output = T>, polls: usize) -> bool {
    let mut call = std::pin::pin!(call);
    if polls == usize::MAX {
        call.await; // awaiting, not polling, lets the paused clock move on
        return false;
    }
    for _ in 0..polls {
        if futures::poll!(call.as_mut()).is_ready() {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_vanish_at_every_await() {
    let mut vanished = 0;
    for polls in 0.. {
        let bench = Bench::new();
        let left = vanish(bench.request("c"), polls).await;
        vanished += usize::from(left);
        bench.calm().await;
        if polls > 0 {
            bench.assert_whole("c", &format!("request, {polls} polls"));
        }
        let connection = bench.connection("c");
        let closing = vanish(bench.close(connection.clone()), polls.max(1)).await;
        bench.calm().await;
        bench.assert_nothing(&format!("close, {polls} polls")).await;
        if !left && !closing {
            break;
        }
    }
    assert!(vanished > 5, "there must be awaits to vanish at: {vanished}");
}

/// A-04, I11
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_refreshed_ends_at_its_callers_expiry() {
    let bench = Bench::new();
    bench.request("c").await.unwrap();
    tokio::time::sleep(LIFE - Duration::from_secs(3)).await;
    bench.assert_whole("c", "before its expiry");
    // A little early, while the tokens of the path still let the next hop accept a Close.
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.assert_nothing("after its expiry").await;
}

/// G1, I8: the same Request many times at once is one connection.
#[tokio::test(start_paused = true)]
async fn a_request_sent_many_times_is_one_connection() {
    let bench = Bench::new();
    let results = futures::future::join_all((0..10).map(|_| bench.request("c"))).await;
    assert!(results.iter().all(Result::is_ok));
    bench.assert_whole("c", "ten at once");
}

/// H3: a full pool is a clean refusal, and a Close makes room.
#[tokio::test(start_paused = true)]
async fn a_full_pool_refuses_and_recovers() {
    let bench = Bench::new();
    let first = bench.request("a").await.unwrap();
    let calls = bench.world.faults.calls();
    let error = bench.request("b").await.unwrap_err();
    assert_eq!((error.kind, error.hop.as_str()), (Kind::Exhausted, "hop"));
    assert_eq!(bench.world.faults.calls(), calls, "nothing outside was touched");
    bench.close(first.connection).await.unwrap();
    bench.request("b").await.unwrap();
}

/// Wires taken away by hand come back with the next repair (F1, F2).
#[tokio::test(start_paused = true)]
async fn what_somebody_removed_is_repaired() {
    let bench = Bench::new();
    bench.request("c").await.unwrap();
    let Some(Wire::Link(link)) = bench.world.kernel.wires().first().cloned() else { panic!("a link comes first") };
    bench.world.kernel.delete_link(link.ifaces()[0]);
    assert!(bench.world.kernel.wires().is_empty());
    tokio::time::sleep(Timing::default().repair_every + Duration::from_secs(1)).await;
    bench.assert_whole("c", "after the repair");
}

/// A3, B8: a Close that comes by a way that has been replaced changes nothing.
#[tokio::test(start_paused = true)]
async fn a_close_by_a_former_way_is_ignored() {
    let bench = Bench::new();
    let answer = bench.request("c").await.unwrap();
    let mut stale = answer.connection.clone();
    stale.path.segments[0].name = HopName::new("former").unwrap();
    bench.close(stale).await.unwrap();
    bench.assert_whole("c", "a former way closed");
}

/// Random runs: three clients, faults, vanishing callers, closes; then calm, then nothing may be left.
#[tokio::test(start_paused = true)]
async fn random_runs_end_clean() {
    for seed in 0..2000u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let bench = Bench::new();
        for _ in 0..12 {
            let set: Vec<Fault> = (0..random(4))
                .map(|_| Fault { at: 1 + random(12) as usize, when: if random(2) == 1 { When::After } else { When::Before } })
                .collect();
            bench.world.faults.set(set.clone());
            let client = format!("c{}", random(3));
            let polls = if random(4) == 0 { 1 + random(12) as usize } else { usize::MAX };
            if random(3) == 0 {
                vanish(bench.close(bench.connection(&client)), polls).await;
            } else {
                vanish(bench.request(&client), polls).await;
            }
        }
        bench.calm().await;
        for i in 0..3 {
            bench.close(bench.connection(&format!("c{i}"))).await.unwrap();
        }
        bench.calm().await;
        bench.assert_nothing(&format!("seed {seed}")).await;
    }
}

/// I13: when a Request is refused, nothing of it is left by the time the refusal is heard; no repair has to come first.
#[tokio::test(start_paused = true)]
async fn a_refusal_has_already_undone_everything() {
    for fault in faults(MOST_CALLS) {
        let bench = Bench::new();
        // Both ways fail at the first of them or later; every call after the fault's works.
        bench.world.faults.set([fault]);
        if bench.request("c").await.is_err() {
            assert!(bench.world.empty(), "{fault:?}");
        }
    }
}

/// I3: an address is not given to another connection while a next hop may still act for the first.
#[tokio::test(start_paused = true)]
async fn an_address_is_not_reused_while_a_close_is_owed() {
    let bench = Bench::new();
    let answer = bench.request("a").await.unwrap();
    *bench.world.dead.lock().unwrap() = Some("one");
    bench.close(answer.connection).await.unwrap_err();
    assert_eq!(bench.request("b").await.unwrap_err().kind, Kind::Exhausted);
    *bench.world.dead.lock().unwrap() = None;
    bench.calm().await;
    bench.request("b").await.unwrap();
}

/// A4: a Close succeeds although a next hop that was left before is dead; that one hears of it when it is back.
#[tokio::test(start_paused = true)]
async fn a_dead_former_way_does_not_spoil_a_close() {
    let bench = Bench::new();
    let answer = bench.request("c").await.unwrap();
    *bench.world.dead.lock().unwrap() = Some("one");
    bench.again(answer.connection.clone()).await.unwrap();
    bench.close(answer.connection).await.unwrap();
    assert_eq!(bench.world.held().len(), 1, "the dead one still holds its part");
    *bench.world.dead.lock().unwrap() = None;
    bench.calm().await;
    bench.assert_nothing("the dead one is back").await;
}

//! The hop is killed before and after every single call to the outside, and another one takes its place: what there was is
//! there, what was half done becomes whole or nothing, whether the caller asks again or not. Fault A21; invariants I2, I3, I4, I8.

use super::*;
use nsm_hop::{conn::RESTORE_SPREAD, testing::World as _};
use std::future::Future;

/// Every call at which a hop can be killed.
fn kills() -> impl Iterator<Item = Fault> {
    faults(2 * MOST_CALLS)
}

/// Begins `call`, which is killed at a call to the outside. False when it comes to its end before.
async fn killed(bench: &Bench, kill: Fault, call: impl Future) -> bool {
    bench.world.faults.stop_at(kill);
    let mut call = std::pin::pin!(call);
    loop {
        tokio::select! {
            biased;
            _ = &mut call => break,
            () = tokio::time::sleep(Duration::from_millis(1)) => if bench.world.faults.stopped() { return true },
        }
    }
    // What goes on in the background may be hit as well.
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.world.faults.stopped()
}

/// All, or nothing.
fn assert_either(bench: &Bench, why: &str) -> bool {
    if bench.hop.monitors().snapshot().is_empty() {
        assert!(bench.world.empty(), "{why}: {:?} {:?}", bench.world.kernel.wires(), bench.world.held());
        assert_eq!(bench.hop.busy(), 0, "{why}: a task is left");
        assert!(bench.journal.is_empty(), "{why}: a record is left");
        return false;
    }
    bench.assert_whole("c", why);
    true
}

/// The devices in the pod of the client, with their numbers.
async fn devices(bench: &Bench) -> Vec<String> {
    let Some(Wire::Link(link)) = bench.world.kernel.wires().first().cloned() else { return vec![] };
    let ledger = bench.world.kernel.ledger(&link.ifaces()[0].netns).await;
    // Who made it last stands at the end.
    ledger.into_iter().map(|line| line.split(" Some(").next().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_kill_within_a_first_request_leaves_all_or_nothing() {
    let mut seen = [0; 2];
    for (shape, failing) in Shape::ALL.into_iter().flat_map(|shape| [None, Some(3), Some(5), Some(8)].map(|at| (shape, at))) {
        for kill in kills() {
            let why = format!("{shape:?} {failing:?} {kill:?}");
            let former = Bench::with_journal_of(shape);
            former.world.faults.set(failing.map(|at| Fault { at, when: When::After }));
            if !killed(&former, kill, former.request("c")).await {
                continue;
            }
            let bench = former.succeed();
            bench.calm().await;
            seen[usize::from(assert_either(&bench, &why))] += 1;
            bench.request("c").await.unwrap_or_else(|error| panic!("{why}: {error}"));
            bench.assert_whole("c", &why);
            bench.close(bench.connection("c")).await.unwrap();
            bench.assert_nothing(&why).await;
        }
    }
    assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
}

/// I11: nobody asks again.
#[tokio::test(start_paused = true)]
async fn what_was_half_done_and_is_never_asked_for_again_ends() {
    for (shape, kill) in Shape::ALL.into_iter().flat_map(|shape| kills().map(move |kill| (shape, kill))) {
        let former = Bench::with_journal_of(shape);
        if killed(&former, kill, former.request("c")).await {
            let bench = former.succeed();
            tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
            bench.assert_nothing(&format!("{shape:?} {kill:?}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_within_a_refresh_leaves_the_connection_as_it_was_or_as_it_was_asked_for() {
    for (shape, changes) in Shape::ALL.into_iter().flat_map(|shape| [false, true].map(|changes| (shape, changes))) {
        for kill in kills() {
            let why = format!("{shape:?} {kill:?}, changes: {changes}");
            let former = Bench::with_journal_of(shape);
            let answer = former.request("c").await.unwrap();
            let before = devices(&former).await;
            let mut again = answer.connection.clone();
            if changes {
                again.context.extra_context.insert("refresh".into(), "1".into());
            }
            former.world.faults.set([]);
            if !killed(&former, kill, former.again(again)).await {
                continue;
            }
            let bench = former.succeed();
            let listed = bench.hop.monitors().snapshot();
            assert_eq!(listed.len(), 1, "{why}: it must be known at once");
            bench.calm().await;
            bench.assert_whole("c", &why);
            assert_eq!(devices(&bench).await, before, "{why}: its wire is another one");
            let answer = bench.again(answer.connection).await.unwrap();
            assert_eq!(devices(&bench).await, before, "{why}: its wire is another one");
            bench.close(answer.connection).await.unwrap();
            bench.assert_nothing(&why).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_within_a_close_leaves_all_or_nothing() {
    for (shape, kill) in Shape::ALL.into_iter().flat_map(|shape| kills().map(move |kill| (shape, kill))) {
        let why = format!("{shape:?} {kill:?}");
        let former = Bench::with_journal_of(shape);
        let answer = former.request("c").await.unwrap();
        former.world.faults.set([]);
        if !killed(&former, kill, former.close(answer.connection.clone())).await {
            continue;
        }
        let bench = former.succeed();
        bench.calm().await;
        assert_either(&bench, &why);
        bench.close(answer.connection).await.unwrap();
        bench.assert_nothing(&why).await;
    }
}

/// I3: what a former life promised is nobody else's, from the very beginning.
#[tokio::test(start_paused = true)]
async fn an_address_is_not_given_twice_after_a_restart() {
    let former = Bench::with_journal();
    let answer = former.request("c").await.unwrap();
    let bench = former.succeed();
    assert_eq!(bench.request("d").await.unwrap_err().kind, Kind::Exhausted);
    let again = bench.request("c").await.unwrap();
    assert_eq!(again.connection.context.ip_context.src_ip_addrs, answer.connection.context.ip_context.src_ip_addrs);
}

/// A11, F1: what was lost while nobody was there is repaired without anybody asking.
#[tokio::test(start_paused = true)]
async fn what_was_removed_while_nobody_was_there_is_repaired() {
    let former = Bench::with_journal();
    former.request("c").await.unwrap();
    former.world.faults.stop_at(Fault { at: former.world.faults.calls() + 1, when: When::Before });
    let Some(Wire::Link(link)) = former.world.kernel.wires().first().cloned() else { panic!("a link comes first") };
    former.world.kernel.delete_link(link.ifaces()[0]);
    let bench = former.succeed();
    tokio::time::sleep(RESTORE_SPREAD + Duration::from_millis(100)).await;
    bench.assert_whole("c", "after the restart");
}

/// I11: what ran out while nobody was there ends at once.
#[tokio::test(start_paused = true)]
async fn what_has_expired_meanwhile_is_closed() {
    let former = Bench::with_journal();
    former.request("c").await.unwrap();
    former.world.faults.stop_at(Fault { at: former.world.faults.calls() + 1, when: When::Before });
    tokio::time::sleep(LIFE).await;
    let bench = former.succeed();
    assert!(bench.hop.monitors().snapshot().is_empty());
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.assert_nothing("after the restart").await;
}

/// B8: the former process was only asleep. What it still does changes nothing that its successor has made.
#[tokio::test(start_paused = true)]
async fn a_former_process_that_wakes_up_changes_nothing() {
    for kill in kills() {
        let why = format!("{kill:?}");
        let former = Bench::with_journal();
        let answer = former.request("c").await.unwrap();
        former.world.faults.set([]);
        if !killed(&former, kill, former.again(answer.connection.clone())).await {
            continue;
        }
        let bench = former.succeed();
        bench.calm().await;
        let records = bench.journal.len();
        let before = devices(&bench).await;
        former.world.faults.resume();
        bench.calm().await;
        bench.assert_whole("c", &why);
        assert_eq!((devices(&bench).await, bench.journal.len()), (before, records), "{why}");
    }
}

/// The journal is lost, and the first Request of the new life fails: what the former one made carries packets and stays,
/// until those who have it have no token any more.
#[tokio::test(start_paused = true)]
async fn without_a_journal_a_failing_request_spares_what_was_there() {
    let mut failed = 0;
    for fault in faults(MOST_CALLS) {
        let why = format!("{fault:?}");
        let former = Bench::with_journal();
        let answer = former.request("c").await.unwrap();
        let before = devices(&former).await;
        former.world.faults.stop_at(Fault { at: former.world.faults.calls() + 1, when: When::Before });
        tokio::time::sleep(Duration::from_secs(10)).await;
        let bench = former.succeed_without_journal();
        bench.world.faults.set([fault]);
        let mut again = answer.connection.clone();
        // Both ways fail, so that the fault is not made good by the other one.
        let one = fault.at % 2 == 0;
        *bench.world.dead.lock().unwrap() = one.then_some("two");
        again.context.extra_context.clear();
        if bench.again(again.clone()).await.is_ok() {
            continue;
        }
        failed += 1;
        bench.calm().await;
        // Its successor knows of nothing that it might undo.
        let bench = if fault.when == When::After { bench.succeed() } else { bench };
        bench.calm().await;
        assert_eq!((devices(&bench).await, bench.world.kernel.wires().len()), (before, 3), "{why}");
        assert!(bench.world.held().contains_key(&("inproc://one".to_owned(), ConnectionId::new("hop-c").unwrap())), "{why}");
        // Whoever had it comes again, and has it.
        *bench.world.dead.lock().unwrap() = None;
        bench.again(again.clone()).await.unwrap();
        bench.assert_whole("c", &why);
        bench.close(again).await.unwrap();
        bench.assert_nothing(&why).await;
    }
    assert!(failed > 3, "{failed}");
}

/// Random lives: Requests, Closes, failures, kills at any call, sometimes of a process that wakes up later.
#[tokio::test(start_paused = true)]
async fn random_lives_end_clean() {
    for seed in 0..150u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut bench = Bench::with_journal();
        for _ in 0..10 {
            bench.world.faults.set([]);
            let client = format!("c{}", random(3));
            let kill = Fault { at: 1 + random(14) as usize, when: if random(2) == 1 { When::After } else { When::Before } };
            let dead = if random(3) == 0 {
                killed(&bench, kill, bench.close(bench.connection(&client))).await
            } else {
                killed(&bench, kill, bench.request(&client)).await
            };
            if dead {
                bench = bench.succeed();
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

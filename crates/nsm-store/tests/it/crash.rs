//! C2, I7: the machine stops at every single operation on the disk, and what was acknowledged is there afterwards.

use crate::{
    common::*,
    medium::{Fault, FaultDisk},
};
use nsm_registry::Engine;
use nsm_store::DurableEngine;
use std::{collections::BTreeMap, future::Future};

/// What may be found under each name: the last that was acknowledged, and everything that was tried since.
#[derive(Default)]
struct Ledger {
    possible: BTreeMap<String, Vec<Option<String>>>,
}

impl Ledger {
    async fn act(&mut self, called: &str, value: Option<String>, act: impl Future<Output = nsm_api::Result<()>>) {
        let possible = self.possible.entry(called.to_owned()).or_insert_with(|| vec![None]);
        possible.push(value.clone());
        if act.await.is_ok() {
            *possible = vec![value];
        }
    }

    /// Names whose content nothing explains.
    async fn unexplained(&self, engine: &dyn Engine) -> Vec<String> {
        let shown = |value: &Option<String>| value.as_ref().map_or("nothing", |url| &url[..url.len().min(16)]).to_owned();
        let found: BTreeMap<String, String> =
            all(engine).await.into_iter().map(|line| line.split_once(' ').map(|(name, url)| (name.into(), url.into())).unwrap()).collect();
        let wrong = |(name, possible): &(&String, &Vec<Option<String>>)| !possible.contains(&found.get(*name).cloned());
        let strange = found.keys().filter(|name| !self.possible.contains_key(*name)).cloned();
        self.possible
            .iter()
            .filter(wrong)
            .map(|(name, possible)| {
                let possible: Vec<_> = possible.iter().map(shown).collect();
                format!("{name}: {} is none of {possible:?}", shown(&found.get(name).cloned()))
            })
            .chain(strange)
            .collect()
    }
}

/// Names are registered, refreshed and removed, two at a time; records grow, so that pages split and the file does.
async fn work(engine: &DurableEngine, ledger: &mut Ledger, round: u64) {
    for step in 0..8u64 {
        let (first, second) = (format!("e{}", step % 4), format!("f{}", step % 3));
        let url = format!("tcp://{round}.{step}/{}", "x".repeat(usize::try_from(step * 300).unwrap()));
        let mut other = Ledger { possible: std::mem::take(&mut ledger.possible) };
        let mine: Vec<_> = other.possible.remove(&first).into_iter().collect();
        let mut single = Ledger { possible: mine.into_iter().map(|possible| (first.clone(), possible)).collect() };
        tokio::join!(single.act(&first, Some(url.clone()), put(engine, &first, &url, None)), async {
            if step % 3 == 2 {
                other.act(&second, None, remove(engine, &second)).await;
            } else {
                other.act(&second, Some(url.clone()), put(engine, &second, &url, Some(LONG))).await;
            }
        });
        ledger.possible = other.possible;
        ledger.possible.append(&mut single.possible);
    }
}

/// One life until `fault` at operation `at`, a restart, a second life. Answers what is not explained, and whether the
/// fault came to pass.
async fn lives(disk: FaultDisk, at: u64, fault: Fault, seed: u64) -> (Vec<String>, bool) {
    let (clock, mut chance, mut ledger) = (TestClock::new(), Seeded(seed), Ledger::default());
    disk.plan(at, fault);
    if let Ok(engine) = open(&disk, clock).await {
        work(&engine, &mut ledger, 1).await;
        engine.close().await;
    }
    let happened = disk.is_dead();
    disk.restart(&mut chance);
    let engine = match open(&disk, clock).await {
        Ok(engine) => engine,
        Err(error) => return (vec![error.to_string()], happened),
    };
    let mut wrong = ledger.unexplained(&engine).await;
    work(&engine, &mut ledger, 2).await;
    wrong.extend(ledger.unexplained(&engine).await);
    engine.close().await;
    disk.restart(&mut chance);
    match open(&disk, clock).await {
        Ok(engine) => {
            wrong.extend(ledger.unexplained(&engine).await);
            engine.close().await;
        }
        Err(error) => wrong.push(error.to_string()),
    }
    (wrong, happened)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
}

#[test]
fn c2_a_crash_at_any_operation_loses_nothing_that_was_acknowledged() {
    let mut at = 1;
    loop {
        let mut happened = false;
        for seed in 0..4 {
            let (wrong, crashed) = run(lives(FaultDisk::default(), at, Fault::Crash, at * 31 + seed));
            assert!(wrong.is_empty(), "crash at operation {at}, seed {}: {wrong:?}", at * 31 + seed);
            happened |= crashed;
        }
        if !happened {
            break;
        }
        at += 1;
    }
    println!("{at} operations, each a crash with 4 seeds");
    assert!(at > 40, "the work is {at} operations on the disk");
}

/// The check above can fail: on a disk that only says it syncs, it finds what is lost.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let lost = (20..60).filter(|at| !run(lives(FaultDisk::lying(), *at, Fault::Crash, *at)).0.is_empty()).count();
    assert!(lost > 10, "{lost} of 40 crashes lost something on a disk that never syncs");
}

/// After a failed fsync nothing is acknowledged, readers go on, and a restart finds all that was acknowledged before.
#[test]
fn c2_a_failed_fsync_ends_the_acknowledgements() {
    run(async {
        for at in 1..30 {
            let (disk, clock, mut chance) = (FaultDisk::default(), TestClock::new(), Seeded(at));
            let engine = open(&disk, clock).await.unwrap();
            let mut ledger = Ledger::default();
            ledger.act("a", Some("tcp://a".into()), put(&engine, "a", "tcp://a", None)).await;
            disk.plan(at, Fault::Sync);
            let mut refused = None;
            for number in 0..20 {
                let (called, url) = (format!("e{number}"), format!("tcp://{number}"));
                let outcome = put(&engine, &called, &url, None).await;
                let possible = match (&refused, outcome) {
                    (None, Ok(())) => vec![Some(url)],
                    // Of the write that met it nobody can say whether it is there.
                    (None, Err(error)) => {
                        refused = Some(error);
                        vec![None, Some(url)]
                    }
                    (Some(_), Err(_)) => vec![None],
                    (Some(_), Ok(())) => panic!("acknowledged after a failed fsync"),
                };
                ledger.possible.insert(called, possible);
            }
            let error = refused.expect("the fsync fails");
            assert!(error.to_string().contains("restart the registry"), "{error}");
            assert!(all(&engine).await.contains(&"a tcp://a".to_owned()), "readers go on");
            engine.close().await;
            disk.restart(&mut chance);
            let engine = open(&disk, clock).await.unwrap();
            assert_eq!(ledger.unexplained(&engine).await, Vec::<String>::new(), "fsync {at}");
            put(&engine, "later", "tcp://later", None).await.unwrap();
            engine.close().await;
        }
    });
}

/// A disk that fails for good: refusals with a reason, reads go on.
#[test]
fn a_broken_disk_refuses_and_is_read() {
    run(async {
        let (disk, clock) = (FaultDisk::default(), TestClock::new());
        let engine = open(&disk, clock).await.unwrap();
        put(&engine, "a", "tcp://a", None).await.unwrap();
        disk.plan(1, Fault::Broken);
        for called in ["b", "c"] {
            let refused = put(&engine, called, "tcp://b", None).await.unwrap_err().to_string();
            assert!(refused.contains("the disk is broken"), "{refused}");
        }
        assert_eq!(all(&engine).await, ["a tcp://a"]);
        engine.close().await;
    });
}

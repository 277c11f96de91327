//! What a check costs. The bound is far above the figures, for busy machines; `--nocapture` shows them.

use crate::world::{Identity, question};
use nsm_policy::PolicySet;
use std::time::{Duration, Instant};

const BATCHES: u32 = 20;
const ROUNDS: u32 = 50;

/// The best of several batches: what else the machine does counts least in it.
fn per_round(what: &str, mut work: impl FnMut()) -> Duration {
    let mut batch = || {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        start.elapsed() / ROUNDS
    };
    let best = (0..BATCHES).map(|_| batch()).min().unwrap_or_default();
    println!("{what}: {best:?}");
    best
}

#[test]
fn a_check_takes_no_time_to_speak_of() {
    let hops: Vec<Identity> = (0..4).map(|at| Identity::new(&format!("h{at}"))).collect();
    let tokens: Vec<String> = (0..4).map(|at| hops[at].token(&hops[if at == 3 { 2 } else { at + 1 }])).collect();
    let set = PolicySet::server();
    let check = per_round("policies of a server, 4 segments", || {
        set.check("x", &question(3, &tokens, Some(&hops[2].certificate))).unwrap();
    });
    per_round("sign a token", || drop(hops[0].token(&hops[1])));
    let leaf = nsm_policy::jwt::Leaf::from_der(&hops[0].certificate).unwrap();
    per_round("read a certificate", || drop(nsm_policy::jwt::Leaf::from_der(&hops[0].certificate)));
    per_round("verify a token", || assert_eq!(leaf.signed(&tokens[0]), Some(true)));
    assert!(check < Duration::from_millis(10), "{check:?}");
}

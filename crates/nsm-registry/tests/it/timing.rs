//! Prints, and does not judge, what Register and Find cost beside few and beside many endpoints that have nothing to do
//! with them. `cargo test -p nsm-registry --test it timing -- --nocapture`

use crate::common::*;
use nsm_api::{EndpointQuery, Files, RegistryApi};
use std::time::{Duration, Instant};

const ROUNDS: u32 = 1000;

async fn measure(others: usize) -> [Duration; 3] {
    let registry = registry();
    for number in 0..others {
        let endpoint =
            endpoint(&format!("other-{number}"), &format!("s{}", number % 100), &[("app", "other"), ("node", &format!("n{number}"))]);
        registry.register_endpoint(endpoint, Files::default(), caller("a")).await.unwrap();
    }
    let mine = endpoint("mine", "mine", &[("app", "mine")]);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        registry.register_endpoint(mine.clone(), Files::default(), caller("a")).await.unwrap();
    }
    let register = start.elapsed() / ROUNDS;
    let mut costs = [register; 3];
    let by_name = EndpointQuery { name: Some(name("mine")), ..EndpointQuery::default() };
    let by_label = EndpointQuery { labels: [(service("mine"), labels(&[("app", "mine")]))].into(), ..EndpointQuery::default() };
    for (cost, query) in costs[1..].iter_mut().zip([by_name, by_label]) {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            assert_eq!(all(registry.find_endpoints(query.clone(), caller("x")).await.unwrap()).await.len(), 1);
        }
        *cost = start.elapsed() / ROUNDS;
    }
    costs
}

#[tokio::test]
async fn cost_beside_few_and_many_endpoints() {
    for others in [100, 10_000] {
        let [register, by_name, by_label] = measure(others).await;
        println!("beside {others:>6} endpoints: Register {register:?}, Find by name {by_name:?}, Find by label {by_label:?}");
    }
}

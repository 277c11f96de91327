//! In which order candidates are tried: round robin for each service, by weight where weights are given.

use crate::matching::Candidate;
use nsm_api::ServiceName;
use std::{collections::BTreeMap, sync::Mutex};

/// Services whose turn is remembered; beyond that the oldest names start over, which only affects fairness.
pub const MAX_COUNTERS: usize = 10_000;

/// Whose turn it is, for each service.
#[derive(Default)]
pub struct RoundRobin {
    turns: Mutex<BTreeMap<ServiceName, u64>>,
}

impl RoundRobin {
    /// The turn of `service`, and moves on.
    pub fn next(&self, service: &ServiceName) -> u64 {
        let mut turns = self.turns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if turns.len() >= MAX_COUNTERS && !turns.contains_key(service) {
            turns.pop_first();
        }
        let turn = turns.entry(service.clone()).or_default();
        *turn += 1;
        *turn - 1
    }
}

/// All candidates, the one whose turn it is first, the others after it as replacements.
pub fn order<E>(candidates: &[Candidate<E>], turn: u64) -> Vec<&E> {
    let Some(first) = candidates.first() else { return Vec::new() };
    let start = if candidates.iter().all(|candidate| candidate.weight == first.weight) {
        (turn % candidates.len() as u64) as usize
    } else {
        weighted(candidates, turn)
    };
    let (before, from) = candidates.split_at(start);
    from.iter().chain(before).map(|candidate| &candidate.endpoint).collect()
}

/// Destinations share the turns by weight (an unsaid weight is 1); endpoints of one destination take turns.
fn weighted<E>(candidates: &[Candidate<E>], turn: u64) -> usize {
    let mut destinations: BTreeMap<usize, (u64, Vec<usize>)> = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let entry = destinations.entry(candidate.destination).or_insert((u64::from(candidate.weight.max(1)), Vec::new()));
        entry.1.push(index);
    }
    let total: u64 = destinations.values().map(|(weight, _)| weight).sum();
    let mut place = turn % total;
    for (weight, members) in destinations.values() {
        if place < *weight {
            let round = turn / total * weight + place;
            return members[(round % members.len() as u64) as usize];
        }
        place -= weight;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::NetworkServiceEndpoint;

    fn endpoints(count: usize) -> Vec<NetworkServiceEndpoint> {
        (0..count).map(|i| NetworkServiceEndpoint::new(format!("e{i}").parse().unwrap(), vec![], "")).collect()
    }

    #[test]
    fn everybody_gets_a_turn_and_everybody_else_is_a_replacement() {
        let all = endpoints(3);
        let candidates: Vec<_> = all.iter().map(|endpoint| Candidate { endpoint, destination: 0, weight: 0 }).collect();
        let turns = RoundRobin::default();
        let service: ServiceName = "svc".parse().unwrap();
        for expected in ["e0 e1 e2", "e1 e2 e0", "e2 e0 e1", "e0 e1 e2"] {
            let names: Vec<_> = order(&candidates, turns.next(&service)).iter().map(|e| e.name.to_string()).collect();
            assert_eq!(names.join(" "), expected);
        }
        assert!(order::<NetworkServiceEndpoint>(&[], 5).is_empty());
    }

    #[test]
    fn weights_share_the_turns() {
        let all = endpoints(3);
        let weights = [(0, 3), (1, 1), (1, 1)];
        let candidates: Vec<_> =
            all.iter().zip(weights).map(|(endpoint, (destination, weight))| Candidate { endpoint, destination, weight }).collect();
        let mut count = BTreeMap::<String, u32>::new();
        for turn in 0..80 {
            *count.entry(order(&candidates, turn)[0].name.to_string()).or_default() += 1;
        }
        assert_eq!(count, BTreeMap::from([("e0".to_owned(), 60), ("e1".to_owned(), 10), ("e2".to_owned(), 10)]));
    }
}

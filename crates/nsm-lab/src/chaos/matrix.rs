//! Which cases there are, and what the seed decides of them.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use std::time::Duration;

/// The roles, and the processes that play them in the stage of this run.
const ROLES: [(&str, &[&str]); 8] = [
    ("identity", &["identity"]),
    ("registry", &["registry"]),
    ("manager", &["node-1-manager", "node-2-manager"]),
    ("forwarder", &["node-1-forwarder", "node-2-forwarder"]),
    ("node", &["node-3"]),
    ("endpoint", &["near", "far"]),
    ("client", &["client-0", "client-1"]),
    ("packet", &["node-1-packet", "node-2-packet"]),
];
/// Between the first of two and the second, at most, milliseconds.
const MAX_STAGGER: u64 = 400;
/// How long they are away or stopped, milliseconds.
const AWAY: std::ops::RangeInclusive<u64> = 300..=1500;

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// SIGKILL; it is away for a while, and is started again.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    StopContinue,
    /// It is told to end, or killed if its goodbye would end its vWires, and is started again at once.
    Restart,
}

impl Kind {
    /// As in tables.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::StopContinue => "stop",
            Kind::Restart => "restart",
        }
    }
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    /// The roles, one or two.
    pub(crate) roles: Vec<&'static str>,
    /// The processes, in the order in which it happens to them.
    pub(crate) victims: Vec<&'static str>,
    /// What happens.
    pub(crate) fault: Kind,
    /// Between the two, milliseconds.
    pub(crate) stagger_ms: u64,
    /// How long they are away, milliseconds.
    pub(crate) away_ms: u64,
}

impl Case {
    /// Who it happens to.
    pub(crate) fn who(&self) -> String {
        self.victims.join(", ")
    }
    /// All of it.
    pub(crate) fn words(&self) -> String {
        format!("{} of {}", self.fault.word(), self.who())
    }
    /// Packets pass through such a process, not only by what it has made.
    pub(crate) fn carries(&self) -> bool {
        self.roles.contains(&"packet")
    }
    pub(crate) fn stagger(&self) -> Duration {
        Duration::from_millis(self.stagger_ms)
    }
    pub(crate) fn away(&self) -> Duration {
        Duration::from_millis(self.away_ms)
    }
}

/// Every role, and then, unless only `alone` is wanted, every pair of roles, with every fault.
pub(crate) fn cases(seed: u64, alone: bool) -> Vec<Case> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    let kinds = [Kind::Kill, Kind::StopContinue, Kind::Restart];
    for (role, players) in ROLES {
        for fault in kinds {
            let victim = players[random.random_range(0..players.len())];
            all.push(drawn(&mut random, vec![role], vec![victim], fault));
        }
    }
    let pairs = ROLES.iter().enumerate().flat_map(|(i, one)| ROLES[i..].iter().map(move |two| (one, two)));
    for ((one, first), (two, second)) in pairs.filter(|((one, players), (two, _))| !alone && (one != two || players.len() > 1)) {
        for fault in kinds {
            let a = first[random.random_range(0..first.len())];
            let others: Vec<&'static str> = second.iter().copied().filter(|name| *name != a).collect();
            let b = others[random.random_range(0..others.len())];
            let victims = if random.random_bool(0.5) { vec![a, b] } else { vec![b, a] };
            all.push(drawn(&mut random, vec![one, two], victims, fault));
        }
    }
    all
}

fn drawn(random: &mut StdRng, roles: Vec<&'static str>, victims: Vec<&'static str>, fault: Kind) -> Case {
    let stagger_ms = if victims.len() > 1 { random.random_range(0..=MAX_STAGGER) } else { 0 };
    let away_ms = if fault == Kind::Restart { 0 } else { random.random_range(AWAY) };
    Case { roles, victims, fault, stagger_ms, away_ms }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_role_and_every_pair_meets_every_fault_and_the_seed_decides_the_rest() {
        let all = cases(1, false);
        // Eight roles, 28 pairs of different ones, and five of two processes of one role.
        assert_eq!(all.len(), 3 * (8 + 28 + 5));
        let kinds: BTreeSet<(Vec<&str>, &str)> = all.iter().map(|case| (case.roles.clone(), case.fault.word())).collect();
        assert_eq!(kinds.len(), all.len());
        assert!(all.iter().all(|case| case.victims.len() == case.roles.len() && case.victims.first() != case.victims.get(1)));
        assert_eq!(all, cases(1, false));
        assert_ne!(all, cases(2, false));
        assert_eq!(cases(1, true), all[..24]);
    }
}

//! Whether a recorded history of one name of a registry could have happened one call after the other (I7).
//!
//! The search of Wing and Gong with memory: it takes any call that no other had ended before, tries its effect on
//! the model, and goes on. Calls whose outcome is not known may have happened at any later time, or never.

use std::collections::HashSet;

/// Calls of one name that are judged at most.
pub const MAX_CALLS: usize = 128;
/// Places that are looked at before the search is given up.
const MAX_PLACES: usize = 5_000_000;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Write the name.
    Register {
        /// Who writes.
        owner: u8,
        /// What; different each time.
        value: u32,
    },
    /// Free the name.
    Unregister {
        /// Who does so.
        owner: u8,
    },
    /// Read it.
    Find,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was done.
    Done,
    /// The name is another's.
    Denied,
    /// It was read.
    Found(State),
    /// Nothing.
    Unknown,
}

/// Who owns the name and what stands there.
pub type State = Option<(u8, u32)>;

/// One call and its reply, between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What was asked.
    pub call: Call,
    /// What was heard.
    pub reply: Reply,
    /// The moment of the one.
    pub begin: u64,
    /// The moment of the other.
    pub end: u64,
}

/// What the model becomes by this call, if it can answer so. An unknown reply has the effect it would have had.
fn step(state: State, event: &Event) -> Option<State> {
    let owner = match event.call {
        Call::Find => return (event.reply == Reply::Found(state)).then_some(state),
        Call::Register { owner, .. } | Call::Unregister { owner } => owner,
    };
    let may = state.is_none_or(|(present, _)| present == owner);
    let after = match event.call {
        Call::Register { value, .. } => Some((owner, value)),
        Call::Unregister { .. } | Call::Find => None,
    };
    match event.reply {
        Reply::Done | Reply::Unknown if may => Some(after),
        Reply::Denied if !may => Some(state),
        _ => None,
    }
}

/// `Ok` if there is an order; otherwise the longest that was found.
pub fn check(history: &[Event]) -> Result<(), String> {
    if history.len() > MAX_CALLS {
        return Err(format!("{} calls of one name are too many to judge", history.len()));
    }
    let mut history = history.to_vec();
    history.sort_by_key(|event| event.begin);
    let wanted = history.iter().enumerate().filter(|(_, event)| event.reply != Reply::Unknown).fold(0u128, |mask, (at, _)| mask | 1 << at);
    let (mut seen, mut places, mut best) = (HashSet::new(), vec![(0u128, None)], 0u128);
    while let Some((done, state)) = places.pop() {
        if done & wanted == wanted {
            return Ok(());
        }
        if !seen.insert((done, state)) {
            continue;
        }
        if seen.len() >= MAX_PLACES {
            return Err(format!("undecided after {MAX_PLACES} places"));
        }
        if (done & wanted).count_ones() > (best & wanted).count_ones() {
            best = done;
        }
        let left = || history.iter().enumerate().filter(|(at, _)| done & 1 << at == 0);
        let first_end = left().filter(|(_, event)| event.reply != Reply::Unknown).map(|(_, event)| event.end).min().unwrap_or(u64::MAX);
        for (at, event) in left().filter(|(_, event)| event.begin <= first_end) {
            places.extend(step(state, event).map(|after| (done | 1 << at, after)));
        }
    }
    let stuck: Vec<_> = history.iter().enumerate().filter(|(at, _)| best & 1 << at == 0).map(|(_, event)| format!("{event:?}")).collect();
    Err(format!("no order explains:\n{}", stuck.join("\n")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: Call = Call::Register { owner: 1, value: 1 };
    const B: Call = Call::Register { owner: 2, value: 2 };

    fn history(events: &[(Call, Reply, u64, u64)]) -> Result<(), String> {
        let event = |&(call, reply, begin, end): &(Call, Reply, u64, u64)| Event { call, reply, begin, end };
        check(&events.iter().map(event).collect::<Vec<_>>())
    }

    #[test]
    fn histories_that_can_have_happened() {
        use Reply::{Denied, Done, Found, Unknown};
        for events in [
            &[(A, Done, 0, 1), (Call::Find, Found(Some((1, 1))), 2, 3)][..],
            &[(A, Done, 0, 9), (Call::Find, Found(None), 2, 3)],
            &[(A, Done, 0, 9), (B, Denied, 1, 2), (Call::Find, Found(Some((1, 1))), 3, 4)],
            &[(A, Unknown, 0, 1), (Call::Find, Found(None), 2, 3), (Call::Find, Found(Some((1, 1))), 4, 5)],
            &[(A, Unknown, 0, 1), (B, Done, 2, 3)],
            &[(A, Unknown, 0, 1), (B, Denied, 2, 3)],
            &[(A, Done, 0, 1), (Call::Unregister { owner: 1 }, Done, 2, 3), (B, Done, 4, 5)],
        ] {
            history(events).unwrap();
        }
    }

    #[test]
    fn histories_that_cannot() {
        use Reply::{Denied, Done, Found, Unknown};
        let found_a = Found(Some((1, 1)));
        for (what, events) in [
            ("lost", &[(A, Done, 0, 1), (Call::Find, Found(None), 2, 3)][..]),
            ("two owners", &[(A, Done, 0, 2), (B, Done, 1, 3)]),
            ("stolen", &[(A, Done, 0, 1), (B, Done, 2, 3)]),
            ("stale", &[(A, Done, 0, 1), (Call::Register { owner: 1, value: 3 }, Done, 2, 3), (Call::Find, found_a, 4, 5)]),
            ("resurrected", &[(A, Done, 0, 1), (Call::Unregister { owner: 1 }, Done, 2, 3), (Call::Find, found_a, 4, 5)]),
            ("back and forth", &[(A, Unknown, 0, 1), (Call::Find, found_a, 2, 3), (Call::Find, Found(None), 4, 5)]),
            ("denied by nobody", &[(A, Denied, 0, 1)]),
            ("from nowhere", &[(Call::Find, found_a, 0, 1)]),
        ] {
            assert!(history(events).is_err(), "{what}");
        }
    }
}

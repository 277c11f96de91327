//! Answers that still hold, positive and negative. Two halves: when the young one is full it becomes the old one and
//! what was old is forgotten; so the size is bounded without any search for a victim.

use crate::wire::{Answer, Question, Verdict};
use std::{collections::HashMap, mem, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Most answers that are remembered.
pub const MAX_CACHED: usize = 4096;
/// An answer is asked for again after this time, whatever its records say.
pub const MAX_TTL: Duration = Duration::from_secs(3600);
/// The same for a "no": names of workloads appear at any time.
pub const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Entry {
    answer: Arc<Answer>,
    since: Instant,
    until: Instant,
}

/// The answers of one table of servers. A changed table begins with an empty one.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    young: HashMap<Question, Entry>,
    old: HashMap<Question, Entry>,
}

impl Cache {
    /// The answer and its age at `now`.
    pub(crate) fn get(&self, question: &Question, now: Instant) -> Option<(Arc<Answer>, Duration)> {
        let entry = self.young.get(question).or_else(|| self.old.get(question))?;
        (now < entry.until).then(|| (entry.answer.clone(), now.saturating_duration_since(entry.since)))
    }

    /// Remembers an answer that was found at `now`, if it says for how long.
    pub(crate) fn put(&mut self, question: Question, answer: Arc<Answer>, now: Instant) {
        let Some(lifetime) = answer.lifetime() else { return };
        let most = if answer.verdict() == Verdict::Found { MAX_TTL } else { MAX_NEGATIVE_TTL };
        if self.young.len() >= MAX_CACHED / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(question, Entry { answer, since: now, until: now + lifetime.min(most) });
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

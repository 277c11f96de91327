//! What has happened: a number for all of it, and the last of it in words.

use crate::flag::Flag;
use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Events that a violation shows, unless [`crate::Options`] say otherwise.
pub const SHOWN_EVENTS: usize = 60;

/// A sentence that does not hold, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Simulated milliseconds since the start.
    pub at_ms: u64,
    /// What does not hold.
    pub sentence: String,
    /// The last events before it, oldest first.
    pub last: Vec<String>,
}

struct Inner {
    shown: usize,
    count: u64,
    hash: u64,
    last: VecDeque<String>,
    violation: Option<Violation>,
}

/// The events of one run.
pub(crate) struct Events(Mutex<Inner>, Flag);

impl Events {
    /// Keeps the last `shown` in words.
    pub(crate) fn new(shown: usize) -> Events {
        Events(Mutex::new(Inner { shown, count: 0, hash: 0, last: VecDeque::new(), violation: None }), Flag::default())
    }
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn note(&self, at: Duration, what: fmt::Arguments<'_>) {
        let mut inner = self.lock();
        let mut line = if inner.last.len() < inner.shown { String::new() } else { inner.last.pop_front().unwrap_or_default() };
        line.clear();
        // Writing to a String cannot fail.
        let _ = fmt::Write::write_fmt(&mut line, format_args!("{:>9.3} {what}", at.as_secs_f64()));
        inner.count += 1;
        inner.hash = crate::chance::fingerprint(inner.hash, &line);
        inner.last.push_back(line);
    }
    /// The first violation counts: what follows may follow from it.
    pub(crate) fn violate(&self, at: Duration, sentence: String) {
        let mut inner = self.lock();
        if inner.violation.is_none() {
            let last = inner.last.iter().cloned().collect();
            inner.violation = Some(Violation { at_ms: at.as_millis() as u64, sentence, last });
            drop(inner);
            self.1.set(true);
        }
    }
    /// Resolves when something does not hold.
    pub(crate) async fn broken(&self) {
        self.1.until(true).await;
    }
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }
    /// All that are kept in words.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().last.iter().cloned().collect()
    }
    /// How many there were, and the number that stands for all of them.
    pub(crate) fn sum(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.count, inner.hash)
    }
}

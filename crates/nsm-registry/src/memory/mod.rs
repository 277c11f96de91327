//! The engine that keeps everything in memory: what is there ends with the process.
//!
//! Not here: durability. A registry that must survive its process uses another engine behind the same trait.

mod entries;
#[cfg(test)]
mod tests;
mod watchers;

use crate::{
    engine::{Change, Changes, Engine, Record, Revision, Store, Stored},
    lock,
    timer::{Expires, Timer},
};
use async_trait::async_trait;
use entries::{Entries, Entry};
use nsm_api::{Error, Kind, NetworkService, NetworkServiceEndpoint, Result};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use watchers::{Known, Watchers, Watching};

/// Services, and endpoints, that one engine holds.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Watchers of services, and of endpoints, that one engine serves at once.
pub const MAX_WATCHERS: usize = 65_536;
/// Changes that wait for one watcher to read them; when there are more it is cut, and starts again from the present state.
pub const WATCH_QUEUE: usize = 1024;

/// The bounds of one table, smaller in tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) entries: usize,
    pub(crate) watchers: usize,
    pub(crate) queue: usize,
}

const BOUNDS: Bounds = Bounds { entries: MAX_ENTRIES, watchers: MAX_WATCHERS, queue: WATCH_QUEUE };

/// Services and endpoints in memory, indexed by name, service and label.
pub struct MemoryEngine {
    services: Arc<Table<NetworkService>>,
    endpoints: Arc<Table<NetworkServiceEndpoint>>,
}

impl MemoryEngine {
    /// An empty one.
    pub fn new() -> MemoryEngine {
        MemoryEngine::bounded(BOUNDS)
    }
    /// One that holds at most so many services, and endpoints.
    pub(crate) fn holding(entries: usize) -> MemoryEngine {
        MemoryEngine::bounded(Bounds { entries, ..BOUNDS })
    }
    pub(crate) fn bounded(bounds: Bounds) -> MemoryEngine {
        MemoryEngine { services: Arc::new(Table::new(bounds)), endpoints: Arc::new(Table::new(bounds)) }
    }
}

impl Default for MemoryEngine {
    fn default() -> MemoryEngine {
        MemoryEngine::new()
    }
}

impl Engine for MemoryEngine {
    fn services(&self) -> &dyn Store<NetworkService> {
        &self.services
    }
    fn endpoints(&self) -> &dyn Store<NetworkServiceEndpoint> {
        &self.endpoints
    }
}

/// Records of one kind behind one lock. Every section under it is short: what it touches, and the watchers of that.
struct Table<R: Record> {
    state: Mutex<State<R>>,
    timer: Timer,
    bounds: Bounds,
}

struct State<R: Record> {
    revision: Revision,
    entries: Entries<R>,
    deadlines: BTreeSet<(Instant, R::Name)>,
    watchers: Watchers<R>,
}

impl<R: Record> Table<R> {
    fn new(bounds: Bounds) -> Table<R> {
        let state =
            State { revision: Revision::default(), entries: Entries::default(), deadlines: BTreeSet::new(), watchers: Watchers::default() };
        Table { state: Mutex::new(state), timer: Timer::default(), bounds }
    }

    /// The state as of this moment: what has ended is gone, whether or not the timer has run yet.
    fn now(&self) -> MutexGuard<'_, State<R>> {
        let mut state = lock(&self.state);
        state.expire(Instant::now());
        state
    }
}

impl<R: Record> Expires for Table<R> {
    fn expire(&self, now: Instant) -> Option<Instant> {
        lock(&self.state).expire(now)
    }
}

impl<R: Record> State<R> {
    fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.deadlines.first() {
            if first.0 > now {
                return Some(first.0);
            }
            let (_, name) = self.deadlines.pop_first()?;
            self.remove(&name);
        }
        None
    }

    /// Watchers are told before the entries change: one that is cut must know what it had been told until then.
    fn put(&mut self, record: Arc<R>, deadline: Option<Instant>) -> Revision {
        let name = record.name().clone();
        let old = self.entries.get(&name);
        let (ended, before) = (old.and_then(|old| old.deadline), old.map(Entry::record));
        self.watchers.publish(&self.entries, before.as_ref(), Some(&record));
        if let Some(ended) = ended {
            self.deadlines.remove(&(ended, name.clone()));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, name));
        }
        self.revision.0 += 1;
        self.entries.insert(&record, Entry::new(&record, self.revision, deadline));
        self.revision
    }

    fn remove(&mut self, name: &R::Name) {
        let Some(old) = self.entries.get(name) else { return };
        let (record, deadline) = (old.record(), old.deadline);
        self.watchers.publish(&self.entries, Some(&record), None);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, name.clone()));
        }
        self.revision.0 += 1;
        self.entries.remove(name);
    }

    fn revision_of(&self, name: &R::Name) -> Option<Revision> {
        self.entries.get(name).map(|entry| entry.revision)
    }
}

#[async_trait]
impl<R: Record> Store<R> for Arc<Table<R>> {
    async fn get(&self, name: &R::Name) -> Result<Option<Stored<R>>> {
        let state = self.now();
        Ok(state.entries.get(name).map(|entry| Stored { record: entry.record(), revision: entry.revision }))
    }

    async fn put(&self, record: Arc<R>, expected: Option<Revision>, life: Option<Duration>) -> Result<Option<Revision>> {
        let mut state = self.now();
        if state.revision_of(record.name()) != expected {
            return Ok(None);
        }
        if expected.is_none() && state.entries.len() >= self.bounds.entries {
            let reason = format!("the registry is full ({} entries)", self.bounds.entries);
            return Err(Error::new(
                Kind::Exhausted,
                R::object(record.name()),
                reason,
                "unregister what is not needed, or use a second registry",
            ));
        }
        let deadline = life.map(|life| Instant::now() + life);
        let revision = state.put(record, deadline);
        if deadline.is_some() && state.deadlines.first().map(|first| first.0) == deadline {
            self.timer.wake(self);
        }
        Ok(Some(revision))
    }

    async fn remove(&self, name: &R::Name, expected: Revision) -> Result<bool> {
        let mut state = self.now();
        let same = state.revision_of(name) == Some(expected);
        if same {
            state.remove(name);
        }
        Ok(same)
    }

    async fn find(&self, query: &R::Query) -> Result<Vec<Arc<R>>> {
        let found = self.now().entries.select(query);
        Ok(found.iter().map(|slim| Arc::new(R::whole(slim))).collect())
    }

    async fn watch(&self, query: R::Query) -> Result<Changes<R>> {
        let mut state = self.now();
        if state.watchers.len() >= self.bounds.watchers {
            let reason = format!("{} watchers are there already", self.bounds.watchers);
            return Err(Error::new(Kind::Exhausted, "registry watch", reason, "end watches that nobody reads, or use a second registry"));
        }
        let id = state.watchers.add(query);
        let (present, changes) = state.resume(id, self.bounds.queue);
        Ok(Watching::stream(self.clone(), id, present, changes))
    }
}

impl<R: Record> State<R> {
    /// Connects a watcher: what it must be told to know the present state, and the queue of what comes after.
    fn resume(&mut self, id: u64, queue: usize) -> (Vec<Known<R>>, mpsc::Receiver<Change<R>>) {
        let (sender, receiver) = mpsc::channel(queue);
        (self.watchers.connect(&self.entries, id, sender), receiver)
    }
}

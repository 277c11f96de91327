//! Who is told of which change, each through a queue of its own.
//!
//! A full queue is closed at once, never waited for. Its reader finds the end of it, and is connected again:
//! deletions of what it knew and what is gone by then, the present state, and a fresh queue.

use super::{State, Table, entries::Entries};
use crate::{
    engine::{Change, Changes, Record, Term},
    lock,
};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec,
};
use tokio::sync::mpsc;

/// The one place where a watcher is looked for when a record changes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Anchor<N> {
    Name(N),
    Term(Term),
    All,
}

struct Watcher<R: Record> {
    query: R::Query,
    /// Where its changes go; `None` between the cut and the next connection.
    queue: Option<mpsc::Sender<Change<R>>>,
    /// What it knows once it has read its queue to the end. Filled at the cut only: until then the entries tell.
    known: Vec<Arc<R::Slim>>,
}

/// What a watcher is told first.
pub(super) struct Known<R: Record> {
    slim: Arc<R::Slim>,
    deleted: bool,
}

pub(super) struct Watchers<R: Record> {
    last_id: u64,
    by_id: BTreeMap<u64, Watcher<R>>,
    by_anchor: BTreeMap<Anchor<R::Name>, BTreeSet<u64>>,
}

impl<R: Record> Default for Watchers<R> {
    fn default() -> Watchers<R> {
        Watchers { last_id: 0, by_id: BTreeMap::new(), by_anchor: BTreeMap::new() }
    }
}

fn anchor<R: Record>(query: &R::Query) -> Anchor<R::Name> {
    if let Some(name) = R::name_in(query) {
        return Anchor::Name(name.clone());
    }
    R::terms_in(query).into_iter().next().map_or(Anchor::All, Anchor::Term)
}

impl<R: Record> Watchers<R> {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn add(&mut self, query: R::Query) -> u64 {
        self.last_id += 1;
        self.by_anchor.entry(anchor::<R>(&query)).or_default().insert(self.last_id);
        self.by_id.insert(self.last_id, Watcher { query, queue: None, known: Vec::new() });
        self.last_id
    }

    fn remove(&mut self, id: u64) {
        let Some(watcher) = self.by_id.remove(&id) else { return };
        let anchor = anchor::<R>(&watcher.query);
        if let Some(ids) = self.by_anchor.get_mut(&anchor) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_anchor.remove(&anchor);
            }
        }
    }

    /// What the watcher must be told to know `entries`; changes after that go to `queue`.
    pub(super) fn connect(&mut self, entries: &Entries<R>, id: u64, queue: mpsc::Sender<Change<R>>) -> Vec<Known<R>> {
        let Some(watcher) = self.by_id.get_mut(&id) else { return Vec::new() };
        watcher.queue = Some(queue);
        let known = std::mem::take(&mut watcher.known);
        let gone = known.into_iter().filter(|slim| !entries.answers(R::name_of(slim), &watcher.query));
        let gone = gone.map(|slim| Known { slim, deleted: true });
        gone.chain(entries.select(&watcher.query).into_iter().map(|slim| Known { slim, deleted: false })).collect()
    }

    /// Tells everybody concerned that `old` becomes `new`. `entries` is the state before that.
    pub(super) fn publish(&mut self, entries: &Entries<R>, old: Option<&Arc<R>>, new: Option<&Arc<R>>) {
        for id in self.concerned(old, new) {
            let Some(watcher) = self.by_id.get_mut(&id) else { continue };
            let answers = |record: &&Arc<R>| record.matches(&watcher.query);
            let change = match (old.filter(answers), new.filter(answers)) {
                (_, Some(new)) => Change { record: new.clone(), deleted: false },
                (Some(old), None) => Change { record: old.clone(), deleted: true },
                (None, None) => continue,
            };
            let Some(queue) = &watcher.queue else { continue };
            if queue.try_send(change).is_err() {
                watcher.queue = None;
                watcher.known = entries.select(&watcher.query);
            }
        }
    }

    fn concerned(&self, old: Option<&Arc<R>>, new: Option<&Arc<R>>) -> BTreeSet<u64> {
        let mut ids = BTreeSet::new();
        if self.by_id.is_empty() {
            return ids;
        }
        let name = old.or(new).map(|record| Anchor::Name(record.name().clone()));
        let terms = old.into_iter().chain(new).flat_map(|record| record.terms()).map(Anchor::Term);
        for anchor in name.into_iter().chain(terms).chain([Anchor::All]) {
            ids.extend(self.by_anchor.get(&anchor).into_iter().flatten());
        }
        ids
    }
}

/// The reading side of one watcher. Dropping it ends the watch.
pub(super) struct Watching<R: Record> {
    table: Arc<Table<R>>,
    id: u64,
    present: vec::IntoIter<Known<R>>,
    changes: mpsc::Receiver<Change<R>>,
}

impl<R: Record> Watching<R> {
    pub(super) fn stream(table: Arc<Table<R>>, id: u64, present: Vec<Known<R>>, changes: mpsc::Receiver<Change<R>>) -> Changes<R> {
        let watching = Watching { table, id, present: present.into_iter(), changes };
        stream::unfold(watching, |mut watching| async move { Some((Ok(watching.next().await), watching)) }).boxed()
    }

    async fn next(&mut self) -> Change<R> {
        loop {
            if let Some(Known { slim, deleted }) = self.present.next() {
                return Change { record: Arc::new(R::whole(&slim)), deleted };
            }
            if let Some(change) = self.changes.recv().await {
                return change;
            }
            let (present, changes) = self.table.now().resume(self.id, self.table.bounds.queue);
            (self.present, self.changes) = (present.into_iter(), changes);
        }
    }
}

impl<R: Record> Drop for Watching<R> {
    fn drop(&mut self) {
        let state: &mut State<R> = &mut lock(&self.table.state);
        state.watchers.remove(self.id);
    }
}

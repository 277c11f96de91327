//! What is on disk of one kind of records, and which writes of a batch may change it.

use super::{
    disk::Row,
    writer::{Answer, Op, Write},
};
use crate::{
    clock::{Clock, END_BYTES, End},
    record::Persist,
};
use nsm_api::{Error, Kind, Result};
use nsm_registry::{MAX_ENTRIES, Revision, Store};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::Instant;

/// The names on disk, and when they end.
pub(super) struct Ledger<R: Persist> {
    ends: BTreeMap<R::Name, Option<Instant>>,
    order: BTreeSet<(Instant, R::Name)>,
}

/// What a batch does to one kind.
pub(super) struct Plan<R: Persist> {
    accepted: Vec<(Op<R>, Answer)>,
    /// Lost against a write of the same batch.
    outrun: Vec<Answer>,
    /// Rows of records that have ended.
    ended: Vec<R::Name>,
}

impl<R: Persist> Plan<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.accepted.is_empty() && self.ended.is_empty()
    }

    /// Nothing of it was done.
    pub(super) fn fail(self, error: &Error) {
        for answer in self.accepted.into_iter().map(|(_, answer)| answer).chain(self.outrun) {
            let _ = answer.send(Err(error.clone()));
        }
    }
}

impl<R: Persist> Ledger<R> {
    pub(super) fn new() -> Ledger<R> {
        Ledger { ends: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// When the first record ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.order.first().map(|(end, _)| *end)
    }

    pub(super) fn insert(&mut self, name: R::Name, end: Option<Instant>) {
        self.forget(&name);
        self.order.extend(end.map(|end| (end, name.clone())));
        self.ends.insert(name, end);
    }

    fn forget(&mut self, name: &R::Name) {
        if let Some(Some(end)) = self.ends.remove(name) {
            self.order.remove(&(end, name.clone()));
        }
    }

    /// Decides about the writes in their order. Those that another write has outrun are answered here.
    pub(super) async fn plan(&self, store: &dyn Store<R>, writes: Vec<Write<R>>) -> Plan<R> {
        let now = Instant::now();
        let ended: Vec<_> = self.order.iter().take_while(|(end, _)| *end <= now).map(|(_, name)| name.clone()).collect();
        let mut plan = Plan { accepted: Vec::new(), outrun: Vec::new(), ended };
        let (mut touched, mut room) = (BTreeSet::new(), (MAX_ENTRIES + plan.ended.len()).saturating_sub(self.ends.len()));
        for Write { op, expected, answer } in writes {
            let present = match store.get(op.name()).await {
                Ok(present) => present.map(|stored| stored.revision),
                Err(error) => {
                    let _ = answer.send(Err(error));
                    continue;
                }
            };
            if present != expected {
                let _ = answer.send(Ok(None));
            } else if present.is_none() && room == 0 {
                let _ = answer.send(Err(crowded::<R>(op.name())));
            } else if touched.insert(op.name().clone()) {
                room -= usize::from(present.is_none());
                plan.accepted.push((op, answer));
            } else {
                plan.outrun.push(answer);
            }
        }
        plan
    }

    /// The plan as rows; ends are told by clocks that outlive this process.
    pub(super) fn rows(&self, plan: &Plan<R>, clock: &dyn Clock) -> Vec<Row> {
        let (now, moment) = (Instant::now(), clock.now());
        let row = |name: &R::Name, value| Row { table: R::TABLE, key: R::key(name).to_owned(), value };
        let ended = plan.ended.iter().map(|name| row(name, None));
        let written = plan.accepted.iter().map(|(op, _)| match op {
            Op::Put(record, end) => {
                let end = end.map(|end| End::new(moment, end.saturating_duration_since(now)));
                row(record.name(), Some([&End::to_bytes(end)[..], &record.encode()].concat()))
            }
            Op::Remove(name) => row(name, None),
        });
        ended.chain(written).collect()
    }

    /// Shows readers what is on disk now, then answers.
    pub(super) async fn apply(&mut self, store: &dyn Store<R>, plan: Plan<R>) {
        for name in &plan.ended {
            self.forget(name);
        }
        for (op, answer) in plan.accepted {
            let name = op.name().clone();
            let done = match op {
                Op::Put(record, end) => {
                    self.insert(name, end);
                    show(store, record, end).await
                }
                Op::Remove(name) => {
                    self.forget(&name);
                    hide(store, &name).await
                }
            };
            let _ = answer.send(done.map(Some));
        }
        for answer in plan.outrun {
            let _ = answer.send(Ok(None));
        }
    }
}

fn crowded<R: Persist>(name: &R::Name) -> Error {
    let reason = format!("the registry is full ({MAX_ENTRIES} entries)");
    Error::new(Kind::Exhausted, R::object(name), reason, "unregister what is not needed, or use a second registry")
}

/// Nobody but the end of its life comes between: a second try finds the name as it stays.
const SHOW_TRIES: usize = 3;

/// Puts a record into the index, whatever is there.
pub(super) async fn show<R: Persist>(store: &dyn Store<R>, record: Arc<R>, end: Option<Instant>) -> Result<Revision> {
    for _ in 0..SHOW_TRIES {
        let present = store.get(record.name()).await?.map(|stored| stored.revision);
        let life = end.map(|end| end.saturating_duration_since(Instant::now()));
        if let Some(revision) = store.put(record.clone(), present, life).await? {
            return Ok(revision);
        }
    }
    Err(Error::internal(R::object(record.name()), "changes in memory while its only writer writes it"))
}

/// Takes a name out of the index, if it is there.
async fn hide<R: Persist>(store: &dyn Store<R>, name: &R::Name) -> Result<Revision> {
    match store.get(name).await? {
        Some(stored) => store.remove(name, stored.revision).await.map(|_| stored.revision),
        None => Ok(Revision::default()),
    }
}

/// A row as it was written: the record, and when it ends.
pub(super) fn read<R: Persist>(row: &Row) -> Result<(R, Option<End>)> {
    let value = row.value.as_deref().unwrap_or_default();
    let Some((end, record)) = value.split_first_chunk::<END_BYTES>() else {
        return Err(Error::invalid(format!("{} {:?}", R::TABLE, row.key), "is cut off in the store", "restore a backup"));
    };
    Ok((R::decode(record)?, End::from_bytes(end)))
}

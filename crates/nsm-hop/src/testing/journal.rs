//! A journal in memory, which outlives the hops that write it.

use super::FaultPlan;
use crate::journal::{Journal, Record};
use async_trait::async_trait;
use nsm_api::ConnectionId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Default)]
struct Book {
    generation: u64,
    records: BTreeMap<ConnectionId, Record>,
}

/// The journal of one life of a hop. Whoever has been succeeded writes nothing any more.
pub struct MemoryJournal {
    book: Arc<Mutex<Book>>,
    generation: u64,
    faults: FaultPlan,
}

impl MemoryJournal {
    /// An empty journal whose calls follow a fault plan.
    pub fn new(faults: FaultPlan) -> MemoryJournal {
        MemoryJournal { book: Arc::default(), generation: 0, faults }
    }
    /// The journal of the next life, with what this one has left.
    pub fn succeed(&self, faults: FaultPlan) -> (MemoryJournal, Vec<Record>) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.generation += 1;
        let journal = MemoryJournal { book: self.book.clone(), generation: book.generation, faults };
        (journal, book.records.values().cloned().collect())
    }
    /// Connections of which there is a record.
    pub fn len(&self) -> usize {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).records.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    async fn change(&self, change: impl FnOnce(&mut BTreeMap<ConnectionId, Record>)) {
        let write = || {
            let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
            if book.generation == self.generation {
                change(&mut book.records);
            }
            Ok(())
        };
        let _ = self.faults.act(write).await; // a disk that is full
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn keep(&self, record: Record) {
        self.change(|records| drop(records.insert(record.id.clone(), record))).await;
    }
    async fn forget(&self, id: &ConnectionId) {
        self.change(|records| drop(records.remove(id))).await;
    }
}

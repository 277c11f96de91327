//! Records by name, and the names by term.

use crate::engine::{Record, Revision, Term};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::Instant;

pub(super) struct Entry<R> {
    pub(super) record: Arc<R>,
    pub(super) revision: Revision,
    pub(super) deadline: Option<Instant>,
}

pub(super) struct Entries<R: Record> {
    by_name: BTreeMap<R::Name, Entry<R>>,
    by_term: BTreeMap<Term, BTreeSet<R::Name>>,
}

impl<R: Record> Default for Entries<R> {
    fn default() -> Entries<R> {
        Entries { by_name: BTreeMap::new(), by_term: BTreeMap::new() }
    }
}

impl<R: Record> Entries<R> {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    #[cfg(test)]
    pub(super) fn terms(&self) -> usize {
        self.by_term.len()
    }

    pub(super) fn get(&self, name: &R::Name) -> Option<&Entry<R>> {
        self.by_name.get(name)
    }

    pub(super) fn insert(&mut self, entry: Entry<R>) {
        let name = entry.record.name().clone();
        let new = entry.record.clone();
        let old = self.by_name.insert(name.clone(), entry);
        // A refresh changes no term, and is what comes most often.
        let (old, new) = (old.map(|old| old.record.terms()).unwrap_or_default(), new.terms());
        if old != new {
            self.unlink(&name, &old);
            for term in new {
                self.by_term.entry(term).or_default().insert(name.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, name: &R::Name) {
        if let Some(old) = self.by_name.remove(name) {
            self.unlink(name, &old.record.terms());
        }
    }

    fn unlink(&mut self, name: &R::Name, terms: &[Term]) {
        for term in terms {
            if let Some(names) = self.by_term.get_mut(term) {
                names.remove(name);
                if names.is_empty() {
                    self.by_term.remove(term);
                }
            }
        }
    }

    /// The records that answer `query`, looking only at the fewest that one name or one term leaves.
    pub(super) fn select(&self, query: &R::Query) -> Vec<Arc<R>> {
        let answers = |entry: &&Entry<R>| entry.record.matches(query);
        if let Some(name) = R::name_in(query) {
            return self.by_name.get(name).filter(answers).map(|entry| entry.record.clone()).into_iter().collect();
        }
        let terms = R::terms_in(query);
        if terms.is_empty() {
            return self.by_name.values().filter(answers).map(|entry| entry.record.clone()).collect();
        }
        let with = |term| self.by_term.get(term).map_or(0, BTreeSet::len);
        let fewest = terms.iter().min_by_key(|term| with(term)).and_then(|term| self.by_term.get(term));
        let entries = fewest.into_iter().flatten().filter_map(|name| self.by_name.get(name));
        entries.filter(answers).map(|entry| entry.record.clone()).collect()
    }
}

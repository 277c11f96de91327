//! Records by name, and the names by term.
//!
//! Of a term only its hash is kept, which is a third of the memory: whoever is found by one is compared with the query anyway.

use crate::engine::{Record, Revision, Term};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};
use tokio::time::Instant;

pub(super) struct Entry<R: Record> {
    slim: Arc<R::Slim>,
    pub(super) revision: Revision,
    pub(super) deadline: Option<Instant>,
}

impl<R: Record> Entry<R> {
    pub(super) fn new(record: &R, revision: Revision, deadline: Option<Instant>) -> Entry<R> {
        Entry { slim: Arc::new(record.slim()), revision, deadline }
    }
    pub(super) fn record(&self) -> Arc<R> {
        Arc::new(R::whole(&self.slim))
    }
    fn answers(&self, query: &R::Query) -> Option<Arc<R::Slim>> {
        R::answers(&self.slim, query).then(|| self.slim.clone())
    }
}

pub(super) struct Entries<R: Record> {
    by_name: BTreeMap<R::Name, Entry<R>>,
    by_term: BTreeMap<u64, Names<R::Name>>,
}

/// Most terms, such as the label of a node, are had by one record.
enum Names<N> {
    One(N),
    Many(BTreeSet<N>),
}

impl<N: Ord + Clone> Names<N> {
    fn len(&self) -> usize {
        match self {
            Names::One(_) => 1,
            Names::Many(names) => names.len(),
        }
    }
    fn insert(&mut self, name: &N) {
        match self {
            Names::One(one) if one == name => {}
            Names::One(one) => *self = Names::Many([one.clone(), name.clone()].into()),
            Names::Many(names) => drop(names.insert(name.clone())),
        }
    }
    /// Whether there is nobody left.
    fn remove(&mut self, name: &N) -> bool {
        match self {
            Names::One(one) => one == name,
            Names::Many(names) => {
                names.remove(name);
                names.is_empty()
            }
        }
    }
    fn iter(&self) -> impl Iterator<Item = &N> {
        let (one, many) = match self {
            Names::One(one) => (Some(one), None),
            Names::Many(names) => (None, Some(names)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// The same in every process, so that a simulation repeats itself.
fn hash(term: &Term) -> u64 {
    let mut hasher = DefaultHasher::new();
    term.hash(&mut hasher);
    hasher.finish()
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

    /// Whether the record of this name is there and answers `query`.
    pub(super) fn answers(&self, name: &R::Name, query: &R::Query) -> bool {
        self.by_name.get(name).is_some_and(|entry| R::answers(&entry.slim, query))
    }

    pub(super) fn insert(&mut self, record: &R, entry: Entry<R>) {
        let name = record.name().clone();
        let old = self.by_name.insert(name.clone(), entry);
        // A refresh changes no term, and is what comes most often.
        let (old, new) = (old.map(|old| old.record().terms()).unwrap_or_default(), record.terms());
        if old != new {
            self.unlink(&name, &old);
            for term in &new {
                self.by_term.entry(hash(term)).and_modify(|names| names.insert(&name)).or_insert_with(|| Names::One(name.clone()));
            }
        }
    }

    pub(super) fn remove(&mut self, name: &R::Name) {
        if let Some(old) = self.by_name.remove(name) {
            self.unlink(name, &old.record().terms());
        }
    }

    fn unlink(&mut self, name: &R::Name, terms: &[Term]) {
        for term in terms.iter().map(hash) {
            if self.by_term.get_mut(&term).is_some_and(|names| names.remove(name)) {
                self.by_term.remove(&term);
            }
        }
    }

    /// The records that answer `query`, looking only at the fewest that one name or one term leaves. They become whole
    /// where nobody waits for that.
    pub(super) fn select(&self, query: &R::Query) -> Vec<Arc<R::Slim>> {
        let answers = |entry: &Entry<R>| entry.answers(query);
        if let Some(name) = R::name_in(query) {
            return self.by_name.get(name).and_then(answers).into_iter().collect();
        }
        let terms = R::terms_in(query);
        if terms.is_empty() {
            return self.by_name.values().filter_map(answers).collect();
        }
        let with = |term: &Term| self.by_term.get(&hash(term));
        let fewest = terms.iter().map(with).min_by_key(|names| names.map_or(0, Names::len)).flatten();
        fewest.into_iter().flat_map(Names::iter).filter_map(|name| self.by_name.get(name)).filter_map(answers).collect()
    }
}

//! The seam between what a registry decides and where it keeps it.
//!
//! An engine stores whole records by name, finds them by query, ends them when their life is over and tells
//! watchers. It knows no owners, no default values and no wall clock.

use async_trait::async_trait;
use futures::stream::BoxStream;
use nsm_api::{Result, ServiceName};
use std::{fmt::Debug, sync::Arc, time::Duration};

/// Counts the writes of one store. A record carries the revision of its last write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// What records are indexed by, beside their name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// Provides this service.
    Service(ServiceName),
    /// Has a set of labels, possibly empty, for this service.
    Labelled(ServiceName),
    /// Has this label, key and value, for this service.
    Label(ServiceName, String, String),
}

/// Something a registry keeps: a service or an endpoint.
pub trait Record: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// Its unique key.
    type Name: Clone + Debug + Ord + Send + Sync + 'static;
    /// A question about records of this kind.
    type Query: Clone + Debug + Send + Sync + 'static;
    /// The record as an index holds it, in little memory.
    type Slim: Send + Sync + 'static;

    /// What it is called in messages, for instance `endpoint "a"`.
    fn object(name: &Self::Name) -> String;
    /// Without what only makes it quick to change.
    fn slim(&self) -> Self::Slim;
    /// The record again, equal to what it was.
    fn whole(slim: &Self::Slim) -> Self;
    /// Its key.
    fn name_of(slim: &Self::Slim) -> &Self::Name;
    /// Whether the record answers `query`, as [`Record::matches`] says.
    fn answers(slim: &Self::Slim, query: &Self::Query) -> bool;
    /// Its key.
    fn name(&self) -> &Self::Name;
    /// Every term it is indexed by.
    fn terms(&self) -> Vec<Term>;
    /// Whether it answers `query`.
    fn matches(&self, query: &Self::Query) -> bool;
    /// The one name that can answer `query`, if it gives one.
    fn name_in(query: &Self::Query) -> Option<&Self::Name>;
    /// Terms that every answer to `query` has.
    fn terms_in(query: &Self::Query) -> Vec<Term>;
}

/// A record as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<R> {
    /// The record.
    pub record: Arc<R>,
    /// Its last write.
    pub revision: Revision,
}

/// One step of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<R> {
    /// The record as it is, or as the watcher last knew it when it ended.
    pub record: Arc<R>,
    /// It ended, or does not answer the query any more.
    pub deleted: bool,
}

/// The steps of a watch. Never ends by itself.
pub type Changes<R> = BoxStream<'static, Result<Change<R>>>;

/// Records of one kind. Writes are compare-and-swap on one name, so that several registries may share a store.
///
/// The cost of each call does not depend on records and watchers that have nothing to do with it.
#[async_trait]
pub trait Store<R: Record>: Send + Sync {
    /// The record of this name.
    async fn get(&self, name: &R::Name) -> Result<Option<Stored<R>>>;
    /// Writes `record` if the present one is still at `expected` (`None`: if there is none), to be removed after
    /// `life`. Answers the new revision, or `None` when another write was faster and nothing was done.
    async fn put(&self, record: Arc<R>, expected: Option<Revision>, life: Option<Duration>) -> Result<Option<Revision>>;
    /// Removes the record if it is still at `expected`; `false` when another write was faster and nothing was done.
    async fn remove(&self, name: &R::Name, expected: Revision) -> Result<bool>;
    /// The records that answer `query`, in the order of their names.
    async fn find(&self, query: &R::Query) -> Result<Vec<Arc<R>>>;
    /// The records that answer `query` and every later change, with no seam between. A watcher that reads too
    /// slowly gets what it missed as deletions of what is gone and the present state again; it delays nobody.
    async fn watch(&self, query: R::Query) -> Result<Changes<R>>;
}

/// Where a registry keeps its records.
pub trait Engine: Send + Sync {
    /// Its services.
    fn services(&self) -> &dyn Store<nsm_api::NetworkService>;
    /// Its endpoints.
    fn endpoints(&self) -> &dyn Store<nsm_api::NetworkServiceEndpoint>;
}

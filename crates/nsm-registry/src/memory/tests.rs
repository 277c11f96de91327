//! The bounds of the memory engine, and that it leaves nothing behind.

use super::{Bounds, MemoryEngine, lock};
use crate::{
    WallClock,
    engine::{Change, Changes, Engine, Revision},
    testing::model::{self, Subject},
};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use nsm_api::{EndpointName, EndpointQuery, Kind, NetworkServiceEndpoint, ServiceName};
use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio::time::Instant;

fn endpoint(name: &str, service: &str) -> Arc<NetworkServiceEndpoint> {
    let services = vec![ServiceName::new(service).unwrap()];
    Arc::new(NetworkServiceEndpoint::new(EndpointName::new(name).unwrap(), services, "tcp://10.0.0.1:1"))
}

fn of_service(service: &str) -> EndpointQuery {
    EndpointQuery { services: vec![ServiceName::new(service).unwrap()], ..EndpointQuery::default() }
}

/// What is there to read now, as `+name` and `-name`.
fn drain(changes: &mut Changes<NetworkServiceEndpoint>) -> Vec<String> {
    let text = |Change { record, deleted }: Change<NetworkServiceEndpoint>| format!("{}{}", if deleted { "-" } else { "+" }, record.name);
    std::iter::from_fn(|| changes.next().now_or_never()).map(|next| text(next.unwrap().unwrap())).collect()
}

#[tokio::test]
async fn tables_and_watchers_are_bounded() {
    let engine = MemoryEngine::bounded(Bounds { entries: 1, watchers: 1, queue: 1 });
    let store = engine.endpoints();
    let first = store.put(endpoint("a", "s"), None, None).await.unwrap();
    let refused = store.put(endpoint("b", "s"), None, None).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Exhausted);
    assert!(store.get(&EndpointName::new("b").unwrap()).await.unwrap().is_none(), "a refused write is not visible");
    assert!(store.put(endpoint("a", "t"), first, None).await.unwrap().is_some(), "what is there may change when the table is full");

    let watch = store.watch(EndpointQuery::default()).await.unwrap();
    assert_eq!(store.watch(EndpointQuery::default()).await.err().map(|error| error.kind), Some(Kind::Exhausted));
    drop(watch);
    assert!(store.watch(EndpointQuery::default()).await.is_ok(), "an ended watch makes room");
}

#[tokio::test]
async fn a_write_over_an_old_revision_does_nothing() {
    let engine = MemoryEngine::new();
    let store = engine.endpoints();
    let name = EndpointName::new("a").unwrap();
    let first = store.put(endpoint("a", "s"), None, None).await.unwrap().unwrap();
    let second = store.put(endpoint("a", "t"), Some(first), None).await.unwrap().unwrap();
    assert!(second > first);
    assert_eq!(store.put(endpoint("a", "u"), None, None).await.unwrap(), None);
    assert_eq!(store.put(endpoint("a", "u"), Some(first), None).await.unwrap(), None);
    assert!(!store.remove(&name, first).await.unwrap());
    assert_eq!(store.get(&name).await.unwrap().unwrap().record, endpoint("a", "t"));
    assert!(store.remove(&name, second).await.unwrap());
    assert!(!store.remove(&name, Revision::default()).await.unwrap());
}

/// A watcher that is cut hears of the end of what it knew, also of what came and went while it did not read.
#[tokio::test]
async fn a_cut_watcher_is_brought_up_to_date() {
    let engine = MemoryEngine::bounded(Bounds { entries: 10, watchers: 10, queue: 1 });
    let store = engine.endpoints();
    let a = store.put(endpoint("a", "s"), None, None).await.unwrap().unwrap();
    store.put(endpoint("stays", "s"), None, None).await.unwrap();
    let mut watch = store.watch(of_service("s")).await.unwrap();
    let b = store.put(endpoint("b", "s"), None, None).await.unwrap().unwrap();
    store.put(endpoint("c", "s"), None, None).await.unwrap();
    store.remove(&EndpointName::new("a").unwrap(), a).await.unwrap();
    store.remove(&EndpointName::new("b").unwrap(), b).await.unwrap();
    assert_eq!(drain(&mut watch), ["+a", "+stays", "+b", "-a", "-b", "+c", "+stays"], "nothing that stays is ever said to be gone");
    store.put(endpoint("d", "s"), None, None).await.unwrap();
    assert_eq!(drain(&mut watch), ["+d"], "it is connected again");
}

/// The last object that answered the query is delivered as deleted, so that a watcher never keeps what Find no longer shows.
#[tokio::test]
async fn an_endpoint_that_leaves_the_query_is_deleted_for_its_watcher() {
    let engine = MemoryEngine::new();
    let store = engine.endpoints();
    let mut watch = store.watch(of_service("s")).await.unwrap();
    let first = store.put(endpoint("a", "s"), None, None).await.unwrap();
    store.put(endpoint("a", "t"), first, None).await.unwrap();
    assert_eq!(drain(&mut watch), ["+a", "-a"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_what_has_ended() {
    let engine = MemoryEngine::new();
    let store = engine.endpoints();
    for service in ["s", "t"] {
        let watch = store.watch(of_service(service)).await.unwrap();
        let first = store.put(endpoint(service, "before"), None, Some(Duration::from_secs(1))).await.unwrap();
        store.put(endpoint(service, service), first, Some(Duration::from_secs(1))).await.unwrap();
        drop(watch);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let state = lock(&engine.endpoints.state);
    assert_eq!((state.entries.len(), state.entries.terms(), state.deadlines.len(), state.watchers.len()), (0, 0, 0, 0));
}

/// So small that nearly every watcher of the model is cut sooner or later.
const QUEUE: usize = 2;

/// What it holds lasts as long as the test: a process that restarts over it is another registry.
struct Small(Arc<MemoryEngine>, Instant);

#[async_trait]
impl Subject for Small {
    async fn engine(&mut self) -> Arc<dyn Engine> {
        self.0.clone()
    }
    async fn end(&mut self, _: bool) {}
    fn wall(&self) -> Option<WallClock> {
        let start = self.1;
        Some(Arc::new(move || UNIX_EPOCH + start.elapsed()))
    }
    /// A rest of a snapshot, a queue, then deletions and a snapshot of at most four names each.
    fn most_messages(&self) -> usize {
        4 + QUEUE + 8 + 4 + QUEUE
    }
}

/// A-07, M-16, M-19, M-20; reliability I6, I7.
#[test]
fn memory_behaves_like_the_model() {
    let engine = || Arc::new(MemoryEngine::bounded(Bounds { entries: 100, watchers: 100, queue: QUEUE }));
    model::sequences(2000, |steps| model::paused(|| Small(engine(), Instant::now()), steps));
}

//! What connections there are, and who watches them.

use futures::stream::{self, StreamExt};
use nsm_api::{Connection, ConnectionEvent, ConnectionId, EventKind, Events, Selector};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast::{self, error::RecvError};

/// Events that a watcher may lag behind before it is told everything again.
pub const MAX_LAG: usize = 1024;

#[derive(Clone)]
struct Change {
    kind: EventKind,
    connection: Arc<Connection>,
}

struct State {
    connections: BTreeMap<ConnectionId, Arc<Connection>>,
    changes: broadcast::Sender<Change>,
}

/// The connections of one hop as its monitors see them.
#[derive(Clone)]
pub struct Monitors(Arc<Mutex<State>>);

impl Default for Monitors {
    fn default() -> Monitors {
        Monitors(Arc::new(Mutex::new(State { connections: BTreeMap::new(), changes: broadcast::Sender::new(MAX_LAG) })))
    }
}

impl Monitors {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is so now.
    pub fn update(&self, connection: Connection) {
        let mut state = self.lock();
        let connection = Arc::new(connection);
        state.connections.insert(connection.id.clone(), connection.clone());
        // Nobody listening is no failure.
        let _ = state.changes.send(Change { kind: EventKind::Update, connection });
    }

    /// The connection has ended.
    pub fn delete(&self, id: &ConnectionId) {
        let mut state = self.lock();
        if let Some(connection) = state.connections.remove(id) {
            let _ = state.changes.send(Change { kind: EventKind::Delete, connection });
        }
    }

    /// One connection now.
    pub fn get(&self, id: &ConnectionId) -> Option<Arc<Connection>> {
        self.lock().connections.get(id).cloned()
    }

    /// All connections now.
    pub fn snapshot(&self) -> Vec<Arc<Connection>> {
        self.lock().connections.values().cloned().collect()
    }

    /// Everything in scope now (even when that is nothing), then every change in scope. Ends when the hop goes.
    /// A watcher that lags by more than [`MAX_LAG`] is told everything again instead of losing changes silently.
    pub fn watch(&self, selector: Selector) -> Events {
        let (first, changes) = self.subscribe(&selector);
        let watcher = Watcher { state: Arc::downgrade(&self.0), changes, selector };
        let rest = stream::unfold(watcher, |mut watcher| async move { watcher.next().await.map(|event| (Ok(event), watcher)) });
        stream::once(async move { Ok(first) }).chain(rest).boxed()
    }

    /// The snapshot and the subscription under one lock: no seam between them.
    fn subscribe(&self, selector: &Selector) -> (ConnectionEvent, broadcast::Receiver<Change>) {
        let state = self.lock();
        let in_scope = state.connections.iter().filter(|(_, connection)| selector.matches(connection));
        let connections = in_scope.map(|(id, connection)| (id.clone(), Connection::clone(connection))).collect();
        (ConnectionEvent { kind: EventKind::InitialStateTransfer, connections }, state.changes.subscribe())
    }
}

struct Watcher {
    // Weak: a watcher must not keep a hop alive that has gone.
    state: std::sync::Weak<Mutex<State>>,
    changes: broadcast::Receiver<Change>,
    selector: Selector,
}

impl Watcher {
    async fn next(&mut self) -> Option<ConnectionEvent> {
        loop {
            match self.changes.recv().await {
                Ok(change) if self.selector.matches(&change.connection) => {
                    let connection = Connection::clone(&change.connection);
                    return Some(ConnectionEvent { kind: change.kind, connections: BTreeMap::from([(connection.id.clone(), connection)]) });
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    let monitors = Monitors(self.state.upgrade()?);
                    let (event, changes) = monitors.subscribe(&self.selector);
                    self.changes = changes;
                    return Some(event);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::{HopName, Segment, SegmentPattern};

    fn connection(id: &str) -> Connection {
        let id = ConnectionId::new(id).unwrap();
        let mut connection = Connection::new(id.clone(), "svc".parse().unwrap());
        connection.path.segments.push(Segment::new(HopName::new("m").unwrap(), id));
        connection
    }
    fn only(id: &str) -> Selector {
        Selector { segments: vec![SegmentPattern { id: id.to_owned(), ..SegmentPattern::default() }], services: vec![] }
    }
    async fn next(events: &mut Events) -> (EventKind, Vec<String>) {
        let event = events.next().await.unwrap().unwrap();
        (event.kind, event.connections.keys().map(ToString::to_string).collect())
    }

    ///
    #[tokio::test]
    async fn the_first_event_is_the_present_state_even_when_empty() {
        let monitors = Monitors::default();
        let mut all = monitors.watch(Selector::default());
        assert_eq!(next(&mut all).await, (EventKind::InitialStateTransfer, vec![]));
        monitors.update(connection("a"));
        monitors.update(connection("b"));
        let mut b = monitors.watch(only("b"));
        assert_eq!(next(&mut b).await, (EventKind::InitialStateTransfer, vec!["b".to_owned()]));
        monitors.delete(&ConnectionId::new("a").unwrap());
        monitors.delete(&ConnectionId::new("b").unwrap());
        assert_eq!(next(&mut b).await, (EventKind::Delete, vec!["b".to_owned()]));
        for expected in [EventKind::Update, EventKind::Update, EventKind::Delete, EventKind::Delete] {
            assert_eq!(next(&mut all).await.0, expected);
        }
        drop(monitors);
        assert!(all.next().await.is_none(), "the stream ends with the hop");
    }

    /// H5, I6
    #[tokio::test]
    async fn a_watcher_that_lags_is_told_everything_again() {
        let monitors = Monitors::default();
        let mut slow = monitors.watch(Selector::default());
        next(&mut slow).await;
        for i in 0..=MAX_LAG {
            monitors.update(connection(&format!("c{i}")));
        }
        monitors.delete(&ConnectionId::new("c0").unwrap());
        let (kind, ids) = next(&mut slow).await;
        assert_eq!((kind, ids.len()), (EventKind::InitialStateTransfer, MAX_LAG));
    }
}

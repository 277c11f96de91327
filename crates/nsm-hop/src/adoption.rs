//! What a client had in a former life of its process, as its manager remembers it. A client that is killed and started
//! again takes it over: the same endpoint, the same addresses, the same interface.

use crate::role::Liveness;
use futures::StreamExt;
use nsm_api::*;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

/// Longest wait for the manager's answer. Without it everything is asked for anew.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long one that cannot be asked is asked again: it may be starting, or may still have to learn that the authority of
/// this client's certificate is another than yesterday. To ask anew what one has is the end of what one has.
const INSISTING: Duration = Duration::from_secs(1);
/// Pause in between.
const AGAIN: Duration = Duration::from_millis(50);

/// Connections of `name` by the id that it gave them.
pub async fn former(manager: &dyn NetworkServiceApi, name: &HopName) -> BTreeMap<ConnectionId, Connection> {
    let pattern = SegmentPattern { name: name.as_str().to_owned(), ..SegmentPattern::default() };
    let selector = Selector { segments: vec![pattern], services: vec![] };
    let first = async || {
        let mut events = manager.monitor(selector.clone(), Caller::within(PATIENCE)).await?;
        events.next().await.transpose()
    };
    let begun = Instant::now();
    let insisting = async {
        loop {
            match first().await {
                Err(_) if begun.elapsed() < INSISTING => sleep(AGAIN).await,
                answer => return answer,
            }
        }
    };
    match timeout(PATIENCE, insisting).await {
        Ok(Ok(Some(event))) => {
            event.connections.into_values().filter_map(|connection| Some((own_id(&connection, name)?, connection))).collect()
        }
        Ok(Ok(None)) | Err(_) => BTreeMap::new(),
        Ok(Err(error)) => {
            debug!(%error, "the manager does not say what this client had");
            BTreeMap::new()
        }
    }
}

/// Its id at the client, if it is the manager that tells it and the client is `name`.
fn own_id(connection: &Connection, name: &HopName) -> Option<ConnectionId> {
    let first = connection.path.segments.first().filter(|first| first.name == *name && connection.path.index == 1)?;
    Some(first.id.clone())
}

/// `request` as a continuation of what there was. `None` when it asks for something else than before.
pub async fn adopted(request: &Request, former: &Connection, liveness: Option<&dyn Liveness>) -> Option<Request> {
    let wanted = &request.connection;
    let ours = request.preferences.iter().find(|ours| former.mechanism.as_ref().is_some_and(|theirs| theirs.kind == ours.kind))?;
    let labels = wanted.labels.iter().all(|(key, value)| former.labels.get(key) == Some(value));
    if former.network_service != wanted.network_service || !labels {
        return None;
    }
    let mut connection = former.clone();
    connection.id = wanted.id.clone();
    connection.path.index = 0;
    // The interface may have another name by now, and the process another namespace.
    if let Some(mechanism) = &mut connection.mechanism {
        mechanism.parameters.extend(ours.parameters.clone());
    }
    let dead = former.state == State::Down
        && match liveness {
            Some(liveness) => !liveness.alive(&connection).await,
            None => true,
        };
    connection.state = State::Up;
    if dead {
        connection.mechanism = None;
        connection.network_service_endpoint_name = None;
        connection.state = State::ReselectRequested;
    }
    let endpoint = connection.network_service_endpoint_name.as_ref().map_or("", EndpointName::as_str);
    info!(id = %connection.id, endpoint, dead, "taking over a connection");
    Some(Request { connection, preferences: request.preferences.clone(), files: request.files.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;

    fn kernel(name: &str) -> Mechanism {
        let mut mechanism = Mechanism::new(Class::Local, MechanismKind::Kernel);
        mechanism.set(params::NAME, name);
        mechanism
    }
    fn wanted() -> Request {
        let connection = Connection::new("c-0".parse().unwrap(), "svc".parse().unwrap());
        Request { connection, preferences: vec![kernel("nsm-1")], files: Files::default() }
    }
    /// As a manager tells it.
    fn had() -> Connection {
        let mut connection = Connection::new("m0".parse().unwrap(), "svc".parse().unwrap());
        let segment = |name: &str, id: &str| Segment::new(HopName::new(name).unwrap(), id.parse().unwrap());
        connection.path = Path { index: 1, segments: vec![segment("c", "c-0"), segment("m", "m0")], ..Path::default() };
        connection.mechanism = Some(kernel("old"));
        connection.network_service_endpoint_name = Some("e".parse().unwrap());
        connection
    }

    struct Dead(bool);

    #[async_trait]
    impl Liveness for Dead {
        async fn alive(&self, _: &Connection) -> bool {
            !self.0
        }
        fn interval(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// A2
    #[tokio::test]
    async fn what_there_was_is_asked_for_again() {
        let request = adopted(&wanted(), &had(), None).await.unwrap();
        let connection = request.connection;
        assert_eq!((connection.id.as_str(), connection.path.index, connection.path.segments.len()), ("c-0", 0, 2));
        assert_eq!(connection.mechanism.unwrap().get(params::NAME), Some("nsm-1"));
        assert_eq!(connection.network_service_endpoint_name.unwrap().as_str(), "e");
    }

    #[tokio::test]
    async fn what_is_down_and_dead_is_asked_for_elsewhere() {
        let down = Connection { state: State::Down, ..had() };
        for (liveness, state) in
            [(None, State::ReselectRequested), (Some(Dead(true)), State::ReselectRequested), (Some(Dead(false)), State::Up)]
        {
            let liveness = liveness.as_ref().map(|dead| dead as &dyn Liveness);
            let connection = adopted(&wanted(), &down, liveness).await.unwrap().connection;
            assert_eq!(connection.state, state);
            assert_eq!(connection.mechanism.is_none(), state == State::ReselectRequested);
            assert_eq!(connection.network_service_endpoint_name.is_none(), state == State::ReselectRequested);
        }
    }

    /// Cannot be asked for so many times, then tells what it knows.
    struct Late(std::sync::Mutex<u32>);

    #[async_trait]
    impl NetworkServiceApi for Late {
        async fn request(&self, _: Request, _: Caller) -> Result<Answer> {
            unreachable!("nothing is asked for")
        }
        async fn close(&self, _: Connection, _: Files, _: Caller) -> Result<()> {
            unreachable!("nothing is closed")
        }
        async fn monitor(&self, _: Selector, _: Caller) -> Result<Events> {
            let mut left = self.0.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return Err(Error::new(Kind::Unavailable, "manager", "is not trusted yet", "wait"));
            }
            let connections = [(ConnectionId::new("m0").unwrap(), had())].into();
            Ok(futures::stream::iter([Ok(ConnectionEvent { kind: EventKind::InitialStateTransfer, connections })]).boxed())
        }
    }

    /// A20: a client that starts together with a new authority does not ask anew for what it has.
    #[tokio::test(start_paused = true)]
    async fn a_manager_that_cannot_be_asked_yet_is_asked_again() {
        let name = HopName::new("c").unwrap();
        let found = former(&Late(5.into()), &name).await;
        assert_eq!(found.keys().map(ConnectionId::as_str).collect::<Vec<_>>(), ["c-0"]);
        let begun = Instant::now();
        assert!(former(&Late(u32::MAX.into()), &name).await.is_empty());
        assert!(begun.elapsed() >= INSISTING && begun.elapsed() < PATIENCE);
    }

    #[tokio::test]
    async fn something_else_is_not_taken_over() {
        let mut labelled = wanted();
        labelled.connection.labels.insert("app".to_owned(), "other".to_owned());
        assert!(adopted(&labelled, &had(), None).await.is_none());
        let mut other = had();
        other.network_service = "other".parse().unwrap();
        assert!(adopted(&wanted(), &other, None).await.is_none());
        other = Connection { mechanism: None, ..had() };
        assert!(adopted(&wanted(), &other, None).await.is_none());
        let name = HopName::new("c").unwrap();
        assert_eq!(own_id(&had(), &name).unwrap().as_str(), "c-0");
        let mut of_another_hop = had();
        of_another_hop.path.index = 0;
        assert_eq!(own_id(&of_another_hop, &name), None);
    }
}

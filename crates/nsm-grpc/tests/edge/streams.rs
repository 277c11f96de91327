//! Monitor streams.

use crate::world::*;
use futures::StreamExt;
use nsm_api::*;

#[tokio::test]
async fn a_monitor_gets_the_state_then_changes_and_ends_normally_at_shutdown() {
    let world = World::new().await;
    let fake = Fake::agreeable();
    let server = world.start(vec![world.unix("s"), tcp()], Some(fake.clone()), None).await;
    let dialer = world.dialer();
    let mut streams = vec![];
    for address in &server.addresses {
        let api = dialer.network_service(address, &Files::default());
        let mut events = bounded(api.monitor(Selector::default(), within())).await.unwrap();
        let first = bounded(events.next()).await.unwrap().unwrap();
        assert_eq!(first, event(EventKind::InitialStateTransfer, &["a"]));
        streams.push(events);
    }
    fake.events.send(event(EventKind::Update, &["a", "b"])).unwrap();
    for events in &mut streams {
        assert_eq!(bounded(events.next()).await.unwrap().unwrap(), event(EventKind::Update, &["a", "b"]));
    }
    server.stop().await;
    for events in &mut streams {
        // An end with a status other than OK, or a reset, would be an error here.
        assert_eq!(bounded(events.next()).await, None);
    }
}

#[tokio::test]
async fn a_monitor_outlives_its_client_handle_and_its_callers_timeout() {
    let world = World::new().await;
    let fake = Fake::agreeable();
    let server = world.start(vec![world.unix("s")], Some(fake.clone()), None).await;
    let timeout = std::time::Duration::from_millis(300);
    let mut events = {
        let dialer = world.dialer();
        let api = dialer.network_service(&server.addresses[0], &Files::default());
        bounded(api.request(request("a", None), within())).await.unwrap();
        bounded(api.monitor(Selector::default(), Caller::within(timeout))).await.unwrap()
    };
    bounded(events.next()).await.unwrap().unwrap();
    assert!(tokio::time::timeout(timeout * 2, events.next()).await.is_err(), "nothing happened, so nothing may be said");
    fake.events.send(event(EventKind::Delete, &["a"])).unwrap();
    assert_eq!(bounded(events.next()).await.unwrap().unwrap(), event(EventKind::Delete, &["a"]));
}

#[tokio::test]
async fn a_refused_monitor_is_an_error_of_the_call() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], None, Some(FakeRegistry::new())).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let error = bounded(api.monitor(Selector::default(), within())).await.err().unwrap();
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
}

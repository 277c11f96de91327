//! Registries, and the sockets of endpoints.

use crate::world::*;
use futures::{StreamExt, TryStreamExt};
use nsm_api::*;
use nsm_grpc::inode_key;
use rustix::fs::{Mode, OFlags};
use std::{sync::Arc, time::Duration};

fn endpoint(url: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint::new("nse-1".parse().unwrap(), vec!["vpn".parse().unwrap()], url)
}

#[tokio::test]
async fn services_are_registered_found_and_refused() {
    let world = World::new().await;
    let server = world.start(vec![tcp()], None, Some(FakeRegistry::new())).await;
    let registry = world.dialer().registry(&server.addresses[0]);
    let service = NetworkService::new("vpn".parse().unwrap(), Payload::Ip);
    assert_eq!(bounded(registry.register_service(service.clone(), within())).await.unwrap(), service);
    let query = ServiceQuery { name: Some("vpn".parse().unwrap()), ..ServiceQuery::default() };
    let found = bounded(registry.find_services(query.clone(), within())).await.unwrap();
    let found: Vec<_> = bounded(found.try_collect()).await.unwrap();
    assert_eq!(found, [ServiceUpdate { service: service.clone(), deleted: false }]);
    assert_eq!(bounded(registry.unregister_service(service, within())).await.unwrap_err().kind, Kind::NotFound);

    let mut watch = bounded(registry.find_services(ServiceQuery { watch: true, ..query }, within())).await.unwrap();
    assert!(bounded(watch.next()).await.unwrap().is_ok());
    server.stop().await;
    assert_eq!(bounded(watch.next()).await, None);
}

#[tokio::test]
async fn a_socket_travels_with_its_endpoint_and_can_be_dialled() {
    let world = World::new().await;
    let fake = FakeRegistry::new();
    let server = world.start(vec![world.unix("registry")], None, Some(fake.clone())).await;
    let private = world.start(vec![world.unix("private")], Some(Fake::agreeable()), None).await;
    let socket = rustix::fs::open(world.dir.path().join("private"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let key = inode_key(&socket).unwrap();
    let mut files = Files::default();
    files.insert(key, Arc::new(socket));

    let registry = world.dialer().registry(&server.addresses[0]);
    let mut watch = bounded(registry.find_endpoints(EndpointQuery { watch: true, ..EndpointQuery::default() }, within())).await.unwrap();
    // Nothing to say yet, and the call must not wait for that.
    assert!(tokio::time::timeout(Duration::from_millis(200), watch.next()).await.is_err());
    let registered = bounded(registry.register_endpoint(endpoint(&key.to_string()), files, within())).await.unwrap();
    assert_eq!(registered.url, key.to_string());
    assert!(fake.endpoints.lock().unwrap()[&registered.name].1.get(key).is_some());

    let list = bounded(registry.find_endpoints(EndpointQuery::default(), within())).await.unwrap();
    let list: Vec<_> = bounded(list.try_collect()).await.unwrap();
    let (update, found) = bounded(watch.next()).await.unwrap().unwrap();
    assert_eq!((list.len(), &update), (1, &list[0].0));
    assert!(list[0].1.get(key).is_some());

    let api = world.dialer().network_service(&Target::parse(&update.endpoint.url).unwrap(), &found);
    let brought = file("x");
    let answer = bounded(api.request(request("a", Some(brought.clone())), within())).await.unwrap();
    assert_eq!(answer.connection.mechanism.unwrap().inode(), Some(brought.0));

    bounded(registry.unregister_endpoint(registered, within())).await.unwrap();
    assert!(bounded(watch.next()).await.unwrap().unwrap().0.deleted);
    private.stop().await;
    server.stop().await;
    assert!(bounded(watch.next()).await.is_none());
}

#[tokio::test]
async fn an_endpoint_without_its_socket_is_refused_on_unix_and_passes_on_tcp() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s"), tcp()], None, Some(FakeRegistry::new())).await;
    let dialer = world.dialer();
    let orphan = endpoint("inode://7/7");
    let unix = dialer.registry(&server.addresses[0]);
    let error = bounded(unix.register_endpoint(orphan.clone(), Files::default(), within())).await.unwrap_err();
    assert!(error.kind == Kind::NotFound && error.object.contains("inode://7/7"), "{error}");
    let tcp = dialer.registry(&server.addresses[1]);
    assert_eq!(bounded(tcp.register_endpoint(orphan.clone(), Files::default(), within())).await.unwrap(), orphan);
}

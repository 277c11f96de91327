//! Files beside messages.

use crate::world::*;
use futures::future::join_all;
use nsm_api::*;
use nsm_grpc::inode_key;
use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// Reads the file that the Request names, and answers with a file that says the same twice.
fn doubling() -> Arc<Fake> {
    Fake::new(async |request: Request, _| {
        let said = content(request.preferences[0].file(&request.files).unwrap());
        let (key, file) = file(&format!("{said}{said}"));
        let mut files = Files::default();
        files.insert(key, file);
        Ok(Answer { connection: Connection { mechanism: Some(kernel(key)), ..request.connection }, files, certificate: None })
    })
}

#[tokio::test]
async fn a_namespace_travels_both_ways() {
    let world = World::new().await;
    let open = |path: &str| -> (InodeKey, Arc<OwnedFd>) {
        let file = OwnedFd::from(std::fs::File::open(path).unwrap());
        (inode_key(&file).unwrap(), Arc::new(file))
    };
    let (net, uts) = (open("/proc/thread-self/ns/net"), open("/proc/thread-self/ns/uts"));
    let (expected, own) = (net.0, uts.clone());
    let fake = Fake::new(move |request: Request, _| {
        let got = inode_key(request.preferences[0].file(&request.files).unwrap()).unwrap();
        assert_eq!((got, request.files.len()), (expected, 1));
        let mut files = Files::default();
        files.insert(own.0, own.1.clone());
        std::future::ready(Ok(Answer {
            connection: Connection { mechanism: Some(kernel(own.0)), ..request.connection },
            files,
            certificate: None,
        }))
    });
    let server = world.start(vec![world.unix("s")], Some(fake.clone()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    // Twice on one connection: the second brings and gets its own.
    for _ in 0..2 {
        let answer = bounded(api.request(request("a", Some(net.clone())), within())).await.unwrap();
        let file = answer.connection.mechanism.as_ref().unwrap().file(&answer.files).unwrap();
        assert_eq!(inode_key(file).unwrap(), uts.0);
        bounded(api.close(answer.connection, answer.files, within())).await.unwrap();
    }
    let closed = fake.closed.lock().unwrap();
    assert!(closed.len() == 2 && closed.iter().all(|(connection, files)| connection.mechanism.as_ref().unwrap().file(files).is_some()));
}

#[tokio::test]
async fn what_the_caller_brought_it_gets_back_as_its_own() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let (key, ours) = file("x");
    let answer = bounded(api.request(request("a", Some((key, ours.clone()))), within())).await.unwrap();
    assert!(Arc::ptr_eq(answer.connection.mechanism.unwrap().file(&answer.files).unwrap(), &ours));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_at_once_each_with_its_file() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(doubling()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let calls = (0..200).map(|number| {
        let api = api.clone();
        async move {
            let said = format!("{number}.");
            let answer = api.request(request(&format!("c-{number}"), Some(file(&said))), within()).await.unwrap();
            assert_eq!(content(answer.connection.mechanism.unwrap().file(&answer.files).unwrap()), said.repeat(2));
        }
    });
    bounded(join_all(calls)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_at_once_than_files_may_wait() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let calls = (0..nsm_grpc::limits::MAX_UNCLAIMED_FILES * 2).map(|number| {
        let api = api.clone();
        async move { api.request(request(&format!("c-{number}"), Some(file("x"))), within()).await }
    });
    let failed: Vec<_> = bounded(join_all(calls)).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed, the first: {}", failed.len(), failed[0]);
}

#[tokio::test]
async fn many_requests_at_once_about_one_file() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(doubling()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let shared = file("same");
    let calls = (0..50).map(|number| api.request(request(&format!("c-{number}"), Some(shared.clone())), within()));
    assert!(bounded(join_all(calls)).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_file_that_does_not_come_is_named_within_a_second() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let (key, file) = file("kept");
    let before = Instant::now();
    let asked = Request { files: Files::default(), ..request("a", Some((key, file))) };
    let error = bounded(api.request(asked, within())).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.object.contains(&key.to_string()), "{error}");
    assert!(before.elapsed() > Duration::from_millis(900) && before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
}

#[tokio::test]
async fn an_answer_that_names_a_file_and_brings_none_is_an_error() {
    let world = World::new().await;
    let fake = Fake::new(async |request: Request, _| {
        let mechanism = Some(kernel(InodeKey { dev: 7, ino: 7 }));
        Ok(Answer { connection: Connection { mechanism, ..request.connection }, files: Files::default(), certificate: None })
    });
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let error = bounded(api.request(request("a", None), within())).await.unwrap_err();
    assert!(error.kind == Kind::NotFound && error.object.contains("inode://7/7"), "{error}");
}

#[tokio::test]
async fn too_many_files_are_refused() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let mut asked = request("a", None);
    for _ in 0..=limits::MAX_FILES_PER_REQUEST {
        let (key, file) = file("x");
        asked.preferences.push(kernel(key));
        asked.files.insert(key, file);
    }
    assert_eq!(bounded(api.request(asked, within())).await.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test]
async fn tcp_carries_no_files_and_leaves_their_names_alone() {
    let world = World::new().await;
    let fake = Fake::new(async |request: Request, _| {
        assert!(request.files.is_empty());
        let mechanism = request.preferences.first().cloned();
        Ok(Answer { connection: Connection { mechanism, ..request.connection }, files: Files::default(), certificate: None })
    });
    let server = world.start(vec![tcp()], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let foreign = InodeKey { dev: 7, ino: 7 };
    let asked = Request { preferences: vec![kernel(foreign)], ..request("a", None) };
    let answer = bounded(api.request(asked, within())).await.unwrap();
    assert_eq!(answer.connection.mechanism.unwrap().inode(), Some(foreign));
    assert!(answer.files.is_empty());
}

/// A manager that has lost the file still closes, at once.
#[tokio::test]
async fn a_close_needs_no_file() {
    let world = World::new().await;
    let fake = Fake::agreeable();
    let server = world.start(vec![world.unix("s")], Some(fake.clone()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let (key, lost) = file("lost");
    let gone = Connection { mechanism: Some(kernel(key)), ..connection("a") };
    drop(lost);
    let begun = Instant::now();
    bounded(api.close(gone, Files::default(), within())).await.unwrap();
    assert!(begun.elapsed() < nsm_grpc::limits::FD_WAIT, "it waited {:?}", begun.elapsed());
    assert_eq!(fake.closed.lock().unwrap().len(), 1);
}

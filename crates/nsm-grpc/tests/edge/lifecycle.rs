//! Servers that come and go, and their sockets.

use crate::world::*;
use nsm_api::*;
use nsm_grpc::{DialOptions, Dialer};
use nsm_identity::Authority;
use std::{
    os::unix::{fs::PermissionsExt, net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc};

#[tokio::test]
async fn calls_survive_a_server_that_restarts() {
    let world = World::new().await;
    let api = world.dialer().network_service(&world.unix("s"), &Files::default());
    for round in 0..3 {
        let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
        for call in 0..3 {
            let answer = bounded(api.request(request("a", Some(file("x"))), within())).await;
            assert!(answer.is_ok(), "round {round}, call {call}: {answer:?}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_server_restarts_in_order() {
    let world = World::new().await;
    let address = world.unix("s");
    let mut server = world.start(vec![address.clone()], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&address, &Files::default());
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let (api, stop) = (api.clone(), stop.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (key, file) = file("x");
                    let answer = api.request(request(&format!("c-{number}"), Some((key, file))), within()).await.unwrap();
                    assert_eq!(answer.connection.mechanism.unwrap().inode(), Some(key));
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.stop().await;
        server = world.start(vec![address.clone()], Some(Fake::agreeable()), None).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(bounded(caller).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_server_that_starts_later_is_waited_for() {
    let world = World::new().await;
    let api = world.dialer().network_service(&world.unix("s"), &Files::default());
    let call = tokio::spawn(async move { api.request(request("a", None), within()).await });
    // The call meets an absent socket before there is a server: nothing can be observed that proves it sooner.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!call.is_finished());
    let _server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    bounded(call).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_certificates_fail_no_call() {
    let life = Duration::from_secs(2);
    let world = World::with(Authority::new("example.org").unwrap().with_svid_life(life)).await;
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let begun = Instant::now();
    while begun.elapsed() < life * 2 {
        // A new dialer shakes hands anew.
        let api = world.dialer().network_service(&server.addresses[0], &Files::default());
        bounded(api.request(request("a", None), within())).await.unwrap();
    }
}

/// Servers judge a token by the certificate that its connection showed, so both must be of the same SVID for as long as
/// the connection is used; clients come again to see the new certificate of a server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_signed_with_the_certificate_that_was_shown() {
    let life = Duration::from_secs(2);
    let world = World::with(Authority::new("example.org").unwrap().with_svid_life(life)).await;
    let judging = Fake::new(async |request: Request, caller: Caller| {
        let leaf = nsm_policy::jwt::Leaf::from_der(caller.certificate.as_ref().unwrap()).unwrap();
        assert_eq!(leaf.signed(&caller.token), Some(true));
        Ok(Answer { connection: request.connection, files: Files::default(), certificate: None })
    });
    let server = world.start(vec![world.unix("s")], Some(judging), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let (begun, mut shown) = (Instant::now(), std::collections::BTreeSet::new());
    while begun.elapsed() < life * 2 {
        let answer = bounded(api.request(request("a", None), within())).await.unwrap();
        shown.insert(answer.certificate.unwrap());
    }
    assert!(shown.len() > 2, "the server's certificate rotated at least twice, seen were {}", shown.len());
}

#[tokio::test]
async fn a_peer_that_accepts_and_says_nothing_is_given_up_within_the_dial_timeout() {
    let world = World::new().await;
    let mute = UnixListener::bind(world.dir.path().join("mute")).unwrap();
    let options = DialOptions { dial_timeout: Duration::from_millis(200), ..DialOptions::default() };
    let api = Dialer::new(world.client.clone(), options).network_service(&world.unix("mute"), &Files::default());
    let before = Instant::now();
    let calls = (0..10).map(|_| api.request(request("a", None), within()));
    for result in bounded(futures::future::join_all(calls)).await {
        assert_eq!(result.unwrap_err().kind, Kind::Unavailable);
    }
    // They shared one attempt.
    assert!(before.elapsed() < Duration::from_millis(1500), "{:?}", before.elapsed());
    drop(mute);
}

#[tokio::test]
async fn a_call_in_flight_is_finished_before_the_end() {
    let world = World::new().await;
    let (begun, mut began) = mpsc::channel(1);
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let fake = Fake::new(move |request: Request, _| {
        let (begun, gate) = (begun.clone(), gate.clone());
        async move {
            begun.send(()).await.unwrap();
            gate.notified().await;
            Ok(Answer { connection: request.connection, files: Files::default(), certificate: None })
        }
    });
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let call = tokio::spawn(async move { api.request(request("a", None), within()).await });
    bounded(began.recv()).await.unwrap();
    server.stop.send(()).unwrap();
    // Nobody listens any more once the socket file has gone.
    bounded(async {
        while world.dir.path().join("s").exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!server.ended.is_finished());
    go.notify_one();
    bounded(call).await.unwrap().unwrap();
    bounded(server.ended).await.unwrap();
}

#[tokio::test]
async fn sockets_are_open_to_all_replaced_when_stale_and_removed_at_the_end() {
    let world = World::new().await;
    let path = world.dir.path().join("deep/er/s");
    let target = Target::Unix(path.clone());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let server = world.start(vec![target.clone()], None, None).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
    let error = world.try_start(vec![target.clone()], None, None).await.err().unwrap();
    assert_eq!(error.kind, Kind::Conflict, "{error}");
    world.dialer().health(&target, "", BOUND).await.unwrap();
    server.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn nothing_but_a_stale_socket_is_removed() {
    let world = World::new().await;
    let (plain, link, victim) = (world.dir.path().join("plain"), world.dir.path().join("link"), world.dir.path().join("victim"));
    std::fs::write(&plain, "precious").unwrap();
    drop(UnixListener::bind(&victim).unwrap());
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    for path in [&plain, &link] {
        let error = world.try_start(vec![Target::Unix(path.clone())], None, None).await.err().unwrap();
        assert_eq!(error.kind, Kind::Conflict, "{error}");
    }
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "precious");
    assert!(victim.exists());
}

#[tokio::test]
async fn an_empty_host_is_every_address_of_both_families() {
    let world = World::new().await;
    let server = world.start(vec![Target::parse("tcp://:0").unwrap()], None, None).await;
    let Target::Tcp { port, .. } = server.addresses[0] else { panic!("a tcp address") };
    assert_ne!(port, 0);
    let dialer = world.dialer();
    for host in ["", "127.0.0.1", "localhost"] {
        dialer.health(&Target::Tcp { host: host.to_owned(), port }, "", BOUND).await.unwrap();
    }
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        dialer.health(&Target::Tcp { host: "::1".to_owned(), port }, "", BOUND).await.unwrap();
    }
    let error = world.try_start(vec![Target::Tcp { host: String::new(), port }], None, None).await.err().unwrap();
    assert_eq!(error.kind, Kind::Conflict, "{error}");
}

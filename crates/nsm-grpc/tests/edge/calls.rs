//! One call at a time: who calls, how long, what goes wrong.

use crate::world::*;
use nsm_api::*;
use nsm_grpc::{DialOptions, Dialer, limits};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{Notify, mpsc};

#[tokio::test]
async fn the_caller_is_who_tls_says_with_its_token_and_deadline() {
    let world = World::new().await;
    let seen: Arc<Mutex<Vec<Caller>>> = Arc::default();
    let record = seen.clone();
    let fake = Fake::new(move |request, caller| {
        record.lock().unwrap().push(caller);
        async move { Ok(Answer { connection: request.connection, files: Files::default(), certificate: None }) }
    });
    let server = world.start(vec![world.unix("s"), tcp()], Some(fake), None).await;
    for address in &server.addresses {
        let api = world.dialer().network_service(address, &Files::default());
        bounded(api.request(request("a", None), Caller::within(Duration::from_secs(7)))).await.unwrap();
        bounded(api.request(request("a", None), Caller::default())).await.unwrap();
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    for (number, caller) in seen.iter().enumerate() {
        assert_eq!(caller.identity.as_ref(), Some(&world.client.id()));
        assert_eq!(caller.token.split('.').count(), 3, "{}", caller.token);
        let life = caller.token_expires.unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(life > Duration::from_secs(590) && life <= Duration::from_secs(600), "{life:?}");
        let given = if number % 2 == 0 { Duration::from_secs(7) } else { limits::DEFAULT_CALL_TIMEOUT };
        let timeout = caller.timeout.unwrap();
        assert!(timeout <= given && timeout > given - Duration::from_secs(3), "{timeout:?} of {given:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_crosses_unchanged() {
    let world = World::new().await;
    let server = world.start(vec![tcp()], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let mut asked = connection("a");
    asked.labels.insert("app".to_owned(), "x".to_owned());
    asked.payload = Payload::Other("NEW".to_owned());
    asked.state = State::Other(17);
    asked.context.ip_context.src_ip_addrs = vec!["169.254.0.1/32".parse().unwrap()];
    asked.path.segments.push(Segment::new("nsc".parse().unwrap(), "a".parse().unwrap()));
    let vxlan = Mechanism::new(Class::Remote, MechanismKind::Vxlan).with(params::VNI, 7);
    let sent = Request { connection: asked.clone(), preferences: vec![vxlan.clone()], files: Files::default() };
    let answer = bounded(api.request(sent, within())).await.unwrap();
    assert_eq!(answer.connection, Connection { mechanism: Some(vxlan), ..asked });
}

#[tokio::test]
async fn an_error_keeps_all_its_parts() {
    let world = World::new().await;
    let refusal = Error::new(Kind::Kernel, "interface \"nsm-1\"", "is taken: ünïcode & \"quotes\"", "choose another name")
        .at(&"forwarder-1".parse().unwrap());
    let told = refusal.clone();
    let fake = Fake::new(move |_, _| std::future::ready(Err(told.clone())));
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    assert_eq!(bounded(api.request(request("a", None), within())).await.unwrap_err(), refusal);
}

#[tokio::test]
async fn a_deadline_ends_the_call_on_time_and_a_panic_only_the_call() {
    let world = World::new().await;
    let fake = Fake::new(async |request: Request, _| match request.connection.id.as_str() {
        "panic" => panic!("on purpose"),
        _ => std::future::pending().await,
    });
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let before = Instant::now();
    let error = bounded(api.request(request("a", None), Caller::within(Duration::from_millis(300)))).await.unwrap_err();
    assert_eq!(error.kind, Kind::Timeout, "{error}");
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    let error = bounded(api.request(request("panic", None), within())).await.unwrap_err();
    assert_eq!(error.kind, Kind::Internal, "{error}");
}

#[tokio::test]
async fn work_goes_on_when_its_caller_vanishes() {
    let world = World::new().await;
    let (begun, mut began) = mpsc::channel(1);
    let (done, mut ended) = mpsc::channel(1);
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let fake = Fake::new(move |request: Request, _| {
        let (begun, done, gate) = (begun.clone(), done.clone(), gate.clone());
        async move {
            if request.connection.id.as_str() == "a" {
                begun.send(()).await.unwrap();
                gate.notified().await;
                done.send(()).await.unwrap();
            }
            Ok(Answer { connection: request.connection, files: Files::default(), certificate: None })
        }
    });
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let leaving = api.clone();
    let call = tokio::spawn(async move { leaving.request(request("a", None), within()).await });
    bounded(began.recv()).await.unwrap();
    call.abort();
    assert!(bounded(call).await.unwrap_err().is_cancelled());
    // Answers come in order of what the connection carried: with these the server knows that the caller has left.
    for _ in 0..3 {
        bounded(api.request(request("b", None), within())).await.unwrap();
    }
    go.notify_one();
    bounded(ended.recv()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn what_is_malformed_or_too_large_is_refused_and_the_connection_lives_on() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    let label = |bytes: usize| {
        let mut request = request("a", None);
        request.connection.labels.insert("big".to_owned(), "x".repeat(bytes));
        request
    };
    for bytes in [limits::MAX_MESSAGE_BYTES + 1, nsm_api::limits::MAX_MAP_VALUE_BYTES + 1] {
        let error = bounded(api.request(label(bytes), within())).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{error}");
    }
    bounded(api.request(label(1000), within())).await.unwrap();
}

#[tokio::test]
async fn large_headers_pass_both_ways() {
    let world = World::new().await;
    let long = "é".repeat(limits::MAX_ERROR_PART_BYTES / 2);
    let refusal = Error { kind: Kind::Denied, hop: long.clone(), object: long.clone(), reason: long.clone(), fix: long };
    let told = refusal.clone();
    let fake = Fake::new(move |_, _| std::future::ready(Err(told.clone())));
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    let api = world.dialer().network_service(&server.addresses[0], &Files::default());
    assert_eq!(bounded(api.request(request("a", None), within())).await.unwrap_err(), refusal);
}

#[tokio::test]
async fn strangers_are_refused() {
    let (world, foreign) = (World::new().await, World::new().await);
    let server = world.start(vec![world.unix("s")], Some(Fake::agreeable()), None).await;
    let api = foreign.dialer().network_service(&server.addresses[0], &Files::default());
    let error = bounded(api.request(request("a", None), within())).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
    // Somebody who speaks no TLS is hung up on, and harms nobody.
    let Target::Unix(path) = &server.addresses[0] else { panic!("a unix address") };
    let mut plain = std::os::unix::net::UnixStream::connect(path).unwrap();
    std::io::Write::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let friend = world.dialer().network_service(&server.addresses[0], &Files::default());
    bounded(friend.request(request("a", None), within())).await.unwrap();
}

#[tokio::test]
async fn health_is_told_by_name() {
    let world = World::new().await;
    let server = world.start(vec![world.unix("s"), tcp()], Some(Fake::agreeable()), None).await;
    let dialer = world.dialer();
    for address in &server.addresses {
        for service in ["", "networkservice.NetworkService", "connection.MonitorConnection"] {
            dialer.health(address, service, BOUND).await.unwrap();
        }
        let error = dialer.health(address, "registry.NetworkServiceRegistry", BOUND).await.unwrap_err();
        assert_eq!(error.kind, Kind::NotFound, "{error}");
    }
}

#[tokio::test]
async fn addresses_nobody_can_dial_are_explained() {
    let world = World::new().await;
    let impatient = DialOptions { wait_for_ready: Duration::ZERO, ..DialOptions::default() };
    let dialer = Dialer::new(world.client.clone(), impatient);
    let absent = world.unix("absent");
    for (target, kind) in [
        (Target::InProcess("manager".to_owned()), Kind::Unavailable),
        (Target::Inode(InodeKey { dev: 1, ino: 1 }), Kind::NotFound),
        (absent, Kind::Unavailable),
        (Target::parse("tcp://127.0.0.1:1").unwrap(), Kind::Unavailable),
    ] {
        let before = Instant::now();
        let api = dialer.network_service(&target, &Files::default());
        let error = bounded(api.request(request("a", None), within())).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(&target.to_string()), "{error}");
        assert!(before.elapsed() < Duration::from_secs(5));
    }
}

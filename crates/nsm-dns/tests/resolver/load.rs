//! Many questions, changes under load, and hostile datagrams.

use crate::{
    fake::{self, BOUND, Fake, a_records, ask, question},
    start,
};
use futures::{StreamExt, stream};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use nsm_dns::{MAX_IN_FLIGHT, MAX_TCP_CONNECTIONS};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::UdpSocket, time::timeout};

/// Answers every A question.
async fn everything() -> Fake {
    Fake::start(|asked, _| {
        let mut reply = fake::code(asked, ResponseCode::NoError);
        reply.add_answer(fake::address(asked.queries[0].name(), 60, [1, 2, 3, 4]));
        Some(reply)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_names_are_answered() {
    let (first, second) = (everything().await, everything().await);
    let resolver = start().await;
    resolver.set("c", &[first.config(&["x"]), second.config(&[])]).unwrap();
    let to = resolver.address();
    let asked = stream::iter(0..5000_u16).map(|n| async move { ask(to, &question(n, &format!("n{n}.a."), RecordType::A)).await });
    let answered = asked.buffer_unordered(100).filter(|reply| std::future::ready(a_records(reply).len() == 1)).count();
    assert_eq!(timeout(BOUND, answered).await.unwrap(), 5000);
    let status = resolver.status();
    assert_eq!((status.queries, status.failures, status.overloads), (5000, 0, 0));
    assert!(status.cached <= nsm_dns::MAX_CACHED && status.cached >= nsm_dns::MAX_CACHED / 2, "{}", status.cached);
}

/// Nobody answers, so every question stays under way; what is over the bound is told at once.
#[tokio::test]
async fn questions_over_the_bound_are_turned_away_at_once() {
    let silent = Fake::start(|_, _| None).await;
    let resolver = start().await;
    resolver.set("c", &[silent.config(&[])]).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(resolver.address()).await.unwrap();
    let mut buffer = [0; 512];
    let mut turned_away = |socket: &UdpSocket| match socket.try_recv(&mut buffer) {
        Ok(length) => Message::from_vec(&buffer[..length]).unwrap().metadata.response_code == ResponseCode::ServFail,
        Err(_) => false,
    };
    let flood = async {
        let mut sent = 0_u16;
        loop {
            socket.send(&question(sent, &format!("n{sent}.a."), RecordType::A).to_vec().unwrap()).await.unwrap();
            sent += 1;
            tokio::task::yield_now().await;
            if turned_away(&socket) {
                return sent;
            }
        }
    };
    let sent = timeout(Duration::from_secs(4), flood).await.expect("turned away before any question has ended");
    assert!(usize::from(sent) > MAX_IN_FLIGHT, "{sent}");
    assert!(resolver.status().overloads > 0);
}

#[tokio::test]
async fn connections_over_the_bound_are_closed_and_others_go_on() {
    let server = everything().await;
    let resolver = start().await;
    resolver.set("c", &[server.config(&[])]).unwrap();
    let connect = async || tokio::net::TcpStream::connect(resolver.address()).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..MAX_TCP_CONNECTIONS {
        let mut stream = connect().await;
        fake::write(&mut stream, &question(1, "a.b.", RecordType::A).to_vec().unwrap()).await;
        fake::read(&mut stream).await.unwrap();
        open.push(stream);
    }
    let over = timeout(BOUND, connect().await.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(over, Ok(0) | Err(_)), "{over:?}");
    fake::write(&mut open[0], &question(2, "a.b.", RecordType::A).to_vec().unwrap()).await;
    fake::read(&mut open[0]).await.unwrap();
}

/// What a connection brings moves from server to server and back while names are asked for; none is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_change_under_load_without_a_loss() {
    let (first, second) = (everything().await, everything().await);
    let resolver = start().await;
    resolver.set("c", &[first.config(&[])]).unwrap();
    let (to, done) = (resolver.address(), AtomicBool::new(false));
    let asks = async {
        let asked = stream::iter(0..2000_u16).map(|n| async move { ask(to, &question(n, &format!("n{n}.a."), RecordType::A)).await });
        let answered = asked.buffer_unordered(20).filter(|reply| std::future::ready(a_records(reply).len() == 1)).count().await;
        done.store(true, Relaxed);
        answered
    };
    let changes = async {
        let mut changes = 0;
        while !done.load(Relaxed) {
            resolver.set("c", &[second.config(&["x"])]).unwrap();
            tokio::task::yield_now().await;
            resolver.set("c", &[first.config(&["y"])]).unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            changes += 2;
        }
        changes
    };
    let (answered, changes) = timeout(BOUND, async { tokio::join!(asks, changes) }).await.unwrap();
    assert_eq!(answered, 2000, "after {changes} changes");
    assert!(changes > 20 && first.questions() > 0 && second.questions() > 0);
}

/// A question that began before its server was known is asked again.
#[tokio::test]
async fn a_question_that_fails_while_servers_change_is_asked_again() {
    let (good, old) = (everything().await, UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let resolver = start().await;
    resolver.set("c", &[fake::config(old.local_addr().unwrap(), &[])]).unwrap();
    let change = async {
        let mut buffer = vec![0; 512];
        let (length, peer) = old.recv_from(&mut buffer).await.unwrap();
        resolver.set("c", &[good.config(&[])]).unwrap();
        let refusal = fake::code(&Message::from_vec(&buffer[..length]).unwrap(), ResponseCode::Refused);
        old.send_to(&refusal.to_vec().unwrap(), peer).await.unwrap();
    };
    let (found, ()) = tokio::join!(fake::addresses(resolver.address(), "a.b."), change);
    assert_eq!(found.len(), 1);
}

/// Any bytes, and good questions with a few bytes changed, from both sides.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let good = question(1, "a.really.long.name.with.labels.", RecordType::A).to_vec().unwrap();
    let flips = proptest::collection::vec((0..good.len(), any::<u8>()), 0..4);
    let flipped = flips.prop_map(move |flips| {
        flips.into_iter().fold(good.clone(), |mut bytes, (at, byte)| {
            bytes[at] = byte;
            bytes
        })
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), flipped]
}

#[test]
fn hostile_datagrams_are_survived() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (resolver, server, socket) = runtime.block_on(async {
        let (resolver, server) = (start().await, everything().await);
        resolver.set("c", &[server.config(&[])]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(resolver.address()).await.unwrap();
        (resolver, server, socket)
    });
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(2000) });
    let sent = std::cell::Cell::new(0);
    runner
        .run(&hostile(), |bytes| {
            let is_alive = runtime.block_on(async {
                socket.send(&bytes).await.unwrap();
                sent.set(sent.get() + 1);
                // Not more at a time than the buffer of a socket holds: what is lost there proves nothing.
                sent.get() % 50 != 0 || fake::addresses(resolver.address(), "still.there.").await.len() == 1
            });
            prop_assert!(is_alive);
            Ok(())
        })
        .unwrap();
    assert!(resolver.status().refused > 100 && server.questions() > 0, "{:?}", resolver.status());
}

/// The same from a server: the asker gets a failure, and the next question is asked as ever.
#[test]
fn hostile_replies_are_survived() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(300) });
    let (resolver, server) = runtime.block_on(async { (start().await, UdpSocket::bind("127.0.0.1:0").await.unwrap()) });
    resolver.set("c", &[fake::config(server.local_addr().unwrap(), &[])]).unwrap();
    runner
        .run(&hostile(), |noise| {
            runtime.block_on(async {
                let reply = async {
                    let mut buffer = vec![0; 512];
                    let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
                    let asked = &buffer[..length];
                    // With the right id and the right question before the noise, so that it is read as a reply.
                    let forged = [&asked[..2], &noise[2.min(noise.len())..]].concat();
                    let behind = [&asked[..2], &[0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0], &asked[12..], &noise[..]].concat();
                    for bytes in [forged, behind, fake::code(&Message::from_vec(asked).unwrap(), ResponseCode::Refused).to_vec().unwrap()] {
                        server.send_to(&bytes, peer).await.unwrap();
                    }
                };
                let asked = question(1, "a.b.", RecordType::A);
                tokio::join!(ask(resolver.address(), &asked), reply);
            });
            Ok(())
        })
        .unwrap();
}

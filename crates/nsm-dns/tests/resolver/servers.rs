//! Servers that fail, and questions that come back.

use crate::{
    fake::{self, Fake, addresses, ask, code, config, question},
    start,
};
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};
use nsm_dns::{GRACE, QUERY_TIME, Resolver};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;

/// For the scheduling of a busy machine.
const SLACK: Duration = Duration::from_millis(900);

async fn silent() -> Fake {
    Fake::start(|_, _| None).await
}

/// An address where nothing listens.
async fn closed() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn timed(resolver: &Resolver, text: &str) -> (ResponseCode, Duration) {
    let begun = Instant::now();
    let reply = ask(resolver.address(), &question(1, text, RecordType::A)).await;
    (reply.metadata.response_code, begun.elapsed())
}

#[tokio::test]
async fn the_first_success_wins_over_silence_refusals_and_referrals() {
    let refusing = Fake::start(|asked, _| Some(code(asked, ResponseCode::Refused))).await;
    let referring = Fake::start(|asked, _| {
        let mut reply = code(asked, ResponseCode::NoError);
        let server = hickory_proto::rr::rdata::NS(fake::name("ns."));
        reply.add_authority(hickory_proto::rr::Record::from_rdata(Name::root(), 60, hickory_proto::rr::RData::NS(server)));
        Some(reply)
    })
    .await;
    let (silent, good) = (silent().await, Fake::zone(&[("a.b.", [1, 2, 3, 4])]).await);
    let resolver = start().await;
    let configs = [config(silent.address, &[]), config(closed().await, &[]), refusing.config(&[]), referring.config(&[]), good.config(&[])];
    resolver.set("c", &configs).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!(response, ResponseCode::NoError);
    assert!(time < SLACK, "{time:?}");
    assert_eq!(addresses(resolver.address(), "a.b.").await, [Ipv4Addr::new(1, 2, 3, 4)]);
    let all = [&silent, &refusing, &referring, &good].map(Fake::questions);
    assert_eq!(all, [1, 1, 1, 1], "all were asked, at once, and once");
}

#[tokio::test]
async fn a_no_waits_for_the_others_for_a_while_and_is_not_remembered_while_one_is_silent() {
    let (silent, good) = (silent().await, Fake::zone(&[]).await);
    let resolver = start().await;
    resolver.set("c", &[silent.config(&[]), good.config(&[])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!(response, ResponseCode::NXDomain);
    assert!((GRACE..GRACE + SLACK).contains(&time), "{time:?}");
    assert_eq!(resolver.status().cached, 0);
}

/// Says that there is no such name, so long after it was asked as `delay` says in milliseconds; 0 is silence.
async fn slow(delay: Arc<AtomicUsize>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 512];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = hickory_proto::op::Message::from_vec(&buffer[..length]).unwrap();
            let delay = delay.load(Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay as u64)).await;
                // Who asked may have gone.
                let _ = socket.send_to(&fake::zone(&asked, &[]).to_vec().unwrap(), peer).await;
            }
        }
    });
    (address, task)
}

/// A server of a dead endpoint must not slow down all that is looked up elsewhere; and it is heard when it is back,
/// although others are faster.
#[tokio::test]
async fn a_server_that_stays_silent_is_not_waited_for_until_it_is_back() {
    let delay = Arc::new(AtomicUsize::new(0));
    let ((address, task), good) = (slow(delay.clone()).await, Fake::zone(&[]).await);
    let resolver = start().await;
    resolver.set("c", &[config(address, &[]), good.config(&[])]).unwrap();
    for n in 0..3 {
        let (_, time) = timed(&resolver, &format!("n{n}.b.")).await;
        assert!(time >= GRACE, "{n}: {time:?}");
    }
    let unanswered = |resolver: &Resolver| resolver.status().servers.iter().map(|server| server.unanswered).collect::<Vec<_>>();
    assert_eq!(unanswered(&resolver), [3, 0]);
    let (response, time) = timed(&resolver, "a.b.").await;
    assert!(response == ResponseCode::NXDomain && time < SLACK, "{response} after {time:?}");
    assert_eq!(resolver.status().cached, 0, "what one server did not say is not remembered");
    delay.store(50, Relaxed);
    for n in 0.. {
        timed(&resolver, &format!("again{n}.b.")).await;
        if unanswered(&resolver)[0] == 0 {
            break;
        }
        assert!(n < 40, "never heard again");
    }
    task.abort();
}

#[tokio::test]
async fn a_server_that_is_slow_is_not_silent() {
    let (address, task) = slow(Arc::new(AtomicUsize::new(1200))).await;
    let resolver = start().await;
    resolver.set("c", &[config(address, &[])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert!(response == ResponseCode::NXDomain && time > GRACE, "{response} after {time:?}");
    assert_eq!(resolver.status().servers[0].unanswered, 0);
    task.abort();
}

#[tokio::test]
async fn a_later_yes_beats_an_earlier_no() {
    let (no, yes) = (Fake::zone(&[]).await, UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let resolver = start().await;
    resolver.set("c", &[no.config(&[]), config(yes.local_addr().unwrap(), &[])]).unwrap();
    let slow = async {
        let mut buffer = vec![0; 512];
        let (length, peer) = yes.recv_from(&mut buffer).await.unwrap();
        while no.questions() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(GRACE / 4).await;
        let asked = hickory_proto::op::Message::from_vec(&buffer[..length]).unwrap();
        yes.send_to(&fake::zone(&asked, &[("a.b.", [1, 2, 3, 4])]).to_vec().unwrap(), peer).await.unwrap();
    };
    let (found, ()) = tokio::join!(addresses(resolver.address(), "a.b."), slow);
    assert_eq!(found, [Ipv4Addr::new(1, 2, 3, 4)]);
}

#[tokio::test]
async fn a_lost_datagram_does_not_make_a_no_of_a_yes() {
    let asked_once = AtomicBool::new(false);
    let yes = Fake::start(move |asked, _| asked_once.swap(true, Relaxed).then(|| fake::zone(asked, &[("a.b.", [1, 2, 3, 4])]))).await;
    let no = Fake::zone(&[]).await;
    let resolver = start().await;
    resolver.set("c", &[no.config(&[]), yes.config(&[])]).unwrap();
    assert_eq!(addresses(resolver.address(), "a.b.").await, [Ipv4Addr::new(1, 2, 3, 4)]);
}

/// An endpoint's server knows the alias only, the host's server what it stands for; whichever is first.
#[tokio::test]
async fn an_alias_without_an_address_is_not_preferred_to_the_address() {
    let alias = |asked: &hickory_proto::op::Message| {
        let mut reply = code(asked, ResponseCode::NoError);
        let target = hickory_proto::rr::RData::CNAME(hickory_proto::rr::rdata::CNAME(fake::name("c.d.")));
        reply.add_answer(hickory_proto::rr::Record::from_rdata(asked.queries[0].name().clone(), 60, target));
        reply
    };
    let short = Fake::start(move |asked, _| Some(alias(asked))).await;
    let whole = Fake::start(move |asked, _| {
        let mut reply = alias(asked);
        reply.add_answer(fake::address(&fake::name("c.d."), 60, [1, 2, 3, 4]));
        Some(reply)
    })
    .await;
    let resolver = start().await;
    resolver.set("c", &[short.config(&[])]).unwrap();
    let reply = ask(resolver.address(), &question(1, "a.b.", RecordType::A)).await;
    assert_eq!((reply.answers.len(), resolver.status().cached), (1, 0), "told as it is, not remembered");
    resolver.set("c", &[short.config(&[]), whole.config(&[])]).unwrap();
    assert_eq!(addresses(resolver.address(), "a.b.").await, [Ipv4Addr::new(1, 2, 3, 4)]);
}

#[tokio::test]
async fn what_nobody_answers_is_a_failure_at_once_or_after_the_bound() {
    let resolver = start().await;
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!((response, time < SLACK), (ResponseCode::ServFail, true), "no servers: {time:?}");
    resolver.set("c", &[config(closed().await, &[])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!((response, time < SLACK), (ResponseCode::ServFail, true), "no listener: {time:?}");
    let silent = silent().await;
    resolver.set("c", &[silent.config(&["x", "y"])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!(response, ResponseCode::ServFail);
    assert!((QUERY_TIME..QUERY_TIME + SLACK).contains(&time), "silence: {time:?}");
    assert_eq!(silent.questions(), 3, "each datagram may get lost");
    let status = resolver.status();
    assert_eq!((status.queries, status.failures, status.cached), (3, 3, 0));
}

#[tokio::test]
async fn a_forged_reply_is_passed_over() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = start().await;
    resolver.set("c", &[config(server.local_addr().unwrap(), &[])]).unwrap();
    let forge = async {
        let mut buffer = vec![0; 512];
        let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
        let asked = hickory_proto::op::Message::from_vec(&buffer[..length]).unwrap();
        let good = fake::zone(&asked, &[("a.b.", [1, 2, 3, 4])]);
        let (mut id, mut about, mut no_reply) = (good.clone(), good.clone(), good.clone());
        id.metadata.id ^= 1;
        about.queries[0].set_name(fake::name("c.d."));
        no_reply.metadata.message_type = hickory_proto::op::MessageType::Query;
        for mut message in [id, about, no_reply] {
            message.answers[0] = fake::address(&fake::name("a.b."), 60, [6, 6, 6, 6]);
            server.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
        }
        server.send_to(b"noise", peer).await.unwrap();
        server.send_to(&good.to_vec().unwrap(), peer).await.unwrap();
    };
    let (found, ()) = tokio::join!(addresses(resolver.address(), "a.b."), forge);
    assert_eq!(found, [Ipv4Addr::new(1, 2, 3, 4)]);
}

#[tokio::test]
async fn our_own_address_is_never_asked() {
    let resolver = start().await;
    resolver.set("c", &[config(resolver.address(), &["x"])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!((response, time < SLACK), (ResponseCode::ServFail, true));
    let status = resolver.status();
    assert_eq!((status.servers, status.ignored, status.queries), (vec![], vec![resolver.address().to_string()], 1));
}

/// A server that asks us what we ask it. `rename` gives its questions ids of its own.
async fn mirror(rename: fn(u16) -> u16) -> (SocketAddr, Arc<OnceLock<SocketAddr>>, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (target, turns) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let (address, to, count) = (front.local_addr().unwrap(), target.clone(), turns.clone());
    let task = tokio::spawn(async move {
        let (mut buffer, mut asks) = (vec![0; 4096], tokio::task::JoinSet::new());
        loop {
            let (length, peer) = front.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Relaxed);
            let (mut bytes, front, to) = (buffer[..length].to_vec(), front.clone(), *to.get().unwrap());
            let id = [bytes[0], bytes[1]];
            bytes[..2].copy_from_slice(&rename(u16::from_be_bytes(id)).to_be_bytes());
            asks.spawn(async move {
                let mut reply = fake::send(to, &bytes).await;
                reply[..2].copy_from_slice(&id);
                front.send_to(&reply, peer).await.unwrap();
            });
        }
    });
    (address, target, turns, task)
}

#[tokio::test]
async fn a_question_that_comes_back_is_refused() {
    let resolver = start().await;
    let (address, target, turns, task) = mirror(|id| id).await;
    target.set(resolver.address()).unwrap();
    resolver.set("c", &[config(address, &["x"])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!((response, time < SLACK), (ResponseCode::ServFail, true), "{time:?}");
    assert_eq!((turns.load(Relaxed), resolver.status().loops), (2, 2), "once whole and once below the search domain");
    task.abort();
}

#[tokio::test]
async fn a_question_that_comes_back_in_disguise_ends_with_the_bound() {
    let resolver = start().await;
    let (address, target, turns, task) = mirror(|id| id ^ 0x5555).await;
    target.set(resolver.address()).unwrap();
    resolver.set("c", &[config(address, &["x"])]).unwrap();
    let (response, time) = timed(&resolver, "a.b.").await;
    assert_eq!(response, ResponseCode::ServFail);
    assert!(time < QUERY_TIME + SLACK, "{time:?}");
    assert!(turns.load(Relaxed) <= 6, "it waits for itself instead of asking again: {turns:?}");
    task.abort();
}

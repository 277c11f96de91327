//! A member that the others cannot reach and that cannot reach them, while its registry can reach it: it must not answer
//! from what it remembers.

use crate::{
    common::*,
    conform,
    etcd::{Cluster, free_port, put_again},
    history::{Record, storm},
};
use nsm_api::Kind;
use nsm_registry::{Engine, Registry};
use std::{collections::BTreeMap, sync::Arc, time::Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Everything that the members say to each other goes through here, and who says it is known.
struct Between {
    /// Who is alone, if anybody is.
    alone: watch::Sender<Option<usize>>,
    _tasks: JoinSet<()>,
}

/// Their ids, as they call themselves when they call each other.
type Ids = watch::Receiver<Vec<String>>;

impl Between {
    async fn cluster(size: usize) -> (Cluster, Between) {
        let (alone, ids, mut tasks, mut ports) = (watch::Sender::new(None), watch::Sender::new(Vec::new()), JoinSet::new(), Vec::new());
        for to in 0..size {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let member = free_port();
            ports.push((member, listener.local_addr().unwrap().port()));
            tasks.spawn(pass_on(listener, member, to, alone.subscribe(), ids.subscribe()));
        }
        let cluster = Cluster::between(&ports, &[], false).await;
        ids.send_replace(cluster.ids());
        (cluster, Between { alone, _tasks: tasks })
    }

    fn isolate(&self, member: Option<usize>) {
        self.alone.send_replace(member);
    }
}

/// Joins callers to member `to`; every change of who is alone ends all that concerns them, and what came from nobody known.
async fn pass_on(listener: TcpListener, port: u16, to: usize, alone: watch::Receiver<Option<usize>>, ids: Ids) {
    let mut calls = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        calls.spawn(call(near, port, to, alone.clone(), ids.clone()));
        while calls.try_join_next().is_some() {}
    }
}

async fn call(mut near: TcpStream, port: u16, to: usize, mut alone: watch::Receiver<Option<usize>>, ids: Ids) {
    let Some(first) = head(&mut near).await else { return };
    let head = String::from_utf8_lossy(&first);
    let from = ids.borrow().iter().position(|id| head.contains(&format!("X-Server-From: {id}\r\n")));
    let concerned = move |alone: &Option<usize>| alone.is_some_and(|alone| alone == to || from.is_none_or(|from| from == alone));
    if concerned(&alone.borrow_and_update()) {
        return;
    }
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    if far.write_all(&first).await.is_err() {
        return;
    }
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = alone.wait_for(concerned) => {}
    }
}

/// What comes until the end of the first request's header.
async fn head(near: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        assert!(head.len() < 1 << 20, "no request of a member");
        if near.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// B1, I10, K1: alone, a member's registry refuses; the others go on; together again it has missed nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_a_registry_at_a_member_that_is_alone_tells_nothing_old() {
    let (cluster, between) = Between::cluster(3).await;
    let engines: Vec<_> = (0..3).map(|member| cluster.engine_at(member)).collect();
    put_again(&engines[0], "a", "tcp://1").await;
    for alone in 0..3 {
        let other = &engines[(alone + 1) % 3];
        put(&engines[alone], "a", "tcp://1", None).await.unwrap();
        let (mut watch, mut known) = (engines[alone].endpoints().watch(of_service("s")).await.unwrap(), BTreeMap::new());
        conform::hear(&mut known, &conform::next(&mut watch).await);
        between.isolate(Some(alone));
        put_again(other, "a", "tcp://2").await;
        let query = of_service("s");
        let (by_index, by_name, write) = tokio::join!(
            engines[alone].endpoints().find(&query),
            async { engines[alone].endpoints().get(&name("a")).await },
            put(&engines[alone], "b", "tcp://b", None)
        );
        assert_eq!(by_index.unwrap_err().kind, Kind::Unavailable, "member {alone}");
        assert_eq!(by_name.unwrap_err().kind, Kind::Unavailable, "member {alone}");
        assert!(matches!(write.as_ref().unwrap_err().kind, Kind::Unavailable | Kind::Timeout), "{write:?}");
        between.isolate(None);
        while conform::lines(&known) != ["a tcp://2"] {
            conform::hear(&mut known, &conform::next(&mut watch).await);
        }
        put_again(other, "a", "tcp://3").await;
        put_again(&engines[alone], "a", "tcp://4").await;
        assert_eq!(all(other).await, ["a tcp://4"]);
    }
}

/// B1: a registry that knows all members goes on at another one, whichever is alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_a_registry_goes_on_at_another_member() {
    let (cluster, between) = Between::cluster(3).await;
    let engine = cluster.engine();
    put_again(&engine, "a", "tcp://0").await;
    for (alone, url) in [(0, "tcp://1"), (1, "tcp://2"), (2, "tcp://3")] {
        between.isolate(Some(alone));
        let start = Instant::now();
        put_again(&engine, "a", url).await;
        assert_eq!(all(&engine).await, [format!("a {url}")]);
        println!("member {alone} alone: {:?} until a write and a Find went through", start.elapsed());
        between.isolate(None);
    }
}

/// I7, B1: clients of three registries, each at a member of its own; in the middle of their work one member is alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_histories_over_a_cluster_that_is_split() {
    let (cluster, between) = Between::cluster(3).await;
    let engines: Vec<_> = (0..3).map(|member| Arc::new(cluster.engine_at(member))).collect();
    let registries: Vec<_> =
        engines.iter().map(|engine| Arc::new(Registry::new(engine.clone(), real()).with_expire_period(LONG * 10))).collect();
    for seed in 0..3u64 {
        let record = Record::default();
        let work = tokio::spawn({
            let (record, registries) = (record.clone(), registries.clone());
            async move { storm(&record, &registries, 40, seed).await }
        });
        record.reaches(100, &work).await;
        assert!(!work.is_finished(), "the split comes too late");
        between.isolate(Some(usize::try_from(seed).unwrap()));
        record.reaches(260, &work).await;
        between.isolate(None);
        work.await.unwrap();
        for registry in &registries {
            record.look(registry, 4).await;
        }
        let (known, unknown) = record.judge(&format!("split, seed {seed}"));
        println!("{known} calls judged, {unknown} with unknown outcome");
        for number in 0..4 {
            let called = format!("e{number}");
            while remove(&*engines[0], &called).await.is_err() {}
        }
    }
}

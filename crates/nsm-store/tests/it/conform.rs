//! What every engine promises, asked of each in the same words: writes over old revisions do nothing, watches have no
//! seam and deliver every end, a watcher that does not read holds nobody up and loses nothing.

use crate::{common::*, etcd::Cluster, medium::FaultDisk};
use futures::StreamExt;
use nsm_api::{EndpointQuery, NetworkService, NetworkServiceEndpoint, Payload, ServiceQuery};
use nsm_registry::{Changes, Engine, MemoryEngine, Revision, WATCH_QUEUE};
use nsm_store::EtcdEngine;
use std::{collections::BTreeMap, sync::Arc};

#[tokio::test]
async fn memory() {
    suite(&MemoryEngine::new()).await;
}

#[tokio::test]
async fn durable() {
    let engine = open(&FaultDisk::default(), TestClock::new()).await.unwrap();
    suite(&engine).await;
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd() {
    let cluster = Cluster::start(1).await;
    suite(&EtcdEngine::new(&cluster.options()).unwrap()).await;
}

async fn suite(engine: &dyn Engine) {
    old_revisions(engine).await;
    services(engine).await;
    leaving_the_query(engine).await;
    no_seam(engine).await;
    h5_stuck(engine).await;
}

async fn old_revisions(engine: &dyn Engine) {
    let (store, a) = (engine.endpoints(), name("a"));
    let record = |url| Arc::new(endpoint("a", "s", url));
    let first = store.put(record("1"), None, None).await.unwrap().unwrap();
    let second = store.put(record("2"), Some(first), None).await.unwrap().unwrap();
    assert!(second > first);
    for expected in [None, Some(first), Some(Revision(second.0 + 1))] {
        assert_eq!(store.put(record("3"), expected, None).await.unwrap(), None);
    }
    for expected in [first, Revision(0), Revision(second.0 + 1)] {
        assert!(!store.remove(&a, expected).await.unwrap());
    }
    let present = store.get(&a).await.unwrap().unwrap();
    assert_eq!((present.record.url.as_str(), present.revision), ("2", second));
    assert!(store.remove(&a, second).await.unwrap());
    assert!(!store.remove(&a, second).await.unwrap());
    assert!(store.get(&a).await.unwrap().is_none());
    assert_eq!(store.put(record("4"), Some(second), None).await.unwrap(), None, "what has ended does not come back");
    let again = store.put(record("5"), None, None).await.unwrap().unwrap();
    assert!(again > second, "no revision is used twice");
    assert!(store.remove(&a, again).await.unwrap());
}

/// services are kept apart from endpoints, also under the same name.
async fn services(engine: &dyn Engine) {
    let vpn = Arc::new(NetworkService::new(service("vpn"), Payload::Ethernet));
    let revision = engine.services().put(vpn.clone(), None, None).await.unwrap().unwrap();
    put(engine, "vpn", "tcp://vpn", None).await.unwrap();
    assert_eq!(engine.services().find(&ServiceQuery::default()).await.unwrap(), std::slice::from_ref(&vpn));
    let ip = ServiceQuery { payload: Payload::Ip, ..ServiceQuery::default() };
    assert!(engine.services().find(&ip).await.unwrap().is_empty());
    assert!(engine.services().remove(&service("vpn"), revision).await.unwrap());
    assert_eq!(all(engine).await, ["vpn tcp://vpn"]);
    remove(engine, "vpn").await.unwrap();
}

/// The next change of a watch, as `+name url` or `-name url`.
pub(crate) async fn next(changes: &mut Changes<NetworkServiceEndpoint>) -> String {
    let change = tokio::time::timeout(LONG, changes.next()).await.expect("the watch says nothing").unwrap().unwrap();
    format!("{}{} {}", if change.deleted { '-' } else { '+' }, change.record.name, change.record.url)
}

async fn leaving_the_query(engine: &dyn Engine) {
    let mut watch = engine.endpoints().watch(EndpointQuery { url: "in".into(), ..of_service("s") }).await.unwrap();
    for (url, heard) in [("in/1", Some("+a in/1")), ("out", Some("-a in/1")), ("elsewhere", None), ("in/2", Some("+a in/2"))] {
        put(engine, "a", url, None).await.unwrap();
        if let Some(heard) = heard {
            assert_eq!(next(&mut watch).await, heard);
        }
    }
    remove(engine, "a").await.unwrap();
    assert_eq!(next(&mut watch).await, "-a in/2", "the end of the last known object");
}

/// Watches that begin in the middle of writes see each name's last state, whatever was in the snapshot.
async fn no_seam(engine: &dyn Engine) {
    let writes = async {
        for number in 0..60 {
            put(engine, &format!("e{}", number % 7), &format!("tcp://{number}"), None).await.unwrap();
            if number % 5 == 4 {
                remove(engine, &format!("e{}", (number + 3) % 7)).await.unwrap();
            }
        }
        put(engine, "end", "tcp://end", None).await.unwrap();
    };
    let watches = async {
        let mut watches = Vec::new();
        for _ in 0..20 {
            watches.push(engine.endpoints().watch(of_service("s")).await.unwrap());
            tokio::task::yield_now().await;
        }
        watches
    };
    let ((), watches) = tokio::join!(writes, watches);
    let expected = all(engine).await;
    for mut watch in watches {
        let mut known = BTreeMap::new();
        while !known.contains_key("end") {
            hear(&mut known, &next(&mut watch).await);
        }
        assert_eq!(lines(&known), expected);
    }
    for line in expected {
        remove(engine, line.split(' ').next().unwrap()).await.unwrap();
    }
}

pub(crate) fn hear(known: &mut BTreeMap<String, String>, heard: &str) {
    let (called, url) = heard[1..].split_once(' ').unwrap();
    if heard.starts_with('-') {
        assert!(known.remove(called).is_some(), "{called} ended, but the watcher never knew it");
    } else {
        known.insert(called.to_owned(), url.to_owned());
    }
}

pub(crate) fn lines(known: &BTreeMap<String, String>) -> Vec<String> {
    known.iter().map(|(called, url)| format!("{called} {url}")).collect()
}

/// H5, I6: more changes than a queue holds.
async fn h5_stuck(engine: &dyn Engine) {
    const NAMES: usize = 40;
    let mut stuck = engine.endpoints().watch(of_service("s")).await.unwrap();
    let mut reader = engine.endpoints().watch(of_service("s")).await.unwrap();
    for round in 0..WATCH_QUEUE / NAMES + 2 {
        let names: Vec<_> = (0..NAMES).map(|number| format!("e{number:02}")).collect();
        let url = format!("tcp://{round}");
        futures::future::join_all(names.iter().map(|called| async { put(engine, called, &url, None).await.unwrap() })).await;
        for _ in 0..NAMES {
            assert!(next(&mut reader).await.ends_with(&url));
        }
    }
    for number in 0..10 {
        remove(engine, &format!("e{number:02}")).await.unwrap();
        assert!(next(&mut reader).await.starts_with('-'));
    }
    let (mut known, mut heard, expected) = (BTreeMap::new(), 0, all(engine).await);
    while lines(&known) != expected {
        hear(&mut known, &next(&mut stuck).await);
        heard += 1;
    }
    assert!(heard <= WATCH_QUEUE + 3 * NAMES, "{heard} messages");
}

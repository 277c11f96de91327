//! The registry as its callers see it: features, M-12, M-13, M-16, M-19, M-20; reliability H5, I6, I7.

use crate::common::*;
use futures::{FutureExt, StreamExt};
use nsm_api::{Caller, Destination, EndpointQuery, Files, Kind, Match, NetworkService, Payload, RegistryApi, ServiceQuery, ServiceUpdates};
use nsm_registry::{WATCH_QUEUE, manifest::Documents};
use std::{sync::Arc, time::Duration};

fn by_name(called: &str) -> EndpointQuery {
    EndpointQuery { name: Some(name(called)), ..EndpointQuery::default() }
}

fn of_service(serves: &str) -> EndpointQuery {
    EndpointQuery { services: vec![service(serves)], ..EndpointQuery::default() }
}

async fn services(updates: ServiceUpdates) -> Vec<String> {
    updates.map(|update| update.unwrap().service.name.to_string()).collect().await
}

/// the reply says when the record ends and when its name began; both are kept or moved as they should.
#[tokio::test(start_paused = true)]
async fn a07_times_of_an_endpoint() {
    let registry = registry();
    let register = |caller| registry.register_endpoint(endpoint("a", "s", &[]), Files::default(), caller);
    let first = register(caller("a")).await.unwrap();
    assert_eq!((first.initial_registration_time, first.expiration_time), (Some(epoch()), Some(after(60))));
    tokio::time::advance(Duration::from_secs(40)).await;
    let limited = Caller { token_expires: Some(after(70)), ..caller("a") };
    let second = register(limited).await.unwrap();
    assert_eq!((second.initial_registration_time, second.expiration_time), (Some(epoch()), Some(after(70))), "the token ends first");

    let mut asks = endpoint("b", "s", &[]);
    (asks.expiration_time, asks.initial_registration_time) = (Some(after(45)), Some(after(10)));
    let answer = registry.register_endpoint(asks, Files::default(), caller("b")).await.unwrap();
    assert_eq!(answer.expiration_time, Some(after(45)), "an endpoint may ask for less");
    assert_eq!(answer.initial_registration_time, Some(after(10)), "what it knows from before a restart of the registry counts");

    let ended = Caller { token_expires: Some(after(39)), ..caller("c") };
    let refused = registry.register_endpoint(endpoint("c", "s", &[]), Files::default(), ended).await.unwrap_err();
    assert!(refused.to_string().contains("the caller's token has passed"), "{refused}");
    assert!(all(registry.find_endpoints(by_name("c"), caller("x")).await.unwrap()).await.is_empty());
}

/// M-13, I7: an endpoint ends by the timer alone, its watchers hear of it, and a refresh puts it off.
#[tokio::test(start_paused = true)]
async fn m13_endpoints_expire_and_are_delivered_as_deleted() {
    let registry = registry();
    registry.register_endpoint(endpoint("a", "s", &[]), Files::default(), caller("a")).await.unwrap();
    let mut watch = registry.find_endpoints(EndpointQuery { watch: true, ..by_name("a") }, caller("x")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+a tcp://10.0.0.1:5001");
    tokio::time::sleep(Duration::from_secs(59)).await;
    registry.register_endpoint(endpoint("a", "s", &[]), Files::default(), caller("a")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+a tcp://10.0.0.1:5001", "a refresh is delivered too");
    let before = tokio::time::Instant::now();
    assert_eq!(next(&mut watch).await, "-a tcp://10.0.0.1:5001");
    let waited = before.elapsed();
    assert!(waited >= Duration::from_secs(60) && waited < Duration::from_secs(61), "{waited:?}");
    assert!(watch.next().now_or_never().is_none(), "a watch never ends by itself");
    assert!(all(registry.find_endpoints(by_name("a"), caller("x")).await.unwrap()).await.is_empty());
}

/// M-16: every part of a query is a condition; a one-shot Find ends.
#[tokio::test(start_paused = true)]
async fn m16_find_filters() {
    let registry = registry();
    let mut both = endpoint("both", "s", &[("app", "foo"), ("version", "1")]);
    both.network_service_names.push(service("t"));
    both.url = "tcp://10.0.0.2:50010".to_owned();
    for endpoint in [both, endpoint("one", "s", &[("app", "bar")])] {
        registry.register_endpoint(endpoint, Files::default(), caller("a")).await.unwrap();
    }
    let labelled = |pairs| EndpointQuery { labels: [(service("s"), labels(pairs))].into(), ..EndpointQuery::default() };
    let of_other = EndpointQuery { labels: [(service("t"), labels(&[]))].into(), ..EndpointQuery::default() };
    for (query, expected) in [
        (EndpointQuery::default(), vec!["both", "one"]),
        (by_name("one"), vec!["one"]),
        (by_name("on"), vec![]),
        (of_service("s"), vec!["both", "one"]),
        (EndpointQuery { services: vec![service("s"), service("t")], ..EndpointQuery::default() }, vec!["both"]),
        (of_service("u"), vec![]),
        (labelled(&[("app", "foo")]), vec!["both"]),
        (labelled(&[("app", "foo"), ("version", "2")]), vec![]),
        (labelled(&[]), vec!["both", "one"]),
        (of_other, vec![]),
        (EndpointQuery { url: "tcp://10.0.0.2:5001".to_owned(), ..EndpointQuery::default() }, vec!["both"]),
        (EndpointQuery { url: "tcp://10.0.0.3".to_owned(), ..EndpointQuery::default() }, vec![]),
        (EndpointQuery { expiration_time: Some(after(61)), ..EndpointQuery::default() }, vec![]),
        (EndpointQuery { expiration_time: Some(after(60) + Duration::from_millis(900)), ..by_name("one") }, vec!["one"]),
    ] {
        let found: Vec<_> = registry.find_endpoints(query.clone(), caller("x")).await.unwrap().collect().await;
        let found: Vec<_> = found.into_iter().map(|update| update.unwrap().0.endpoint.name.to_string()).collect();
        assert_eq!(found, expected, "{query:?}");
    }
}

/// M-19, M-20: the same identity replaces, another is refused and changes nothing, until the owner leaves.
#[tokio::test]
async fn m20_the_first_registrant_owns_a_name() {
    let registry = registry();
    registry.register_endpoint(endpoint("a", "s", &[]), Files::default(), caller("owner")).await.unwrap();
    let moved = nsm_api::NetworkServiceEndpoint { url: "tcp://10.0.0.9:1".to_owned(), ..endpoint("a", "s", &[]) };
    for stranger in [caller("stranger"), Caller::default()] {
        let refused = registry.register_endpoint(moved.clone(), Files::default(), stranger.clone()).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Denied);
        assert!(refused.to_string().contains("belongs to spiffe://d/owner"), "{refused}");
        assert_eq!(registry.unregister_endpoint(moved.clone(), stranger).await.unwrap_err().kind, Kind::Denied);
    }
    // A manager passes on what an owner says: the owner stands first in the path.
    let mut passed_on = moved.clone();
    passed_on.path_ids = vec!["spiffe://d/stranger".to_owned()];
    assert_eq!(registry.register_endpoint(passed_on, Files::default(), caller("manager")).await.unwrap_err().kind, Kind::Denied);
    assert_eq!(all(registry.find_endpoints(by_name("a"), caller("x")).await.unwrap()).await, ["a tcp://10.0.0.1:5001"]);

    let mut passed_on = moved.clone();
    passed_on.path_ids = vec!["spiffe://d/owner".to_owned()];
    let answer = registry.register_endpoint(passed_on, Files::default(), caller("manager")).await.unwrap();
    assert_eq!(answer.path_ids, ["spiffe://d/owner", "spiffe://d/manager"]);
    let again = registry.register_endpoint(answer.clone(), Files::default(), caller("manager")).await.unwrap();
    assert_eq!(again.path_ids, answer.path_ids, "a refresh that brings its path back does not make it longer");
    assert_eq!(all(registry.find_endpoints(by_name("a"), caller("x")).await.unwrap()).await, ["a tcp://10.0.0.9:1"]);

    registry.unregister_endpoint(moved.clone(), caller("owner")).await.unwrap();
    registry.unregister_endpoint(moved.clone(), caller("anybody")).await.expect("what is not there may be unregistered by anybody");
    registry.register_endpoint(moved, Files::default(), caller("stranger")).await.expect("the name is free again");
}

/// A-08, M-12: services keep the order of their matches, carry IP unless they say otherwise, and are found by payload.
#[tokio::test(start_paused = true)]
async fn a08_services() {
    let registry = registry();
    let rule = |value: &str| Match {
        routes: vec![Destination { destination_selector: labels(&[("app", value)]), ..Destination::default() }],
        ..Match::default()
    };
    let mut vpn = NetworkService::new(service("vpn"), Payload::Unset);
    vpn.matches = vec![rule("z"), rule("a")];
    let stored = registry.register_service(vpn.clone(), caller("a")).await.unwrap();
    assert_eq!((stored.payload.clone(), &stored.matches, &stored.path_ids), (Payload::Ip, &vpn.matches, &vec!["spiffe://d/a".to_owned()]));
    let lan = NetworkService::new(service("lan"), Payload::Ethernet);
    registry.register_service(lan, caller("b")).await.unwrap();
    tokio::time::advance(LONG * 100).await;

    let query = |payload: Payload, matches: Vec<Match>| ServiceQuery { payload, matches, ..ServiceQuery::default() };
    for (query, expected) in [
        (query(Payload::Unset, vec![]), vec!["lan", "vpn"]),
        (query(Payload::Ip, vec![]), vec!["vpn"]),
        (query(Payload::Unset, vec![rule("z"), rule("a")]), vec!["vpn"]),
        (query(Payload::Unset, vec![rule("a"), rule("z")]), vec![]),
        (ServiceQuery { name: Some(service("vpn")), ..query(Payload::Ethernet, vec![]) }, vec![]),
        (ServiceQuery { name: Some(service("vpn")), ..query(Payload::Unset, vec![]) }, vec!["vpn"]),
    ] {
        assert_eq!(services(registry.find_services(query, caller("x")).await.unwrap()).await, expected, "services never expire");
    }

    let mut watch = registry.find_services(ServiceQuery { watch: true, ..query(Payload::Ip, vec![]) }, caller("x")).await.unwrap();
    assert_eq!(registry.register_service(vpn.clone(), caller("b")).await.unwrap_err().kind, Kind::Denied);
    assert_eq!(registry.unregister_service(vpn.clone(), caller("b")).await.unwrap_err().kind, Kind::Denied);
    registry.unregister_service(vpn, caller("a")).await.unwrap();
    let mut heard = Vec::new();
    while let Some(Some(update)) = watch.next().now_or_never() {
        heard.push(update.unwrap().deleted);
    }
    assert_eq!(heard, [false, true]);
}

/// What can never be reached is not registered.
#[tokio::test]
async fn an_endpoint_needs_a_url() {
    let mut unreachable = endpoint("a", "s", &[]);
    unreachable.url.clear();
    let refused = registry().register_endpoint(unreachable, Files::default(), caller("a")).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Invalid);
    assert!(refused.to_string().contains("\"a\": has no URL; register it with"), "{refused}");
}

/// H5, I6: one watcher does not read while ten times its queue happens. The other hears each change at once; the
/// first ends with the same knowledge, through a bounded number of messages.
#[tokio::test]
async fn h5_a_watcher_that_does_not_read_holds_nobody_up() {
    tokio::task::unconstrained(async {
        let registry = registry();
        let watched = EndpointQuery { watch: true, ..of_service("s") };
        let mut stuck = registry.find_endpoints(watched.clone(), caller("x")).await.unwrap();
        let mut reader = registry.find_endpoints(watched, caller("x")).await.unwrap();
        let (mut knows, mut heard) = (std::collections::BTreeSet::new(), 0);
        for number in 0..WATCH_QUEUE * 10 {
            let called = format!("e{:04}", number % 3000);
            registry.register_endpoint(endpoint(&called, "s", &[]), Files::default(), caller("a")).await.unwrap();
            assert!(next(&mut reader).await.starts_with(&format!("+{called}")));
            if number % 3 == 0 {
                registry.unregister_endpoint(endpoint(&called, "s", &[]), caller("a")).await.unwrap();
                assert!(next(&mut reader).await.starts_with(&format!("-{called}")));
            }
        }
        while let Some(Some(update)) = stuck.next().now_or_never() {
            let (update, _) = update.unwrap();
            heard += 1;
            if update.deleted {
                knows.remove(&update.endpoint.name)
            } else {
                knows.insert(update.endpoint.name)
            };
        }
        let present: Vec<_> = registry.find_endpoints(of_service("s"), caller("x")).await.unwrap().collect().await;
        let present: std::collections::BTreeSet<_> = present.into_iter().map(|update| update.unwrap().0.endpoint.name).collect();
        assert_eq!(knows, present);
        assert!(heard <= WATCH_QUEUE + 2 * 3000, "{heard} messages");
    })
    .await;
}

/// Calls from many tasks at once: each name ends with exactly one owner, and only the owner was ever told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_registrants_at_once_gets_the_name() {
    let registry = Arc::new(registry());
    let mut tasks = tokio::task::JoinSet::new();
    for who in 0..50 {
        let registry = registry.clone();
        tasks.spawn(async move {
            registry.register_endpoint(endpoint("a", "s", &[]), Files::default(), caller(&who.to_string())).await.is_ok()
        });
    }
    let winners = tasks.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1);
}

/// Documents from a file go in as they are.
#[tokio::test]
async fn services_from_a_manifest_can_be_registered() {
    let text = "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata: {name: vpn}\nspec: {payload: ETHERNET}\n";
    let documents = Documents::read("vpn.yaml", text).unwrap();
    let stored = registry().register_service(documents.services[0].clone(), caller("a")).await.unwrap();
    assert_eq!(stored.payload, Payload::Ethernet);
}

//! What a registry must not take: each message as a peer may send it, through the border of the API. Refused with a
//! reason, and nothing is stored or told.

use crate::common::*;
use futures::{FutureExt, StreamExt};
use nsm_api::{
    Caller, EndpointQuery, Error, Files, Kind, NetworkService, NetworkServiceEndpoint, RegistryApi, Result, ServiceQuery, limits, proto,
};
use nsm_registry::{MAX_RECORD_BYTES, Registry};
use std::time::Duration;

type Service = proto::registry::NetworkService;
type Endpoint = proto::registry::NetworkServiceEndpoint;
type Match = proto::registry::Match;

fn service_message() -> Service {
    Service::from(NetworkService::new(service("vpn"), nsm_api::Payload::Ip))
}

fn endpoint_message() -> Endpoint {
    Endpoint::from(endpoint("a", "s", &[("app", "x")]))
}

fn rule(key: &str, value: &str) -> Match {
    let selector = [(key.to_owned(), value.to_owned())].into();
    Match { source_selector: selector, ..Match::default() }
}

async fn register(registry: &Registry, message: Endpoint, caller: Caller) -> Result<NetworkServiceEndpoint> {
    registry.register_endpoint(message.try_into()?, Files::default(), caller).await
}

#[tokio::test(start_paused = true)]
async fn i10_services_that_are_refused() {
    let registry = registry();
    let mut watch = registry.find_services(ServiceQuery { watch: true, ..ServiceQuery::default() }, Caller::default()).await.unwrap();
    let named = |name: &str| Service { name: name.to_owned(), ..service_message() };
    let with = |matches: Vec<Match>| Service { matches, ..service_message() };
    let long = "x".repeat(limits::MAX_MAP_VALUE_BYTES + 1);
    for (what, message) in [
        ("no name", named("")),
        ("a long name", named(&"x".repeat(limits::MAX_NAME_BYTES + 1))),
        ("a control character", named("vpn\n")),
        ("a blank", named(" vpn")),
        ("ten thousand matches", with(vec![rule("app", "x"); 10_000])),
        ("a long value", with(vec![rule("app", &long)])),
        ("a long key", with(vec![rule(&long, "x")])),
        ("a template that is too long", with(vec![rule("app", &"{{ .x }}".repeat(1000))])),
        ("a long payload", Service { payload: "x".repeat(limits::MAX_NAME_BYTES + 1), ..service_message() }),
        ("more in all than a record may have", with(vec![rule("app", &long[1..]); MAX_RECORD_BYTES / limits::MAX_MAP_VALUE_BYTES + 1])),
        ("too many processes", Service { path_ids: vec!["spiffe://d/x".to_owned(); limits::MAX_PATH_SEGMENTS + 1], ..service_message() }),
    ] {
        let refused = match NetworkService::try_from(message) {
            Ok(service) => registry.register_service(service, caller("a")).await.map(drop),
            Err(error) => Err(error),
        };
        refused_for(what, refused, Kind::Invalid);
    }
    let owned = NetworkService::new(service("owned"), nsm_api::Payload::Ip);
    registry.register_service(owned.clone(), caller("owner")).await.unwrap();
    watch.next().now_or_never().unwrap();
    refused_for("a foreign owner", registry.register_service(owned.clone(), caller("b")).await.map(drop), Kind::Denied);
    refused_for("a foreign owner", registry.unregister_service(owned, caller("b")).await, Kind::Denied);
    assert!(watch.next().now_or_never().is_none(), "nothing is told");
    assert_eq!(registry.find_services(ServiceQuery::default(), Caller::default()).await.unwrap().count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn i10_endpoints_that_are_refused() {
    let registry = registry();
    let mut watch = registry.find_endpoints(EndpointQuery { watch: true, ..EndpointQuery::default() }, Caller::default()).await.unwrap();
    let long = "x".repeat(limits::MAX_MAP_VALUE_BYTES + 1);
    let labelled = |value: &str| Endpoint::from(endpoint("a", "s", &[("app", value)]));
    let many: Vec<_> = (0..=limits::MAX_MAP_ENTRIES).map(|number| (format!("k{number}"), String::new())).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let past = NetworkServiceEndpoint { expiration_time: Some(epoch() - Duration::from_secs(1)), ..endpoint("a", "s", &[]) };
    for (what, message) in [
        ("no name", Endpoint { name: String::new(), ..endpoint_message() }),
        ("a long name", Endpoint { name: "x".repeat(limits::MAX_NAME_BYTES + 1), ..endpoint_message() }),
        ("an illegal service", Endpoint { network_service_names: vec!["a\0b".to_owned()], ..endpoint_message() }),
        ("too many services", Endpoint { network_service_names: vec!["s".to_owned(); 257], ..endpoint_message() }),
        ("no URL", Endpoint { url: String::new(), ..endpoint_message() }),
        ("a long URL", Endpoint { url: format!("tcp://{long}:1"), ..endpoint_message() }),
        ("a long label", labelled(&long)),
        ("too many labels", Endpoint::from(endpoint("a", "s", &many))),
        ("a long identity", Endpoint { path_ids: vec![long.clone()], ..endpoint_message() }),
        ("an end in the past", Endpoint::from(past)),
    ] {
        refused_for(what, register(&registry, message, caller("a")).await, Kind::Invalid);
    }
    let ended = Caller { token_expires: Some(epoch()), ..caller("a") };
    refused_for("a token that has ended", register(&registry, endpoint_message(), ended).await, Kind::Invalid);
    assert!(watch.next().now_or_never().is_none(), "nothing is told");
    assert_eq!(all(registry.find_endpoints(EndpointQuery::default(), Caller::default()).await.unwrap()).await, Vec::<String>::new());

    register(&registry, endpoint_message(), caller("owner")).await.unwrap();
    watch.next().now_or_never().unwrap();
    let theirs = Endpoint { url: "tcp://10.6.6.6:1".to_owned(), path_ids: vec!["spiffe://d/b".to_owned()], ..endpoint_message() };
    refused_for("a foreign owner", register(&registry, theirs, caller("b")).await, Kind::Denied);
    assert!(watch.next().now_or_never().is_none(), "nothing is told");
    let found = all(registry.find_endpoints(EndpointQuery::default(), Caller::default()).await.unwrap()).await;
    assert_eq!(found, ["a tcp://10.0.0.1:5001"]);
}

fn refused_for<T: std::fmt::Debug>(what: &str, answer: Result<T>, kind: Kind) {
    let error: Error = answer.expect_err(what);
    assert_eq!(error.kind, kind, "{what}: {error}");
    assert!(error.to_string().len() < 1000, "{what}: the refusal does not repeat it: {error}");
}

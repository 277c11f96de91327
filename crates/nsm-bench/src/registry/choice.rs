//! What a choice costs where every node has an endpoint and a forwarder: T-13.
//!
//! The manager and the forwarder of one node choose as they do for a Request, in this process, over the manager's view of
//! a registry in memory: no network, so that only the choosing is seen.

use super::register;
use crate::{
    row::{Holds, Row},
    stats::{median, percentile},
};
use nsm_api::{
    Caller, Connection, ConnectionId, Destination, Error, Files, Labels, Match, NetworkService, NetworkServiceEndpoint, Path, Payload,
    RegistryApi, Result, ServiceName,
};
use nsm_hop::{
    onward::{Endpoints, Forwarders},
    role::{Draft, Issuer, Next, Onward},
};
use nsm_registry::{LocalBypass, MemoryEngine, Registry};
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

/// Choices of each kind that are timed.
const SAMPLES: usize = 2000;
/// How much dearer a choice may be among ten times as many nodes: depth of trees and misses of caches.
const GROWTH: f64 = 2.0;
const SERVICE: &str = "topology-aware";
const FORWARDER: &str = "forwarder";

/// Rows for so many nodes, beside a tenth of them.
pub(super) async fn rows(nodes: usize) -> Result<Vec<Row>> {
    let (few, many) = (choices(nodes / 10).await?, choices(nodes).await?);
    let named = |what: &str| format!("{nodes} nodes: {what}");
    let mut rows = Vec::new();
    for (what, few, many) in [("a manager's choice", &few.0, &many.0), ("a forwarder's choice", &few.1, &many.1)] {
        let peer = format!("{} nodes", nodes / 10);
        rows.push(Row::alone(named(&format!("{what} p50")), "us", median(many)).beside(peer, median(few), Holds::AtMost(GROWTH)));
        rows.push(Row::alone(named(&format!("{what} p99")), "us", percentile(many, 0.99)));
    }
    Ok(rows)
}

/// Microseconds of each choice of a manager, and of a forwarder.
async fn choices(nodes: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let registry = filled(nodes).await?;
    let manager = Forwarders { registry: registry.clone(), service: FORWARDER.parse()?, own_url: url(0) };
    let forwarder = Endpoints::new(registry, Vec::new(), Arc::new(Clock));
    Ok((timed(&manager).await?, timed(&forwarder).await?))
}

async fn timed(chooser: &dyn Onward) -> Result<Vec<f64>> {
    let mut connection = Connection::new(ConnectionId::new("bench")?, SERVICE.parse()?);
    connection.labels = node(0);
    let draft = Draft { connection, preferences: Vec::new(), files: Files::default() };
    let mut took = Vec::new();
    for _ in 0..SAMPLES {
        let start = Instant::now();
        let next = chooser.next(&draft, None).await?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
        if !matches!(&next, Next::Hops(hops) if hops.len() == 1) {
            return Err(Error::internal("bench registry", "a choice is not the one of the own node"));
        }
    }
    Ok(took)
}

/// The registry as the manager of the first node shows it.
async fn filled(nodes: usize) -> Result<Arc<dyn RegistryApi>> {
    let registry = Arc::new(Registry::new(Arc::new(MemoryEngine::new()), Arc::new(SystemTime::now)).with_expire_period(super::LIFE));
    let (service, forwarder): (ServiceName, ServiceName) = (SERVICE.parse()?, FORWARDER.parse()?);
    registry.register_service(rules(service.clone())?, Caller::default()).await?;
    let bypass = LocalBypass::new(registry.clone(), url(0), Labels::new(), Arc::new(SystemTime::now));
    for number in 0..nodes {
        let serving = [(&service, node(number)), (&forwarder, Labels::from([("p2p".to_owned(), "true".to_owned())]))];
        for (serves, labels) in serving {
            let mut endpoint = NetworkServiceEndpoint::new(format!("{serves}-{number}").parse()?, vec![serves.clone()], url(number));
            endpoint.network_service_labels = [(serves.clone(), labels)].into();
            if number == 0 {
                bypass.register_endpoint(endpoint, Files::default(), Caller::default()).await?;
            } else {
                register(&registry, endpoint).await?;
            }
        }
    }
    Ok(Arc::new(bypass))
}

/// An endpoint on the client's node, or whoever makes one.
fn rules(service: ServiceName) -> Result<NetworkService> {
    let to = |key: &str, value: &str| Destination {
        destination_selector: [(key.to_owned(), value.to_owned())].into(),
        ..Destination::default()
    };
    let matches = [to("nodeName", "{{ .nodeName }}"), to("supplier", "true")];
    let rule = |route| Match { routes: vec![route], ..Match::default() };
    Ok(NetworkService { matches: matches.into_iter().map(rule).collect(), ..NetworkService::new(service, Payload::Ip) })
}

fn node(number: usize) -> Labels {
    Labels::from([("nodeName".to_owned(), format!("node-{number}"))])
}

fn url(node: usize) -> String {
    format!("tcp://10.{}.{}.1:5001", node / 256, node % 256)
}

/// The wall clock; nothing is signed here.
struct Clock;

impl Issuer for Clock {
    fn token(&self, _: &Caller) -> Result<(String, SystemTime)> {
        Ok((String::new(), SystemTime::now()))
    }
    fn connection_id(&self, path: &Path, _: &Caller) -> ConnectionId {
        path.segments[0].id.clone()
    }
    fn gave(&self, _: &ConnectionId, _: &Path, _: &Caller) -> bool {
        false
    }
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    fn random(&self, _: u64) -> u64 {
        0
    }
}

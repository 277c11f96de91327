//! The registry against a model of it that fits on one page: no index, no queue, no timer.

use super::{Bounds, MemoryEngine};
use crate::{Registry, WallClock};
use futures::{FutureExt, StreamExt};
use nsm_api::{
    Caller, EndpointName, EndpointQuery, EndpointUpdates, Files, Kind, Labels, NetworkServiceEndpoint, RegistryApi, ServiceName, SpiffeId,
};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// So small that nearly every watcher in these tests is cut sooner or later.
const QUEUE: usize = 2;
const EPOCH: SystemTime = UNIX_EPOCH;

#[derive(Clone, Debug)]
enum Step {
    Register {
        name: u8,
        who: u8,
        services: Vec<u8>,
        label: Option<(u8, u8)>,
        seconds: Option<u64>,
    },
    Unregister {
        name: u8,
        who: u8,
    },
    Pass {
        milliseconds: u64,
    },
    Find(EndpointQuery),
    Watch(EndpointQuery),
    /// Reads at most so many messages of one watcher.
    Read {
        watcher: usize,
        messages: usize,
    },
}

fn service(number: u8) -> ServiceName {
    ServiceName::new(format!("s{number}")).unwrap()
}

fn endpoint_name(number: u8) -> EndpointName {
    EndpointName::new(format!("e{number}")).unwrap()
}

/// 0 is a caller without identity.
fn caller(who: u8) -> Caller {
    let identity = (who > 0).then(|| SpiffeId::new(format!("spiffe://d/{who}")).unwrap());
    Caller { identity, ..Caller::default() }
}

fn labels(of: u8, value: u8) -> BTreeMap<ServiceName, Labels> {
    BTreeMap::from([(service(of), if value == 0 { Labels::new() } else { Labels::from([("k".into(), value.to_string())]) })])
}

fn endpoint(name: u8, services: &[u8], label: Option<(u8, u8)>) -> NetworkServiceEndpoint {
    let services = services.iter().copied().map(service).collect();
    let mut endpoint = NetworkServiceEndpoint::new(endpoint_name(name), services, format!("tcp://10.0.0.{name}:1"));
    endpoint.network_service_labels = label.map(|(of, value)| labels(of, value)).unwrap_or_default();
    endpoint
}

fn query() -> impl Strategy<Value = EndpointQuery> {
    let name = prop::option::weighted(0.2, (0..5u8).prop_map(endpoint_name));
    let services = prop::collection::vec((0..3u8).prop_map(service), 0..3);
    let labels = prop_oneof![2 => Just(BTreeMap::new()), 1 => (0..3u8, 0..3u8).prop_map(|(of, value)| labels(of, value))];
    let url = prop_oneof![3 => Just(String::new()), 1 => (0..4u8).prop_map(|part| format!(".{part}:"))];
    (name, services, labels, url).prop_map(|(name, services, labels, url)| EndpointQuery {
        name,
        services,
        labels,
        url,
        ..EndpointQuery::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let label = prop::option::of((0..3u8, 0..3u8));
    let register = (0..4u8, 0..3u8, prop::collection::vec(0..3u8, 0..3), label, prop::option::of(1..90u64));
    prop_oneof![
        6 => register.prop_map(|(name, who, services, label, seconds)| Step::Register { name, who, services, label, seconds }),
        2 => (0..4u8, 0..3u8).prop_map(|(name, who)| Step::Unregister { name, who }),
        2 => (0..40_000u64).prop_map(|milliseconds| Step::Pass { milliseconds }),
        1 => query().prop_map(Step::Find),
        1 => query().prop_map(Step::Watch),
        3 => (0..8usize, 0..6usize).prop_map(|(watcher, messages)| Step::Read { watcher, messages }),
    ]
}

/// What ought to be there.
#[derive(Default)]
struct Model {
    now: Duration,
    entries: BTreeMap<EndpointName, NetworkServiceEndpoint>,
}

impl Model {
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = EPOCH + self.now;
        self.entries.retain(|_, entry| entry.expiration_time.unwrap() > now);
    }
    fn may(&self, name: &EndpointName, who: u8) -> bool {
        let owner = self.entries.get(name).and_then(|entry| entry.path_ids.first().cloned());
        owner.is_none() || owner == caller(who).identity.map(|id| id.to_string())
    }
    fn register(&mut self, mut new: NetworkServiceEndpoint, who: u8, seconds: Option<u64>) -> NetworkServiceEndpoint {
        new.path_ids = caller(who).identity.map(|id| id.to_string()).into_iter().collect();
        new.expiration_time = Some(EPOCH + self.now + Duration::from_secs(seconds.unwrap_or(60).min(60)));
        let first = self.entries.get(&new.name).and_then(|old| old.initial_registration_time);
        new.initial_registration_time = first.or(Some(EPOCH + self.now));
        self.entries.insert(new.name.clone(), new.clone());
        new
    }
    fn find(&self, query: &EndpointQuery) -> BTreeMap<EndpointName, NetworkServiceEndpoint> {
        let answers = |entry: &&NetworkServiceEndpoint| {
            let named = query.name.is_none() || query.name.as_ref() == Some(&entry.name);
            let served = query.services.iter().all(|wanted| entry.network_service_names.iter().any(|has| has == wanted));
            let labelled = query.labels.iter().all(|(service, wanted)| match entry.network_service_labels.get(service) {
                Some(has) => wanted.iter().all(|(key, value)| has.get(key) == Some(value)),
                None => false,
            });
            named && served && labelled && entry.url.contains(&query.url)
        };
        self.entries.values().filter(answers).map(|entry| (entry.name.clone(), entry.clone())).collect()
    }
}

struct Watcher {
    query: EndpointQuery,
    updates: EndpointUpdates,
    known: BTreeMap<EndpointName, NetworkServiceEndpoint>,
}

impl Watcher {
    /// Reads what is there, at most `messages`; answers how much there was.
    fn read(&mut self, messages: usize) -> usize {
        for count in 0..messages {
            let Some(next) = self.updates.next().now_or_never() else { return count };
            let (update, _) = next.expect("a watch never ends by itself").unwrap();
            let name = update.endpoint.name.clone();
            if update.deleted {
                assert!(self.known.remove(&name).is_some(), "{name} ended, but the watcher never knew it");
            } else {
                self.known.insert(name, update.endpoint);
            }
        }
        messages
    }
}

struct World {
    registry: Registry,
    model: Model,
    watchers: Vec<Watcher>,
}

impl World {
    async fn take(&mut self, step: Step) {
        match step {
            Step::Register { name, who, services, label, seconds } => self.register(endpoint(name, &services, label), who, seconds).await,
            Step::Unregister { name, who } => {
                let answer = self.registry.unregister_endpoint(endpoint(name, &[], None), caller(who)).await;
                if self.model.may(&endpoint_name(name), who) {
                    answer.unwrap();
                    self.model.entries.remove(&endpoint_name(name));
                } else {
                    assert_eq!(answer.unwrap_err().kind, Kind::Denied);
                }
            }
            Step::Pass { milliseconds } => {
                tokio::time::advance(Duration::from_millis(milliseconds)).await;
                self.model.pass(Duration::from_millis(milliseconds));
            }
            Step::Find(query) => {
                let found: Vec<_> = self.registry.find_endpoints(query.clone(), caller(0)).await.unwrap().collect().await;
                let found: Vec<_> = found.into_iter().map(|update| update.unwrap().0.endpoint).collect();
                assert_eq!(found, self.model.find(&query).into_values().collect::<Vec<_>>(), "{query:?}");
            }
            Step::Watch(query) => {
                let updates = self.registry.find_endpoints(EndpointQuery { watch: true, ..query.clone() }, caller(0)).await.unwrap();
                self.watchers.push(Watcher { query, updates, known: BTreeMap::new() });
            }
            Step::Read { watcher, messages } => {
                if let Some(watcher) = self.watchers.get_mut(watcher) {
                    watcher.read(messages);
                }
            }
        }
    }

    async fn register(&mut self, endpoint: NetworkServiceEndpoint, who: u8, seconds: Option<u64>) {
        let mut asked = endpoint.clone();
        asked.expiration_time = seconds.map(|seconds| EPOCH + self.model.now + Duration::from_secs(seconds));
        let answer = self.registry.register_endpoint(asked, Files::default(), caller(who)).await;
        if self.model.may(&endpoint.name, who) {
            assert_eq!(answer.unwrap(), self.model.register(endpoint, who, seconds));
        } else {
            assert_eq!(answer.unwrap_err().kind, Kind::Denied);
        }
    }

    /// Every watcher, read to its end, knows what is there: no more, no less, and not after endless messages.
    async fn check(&mut self) {
        self.take(Step::Find(EndpointQuery::default())).await;
        for watcher in &mut self.watchers {
            // A rest of a snapshot, a queue, then deletions and a snapshot of at most four names each.
            let bound = 4 + QUEUE + 8 + 4 + QUEUE;
            assert!(watcher.read(bound) < bound, "a watcher has more to read than its bound");
            assert_eq!(watcher.known, self.model.find(&watcher.query), "{:?}", watcher.query);
        }
    }
}

fn run(steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // Unconstrained, because reading what is there without waiting must not be cut short by the scheduler's budget.
    runtime.block_on(tokio::task::unconstrained(async {
        let start = Instant::now();
        let wall: WallClock = Arc::new(move || EPOCH + start.elapsed());
        let engine = MemoryEngine::bounded(Bounds { entries: 100, watchers: 100, queue: QUEUE });
        let mut world = World { registry: Registry::new(Arc::new(engine), wall), model: Model::default(), watchers: Vec::new() };
        for step in steps {
            world.take(step).await;
        }
        world.check().await;
    }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A-07, M-16, M-19, M-20; reliability I6, I7: whatever happens in whatever order, the registry is what the model is.
    #[test]
    fn the_registry_behaves_like_its_model(steps in prop::collection::vec(step(), 0..60)) {
        run(steps);
    }
}

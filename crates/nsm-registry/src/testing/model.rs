//! One model for every engine: whatever happens in whatever order, the registry is what a model is that fits on one
//! page: no index, no queue, no timer, no disk, no network.

use crate::{Engine, Registry, WallClock};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use nsm_api::{
    Caller, EndpointName, EndpointQuery, EndpointUpdate, EndpointUpdates, Files, Kind, Labels, NetworkServiceEndpoint, RegistryApi,
    ServiceName, SpiffeId,
};
use proptest::{prelude::*, test_runner::TestRunner};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const EPOCH: SystemTime = UNIX_EPOCH;
/// Longer than any engine takes to tell a watcher.
const LONG: Duration = Duration::from_secs(60);

/// One thing that happens.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // numbers of names, callers, services and labels
pub enum Step {
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
    /// The registry's process ends and starts again; `crash`: the machine did, and forgot what was not synced.
    Restart {
        crash: bool,
    },
}

fn service(number: u8) -> ServiceName {
    ServiceName::new(format!("s{number}")).unwrap()
}

fn endpoint_name(of: u8) -> EndpointName {
    EndpointName::new(format!("e{of}")).unwrap()
}

/// 0 is a caller without identity.
fn who(who: u8) -> Caller {
    let identity = (who > 0).then(|| SpiffeId::new(format!("spiffe://d/{who}")).unwrap());
    Caller { identity, ..Caller::default() }
}

fn labels(of: u8, value: u8) -> BTreeMap<ServiceName, Labels> {
    let labels = if value == 0 { Labels::new() } else { Labels::from([("k".into(), value.to_string())]) };
    BTreeMap::from([(service(of), labels)])
}

fn some_endpoint(name: u8, services: &[u8], label: Option<(u8, u8)>) -> NetworkServiceEndpoint {
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
        12 => register.prop_map(|(name, who, services, label, seconds)| Step::Register { name, who, services, label, seconds }),
        4 => (0..4u8, 0..3u8).prop_map(|(name, who)| Step::Unregister { name, who }),
        4 => (0..40_000u64).prop_map(|milliseconds| Step::Pass { milliseconds }),
        2 => query().prop_map(Step::Find),
        2 => query().prop_map(Step::Watch),
        6 => (0..8usize, 0..6usize).prop_map(|(watcher, messages)| Step::Read { watcher, messages }),
        1 => any::<bool>().prop_map(|crash| Step::Restart { crash }),
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
    fn may(&self, name: &EndpointName, by: u8) -> bool {
        let owner = self.entries.get(name).and_then(|entry| entry.path_ids.first().cloned());
        owner.is_none() || owner == who(by).identity.map(|id| id.to_string())
    }
    fn register(&mut self, mut new: NetworkServiceEndpoint, by: u8, seconds: Option<u64>) -> NetworkServiceEndpoint {
        new.path_ids = who(by).identity.map(|id| id.to_string()).into_iter().collect();
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
    fn hear(&mut self, update: EndpointUpdate) {
        let name = update.endpoint.name.clone();
        if update.deleted {
            assert!(self.known.remove(&name).is_some(), "{name} ended, but the watcher never knew it");
        } else {
            self.known.insert(name, update.endpoint);
        }
    }

    /// Reads what is there, at most `messages`; answers how much there was.
    fn read(&mut self, messages: usize) -> usize {
        for count in 0..messages {
            let Some(next) = self.updates.next().now_or_never() else { return count };
            let (update, _) = next.expect("a watch never ends by itself").unwrap();
            self.hear(update);
        }
        messages
    }

    /// Reads until it knows what it ought to. Nothing more may come after that.
    async fn settle(&mut self, expected: BTreeMap<EndpointName, NetworkServiceEndpoint>, most: usize) {
        assert!(self.read(most) < most, "a watcher has more to read than its bound");
        while self.known != expected {
            let next = tokio::time::timeout(LONG, self.updates.next()).await;
            let (update, _) = next.unwrap_or_else(|_| panic!("{:?} never follows", self.query)).unwrap().unwrap();
            self.hear(update);
        }
    }
}

/// What is tested.
#[async_trait]
pub trait Subject: Send {
    /// The engine of a process that starts.
    async fn engine(&mut self) -> Arc<dyn Engine>;
    /// The process ends; with `crash` the machine does too. Nobody uses the engine any more.
    async fn end(&mut self, crash: bool);
    /// The time of day, where tokio's time can be paused; `None` where things take real time, and nothing may end.
    fn wall(&self) -> Option<WallClock>;
    /// More messages than any watcher ever has to read at once.
    fn most_messages(&self) -> usize {
        usize::MAX
    }
}

struct World<S> {
    subject: S,
    registry: Option<Registry>,
    model: Model,
    watchers: Vec<Watcher>,
}

impl<S: Subject> World<S> {
    async fn new(mut subject: S) -> World<S> {
        let engine = subject.engine().await;
        let mut world = World { subject, registry: None, model: Model::default(), watchers: Vec::new() };
        world.registry = Some(world.over(engine));
        world
    }

    /// In real time the registry's wall clock stands still: what it writes down is known.
    fn over(&self, engine: Arc<dyn Engine>) -> Registry {
        Registry::new(engine, self.subject.wall().unwrap_or_else(|| Arc::new(|| EPOCH)))
    }

    fn paused(&self) -> bool {
        self.subject.wall().is_some()
    }

    fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Register { name, who, services, label, seconds } => {
                let seconds = if self.paused() { seconds } else { None };
                self.register(some_endpoint(name, &services, label), who, seconds).await;
            }
            Step::Unregister { name, who: by } => {
                let answer = self.registry().unregister_endpoint(some_endpoint(name, &[], None), who(by)).await;
                if self.model.may(&endpoint_name(name), by) {
                    answer.unwrap();
                    self.model.entries.remove(&endpoint_name(name));
                } else {
                    assert_eq!(answer.unwrap_err().kind, Kind::Denied);
                }
            }
            Step::Pass { milliseconds } if self.paused() => {
                tokio::time::advance(Duration::from_millis(milliseconds)).await;
                self.model.pass(Duration::from_millis(milliseconds));
            }
            Step::Pass { .. } => {}
            Step::Find(query) => {
                let found: Vec<_> = self.registry().find_endpoints(query.clone(), who(0)).await.unwrap().collect().await;
                let found: Vec<_> = found.into_iter().map(|update| update.unwrap().0.endpoint).collect();
                assert_eq!(found, self.model.find(&query).into_values().collect::<Vec<_>>(), "{query:?}");
            }
            Step::Watch(query) => self.watch(query).await,
            Step::Read { watcher, messages } => {
                if let Some(watcher) = self.watchers.get_mut(watcher) {
                    watcher.read(messages);
                }
            }
            Step::Restart { crash } => self.restart(crash).await,
        }
    }

    async fn watch(&mut self, query: EndpointQuery) {
        let updates = self.registry().find_endpoints(EndpointQuery { watch: true, ..query.clone() }, who(0)).await.unwrap();
        self.watchers.push(Watcher { query, updates, known: BTreeMap::new() });
    }

    /// Watchers ask again, and start from what is there then.
    async fn restart(&mut self, crash: bool) {
        let queries: Vec<_> = self.watchers.drain(..).map(|watcher| watcher.query).collect();
        self.registry = None;
        self.subject.end(crash).await;
        let engine = self.subject.engine().await;
        self.registry = Some(self.over(engine));
        for query in queries {
            self.watch(query).await;
        }
    }

    async fn register(&mut self, endpoint: NetworkServiceEndpoint, by: u8, seconds: Option<u64>) {
        let mut asked = endpoint.clone();
        asked.expiration_time = seconds.map(|seconds| EPOCH + self.model.now + Duration::from_secs(seconds));
        let answer = self.registry().register_endpoint(asked, Files::default(), who(by)).await;
        if self.model.may(&endpoint.name, by) {
            assert_eq!(answer.unwrap(), self.model.register(endpoint, by, seconds));
        } else {
            assert_eq!(answer.unwrap_err().kind, Kind::Denied);
        }
    }

    /// Every watcher, read to its end, knows what is there: no more, no less.
    async fn check(&mut self) {
        self.take(Step::Find(EndpointQuery::default())).await;
        let most = self.subject.most_messages();
        for watcher in &mut self.watchers {
            watcher.settle(self.model.find(&watcher.query), most).await;
        }
        for watcher in &mut self.watchers {
            watcher.read(most);
            assert_eq!(watcher.known, self.model.find(&watcher.query), "{:?}", watcher.query);
        }
    }
}

/// Does all steps, and compares at each and at the end.
///
/// # Panics
/// The registry is not what the model is.
pub async fn live(subject: impl Subject, steps: Vec<Step>) {
    let mut world = World::new(subject).await;
    for step in steps {
        world.take(step).await;
    }
    world.check().await;
    world.watchers.clear();
    world.registry = None;
    world.subject.end(false).await;
}

/// The same on a clock of its own that begins now and is paused.
pub fn paused<S: Subject>(subject: impl FnOnce() -> S, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // Unconstrained, because reading what is there without waiting must not be cut short by the scheduler's budget.
    runtime.block_on(tokio::task::unconstrained(async { live(subject(), steps).await }));
}

/// So many random sequences; one that fails is made as short as it can be.
pub fn sequences(cases: u32, test: impl Fn(Vec<Step>)) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 0..60), |steps| {
        test(steps);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

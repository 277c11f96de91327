//! What a manager remembers, against a registry that comes and goes.

use super::{feed::Mode, *};
use crate::{Registry, testing::Seeded};
use futures::FutureExt;
use nsm_api::{EndpointName, Payload, ServiceName};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::UNIX_EPOCH,
};
use tokio::time::{Instant, advance, sleep, timeout};

const LONG: Duration = Duration::from_secs(3600);

/// The registry above: how often it was asked, and a way to cut it off.
struct Above {
    registry: Mutex<Arc<Registry>>,
    wall: WallClock,
    away: watch::Sender<bool>,
    asked: AtomicUsize,
}

impl Above {
    fn new() -> Arc<Above> {
        let start = Instant::now();
        let wall: WallClock = Arc::new(move || UNIX_EPOCH + start.elapsed());
        let registry = Mutex::new(Arc::new(Registry::new(Arc::new(MemoryEngine::new()), wall.clone())));
        Arc::new(Above { registry, wall, away: watch::Sender::new(false), asked: AtomicUsize::new(0) })
    }
    /// It begins anew and knows nothing.
    fn forgets(&self) {
        *self.registry.lock().unwrap() = Arc::new(Registry::new(Arc::new(MemoryEngine::new()), self.wall.clone()));
        self.cut();
        self.mend();
    }
    fn cut(&self) {
        self.set(true);
    }
    fn mend(&self) {
        self.set(false);
    }
    fn set(&self, away: bool) {
        self.away.send_if_modified(|now| std::mem::replace(now, away) != away);
    }
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
    fn reached(&self) -> Result<Arc<Registry>> {
        match *self.away.borrow() {
            true => Err(Error::new(Kind::Unavailable, "registry", "is away", "start it")),
            false => Ok(self.registry.lock().unwrap().clone()),
        }
    }
    /// The stream, until the connection breaks.
    fn line<T: Send + 'static>(&self, updates: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
        let mut away = self.away.subscribe();
        // Also a break that is over before this is polled again.
        away.borrow_and_update();
        updates.take_until(async move { away.changed().await.map(drop) }).boxed()
    }
}

#[async_trait]
impl RegistryApi for Above {
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
        self.reached()?.register_service(service, caller).await
    }
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        self.asked.fetch_add(usize::from(!query.watch), Ordering::Relaxed);
        Ok(self.line(self.reached()?.find_services(query, caller).await?))
    }
    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        self.reached()?.unregister_service(service, caller).await
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        self.reached()?.register_endpoint(endpoint, files, caller).await
    }
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        self.asked.fetch_add(usize::from(!query.watch), Ordering::Relaxed);
        Ok(self.line(self.reached()?.find_endpoints(query, caller).await?))
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        self.reached()?.unregister_endpoint(endpoint, caller).await
    }
}

fn cache(above: &Arc<Above>, bound: usize) -> Cache {
    Cache::bounded(above.clone(), above.wall.clone(), bound)
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn endpoint(name: &str, serves: &str) -> NetworkServiceEndpoint {
    NetworkServiceEndpoint::new(name.parse().unwrap(), vec![service(serves)], "tcp://10.0.0.1:1")
}

fn of(serves: &str) -> EndpointQuery {
    EndpointQuery { services: vec![service(serves)], ..EndpointQuery::default() }
}

async fn put(registry: &dyn RegistryApi, name: &str, serves: &str) {
    registry.register_endpoint(endpoint(name, serves), Files::default(), Caller::default()).await.unwrap();
}

async fn end(registry: &dyn RegistryApi, name: &str) {
    registry.unregister_endpoint(endpoint(name, "s"), Caller::default()).await.unwrap();
}

async fn names(registry: &dyn RegistryApi, query: EndpointQuery) -> Result<Vec<String>> {
    let found = registry.find_endpoints(query, Caller::default()).await?;
    found.map_ok(|(update, _)| update.endpoint.name.to_string()).try_collect().await
}

async fn reaches(mode: &watch::Sender<Mode>, wanted: Mode) {
    let mut mode = mode.subscribe();
    timeout(LONG, mode.wait_for(|mode| *mode == wanted)).await.unwrap_or_else(|_| panic!("never {wanted:?}")).unwrap();
}

/// What is remembered costs no question; what is not is asked for, and so is what another domain has.
#[tokio::test(start_paused = true)]
async fn a_choice_costs_no_round_trip() {
    let above = Above::new();
    put(&*above, "a", "s").await;
    let cache = cache(&above, 100);
    reaches(&cache.inner.endpoints, Mode::Complete).await;
    let before = above.asked();
    assert_eq!(names(&cache, of("s")).await.unwrap(), ["a"]);
    let named = |name: &str| EndpointQuery { name: Some(EndpointName::new(name).unwrap()), ..EndpointQuery::default() };
    assert_eq!(names(&cache, named("a")).await.unwrap(), ["a"]);
    assert_eq!(above.asked(), before);
    assert!(names(&cache, of("other")).await.unwrap().is_empty());
    assert_eq!(above.asked(), before + 1, "it may be new");
    put(&*above, "b@elsewhere", "s@elsewhere").await;
    for query in [of("s@elsewhere"), named("b@elsewhere")] {
        assert_eq!(names(&cache, query).await.unwrap(), ["b@elsewhere"]);
    }
    assert_eq!(above.asked(), before + 3, "D-02: other domains are not remembered");
}

/// B1: the registry is away. What was there is found until it ends; what was not is refused. It comes back with other things.
#[tokio::test(start_paused = true)]
async fn the_registry_may_be_away() {
    let above = Above::new();
    for name in ["a", "b"] {
        put(&*above, name, "s").await;
    }
    let cache = cache(&above, 100);
    reaches(&cache.inner.endpoints, Mode::Complete).await;
    above.cut();
    reaches(&cache.inner.endpoints, Mode::Away).await;
    let before = above.asked();
    assert_eq!(names(&cache, of("s")).await.unwrap(), ["a", "b"]);
    assert_eq!(above.asked(), before, "nobody waits for a registry that is known to be away");
    assert_eq!(names(&cache, of("other")).await.unwrap_err().kind, Kind::Unavailable);

    // Nobody hears of this.
    let meanwhile = above.registry.lock().unwrap().clone();
    end(&*meanwhile, "a").await;
    put(&*meanwhile, "c", "s").await;
    above.mend();
    reaches(&cache.inner.endpoints, Mode::Complete).await;
    assert_eq!(names(&cache, of("s")).await.unwrap(), ["b", "c"]);

    above.cut();
    sleep(Duration::from_secs(61)).await;
    assert_eq!(names(&cache, of("s")).await.unwrap_err().kind, Kind::Unavailable, "M-13: what has ended is no candidate");
}

/// A14: until the registry's watch is whole again it is asked; an answer of it counts, also an empty one.
#[tokio::test(start_paused = true)]
async fn a_registry_that_forgot_is_believed() {
    let above = Above::new();
    put(&*above, "a", "s").await;
    let cache = cache(&above, 100);
    reaches(&cache.inner.endpoints, Mode::Complete).await;
    above.forgets();
    reaches(&cache.inner.endpoints, Mode::Behind).await;
    assert!(names(&cache, of("s")).await.unwrap().is_empty());
    put(&*above, "b", "s").await;
    reaches(&cache.inner.endpoints, Mode::Complete).await;
    assert_eq!(names(&cache, of("s")).await.unwrap(), ["b"]);
}

/// What is registered and ended through this manager is known here at once, before any watch tells.
#[tokio::test(start_paused = true)]
async fn a_manager_knows_its_own_endpoints_at_once() {
    let above = Above::new();
    put(&*above, "a", "s").await;
    let cache = cache(&above, 100);
    reaches(&cache.inner.endpoints, Mode::Complete).await;
    for _ in 0..10 {
        put(&cache, "b", "s").await;
        assert_eq!(names(&cache, of("s")).now_or_never().unwrap().unwrap(), ["a", "b"]);
        end(&cache, "b").await;
        assert_eq!(names(&cache, of("s")).now_or_never().unwrap().unwrap(), ["a"]);
    }
}

/// E-31: who hears of a service's new rules and then asks gets no older ones.
#[tokio::test(start_paused = true)]
async fn news_of_a_service_is_never_ahead_of_a_choice() {
    let above = Above::new();
    let named = ServiceQuery { name: Some(service("s")), ..ServiceQuery::default() };
    let cache = cache(&above, 100);
    let mut watch = cache.find_services(ServiceQuery { watch: true, ..named.clone() }, Caller::default()).await.unwrap();
    for payload in [Payload::Ip, Payload::Ethernet, Payload::Ip] {
        above.register_service(NetworkService::new(service("s"), payload.clone()), Caller::default()).await.unwrap();
        let heard = timeout(LONG, watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(heard.service.payload, payload);
        let found: Vec<_> = cache.find_services(named.clone(), Caller::default()).await.unwrap().try_collect().await.unwrap();
        assert_eq!(found[0].service.payload, payload);
    }
    above.cut();
    reaches(&cache.inner.services, Mode::Away).await;
    assert!(watch.next().now_or_never().is_none(), "a registry that is away ends no service");
    let lost = above.registry.lock().unwrap().clone();
    lost.unregister_service(NetworkService::new(service("s"), Payload::Ip), Caller::default()).await.unwrap();
    lost.register_service(NetworkService::new(service("t"), Payload::Ip), Caller::default()).await.unwrap();
    above.mend();
    let heard = timeout(LONG, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(heard.deleted && heard.service.name == service("s"), "{heard:?}");
}

/// A registry that holds more than may be remembered is asked each time; later that is tried again.
#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded() {
    let above = Above::new();
    for number in 0..4 {
        put(&*above, &format!("e{number}"), "s").await;
        above.register_service(NetworkService::new(service(&format!("s{number}")), Payload::Ip), Caller::default()).await.unwrap();
    }
    let cache = cache(&above, 3);
    let mut watch = cache.find_services(NetworkService::everything(true), Caller::default()).await.unwrap();
    let last = async { while watch.next().await.unwrap().is_ok() {} };
    timeout(LONG, last).await.expect("the watch ends, so that the next goes to the registry");
    reaches(&cache.inner.endpoints, Mode::Off).await;
    let before = above.asked();
    put(&cache, "e4", "s").await;
    assert_eq!(names(&cache, of("s")).await.unwrap().len(), 5);
    assert_eq!(above.asked(), before + 1);
    assert!(cache.inner.index.endpoints().find(&of("s")).await.unwrap().is_empty(), "nothing is kept");
    let mut watch = cache.find_services(NetworkService::everything(true), Caller::default()).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    for number in 0..5 {
        end(&*above, &format!("e{number}")).await;
    }
    put(&*above, "few", "s").await;
    let refreshed = async {
        while *cache.inner.endpoints.borrow() != Mode::Complete {
            sleep(Duration::from_secs(30)).await;
            put(&*above, "few", "s").await;
        }
    };
    timeout(LONG, refreshed).await.unwrap();
}

/// A registry that accepts calls and says nothing delays a choice by a bounded time, where something is remembered.
#[tokio::test(start_paused = true)]
async fn a_registry_that_says_nothing_is_not_waited_for() {
    struct Silent;
    #[async_trait]
    impl RegistryApi for Silent {
        async fn register_service(&self, service: NetworkService, _: Caller) -> Result<NetworkService> {
            Ok(service)
        }
        async fn find_services(&self, _: ServiceQuery, _: Caller) -> Result<ServiceUpdates> {
            Ok(stream::pending().boxed())
        }
        async fn unregister_service(&self, _: NetworkService, _: Caller) -> Result<()> {
            Ok(())
        }
        async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, _: Files, _: Caller) -> Result<NetworkServiceEndpoint> {
            Ok(endpoint)
        }
        async fn find_endpoints(&self, _: EndpointQuery, _: Caller) -> Result<EndpointUpdates> {
            Ok(stream::pending().boxed())
        }
        async fn unregister_endpoint(&self, _: NetworkServiceEndpoint, _: Caller) -> Result<()> {
            Ok(())
        }
    }
    let cache = Cache::new(Arc::new(Silent), Arc::new(|| UNIX_EPOCH));
    put(&cache, "a", "s").await;
    let start = Instant::now();
    assert_eq!(names(&cache, of("s")).await.unwrap(), ["a"]);
    assert!(start.elapsed() < ASK_TIMEOUT + Duration::from_millis(10), "{:?}", start.elapsed());
}

/// I6: whatever happens on both sides and between them, in the end the manager knows what the registry knows.
#[tokio::test(start_paused = true)]
async fn i6_it_ends_with_what_is_there() {
    for seed in 0..200 {
        let (mut chance, above) = (Seeded(seed), Above::new());
        put(&*above, "stays", "s").await;
        let cache = cache(&above, 100);
        for _ in 0..60 {
            let (called, through) = (format!("e{}", chance.below(4)), chance.below(2) == 0);
            let side: &dyn RegistryApi = if through { &cache } else { &*above };
            match chance.below(8) {
                0..3 => drop(side.register_endpoint(endpoint(&called, "s"), Files::default(), Caller::default()).await),
                3 => drop(side.unregister_endpoint(endpoint(&called, "s"), Caller::default()).await),
                4 => above.cut(),
                5 => above.mend(),
                6 => advance(Duration::from_millis(chance.below(20_000))).await,
                _ => sleep(Duration::from_millis(chance.below(2000))).await,
            }
        }
        above.mend();
        sleep(2 * feed::REOPEN.1).await;
        put(&*above, "stays", "s").await;
        reaches(&cache.inner.endpoints, Mode::Complete).await;
        sleep(Duration::from_millis(10)).await;
        let before = above.asked();
        let known = names(&cache, of("s")).await.unwrap();
        assert_eq!(above.asked(), before, "seed {seed}: it is remembered");
        assert_eq!(known, names(&*above, of("s")).await.unwrap(), "seed {seed}");
    }
}
